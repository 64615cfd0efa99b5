//! What a run has shown: two checkers that must agree, and gates that a run which did too little does not pass.
//!
//! In: a history, and what was done to the cluster. Out: [`Verdict`], and the exit code that stands for it.
//!
//! Invariants
//! - `Valid` only when both checkers say so of every register, and enough was done for that to mean something. Every
//!   checker takes an empty history for valid.
//! - `Violation` whatever the gates say: a proof is a proof, however short the run.

use std::process::ExitCode;

use crate::{
    history::{Action, Op, by_key},
    wgl::{self, Answer},
    workload::Counts,
    zones,
};

/// Violations that are printed in full.
const SHOWN: usize = 3;

/// What a run has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every register behaved.
    Valid,
    /// A register did not, with what proves it.
    Violation(Vec<String>),
    /// The run proves nothing, and why.
    Unknown(Vec<String>),
}

/// A time in which something was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// What was done.
    pub what: String,
    /// Nanoseconds from the start of the history.
    pub start: u64,
    /// Same clock.
    pub end: u64,
    /// Whether a majority of nodes was there and together for most of it, so that clients must have been served.
    pub quorum: bool,
}

/// What must have been done for a verdict to mean something.
#[derive(Clone, Copy, Debug)]
pub struct Gates {
    /// Acknowledged writes, and answered reads, of each at least.
    pub operations: u64,
    /// Faults at least.
    pub faults: usize,
    /// Answered operations per second before the first fault.
    pub rate: u64,
    /// Answered operations in each window with a quorum.
    pub served: usize,
}

impl Gates {
    /// For a run of about `seconds`.
    #[must_use]
    pub fn of(seconds: u64) -> Self {
        Self {
            operations: (seconds * 12).clamp(100, 1000),
            faults: 2,
            rate: 50,
            served: 20,
        }
    }
}

/// What both checkers say of `ops`; nothing about whether that is enough.
#[must_use]
pub fn judge(ops: &[Op]) -> Verdict {
    let (mut violations, mut doubts) = (Vec::new(), Vec::new());
    for (key, ops) in by_key(ops) {
        let second = wgl::check(&ops);
        if !zones::is_for(&ops) {
            match second {
                Answer::Linearizable => {}
                Answer::Not => violations.push(format!(
                    "register {key}, which was deleted too: no order explains {ops:#?}"
                )),
                Answer::GaveUp => doubts.push(format!("register {key}: no verdict in time")),
            }
            continue;
        }
        let found = zones::violations(&ops);
        match (found.is_empty(), second) {
            (true, Answer::Linearizable) => {}
            (false, Answer::Not | Answer::GaveUp) => {
                violations.extend(found.iter().map(|violation| format!("{violation:#?}")));
            }
            (true, Answer::GaveUp) => doubts.push(format!("register {key}: no second opinion")),
            (true, Answer::Not) | (false, Answer::Linearizable) => {
                doubts.push(format!("register {key}: the checkers disagree"));
            }
        }
    }
    if !violations.is_empty() {
        return Verdict::Violation(violations);
    }
    if !doubts.is_empty() {
        return Verdict::Unknown(doubts);
    }
    Verdict::Valid
}

/// What a run has shown, its size considered.
#[must_use]
pub fn of_run(ops: &[Op], counts: Counts, windows: &[Window], gates: Gates) -> Verdict {
    let verdict = judge(ops);
    let mut doubts = match verdict {
        Verdict::Violation(_) => return verdict,
        Verdict::Unknown(doubts) => doubts,
        Verdict::Valid => Vec::new(),
    };
    let mut need = |enough: bool, what: String| {
        if !enough {
            doubts.push(what);
        }
    };
    let least = gates.operations;
    need(
        counts.writes >= least && counts.reads >= least,
        format!(
            "{} writes and {} reads; {least} of each are needed",
            counts.writes, counts.reads
        ),
    );
    let changes = counts.writes + counts.deletes + counts.unknown;
    need(
        counts.unknown * 10 < changes * 3,
        format!(
            "{} of {changes} changes have no clear outcome",
            counts.unknown
        ),
    );
    need(
        windows.len() >= gates.faults,
        format!("{} faults; {} are needed", windows.len(), gates.faults),
    );
    let before = windows.iter().map(|window| window.start).min().unwrap_or(0);
    let rate = served(ops, 0, before) as u64 * 1_000_000_000 / before.max(1);
    need(
        windows.is_empty() || rate >= gates.rate,
        format!(
            "{rate} operations/s before the first fault; {} are needed",
            gates.rate
        ),
    );
    for window in windows.iter().filter(|window| window.quorum) {
        let served = served(ops, window.start, window.end);
        need(
            served >= gates.served,
            format!("{served} operations were served during: {}", window.what),
        );
    }
    if doubts.is_empty() {
        Verdict::Valid
    } else {
        Verdict::Unknown(doubts)
    }
}

