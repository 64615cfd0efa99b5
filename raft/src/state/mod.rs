//! The replicated state on a RocksDB instance of its own.
//!
//! In: batches of committed entries ([`Machine`]). Out: reads of opaque keys, at any time, without going through Raft.
//!
//! Invariants
//! - One write batch holds an apply batch's changes, its last log id, membership and counters: a crash keeps all of it
//!   or nothing. The WAL is off; what was not flushed is replayed from the log.
//! - What is visible here was durable in the local log before.
//! - A restore replaces the whole key space at once: two families of keys, a count of restores that says which one is
//!   live. A read that a restore has overtaken is done again, so that it sees the old data or the new, never a mix.

mod apply;
mod checkpoint;
mod helpers;
mod machine;
mod outcomes;
mod rows;
pub(crate) mod snapshot;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use prost::Message;
use rocksdb::{
    BottommostLevelCompaction, CompactOptions, DB, DBPinnableSlice, FlushOptions, IteratorMode,
    WriteBatch, WriteOptions,
};
use tokio::sync::watch;

use self::{
    apply::{Change, Changes, Memory, Remembered, View},
    helpers::Helpers,
    outcomes::Outcomes,
    rows::{Look, Row, Rows, Ticket},
};
pub use self::{
    checkpoint::{Checkpoint, CheckpointRow},
    snapshot::SnapshotStats,
};
pub(crate) use self::{
    machine::Machine,
    snapshot::{SnapshotDir, Snapshots},
};
use crate::{
    error::{OpenError, StateError},
    identity::{Identity, write_atomically},
    keys::{
        self, CF_KV, CF_KV_B, CF_META, CURRENT_FILE, FIRST_GENERATION, META_APPLIED, META_CLOCK,
        META_FORMAT, META_INSTALLED, META_MEMBERSHIP, META_PUT_COUNT, META_RESTORED, META_STAGING,
        META_WINDOW, SNAPSHOT_DIR, STATE_DIR, be_u64,
    },
    log::lock,
    proto::{LogIdProto, StoredMembershipProto},
    restore::Staging,
    rocks::{self, Kind, cf},
    types::{LogId, StoredMembership},
};

/// After this many applied entries the state is flushed in the background: bounds the replay after a crash.
const FLUSH_EVERY: u64 = 30_000;

/// How far the state is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
    pub(crate) puts: u64,
    pub(crate) memory: Memory,
    /// Restores ever carried out, and the last one's id.
    pub(crate) restored: (u64, [u8; 16]),
    /// Id of the restore under way.
    pub(crate) staging: Option<[u8; 16]>,
}

/// The local copy of the replicated state. Reads are local; see [`crate::Raft::read_index`] for linearizable ones.
pub struct State {
    /// Holds `CURRENT` and the generations.
    dir: PathBuf,
    identity: Identity,
    /// `None` after close.
    live: ArcSwapOption<Generation>,
    position: watch::Sender<Position>,
    /// See [`State::readable`].
    readable: AtomicU64,
    pub(crate) snapshots: Snapshots,
    pub(crate) counters: Arc<snapshot::Counters>,
    /// Held while a snapshot is built.
    building: Mutex<()>,
    helpers: Arc<Helpers>,
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
    /// As in [`Position::restored`], for readers.
    restores: AtomicU64,
    /// The family that is not live holds leftovers of a restore, or the data that one has replaced.
    leftovers: AtomicBool,
    outcomes: Mutex<Outcomes>,
    rows: Rows,
}

/// What a read without the disk gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtHand<T> {
    Found(T),
    /// The database tells, and with it perhaps the disk.
    OnDisk,
}

impl<T> From<Look<T>> for AtHand<T> {
    fn from(look: Look<T>) -> Self {
        match look {
            Look::Here(found) => Self::Found(found),
            Look::Elsewhere(_) => Self::OnDisk,
        }
    }
}

impl Generation {
    fn new(number: u64, db: Arc<DB>, position: &Position) -> io::Result<Self> {
        let family = cf(&db, keys::staging(position.restored.0))?;
        let leftovers = position.staging.is_none()
            && db.iterator_cf(family, IteratorMode::Start).next().is_some();
        let outcomes = Outcomes::open(&db, index_of(position))?;
        Ok(Self {
            number,
            db,
            restores: position.restored.0.into(),
            leftovers: leftovers.into(),
            outcomes: Mutex::new(outcomes),
            rows: Rows::default(),
        })
    }

