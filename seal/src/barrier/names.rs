//! Stored keys: names encrypted segment by segment, so that listing by prefix works and a disk does not tell names.
//!
//! Invariants
//! - Encrypted name: byte `0x02`, then for each path segment `len u16 BE | AES-SIV(segment)`, associated data the plain
//!   path of the parent folder. The length of the *last* segment has its top bit set: a value at `a` and a folder `a/`
//!   never meet, and a folder's prefix matches exactly what lies strictly below it.
//! - Plain core name: byte `0x01`, then ASCII. Only what is needed before unseal has one.
//! - The same path always gives the same stored key under one keyring. Source: RFC 5297 (AES-SIV).

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use aes_siv::{KeyInit, siv::Aes256Siv};
use zeroize::Zeroizing;

use super::BarrierError;

/// First byte of a plain core name.
pub(crate) const CORE: u8 = 0x01;
/// First byte of an encrypted name.
pub(crate) const ENCRYPTED: u8 = 0x02;
/// Set in the length of a path's last segment.
pub(crate) const LEAF: u16 = 0x8000;

/// Longest path, bytes. Keeps every segment's length below [`LEAF`] and stored keys small.
const MAX_PATH: usize = 4096;
/// Folders whose encrypted prefix is remembered; past that all are forgotten and found again one by one.
const MAX_FOLDERS: usize = 4096;
/// Longest encrypted segment.
pub(crate) const MAX_SEGMENT_LEN: u16 = 4096 + 16;

/// The stored key of a core parameter that must be readable before unseal, e.g. `core/seal-config`.
#[must_use]
pub fn core_key(name: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + name.len());
    key.push(CORE);
    key.extend_from_slice(name.as_bytes());
    key
}

/// One child of a folder, decoded from a stored key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// Plain name of the segment directly under the folder.
    pub name: String,
    /// Whether the stored key lies deeper, so that the child is a folder.
    pub is_folder: bool,
    /// Sorts after the child and everything below it, and before the next child.
    pub skip_to: Vec<u8>,
}

/// Refuses what cannot be stored: empty or too long, leading, trailing or double slashes, `..`, control characters.
pub(super) fn check_path(path: &str) -> Result<(), BarrierError> {
    if path.len() > MAX_PATH {
        return Err(BarrierError::Path("longer than 4096 bytes"));
    }
    for segment in path.split('/') {
        match segment {
            "" => return Err(BarrierError::Path("a segment is empty")),
            ".." => return Err(BarrierError::Path("a segment is `..`")),
            _ => {}
        }
    }
    if path.chars().any(char::is_control) {
        return Err(BarrierError::Path("it holds control characters"));
    }
    Ok(())
}

/// Encrypts and decrypts names. The key is wiped on drop.
pub(super) struct NameKey {
    key: Zeroizing<[u8; 64]>,
    /// Encrypted prefixes by folder: a segment costs three passes of AES and two key schedules, and nearly every name
    /// lies in a folder that was asked for a moment ago.
    folders: RwLock<HashMap<Box<str>, Arc<[u8]>>>,
}

impl NameKey {
    pub(super) fn new(key: &Zeroizing<[u8; 64]>) -> Self {
        Self {
            key: key.clone(),
            folders: RwLock::default(),
        }
    }

    pub(super) fn key(&self, path: &str) -> Result<Vec<u8>, BarrierError> {
        check_path(path)?;
        self.encode(path, LEAF)
    }

    pub(super) fn prefix(&self, folder: &str) -> Result<Vec<u8>, BarrierError> {
        if folder.is_empty() {
            return Ok(vec![ENCRYPTED]);
        }
        check_path(folder)?;
        self.encode(folder, 0)
    }

