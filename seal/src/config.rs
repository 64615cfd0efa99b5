//! The seal configuration: which HSM keys the cluster uses and how its recovery key is shared.
//!
//! In and out: JSON. It is stored in the clear because a node needs it to unseal, and a joining node gets it from a
//! peer it cannot verify yet; so everything in it is checked, and nothing in it is secret.
//!
//! Invariants
//! - `format` is known; at least one key; versions are unique; exactly one key is active and it carries a canary.
//! - A key is pinned by its canary, never by its label alone.

use serde::{Deserialize, Serialize};

use crate::hsm::{Mechanism, OaepHash};

const FORMAT: u32 = 1;
/// Bounds of what a peer may send.
const MAX_KEYS: usize = 256;
const MAX_LABEL: usize = 255;
const MAX_ID: usize = 255;
const MAX_CANARY: usize = 4096;

/// Why a seal configuration was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It is not the JSON it should be; the text is the parser's.
    #[error("the seal configuration is not valid: {0}")]
    Parse(String),
    /// Written by another version of the software.
    #[error(
        "the seal configuration has format {found}, this version knows {FORMAT}; run a newer version"
    )]
    Format {
        /// As stored.
        found: u64,
    },
    /// It parses but cannot be right.
    #[error("the seal configuration is not valid: {0}")]
    Content(&'static str),
}

/// How the recovery key is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovery {
    /// Number of shares given out.
    pub shares: u8,
    /// How many of them give the key.
    pub threshold: u8,
}

/// Where a seal key is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyState {
    /// Chosen but not proven to exist: what init records before it touches the HSM.
    Intent,
    /// Wraps new values.
    Active,
    /// Only opens old values.
    DecryptOnly,
}

/// Who made the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyOrigin {
    /// This software, in the HSM.
    Generated,
    /// It was there already.
    Adopted,
}

/// One HSM key (or pair, or key and HMAC key) of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealKey {
    /// 1-based; what a blob names its key by.
    pub version: u32,
    /// See [`KeyState`].
    pub state: KeyState,
    /// See [`KeyOrigin`].
    pub origin: KeyOrigin,
    /// `CKA_LABEL`.
    pub label: String,
    /// `CKA_ID` in hex; empty when an adopted key has none.
    pub cka_id: String,
    /// Label of the HMAC key; only with CBC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hmac_label: Option<String>,
    /// `CKA_ID` of the HMAC key in hex; only with CBC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hmac_id: Option<String>,
    /// How the key is used.
    pub mechanism: Mechanism,
    /// Hash of OAEP; only with OAEP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oaep_hash: Option<OaepHash>,
    /// Base64 of a random value wrapped by the key: only the cluster's own key opens it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<String>,
    /// Hex of SHA-256 over the canary's plaintext and blob: the key's identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// When it was taken into use, milliseconds since the Unix epoch, if the caller recorded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_ms: Option<u64>,
}

impl SealKey {
    pub(crate) fn id_bytes(&self) -> Result<Vec<u8>, ConfigError> {
        id(&self.cka_id)
    }

    pub(crate) fn hmac_id_bytes(&self) -> Result<Vec<u8>, ConfigError> {
        id(self.hmac_id.as_deref().unwrap_or_default())
    }

    /// Checks one key by itself; an intent may lack canary and fingerprint.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let bad = |why| Err(ConfigError::Content(why));
        if self.version == 0 {
            return bad("a key has version 0");
        }
        let labels = [Some(&self.label), self.hmac_label.as_ref()];
        if labels
            .into_iter()
            .flatten()
            .any(|label| label.is_empty() || label.len() > MAX_LABEL)
        {
            return bad("a key label is empty or too long");
        }
        self.id_bytes()?;
        self.hmac_id_bytes()?;
        let has_hmac = self.hmac_label.is_some();
        if has_hmac != (self.mechanism == Mechanism::AesCbcPadHmac) {
            return bad("an HMAC key goes with CBC, and only with CBC");
        }
        if self.oaep_hash.is_some() != (self.mechanism == Mechanism::RsaOaep) {
            return bad("an OAEP hash goes with OAEP, and only with OAEP");
        }
        let canaries = [self.canary.as_ref(), self.fingerprint.as_ref()];
        if canaries
            .iter()
            .flatten()
            .any(|text| text.len() > MAX_CANARY)
        {
            return bad("a canary is too long");
        }
        if self.state != KeyState::Intent && canaries.contains(&None) {
            return bad("a key in use has no canary");
        }
        Ok(())
    }
}

fn id(text: &str) -> Result<Vec<u8>, ConfigError> {
    if text.len() > 2 * MAX_ID {
        return Err(ConfigError::Content("a key id is too long"));
    }
    hex::decode(text).map_err(|_| ConfigError::Content("a key id is not hex"))
}

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct SealConfig {
    format: u32,
    recovery: Recovery,
    keys: Vec<SealKey>,
}

/// As parsed, before the checks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    format: u32,
    recovery: Recovery,
    keys: Vec<SealKey>,
}

impl TryFrom<Unchecked> for SealConfig {
    type Error = ConfigError;

    fn try_from(raw: Unchecked) -> Result<Self, ConfigError> {
        if raw.format != FORMAT {
            return Err(ConfigError::Format {
                found: u64::from(raw.format),
            });
        }
        let config = Self::new(raw.recovery, raw.keys);
        config.check()?;
        Ok(config)
    }
}

impl SealConfig {
    /// A configuration of the current format. It is checked when it is parsed or opened.
    #[must_use]
    pub fn new(recovery: Recovery, keys: Vec<SealKey>) -> Self {
        Self {
            format: FORMAT,
            recovery,
            keys,
        }
    }

