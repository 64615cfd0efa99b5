//! The mount table: which engine answers under which path.
//!
//! Stored as one entry per mount (`core/mounts/<uuid>`) and one entry that every change rewrites
//! (`core/mounts-version`). The table in memory is valid as long as the latter's log index is the one it was read at,
//! which every request checks: nothing has to be invalidated when another node changes a mount.
//!
//! Invariants
//! - No mount's path is a prefix of another's.
//! - Changes are guarded by the version they were decided on, so of two concurrent ones the second is decided again.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Instant,
};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use crate::{
    ports::{Expect, StoreError},
    storage::{Batch, Layer, Storage, StorageError},
};

const FOLDER: &str = "core/mounts";
const VERSION: &str = "core/mounts-version";
const ENTRY_VERSION: u32 = 1;
/// Attempts at a change that others keep overtaking.
const ATTEMPTS: usize = 16;

/// Tunable settings of a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountConfig {
    /// Seconds; 0 is the system's default.
    pub default_lease_ttl: u64,
    /// Seconds; 0 is the system's.
    pub max_lease_ttl: u64,
    /// Kept for clients that set it; nothing here is cached across nodes.
    pub force_no_cache: bool,
    /// `unauth` or `hidden`; empty is hidden.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub listing_visibility: String,
    /// Request headers an engine may see.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passthrough_request_headers: Vec<String>,
    /// Response headers an engine may set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_response_headers: Vec<String>,
    /// Request fields not hashed in the audit log.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub audit_non_hmac_request_keys: Vec<String>,
    /// Response fields not hashed in the audit log.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub audit_non_hmac_response_keys: Vec<String>,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    #[serde(default)]
    version: u32,
    /// With a trailing slash.
    pub path: String,
    /// Names its storage: `logical/<uuid>`.
    pub uuid: String,
    /// `<type>_<8 hex>`.
    pub accessor: String,
    /// Engine.
    #[serde(rename = "type")]
    pub kind: String,
    /// For people.
    pub description: String,
    /// Kept for clients that set it; there is one cluster.
    pub local: bool,
    /// Whether the HSM wraps what the engine declares.
    pub seal_wrap: bool,
    /// Kept for clients that set it.
    pub external_entropy_access: bool,
    /// Engine options, `version` for one.
    pub options: Option<BTreeMap<String, String>>,
    /// Tunable settings.
    pub config: MountConfig,
    /// Being removed: no longer routed to, its data is going.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tainted: bool,
}

impl Mount {
    /// A new mount with fresh identifiers. `path` ends with a slash.
    #[must_use]
    pub fn new(path: &str, kind: &str, description: &str) -> Self {
        let mut random = [0; 32];
        for half in random.chunks_exact_mut(16) {
            half.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        }
        let (uuid, accessor) = Self::identifiers(kind, &random);
        Self {
            version: ENTRY_VERSION,
            path: path.to_owned(),
            accessor,
            uuid,
            kind: kind.to_owned(),
            description: description.to_owned(),
            local: false,
            seal_wrap: false,
            external_entropy_access: false,
            options: None,
            config: MountConfig::default(),
            tainted: false,
        }
    }

    /// Gives the mount the identifiers that `digest` stands for, the same ones for the same digest.
    pub fn identify(&mut self, digest: &[u8; 32]) {
        (self.uuid, self.accessor) = Self::identifiers(&self.kind, digest);
    }

    /// UUID and accessor (`<type>_<8 hex>`) from 32 bytes that nobody can choose.
    #[must_use]
    pub fn identifiers(kind: &str, digest: &[u8; 32]) -> (String, String) {
        let [a, b, c, d, uuid @ .., _, _, _, _, _, _, _, _, _, _, _, _] = *digest;
        let uuid: [u8; 16] = uuid;
        let uuid = uuid::Builder::from_random_bytes(uuid).into_uuid();
        let accessor = format!("{kind}_{}", hex::encode([a, b, c, d]));
        (uuid.to_string(), accessor)
    }

    /// Layer of the user data the engine stores.
    #[must_use]
    pub fn data_layer(&self) -> Layer {
        if self.seal_wrap {
            Layer::SealWrapped
        } else {
            Layer::Barrier
        }
    }

