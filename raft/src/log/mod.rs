//! The Raft log on a RocksDB instance of its own.
//!
//! In: entries, votes and truncations from openraft, in order. Out: entries readable at once and durable soon, with a
//! callback when they are.
//!
//! Invariants
//! - Every change has a running number; changes reach the WAL in that order, so vote and entries are never reordered, and all
//!   changes up to some number are what a crash leaves.
//! - `append` returns when the entries can be read, before they are written; the flusher writes and syncs them on a thread of
//!   its own and completes the callback after. No thread that answers requests waits for the disk here.
//! - What is not written yet is in memory: the tail keeps every entry that may be, and what the database holds from the tail's
//!   first entry on does not count.
//! - After one failed write or sync, and after a leader has shown that acknowledged entries are gone, nothing is written any
//!   more.
//!
//! Source: openraft `docs/protocol/io_ordering`; Ongaro's dissertation §10.2.1 (the leader writes in parallel).

mod flusher;
pub(crate) mod record;
mod recover;
mod sizes;
mod storage;
mod tables;
mod trailer;
mod truncations;
mod witness;

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use openraft::{EntryPayload, storage::IOFlushed};
use prost::Message;
use rocksdb::{ColumnFamily, DB, Direction, IteratorMode, WriteBatch, WriteOptions};
use tokio::sync::oneshot;

pub(crate) use self::flusher::{Progress, Sync, lock};
use self::{
    flusher::{Flusher, Waiter},
    recover::Recovered,
    sizes::Sizes,
    trailer::{Summary, Trailer},
    truncations::Truncations,
    witness::Witness,
};
use crate::{
    error::{OpenError, REJOIN},
    fail,
    figures::figures,
    identity::{Identity, write_atomically},
    keys::{
        self, CF_LOG, CF_META, META_COMMITTED, META_FORMAT, META_PURGED, META_SCANNED,
        META_TRUNCATIONS, META_VOTE, SET_BACK_FILE,
    },
    proto::{LogIdProto, VoteProto},
    rocks::{self, Kind, cf},
    types::{Entry, LogId, Vote},
    vitals::SyncTimes,
};

/// Bytes of recent entries kept in memory: replication and apply normally never touch the disk.
const TAIL_BYTES: usize = 8 << 20;
/// Bytes that may wait to be written; the next append waits then.
const QUEUED_BYTES: usize = 32 << 20;
/// Bytes of entries given out at once; one entry is always given.
pub(crate) const CHUNK_BYTES: usize = 2 << 20;
/// Above this many entries a truncation uses a range tombstone, which slows later scans, instead of single ones.
const MAX_POINT_DELETES: u64 = 4096;

/// The Raft log. Clones share it.
#[derive(Clone)]
pub(crate) struct LogStore(Arc<Shared>);

struct Shared {
    path: PathBuf,
    flusher: Flusher,
    times: Arc<SyncTimes>,
    writer: Mutex<Writer>,
}

/// Everything that changes with a write.
struct Writer {
    /// `None` after close.
    db: Option<Arc<DB>>,
    now: Summary,
    committed: Option<LogId>,
    /// Index of the first entry there is or may be. openraft's log starts at 0; its storage suite starts elsewhere.
    first: u64,
    /// Number of the last change.
    batches: u64,
    /// Every entry up to here is in table files; the next start reads this one and what is behind it.
    scanned: u64,
    truncations: Truncations,
    /// Bytes appended in this run, and how many of them are in table files.
    appended: u64,
    moved: u64,
    tail: Tail,
    sizes: Sizes,
    /// Bytes purged and possibly still on the disk.
    purged_bytes: u64,
    /// Appends that may not be durable yet: (last index, number of the change), both ascending.
    pending: VecDeque<(u64, u64)>,
    /// Every entry up to here is durable.
    durable: Option<u64>,
}

/// The newest entries, contiguous up to the last.
#[derive(Default)]
struct Tail {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Tail {
    fn push(&mut self, entry: Entry) {
        self.bytes += cost(&entry);
        self.entries.push_back(entry);
    }

