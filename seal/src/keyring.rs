//! The keyring: barrier keys by term, name key, HMAC key, audit salt, cluster CA; encrypted by the root key.
//!
//! In: the root key and stored bytes. Out: a [`Keyring`], or bytes to store.
//!
//! Invariants
//! - Exactly one term is active, it is the highest, and terms are `1..0x0100_0000` (so that a barrier value never
//!   starts like a seal-wrap envelope).
//! - Stored bytes: `format u8 = 1 | nonce 12 | AES-256-GCM ciphertext | tag 16`, associated data `core/keyring` and the
//!   format byte; inside is the protobuf message `Message`. Changing a field number makes existing clusters unreadable.

use std::fmt;

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use prost::Message as _;
use zeroize::{Zeroize, Zeroizing};

use crate::secret::{RandomError, fill_random, random_array};

/// First term that is refused: values start with the term, and `SRW` is what an envelope starts with.
pub(crate) const TERM_LIMIT: u32 = 0x0100_0000;

const FORMAT: u8 = 1;
const MESSAGE_FORMAT: u32 = 1;
const PATH: &[u8] = b"core/keyring";
const NONCE_LEN: usize = 12;

/// Why a keyring could not be made, encrypted or decrypted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// The bytes are cut, or do not authenticate under this root key.
    #[error("the keyring is damaged or belongs to another root key")]
    Damaged,
    /// Written by another version of the software.
    #[error("the keyring has format {found}, this version knows {known}; run a newer version")]
    Format {
        /// As stored.
        found: u32,
        /// What this version writes.
        known: u32,
    },
    /// There are no more terms to rotate to.
    #[error("the keyring cannot hold another term")]
    Full,
    /// See [`RandomError`].
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// The 256-bit key that encrypts the keyring; itself stored only wrapped by the HSM. Wiped on drop.
pub struct RootKey(Zeroizing<[u8; 32]>);

impl RootKey {
    /// A new random root key.
    ///
    /// # Errors
    /// See [`RandomError`].
    pub fn generate() -> Result<Self, RandomError> {
        Ok(Self(random_array()?))
    }

    /// A root key from its 32 bytes; `None` for any other length.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let array: [u8; 32] = bytes.try_into().ok()?;
        Some(Self(Zeroizing::new(array)))
    }
}

impl AsRef<[u8]> for RootKey {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(..)")
    }
}

/// One generation of the barrier key.
pub(crate) struct TermKey {
    pub(crate) term: u32,
    pub(crate) key: Zeroizing<[u8; 32]>,
    pub(crate) install_time_ms: u64,
    pub(crate) puts_at_install: u64,
}

/// See the module's description. Wiped on drop; no `Clone`, nothing secret in `Debug`.
pub struct Keyring {
    /// Ascending by term, never empty; the last one is active.
    pub(crate) keys: Vec<TermKey>,
    pub(crate) name_key: Zeroizing<[u8; 64]>,
    pub(crate) hmac_key: Zeroizing<[u8; 32]>,
    audit_salt: Zeroizing<[u8; 32]>,
    ca_certificate: Vec<u8>,
    ca_key: Zeroizing<Vec<u8>>,
}

impl Keyring {
    /// New random keys, term 1 active.
    ///
    /// `now_ms` is when (milliseconds since the Unix epoch); `ca_certificate` (DER) and `ca_key` (PKCS#8 DER) are kept
    /// as given.
    ///
    /// # Errors
    /// `Random` when the system has no random numbers.
    pub fn generate(
        now_ms: u64,
        ca_certificate: &[u8],
        ca_key: &[u8],
    ) -> Result<Self, KeyringError> {
        Ok(Self {
            keys: vec![TermKey {
                term: 1,
                key: random_array()?,
                install_time_ms: now_ms,
                puts_at_install: 0,
            }],
            name_key: random_array()?,
            hmac_key: random_array()?,
            audit_salt: random_array()?,
            ca_certificate: ca_certificate.to_vec(),
            ca_key: Zeroizing::new(ca_key.to_vec()),
        })
    }

    /// The same keys with another cluster's CA: what is restored is read by its own keys, while nodes go on trusting the
    /// cluster they are in.
    #[must_use]
    pub fn with_ca_of(mut self, other: &Self) -> Self {
        self.ca_certificate.clone_from(&other.ca_certificate);
        self.ca_key.clone_from(&other.ca_key);
        self
    }

    /// The cluster CA's certificate, DER.
    #[must_use]
    pub fn ca_certificate(&self) -> &[u8] {
        &self.ca_certificate
    }

    /// The cluster CA's private key, PKCS#8 DER.
    #[must_use]
    pub fn ca_key(&self) -> &[u8] {
        &self.ca_key
    }

    /// Salt of everything that audit devices hash.
    #[must_use]
    pub fn audit_salt(&self) -> &[u8; 32] {
        &self.audit_salt
    }

    /// The term that new values are encrypted under.
    #[must_use]
    pub fn active_term(&self) -> u32 {
        self.keys.last().map_or(0, |key| key.term)
    }

