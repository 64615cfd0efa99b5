//! Clients behind HAProxy while the leader dies, and while it leaves in order.

use std::time::Duration;

use serde_json::json;
use strongroom_jepsen_tests::{
    Client, Cluster,
    haproxy::Haproxy,
    nemesis::{Fault, Nemesis},
    verdict,
    workload::Load,
};

use crate::BINARY;

#[test]
fn behind_haproxy() {
    let mut cluster = Cluster::initialized(3, BINARY);
    assert_eq!(
        cluster
            .client(1)
            .put("sys/mounts/kv", &json!({"type": "kv"}))
            .status,
        204
    );
    let mut haproxy = Haproxy::start(&cluster);
    let clients: Vec<Client> = (0..6).map(|_| haproxy.client(&cluster)).collect();
    let paths: Vec<String> = (0..10).map(|n| format!("kv/register-{n}")).collect();

    for (how, kill) in [
        ("kill -9 of the leader", true),
        ("SIGTERM of the leader", false),
    ] {
        let load = Load::start(
            clients.clone(),
            paths.iter().map(|path| format!("{path}-{kill}")).collect(),
            Duration::from_millis(10),
        );
        let mut nemesis = Nemesis::new(0);
        nemesis.rest(1000..1100);
        if kill {
            nemesis.inflict(&mut cluster, Fault::KillLeader);
        } else {
            let leader = cluster.leader();
            assert!(cluster.terminate(leader).success());
            nemesis.rest(1000..1100);
            cluster.start_node(leader);
            cluster.wait_all();
        }
        nemesis.rest(1000..1100);
        let mut finished = load.stop();
        finished.look_at_everything(&[
            haproxy.client(&cluster),
            cluster.client(1),
            cluster.client(2),
            cluster.client(3),
        ]);
        let history = finished.history;
        println!(
            "{how}: {:?}, longest time without an acknowledged write {:?}",
            history.counts,
            history.longest_gap()
        );
        for complaint in &history.complaints {
            println!("{complaint}");
        }
        assert!(history.counts.writes > 100, "{:?}", history.counts);
        assert!(
            kill || (history.counts.failed, history.counts.unknown) == (0, 0),
            "requests were lost although the leader left in order: {:?}",
            history.counts
        );
        assert!(
            history.longest_gap() < Duration::from_secs(15),
            "writes went on only after {:?}",
            history.longest_gap()
        );
        verdict::assert_linearizable(&history.ops);
    }
    assert!(haproxy.runs());
}