    /// Folder of everything the engine stores.
    #[must_use]
    pub fn folder(&self) -> String {
        format!("logical/{}", self.uuid)
    }

    fn stored_path(&self) -> String {
        format!("{FOLDER}/{}", self.uuid)
    }
}

/// The mounts every cluster starts with.
pub(crate) fn initial(batch: &mut Batch) {
    let mut cubbyhole = Mount::new(
        "cubbyhole/",
        "cubbyhole",
        "per-token private secret storage",
    );
    cubbyhole.local = true;
    let mut system = Mount::new(
        "sys/",
        "system",
        "system endpoints used for control, policy and debugging",
    );
    system.seal_wrap = true;
    system.config.passthrough_request_headers = vec!["Accept".to_owned()];
    let mut identity = Mount::new("identity/", "identity", "identity store");
    identity.config.passthrough_request_headers = vec!["Authorization".to_owned()];
    for mount in [cubbyhole, system, identity] {
        put(batch, &mount);
    }
    batch.put(VERSION, b"1".to_vec(), Layer::Barrier);
}

#[expect(
    clippy::expect_used,
    reason = "strings, numbers and maps keyed by strings always encode; an empty entry would spoil the table"
)]
fn put(batch: &mut Batch, mount: &Mount) {
    let json = serde_json::to_vec(mount).expect("a mount encodes as JSON");
    batch.put(mount.stored_path(), json, Layer::Barrier);
}

/// Every mount, as of one version.
#[derive(Debug, Default)]
pub struct MountTable {
    /// Log index of the last change.
    pub version: u64,
    /// By path.
    pub mounts: BTreeMap<String, Arc<Mount>>,
}

impl MountTable {
    /// The mount that answers for `path` (without the leading `/v1/`), and the path inside it.
    #[must_use]
    pub fn route<'p>(&self, path: &'p str) -> Option<(&Arc<Mount>, &'p str)> {
        // No mount lies inside another: the nearest one that sorts before the path is the only candidate.
        let with_slash = format!("{path}/");
        let (mount_path, mount) = self.mounts.range(..=with_slash).next_back()?;
        let bare = mount_path.trim_end_matches('/');
        if path == bare {
            return Some((mount, ""));
        }
        path.strip_prefix(mount_path.as_str())
            .map(|inside| (mount, inside))
    }

    /// The mount that `path` would collide with.
    #[must_use]
    pub fn conflict(&self, path: &str) -> Option<&Arc<Mount>> {
        self.mounts
            .iter()
            .find(|(existing, _)| existing.starts_with(path) || path.starts_with(existing.as_str()))
            .map(|(_, mount)| mount)
    }
}

/// Why a mount was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// The text is for the caller.
    #[error("{0}")]
    Refused(String),
    /// See [`StorageError`].
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The table in memory, read again when its version has changed.
#[derive(Default)]
pub struct Mounts {
    table: ArcSwap<MountTable>,
    /// Stored key of [`VERSION`], which every request asks for.
    version_key: OnceLock<Vec<u8>>,
}

impl Mounts {
    /// The table as of this node's state; linearize first.
    pub async fn current(&self, storage: &Storage) -> Result<Arc<MountTable>, StorageError> {
        for _ in 0..ATTEMPTS {
            let version = self.version(storage).await?;
            let cached = self.table.load_full();
            if cached.version == version && version != 0 {
                return Ok(cached);
            }
            let mounts = read_all(storage).await?;
            // Only what was read without a change in between is a table that existed.
            if self.version(storage).await? == version {
                let table = Arc::new(MountTable { version, mounts });
                self.table.store(Arc::clone(&table));
                return Ok(table);
            }
        }
        Err(StoreError::Busy.into())
    }

    /// Log index of the last change; 0 before the first.
    async fn version(&self, storage: &Storage) -> Result<u64, StorageError> {
        let key = self.version_key(storage)?;
        Ok(storage.mod_index(key).await?.unwrap_or(0))
    }

