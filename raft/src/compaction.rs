//! When this node takes a snapshot, and how much of its log it keeps behind one.
//!
//! In: how far the state is, how much log there is, how far the members are. Out: snapshots, purged log, free disk.
//!
//! Invariants
//! - What is purged is covered by a snapshot on this disk (openraft checks that as well).
//! - A member that answers and is behind does not lose the log it still needs, within [`MAX_HELD`]: otherwise one that
//!   has just got a snapshot would need the next one, for ever.
//! - A failure (a full disk) costs nothing but the snapshot; it is tried again.

use std::{
    hash::{BuildHasher, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{
    log::LogStore,
    services::{Services, age},
    start::now_ms,
    state::{
        State,
        snapshot::{self, add, set, set_time},
    },
};

/// Log kept for members that are behind, bytes.
const MAX_HELD: u64 = 1 << 30;
/// A member that has not answered for this many election time-outs catches up by snapshot, if need be.
const AWAY: u32 = 5;
/// At least this long between two snapshots that the amount of log asks for.
const SHORTEST_GAP: Duration = Duration::from_secs(5);
/// After a failure.
const RETRY: Duration = Duration::from_secs(15);
/// At most this long between two looks whether a member still needs the log before the same snapshot.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// When a node takes a snapshot, and how much log it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// Entries applied since the last snapshot that make another one worth it.
    pub threshold: u64,
    /// How often that is looked at: each node waits between once and twice as long, at random, so that they do not all
    /// do it at once.
    pub interval: Duration,
    /// Entries kept in the log behind a snapshot, for members that were away a moment.
    pub trailing_logs: u64,
    /// At most this many bytes of them.
    pub trailing_bytes: u64,
    /// Bytes of log since the last snapshot after which there is another one, whatever `threshold` and `interval` say.
    pub log_bytes: u64,
}

impl Default for SnapshotOptions {
    /// Vault's threshold and interval. More trailing log than Vault's 10,000 entries: at 20,000 writes a second those are
    /// gone in half a second, less than a restart takes.
    fn default() -> Self {
        Self {
            threshold: 8192,
            interval: Duration::from_secs(120),
            trailing_logs: 100_000,
            trailing_bytes: 128 << 20,
            log_bytes: 256 << 20,
        }
    }
}

/// What decides.
#[derive(Clone, Copy, Debug, Default)]
struct Facts {
    applied: u64,
    /// Index of the newest snapshot.
    snapshot: Option<u64>,
    /// Index of the last purged entry; 0: none.
    purged: u64,
    /// Bytes of log behind the snapshot.
    bytes_since: u64,
    /// The lowest index behind which there are at most `trailing_bytes`.
    by_bytes: u64,
    /// The first entry that a member still needs is behind this one; `None`: no member needs any.
    needed: Option<u64>,
    /// The lowest index behind which there are at most [`MAX_HELD`] bytes.
    held: u64,
}

impl Facts {
    /// Whether a snapshot is to be taken now. `looked`: the interval is over.
    fn due(&self, options: &SnapshotOptions, looked: bool) -> bool {
        let since = self.applied.saturating_sub(self.snapshot.unwrap_or(0));
        since > 0
            && (self.bytes_since >= options.log_bytes || (looked && since >= options.threshold))
    }

    /// The last entry to purge.
    fn purge_upto(&self, options: &SnapshotOptions) -> Option<u64> {
        let snapshot = self.snapshot?;
        let by_count = snapshot.saturating_sub(options.trailing_logs);
        let wanted = by_count.max(self.by_bytes).min(snapshot);
        let upto = match self.needed {
            Some(needed) => wanted.min(needed.max(self.held)),
            None => wanted,
        };
        (upto > self.purged).then_some(upto)
    }
}

/// Takes snapshots and purges the log until cancelled.
pub(crate) async fn run(
    services: Services,
    state: Arc<State>,
    log: LogStore,
    options: SnapshotOptions,
) {
    let mut task = Task {
        look_at: Instant::now() + staggered(options.interval),
        not_before: Instant::now(),
        purged_for: None,
        purge_again: Instant::now(),
        services,
        state,
        log,
        options,
    };
    let tick = (options.interval / 2).clamp(Duration::from_millis(20), Duration::from_millis(500));
    loop {
        sleep(tick).await;
        task.tick().await;
    }
}

/// Between once and twice `interval`.
fn staggered(interval: Duration) -> Duration {
    let random = std::hash::RandomState::new().build_hasher().finish();
    interval
        + interval
            .mul_f64(f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX))
}

struct Task {
    services: Services,
    state: Arc<State>,
    log: LogStore,
    options: SnapshotOptions,
    /// When the threshold is looked at next.
    look_at: Instant,
    /// No snapshot before this.
    not_before: Instant,
    /// The snapshot behind which the log was purged last, and when to look at that again.
    purged_for: Option<u64>,
    purge_again: Instant,
}

impl Task {
    async fn tick(&mut self) {
        let now = Instant::now();
        let looked = now >= self.look_at;
        if looked {
            self.look_at = now + staggered(self.options.interval);
        }
        if now >= self.not_before && self.facts().due(&self.options, looked) {
            self.take().await;
        }
        self.purge().await;
        if let Err(error) = self.log.reclaim().await {
            tracing::warn!(%error, "the disk that purged log entries took was not given back");
        }
    }

    fn facts(&self) -> Facts {
        let snapshot = self.state.snapshots.newest().map(|newest| newest.index());
        Facts {
            applied: self.state.applied(),
            snapshot,
            purged: self.log.purged().map_or(0, |id| id.index),
            bytes_since: self.log.bytes_after(snapshot.unwrap_or(0)),
            by_bytes: self.log.index_keeping(self.options.trailing_bytes),
            needed: self.needed(),
            held: self.log.index_keeping(MAX_HELD),
        }
    }

