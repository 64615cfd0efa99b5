//! The PIN guard: remembers on disk which PINs an HSM has refused, so that none is tried twice, restart or not.
//!
//! A token locks itself after a few wrong PINs, sometimes after one, and only its security officer can undo that. So a
//! refused PIN is written down before anything else happens, and is not tried again until the configured PIN changes or
//! an operator says so ([`reset`]).
//!
//! The file is JSON, mode 0600: `{format, salt, refused: [tag…], retry}`. A refused PIN is often a typo of the right
//! one, so a tag is argon2id over token and PIN cut to 3 bytes: it tells that a PIN is *probably* the same and is no
//! oracle for guessing one.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use argon2::Argon2;
use serde::{Deserialize, Serialize};

use crate::secret::{SecretString, fill_random};

const FORMAT: u32 = 1;
const TAG_LEN: usize = 3;
const SALT_LEN: usize = 16;
/// Refused PINs that are remembered; the oldest is forgotten first.
const MAX_TAGS: usize = 64;
/// A guard file is small; anything larger is not one.
const MAX_FILE: u64 = 64 * 1024;

/// The PIN guard of one node.
pub(super) struct PinGuard {
    path: PathBuf,
}

/// What the guard says about a PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was not refused by this token.
    Unknown,
    /// Not refused either, but others were, by this guard's own account: the token's count of wrong PINs is explained.
    OthersRefused,
    /// An operator asked for another try.
    Reset,
    /// It was refused.
    Refused,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    salt: String,
    refused: Vec<String>,
    /// Set by [`reset`]: one try is allowed even if the token says that a wrong PIN was entered.
    retry: bool,
}

/// Lets the configured PIN be tried once more; what `strongroom operator seal-reset-pin-guard` does.
///
/// `path` is the guard file; `false` when there is none, that is, when nothing was refused.
///
/// # Errors
/// When the file cannot be replaced.
pub fn reset(path: &Path) -> io::Result<bool> {
    if !path.try_exists()? {
        return Ok(false);
    }
    // Whatever it held, even if it cannot be parsed: this is the operator's way out.
    let mut file = File::new()?;
    file.retry = true;
    file.save(path)?;
    Ok(true)
}

impl File {
    fn new() -> io::Result<Self> {
        let mut salt = [0; SALT_LEN];
        fill_random(&mut salt).map_err(io::Error::other)?;
        Ok(Self {
            format: FORMAT,
            salt: hex::encode(salt),
            refused: Vec::new(),
            retry: false,
        })
    }

    fn load(path: &Path) -> io::Result<Option<Self>> {
        let length = match fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if length > MAX_FILE {
            return Err(io::Error::other("it is too large to be a PIN guard"));
        }
        let file: Self = serde_json::from_slice(&fs::read(path)?).map_err(io::Error::other)?;
        if file.format != FORMAT {
            return Err(io::Error::other(format!(
                "it has format {}, this version knows {FORMAT}",
                file.format
            )));
        }
        Ok(Some(file))
    }

    /// Atomic and durable on return.
    fn save(&self, path: &Path) -> io::Result<()> {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let temporary = path.with_extension("tmp");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(dir)?.sync_all()
    }

    fn tag(&self, token: &str, pin: &SecretString) -> io::Result<String> {
        let salt = hex::decode(&self.salt).map_err(io::Error::other)?;
        // Length first, so that token and PIN cannot run into each other.
        let mut input = zeroize::Zeroizing::new(Vec::new());
        input.extend_from_slice(&(token.len() as u64).to_be_bytes());
        input.extend_from_slice(token.as_bytes());
        input.extend_from_slice(pin.expose().as_bytes());
        let mut hash = [0; 32];
        Argon2::default()
            .hash_password_into(&input, &salt, &mut hash)
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(hex::encode(hash.get(..TAG_LEN).unwrap_or_default()))
    }
}

impl PinGuard {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is known about trying `pin` at `token` (serial and label). Makes the file if there is none: a PIN must not
    /// be tried where a refusal could not be written down.
    pub(super) fn check(&self, token: &str, pin: &SecretString) -> io::Result<Verdict> {
        let Some(file) = File::load(&self.path)? else {
            File::new()?.save(&self.path)?;
            return Ok(Verdict::Unknown);
        };
        if file.refused.is_empty() {
            return Ok(if file.retry {
                Verdict::Reset
            } else {
                Verdict::Unknown
            });
        }
        let tag = file.tag(token, pin)?;
        Ok(if file.refused.contains(&tag) {
            Verdict::Refused
        } else {
            Verdict::OthersRefused
        })
    }

