//! Whether a set of registers can have behaved as clients saw, decided by zones: the judge.
//!
//! In: a history. Out: the violations, each with the operations that prove it.
//!
//! Every write writes another value, so which write a read saw is known, and the question is decided in n·log n by
//! zones. All operations on one value form a cluster; `f` is the earliest end in it, `s` the latest start. If `f < s`,
//! the register held the value from `f` to `s` without a break (a forward zone); else one moment between `s` and `f`
//! is enough (a backward zone). The history is linearizable if and only if no read ends before its write starts, no two
//! forward zones overlap, and no backward zone lies within a forward zone.
//!
//! Deletes all write the same value, so a register that was ever deleted is not for this checker ([`is_for`]).
//!
//! Source: Gibbons and Korach, "Testing shared memories", SIAM J. Comput. 26(4), 1997, §4.

use std::collections::BTreeMap;

use crate::history::{ABSENT, Action, Op, by_key};

/// Whether zones can judge a register with these operations.
#[must_use]
pub fn is_for(ops: &[Op]) -> bool {
    !ops.iter().any(|op| op.action == Action::Delete)
}

/// Why a history is not linearizable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A read gave a value that nobody has written.
    Phantom {
        /// The read.
        read: Op,
    },
    /// A read gave a value before its write had begun.
    FromTheFuture {
        /// The read.
        read: Op,
    },
    /// The register must have held both values at the same time: an acknowledged write was lost, or a read was stale.
    Overlap {
        /// Which register.
        key: usize,
        /// The one value, and the operations on it.
        one: (u64, Vec<Op>),
        /// The other.
        other: (u64, Vec<Op>),
    },
}

/// Every violation in the registers of `ops` that zones can judge; none for an empty history, so look at what was done first.
#[must_use]
pub fn violations(ops: &[Op]) -> Vec<Violation> {
    by_key(ops)
        .into_iter()
        .filter(|(_, ops)| is_for(ops))
        .flat_map(|(key, ops)| violations_of_register(key, &ops))
        .collect()
}

struct Zone {
    value: u64,
    low: u64,
    high: u64,
}

fn violations_of_register(key: usize, ops: &[Op]) -> Vec<Violation> {
    let mut found = Vec::new();
    let clusters = clusters(key, ops, &mut found);
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for (value, ops) in &clusters {
        let first_end = ops
            .iter()
            .map(|op| op.end.unwrap_or(u64::MAX))
            .min()
            .unwrap_or(u64::MAX);
        let last_start = ops.iter().map(|op| op.start).max().unwrap_or_default();
        if first_end < last_start {
            forward.push(Zone {
                value: *value,
                low: first_end,
                high: last_start,
            });
        } else {
            backward.push(Zone {
                value: *value,
                low: last_start,
                high: first_end,
            });
        }
    }
    let overlap = |one: &Zone, other: &Zone| Violation::Overlap {
        key,
        one: (
            one.value,
            clusters.get(&one.value).cloned().unwrap_or_default(),
        ),
        other: (
            other.value,
            clusters.get(&other.value).cloned().unwrap_or_default(),
        ),
    };
    forward.sort_by_key(|zone| zone.low);
    for pair in forward.windows(2) {
        if pair[1].low < pair[0].high {
            found.push(overlap(&pair[0], &pair[1]));
        }
    }
    // Overlaps are reported already; below each backward zone's start only the last forward zone can reach over it, or
    // one that overlaps that one.
    for zone in &backward {
        let after = forward.partition_point(|other| other.low < zone.low);
        if let Some(around) = forward[..after]
            .last()
            .filter(|around| zone.high < around.high)
        {
            found.push(overlap(around, zone));
        }
    }
    found
}

