//! Unsealing without help, and life while the HSM is away.

use std::time::{Duration, Instant};

use serde_json::json;
use strongroom_jepsen_tests::{
    Cluster,
    cluster::{read, write},
    logs::{NODES_AWAY, STARTING},
    machine::wait_for,
};

use crate::BINARY;

/// An HSM that is back must be noticed within this time.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn every_node_unseals_itself_at_every_start() {
    let mut cluster = Cluster::initialized(3, BINARY);
    assert_eq!(
        cluster
            .client(1)
            .put("sys/mounts/kv", &json!({"type": "kv", "seal_wrap": true}))
            .status,
        204
    );
    write(&cluster.client(1), "kv/a", "0");
    for node in 1..=3 {
        assert!(
            cluster.terminate(node).success(),
            "SIGTERM is an orderly end"
        );
        let other = cluster.follower();
        write(&cluster.client(other), "kv/a", &node.to_string());
        let began = Instant::now();
        cluster.start_node(node);
        cluster.wait_unsealed(node);
        println!("node {node}: restart to unsealed {:?}", began.elapsed());
        assert_eq!(read(&cluster.client(node), "kv/a"), Some(node.to_string()));
        cluster.wait_all();
    }
    cluster.assert_logs_clean(&[STARTING, NODES_AWAY]);
}

#[test]
fn an_hsm_away_at_start_is_waited_for() {
    let mut cluster = Cluster::initialized(3, BINARY);
    assert_eq!(
        cluster
            .client(1)
            .put("sys/mounts/kv", &json!({"type": "kv", "seal_wrap": true}))
            .status,
        204
    );
    write(&cluster.client(1), "kv/a", "b");
    let leader = cluster.leader();
    for node in [leader, leader % 3 + 1] {
        cluster.terminate(node);
        cluster.token(node).take_away();
        cluster.start_node(node);
        cluster.wait_warning(node, "HSM");
        std::thread::sleep(Duration::from_secs(2));
        assert!(cluster.runs(node), "it waits and does not exit");
        assert_eq!(cluster.health(node), 503);
        let status = cluster.strongroom(node, &["status"]).expect(2);
        assert!(status.stdout.contains("Sealed"), "{}", status.all());
        cluster.token(node).give_back();
        let back = Instant::now();
        cluster.wait_unsealed(node);
        assert!(
            back.elapsed() < SOON,
            "unsealed {:?} after the HSM's return",
            back.elapsed()
        );
        println!("node {node}: HSM back to unsealed {:?}", back.elapsed());
        assert_eq!(read(&cluster.client(node), "kv/a").as_deref(), Some("b"));
        cluster.wait_all();
    }
    // All at once: nobody is there to help.
    for node in 1..=3 {
        cluster.terminate(node);
        cluster.token(node).take_away();
    }
    for node in 1..=3 {
        cluster.start_node(node);
    }
    std::thread::sleep(Duration::from_secs(1));
    for node in 1..=3 {
        assert_eq!(cluster.health(node), 503);
        cluster.token(node).give_back();
    }
    cluster.wait_all();
    assert_eq!(read(&cluster.client(1), "kv/a").as_deref(), Some("b"));
}

/// What needs no HSM goes on; what needs it is refused at once, not after a long wait; and all is well when it is back.
#[test]
fn an_hsm_away_while_running() {
    let cluster = Cluster::initialized(3, BINARY);
    let leader = cluster.leader();
    let client = cluster.client(leader);
    for (mount, seal_wrap) in [("plain", false), ("wrapped", true)] {
        assert_eq!(
            client
                .put(
                    &format!("sys/mounts/{mount}"),
                    &json!({"type": "kv", "seal_wrap": seal_wrap})
                )
                .status,
            204
        );
        write(&client, &format!("{mount}/a"), "before");
        // Warm on every node.
        for node in 1..=3 {
            assert_eq!(
                read(&cluster.client(node), &format!("{mount}/a")).as_deref(),
                Some("before")
            );
        }
    }
    for node in 1..=3 {
        cluster.token(node).take_away();
    }
    // Long enough for any key in memory to be past its time.
    let refused = wait_for(
        "a wrapped write to be refused",
        Duration::from_secs(30),
        || {
            let began = Instant::now();
            let answer = client.put("wrapped/new", &json!({"value": "x"}));
            assert!(
                began.elapsed() < Duration::from_secs(12),
                "refused after {:?}",
                began.elapsed()
            );
            (answer.status != 204).then_some(answer)
        },
    );
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(
        refused.errors().iter().any(|error| error.contains("HSM")),
        "{}",
        refused.text()
    );
    for node in 1..=3 {
        assert_eq!(cluster.health(node), 200, "node {node} serves on");
        let client = cluster.client(node);
        write(&client, "plain/a", &format!("during {node}"));
        assert_eq!(read(&client, "plain/a"), Some(format!("during {node}")));
        assert_eq!(
            read(&client, "wrapped/a").as_deref(),
            Some("before"),
            "a warm value needs no HSM"
        );
    }
    for node in 1..=3 {
        cluster.token(node).give_back();
    }
    let back = Instant::now();
    wait_for("wrapped writes to work again", SOON, || {
        (client.put("wrapped/new", &json!({"value": "after"})).status == 204).then_some(())
    });
    println!(
        "wrapped writes work {:?} after the HSM's return",
        back.elapsed()
    );
    for node in 1..=3 {
        let client = cluster.client(node);
        let value = wait_for("a cold wrapped read", SOON, || {
            let answer = client.get("wrapped/new");
            (answer.status == 200).then(|| answer.json()["data"]["value"].clone())
        });
        assert_eq!(value, json!("after"));
    }
}
