//! Tokens: how they look, how they are stored, who a request is.
//!
//! Invariants
//! - A token's stored name is an HMAC of it under a key of the keyring, so that reading the storage gives no token.
//! - A token that carries the policy `root` is seal-wrapped.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    ports::Barrier,
    storage::{Batch, Layer, Storage, StorageError},
};

/// Vault's service token prefix; some clients check it together with the length of 28.
const PREFIX: &str = "hvs.";
const RANDOM_CHARS: usize = 24;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The policy that may do everything.
pub const ROOT_POLICY: &str = "root";
const ENTRY_VERSION: u32 = 1;
/// Tokens remembered; past that all are forgotten and read again one by one.
const MAX_REMEMBERED: usize = 16_384;

/// What is stored of a token. The token itself is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenEntry {
    version: u32,
    /// Names the token without giving it away.
    pub accessor: String,
    /// Sorted policy names.
    pub policies: Vec<String>,
    /// Seconds since the Unix epoch.
    pub creation_time: u64,
    /// Seconds; 0 never expires.
    pub creation_ttl: u64,
    /// For people.
    pub display_name: String,
    /// Path that made it.
    pub path: String,
    /// Uses left; 0 is unlimited.
    pub num_uses: u64,
    /// Whether it has no parent.
    pub orphan: bool,
}

impl TokenEntry {
    /// Whether it may do everything.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.policies.iter().any(|policy| policy == ROOT_POLICY)
    }
}

/// The random source failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct RandomError;

/// Makes the root token of a new cluster and the write that stores it.
pub(crate) fn initial_root(
    barrier: &dyn Barrier,
    now_ms: u64,
    batch: &mut Batch,
) -> Result<Zeroizing<String>, RandomError> {
    let token = Zeroizing::new(format!("{PREFIX}{}", &*base62(RANDOM_CHARS)?));
    let entry = TokenEntry {
        version: ENTRY_VERSION,
        accessor: base62(RANDOM_CHARS)?.to_string(),
        policies: vec![ROOT_POLICY.to_owned()],
        creation_time: now_ms / 1000,
        creation_ttl: 0,
        display_name: "root".to_owned(),
        path: "auth/token/root".to_owned(),
        num_uses: 0,
        orphan: true,
    };
    let id = salted(barrier, "token", token.as_bytes());
    let by_accessor = salted_accessor(barrier, &entry.accessor);
    #[expect(
        clippy::expect_used,
        reason = "strings and numbers always encode; an empty entry would be a lost root token"
    )]
    let json = serde_json::to_vec(&entry).expect("a token entry encodes as JSON");
    batch.put(format!("sys/token/id/{id}"), json, Layer::SealWrapped);
    batch.put(
        format!("sys/token/accessor/{by_accessor}"),
        id.into_bytes(),
        Layer::Barrier,
    );
    Ok(token)
}

/// Tokens, with those in memory that were used lately.
///
/// A remembered entry is taken only if the stored one is still the one it was read from, which the log index of its last
/// write tells; so nothing has to be forgotten when a token changes, on whatever node.
#[derive(Default)]
pub struct Tokens(RwLock<HashMap<[u8; 32], Remembered>>);

/// A token's entry and where it was read.
#[derive(Clone)]
pub(crate) struct Remembered {
    /// Its stored key.
    pub(crate) stored_key: Arc<[u8]>,
    /// Log index of its last write.
    pub(crate) mod_index: u64,
    pub(crate) entry: Arc<TokenEntry>,
}

impl Tokens {
    /// The stored entry of `token`, `None` if there is no such token. Linearize first.
    pub(crate) async fn lookup(
        &self,
        storage: &Storage,
        token: &str,
    ) -> Result<Option<Remembered>, StorageError> {
        let id = storage.barrier().hmac("token", token.as_bytes());
        if let Some(known) = self.remembered(&id)
            && storage.mod_index(&known.stored_key).await? == Some(known.mod_index)
        {
            return Ok(Some(known));
        }
        let path = format!("sys/token/id/{}", hex::encode(id));
        let Some(stored) = storage.get(&path).await? else {
            return Ok(None);
        };
        let entry: TokenEntry =
            serde_json::from_slice(&stored.value).map_err(|_| StorageError::Malformed("token"))?;
        if entry.version != ENTRY_VERSION {
            return Err(StorageError::Malformed("token"));
        }
        let remembered = Remembered {
            stored_key: storage.stored_key(&path)?.into(),
            mod_index: stored.mod_index,
            entry: Arc::new(entry),
        };
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(id, remembered.clone());
        Ok(Some(remembered))
    }

    fn remembered(&self, id: &[u8; 32]) -> Option<Remembered> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(id).cloned()
    }
}

/// Name of what is stored about the token that `accessor` stands for.
pub(crate) fn salted_accessor(barrier: &dyn Barrier, accessor: &str) -> String {
    salted(barrier, "accessor", accessor.as_bytes())
}

fn salted(barrier: &dyn Barrier, purpose: &'static str, value: &[u8]) -> String {
    hex::encode(barrier.hmac(purpose, value))
}

/// `len` random characters of 0-9A-Za-z, each equally likely.
pub(crate) fn base62(len: usize) -> Result<Zeroizing<String>, RandomError> {
    let mut text = Zeroizing::new(String::with_capacity(len));
    let mut random = Zeroizing::new([0_u8; 64]);
    while text.len() < len {
        getrandom::fill(&mut *random).map_err(|_| RandomError)?;
        // 248 = 4 × 62: larger bytes would make the first characters likelier.
        let usable = random.iter().filter(|byte| **byte < 248);
        for byte in usable.take(len - text.len()) {
            if let Some(character) = BASE62.get(usize::from(byte % 62)) {
                text.push(char::from(*character));
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_names_have_the_length_and_alphabet_clients_expect() {
        for len in [0, 1, 24, 200] {
            let text = base62(len).unwrap();
            assert_eq!(text.len(), len);
            assert!(text.bytes().all(|byte| BASE62.contains(&byte)));
        }
        assert_ne!(*base62(24).unwrap(), *base62(24).unwrap());
    }
}
