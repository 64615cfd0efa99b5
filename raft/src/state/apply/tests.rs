use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::types::log_id;

/// A state in memory, kept by carrying out changes one batch at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    kv: BTreeMap<Bytes, (u64, Bytes)>,
    requests: BTreeMap<[u8; 16], Applied>,
    at: BTreeMap<u64, [u8; 16]>,
    puts: u64,
}

impl View for Model {
    fn mod_index(&self, key: &[u8]) -> io::Result<Option<u64>> {
        Ok(self.kv.get(key).map(|(index, _)| *index))
    }

    fn remembered(&self, request: &[u8; 16]) -> io::Result<Option<Applied>> {
        Ok(self.requests.get(request).copied())
    }

    fn request_at(&self, index: u64) -> io::Result<Option<[u8; 16]>> {
        Ok(self.at.get(&index).copied())
    }
}

impl Model {
    fn carry_out(&mut self, changes: Changes) {
        self.puts += changes.puts;
        for change in changes.list {
            match change {
                Change::Put {
                    key,
                    mod_index,
                    value,
                } => drop(self.kv.insert(key, (mod_index, value))),
                Change::Delete { key } => drop(self.kv.remove(&key)),
                Change::Remember { request, applied } => {
                    self.requests.insert(request, applied);
                    self.at.insert(applied.index, request);
                }
                Change::Forget { request, index } => {
                    self.requests.remove(&request);
                    self.at.remove(&index);
                }
            }
        }
    }

    /// Applies `commands` from log index `first` on, in batches of these sizes.
    fn run(&mut self, first: u64, commands: &[Command], batches: &[usize]) -> Vec<Applied> {
        let mut sizes = batches.iter().copied().cycle();
        let mut left = commands;
        let mut index = first;
        let mut outcomes = Vec::new();
        while !left.is_empty() {
            let (batch, rest) = left.split_at(sizes.next().unwrap().clamp(1, left.len()));
            left = rest;
            let mut changes = Changes::default();
            for command in batch {
                changes.enter(self, log_id(1, 1, index)).unwrap();
                outcomes.push(changes.apply(self, index, command.clone()).unwrap());
                index += 1;
            }
            self.carry_out(changes);
        }
        outcomes
    }
}

fn small_command() -> impl Strategy<Value = Command> {
    let key = || (0u8..4).prop_map(|key| Bytes::from(vec![key]));
    let op = prop_oneof![
        (key(), any::<u8>()).prop_map(|(key, value)| Op::Put {
            key,
            value: vec![value].into(),
        }),
        key().prop_map(|key| Op::Delete { key }),
        (key(), proptest::option::of(0u64..30)).prop_map(|(key, index)| Op::Check {
            key,
            expect: index.map_or(Expect::Absent, Expect::ModIndex),
        }),
    ];
    (0u8..6, proptest::collection::vec(op, 0..4)).prop_map(|(id, ops)| Command {
        request_id: [id; 16],
        proposed_at_ms: 0,
        ops,
    })
}

proptest! {
    /// Followers batch as they like; the state and every outcome must not depend on it.
    #[test]
    fn batching_changes_nothing(
        commands in proptest::collection::vec(small_command(), 0..40),
        batches in proptest::collection::vec(1usize..8, 1..5),
    ) {
        let (mut one, mut other) = (Model::default(), Model::default());
        prop_assert_eq!(one.run(1, &commands, &[1]), other.run(1, &commands, &batches));
        prop_assert_eq!(one, other);
    }

    /// A repeated request is answered as the first was and changes nothing.
    #[test]
    fn a_request_is_applied_once(commands in proptest::collection::vec(small_command(), 1..20)) {
        let mut model = Model::default();
        let first = model.run(1, &commands, &[3]);
        let before = model.clone();
        let again = model.run(100, &commands, &[4]);
        for ((command, first), again) in commands.iter().zip(first).zip(again) {
            if command.request_id != [0; 16] {
                prop_assert_eq!(first, again);
            }
        }
        if commands.iter().all(|command| command.request_id != [0; 16]) {
            prop_assert_eq!(before, model);
        }
    }
}

#[test]
fn requests_are_forgotten_in_order_and_exactly_when_due() {
    let put = |id: u8| Command {
        request_id: [id; 16],
        proposed_at_ms: 0,
        ops: vec![Op::Put {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
        }],
    };
    let mut model = Model::default();
    let first = model.run(10, &[put(1)], &[1]);
    assert_eq!(model.run(9 + REMEMBERED_ENTRIES, &[put(1)], &[1]), first);
    // One entry later the first copy is out of the window; so is one in the same batch.
    let mut later = model.clone();
    let due = 10 + REMEMBERED_ENTRIES;
    assert_eq!(later.run(due, &[put(1)], &[1])[0].index, due);
    assert_eq!(model.run(due - 1, &[put(2), put(1)], &[2])[1].index, due);
    assert_eq!(model.requests.len(), 2);
}
