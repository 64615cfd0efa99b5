//! What this crate counts while it works, told to the `metrics` facade: the binary decides who listens.
//!
//! Invariants
//! - Recording takes a few atomic operations and no lock, and nothing at all when nobody listens.
//! - The set of series is fixed: no label comes from a client or a peer.

use std::{sync::LazyLock, time::Duration};

use metrics::{Counter, Histogram, counter, describe_counter, describe_histogram, histogram};

/// Every counter and distribution of this crate. Times are seconds.
pub(crate) struct Figures {
    /// One sync of the log.
    pub(crate) log_sync: Histogram,
    /// Appends that one sync made durable.
    pub(crate) log_sync_appends: Histogram,
    /// Entries appended to the log.
    pub(crate) log_entries: Counter,
    /// One batch of entries applied, waiting for the log's sync not included.
    pub(crate) apply: Histogram,
    /// Entries in one applied batch.
    pub(crate) apply_entries: Histogram,
    /// From proposal to applied, of proposals that were.
    pub(crate) commit: Histogram,
    /// From sending a command to the leader to its outcome, of commands that got one.
    pub(crate) sent_command: Histogram,
    /// Commands sent to the leader that got no outcome.
    pub(crate) sent_command_failed: Counter,
    /// Probes of this node's own quorum.
    pub(crate) quorum_probe: Probe,
    /// Questions to the leader.
    pub(crate) leader_probe: Probe,
    /// Proposals refused because too much is under way.
    pub(crate) refused_busy: Counter,
    /// Proposals refused because the disk has no room.
    pub(crate) refused_room: Counter,
    /// Proposals refused because the entry is too large.
    pub(crate) refused_size: Counter,
    /// Times this node became leader.
    pub(crate) became_leader: Counter,
    /// Times this node began to follow a leader.
    pub(crate) became_follower: Counter,
    /// Times no leader was known any more.
    pub(crate) lost_leader: Counter,
    /// How long ago the quorum last answered this leader; sampled.
    pub(crate) leader_contact: Histogram,
}

/// One kind of read-index question.
pub(crate) struct Probe {
    pub(crate) time: Histogram,
    /// Readers that one probe served.
    pub(crate) readers: Histogram,
    pub(crate) failed: Counter,
}

/// See [`Figures`].
pub(crate) fn figures() -> &'static Figures {
    static FIGURES: LazyLock<Figures> = LazyLock::new(Figures::register);
    &FIGURES
}

/// Seconds of `time`.
pub(crate) fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

/// For a distribution; exact up to 2^32.
pub(crate) fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::MAX, f64::from)
}

impl Figures {
    fn register() -> Self {
        describe();
        let probe = |asks: &'static str| Probe {
            time: histogram!("strongroom.read_index_seconds", "asks" => asks),
            readers: histogram!("strongroom.read_index_readers", "asks" => asks),
            failed: counter!("strongroom.read_index_failures_total", "asks" => asks),
        };
        let refused = |why: &'static str| counter!("strongroom.refused_total", "why" => why);
        let became = |role: &'static str| counter!("strongroom.role_changes_total", "to" => role);
        Self {
            log_sync: histogram!("strongroom.log_sync_seconds"),
            log_sync_appends: histogram!("strongroom.log_sync_appends"),
            log_entries: counter!("strongroom.log_entries_total"),
            apply: histogram!("strongroom.apply_seconds"),
            apply_entries: histogram!("strongroom.apply_entries"),
            commit: histogram!("strongroom.commit_seconds"),
            sent_command: histogram!("strongroom.sent_command_seconds"),
            sent_command_failed: counter!("strongroom.sent_command_failures_total"),
            quorum_probe: probe("quorum"),
            leader_probe: probe("leader"),
            refused_busy: refused("unapplied"),
            refused_room: refused("disk"),
            refused_size: refused("entry_size"),
            became_leader: became("leader"),
            became_follower: became("follower"),
            lost_leader: became("none"),
            leader_contact: histogram!("strongroom.leader_contact_seconds"),
        }
    }
}

fn describe() {
    describe_histogram!(
        "strongroom.log_sync_seconds",
        "One sync of the Raft log to disk"
    );
    describe_histogram!(
        "strongroom.log_sync_appends",
        "Appends made durable by one sync"
    );
    describe_counter!(
        "strongroom.log_entries_total",
        "Entries appended to the Raft log"
    );
    describe_histogram!(
        "strongroom.apply_seconds",
        "Applying one batch of entries to the state"
    );
    describe_histogram!("strongroom.apply_entries", "Entries in one applied batch");
    describe_histogram!(
        "strongroom.commit_seconds",
        "From proposing a write to its being applied"
    );
    describe_histogram!(
        "strongroom.sent_command_seconds",
        "From sending a command to the leader to its outcome"
    );
    describe_counter!(
        "strongroom.sent_command_failures_total",
        "Commands sent to the leader that got no outcome"
    );
    describe_histogram!("strongroom.read_index_seconds", "Asking for a read index");
    describe_histogram!(
        "strongroom.read_index_readers",
        "Readers served by one question for an index"
    );
    describe_counter!(
        "strongroom.read_index_failures_total",
        "Questions for a read index that got none"
    );
    describe_counter!(
        "strongroom.refused_total",
        "Requests and writes refused to bound what is under way"
    );
    describe_counter!(
        "strongroom.role_changes_total",
        "Times this node's view of the leadership changed"
    );
    describe_histogram!(
        "strongroom.leader_contact_seconds",
        "Time since the quorum answered this leader, sampled"
    );
}
