//! What ends every batch: how many changes there have been, how far the log reaches after them, and the vote.
//!
//! In: the log after the last change of a batch. Out: the same at the next start, to be compared with what was recovered.
//!
//! RocksDB goes on behind a damaged record as if it had never been there. Whatever comes through behind it says here what the damaged
//! one has made of the log: an entry or a vote cannot be missing behind another batch, of however little weight.
//!
//! Layout: row [`META_BATCHES`], `number u64 BE`; row [`META_END`], `number u64 BE | next u64 BE | vote`, the vote as in row
//! [`META_VOTE`] and empty if there is none. An earlier version writes only the first: if the numbers are not the same, the
//! second says nothing.

use std::io;

use prost::Message;
use rocksdb::{ColumnFamily, DB, WriteBatch};

use crate::{
    keys::{CF_META, META_BATCHES, META_END, be_u64},
    proto::VoteProto,
    rocks::cf,
    types::{LogId, Vote},
};

/// The log after a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trailer {
    /// Changes ever made.
    pub(super) number: u64,
    /// Index behind the last entry's, or behind the last purged one's; 0: there never was any.
    pub(super) next: u64,
    pub(super) vote: Option<Vote>,
}

impl Trailer {
    pub(super) fn new(number: u64, last: Option<LogId>, vote: Option<Vote>) -> Self {
        Self {
            number,
            next: last.map_or(0, |last| last.index.saturating_add(1)),
            vote,
        }
    }

    pub(super) fn put(&self, meta: &ColumnFamily, batch: &mut WriteBatch) {
        let number = self.number.to_be_bytes();
        let vote = self.vote.as_ref().map(VoteProto::from);
        let vote = vote.map_or_else(Vec::new, |vote| vote.encode_to_vec());
        batch.put_cf(meta, META_BATCHES, number);
        batch.put_cf(
            meta,
            META_END,
            [&number, &self.next.to_be_bytes(), &vote[..]].concat(),
        );
    }

    /// `None`: there is none, or one that batches without one have followed.
    pub(super) fn read(db: &DB, batches: u64) -> io::Result<Option<Self>> {
        let row = db
            .get_cf(cf(db, CF_META)?, META_END)
            .map_err(io::Error::other)?;
        let found = row.map(|row| Self::decode(&row)).transpose()?;
        Ok(found.filter(|trailer| trailer.number == batches))
    }

    fn decode(row: &[u8]) -> io::Result<Self> {
        let malformed = || io::Error::other("`end` is malformed");
        let (number, rest) = row.split_at_checked(8).ok_or_else(malformed)?;
        let (next, vote) = rest.split_at_checked(8).ok_or_else(malformed)?;
        let vote = (!vote.is_empty())
            .then(|| VoteProto::decode(vote).map(Vote::from))
            .transpose()
            .map_err(|_| malformed())?;
        Ok(Self {
            number: be_u64(number).ok_or_else(malformed)?,
            next: be_u64(next).ok_or_else(malformed)?,
            vote,
        })
    }

    /// Compares it with what was recovered.
    ///
    /// # Errors
    /// When something is not as it was left.
    pub(super) fn check(&self, last: Option<LogId>, vote: Option<Vote>) -> io::Result<()> {
        let found = Self::new(self.number, last, vote);
        if found.next != self.next {
            return Err(io::Error::other(format!(
                "the log ends before entry {} and has ended before entry {}",
                found.next, self.next
            )));
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

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Trailer::decode(&bytes);
        }
    }
}
