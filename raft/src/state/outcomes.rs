//! Outcomes of recent commands by request id, in memory, as the state has them on disk.
//!
//! On disk there is one row per command, by log index: rows are written in ascending order and leave in ranges, which
//! costs the database least. Every command is looked up by its id before it is applied, so those are in memory.
//!
//! Invariants
//! - What is here is a function of the commands applied so far: the same on every node at the same index.
//! - Rows on disk may be left over from entries that are forgotten already; they are not loaded again.

use std::{
    collections::{HashMap, VecDeque},
    io,
};

use rocksdb::{DB, Direction, IteratorMode, WriteBatch};

use super::{apply::REMEMBERED_ENTRIES, damaged, decode_applied, without_wal};
use crate::{
    command::{Applied, Outcome},
    keys::{self, CF_META},
    rocks::cf,
};

/// Forgotten rows are removed from disk whenever this many entries have been applied.
const SWEEP_EVERY: u64 = 4096;
const ID: usize = 16;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    by_id: HashMap<[u8; ID], Applied>,
    /// Ascending by log index.
    order: VecDeque<(u64, [u8; ID])>,
}

impl Outcomes {
    /// What `db`, which has applied up to `applied`, remembers. Rows of the first layout are rewritten.
    pub(super) fn load(db: &DB, applied: u64) -> io::Result<Self> {
        let meta = cf(db, CF_META)?;
        let first = keys::request_at(first_remembered(applied));
        let end = keys::request_at(applied.saturating_add(1));
        let mut found = Self::default();
        let mut rewritten = WriteBatch::default();
        for item in db.iterator_cf(meta, IteratorMode::From(&first, Direction::Forward)) {
            let (key, value) = item.map_err(io::Error::other)?;
            if *key >= end[..] {
                break;
            }
            let index = keys::request_index(&key).ok_or_else(|| damaged("a request's index"))?;
            let (id, applied) = match <[u8; ID]>::try_from(&value[..]) {
                Ok(id) => {
                    let stored = db
                        .get_pinned_cf(meta, keys::request(&id))
                        .map_err(io::Error::other)?;
                    let stored = stored.ok_or_else(|| damaged("a remembered outcome"))?;
                    let applied = decode_applied(&stored)?;
                    rewritten.put_cf(meta, &key, encode(&id, &applied));
                    (id, applied)
                }
                Err(_) => decode(index, &value)?,
            };
            found.remember(id, applied);
        }
        if !rewritten.is_empty() {
            rewritten.delete_range_cf(meta, keys::request(&[0; ID]), keys::request(&[0xff; ID]));
            rewritten.delete_cf(meta, keys::request(&[0xff; ID]));
            db.write_opt(rewritten, &without_wal())
                .map_err(io::Error::other)?;
        }
        Ok(found)
    }

    pub(super) fn get(&self, request: &[u8; ID]) -> Option<Applied> {
        self.by_id.get(request).copied()
    }

    /// Request id of the command at `index`.
    pub(super) fn at(&self, index: u64) -> Option<[u8; ID]> {
        let found = self.order.binary_search_by_key(&index, |(index, _)| *index);
        self.order.get(found.ok()?).map(|(_, id)| *id)
    }

    pub(super) fn remember(&mut self, request: [u8; ID], applied: Applied) {
        self.by_id.insert(request, applied);
        self.order.push_back((applied.index, request));
    }

    /// Forgets the command at `index`, the oldest there is.
    pub(super) fn forget(&mut self, request: &[u8; ID], index: u64) {
        if self.by_id.get(request).is_some_and(|a| a.index == index) {
            self.by_id.remove(request);
        }
        while self.order.front().is_some_and(|(first, _)| *first <= index) {
            self.order.pop_front();
        }
    }
}

/// The oldest entry whose command is remembered when `applied` is the last one.
fn first_remembered(applied: u64) -> u64 {
    (applied + 1).saturating_sub(REMEMBERED_ENTRIES)
}

/// Adds the removal of forgotten rows to `batch`, now and then.
pub(super) fn sweep(db: &DB, batch: &mut WriteBatch, before: u64, after: u64) -> io::Result<()> {
    let first = first_remembered(after);
    if before / SWEEP_EVERY != after / SWEEP_EVERY && first > 0 {
        let meta = cf(db, CF_META)?;
        batch.delete_range_cf(meta, keys::request_at(0), keys::request_at(first));
    }
    Ok(())
}

/// The row of a command, under its log index: `request id 16 | outcome u8 | op u32 BE`.
pub(super) fn encode(request: &[u8; ID], applied: &Applied) -> Vec<u8> {
    let (outcome, op) = match applied.outcome {
        Outcome::Applied => (0u8, 0),
        Outcome::CheckFailed { op } => (1, op),
        Outcome::Superseded => (2, 0),
    };
    [&request[..], &[outcome], &op.to_be_bytes()].concat()
}

fn decode(index: u64, row: &[u8]) -> io::Result<([u8; ID], Applied)> {
    let parts = row
        .split_first_chunk::<ID>()
        .and_then(|(id, rest)| Some((id, rest.split_first_chunk::<1>()?)))
        .and_then(|(id, (kind, op))| Some((id, kind, <[u8; 4]>::try_from(op).ok()?)));
    let Some((id, &[kind], op)) = parts else {
        return Err(damaged("a remembered outcome"));
    };
    let outcome = match kind {
        0 => Outcome::Applied,
        1 => Outcome::CheckFailed {
            op: u32::from_be_bytes(op),
        },
        2 => Outcome::Superseded,
        _ => return Err(damaged("a remembered outcome")),
    };
    Ok((*id, Applied { index, outcome }))
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
            let applied = Applied { index: 12, outcome };
            let row = encode(&[7; 16], &applied);
            assert_eq!(decode(12, &row).unwrap(), ([7; 16], applied));
            for len in 0..row.len() {
                assert!(decode(12, &row[..len]).is_err());
            }
            assert!(decode(12, &[&row[..], &[0]].concat()).is_err());
        }
        assert!(decode(1, &[&[0; 16][..], &[3, 0, 0, 0, 0]].concat()).is_err());
    }

    #[test]
    fn the_oldest_leave_first_and_ids_used_again_stay() {
        let mut outcomes = Outcomes::default();
        let applied = |index| Applied {
            index,
            outcome: Outcome::Applied,
        };
        for (id, index) in [(1, 5), (2, 6), (1, 9)] {
            outcomes.remember([id; 16], applied(index));
        }
        assert_eq!(outcomes.at(6), Some([2; 16]));
        assert_eq!(outcomes.at(7), None);
        outcomes.forget(&[1; 16], 5);
        assert_eq!(outcomes.get(&[1; 16]), Some(applied(9)));
        outcomes.forget(&[2; 16], 6);
        assert_eq!(outcomes.get(&[2; 16]), None);
        assert_eq!(outcomes.order.len(), 1);
    }
}
