//! Table files: when the log's entries are moved there, and how purged ones give their disk back.
//!
//! In: entries in RocksDB's memory and write-ahead logs. Out: the same entries in table files, a mark that spares the next
//! start reading them, less disk.
//!
//! RocksDB moves rows by itself when a family's memory is full, which bounds its write-ahead logs, but does not say how far it got:
//! a start would have to read all entries of the last run again.
//!
//! Invariants
//! - The mark (row `scanned`) is written when everything up to it is in table files that the synced manifest names.
//! - A truncation takes it back in the same change; one that came meanwhile keeps it from being written.

use std::{io, time::Duration};

use rocksdb::{CompactOptions, DB, FlushOptions, WriteBatch};
use tokio::time::sleep;

use super::{LogStore, Writer, lock, trailer::Trailer, write_batch};
use crate::{
    fail,
    keys::{self, CF_LOG, CF_META, META_SCANNED},
    rocks::{self, cf},
};

/// Entries of so many bytes are moved to table files: about as many has a start after a crash to replay and to check.
const MOVE_BYTES: u64 = 16 << 20;
/// How often that is looked at.
const TICK: Duration = Duration::from_millis(200);
/// After a failure.
const RETRY: Duration = Duration::from_secs(15);
/// Purged entries of fewer bytes than this are left to RocksDB's own compactions.
const RECLAIM_BYTES: u64 = 8 << 20;

/// What the log held when a move to table files began.
struct Moving {
    last: u64,
    appended: u64,
    truncations: u64,
}

impl Moving {
    /// Takes note of it.
    fn begin(writer: &Writer) -> Self {
        Self {
            last: writer.now.last.map_or(0, |id| id.index),
            appended: writer.appended,
            truncations: writer.now.truncations,
        }
    }

    /// The new mark, if there is one, now that the move is over.
    fn mark(&self, writer: &Writer) -> Option<u64> {
        let is_new = self.truncations == writer.now.truncations && self.last > writer.scanned;
        is_new.then_some(self.last)
    }
}

impl LogStore {
    /// Keeps what is not in table files small, for ever.
    pub(crate) async fn keep_moving_to_tables(self) {
        loop {
            sleep(TICK).await;
            let is_much = {
                let writer = lock(&self.0.writer);
                writer.appended - writer.moved >= MOVE_BYTES
            };
            if is_much && let Err(error) = self.move_to_tables().await {
                tracing::warn!(%error, "the Raft log was not moved to table files");
                sleep(RETRY).await;
            }
        }
    }

    /// Moves everything to table files and marks it for the next start. Takes its time.
    ///
    /// # Errors
    /// When the disk fails; nothing is lost, and the mark is where it was.
    pub(super) async fn move_to_tables(&self) -> io::Result<()> {
        let moving = Moving::begin(&*self.writer()?);
        // What is not even written cannot be moved.
        self.barrier().await?;
        fail::point("move-synced");
        let db = self.writer()?.db()?;
        tokio::task::spawn_blocking(move || flush(&db))
            .await
            .map_err(io::Error::other)??;
        fail::point("move-moved");
        let mut writer = self.writer()?;
        writer.moved = writer.moved.max(moving.appended);
        if let Some(mark) = moving.mark(&writer) {
            let (then, mut truncations) = (writer.now, writer.truncations);
            writer.write(&self.0.flusher, None, then, |families, batch| {
                batch.put_cf(families.meta, META_SCANNED, mark.to_be_bytes());
                truncations.forget(moving.truncations, families.meta, batch);
            })?;
            writer.scanned = mark;
            writer.truncations = truncations;
        }
        drop(writer);
        fail::point("move-marked");
        Ok(())
    }

    /// Like [`LogStore::move_to_tables`], when the flusher has ended and everything is synced. Blocks.
    pub(super) fn move_at_close(&self, db: &DB) -> io::Result<()> {
        // Nobody writes any more, but others may want to know something.
        let (mark, after, moving, mut truncations) = {
            let writer = lock(&self.0.writer);
            let moving = Moving::begin(&writer);
            let after = Trailer::new(writer.batches + 1, &writer.now);
            (moving.mark(&writer), after, moving, writer.truncations)
        };
        let Some(mark) = mark else {
            return Ok(());
        };
        if would_wait(db) {
            return Ok(());
        }
        flush(db)?;
        fail::point("close-moved");
        let (meta, mut batch) = (cf(db, CF_META)?, WriteBatch::default());
        batch.put_cf(meta, META_SCANNED, mark.to_be_bytes());
        truncations.forget(moving.truncations, meta, &mut batch);
        write_batch(db, batch, &after).map_err(io::Error::other)?;
        fail::point("close-marked");
        db.flush_wal(true).map_err(io::Error::other)
    }

    /// Gives the disk back what purged entries took, if that is worth the work. Takes its time.
    ///
    /// # Errors
    /// When the disk fails. The entries are purged all the same.
    pub(crate) async fn reclaim(&self) -> io::Result<()> {
        let upto = {
            let mut writer = lock(&self.0.writer);
            let Some(upto) = writer
                .now
                .purged
                .filter(|_| writer.purged_bytes >= RECLAIM_BYTES)
            else {
                return Ok(());
            };
            writer.purged_bytes = 0;
            upto.index
        };
        // Files go at once, records of the write-ahead log only with a sync: without this a crash could leave a log that
        // claims to begin where there is nothing any more.
        self.move_to_tables().await?;
        fail::point("purge-synced");
        let db = lock(&self.0.writer).db()?;
        tokio::task::spawn_blocking(move || reclaim(&db, upto))
            .await
            .map_err(io::Error::other)?
    }
}

/// Both families at one instant, or the write-ahead logs stay.
fn flush(db: &DB) -> io::Result<()> {
    let families = [cf(db, CF_LOG)?, cf(db, CF_META)?];
    db.flush_cfs_opt(&families, &FlushOptions::default())
        .map_err(io::Error::other)
}

/// Whether RocksDB might put a flush off until a compaction has ended, which may take longer than an end should. It does so at three
/// times as many files; some come before it is asked.
fn would_wait(db: &DB) -> bool {
    let files = |family| {
        let found = db.property_value_cf(cf(db, family).ok()?, "rocksdb.num-files-at-level0");
        found.ok().flatten()?.parse::<i32>().ok()
    };
    [CF_LOG, CF_META]
        .into_iter()
        .any(|family| files(family).is_none_or(|files| files >= 2 * rocks::FLUSHED_FILES))
}

/// Table files that hold nothing but purged entries are deleted as they are; the rest is compacted.
fn reclaim(db: &DB, upto: u64) -> io::Result<()> {
    let log = cf(db, CF_LOG)?;
    db.delete_file_in_range_cf(log, keys::log(0), keys::log(upto))
        .map_err(io::Error::other)?;
    fail::point("purge-files");
    let mut options = CompactOptions::default();
    options.set_exclusive_manual_compaction(false);
    db.compact_range_cf_opt(
        log,
        Some(keys::log(0)),
        Some(keys::log(upto.saturating_add(1))),
        &options,
    );
    fail::point("purge-reclaimed");
    Ok(())
}
