//! Byte strings and texts that wipe themselves on drop and never show their content.

use std::{fmt, ops::Deref};

use zeroize::Zeroizing;

/// The operating system gave no random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no random numbers")]
pub struct RandomError;

/// Fills `out` from the operating system's generator.
///
/// # Errors
/// `RandomError` when it has none; happens only on a broken system.
pub fn fill_random(out: &mut [u8]) -> Result<(), RandomError> {
    getrandom::fill(out).map_err(|_| RandomError)
}

/// `N` random bytes in a wiping array.
///
/// # Errors
/// See [`fill_random`].
pub fn random_array<const N: usize>() -> Result<Zeroizing<[u8; N]>, RandomError> {
    let mut out = Zeroizing::new([0; N]);
    fill_random(out.as_mut_slice())?;
    Ok(out)
}

/// Secret bytes. Wiped on drop; no `Clone`, no `Serialize`, nothing in `Debug`.
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// `len` random bytes from the operating system.
    ///
    /// # Errors
    /// See [`fill_random`].
    pub fn random(len: usize) -> Result<Self, RandomError> {
        let mut bytes = Zeroizing::new(vec![0; len]);
        fill_random(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The bytes in `zeroize`'s wrapper.
    #[must_use]
    pub fn into_zeroizing(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
}

impl From<Vec<u8>> for SecretBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl From<Zeroizing<Vec<u8>>> for SecretBytes {
    fn from(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }
}

impl Deref for SecretBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for SecretBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(..)")
    }
}

/// Secret text, e.g. a PIN. Wiped on drop; no `Clone`, no `Serialize`, nothing in `Debug`.
pub struct SecretString(Zeroizing<String>);

impl SecretString {
    /// The text. Do not copy it into a type that does not wipe itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for SecretString {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl From<Zeroizing<String>> for SecretString {
    fn from(text: Zeroizing<String>) -> Self {
        Self(text)
    }
}

impl From<&str> for SecretString {
    fn from(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }
}

impl fmt::Debug for SecretString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretString(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        let bytes = SecretBytes::from(b"hunter2".to_vec());
        let text = SecretString::from("hunter2");
        for shown in [
            format!("{bytes:?}"),
            format!("{text:?}"),
            format!("{text:#?}"),
        ] {
            assert!(
                !shown.contains("hunter2") && !shown.contains("104"),
                "{shown}"
            );
        }
        assert_eq!(text.expose(), "hunter2");
        assert_eq!(&*bytes, b"hunter2");
    }

    #[test]
    fn random_bytes_differ() {
        let (a, b) = (
            SecretBytes::random(32).unwrap(),
            SecretBytes::random(32).unwrap(),
        );
        assert_eq!(a.len(), 32);
        assert_ne!(&*a, &*b);
    }
}