    /// Lets go of what is too much, as far as it is on the disk.
    fn shrink(&mut self, durable: Option<u64>) {
        while self.bytes > TAIL_BYTES
            && self.entries.len() > 1
            && self.first().is_some_and(|first| Some(first) <= durable)
        {
            self.pop_front();
        }
    }

    /// Index of the first entry.
    fn first(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.log_id.index)
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes = self.bytes.saturating_sub(cost(&entry));
        }
    }

    fn truncate_after(&mut self, next: u64) {
        while self
            .entries
            .back()
            .is_some_and(|entry| entry.log_id.index >= next)
        {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes = self.bytes.saturating_sub(cost(&entry));
            }
        }
    }

    fn purge(&mut self, upto: u64) {
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.log_id.index <= upto)
        {
            self.pop_front();
        }
    }

    /// Entries `start..end`, as many as fit in `max_bytes`; `None` if the tail does not reach back to `start`.
    fn read(&self, start: u64, end: u64, max_bytes: usize) -> Option<Vec<Entry>> {
        let first = self.first()?;
        let skip = usize::try_from(start.checked_sub(first)?).ok()?;
        let wanted = usize::try_from(end.saturating_sub(start)).ok()?;
        let mut bytes = 0;
        let entries = self
            .entries
            .iter()
            .skip(skip)
            .take(wanted)
            .take_while(|entry| {
                let fits = bytes == 0 || bytes + cost(entry) <= max_bytes;
                bytes += cost(entry);
                fits
            });
        Some(entries.cloned().collect())
    }
}

/// Approximate memory of an entry.
fn cost(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Normal(command) => command.0.len(),
        EntryPayload::Membership(membership) => 256 * membership.nodes().count(),
    };
    payload + size_of::<Entry>()
}

/// The families of the log's database.
struct Families<'a> {
    log: &'a ColumnFamily,
    meta: &'a ColumnFamily,
}

impl<'a> Families<'a> {
    fn of(db: &'a DB) -> io::Result<Self> {
        Ok(Self {
            log: cf(db, CF_LOG)?,
            meta: cf(db, CF_META)?,
        })
    }
}

impl Writer {
    fn db(&self) -> io::Result<Arc<DB>> {
        self.db
            .clone()
            .ok_or_else(|| io::Error::other("the log is closed"))
    }

