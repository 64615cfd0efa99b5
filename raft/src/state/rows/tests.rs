use std::collections::HashMap;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::keys::{self, CF_KV};

fn put(family: &'static str, key: &str, mod_index: u64, value: &[u8]) -> Change {
    Change::Put {
        family,
        key: Bytes::copy_from_slice(key.as_bytes()),
        mod_index,
        value: Bytes::copy_from_slice(value),
    }
}

fn row(index: u64, value: &[u8]) -> Row {
    Some((index, Bytes::copy_from_slice(value)))
}

fn parts(row: &Row) -> Option<(u64, &[u8])> {
    row.as_ref().map(|(index, value)| (*index, &value[..]))
}

fn ticket<T: std::fmt::Debug>(look: Look<T>) -> Ticket {
    match look {
        Look::Elsewhere(ticket) => ticket,
        Look::Here(row) => panic!("{row:?} is here"),
    }
}

/// As a reader does for whom nothing comes in between.
fn learn(rows: &Rows, key: &str, row: Row) {
    let ticket = ticket(rows.get(key.as_bytes()));
    rows.keep(key.as_bytes(), &ticket, parts(&row), || true);
}

#[test]
fn what_was_read_once_is_here_and_kept_up_to_date() {
    let rows = Rows::default();
    learn(&rows, "a", row(1, b"one"));
    learn(&rows, "none", None);
    assert_eq!(rows.get(b"a"), Look::Here(row(1, b"one")));
    assert_eq!(rows.mod_index(b"a"), Look::Here(Some(1)));
    assert_eq!(rows.get(b"none"), Look::Here(None));
    assert_eq!(rows.mod_index(b"none"), Look::Here(None));

    let batch = vec![
        put(CF_KV, "a", 2, b"two"),
        put(CF_KV, "none", 2, b"some"),
        put(CF_KV, "never read", 2, b"two"),
        // The last change to a row is what it is.
        put(CF_KV, "a", 3, b"three"),
        // Rows of another family are others.
        put("other", "a", 4, b"four"),
    ];
    let writing = rows.begin(&batch, CF_KV, false);
    for key in ["a", "none", "never read"] {
        assert_eq!(ticket(rows.get(key.as_bytes())), Ticket(None));
    }
    rows.end(&batch, CF_KV, writing);
    assert_eq!(rows.get(b"a"), Look::Here(row(3, b"three")));
    assert_eq!(rows.get(b"none"), Look::Here(row(2, b"some")));
    assert!(matches!(
        rows.get(b"never read"),
        Look::Elsewhere(Ticket(Some(_)))
    ));

    let batch = vec![Change::Delete {
        family: CF_KV,
        key: Bytes::from_static(b"a"),
    }];
    let writing = rows.begin(&batch, CF_KV, false);
    rows.end(&batch, CF_KV, writing);
    assert_eq!(rows.get(b"a"), Look::Here(None));
}

#[test]
fn of_a_large_value_the_index_is_kept() {
    let rows = Rows::default();
    let large = vec![7; LARGEST + 1];
    learn(&rows, "a", row(1, &large));
    assert_eq!(ticket(rows.get(b"a")), Ticket(None));
    assert_eq!(rows.mod_index(b"a"), Look::Here(Some(1)));
    let write = |value: &[u8], index| {
        let batch = [
            put(CF_KV, "a", index, &large),
            put(CF_KV, "a", index, value),
        ];
        let writing = rows.begin(&batch, CF_KV, false);
        rows.end(&batch, CF_KV, writing);
    };
    write(&large[1..], 2);
    assert_eq!(rows.get(b"a"), Look::Here(row(2, &large[1..])));
    write(&large, 3);
    assert_eq!(ticket(rows.get(b"a")), Ticket(None));
    assert_eq!(rows.mod_index(b"a"), Look::Here(Some(3)));
}

fn weight(rows: &Rows) -> u64 {
    rows.shards
        .iter()
        .map(|shard| write(shard).rows.weight())
        .sum()
}

/// How many bytes are kept of `count` values of `len` bytes, each read twice.
fn kept(count: usize, len: usize) -> u64 {
    let rows = Rows::default();
    for _ in 0..2 {
        for n in 0..count {
            let key = format!("key {n}");
            if let Look::Elsewhere(ticket) = rows.get(key.as_bytes()) {
                rows.keep(key.as_bytes(), &ticket, Some((1, &vec![7; len])), || true);
            }
        }
    }
    weight(&rows)
}

#[test]
fn as_much_is_kept_as_there_is_room_for() {
    for (count, len) in [(400_000, 256), (4_000, 32 << 10), (4_000, LARGEST)] {
        let kept = kept(count, len);
        assert!(kept <= CAPACITY, "{kept} bytes of values of {len}");
        assert!(kept > CAPACITY / 4 * 3, "{kept} bytes of values of {len}");
    }
}

#[test]
fn rows_that_grow_push_others_out() {
    let rows = Rows::default();
    let keys: Vec<_> = (0..4_000).map(|n| format!("key {n}")).collect();
    for key in &keys {
        learn(&rows, key, None);
    }
    for (keys, index) in keys.chunks(100).zip(1..) {
        let batch: Vec<_> = keys
            .iter()
            .map(|key| put(CF_KV, key, index, &[7; LARGEST]))
            .collect();
        let writing = rows.begin(&batch, CF_KV, false);
        rows.end(&batch, CF_KV, writing);
    }
    for (key, at) in keys.iter().zip(0..) {
        // In the batch that pushed out rows of its own, too.
        if let Look::Here(index) = rows.mod_index(key.as_bytes()) {
            assert_eq!(index, Some(at / 100 + 1));
        }
    }
    let weight = weight(&rows);
    assert!(weight <= CAPACITY, "{weight} bytes");
    assert!(weight > CAPACITY / 4 * 3, "{weight} bytes");
}

