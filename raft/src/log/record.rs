//! One log entry as stored: `version u8 | crc32c u32 BE over index and body | body (prost)`.
//!
//! Invariants
//! - The checksum covers the index, so that a record under another key is as damaged as a flipped bit.
//! - A record of unknown version is an error, never skipped.

use std::io;

use prost::Message;

use crate::{
    proto::{EntryProto, entry_of},
    types::Entry,
};

/// Raise it when the body's meaning changes; older nodes then refuse the log.
const VERSION: u8 = 1;

/// The stored form of `entry`.
pub(crate) fn encode(entry: &Entry) -> Vec<u8> {
    let body = EntryProto::from(entry);
    let mut record = Vec::with_capacity(5 + body.encoded_len());
    record.push(VERSION);
    record.extend_from_slice(&[0; 4]);
    body.encode_raw(&mut record);
    let crc = checksum(entry.log_id.index, record.get(5..).unwrap_or_default());
    if let Some(place) = record.get_mut(1..5) {
        place.copy_from_slice(&crc.to_be_bytes());
    }
    record
}

/// Reads the record stored under `index`.
pub(crate) fn decode(index: u64, record: &[u8]) -> io::Result<Entry> {
    let damaged = |what: &str| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("log entry {index}: {what}"),
        )
    };
    let Some((&[version, c0, c1, c2, c3], body)) = record.split_first_chunk() else {
        return Err(damaged("the record is too short"));
    };
    if version != VERSION {
        return Err(damaged(&format!("record version {version} is unknown")));
    }
    if u32::from_be_bytes([c0, c1, c2, c3]) != checksum(index, body) {
        return Err(damaged("the checksum does not fit"));
    }
    let proto = EntryProto::decode(body).map_err(|_| damaged("the record does not decode"))?;
    let entry = entry_of(proto).map_err(|_| damaged("the record is not an entry"))?;
    if entry.log_id.index != index {
        return Err(damaged("the record holds another index"));
    }
    Ok(entry)
}

fn checksum(index: u64, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&index.to_be_bytes()), body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::tests::any_entry;

    proptest! {
        #[test]
        fn a_record_survives_and_any_flipped_bit_is_noticed(entry in any_entry(), bit: usize) {
            let index = entry.log_id.index;
            let mut record = encode(&entry);
            prop_assert_eq!(&decode(index, &record).unwrap(), &entry);
            prop_assert!(decode(index.wrapping_add(1), &record).is_err());
            let bit = bit % (record.len() * 8);
            record[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(index, &record).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            index: u64,
            record in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            prop_assert!(decode(index, &record).is_err());
        }
    }
}
