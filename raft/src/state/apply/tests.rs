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
    requests: BTreeMap<[u8; 16], Remembered>,
    puts: u64,
    memory: Memory,
}

impl View for Model {
    fn mod_index(&self, family: &'static str, key: &[u8]) -> io::Result<Option<u64>> {
        let family = self.families.get(family);
        Ok(family.and_then(|kv| kv.get(key)).map(|(index, _)| *index))
    }

    fn restores(&self) -> u64 {
        self.restored.0
    }

    fn staging(&self) -> io::Result<Option<Staging>> {
        Ok(self.staging)
    }

    fn memory(&self) -> Memory {
        self.memory
    }

    fn remembered(&self, request: &[u8; 16]) -> io::Result<Option<Remembered>> {
        Ok(self.requests.get(request).copied())
    }
}

impl Model {
    fn carry_out(&mut self, mut changes: Changes) {
        self.memory = *changes.memory_after(self);
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
                Change::Remember { request, outcome } => {
                    self.requests.insert(request, outcome);
                }
                Change::Window => {}
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
                changes.enter(log_id(1, 1, index));
                // What `Command::window` is decoded to, marked by a time that no other command has here.
                if command.proposed_at_ms == WINDOW {
                    changes.window(self);
                }
                outcomes.push(changes.apply(self, index, command.clone()).unwrap());
                index += 1;
            }
            self.carry_out(changes);
        }
        outcomes
    }
}

/// The time that stands for [`Command::window`]: below every other, so that the clock does not move.
const WINDOW: u64 = 1;

fn window() -> Command {
    Command {
        proposed_at_ms: WINDOW,
        ..Command::default()
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
    let minutes = prop_oneof![Just(0), 2u64..40];
    let parts = (0u8..6, minutes, 0u64..3, step, ops);
    parts.prop_map(|(id, minutes, restores, step, ops)| Command {
        request_id: [id; 16],
        proposed_at_ms: minutes * 60_000,
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

fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![8 => small_command(), 1 => Just(window())]
}

/// What the rules say of commands at these indexes, found by looking at all of them: the index whose outcome each gets.
fn by_the_rules(commands: &[(u64, Command)]) -> Vec<u64> {
    let (mut window, mut clock) = (false, 0);
    let mut took_effect: Vec<([u8; 16], u64, Option<u64>)> = Vec::new();
    let mut found = Vec::new();
    for (index, command) in commands {
        window |= command.proposed_at_ms == WINDOW;
        if window {
            clock = command.proposed_at_ms.max(clock);
        }
        let id = command.request_id;
        let last = took_effect.iter().rev().find(|(other, _, _)| *other == id);
        let repeated = last.filter(|(_, at_index, at_ms)| match at_ms {
            None => index - at_index < REMEMBERED_ENTRIES,
            Some(at) => index - at_index < WINDOW_ENTRIES && clock - at <= WINDOW_MS,
        });
        match repeated {
            Some((_, first, _)) if id != [0; 16] => found.push(*first),
            _ => {
                found.push(*index);
                took_effect.push((id, *index, window.then_some(clock)));
            }
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Forgetting is what the rules say, wherever the switch between them comes and however far apart commands are.
    #[test]
    fn forgetting_follows_the_rules(
        parts in proptest::collection::vec(
            (proptest::collection::vec(any_command(), 1..12), prop_oneof![
                Just(1u64),
                Just(REMEMBERED_ENTRIES - 5),
                Just(REMEMBERED_ENTRIES),
                Just(WINDOW_ENTRIES - 5),
                Just(WINDOW_ENTRIES),
            ]),
            1..5,
        ),
        batch in 1usize..6,
    ) {
        let mut model = Model::default();
        let (mut index, mut outcomes, mut commands) = (1, Vec::new(), Vec::new());
        for (mut part, gap) in parts {
            for command in &mut part {
                // Restores are another matter.
                command.restores = 0;
                command.ops.retain(|op| !matches!(op, Op::Restore(_)));
            }
            outcomes.extend(model.run(index, &part, &[batch]));
            commands.extend((index..).zip(part.iter().cloned()));
            index += part.len() as u64;
            index += gap;
        }
        let got: Vec<u64> = outcomes.iter().map(|outcome| outcome.index).collect();
        prop_assert_eq!(got, by_the_rules(&commands));
    }
}

proptest! {
    /// Followers batch as they like; the state and every outcome must not depend on it.
    #[test]
    fn batching_changes_nothing(
        commands in proptest::collection::vec(any_command(), 0..40),
        batches in proptest::collection::vec(1usize..8, 1..5),
    ) {
        let (mut one, mut other) = (Model::default(), Model::default());
        prop_assert_eq!(one.run(1, &commands, &[1]), other.run(1, &commands, &batches));
        prop_assert_eq!(one, other);
    }

    /// A repeated request is answered as the first was and changes nothing.
    #[test]
    fn a_request_is_applied_once(
        mut commands in proptest::collection::vec(small_command(), 1..20),
        in_window: bool,
    ) {
        let mut model = Model::default();
        if in_window {
            model.memory.window = true;
        }
        commands.iter_mut().for_each(|command| command.proposed_at_ms = 7);
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

#[test]
fn the_window_is_ten_minutes_or_a_million_entries() {
    let put = |id: u8, ms: u64| Command {
        request_id: [id; 16],
        proposed_at_ms: ms,
        ops: vec![Op::Delete {
            key: Bytes::from_static(b"k"),
        }],
        ..Command::default()
    };
    let mut model = Model::default();
    model.run(1, &[window()], &[1]);
    let start = 1_000_000;
    let first = model.run(10, &[put(1, start)], &[1]);
    for (index, ms, repeats) in [
        (11, start, true),
        (11, 0, true),
        (11, start + WINDOW_MS, true),
        (11, start + WINDOW_MS + 1, false),
        (9 + WINDOW_ENTRIES, start, true),
        (10 + WINDOW_ENTRIES, start, false),
        // Beyond the old distance.
        (10 + 2 * REMEMBERED_ENTRIES, start, true),
    ] {
        let again = model.clone().run(index, &[put(1, ms)], &[1]);
        assert_eq!(again == first, repeats, "{index} {ms}");
        assert_eq!(again[0].index, if repeats { 10 } else { index });
    }
    // A clock that is ahead does not go back.
    model.run(11, &[put(2, start + WINDOW_MS + 1)], &[1]);
    assert_eq!(model.run(12, &[put(1, start)], &[1])[0].index, 12);
}

#[test]
fn what_was_remembered_before_the_window_stays_so() {
    let put = |id: u8| Command {
        request_id: [id; 16],
        proposed_at_ms: 5_000,
        ..Command::default()
    };
    let mut model = Model::default();
    let first = model.run(10, &[put(1), window(), window()], &[3]);
    assert!(model.memory.window);
    let late = 10 + REMEMBERED_ENTRIES;
    assert_eq!(model.clone().run(late - 1, &[put(1)], &[1])[0], first[0]);
    assert_eq!(model.run(late, &[put(1)], &[1])[0].index, late);
}
