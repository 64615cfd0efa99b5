//! Leadership, membership and autopilot through the API: who carries it out, what it checks, what it looks like.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

mod support;

use serde_json::{Value, json};
use support::{Cluster, request};

const CONFIG: &str = "sys/storage/raft/autopilot/configuration";

#[tokio::test]
async fn a_step_down_is_carried_out_by_the_leader_and_once() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    let step = |to: &str| request("PUT", "sys/step-down", &token, to);
    assert_eq!(nodes[1].send(step("")).await.code(), 204);
    assert_eq!(*cluster.leader.lock().unwrap(), Some(1));
    assert_eq!(nodes[1].send(step(r#"{"to":"n0"}"#)).await.code(), 204);
    assert_eq!(*cluster.leader.lock().unwrap(), Some(0));
    let refused = nodes[1].send(step(r#"{"to":"x"}"#)).await;
    assert_eq!(refused.code(), 400);
    assert_eq!(refused.errors(), ["no node named `x`"]);
    let denied = request("PUT", "sys/step-down", "wrong", "");
    assert_eq!(nodes[0].send(denied).await.code(), 403);
    // Its answer is lost: it must not be carried out by the next leader too.
    cluster
        .lost_answers
        .store(1, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(nodes[1].send(step("")).await.code(), 500);
    assert_eq!(*cluster.leader.lock().unwrap(), Some(1));
}

#[tokio::test]
async fn members_are_changed_by_whoever_leads_then() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    for (what, id, node) in [
        ("remove-peer", "n7", 0),
        ("demote", "n7", 1),
        ("promote", "n7", 1),
        // The leader itself: the other one takes over and does it.
        ("remove-peer", "n0", 0),
        // And the same through a follower.
        ("demote", "n1", 0),
    ] {
        let body = format!(r#"{{"server_id":"{id}"}}"#);
        let path = format!("sys/storage/raft/{what}");
        let answer = nodes[node].send(request("PUT", &path, &token, &body)).await;
        assert_eq!(answer.code(), 204, "{what} {id}: {answer:?}");
    }
    assert_eq!(
        *cluster.changes.lock().unwrap(),
        [
            "n0: Remove n7",
            "n0: Demote n7",
            "n0: Promote n7",
            "n1: Remove n0",
            "n0: Demote n1"
        ]
    );
    for body in [
        "{}",
        r#"{"server_id":""}"#,
        r#"{"server_id":null}"#,
        r#"{"server_id":7}"#,
    ] {
        let asked = request("PUT", "sys/storage/raft/remove-peer", &token, body);
        assert_eq!(nodes[0].send(asked).await.code(), 400, "{body}");
    }
    let asked = request("GET", "sys/storage/raft/remove-peer", &token, "");
    assert_eq!(nodes[0].send(asked).await.code(), 405);
}

#[tokio::test]
async fn autopilots_settings_are_kept_and_checked() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    let defaults = json!({
        "cleanup_dead_servers": false,
        "dead_server_last_contact_threshold": "24h0m0s",
        "disable_upgrade_migration": false,
        "last_contact_threshold": "10s",
        "max_trailing_logs": 1000,
        "min_quorum": 0,
        "server_stabilization_time": "10s",
    });
    let read = async |node: usize| -> Value {
        let answer = nodes[node].send(request("GET", CONFIG, &token, "")).await;
        assert_eq!(answer.code(), 200);
        answer.json()["data"].clone()
    };
    assert_eq!(read(1).await, defaults);
    let write = async |body: &str| nodes[1].send(request("POST", CONFIG, &token, body)).await;
    let set = r#"{"cleanup_dead_servers":true,"dead_server_last_contact_threshold":"2m0s","min_quorum":3}"#;
    assert_eq!(write(set).await.code(), 204);
    assert_eq!(
        write(r#"{"max_trailing_logs":"500","last_contact_threshold":7}"#)
            .await
            .code(),
        204
    );
    let mut want = defaults;
    want["cleanup_dead_servers"] = true.into();
    want["dead_server_last_contact_threshold"] = "2m0s".into();
    want["min_quorum"] = 3.into();
    want["max_trailing_logs"] = 500.into();
    want["last_contact_threshold"] = "7s".into();
    for node in [0, 1] {
        assert_eq!(read(node).await, want);
    }
    assert_eq!(
        cluster.changes.lock().unwrap().last().unwrap(),
        "n0: min_quorum 3"
    );
    for (body, why) in [
        (
            r#"{"min_quorum":1}"#,
            "min_quorum must be set when cleanup_dead_servers is set and it should at least be 3; \
             cleanup_dead_servers: true, min_quorum: 0x1",
        ),
        (
            r#"{"dead_server_last_contact_threshold":"2s"}"#,
            "dead_server_last_contact_threshold should not be set to less than 1m; received: 2",
        ),
        (
            r#"{"last_contact_threshold":"0s"}"#,
            "last_contact_threshold must be at least 1s",
        ),
        (
            r#"{"last_contact_threshold":"soon"}"#,
            "last_contact_threshold must be a duration",
        ),
        (
            r#"{"max_trailing_logs":-1}"#,
            "max_trailing_logs must be a whole number",
        ),
        (
            r#"{"cleanup_dead_servers":"perhaps"}"#,
            "cleanup_dead_servers must be true or false",
        ),
    ] {
        let answer = write(body).await;
        assert_eq!(answer.code(), 400, "{body}");
        assert!(answer.errors()[0].starts_with(why), "{body}: {answer:?}");
    }
    assert_eq!(read(0).await, want, "what was refused changed nothing");
}

#[tokio::test]
async fn without_a_leader_a_node_says_what_it_knows_if_that_is_enough() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    cluster.set_leader(None);
    for (path, status) in [
        ("sys/storage/raft/configuration", 200),
        ("sys/ha-status", 200),
        ("sys/storage/raft/autopilot/state", 503),
    ] {
        let mut asked = request("GET", path, &token, "");
        asked.headers_mut().insert(
            "x-strongroom-consistency",
            http::HeaderValue::from_static("stale"),
        );
        assert_eq!(nodes[1].send(asked).await.code(), status, "{path}");
    }
}

#[tokio::test]
async fn every_node_gives_the_leaders_view() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    cluster.set_leader(Some(1));
    let path = "sys/storage/raft/autopilot/state";
    let mut seen = Vec::new();
    for node in &nodes {
        let answer = node.send(request("GET", path, &token, "")).await;
        assert_eq!(answer.code(), 200, "{answer:?}");
        seen.push(answer.json()["data"].clone());
    }
    assert_eq!(seen[0], seen[1]);
    let state = &seen[0];
    assert_eq!(state["leader"], "n1");
    assert_eq!(state["voters"], json!(["n0", "n1"]));
    assert_eq!(state["non_voters"], Value::Null);
    assert_eq!(
        state["servers"]["n1"],
        json!({
            "id": "n1",
            "name": "n1",
            "address": "10.0.0.1:8201",
            "node_status": "alive",
            "last_contact": "5.041773s",
            "last_term": 3,
            "last_index": 78,
            "healthy": true,
            "stable_since": "2026-11-23T17:40:35.162Z",
            "status": "leader",
            "version": "0.1.0",
            "upgrade_version": "0.1.0",
            "node_type": "voter",
            "read_replica": false,
        })
    );
}
