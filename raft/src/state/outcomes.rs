//! Outcomes of recent commands by request id: rows on disk, and an index of them in memory.
//!
//! On disk there is one row per command, by log index: rows are written in ascending order and leave in ranges, which
//! costs the database least. Every command is looked up by its id before it is applied, so half of each id is in memory,
//! with the index of its row; only a command that is a repetition (or looks like one) costs a read.
//!
//! Invariants
//! - Whether a row counts is for the reader to say ([`Remembered::holds`]): forgotten ones may still be here.
//! - Only rows that no later entry can remember are removed, in the batch that moves the state past them.
//! - Opening a state does not wait for its rows to be read; the first command does.

use std::{collections::HashMap, io, sync::Arc, thread::JoinHandle};

use quick_cache::DefaultHashBuilder;
use rocksdb::{DB, Direction, IteratorMode, ReadOptions, WriteBatch};

use super::{
    Position,
    apply::{REMEMBERED_ENTRIES, Remembered, WINDOW_ENTRIES},
    damaged, index_of, without_wal,
};
use crate::{
    command::{Applied, Outcome},
    keys::{self, CF_META, be_u64},
    rocks::{self, cf},
};

/// Forgotten rows are looked for whenever this many entries have been applied …
const SWEEP_EVERY: u64 = 4096;
/// … and at most this many of them are removed then.
const SWEEP_ROWS: usize = 4 * 4096;
const ID: usize = 16;

/// First half of a request id → log index of the last command with such an id.
type Index = HashMap<u64, u64, DefaultHashBuilder>;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    index: Index,
    /// Reads the rows that were there when the state was opened.
    loading: Option<JoinHandle<io::Result<Index>>>,
    /// Every row below is removed.
    swept: u64,
}

fn half(request: &[u8; ID]) -> u64 {
    let (half, _) = request.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    u64::from_be_bytes(*half)
}

/// RocksDB must not be in use when a process ends. What was read does not matter any more, nor whether that worked.
impl Drop for Outcomes {
    fn drop(&mut self) {
        if let Some(loading) = self.loading.take()
            && loading.join().is_err()
        {
            tracing::error!("{}", panicked());
        }
    }
}

impl Outcomes {
    /// What `db`, which has applied up to `applied`, remembers. Rows of the first layout are rewritten.
    pub(super) fn open(db: &Arc<DB>, applied: u64) -> io::Result<Self> {
        rewrite_first_layout(db, applied)?;
        let swept = (applied + 1).saturating_sub(REMEMBERED_ENTRIES.max(WINDOW_ENTRIES));
        let theirs = Arc::clone(db);
        let loading = std::thread::Builder::new()
            .name("raft-outcomes".to_owned())
            .spawn(move || load(&theirs, swept, applied))?;
        Ok(Self {
            index: Index::default(),
            loading: Some(loading),
            swept,
        })
    }

    fn loaded(&mut self) -> io::Result<&mut Index> {
        if let Some(loading) = self.loading.take() {
            let loaded = loading.join().map_err(|_| panicked())??;
            // What has been remembered meanwhile is newer.
            let newer = std::mem::replace(&mut self.index, loaded);
            self.index.extend(newer);
        }
        Ok(&mut self.index)
    }

    /// What came of the last command with this id; it may be forgotten.
    pub(super) fn get(&mut self, db: &DB, request: &[u8; ID]) -> io::Result<Option<Remembered>> {
        let Some(index) = self.loaded()?.get(&half(request)).copied() else {
            return Ok(None);
        };
        let row = db
            .get_pinned_cf(cf(db, CF_META)?, keys::request_at(index))
            .map_err(io::Error::other)?;
        let Some(row) = row else {
            return Ok(None);
        };
        let (id, outcome) = decode(index, &row)?;
        Ok((id == *request).then_some(outcome))
    }

    pub(super) fn remember(&mut self, request: &[u8; ID], index: u64) {
        self.index.insert(half(request), index);
    }

    /// Adds the removal of forgotten rows to `batch`, now and then; it moves the state from `old` to entry `after`.
    pub(super) fn sweep(
        &mut self,
        db: &DB,
        batch: &mut WriteBatch,
        old: &Position,
        after: u64,
    ) -> io::Result<()> {
        let before = index_of(old);
        if before / SWEEP_EVERY == after / SWEEP_EVERY {
            return Ok(());
        }
        let meta = cf(db, CF_META)?;
        let first = keys::request_at(self.swept);
        let end = keys::request_at(before);
        let mut next = self.swept;
        let from = IteratorMode::From(&first, Direction::Forward);
        let rows = db.iterator_cf_opt(meta, rocks::once(), from);
        for item in rows.take(SWEEP_ROWS) {
            let (key, row) = item.map_err(io::Error::other)?;
            if *key >= end[..] {
                break;
            }
            let index = keys::request_index(&key).ok_or_else(|| damaged("a request's index"))?;
            let (id, outcome) = decode(index, &row)?;
            if outcome.holds(before, old.memory) {
                break;
            }
            let known = self.loaded()?;
            if known.get(&half(&id)) == Some(&index) {
                known.remove(&half(&id));
            }
            next = index + 1;
        }
        if next > self.swept {
            // From the very first: what an earlier run has left goes too.
            batch.delete_range_cf(meta, keys::request_at(0), keys::request_at(next));
            self.swept = next;
        }
        Ok(())
    }
}