/// Operations by value, writes without effect left out.
fn clusters(key: usize, ops: &[Op], found: &mut Vec<Violation>) -> BTreeMap<u64, Vec<Op>> {
    let mut clusters: BTreeMap<u64, Vec<Op>> = BTreeMap::new();
    let beginning = Op {
        process: 0,
        key,
        action: Action::Write(ABSENT),
        start: 0,
        end: Some(0),
    };
    clusters.insert(ABSENT, vec![beginning]);
    for op in ops {
        if let Action::Write(value) = op.action {
            clusters.entry(value).or_default().push(*op);
        }
    }
    for op in ops {
        let Action::Read(value) = op.action else {
            continue;
        };
        match clusters.get_mut(&value) {
            None => found.push(Violation::Phantom { read: *op }),
            Some(cluster) => {
                let written = cluster[0].start;
                if op.end.is_some_and(|end| end < written) {
                    found.push(Violation::FromTheFuture { read: *op });
                }
                cluster.push(*op);
            }
        }
    }
    // A write nobody saw and nobody acknowledged may never have happened.
    clusters.retain(|_, cluster| cluster.iter().any(|op| op.end.is_some()));
    clusters
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wgl;

    fn write(value: u64, start: u64, end: u64) -> Op {
        Op {
            process: 0,
            key: 0,
            action: Action::Write(value),
            start,
            end: Some(end),
        }
    }

    fn read(value: u64, start: u64, end: u64) -> Op {
        Op {
            process: 0,
            key: 0,
            action: Action::Read(value),
            start,
            end: Some(end),
        }
    }

    fn unknown(value: u64, start: u64) -> Op {
        Op {
            process: 0,
            key: 0,
            action: Action::Write(value),
            start,
            end: None,
        }
    }

    #[test]
    fn verdicts() {
        let table: [(&str, &[Op], bool); 12] = [
            ("empty", &[], true),
            (
                "absent before the first write",
                &[read(0, 1, 2), write(1, 3, 4), read(1, 5, 6)],
                true,
            ),
            (
                "absent after an acknowledged write",
                &[write(1, 1, 2), read(0, 3, 4)],
                false,
            ),
            (
                "old value after an acknowledged write",
                &[write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)],
                false,
            ),
            (
                "old value during a write",
                &[write(1, 1, 2), write(2, 3, 6), read(1, 4, 5)],
                true,
            ),
            (
                "new, then old value during a write",
                &[write(1, 1, 2), write(2, 3, 9), read(2, 4, 5), read(1, 6, 7)],
                false,
            ),
            ("a value nobody wrote", &[read(7, 1, 2)], false),
            ("a value of later", &[read(1, 1, 2), write(1, 3, 4)], false),
            (
                "an unknown write that was never seen",
                &[write(1, 1, 2), unknown(2, 3), read(1, 9, 10)],
                true,
            ),
            (
                "an unknown write that was seen late",
                &[write(1, 1, 2), unknown(2, 3), read(1, 4, 5), read(2, 6, 7)],
                true,
            ),
            (
                "an unknown write seen, then gone",
                &[write(1, 1, 2), unknown(2, 3), read(2, 4, 5), read(1, 6, 7)],
                false,
            ),
            (
                "an acknowledged write nobody sees",
                &[write(1, 1, 2), write(2, 5, 6), read(1, 3, 4), read(1, 7, 8)],
                false,
            ),
        ];
        for (name, ops, valid) in table {
            assert_eq!(
                violations(ops).is_empty(),
                valid,
                "{name}: {:?}",
                violations(ops)
            );
        }
    }

    #[test]
    fn registers_do_not_mix() {
        let mut other = read(0, 3, 4);
        other.key = 1;
        assert!(violations(&[write(1, 1, 2), other]).is_empty());
    }

    /// Tries every order that respects time: slow, and obviously right.
    fn linearizable_by_trying(left: &[Op], value: u64) -> bool {
        if left.iter().all(|op| op.end.is_none()) {
            return true;
        }
        let first_end = left
            .iter()
            .filter_map(|op| op.end)
            .min()
            .unwrap_or(u64::MAX);
        left.iter().enumerate().any(|(at, op)| {
            let mut rest = left.to_vec();
            rest.remove(at);
            if op.start > first_end {
                return false;
            }
            match op.action {
                Action::Write(new) => linearizable_by_trying(&rest, new),
                Action::Delete => linearizable_by_trying(&rest, ABSENT),
                Action::Read(seen) => seen == value && linearizable_by_trying(&rest, value),
            }
        })
    }

    prop_compose! {
        /// Up to 7 operations with distinct times and distinct written values.
        fn histories()(
            shape in prop::collection::vec((any::<bool>(), 0u64..4, any::<bool>()), 0..7),
            times in Just((1u64..=14).collect::<Vec<_>>()).prop_shuffle(),
        ) -> Vec<Op> {
            let mut written = 0;
            shape.iter().enumerate().map(|(at, (is_write, seen, known))| {
                let (a, b) = (times[2 * at], times[2 * at + 1]);
                let (start, end) = (a.min(b), a.max(b));
                if *is_write {
                    written += 1;
                    Op { process: 0, key: 0, action: Action::Write(written), start, end: known.then_some(end) }
                } else {
                    read(*seen, start, end)
                }
            }).collect()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn zones_agree_with_trying_every_order(ops in histories()) {
            let truth = linearizable_by_trying(&ops, ABSENT);
            prop_assert_eq!(violations(&ops).is_empty(), truth, "{:?}", ops);
            prop_assert_eq!(wgl::check(&ops), if truth { wgl::Answer::Linearizable } else { wgl::Answer::Not }, "{:?}", ops);
        }
    }
}
