use proptest::prelude::*;

use super::*;
use crate::types::{LeaderId, StoredMembership, log_id};

fn offer() -> Offer {
    let file = |name: &str, size| File {
        name: name.to_owned(),
        size,
    };
    Offer {
        vote: Vote {
            leader_id: LeaderId {
                term: 3,
                node_id: 2,
            },
            committed: true,
        },
        meta: Meta {
            last_log_id: Some(log_id(3, 2, 77)),
            last_membership: StoredMembership::default(),
        },
        files: vec![
            file("000012.sst", 5),
            file("CURRENT", 16),
            file("MANIFEST-000011", 300),
            file("OPTIONS-000013", 7000),
        ],
    }
}

#[test]
fn only_names_of_rocksdb_become_paths() {
    for name in [
        "000012.sst",
        "1.sst",
        "18446744073709551615.sst",
        "000014.log",
        "MANIFEST-000011",
        "OPTIONS-000013",
        "CURRENT",
        "IDENTITY",
    ] {
        assert!(is_database_file(name), "{name}");
    }
    for name in [
        "",
        ".",
        "..",
        "/",
        ".sst",
        "a.sst",
        "12.sst.sst",
        "../12.sst",
        "12/../13.sst",
        "/etc/12.sst",
        "12.sst\0",
        " 12.sst",
        "１２.sst",
        "123456789012345678901.sst",
        "MANIFEST-",
        "MANIFEST-../x",
        "MANIFEST-1\n",
        "OPTIONS-1.dbtmp",
        "current",
        "CURRENT/",
        "LOCK",
        "LOG",
        "META",
    ] {
        assert!(!is_database_file(name), "{name:?}");
    }
}

#[test]
fn an_offer_survives_the_wire_and_nonsense_does_not() {
    let good = OfferProto::from(&offer());
    assert_eq!(Offer::try_from(good.clone()).unwrap(), offer());
    let spoiled = |spoil: &dyn Fn(&mut OfferProto)| {
        let mut bad = good.clone();
        spoil(&mut bad);
        Offer::try_from(bad)
    };
    let layout = spoiled(&|offer| offer.format += 1);
    assert!(matches!(layout, Err(OfferError::Layout(_))), "{layout:?}");
    let name = spoiled(&|offer| offer.files[0].name = "../../node.json".to_owned());
    assert!(matches!(name, Err(OfferError::Name)), "{name:?}");
    for (what, offer) in [
        (
            "twice",
            spoiled(&|offer| offer.files[0].name = "CURRENT".to_owned()),
        ),
        ("no CURRENT", spoiled(&|offer| drop(offer.files.remove(1)))),
        (
            "too large",
            spoiled(&|offer| offer.files.iter_mut().for_each(|file| file.size = u64::MAX)),
        ),
        (
            "too many",
            spoiled(&|offer| {
                offer.files.extend((0..=100_000).map(|number| FileProto {
                    name: format!("9{number:06}.sst"),
                    size: 1,
                }));
            }),
        ),
    ] {
        assert!(matches!(offer, Err(OfferError::Files)), "{what}: {offer:?}");
    }
    assert!(spoiled(&|offer| offer.vote = None).is_err());
    assert!(spoiled(&|offer| offer.membership = None).is_err());
}

#[test]
fn a_sign_of_life_is_one_on_either_side_and_nothing_else_is() {
    is_sign_of_life(&push_frame(Push::Working(true))).unwrap();
    is_sign_of_life(&answer_frame(Answer::Working(true))).unwrap();
    for frame in [
        push_frame(Push::Done(true)),
        answer_frame(Answer::Busy(true)),
        data_frame(Bytes::new()),
        peer::frame(
            Kind::Call,
            &PushMessage {
                push: Some(Push::Working(true)),
            },
        ),
    ] {
        assert!(is_sign_of_life(&frame).is_err(), "{frame:?}");
    }
}

const OFFER: &str = "0a5e0a0608031002180110011a0608031002184d220212002a0e0a0a3030303031322e73737410052a0b0a0743555252454e5410102a140a0f4d414e49464553542d30303030313110ac022a130a0e4f5054494f4e532d30303030313310d836";

/// What fails here can no longer talk to nodes that run now.
#[test]
fn version_one_is_what_it_was() {
    let hex = |frame: Frame| -> String {
        let body = frame.body.iter().map(|byte| format!("{byte:02x}"));
        body.collect()
    };
    let have = Have {
        files: vec![HaveFile {
            position: 3,
            digest: vec![0xdd; 2],
        }],
    };
    for (frame, want) in [
        (push_frame(Push::Offer((&offer()).into())), OFFER),
        (
            push_frame(Push::Take(Take { reuse: vec![3, 4] })),
            "12040a020304",
        ),
        (push_frame(Push::FileEnd(0x0102_0304)), "1d04030201"),
        (push_frame(Push::Done(true)), "2001"),
        (push_frame(Push::Working(true)), "2801"),
        (answer_frame(Answer::Have(have)), "0a080a0608031202dddd"),
        (answer_frame(Answer::Working(true)), "1001"),
        (
            answer_frame(Answer::Vote((&offer().vote).into())),
            "1a06080310021801",
        ),
        (answer_frame(Answer::Refused("no".to_owned())), "22026e6f"),
        (answer_frame(Answer::Busy(true)), "2801"),
    ] {
        assert_eq!(hex(frame), want);
    }
}

proptest! {
    /// Whatever a peer sends is an offer that makes sense, or an error; never a panic, never a path outside.
    #[test]
    fn arbitrary_bytes_never_become_a_path(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(proto) = OfferProto::decode(&bytes[..])
            && let Ok(offer) = Offer::try_from(proto)
        {
            for file in offer.files {
                prop_assert_eq!(Path::new(&file.name).components().count(), 1);
            }
        }
        let _ = PushMessage::decode(&bytes[..]);
        let _ = answer_of(Frame { kind: Kind::SnapshotReply, flags: 0, seq: 0, body: bytes.into() });
    }

    #[test]
    fn names_that_pass_have_one_component(name in "[0-9a-zA-Z./\\-_\\\\ ]{0,24}") {
        if is_database_file(&name) {
            let joined = Path::new("/data/recv").join(&name);
            prop_assert_eq!(joined.parent(), Some(Path::new("/data/recv")));
        }
    }

    /// A valid offer with one byte changed.
    #[test]
    fn a_damaged_offer_never_panics(at in 0usize..200, byte: u8) {
        let mut bytes = OfferProto::from(&offer()).encode_to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        let decoded = OfferProto::decode(&bytes[..]).map(Offer::try_from);
        if let Ok(Ok(offer)) = decoded {
            prop_assert!(offer.files.iter().all(|file| is_database_file(&file.name)));
        }
    }
}
