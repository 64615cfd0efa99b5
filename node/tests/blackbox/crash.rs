//! `kill -9` under load: every acknowledged write is there afterwards, on every node, without help.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::json;
use strongroom_jepsen_tests::{
    Client, Cluster,
    cluster::{read, write},
    nemesis::{Fault, Nemesis},
    verdict,
    workload::Load,
};

use crate::BINARY;

#[test]
fn kill_9_of_each_node_and_of_all_under_load() {
    let mut cluster = Cluster::initialized(3, BINARY);
    for (mount, seal_wrap) in [("plain", false), ("wrapped", true)] {
        let body = json!({"type": "kv", "seal_wrap": seal_wrap});
        assert_eq!(
            cluster
                .client(1)
                .put(&format!("sys/mounts/{mount}"), &body)
                .status,
            204
        );
    }
    let paths = (0..10)
        .map(|n| {
            format!(
                "{}/register-{n}",
                if n % 2 == 0 { "plain" } else { "wrapped" }
            )
        })
        .collect();
    let clients: Vec<Client> = (1..=3).map(|node| cluster.client(node)).collect();
    let load = Load::start(
        [clients.clone(), clients.clone()].concat(),
        paths,
        Duration::from_millis(5),
    );
    let mut nemesis = Nemesis::new(0);
    for fault in [
        Fault::Kill(1),
        Fault::Kill(2),
        Fault::Kill(3),
        Fault::KillLeader,
        Fault::KillAll,
    ] {
        nemesis.rest(500..1000);
        nemesis.inflict(&mut cluster, fault);
    }
    nemesis.rest(500..1000);
    let mut finished = load.stop();
    finished.look_at_everything(&clients);
    let history = finished.history;
    println!(
        "{:?}, longest time without an acknowledged write {:?}",
        history.counts,
        history.longest_gap()
    );
    assert!(
        history.counts.writes > 200 && history.counts.reads > 200,
        "too little to tell: {:?}",
        history.counts
    );
    verdict::assert_linearizable(&history.ops);
    for node in 1..=3 {
        assert!(
            !cluster.log_text(node).contains("panicked"),
            "{}",
            cluster.log_text(node)
        );
    }
}

/// Somebody puts an older copy of a follower's disk in its place, or its machine back to a snapshot: what it has acknowledged is
/// gone. That must not stop the leader, and the node must not go on with a vote for what it has lost.
#[test]
fn a_follower_that_is_set_back_ends_and_the_others_go_on() {
    let mut cluster = Cluster::initialized(3, BINARY);
    cluster.mount_kv("kv", false);
    write(&cluster.client(1), "kv/a", "before");
    let (leader, node) = (cluster.leader(), cluster.follower());
    cluster.kill9(node);
    let (data, aside) = (cluster.data_dir(node), cluster.dir().join("aside"));
    copy(&data, &aside);
    cluster.start_node(node);
    cluster.wait_all();
    for n in 0..100 {
        write(&cluster.client(leader), "kv/a", &format!("after {n}"));
    }
    assert_eq!(cluster.leader(), leader);
    cluster.kill9(node);
    fs::remove_dir_all(&data).unwrap();
    copy(&aside, &data);
    cluster.spawn(node);
    assert_eq!(cluster.wait_ended(node).code(), Some(1));
    let why = "does not have it any more: its disk was set back";
    assert!(
        cluster.log_text(node).contains(why),
        "{}",
        cluster.log_text(node)
    );
    assert!(cluster.runs(leader));
    assert_eq!(cluster.leader(), leader);
    write(&cluster.client(leader), "kv/a", "on");

    // The next leader has not heard what it acknowledged, so the node itself remembers.
    cluster.spawn(node);
    assert_eq!(cluster.wait_ended(node).code(), Some(1));
    let log = cluster.log_text(node);
    assert!(log.contains("this node must not run on it"), "{log}");
    assert!(log.contains("start the node with an empty one"), "{log}");

    cluster.wipe(node);
    cluster.start_node(node);
    cluster.wait_all();
    assert_eq!(read(&cluster.client(node), "kv/a").as_deref(), Some("on"));
    cluster.assert_no_panics();
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(status.unwrap().success());
}
