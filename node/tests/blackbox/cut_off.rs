//! A node that is cut off from the others while clients still reach it: it gives nothing old unless asked to, acknowledges
//! nothing, says how it is, and is back by itself.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use strongroom_jepsen_tests::{
    Client, Cluster, Options,
    cluster::{read, write},
    machine::wait_for,
    network::{Network, Partition},
};

use crate::BINARY;

/// Longest time of a request, as configured.
const BOUND: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_node_that_is_cut_off_serves_nothing_old_unless_asked_to() {
    if !Network::is_possible() {
        eprintln!("NOT TESTED: a network that can be cut needs root");
        return;
    }
    let mut cluster = Cluster::prepare_in(
        &Options {
            binary: BINARY.into(),
            nodes: 3,
            key_made_before: true,
        },
        |nodes| Some(Network::up(nodes)),
    );
    for node in 1..=3 {
        cluster.configure(node, |config| {
            config.listener_extra = "max_request_duration = \"4s\"".to_owned();
        });
        cluster.spawn(node);
    }
    for node in 1..=3 {
        cluster.wait_listening(node);
    }
    cluster.init();
    cluster.wait_all();
    cluster.mount_kv("kv", false);
    let follower = cluster.follower();
    cut_off(&cluster, follower, "follower");
    let leader = cluster.leader();
    cut_off(&cluster, leader, "leader");
    cluster.assert_no_panics();
}

fn cut_off(cluster: &Cluster, node: usize, what: &str) {
    let (client, other) = (cluster.client(node), cluster.client(node % 3 + 1));
    write(&client, "kv/a", "old");
    cluster
        .network()
        .cut(&Partition::split(what, &[node], cluster.len()));
    wait_for("the others to go on", PATIENCE, || {
        let answer = other.put("kv/a", &json!({ "value": what }));
        (answer.status == 204).then_some(())
    });
    gives_nothing_old(&client, what, false);
    let stale = client
        .clone()
        .with_header("X-Strongroom-Consistency", "stale");
    let answer = stale.get("kv/a").expect(200);
    assert_eq!(answer.json()["data"]["value"], "old", "the {what}");
    assert_eq!(answer.header("x-strongroom-consistency"), Some("stale"));
    assert!(answer.header("x-strongroom-applied-index").is_some());
    let refused = stale.put("kv/a", &json!({ "value": "x" }));
    assert_eq!(refused.status, 400, "{}", refused.text());
    says_how_it_is(cluster, node);
    // By now the node knows that it reaches nobody: nothing is sent, so nothing is in doubt.
    gives_nothing_old(&client, what, true);

    cluster.network().heal();
    let began = Instant::now();
    wait_for("a read that is not old", PATIENCE, || {
        let answer = client.get("kv/a");
        match answer.status {
            200 => assert_eq!(answer.json()["data"]["value"], what),
            status => assert_eq!(status, 503, "{}", answer.text()),
        }
        (answer.status == 200).then_some(())
    });
    println!("the {what} serves {:.1?} after the cut", began.elapsed());
    assert_eq!(
        cluster
            .anonymous(node)
            .get("sys/health?standbyok=true")
            .status,
        200
    );
    write(&client, "kv/a", "back");
    assert_eq!(read(&other, "kv/a").as_deref(), Some("back"));
    // Refused is refused: none of it comes later.
    assert_eq!(read(&other, &format!("kv/{what}-true")), None);
}

/// Reads and writes, many at once: all are refused within their bound. Of a write that was sent to a leader which does not
/// answer any more nobody knows what becomes of it, unless the node `knows` that there is none.
fn gives_nothing_old(client: &Client, what: &str, knows: bool) {
    let asked: Vec<_> = (0..8)
        .map(|n| {
            let (client, path) = (client.clone(), format!("kv/{what}-{knows}"));
            thread::spawn(move || {
                let began = Instant::now();
                let answer = match n % 2 {
                    0 => client.get("kv/a"),
                    _ => client.put(&path, &json!({ "value": "x" })),
                };
                (answer, began.elapsed())
            })
        })
        .collect();
    for (n, thread) in asked.into_iter().enumerate() {
        let (answer, took) = thread.join().unwrap();
        println!(
            "{what}, {n}: {} after {took:.1?}: {}",
            answer.status,
            answer.text().trim()
        );
        let unknown = answer.status == 500
            && answer
                .text()
                .contains("the outcome of this request is unknown");
        let refused = answer.status == 503 || (!knows && n % 2 == 1 && unknown);
        assert!(refused, "{what}: {} {}", answer.status, answer.text());
        assert!(took < BOUND + Duration::from_secs(5), "{took:?}");
    }
}

/// To load balancers and to people.
fn says_how_it_is(cluster: &Cluster, node: usize) {
    let client = cluster.anonymous(node);
    wait_for("health to say so", PATIENCE, || {
        let answer = client.get("sys/health?standbyok=true");
        (answer.status == 474).then_some(())
    });
    let health = client
        .get("sys/health?haunhealthycode=299")
        .expect(299)
        .json();
    assert_eq!(
        (
            &health["standby"],
            &health["sealed"],
            &health["ha_connection_healthy"]
        ),
        (&json!(true), &json!(false), &json!(false)),
        "{health}"
    );
    let leader = client.get("sys/leader").expect(200).json();
    println!("sys/leader on node {node}: {leader}");
    assert_eq!(leader["is_self"], false, "{leader}");
}

/// The leader does not reach a node that has joined through another one: the node says so, and goes on when it does.
#[test]
fn a_joiner_that_the_leader_does_not_reach_says_so() {
    if !Network::is_possible() {
        eprintln!("NOT TESTED: a network that can be cut needs root");
        return;
    }
    let options = Options {
        binary: BINARY.into(),
        nodes: 3,
        key_made_before: true,
    };
    let mut cluster = Cluster::prepare_in(&options, |nodes| Some(Network::up(nodes)));
    for node in [1, 2] {
        cluster.start_node(node);
    }
    cluster.init();
    cluster.wait_all();
    let leader = cluster.leader();
    cluster.network().cut(&Partition {
        name: "the leader and the joiner".to_owned(),
        cut: [(leader, 3), (3, leader)].into(),
    });
    cluster.start_node(3);
    let warning = cluster.wait_warning(3, "joined, but no data have come");
    println!("{warning}");
    assert_eq!(cluster.health(3), 503);
    cluster.network().heal();
    cluster.wait_all();
    let warnings = cluster.seal_status(3)["warnings"].clone();
    assert!(!warnings.to_string().contains("no data"), "{warnings}");
    cluster.assert_no_panics();
}
