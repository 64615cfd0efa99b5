//! The process dies at every step of building, receiving and installing a snapshot, and of purging the log; the next one
//! finds everything that was acknowledged, on every node, and goes on.
//!
//! The test starts itself as another process, in which a whole cluster lives, with the fail-point to die at.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use strongroom_raft::{Identity, SnapshotOptions};

use crate::harness::{Cluster, Stopped, local, put, read};

const DIR: &str = "STRONGROOM_TEST_CRASH_DIR";
const FAIL_POINT: &str = "STRONGROOM_FAIL_POINT";

/// Enough, with the number of writes below, for table files and for purged log worth reclaiming.
const VALUE: usize = 64 << 10;
const WRITES: usize = 200;

#[test]
fn the_process_dies_while_a_snapshot_is_built() {
    die_at(&[
        "snapshot-begin",
        "snapshot-linked",
        "snapshot-before-rename",
        "snapshot-renamed",
    ]);
}

#[test]
fn the_process_dies_while_a_snapshot_is_received() {
    die_at(&["receive-begin", "receive-file:2", "receive-whole"]);
}

#[test]
fn the_process_dies_while_a_snapshot_is_installed() {
    die_at(&[
        "install-linked",
        "install-claimed",
        "install-begin",
        "install-kept",
        "install-before-current",
        "install-current",
        "install-live",
        "install-swept",
    ]);
}

#[test]
fn the_process_dies_while_the_log_is_purged() {
    die_at(&[
        "purge-begun",
        "purge-begun:3",
        "purge-synced",
        "purge-files",
        "purge-reclaimed",
    ]);
}

#[test]
fn the_process_dies_while_the_log_goes_into_table_files() {
    die_at(&[
        "move-synced",
        "move-moved",
        "move-moved:2",
        "move-marked",
        "close-moved",
        "close-marked",
    ]);
}

fn die_at(points: &[&str]) {
    for point in points {
        let dir = tempfile::tempdir().unwrap();
        let (ended, said) = run(dir.path(), Some(point));
        let name = point.split(':').next().unwrap();
        assert!(
            !ended && said.contains(&format!("fail-point {name}")),
            "{point}: {said}"
        );
        let (lived, said) = run(dir.path(), None);
        assert!(lived, "after {point}: {said}");
    }
}

/// Whether the other process came to its end, and what it said.
fn run(dir: &Path, point: Option<&str>) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "crash::victim", "--ignored", "--nocapture"])
        .env(DIR, dir)
        .env_remove(FAIL_POINT);
    if let Some(point) = point {
        command.env(FAIL_POINT, point);
    }
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

#[test]
#[ignore = "the process that the others start"]
fn victim() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(live(Path::new(&dir)));
}

/// Keys whose writes were acknowledged.
struct Acknowledged {
    path: PathBuf,
    file: File,
}

impl Acknowledged {
    fn open(dir: &Path) -> Self {
        let path = dir.join("acknowledged");
        let file = OpenOptions::new().create(true).append(true).open(&path);
        Self {
            file: file.unwrap(),
            path,
        }
    }

    fn all(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.path).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    async fn write(&mut self, cluster: &Cluster, key: &str) {
        cluster.write(put(key, &"x".repeat(VALUE))).await;
        writeln!(self.file, "{key}").unwrap();
    }
}

async fn live(dir: &Path) {
    let options = SnapshotOptions {
        threshold: 60,
        interval: Duration::from_millis(100),
        trailing_logs: 5,
        ..SnapshotOptions::default()
    };
    let mut acknowledged = Acknowledged::open(dir);
    let mut cluster = Cluster::on_disk(dir, options);
    let known = known_nodes(dir);
    if known.is_empty() {
        first_life(cluster, dir, &mut acknowledged).await;
        return;
    }
    for stopped in known {
        cluster.restart(stopped).await;
    }
    let keys = acknowledged.all();
    for number in 0..20 {
        acknowledged
            .write(&cluster, &format!("again{number}"))
            .await;
    }
    for node in &cluster.nodes {
        assert!(read(node, "again19").await.is_some());
        for key in &keys {
            assert!(
                local(node, key).is_some(),
                "{key} on {}",
                node.identity.raft_id
            );
        }
    }
    cluster.shutdown().await;
}

/// Until a fail-point ends it.
async fn first_life(mut cluster: Cluster, dir: &Path, acknowledged: &mut Acknowledged) {
    cluster.begin().await;
    let mut cluster = cluster.grown().await;
    for node in &cluster.nodes {
        let addr = dir.join(node.identity.raft_id.to_string()).join("addr");
        fs::write(addr, &node.addr).unwrap();
    }
    let away = (cluster.leader().await + 1) % 3;
    let stopped = cluster.stop(away).await;
    for number in 0..WRITES {
        acknowledged.write(&cluster, &format!("key{number}")).await;
    }
    // The leader waits a while for who was there just now.
    cluster
        .until("purged logs", |c| {
            c.nodes
                .iter()
                .all(|node| node.raft.snapshot_stats().purged > 100)
        })
        .await;
    // For the disk to be given back.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let back = cluster.restart(stopped).await;
    let last = format!("key{}", WRITES - 1);
    assert!(read(&cluster.nodes[back], &last).await.is_some());
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!("no fail-point was passed");
    cluster.shutdown().await;
}

/// The nodes of an earlier life.
fn known_nodes(dir: &Path) -> Vec<Stopped> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let dir = entry.unwrap().path();
        if let Ok(addr) = fs::read_to_string(dir.join("addr")) {
            let identity = Identity::load(&dir).unwrap().unwrap();
            found.push(Stopped {
                identity,
                addr,
                dir,
            });
        }
    }
    found
}
