//! What the operator wants of autopilot: stored behind the barrier, so the same on every node.
//!
//! Invariants
//! - One entry, rewritten as a whole; what was never set has Vault's defaults.
//! - Durations are stored as whole seconds; an entry of a version this program does not know is refused.

use serde::{Deserialize, Serialize};

use crate::{
    ports::Expect,
    storage::{Batch, Layer, Storage, StorageError},
};

const PATH: &str = "core/raft/autopilot";
const ENTRY_VERSION: u32 = 1;

/// Settings of autopilot. Times are seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutopilotConfig {
    version: u32,
    /// Whether nodes that were silent for long are removed.
    pub cleanup_dead_servers: bool,
    /// How long.
    pub dead_server_last_contact_threshold: u64,
    /// A node silent for longer is not healthy.
    pub last_contact_threshold: u64,
    /// A node that lacks more entries is not healthy.
    pub max_trailing_logs: u64,
    /// Voters that must stay when silent ones are removed.
    pub min_quorum: u64,
    /// How long a node must be healthy to get a vote.
    pub server_stabilization_time: u64,
    /// Whether nodes of a new version are treated like all others.
    pub disable_upgrade_migration: bool,
}

impl Default for AutopilotConfig {
    fn default() -> Self {
        Self {
            version: ENTRY_VERSION,
            cleanup_dead_servers: false,
            dead_server_last_contact_threshold: 24 * 3600,
            last_contact_threshold: 10,
            max_trailing_logs: 1000,
            min_quorum: 0,
            server_stabilization_time: 10,
            disable_upgrade_migration: false,
        }
    }
}

impl AutopilotConfig {
    /// What is stored, and what to expect of the entry when it is written again.
    ///
    /// # Errors
    /// `Malformed` for an entry that does not parse or is of another version.
    pub async fn load(storage: &Storage) -> Result<(Self, Expect), StorageError> {
        let Some(entry) = storage.get(PATH).await? else {
            return Ok((Self::default(), Expect::Absent));
        };
        let config = serde_json::from_slice::<Self>(&entry.value)
            .ok()
            .filter(|config| config.version == ENTRY_VERSION)
            .ok_or(StorageError::Malformed("autopilot configuration"))?;
        Ok((config, Expect::ModIndex(entry.mod_index)))
    }

    /// The change that stores it in place of what `expect` stands for.
    #[expect(
        clippy::expect_used,
        reason = "numbers and booleans always encode; an empty entry would be unreadable for ever"
    )]
    pub(crate) fn put(&self, expect: Expect) -> Batch {
        let json = serde_json::to_vec(self).expect("the configuration encodes as JSON");
        let mut batch = Batch::default();
        batch.check(PATH, expect).put(PATH, json, Layer::Barrier);
        batch
    }
}