    /// Writes down that `token` has refused `pin`; durable on return.
    pub(super) fn refused(&self, token: &str, pin: &SecretString) -> io::Result<()> {
        let mut file = match File::load(&self.path)? {
            Some(file) => file,
            None => File::new()?,
        };
        let tag = file.tag(token, pin)?;
        file.retry = false;
        if !file.refused.contains(&tag) {
            file.refused.push(tag);
        }
        let excess = file.refused.len().saturating_sub(MAX_TAGS);
        file.refused.drain(..excess);
        file.save(&self.path)
    }

    /// A login succeeded, so the token's own count starts over.
    pub(super) fn accepted(&self) -> io::Result<()> {
        match File::load(&self.path)? {
            Some(mut file) if file.retry || !file.refused.is_empty() => {
                file.retry = false;
                file.refused.clear();
                file.save(&self.path)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn guard() -> (tempfile::TempDir, PinGuard) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pin-guard.json");
        (dir, PinGuard::new(path))
    }

    #[test]
    fn a_refused_pin_stays_refused_for_that_token_alone() {
        let (_dir, guard) = guard();
        let (wrong, other) = (SecretString::from("1111"), SecretString::from("2222"));
        assert_eq!(guard.check("t", &wrong).unwrap(), Verdict::Unknown);
        guard.refused("t", &wrong).unwrap();
        let again = PinGuard::new(guard.path().to_owned());
        assert_eq!(again.check("t", &wrong).unwrap(), Verdict::Refused);
        assert_eq!(again.check("t", &other).unwrap(), Verdict::OthersRefused);
        assert_eq!(again.check("u", &wrong).unwrap(), Verdict::OthersRefused);
        again.refused("t", &other).unwrap();
        assert_eq!(again.check("t", &wrong).unwrap(), Verdict::Refused);
        again.accepted().unwrap();
        assert_eq!(again.check("t", &wrong).unwrap(), Verdict::Unknown);
    }

    #[test]
    fn the_file_is_private_and_tells_little() {
        let (_dir, guard) = guard();
        let pin = SecretString::from("31415926");
        guard.check("t", &pin).unwrap();
        guard.refused("t", &pin).unwrap();
        let mode = fs::metadata(guard.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = fs::read_to_string(guard.path()).unwrap();
        assert!(!text.contains("31415926"));
        let file: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(file["refused"][0].as_str().unwrap().len(), 2 * TAG_LEN);
    }

    #[test]
    fn reset_allows_one_more_try() {
        let (_dir, guard) = guard();
        let pin = SecretString::from("1");
        assert!(!reset(guard.path()).unwrap());
        guard.refused("t", &pin).unwrap();
        assert!(reset(guard.path()).unwrap());
        assert_eq!(guard.check("t", &pin).unwrap(), Verdict::Reset);
        guard.refused("t", &pin).unwrap();
        assert_eq!(guard.check("t", &pin).unwrap(), Verdict::Refused);
    }

    #[test]
    fn a_guard_that_cannot_be_read_or_written_allows_nothing() {
        let (dir, guard) = guard();
        let pin = SecretString::from("1");
        for content in [
            "",
            "{}",
            r#"{"format":2,"salt":"00","refused":[],"retry":false}"#,
            r#"{"format":1,"salt":"zz","refused":["a"],"retry":false}"#,
        ] {
            fs::write(guard.path(), content).unwrap();
            assert!(guard.check("t", &pin).is_err(), "{content}");
        }
        assert!(
            reset(guard.path()).unwrap(),
            "the way out works on a damaged file"
        );
        assert_eq!(guard.check("t", &pin).unwrap(), Verdict::Reset);
        let missing = PinGuard::new(dir.path().join("no/such/dir/guard"));
        assert!(missing.check("t", &pin).is_err());
    }

    #[test]
    fn the_number_of_tags_is_bounded() {
        let (_dir, guard) = guard();
        let mut file = File::new().unwrap();
        file.refused = (0..MAX_TAGS).map(|n| format!("{n:06x}")).collect();
        file.save(guard.path()).unwrap();
        guard.refused("t", &SecretString::from("1")).unwrap();
        let back = File::load(guard.path()).unwrap().unwrap();
        assert_eq!(back.refused.len(), MAX_TAGS);
    }
}
