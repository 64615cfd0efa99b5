//! Where the command line keeps its token between two calls: `~/.vault-token`, shared with Vault's own tools.

use std::{
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::config::Environment;

const FILE: &str = ".vault-token";

/// The file, `None` without a home directory.
fn path(environment: &Environment) -> Option<PathBuf> {
    environment
        .get("HOME")
        .map(|home| Path::new(&home).join(FILE))
}

/// The token of the environment, else the kept one.
///
/// # Errors
/// The file is there and cannot be read.
pub(crate) fn current(environment: &Environment) -> std::io::Result<Option<Zeroizing<String>>> {
    if let Some((_, token)) = environment.find("TOKEN") {
        return Ok(Some(Zeroizing::new(token)));
    }
    let Some(path) = path(environment) else {
        return Ok(None);
    };
    match std::fs::read_to_string(path).map(Zeroizing::new) {
        Ok(text) => Ok(Some(Zeroizing::new(text.trim().to_owned())).filter(|t| !t.is_empty())),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_missing(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
    )
}

/// Keeps `token`, readable by its owner only.
///
/// # Errors
/// There is no home directory, or it cannot be written to.
pub(crate) fn store(environment: &Environment, token: &str) -> std::io::Result<()> {
    let path = path(environment)
        .ok_or_else(|| std::io::Error::other("HOME is not set, so there is nowhere to keep it"))?;
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(token.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&temporary, &path));
    if written.is_err() {
        // The first error is the one to report; a leftover would hold a token.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keeps_and_finds_a_token() {
        let home = tempfile::tempdir().unwrap();
        let home_text = home.path().display().to_string();
        let environment = Environment::fixed(&[("HOME", &home_text)]);
        assert!(current(&environment).unwrap().is_none());
        store(&environment, "first").unwrap();
        store(&environment, "hvs.x").unwrap();
        assert_eq!(current(&environment).unwrap().unwrap().as_str(), "hvs.x");
        let mode = std::fs::metadata(home.path().join(FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1);

        let environment = Environment::fixed(&[
            ("HOME", &home_text),
            ("BAO_TOKEN", "b"),
            ("VAULT_TOKEN", "v"),
        ]);
        assert_eq!(current(&environment).unwrap().unwrap().as_str(), "v");
        assert!(store(&Environment::fixed(&[]), "x").is_err());
    }
}
