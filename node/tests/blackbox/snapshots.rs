//! A node that was away while the log was purged, and one whose disk is empty, catch up by snapshot and serve reads; a
//! node starts again on a purged log.

use std::time::{Duration, Instant};

use serde_json::json;
use strongroom_jepsen_tests::{
    Cluster,
    cluster::{read, write},
};

use crate::{
    BINARY,
    limits::{figure, prometheus},
};

const SETTINGS: &str =
    "  snapshot_threshold = 40\n  snapshot_interval = \"100ms\"\n  trailing_logs = 5\n";
const KEYS: usize = 150;

/// Everything below `prefix` is on this node, and it answers for it.
fn has_all(cluster: &Cluster, node: usize, prefix: &str) {
    let client = cluster.client(node);
    for number in 0..KEYS {
        let path = format!("kv/{prefix}{number}");
        assert_eq!(
            read(&client, &path).as_deref(),
            Some(prefix),
            "{path} on node {node}"
        );
    }
}

fn write_all(cluster: &Cluster, node: usize, prefix: &str) {
    let client = cluster.client(node);
    for number in 0..KEYS {
        write(&client, &format!("kv/{prefix}{number}"), prefix);
    }
}

/// Waits until these nodes have purged their logs up to `index`; the leader keeps for some seconds what a member that was
/// there just now still needs.
fn wait_purged(cluster: &Cluster, nodes: &[usize], index: f64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let purged = |node: &usize| {
        let page = prometheus(&cluster.client(*node));
        figure(&page, "strongroom_log_purged_index")
    };
    while nodes.iter().any(|node| purged(node) < index) {
        assert!(Instant::now() < deadline, "not purged up to {index}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn who_is_behind_the_purged_log_catches_up_by_snapshot() {
    let mut cluster = Cluster::initialized(3, BINARY);
    for node in 1..=3 {
        cluster.configure(node, |config| config.storage_extra = SETTINGS.to_owned());
        assert!(cluster.terminate(node).success());
        cluster.start_node(node);
        cluster.wait_all();
    }
    let mount = json!({"type": "kv", "seal_wrap": true});
    assert_eq!(cluster.client(1).put("sys/mounts/kv", &mount).status, 204);
    write_all(&cluster, 1, "before");

    // Away while the log it needs is purged.
    let away = cluster.follower();
    cluster.kill9(away);
    let others: Vec<usize> = (1..=3).filter(|node| *node != away).collect();
    write_all(&cluster, others[0], "meanwhile");
    wait_purged(&cluster, &others, 250.0);
    cluster.start_node(away);
    cluster.wait_all();
    has_all(&cluster, away, "before");
    has_all(&cluster, away, "meanwhile");
    assert!(cluster.log_text(away).contains("installed a snapshot"));

    // An empty disk.
    let wiped = cluster.follower();
    assert!(cluster.terminate(wiped).success());
    cluster.wipe(wiped);
    cluster.start_node(wiped);
    cluster.wait_all();
    has_all(&cluster, wiped, "meanwhile");
    assert!(cluster.log_text(wiped).contains("installed a snapshot"));
    write_all(&cluster, wiped, "after");

    // All of them start again on what they have, without any help.
    wait_purged(&cluster, &[1, 2, 3], 400.0);
    for node in 1..=3 {
        cluster.kill9(node);
    }
    for node in 1..=3 {
        cluster.start_node(node);
    }
    cluster.wait_all();
    for node in 1..=3 {
        for prefix in ["before", "meanwhile", "after"] {
            has_all(&cluster, node, prefix);
        }
    }
    cluster.assert_no_panics();
}