fn served(ops: &[Op], start: u64, end: u64) -> usize {
    let during = |op: &&Op| op.end.is_some_and(|at| (start..=end).contains(&at));
    ops.iter().filter(during).count()
}

impl Verdict {
    /// Prints it for people.
    pub fn print(&self) {
        match self {
            Self::Valid => println!("valid: no acknowledged change was lost, no read was stale"),
            Self::Violation(found) => {
                for violation in found.iter().take(SHOWN) {
                    println!("VIOLATION: {violation}");
                }
                println!("NOT linearizable: {} violations", found.len());
            }
            Self::Unknown(doubts) => {
                for doubt in doubts {
                    println!("UNKNOWN: {doubt}");
                }
            }
        }
    }

    /// 0 valid, 1 a violation, 2 unknown. A run that could not be set up ends with 3.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Valid => ExitCode::SUCCESS,
            Self::Violation(_) => ExitCode::from(1),
            Self::Unknown(_) => ExitCode::from(2),
        }
    }
}

/// For tests: the history is linearizable, and both checkers say so.
///
/// # Panics
/// If not, with what proves it.
#[track_caller]
pub fn assert_linearizable(ops: &[Op]) {
    match judge(ops) {
        Verdict::Valid => {}
        Verdict::Violation(found) => panic!("{} violations, the first: {}", found.len(), found[0]),
        Verdict::Unknown(doubts) => panic!("no verdict: {}", doubts.join("; ")),
    }
}

