//! Start-up: proves that what RocksDB recovered is the whole log, or refuses it.
//!
//! In: the opened log database and its witness. Out: the log's bounds and vote.
//!
//! Invariants checked (each one alone would let a node forget what it promised)
//! - Entries are contiguous from `purged + 1` or the mark (`tables`), whole, and their leaders never go backwards.
//! - The vote is not older than the last entry: a node votes for a leader before it takes entries from it.
//! - Last entry, purge, truncations and vote are those that the last batch speaks of (`trailer`).
//! - Every truncation that is not in table files is there (`truncations`).
//! - No fewer write batches than the witness saw synced.

use std::{io, path::Path};

use prost::Message;
use rocksdb::{DB, Direction, IteratorMode};

use super::{
    record,
    trailer::{Summary, Trailer},
    truncations::Truncations,
    witness::Testimony,
};
use crate::{
    error::OpenError,
    keys::{
        self, CF_LOG, CF_META, META_BATCHES, META_COMMITTED, META_PURGED, META_SCANNED,
        META_TRUNCATIONS, META_VOTE, be_u64,
    },
    proto::{LogIdProto, VoteProto},
    rocks::{self, cf},
    types::{LogId, Vote},
};

/// What the log holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Recovered {
    pub(super) summary: Summary,
    /// Write batches ever written.
    pub(super) batches: u64,
    pub(super) truncations: Truncations,
}

/// Reads and checks the log.
pub(super) fn recover(db: &DB, path: &Path, said: Testimony) -> Result<Recovered, OpenError> {
    let damaged = |why: String| OpenError::Damaged {
        path: path.to_owned(),
        why,
    };
    let found = scan(db).map_err(|error| damaged(error.to_string()))?;
    if let Testimony::AtLeast(batches) = said
        && batches > found.batches
    {
        return Err(damaged(format!(
            "{} synced writes of the log are gone",
            batches - found.batches
        )));
    }
    if said == Testimony::Unreadable {
        tracing::warn!(
            path = %path.display(),
            "the log's witness file is damaged; whether the tail of the log is complete is not known"
        );
    }
    let entry_term = found.summary.last.map_or(0, |last| last.leader_id.term);
    let vote_term = found.summary.vote.map_or(0, |vote| vote.leader_id.term);
    if entry_term > vote_term {
        return Err(damaged(format!(
            "the last entry is of term {entry_term} but the vote of term {vote_term}"
        )));
    }
    Ok(found)
}

fn scan(db: &DB) -> io::Result<Recovered> {
    let purged = read_log_id(db, META_PURGED)?;
    let scanned = read_u64(db, META_SCANNED)?.unwrap_or(0);
    let first = purged.map_or(0, |id| id.index + 1);
    // Entries before the mark are in table files with their own checksums: an earlier start has checked and moved them
    // there, or the run that appended them. The entry at the mark itself is read again to tie both parts together.
    let from = first.max(scanned);
    let mut last = purged;
    let mut expected = from;
    let start = keys::log(from);
    for item in db.iterator_cf_opt(
        cf(db, CF_LOG)?,
        rocks::once(),
        IteratorMode::From(&start, Direction::Forward),
    ) {
        let (key, value) = item.map_err(io::Error::other)?;
        let index = be_u64(&key).ok_or_else(|| io::Error::other("a log key is malformed"))?;
        if index != expected {
            return Err(io::Error::other(format!(
                "log entries {expected} to {} are missing",
                index.saturating_sub(1)
            )));
        }
        let entry = record::decode(index, &value)?;
        if last.is_some_and(|last| entry.log_id.leader_id < last.leader_id) {
            return Err(io::Error::other(format!(
                "log entry {index} is of an older leader than the one before"
            )));
        }
        last = Some(entry.log_id);
        expected = index + 1;
    }
    if scanned > 0 && scanned >= first && last.is_none_or(|last| last.index < scanned) {
        return Err(io::Error::other(format!("log entry {scanned} is missing")));
    }
    let summary = Summary {
        vote: read_vote(db)?,
        purged,
        last,
        truncations: read_u64(db, META_TRUNCATIONS)?.unwrap_or(0),
    };
    let batches = read_u64(db, META_BATCHES)?.unwrap_or(0);
    if let Some(trailer) = Trailer::read(db, batches)? {
        trailer.check(&summary)?;
    }
    Ok(Recovered {
        summary,
        batches,
        truncations: Truncations::recover(db, summary.truncations)?,
    })
}

fn read_meta(db: &DB, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
    db.get_cf(cf(db, CF_META)?, key).map_err(io::Error::other)
}

fn read_u64(db: &DB, key: &[u8]) -> io::Result<Option<u64>> {
    read_meta(db, key)?
        .map(|bytes| be_u64(&bytes).ok_or_else(|| malformed(key)))
        .transpose()
}

fn read_log_id(db: &DB, key: &[u8]) -> io::Result<Option<LogId>> {
    read_meta(db, key)?
        .map(|bytes| {
            LogIdProto::decode(&bytes[..])
                .map(LogId::from)
                .map_err(|_| malformed(key))
        })
        .transpose()
}

fn read_vote(db: &DB) -> io::Result<Option<Vote>> {
    read_meta(db, META_VOTE)?
        .map(|bytes| {
            VoteProto::decode(&bytes[..])
                .map(Vote::from)
                .map_err(|_| malformed(META_VOTE))
        })
        .transpose()
}

/// Id of the last entry known to be committed when it was written; may lag.
pub(crate) fn read_committed(db: &DB) -> io::Result<Option<LogId>> {
    read_log_id(db, META_COMMITTED)
}

fn malformed(key: &[u8]) -> io::Error {
    io::Error::other(format!("`{}` is malformed", String::from_utf8_lossy(key)))
}
