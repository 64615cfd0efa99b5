//! Mounts on a cluster in memory: changes at once, cut off, repeated; and who sees what.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

mod support;

use std::sync::{Arc, atomic::Ordering};

use serde_json::json;
use support::{Cluster, Fault, request};

const MOUNT: &str = r#"{"type":"kv"}"#;

#[tokio::test]
async fn mounts_enabled_at_once_do_not_overwrite_each_other() {
    let (_cluster, nodes, token) = Cluster::start(2).await;
    let many = (0..12).map(|number| {
        let (node, token) = (Arc::clone(&nodes[number % 2]), token.clone());
        async move {
            let path = format!("sys/mounts/team{}/kv", number / 2);
            node.send(request("POST", &path, &token, MOUNT))
                .await
                .code()
        }
    });
    let mut codes = futures_util::future::join_all(many).await;
    codes.sort_unstable();
    assert_eq!(
        codes,
        [[204; 6], [400; 6]].concat(),
        "one of each pair wins"
    );
    let mounts = nodes[1]
        .send(request("GET", "sys/mounts", &token, ""))
        .await
        .json();
    for number in 0..6 {
        assert_eq!(mounts["data"][format!("team{number}/kv/")]["type"], "kv");
    }
}

#[tokio::test]
async fn disabling_removes_the_data_and_leaves_the_neighbours() {
    let (cluster, nodes, token) = Cluster::start(1).await;
    let node = &nodes[0];
    for mount in ["kv", "kv2"] {
        node.send(request(
            "POST",
            &format!("sys/mounts/{mount}"),
            &token,
            MOUNT,
        ))
        .await;
    }
    for number in 0..1200 {
        let path = format!("kv/{}/s{number:04}", number % 3);
        assert_eq!(
            node.send(request("PUT", &path, &token, r#"{"a":1}"#))
                .await
                .code(),
            204
        );
    }
    node.send(request("PUT", "kv/0", &token, r#"{"a":1}"#))
        .await;
    node.send(request("PUT", "kv2/s", &token, r#"{"a":1}"#))
        .await;
    let listed = node.send(request("LIST", "kv", &token, "")).await.json();
    assert_eq!(listed["data"]["keys"], json!(["0", "0/", "1/", "2/"]));
    let listed = node
        .send(request("GET", "kv/1?list=true", &token, ""))
        .await
        .json();
    assert_eq!(listed["data"]["keys"].as_array().unwrap().len(), 400);

    assert_eq!(
        node.send(request("DELETE", "sys/mounts/kv", &token, ""))
            .await
            .code(),
        204
    );
    let left = cluster.stored();
    let data = left.iter().filter(|(key, _)| key.starts_with(b"logical/"));
    assert_eq!(data.count(), 1, "only the neighbour's secret is left");
    assert_eq!(
        node.send(request("GET", "kv/0", &token, "")).await.code(),
        404
    );
    assert_eq!(
        node.send(request("GET", "kv2/s", &token, "")).await.code(),
        200
    );
    // Enabled again, it starts empty.
    node.send(request("POST", "sys/mounts/kv", &token, MOUNT))
        .await;
    assert_eq!(
        node.send(request("LIST", "kv", &token, "")).await.code(),
        404
    );
}

#[tokio::test]
async fn a_disable_that_was_cut_off_can_be_finished() {
    let (cluster, nodes, token) = Cluster::start(1).await;
    let node = &nodes[0];
    node.send(request("POST", "sys/mounts/kv", &token, MOUNT))
        .await;
    node.send(request("PUT", "kv/a", &token, r#"{"a":1}"#))
        .await;
    let disable = || request("DELETE", "sys/mounts/kv", &token, "");
    // The second commit of a disable removes data, the third the mount.
    for (faults, status) in [
        (&[Fault::None, Fault::Busy][..], 503),
        (&[Fault::None, Fault::Busy][..], 503),
        (&[][..], 204),
        (&[][..], 204),
    ] {
        cluster.fail_next_commits(faults);
        assert_eq!(node.send(disable()).await.code(), status, "{faults:?}");
        assert_eq!(
            node.send(request("GET", "kv/a", &token, "")).await.code(),
            404
        );
        let mounts = node
            .send(request("GET", "sys/mounts", &token, ""))
            .await
            .json();
        assert_eq!(mounts["data"]["kv/"], json!(null));
    }
    let left = cluster.stored();
    assert!(!left.iter().any(|(key, _)| key.starts_with(b"logical/")));
}

#[tokio::test]
async fn what_everybody_may_see_is_what_the_owner_said() {
    let (_cluster, nodes, token) = Cluster::start(1).await;
    let node = &nodes[0];
    node.send(request("POST", "sys/mounts/hidden", &token, MOUNT))
        .await;
    let seen = r#"{"type":"kv","config":{"listing_visibility":"unauth"}}"#;
    node.send(request("POST", "sys/mounts/seen", &token, seen))
        .await;
    let answer = node
        .send(request("GET", "sys/internal/ui/mounts", "", ""))
        .await;
    let wanted = json!({
        "auth": {},
        "secret": { "seen/": { "description": "", "options": {}, "type": "kv" } },
    });
    assert_eq!(answer.json()["data"], wanted);
}

#[tokio::test]
async fn a_cubbyhole_belongs_to_one_token() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    let send = |method: &str, path: &str| {
        let request = request(method, path, &token, r#"{"a":1}"#);
        let node = Arc::clone(&nodes[1]);
        async move { node.send(request).await }
    };
    assert_eq!(send("PUT", "cubbyhole/a").await.code(), 204);
    let answer = send("GET", "cubbyhole/a").await.json();
    assert_eq!(
        (&answer["data"]["a"], &answer["lease_duration"]),
        (&json!(1), &json!(0))
    );
    let accessor = send("GET", "auth/token/lookup-self").await.json();
    let accessor = accessor["data"]["accessor"].as_str().unwrap().to_owned();
    for (key, _) in cluster.stored() {
        let key = String::from_utf8_lossy(&key).into_owned();
        assert!(!key.contains(&accessor) && !key.contains(&token), "{key}");
    }
    assert_eq!(
        send("LIST", "cubbyhole").await.json()["data"]["keys"],
        json!(["a"])
    );
    assert_eq!(send("DELETE", "cubbyhole/a").await.code(), 204);
    assert_eq!(send("LIST", "cubbyhole").await.code(), 404);
}

#[tokio::test]
async fn enabling_an_engine_twice_by_loss_of_the_answer_succeeds() {
    let (cluster, nodes, token) = Cluster::start(2).await;
    cluster.lost_answers.store(1, Ordering::SeqCst);
    let enable = || request("POST", "sys/mounts/kv", &token, MOUNT);
    assert_eq!(nodes[1].send(enable()).await.code(), 204);
    // The same from another client is a conflict.
    let again = nodes[1].send(enable()).await;
    assert_eq!(
        (again.code(), again.error().as_str()),
        (400, "path is already in use at kv/")
    );
}