    /// After `changes` are written.
    fn remember(&self, changes: &Changes) {
        let mut outcomes = lock(&self.outcomes);
        for change in &changes.list {
            if let Change::Remember { request, outcome } = change {
                outcomes.remember(request, outcome.applied.index);
            }
        }
    }

    /// The row under `key`. `family`: the live one.
    fn get(&self, family: &'static str, key: &[u8]) -> io::Result<Row> {
        match self.rows.get(key) {
            Look::Here(row) => Ok(row),
            Look::Elsewhere(ticket) => self.look_up(family, key, &ticket, |row| {
                row.map(|(mod_index, value)| (mod_index, Bytes::copy_from_slice(value)))
            }),
        }
    }

    /// Log index of the last write of `key`. `family`: the live one.
    fn mod_index(&self, family: &'static str, key: &[u8]) -> io::Result<Option<u64>> {
        match self.rows.mod_index(key) {
            Look::Here(index) => Ok(index),
            Look::Elsewhere(ticket) => {
                self.look_up(family, key, &ticket, |row| row.map(|(index, _)| index))
            }
        }
    }

    /// What the database has, which is kept if `ticket` allows. Without a lock, as the disk may hang.
    fn look_up<T>(
        &self,
        family: &'static str,
        key: &[u8],
        ticket: &Ticket,
        take: impl FnOnce(Option<(u64, &[u8])>) -> T,
    ) -> io::Result<T> {
        let stored = stored(&self.db, family, key)?;
        let row = stored.as_deref().map(split_value).transpose()?;
        // A restore that came meanwhile has made the other family the live one.
        let is_live = || keys::live(self.restores.load(Ordering::Acquire)) == family;
        self.rows.keep(key, ticket, row, is_live);
        Ok(take(row))
    }
}

impl State {
    /// Opens the state of `identity` in data directory `data`, creating it when there is none, and sweeps what a crash
    /// has left of snapshots and generations.
    pub(crate) fn open(data: &Path, identity: &Identity) -> Result<Self, OpenError> {
        let read = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Read { path, source }
        };
        let dir = &data.join(STATE_DIR);
        std::fs::create_dir_all(dir).map_err(read(dir))?;
        checkpoint::forget_held(dir).map_err(read(dir))?;
        let number = current_generation(dir)?;
        let path = generation_dir(dir, number.unwrap_or(FIRST_GENERATION));
        let db = Arc::new(rocks::open(Kind::State, &path)?);
        if !rocks::check_identity(Kind::State, &db, &path, identity)? {
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
        let damaged = |error: io::Error| OpenError::Damaged {
            path: path.clone(),
            why: error.to_string(),
        };
        let position = read_position(&db).map_err(damaged)?;
        let number = number.unwrap_or(FIRST_GENERATION);
        let generation = Generation::new(number, db, &position).map_err(damaged)?;
        sweep_leftovers(data, dir, number).map_err(read(dir))?;
        let root = data.join(SNAPSHOT_DIR);
        let snapshots = Snapshots::open(root.clone(), identity).map_err(read(&root))?;
        Ok(Self {
            dir: dir.to_owned(),
            identity: identity.clone(),
            live: ArcSwapOption::from_pointee(generation),
            readable: index_of(&position).into(),
            position: watch::Sender::new(position),
            snapshots,
            counters: Arc::default(),
            building: Mutex::default(),
            helpers: Arc::default(),
        })
    }

    /// The value under `key` and the log index of its last write.
    ///
    /// # Errors
    /// `Closed` during shutdown; `Read` when the disk or the data fails.
    pub fn get(&self, key: &[u8]) -> Result<Option<(u64, Bytes)>, StateError> {
        self.read(None, |live, family| live.get(family, key))
    }

    /// As [`State::get`], for a reader that knows the data of the time when there had been `restores` restores.
    ///
    /// # Errors
    /// Also `Superseded` when there is other data now.
    pub fn get_at(&self, restores: u64, key: &[u8]) -> Result<Option<(u64, Bytes)>, StateError> {
        self.read(Some(restores), |live, family| live.get(family, key))
    }

    /// As [`State::get_at`], without the disk.
    pub(crate) fn get_at_hand(
        &self,
        restores: u64,
        key: &[u8],
    ) -> Result<AtHand<Option<(u64, Bytes)>>, StateError> {
        self.read(Some(restores), |live, _| Ok(live.rows.get(key).into()))
    }

