//! What clients behind HAProxy see while nodes die and leave: an open-loop load of 80 requests a second, half of them
//! writes, clients that allow 10 s; the leader killed, followers killed, every node stopped in turn, every node killed and started at
//! once, before HAProxy notices.
//!
//! `failover [--kills N]`: N kills of the leader, 10 if not said. `--fault hang`: the leader stands still (SIGSTOP) instead;
//! `--fault vanish`: it is cut off from everybody without a word, as by a pulled cable; that needs root, iproute2 and
//! nftables. Nobody is told of these two, so they take the lease's time, and a request that a node has already may fail. Prints, for each kind of event, the time from
//! it to the first write that was sent after it and acknowledged, the slowest request counted from when it was due, and
//! the requests that failed. The server is `strongroom` beside this program, or `$STRONGROOM_TEST_BIN`.
//!
//! Exit code 0: no request failed. 1: one has. 3: the run itself failed.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a run that cannot be set up must fail loudly"
)]

use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use strongroom_jepsen_tests::{
    Client, Cluster, Options,
    haproxy::Haproxy,
    network::Network,
    openloop::{OpenLoop, Request, gap},
    run,
};

/// Clients, and how often each of them sends.
const CLIENTS: usize = 16;
const INTERVAL: Duration = Duration::from_millis(200);
/// What a client allows.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    KillLeader,
    KillFollower,
    Terminate(usize),
    KillAndStart(usize),
    Hang,
    Vanish,
}

fn main() -> ExitCode {
    let kills = run::number("kills").unwrap_or(10);
    run::guarded(move || failover(usize::try_from(kills).unwrap_or(10)))
}

/// What is done, in this order.
fn schedule(times: usize) -> Vec<Event> {
    let only = match run::option("fault").as_deref() {
        None => {
            return std::iter::repeat_n(Event::KillLeader, times)
                .chain(std::iter::repeat_n(Event::KillFollower, times.div_ceil(3)))
                .chain((1..=3).map(Event::Terminate))
                .chain((1..=3).map(Event::KillAndStart))
                .collect();
        }
        Some("hang") => Event::Hang,
        Some("vanish") => Event::Vanish,
        Some(other) => panic!("--fault is hang or vanish, not {other:?}"),
    };
    vec![only; times]
}

fn start(in_namespaces: bool) -> Cluster {
    let options = Options {
        binary: run::server(),
        nodes: 3,
        key_made_before: true,
    };
    let network = |nodes| in_namespaces.then(|| Network::up(nodes));
    let mut cluster = Cluster::prepare_in(&options, network);
    cluster.bring_up();
    cluster
}

fn failover(times: usize) -> ExitCode {
    let schedule = schedule(times);
    let mut cluster = start(schedule.contains(&Event::Vanish));
    cluster.mount_kv("kv", false);
    let haproxy = Haproxy::start(&cluster);
    let clients: Vec<Client> = (0..CLIENTS)
        .map(|_| haproxy.client(&cluster).with_timeout(PATIENCE))
        .collect();
    let load = OpenLoop::start(clients, "kv", INTERVAL);
    thread::sleep(Duration::from_secs(2));

    let mut events = Vec::new();
    for event in schedule {
        let leader = cluster.leader();
        let node = match event {
            Event::KillLeader | Event::Hang | Event::Vanish => leader,
            Event::KillFollower => leader % 3 + 1,
            Event::Terminate(node) | Event::KillAndStart(node) => node,
        };
        let at = Instant::now();
        match event {
            Event::KillLeader | Event::KillFollower | Event::KillAndStart(_) => cluster.kill9(node),
            Event::Hang => cluster.pause(node),
            Event::Vanish => cluster.network().unplug(node),
            Event::Terminate(_) => {
                let status = cluster.terminate(node);
                assert!(status.success(), "node {node} stopped with {status}");
            }
        }
        println!("{}  {event:?}, node {node}, leader {leader}", clock());
        events.push((event, at, node == leader));
        thread::sleep(Duration::from_millis(match event {
            Event::Hang | Event::Vanish => 5000,
            Event::KillLeader | Event::KillFollower | Event::Terminate(_) => 2500,
            Event::KillAndStart(_) => 0,
        }));
        match event {
            Event::Hang => cluster.resume(node),
            Event::Vanish => cluster.network().plug_in(node),
            Event::KillLeader
            | Event::KillFollower
            | Event::Terminate(_)
            | Event::KillAndStart(_) => {
                cluster.start_node(node);
            }
        }
        cluster.wait_all();
        // What a node had when its network went reaches it some seconds after the network is back: the kernels send it again then.
        // It must not meet the next fault.
        thread::sleep(Duration::from_millis(match event {
            Event::Vanish => 6000,
            Event::KillLeader
            | Event::KillFollower
            | Event::Terminate(_)
            | Event::KillAndStart(_)
            | Event::Hang => 1500,
        }));
    }
    let requests = load.stop();
    cluster.assert_no_panics();
    report(&requests, &events)
}

