//! Writes that a follower carries out itself: when it does, when it leaves it to the leader, and that each is applied
//! once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

mod support;

use std::sync::{Arc, atomic::Ordering};

use http::HeaderValue;
use serde_json::{Value, json};
use strongroom_api::ports::Barrier as _;
use support::{Cluster, Fault, TestBarrier, TestNode, request};

async fn with_mount() -> (Arc<Cluster>, Vec<Arc<TestNode>>, String) {
    let (cluster, nodes, token) = Cluster::start(2).await;
    for (path, body) in [
        ("sys/mounts/kv", r#"{"type":"kv"}"#),
        ("sys/mounts/wrapped", r#"{"type":"kv","seal_wrap":true}"#),
    ] {
        let made = nodes[0].send(request("POST", path, &token, body)).await;
        assert_eq!(made.code(), 204);
    }
    (cluster, nodes, token)
}

fn forwards(cluster: &Cluster) -> usize {
    cluster.forwards.load(Ordering::SeqCst)
}

#[tokio::test]
async fn plain_writes_are_finished_by_the_follower_and_all_others_sent_on() {
    let (cluster, nodes, token) = with_mount().await;
    let long = format!("kv/{}", "a".repeat(5000));
    for (method, path, token, body, code, sent_on) in [
        ("PUT", "kv/a", token.as_str(), r#"{"v":1}"#, 204, false),
        ("POST", "wrapped/a", &token, r#"{"v":2}"#, 204, false),
        ("PUT", "cubbyhole/a", &token, r#"{"v":3}"#, 204, false),
        ("DELETE", "kv/b", &token, "", 204, false),
        ("DELETE", "kv", &token, "", 204, true),
        ("DELETE", "kv/folder/", &token, "", 204, true),
        // What is wrong, or may be, is the leader's to say.
        ("PUT", "kv/a", &token, "{}", 400, true),
        ("PUT", "kv/a/", &token, r#"{"v":1}"#, 400, true),
        ("PUT", &long, &token, r#"{"v":1}"#, 400, true),
        ("PUT", "kv/a", "hvs.nobodys", r#"{"v":1}"#, 403, true),
        ("PUT", "kv/a", "", r#"{"v":1}"#, 403, true),
        ("PUT", "nowhere/a", &token, r#"{"v":1}"#, 404, true),
        (
            "PUT",
            "sys/mounts/more",
            &token,
            r#"{"type":"kv"}"#,
            204,
            true,
        ),
    ] {
        let before = forwards(&cluster);
        let answer = nodes[1].send(request(method, path, token, body)).await;
        assert_eq!(answer.code(), code, "{method} {path}: {answer:?}");
        assert_eq!(forwards(&cluster) > before, sent_on, "{method} {path}");
    }
    for (path, want) in [("kv/a", 1), ("wrapped/a", 2), ("cubbyhole/a", 3)] {
        let read = nodes[0].send(request("GET", path, &token, "")).await;
        let read: Value = serde_json::from_slice(&read.body).unwrap();
        assert_eq!(read["data"], json!({ "v": want }), "{path}");
    }
}

#[tokio::test]
async fn a_follower_that_was_overtaken_leaves_the_request_to_the_leader() {
    let (cluster, nodes, token) = with_mount().await;
    let id = "0b0b0b0b-0000-4000-8000-000000000001";
    let put = || {
        let mut put = request("PUT", "kv/a", &token, r#"{"v":1}"#);
        put.headers_mut()
            .insert("x-strongroom-request-id", HeaderValue::from_static(id));
        put
    };
    let mounts = TestBarrier.key("core/mounts-version").unwrap();
    *cluster.overtake.lock().unwrap() = Some(mounts);
    let (applied, sent) = (cluster.applied(), forwards(&cluster));
    assert_eq!(nodes[1].send(put()).await.code(), 204);
    assert_eq!(cluster.applied(), applied + 1);
    assert_eq!(forwards(&cluster), sent + 1);
    // The client did not get the answer and asks again, whichever node: nothing more is applied.
    for node in [&nodes[1], &nodes[0], &nodes[1]] {
        assert_eq!(node.send(put()).await.code(), 204);
        assert_eq!(cluster.applied(), applied + 1);
    }
}

#[tokio::test]
async fn a_failed_condition_whose_answer_is_lost_is_carried_out_once() {
    let (cluster, nodes, token) = with_mount().await;
    let mounts = TestBarrier.key("core/mounts-version").unwrap();
    *cluster.overtake.lock().unwrap() = Some(mounts);
    cluster.fail_next_commits(&[Fault::AppliedButUnknown]);
    let applied = cluster.applied();
    let put = request("PUT", "kv/a", &token, r#"{"v":1}"#);
    assert_eq!(nodes[1].send(put).await.code(), 204);
    assert_eq!(cluster.applied(), applied + 1);
}

#[tokio::test]
async fn a_lost_outcome_is_asked_for_again_under_the_same_id() {
    for fault in [Fault::AppliedButUnknown, Fault::LostAndUnknown] {
        let (cluster, nodes, token) = with_mount().await;
        let applied = cluster.applied();
        cluster.fail_next_commits(&[fault]);
        let put = request("PUT", "kv/a", &token, r#"{"v":1}"#);
        assert_eq!(nodes[1].send(put).await.code(), 204, "{fault:?}");
        assert_eq!(cluster.applied(), applied + 1, "{fault:?}");
    }
}

#[tokio::test]
async fn a_refusal_of_the_second_copy_says_nothing_about_the_first() {
    for node in [0, 1] {
        for first in [Fault::AppliedButUnknown, Fault::LostAndUnknown] {
            let (cluster, nodes, token) = with_mount().await;
            let put = || request("PUT", "kv/a", &token, r#"{"v":1}"#);
            cluster.fail_next_commits(&[first, Fault::TooLarge]);
            let answer = nodes[node].send(put()).await;
            assert_eq!(answer.code(), 500, "{node} {first:?}");
            assert!(answer.error().contains("outcome"), "{}", answer.error());
            // A refusal of the only copy is one of the request. A follower's own attempt is refused too.
            let faults = vec![Fault::TooLarge; node + 1];
            cluster.fail_next_commits(&faults);
            assert_eq!(nodes[node].send(put()).await.code(), 413, "{node}");
        }
    }
}

#[tokio::test]
async fn a_client_is_not_sent_elsewhere_with_what_may_be_applied() {
    let (cluster, nodes, token) = with_mount().await;
    cluster.fail_next_commits(&vec![Fault::AppliedButUnknown; 1000]);
    let applied = cluster.applied();
    let mut put = request("PUT", "kv/a", &token, r#"{"v":1}"#);
    put.headers_mut().insert(
        "x-vault-no-request-forwarding",
        HeaderValue::from_static("true"),
    );
    let sending = tokio::spawn({
        let node = Arc::clone(&nodes[0]);
        async move { node.send(put).await.code() }
    });
    while cluster.applied() == applied {
        tokio::task::yield_now().await;
    }
    cluster.set_leader(Some(1));
    assert_eq!(sending.await.unwrap(), 500);
}

#[tokio::test]
async fn the_index_in_the_answer_covers_the_write() {
    use base64::Engine as _;
    let (cluster, nodes, token) = with_mount().await;
    let put = request("PUT", "kv/a", &token, r#"{"v":1}"#);
    let answer = nodes[1].send(put).await;
    let header = answer.headers["x-vault-index"].as_bytes();
    let json = base64::engine::general_purpose::STANDARD
        .decode(header)
        .unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let index = cluster.state.lock().unwrap().index;
    assert_eq!(json["value"], json!(index.to_string()));
}
