//! The software layer: AES-256-GCM values bound to their path, names encrypted deterministically.
//!
//! In: logical paths and plaintext. Out: stored keys and stored values. No input or output, never blocks.
//!
//! Invariants
//! - Stored value: `term u32 BE | version u8 = 1 | nonce 12 | ciphertext | tag 16` (input + 33 bytes); associated data is
//!   the first five bytes and the logical path. The first byte is 0, so no value looks like a seal-wrap envelope.
//! - A nonce is random; one key encrypts at most 2^32 values, then [`BarrierError::Exhausted`].
//!   Source: NIST SP 800-38D §8.3.
//! - Stored keys: see `names`.

mod names;

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicU64, Ordering},
};

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{AeadInOut, Tag},
};
use rand::Rng;
use zeroize::Zeroizing;

use names::NameKey;
pub(crate) use names::{CORE, ENCRYPTED, LEAF, MAX_SEGMENT_LEN};
pub use names::{Child, core_key};

use crate::keyring::{Keyring, TERM_LIMIT};

/// Version byte of a stored value.
pub(crate) const VERSION: u8 = 1;
pub(crate) const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;
const HEADER_LEN: usize = 5;
/// Values one key may encrypt with random 96-bit nonces.
const MAX_ENCRYPTIONS: u64 = 1 << 32;

/// Why the barrier did not give a key or a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    /// The path cannot be stored (empty segment, too long, control characters).
    #[error("the path is not valid: {0}")]
    Path(&'static str),
    /// The bytes do not authenticate under their key and path, or are no barrier value at all.
    #[error("a stored value is damaged or was moved from another path")]
    Damaged,
    /// The value names a key term that the keyring does not hold.
    #[error("the keyring holds no key of term {0}")]
    UnknownTerm(u32),
    /// The active key has encrypted as many values as it may; rotate it.
    #[error("the active barrier key is exhausted")]
    Exhausted,
}

/// Facts about the active barrier key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveKey {
    /// Its term.
    pub term: u32,
    /// When it was installed, milliseconds since the Unix epoch.
    pub install_time_ms: u64,
    /// The cluster's count of writes when it was installed.
    pub puts_at_install: u64,
}

/// See the module's description. Cheap to share behind an `Arc`; all methods take `&self`.
pub struct Barrier {
    inner: RwLock<Arc<Inner>>,
}

struct Inner {
    /// Ascending by term; the last one is active.
    keys: Vec<TermCipher>,
    active: ActiveKey,
    names: NameKey,
    hmac_key: Zeroizing<[u8; 32]>,
    /// Keyed states by purpose: there are a handful of purposes, and a token is looked up with every request.
    hmacs: RwLock<Vec<(&'static str, crate::HmacSha256)>>,
}

struct TermCipher {
    term: u32,
    cipher: Aes256Gcm,
    /// Values encrypted by this process.
    encryptions: AtomicU64,
}

impl Barrier {
    /// A barrier that encrypts under `keyring`'s active term and reads under all of them.
    #[must_use]
    pub fn new(keyring: Keyring) -> Self {
        Self {
            inner: RwLock::new(Arc::new(Inner::new(&keyring, |_| 0))),
        }
    }

    /// Takes over another keyring, e.g. after a rotation. Values in flight finish under the old one.
    pub fn replace_keyring(&self, keyring: Keyring) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let new = Inner::new(&keyring, |term| {
            inner
                .key(term)
                .map_or(0, |key| key.encryptions.load(Ordering::Relaxed))
        });
        *inner = Arc::new(new);
    }

    /// The stored key of `path`, e.g. `logical/<mount>/app/db`; see `names`.
    ///
    /// # Errors
    /// `Path` when the path breaks the rules in `check_path`.
    pub fn key(&self, path: &str) -> Result<Vec<u8>, BarrierError> {
        self.inner().names.key(path)
    }

    /// The prefix shared by the stored keys of everything strictly below `folder` (`""`: all encrypted names).
    ///
    /// # Errors
    /// As [`Barrier::key`].
    pub fn prefix(&self, folder: &str) -> Result<Vec<u8>, BarrierError> {
        self.inner().names.prefix(folder)
    }

    /// Decodes the child of `folder` that `stored_key` is, or lies under.
    ///
    /// # Errors
    /// `Damaged` when the key does not lie below `folder` or its name does not authenticate.
    pub fn child(&self, folder: &str, stored_key: &[u8]) -> Result<Child, BarrierError> {
        self.inner().names.child(folder, stored_key)
    }

