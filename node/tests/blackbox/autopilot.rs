//! Autopilot on real nodes: redundancy zones, removal of dead nodes, and votes that go to a new version.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use strongroom_jepsen_tests::{
    Client, Cluster, Options,
    cluster::{read, write},
    machine::wait_for,
    verdict,
    workload::Load,
};

use crate::BINARY;

const PATIENCE: Duration = Duration::from_secs(40);
/// Vault's shortest.
const DEAD_AFTER: Duration = Duration::from_secs(60);

/// A running cluster whose nodes have `storage(number)` in their configuration.
fn start(nodes: usize, storage: impl Fn(usize) -> String) -> Cluster {
    let mut cluster = Cluster::prepare(&Options {
        binary: BINARY.into(),
        nodes,
        key_made_before: true,
    });
    for node in 1..=nodes {
        let text = storage(node);
        cluster.configure(node, |config| config.storage_extra = text);
        cluster.spawn(node);
    }
    for node in 1..=nodes {
        cluster.wait_listening(node);
    }
    cluster.init();
    for node in 1..=nodes {
        cluster.wait_unsealed(node);
    }
    cluster.mount_kv("kv", false);
    cluster
}

fn set(cluster: &Cluster, settings: &Value) {
    let client = cluster.client(1);
    let answer = client.put("sys/storage/raft/autopilot/configuration", settings);
    assert_eq!(answer.status, 204, "{}", answer.text());
}

/// Number and vote of every member, as `asked` says.
fn members(cluster: &Cluster, asked: usize) -> Vec<(usize, bool)> {
    // None is no answer: whoever is asked may have been between two leaders.
    let servers = wait_for("the members", PATIENCE, || {
        Some(cluster.servers(asked)).filter(|servers| !servers.is_empty())
    });
    let mut members: Vec<(usize, bool)> = servers
        .iter()
        .map(|server| {
            let name = server["node_id"].as_str().unwrap();
            let number = name.trim_start_matches("node-").parse().unwrap();
            (number, server["voter"] == true)
        })
        .collect();
    members.sort_unstable();
    members
}

fn voters(cluster: &Cluster, asked: usize) -> Vec<usize> {
    let all = members(cluster, asked).into_iter();
    all.filter(|(_, votes)| *votes).map(|(n, _)| n).collect()
}

