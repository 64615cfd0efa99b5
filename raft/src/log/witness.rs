//! A second, independent lower bound of what the log had made durable.
//!
//! In: the number of write batches after every sync. Out: the same number at the next start, when it can be compared
//! with what RocksDB recovered: fewer batches than the witness saw synced means that acknowledged data is gone.
//!
//! RocksDB alone cannot tell a torn tail (never acknowledged, fine to cut) from a damaged tail: a zeroed record header
//! ends the log silently. The witness is written *after* the sync and never synced itself, so after a loss of power it
//! may be older than the log, never newer: a bound from below is all it claims.
//!
//! Layout, 24 bytes: `magic 8 | batches u64 BE | crc32c u32 BE over the first 16 | zero 4`.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use crate::keys::WITNESS_FILE;

/// Ends in the layout version.
const MAGIC: &[u8; 8] = b"SRDURBL1";
const LEN: usize = 24;

/// The open witness file.
#[derive(Debug)]
pub(crate) struct Witness(File);

/// What the witness says at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Testimony {
    /// There is none: a new log.
    None,
    /// At least this many batches were durable.
    AtLeast(u64),
    /// The file is damaged, which proves nothing about the log.
    Unreadable,
}

impl Witness {
    /// Opens the witness of the log in `dir`.
    pub(crate) fn open(dir: &Path) -> io::Result<(Self, Testimony)> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join(WITNESS_FILE))?;
        let mut bytes = Vec::with_capacity(LEN);
        Read::by_ref(&mut file)
            .take(LEN as u64)
            .read_to_end(&mut bytes)?;
        Ok((Self(file), testimony(&bytes)))
    }

    /// Records that `batches` batches are durable. Call it only after the sync.
    pub(crate) fn record(&self, batches: u64) -> io::Result<()> {
        self.0.write_all_at(&encode(batches), 0)
    }
}

fn encode(batches: u64) -> Vec<u8> {
    let mut bytes = [&MAGIC[..], &batches.to_be_bytes()].concat();
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    bytes.resize(LEN, 0);
    bytes
}

fn testimony(bytes: &[u8]) -> Testimony {
    if bytes.is_empty() {
        return Testimony::None;
    }
    let batches = bytes
        .strip_prefix(MAGIC)
        .and_then(|rest| rest.first_chunk::<8>())
        .map(|batches| u64::from_be_bytes(*batches));
    match batches {
        Some(batches) if encode(batches) == bytes => Testimony::AtLeast(batches),
        _ => Testimony::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_remembers_the_last_record() {
        let dir = tempfile::tempdir().unwrap();
        let (witness, said) = Witness::open(dir.path()).unwrap();
        assert_eq!(said, Testimony::None);
        witness.record(5).unwrap();
        witness.record(6).unwrap();
        assert_eq!(Witness::open(dir.path()).unwrap().1, Testimony::AtLeast(6));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = encode(77);
        for bit in 0..LEN * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(testimony(&bad), Testimony::Unreadable, "bit {bit}");
        }
        for len in 1..LEN {
            assert_eq!(
                testimony(&good[..len]),
                Testimony::Unreadable,
                "length {len}"
            );
        }
    }
}