    /// Has one change written after which the log is as `then` says, and tells `waiter` when it is durable; gives its number.
    fn write(
        &mut self,
        flusher: &Flusher,
        waiter: Option<Waiter>,
        then: Summary,
        fill: impl FnOnce(&Families<'_>, &mut WriteBatch),
    ) -> io::Result<u64> {
        let db = self.db()?;
        let families = Families::of(&db)?;
        let after = Trailer::new(self.batches + 1, &then);
        flusher.write(after, waiter, |batch| fill(&families, batch))?;
        self.batches = after.number;
        self.now = then;
        Ok(after.number)
    }

    /// Takes note of what has become durable.
    fn settle(&mut self, durable: u64) {
        while let Some((index, _)) = self
            .pending
            .front()
            .filter(|(_, number)| *number <= durable)
        {
            self.durable = self.durable.max(Some(*index));
            self.pending.pop_front();
        }
    }
}

/// Writes `batch`, not synced, whose last change leaves the log as `after` says.
fn write_batch(db: &DB, mut batch: WriteBatch, after: &Trailer) -> Result<(), String> {
    let meta = cf(db, CF_META).map_err(|error| error.to_string())?;
    after.put(meta, &mut batch);
    db.write_opt(batch, &WriteOptions::default())
        .map_err(|error| format!("{error}{}", rocks::advice(&error)))
}

/// See [`LogStore::set_back`].
fn check_not_set_back(path: &Path) -> Result<(), OpenError> {
    match std::fs::read_to_string(path.join(SET_BACK_FILE)) {
        Ok(why) => Err(OpenError::Damaged {
            path: path.to_owned(),
            why,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(OpenError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

impl LogStore {
    /// Opens the log of `identity` in `path`, creating it when there is none.
    pub(crate) fn open(path: &Path, identity: &Identity) -> Result<Self, OpenError> {
        Self::open_with(path, identity, |db| {
            Box::new(move || db.flush_wal(true).map_err(|error| error.to_string()))
        })
    }

    /// Like [`LogStore::open`], with another way to sync: tests make it slow or let it fail.
    pub(crate) fn open_with(
        path: &Path,
        identity: &Identity,
        sync: impl FnOnce(Arc<DB>) -> Sync,
    ) -> Result<Self, OpenError> {
        let read = |source| OpenError::Read {
            path: path.to_owned(),
            source,
        };
        check_not_set_back(path)?;
        let db = rocks::open(Kind::Log, path)?;
        let (witness, said) = Witness::open(path).map_err(read)?;
        let claimed = rocks::check_identity(Kind::Log, &db, path, identity)?;
        let found = recover::recover(&db, path, said)?;
        if !claimed && found.batches > 0 {
            return Err(OpenError::Damaged {
                path: path.to_owned(),
                why: "the log has entries but no format key".to_owned(),
            });
        }
        let db = Arc::new(db);
        let committed = recover::read_committed(&db).map_err(read)?;
        let mut writer = Writer::new(Arc::clone(&db), &found, committed);
        let durable = writer.begin(claimed, identity).map_err(read)?;
        // What was recovered must be durable before it is counted on: the last run may have died before its sync.
        db.flush_wal(true)
            .map_err(|error| read(io::Error::other(error)))?;
        witness.record(durable.number).map_err(read)?;
        let times = Arc::<SyncTimes>::default();
        let theirs = Arc::clone(&db);
        let write = Box::new(move |batch, after| write_batch(&theirs, batch, &after));
        let flusher =
            Flusher::start(write, sync(db), witness, durable, Arc::clone(&times)).map_err(read)?;
        Ok(Self(Arc::new(Shared {
            path: path.to_owned(),
            flusher,
            times,
            writer: Mutex::new(writer),
        })))
    }

    /// Where the database is.
    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    /// The leader has shown that entry `index`, which this node had acknowledged to it, is not there any more. Nothing is
    /// written behind that, the node ends, and does not start on these data again: its vote would count for what it has lost.
    pub(crate) fn set_back(&self, index: u64) {
        if self.0.flusher.progress().borrow().failed.is_some() {
            return;
        }
        let why = format!(
            "this node has acknowledged entry {index} to the leader and does not have it any more: its disk was set back to an \
             older state, or does not keep what it has synced"
        );
        // Without the mark the next start finds it out anew, as long as that leader leads.
        if let Err(error) = write_atomically(&self.0.path.join(SET_BACK_FILE), why.as_bytes()) {
            tracing::error!(%error, "the log could not be marked as set back");
        }
        self.0.flusher.fail(&format!("{why}. {REJOIN}"));
    }

    /// The last entry's id, or the last purged one's.
    pub(crate) fn last(&self) -> Option<LogId> {
        lock(&self.0.writer).now.last
    }

    /// The last entry that is not in the log any more because a snapshot covers it.
    pub(crate) fn purged(&self) -> Option<LogId> {
        lock(&self.0.writer).now.purged
    }

    /// Returns once everything that was written before is durable.
    ///
    /// # Errors
    /// When a sync has failed.
    pub(crate) async fn barrier(&self) -> io::Result<()> {
        let synced = {
            let writer = self.writer()?;
            let durable = self.0.flusher.progress().borrow().batches;
            (durable < writer.batches).then(|| self.0.flusher.sync())
        };
        match synced {
            None => Ok(()),
            Some(synced) => synced
                .await
                .map_err(|_| io::Error::other("the log was closed"))?,
        }
    }

    /// Id of the entry at `index`, if the log has it. Blocks.
    pub(crate) fn id_at(&self, index: u64) -> io::Result<Option<LogId>> {
        let db = {
            let writer = lock(&self.0.writer);
            if index < writer.first || writer.now.last.is_none_or(|last| last.index < index) {
                return Ok(None);
            }
            if let Some(entries) = writer.tail.read(index, index + 1, 0) {
                return Ok(entries.first().map(|entry| entry.log_id));
            }
            writer.db()?
        };
        let stored = db
            .get_cf(cf(&db, CF_LOG)?, keys::log(index))
            .map_err(io::Error::other)?;
        stored
            .map(|stored| Ok(record::decode(index, &stored)?.log_id))
            .transpose()
    }

    /// Whether there is neither an entry nor a vote.
    pub(crate) fn is_pristine(&self) -> bool {
        let writer = lock(&self.0.writer);
        writer.now.last.is_none() && writer.now.vote.is_none()
    }

    /// The newest vote, durable or about to be. Nobody is told of one before it is here.
    pub(crate) fn vote(&self) -> Option<Vote> {
        lock(&self.0.writer).now.vote
    }

    fn bounds(&self) -> (Option<LogId>, Option<LogId>) {
        let writer = lock(&self.0.writer);
        (writer.now.purged, writer.now.last)
    }

    /// The writer, unless a write or a sync has failed: what is written behind that could only mislead.
    fn writer(&self) -> io::Result<MutexGuard<'_, Writer>> {
        let failed = self.0.flusher.progress().borrow().failed.clone();
        match failed {
            Some(why) => Err(io::Error::other(why)),
            None => Ok(lock(&self.0.writer)),
        }
    }

    /// Returns once there is room for more that is to be written.
    async fn room(&self) -> io::Result<()> {
        if self.0.flusher.queued() <= QUEUED_BYTES {
            return Ok(());
        }
        // Looks again after every round.
        let roomy = |progress: &Progress| {
            progress.failed.is_some() || self.0.flusher.queued() <= QUEUED_BYTES
        };
        let mut progress = self.0.flusher.progress();
        let roomy = progress.wait_for(roomy).await;
        let failed = roomy
            .map_err(|_| io::Error::other("the log is closed"))?
            .failed
            .clone();
        failed.map_or(Ok(()), |why| Err(io::Error::other(why)))
    }

    fn append(
        &self,
        entries: Vec<Entry>,
        callback: IOFlushed<crate::types::TypeConfig>,
    ) -> io::Result<()> {
        // Not while holding the writer.
        let records: Vec<_> = entries
            .iter()
            .map(|entry| (keys::log(entry.log_id.index), record::encode(entry)))
            .collect();
        let durable = self.0.flusher.progress().borrow().batches;
        let mut writer = self.writer()?;
        let waiter = Some(Waiter::Append(callback));
        let was_empty = writer.now.last == writer.now.purged;
        let mut then = writer.now;
        then.last = entries.last().map(|entry| entry.log_id).or(then.last);
        let number = writer.write(&self.0.flusher, waiter, then, |families, batch| {
            for (key, record) in &records {
                batch.put_cf(families.log, key, record);
            }
        })?;
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            if was_empty {
                writer.first = first.log_id.index;
            }
            writer.pending.push_back((last.log_id.index, number));
        }
        figures().log_entries.increment(entries.len() as u64);
        for entry in entries {
            let bytes = u64::try_from(cost(&entry)).unwrap_or(u64::MAX);
            writer.sizes.append(entry.log_id.index, bytes);
            writer.appended += bytes;
            writer.tail.push(entry);
        }
        writer.settle(durable);
        let durable = writer.durable;
        writer.tail.shrink(durable);
        Ok(())
    }

    fn save_vote(&self, vote: &Vote) -> io::Result<oneshot::Receiver<io::Result<()>>> {
        let (tx, synced) = oneshot::channel();
        let mut writer = self.writer()?;
        let waiter = Some(Waiter::Sync(tx));
        let mut then = writer.now;
        then.vote = Some(*vote);
        writer.write(&self.0.flusher, waiter, then, |families, batch| {
            let vote = VoteProto::from(vote).encode_to_vec();
            batch.put_cf(families.meta, META_VOTE, vote);
        })?;
        Ok(synced)
    }

    fn save_committed(&self, committed: Option<&LogId>) -> io::Result<()> {
        let mut writer = self.writer()?;
        let then = writer.now;
        writer.write(
            &self.0.flusher,
            None,
            then,
            |families, batch| match committed {
                Some(id) => {
                    let id = LogIdProto::from(id).encode_to_vec();
                    batch.put_cf(families.meta, META_COMMITTED, id);
                }
                None => batch.delete_cf(families.meta, META_COMMITTED),
            },
        )?;
        writer.committed = committed.copied();
        Ok(())
    }

    fn committed(&self) -> Option<LogId> {
        lock(&self.0.writer).committed
    }

    fn truncate_after(&self, last: Option<LogId>) -> io::Result<()> {
        let mut writer = self.writer()?;
        let next = last.map_or(0, |id| id.index + 1);
        let end = writer.now.last.map_or(0, |id| id.index + 1);
        if next >= end {
            return Ok(());
        }
        let scanned = writer.scanned.min(next.saturating_sub(1));
        let mut then = writer.now;
        let behind = |last: &LogId| then.purged.is_none_or(|purged| last.index > purged.index);
        then.last = last.filter(behind).or(then.purged);
        then.truncations += 1;
        let mut truncations = writer.truncations;
        writer.write(
            &self.0.flusher,
            None,
            then,
            |Families { log, meta }, batch| {
                if end - next <= MAX_POINT_DELETES {
                    (next..end).for_each(|index| batch.delete_cf(log, keys::log(index)));
                } else {
                    batch.delete_range_cf(log, keys::log(next), keys::log(end));
                }
                // Entries written from here on are in no table file.
                batch.put_cf(meta, META_SCANNED, scanned.to_be_bytes());
                batch.put_cf(meta, META_TRUNCATIONS, then.truncations.to_be_bytes());
                truncations.add(then.truncations, meta, batch);
            },
        )?;
        writer.scanned = scanned;
        writer.truncations = truncations;
        writer.tail.truncate_after(next);
        writer.sizes.truncate_after(next.saturating_sub(1));
        let kept = next.checked_sub(1);
        writer.durable = writer.durable.min(kept);
        match kept {
            None => writer.pending.clear(),
            Some(kept) => {
                let appended = writer.pending.iter_mut();
                appended.for_each(|(index, _)| *index = (*index).min(kept));
            }
        }
        Ok(())
    }

    pub(crate) fn purge(&self, upto: LogId) -> io::Result<()> {
        let mut writer = self.writer()?;
        let first = writer.now.purged.map_or(0, |id| id.index + 1);
        if upto.index < first {
            return Ok(());
        }
        let mut then = writer.now;
        let kept = then.last.filter(|last| last.index > upto.index);
        then.last = kept.or(Some(upto));
        then.purged = Some(upto);
        writer.write(&self.0.flusher, None, then, |families, batch| {
            let id = LogIdProto::from(&upto).encode_to_vec();
            batch.put_cf(families.meta, META_PURGED, id);
            batch.delete_range_cf(families.log, keys::log(first), keys::log(upto.index + 1));
        })?;
        writer.first = upto.index + 1;
        writer.tail.purge(upto.index);
        let before = writer.sizes.after(first.saturating_sub(1));
        writer.purged_bytes += before.saturating_sub(writer.sizes.after(upto.index));
        writer.sizes.purge(upto.index);
        drop(writer);
        fail::point("purge-begun");
        Ok(())
    }

    /// Bytes of the entries after `index`, roughly.
    pub(crate) fn bytes_after(&self, index: u64) -> u64 {
        lock(&self.0.writer).sizes.after(index)
    }

    /// The lowest index after which the log has at most `bytes`, roughly.
    pub(crate) fn index_keeping(&self, bytes: u64) -> u64 {
        lock(&self.0.writer).sizes.keeping(bytes)
    }

    /// Entries from `start` on and before `end` that the log has: as many as fit in `max_bytes` and lie in one place, memory or
    /// disk, but at least one.
    ///
    /// # Errors
    /// A hole or a damaged record between the log's bounds.
    pub(crate) async fn read(
        &self,
        start: u64,
        end: u64,
        max_bytes: usize,
    ) -> io::Result<Vec<Entry>> {
        let (db, start, end) = {
            let writer = lock(&self.0.writer);
            let start = start.max(writer.first);
            let end = end.min(writer.now.last.map_or(0, |id| id.index + 1));
            if start >= end {
                return Ok(Vec::new());
            }
            if let Some(entries) = writer.tail.read(start, end, max_bytes) {
                return Ok(entries);
            }
            // What the tail has may be newer than what is written.
            let end = writer.tail.first().map_or(end, |first| end.min(first));
            (writer.db()?, start, end)
        };
        tokio::task::spawn_blocking(move || read_from_disk(&db, start, end, max_bytes))
            .await
            .map_err(io::Error::other)?
    }

    /// Returns once the entry at `index`, if it was appended here, is durable here.
    ///
    /// # Errors
    /// When a sync has failed.
    pub(crate) async fn wait_durable(&self, index: u64) -> io::Result<()> {
        let mut progress = self.0.flusher.progress();
        let wanted = {
            let writer = lock(&self.0.writer);
            let append = writer.pending.iter().find(|(last, _)| *last >= index);
            append.map_or(0, |(_, batch)| *batch)
        };
        let reached = progress
            .wait_for(|p| p.batches >= wanted || p.failed.is_some())
            .await
            .map_err(|_| io::Error::other("the log is closed"))?;
        match &reached.failed {
            Some(why) => Err(io::Error::other(why.clone())),
            None => Ok(()),
        }
    }

    /// How long syncs take.
    pub(crate) fn sync_times(&self) -> &SyncTimes {
        &self.0.times
    }

    /// What the database takes up; zeroes once it is closed.
    pub(crate) fn size(&self) -> rocks::DatabaseSize {
        // Not while holding the writer: RocksDB takes locks of its own.
        let db = lock(&self.0.writer).db.clone();
        db.map_or_else(Default::default, |db| rocks::size(Kind::Log, &db))
    }

    /// How far the log is durable, and whether a sync has failed.
    pub(crate) fn progress(&self) -> tokio::sync::watch::Receiver<Progress> {
        self.0.flusher.progress()
    }

    /// Syncs, moves everything to table files and closes the database; later calls fail. Blocks for the disk, and up to a few seconds
    /// for readers to finish.
    pub(crate) fn close(&self) {
        self.0.flusher.stop();
        let failed = self.0.flusher.progress().borrow().failed.is_some();
        let db = lock(&self.0.writer).db.take();
        if let Some(db) = db {
            if let Err(error) = db.flush_wal(true) {
                tracing::error!(%error, "the last sync of the Raft log failed");
            } else if !failed && let Err(error) = self.move_at_close(&db) {
                tracing::warn!(%error, "the Raft log was not moved to table files; the next start takes longer");
            }
            // Purged entries are reclaimed another time.
            db.cancel_all_background_work(false);
            drop_last(db, "log");
        }
    }
}

impl Writer {
    fn new(db: Arc<DB>, found: &Recovered, committed: Option<LogId>) -> Self {
        let now = found.summary;
        let first = now.purged.map_or(0, |id| id.index + 1);
        let sizes = now.last.map_or_else(Sizes::default, |last| {
            Sizes::new(first, last.index, stored_bytes(&db))
        });
        Self {
            db: Some(db),
            now,
            committed,
            first,
            batches: found.batches,
            scanned: 0,
            truncations: found.truncations,
            appended: 0,
            moved: 0,
            tail: Tail::default(),
            sizes,
            purged_bytes: 0,
            pending: VecDeque::new(),
            durable: now.last.map(|last| last.index),
        }
    }

    /// First change of a run: claims a new database, and marks how far the start-up scan went: what RocksDB has read from write-ahead
    /// logs is in table files by then. Purged entries whose removal was lost behind that of later ones go too.
    fn begin(&mut self, claimed: bool, identity: &Identity) -> io::Result<Trailer> {
        let scanned = self.now.last.map_or(0, |id| id.index);
        let first = Trailer::new(self.batches + 1, &self.now);
        let (db, mut batch) = (self.db()?, WriteBatch::default());
        let meta = cf(&db, CF_META)?;
        if !claimed {
            let value = keys::format_value(&identity.cluster_id, identity.raft_id);
            batch.put_cf(meta, META_FORMAT, value);
        }
        batch.put_cf(meta, META_SCANNED, scanned.to_be_bytes());
        self.truncations
            .begin(&db, self.now.truncations, &mut batch)?;
        let log = cf(&db, CF_LOG)?;
        if let Some(purged) = first_before(&db, log, keys::log(self.first))? {
            batch.delete_range_cf(log, &purged[..], &keys::log(self.first)[..]);
        }
        write_batch(&db, batch, &first)
            .map_err(|why| io::Error::other(format!("writing the Raft log failed: {why}")))?;
        self.batches = first.number;
        self.scanned = scanned;
        Ok(first)
    }
}

/// The first key of `log` before `end`.
fn first_before(db: &DB, log: &ColumnFamily, end: [u8; 8]) -> io::Result<Option<Box<[u8]>>> {
    let mut before = rocks::once();
    before.set_iterate_upper_bound(end);
    let mut found = db.iterator_cf_opt(log, before, IteratorMode::Start);
    let first = found.next().transpose().map_err(io::Error::other)?;
    Ok(first.map(|(key, _)| key))
}

fn read_from_disk(db: &DB, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut bytes = 0;
    let key = keys::log(start);
    let from = IteratorMode::From(&key, Direction::Forward);
    for (index, item) in (start..end).zip(db.iterator_cf_opt(cf(db, CF_LOG)?, rocks::once(), from))
    {
        let (key, value) = item.map_err(io::Error::other)?;
        if *key != keys::log(index) {
            return Err(io::Error::other(format!("log entry {index} is missing")));
        }
        bytes += value.len();
        if !entries.is_empty() && bytes > max_bytes {
            return Ok(entries);
        }
        entries.push(record::decode(index, &value)?);
    }
    if entries.is_empty() {
        return Err(io::Error::other(format!("log entry {start} is missing")));
    }
    Ok(entries)
}

/// What the log's entries take, roughly.
fn stored_bytes(db: &DB) -> u64 {
    let Ok(log) = cf(db, CF_LOG) else {
        return 0;
    };
    let of = |property: &str| db.property_int_value_cf(log, property).ok().flatten();
    [
        "rocksdb.estimate-live-data-size",
        "rocksdb.cur-size-all-mem-tables",
    ]
    .into_iter()
    .filter_map(of)
    .sum()
}

/// Drops the last reference to a database here and now, so that it is closed when this returns.
pub(crate) fn drop_last(db: Arc<DB>, what: &str) {
    let mut db = db;
    for _ in 0..500 {
        match Arc::try_unwrap(db) {
            Ok(last) => return drop(last),
            Err(shared) => db = shared,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    tracing::warn!("the {what} database is still being read; it closes when that ends");
}

/// All entries of an opened log database, in order; for inspection of a stopped node.
pub(crate) fn entries(db: &DB) -> io::Result<impl Iterator<Item = io::Result<Entry>> + '_> {
    let iterator = db.iterator_cf(cf(db, CF_LOG)?, IteratorMode::Start);
    Ok(iterator.map(|item| {
        let (key, value) = item.map_err(io::Error::other)?;
        let index = keys::be_u64(&key).ok_or_else(|| io::Error::other("a log key is malformed"))?;
        record::decode(index, &value)
    }))
}

#[cfg(test)]
mod tests;