    /// How far the member is that is furthest behind, of those that can still be caught up by log.
    fn needed(&self) -> Option<u64> {
        let purged = self.log.purged().map_or(0, |id| id.index);
        let own = self.services.raft_id;
        let away = self.services.timing.election_max * AWAY;
        let links = self.services.links.as_ref()?;
        self.services.metrics(|metrics| {
            let (matched, acked) = (metrics.replication.as_ref()?, metrics.heartbeat.as_ref()?);
            let member = |(id, matched): (&u64, &Option<crate::types::LogId>)| {
                if let Some(sending) = links.sending(*id) {
                    return Some(sending);
                }
                let answered = acked.get(id).copied().flatten();
                if *id == own || answered.is_none_or(|answered| age(&answered) > away) {
                    return None;
                }
                let matched = matched.map_or(0, |id| id.index);
                // Who is further behind needs a snapshot anyway, and continues behind that.
                (matched >= purged).then_some(matched)
            };
            matched.iter().filter_map(member).min()
        })
    }

    async fn take(&mut self) {
        let (started, counters) = (Instant::now(), &self.state.counters);
        self.not_before = started + SHORTEST_GAP;
        let state = Arc::clone(&self.state);
        match snapshot::blocking(move || snapshot::build(&state)).await {
            Ok(built) => {
                add(&counters.built, 1);
                set(&counters.last_built_ms, now_ms());
                set(&counters.last_bytes, built.bytes());
                set_time(&counters.last_build_us, started.elapsed());
                tracing::info!(
                    index = built.index(),
                    bytes = built.bytes(),
                    took = ?started.elapsed(),
                    "took a snapshot"
                );
                // An error means that Raft has stopped, which its owner learns elsewhere.
                drop(self.services.core.trigger().snapshot().await);
            }
            Err(error) => {
                add(&counters.build_failures, 1);
                self.not_before = started + RETRY;
                self.look_at = self.look_at.min(self.not_before);
                tracing::warn!(%error, "taking a snapshot failed; the log grows until it works");
            }
        }
    }

    async fn purge(&mut self) {
        let (facts, now) = (self.facts(), Instant::now());
        if self.purged_for == facts.snapshot && now < self.purge_again {
            return;
        }
        let Some(upto) = facts.purge_upto(&self.options) else {
            return;
        };
        self.purged_for = facts.snapshot;
        self.purge_again = now + self.options.interval.min(LONGEST_PAUSE);
        // An error means that Raft has stopped, which its owner learns elsewhere.
        drop(self.services.core.trigger().purge_log(upto).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: SnapshotOptions = SnapshotOptions {
        threshold: 100,
        interval: Duration::from_secs(1),
        trailing_logs: 50,
        trailing_bytes: 1000,
        log_bytes: 5000,
    };

    #[test]
    fn a_snapshot_is_due_by_entries_when_looked_at_and_by_bytes_always() {
        let facts = |applied, snapshot, bytes_since| Facts {
            applied,
            snapshot,
            bytes_since,
            ..Facts::default()
        };
        for (facts, looked, want) in [
            (facts(99, None, 0), true, false),
            (facts(100, None, 0), true, true),
            (facts(100, None, 0), false, false),
            (facts(199, Some(100), 0), true, false),
            (facts(200, Some(100), 0), true, true),
            (facts(101, Some(100), 5000), false, true),
            // Nothing was applied since: the same snapshot again.
            (facts(100, Some(100), 5000), true, false),
            (facts(90, Some(100), 0), true, false),
        ] {
            assert_eq!(facts.due(&OPTIONS, looked), want, "{facts:?} {looked}");
        }
    }

    #[test]
    fn what_is_kept_is_what_somebody_may_need() {
        let some = Facts {
            applied: 1000,
            snapshot: Some(900),
            purged: 100,
            ..Facts::default()
        };
        for (facts, want) in [
            (some, Some(850)),
            (
                Facts {
                    snapshot: None,
                    ..some
                },
                None,
            ),
            (
                Facts {
                    snapshot: Some(120),
                    ..some
                },
                None,
            ),
            (
                Facts {
                    purged: 850,
                    ..some
                },
                None,
            ),
            // Large entries: fewer of them are kept, but never one that no snapshot covers is lost.
            (
                Facts {
                    by_bytes: 880,
                    ..some
                },
                Some(880),
            ),
            (
                Facts {
                    by_bytes: 950,
                    ..some
                },
                Some(900),
            ),
            // A member is behind.
            (
                Facts {
                    needed: Some(300),
                    ..some
                },
                Some(300),
            ),
            (
                Facts {
                    needed: Some(100),
                    ..some
                },
                None,
            ),
            (
                Facts {
                    needed: Some(950),
                    ..some
                },
                Some(850),
            ),
            // It is too far behind.
            (
                Facts {
                    needed: Some(300),
                    held: 500,
                    ..some
                },
                Some(500),
            ),
            (
                Facts {
                    needed: Some(300),
                    held: 870,
                    ..some
                },
                Some(850),
            ),
        ] {
            assert_eq!(facts.purge_upto(&OPTIONS), want, "{facts:?}");
        }
    }

    #[test]
    fn nodes_do_not_all_look_at_once() {
        let interval = Duration::from_secs(120);
        let waits: Vec<_> = (0..20).map(|_| staggered(interval)).collect();
        assert!(
            waits
                .iter()
                .all(|wait| (interval..=interval * 2).contains(wait))
        );
        assert!(waits.windows(2).any(|two| two[0] != two[1]));
    }
}
