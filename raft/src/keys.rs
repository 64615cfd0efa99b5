//! Every key, column family, file and directory name on disk, in one place.
//!
//! Layout of a data directory:
//! ```text
//! node.json                identity (identity.rs)
//! raft.lock                held while a process has the stores open
//! raft/                    RocksDB: the log. CF `log`: index u64 BE → record; CF `meta`
//! raft/DURABLE             lower bound of what was synced (witness.rs)
//! state/CURRENT            name of the live generation
//! state/gen-<N>/           RocksDB: the state. CFs `kv`, `kv-b`: opaque key → mod_index u64 BE | value; CF `meta`
//! snapshots/<index>-<term>-<node>/   RocksDB checkpoint of a generation, and what it covers (META)
//! snapshots/held-<N>/      checkpoint that somebody reads now; removed at start
//! recv/                    a snapshot that another node is sending; removed at start
//! ```
//! Changing anything here makes existing data directories unreadable: raise [`FORMAT`] and write the upgrade.

/// Layout version kept in both databases under [`META_FORMAT`]; any other number is refused.
pub(crate) const FORMAT: u32 = 1;
/// Layout of a state that remembers requests by time ([`META_WINDOW`]): versions that do not know how must not go on.
pub(crate) const WINDOW_FORMAT: u32 = 2;

/// Held (flock) by the process that has the stores open.
pub(crate) const LOCK_FILE: &str = "raft.lock";
/// Directory of the log database.
pub(crate) const LOG_DIR: &str = "raft";
/// Directory of the state's generations.
pub(crate) const STATE_DIR: &str = "state";
/// Names the live generation, e.g. `gen-1`.
pub(crate) const CURRENT_FILE: &str = "CURRENT";
/// The first generation.
pub(crate) const FIRST_GENERATION: u64 = 1;
/// Directory of local snapshots.
pub(crate) const SNAPSHOT_DIR: &str = "snapshots";
/// In a snapshot's directory: what it covers. RocksDB leaves names it does not know alone.
pub(crate) const SNAPSHOT_META_FILE: &str = "META";
/// Directory of the snapshot that is being received.
pub(crate) const RECEIVE_DIR: &str = "recv";
/// The witness file inside [`LOG_DIR`]. RocksDB leaves names it does not know alone.
pub(crate) const WITNESS_FILE: &str = "DURABLE";

/// Inside [`LOG_DIR`]: this log lacks entries that the node had acknowledged; its text says which. It is never opened again.
pub(crate) const SET_BACK_FILE: &str = "SET-BACK";

/// Log database: index u64 BE → record.
pub(crate) const CF_LOG: &str = "log";
/// State database: opaque key → `mod_index u64 BE | value`.
pub(crate) const CF_KV: &str = "kv";
/// State database: as [`CF_KV`]. One of the two is live, the other takes what a restore brings.
pub(crate) const CF_KV_B: &str = "kv-b";
/// Both databases: the keys below.
pub(crate) const CF_META: &str = "meta";

/// Both: `FORMAT u32 BE | cluster id 16 | raft id u64 BE`.
pub(crate) const META_FORMAT: &[u8] = b"format";
/// Log: the vote.
pub(crate) const META_VOTE: &[u8] = b"vote";
/// Log: id of the last purged entry.
pub(crate) const META_PURGED: &[u8] = b"purged";
/// Log: id of the last entry known to be committed; may lag.
pub(crate) const META_COMMITTED: &[u8] = b"committed";
/// Log: number of write batches ever written, u64 BE; in every batch.
pub(crate) const META_BATCHES: &[u8] = b"batches";
/// Log: truncations ever made by versions that count them, u64 BE.
pub(crate) const META_TRUNCATIONS: &[u8] = b"truncations";
/// Log: which truncations have a row of their own (`log/truncations.rs`).
pub(crate) const META_TRUNCATED: &[u8] = b"truncated";
/// Log: what its bookkeeping is after a batch (`log/trailer.rs`); in every batch.
pub(crate) const META_TRAILER: &[u8] = b"trailer";
/// Log: every entry up to this index is in table files, or purged; the start-up scan begins there. u64 BE.
pub(crate) const META_SCANNED: &[u8] = b"scanned";
/// State: id of the last applied entry.
pub(crate) const META_APPLIED: &[u8] = b"applied";
/// State: the last applied membership.
pub(crate) const META_MEMBERSHIP: &[u8] = b"membership";
/// State: id of the last entry of the snapshot that this generation was made from; absent when it was made from none.
pub(crate) const META_INSTALLED: &[u8] = b"installed";
/// State: number of `Put` operations ever applied, u64 BE.
pub(crate) const META_PUT_COUNT: &[u8] = b"put_count";
/// State: `restores u64 BE | id 16` of the last restore; absent before the first. An even number: [`CF_KV`] is live.
pub(crate) const META_RESTORED: &[u8] = b"restored";
/// State: the restore under way, see [`crate::restore::Staging`].
pub(crate) const META_STAGING: &[u8] = b"staging";

/// State: present once requests are remembered by time, see `state/apply.rs`.
pub(crate) const META_WINDOW: &[u8] = b"window";
/// State: the latest time that a command carried since then, milliseconds, u64 BE.
pub(crate) const META_CLOCK: &[u8] = b"clock";

const REQUEST: u8 = b'r';
const REQUEST_AT: u8 = b'i';

/// Log CF: the record of entry `index`.
pub(crate) fn log(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

/// Log meta CF: a truncation, by number.
pub(crate) fn truncation(number: u64) -> [u8; 18] {
    let mut key = *b"truncation\0\0\0\0\0\0\0\0";
    let (_, rest) = key.split_at_mut(10);
    rest.copy_from_slice(&number.to_be_bytes());
    key
}

/// State meta CF: outcome of the command with this request id. Only in states that an early version has written.
pub(crate) fn request(id: &[u8; 16]) -> [u8; 17] {
    let mut key = [REQUEST; 17];
    let (_, rest) = key.split_at_mut(1);
    rest.copy_from_slice(id);
    key
}

/// State meta CF: request id and outcome of the command at `index`.
pub(crate) fn request_at(index: u64) -> [u8; 9] {
    let mut key = [REQUEST_AT; 9];
    let (_, rest) = key.split_at_mut(1);
    rest.copy_from_slice(&index.to_be_bytes());
    key
}

/// Reads the index from [`request_at`]'s key.
pub(crate) fn request_index(key: &[u8]) -> Option<u64> {
    be_u64(key.strip_prefix(&[REQUEST_AT])?)
}

/// The live family after `restores` restores.
pub(crate) fn live(restores: u64) -> &'static str {
    if restores.is_multiple_of(2) {
        CF_KV
    } else {
        CF_KV_B
    }
}

/// The family that is not live after `restores` restores: what a restore under way has brought, else leftovers.
pub(crate) fn staging(restores: u64) -> &'static str {
    live(restores + 1)
}

/// Reads a big-endian `u64` that must be the whole of `bytes`.
pub(crate) fn be_u64(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

/// Value of [`META_FORMAT`] in layout [`FORMAT`].
pub(crate) fn format_value(cluster_id: &[u8; 16], raft_id: u64) -> Vec<u8> {
    format_value_of(FORMAT, cluster_id, raft_id)
}

/// Value of [`META_FORMAT`].
pub(crate) fn format_value_of(format: u32, cluster_id: &[u8; 16], raft_id: u64) -> Vec<u8> {
    [
        &format.to_be_bytes()[..],
        &cluster_id[..],
        &raft_id.to_be_bytes()[..],
    ]
    .concat()
}