    pub(super) fn child(&self, folder: &str, stored_key: &[u8]) -> Result<Child, BarrierError> {
        let mut prefix = self.prefix(folder)?;
        let below = stored_key
            .strip_prefix(prefix.as_slice())
            .ok_or(BarrierError::Damaged)?;
        let (len, rest) = below
            .split_first_chunk::<2>()
            .ok_or(BarrierError::Damaged)?;
        let field = u16::from_be_bytes(*len);
        let is_folder = field & LEAF == 0;
        let segment = rest
            .get(..usize::from(field & !LEAF))
            .ok_or(BarrierError::Damaged)?;
        if is_folder == (segment.len() == rest.len()) {
            // A last segment must end the key, and only a last one may.
            return Err(BarrierError::Damaged);
        }
        let plain = self
            .siv()
            .decrypt([folder.as_bytes()], segment)
            .map_err(|_| BarrierError::Damaged)?;
        let name = String::from_utf8(plain).map_err(|_| BarrierError::Damaged)?;
        prefix.extend_from_slice(len);
        prefix.extend_from_slice(segment);
        if is_folder {
            // No length field starts with 0xFF, so this sorts after everything below the child.
            prefix.push(0xFF);
        }
        Ok(Child {
            name,
            is_folder,
            skip_to: prefix,
        })
    }

    /// `path` is checked; `last` goes into the length field of the last segment.
    fn encode(&self, path: &str, last: u16) -> Result<Vec<u8>, BarrierError> {
        let Some((parent, segment)) = path.rsplit_once('/') else {
            return self.append(&[ENCRYPTED], "", path, last);
        };
        let folder = self.folder(parent)?;
        self.append(&folder, parent, segment, last)
    }

    /// The encrypted prefix of a checked folder.
    fn folder(&self, folder: &str) -> Result<Arc<[u8]>, BarrierError> {
        let known = self.folders.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(prefix) = known.get(folder) {
            return Ok(Arc::clone(prefix));
        }
        drop(known);
        let mut prefix = vec![ENCRYPTED];
        let mut parent = "";
        let mut start = 0;
        for segment in folder.split('/') {
            prefix = self.append(&prefix, parent, segment, 0)?;
            let end = start + segment.len();
            parent = folder.get(..end).unwrap_or_default();
            start = end + 1;
        }
        let prefix: Arc<[u8]> = prefix.into();
        let mut known = self.folders.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_FOLDERS {
            known.clear();
        }
        known.insert(folder.into(), Arc::clone(&prefix));
        Ok(prefix)
    }

