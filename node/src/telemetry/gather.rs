//! Facts of the moment: the process, the node, Raft, the databases.

use std::{path::Path, sync::LazyLock};

use super::Series;
use crate::{
    clock,
    server::node::{Running, Shared},
};

/// A number as it is now, with what it is in words.
pub(crate) struct Gauge {
    pub(crate) series: Series,
    pub(crate) value: f64,
    pub(crate) help: &'static str,
}

/// Linux counts processor time in hundredths of a second everywhere this server runs.
const TICKS_PER_SECOND: f64 = 100.0;

struct Gauges(Vec<Gauge>);

impl Gauges {
    fn add(&mut self, name: &str, labels: &[(&str, &str)], value: f64, help: &'static str) {
        let label = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        self.0.push(Gauge {
            series: Series {
                name: name.to_owned(),
                labels: labels.iter().map(label).collect(),
            },
            value,
            help,
        });
    }
}

/// Everything that can be known without asking another node.
pub(crate) fn gather(shared: &Shared) -> Vec<Gauge> {
    let mut gauges = Gauges(Vec::new());
    process(&mut gauges);
    node(&mut gauges, shared);
    disk(&mut gauges, &shared.config.storage.path);
    if let Some(running) = shared.running() {
        raft(&mut gauges, &running);
    }
    gauges.0
}

/// Exact for anything that fits a float; close enough beyond.
#[expect(clippy::cast_precision_loss, reason = "shown to people")]
fn float(number: u64) -> f64 {
    number as f64
}

fn process(gauges: &mut Gauges) {
    static START: LazyLock<u64> = LazyLock::new(clock::now_ms);
    if let Some(kib) = status_field("VmRSS:") {
        gauges.add(
            "process.resident_memory_bytes",
            &[],
            float(kib * 1024),
            "Resident memory size in bytes.",
        );
    }
    if let Some(threads) = status_field("Threads:") {
        gauges.add("process.threads", &[], float(threads), "Number of threads.");
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        let open = u64::try_from(open.count()).unwrap_or(u64::MAX);
        gauges.add(
            "process.open_fds",
            &[],
            float(open),
            "Number of open file descriptors.",
        );
    }
    if let Some(seconds) = cpu_seconds() {
        gauges.add(
            "process.cpu_seconds_total",
            &[],
            seconds,
            "Total user and system CPU time spent in seconds.",
        );
    }
    gauges.add(
        "process.start_time_seconds",
        &[],
        float(*START / 1000),
        "Start time of the process since unix epoch in seconds.",
    );
}

/// First number of a line of `/proc/self/status`.
fn status_field(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn cpu_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in brackets may hold spaces.
    let (_, fields) = text.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let mut time = || times.next()?.parse::<u64>().ok();
    Some(float(time()? + time()?) / TICKS_PER_SECOND)
}

fn node(gauges: &mut Gauges, shared: &Shared) {
    let running = shared.running();
    let serves = running.as_ref().filter(|running| running.core().is_some());
    let cluster = serves.map_or("", |running| running.cluster_name.as_str());
    let leads = running
        .as_ref()
        .is_some_and(|running| running.raft.watch().borrow().is_ready_leader);
    let truth = |yes: bool| f64::from(u8::from(yes));
    let label = [("cluster", cluster)];
    gauges.add(
        "vault.core.unsealed",
        &label,
        truth(serves.is_some()),
        "1 while the node is unsealed",
    );
    gauges.add("vault.core.active", &label, truth(leads), "1 on the leader");
    gauges.add(
        "strongroom.hsm_available",
        &[],
        truth(shared.hsm.health() == strongroom_seal::hsm::Health::Ok),
        "1 while the HSM answers",
    );
    gauges.add(
        "strongroom.leaving",
        &[],
        truth(shared.leaving.load(std::sync::atomic::Ordering::Relaxed)),
        "1 once the node was told to stop",
    );
}

fn disk(gauges: &mut Gauges, dir: &Path) {
    // The directory may not be there yet.
    let Ok(stat) = rustix::fs::statvfs(dir) else {
        return;
    };
    let bytes = |blocks: u64| float(blocks.saturating_mul(stat.f_frsize));
    gauges.add(
        "strongroom.disk_free_bytes",
        &[],
        bytes(stat.f_bavail),
        "Room left for the node on the data directory's disk",
    );
    gauges.add(
        "strongroom.disk_size_bytes",
        &[],
        bytes(stat.f_blocks),
        "Size of the data directory's disk",
    );
}

