//! Who this data directory is: `node.json`.
//!
//! In: a data directory. Out: the cluster id, the Raft id and the node's name, written once when the node is
//! initialised or admitted, and never changed.
//!
//! Invariants
//! - One Raft id belongs to one data directory for ever: a wiped directory gets a new id, because the old one stood for
//!   votes and acknowledged entries that are gone.
//! - The file appears whole or not at all: written aside, synced, renamed, directory synced.
//! - An unknown version is refused.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// On-disk version of `node.json`. A node refuses any other number.
const VERSION: u32 = 1;
const FILE: &str = "node.json";

/// Who a data directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster, chosen at random when it was initialised.
    pub cluster_id: [u8; 16],
    /// This data directory's number in the cluster; never used twice.
    pub raft_id: u64,
    /// The operator's `node_id`.
    pub name: String,
}

/// Why `node.json` was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file or its directory cannot be read or written.
    #[error("`{}` cannot be used", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not what this program writes.
    #[error("`{}` is damaged and says no more whose data this is. {}", path.display(), crate::error::REJOIN)]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it stops making sense.
        #[source]
        source: serde_json::Error,
    },
    /// Written by a newer version.
    #[error("`{}` has version {version}; this program knows version {VERSION} only", path.display())]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// The version it has.
        version: u32,
    },
    /// The data directory already belongs to another node.
    #[error("`{}` already belongs to node `{name}`; it is never changed", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
        /// The name in it.
        name: String,
    },
}

/// Read first, so that a newer layout gives its version and not a parse error.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    version: u32,
    /// 32 hexadecimal digits.
    #[serde(with = "cluster_id")]
    cluster_id: [u8; 16],
    raft_id: u64,
    name: String,
}

impl Identity {
    /// The identity of data directory `dir`; `None` if it has none yet.
    ///
    /// # Errors
    /// `Damaged` or `UnknownVersion` when there is a file that cannot be trusted; `Io` otherwise.
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => Self::parse(&path, &bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IdentityError::Io { path, source }),
        }
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, IdentityError> {
        let damaged = |source| IdentityError::Damaged {
            path: path.to_owned(),
            source,
        };
        let Versioned { version } = serde_json::from_slice(bytes).map_err(damaged)?;
        if version != VERSION {
            return Err(IdentityError::UnknownVersion {
                path: path.to_owned(),
                version,
            });
        }
        let file: OnDisk = serde_json::from_slice(bytes).map_err(damaged)?;
        Ok(Self {
            cluster_id: file.cluster_id,
            raft_id: file.raft_id,
            name: file.name,
        })
    }

    /// Writes the identity of data directory `dir`, durably. Writing the same identity again is not an error.
    ///
    /// # Errors
    /// `Taken` when the directory already has another identity; `Io` otherwise.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        let path = dir.join(FILE);
        match Self::load(dir)? {
            Some(existing) if existing == *self => return Ok(()),
            Some(existing) => {
                return Err(IdentityError::Taken {
                    path,
                    name: existing.name,
                });
            }
            None => {}
        }
        let file = OnDisk {
            version: VERSION,
            cluster_id: self.cluster_id,
            raft_id: self.raft_id,
            name: self.name.clone(),
        };
        let mut json =
            serde_json::to_vec_pretty(&file).map_err(|source| IdentityError::Damaged {
                path: path.clone(),
                source,
            })?;
        json.push(b'\n');
        write_atomically(&path, &json).map_err(|source| IdentityError::Io { path, source })
    }
}

/// Replaces `path` by a file holding `bytes`, so that after a crash it is there whole or not at all.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("tmp");
    let mut file = File::create(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    // The rename itself is durable only once the directory is.
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// A cluster id as 32 lower-case hexadecimal digits.
pub(crate) fn cluster_id_hex(id: &[u8; 16]) -> String {
    use std::fmt::Write as _;
    id.iter().fold(String::with_capacity(32), |mut text, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads what [`cluster_id_hex`] gave; anything else is `None`.
pub(crate) fn cluster_id_from_hex(text: &str) -> Option<[u8; 16]> {
    let well_formed = text.len() == 32
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !well_formed {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

mod cluster_id {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(id: &[u8; 16], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&super::cluster_id_hex(id))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 16], D::Error> {
        let text = String::deserialize(d)?;
        super::cluster_id_from_hex(&text)
            .ok_or_else(|| D::Error::custom("a cluster id is 32 lower-case hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn some() -> Identity {
        Identity {
            cluster_id: [0xab; 16],
            raft_id: 7,
            name: "node \"one\"".to_owned(),
        }
    }

    #[test]
    fn an_identity_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Identity::load(dir.path()).unwrap(), None);
        some().save(dir.path()).unwrap();
        some().save(dir.path()).unwrap();
        assert_eq!(Identity::load(dir.path()).unwrap(), Some(some()));
        let other = Identity {
            raft_id: 8,
            ..some()
        };
        let error = other.save(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Taken { .. }), "{error}");
        assert_eq!(Identity::load(dir.path()).unwrap(), Some(some()));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let id = "ab".repeat(16);
        for (text, want) in [
            (String::new(), "damaged"),
            ("{}".to_owned(), "damaged"),
            (r#"{"version":2,"anything":1}"#.to_owned(), "version 2"),
            (
                format!(r#"{{"version":1,"cluster_id":"{id}","raft_id":1}}"#),
                "damaged",
            ),
            (
                format!(r#"{{"version":1,"cluster_id":"{id}f","raft_id":1,"name":"a"}}"#),
                "damaged",
            ),
            (
                format!(r#"{{"version":1,"cluster_id":"{id}","raft_id":1,"name":"a","x":1}}"#),
                "damaged",
            ),
        ] {
            fs::write(dir.path().join(FILE), &text).unwrap();
            let error = Identity::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_cluster_id_survives_hex(id: [u8; 16]) {
            prop_assert_eq!(cluster_id_from_hex(&cluster_id_hex(&id)), Some(id));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Identity::parse(Path::new("x"), &bytes).is_err());
        }
    }
}
