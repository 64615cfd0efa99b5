//! What a node needs to unseal itself: seal configuration, HSM-wrapped root key, encrypted keyring.
//!
//! The cluster's copy lives in the replicated state under plain core keys. Each node also keeps `seal.json` beside its
//! databases, because a node that just joined has an empty state, and because the state database may lag behind its
//! log after a crash while the log cannot be replayed before the node is unsealed.
//!
//! Invariants
//! - Nothing in a bundle is plaintext or a key in the clear.
//! - Of two copies the one with the higher log index is used.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use strongroom_raft::{State, StateError};
use strongroom_seal::{
    barrier::core_key,
    config::SealConfig,
    hsm::{Hsm, HsmError},
    keyring::{Keyring, KeyringError, RootKey},
};

use super::{chain, files};

/// Plain core keys, readable before unseal. Renaming one makes every existing cluster unreadable.
pub(crate) const SEAL_CONFIG: &str = "core/seal-config";
pub(crate) const SEAL_INTENT: &str = "core/seal-intent";
pub(crate) const ROOT_KEY: &str = "core/hsm/root-key";
pub(crate) const RECOVERY_KEY: &str = "core/recovery-key";
pub(crate) const KEYRING: &str = "core/keyring";

const FILE: &str = "seal.json";
const FORMAT: u32 = 1;

/// See the module's description.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SealBundle {
    format: u32,
    /// Highest log index among the parts.
    index: u64,
    /// How many restores the state had seen: keys and data of different numbers do not belong together.
    #[serde(default)]
    pub(crate) restores: u64,
    /// Which HSM keys, how many recovery shares.
    pub(crate) config: SealConfig,
    /// Base64 of the HSM-wrapped root key.
    root_key: String,
    /// Base64 of the keyring: encrypted by the root key, wrapped by the HSM.
    keyring: String,
}

/// Why a bundle could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    #[error("reading or writing {FILE} in the data directory failed")]
    File(#[from] std::io::Error),
    #[error("{FILE} in the data directory is damaged: {0}")]
    Damaged(String),
    #[error("the seal data has format {0}, this version knows {FORMAT}; run a newer version")]
    Format(u32),
    #[error("reading the seal data from the state failed")]
    State(#[from] StateError),
}

/// Why the keyring could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenKeyringError {
    #[error(transparent)]
    Hsm(#[from] HsmError),
    #[error("the keyring does not open under the root key")]
    Keyring(#[from] KeyringError),
    #[error("the seal data is damaged: {0}")]
    Damaged(&'static str),
}

impl SealBundle {
    /// A bundle of parts as stored at log index `index`, after so many restores.
    pub(crate) fn new(
        (index, restores): (u64, u64),
        config: SealConfig,
        root_key: &[u8],
        keyring: &[u8],
    ) -> Self {
        Self {
            format: FORMAT,
            index,
            restores,
            config,
            root_key: BASE64.encode(root_key),
            keyring: BASE64.encode(keyring),
        }
    }

    /// The newer of the copies in the state and in `seal.json`; `None` before initialisation.
    pub(crate) fn newest(dir: &Path, state: &State) -> Result<Option<Self>, BundleError> {
        let state = Self::from_state(state)?;
        let file = match (Self::load(dir), &state) {
            (Err(BundleError::Damaged(why)), Some(_)) => {
                tracing::warn!(
                    "{FILE} in the data directory is damaged ({why}): it is replaced by the copy in the state"
                );
                None
            }
            (file, _) => file?,
        };
        Ok(match (file, state) {
            (Some(file), Some(state)) if file.index > state.index => Some(file),
            // Damaged, or an init was cut off before it had written it.
            (None, Some(state)) => {
                if let Err(error) = state.save(dir) {
                    tracing::warn!(error = %chain(&error), "{FILE} could not be written; the copy in the state is used");
                }
                Some(state)
            }
            (file, state) => state.or(file),
        })
    }

    /// The copy in the replicated state.
    pub(crate) fn from_state(state: &State) -> Result<Option<Self>, BundleError> {
        loop {
            match Self::at(state, state.restores()) {
                // Its parts must be of one piece: again.
                Err(BundleError::State(StateError::Superseded)) => {}
                read => return read,
            }
        }
    }

    fn at(state: &State, restores: u64) -> Result<Option<Self>, BundleError> {
        let part = |name| state.get_at(restores, &core_key(name));
        let (Some(config), Some(root_key), Some(keyring)) =
            (part(SEAL_CONFIG)?, part(ROOT_KEY)?, part(KEYRING)?)
        else {
            return Ok(None);
        };
        let parsed = SealConfig::from_json(&config.1)
            .map_err(|error| BundleError::Damaged(error.to_string()))?;
        let index = config.0.max(root_key.0).max(keyring.0);
        Ok(Some(Self::new(
            (index, restores),
            parsed,
            &root_key.1,
            &keyring.1,
        )))
    }

    /// The copy in `seal.json`.
    pub(crate) fn load(dir: &Path) -> Result<Option<Self>, BundleError> {
        files::read_if_there(dir, FILE)?
            .map(|content| Self::parse(&content))
            .transpose()
    }

    /// Parses a bundle from a file or from the leader.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, BundleError> {
        let damaged = |error: serde_json::Error| BundleError::Damaged(error.to_string());
        let value: serde_json::Value = serde_json::from_slice(json).map_err(damaged)?;
        // The format first: a newer one may have other fields.
        let format = value
            .get("format")
            .and_then(serde_json::Value::as_u64)
            .and_then(|format| u32::try_from(format).ok())
            .ok_or_else(|| BundleError::Damaged("no format".to_owned()))?;
        if format != FORMAT {
            return Err(BundleError::Format(format));
        }
        serde_json::from_value(value).map_err(damaged)
    }

    /// Writes `seal.json`, durable on return.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), BundleError> {
        let json = serde_json::to_vec_pretty(self)
            .map_err(|error| BundleError::Damaged(error.to_string()))?;
        Ok(files::write_atomically(dir, FILE, &json)?)
    }

    /// Has the HSM decrypt the root key and opens the keyring with it.
    ///
    /// # Errors
    /// `Hsm` when the HSM is away, refuses, or does not hold the cluster's key.
    pub(crate) async fn open(&self, hsm: &Hsm) -> Result<Keyring, OpenKeyringError> {
        Ok(self.open_whole(hsm).await?.1)
    }

    /// As [`SealBundle::open`], with the root key.
    pub(crate) async fn open_whole(
        &self,
        hsm: &Hsm,
    ) -> Result<(RootKey, Keyring), OpenKeyringError> {
        hsm.open(&self.config).await?;
        let damaged = |_: base64::DecodeError| OpenKeyringError::Damaged("not base64");
        let root_key = BASE64.decode(&self.root_key).map_err(damaged)?;
        let keyring = BASE64.decode(&self.keyring).map_err(damaged)?;
        let root_key = RootKey::from_bytes(&hsm.unwrap_core(ROOT_KEY, &root_key).await?)
            .ok_or(OpenKeyringError::Damaged("the root key is not 32 bytes"))?;
        let encrypted = hsm.unwrap_core(KEYRING, &keyring).await?;
        let keyring = Keyring::decrypt(&root_key, &encrypted)?;
        Ok((root_key, keyring))
    }
}
