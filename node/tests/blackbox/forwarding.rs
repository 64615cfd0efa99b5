//! Any node takes any request; what only the leader can do reaches it, and the client need not know.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use strongroom_jepsen_tests::{
    Cluster,
    cluster::{read, write},
    logs::STARTING,
};

use crate::BINARY;

#[test]
fn writes_through_followers() {
    let mut cluster = Cluster::initialized(3, BINARY);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let client = cluster.client(follower);
    for (mount, seal_wrap) in [("plain", false), ("wrapped", true)] {
        let body = json!({"type": "kv", "seal_wrap": seal_wrap});
        assert_eq!(
            client.put(&format!("sys/mounts/{mount}"), &body).status,
            204,
            "mounted through a follower"
        );
        for number in 0..20 {
            // What one node has acknowledged every other node shows at once.
            let (writer, reader) = (number % 3 + 1, (number + 1) % 3 + 1);
            write(
                &cluster.client(writer),
                &format!("{mount}/a"),
                &number.to_string(),
            );
            assert_eq!(
                read(&cluster.client(reader), &format!("{mount}/a")),
                Some(number.to_string())
            );
        }
        let other = cluster.client(follower % 3 + 1);
        assert_eq!(client.list(mount), ["a"]);
        let listed = other
            .request("GET", &format!("/v1/{mount}?list=true"), None)
            .unwrap()
            .expect(200)
            .json();
        assert_eq!(listed["data"]["keys"], json!(["a"]));
        assert_eq!(client.delete(&format!("{mount}/a")).status, 204);
        assert_eq!(read(&other, &format!("{mount}/a")), None);
        assert!(other.list(mount).is_empty());
    }

    let direct = cluster
        .client(follower)
        .with_header("X-Vault-No-Request-Forwarding", "true");
    let redirected = direct
        .put("plain/b?x=1", &json!({"value": "c"}))
        .expect(307);
    let target = format!("{}/v1/plain/b?x=1", cluster.url(leader));
    assert_eq!(redirected.header("location"), Some(target.as_str()));
    assert_eq!(
        read(&client, "plain/b"),
        None,
        "a redirected write is not carried out"
    );
    let leader_direct = cluster
        .client(leader)
        .with_header("X-Vault-No-Request-Forwarding", "true");
    assert_eq!(
        leader_direct.put("plain/b", &json!({"value": "c"})).status,
        204
    );

    // What goes wrong is told the same way through a follower.
    for node in [leader, follower] {
        let client = cluster.client(node);
        assert_eq!(
            client.put("plain/empty", &json!({})).expect(400).errors(),
            ["missing data fields"]
        );
        assert_eq!(
            cluster
                .anonymous(node)
                .put("plain/a", &json!({"value": "x"}))
                .expect(403)
                .errors(),
            ["permission denied"]
        );
        let bearer = cluster.anonymous(node).with_header(
            "Authorization",
            &format!("Bearer {}", cluster.root_token().unwrap()),
        );
        assert_eq!(bearer.put("plain/a", &json!({"value": "x"})).status, 204);
    }
    cluster.assert_logs_clean(&[STARTING]);
}

/// A follower whose leader has just died holds the request until there is a new one.
#[test]
fn a_request_in_the_middle_of_a_failover_is_slow_and_not_lost() {
    let mut cluster = Cluster::initialized(3, BINARY);
    assert_eq!(
        cluster
            .client(1)
            .put("sys/mounts/kv", &json!({"type": "kv"}))
            .status,
        204
    );
    let (leader, follower) = (cluster.leader(), cluster.follower());
    cluster.kill9(leader);
    let began = Instant::now();
    let asked: Vec<_> = (0..8)
        .map(|n| {
            let client = cluster.client(follower);
            thread::spawn(move || client.put(&format!("kv/{n}"), &json!({"value": n})).status)
        })
        .collect();
    for thread in asked {
        assert_eq!(thread.join().unwrap(), 204);
    }
    println!(
        "writes sent at the leader's death took {:?}",
        began.elapsed()
    );
    assert!(began.elapsed() < Duration::from_secs(15));
    for n in 0..8 {
        let answer = cluster.client(follower).get(&format!("kv/{n}")).expect(200);
        assert_eq!(answer.json()["data"]["value"], n);
    }
}

/// Without a quorum nothing is acknowledged, nothing stale is read, and the answer comes in bounded time.
#[test]
fn without_a_quorum() {
    let mut cluster = Cluster::initialized(3, BINARY);
    assert_eq!(
        cluster
            .client(1)
            .put("sys/mounts/kv", &json!({"type": "kv"}))
            .status,
        204
    );
    write(&cluster.client(1), "kv/a", "before");
    let survivor = cluster.follower();
    for node in 1..=3 {
        if node != survivor {
            cluster.kill9(node);
        }
    }
    let client = cluster
        .client(survivor)
        .with_timeout(Duration::from_secs(100));
    let (read_too, write_too) = (client.clone(), client.clone());
    let reading = thread::spawn(move || read_too.get("kv/a"));
    let writing = thread::spawn(move || write_too.put("kv/b", &json!({"value": "x"})));
    thread::sleep(Duration::from_secs(3));
    assert_ne!(cluster.health(survivor), 0, "it still says how it is");
    assert!(!reading.is_finished() || reading.join().unwrap().status == 503);
    for node in 1..=3 {
        if node != survivor {
            cluster.start_node(node);
        }
    }
    cluster.wait_all();
    let answer = writing.join().unwrap();
    assert!(
        matches!(answer.status, 204 | 503),
        "{} {}",
        answer.status,
        answer.text()
    );
    assert_eq!(read(&client, "kv/a").as_deref(), Some("before"));
}
