//! `sys/health` and its neighbours in every state of a node, with every query parameter.

use serde_json::{Value, json};
use strongroom_jepsen_tests::{
    Client, Cluster,
    logs::{HSM_AWAY, NODES_AWAY, STARTING},
};

use crate::BINARY;

/// Asks health with each query; GET and HEAD must agree, and HEAD has no body.
fn check(client: &Client, state: &str, table: &[(&str, u16)]) {
    for (query, status) in table {
        let path = format!("/v1/sys/health{query}");
        let get = client.request("GET", &path, None).unwrap();
        assert_eq!(get.status, *status, "{state}: GET {path}: {}", get.text());
        let head = client.request("HEAD", &path, None).unwrap();
        assert_eq!(
            (head.status, head.body.len()),
            (*status, 0),
            "{state}: HEAD {path}"
        );
    }
}

fn health(client: &Client) -> Value {
    client
        .get("sys/health?uninitcode=200&sealedcode=200&standbycode=200")
        .expect(200)
        .json()
}

#[test]
fn codes_in_every_state() {
    let mut cluster = Cluster::start(3, BINARY);
    not_initialized(&cluster);
    cluster.init();
    cluster.wait_all();
    unsealed(&mut cluster);
    sealed(&mut cluster);
    cluster.assert_logs_clean(&[STARTING, HSM_AWAY, NODES_AWAY]);
}

fn not_initialized(cluster: &Cluster) {
    let client = cluster.anonymous(1);
    check(
        &client,
        "not initialised",
        &[
            ("", 501),
            ("?standbyok=true", 501),
            ("?uninitcode=299", 299),
            ("?uninitcode=200&sealedcode=298", 200),
            ("?sealedcode=298&activecode=297&standbycode=296", 501),
            ("?unknown=parameter", 501),
            ("?uninitcode=garbage", 400),
        ],
    );
    let body = health(&client);
    assert_eq!(
        (&body["initialized"], &body["sealed"]),
        (&json!(false), &json!(true)),
        "{body}"
    );
    let status = client.get("sys/seal-status").expect(200).json();
    assert_eq!(
        (&status["initialized"], &status["sealed"]),
        (&json!(false), &json!(true)),
        "{status}"
    );
    assert_eq!(
        (&status["type"], &status["storage_type"]),
        (&json!("pkcs11"), &json!("raft")),
        "{status}"
    );
    assert_eq!(
        client.get("sys/init").expect(200).json(),
        json!({"initialized": false})
    );
    for path in [
        "sys/leader",
        "sys/mounts",
        "secret/a",
        "sys/storage/raft/configuration",
    ] {
        let answer = client.get(path).expect(503);
        assert_eq!(answer.errors(), ["Vault is sealed"], "{path}");
    }
}

fn unsealed(cluster: &mut Cluster) {
    let (leader, follower) = (cluster.leader(), cluster.follower());
    check(
        &cluster.anonymous(leader),
        "leader",
        &[
            ("", 200),
            ("?standbyok=true", 200),
            ("?activecode=297", 297),
            ("?standbycode=298&sealedcode=296&uninitcode=295", 200),
            ("?activecode=garbage", 400),
        ],
    );
    check(
        &cluster.anonymous(follower),
        "follower",
        &[
            ("", 429),
            ("?standbyok=true", 200),
            ("?standbyok=false", 429),
            ("?perfstandbyok=true", 429),
            ("?standbycode=298", 298),
            ("?standbyok=true&standbycode=298", 200),
            (
                "?activecode=297&performancestandbycode=296&drsecondarycode=295",
                429,
            ),
            ("?standbycode=garbage", 400),
        ],
    );
    let (active, standby) = (
        health(&cluster.anonymous(leader)),
        health(&cluster.anonymous(follower)),
    );
    assert_eq!(
        (&active["standby"], &standby["standby"]),
        (&json!(false), &json!(true))
    );
    for body in [&active, &standby] {
        // What strict clients refuse to do without.
        for field in [
            "initialized",
            "sealed",
            "performance_standby",
            "replication_performance_mode",
            "replication_dr_mode",
            "server_time_utc",
            "version",
            "cluster_name",
            "cluster_id",
        ] {
            assert!(!body[field].is_null(), "{field} is missing in {body}");
        }
    }
    assert_eq!(active["cluster_id"], standby["cluster_id"]);

    let leader_body = cluster
        .anonymous(follower)
        .get("sys/leader")
        .expect(200)
        .json();
    assert_eq!(leader_body["is_self"], false);
    assert_eq!(leader_body["leader_address"], cluster.url(leader));
}

fn sealed(cluster: &mut Cluster) {
    let node = cluster.follower();
    assert!(cluster.terminate(node).success());
    cluster.token(node).take_away();
    cluster.start_node(node);
    let client = cluster.anonymous(node);
    check(
        &client,
        "sealed",
        &[
            ("", 503),
            ("?standbyok=true", 503),
            ("?sealedcode=296", 296),
            ("?uninitcode=295", 503),
            ("?sealedcode=x", 400),
        ],
    );
    let body = health(&client);
    assert_eq!(
        (&body["initialized"], &body["sealed"]),
        (&json!(true), &json!(true)),
        "{body}"
    );
    assert_eq!(
        client.get("sys/mounts").expect(503).errors(),
        ["Vault is sealed"]
    );
    cluster.token(node).give_back();
    cluster.wait_unsealed(node);
}