/// The rows from index `from` to index `applied`, nearly a million after long work: half of them are read by another thread.
fn load(db: &DB, from: u64, applied: u64) -> io::Result<Index> {
    let end = applied.saturating_add(1);
    // There may be far fewer: they go by time too.
    let mut first = None;
    read(db, from, end, |_, index| {
        first = Some(index);
        false
    })?;
    let Some(first) = first else {
        return Ok(Index::default());
    };
    let middle = first.midpoint(end);
    std::thread::scope(|scope| {
        let newer = || {
            let mut found = Vec::new();
            read(db, middle, end, |id, index| {
                found.push((half(&id), index));
                true
            })?;
            io::Result::Ok(found)
        };
        let other = std::thread::Builder::new()
            .name("raft-outcomes-2".to_owned())
            .spawn_scoped(scope, newer);
        let rows = usize::try_from(end.saturating_sub(first)).unwrap_or(0);
        let mut found = Index::with_capacity_and_hasher(rows, DefaultHashBuilder::default());
        read(db, first, middle, |id, index| {
            found.insert(half(&id), index);
            true
        })?;
        found.extend(match other {
            Ok(other) => other.join().map_err(|_| panicked())??,
            // No more threads: it takes longer.
            Err(_) => newer()?,
        });
        Ok(found)
    })
}

fn panicked() -> io::Error {
    io::Error::other("reading remembered requests panicked")
}

/// Gives `take` the request id and the log index of every row from index `from` on and before `end`, in order, for as long as it
/// wants more.
fn read(
    db: &DB,
    from: u64,
    end: u64,
    mut take: impl FnMut([u8; ID], u64) -> bool,
) -> io::Result<()> {
    let end = keys::request_at(end);
    // None is copied.
    let mut rows = db.raw_iterator_cf_opt(cf(db, CF_META)?, rocks::once());
    rows.seek(keys::request_at(from));
    while let Some((key, row)) = rows.item().filter(|(key, _)| *key < &end[..]) {
        let index = keys::request_index(key).ok_or_else(|| damaged("a request's index"))?;
        let (id, _) = decode(index, row)?;
        if !take(id, index) {
            break;
        }
        rows.next();
    }
    rows.status().map_err(io::Error::other)
}

/// An early version kept the outcome under the request id, and the id alone under the index.
fn rewrite_first_layout(db: &DB, applied: u64) -> io::Result<()> {
    let meta = cf(db, CF_META)?;
    let mut options = ReadOptions::default();
    options.set_iterate_range(keys::request(&[0; ID])..keys::request(&[0xff; ID]));
    let mut any = false;
    for item in db.iterator_cf_opt(meta, options, IteratorMode::Start) {
        let (key, _) = item.map_err(io::Error::other)?;
        // Other bookkeeping has names that begin with the same letter.
        any = key.len() == ID + 1;
        if any {
            break;
        }
    }
    if !any {
        return Ok(());
    }
    let first = keys::request_at((applied + 1).saturating_sub(REMEMBERED_ENTRIES));
    let end = keys::request_at(applied.saturating_add(1));
    let mut rewritten = WriteBatch::default();
    for item in db.iterator_cf(meta, IteratorMode::From(&first, Direction::Forward)) {
        let (key, value) = item.map_err(io::Error::other)?;
        if *key >= end[..] {
            break;
        }
        let Ok(id) = <[u8; ID]>::try_from(&value[..]) else {
            continue;
        };
        let stored = db
            .get_pinned_cf(meta, keys::request(&id))
            .map_err(io::Error::other)?;
        let stored = stored.ok_or_else(|| damaged("a remembered outcome"))?;
        let applied = decode_first(&stored)?;
        let remembered = Remembered {
            applied,
            at_ms: None,
        };
        rewritten.put_cf(meta, &key, encode(&id, &remembered));
    }
    if !rewritten.is_empty() {
        rewritten.delete_range_cf(meta, keys::request(&[0; ID]), keys::request(&[0xff; ID]));
        rewritten.delete_cf(meta, keys::request(&[0xff; ID]));
        db.write_opt(rewritten, &without_wal())
            .map_err(io::Error::other)?;
    }
    Ok(())
}

