//! Disks that misbehave. One that fills up: the node gives leadership away before, serves what it can, and goes on by
//! itself; and a disk that is full in spite of it ends the node with a message, and nothing is lost. One that is slow:
//! leadership moves away. One that fails a sync: the node ends at once.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::json;
use strongroom_jepsen_tests::{
    Client, Cluster, Options,
    logs::{NODES_AWAY, STARTING},
    machine::wait_for,
};

use crate::BINARY;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 400 * MIB;
const RESERVE: u64 = 64 * MIB;

/// A small ext4 in a file, mounted where a node keeps its data.
struct SmallDisk {
    mount: PathBuf,
}

impl SmallDisk {
    /// `None`, with a message: this machine or user cannot mount.
    fn mount(image: &Path, mount: &Path) -> Option<Self> {
        let file = fs::File::create(image).unwrap();
        file.set_len(SIZE).unwrap();
        let run = |command: &mut Command| command.output().is_ok_and(|o| o.status.success());
        let made = run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0"])
            .arg(image));
        if !made
            || !run(Command::new("mount")
                .args(["-o", "loop"])
                .arg(image)
                .arg(mount))
        {
            eprintln!(
                "NOT TESTED: a file system cannot be made and mounted here (root, e2fsprogs and loop devices)"
            );
            return None;
        }
        Some(Self {
            mount: mount.to_owned(),
        })
    }

    fn ballast(&self) -> PathBuf {
        self.mount.join("ballast")
    }

    /// Leaves this many bytes free.
    fn leave(&self, free: u64) {
        let stat = rustix::fs::statvfs(&self.mount).unwrap();
        let now = stat.f_bavail * stat.f_frsize;
        let held = fs::metadata(self.ballast()).map_or(0, |ballast| ballast.len());
        let file = fs::File::options()
            .create(true)
            .append(true)
            .open(self.ballast())
            .unwrap();
        let size = (held + now).saturating_sub(free);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size).unwrap();
    }

    fn make_room(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Its node may still run, if the test has failed.
        let unmount = Command::new("umount").arg("-l").arg(&self.mount).status();
        if !unmount.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.mount.display());
        }
    }
}

fn put(client: &Client, name: &str) -> u16 {
    client
        .put(&format!("kv/{name}"), &json!({"v": name}))
        .status
}

fn wait_read(client: &Client, name: &str) {
    wait_for("a read", Duration::from_secs(30), || {
        (client.get(&format!("kv/{name}")).status == 200).then_some(())
    });
}

#[test]
fn a_full_disk() {
    let options = Options {
        binary: BINARY.into(),
        nodes: 3,
        key_made_before: true,
    };
    let mut cluster = Cluster::prepare(&options);
    let image = cluster.dir().join("image");
    let Some(disk) = SmallDisk::mount(&image, &cluster.data_dir(1)) else {
        return;
    };
    for number in 1..=3 {
        let reserve = if number == 1 { RESERVE } else { 1 };
        cluster.configure(number, |node| {
            node.storage_extra = format!("disk_reserve = {reserve}");
        });
        cluster.start_node(number);
    }
    cluster.init();
    cluster.wait_all();
    assert_eq!(cluster.leader(), 1, "the node that was initialised leads");
    let clients = [1, 2].map(|number| cluster.client(number));
    let [one, two] = &clients;
    assert_eq!(one.put("sys/mounts/kv", &json!({"type": "kv"})).status, 204);
    assert_eq!(put(one, "before"), 204);

    refuses_a_snapshot(&disk, one);
    gives_leadership_away(&cluster, &disk, one);
    takes_nothing_and_says_so(&cluster, &disk, one, two);
    disk.make_room();
    wait_read(one, "critical");
    assert_eq!(put(one, "after"), 204);

    ends_on_an_error_and_comes_back(&mut cluster, &disk);
    let allowed = [
        "the disk is nearly full",
        "the disk is full but for",
        "this node should not lead",
        "a restore was refused",
        "No space left",
        "a request was not carried out",
        "syncing the Raft log failed",
        // What is still under way when the log has failed.
        "openraft::",
        "flushing the state at shutdown failed",
        "the last sync of the Raft log failed",
    ];
    cluster.assert_logs_clean(&[STARTING, NODES_AWAY, &allowed]);
    // Before the directory goes.
    drop(disk);
}