/// How many operations of each kind there are, by what became of them.
#[must_use]
pub fn count(ops: &[Op]) -> Counts {
    let mut counts = Counts::default();
    for op in ops {
        match (op.action, op.end) {
            (Action::Write(_), Some(_)) => counts.writes += 1,
            (Action::Delete, Some(_)) => counts.deletes += 1,
            (Action::Read(_), _) => counts.reads += 1,
            (Action::Write(_) | Action::Delete, None) => counts.unknown += 1,
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::history::ABSENT;

    /// A linearizable store with `processes` clients: what they saw.
    fn honest(random: &mut StdRng, processes: u64, count: usize, deletes: bool) -> Vec<Op> {
        let (mut value, mut next, mut ops) = (ABSENT, 1, Vec::new());
        let mut free_at = vec![1u64; usize::try_from(processes).unwrap()];
        let mut effect_at = 1;
        for _ in 0..count {
            let process = random.random_range(0..free_at.len());
            // Operations take effect one after the other, each somewhere within its own time.
            effect_at = free_at[process].max(effect_at) + random.random_range(1..20);
            let start = random.random_range(free_at[process]..effect_at);
            let end = effect_at + random.random_range(1..40);
            let unknown = random.random_bool(0.03);
            let action = match random.random_range(0..20) {
                0..9 => {
                    next += 1;
                    Action::Write(next)
                }
                9 if deletes => Action::Delete,
                _ => Action::Read(value),
            };
            match action {
                Action::Write(new) if !unknown || random.random_bool(0.5) => value = new,
                Action::Delete => value = ABSENT,
                Action::Write(_) | Action::Read(_) => {}
            }
            let known = !unknown || matches!(action, Action::Read(_) | Action::Delete);
            ops.push(Op {
                process: process as u64,
                key: 0,
                action,
                start,
                end: known.then_some(end),
            });
            free_at[process] = end + 1;
        }
        ops
    }

    /// A read, after everything else, of the value of a write that was overwritten for certain.
    fn plant(ops: &mut Vec<Op>) -> bool {
        let last_start = ops
            .iter()
            .map(|op| op.end.unwrap_or(op.start))
            .max()
            .unwrap();
        let writes: Vec<(u64, Op)> = ops
            .iter()
            .filter_map(|op| match op.action {
                Action::Write(value) => op.end.map(|_| (value, *op)),
                Action::Read(_) | Action::Delete => None,
            })
            .collect();
        let stale = writes.iter().find(|(_, write)| {
            let end = write.end.unwrap_or(u64::MAX);
            writes.iter().any(|(_, later)| later.start > end)
        });
        let Some((value, _)) = stale else {
            return false;
        };
        ops.push(Op {
            process: 99,
            key: 0,
            action: Action::Read(*value),
            start: last_start + 1,
            end: Some(last_start + 2),
        });
        true
    }

    #[test]
    fn honest_histories_are_valid_and_planted_violations_are_found() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut planted = 0;
        for round in 0..300 {
            let processes = 2 + round % 8;
            let deletes = round % 3 == 0;
            let mut ops = honest(&mut random, processes, 200, deletes);
            assert_eq!(judge(&ops), Verdict::Valid, "seed {seed}, round {round}");
            if plant(&mut ops) {
                planted += 1;
                assert!(
                    matches!(judge(&ops), Verdict::Violation(_)),
                    "seed {seed}, round {round}"
                );
            }
        }
        assert!(planted > 250, "only {planted} could be planted");
    }

    #[test]
    fn zones_and_search_agree_on_broken_histories() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut broken = 0;
        for round in 0..2000 {
            let mut ops = honest(&mut random, 4, 30, false);
            let at = random.random_range(0..ops.len());
            if let Action::Read(value) = &mut ops[at].action {
                *value = random.random_range(0..12);
            }
            let found = zones::violations(&ops);
            broken += usize::from(!found.is_empty());
            let want = if found.is_empty() {
                Answer::Linearizable
            } else {
                Answer::Not
            };
            assert_eq!(
                wgl::check(&ops),
                want,
                "seed {seed}, round {round}: {ops:#?}"
            );
        }
        assert!(broken > 100, "only {broken} were broken");
    }

    #[test]
    fn a_run_that_did_too_little_is_unknown() {
        let gates = Gates {
            operations: 1,
            faults: 1,
            rate: 50,
            served: 20,
        };
        let second = 1_000_000_000;
        let op = |number: u64, unknown: bool| Op {
            process: 0,
            key: 0,
            action: if number.is_multiple_of(2) {
                Action::Write(number + 1)
            } else {
                Action::Read(number)
            },
            start: number * 10_000_000 + 1,
            end: (!unknown).then_some(number * 10_000_000 + 2),
        };
        let ops: Vec<Op> = (0..200).map(|number| op(number, false)).collect();
        let window = Window {
            what: "something".to_owned(),
            start: second,
            end: 2 * second,
            quorum: true,
        };
        let verdict = |ops: &[Op], windows: &[Window]| of_run(ops, count(ops), windows, gates);
        assert_eq!(verdict(&ops, std::slice::from_ref(&window)), Verdict::Valid);
        for (why, ops, windows) in [
            ("empty", Vec::new(), vec![window.clone()]),
            ("no fault", ops.clone(), Vec::new()),
            (
                "slow",
                ops.iter().copied().skip(90).collect(),
                vec![window.clone()],
            ),
            (
                "nothing served during the fault",
                ops.iter().copied().take(110).collect(),
                vec![window.clone()],
            ),
            (
                "most outcomes unknown",
                (0..200)
                    .map(|number| op(number, number.is_multiple_of(4)))
                    .filter(|op| !matches!(op.action, Action::Read(_)) || op.end.is_some())
                    .collect(),
                vec![window.clone()],
            ),
        ] {
            assert!(
                !matches!(verdict(&ops, &windows), Verdict::Valid),
                "{why} passes"
            );
        }
    }
}
