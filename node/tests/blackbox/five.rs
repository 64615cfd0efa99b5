//! Five nodes: any two may be gone.

use std::time::{Duration, Instant};

use strongroom_jepsen_tests::{
    Client, Cluster,
    cluster::{read, write},
    verdict,
    workload::Load,
};

use crate::BINARY;

#[test]
fn two_of_five_may_die() {
    let mut cluster = Cluster::initialized(5, BINARY);
    cluster.mount_kv("kv", false);
    let places = (0..8).map(|n| format!("kv/register-{n}")).collect();
    let clients: Vec<Client> = (1..=5)
        .map(|node| cluster.client(node).with_timeout(Duration::from_secs(10)))
        .collect();
    let load = Load::start(clients.clone(), places, Duration::from_millis(20));
    std::thread::sleep(Duration::from_millis(800));

    let leader = cluster.leader();
    let dead = [leader, leader % 5 + 1];
    for node in dead {
        cluster.kill9(node);
    }
    let began = Instant::now();
    let left: Vec<usize> = (1..=5).filter(|node| !dead.contains(node)).collect();
    for node in &left {
        let (path, value) = (format!("kv/after-{node}"), format!("value-{node}"));
        write(&cluster.client(*node), &path, &value);
        for other in &left {
            assert_eq!(read(&cluster.client(*other), &path), Some(value.clone()));
        }
    }
    println!(
        "three of five served everything {:?} after two had died",
        began.elapsed()
    );
    assert!(began.elapsed() < Duration::from_secs(25));
    for node in dead {
        cluster.start_node(node);
    }
    cluster.wait_all();
    for node in dead {
        for other in &left {
            let found = read(&cluster.client(node), &format!("kv/after-{other}"));
            assert_eq!(found, Some(format!("value-{other}")));
        }
    }
    let mut finished = load.stop();
    finished.look_at_everything(&clients);
    let history = finished.history;
    println!("{:?}", history.counts);
    assert!(history.counts.writes > 100, "{:?}", history.counts);
    verdict::assert_linearizable(&history.ops);
    cluster.assert_no_panics();
}
