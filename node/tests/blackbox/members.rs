//! Leadership and membership as an operator changes them, with `strongroom` and with the real `bao`.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use strongroom_jepsen_tests::{
    Cluster,
    cluster::{read, write},
    logs::{NODES_AWAY, STARTING},
    machine::wait_for,
};

use crate::BINARY;

const PATIENCE: Duration = Duration::from_secs(30);
/// What the others, and the node itself, say of one that was removed.
const REMOVED: &[&str] = &[
    "a connection was refused",
    "was removed from the cluster",
    "turned away",
    "a node that was removed",
];

fn with_kv(nodes: usize) -> Cluster {
    let cluster = Cluster::initialized(nodes, BINARY);
    let mounted = cluster
        .client(1)
        .put("sys/mounts/kv", &json!({"type": "kv"}));
    assert_eq!(mounted.status, 204);
    cluster
}

fn name(number: usize) -> String {
    format!("node-{number}")
}

/// `node_id`, `voter` of every member, as a node says.
fn members(cluster: &Cluster, number: usize) -> Vec<(String, bool)> {
    let servers = cluster.servers(number);
    let mut members: Vec<(String, bool)> = servers
        .iter()
        .map(|server| {
            let name = server["node_id"].as_str().unwrap().to_owned();
            (name, server["voter"] == true)
        })
        .collect();
    members.sort();
    members
}

fn wait_members(cluster: &Cluster, number: usize, want: &[(usize, bool)]) {
    let want: Vec<(String, bool)> = want.iter().map(|(n, votes)| (name(*n), *votes)).collect();
    wait_for(&format!("members {want:?}"), PATIENCE, || {
        (members(cluster, number) == want).then_some(())
    });
}

#[test]
fn leadership_is_handed_over_while_clients_write() {
    let mut cluster = with_kv(3);
    // Ten times from whoever leads to whoever is best; and how long until the first write is taken.
    let mut gaps = Vec::new();
    for round in 0..10 {
        let (leader, asked) = (cluster.leader(), cluster.follower());
        let client = cluster.client(if round % 2 == 0 { leader } else { asked });
        let started = Instant::now();
        assert_eq!(client.put("sys/step-down", &json!({})).status, 204);
        write(&client, "kv/a", &round.to_string());
        gaps.push(started.elapsed());
        assert_ne!(cluster.leader(), leader, "round {round}");
    }
    gaps.sort();
    println!("step-down to the first write: {gaps:?}");
    // An election would take one and a half seconds; the machine may be busy.
    assert!(gaps[2] < Duration::from_millis(700), "{gaps:?}");

    // By name, on the command line, sent to any node.
    for round in 1..=3 {
        let target = name(round);
        if cluster.leader() == round {
            let again =
                cluster.strongroom(round, &["operator", "step-down", &format!("-to={target}")]);
            assert!(again.expect(2).stderr.contains("is the leader already"));
            continue;
        }
        let stepped = cluster
            .strongroom(1, &["operator", "step-down", &format!("-to={target}")])
            .ok();
        assert_eq!(
            stepped.stdout,
            format!("Success! Stepped down: {}\n", cluster.url(1))
        );
        assert_eq!(cluster.leader(), round);
    }
    let leader = cluster.leader();
    let stepped = cluster.bao(leader, &["operator", "step-down"]).ok();
    assert!(
        stepped.stdout.starts_with("Success! Stepped down: "),
        "{}",
        stepped.all()
    );
    assert_ne!(cluster.leader(), leader);
    for (body, why) in [
        (json!({"to": "node-9"}), "no node named `node-9`"),
        (json!({"to": 7}), "wrong type"),
    ] {
        let refused = cluster.client(1).put("sys/step-down", &body).expect(400);
        assert!(refused.errors()[0].contains(why), "{refused:?}");
    }
    assert_eq!(
        cluster.anonymous(1).put("sys/step-down", &json!({})).status,
        403
    );
    for node in 1..=3 {
        assert_eq!(read(&cluster.client(node), "kv/a").as_deref(), Some("9"));
    }
    cluster.assert_logs_clean(&[STARTING, NODES_AWAY]);
}

