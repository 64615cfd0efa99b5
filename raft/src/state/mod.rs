//! The replicated state on a RocksDB instance of its own.
//!
//! In: batches of committed entries ([`Machine`]). Out: reads of opaque keys, at any time, without going through Raft.
//!
//! Invariants
//! - One write batch holds an apply batch's changes, its last log id, membership and counters: a crash keeps all of it
//!   or nothing. The WAL is off; what was not flushed is replayed from the log.
//! - What is visible here was durable in the local log before.

mod apply;
mod machine;
mod snapshot;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use prost::Message;
use rocksdb::{DB, Direction, FlushOptions, IteratorMode, WriteBatch, WriteOptions};
use tokio::sync::watch;

use self::apply::{Change, Changes, View};
pub(crate) use self::{machine::Machine, snapshot::SnapshotDir};
use crate::{
    command::{Applied, Outcome},
    error::{OpenError, StateError},
    identity::{Identity, write_atomically},
    keys::{
        self, CF_KV, CF_META, CURRENT_FILE, FIRST_GENERATION, META_APPLIED, META_FORMAT,
        META_MEMBERSHIP, META_PUT_COUNT, be_u64,
    },
    proto::{LogIdProto, StoredMembershipProto},
    rocks::{self, Kind, cf},
    types::{LogId, StoredMembership},
};

/// After this many applied entries the state is flushed in the background: bounds the replay after a crash.
const FLUSH_EVERY: u64 = 20_000;

/// How far the state is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
    pub(crate) puts: u64,
}

/// The local copy of the replicated state. Reads are local; see [`crate::Raft::read_index`] for linearizable ones.
pub struct State {
    /// Holds `CURRENT` and the generations.
    dir: PathBuf,
    identity: Identity,
    /// `None` after close.
    live: ArcSwapOption<Generation>,
    position: watch::Sender<Position>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State(applied {})", self.applied())
    }
}

/// One database directory; a snapshot replaces it as a whole.
struct Generation {
    number: u64,
    db: Arc<DB>,
}

impl State {
    /// Opens the state of `identity` in `dir`, creating it when there is none.
    pub(crate) fn open(dir: &Path, identity: &Identity) -> Result<Self, OpenError> {
        let read = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Read { path, source }
        };
        std::fs::create_dir_all(dir).map_err(read(dir))?;
        let number = current_generation(dir)?;
        let path = generation_dir(dir, number.unwrap_or(FIRST_GENERATION));
        let db = Arc::new(rocks::open(Kind::State, &path)?);
        if !rocks::check_identity(&db, &path, identity)? {
            if number.is_some() {
                return Err(OpenError::Damaged {
                    path,
                    why: "the state has no format key".to_owned(),
                });
            }
            claim(&db, identity).map_err(read(&path))?;
        }
        if number.is_none() {
            set_current(dir, FIRST_GENERATION).map_err(read(dir))?;
        }
        let position = read_position(&db).map_err(|error| OpenError::Damaged {
            path,
            why: error.to_string(),
        })?;
        let number = number.unwrap_or(FIRST_GENERATION);
        Ok(Self {
            dir: dir.to_owned(),
            identity: identity.clone(),
            live: ArcSwapOption::from_pointee(Generation { number, db }),
            position: watch::Sender::new(position),
        })
    }

    /// The value under `key` and the log index of its last write.
    ///
    /// # Errors
    /// `Closed` during shutdown; `Read` when the disk or the data fails.
    pub fn get(&self, key: &[u8]) -> Result<Option<(u64, Bytes)>, StateError> {
        let db = self.db()?;
        let stored = db
            .get_pinned_cf(cf(&db, CF_KV)?, key)
            .map_err(io::Error::other)?;
        let Some(stored) = stored else {
            return Ok(None);
        };
        let (mod_index, value) = split_value(&stored)?;
        Ok(Some((mod_index, Bytes::copy_from_slice(value))))
    }

    /// Up to `limit` keys that start with `prefix` and sort strictly after `after`, in byte order.
    ///
    /// # Errors
    /// `Closed` during shutdown; `Read` when the disk or the data fails.
    pub fn keys(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Bytes>, StateError> {
        let db = self.db()?;
        let start = match after {
            Some(after) if after >= prefix => [after, &[0]].concat(),
            _ => prefix.to_vec(),
        };
        let from = IteratorMode::From(&start, Direction::Forward);
        let mut found = Vec::new();
        for item in db.iterator_cf(cf(&db, CF_KV)?, from).take(limit) {
            let (key, _) = item.map_err(io::Error::other)?;
            if !key.starts_with(prefix) {
                break;
            }
            found.push(Bytes::from(key));
        }
        Ok(found)
    }

    /// Log index up to which this node has applied; 0 before the first entry.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.position.borrow().applied.map_or(0, |id| id.index)
    }

    /// Number of `Put` operations ever applied: the same on every node at the same index.
    #[must_use]
    pub fn put_count(&self) -> u64 {
        self.position.borrow().puts
    }

    pub(crate) fn position(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    fn db(&self) -> Result<Arc<DB>, StateError> {
        let live = self.live.load();
        let generation = live.as_ref().ok_or(StateError::Closed)?;
        Ok(Arc::clone(&generation.db))
    }

    /// Makes `changes` visible, all at once.
    fn commit(&self, changes: &Changes) -> io::Result<()> {
        let db = self.db().map_err(io::Error::other)?;
        let mut position = self.position.borrow().clone();
        let batch = batch_of(&db, changes, &mut position)?;
        db.write_opt(batch, &without_wal())
            .map_err(|error| io::Error::other(format!("writing the state failed: {error}")))?;
        let (before, after) = (self.applied(), position.applied.map_or(0, |id| id.index));
        self.position.send_replace(position);
        if before / FLUSH_EVERY != after / FLUSH_EVERY {
            flush(&db, false)?;
        }
        Ok(())
    }

    /// Flushes and closes the database; later calls fail. Blocks up to a few seconds for readers to finish.
    pub(crate) fn close(&self) {
        let Some(generation) = self.live.swap(None) else {
            return;
        };
        if let Err(error) = flush(&generation.db, true) {
            // Nothing is lost: the next start replays the log from the last flush.
            tracing::warn!(%error, "flushing the state at shutdown failed");
        }
        let db = Arc::clone(&generation.db);
        drop(generation);
        crate::log::drop_last(db, "state");
    }
}

