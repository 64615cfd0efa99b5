//! What a node refuses when there is too much of it, and its figures.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use strongroom_api::{HttpSettings, Limits, MetricsAccess, Service, ports::Stream};
use support::{Answer, Cluster, Fault, request, settings};

const MOUNT: &str = r#"{"type":"kv"}"#;

#[tokio::test]
async fn requests_are_bounded_but_health_always_answers() {
    let (_cluster, nodes, token) = Cluster::start(1).await;
    let settings = HttpSettings {
        limits: Limits::new(2, 1 << 20),
        max_request_duration: Duration::from_secs(5),
        ..settings()
    };
    let service = Service::for_clients(nodes[0].port(), settings);
    let mut held = Vec::new();
    for _ in 0..2 {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
        let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
            let chunk = receiver.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(chunk), receiver))
        });
        let asked = http::Request::put("/v1/sys/mounts/kv")
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
    let refused = Answer::of(&service, request("GET", "sys/mounts", &token, "")).await;
    assert_eq!(refused.code(), 503, "{refused:?}");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(
        refused.error(),
        "too many requests are under way; try again"
    );
    for path in ["sys/health", "sys/seal-status", "sys/leader", "sys/metrics"] {
        let answer = Answer::of(&service, request("GET", path, &token, "")).await;
        assert_eq!(answer.code(), 200, "{path}: {answer:?}");
    }
    for (sender, answer) in held {
        drop(sender);
        answer.await.unwrap();
    }
    let answer = Answer::of(&service, request("GET", "sys/mounts", &token, "")).await;
    assert_eq!(answer.code(), 200, "a place is given back");
}

#[tokio::test]
async fn what_passes_says_when_to_try_again() {
    let (cluster, nodes, token) = Cluster::start(1).await;
    nodes[0]
        .send(request("POST", "sys/mounts/kv", &token, MOUNT))
        .await;
    let put = || request("PUT", "kv/a", &token, r#"{"a":1}"#);
    for (fault, status, retry, text) in [
        (Fault::Busy, 503, Some("1"), "the server is busy; try again"),
        (
            Fault::NoRoom,
            503,
            Some("1"),
            "the disk of the leader is nearly full; it takes no writes until there is room",
        ),
        (
            Fault::TooLarge,
            413,
            None,
            "put failed due to value being too large; got 9 bytes, max: 8 bytes",
        ),
    ] {
        cluster.fail_next_commits(&[fault]);
        let answer = nodes[0].send(put()).await;
        assert_eq!(answer.code(), status, "{fault:?}: {answer:?}");
        assert_eq!(answer.header("retry-after"), retry, "{fault:?}");
        assert_eq!(answer.error(), text);
    }
    assert_eq!(nodes[0].send(put()).await.code(), 204);
}

#[tokio::test]
async fn figures_are_for_those_who_may() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    let on = |access| {
        let settings = HttpSettings {
            metrics: access,
            ..settings()
        };
        Service::for_clients(nodes[1].port(), settings)
    };
    let ask =
        |method: &str, token: &str| request(method, "sys/metrics?format=prometheus", token, "");
    for (access, method, token, status) in [
        (MetricsAccess::Token, "GET", token.as_str(), 200),
        (MetricsAccess::Token, "GET", "", 403),
        (MetricsAccess::Token, "GET", "s.wrong", 403),
        (MetricsAccess::Token, "POST", token.as_str(), 405),
        (MetricsAccess::Everybody, "GET", "", 200),
        (MetricsAccess::Nobody, "GET", token.as_str(), 404),
    ] {
        let answer = Answer::of(&on(access), ask(method, token)).await;
        assert_eq!(
            answer.code(),
            status,
            "{access:?} {method} {token}: {answer:?}"
        );
    }
    // Without a leader they are needed most.
    cluster.set_leader(None);
    let answer = Answer::of(&on(MetricsAccess::Token), ask("GET", &token)).await;
    assert_eq!(answer.code(), 200, "{answer:?}");
}

/// A read with these headers.
fn read(token: &str, headers: &[(&'static str, String)]) -> http::Request<Bytes> {
    let mut request = request("GET", "kv/a", token, "");
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

fn index(cluster: &str, value: u64) -> String {
    use base64::Engine as _;
    let json = format!(r#"{{"cluster":"{cluster}","value":"{value}"}}"#);
    base64::engine::general_purpose::STANDARD.encode(json)
}

#[tokio::test]
async fn stale_reads_are_asked_for_and_marked() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    for (method, path, body) in [
        ("POST", "sys/mounts/kv", MOUNT),
        ("PUT", "kv/a", r#"{"a":1}"#),
    ] {
        let answer = nodes[0].send(request(method, path, &token, body)).await;
        assert_eq!(answer.code(), 204);
    }
    let now = cluster.state.lock().unwrap().index;
    let stale = ("x-strongroom-consistency", "stale".to_owned());
    let fail = ("x-vault-inconsistent", "fail".to_owned());
    let forward = ("x-vault-inconsistent", "forward-active-node".to_owned());
    let seen = |value| ("x-vault-index", index(support::CLUSTER_ID, value));
    let elsewhere = ("x-vault-index", index("other", now + 100));
    for (case, headers, with_leader, without) in [
        ("linearizable", vec![], 200, 503),
        (
            "said so",
            vec![("x-strongroom-consistency", "linearizable".to_owned())],
            200,
            503,
        ),
        ("the index seen", vec![seen(now)], 200, 503),
        ("forward", vec![forward.clone()], 200, 503),
        ("stale", vec![stale.clone()], 200, 200),
        ("stale, seen", vec![stale.clone(), seen(now)], 200, 200),
        (
            "stale, seen elsewhere",
            vec![stale.clone(), elsewhere],
            200,
            200,
        ),
        (
            "stale and behind: waits",
            vec![stale.clone(), seen(now + 1)],
            412,
            412,
        ),
        (
            "stale and behind: fails",
            vec![stale.clone(), seen(now + 1), fail],
            412,
            412,
        ),
        (
            "stale and behind: is not stale",
            vec![stale.clone(), seen(now + 1), forward],
            200,
            503,
        ),
        (
            "no such consistency",
            vec![("x-strongroom-consistency", "fresh".to_owned())],
            400,
            400,
        ),
        (
            "no such way",
            vec![("x-vault-inconsistent", "maybe".to_owned())],
            400,
            400,
        ),
        (
            "no index",
            vec![("x-vault-index", "e30=".to_owned())],
            400,
            400,
        ),
    ] {
        for (leader, want) in [(Some(0), with_leader), (None, without)] {
            cluster.set_leader(leader);
            let answer = nodes[1].send(read(&token, &headers)).await;
            assert_eq!(answer.code(), want, "{case}, leader {leader:?}: {answer:?}");
            let is_stale = answer.header("x-strongroom-consistency") == Some("stale");
            let asked = case.starts_with("stale") && !case.ends_with("not stale");
            assert_eq!(is_stale, asked && want == 200, "{case}: {answer:?}");
            if is_stale {
                let applied = answer.header("x-strongroom-applied-index").unwrap();
                assert_eq!(applied, now.to_string());
            }
        }
    }
    cluster.set_leader(Some(0));
    let mut write = request("PUT", "kv/a", &token, r#"{"a":2}"#);
    write
        .headers_mut()
        .insert("x-strongroom-consistency", "stale".parse().unwrap());
    let refused = nodes[1].send(write).await;
    assert_eq!(refused.code(), 400, "{refused:?}");
    // Somebody without a token gets nothing stale either.
    assert_eq!(nodes[1].send(read("s.wrong", &[stale])).await.code(), 403);
}
