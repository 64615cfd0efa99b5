//! The time that commands carry, which says how long a request is remembered.
//!
//! In: the state's clock when this node begins to lead. Out: the time to put into each command proposed here.
//!
//! Invariants
//! - It goes on from the state's own clock, at the pace of this machine's monotonic clock. No wall clock is asked, so one
//!   that is wrong or jumps, on whatever node, makes no request forgotten early.
//! - While this node does not lead it stands still. Time in which nobody leads does not count: a request is then
//!   remembered for longer, and the number of entries bounds that.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

/// What stands for "does not lead".
const RESTS: u64 = u64::MAX;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Stamps {
    began: Instant,
    /// To be added to the milliseconds since `began`, wrapping.
    offset: AtomicU64,
}

impl Default for Stamps {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            offset: RESTS.into(),
        }
    }
}

impl Stamps {
    /// This node leads, and has applied everything from before: the state's clock stands at `clock_ms`.
    pub(crate) fn lead(&self, clock_ms: u64) {
        let offset = offset(clock_ms, self.elapsed_ms());
        self.offset.store(offset, Ordering::Relaxed);
    }

    /// This node does not lead, or does not know enough yet.
    pub(crate) fn rest(&self) {
        self.offset.store(RESTS, Ordering::Relaxed);
    }

    /// The time for a command proposed now. 0 moves no clock.
    pub(crate) fn now_ms(&self) -> u64 {
        match self.offset.load(Ordering::Relaxed) {
            RESTS => 0,
            offset => offset.wrapping_add(self.elapsed_ms()),
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What to add to `elapsed_ms` for `clock_ms`, to a millisecond: [`RESTS`] is taken.
fn offset(clock_ms: u64, elapsed_ms: u64) -> u64 {
    match clock_ms.wrapping_sub(elapsed_ms) {
        RESTS => 0,
        offset => offset,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_offset_stands_for_rest() {
        for (clock, elapsed, want) in [(0, 0, 0), (7, 5, 7), (5, 9, 5), (0, 1, 1), (6, 7, 7)] {
            let offset = offset(clock, elapsed);
            assert_ne!(offset, RESTS);
            assert_eq!(offset.wrapping_add(elapsed), want, "{clock} {elapsed}");
        }
    }

    #[test]
    fn it_goes_on_from_where_the_state_stood_and_rests_when_nobody_leads() {
        let stamps = Stamps::default();
        assert_eq!(stamps.now_ms(), 0);
        for clock in [0, 5, 1_795_455_635_000] {
            let began = Instant::now();
            stamps.lead(clock);
            let first = stamps.now_ms();
            std::thread::sleep(Duration::from_millis(20));
            let second = stamps.now_ms();
            let most = u64::try_from(began.elapsed().as_millis()).unwrap() + 1;
            assert!(
                clock <= first && first + 20 <= second + 1,
                "{first} {second}"
            );
            assert!(second <= clock + most, "{second} {clock} {most}");
            stamps.rest();
            assert_eq!(stamps.now_ms(), 0);
        }
    }
}
