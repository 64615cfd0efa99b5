//! A node that has just started, while clients and a load balancer ask it already: what it will serve in a moment waits for that
//! moment; what it cannot promise is refused at once.

use std::{
    net::TcpListener,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::json;
use strongroom_jepsen_tests::{
    Client, Cluster, Response, chaos::Chaos, cluster::read, haproxy::Haproxy, openloop::OpenLoop,
};

use crate::{
    BINARY,
    limits::{figure, prometheus},
};

/// An answer that nothing was waited for.
const AT_ONCE: Duration = Duration::from_secs(1);
/// The node's own limits, counted from its start: when all is well, and when something has gone wrong.
const HELD: Duration = Duration::from_secs(15);
const HELD_IN_TROUBLE: Duration = Duration::from_secs(3);

/// A request that is under way, and how long it took.
fn send(client: Client, path: &'static str) -> JoinHandle<(Response, Duration)> {
    thread::spawn(move || {
        let began = Instant::now();
        let answer = client
            .with_timeout(Duration::from_secs(30))
            .put(path, &json!({"value": "held"}));
        (answer, began.elapsed())
    })
}

/// A cluster whose node 1 has an HSM that obeys, and is stopped.
fn stopped() -> (Cluster, Chaos) {
    let mut cluster = Cluster::initialized(3, BINARY);
    cluster.mount_kv("kv", false);
    let chaos = Chaos::make(cluster.dir());
    cluster.configure(1, |config| {
        chaos.configure(config);
        let longer = ("STRONGROOM_HSM_CALL_DEADLINE", "1m");
        config
            .environment
            .push((longer.0.to_owned(), longer.1.to_owned()));
    });
    assert!(cluster.terminate(1).success());
    (cluster, chaos)
}

#[test]
fn requests_wait_for_a_node_that_unseals_itself() {
    let (mut cluster, chaos) = stopped();
    let client = cluster.client(1);
    for function in ["C_Login", "C_Decrypt"] {
        chaos.order(&format!("hang {function}"));
        cluster.start_node(1);
        let under_way = send(client.clone(), "kv/held");
        thread::sleep(Duration::from_millis(500));
        // What tells how the node is does not wait.
        let began = Instant::now();
        assert_eq!(cluster.health(1), 503, "{function}");
        assert_eq!(cluster.seal_status(1)["sealed"], true);
        let status = cluster.strongroom(1, &["status"]).expect(2);
        assert!(status.stdout.contains("Sealed"), "{}", status.all());
        assert!(began.elapsed() < HELD / 3, "{:?}", began.elapsed());
        // A client that does not wait for so long; what it wanted is not done later.
        let impatient = client.clone().with_timeout(Duration::from_secs(1));
        let gave_up = impatient.request("PUT", "/v1/kv/given-up", Some(&json!({"value": "late"})));
        assert!(gave_up.is_err(), "{gave_up:?}");
        assert!(!under_way.is_finished(), "{function}: not held");

        chaos.order("");
        let (answer, took) = under_way.join().unwrap();
        assert_eq!(answer.status, 204, "{function}: {}", answer.text());
        println!("{function} hung: answered after {took:?}");
        assert_eq!(read(&client, "kv/held").as_deref(), Some("held"));
        assert_eq!(read(&client, "kv/given-up"), None);
        let held = figure(&prometheus(&client), "strongroom_requests_held_total");
        assert!(held >= 1.0, "{held}");
        cluster.wait_all();
        assert!(cluster.terminate(1).success());
    }
    cluster.assert_no_panics();
}

#[test]
fn nobody_waits_for_long_for_a_node_that_cannot_say_when_it_will_serve() {
    let (mut cluster, chaos) = stopped();
    let begin = |cluster: &mut Cluster| {
        let started = Instant::now();
        cluster.start_node(1);
        started
    };
    let refused = |cluster: &Cluster, started: Instant, limit: Duration| {
        let answer = send(cluster.client(1), "kv/refused").join().unwrap().0;
        let waited = started.elapsed();
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert_eq!(answer.errors(), ["Vault is sealed"]);
        // The node starts a moment after `started`; the machine may be busy.
        let around = limit.saturating_sub(AT_ONCE)..limit + 5 * AT_ONCE;
        assert!(around.contains(&waited), "refused after {waited:?}");
        let (answer, took) = send(cluster.client(1), "kv/refused").join().unwrap();
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(took < HELD_IN_TROUBLE, "refused after {took:?}");
    };
    // An HSM that is away for a moment.
    for attempt in 1.. {
        chaos.order("cut");
        let started = begin(&mut cluster);
        let under_way = send(cluster.client(1), "kv/held");
        let _ = cluster.wait_warning(1, "HSM: not available");
        chaos.order("");
        // On a busy machine it may have been away for longer.
        let in_time = started.elapsed() < HELD_IN_TROUBLE / 2;
        let (answer, _) = under_way.join().unwrap();
        cluster.wait_unsealed(1);
        assert!(cluster.terminate(1).success());
        if in_time {
            assert_eq!(answer.status, 204, "{}", answer.text());
            break;
        }
        assert!(attempt < 10, "never in time");
    }

    // For longer.
    chaos.order("cut");
    let started = begin(&mut cluster);
    refused(&cluster, started, HELD_IN_TROUBLE);
    let _ = cluster.wait_warning(1, "HSM: not available");
    chaos.order("");
    cluster.wait_unsealed(1);
    assert!(cluster.terminate(1).success());

    // One that has not answered by the time clients give up.
    chaos.order("hang C_Login");
    let started = begin(&mut cluster);
    refused(&cluster, started, HELD);
    chaos.order("");
    cluster.wait_unsealed(1);
    assert!(cluster.terminate(1).success());

    // A fault of the node's own.
    let in_its_place = TcpListener::bind(cluster.cluster_socket(1)).unwrap();
    let started = begin(&mut cluster);
    let _ = cluster.wait_warning(1, "cluster address");
    refused(&cluster, started, HELD_IN_TROUBLE);
    drop(in_its_place);
    cluster.wait_unsealed(1);
    assert!(cluster.terminate(1).success());

    // A node that is stopped meanwhile lets go of what waits.
    chaos.order("hang C_Login");
    cluster.start_node(1);
    let under_way = send(cluster.client(1), "kv/refused");
    thread::sleep(Duration::from_millis(500));
    let began = Instant::now();
    assert!(cluster.terminate(1).success());
    assert!(
        began.elapsed() < Duration::from_secs(12),
        "stopped after {:?}",
        began.elapsed()
    );
    let (answer, _) = under_way.join().unwrap();
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(read(&cluster.client(2), "kv/refused"), None);
    cluster.assert_no_panics();
}

/// HAProxy does not notice that the node was away, and sends it requests.
#[test]
fn a_node_killed_and_started_at_once_costs_nobody_a_request() {
    let mut cluster = Cluster::initialized(3, BINARY);
    cluster.mount_kv("kv", false);
    let mut haproxy = Haproxy::start(&cluster);
    let clients: Vec<Client> = (0..16)
        .map(|_| {
            haproxy
                .client(&cluster)
                .with_timeout(Duration::from_secs(10))
        })
        .collect();
    let load = OpenLoop::start(clients, "kv", Duration::from_millis(50));
    thread::sleep(Duration::from_secs(1));
    let mut held = 0.0;
    for (round, node) in [1, 2, 3].into_iter().cycle().enumerate() {
        // Each node once, and until HAProxy was too slow to notice.
        if round >= 3 && held > 0.0 || round == 12 {
            break;
        }
        cluster.kill9(node);
        cluster.start_node(node);
        cluster.wait_all();
        held += figure(
            &prometheus(&cluster.client(node)),
            "strongroom_requests_held_total",
        );
        thread::sleep(Duration::from_secs(1));
    }
    let requests = load.stop();
    let failed: Vec<_> = requests.iter().filter(|r| r.failed.is_some()).collect();
    let slowest = requests.iter().map(|r| r.ended - r.due).max();
    println!(
        "{} requests, {held} held, slowest {slowest:?}",
        requests.len()
    );
    assert!(failed.is_empty(), "{} failed: {failed:#?}", failed.len());
    assert!(held > 0.0, "HAProxy sent a node that was not ready nothing");
    assert!(haproxy.runs());
    cluster.assert_no_panics();
}
