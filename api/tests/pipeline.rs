//! The request pipeline on a cluster in memory: who carries a request out, how often, and what a client gets to see
//! when leaders, answers or the HSM are lost.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

mod support;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderValue;
use serde_json::json;
use strongroom_api::{HttpSettings, Limits, NOT_LEADER, Service, ports::Stream};
use support::{Answer, Cluster, Fault, request, settings};
use tokio::sync::Notify;

const MOUNT: &str = r#"{"type":"kv"}"#;
const WRAPPED: &str = r#"{"type":"kv","seal_wrap":true}"#;

#[tokio::test]
async fn any_node_takes_a_write_and_every_node_reads_it() {
    let (cluster, nodes, token) = Cluster::start(3).await;
    for (method, path, body) in [
        ("POST", "sys/mounts/kv", MOUNT),
        (
            "PUT",
            "kv/app",
            r#"{"n":1.10,"big":123456789012345678901234567890}"#,
        ),
    ] {
        let answer = nodes[1].send(request(method, path, &token, body)).await;
        assert_eq!(answer.code(), 204, "{answer:?}");
        assert!(answer.headers.contains_key("x-vault-index"));
    }
    for node in &nodes {
        let answer = node.send(request("GET", "kv/app", &token, "")).await;
        assert_eq!(answer.code(), 200);
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        assert!(
            text.contains(r#""data":{"big":123456789012345678901234567890,"n":1.10}"#),
            "{text}"
        );
    }
    for (_, value) in cluster.stored() {
        assert!(
            !value.windows(4).any(|window| window == b"1.10"),
            "plaintext is stored"
        );
    }
}

#[tokio::test]
async fn a_client_that_forbids_forwarding_is_sent_to_the_leader() {
    let (_cluster, nodes, token) = Cluster::start(2).await;
    let mut asked = request("PUT", "kv/a%20b?x=1", &token, "{}");
    asked.headers_mut().insert(
        "x-vault-no-request-forwarding",
        HeaderValue::from_static("true"),
    );
    let answer = nodes[1].send(asked).await;
    assert_eq!(answer.code(), 307);
    assert_eq!(
        answer.headers["location"],
        "https://10.0.0.0:8200/v1/kv/a%20b?x=1"
    );
}

#[tokio::test]
async fn a_forwarded_request_is_never_sent_on() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    for leader in [Some(0), None] {
        cluster.set_leader(leader);
        let forwarded = Service::for_followers(nodes[1].port(), settings());
        let answer = Answer::of(&forwarded, request("PUT", "kv/a", &token, "{}")).await;
        assert_eq!(answer.code(), 503);
        assert!(answer.headers.contains_key(&NOT_LEADER));
    }
}

#[tokio::test]
async fn a_read_that_writes_is_carried_out_by_the_leader() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    for (path, body) in [("sys/mounts/kv", MOUNT), ("kv/app", r#"{"a":1}"#)] {
        nodes[0].send(request("POST", path, &token, body)).await;
    }
    let mut keys = cluster.stored().into_iter().map(|(key, _)| key);
    let counted = keys.find(|key| key.ends_with(b"/app"));
    assert!(counted.is_some());
    *cluster.counted.lock().unwrap() = counted;
    let read = || request("GET", "kv/app", &token, "");
    assert_eq!(nodes[1].send(read()).await.code(), 200);
    // What the leader wrote for it is not old, whatever was asked for.
    let mut stale = read();
    let stale_wanted = HeaderValue::from_static("stale");
    stale
        .headers_mut()
        .insert("x-strongroom-consistency", stale_wanted);
    let answer = nodes[1].send(stale).await;
    assert_eq!(answer.code(), 200);
    assert!(!answer.headers.contains_key("x-strongroom-consistency"));
    // It is tried again like a write, on the leader as well.
    for fault in [Fault::NoQuorum, Fault::LostAndUnknown] {
        for node in &nodes {
            cluster.fail_next_commits(&[fault]);
            assert_eq!(node.send(read()).await.code(), 200, "{fault:?}");
        }
    }
    // It waits for a leader like a write, and one that was sent on is not sent on again.
    let forwarded = Service::for_followers(nodes[1].port(), settings());
    let answer = Answer::of(&forwarded, read()).await;
    assert_eq!(answer.headers[&NOT_LEADER], "nothing-done");
    let mut forbidden = read();
    forbidden.headers_mut().insert(
        "x-vault-no-request-forwarding",
        HeaderValue::from_static("true"),
    );
    assert_eq!(nodes[1].send(forbidden).await.code(), 307);
}