/// Time of day in UTC, as the nodes' logs have it.
fn clock() -> String {
    let output = std::process::Command::new("date")
        .args(["-u", "+%H:%M:%S.%3N"])
        .output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

fn report(requests: &[Request], events: &[(Event, Instant, bool)]) -> ExitCode {
    for (what, wanted) in [
        ("kill -9 of the leader", 0),
        ("kill -9 of a follower", 1),
        ("SIGTERM of the leader", 2),
        ("SIGTERM of a follower", 3),
        ("a leader that hangs", 4),
        ("a leader that vanishes", 5),
        ("kill -9 and start at once", 6),
    ] {
        let mut gaps: Vec<Duration> = Vec::new();
        let (mut slowest, mut failed, mut count) = (Duration::ZERO, 0, 0);
        for (at, (event, begin, led)) in events.iter().enumerate() {
            let kind = match (event, led) {
                (Event::KillLeader, _) => 0,
                (Event::KillFollower, _) => 1,
                (Event::Terminate(_), true) => 2,
                (Event::Terminate(_), false) => 3,
                (Event::Hang, _) => 4,
                (Event::Vanish, _) => 5,
                (Event::KillAndStart(_), _) => 6,
            };
            if kind != wanted {
                continue;
            }
            gaps.extend(gap(requests, *begin));
            let end = events.get(at + 1).map(|(_, next, _)| *next);
            // What was under way when it happened belongs to it too.
            let during = requests.iter().filter(|request| {
                request.ended >= *begin && end.is_none_or(|end| request.ended < end)
            });
            for request in during {
                count += 1;
                failed += usize::from(request.failed.is_some());
                slowest = slowest.max(request.ended - request.due);
            }
        }
        gaps.sort_unstable();
        if let (Some(median), Some(max)) = (gaps.get(gaps.len() / 2), gaps.last()) {
            println!(
                "{what}: {} times; first write after {:.3} s in the median, {:.3} s at most; slowest request {:.3} s; \
                 {failed} of {count} requests failed",
                gaps.len(),
                median.as_secs_f64(),
                max.as_secs_f64(),
                slowest.as_secs_f64(),
            );
        }
    }
    let failed: Vec<&Request> = requests
        .iter()
        .filter(|request| request.failed.is_some())
        .collect();
    println!("{} requests, {} failed", requests.len(), failed.len());
    for request in failed.iter().take(20) {
        // The last event before it was given up, or up to two: what it met may be the one before.
        let near: Vec<String> = events
            .iter()
            .rev()
            .filter(|(_, at, _)| *at <= request.ended)
            .take(2)
            .map(|(event, at, _)| format!("{:+.3} s from {event:?}", offset(*at, request.sent)))
            .collect();
        println!(
            "    {} took {:.3} s: {} (sent {})",
            if request.write { "write" } else { "read" },
            (request.ended - request.due).as_secs_f64(),
            request.failed.as_deref().unwrap_or_default(),
            near.join(", ")
        );
    }
    if failed.is_empty() && !requests.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

/// Seconds from `event` to `moment`, which may be before it.
fn offset(event: Instant, moment: Instant) -> f64 {
    if moment >= event {
        (moment - event).as_secs_f64()
    } else {
        -(event - moment).as_secs_f64()
    }
}
