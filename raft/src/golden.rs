//! Bytes on disk and on the wire as version 1 wrote them: what fails here can no longer read existing data directories
//! or talk to nodes that run now. Raise the version and write the upgrade instead of changing an expectation.

use bytes::{Bytes, BytesMut};
use openraft::EntryPayload;
use prost::Message;
use tokio_util::codec::Encoder;

use crate::{
    command::{Command, Expect, Op},
    log::record,
    net::{self, Frame, FrameCodec, Kind},
    proto::{StoredMembershipProto, VoteProto},
    types::{Entry, LeaderId, Membership, PeerInfo, StoredMembership, Vote, log_id},
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn command() -> Command {
    Command {
        request_id: [0xaa; 16],
        proposed_at_ms: 1000,
        restores: 0,
        ops: vec![
            Op::Check {
                key: Bytes::from_static(b"a"),
                expect: Expect::Absent,
            },
            Op::Check {
                key: Bytes::from_static(b"b"),
                expect: Expect::ModIndex(7),
            },
            Op::Put {
                key: Bytes::from_static(b"c"),
                value: Bytes::from_static(b"v"),
            },
            Op::Delete {
                key: Bytes::from_static(b"d"),
            },
        ],
    }
}

fn membership() -> Membership {
    let info = PeerInfo {
        name: "n".to_owned(),
        cluster_addr: "h:1".to_owned(),
        api_addr: "https://h:2".to_owned(),
        hostname: "h".to_owned(),
        version: "0.1.0".to_owned(),
        non_voter: true,
        ..PeerInfo::default()
    };
    Membership::new(
        vec![[1].into()],
        std::collections::BTreeMap::from([(1, info)]),
    )
    .unwrap()
}

#[test]
fn version_one_is_what_it_was() {
    let encoded = command().encode();
    let normal = Entry {
        log_id: log_id(3, 1, 9),
        payload: EntryPayload::Normal(encoded.clone()),
    };
    let blank = Entry {
        log_id: log_id(3, 1, 8),
        payload: EntryPayload::Blank,
    };
    let member = Entry {
        log_id: log_id(3, 1, 7),
        payload: EntryPayload::Membership(membership()),
    };
    let vote = Vote {
        leader_id: LeaderId {
            term: 3,
            node_id: 1,
        },
        committed: true,
    };
    let stored = StoredMembership::new(Some(log_id(3, 1, 7)), membership());
    let mut frame = BytesMut::new();
    let hello = net::hello(&[0x5a; 16], 1, 2);
    let sent = Frame {
        kind: Kind::Hello,
        flags: 1,
        seq: 2,
        body: hello.encode_to_vec().into(),
    };
    FrameCodec.encode(sent, &mut frame).unwrap();
    for (what, bytes, want) in [
        (
            "command",
            &encoded.0[..],
            "08011210aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa18e80722071a050a0161100122071a050a0162180722080a060a0163120176220512030a0164",
        ),
        (
            "record of a command",
            &record::encode(&normal),
            "013fb58a010a060803100118091a3a08011210aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa18e80722071a050a0161100122071a050a0162180722080a060a0163120176220512030a0164",
        ),
        (
            "record of a blank entry",
            &record::encode(&blank),
            "016b236a830a060803100118081001",
        ),
        (
            "record of a membership",
            &record::encode(&member),
            "01633ced790a06080310011807222c0a030a01011225080112210a016e1203683a311a0b68747470733a2f2f683a322201682a05302e312e303001",
        ),
        (
            "vote",
            &VoteProto::from(&vote).encode_to_vec(),
            "080310011801",
        ),
        (
            "membership in the state",
            &StoredMembershipProto::from(&stored).encode_to_vec(),
            "0a06080310011807122c0a030a01011225080112210a016e1203683a311a0b68747470733a2f2f683a322201682a05302e312e303001",
        ),
        (
            "hello",
            &frame,
            "00000024010100000000000000000002080112105a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a18012002",
        ),
    ] {
        assert_eq!(hex(bytes), want, "{what}");
    }
}
