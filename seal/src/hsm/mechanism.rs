//! How a key in the HSM is used, by Vault's names and numbers.

use cryptoki::mechanism::{MechanismType, rsa::PkcsMgfType};
use serde::{Deserialize, Serialize};

/// How values are encrypted in the HSM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    /// `CKM_AES_GCM`, 12-byte IV, 16-byte tag.
    AesGcm,
    /// `CKM_AES_CBC_PAD`, authenticated by `CKM_SHA256_HMAC` under a second key.
    AesCbcPadHmac,
    /// `CKM_RSA_PKCS_OAEP`: only data keys go through the HSM.
    RsaOaep,
}

/// A mechanism that is not supported; the text says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mechanism {given}: {why}")]
pub struct MechanismError {
    given: String,
    why: &'static str,
}

impl Mechanism {
    /// The order in which they are tried when none is configured.
    pub(crate) const PREFERENCE: [Self; 3] = [Self::AesGcm, Self::AesCbcPadHmac, Self::RsaOaep];

    /// Parses what Vault's `mechanism` key may hold: a number (decimal or `0x…`) or a name with or without `CKM_`.
    /// `0` and the empty text mean "choose by what key and token can do": `None`.
    ///
    /// # Errors
    /// For mechanisms that are refused for a reason, and for unknown ones.
    pub fn parse(text: &str) -> Result<Option<Self>, MechanismError> {
        let refuse = |why| {
            Err(MechanismError {
                given: text.to_owned(),
                why,
            })
        };
        let upper = text.trim().to_ascii_uppercase();
        let name = upper.strip_prefix("CKM_").unwrap_or(&upper);
        let number = name.strip_prefix("0X").map_or_else(
            || name.parse().ok(),
            |hex| u64::from_str_radix(hex, 16).ok(),
        );
        match (name, number) {
            ("", _) | (_, Some(0)) => Ok(None),
            ("AES_GCM", _) | (_, Some(0x1087)) => Ok(Some(Self::AesGcm)),
            ("AES_CBC_PAD", _) | (_, Some(0x1085)) => Ok(Some(Self::AesCbcPadHmac)),
            ("RSA_PKCS_OAEP", _) | (_, Some(0x0009)) => Ok(Some(Self::RsaOaep)),
            ("RSA_PKCS", _) | (_, Some(0x0001)) => refuse(
                "PKCS#1 v1.5 encryption is open to padding-oracle attacks; use CKM_RSA_PKCS_OAEP (0x0009)",
            ),
            ("AES_CBC", _) | (_, Some(0x1082)) => refuse(
                "CBC without padding is not supported; use CKM_AES_CBC_PAD (0x1085) or CKM_AES_GCM (0x1087)",
            ),
            _ => refuse(
                "not known; use CKM_AES_GCM (0x1087), CKM_AES_CBC_PAD (0x1085) or CKM_RSA_PKCS_OAEP (0x0009)",
            ),
        }
    }

    /// The PKCS#11 name, for messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AesGcm => "CKM_AES_GCM",
            Self::AesCbcPadHmac => "CKM_AES_CBC_PAD with CKM_SHA256_HMAC",
            Self::RsaOaep => "CKM_RSA_PKCS_OAEP",
        }
    }

    /// What the token must offer.
    pub(crate) fn needs(self) -> &'static [MechanismType] {
        match self {
            Self::AesGcm => &[MechanismType::AES_GCM],
            Self::AesCbcPadHmac => &[MechanismType::AES_CBC_PAD, MechanismType::SHA256_HMAC],
            Self::RsaOaep => &[MechanismType::RSA_PKCS_OAEP],
        }
    }
}

/// Hash used by OAEP, also for its mask generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OaepHash {
    /// SHA-1; for tokens that know no other (SoftHSM).
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256, the default.
    #[default]
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl OaepHash {
    /// Parses Vault's `rsa_oaep_hash`: `sha1`, `sha224`, `sha256`, `sha384` or `sha512`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().replace('-', "").as_str() {
            "sha1" => Some(Self::Sha1),
            "sha224" => Some(Self::Sha224),
            "sha256" => Some(Self::Sha256),
            "sha384" => Some(Self::Sha384),
            "sha512" => Some(Self::Sha512),
            _ => None,
        }
    }

    pub(crate) fn types(self) -> (MechanismType, PkcsMgfType) {
        match self {
            Self::Sha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
            Self::Sha224 => (MechanismType::SHA224, PkcsMgfType::MGF1_SHA224),
            Self::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
            Self::Sha384 => (MechanismType::SHA384, PkcsMgfType::MGF1_SHA384),
            Self::Sha512 => (MechanismType::SHA512, PkcsMgfType::MGF1_SHA512),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vault_names_and_numbers() {
        let (gcm, cbc, oaep) = (
            Some(Mechanism::AesGcm),
            Some(Mechanism::AesCbcPadHmac),
            Some(Mechanism::RsaOaep),
        );
        for (text, want) in [
            ("0x1087", gcm),
            ("4231", gcm),
            ("CKM_AES_GCM", gcm),
            ("aes_gcm", gcm),
            (" 0X1085 ", cbc),
            ("CKM_AES_CBC_PAD", cbc),
            ("0x0009", oaep),
            ("9", oaep),
            ("CKM_RSA_PKCS_OAEP", oaep),
            ("0", None),
            ("0x0", None),
            ("", None),
        ] {
            assert_eq!(Mechanism::parse(text), Ok(want), "{text:?}");
        }
        for (text, why) in [
            ("0x0001", "padding-oracle"),
            ("CKM_RSA_PKCS", "padding-oracle"),
            ("0x1082", "without padding"),
            ("CKM_AES_CBC", "without padding"),
            ("0x1081", "not known"),
            ("AES-GCM!", "not known"),
            ("99999999999999999999", "not known"),
        ] {
            let error = Mechanism::parse(text).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(text), "{error}");
        }
        assert_eq!(OaepHash::parse("SHA-256"), Some(OaepHash::Sha256));
        assert_eq!(OaepHash::parse("md5"), None);
    }
}