#[test]
fn who_is_ineligible_does_not_lead() {
    let mut cluster = with_kv(3);
    let leader = cluster.leader();
    let spare = if leader == 3 { 2 } else { 3 };
    cluster.configure(spare, |config| {
        config.storage_extra = "  leader_ineligible = true".to_owned();
    });
    cluster.terminate(spare);
    cluster.start_node(spare);
    cluster.wait_all();
    let refused = wait_for("the leader to know", PATIENCE, || {
        let body = json!({"to": name(spare)});
        let answer = cluster.client(leader).put("sys/step-down", &body);
        if answer.status == 204 {
            // It was not on record yet.
            let _ = cluster.client(leader).put("sys/step-down", &json!({}));
            return None;
        }
        Some(answer)
    });
    assert!(
        refused.errors()[0].contains("leader_ineligible"),
        "{refused:?}"
    );
    for _ in 0..4 {
        let leader = cluster.leader();
        assert_ne!(leader, spare);
        if leader != 1 {
            cluster.kill9(leader);
            let next = wait_for("another leader", PATIENCE, || cluster.find_leader());
            assert_ne!(next, spare);
            cluster.start_node(leader);
            cluster.wait_all();
        }
        // One that has just come back may not have been heard yet.
        wait_for("a step-down", PATIENCE, || {
            let answer = cluster.client(1).put("sys/step-down", &json!({}));
            (answer.status == 204).then_some(())
        });
    }
}

#[test]
fn members_come_and_go() {
    let mut cluster = with_kv(5);
    write(&cluster.client(1), "kv/a", "1");
    // Sent to any node, by either tool; the leader can be meant too.
    let leader = cluster.leader();
    let asked = cluster.follower();
    let gone = cluster.bao(asked, &["operator", "raft", "remove-peer", &name(leader)]);
    assert_eq!(gone.ok().stdout, "Peer removed successfully!\n");
    assert_ne!(cluster.leader(), leader);
    // It says so itself, to people and to load balancers.
    wait_for("the removed node to say so", PATIENCE, || {
        let answer = cluster
            .anonymous(leader)
            .request("GET", "/v1/sys/health", None);
        answer.ok().filter(|answer| answer.status == 530)
    });
    let health = cluster
        .anonymous(leader)
        .get("sys/health?removedcode=299&sealedcode=298");
    assert_eq!(health.expect(299).json()["removed_from_cluster"], true);
    let status = cluster.seal_status(leader);
    assert_eq!(
        (&status["removed_from_cluster"], &status["sealed"]),
        (&json!(true), &json!(true))
    );
    let refused = cluster.client(leader).get("kv/a").expect(503);
    assert!(
        refused.errors()[0].contains("removed from the cluster"),
        "{refused:?}"
    );
    let joined = cluster.client(leader).put(
        "sys/storage/raft/join",
        &json!({"leader_api_addr": cluster.url(1)}),
    );
    assert_eq!(joined.status, 400);
    // A restart with the old data changes nothing, an empty directory does.
    assert!(cluster.terminate(leader).success());
    cluster.start_node(leader);
    wait_for("it to learn it again", PATIENCE, || {
        (cluster.health(leader) == 530).then_some(())
    });
    assert!(cluster.terminate(leader).success());
    cluster.wipe(leader);
    cluster.start_node(leader);
    cluster.wait_unsealed(leader);
    cluster.wait_all();
    assert_eq!(read(&cluster.client(leader), "kv/a").as_deref(), Some("1"));

    // Votes.
    let follower = cluster.follower();
    let demote = cluster
        .bao(1, &["operator", "raft", "demote", &name(follower)])
        .ok();
    assert_eq!(demote.stdout, "Server demoted successfully!\n");
    wait_for("the vote to be gone", PATIENCE, || {
        let members = members(&cluster, 1);
        members.contains(&(name(follower), false)).then_some(())
    });
    let again = cluster.strongroom(1, &["operator", "raft", "demote", &name(follower)]);
    assert!(again.expect(2).stderr.contains("is a non-voter already"));
    let promote = cluster
        .bao(1, &["operator", "raft", "promote", &name(follower)])
        .ok();
    assert_eq!(promote.stdout, "Server promoted successfully!\n");
    cluster.wait_all();
    let again = cluster.strongroom(1, &["operator", "raft", "promote", &name(follower)]);
    assert!(again.expect(2).stderr.contains("is not a non-voter"));
    let unknown = cluster.strongroom(1, &["operator", "raft", "remove-peer", "node-9"]);
    assert!(unknown.expect(2).stderr.contains("no node named `node-9`"));

    // Two of five are dead: one more cannot be spared, a dead one can.
    let (first, second) = {
        let leader = cluster.leader();
        let mut others = (1..=5).filter(|number| *number != leader);
        (others.next().unwrap(), others.next().unwrap())
    };
    cluster.kill9(first);
    cluster.kill9(second);
    let alive = cluster.follower();
    let refused = cluster.strongroom(alive, &["operator", "raft", "remove-peer", &name(alive)]);
    assert!(refused.expect(2).stderr.contains("a quorum needs"));
    let removed = cluster.strongroom(alive, &["operator", "raft", "remove-peer", &name(first)]);
    assert_eq!(removed.ok().stdout, "Peer removed successfully!\n");
    // It was away when it happened.
    cluster.start_node(first);
    wait_for("it to learn it", PATIENCE, || {
        (cluster.health(first) == 530).then_some(())
    });
    cluster.start_node(second);
    cluster.wait_unsealed(second);
    assert_eq!(read(&cluster.client(second), "kv/a").as_deref(), Some("1"));
    cluster.assert_logs_clean(&[STARTING, NODES_AWAY, REMOVED]);
}

