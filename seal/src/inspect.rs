//! Says what stored keys and values are, without decrypting anything; for `operator storage inspect`.
//!
//! In: stored bytes. Out: layer, lengths, and which key made them.

use crate::{
    barrier,
    envelope::{self, Blob, DEK_ID_LEN},
};

/// What a stored value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueLayer {
    /// Encrypted by the barrier.
    Barrier {
        /// Term of the barrier key.
        term: u32,
        /// Length of the plaintext, bytes.
        plaintext_len: usize,
    },
    /// A data key wrapped by the HSM, and data encrypted by it.
    SealWrapped {
        /// Number of the suite.
        suite: u8,
        /// Version of the seal key in the seal configuration.
        key_version: u32,
        /// Id of the data key; values written together share one.
        dek_id: [u8; DEK_ID_LEN],
        /// Length of what is inside, bytes; for wrapped barrier values that is barrier ciphertext.
        inner_len: usize,
    },
    /// Encrypted in the HSM as a whole.
    HsmWhole {
        /// Number of the suite.
        suite: u8,
        /// Version of the seal key in the seal configuration.
        key_version: u32,
        /// Length of the HSM's ciphertext, bytes.
        ciphertext_len: usize,
    },
    /// Starts like a wrapped value, but this version of the software does not know its form.
    UnknownWrapped,
    /// Neither: plain text such as the seal configuration, or something else.
    Plain,
}

/// What a stored key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyName {
    /// Plain name of a core parameter.
    Core(String),
    /// Encrypted name: length of each encrypted segment, bytes (16 more than the plain one).
    Encrypted(Vec<usize>),
    /// Not written by the barrier.
    Unknown,
}

/// Describes a stored value.
#[must_use]
pub fn describe(value: &[u8]) -> ValueLayer {
    if is_envelope(value) {
        return match envelope::parse(value) {
            Some(Blob::Enveloped(e)) => ValueLayer::SealWrapped {
                suite: e.head.suite as u8,
                key_version: e.head.key,
                dek_id: *e.dek_id,
                inner_len: e.ciphertext.len(),
            },
            Some(Blob::Whole(w)) => ValueLayer::HsmWhole {
                suite: w.head.suite as u8,
                key_version: w.head.key,
                ciphertext_len: w.sealed.ciphertext.len(),
            },
            None => ValueLayer::UnknownWrapped,
        };
    }
    match barrier::parse(value) {
        Some(parts) => ValueLayer::Barrier {
            term: parts.term,
            plaintext_len: parts.ciphertext.len(),
        },
        None => ValueLayer::Plain,
    }
}

/// Describes a stored key.
#[must_use]
pub fn describe_key(key: &[u8]) -> KeyName {
    match key.split_first() {
        Some((&barrier::CORE, name)) if name.is_ascii() => {
            KeyName::Core(String::from_utf8_lossy(name).into_owned())
        }
        Some((&barrier::ENCRYPTED, segments)) => {
            segment_lengths(segments).map_or(KeyName::Unknown, KeyName::Encrypted)
        }
        _ => KeyName::Unknown,
    }
}

/// Whether `value` starts like a seal-wrap envelope.
#[must_use]
pub fn is_envelope(value: &[u8]) -> bool {
    value.starts_with(envelope::MAGIC)
}

fn segment_lengths(mut rest: &[u8]) -> Option<Vec<usize>> {
    let mut lengths = Vec::new();
    loop {
        let (len, tail) = rest.split_first_chunk::<2>()?;
        let field = u16::from_be_bytes(*len);
        let len = field & !barrier::LEAF;
        if len <= 16 || len > barrier::MAX_SEGMENT_LEN {
            return None;
        }
        rest = tail.get(usize::from(len)..)?;
        lengths.push(usize::from(len));
        if field & barrier::LEAF != 0 {
            return rest.is_empty().then_some(lengths);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        barrier::{Barrier, core_key},
        keyring::Keyring,
    };

    #[test]
    fn values_and_keys_are_told_apart() {
        let barrier = Barrier::new(Keyring::generate(0, b"", b"").unwrap());
        let value = barrier.seal("a/bc", b"12345").unwrap();
        assert_eq!(
            describe(&value),
            ValueLayer::Barrier {
                term: 1,
                plaintext_len: 5
            }
        );
        assert_eq!(describe(b"{\"format\":1}"), ValueLayer::Plain);
        assert_eq!(describe(b"SRW\x09"), ValueLayer::UnknownWrapped);
        assert_eq!(describe(b""), ValueLayer::Plain);
        assert_eq!(
            describe_key(&core_key("core/seal-config")),
            KeyName::Core("core/seal-config".to_owned())
        );
        assert_eq!(
            describe_key(&barrier.key("a/bc").unwrap()),
            KeyName::Encrypted(vec![17, 18])
        );
        assert_eq!(
            describe_key(&barrier.prefix("a/bc").unwrap()),
            KeyName::Unknown
        );
        assert_eq!(describe_key(b""), KeyName::Unknown);
        assert_eq!(describe_key(b"\x03x"), KeyName::Unknown);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = (describe(&bytes), describe_key(&bytes));
        }
    }
}