    /// Stored key whose last write is the last change of the table: [`MountTable::version`] is its log index.
    pub fn version_key(&self, storage: &Storage) -> Result<&[u8], StorageError> {
        Ok(match self.version_key.get() {
            Some(key) => key,
            None => {
                let key = storage.stored_key(VERSION)?;
                self.version_key.get_or_init(|| key)
            }
        })
    }

    /// Decides a change on the current table and commits it, again if another change came first.
    ///
    /// `decide` gives the mount to write and whether to remove it instead; `None` changes nothing.
    pub async fn change(
        &self,
        storage: &Storage,
        request_id: [u8; 16],
        deadline: Instant,
        decide: impl Fn(&MountTable) -> Result<Option<(Mount, Change)>, MountError>,
    ) -> Result<Option<Mount>, MountError> {
        let mut request_id = request_id;
        for _ in 0..ATTEMPTS {
            let table = self.current(storage).await?;
            let Some((mount, change)) = decide(&table)? else {
                return Ok(None);
            };
            let mut batch = Batch::default();
            let expect = match table.version {
                0 => Expect::Absent,
                version => Expect::ModIndex(version),
            };
            batch.check(VERSION, expect);
            batch.put(VERSION, b"1".to_vec(), Layer::Barrier);
            match change {
                Change::Write => put(&mut batch, &mount),
                Change::Remove => {
                    batch.delete(mount.stored_path());
                }
            }
            match storage.commit(batch, request_id, deadline).await {
                Ok(_) => return Ok(Some(mount)),
                Err(StorageError::Store(StoreError::CheckFailed)) => {
                    // The id's outcome is decided; the next attempt is a new request.
                    request_id = uuid::Uuid::new_v4().into_bytes();
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(StorageError::Store(StoreError::Busy).into())
    }
}

async fn read_all(storage: &Storage) -> Result<BTreeMap<String, Arc<Mount>>, StorageError> {
    let mut mounts = BTreeMap::new();
    for uuid in storage.list(FOLDER).await? {
        // Gone in between: the version has changed, and the caller notices.
        if let Some(entry) = storage.get(&format!("{FOLDER}/{uuid}")).await? {
            let mount = parse(&entry.value)?;
            mounts.insert(mount.path.clone(), Arc::new(mount));
        }
    }
    Ok(mounts)
}

/// What to do with a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Add or replace it.
    Write,
    /// Take it out of the table.
    Remove,
}

fn parse(json: &[u8]) -> Result<Mount, StorageError> {
    let mount: Mount =
        serde_json::from_slice(json).map_err(|_| StorageError::Malformed("mount"))?;
    if mount.version != ENTRY_VERSION {
        return Err(StorageError::Malformed("mount"));
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(paths: &[&str]) -> MountTable {
        let mounts = paths
            .iter()
            .map(|path| ((*path).to_owned(), Arc::new(Mount::new(path, "kv", ""))))
            .collect();
        MountTable { version: 1, mounts }
    }

    #[test]
    fn routes_to_the_mount_that_holds_the_path() {
        let table = table(&["kv/", "kv-a/", "sys/", "team/kv/"]);
        for (path, want) in [
            ("kv/app", Some(("kv/", "app"))),
            ("kv/a/b", Some(("kv/", "a/b"))),
            ("kv", Some(("kv/", ""))),
            ("kv/", Some(("kv/", ""))),
            ("kv-a/x", Some(("kv-a/", "x"))),
            ("kv-b/x", None),
            ("team/kv/x", Some(("team/kv/", "x"))),
            ("team/other", None),
            ("team", None),
            ("zzz/x", None),
            ("", None),
        ] {
            let got = table
                .route(path)
                .map(|(m, inside)| (m.path.as_str(), inside));
            assert_eq!(got, want, "{path:?}");
        }
    }

    #[test]
    fn paths_inside_or_around_a_mount_conflict() {
        let table = table(&["team/kv/"]);
        for (path, conflicts) in [
            ("team/kv/", true),
            ("team/", true),
            ("team/kv/sub/", true),
            ("team/kv2/", false),
            ("other/", false),
        ] {
            assert_eq!(table.conflict(path).is_some(), conflicts, "{path}");
        }
    }
}
