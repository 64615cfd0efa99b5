//! Figures about snapshots, for metrics.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// What a node did with snapshots since it started. Counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotStats {
    /// Log index that the newest snapshot on this disk covers; 0: there is none.
    pub last_index: u64,
    /// Index of the last entry that is in the log no more because a snapshot covers it; 0: the log is whole.
    pub purged: u64,
    /// When the last one was built, milliseconds since the Unix epoch; 0: none since the start.
    pub last_built_ms: u64,
    /// How long building it took.
    pub last_build: Duration,
    /// Bytes of the files in it, shared with the live state as long as that has them too.
    pub last_bytes: u64,
    /// Snapshots built.
    pub built: u64,
    /// Attempts to build one that failed.
    pub build_failures: u64,
    /// Snapshots sent whole to other nodes.
    pub sent: u64,
    /// Attempts to send one that failed.
    pub send_failures: u64,
    /// Bytes sent to other nodes; files that they had are not counted.
    pub sent_bytes: u64,
    /// Snapshots received whole and installed.
    pub received: u64,
    /// Snapshots whose receipt or installation failed.
    pub receive_failures: u64,
    /// Bytes received from other nodes.
    pub received_bytes: u64,
    /// How long applying stood still for the last installation.
    pub last_install: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) last_built_ms: AtomicU64,
    pub(crate) last_build_us: AtomicU64,
    pub(crate) last_bytes: AtomicU64,
    pub(crate) built: AtomicU64,
    pub(crate) build_failures: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) send_failures: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) receive_failures: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) last_install_us: AtomicU64,
}

impl Counters {
    pub(crate) fn stats(&self, last_index: u64, purged: u64) -> SnapshotStats {
        let duration = |us: &AtomicU64| Duration::from_micros(us.load(Relaxed));
        SnapshotStats {
            last_index,
            purged,
            last_built_ms: self.last_built_ms.load(Relaxed),
            last_build: duration(&self.last_build_us),
            last_bytes: self.last_bytes.load(Relaxed),
            built: self.built.load(Relaxed),
            build_failures: self.build_failures.load(Relaxed),
            sent: self.sent.load(Relaxed),
            send_failures: self.send_failures.load(Relaxed),
            sent_bytes: self.sent_bytes.load(Relaxed),
            received: self.received.load(Relaxed),
            receive_failures: self.receive_failures.load(Relaxed),
            received_bytes: self.received_bytes.load(Relaxed),
            last_install: duration(&self.last_install_us),
        }
    }
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Relaxed);
}

/// Sets a figure.
pub(crate) fn set(figure: &AtomicU64, value: u64) {
    figure.store(value, Relaxed);
}

/// Sets a time, in microseconds.
pub(crate) fn set_time(figure: &AtomicU64, time: Duration) {
    set(figure, u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
}