/// Reads the state directly; one per apply batch.
struct DbView(Arc<DB>);

impl View for DbView {
    fn mod_index(&self, key: &[u8]) -> io::Result<Option<u64>> {
        let stored = self
            .0
            .get_pinned_cf(cf(&self.0, CF_KV)?, key)
            .map_err(io::Error::other)?;
        stored
            .map(|stored| split_value(&stored).map(|(mod_index, _)| mod_index))
            .transpose()
    }

    fn remembered(&self, request: &[u8; 16]) -> io::Result<Option<Applied>> {
        let stored = self
            .0
            .get_pinned_cf(cf(&self.0, CF_META)?, keys::request(request))
            .map_err(io::Error::other)?;
        stored.map(|stored| decode_applied(&stored)).transpose()
    }

    fn request_at(&self, index: u64) -> io::Result<Option<[u8; 16]>> {
        let stored = self
            .0
            .get_pinned_cf(cf(&self.0, CF_META)?, keys::request_at(index))
            .map_err(io::Error::other)?;
        stored
            .map(|id| id[..].try_into().map_err(|_| damaged("a request id")))
            .transpose()
    }
}

fn batch_of(db: &DB, changes: &Changes, position: &mut Position) -> io::Result<WriteBatch> {
    let (kv, meta) = (cf(db, CF_KV)?, cf(db, CF_META)?);
    let mut batch = WriteBatch::default();
    for change in &changes.list {
        match change {
            Change::Put {
                key,
                mod_index,
                value,
            } => batch.put_cf(kv, key, [&mod_index.to_be_bytes()[..], value].concat()),
            Change::Delete { key } => batch.delete_cf(kv, key),
            Change::Remember { request, applied } => {
                batch.put_cf(meta, keys::request(request), encode_applied(applied));
                batch.put_cf(meta, keys::request_at(applied.index), request);
            }
            Change::Forget { request, index } => {
                batch.delete_cf(meta, keys::request(request));
                batch.delete_cf(meta, keys::request_at(*index));
            }
        }
    }
    if let Some(applied) = changes.applied {
        position.applied = Some(applied);
        batch.put_cf(
            meta,
            META_APPLIED,
            LogIdProto::from(&applied).encode_to_vec(),
        );
    }
    if let Some(membership) = &changes.membership {
        position.membership = membership.clone();
        let proto = StoredMembershipProto::from(membership);
        batch.put_cf(meta, META_MEMBERSHIP, proto.encode_to_vec());
    }
    if changes.puts > 0 {
        position.puts += changes.puts;
        batch.put_cf(meta, META_PUT_COUNT, position.puts.to_be_bytes());
    }
    Ok(batch)
}