/// The row of a command, under its log index: `request id 16 | outcome u8 | op u32 BE`, and since requests are remembered
/// by time `| milliseconds u64 BE`.
pub(super) fn encode(request: &[u8; ID], remembered: &Remembered) -> Vec<u8> {
    let (outcome, op) = match remembered.applied.outcome {
        Outcome::Applied => (0u8, 0),
        Outcome::CheckFailed { op } => (1, op),
        Outcome::Superseded => (2, 0),
    };
    let time = remembered.at_ms.map(u64::to_be_bytes);
    [
        &request[..],
        &[outcome],
        &op.to_be_bytes(),
        time.as_ref().map_or(&[], |time| &time[..]),
    ]
    .concat()
}

fn decode(index: u64, row: &[u8]) -> io::Result<([u8; ID], Remembered)> {
    let parts = row
        .split_first_chunk::<ID>()
        .and_then(|(id, rest)| Some((id, rest.split_first_chunk::<1>()?)))
        .and_then(|(id, (kind, rest))| Some((id, kind, rest.split_first_chunk::<4>()?)));
    let Some((id, &[kind], (&op, time))) = parts else {
        return Err(damaged("a remembered outcome"));
    };
    let outcome = decode_outcome(kind, op)?;
    let at_ms = match time {
        [] => None,
        time => Some(be_u64(time).ok_or_else(|| damaged("a remembered outcome"))?),
    };
    let applied = Applied { index, outcome };
    Ok((*id, Remembered { applied, at_ms }))
}

/// `index u64 BE | outcome u8 | op u32 BE`, as an early version stored an outcome under its request id.
fn decode_first(stored: &[u8]) -> io::Result<Applied> {
    let parts = stored
        .split_first_chunk::<8>()
        .and_then(|(index, rest)| Some((index, rest.split_first_chunk::<1>()?)))
        .and_then(|(index, (kind, op))| Some((index, kind, <[u8; 4]>::try_from(op).ok()?)));
    let Some((index, &[kind], op)) = parts else {
        return Err(damaged("a remembered outcome"));
    };
    Ok(Applied {
        index: u64::from_be_bytes(*index),
        outcome: decode_outcome(kind, op)?,
    })
}

/// `outcome u8 | op u32 BE`.
fn decode_outcome(kind: u8, op: [u8; 4]) -> io::Result<Outcome> {
    match kind {
        0 => Ok(Outcome::Applied),
        1 => Ok(Outcome::CheckFailed {
            op: u32::from_be_bytes(op),
        }),
        2 => Ok(Outcome::Superseded),
        _ => Err(damaged("a remembered outcome")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_survives_and_nothing_else_is_taken_for_one() {
        for outcome in [
            Outcome::Applied,
            Outcome::CheckFailed { op: 77 },
            Outcome::Superseded,
        ] {
            for at_ms in [None, Some(5)] {
                let applied = Applied { index: 12, outcome };
                let remembered = Remembered { applied, at_ms };
                let row = encode(&[7; 16], &remembered);
                assert_eq!(decode(12, &row).unwrap(), ([7; 16], remembered));
                // Without its time it is one from before there were times.
                for len in (0..row.len()).filter(|len| *len != 21) {
                    assert!(decode(12, &row[..len]).is_err());
                }
                assert!(decode(12, &[&row[..], &[0]].concat()).is_err());
            }
        }
        assert!(decode(1, &[&[0; 16][..], &[3, 0, 0, 0, 0]].concat()).is_err());
    }

    #[test]
    fn every_row_is_loaded_once_whichever_half_it_lies_in() {
        let dir = tempfile::tempdir().unwrap();
        let db = rocks::open(rocks::Kind::State, dir.path()).unwrap();
        let meta = cf(&db, CF_META).unwrap();
        let remembered = |index| Remembered {
            applied: Applied {
                index,
                outcome: Outcome::Applied,
            },
            at_ms: Some(1),
        };
        // Each id five times over, in both halves: the last one counts.
        let id = |index: u64| u128::from(index % 200).reverse_bits().to_be_bytes();
        for index in 50..1000 {
            let row = encode(&id(index), &remembered(index));
            db.put_cf_opt(meta, keys::request_at(index), row, &without_wal())
                .unwrap();
        }
        for (from, applied) in [
            (0, 999),
            (100, 899),
            (950, 960),
            (7, 7),
            (0, 2000),
            (5000, 4999),
        ] {
            let want: Index = (from.max(50)..=applied.min(999))
                .map(|index| (half(&id(index)), index))
                .collect();
            assert_eq!(load(&db, from, applied).unwrap(), want, "{from} {applied}");
        }
        db.put_cf_opt(meta, keys::request_at(700), b"short", &without_wal())
            .unwrap();
        assert!(load(&db, 0, 999).is_err());
        assert!(load(&db, 0, 699).is_ok());
    }
}
