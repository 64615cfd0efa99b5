//! Keys of Strongroom: the HSM, the barrier, the keyring, seal wrap and recovery shares.
//!
//! In: paths, plaintext, stored bytes, an HSM configuration. Out: ciphertext, stored keys, key records to be stored by
//! the caller. Nothing here does network input or output, knows HTTP or replication, or writes a file; the one
//! exception is the PIN guard ([`hsm::guard`]), because a refused PIN must be remembered where it was tried.
//!
//! Invariants
//! - Secrets live in types that wipe themselves and show nothing in `Debug` ([`secret`]).
//! - Bytes from disk, a peer or the HSM are parsed with bounds, never indexed; what does not authenticate is refused.
//! - Every format starts with a version (or a magic and a version); an unknown one is refused.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

pub mod barrier;
pub mod config;
mod datakey;
mod envelope;
pub mod hsm;
pub mod inspect;
pub mod keyring;
pub mod secret;
pub mod shares;
pub mod wrap;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// HMAC-SHA256 over `parts`, each preceded by its length (u64 BE), so that no two lists of parts collide.
#[must_use]
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    hmac_parts(hmac_keyed(key), parts)
}

/// HMAC-SHA256 that has taken in its key and nothing else. Wiped on drop.
pub(crate) type HmacSha256 = Hmac<Sha256>;

/// As [`hmac_sha256`], with the key already taken in.
pub(crate) fn hmac_parts(mut mac: HmacSha256, parts: &[&[u8]]) -> [u8; 32] {
    for part in parts {
        let len = u64::try_from(part.len()).unwrap_or(u64::MAX);
        mac.update(&len.to_be_bytes());
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Whether `a` and `b` are equal, in time that depends only on their lengths.
#[must_use]
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
pub(crate) fn hmac_keyed(key: &[u8]) -> HmacSha256 {
    <HmacSha256 as KeyInit>::new_from_slice(key).expect("any length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_is_hmac_and_parts_do_not_collide() {
        // RFC 4231 test case 2, on the primitive.
        let mut mac = hmac_keyed(b"Jefe");
        mac.update(b"what do ya want for nothing?");
        assert_eq!(
            hex::encode(mac.finalize().into_bytes()),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        let all = [
            hmac_sha256(b"k", &[b"ab", b"c"]),
            hmac_sha256(b"k", &[b"a", b"bc"]),
            hmac_sha256(b"k", &[b"abc"]),
            hmac_sha256(b"k", &[b"abc", b""]),
            hmac_sha256(b"K", &[b"abc"]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[at + 1..].contains(one), "{at}");
        }
    }

    #[test]
    fn constant_time_eq_compares() {
        assert!(constant_time_eq(b"ab", b"ab"));
        assert!(!constant_time_eq(b"ab", b"ac"));
        assert!(!constant_time_eq(b"ab", b"abc"));
        assert!(constant_time_eq(b"", b""));
    }
}
