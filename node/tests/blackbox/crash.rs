//! `kill -9` under load: every acknowledged write is there afterwards, on every node, without help.

use std::time::Duration;

use serde_json::json;
use strongroom_jepsen_tests::{
    Client, Cluster,
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
