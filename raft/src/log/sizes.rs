//! How many bytes of log lie between two entries, roughly: for deciding when to take a snapshot and how much log to keep.
//!
//! In: the size of every entry appended. Out: sums, exact to about [`STEP`]. What was there before this start is spread
//! evenly over its entries.

use std::collections::VecDeque;

/// A mark is kept for every so many bytes.
const STEP: u64 = 1 << 20;

/// Running total of bytes, with marks to find the total at an earlier entry.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    total: u64,
    /// (index, total up to and including it), both ascending.
    marks: VecDeque<(u64, u64)>,
}

impl Sizes {
    /// A log whose entries `first..=last` hold `bytes`.
    pub(super) fn new(first: u64, last: u64, bytes: u64) -> Self {
        let before = first.saturating_sub(1);
        let marks = if last > before {
            VecDeque::from([(before, 0), (last, bytes)])
        } else {
            VecDeque::new()
        };
        Self {
            total: bytes,
            marks,
        }
    }

    pub(super) fn append(&mut self, index: u64, bytes: u64) {
        if self.marks.is_empty() {
            self.marks.push_back((index.saturating_sub(1), self.total));
        }
        self.total += bytes;
        let marked = self.marks.back().map_or(0, |(_, total)| *total);
        if self.total - marked >= STEP {
            self.marks.push_back((index, self.total));
        }
    }

    pub(super) fn truncate_after(&mut self, last: u64) {
        let total = self.total_at(last);
        while self.marks.back().is_some_and(|(index, _)| *index > last) {
            self.marks.pop_back();
        }
        self.total = total;
        if self.marks.back().is_some_and(|(_, marked)| *marked < total) {
            self.marks.push_back((last, total));
        }
    }

    pub(super) fn purge(&mut self, upto: u64) {
        let total = self.total_at(upto);
        while self.marks.front().is_some_and(|(index, _)| *index <= upto) {
            self.marks.pop_front();
        }
        self.marks.push_front((upto, total));
    }

    /// Total up to and including entry `index`.
    fn total_at(&self, index: u64) -> u64 {
        let after = self.marks.partition_point(|(marked, _)| *marked <= index);
        let before = after.checked_sub(1).and_then(|at| self.marks.get(at));
        match (before, self.marks.get(after)) {
            (None, first) => first.map_or(self.total, |(_, total)| *total),
            // Behind the last mark there is less than a step.
            (Some((_, total)), None) => *total,
            (Some((i, a)), Some((j, b))) => a + share(b - a, index - i, j - i),
        }
    }

    /// Bytes of the entries after `index`.
    pub(super) fn after(&self, index: u64) -> u64 {
        self.total.saturating_sub(self.total_at(index))
    }

    /// The lowest index after which there are at most `bytes`, rounded up to a mark.
    pub(super) fn keeping(&self, bytes: u64) -> u64 {
        let from = self.total.saturating_sub(bytes);
        let at = self.marks.partition_point(|(_, total)| *total < from);
        match (
            at.checked_sub(1).and_then(|at| self.marks.get(at)),
            self.marks.get(at),
        ) {
            (_, None) => self.marks.back().map_or(0, |(index, _)| *index),
            (None, Some(_)) => 0,
            (Some((i, a)), Some((j, b))) => i + share(j - i, from - a, b - a),
        }
    }
}

/// `whole × part / of`, rounded up.
fn share(whole: u64, part: u64, of: u64) -> u64 {
    let exact = (u128::from(whole) * u128::from(part)).div_ceil(u128::from(of.max(1)));
    u64::try_from(exact).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_there_is_spread_evenly() {
        let sizes = Sizes::new(101, 200, 1000);
        assert_eq!(sizes.after(100), 1000);
        assert_eq!(sizes.after(150), 500);
        assert_eq!(sizes.after(200), 0);
        assert_eq!(sizes.keeping(250), 175);
        assert_eq!(sizes.keeping(5000), 0);
        assert_eq!(Sizes::default().after(7), 0);
        assert_eq!(Sizes::default().keeping(7), 0);
    }

    proptest! {
        /// Against the plain sum over every entry.
        #[test]
        fn sums_are_right_to_a_step(
            entries in proptest::collection::vec(0u64..3 << 20, 1..60),
            purged in 0u64..20,
            cut in 0u64..20,
            at in 0u64..80,
            keep in 0u64..40 << 20,
        ) {
            let mut sizes = Sizes::default();
            let mut all: Vec<(u64, u64)> = (1..).zip(entries.iter().copied()).collect();
            for (index, bytes) in &all {
                sizes.append(*index, *bytes);
            }
            let last = (all.len() as u64).saturating_sub(cut);
            if cut > 0 && last > purged {
                sizes.truncate_after(last);
                all.retain(|(index, _)| *index <= last);
            }
            if purged < all.len() as u64 {
                sizes.purge(purged);
                all.retain(|(index, _)| *index > purged);
            } else {
                return Ok(());
            }
            let after = |index: u64| -> u64 {
                all.iter().filter(|(i, _)| *i > index).map(|(_, bytes)| bytes).sum()
            };
            let slack = 4 << 20;
            prop_assert!(sizes.after(at.max(purged)).abs_diff(after(at.max(purged))) <= slack);
            let index = sizes.keeping(keep);
            prop_assert!(after(index.max(purged)) <= keep + slack);
        }
    }
}