#[test]
fn everybody_tells_the_same_of_the_cluster() {
    let mut cluster = with_kv(3);
    let leader = cluster.leader();
    let mut states = Vec::new();
    for node in 1..=3 {
        let asked = |path: &str| cluster.client(node).get(path).expect(200).json();
        let state = asked("sys/storage/raft/autopilot/state")["data"].clone();
        let configuration = asked("sys/storage/raft/configuration")["data"]["config"].clone();
        let ha = asked("sys/ha-status")["nodes"].clone();
        assert_eq!(state["leader"], name(leader));
        assert_eq!(state["healthy"], true);
        assert_eq!(state["failure_tolerance"], 1);
        let listed = configuration["servers"].as_array().unwrap();
        for server in listed {
            let id = server["node_id"].as_str().unwrap();
            let seen = &state["servers"][id];
            assert_eq!(seen["address"], server["address"]);
            assert_eq!(server["leader"] == true, state["leader"] == *id);
            assert_eq!(server["voter"] == true, seen["status"] != "non-voter");
        }
        let active: Vec<&Value> = ha
            .as_array()
            .unwrap()
            .iter()
            .filter(|node| node["active_node"] == true)
            .collect();
        assert_eq!(active.len(), 1);
        assert_eq!(active[0]["api_address"], cluster.url(leader));
        assert_eq!(asked("sys/leader")["leader_address"], cluster.url(leader));
        // Everybody but the leader itself was heard of, whoever was asked.
        let heard = ha.as_array().unwrap().iter();
        assert_eq!(heard.filter(|node| !node["last_echo"].is_null()).count(), 2);
        states.push(configuration);
    }
    assert!(states.windows(2).all(|pair| pair[0] == pair[1]));

    // The real client reads what we say, and we print what it prints.
    let follower = cluster.follower();
    let args = ["operator", "raft", "autopilot", "state", "-format=json"];
    let (ours, theirs) = (
        cluster.strongroom(follower, &args).ok().json(),
        cluster.bao(follower, &args).ok().json(),
    );
    for field in [
        "Healthy",
        "FailureTolerance",
        "Leader",
        "Voters",
        "NonVoters",
    ] {
        assert_eq!(ours[field], theirs[field], "{field}");
    }
    for field in [
        "ID",
        "Name",
        "Address",
        "NodeStatus",
        "Status",
        "Version",
        "NodeType",
        "Healthy",
    ] {
        let seen = &theirs["Servers"][name(leader)][field];
        assert!(!seen.is_null(), "{field}: {theirs}");
        assert_eq!(&ours["Servers"][name(leader)][field], seen, "{field}");
    }
    let steady = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.contains("Last Contact:"));
        let known = |line: &&str| !line.contains("Upgrade") && !line.contains("Target Version");
        lines
            .filter(known)
            .map(|line| line.trim_end().to_owned())
            .filter(|line| !line.is_empty() && !line.starts_with("   Status:"))
            .collect()
    };
    let args = ["operator", "raft", "autopilot", "state"];
    let (ours, theirs) = (
        cluster.strongroom(1, &args).ok().stdout,
        cluster.bao(1, &args).ok().stdout,
    );
    for line in steady(&ours) {
        assert!(
            theirs.contains(&line),
            "{line:?} is not in bao's\n{theirs}\nours:\n{ours}"
        );
    }

    let set = [
        "operator",
        "raft",
        "autopilot",
        "set-config",
        "-min-quorum=3",
        "-cleanup-dead-servers=true",
        "-dead-server-last-contact-threshold=2m",
    ];
    assert_eq!(cluster.bao(follower, &set).ok().stdout, "");
    for (tool, node) in [("strongroom", 1), ("bao", 2)] {
        let args = ["operator", "raft", "autopilot", "get-config"];
        let shown = match tool {
            "bao" => cluster.bao(node, &args),
            _ => cluster.strongroom(node, &args),
        };
        let shown = shown.ok().stdout;
        for line in [
            "Cleanup Dead Servers                  true",
            "Dead Server Last Contact Threshold    2m0s",
            "Min Quorum                            3",
        ] {
            assert!(shown.contains(line), "{tool}: {shown}");
        }
    }
    let refused = cluster.strongroom(
        1,
        &[
            "operator",
            "raft",
            "autopilot",
            "set-config",
            "-min-quorum=1",
        ],
    );
    assert!(refused.expect(2).stderr.contains("should at least be 3"));
    cluster.assert_logs_clean(&[STARTING]);
}