fn wait_members(
    cluster: &Cluster,
    asked: usize,
    limit: Duration,
    want: &[(usize, bool)],
) -> Duration {
    let began = Instant::now();
    let mut want = want.to_vec();
    want.sort_unstable();
    let mut seen = Vec::new();
    while began.elapsed() < limit {
        seen = members(cluster, asked);
        if seen == want {
            return began.elapsed();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("members are {seen:?} after {limit:?}, not {want:?}");
}

/// Six nodes in three zones: 1 and 2, 3 and 4, 5 and 6.
#[test]
fn a_zones_spare_takes_over_and_the_dead_leave() {
    let zone = |node: usize| (node - 1) / 2;
    let other = |node: usize| {
        if node.is_multiple_of(2) {
            node - 1
        } else {
            node + 1
        }
    };
    let mut cluster = start(6, |node| {
        format!("  autopilot_redundancy_zone = \"zone-{}\"\n", zone(node))
    });
    set(
        &cluster,
        &json!({
            "last_contact_threshold": "3s", "server_stabilization_time": "1s", "cleanup_dead_servers": true,
            "min_quorum": 3, "dead_server_last_contact_threshold": "1m",
        }),
    );
    wait_for("one vote in each zone", PATIENCE, || {
        let zones: Vec<usize> = voters(&cluster, 1).into_iter().map(zone).collect();
        (zones == [0, 1, 2]).then_some(())
    });
    let leader = cluster.leader();
    let state = cluster
        .client(leader)
        .get("sys/storage/raft/autopilot/state");
    let state = state.expect(200).json()["data"].clone();
    assert_eq!(state["failure_tolerance"], 1, "{state}");
    assert_eq!(state["optimistic_failure_tolerance"], 4, "{state}");
    write(&cluster.client(leader), "kv/a", "1");

    // The voter of one zone dies: its spare takes the vote over, and the dead one has none any more.
    let mut others = voters(&cluster, leader)
        .into_iter()
        .filter(|node| *node != leader);
    let (first, second) = (others.next().unwrap(), others.next().unwrap());
    let died = Instant::now();
    cluster.kill9(first);
    let (spare, standby) = (other(first), other(leader));
    let mut want = vec![
        (first, false),
        (spare, true),
        (second, true),
        (other(second), false),
        (leader, true),
        (standby, false),
    ];
    let took = wait_members(&cluster, leader, PATIENCE, &want);
    println!("the spare of node {first} has its vote {took:.1?} after the death");
    assert!(took < Duration::from_secs(15), "{took:?}");
    write(&cluster.client(standby), "kv/a", "2");

    // A zone dies whole. Two voters are left of three: none of them may leave, but who has no vote may.
    for node in [other(second), second] {
        cluster.kill9(node);
        // Else the spare is given the vote of the one that has died just before it.
        std::thread::sleep(Duration::from_secs(5));
    }
    while died.elapsed() < DEAD_AFTER - Duration::from_secs(2) {
        assert_eq!(members(&cluster, leader).len(), 6, "too early");
        std::thread::sleep(Duration::from_millis(500));
    }
    want.retain(|(node, _)| *node != first && *node != other(second));
    let took = wait_members(&cluster, leader, PATIENCE, &want);
    println!(
        "the dead without a vote left {:.1?} after the first death",
        DEAD_AFTER - Duration::from_secs(2) + took
    );
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(voters(&cluster, leader).len(), 3, "never below min_quorum");
    write(&cluster.client(standby), "kv/a", "3");

    // Standing by is no reason to be taken for cut off.
    let health = cluster.anonymous(standby).get("sys/health?standbyok=true");
    assert_eq!(health.status, 200, "{}", health.text());

    // With one more voter the dead one can go. Its leader is older than the time after which a node is dead, and has never
    // heard of it.
    let new = cluster.add_node();
    cluster.start_node(new);
    cluster.wait_unsealed(new);
    want.retain(|(node, _)| *node != second);
    want.push((new, true));
    wait_members(&cluster, leader, PATIENCE, &want);
    for node in [leader, standby, spare, new] {
        assert_eq!(read(&cluster.client(node), "kv/a").as_deref(), Some("3"));
    }
    // It was away when it happened.
    cluster.start_node(second);
    wait_for("the removed node to know", PATIENCE, || {
        (cluster.health(second) == 530).then_some(())
    });
    cluster.assert_no_panics();
}

/// Three nodes that count as version 1, and three of version 2 that join them under load.
#[test]
fn nodes_of_a_new_version_take_over() {
    let version = |number: usize| {
        let major = if number <= 3 { 1 } else { 2 };
        format!("  autopilot_upgrade_version = \"{major}.0.0\"\n")
    };
    let mut cluster = start(3, version);
    cluster.wait_all();
    set(&cluster, &json!({"server_stabilization_time": "1s"}));
    let state = |cluster: &Cluster, node: usize| {
        let answer = cluster.client(node).get("sys/storage/raft/autopilot/state");
        answer.expect(200).json()["data"].clone()
    };
    let old: Vec<Client> = (1..=3).map(|node| cluster.client(node)).collect();
    let places = (0..6).map(|n| format!("kv/register-{n}")).collect();
    let load = Load::start(old, places, Duration::from_millis(20));

    for count in 1..=2 {
        let node = cluster.add_node();
        let text = version(node);
        cluster.configure(node, |config| config.storage_extra = text);
        cluster.start_node(node);
        cluster.wait_unsealed(node);
        // It could have a vote by now, and must not have it.
        std::thread::sleep(Duration::from_millis(2500));
        let now = state(&cluster, node);
        assert_eq!(now["upgrade_info"]["status"], "await-new-voters", "{now}");
        assert_eq!(now["upgrade_info"]["target_version"], "2.0.0", "{now}");
        let waiting = now["upgrade_info"]["target_version_non_voters"].as_array();
        assert_eq!(waiting.map(Vec::len), Some(count), "{now}");
        assert_eq!(voters(&cluster, node), [1, 2, 3]);
    }
    let last = cluster.add_node();
    let text = version(last);
    cluster.configure(last, |config| config.storage_extra = text);
    let began = Instant::now();
    cluster.start_node(last);
    let want: Vec<(usize, bool)> = (1..=6).map(|node| (node, node > 3)).collect();
    wait_members(&cluster, last, PATIENCE, &want);
    wait_for("a leader of the new version", PATIENCE, || {
        cluster.find_leader().filter(|leader| *leader > 3)
    });
    println!(
        "the new version has votes and leadership {:.1?} after the third start",
        began.elapsed()
    );
    let now = state(&cluster, last);
    assert_eq!(
        now["upgrade_info"]["status"], "await-server-removal",
        "{now}"
    );

    // The old ones serve until they go.
    let mut finished = load.stop();
    let gap = finished.history.longest_gap();
    println!("{gap:.1?} without an acknowledged write");
    assert!(gap < Duration::from_secs(5), "{gap:?}");
    for node in 1..=3 {
        assert!(cluster.terminate(node).success());
        let gone = json!({"server_id": format!("node-{node}")});
        let answer = cluster
            .client(last)
            .put("sys/storage/raft/remove-peer", &gone);
        assert_eq!(answer.status, 204, "{}", answer.text());
    }
    wait_members(&cluster, last, PATIENCE, &want[3..]);
    let now = state(&cluster, last);
    assert_eq!(now["upgrade_info"]["status"], "idle", "{now}");
    let new: Vec<Client> = (4..=6).map(|node| cluster.client(node)).collect();
    finished.look_at_everything(&new);
    let history = finished.history;
    println!("{:?}", history.counts);
    assert!(history.counts.writes > 100, "{:?}", history.counts);
    assert_eq!(history.counts.unknown, 0, "{:?}", history.complaints);
    verdict::assert_linearizable(&history.ops);
    cluster.assert_no_panics();
}