    /// `prefix` (that of folder `parent`) and the encrypted `segment` behind it.
    fn append(
        &self,
        prefix: &[u8],
        parent: &str,
        segment: &str,
        flag: u16,
    ) -> Result<Vec<u8>, BarrierError> {
        let sealed = self
            .siv()
            .encrypt([parent.as_bytes()], segment.as_bytes())
            .map_err(|_| BarrierError::Damaged)?;
        let len = u16::try_from(sealed.len()).map_err(|_| BarrierError::Path("too long"))?;
        let mut out = Vec::with_capacity(prefix.len() + 2 + sealed.len());
        out.extend_from_slice(prefix);
        out.extend_from_slice(&(len | flag).to_be_bytes());
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    fn siv(&self) -> Aes256Siv {
        Aes256Siv::new((&*self.key).into())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn names() -> NameKey {
        NameKey::new(&Zeroizing::new([7; 64]))
    }

    #[test]
    fn paths_are_checked() {
        let long = "a".repeat(MAX_PATH + 1);
        for (path, ok) in [
            ("a", true),
            ("kv/app/db", true),
            ("kv/é/😀 x", true),
            ("kv/.", true),
            ("kv/a..b", true),
            ("", false),
            ("/a", false),
            ("a/", false),
            ("a//b", false),
            ("a/../b", false),
            ("..", false),
            ("a\0", false),
            ("a\n/b", false),
            (long.as_str(), false),
            (&long[1..], true),
        ] {
            assert_eq!(names().key(path).is_ok(), ok, "{:.20}", path);
        }
        assert_eq!(names().prefix("").unwrap(), [ENCRYPTED]);
        assert!(names().prefix("a/").is_err());
        assert_eq!(core_key("core/x"), b"\x01core/x");
    }

    #[test]
    fn names_are_hidden_deterministic_and_bound_to_their_folder() {
        let names = names();
        let key = names.key("kv/supersecret").unwrap();
        assert_eq!(key, names.key("kv/supersecret").unwrap());
        assert!(!key.windows(5).any(|w| w == b"super"));
        let (a, b) = (names.key("a/x").unwrap(), names.key("b/x").unwrap());
        assert_ne!(
            a[a.len() - 17..],
            b[b.len() - 17..],
            "same name, other folder"
        );
        let other = NameKey::new(&Zeroizing::new([8; 64]));
        assert_ne!(key, other.key("kv/supersecret").unwrap());
        assert_eq!(other.child("kv", &key), Err(BarrierError::Damaged));
    }

    #[test]
    fn a_value_and_a_folder_of_one_name_do_not_meet() {
        let names = names();
        let (value, below) = (names.key("a").unwrap(), names.key("a/b").unwrap());
        let folder = names.prefix("a").unwrap();
        assert!(below.starts_with(&folder));
        assert!(!value.starts_with(&folder));
        let child = names.child("", &value).unwrap();
        assert_eq!((child.name.as_str(), child.is_folder), ("a", false));
        assert_eq!(child.skip_to, value);
        let child = names.child("", &below).unwrap();
        assert_eq!((child.name.as_str(), child.is_folder), ("a", true));
        assert!(child.skip_to > below && child.skip_to.starts_with(&folder));
        assert_eq!(names.child("a", &value), Err(BarrierError::Damaged));
        assert_eq!(names.child("b", &below), Err(BarrierError::Damaged));
    }

    #[test]
    fn remembered_folders_are_bounded_and_give_the_same_keys() {
        let warm = names();
        for n in 0..MAX_FOLDERS + 10 {
            warm.key(&format!("kv/{n}/a")).unwrap();
            assert!(warm.folders.read().unwrap().len() <= MAX_FOLDERS);
        }
        for path in ["kv/7/a", "kv/7/b", "kv/7", "kv", "kv/7/a/deep/er"] {
            assert_eq!(warm.key(path).unwrap(), names().key(path).unwrap());
            assert_eq!(warm.key(path).unwrap(), names().key(path).unwrap());
        }
    }

    #[test]
    fn every_flip_and_every_cut_of_a_stored_key_is_refused() {
        let names = names();
        let key = names.key("ab/cd").unwrap();
        let first = names.prefix("ab").unwrap().len();
        for at in 0..key.len() {
            let cut = names.child("", &key[..at]);
            // A cut behind the first segment still tells the folder; the store never cuts keys.
            assert_eq!(cut.is_ok(), at > first, "cut at {at}");
            assert!(names.child("ab", &key[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut bad = key.clone();
                bad[at] ^= 1 << bit;
                assert!(names.child("ab", &bad).is_err(), "byte {at} bit {bit}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_stored_key_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let names = names();
            let mut key = vec![ENCRYPTED];
            key.extend_from_slice(&bytes);
            prop_assert!(names.child("", &key).is_err());
            prop_assert!(names.child("a", &bytes).is_err());
        }

        /// Listing by prefix with `skip_to` finds exactly the children, each once.
        #[test]
        fn listing_finds_each_child_once(paths in proptest::collection::btree_set("[ab]{1,2}(/[ab]{1,2}){0,3}", 1..30), folder in "|[ab]{1,2}") {
            let names = names();
            let stored: BTreeMap<Vec<u8>, &String> =
                paths.iter().map(|p| (names.key(p).unwrap(), p)).collect();
            let prefix = names.prefix(&folder).unwrap();
            let mut found = Vec::new();
            let mut after = prefix.clone();
            while let Some((key, _)) = stored
                .range((std::ops::Bound::Excluded(after.clone()), std::ops::Bound::Unbounded))
                .next()
                .filter(|(key, _)| key.starts_with(&prefix))
            {
                let child = names.child(&folder, key).unwrap();
                found.push(format!("{}{}", child.name, if child.is_folder { "/" } else { "" }));
                after = child.skip_to;
            }
            found.sort();
            let mut want: Vec<String> = paths
                .iter()
                .filter_map(|p| if folder.is_empty() { Some(p.as_str()) } else { p.strip_prefix(&format!("{folder}/")) })
                .map(|rest| match rest.split_once('/') {
                    Some((name, _)) => format!("{name}/"),
                    None => rest.to_owned(),
                })
                .collect();
            want.sort();
            want.dedup();
            prop_assert_eq!(found, want);
        }
    }
}