    /// How the recovery key is shared.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// All keys, in no particular order.
    #[must_use]
    pub fn keys(&self) -> &[SealKey] {
        &self.keys
    }

    /// The key that wraps new values.
    #[must_use]
    pub fn active(&self) -> Option<&SealKey> {
        self.keys.iter().find(|key| key.state == KeyState::Active)
    }

    /// Parses and checks; see the module's invariants.
    ///
    /// # Errors
    /// `Format` when a newer version wrote it, else `Parse` or `Content`.
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        let value: serde_json::Value =
            serde_json::from_slice(json).map_err(|e| ConfigError::Parse(e.to_string()))?;
        // The format first: a newer one may have other fields.
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(found) if found == u64::from(FORMAT) => {}
            Some(found) => return Err(ConfigError::Format { found }),
            None => return Err(ConfigError::Content("it has no format")),
        }
        serde_json::from_value(value).map_err(|e| ConfigError::Parse(e.to_string()))
    }

    /// The stored form.
    ///
    /// # Errors
    /// `Content` when the configuration breaks the module's invariants.
    pub fn to_json(&self) -> Result<Vec<u8>, ConfigError> {
        self.check()?;
        serde_json::to_vec(self).map_err(|e| ConfigError::Parse(e.to_string()))
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let bad = |why| Err(ConfigError::Content(why));
        let Recovery { shares, threshold } = self.recovery;
        if threshold == 0 || threshold > shares || (threshold == 1 && shares > 1) {
            return bad("the recovery threshold does not fit the number of shares");
        }
        if self.keys.len() > MAX_KEYS {
            return bad("it has too many keys");
        }
        for (at, key) in self.keys.iter().enumerate() {
            key.check()?;
            if key.state == KeyState::Intent {
                return bad("it has a key that was never taken into use");
            }
            if self
                .keys
                .iter()
                .skip(at + 1)
                .any(|k| k.version == key.version)
            {
                return bad("two keys have one version");
            }
        }
        let active = self.keys.iter().filter(|k| k.state == KeyState::Active);
        if active.count() != 1 {
            return bad("it must have exactly one active key");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample() -> SealConfig {
        let key = SealKey {
            version: 1,
            state: KeyState::Active,
            origin: KeyOrigin::Generated,
            label: "seal".to_owned(),
            cka_id: "00ff".to_owned(),
            hmac_label: None,
            hmac_id: None,
            mechanism: Mechanism::AesGcm,
            oaep_hash: None,
            canary: Some("AA==".to_owned()),
            fingerprint: Some("00".to_owned()),
            created_ms: None,
        };
        SealConfig::new(
            Recovery {
                shares: 5,
                threshold: 3,
            },
            vec![key],
        )
    }

    #[test]
    fn round_trip_and_golden_form() {
        let config = sample();
        let json = config.to_json().unwrap();
        assert_eq!(SealConfig::from_json(&json).unwrap(), config);
        assert_eq!(
            String::from_utf8(json).unwrap(),
            r#"{"format":1,"recovery":{"shares":5,"threshold":3},"keys":[{"version":1,"state":"active","origin":"generated","label":"seal","cka_id":"00ff","mechanism":"aes-gcm","canary":"AA==","fingerprint":"00"}]}"#
        );
    }

    #[test]
    fn what_cannot_be_right_is_refused() {
        let good = sample();
        assert!(good.check().is_ok());
        type Change = fn(&mut SealConfig);
        let changes: [(&str, Change); 13] = [
            ("no key", |c| c.keys.clear()),
            ("threshold 0", |c| c.recovery.threshold = 0),
            ("threshold above", |c| c.recovery.threshold = 6),
            ("1 of 5", |c| c.recovery.threshold = 1),
            ("version 0", |c| c.keys[0].version = 0),
            ("label", |c| c.keys[0].label.clear()),
            ("long label", |c| c.keys[0].label = "x".repeat(256)),
            ("id", |c| c.keys[0].cka_id = "zz".to_owned()),
            ("hmac", |c| c.keys[0].hmac_label = Some("h".to_owned())),
            ("hash", |c| c.keys[0].oaep_hash = Some(OaepHash::Sha256)),
            ("canary", |c| c.keys[0].canary = None),
            ("state", |c| c.keys[0].state = KeyState::DecryptOnly),
            ("twice", |c| c.keys.push(c.keys[0].clone())),
        ];
        for (name, change) in changes {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(bad.to_json().is_err(), "{name}");
            let json = serde_json::to_vec(&bad).unwrap();
            assert!(SealConfig::from_json(&json).is_err(), "{name}");
        }
    }

    proptest::proptest! {
        /// Whatever is done to it, it is refused or it keeps its rules.
        #[test]
        fn no_json_panics(at in 0_usize..240, byte in proptest::prelude::any::<u8>(), cut in proptest::prelude::any::<bool>()) {
            let mut json = sample().to_json().unwrap();
            let at = at % json.len();
            json[at] = byte;
            json.truncate(if cut { at } else { json.len() });
            if let Ok(config) = SealConfig::from_json(&json) {
                proptest::prop_assert!(config.check().is_ok());
            }
        }
    }

    #[test]
    fn unknown_formats_and_fields_are_refused() {
        let json = String::from_utf8(sample().to_json().unwrap()).unwrap();
        let newer = json.replace("\"format\":1", "\"format\":2,\"more\":{}");
        assert_eq!(
            SealConfig::from_json(newer.as_bytes()),
            Err(ConfigError::Format { found: 2 })
        );
        for bad in [
            json.replace("\"label\"", "\"lable\""),
            json.replace("\"format\":1,", ""),
            json.replace("aes-gcm", "aes-ecb"),
            "[]".to_owned(),
            String::new(),
        ] {
            assert!(SealConfig::from_json(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
