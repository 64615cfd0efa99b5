//! What ends every batch: how many changes there have been, and what the log's bookkeeping is after them.
//!
//! In: the log after the last change of a batch. Out: the same at the next start, to be compared with what was recovered.
//!
//! RocksDB goes on behind a damaged record as if it had never been there. Whatever comes through behind it says here what the log
//! was, so what the damaged one held cannot have been
//! - an entry behind the last that is left (a hole before that shows by itself),
//! - the last vote, the last purge (earlier ones do not matter any more),
//! - the last truncation (`truncations` sees to the others), and so no entry that replaced another: what is overwritten is truncated
//!   first.
//!
//! Layout: row `batches`, `number u64 BE`; row `trailer`, `number u64 BE | next u64 BE | purged u64 BE | truncations u64 BE |
//! voted u8 | vote`, the vote as in its own row and empty if there is none. An earlier version writes only the first: if that is
//! greater, the second says nothing.

use std::io;

use prost::Message;
use rocksdb::{ColumnFamily, DB, WriteBatch};

use crate::{
    keys::{CF_META, META_BATCHES, META_TRAILER, be_u64},
    proto::VoteProto,
    rocks::cf,
    types::{LogId, Vote},
};

/// What the log's bookkeeping comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) vote: Option<Vote>,
    /// The last entry that is not in the log any more because a snapshot covers it.
    pub(super) purged: Option<LogId>,
    /// The last entry, or `purged` when there are none.
    pub(super) last: Option<LogId>,
    /// Truncations ever made by versions that count them.
    pub(super) truncations: u64,
}

/// The log after a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trailer {
    /// Changes ever made.
    pub(super) number: u64,
    /// Indexes behind the last entry's and the last purged one's; 0: there never was any.
    next: u64,
    purged: u64,
    truncations: u64,
    vote: Option<Vote>,
}

impl Trailer {
    pub(super) fn new(number: u64, summary: &Summary) -> Self {
        let behind = |id: Option<LogId>| id.map_or(0, |id| id.index.saturating_add(1));
        Self {
            number,
            next: behind(summary.last),
            purged: behind(summary.purged),
            truncations: summary.truncations,
            vote: summary.vote,
        }
    }

    pub(super) fn put(&self, meta: &ColumnFamily, batch: &mut WriteBatch) {
        batch.put_cf(meta, META_BATCHES, self.number.to_be_bytes());
        batch.put_cf(meta, META_TRAILER, self.encode());
    }

    /// `None`: there is none, or one that batches without one have followed.
    ///
    /// # Errors
    /// When it is malformed, or speaks of more batches than `batches`.
    pub(super) fn read(db: &DB, batches: u64) -> io::Result<Option<Self>> {
        let row = db
            .get_cf(cf(db, CF_META)?, META_TRAILER)
            .map_err(io::Error::other)?;
        let Some(row) = row else {
            return Ok(None);
        };
        let trailer =
            Self::decode(&row).ok_or_else(|| io::Error::other("`trailer` is malformed"))?;
        if trailer.number > batches {
            return Err(io::Error::other(format!(
                "there are {batches} writes, but the last one speaks of {}",
                trailer.number
            )));
        }
        Ok(Some(trailer).filter(|trailer| trailer.number == batches))
    }

    fn encode(&self) -> Vec<u8> {
        let numbers = [self.number, self.next, self.purged, self.truncations];
        let mut row = numbers.map(u64::to_be_bytes).concat();
        row.push(self.vote.is_some().into());
        if let Some(vote) = &self.vote {
            row.extend(VoteProto::from(vote).encode_to_vec());
        }
        row
    }

    fn decode(row: &[u8]) -> Option<Self> {
        let (number, rest) = row.split_at_checked(8)?;
        let (next, rest) = rest.split_at_checked(8)?;
        let (purged, rest) = rest.split_at_checked(8)?;
        let (truncations, rest) = rest.split_at_checked(8)?;
        let vote = match rest.split_first()? {
            (0, []) => None,
            (1, vote) => Some(Vote::from(VoteProto::decode(vote).ok()?)),
            _ => return None,
        };
        Some(Self {
            number: be_u64(number)?,
            next: be_u64(next)?,
            purged: be_u64(purged)?,
            truncations: be_u64(truncations)?,
            vote,
        })
    }

    /// Compares it with what was recovered.
    ///
    /// # Errors
    /// When something is not as the last write has left it.
    pub(super) fn check(&self, found: &Summary) -> io::Result<()> {
        let found = Self::new(self.number, found);
        for (what, found, left) in [
            ("ends before entry", found.next, self.next),
            ("begins with entry", found.purged, self.purged),
            (
                "was truncated this often:",
                found.truncations,
                self.truncations,
            ),
        ] {
            if found != left {
                return Err(io::Error::other(format!(
                    "the log {what} {found}, but according to the last write {left}"
                )));
            }
        }
        if found.vote != self.vote {
            return Err(io::Error::other(
                "the vote is not the one that was given last",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{LeaderId, log_id};

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Trailer::decode(&bytes);
        }

        #[test]
        fn a_trailer_survives(
            number: u64, last: Option<u64>, purged: Option<u64>, truncations: u64, vote: Option<(u64, u64, bool)>,
        ) {
            let summary = Summary {
                vote: vote.map(|(term, node_id, committed)| Vote {
                    leader_id: LeaderId { term, node_id },
                    committed,
                }),
                purged: purged.map(|index| log_id(1, 1, index)),
                last: last.map(|index| log_id(1, 1, index)),
                truncations,
            };
            let trailer = Trailer::new(number, &summary);
            let row = trailer.encode();
            prop_assert_eq!(Trailer::decode(&row), Some(trailer));
            prop_assert!(trailer.check(&summary).is_ok());
            prop_assert_eq!(Trailer::decode(&row[..row.len().min(32)]), None);
        }
    }

    #[test]
    fn whatever_differs_is_noticed() {
        let vote = |term| {
            let leader_id = LeaderId { term, node_id: 1 };
            Some(Vote {
                leader_id,
                committed: false,
            })
        };
        // Nothing at all is another vote than the lowest there can be.
        for (left, found) in [(vote(2), vote(1)), (vote(0), None), (None, vote(0))] {
            let left = Summary {
                vote: left,
                purged: Some(log_id(1, 1, 3)),
                last: Some(log_id(1, 1, 9)),
                truncations: 2,
            };
            let trailer = Trailer::decode(&Trailer::new(7, &left).encode()).unwrap();
            trailer.check(&left).unwrap();
            for other in [
                Summary {
                    vote: found,
                    ..left
                },
                Summary {
                    purged: None,
                    ..left
                },
                Summary {
                    last: Some(log_id(1, 1, 8)),
                    ..left
                },
                Summary {
                    truncations: 1,
                    ..left
                },
            ] {
                assert!(trailer.check(&other).is_err(), "{other:?}");
            }
        }
    }
}
