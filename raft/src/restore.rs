//! Restores as the state sees them: another key space is staged beside the live one and takes its place in one step.
//!
//! ```text
//! Begin ─► Chunk 0 ─► Chunk 1 ─► … ─► Commit: the staged family is live
//!                 └──────────────────► Abort: nothing has changed
//! ```
//! In: steps from the log. Out: whether a step fits what is staged.
//!
//! Invariants
//! - Nothing of a restore is visible before its commit, and everything is after it: one pointer changes, whatever the
//!   size of the data.
//! - A commit that does not fit what is staged (a chunk is missing, came twice, or differs) changes nothing.
//! - A restored row gets the log index of its chunk: an index of its former life could name another value here.

use std::fmt;

use bytes::Bytes;

/// One step of a restore. `id` tells the steps of one restore from those of another.
#[derive(Clone, PartialEq, Eq)]
pub enum RestoreStep {
    /// Starts a restore; an unfinished one is given up.
    Begin {
        /// Chosen at random.
        id: [u8; 16],
    },
    /// Stages rows.
    Chunk {
        /// As at the beginning.
        id: [u8; 16],
        /// 0, 1, 2, …
        seq: u64,
        /// Opaque keys and values; each key once in the whole restore.
        rows: Vec<(Bytes, Bytes)>,
    },
    /// Replaces the whole key space by what is staged. The command's other operations are carried out on the new one.
    Commit {
        /// As at the beginning.
        id: [u8; 16],
        /// Number of staged rows.
        rows: u64,
        /// [`RowSum`] of the staged rows.
        checksum: u32,
        /// The count of puts that the restored data was saved at: the state's own count becomes at least that, because
        /// the use of the restored keys is counted by it.
        puts: u64,
    },
    /// Forgets what is staged.
    Abort {
        /// As at the beginning.
        id: [u8; 16],
    },
}

impl fmt::Debug for RestoreStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin { .. } => f.write_str("RestoreBegin"),
            Self::Chunk { seq, rows, .. } => write!(f, "RestoreChunk({seq}, {} rows)", rows.len()),
            Self::Commit { rows, .. } => write!(f, "RestoreCommit({rows} rows)"),
            Self::Abort { .. } => f.write_str("RestoreAbort"),
        }
    }
}

/// Count and checksum (CRC-32C over lengths and bytes) of rows in the order they come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowSum {
    /// Rows so far.
    pub rows: u64,
    /// Their checksum.
    pub checksum: u32,
}

impl RowSum {
    /// Takes one more row into account.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        self.rows += 1;
        for part in [key, value] {
            let len = (part.len() as u64).to_be_bytes();
            self.checksum = crc32c::crc32c_append(self.checksum, &len);
            self.checksum = crc32c::crc32c_append(self.checksum, part);
        }
    }
}

/// A restore under way. In the state: `id 16 | next u64 BE | rows u64 BE | checksum u32 BE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Staging {
    pub(crate) id: [u8; 16],
    /// Number of the chunk that must come next.
    pub(crate) next: u64,
    pub(crate) sum: RowSum,
}

impl Staging {
    pub(crate) fn new(id: [u8; 16]) -> Self {
        Self {
            id,
            next: 0,
            sum: RowSum::default(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        [
            &self.id[..],
            &self.next.to_be_bytes(),
            &self.sum.rows.to_be_bytes(),
            &self.sum.checksum.to_be_bytes(),
        ]
        .concat()
    }

    /// `None`: the bytes are damaged.
    pub(crate) fn decode(stored: &[u8]) -> Option<Self> {
        let (id, rest) = stored.split_first_chunk()?;
        let (next, rest) = rest.split_first_chunk()?;
        let (rows, rest) = rest.split_first_chunk()?;
        Some(Self {
            id: *id,
            next: u64::from_be_bytes(*next),
            sum: RowSum {
                rows: u64::from_be_bytes(*rows),
                checksum: u32::from_be_bytes(rest.try_into().ok()?),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_staged_survives_encoding_and_nothing_else_is_taken_for_it() {
        let mut staging = Staging::new([7; 16]);
        staging.next = 3;
        staging.sum.add(b"k", b"v");
        let stored = staging.encode();
        assert_eq!(Staging::decode(&stored), Some(staging));
        for len in 0..stored.len() {
            assert_eq!(Staging::decode(&stored[..len]), None);
        }
        assert_eq!(Staging::decode(&[stored, vec![0]].concat()), None);
    }

    #[test]
    fn the_sum_tells_where_a_key_ends() {
        let sum = |key: &[u8], value: &[u8]| {
            let mut sum = RowSum::default();
            sum.add(key, value);
            sum
        };
        assert_ne!(sum(b"ab", b"c"), sum(b"a", b"bc"));
    }
}
