//! Whether one register can have behaved as clients saw, decided by searching an order: the second opinion.
//!
//! Goes through the history in time and tries to let each operation under way take effect; goes back where that leads
//! nowhere, and never visits the same set of operations with the same value twice. Needs no unique values, so it judges
//! registers with deletes too. It may take exponential time; [`STEPS`] bounds it.
//!
//! Source: Wing and Gong, "Testing and verifying concurrent objects", JPDC 17, 1993; Lowe, "Testing for
//! linearizability", CCPE 29(4), 2017.

use std::collections::{BTreeSet, HashSet};

use crate::history::{ABSENT, Action, Op};

/// Attempts after which it gives up.
pub const STEPS: u64 = 3_000_000;

/// What the search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is an order that explains everything.
    Linearizable,
    /// There is none.
    Not,
    /// Nothing was found in time.
    GaveUp,
}

/// Judges the operations on one register.
#[must_use]
pub fn check(ops: &[Op]) -> Answer {
    let ops = prune(ops);
    Search::new(&ops).run()
}

/// Leaves out changes of unknown outcome that nobody can have seen: with or without them the verdict is the same.
fn prune(ops: &[Op]) -> Vec<Op> {
    let seen: BTreeSet<u64> = ops
        .iter()
        .filter_map(|op| match op.action {
            Action::Read(value) => Some(value),
            Action::Write(_) | Action::Delete => None,
        })
        .collect();
    let needed = |op: &Op| match (op.end, op.action) {
        (Some(_), _) | (None, Action::Read(_)) => true,
        (None, Action::Write(value)) => seen.contains(&value),
        (None, Action::Delete) => seen.contains(&ABSENT),
    };
    ops.iter().copied().filter(needed).collect()
}

/// A call or an answer; the list holds those that are not taken care of yet.
#[derive(Clone, Copy)]
struct Event {
    op: usize,
    is_answer: bool,
    previous: usize,
    next: usize,
}

struct Search<'a> {
    ops: &'a [Op],
    /// The first one is the head of the list and stands for nothing.
    events: Vec<Event>,
    /// Where the answer to each operation stands.
    answers: Vec<Option<usize>>,
    /// Operations with an answer that have not taken effect.
    left: usize,
    value: u64,
    done: Vec<u64>,
    seen: HashSet<(Vec<u64>, u64)>,
    /// Calls that took effect, and the value before.
    path: Vec<(usize, u64)>,
}

impl<'a> Search<'a> {
    fn new(ops: &'a [Op]) -> Self {
        let mut times: Vec<(u64, bool, usize)> = Vec::new();
        for (at, op) in ops.iter().enumerate() {
            times.push((op.start, false, at));
            times.extend(op.end.map(|end| (end, true, at)));
        }
        // Of a call and an answer at the same moment the call comes first: they overlap.
        times.sort_unstable();
        let head = Event {
            op: usize::MAX,
            is_answer: false,
            previous: 0,
            next: 0,
        };
        let mut events = vec![head; times.len() + 1];
        let mut answers = vec![None; ops.len()];
        let count = events.len();
        for (at, (_, is_answer, op)) in times.into_iter().enumerate() {
            events[at + 1] = Event {
                op,
                is_answer,
                previous: at,
                next: 0,
            };
            if is_answer {
                answers[op] = Some(at + 1);
            }
        }
        for (at, event) in events.iter_mut().enumerate() {
            event.next = (at + 1) % count;
        }
        events[0].previous = count - 1;
        Self {
            ops,
            events,
            answers,
            left: ops.iter().filter(|op| op.end.is_some()).count(),
            value: ABSENT,
            done: vec![0; ops.len().div_ceil(64)],
            seen: HashSet::new(),
            path: Vec::new(),
        }
    }

