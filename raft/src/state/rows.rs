//! Rows of the live family that were read lately, so that most readers need neither the disk nor another thread.
//!
//! Rows, and not the blocks of files that RocksDB would keep: stored names are encrypted, so a row that is read often lies anywhere
//! among those that never are.
//!
//! Invariants
//! - What is found here is never behind the database, nor ahead of it: while a batch is written, the rows in it go on being read from
//!   there. A value that is cached under its log index could otherwise be taken for the newest when a newer one can be read
//!   already, and what is put together from several rows under one such index could be a mix.
//! - What a reader finds in the database is kept only if no batch that touches the row's shard was begun or ended since the reader
//!   looked here: it could be what was there before.
//! - After a write that failed, the shards of its rows take nothing more in: nobody can say what the database has.
//! - At most [`CAPACITY`] bytes, as far as that can be reckoned.

use std::{
    array,
    hash::BuildHasher as _,
    sync::{PoisonError, RwLock, RwLockWriteGuard},
};

use bytes::Bytes;
use quick_cache::{DefaultHashBuilder, Weighter, unsync};

use super::apply::Change;

/// What is stored under a key, with the log index of its last write; `None`: nothing.
pub(super) type Row = Option<(u64, Bytes)>;

/// A hundred and thirty thousand values of 256 bytes. With many small rows first and large ones later, half as much again: the tables do
/// not shrink.
const CAPACITY: u64 = 64 << 20;
/// Of a larger value only the index of its write is kept: it would take the place of hundreds, and handing a read to another thread is
/// the least of what it costs.
const LARGEST: usize = 64 << 10;
/// What a row takes besides key and value, bytes, roughly.
const OVERHEAD: usize = 192;
/// Readers wait for a writer in one of them; a bit each in [`Writing`].
const SHARDS: usize = 64;
const _: () = assert!(SHARDS <= u64::BITS as usize);

/// See the module's description.
pub(super) struct Rows {
    shards: [RwLock<Shard>; SHARDS],
    hasher: DefaultHashBuilder,
}

struct Shard {
    rows: unsync::Cache<Box<[u8]>, Known, Weight>,
    /// Batches that have begun or ended to be written, of those that touch this shard: odd while one is.
    writes: u64,
}

#[derive(PartialEq, Eq)]
enum Known {
    /// Nothing too: clients ask again for what is not there yet.
    Is(Row),
    /// The log index of the write of a large value.
    Large(u64),
    /// In the batch that is being written.
    Changing,
}

impl Known {
    /// A copy: `value` is a piece of a block, or of an entry's megabytes.
    fn of(row: Option<(u64, &[u8])>) -> Self {
        match row {
            Some((index, value)) if value.len() > LARGEST => Self::Large(index),
            row => Self::Is(row.map(|(index, value)| (index, Bytes::copy_from_slice(value)))),
        }
    }
}

struct Weight;

impl Weighter<Box<[u8]>, Known> for Weight {
    fn weight(&self, key: &Box<[u8]>, known: &Known) -> u64 {
        let value = match known {
            Known::Is(Some((_, value))) => value.len(),
            Known::Is(None) | Known::Large(_) | Known::Changing => 0,
        };
        (key.len() + value + OVERHEAD)
            .try_into()
            .unwrap_or(u64::MAX)
    }
}

/// What a look gives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look<T> {
    Here(T),
    /// The database has it. With the ticket what it says may be kept.
    Elsewhere(Ticket),
}

/// [`Shard::writes`] when a reader looked; `None`: what it finds is not to be kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ticket(Option<u64>);

/// A batch that is being written.
#[must_use]
pub(super) struct Writing {
    /// Its shards, a bit each.
    touched: u64,
    /// Which of its changes are to rows that were here.
    hits: Vec<usize>,
}

impl Default for Rows {
    fn default() -> Self {
        let hasher = DefaultHashBuilder::default();
        let shard = |_| {
            RwLock::new(Shard {
                rows: unsync::Cache::with(
                    (CAPACITY / 512) as usize / SHARDS,
                    CAPACITY / SHARDS as u64,
                    Weight,
                    hasher.clone(),
                    unsync::DefaultLifecycle::default(),
                ),
                writes: 0,
            })
        };
        Self {
            shards: array::from_fn(shard),
            hasher,
        }
    }
}

impl Rows {
    /// Number of the shard of `key`, and the shard itself.
    fn shard(&self, key: &[u8]) -> (usize, &RwLock<Shard>) {
        // Not of the bits that the shard's own table goes by, which hashes in the same way.
        let at = (self.hasher.hash_one(key) >> 32) as usize % SHARDS;
        #[expect(clippy::indexing_slicing, reason = "a remainder")]
        (at, &self.shards[at])
    }

