//! What a snapshot covers, in a file of its directory: openraft asks for it at every start, and opening the database
//! only for that would take its time.
//!
//! Layout: `magic 8 | crc32c u32 BE over the body | body (prost)`.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use prost::Message;

use super::Meta;
use crate::{
    identity::write_atomically,
    keys::{FORMAT, SNAPSHOT_META_FILE},
    proto::{LogIdProto, StoredMembershipProto, log_id_of, log_id_proto},
};

/// Ends in the layout version.
const MAGIC: &[u8; 8] = b"SRSNAPM1";
/// No membership comes near this.
const MAX_LEN: u64 = 8 << 20;

#[derive(Clone, PartialEq, Message)]
struct MetaProto {
    /// [`FORMAT`] of the database.
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(bytes = "vec", tag = "2")]
    cluster_id: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    last: Option<LogIdProto>,
    #[prost(message, optional, tag = "4")]
    membership: Option<StoredMembershipProto>,
}

/// Writes what the snapshot in `dir` covers, durably.
pub(super) fn write(dir: &Path, meta: &Meta, cluster_id: &[u8; 16]) -> io::Result<()> {
    write_atomically(&dir.join(SNAPSHOT_META_FILE), &encode(meta, cluster_id))
}

/// Reads what the snapshot in `dir` covers; it must be of this cluster and this layout.
pub(super) fn read(dir: &Path, cluster_id: &[u8; 16]) -> io::Result<Meta> {
    let mut bytes = Vec::new();
    File::open(dir.join(SNAPSHOT_META_FILE))?
        .take(MAX_LEN)
        .read_to_end(&mut bytes)?;
    decode(&bytes, cluster_id)
}

fn encode(meta: &Meta, cluster_id: &[u8; 16]) -> Vec<u8> {
    let body = MetaProto {
        format: FORMAT,
        cluster_id: cluster_id.to_vec(),
        last: log_id_proto(meta.last_log_id.as_ref()),
        membership: Some((&meta.last_membership).into()),
    }
    .encode_to_vec();
    [&MAGIC[..], &crc32c::crc32c(&body).to_be_bytes(), &body].concat()
}

fn decode(bytes: &[u8], cluster_id: &[u8; 16]) -> io::Result<Meta> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "what it covers is damaged");
    let (crc, body) = bytes
        .strip_prefix(MAGIC)
        .and_then(|rest| rest.split_first_chunk::<4>())
        .ok_or_else(damaged)?;
    if u32::from_be_bytes(*crc) != crc32c::crc32c(body) {
        return Err(damaged());
    }
    let proto = MetaProto::decode(body).map_err(|_| damaged())?;
    if proto.format != FORMAT || proto.cluster_id != cluster_id {
        return Err(io::Error::other(
            "it is of another cluster or another layout",
        ));
    }
    let membership = proto.membership.ok_or_else(damaged)?;
    Ok(Meta {
        last_log_id: log_id_of(proto.last),
        last_membership: membership.try_into().map_err(|_| damaged())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{StoredMembership, log_id};

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let meta = Meta {
            last_log_id: Some(log_id(3, 1, 77)),
            last_membership: StoredMembership::default(),
        };
        let good = encode(&meta, &[7; 16]);
        let hex: String = good.iter().map(|byte| format!("{byte:02x}")).collect();
        // As version 1 wrote it.
        assert_eq!(
            hex,
            "5352534e41504d3146f9aee408011210070707070707070707070707070707071a0608031001184d22021200"
        );
        assert_eq!(decode(&good, &[7; 16]).unwrap(), meta);
        assert!(decode(&good, &[8; 16]).is_err());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad, &[7; 16]).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(decode(&good[..len], &[7; 16]).is_err(), "length {len}");
        }
    }
}
