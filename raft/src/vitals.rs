//! How fit this node is: room on its disk, speed of its log's syncs, entries that wait to be applied; and what follows
//! from it, as pure functions.
//!
//! Invariants
//! - Whoever proposes looks at one atomic number.
//! - A node that is short of room takes no proposals; one that has almost none takes no entries either. Neither ever
//!   loses anything by that: what was refused was not acknowledged.
//! - Leadership moves only to a node that is known to be better, and a node that gave it away waits before it does so
//!   again: two slow nodes do not pass it back and forth.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Entries, and their bytes, that may be in the log and not applied before proposals are refused.
pub(crate) const MAX_BACKLOG: u64 = 200_000;
/// Free room counts as enough again only this much above the limit it fell below: a quarter.
const SPARE: u64 = 4;
/// A sync that has been running this long counts although it has not ended.
const HANGING: Duration = Duration::from_secs(1);
/// Seconds over which syncs are judged.
const WINDOW: usize = 10;
/// Syncs that a judgement needs.
const FEWEST: u32 = 5;
/// A better node syncs in less than this part of the time.
const BETTER: u64 = 4;
/// Entries by which a node that is to lead may lag.
const MAX_LAG: u64 = 1000;

/// Room on the data directory's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Room {
    /// Enough.
    #[default]
    Plenty,
    /// Below the reserve: the node does not lead if it can help it, and takes no proposals.
    Low,
    /// Below half of the reserve: it takes no entries from a leader either, and does not stand for election.
    Critical,
}

impl Room {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Plenty => 0,
            Self::Low => 1,
            Self::Critical => 2,
        }
    }

    /// An unknown number, of a newer version, is no recommendation.
    pub(crate) fn of(number: u32) -> Self {
        match number {
            0 => Self::Plenty,
            1 => Self::Low,
            _ => Self::Critical,
        }
    }
}

/// What `free` bytes mean after `before`, with `reserve` bytes to keep free.
pub(crate) fn room(before: Room, free: u64, reserve: u64) -> Room {
    let below = |limit: u64, was_below: bool| {
        let spare = if was_below { limit / SPARE } else { 0 };
        free < limit.saturating_add(spare)
    };
    if below(reserve / 2, before == Room::Critical) {
        Room::Critical
    } else if below(reserve, before >= Room::Low) {
        Room::Low
    } else {
        Room::Plenty
    }
}

/// Bytes to keep free on a disk of `size` bytes when the operator has not said: 2 %, at least 64 MiB (what the two
/// databases may still have to flush), at most 1 GiB.
pub(crate) fn default_reserve(size: u64) -> u64 {
    (size / 50).clamp(64 << 20, 1 << 30)
}

/// Why a proposal is refused before it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Too many entries wait to be applied.
    Backlog,
    /// The disk has no room.
    Room,
}

/// Shared by those who watch and those who act on it.
#[derive(Debug, Default)]
pub(crate) struct Vitals {
    room: AtomicU8,
    backlog: AtomicU8,
    /// Median time of a sync over the last seconds, microseconds; 0: not known.
    sync_us: AtomicU64,
}

impl Vitals {
    /// `None`: go on.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        if self.room() != Room::Plenty {
            return Some(Refusal::Room);
        }
        (self.backlog.load(Ordering::Relaxed) != 0).then_some(Refusal::Backlog)
    }

    pub(crate) fn room(&self) -> Room {
        Room::of(self.room.load(Ordering::Relaxed).into())
    }

    pub(crate) fn set_room(&self, room: Room) {
        let number = u8::try_from(room.number()).unwrap_or(u8::MAX);
        self.room.store(number, Ordering::Relaxed);
    }

    pub(crate) fn set_backlog(&self, entries: u64) {
        let full = u8::from(entries > MAX_BACKLOG);
        self.backlog.store(full, Ordering::Relaxed);
    }

    pub(crate) fn sync_us(&self) -> Option<u64> {
        Some(self.sync_us.load(Ordering::Relaxed)).filter(|time| *time != 0)
    }

    pub(crate) fn set_sync_us(&self, time: Option<u64>) {
        self.sync_us.store(time.unwrap_or(0), Ordering::Relaxed);
    }

    pub(crate) fn health(&self) -> Health {
        Health {
            room: self.room(),
            sync_us: self.sync_us(),
        }
    }
}