/// Keys of the test below; some share a shard with another, as there are more of them than shards.
const KEYS: usize = 100;

#[derive(Clone, Debug)]
enum Step {
    /// By a reader that has learnt which family is live just now, or that a restore has overtaken since.
    Look(usize, bool),
    /// A reader that has looked, by number, reads the database …
    Read(usize),
    /// … and keeps what it has found.
    Keep(usize),
    Begin(Vec<(usize, Written)>),
    BeginRestore,
    /// The batch goes on: it is written, a restore makes the other family live, and it ends.
    Go,
}

#[derive(Clone, Copy, Debug)]
enum Written {
    Small,
    Large,
    Deleted,
}

fn step() -> impl Strategy<Value = Step> {
    // Few keys are asked for and written often.
    let key = || prop_oneof![3 => 0..3usize, 1 => 0..KEYS];
    let written = prop_oneof![
        8 => Just(Written::Small),
        1 => Just(Written::Large),
        2 => Just(Written::Deleted),
    ];
    prop_oneof![
        6 => (key(), any::<bool>()).prop_map(|(key, overtaken)| Step::Look(key, overtaken)),
        6 => (0..4usize).prop_map(Step::Read),
        6 => (0..4usize).prop_map(Step::Keep),
        4 => vec((key(), written), 1..6).prop_map(Step::Begin),
        1 => Just(Step::BeginRestore),
        10 => Just(Step::Go),
    ]
}

struct Reader {
    key: String,
    ticket: Ticket,
    /// The family that it reads.
    family: &'static str,
    found: Option<Row>,
}

#[derive(PartialEq)]
enum Stage {
    Begun,
    Written,
    Switched,
}

proptest! {
    /// Readers and the writer in any order, one step at a time: what is here is what the database has at that moment.
    #[test]
    fn what_is_here_is_what_the_database_has(steps in vec(step(), 1..300)) {
        let rows = Rows::default();
        let mut database: HashMap<(&str, String), (u64, Bytes)> = HashMap::new();
        let mut readers: Vec<Reader> = Vec::new();
        let mut restores = 0;
        let mut index = 0;
        let mut batch: Option<(Vec<Change>, Writing, bool, Stage)> = None;
        for step in steps {
            let live = keys::live(restores);
            match step {
                Step::Look(key, overtaken) => {
                    let key = format!("key {key}");
                    let family = if overtaken { keys::staging(restores) } else { live };
                    if let Look::Elsewhere(ticket) = rows.get(key.as_bytes()) {
                        readers.push(Reader { key, ticket, family, found: None });
                    }
                }
                Step::Read(at) => {
                    if let Some(reader) = readers.get_mut(at) {
                        let stored = database.get(&(reader.family, reader.key.clone()));
                        reader.found = Some(stored.cloned());
                    }
                }
                Step::Keep(at) => {
                    if readers.get(at).is_some_and(|reader| reader.found.is_some()) {
                        let reader = readers.remove(at);
                        let found = reader.found.unwrap();
                        let key = reader.key.as_bytes();
                        rows.keep(key, &reader.ticket, parts(&found), || reader.family == live);
                    }
                }
                Step::Begin(written) if batch.is_none() => {
                    let list = written.into_iter().map(|(key, written)| {
                        index += 1;
                        let key = format!("key {key}");
                        match written {
                            Written::Small => put(live, &key, index, b"small"),
                            Written::Large => put(live, &key, index, &vec![0; LARGEST + 1]),
                            Written::Deleted => Change::Delete { family: live, key: key.into() },
                        }
                    });
                    let list: Vec<Change> = list.collect();
                    let writing = rows.begin(&list, live, false);
                    batch = Some((list, writing, false, Stage::Begun));
                }
                Step::BeginRestore if batch.is_none() => {
                    let list = vec![Change::Restored { restores: restores + 1, id: [0; 16] }];
                    let writing = rows.begin(&list, live, true);
                    batch = Some((list, writing, true, Stage::Begun));
                }
                Step::Begin(_) | Step::BeginRestore => {}
                Step::Go => {
                    let Some((list, writing, restored, stage)) = batch.take() else { continue };
                    let next = match stage {
                        Stage::Begun => {
                            for change in &list {
                                match change {
                                    Change::Put { family, key, mod_index, value } => {
                                        let key = String::from_utf8(key.to_vec()).unwrap();
                                        database.insert((family, key), (*mod_index, value.clone()));
                                    }
                                    Change::Delete { family, key } => {
                                        let key = String::from_utf8(key.to_vec()).unwrap();
                                        database.remove(&(*family, key));
                                    }
                                    Change::Clear { .. }
                                    | Change::Staging(_)
                                    | Change::Restored { .. }
                                    | Change::Remember { .. }
                                    | Change::Window => {}
                                }
                            }
                            Stage::Written
                        }
                        Stage::Written => {
                            restores += u64::from(restored);
                            Stage::Switched
                        }
                        Stage::Switched => {
                            rows.end(&list, keys::live(restores - u64::from(restored)), writing);
                            continue;
                        }
                    };
                    batch = Some((list, writing, restored, next));
                }
            }
            for key in 0..KEYS {
                let key = format!("key {key}");
                let stored = database.get(&(keys::live(restores), key.clone())).cloned();
                if let Look::Here(index) = rows.mod_index(key.as_bytes()) {
                    prop_assert_eq!(index, stored.as_ref().map(|(index, _)| *index));
                }
                if let Look::Here(row) = rows.get(key.as_bytes()) {
                    prop_assert_eq!(row, stored);
                }
            }
        }
    }
}
