//! A rolling upgrade between two real versions: three nodes of an older one, replaced in place one after the other by the
//! newer one, under load. Does a request fail, is a change lost, is a read stale, and what comes of the data afterwards?
//!
//! `upgrade OLD`: the path of the older server. The newer one is `strongroom` beside this program, or
//! `$STRONGROOM_TEST_BIN`. Needs haproxy.
//!
//! On the way every mixture is there for a while: new followers of an old leader, old followers of a new one. What the
//! newer version switches on by an entry of the log must not come before every node knows it. In the end the older server is
//! tried on data that the newer one has used: it must refuse, and leave them as they are. An older version that knows all of that
//! has switched it on by itself; neither is looked at then.
//!
//! Exit code 0: no request behind HAProxy failed, and every register is linearizable. 1: not so. 2: too little happened to
//! tell. 3: the run itself failed.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a run that cannot be set up must fail loudly"
)]

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use strongroom_jepsen_tests::{
    Client, Cluster, Options,
    haproxy::Haproxy,
    logs,
    machine::wait_for,
    openloop::{OpenLoop, Request},
    run,
    verdict::{Gates, Verdict, Window},
    workload::Load,
};

const NODES: usize = 3;
/// What a client allows.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long each mixture of versions stays.
const REST: Duration = Duration::from_secs(2);
/// An old leader that is to give way to a new one is restarted this often; each time one of two others takes over.
const ATTEMPTS: usize = 10;
/// What the leader logs when it switches the newer way of remembering requests on.
const SWITCHED_ON: &str = "requests are remembered by time from now on";

fn main() -> ExitCode {
    let old = std::env::args().nth(1).map(PathBuf::from);
    run::guarded(move || {
        let old = old.expect("usage: upgrade OLD, the path of the older server");
        assert!(old.exists(), "{} is not there", old.display());
        upgrade(&old)
    })
}

fn upgrade(old: &Path) -> ExitCode {
    let mut cluster = old_cluster(old);
    let haproxy = Haproxy::start(&cluster);
    let pinned: Vec<Client> = (1..=NODES)
        .map(|node| cluster.client(node).with_timeout(PATIENCE))
        .collect();
    let balanced = |count| {
        let client = haproxy.client(&cluster).with_timeout(PATIENCE);
        std::iter::repeat_n(client, count)
    };
    let places = (0..6)
        .flat_map(|n| {
            [
                format!("plain/register-{n}"),
                format!("wrapped/register-{n}"),
            ]
        })
        .collect();
    let clients = pinned.iter().cloned().chain(balanced(2)).collect();
    let users = balanced(8).collect();
    let load = Load::start(clients, places, Duration::from_millis(8));
    let users = OpenLoop::start(users, "plain", Duration::from_millis(200));
    thread::sleep(REST);

    let knows = switched_on(&cluster).is_some();
    let windows = roll(&mut cluster, &load, knows);
    thread::sleep(REST);
    let requests = users.stop();
    let mut finished = load.stop();
    finished.look_at_everything(&pinned);
    let gates = Gates::of(30);
    let verdict = run::conclude("upgrade", &cluster, &finished, &windows, gates);
    if !knows {
        back(&mut cluster, old);
    }
    match (report(&requests), verdict) {
        (false, Verdict::Valid) => ExitCode::from(1),
        (_, verdict) => verdict.exit_code(),
    }
}

fn old_cluster(old: &Path) -> Cluster {
    let mut cluster = Cluster::prepare(&Options {
        binary: run::server(),
        nodes: NODES,
        key_made_before: true,
    });
    for node in 1..=NODES {
        cluster.set_binary(node, Some(old));
    }
    cluster.bring_up();
    cluster.mount_kv("plain", false);
    cluster.mount_kv("wrapped", true);
    cluster
}

/// The node that has switched on what is new.
fn switched_on(cluster: &Cluster) -> Option<usize> {
    (1..=NODES).find(|node| cluster.log_text(*node).contains(SWITCHED_ON))
}

/// Upgrades one node after the other. `knows`: the older version knows what is new.
fn roll(cluster: &mut Cluster, load: &Load, knows: bool) -> Vec<Window> {
    let first = cluster.follower();
    let mut windows = vec![restart(cluster, load, first, true)];
    thread::sleep(REST);
    // Now the new one leads the old ones.
    for attempt in 0.. {
        let leader = cluster.leader();
        if leader == first {
            break;
        }
        assert!(
            attempt < ATTEMPTS,
            "node {first} has never become the leader"
        );
        windows.push(restart(cluster, load, leader, false));
    }
    println!("the new node {first} leads two old ones");
    thread::sleep(REST);
    for node in (1..=NODES).filter(|node| *node != first) {
        let early = switched_on(cluster).filter(|_| !knows);
        assert_eq!(early, None, "switched on although a node does not know it");
        windows.push(restart(cluster, load, node, true));
        thread::sleep(REST);
    }
    wait_for(
        "what is new to be switched on",
        Duration::from_secs(60),
        || switched_on(cluster),
    );
    println!("what is new is switched on");
    windows
}

/// SIGTERM, and a start; of the newer version if it is to be an upgrade.
fn restart(cluster: &mut Cluster, load: &Load, node: usize, upgrade: bool) -> Window {
    let what = match upgrade {
        true => format!("upgrade of node {node}"),
        false => format!("restart of node {node}, which is old and leads"),
    };
    let (began, start) = (Instant::now(), load.now());
    let status = cluster.terminate(node);
    assert!(status.success(), "node {node} stopped with {status}");
    if upgrade {
        cluster.set_binary(node, None);
    }
    cluster.start_node(node);
    cluster.wait_all();
    println!(
        "{what}; all serve {:.1} s later",
        began.elapsed().as_secs_f64()
    );
    Window {
        what,
        start,
        end: load.now(),
        quorum: true,
    }
}

/// The older server on data that the newer one has used: it ends, and the newer one goes on with them.
fn back(cluster: &mut Cluster, old: &Path) {
    let node = cluster.follower();
    assert!(cluster.terminate(node).success());
    cluster.set_binary(node, Some(old));
    cluster.spawn(node);
    let said = wait_for(
        "the older server to refuse",
        Duration::from_secs(30),
        || {
            let text = logs::tail(&cluster.log(node), 1);
            let refused = !cluster.runs(node) || text.contains("cannot be used");
            refused.then_some(text)
        },
    );
    println!("the older server on these data: {said}");
    assert_ne!(cluster.health(node), 200, "it serves");
    if cluster.runs(node) {
        let _ = cluster.terminate(node);
    }
    cluster.set_binary(node, None);
    cluster.start_node(node);
    cluster.wait_all();
}

/// Whether every request behind HAProxy was answered as it should be.
fn report(requests: &[Request]) -> bool {
    let failed: Vec<&Request> = requests
        .iter()
        .filter(|request| request.failed.is_some())
        .collect();
    let slowest = requests.iter().map(|request| request.ended - request.due);
    println!(
        "{} requests behind HAProxy, {} failed, the slowest took {:.2?}",
        requests.len(),
        failed.len(),
        slowest.max().unwrap_or_default()
    );
    for request in failed.iter().take(20) {
        println!(
            "    {} took {:.2?}: {}",
            if request.write { "write" } else { "read" },
            request.ended - request.due,
            request.failed.as_deref().unwrap_or_default()
        );
    }
    failed.is_empty() && !requests.is_empty()
}