/// How fit a node says it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) room: Room,
    /// Median time of its log's syncs, microseconds.
    pub(crate) sync_us: Option<u64>,
}

/// Powers of two of microseconds.
const SIZES: usize = 32;

/// Times of syncs, written by the thread that syncs and read once a second.
#[derive(Debug)]
pub(crate) struct SyncTimes {
    start: Instant,
    counts: [AtomicU32; SIZES],
    /// Microseconds from `start` to the begin of the sync that runs, plus one; 0: none runs.
    running: AtomicU64,
}

impl Default for SyncTimes {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            counts: std::array::from_fn(|_| AtomicU32::new(0)),
            running: AtomicU64::new(0),
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Size `i` holds times above 2^(i-1) µs and not above 2^i µs.
fn size(time_us: u64) -> usize {
    let bits = u64::BITS - time_us.saturating_sub(1).leading_zeros();
    usize::try_from(bits).map_or(SIZES - 1, |bits| bits.min(SIZES - 1))
}

impl SyncTimes {
    pub(crate) fn begin(&self) {
        let now = micros(self.start.elapsed());
        self.running.store(now + 1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self, took: Duration) {
        self.running.store(0, Ordering::Relaxed);
        if let Some(count) = self.counts.get(size(micros(took))) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What has begun was no sync.
    pub(crate) fn pass(&self) {
        self.running.store(0, Ordering::Relaxed);
    }

    /// What has come since the last call; a sync that hangs counts each time.
    fn take(&self) -> [u32; SIZES] {
        let mut taken = [0; SIZES];
        for (to, count) in taken.iter_mut().zip(&self.counts) {
            *to = count.swap(0, Ordering::Relaxed);
        }
        let running = self.running.load(Ordering::Relaxed);
        if running != 0 {
            let since = micros(self.start.elapsed()).saturating_sub(running - 1);
            let place = taken.get_mut(size(since));
            if since >= micros(HANGING)
                && let Some(count) = place
            {
                // As many as a judgement needs: a disk that hangs does nothing else.
                *count += FEWEST;
            }
        }
        taken
    }
}

/// The last seconds' syncs.
#[derive(Debug, Default)]
pub(crate) struct SyncWindow(VecDeque<[u32; SIZES]>);

impl SyncWindow {
    /// Takes another second in; gives the median, as a power of two of microseconds, if there were enough.
    pub(crate) fn second(&mut self, times: &SyncTimes) -> Option<u64> {
        self.0.push_back(times.take());
        while self.0.len() > WINDOW {
            self.0.pop_front();
        }
        let mut sums = [0u32; SIZES];
        for second in &self.0 {
            for (sum, count) in sums.iter_mut().zip(second) {
                *sum = sum.saturating_add(*count);
            }
        }
        let total = sums.iter().fold(0u32, |all, sum| all.saturating_add(*sum));
        if total < FEWEST {
            return None;
        }
        let mut seen = 0;
        for (power, sum) in sums.iter().enumerate() {
            seen += sum;
            if seen >= total.div_ceil(2) {
                return Some(1 << power);
            }
        }
        None
    }
}

/// Why a leader would rather not lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// See [`Room`].
    NoRoom,
    /// Its syncs take longer than a heartbeat.
    Slow,
}

/// Whether a leader in this state should look for another one.
pub(crate) fn unfit(own: Health, heartbeat: Duration) -> Option<Unfit> {
    if own.room != Room::Plenty {
        return Some(Unfit::NoRoom);
    }
    own.sync_us
        .is_some_and(|time| time > micros(heartbeat))
        .then_some(Unfit::Slow)
}

/// Another voter, as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: u64,
    /// Entries of the leader's log that are not known to be on it.
    pub(crate) lag: u64,
    /// `None`: it does not say; an older version does not.
    pub(crate) health: Option<Health>,
}

/// Who should lead instead of a node that is `why` unfit. `candidates` have answered the leader lately.
pub(crate) fn successor(why: Unfit, own: Health, candidates: &[Candidate]) -> Option<u64> {
    let fits = |candidate: &&Candidate| match (why, candidate.health) {
        (Unfit::NoRoom, health) => health.is_none_or(|health| health.room == Room::Plenty),
        (Unfit::Slow, None) => false,
        (Unfit::Slow, Some(health)) => {
            let quick = |time: u64| {
                own.sync_us
                    .is_some_and(|own| time.saturating_mul(BETTER) <= own)
            };
            health.room == Room::Plenty
                && candidate.lag <= MAX_LAG
                && health.sync_us.is_some_and(quick)
        }
    };
    let rank = |candidate: &&Candidate| {
        let known = candidate.health.is_some();
        let sync = candidate.health.and_then(|health| health.sync_us);
        (
            !known,
            candidate.lag > MAX_LAG,
            sync.unwrap_or(0),
            candidate.lag,
            candidate.id,
        )
    };
    candidates
        .iter()
        .filter(fits)
        .min_by_key(rank)
        .map(|candidate| candidate.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_ends_below_the_reserve_and_comes_back_a_quarter_above() {
        use Room::{Critical, Low, Plenty};
        for (before, free, want) in [
            (Plenty, 1000, Plenty),
            (Plenty, 100, Plenty),
            (Plenty, 99, Low),
            (Low, 100, Low),
            (Low, 124, Low),
            (Low, 125, Plenty),
            (Low, 50, Low),
            (Low, 49, Critical),
            (Plenty, 0, Critical),
            (Critical, 50, Critical),
            (Critical, 61, Critical),
            (Critical, 62, Low),
            (Critical, 124, Low),
            (Critical, 125, Plenty),
        ] {
            assert_eq!(room(before, free, 100), want, "{before:?} {free}");
        }
        assert_eq!(room(Plenty, 0, 0), Plenty, "a reserve of nothing");
    }

    #[test]
    fn the_reserve_follows_the_disk_within_bounds() {
        for (size, want) in [
            (0, 64 << 20),
            (10 << 30, (10u64 << 30) / 50),
            (1 << 40, 1 << 30),
        ] {
            assert_eq!(default_reserve(size), want);
        }
    }

    #[test]
    fn proposals_are_refused_by_room_and_by_backlog() {
        let vitals = Vitals::default();
        assert_eq!(vitals.refusal(), None);
        vitals.set_backlog(MAX_BACKLOG);
        assert_eq!(vitals.refusal(), None);
        vitals.set_backlog(MAX_BACKLOG + 1);
        assert_eq!(vitals.refusal(), Some(Refusal::Backlog));
        vitals.set_room(Room::Low);
        assert_eq!(vitals.refusal(), Some(Refusal::Room));
        vitals.set_room(Room::Plenty);
        vitals.set_backlog(0);
        assert_eq!(vitals.refusal(), None);
    }

    #[test]
    fn the_median_of_the_last_seconds() {
        let (times, mut window) = (SyncTimes::default(), SyncWindow::default());
        assert_eq!(window.second(&times), None, "nothing was synced");
        (0..4).for_each(|_| times.end(Duration::from_micros(100)));
        assert_eq!(window.second(&times), None, "too few");
        (0..4).for_each(|_| times.end(Duration::from_millis(200)));
        assert_eq!(window.second(&times), Some(128));
        (0..4).for_each(|_| times.end(Duration::from_millis(200)));
        assert_eq!(window.second(&times), Some(1 << 18));
        for _ in 0..WINDOW {
            window.second(&times);
        }
        assert_eq!(window.second(&times), None, "all of it is long ago");
    }

    #[test]
    fn a_sync_that_hangs_is_seen() {
        let mut times = SyncTimes::default();
        let Some(start) = Instant::now().checked_sub(Duration::from_secs(3)) else {
            return;
        };
        times.start = start;
        times.running.store(1, Ordering::Relaxed);
        let seen = SyncWindow::default().second(&times).unwrap();
        assert!(seen >= 3_000_000, "{seen}");
    }

    fn health(room: Room, sync_us: u64) -> Health {
        Health {
            room,
            sync_us: Some(sync_us).filter(|time| *time != 0),
        }
    }

    #[test]
    fn who_is_unfit() {
        use Room::{Critical, Low, Plenty};
        let beat = Duration::from_millis(100);
        for (own, want) in [
            (health(Plenty, 0), None),
            (health(Plenty, 100_000), None),
            (health(Plenty, 131_072), Some(Unfit::Slow)),
            (health(Low, 10), Some(Unfit::NoRoom)),
            (health(Critical, 131_072), Some(Unfit::NoRoom)),
        ] {
            assert_eq!(unfit(own, beat), want, "{own:?}");
        }
    }

    #[test]
    fn who_takes_over() {
        use Room::{Critical, Low, Plenty};
        let candidate = |id, lag, health| Candidate { id, lag, health };
        let slow = health(Plenty, 1 << 18);
        let quick = Some(health(Plenty, 1 << 10));
        let full = health(Low, 1 << 10);
        for (case, why, own, candidates, want) in [
            ("nobody", Unfit::Slow, slow, vec![], None),
            (
                "the quick one",
                Unfit::Slow,
                slow,
                vec![candidate(2, 0, Some(slow)), candidate(3, 5, quick)],
                Some(3),
            ),
            (
                "all are slow: it stays",
                Unfit::Slow,
                slow,
                vec![
                    candidate(2, 0, Some(slow)),
                    candidate(3, 0, Some(health(Plenty, 1 << 17))),
                ],
                None,
            ),
            (
                "four times better is better",
                Unfit::Slow,
                slow,
                vec![candidate(2, 0, Some(health(Plenty, 1 << 16)))],
                Some(2),
            ),
            (
                "unknown is not better",
                Unfit::Slow,
                slow,
                vec![
                    candidate(2, 0, None),
                    candidate(3, 0, Some(health(Plenty, 0))),
                ],
                None,
            ),
            (
                "quick, but far behind",
                Unfit::Slow,
                slow,
                vec![candidate(2, 5000, quick)],
                None,
            ),
            (
                "quick, but full",
                Unfit::Slow,
                slow,
                vec![candidate(2, 0, Some(health(Low, 1 << 10)))],
                None,
            ),
            (
                "room first",
                Unfit::NoRoom,
                full,
                vec![candidate(2, 0, Some(full)), candidate(3, 9, Some(slow))],
                Some(3),
            ),
            (
                "known before unknown",
                Unfit::NoRoom,
                full,
                vec![candidate(2, 0, None), candidate(3, 0, quick)],
                Some(3),
            ),
            (
                "an older version will do",
                Unfit::NoRoom,
                full,
                vec![candidate(2, 0, None)],
                Some(2),
            ),
            (
                "the nearest of equals",
                Unfit::NoRoom,
                full,
                vec![candidate(2, 9, quick), candidate(3, 1, quick)],
                Some(3),
            ),
            (
                "all are full: it stays",
                Unfit::NoRoom,
                full,
                vec![candidate(2, 0, Some(health(Critical, 1)))],
                None,
            ),
        ] {
            assert_eq!(successor(why, own, &candidates), want, "{case}");
        }
    }
}
