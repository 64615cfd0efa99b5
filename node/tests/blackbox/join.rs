//! Nodes that join: through any node, through the load balancer, by command, again after losing everything; and one that
//! must not.

use serde_json::{Value, json};
use strongroom_jepsen_tests::{
    Cluster,
    cluster::{read, write},
    haproxy::Haproxy,
    hsm::KEY_LABEL,
    logs::{HSM_AWAY, NODES_AWAY, STARTING},
    machine::wait_for,
};

use crate::BINARY;

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

fn names(servers: &[Value]) -> Vec<String> {
    let mut names: Vec<String> = servers
        .iter()
        .map(|server| server["node_id"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

fn wait_voter(cluster: &Cluster, number: usize) {
    let name = format!("node-{number}");
    wait_for(&format!("{name} to vote"), PATIENCE, || {
        let servers = cluster.servers(cluster.find_leader()?);
        servers
            .iter()
            .any(|server| server["node_id"] == name && server["voter"] == true)
            .then_some(())
    });
}

#[test]
fn through_a_follower_a_load_balancer_and_by_command() {
    let mut cluster = Cluster::initialized(3, BINARY);
    assert_eq!(
        cluster
            .client(1)
            .put("sys/mounts/kv", &json!({"type": "kv", "seal_wrap": true}))
            .status,
        204
    );
    write(&cluster.client(1), "kv/a", "b");
    let haproxy = Haproxy::start(&cluster);

    let fourth = cluster.add_node();
    let follower = cluster.follower();
    let follower = cluster.url(follower);
    cluster.configure(fourth, |config| config.retry_join = vec![follower]);
    cluster.start_node(fourth);

    let fifth = cluster.add_node();
    let url = haproxy.url();
    cluster.configure(fifth, |config| config.retry_join = vec![url]);
    cluster.start_node(fifth);

    let sixth = cluster.add_node();
    cluster.configure(sixth, |config| config.retry_join.clear());
    cluster.start_node(sixth);
    assert_eq!(cluster.health(sixth), 501, "nobody told it whom to join");
    let ca = format!("@{}", cluster.tls().ca_file.display());
    let leader = cluster.url(cluster.leader());
    let joined = cluster
        .strongroom(
            sixth,
            &[
                "operator",
                "raft",
                "join",
                &format!("-leader-ca-cert={ca}"),
                &leader,
            ],
        )
        .ok();
    assert!(
        joined.stdout.contains("Joined") && joined.stdout.contains("true"),
        "{}",
        joined.all()
    );

    for node in [fourth, fifth, sixth] {
        cluster.wait_unsealed(node);
        wait_voter(&cluster, node);
        assert_eq!(
            read(&cluster.client(node), "kv/a").as_deref(),
            Some("b"),
            "node {node}"
        );
        write(&cluster.client(node), "kv/a", "b");
    }
    assert_eq!(cluster.servers(1).len(), 6);
    // A member keeps its place over a restart, without joining again.
    cluster.terminate(fifth);
    cluster.start_node(fifth);
    cluster.wait_unsealed(fifth);
    assert_eq!(names(&cluster.servers(fifth)).len(), 6);
    cluster.assert_logs_clean(&[STARTING, NODES_AWAY]);
}

#[test]
fn a_node_with_another_key_is_refused_and_changes_nothing() {
    let mut cluster = Cluster::initialized(3, BINARY);
    let configuration = |cluster: &Cluster| {
        cluster
            .client(1)
            .get("sys/storage/raft/configuration")
            .expect(200)
            .json()["data"]["config"]
            .clone()
    };
    let before = configuration(&cluster);

    let intruder = cluster.add_node();
    cluster.token(intruder).remove_key(KEY_LABEL);
    cluster.token(intruder).make_key(KEY_LABEL, "5352");
    cluster.start_node(intruder);
    let warning = cluster.wait_warning(intruder, "is not this cluster's key");
    println!("{warning}");
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(cluster.health(intruder), 501);
    assert_eq!(
        configuration(&cluster),
        before,
        "the members, and the log index of the membership"
    );

    // Nor does one that makes up its answer: the leader refuses it, and says why.
    let client = cluster.anonymous(2);
    let challenge = client
        .put(
            "sys/storage/raft/bootstrap/challenge",
            &json!({"server_id": "forger"}),
        )
        .expect(200)
        .json();
    let answer = json!({
        "server_id": "forger",
        "nonce": challenge["data"]["nonce"],
        "answer": challenge["data"]["challenge"],
        "cluster_addr": "127.0.0.1:1",
        "api_addr": "https://127.0.0.1:1",
    });
    let refused = client.put("sys/storage/raft/bootstrap/answer", &answer);
    assert!(
        (400..500).contains(&refused.status),
        "{} {}",
        refused.status,
        refused.text()
    );
    assert!(
        refused.errors()[0].contains("does not hold the cluster's seal key"),
        "{}",
        refused.text()
    );
    assert!(!refused.text().contains("seal_bundle"));
    assert_eq!(configuration(&cluster), before);

    // With the right key it is welcome.
    cluster.kill9(intruder);
    cluster.start_node(intruder);
    cluster.wait_unsealed(intruder);
    wait_voter(&cluster, intruder);
    cluster.assert_logs_clean(&[STARTING, HSM_AWAY]);
}

#[test]
fn a_wiped_node_comes_back_under_its_name() {
    let mut cluster = Cluster::initialized(3, BINARY);
    assert_eq!(
        cluster
            .client(1)
            .put("sys/mounts/kv", &json!({"type": "kv"}))
            .status,
        204
    );
    for round in 0..2 {
        write(&cluster.client(1), "kv/a", &round.to_string());
        // A follower, then the leader.
        let node = if round == 0 {
            cluster.follower()
        } else {
            cluster.leader()
        };
        cluster.kill9(node);
        cluster.wipe(node);
        cluster.start_node(node);
        cluster.wait_unsealed(node);
        wait_for("the wiped node to vote again", PATIENCE, || {
            let servers = cluster.servers(cluster.find_leader()?);
            (servers.len() == 3 && servers.iter().all(|server| server["voter"] == true))
                .then_some(())
        });
        assert_eq!(
            names(&cluster.servers(node)),
            ["node-1", "node-2", "node-3"]
        );
        assert_eq!(read(&cluster.client(node), "kv/a"), Some(round.to_string()));
        write(
            &cluster.client(node),
            "kv/b",
            "through the node that came back",
        );
    }
}