    /// Encrypts `plaintext` for storage at `path` under the active term. Output: see the module's description.
    ///
    /// # Errors
    /// `Exhausted` at 2^32 encryptions under one key by this process; `Path` when the path is not valid.
    pub fn seal(&self, path: &str, plaintext: &[u8]) -> Result<Vec<u8>, BarrierError> {
        names::check_path(path)?;
        let inner = self.inner();
        let key = inner.keys.last().ok_or(BarrierError::Damaged)?;
        if key.encryptions.fetch_add(1, Ordering::Relaxed) >= MAX_ENCRYPTIONS {
            // Stays above the limit: the count only grows.
            return Err(BarrierError::Exhausted);
        }
        let mut nonce = [0; NONCE_LEN];
        rand::rng().fill_bytes(&mut nonce);
        let mut out = Vec::with_capacity(HEADER_LEN + NONCE_LEN + plaintext.len() + TAG_LEN);
        out.extend_from_slice(&key.term.to_be_bytes());
        out.push(VERSION);
        let aad = associated_data(&out, path);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plaintext);
        let (_, body) = out
            .split_at_mut_checked(HEADER_LEN + NONCE_LEN)
            .ok_or(BarrierError::Damaged)?;
        let tag = key
            .cipher
            .encrypt_inout_detached(&nonce.into(), &aad, body.into())
            .map_err(|_| BarrierError::Damaged)?;
        out.extend_from_slice(&tag);
        Ok(out)
    }

    /// Decrypts what [`Barrier::seal`] gave for the same `path`.
    ///
    /// # Errors
    /// `Damaged` for anything that does not authenticate; `UnknownTerm` when the keyring lacks the key.
    pub fn open(&self, path: &str, stored: &[u8]) -> Result<Zeroizing<Vec<u8>>, BarrierError> {
        let parts = parse(stored).ok_or(BarrierError::Damaged)?;
        let inner = self.inner();
        let key = inner
            .key(parts.term)
            .ok_or(BarrierError::UnknownTerm(parts.term))?;
        let mut plaintext = Zeroizing::new(parts.ciphertext.to_vec());
        let tag = Tag::<Aes256Gcm>::from(*parts.tag);
        key.cipher
            .decrypt_inout_detached(
                &(*parts.nonce).into(),
                &associated_data(parts.header, path),
                plaintext.as_mut_slice().into(),
                &tag,
            )
            .map_err(|_| BarrierError::Damaged)?;
        Ok(plaintext)
    }

    /// HMAC-SHA256 of `data` under a key that the keyring keeps for `purpose` alone.
    #[must_use]
    pub fn hmac(&self, purpose: &'static str, data: &[u8]) -> [u8; 32] {
        crate::hmac_parts(self.inner().hmac_for(purpose), &[data])
    }

    /// Facts about the active key.
    #[must_use]
    pub fn active_key(&self) -> ActiveKey {
        self.inner().active
    }

    /// Values this process has encrypted under the active key.
    #[must_use]
    pub fn encryptions(&self) -> u64 {
        self.inner()
            .keys
            .last()
            .map_or(0, |key| key.encryptions.load(Ordering::Relaxed))
    }

    fn inner(&self) -> Arc<Inner> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&inner)
    }
}

impl std::fmt::Debug for Barrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Barrier")
            .field("active", &self.active_key())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn new(keyring: &Keyring, encryptions: impl Fn(u32) -> u64) -> Self {
        let active = keyring.keys.last();
        Self {
            keys: keyring
                .keys
                .iter()
                .map(|key| TermCipher {
                    term: key.term,
                    cipher: Aes256Gcm::new((&*key.key).into()),
                    encryptions: AtomicU64::new(encryptions(key.term)),
                })
                .collect(),
            active: ActiveKey {
                term: keyring.active_term(),
                install_time_ms: active.map_or(0, |key| key.install_time_ms),
                puts_at_install: active.map_or(0, |key| key.puts_at_install),
            },
            names: NameKey::new(&keyring.name_key),
            hmac_key: keyring.hmac_key.clone(),
            hmacs: RwLock::default(),
        }
    }

    fn hmac_for(&self, purpose: &'static str) -> crate::HmacSha256 {
        let known = self.hmacs.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, keyed)) = known.iter().find(|(name, _)| *name == purpose) {
            return keyed.clone();
        }
        drop(known);
        let key = Zeroizing::new(crate::hmac_sha256(
            self.hmac_key.as_slice(),
            &[b"strongroom-hmac/1", purpose.as_bytes()],
        ));
        let keyed = crate::hmac_keyed(key.as_slice());
        let mut known = self.hmacs.write().unwrap_or_else(PoisonError::into_inner);
        if known.iter().all(|(name, _)| *name != purpose) {
            known.push((purpose, keyed.clone()));
        }
        keyed
    }

    fn key(&self, term: u32) -> Option<&TermCipher> {
        let at = self.keys.binary_search_by_key(&term, |key| key.term).ok()?;
        self.keys.get(at)
    }
}

/// A stored value taken apart; nothing is verified yet.
pub(crate) struct Parts<'a> {
    pub(crate) term: u32,
    pub(crate) header: &'a [u8],
    pub(crate) nonce: &'a [u8; NONCE_LEN],
    pub(crate) ciphertext: &'a [u8],
    pub(crate) tag: &'a [u8; TAG_LEN],
}