/// A restore would take room that the leader needs: it is refused, and nothing of it stays.
fn refuses_a_snapshot(disk: &SmallDisk, one: &Client) {
    let restore = |size: u64| {
        let body = vec![0; usize::try_from(size).unwrap()];
        let path = b"/v1/sys/storage/raft/snapshot";
        one.request_bytes("POST", path, &body).unwrap()
    };
    let nonsense = restore(8 * MIB).expect(400);
    assert!(!nonsense.errors().is_empty());
    disk.leave(RESERVE + 6 * MIB);
    let refused = restore(8 * MIB).expect(503);
    assert!(
        refused.text().contains("disk_reserve"),
        "{}",
        refused.text()
    );
    assert_eq!(put(one, "small"), 204);
    disk.make_room();
}

/// Below the reserve another node leads; this one still takes part, for reads and for forwarded writes.
fn gives_leadership_away(cluster: &Cluster, disk: &SmallDisk, one: &Client) {
    disk.leave(RESERVE * 3 / 4);
    wait_for("another leader", Duration::from_secs(20), || {
        cluster.find_leader().filter(|leader| *leader != 1)
    });
    assert_eq!(put(one, "low"), 204);
    wait_read(one, "low");
    assert!(cluster.log_text(1).contains("the disk is nearly full"));
}

/// Below half of it the node takes no entries: others go on, and have the leader answer what is read here.
fn takes_nothing_and_says_so(cluster: &Cluster, disk: &SmallDisk, one: &Client, two: &Client) {
    disk.leave(RESERVE / 4);
    wait_for("the node to notice", Duration::from_secs(20), || {
        let log = cluster.log_text(1);
        log.contains("the disk is full but for").then_some(())
    });
    assert_eq!(put(two, "critical"), 204);
    let began = Instant::now();
    let read = one.get("kv/critical").expect(200);
    assert_eq!(read.json()["data"]["v"], "critical");
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(one.list("kv").len(), 4);
    let here = one
        .clone()
        .with_header("X-Vault-No-Request-Forwarding", "true")
        .get("kv/critical");
    assert_eq!(here.status, 503, "{}", here.text());
    assert_eq!(here.header("retry-after"), Some("1"));
    let stale = one
        .clone()
        .with_header("X-Strongroom-Consistency", "stale")
        .get("kv/low")
        .expect(200);
    assert_eq!(stale.header("x-strongroom-consistency"), Some("stale"));
    let page = one.get("sys/metrics?format=prometheus").expect(200).text();
    assert!(page.contains("strongroom_disk_free_bytes"));
}

/// Without a reserve the disk is full at some moment: the node ends and says why, and with room it is back.
fn ends_on_an_error_and_comes_back(cluster: &mut Cluster, disk: &SmallDisk) {
    let _ = cluster.terminate(1);
    cluster.configure(1, |node| {
        node.storage_extra = "disk_reserve = 1".to_owned();
    });
    cluster.start_node(1);
    cluster.wait_all();
    disk.leave(4096);
    let two = cluster.client(2);
    let value = "x".repeat(700 << 10);
    for number in 0..120 {
        let body = json!({ "v": value });
        let status = two.put(&format!("kv/large-{number}"), &body).status;
        assert_eq!(status, 204, "two of three nodes have room");
        if !cluster.runs(1) {
            break;
        }
    }
    let status = cluster.wait_ended(1);
    assert_eq!(status.code(), Some(1), "{status}");
    let log = cluster.log_text(1);
    assert!(log.contains("No space left on device"), "{log}");
    assert!(
        log.contains("make room on the disk and start the node again"),
        "{log}"
    );
    disk.make_room();
    cluster.start_node(1);
    cluster.wait_all();
    wait_read(&cluster.client(1), "large-0");
    wait_read(&cluster.client(1), "after");
    let _ = cluster.terminate(1);
}

/// What `syncs` says happens to every sync of the process: `slow` or `fail`, anything else nothing.
const SYNCS: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int ordered(const char *what) {
    char order[8] = {0};
    FILE *file = fopen(getenv("SYNCS"), "r");
    if (file) { size_t n = fread(order, 1, 7, file); (void)n; fclose(file); }
    return !strncmp(order, what, 4);
}
static int disturbed(void) {
    while (ordered("hang")) usleep(20 * 1000);
    if (ordered("slow")) usleep(250 * 1000);
    if (ordered("fail")) { errno = EIO; return 1; }
    return 0;
}
int fsync(int fd) { return disturbed() ? -1 : (int)syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return disturbed() ? -1 : (int)syscall(SYS_fdatasync, fd); }
"#;