    /// Adds a key of the next term and makes it active; older ones stay for reading.
    ///
    /// `puts_at_install` is the cluster's count of writes so far, for counting encryptions per term.
    ///
    /// # Errors
    /// `Full` at the last term; `Random` when the system has no random numbers.
    pub fn rotate(&mut self, now_ms: u64, puts_at_install: u64) -> Result<(), KeyringError> {
        let term = self.active_term().saturating_add(1);
        if term >= TERM_LIMIT {
            return Err(KeyringError::Full);
        }
        self.keys.push(TermKey {
            term,
            key: random_array()?,
            install_time_ms: now_ms,
            puts_at_install,
        });
        Ok(())
    }

    /// The stored form, see the module's description.
    ///
    /// # Errors
    /// `Random` when the system has no random numbers.
    pub fn encrypt(&self, root_key: &RootKey) -> Result<Vec<u8>, KeyringError> {
        let message = self.to_message();
        let mut plaintext = Zeroizing::new(Vec::with_capacity(message.encoded_len()));
        message
            .encode(&mut *plaintext)
            .map_err(|_| KeyringError::Damaged)?;
        let mut nonce = [0; NONCE_LEN];
        fill_random(&mut nonce)?;
        let sealed = cipher(root_key)
            .encrypt(
                &nonce.into(),
                Payload {
                    msg: &plaintext,
                    aad: &associated_data(),
                },
            )
            .map_err(|_| KeyringError::Damaged)?;
        let mut out = Vec::with_capacity(1 + NONCE_LEN + sealed.len());
        out.push(FORMAT);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    /// Opens what [`Keyring::encrypt`] gave.
    ///
    /// # Errors
    /// `Damaged` when the bytes do not authenticate under `root_key`; `Format` when a newer version wrote them.
    pub fn decrypt(root_key: &RootKey, stored: &[u8]) -> Result<Self, KeyringError> {
        let (&format, rest) = stored.split_first().ok_or(KeyringError::Damaged)?;
        if format != FORMAT {
            return Err(KeyringError::Format {
                found: u32::from(format),
                known: u32::from(FORMAT),
            });
        }
        let (nonce, sealed) = rest
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(KeyringError::Damaged)?;
        let plaintext = cipher(root_key)
            .decrypt(
                &(*nonce).into(),
                Payload {
                    msg: sealed,
                    aad: &associated_data(),
                },
            )
            .map(Zeroizing::new)
            .map_err(|_| KeyringError::Damaged)?;
        let message = Message::decode(plaintext.as_slice()).map_err(|_| KeyringError::Damaged)?;
        Self::from_message(&message)
    }

    fn to_message(&self) -> Message {
        Message {
            format: MESSAGE_FORMAT,
            keys: self
                .keys
                .iter()
                .map(|key| TermKeyMessage {
                    term: key.term,
                    key: key.key.to_vec(),
                    install_time_ms: key.install_time_ms,
                    puts_at_install: key.puts_at_install,
                })
                .collect(),
            name_key: self.name_key.to_vec(),
            hmac_key: self.hmac_key.to_vec(),
            audit_salt: self.audit_salt.to_vec(),
            ca_certificate: self.ca_certificate.clone(),
            ca_key: self.ca_key.to_vec(),
        }
    }

    /// Copies out of `message`, which wipes itself.
    fn from_message(message: &Message) -> Result<Self, KeyringError> {
        if message.format != MESSAGE_FORMAT {
            return Err(KeyringError::Format {
                found: message.format,
                known: MESSAGE_FORMAT,
            });
        }
        let mut keys = Vec::with_capacity(message.keys.len());
        let mut previous = 0;
        for key in &message.keys {
            if key.term <= previous || key.term >= TERM_LIMIT {
                return Err(KeyringError::Damaged);
            }
            previous = key.term;
            keys.push(TermKey {
                term: key.term,
                key: array(&key.key)?,
                install_time_ms: key.install_time_ms,
                puts_at_install: key.puts_at_install,
            });
        }
        if keys.is_empty() {
            return Err(KeyringError::Damaged);
        }
        Ok(Self {
            keys,
            name_key: array(&message.name_key)?,
            hmac_key: array(&message.hmac_key)?,
            audit_salt: array(&message.audit_salt)?,
            ca_certificate: message.ca_certificate.clone(),
            ca_key: Zeroizing::new(message.ca_key.clone()),
        })
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring")
            .field("active_term", &self.active_term())
            .field("terms", &self.keys.len())
            .finish_non_exhaustive()
    }
}

fn cipher(root_key: &RootKey) -> Aes256Gcm {
    Aes256Gcm::new((&*root_key.0).into())
}

fn associated_data() -> Vec<u8> {
    let mut aad = PATH.to_vec();
    aad.push(FORMAT);
    aad
}

fn array<const N: usize>(bytes: &[u8]) -> Result<Zeroizing<[u8; N]>, KeyringError> {
    let array = bytes.try_into().map_err(|_| KeyringError::Damaged)?;
    Ok(Zeroizing::new(array))
}

/// What is inside the ciphertext. Wiped on drop.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
struct Message {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(message, repeated, tag = "2")]
    keys: Vec<TermKeyMessage>,
    #[prost(bytes = "vec", tag = "3")]
    name_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    hmac_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    audit_salt: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    ca_certificate: Vec<u8>,
    #[prost(bytes = "vec", tag = "7")]
    ca_key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
struct TermKeyMessage {
    #[prost(uint32, tag = "1")]
    term: u32,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(uint64, tag = "3")]
    install_time_ms: u64,
    #[prost(uint64, tag = "4")]
    puts_at_install: u64,
}

