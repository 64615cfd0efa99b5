use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::types::log_id;

/// A state in memory, kept by carrying out changes one batch at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    families: BTreeMap<&'static str, BTreeMap<Bytes, (u64, Bytes)>>,
    restored: (u64, [u8; 16]),
    staging: Option<Staging>,
    requests: BTreeMap<[u8; 16], Applied>,
    at: BTreeMap<u64, [u8; 16]>,
    puts: u64,
}

impl View for Model {
    fn mod_index(&self, family: &'static str, key: &[u8]) -> io::Result<Option<u64>> {
        let family = self.families.get(family);
        Ok(family.and_then(|kv| kv.get(key)).map(|(index, _)| *index))
    }

    fn restores(&self) -> io::Result<u64> {
        Ok(self.restored.0)
    }

    fn staging(&self) -> io::Result<Option<Staging>> {
        Ok(self.staging)
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
        self.puts = (self.puts + changes.puts).max(changes.puts_floor);
        for change in changes.list {
            match change {
                Change::Put {
                    family,
                    key,
                    mod_index,
                    value,
                } => drop(self.family(family).insert(key, (mod_index, value))),
                Change::Delete { family, key } => drop(self.family(family).remove(&key)),
                Change::Clear { family } => self.family(family).clear(),
                Change::Staging(staging) => self.staging = staging,
                Change::Restored { restores, id } => self.restored = (restores, id),
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

    fn family(&mut self, family: &'static str) -> &mut BTreeMap<Bytes, (u64, Bytes)> {
        self.families.entry(family).or_default()
    }

    /// The live keys by their first byte.
    fn names(&self) -> Vec<u8> {
        self.kv().keys().map(|key| key[0]).collect()
    }

    /// The live keys.
    fn kv(&self) -> BTreeMap<Bytes, (u64, Bytes)> {
        let live = self.families.get(keys::live(self.restored.0));
        live.cloned().unwrap_or_default()
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
    let step = proptest::option::weighted(0.5, small_step());
    let ops = proptest::collection::vec(op, 0..4);
    (0u8..6, 0u64..3, step, ops).prop_map(|(id, restores, step, ops)| Command {
        request_id: [id; 16],
        proposed_at_ms: 0,
        restores,
        ops: step.into_iter().map(Op::Restore).chain(ops).collect(),
    })
}

/// Steps of two restores of up to two chunks, each of one row: often enough they fit.
fn small_step() -> impl Strategy<Value = RestoreStep> {
    let id = || (0u8..2).prop_map(|id| [id; 16]);
    prop_oneof![
        id().prop_map(|id| RestoreStep::Begin { id }),
        (id(), 0u64..2).prop_map(|(id, seq)| RestoreStep::Chunk {
            id,
            seq,
            rows: vec![row(seq)],
        }),
        (id(), 0u64..3, 0u64..100).prop_map(|(id, rows, puts)| commit(id, rows, puts)),
        id().prop_map(|id| RestoreStep::Abort { id }),
    ]
}

fn row(seq: u64) -> (Bytes, Bytes) {
    let key = Bytes::from(vec![u8::try_from(seq).unwrap()]);
    (key, Bytes::from_static(b"restored"))
}

/// The commit after chunks `0..rows`.
fn commit(id: [u8; 16], rows: u64, puts: u64) -> RestoreStep {
    let mut sum = crate::restore::RowSum::default();
    for seq in 0..rows {
        let (key, value) = row(seq);
        sum.add(&key, &value);
    }
    RestoreStep::Commit {
        id,
        rows,
        checksum: sum.checksum,
        puts,
    }
}

fn alone(step: RestoreStep) -> Command {
    Command {
        ops: vec![Op::Restore(step)],
        ..Command::default()
    }
}

fn chunk(id: u8, seq: u64) -> RestoreStep {
    RestoreStep::Chunk {
        id: [id; 16],
        seq,
        rows: vec![row(seq)],
    }
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
        let all_counted = commands
            .iter()
            .zip(&first)
            .all(|(command, first)| command.request_id != [0; 16] && first.outcome != Outcome::Superseded);
        for ((command, first), again) in commands.iter().zip(first).zip(again) {
            if command.request_id != [0; 16] && first.outcome != Outcome::Superseded {
                prop_assert_eq!(first, again);
            }
        }
        if all_counted {
            prop_assert_eq!(before, model);
        }
    }
}

#[test]
fn requests_are_forgotten_in_order_and_exactly_when_due() {
    let put = |id: u8| Command {
        request_id: [id; 16],
        proposed_at_ms: 0,
        restores: 0,
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

fn put(key: u8, restores: u64) -> Command {
    Command {
        restores,
        ops: vec![Op::Put {
            key: vec![key].into(),
            value: Bytes::from_static(b"v"),
        }],
        ..Command::default()
    }
}

#[test]
fn a_restore_replaces_everything_at_its_commit_and_not_before() {
    let mut model = Model::default();
    let id = [1; 16];
    let mut steps = vec![put(9, 0), alone(RestoreStep::Begin { id })];
    steps.extend([alone(chunk(1, 0)), alone(chunk(1, 1)), put(8, 0)]);
    model.run(1, &steps, &[2]);
    assert_eq!(model.names(), [8, 9]);

    let mut last = alone(commit(id, 2, 50));
    last.ops.extend(put(7, 0).ops);
    let done = model.run(6, &[last, put(5, 0), put(6, 1)], &[8]);
    assert!(done[0].is_applied() && done[2].is_applied());
    // Made for the data that is gone.
    assert_eq!(done[1].outcome, Outcome::Superseded);
    let kv: Vec<(Bytes, u64)> = model.kv().into_iter().map(|(k, v)| (k, v.0)).collect();
    let want = [(0, 3), (1, 4), (6, 8), (7, 6)].map(|(k, i)| (Bytes::from(vec![k]), i));
    assert_eq!(kv, want);
    assert_eq!(model.puts, 52);
    assert_eq!((model.restored, model.staging), ((1, id), None));
}

#[test]
fn a_restore_that_is_not_whole_changes_nothing() {
    let id = [1; 16];
    let begin = || alone(RestoreStep::Begin { id });
    for (what, steps) in [
        (
            "no beginning",
            vec![alone(chunk(1, 0)), alone(commit(id, 1, 0))],
        ),
        (
            "a chunk is missing",
            vec![begin(), alone(chunk(1, 1)), alone(commit(id, 2, 0))],
        ),
        (
            "a chunk came twice",
            vec![
                begin(),
                alone(chunk(1, 0)),
                alone(chunk(1, 0)),
                alone(commit(id, 2, 0)),
            ],
        ),
        (
            "another restore has begun",
            vec![
                begin(),
                alone(chunk(1, 0)),
                alone(RestoreStep::Begin { id: [2; 16] }),
                alone(commit(id, 1, 0)),
            ],
        ),
        (
            "it was given up",
            vec![
                begin(),
                alone(chunk(1, 0)),
                alone(RestoreStep::Abort { id }),
                alone(commit(id, 1, 0)),
            ],
        ),
    ] {
        let mut model = Model::default();
        model.run(1, &[put(9, 0)], &[1]);
        let outcomes = model.run(2, &steps, &[3]);
        assert_eq!(
            outcomes.last().unwrap().outcome,
            Outcome::CheckFailed { op: 0 },
            "{what}"
        );
        assert_eq!(model.restored.0, 0, "{what}");
        assert_eq!(model.names(), [9], "{what}");
    }
}