#[tokio::test]
async fn requests_are_held_while_nobody_leads() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    nodes[0]
        .send(request("POST", "sys/mounts/kv", &token, MOUNT))
        .await;
    cluster.set_leader(None);
    let election = tokio::spawn({
        let cluster = Arc::clone(&cluster);
        async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            cluster.set_leader(Some(1));
        }
    });
    // One by each way: the node that will lead, and one that will not.
    let (one, other, read) = tokio::join!(
        nodes[1].send(request("PUT", "kv/a", &token, r#"{"a":1}"#)),
        nodes[0].send(request("PUT", "kv/b", &token, r#"{"a":1}"#)),
        nodes[0].send(request("GET", "sys/mounts", &token, "")),
    );
    election.await.unwrap();
    assert_eq!((one.code(), other.code(), read.code()), (204, 204, 200));
}

#[tokio::test]
async fn a_node_that_leaves_says_so_and_serves_on() {
    let (_cluster, nodes, token) = Cluster::start(2).await;
    for node in &nodes {
        node.leaving.store(true, Ordering::SeqCst);
        for (path, status) in [
            ("sys/health", 503),
            ("sys/health?standbyok=true", 503),
            ("sys/mounts", 200),
        ] {
            let answer = node.send(request("GET", path, &token, "")).await;
            assert_eq!(answer.code(), status, "{path}");
        }
    }
}

#[tokio::test]
async fn a_node_that_is_cut_off_says_so() {
    let (_cluster, nodes, token) = Cluster::start(2).await;
    for node in &nodes {
        node.cut_off.store(true, Ordering::SeqCst);
        for (path, status) in [
            ("sys/health", 474),
            ("sys/health?standbyok=true", 474),
            ("sys/health?haunhealthycode=200", 200),
            ("sys/health?haunhealthycode=x", 400),
        ] {
            let answer = node.send(request("GET", path, &token, "")).await;
            assert_eq!(answer.code(), status, "{path}");
        }
    }
}

#[tokio::test]
async fn without_a_leader_a_request_ends_in_a_clear_error() {
    let (cluster, nodes, token) = Cluster::start(1).await;
    cluster.set_leader(None);
    for method in ["PUT", "GET"] {
        let answer = nodes[0]
            .send(request(method, "sys/mounts/kv", &token, MOUNT))
            .await;
        assert_eq!(answer.code(), 503, "{method}");
        assert!(
            !answer.headers.contains_key(&NOT_LEADER),
            "the internal header got out"
        );
    }
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_applied_once() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    nodes[0]
        .send(request("POST", "sys/mounts/kv", &token, MOUNT))
        .await;
    let put = || request("PUT", "kv/app", &token, r#"{"a":1}"#);
    for (sender, lost_answers, faults) in [
        (1, 1, &[][..]),
        (1, 0, &[Fault::AppliedButUnknown][..]),
        (0, 0, &[Fault::AppliedButUnknown][..]),
        (0, 0, &[Fault::LostAndUnknown][..]),
        (
            1,
            1,
            &[Fault::LostAndUnknown, Fault::NotLeader, Fault::NoQuorum][..],
        ),
    ] {
        let before = cluster.applied();
        cluster.lost_answers.store(lost_answers, Ordering::SeqCst);
        cluster.fail_next_commits(faults);
        let answer = nodes[sender].send(put()).await;
        assert_eq!(answer.code(), 204, "{faults:?}: {answer:?}");
        assert_eq!(cluster.applied() - before, 1, "{faults:?}");
    }
}

#[tokio::test]
async fn leadership_lost_at_commit_moves_the_request_to_the_new_leader() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    nodes[0]
        .send(request("POST", "sys/mounts/kv", &token, MOUNT))
        .await;
    cluster.fail_next_commits(&[Fault::NotLeader]);
    let send = nodes[0].send(request("PUT", "kv/app", &token, r#"{"a":1}"#));
    let (answer, ()) = tokio::join!(send, async { cluster.set_leader(Some(1)) });
    assert_eq!(answer.code(), 204, "{answer:?}");
}

#[tokio::test]
async fn a_clients_own_id_names_one_request_and_no_other() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    nodes[0]
        .send(request("POST", "sys/mounts/kv", &token, MOUNT))
        .await;
    let send = |sender: usize, path: &'static str, body: &'static str| {
        let mut request = request("PUT", path, &token, body);
        let id = HeaderValue::from_static("6f6d8c5e-3a43-4c34-9f33-000000000001");
        request.headers_mut().insert("x-strongroom-request-id", id);
        let node = Arc::clone(&nodes[sender]);
        async move { node.send(request).await.code() }
    };
    let before = cluster.applied();
    assert_eq!(send(0, "kv/a", r#"{"v":1}"#).await, 204);
    assert_eq!(send(0, "kv/a", r#"{"v":1}"#).await, 204);
    assert_eq!(send(1, "kv/a", r#"{"v":1}"#).await, 204);
    assert_eq!(cluster.applied() - before, 1, "a retry was applied again");
    assert_eq!(send(1, "kv/a", r#"{"v":2}"#).await, 204);
    assert_eq!(send(0, "kv/b", r#"{"v":1}"#).await, 204);
    assert_eq!(
        cluster.applied() - before,
        3,
        "another request was taken for a retry"
    );
    // To read again is another request.
    let id = "6f6d8c5e-3a43-4c34-9f33-000000000002";
    let mut read = request("GET", "kv/a", &token, "");
    read.headers_mut()
        .insert("x-strongroom-request-id", HeaderValue::from_static(id));
    assert_ne!(nodes[0].send(read).await.json()["request_id"], id);
    let mut bad = request("PUT", "kv/a", &token, "{}");
    bad.headers_mut()
        .insert("x-strongroom-request-id", HeaderValue::from_static("7"));
    assert_eq!(nodes[0].send(bad).await.code(), 400);
}

#[tokio::test]
async fn failures_of_the_store_have_their_own_answers() {
    let (cluster, nodes, token) = Cluster::start(1).await;
    nodes[0]
        .send(request("POST", "sys/mounts/kv", &token, MOUNT))
        .await;
    for (fault, status, retry) in [
        (Fault::Busy, 503, true),
        (Fault::TooLarge, 413, false),
        (Fault::Panic, 500, false),
    ] {
        cluster.fail_next_commits(&[fault]);
        let answer = nodes[0]
            .send(request("PUT", "kv/a", &token, r#"{"secret":"x"}"#))
            .await;
        assert_eq!(answer.code(), status, "{fault:?}");
        assert_eq!(
            answer.headers.contains_key("retry-after"),
            retry,
            "{fault:?}"
        );
    }
    let answer = nodes[0]
        .send(request("PUT", "kv/a", &token, r#"{"a":1}"#))
        .await;
    assert_eq!(answer.code(), 204, "the node must go on after a panic");
}

#[tokio::test]
async fn an_unknown_outcome_is_told_as_such() {
    let (cluster, nodes, token) = Cluster::start(1).await;
    nodes[0]
        .send(request("POST", "sys/mounts/kv", &token, MOUNT))
        .await;
    cluster.fail_next_commits(&[Fault::LostAndUnknown; 1000]);
    let answer = nodes[0]
        .send(request("PUT", "kv/a", &token, r#"{"a":1}"#))
        .await;
    assert_eq!(answer.code(), 500);
    assert!(
        answer
            .error()
            .contains("outcome of this request is unknown"),
        "{answer:?}"
    );
    assert!(!answer.headers.contains_key(&NOT_LEADER));
}

#[tokio::test]
async fn a_slow_reader_of_an_old_value_leaves_the_newest_cached() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    let write = |body: &'static str| nodes[0].send(request("PUT", "kv/app", &token, body));
    let read = || nodes[1].send(request("GET", "kv/app", &token, ""));
    nodes[0]
        .send(request("POST", "sys/mounts/kv", &token, WRAPPED))
        .await;
    // The token is wrapped too.
    nodes[1]
        .send(request("GET", "sys/mounts", &token, ""))
        .await;
    write(r#"{"v":1}"#).await;
    let go = Arc::new(Notify::new());
    *cluster.slow_unwrap.lock().unwrap() = Some(Arc::clone(&go));
    let newest = async {
        while cluster.slow_unwrap.lock().unwrap().is_some() {
            tokio::task::yield_now().await;
        }
        write(r#"{"v":2}"#).await;
        assert_eq!(read().await.json()["data"]["v"], 2);
        go.notify_one();
    };
    let (old, ()) = tokio::join!(read(), newest);
    assert_eq!(old.json()["data"]["v"], 1);
    cluster.hsm_away.store(true, Ordering::SeqCst);
    assert_eq!(read().await.json()["data"]["v"], 2);
}

#[tokio::test]
async fn with_the_hsm_away_everything_that_does_not_need_it_goes_on() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    for (path, body) in [
        ("sys/mounts/plain", MOUNT),
        ("sys/mounts/wrapped", WRAPPED),
        ("plain/a", r#"{"a":1}"#),
        ("wrapped/written-here", r#"{"a":1}"#),
    ] {
        assert_eq!(
            nodes[0]
                .send(request("PUT", path, &token, body))
                .await
                .code(),
            204
        );
    }
    // Makes the second node know its caller; the token is wrapped.
    assert_eq!(
        nodes[1]
            .send(request("GET", "plain/a", &token, ""))
            .await
            .code(),
        200
    );
    cluster.hsm_away.store(true, Ordering::SeqCst);
    for (node, method, path, status) in [
        (0, "GET", "plain/a", 200),
        (1, "GET", "plain/a", 200),
        (0, "PUT", "plain/a", 204),
        (0, "GET", "wrapped/written-here", 200),
        (1, "GET", "wrapped/written-here", 503),
        (0, "PUT", "wrapped/new", 503),
    ] {
        let answer = nodes[node]
            .send(request(method, path, &token, r#"{"a":2}"#))
            .await;
        assert_eq!(
            answer.code(),
            status,
            "{method} {path} on {node}: {answer:?}"
        );
        if status == 503 {
            assert!(
                answer.error().contains("the HSM is not available"),
                "{answer:?}"
            );
        }
    }
    cluster.hsm_away.store(false, Ordering::SeqCst);
    assert_eq!(
        nodes[1]
            .send(request("GET", "wrapped/written-here", &token, ""))
            .await
            .code(),
        200
    );
    let before = cluster.unwraps.load(Ordering::SeqCst);
    assert_eq!(
        nodes[1]
            .send(request("GET", "wrapped/written-here", &token, ""))
            .await
            .code(),
        200
    );
    assert_eq!(
        cluster.unwraps.load(Ordering::SeqCst),
        before,
        "a warm read asked the HSM"
    );
}

#[tokio::test]
async fn a_cached_value_gives_way_to_a_newer_one() {
    let (_cluster, nodes, token) = Cluster::start(2).await;
    nodes[0]
        .send(request("PUT", "sys/mounts/kv", &token, WRAPPED))
        .await;
    for value in 1..=3 {
        let body = json!({ "v": value }).to_string();
        nodes[0].send(request("PUT", "kv/a", &token, &body)).await;
        for node in &nodes {
            let answer = node.send(request("GET", "kv/a", &token, "")).await;
            assert_eq!(answer.json()["data"]["v"], value);
        }
    }
}

#[tokio::test]
async fn a_value_moved_to_another_path_is_not_given_out() {
    let (cluster, nodes, token) = Cluster::start(1).await;
    nodes[0]
        .send(request("PUT", "sys/mounts/kv", &token, MOUNT))
        .await;
    for path in ["kv/a", "kv/b"] {
        nodes[0]
            .send(request("PUT", path, &token, r#"{"a":1}"#))
            .await;
    }
    {
        let mut state = cluster.state.lock().unwrap();
        let find = |end: &[u8]| {
            let mut keys = state.map.keys();
            keys.find(|key| key.starts_with(b"logical/") && key.ends_with(end))
                .unwrap()
                .clone()
        };
        let (from, to) = (find(b"/a"), find(b"/b"));
        let moved = state.map[&from].clone();
        state.map.insert(to, moved);
    }
    assert_eq!(
        nodes[0]
            .send(request("GET", "kv/b", &token, ""))
            .await
            .code(),
        500
    );
    assert_eq!(
        nodes[0]
            .send(request("GET", "kv/a", &token, ""))
            .await
            .code(),
        200
    );
}

#[tokio::test]
async fn without_a_valid_token_nothing_is_given_out() {
    let (_cluster, nodes, token) = Cluster::start(2).await;
    nodes[0]
        .send(request("POST", "sys/mounts/kv", &token, MOUNT))
        .await;
    nodes[0]
        .send(request("PUT", "kv/a", &token, r#"{"a":1}"#))
        .await;
    let (front, last) = token.split_at(token.len() - 1);
    let almost = format!("{front}{}", if last == "x" { "y" } else { "x" });
    for node in &nodes {
        for (method, path) in [
            ("GET", "kv/a"),
            ("LIST", "kv"),
            ("PUT", "kv/a"),
            ("DELETE", "kv/a"),
            ("GET", "sys/mounts"),
            ("GET", "sys/internal/ui/mounts/kv/a"),
            ("POST", "sys/mounts/x"),
            ("GET", "auth/token/lookup-self"),
            ("GET", "nothere/x"),
            ("GET", "sys/nothere"),
            ("GET", "sys/ha-status"),
            ("GET", "sys/storage/raft/configuration"),
        ] {
            for token in ["", "hvs.", almost.as_str(), "root"] {
                let answer = node.send(request(method, path, token, r#"{"a":2}"#)).await;
                assert_eq!(answer.code(), 403, "{method} {path} {token:?}");
                assert_eq!(answer.error(), "permission denied");
            }
        }
    }
}

#[tokio::test]
async fn bodies_are_bounded_together_too() {
    let (_cluster, nodes, token) = Cluster::start(1).await;
    nodes[0]
        .send(request("POST", "sys/mounts/kv", &token, MOUNT))
        .await;
    let settings = HttpSettings {
        max_request_size: 1024,
        max_request_duration: Duration::from_secs(2),
        limits: Limits::new(100, 16 << 10),
        ..HttpSettings::default()
    };
    let service = Service::for_clients(nodes[0].port(), settings);
    // Sixteen bodies that do not end hold all there is.
    let mut held = Vec::new();
    for _ in 0..16 {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
        sender.send(Bytes::from_static(b"{")).unwrap();
        let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
            let chunk = receiver.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(chunk), receiver))
        });
        let asked = http::Request::put("/v1/kv/a")
            .header("x-vault-token", &token)
            .body(Stream::from_stream(stream))
            .unwrap();
        let answer = tokio::spawn({
            let service = service.clone();
            async move { service.answer(asked).await }
        });
        held.push((sender, answer));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let put = || request("PUT", "kv/a", &token, r#"{"a":1}"#);
    let refused = Answer::of(&service, put()).await;
    assert_eq!(refused.code(), 503, "{refused:?}");
    let read = Answer::of(&service, request("LIST", "kv", &token, "")).await;
    assert_eq!(read.code(), 404, "a request without a body needs none");
    for (sender, answer) in held {
        drop(sender);
        assert_eq!(answer.await.unwrap().status(), 400);
    }
    assert_eq!(Answer::of(&service, put()).await.code(), 204);
}

#[tokio::test]
async fn bodies_are_bounded() {
    let (_cluster, nodes, token) = Cluster::start(1).await;
    nodes[0]
        .send(request("POST", "sys/mounts/kv", &token, MOUNT))
        .await;
    let limit = 1000;
    for (size, status) in [(limit, 204), (limit + 1, 413)] {
        let settings = HttpSettings {
            max_request_size: limit,
            ..settings()
        };
        let frame = r#"{"a":""}"#.len();
        let body = format!(r#"{{"a":"{}"}}"#, "x".repeat(size - frame));
        assert_eq!(body.len(), size);
        let service = Service::for_clients(nodes[0].port(), settings);
        let answer = Answer::of(&service, request("PUT", "kv/a", &token, &body)).await;
        assert_eq!(answer.code(), status, "{size}");
        if status == 413 {
            assert_eq!(answer.error(), "http: request body too large");
        }
    }
}

#[tokio::test]
async fn every_answer_has_vaults_headers() {
    let (_cluster, nodes, token) = Cluster::start(1).await;
    for (method, path) in [
        ("GET", "sys/health"),
        ("GET", "sys/mounts"),
        ("POST", "sys/mounts/kv"),
        ("GET", "nothere/x"),
        ("FOO", "sys/mounts"),
        ("GET", "kv/%00"),
    ] {
        let answer = nodes[0].send(request(method, path, &token, MOUNT)).await;
        for (name, value) in [
            ("cache-control", "no-store"),
            ("content-type", "application/json"),
            (
                "strict-transport-security",
                "max-age=31536000; includeSubDomains",
            ),
        ] {
            assert_eq!(answer.headers[name], value, "{method} {path}");
        }
        // Only the body of a request that was answered ends in a newline, as Go's encoder writes it.
        assert!(answer.body.is_empty() || answer.body.ends_with(b"\n"));
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 64, ..Default::default() })]

    #[test]
    fn no_request_brings_the_server_down(
        method in "(GET|PUT|POST|LIST|DELETE|PATCH|HEAD|OPTIONS)",
        path in "[ -~]{0,40}",
        body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80),
    ) {
        let escaped: String = path.bytes().map(|byte| match byte {
            b'/' => "/".to_owned(),
            byte => format!("%{byte:02x}"),
        }).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let code = runtime.block_on(async {
            let (_cluster, nodes, token) = Cluster::start(1).await;
            let mut asked = request(&method, &escaped, &token, "");
            *asked.body_mut() = Bytes::from(body);
            nodes[0].send(asked).await.code()
        });
        proptest::prop_assert!(code < 500, "{} {}: {}", method, path, code);
    }
}