impl Drop for Message {
    fn drop(&mut self) {
        self.name_key.zeroize();
        self.hmac_key.zeroize();
        self.audit_salt.zeroize();
        self.ca_key.zeroize();
    }
}

impl Drop for TermKeyMessage {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("keyring::Message(..)")
    }
}

impl fmt::Debug for TermKeyMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("keyring::TermKeyMessage(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (RootKey, Keyring, Vec<u8>) {
        let root = RootKey::generate().unwrap();
        let mut keyring = Keyring::generate(7, b"cert", b"key").unwrap();
        keyring.rotate(9, 1000).unwrap();
        let stored = keyring.encrypt(&root).unwrap();
        (root, keyring, stored)
    }

    #[test]
    fn round_trip_keeps_everything() {
        let (root, keyring, stored) = sample();
        let back = Keyring::decrypt(&root, &stored).unwrap();
        assert_eq!(back.active_term(), 2);
        assert_eq!(back.ca_certificate(), b"cert");
        assert_eq!(back.ca_key(), b"key");
        assert_eq!(back.audit_salt(), keyring.audit_salt());
        assert_eq!(*back.name_key, *keyring.name_key);
        assert_eq!(*back.hmac_key, *keyring.hmac_key);
        for (a, b) in back.keys.iter().zip(&keyring.keys) {
            assert_eq!(a.term, b.term);
            assert_eq!(*a.key, *b.key);
            assert_eq!(a.install_time_ms, b.install_time_ms);
            assert_eq!(a.puts_at_install, b.puts_at_install);
        }
        assert_ne!(*keyring.keys[0].key, *keyring.keys[1].key);
        assert_ne!(
            stored,
            keyring.encrypt(&root).unwrap(),
            "a nonce must not repeat"
        );
    }

    #[test]
    fn another_ca_leaves_the_keys_alone() {
        let (_, keyring, _) = sample();
        let name_key = keyring.name_key.clone();
        let other = Keyring::generate(1, b"other cert", b"other key").unwrap();
        let merged = keyring.with_ca_of(&other);
        assert_eq!(merged.ca_certificate(), b"other cert");
        assert_eq!(merged.ca_key(), b"other key");
        assert_eq!((merged.active_term(), &merged.name_key), (2, &name_key));
    }

    #[test]
    fn every_flip_and_every_cut_is_refused() {
        let (root, _, stored) = sample();
        for at in 0..stored.len() {
            let mut bad = stored.clone();
            bad[at] ^= 1;
            assert!(Keyring::decrypt(&root, &bad).is_err(), "flip at {at}");
            assert!(
                Keyring::decrypt(&root, &stored[..at]).is_err(),
                "cut at {at}"
            );
        }
        let other = RootKey::generate().unwrap();
        assert_eq!(
            Keyring::decrypt(&other, &stored).unwrap_err(),
            KeyringError::Damaged
        );
        let mut newer = stored;
        newer[0] = 2;
        assert_eq!(
            Keyring::decrypt(&root, &newer).unwrap_err(),
            KeyringError::Format { found: 2, known: 1 }
        );
    }

    #[test]
    fn bad_content_is_refused() {
        let (_, keyring, _) = sample();
        type Change = fn(&mut Message);
        let changes: [(&str, Change); 7] = [
            ("format", |m| m.format = 2),
            ("no keys", |m| m.keys.clear()),
            ("order", |m| m.keys.reverse()),
            ("twice", |m| m.keys[1].term = 1),
            ("term", |m| m.keys[1].term = TERM_LIMIT),
            ("key length", |m| m.keys[0].key.truncate(31)),
            ("name key", |m| m.name_key.push(0)),
        ];
        assert!(Keyring::from_message(&keyring.to_message()).is_ok());
        for (name, change) in changes {
            let mut message = keyring.to_message();
            change(&mut message);
            assert!(Keyring::from_message(&message).is_err(), "{name}");
        }
    }

    #[test]
    fn terms_end_before_they_look_like_an_envelope() {
        let mut keyring = Keyring::generate(0, b"", b"").unwrap();
        keyring.keys[0].term = TERM_LIMIT - 1;
        assert_eq!(keyring.rotate(0, 0), Err(KeyringError::Full));
        assert_eq!(RootKey::from_bytes(&[0; 31]).map(|_| ()), None);
        assert!(!format!("{keyring:?}").contains("key:"));
    }
}
