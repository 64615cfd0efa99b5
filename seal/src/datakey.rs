//! The software half of an envelope: data encrypted under a key derived from a data key.
//!
//! Each value has its own AES-256-GCM key, `HKDF-SHA256(ikm = data key, salt = nonce, info = purpose | path)`, so that
//! one data key can serve a whole batch and no GCM key is ever used twice. Everything in front of the nonce, the path
//! and the purpose are associated data: a value cannot be moved to another path, data key or use.

use std::fmt;

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{AeadInOut, Tag},
};
use hkdf::Hkdf;
use rand::Rng;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::{
    envelope::{Enveloped, NONCE_LEN, TAG_LEN},
    secret::{RandomError, random_array},
};

/// What a value is for; part of what it is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A core parameter, opened before unseal.
    Core,
    /// Barrier ciphertext of a stored value.
    Wrap,
}

impl Purpose {
    pub(crate) fn tag(self) -> &'static [u8] {
        match self {
            Self::Core => b"strongroom-core/1",
            Self::Wrap => b"strongroom-wrap/1",
        }
    }
}

/// A data key. Wiped on drop.
pub(crate) struct DataKey(Zeroizing<[u8; 32]>);

impl DataKey {
    pub(crate) fn generate() -> Result<Self, RandomError> {
        Ok(Self(random_array()?))
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let array: [u8; 32] = bytes.try_into().ok()?;
        Some(Self(Zeroizing::new(array)))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_slice()
    }

    /// `prefix` with the encrypted `plaintext` behind it: a whole envelope. `None` only for an absurd length.
    pub(crate) fn seal(
        &self,
        prefix: &[u8],
        purpose: Purpose,
        path: &str,
        plaintext: &[u8],
    ) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        rand::rng().fill_bytes(&mut nonce);
        let mut out = Vec::with_capacity(prefix.len() + NONCE_LEN + plaintext.len() + TAG_LEN);
        out.extend_from_slice(prefix);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plaintext);
        let (_, body) = out.split_at_mut_checked(prefix.len() + NONCE_LEN)?;
        let tag = self
            .cipher(&nonce, purpose, path)?
            .encrypt_inout_detached(&nonce.into(), &bind(prefix, purpose, path), body.into())
            .ok()?;
        out.extend_from_slice(&tag);
        Some(out)
    }

    /// The plaintext of an envelope made by [`DataKey::seal`]; `None` when it does not authenticate.
    pub(crate) fn open(
        &self,
        envelope: &Enveloped<'_>,
        purpose: Purpose,
        path: &str,
    ) -> Option<Zeroizing<Vec<u8>>> {
        let mut plaintext = Zeroizing::new(envelope.ciphertext.to_vec());
        self.cipher(envelope.nonce, purpose, path)?
            .decrypt_inout_detached(
                &(*envelope.nonce).into(),
                &bind(envelope.prefix, purpose, path),
                plaintext.as_mut_slice().into(),
                &Tag::<Aes256Gcm>::from(*envelope.tag),
            )
            .ok()?;
        Some(plaintext)
    }

    fn cipher(&self, nonce: &[u8; NONCE_LEN], purpose: Purpose, path: &str) -> Option<Aes256Gcm> {
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(nonce), self.bytes())
            .expand_multi_info(&[purpose.tag(), &[0], path.as_bytes()], key.as_mut_slice())
            .ok()?;
        Some(Aes256Gcm::new((&*key).into()))
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(..)")
    }
}

/// `head | len(path) u32 BE | path | purpose`: what data is authenticated together with.
pub(crate) fn bind(head: &[u8], purpose: Purpose, path: &str) -> Vec<u8> {
    let mut aad = Vec::with_capacity(head.len() + path.len() + 32);
    aad.extend_from_slice(head);
    let len = u32::try_from(path.len()).unwrap_or(u32::MAX);
    aad.extend_from_slice(&len.to_be_bytes());
    aad.extend_from_slice(path.as_bytes());
    aad.extend_from_slice(purpose.tag());
    aad
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{self, Blob, Head, Sealed, Suite};

    fn prefix(key: u32) -> Vec<u8> {
        let mut bound = Head::new(Suite::DekGcm, key).encode();
        bound.extend_from_slice(&[9; 16]);
        let sealed = Sealed {
            iv: vec![1; 12],
            ciphertext: vec![2; 48],
            mac: None,
        };
        envelope::encode_dek(&bound, &sealed).unwrap()
    }

    fn open(key: &DataKey, blob: &[u8], purpose: Purpose, path: &str) -> Option<Vec<u8>> {
        match envelope::parse(blob)? {
            Blob::Enveloped(e) => key.open(&e, purpose, path).map(|p| p.to_vec()),
            Blob::Whole(_) => None,
        }
    }

    #[test]
    fn opens_only_where_it_was_sealed() {
        let key = DataKey::generate().unwrap();
        let blob = key.seal(&prefix(1), Purpose::Wrap, "a/b", b"data").unwrap();
        assert_eq!(open(&key, &blob, Purpose::Wrap, "a/b").unwrap(), b"data");
        assert_eq!(open(&key, &blob, Purpose::Wrap, "a/c"), None);
        assert_eq!(open(&key, &blob, Purpose::Core, "a/b"), None);
        let other = DataKey::generate().unwrap();
        assert_eq!(open(&other, &blob, Purpose::Wrap, "a/b"), None);
        for at in 0..blob.len() {
            let mut bad = blob.clone();
            bad[at] ^= 0x10;
            assert_eq!(open(&key, &bad, Purpose::Wrap, "a/b"), None, "flip at {at}");
            assert_eq!(
                open(&key, &blob[..at], Purpose::Wrap, "a/b"),
                None,
                "cut at {at}"
            );
        }
    }
}
