//! A look at RocksDB's own logs (its manifest and its write-ahead logs) before it reads them.
//!
//! RocksDB 11.8.1 reads for ever when it finds a record of a recycled log in a log that did not begin with one: it reports
//! a bad record without stepping over it (`db/log_reader.cc`, `ReadPhysicalRecord`), and its caller asks again. One
//! flipped bit in the kind of a record is enough. These databases recycle nothing, so such a record is damage, and is
//! refused here.
//!
//! Layout: blocks of 32 KiB; in each, records of `crc u32 LE | length u16 LE | kind u8 | payload`; fewer than seven bytes
//! at the end of a block are filling. Checksums are left to RocksDB.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::error::OpenError;

const BLOCK: usize = 32 << 10;
const HEADER: usize = 7;

/// Refuses a database at `path` that RocksDB would not come to the end of. A new one passes.
pub(crate) fn check(path: &Path) -> Result<(), OpenError> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Read { path, source }
    };
    for file in logs(path).map_err(read(path))? {
        let found = File::open(&file).and_then(recycled).map_err(read(&file))?;
        if let Some(at) = found {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            return Err(OpenError::Damaged {
                path: path.to_owned(),
                why: format!("{name}: the record at byte {at} is of a kind that is never written"),
            });
        }
    }
    Ok(())
}

/// What RocksDB will read: the manifest that `CURRENT` names, and every write-ahead log.
fn logs(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    // Whatever is wrong with it, RocksDB says so.
    let current = std::fs::read(path.join("CURRENT")).unwrap_or_default();
    let current = String::from_utf8_lossy(&current);
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let is_manifest = name.to_str() == Some(current.trim_end());
        if is_manifest || is_wal(&entry.path()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// A write-ahead log is called by its number: `000013.log`.
pub(crate) fn is_wal(file: &Path) -> bool {
    let stem = file.file_stem().unwrap_or_default().as_encoded_bytes();
    file.extension().is_some_and(|ending| ending == "log")
        && !stem.is_empty()
        && stem.iter().all(u8::is_ascii_digit)
}

/// Where the first record of a recycled log is.
fn recycled(mut log: impl Read) -> io::Result<Option<u64>> {
    let mut block = Vec::with_capacity(BLOCK);
    let mut before = 0;
    loop {
        block.clear();
        let whole = log.by_ref().take(BLOCK as u64).read_to_end(&mut block)? == BLOCK;
        if let Some(at) = recycled_in(&block) {
            return Ok(Some(before + at as u64));
        }
        if !whole {
            return Ok(None);
        }
        before += BLOCK as u64;
    }
}

fn recycled_in(block: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(header) = block.get(at..).and_then(<[u8]>::first_chunk::<HEADER>) {
        let [_, _, _, _, low, high, kind] = *header;
        let length = usize::from(u16::from_le_bytes([low, high]));
        match (kind, length) {
            (5..=8 | 11 | 131, _) => return Some(at),
            // Room that was reserved and not used: nothing more in this block.
            (0, 0) => return None,
            _ => at += HEADER + length,
        }
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Where the records of a log are.
    pub(crate) fn places(log: &[u8]) -> Vec<usize> {
        let mut places = Vec::new();
        for (number, block) in log.chunks(BLOCK).enumerate() {
            let mut at = 0;
            while let Some(header) = block.get(at..).and_then(<[u8]>::first_chunk::<HEADER>) {
                if *header == [0; HEADER] {
                    break;
                }
                places.push(number * BLOCK + at);
                at += HEADER + usize::from(u16::from_le_bytes([header[4], header[5]]));
            }
        }
        places
    }

    /// Two blocks: in the first one record that fills it but for less than a header; in the second three short ones.
    fn log() -> Vec<u8> {
        let record = |length: usize| {
            let header = [&[9, 9, 9, 9][..], &(length as u16).to_le_bytes(), &[1]].concat();
            [header, vec![7; length]].concat()
        };
        let mut log = record(BLOCK - HEADER - 3);
        log.extend([0; 3]);
        for length in [0, 4, 100] {
            log.extend(record(length));
        }
        log
    }

    #[test]
    fn only_records_of_recycled_logs_are_refused_wherever_they_are() {
        assert_eq!(recycled(&log()[..]).unwrap(), None);
        let places = places(&log());
        assert_eq!(places.len(), 4);
        for place in places {
            for kind in 0..=u8::MAX {
                let mut log = log();
                log[place + 6] = kind;
                let never_written = matches!(kind, 5 | 6 | 7 | 8 | 11 | 131);
                let want = never_written.then_some(place as u64);
                assert_eq!(recycled(&log[..]).unwrap(), want, "{place} {kind}");
            }
        }
        // What is reserved and empty, and what is cut off.
        assert_eq!(recycled(&[0; 3 * BLOCK][..]).unwrap(), None);
        for end in [0, 1, 6, 7, BLOCK - 1, BLOCK, BLOCK + 3] {
            assert_eq!(recycled(&log()[..end]).unwrap(), None, "{end}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = recycled(&bytes[..]);
        }
    }
}
