//! Those who knock without belonging there: at the cluster port only nodes come in, and nobody keeps others out by
//! holding connections.

use std::net::{SocketAddr, TcpStream};

use serde_json::json;
use strongroom_jepsen_tests::{
    Cluster,
    cluster::{read, write},
    logs::{HSM_AWAY, NODES_AWAY, STARTING},
    stranger::Knock,
};

use crate::BINARY;

#[test]
fn only_nodes_come_in_at_the_cluster_port() {
    let mut cluster = Cluster::initialized(3, BINARY);
    let tls = cluster.tls().clone();
    let port = cluster.cluster_socket(cluster.leader());
    let raft = Some("strongroom-raft/1");
    let forward = Some("strongroom-forward/1");
    // The API port lets a client without a certificate in: knocking itself works.
    let api = Knock {
        tls12: false,
        alpn: None,
        certificate: None,
    };
    assert_eq!(api.at(cluster.api_socket(1)), Ok(()));
    for (who, knock) in [
        (
            "no certificate",
            Knock {
                tls12: false,
                alpn: raft,
                certificate: None,
            },
        ),
        (
            "no certificate, to forward",
            Knock {
                tls12: false,
                alpn: forward,
                certificate: None,
            },
        ),
        (
            "another CA's certificate",
            Knock {
                tls12: false,
                alpn: raft,
                certificate: Some(&tls),
            },
        ),
        (
            "another CA's certificate, to forward",
            Knock {
                tls12: false,
                alpn: forward,
                certificate: Some(&tls),
            },
        ),
        (
            "TLS 1.2",
            Knock {
                tls12: true,
                alpn: raft,
                certificate: None,
            },
        ),
        (
            "another protocol",
            Knock {
                tls12: false,
                alpn: Some("h2"),
                certificate: None,
            },
        ),
        (
            "no protocol",
            Knock {
                tls12: false,
                alpn: None,
                certificate: None,
            },
        ),
    ] {
        let refused = knock.at(port).expect_err(who);
        println!("{who}: {refused}");
    }

    // A sealed node takes no part in the cluster's traffic.
    let node = cluster.follower();
    let port = cluster.cluster_socket(node);
    assert!(TcpStream::connect(port).is_ok());
    assert!(cluster.terminate(node).success());
    cluster.token(node).take_away();
    cluster.start_node(node);
    assert!(
        TcpStream::connect(port).is_err(),
        "the cluster port of a sealed node is open"
    );
    cluster.token(node).give_back();
    cluster.wait_unsealed(node);
    cluster.assert_logs_clean(&[
        STARTING,
        NODES_AWAY,
        HSM_AWAY,
        &["handshake", "TLS", "certificate"],
    ]);
}

/// Hundreds of connections that never say anything, at both ports of every node.
#[test]
fn silent_connections_keep_nobody_out() {
    let cluster = Cluster::initialized(3, BINARY);
    assert_eq!(
        cluster
            .client(1)
            .put("sys/mounts/kv", &json!({"type": "kv"}))
            .status,
        204
    );
    let ports: Vec<SocketAddr> = (1..=3)
        .flat_map(|node| [cluster.api_socket(node), cluster.cluster_socket(node)])
        .collect();
    let silent: Vec<TcpStream> = (0..100)
        .flat_map(|_| &ports)
        .filter_map(|port| TcpStream::connect(port).ok())
        .collect();
    println!("{} silent connections", silent.len());
    for number in 0..9 {
        let (writer, reader) = (number % 3 + 1, (number + 1) % 3 + 1);
        write(&cluster.client(writer), "kv/a", &number.to_string());
        assert_eq!(
            read(&cluster.client(reader), "kv/a"),
            Some(number.to_string())
        );
    }
    for node in 1..=3 {
        assert_eq!(cluster.health(node), 200);
    }
    drop(silent);
    cluster.assert_no_panics();
}