    /// As [`State::mod_index`], without the disk.
    pub(crate) fn mod_index_at_hand(&self, key: &[u8]) -> Result<AtHand<Option<u64>>, StateError> {
        self.read(None, |live, _| Ok(live.rows.mod_index(key).into()))
    }

    /// The log index of the last write of `key`: without its value, however large.
    ///
    /// # Errors
    /// `Closed` during shutdown; `Read` when the disk or the data fails.
    pub fn mod_index(&self, key: &[u8]) -> Result<Option<u64>, StateError> {
        self.read(None, |live, family| live.mod_index(family, key))
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
        self.keys_in(None, prefix, after, limit)
    }

    /// As [`State::keys`], for a reader that knows the data of the time when there had been `restores` restores.
    ///
    /// # Errors
    /// Also `Superseded` when there is other data now.
    pub fn keys_at(
        &self,
        restores: u64,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Bytes>, StateError> {
        self.keys_in(Some(restores), prefix, after, limit)
    }

    fn keys_in(
        &self,
        restores: Option<u64>,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Bytes>, StateError> {
        let start = match after {
            Some(after) if after >= prefix => [after, &[0]].concat(),
            _ => prefix.to_vec(),
        };
        self.read(restores, |Generation { db, .. }, family| {
            // Values are not copied.
            let mut rows = db.raw_iterator_cf(cf(db, family)?);
            rows.seek(&start);
            let mut found = Vec::new();
            while let Some(key) = rows.key().filter(|key| key.starts_with(prefix))
                && found.len() < limit
            {
                found.push(Bytes::copy_from_slice(key));
                rows.next();
            }
            rows.status().map_err(io::Error::other)?;
            Ok(found)
        })
    }

    /// Reads the live family; again when a restore has overtaken the read, since what it read may be half emptied.
    fn read<T>(
        &self,
        wanted: Option<u64>,
        read: impl Fn(&Generation, &'static str) -> io::Result<T>,
    ) -> Result<T, StateError> {
        loop {
            let live = self.live.load();
            let generation = live.as_ref().ok_or(StateError::Closed)?;
            let restores = generation.restores.load(Ordering::Acquire);
            if wanted.is_some_and(|wanted| wanted != restores) {
                return Err(StateError::Superseded);
            }
            let found = read(generation, keys::live(restores));
            if generation.restores.load(Ordering::Acquire) == restores {
                return Ok(found?);
            }
        }
    }

    /// How many times a restore has replaced the whole key space.
    #[must_use]
    pub fn restores(&self) -> u64 {
        match &*self.live.load() {
            Some(generation) => generation.restores.load(Ordering::Acquire),
            None => self.position.borrow().restored.0,
        }
    }

    /// Id of the last restore that was carried out.
    #[must_use]
    pub fn last_restore(&self) -> Option<[u8; 16]> {
        let (count, id) = self.position.borrow().restored;
        (count > 0).then_some(id)
    }

    /// Id of the restore that has begun and not ended.
    #[must_use]
    pub fn staged_restore(&self) -> Option<[u8; 16]> {
        self.position.borrow().staging
    }

    /// Resolves when [`State::restores`] is not `known`, with what it is. May be dropped.
    pub async fn restored(&self, known: u64) -> u64 {
        let mut position = self.position.subscribe();
        loop {
            let count = position.borrow_and_update().restored.0;
            if count != known {
                return count;
            }
            if position.changed().await.is_err() {
                // The sender is this state's own.
                std::future::pending().await
            }
        }
    }

    /// Log index up to which this node has applied; 0 before the first entry.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.position.borrow().applied.map_or(0, |id| id.index)
    }

    /// Log index up to which entries that this node applies may be seen here: ahead of [`State::applied`] while a batch is written.
    pub(crate) fn readable(&self) -> u64 {
        self.readable.load(Ordering::SeqCst)
    }

    /// Number of `Put` operations ever applied: the same on every node at the same index.
    #[must_use]
    pub fn put_count(&self) -> u64 {
        self.position.borrow().puts
    }

    /// What the database takes up; zeroes once it is closed.
    pub(crate) fn size(&self) -> rocks::DatabaseSize {
        self.db()
            .map_or_else(|_| Default::default(), |db| rocks::size(Kind::State, &db))
    }

    pub(crate) fn position(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    fn generation(&self) -> Result<Arc<Generation>, StateError> {
        self.live.load_full().ok_or(StateError::Closed)
    }

    fn db(&self) -> Result<Arc<DB>, StateError> {
        let live = self.live.load();
        let generation = live.as_ref().ok_or(StateError::Closed)?;
        Ok(Arc::clone(&generation.db))
    }

    /// Id of the last entry of the snapshot that the live generation was made from.
    pub(crate) fn installed(&self) -> io::Result<Option<LogId>> {
        let db = self.db().map_err(io::Error::other)?;
        let stored = db
            .get_cf(cf(&db, CF_META)?, META_INSTALLED)
            .map_err(io::Error::other)?;
        stored
            .filter(|bytes| !bytes.is_empty())
            .map(|bytes| LogIdProto::decode(&bytes[..]).map(LogId::from))
            .transpose()
            .map_err(|_| damaged("the installed log id"))
    }

    /// `name` in the data directory.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.dir.with_file_name(name)
    }

    /// Directories that hold this node's own table files: the live generation and the snapshots.
    pub(crate) fn table_dirs(&self) -> Vec<PathBuf> {
        let live = self.live.load();
        let live = live
            .as_ref()
            .map(|live| generation_dir(&self.dir, live.number));
        let kept = self.snapshots.all();
        let snapshots = kept.iter().map(|kept| kept.path.clone());
        live.into_iter().chain(snapshots).collect()
    }

    /// Installs the newest snapshot if the state is behind it: an installation that a crash has interrupted. Blocks.
    pub(crate) fn finish_install(&self) -> io::Result<()> {
        match self.snapshots.newest() {
            Some(newest) if newest.meta.last_log_id > self.position.borrow().applied => {
                let meta = newest.meta.clone();
                snapshot::install_now(self, &meta, SnapshotDir::Kept(newest))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Makes `changes` visible, all at once.
    fn commit(&self, view: &DbView, changes: &mut Changes) -> io::Result<()> {
        let live = self.live.load_full();
        let generation = live.ok_or_else(|| io::Error::other(StateError::Closed))?;
        let db = &generation.db;
        let old = self.position.borrow().clone();
        let mut position = old.clone();
        let unused = keys::staging(old.restored.0);
        let is_staged =
            |change: &Change| matches!(change, Change::Put { family, .. } if *family == unused);
        let stages = changes.list.iter().any(is_staged);
        // No reader is left behind there: whoever still knew that family as the live one reads again. Not together with what is staged
        // there in this very batch, whose files could go with the others.
        let clean = old.staging.is_none()
            && !stages
            && !changes.restored()
            && generation.leftovers.swap(false, Ordering::Relaxed);
        position.memory = *changes.memory_after(view);
        let mut batch = batch_of(db, changes, &mut position, clean.then_some(unused))?;
        let (before, after) = (index_of(&old), index_of(&position));
        lock(&generation.outcomes).sweep(db, &mut batch, &old, after)?;
        let restored = position.restored != old.restored;
        let live = keys::live(old.restored.0);
        let clears =
            |change: &Change| matches!(change, Change::Clear { family } if *family == live);
        debug_assert!(
            !changes.list.iter().any(clears),
            "emptied under its readers"
        );
        let writing = generation.rows.begin(&changes.list, live, restored);
        self.readable.fetch_max(after, Ordering::SeqCst);
        // After a failure nothing is written any more; the rows in the batch, and whatever shares their shards and is not kept yet, go on
        // being read from the database.
        db.write_opt(batch, &without_wal()).map_err(|error| {
            let advice = rocks::advice(&error);
            io::Error::other(format!("writing the state failed: {error}{advice}"))
        })?;
        generation
            .restores
            .store(position.restored.0, Ordering::Release);
        generation.rows.end(&changes.list, live, writing);
        generation.remember(changes);
        if clean {
            free_space(db, unused, &self.helpers)?;
        }
        if restored || (position.staging.is_none() && (old.staging.is_some() || stages)) {
            generation.leftovers.store(true, Ordering::Relaxed);
        }
        self.position.send_replace(position);
        if before / FLUSH_EVERY != after / FLUSH_EVERY {
            flush(db, false)?;
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
        // Should space be given back just now: the rest of it comes with the next restore.
        db.cancel_all_background_work(false);
        self.helpers.end();
        crate::log::drop_last(db, "state");
    }
}

/// Without [`State::close`] what is not flushed yet may be lost; the next start replays the log.
impl Drop for State {
    fn drop(&mut self) {
        if let Some(generation) = self.live.load().as_ref() {
            generation.db.cancel_all_background_work(false);
        }
        self.helpers.end();
    }
}

fn index_of(position: &Position) -> u64 {
    position.applied.map_or(0, |id| id.index)
}

/// What the state is before an apply batch; one for each.
struct DbView {
    generation: Arc<Generation>,
    memory: Memory,
}

impl View for DbView {
    /// Nothing is written between this and the commit, so the row that is kept is what the database has.
    fn mod_index(&self, family: &'static str, key: &[u8]) -> io::Result<Option<u64>> {
        if family == keys::live(self.restores()) {
            self.generation.mod_index(family, key)
        } else {
            index_in(stored(&self.generation.db, family, key)?.as_deref())
        }
    }

    fn restores(&self) -> u64 {
        self.generation.restores.load(Ordering::Acquire)
    }

    fn staging(&self) -> io::Result<Option<Staging>> {
        read_staging(&self.generation.db)
    }

    fn memory(&self) -> Memory {
        self.memory
    }

    fn remembered(&self, request: &[u8; 16]) -> io::Result<Option<Remembered>> {
        lock(&self.generation.outcomes).get(&self.generation.db, request)
    }
}

/// `clean`: a family to empty first.
fn batch_of(
    db: &DB,
    changes: &Changes,
    position: &mut Position,
    clean: Option<&'static str>,
) -> io::Result<WriteBatch> {
    let meta = cf(db, CF_META)?;
    let mut batch = WriteBatch::default();
    if let Some(family) = clean {
        clear(db, &mut batch, family, &[])?;
    }
    for (at, change) in changes.list.iter().enumerate() {
        match change {
            Change::Put {
                family,
                key,
                mod_index,
                value,
            } => batch.put_cf(
                cf(db, family)?,
                key,
                [&mod_index.to_be_bytes()[..], value].concat(),
            ),
            Change::Delete { family, key } => batch.delete_cf(cf(db, family)?, key),
            Change::Clear { family } => {
                clear(
                    db,
                    &mut batch,
                    family,
                    changes.list.get(..at).unwrap_or(&[]),
                )?;
            }
            Change::Staging(staging) => {
                position.staging = staging.map(|staging| staging.id);
                match staging {
                    Some(staging) => batch.put_cf(meta, META_STAGING, staging.encode()),
                    None => batch.delete_cf(meta, META_STAGING),
                }
            }
            Change::Restored { restores, id } => {
                position.restored = (*restores, *id);
                batch.put_cf(
                    meta,
                    META_RESTORED,
                    [&restores.to_be_bytes()[..], id].concat(),
                );
            }
            Change::Remember { request, outcome } => {
                let row = outcomes::encode(request, outcome);
                batch.put_cf(meta, keys::request_at(outcome.applied.index), row);
            }
            Change::Window => {
                batch.put_cf(meta, META_WINDOW, [1]);
                // Versions that would go on remembering in the old way must not open this state.
                let format = db.get_cf(meta, META_FORMAT).map_err(io::Error::other)?;
                let owner = format.as_deref().and_then(|format| format.get(4..));
                let owner = owner.ok_or_else(|| damaged("the format key"))?;
                let format = [&keys::WINDOW_FORMAT.to_be_bytes()[..], owner].concat();
                batch.put_cf(meta, META_FORMAT, format);
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
    if position.memory.window {
        batch.put_cf(meta, META_CLOCK, position.memory.clock_ms.to_be_bytes());
    }
    let puts = (position.puts + changes.puts).max(changes.puts_floor);
    if puts != position.puts {
        position.puts = puts;
        batch.put_cf(meta, META_PUT_COUNT, position.puts.to_be_bytes());
    }
    Ok(batch)
}

/// Empties `family`: what is stored there, and what `before` (earlier in the batch) has put there.
fn clear(
    db: &DB,
    batch: &mut WriteBatch,
    family: &'static str,
    before: &[Change],
) -> io::Result<()> {
    let handle = cf(db, family)?;
    let mut last: Option<Vec<u8>> = None;
    if let Some(item) = db.iterator_cf(handle, IteratorMode::End).next() {
        last = Some(item.map_err(io::Error::other)?.0.into_vec());
    }
    for change in before {
        if let Change::Put {
            family: of, key, ..
        } = change
            && *of == family
            && last.as_ref().is_none_or(|last| key[..] > last[..])
        {
            last = Some(key.to_vec());
        }
    }
    if let Some(last) = last {
        batch.delete_range_cf(handle, &[][..], &last[..]);
        batch.delete_cf(handle, &last);
    }
    Ok(())
}

/// Gives the disk space of an emptied family back. That it is empty must be durable before its files go.
fn free_space(db: &Arc<DB>, family: &'static str, helpers: &Helpers) -> io::Result<()> {
    flush(db, true)?;
    // Bounds beyond every key would do.
    db.delete_file_in_range_cf(cf(db, family)?, &[][..], &[0xff; 64][..])
        .map_err(io::Error::other)?;
    // Flushed files that nothing was merged with go only by being merged, and nothing is written here that would have it done.
    let theirs = Arc::clone(db);
    if let Err(error) = helpers.spawn("raft-free-space", move || merge(&theirs, family)) {
        tracing::warn!(%error, "what a restore has replaced takes room on the disk until the next one");
    }
    Ok(())
}

/// Merges all that is stored in `family`. Takes its time; closing ends it.
fn merge(db: &DB, family: &'static str) {
    // It was there a moment ago.
    let Ok(family) = cf(db, family) else { return };
    let mut options = CompactOptions::default();
    options.set_exclusive_manual_compaction(false);
    // Or files are only moved to the last level, with what deletes them beside them.
    options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
    db.compact_range_cf_opt(family, None::<&[u8]>, None::<&[u8]>, &options);
}

/// What the database has under `key` in `family`.
fn stored<'db>(
    db: &'db DB,
    family: &'static str,
    key: &[u8],
) -> io::Result<Option<DBPinnableSlice<'db>>> {
    let stored = db.get_pinned_cf_opt(cf(db, family)?, key, rocks::row());
    stored.map_err(io::Error::other)
}

fn index_in(stored: Option<&[u8]>) -> io::Result<Option<u64>> {
    let parts = stored.map(split_value).transpose()?;
    Ok(parts.map(|(mod_index, _)| mod_index))
}

/// Restores so far and the last one's id.
fn read_restored(db: &DB) -> io::Result<(u64, [u8; 16])> {
    let stored = db
        .get_pinned_cf(cf(db, CF_META)?, META_RESTORED)
        .map_err(io::Error::other)?;
    let Some(stored) = stored else {
        return Ok((0, [0; 16]));
    };
    let parts = stored
        .split_first_chunk()
        .and_then(|(count, id)| Some((u64::from_be_bytes(*count), id.try_into().ok()?)));
    parts.ok_or_else(|| damaged("the number of restores"))
}

/// Name of the live family in an opened database.
pub(crate) fn live_family(db: &DB) -> io::Result<&'static str> {
    Ok(keys::live(read_restored(db)?.0))
}

fn read_staging(db: &DB) -> io::Result<Option<Staging>> {
    let stored = db
        .get_pinned_cf(cf(db, CF_META)?, META_STAGING)
        .map_err(io::Error::other)?;
    stored
        .map(|stored| Staging::decode(&stored).ok_or_else(|| damaged("the restore under way")))
        .transpose()
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
    position.memory.window = read(META_WINDOW)?.is_some();
    if let Some(bytes) = read(META_CLOCK)? {
        position.memory.clock_ms = be_u64(&bytes).ok_or_else(|| damaged("the clock"))?;
    }
    position.restored = read_restored(db)?;
    position.staging = read_staging(db)?.map(|staging| staging.id);
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
    let families = [cf(db, CF_KV)?, cf(db, CF_KV_B)?, cf(db, CF_META)?];
    db.flush_cfs_opt(&families, &options)
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

/// Numbers of all generations in `dir`.
fn generations(dir: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("gen-"));
        found.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    Ok(found)
}

/// Removes what only a crash leaves: generations that are not the live one, a half-received snapshot.
fn sweep_leftovers(data: &Path, dir: &Path, live: u64) -> io::Result<()> {
    for number in generations(dir)? {
        if number != live {
            snapshot::remove_dir(&generation_dir(dir, number))?;
        }
    }
    snapshot::remove_dir(&data.join(keys::RECEIVE_DIR))
}

/// The commit point of a change of generation.
fn set_current(dir: &Path, number: u64) -> io::Result<()> {
    write_atomically(
        &dir.join(CURRENT_FILE),
        format!("gen-{number}\n").as_bytes(),
    )
}

#[cfg(test)]
pub(crate) mod tests;