fn raft(gauges: &mut Gauges, running: &Running) {
    let status = running.raft.status();
    let own = status.members.iter().find(|m| m.raft_id == status.raft_id);
    let own_name = own.map_or("", |member| member.info.name.as_str());
    let labels = [
        ("cluster", running.cluster_name.as_str()),
        ("peer_id", own_name),
    ];
    for (name, value, help) in [
        (
            "applied_index",
            status.applied,
            "Log index up to which this node has applied",
        ),
        (
            "commit_index",
            status.committed,
            "Highest log index this node knows to be committed",
        ),
        (
            "fsm_pending",
            status.committed.saturating_sub(status.applied),
            "Committed entries that wait to be applied",
        ),
        ("term", status.term, "Current Raft term"),
    ] {
        let name = format!("vault.raft_storage.stats.{name}");
        gauges.add(&name, &labels, float(value), help);
    }
    gauges.add(
        "strongroom.raft_last_log_index",
        &[],
        float(status.last_log),
        "Index of the last entry in this node's log",
    );
    gauges.add(
        "strongroom.raft_has_leader",
        &[],
        f64::from(u8::from(status.leader.is_some())),
        "1 while this node knows a leader",
    );
    let voters = status.members.iter().filter(|member| member.voter).count();
    for (name, value, help) in [
        (
            "vault.raft.peers",
            status.members.len(),
            "Members of the cluster",
        ),
        ("strongroom.raft_voters", voters, "Members that vote"),
    ] {
        gauges.add(
            name,
            &[],
            float(u64::try_from(value).unwrap_or(u64::MAX)),
            help,
        );
    }
    peers(gauges, &status);
    snapshots(gauges, &running.raft.snapshot_stats());
    let usage = running.raft.usage();
    gauges.add(
        "strongroom.in_flight_bytes",
        &[],
        float(u64::try_from(usage.in_flight_bytes).unwrap_or(u64::MAX)),
        "Bytes of proposed writes that wait for their outcome",
    );
    for (database, size) in [("log", usage.log), ("state", usage.state)] {
        let labels = [("database", database)];
        gauges.add(
            "strongroom.rocksdb_file_bytes",
            &labels,
            float(size.files),
            "Table files of a database",
        );
        gauges.add(
            "strongroom.rocksdb_wal_bytes",
            &labels,
            float(size.wal),
            "Write-ahead log of a database",
        );
        gauges.add(
            "strongroom.rocksdb_memory_bytes",
            &labels,
            float(size.memory),
            "Write buffers of a database",
        );
        gauges.add(
            "strongroom.rocksdb_keys",
            &labels,
            float(size.keys),
            "Keys of a database, estimated",
        );
    }
}

fn snapshots(gauges: &mut Gauges, stats: &strongroom_raft::SnapshotStats) {
    for (name, value, help) in [
        (
            "snapshot_index",
            stats.last_index,
            "Log index that the newest snapshot covers",
        ),
        (
            "log_purged_index",
            stats.purged,
            "Log index up to which a snapshot stands in for the log",
        ),
        (
            "snapshot_bytes",
            stats.last_bytes,
            "Bytes of the last snapshot taken",
        ),
        ("snapshots_taken_total", stats.built, "Snapshots taken"),
        (
            "snapshot_take_failures_total",
            stats.build_failures,
            "Snapshots that could not be taken",
        ),
        (
            "snapshots_sent_total",
            stats.sent,
            "Snapshots sent to other nodes",
        ),
        (
            "snapshot_send_failures_total",
            stats.send_failures,
            "Attempts to send a snapshot that failed",
        ),
        (
            "snapshot_sent_bytes_total",
            stats.sent_bytes,
            "Bytes of snapshots sent to other nodes",
        ),
        (
            "snapshots_received_total",
            stats.received,
            "Snapshots received and installed",
        ),
        (
            "snapshot_receive_failures_total",
            stats.receive_failures,
            "Snapshots that did not arrive or could not be installed",
        ),
        (
            "snapshot_received_bytes_total",
            stats.received_bytes,
            "Bytes of snapshots received from other nodes",
        ),
    ] {
        gauges.add(&format!("strongroom.{name}"), &[], float(value), help);
    }
    for (name, time, help) in [
        (
            "snapshot_take_seconds",
            stats.last_build,
            "Time it took to take the last snapshot",
        ),
        (
            "snapshot_install_seconds",
            stats.last_install,
            "Time applying stood still for the last snapshot installed",
        ),
    ] {
        gauges.add(&format!("strongroom.{name}"), &[], time.as_secs_f64(), help);
    }
    let taken = stats.last_built_ms / 1000;
    gauges.add(
        "strongroom.snapshot_taken_time_seconds",
        &[],
        float(taken),
        "When the last snapshot was taken, since unix epoch in seconds; 0 before the first.",
    );
}

/// What only the leader knows of the others.
fn peers(gauges: &mut Gauges, status: &strongroom_raft::Status) {
    if !status.is_ready_leader {
        return;
    }
    for member in &status.members {
        if member.raft_id == status.raft_id {
            continue;
        }
        let labels = [("peer_id", member.info.name.as_str())];
        let matched = member.matched.unwrap_or(0);
        gauges.add(
            "strongroom.peer_lag_entries",
            &labels,
            float(status.last_log.saturating_sub(matched)),
            "Entries of the leader's log that are not known to be on a member",
        );
        if let Some(ack) = member.last_ack {
            gauges.add(
                "strongroom.peer_last_contact_seconds",
                &labels,
                ack.as_secs_f64(),
                "Time since a member last answered the leader",
            );
        }
    }
}