fn read_position(db: &DB) -> io::Result<Position> {
    let meta = cf(db, CF_META)?;
    let read = |key: &[u8]| db.get_cf(meta, key).map_err(io::Error::other);
    let mut position = Position::default();
    if let Some(bytes) = read(META_APPLIED)? {
        let id = LogIdProto::decode(&bytes[..]).map_err(|_| damaged("the applied log id"))?;
        position.applied = Some(id.into());
    }
    if let Some(bytes) = read(META_MEMBERSHIP)? {
        let proto = StoredMembershipProto::decode(&bytes[..]);
        position.membership = proto
            .ok()
            .and_then(|proto| proto.try_into().ok())
            .ok_or_else(|| damaged("the membership"))?;
    }
    if let Some(bytes) = read(META_PUT_COUNT)? {
        position.puts = be_u64(&bytes).ok_or_else(|| damaged("the number of puts"))?;
    }
    Ok(position)
}

/// Makes a new database this node's, durably.
fn claim(db: &DB, identity: &Identity) -> io::Result<()> {
    let value = keys::format_value(&identity.cluster_id, identity.raft_id);
    db.put_cf_opt(cf(db, CF_META)?, META_FORMAT, value, &without_wal())
        .map_err(io::Error::other)?;
    flush(db, true)
}

fn flush(db: &DB, wait: bool) -> io::Result<()> {
    let mut options = FlushOptions::default();
    options.set_wait(wait);
    db.flush_cfs_opt(&[cf(db, CF_KV)?, cf(db, CF_META)?], &options)
        .map_err(io::Error::other)
}

fn without_wal() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}

/// Splits a stored value: `mod_index u64 BE | value`.
pub(crate) fn split_value(stored: &[u8]) -> io::Result<(u64, &[u8])> {
    let (mod_index, value) = stored
        .split_first_chunk()
        .ok_or_else(|| damaged("a stored value"))?;
    Ok((u64::from_be_bytes(*mod_index), value))
}

/// `index u64 BE | outcome u8 | op u32 BE`.
fn encode_applied(applied: &Applied) -> Vec<u8> {
    let (outcome, op) = match applied.outcome {
        Outcome::Applied => (0u8, 0),
        Outcome::CheckFailed { op } => (1, op),
    };
    [
        &applied.index.to_be_bytes()[..],
        &[outcome],
        &op.to_be_bytes(),
    ]
    .concat()
}

fn decode_applied(stored: &[u8]) -> io::Result<Applied> {
    let parts = stored
        .split_first_chunk::<8>()
        .and_then(|(index, rest)| Some((index, rest.split_first_chunk::<1>()?)))
        .and_then(|(index, (kind, op))| Some((index, kind, <[u8; 4]>::try_from(op).ok()?)));
    let Some((index, &[kind], op)) = parts else {
        return Err(damaged("a remembered outcome"));
    };
    let outcome = match kind {
        0 => Outcome::Applied,
        1 => Outcome::CheckFailed {
            op: u32::from_be_bytes(op),
        },
        _ => return Err(damaged("a remembered outcome")),
    };
    Ok(Applied {
        index: u64::from_be_bytes(*index),
        outcome,
    })
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{what} in the state is damaged"),
    )
}

/// Number of the live generation; `None`: there is none yet.
pub(crate) fn current_generation(dir: &Path) -> Result<Option<u64>, OpenError> {
    let path = dir.join(CURRENT_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(OpenError::Read { path, source }),
    };
    text.trim_end()
        .strip_prefix("gen-")
        .and_then(|number| number.parse().ok())
        .map(Some)
        .ok_or(OpenError::Damaged {
            path,
            why: "it names no generation".to_owned(),
        })
}

/// Directory of generation `number`.
pub(crate) fn generation_dir(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("gen-{number}"))
}

/// The commit point of a change of generation.
fn set_current(dir: &Path, number: u64) -> io::Result<()> {
    write_atomically(
        &dir.join(CURRENT_FILE),
        format!("gen-{number}\n").as_bytes(),
    )
}

#[cfg(test)]
mod tests;