/// Has node 1 sync as the file says whose path this gives; `None`: there is no C compiler.
fn order_syncs(cluster: &mut Cluster) -> Option<PathBuf> {
    let (source, library) = (
        cluster.dir().join("syncs.c"),
        cluster.dir().join("syncs.so"),
    );
    fs::write(&source, SYNCS).unwrap();
    let mut compile = Command::new("cc");
    compile
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source);
    if !compile.status().is_ok_and(|status| status.success()) {
        eprintln!("NOT TESTED: there is no C compiler");
        return None;
    }
    let order = cluster.dir().join("syncs");
    cluster.configure(1, |node| {
        let value = |path: &Path| path.display().to_string();
        node.environment
            .push(("LD_PRELOAD".to_owned(), value(&library)));
        node.environment.push(("SYNCS".to_owned(), value(&order)));
    });
    Some(order)
}

/// It has no seal data file, as after an init that was cut off after its last step, and its disk hangs while it looks.
#[test]
fn who_does_not_know_whether_there_is_a_cluster_keeps_others_from_founding_one() {
    let mut cluster = Cluster::prepare(&Options {
        binary: BINARY.into(),
        nodes: 2,
        key_made_before: true,
    });
    let Some(order) = order_syncs(&mut cluster) else {
        return;
    };
    cluster.start_node(1);
    cluster.init();
    cluster.wait_unsealed(1);
    assert!(cluster.terminate(1).success());
    fs::remove_file(cluster.data_dir(1).join("seal.json")).unwrap();
    fs::write(&order, "hang").unwrap();
    cluster.start_node(1);
    let unknown = cluster.anonymous(1).get("sys/init").expect(503);
    assert_eq!(
        unknown.errors(),
        ["the node is starting and does not know yet whether it is initialized"]
    );
    cluster.start_node(2);
    let request = json!({"recovery_shares": 1, "recovery_threshold": 1});
    let refused = cluster.anonymous(2).put("sys/init", &request).expect(503);
    let why = refused.errors().join("; ");
    assert!(why.contains("has just started and does not know"), "{why}");
    fs::write(&order, "").unwrap();
    cluster.wait_all();
    let members = cluster.servers(2);
    assert_eq!(members.len(), 2, "{members:?}");
}

#[test]
fn a_slow_disk_and_one_that_fails() {
    let mut cluster = Cluster::prepare(&Options {
        binary: BINARY.into(),
        nodes: 3,
        key_made_before: true,
    });
    let Some(order) = order_syncs(&mut cluster) else {
        return;
    };
    for number in 1..=3 {
        cluster.start_node(number);
    }
    cluster.init();
    cluster.wait_all();
    assert_eq!(cluster.leader(), 1, "the node that was initialised leads");
    let one = cluster.client(1);
    assert_eq!(one.put("sys/mounts/kv", &json!({"type": "kv"})).status, 204);

    fs::write(&order, "slow").unwrap();
    let mut written = 0;
    wait_for("another leader", Duration::from_secs(60), || {
        assert_eq!(put(&one, &format!("slow-{written}")), 204);
        written += 1;
        cluster.find_leader().filter(|leader| *leader != 1)
    });
    assert!(cluster.log_text(1).contains("this node should not lead"));
    // It stays away although it is asked for nothing else.
    for number in 0..20 {
        assert_eq!(put(&one, &format!("later-{number}")), 204);
    }
    assert_ne!(cluster.leader(), 1);

    fs::write(&order, "fail").unwrap();
    let two = cluster.client(2);
    assert_eq!(put(&two, "failing"), 204);
    let status = cluster.wait_ended(1);
    assert_eq!(status.code(), Some(1), "{status}");
    assert!(cluster.log_text(1).contains("syncing the Raft log failed"));
    fs::write(&order, "").unwrap();
    cluster.start_node(1);
    cluster.wait_all();
    wait_read(&cluster.client(1), "failing");
    wait_read(&cluster.client(1), &format!("slow-{}", written - 1));
    let allowed = [
        "this node should not lead",
        "syncing the Raft log failed",
        "storage failed",
        "a request was not carried out",
        // What is still under way when the log has failed.
        "openraft::",
        "flushing the state at shutdown failed",
        "the last sync of the Raft log failed",
    ];
    cluster.assert_logs_clean(&[STARTING, NODES_AWAY, &allowed]);
}