    /// `take`: what is wanted of what is known, if that is enough.
    fn look<T>(&self, key: &[u8], take: impl FnOnce(&Known) -> Option<T>) -> Look<T> {
        let (_, shard) = self.shard(key);
        let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = shard.rows.get(key) else {
            let writes = Some(shard.writes).filter(|writes| writes.is_multiple_of(2));
            return Look::Elsewhere(Ticket(writes));
        };
        take(known).map_or(Look::Elsewhere(Ticket(None)), Look::Here)
    }

    /// The row under `key`.
    pub(super) fn get(&self, key: &[u8]) -> Look<Row> {
        self.look(key, |known| match known {
            Known::Is(row) => Some(row.clone()),
            Known::Large(_) | Known::Changing => None,
        })
    }

    /// Log index of the last write of `key`; `None`: nothing is stored there.
    pub(super) fn mod_index(&self, key: &[u8]) -> Look<Option<u64>> {
        self.look(key, |known| match known {
            Known::Is(row) => Some(row.as_ref().map(|(index, _)| *index)),
            Known::Large(index) => Some(Some(*index)),
            Known::Changing => None,
        })
    }

    /// Keeps what a reader with `ticket` has found in the database. `is_live`: whether the family that it read is still the live one,
    /// asked for when no batch can begin or end to be written meanwhile.
    pub(super) fn keep(
        &self,
        key: &[u8],
        ticket: &Ticket,
        row: Option<(u64, &[u8])>,
        is_live: impl FnOnce() -> bool,
    ) {
        let Some(writes) = ticket.0 else { return };
        let known = Known::of(row);
        let (_, shard) = self.shard(key);
        let mut shard = write(shard);
        if shard.writes == writes && is_live() {
            shard.rows.insert(key.into(), known);
        }
    }

    /// Before `changes` are written. `live`: the family that is live now. `restored`: they make the other one live.
    pub(super) fn begin(&self, changes: &[Change], live: &str, restored: bool) -> Writing {
        let mut writing = Writing {
            touched: 0,
            hits: Vec::new(),
        };
        if restored {
            for shard in &self.shards {
                let mut shard = write(shard);
                shard.writes += 1;
                shard.rows.clear();
            }
            writing.touched = u64::MAX;
            return writing;
        }
        for (number, change) in changes.iter().enumerate() {
            let Some((key, _)) = after(change, live) else {
                continue;
            };
            let (at, shard) = self.shard(key);
            let mut shard = write(shard);
            if writing.touched & (1 << at) == 0 {
                writing.touched |= 1 << at;
                shard.writes += 1;
            }
            if let Some(mut known) = shard.rows.peek_mut(&key[..]) {
                *known = Known::Changing;
                writing.hits.push(number);
            }
        }
        writing
    }

    /// After `changes` are written, and the family that is live from now on is known. `live`: as for [`Rows::begin`].
    pub(super) fn end(&self, changes: &[Change], live: &str, writing: Writing) {
        // The last one first: what an earlier change has put under the same key can be read nowhere.
        for number in writing.hits.into_iter().rev() {
            let change = changes.get(number);
            let Some((key, row)) = change.and_then(|change| after(change, live)) else {
                continue;
            };
            let known = Known::of(row.map(|(index, value)| (index, &value[..])));
            let (_, shard) = self.shard(key);
            let mut shard = write(shard);
            if shard.rows.peek(&key[..]) == Some(&Known::Changing) {
                // Others go if it has grown, unlike with `peek_mut`; they may be in the batch too. That it is written makes it no more
                // wanted. Should it be too heavy, with its key, it is gone now.
                drop(shard.rows.replace(key[..].into(), known, true));
            }
        }
        for (at, shard) in self.shards.iter().enumerate() {
            if writing.touched & (1 << at) != 0 {
                write(shard).writes += 1;
            }
        }
    }
}

fn write(shard: &RwLock<Shard>) -> RwLockWriteGuard<'_, Shard> {
    shard.write().unwrap_or_else(PoisonError::into_inner)
}

/// The row that `change` writes in family `live`, and what it is afterwards.
fn after<'a>(change: &'a Change, live: &str) -> Option<(&'a Bytes, Option<(u64, &'a Bytes)>)> {
    match change {
        Change::Put {
            family,
            key,
            mod_index,
            value,
        } if *family == live => Some((key, Some((*mod_index, value)))),
        Change::Delete { family, key } if *family == live => Some((key, None)),
        Change::Put { .. }
        | Change::Delete { .. }
        // Never the family that is live.
        | Change::Clear { .. }
        | Change::Staging(_)
        | Change::Restored { .. }
        | Change::Remember { .. }
        | Change::Window => None,
    }
}

#[cfg(test)]
mod tests;
