//! Software HSMs: one golden token, one copy of it for every node, as a vendor's replicated HSM would hold it.
//!
//! Invariants
//! - No two processes share a token directory: SoftHSM truncates the token at each login, so a `kill -9` at the wrong
//!   moment, or a second start in it, destroys the token for all (its issue #757).
//! - A node that was killed gets its copy back from the golden one before it starts again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::machine::{program, softhsm_module};

/// Label of the token of every node.
pub const TOKEN_LABEL: &str = "strongroom-test";
/// Label of the seal key.
pub const KEY_LABEL: &str = "strongroom-seal";
/// PIN of the token; no other text in a test contains it.
pub const PIN: &str = "pin-84619375028";
const SO_PIN: &str = "so-pin-5920174683";

/// A directory with one SoftHSM token, and the configuration file that names it.
#[derive(Clone, Debug)]
pub struct Token {
    dir: PathBuf,
}

impl Token {
    /// A token without keys. `dir` must not exist.
    #[must_use]
    pub fn make(dir: &Path) -> Self {
        let token = Self::describe(dir);
        fs::create_dir_all(token.objects()).expect("token directory");
        let mut command = Command::new(program("softhsm2-util", "softhsm2"));
        command.args([
            "--init-token",
            "--free",
            "--label",
            TOKEN_LABEL,
            "--so-pin",
            SO_PIN,
            "--pin",
            PIN,
        ]);
        token.run(&mut command);
        token
    }

    /// A token that [`Token::make`] or [`Token::copy_to`] has made once, in this run or another.
    #[must_use]
    pub fn existing(dir: &Path) -> Self {
        Self::describe(dir)
    }

    fn describe(dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("token directory");
        let token = Self {
            dir: dir.to_owned(),
        };
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n",
            token.objects().display()
        );
        fs::write(token.conf(), text).expect("softhsm2.conf");
        token
    }

    /// Value of `SOFTHSM2_CONF`.
    #[must_use]
    pub fn conf(&self) -> PathBuf {
        self.dir.join("softhsm2.conf")
    }

    fn objects(&self) -> PathBuf {
        self.dir.join("tokens")
    }

    fn away(&self) -> PathBuf {
        self.dir.join("tokens-away")
    }

    /// Makes an AES-256 key that cannot leave the token, under `label`.
    pub fn make_key(&self, label: &str, id: &str) {
        let mut command = Command::new(program("pkcs11-tool", "opensc"));
        command.arg("--module").arg(softhsm_module()).args([
            "--token-label",
            TOKEN_LABEL,
            "--login",
            "--pin",
            PIN,
        ]);
        command.args([
            "--keygen",
            "--key-type",
            "AES:32",
            "--label",
            label,
            "--id",
            id,
        ]);
        command.args(["--sensitive", "--private", "--usage-decrypt"]);
        self.run(&mut command);
    }

    /// Removes the key under `label`.
    pub fn remove_key(&self, label: &str) {
        let mut command = Command::new(program("pkcs11-tool", "opensc"));
        command.arg("--module").arg(softhsm_module()).args([
            "--token-label",
            TOKEN_LABEL,
            "--login",
            "--pin",
            PIN,
        ]);
        command.args(["--delete-object", "--type", "secrkey", "--label", label]);
        self.run(&mut command);
    }

    /// What `pkcs11-tool` says about the token and its flags; without the token's label while the HSM is away.
    #[must_use]
    pub fn describe_slots(&self) -> String {
        let mut command = Command::new(program("pkcs11-tool", "opensc"));
        command
            .arg("--module")
            .arg(softhsm_module())
            .arg("--list-token-slots")
            .env("SOFTHSM2_CONF", self.conf());
        let output = command.output().expect("pkcs11-tool");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// How many keys are on the token under `label`.
    #[must_use]
    pub fn count_keys(&self, label: &str) -> usize {
        let mut command = Command::new(program("pkcs11-tool", "opensc"));
        command.arg("--module").arg(softhsm_module()).args([
            "--token-label",
            TOKEN_LABEL,
            "--login",
            "--pin",
            PIN,
        ]);
        command.args(["--list-objects", "--type", "secrkey"]);
        let listed = self.run(&mut command);
        listed
            .lines()
            .filter(|line| line.trim().strip_prefix("label:").map(str::trim) == Some(label))
            .count()
    }

    fn run(&self, command: &mut Command) -> String {
        let output = command.env("SOFTHSM2_CONF", self.conf()).output();
        let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{command:?}: {}\n{text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// A copy of this token in `dir`, replacing what is there.
    #[must_use]
    pub fn copy_to(&self, dir: &Path) -> Self {
        let copy = Self::describe(dir);
        copy.restore_from(self);
        copy
    }

    /// Makes this token what `golden` is.
    pub fn restore_from(&self, golden: &Self) {
        for old in [self.objects(), self.away()] {
            if old.exists() {
                fs::remove_dir_all(&old).expect("removing a token's copy");
            }
        }
        copy_dir(&golden.objects(), &self.objects());
    }

    /// Whether a kill at the wrong moment has emptied one of the token's files.
    #[must_use]
    pub fn is_destroyed(&self) -> bool {
        has_empty_file(&self.objects())
    }

    /// The HSM is gone: its directory moves away.
    pub fn take_away(&self) {
        if self.objects().exists() {
            fs::rename(self.objects(), self.away()).expect("moving a token away");
        }
    }

    /// The HSM is back.
    pub fn give_back(&self) {
        if self.away().exists() {
            fs::rename(self.away(), self.objects()).expect("moving a token back");
        }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("token directory");
    for entry in fs::read_dir(from).expect("token directory") {
        let entry = entry.expect("token directory");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type of a file").is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copying a token");
        }
    }
}

fn has_empty_file(dir: &Path) -> bool {
    fs::read_dir(dir).expect("token directory").any(|entry| {
        let entry = entry.expect("token directory");
        let data = entry.metadata().expect("size of a file");
        let object = entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "object");
        if data.is_dir() {
            has_empty_file(&entry.path())
        } else {
            object && data.len() == 0
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_holds_the_golden_token_and_an_outage_hides_it() {
        let dir = tempfile::tempdir().unwrap();
        let golden = Token::make(&dir.path().join("golden"));
        golden.make_key(KEY_LABEL, "01");
        let copy = golden.copy_to(&dir.path().join("copy"));
        assert_eq!(copy.count_keys(KEY_LABEL), 1);
        copy.make_key(KEY_LABEL, "02");
        assert_eq!(
            (copy.count_keys(KEY_LABEL), golden.count_keys(KEY_LABEL)),
            (2, 1)
        );

        assert!(copy.describe_slots().contains(TOKEN_LABEL));
        copy.take_away();
        assert!(!copy.describe_slots().contains(TOKEN_LABEL));
        copy.give_back();
        assert_eq!(copy.count_keys(KEY_LABEL), 2);
        copy.restore_from(&golden);
        assert_eq!(copy.count_keys(KEY_LABEL), 1);
    }
}