/// Takes `stored` apart; `None` when it is no barrier value of a known version.
pub(crate) fn parse(stored: &[u8]) -> Option<Parts<'_>> {
    let (header, rest) = stored.split_at_checked(HEADER_LEN)?;
    let (term, version) = header.split_first_chunk::<4>()?;
    let term = u32::from_be_bytes(*term);
    if version != [VERSION] || term == 0 || term >= TERM_LIMIT {
        return None;
    }
    let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>()?;
    let (ciphertext, tag) = rest.split_last_chunk::<TAG_LEN>()?;
    Some(Parts {
        term,
        header,
        nonce,
        ciphertext,
        tag,
    })
}

fn associated_data(header: &[u8], path: &str) -> Vec<u8> {
    let mut aad = Vec::with_capacity(header.len() + path.len());
    aad.extend_from_slice(header);
    aad.extend_from_slice(path.as_bytes());
    aad
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keyring() -> Keyring {
        Keyring::generate(5, b"c", b"k").unwrap()
    }

    #[test]
    fn round_trip_and_overhead() {
        let barrier = Barrier::new(keyring());
        for plaintext in [&b""[..], b"x", &[7; 5000]] {
            let stored = barrier.seal("kv/app", plaintext).unwrap();
            assert_eq!(stored.len(), plaintext.len() + 33);
            assert_eq!(stored[0], 0, "must not look like an envelope");
            assert_eq!(&**barrier.open("kv/app", &stored).unwrap(), plaintext);
            assert_eq!(
                barrier.open("kv/other", &stored),
                Err(BarrierError::Damaged),
                "a value copied to another path must not decrypt"
            );
            assert_ne!(stored, barrier.seal("kv/app", plaintext).unwrap());
        }
        assert_eq!(barrier.encryptions(), 6);
    }

    #[test]
    fn every_flip_and_every_cut_is_refused() {
        let barrier = Barrier::new(keyring());
        let stored = barrier.seal("a/b", b"secret").unwrap();
        for at in 0..stored.len() {
            for bit in 0..8 {
                let mut bad = stored.clone();
                bad[at] ^= 1 << bit;
                assert!(barrier.open("a/b", &bad).is_err(), "byte {at} bit {bit}");
            }
            assert_eq!(
                barrier.open("a/b", &stored[..at]),
                Err(BarrierError::Damaged)
            );
        }
        let mut longer = stored;
        longer.push(0);
        assert_eq!(barrier.open("a/b", &longer), Err(BarrierError::Damaged));
    }

    #[test]
    fn old_terms_are_read_and_unknown_ones_named() {
        let first = keyring();
        let barrier = Barrier::new(keyring());
        let root = crate::keyring::RootKey::generate().unwrap();
        let encrypted = first.encrypt(&root).unwrap();
        let copy = || Keyring::decrypt(&root, &encrypted).unwrap();
        barrier.replace_keyring(copy());
        let old = barrier.seal("p", b"old").unwrap();
        let mut rotated = copy();
        rotated.rotate(77, 12).unwrap();
        barrier.replace_keyring(rotated);
        assert_eq!(
            barrier.active_key(),
            ActiveKey {
                term: 2,
                install_time_ms: 77,
                puts_at_install: 12
            }
        );
        let new = barrier.seal("p", b"new").unwrap();
        assert_eq!(&**barrier.open("p", &old).unwrap(), b"old");
        assert_eq!(&**barrier.open("p", &new).unwrap(), b"new");
        barrier.replace_keyring(copy());
        assert_eq!(barrier.open("p", &new), Err(BarrierError::UnknownTerm(2)));
        assert_eq!(barrier.encryptions(), 1, "the count of a term survives");
    }

    #[test]
    fn a_key_is_exhausted_at_two_to_the_32() {
        let barrier = Barrier::new(keyring());
        barrier.inner().keys[0]
            .encryptions
            .store(MAX_ENCRYPTIONS - 1, Ordering::Relaxed);
        assert!(barrier.seal("p", b"last").is_ok());
        assert_eq!(barrier.seal("p", b""), Err(BarrierError::Exhausted));
        assert_eq!(barrier.seal("p", b""), Err(BarrierError::Exhausted));
    }

    #[test]
    fn hmac_purposes_do_not_meet() {
        let barrier = Barrier::new(keyring());
        assert_eq!(barrier.hmac("a", b"x"), barrier.hmac("a", b"x"));
        assert_ne!(barrier.hmac("a", b"x"), barrier.hmac("b", b"x"));
        assert_ne!(barrier.hmac("a", b"x"), barrier.hmac("a", b"y"));
        assert_ne!(
            barrier.hmac("a", b"x"),
            Barrier::new(keyring()).hmac("a", b"x")
        );
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80), path in ".{0,20}") {
            let barrier = Barrier::new(keyring());
            prop_assert!(barrier.open(&path, &bytes).is_err());
        }

        #[test]
        fn what_is_sealed_opens(path in "[a-z]{1,5}(/[a-z0-9 é]{1,9}){0,4}", data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let barrier = Barrier::new(keyring());
            let stored = barrier.seal(&path, &data).unwrap();
            prop_assert_eq!(&**barrier.open(&path, &stored).unwrap(), &data[..]);
        }
    }
}