#[test]
fn a_node_that_is_told_to_leaves_at_its_stop_and_comes_back_anew() {
    let mut cluster = with_kv(3);
    write(&cluster.client(1), "kv/a", "1");
    let leader = cluster.leader();
    cluster.configure(leader, |config| {
        config.storage_extra = "  leave_on_shutdown = true".to_owned();
    });
    assert!(cluster.terminate(leader).success());
    cluster.start_node(leader);
    cluster.wait_all();
    // The second stop is the one that knows the setting.
    let body = json!({"to": name(leader)});
    // A node that has just come back may not be connected yet: another one leads then, and the answer is 503.
    wait_for("the node leads again", PATIENCE, || {
        if cluster.leader() == leader {
            return Some(());
        }
        // 400: it leads by now.
        let status = cluster.client(1).put("sys/step-down", &body).status;
        assert!(matches!(status, 204 | 400 | 503), "{status}");
        None
    });
    let other = cluster.follower();
    assert!(cluster.terminate(leader).success());
    let rest: Vec<(usize, bool)> = (1..=3)
        .filter(|n| *n != leader)
        .map(|n| (n, true))
        .collect();
    wait_members(&cluster, other, &rest);
    write(&cluster.client(other), "kv/a", "2");
    cluster.start_node(leader);
    cluster.wait_all();
    assert_eq!(read(&cluster.client(leader), "kv/a").as_deref(), Some("2"));
    let aside: Vec<String> = fs::read_dir(cluster.data_dir(leader))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("removed-"))
        .collect();
    assert_eq!(aside.len(), 1, "{aside:?}");
    cluster.assert_logs_clean(&[STARTING, NODES_AWAY]);
}