    fn run(mut self) -> Answer {
        let mut at = self.events[0].next;
        for _ in 0..STEPS {
            if self.left == 0 {
                return Answer::Linearizable;
            }
            let Event {
                op,
                is_answer,
                next,
                ..
            } = self.events[at];
            if at != 0 && !is_answer {
                at = if self.take_effect(at, op) {
                    self.events[0].next
                } else {
                    next
                };
                continue;
            }
            // Something that has been answered must have taken effect by now: another order.
            let Some((call, before)) = self.path.pop() else {
                return Answer::Not;
            };
            self.undo(call, before);
            at = self.events[call].next;
        }
        Answer::GaveUp
    }

    fn take_effect(&mut self, call: usize, op: usize) -> bool {
        let after = match self.ops[op].action {
            Action::Write(value) => value,
            Action::Delete => ABSENT,
            Action::Read(value) if value == self.value => value,
            Action::Read(_) => return false,
        };
        self.done[op / 64] |= 1 << (op % 64);
        if !self.seen.insert((self.done.clone(), after)) {
            self.done[op / 64] &= !(1 << (op % 64));
            return false;
        }
        self.path.push((call, self.value));
        self.value = after;
        self.unlink(call);
        if let Some(answer) = self.answers[op] {
            self.unlink(answer);
            self.left -= 1;
        }
        true
    }

    fn undo(&mut self, call: usize, before: u64) {
        let op = self.events[call].op;
        if let Some(answer) = self.answers[op] {
            self.link(answer);
            self.left += 1;
        }
        self.link(call);
        self.done[op / 64] &= !(1 << (op % 64));
        self.value = before;
    }

    fn unlink(&mut self, at: usize) {
        let Event { previous, next, .. } = self.events[at];
        self.events[previous].next = next;
        self.events[next].previous = previous;
    }

    fn link(&mut self, at: usize) {
        let Event { previous, next, .. } = self.events[at];
        self.events[previous].next = at;
        self.events[next].previous = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(action: Action, start: u64, end: Option<u64>) -> Op {
        Op {
            process: 0,
            key: 0,
            action,
            start,
            end,
        }
    }

    #[test]
    fn deletes() {
        let write = |value, start, end| op(Action::Write(value), start, Some(end));
        let read = |value, start, end| op(Action::Read(value), start, Some(end));
        let delete = |start, end| op(Action::Delete, start, end);
        for (name, ops, want) in [
            (
                "gone after a delete",
                vec![write(1, 1, 2), delete(3, Some(4)), read(0, 5, 6)],
                Answer::Linearizable,
            ),
            (
                "back after a delete",
                vec![write(1, 1, 2), delete(3, Some(4)), read(1, 5, 6)],
                Answer::Not,
            ),
            (
                "an unknown delete that was seen",
                vec![
                    write(1, 1, 2),
                    delete(3, None),
                    read(1, 4, 5),
                    read(0, 6, 7),
                ],
                Answer::Linearizable,
            ),
            (
                "an unknown delete, seen and then not",
                vec![
                    write(1, 1, 2),
                    delete(3, None),
                    read(0, 4, 5),
                    read(1, 6, 7),
                ],
                Answer::Not,
            ),
            (
                "two deletes, two writes",
                vec![
                    delete(1, Some(2)),
                    write(1, 3, 9),
                    read(1, 4, 5),
                    delete(6, Some(7)),
                    read(0, 8, 10),
                ],
                Answer::Linearizable,
            ),
        ] {
            assert_eq!(check(&ops), want, "{name}");
        }
    }

    #[test]
    fn gives_up_in_the_end() {
        // Many writes at once, none of them seen in an order that fits: every subset has to be looked at.
        let mut ops: Vec<Op> = (1..=28)
            .map(|value| op(Action::Write(value), value, Some(1000)))
            .collect();
        ops.push(op(Action::Read(1), 2000, Some(2001)));
        ops.push(op(Action::Read(2), 2002, Some(2003)));
        assert_eq!(check(&ops), Answer::GaveUp);
    }
}
