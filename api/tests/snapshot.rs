//! Snapshots over HTTP: who gives them, who restores them, what is bounded and what is not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

mod support;

use std::sync::atomic::Ordering;

use support::{Cluster, request};

const SAVE: &str = "sys/storage/raft/snapshot";
const FORCE: &str = "sys/storage/raft/snapshot-force";

#[tokio::test]
async fn every_node_gives_a_snapshot_of_its_own_state() {
    let (_cluster, nodes, token) = Cluster::start(3).await;
    for (id, node) in nodes.iter().enumerate() {
        let answer = node.send(request("GET", SAVE, &token, "")).await;
        assert_eq!(answer.code(), 200);
        assert_eq!(answer.headers["content-type"], "application/gzip");
        assert_eq!(answer.body, format!("the state of node {id}"));
    }
}

#[tokio::test]
async fn a_restore_through_any_node_is_the_leaders_and_of_any_size() {
    let (cluster, nodes, token) = Cluster::start(3).await;
    // Far more than a request's body may be.
    let file = "x".repeat(1 << 20);
    for (node, method, path) in [(0, "POST", SAVE), (2, "PUT", SAVE), (1, "POST", FORCE)] {
        let answer = nodes[node].send(request(method, path, &token, &file)).await;
        assert_eq!(answer.code(), 204, "{answer:?}");
    }
    assert_eq!(*cluster.restored.lock().unwrap(), vec![(0, 1 << 20); 3]);
}

#[tokio::test]
async fn nothing_is_given_or_taken_without_a_root_token() {
    let (cluster, nodes, _token) = Cluster::start(2).await;
    for node in &nodes {
        for (method, path) in [("GET", SAVE), ("POST", SAVE), ("POST", FORCE)] {
            let answer = node.send(request(method, path, "hvs.wrong", "file")).await;
            assert_eq!(answer.code(), 403, "{method} {path}");
        }
    }
    assert!(cluster.restored.lock().unwrap().is_empty());
}

#[tokio::test]
async fn refusals_have_their_own_answers() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    for (method, path, file, code, text) in [
        ("POST", SAVE, "", 400, "it is empty"),
        (
            "POST",
            SAVE,
            "other seal",
            400,
            "could not verify hash file, possibly the snapshot is using a different autoseal key; use the \
             snapshot-force API to bypass this check",
        ),
        ("POST", FORCE, "other seal", 204, ""),
        (
            "DELETE",
            SAVE,
            "",
            405,
            "1 error occurred:\n\t* unsupported operation\n\n",
        ),
        (
            "GET",
            FORCE,
            "",
            405,
            "1 error occurred:\n\t* unsupported operation\n\n",
        ),
    ] {
        for node in &nodes {
            let answer = node.send(request(method, path, &token, file)).await;
            assert_eq!(answer.code(), code, "{method} {path}");
            if !text.is_empty() {
                assert_eq!(answer.error(), text);
            }
        }
    }
    cluster.set_leader(None);
    for node in &nodes {
        let answer = node.send(request("POST", SAVE, &token, "file")).await;
        assert_eq!(answer.code(), 503);
        assert_eq!(answer.headers["retry-after"], "1");
    }
}

#[tokio::test]
async fn a_sealed_node_has_nothing_to_give_and_an_uninitialised_one_takes_a_snapshot() {
    let (cluster, nodes, token) = Cluster::start(1).await;
    nodes[0].sealed.store(true, Ordering::SeqCst);
    for method in ["GET", "POST"] {
        let answer = nodes[0].send(request(method, SAVE, &token, "file")).await;
        assert_eq!(
            (answer.code(), answer.error()),
            (503, "Vault is sealed".to_owned())
        );
    }
    nodes[0].initialized.store(false, Ordering::SeqCst);
    let answer = nodes[0].send(request("POST", SAVE, "", "file")).await;
    assert_eq!(answer.code(), 204);
    assert_eq!(*cluster.restored.lock().unwrap(), [(0, 4)]);
    let answer = nodes[0].send(request("GET", SAVE, "", "")).await;
    assert_eq!(answer.code(), 503);
}
