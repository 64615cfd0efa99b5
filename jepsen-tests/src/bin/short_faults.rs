//! The short fault-injection run: three nodes, clients on all of them, nodes killed and HSMs taken away at random.
//!
//! `short_faults [SECONDS [SEED]]`, 40 seconds and a random seed if not said. The server is `strongroom` beside this
//! program, or `$STRONGROOM_TEST_BIN`. Exit code 0: every acknowledged write is there and no read was stale. 1: not so.
//! 2: too little happened to tell. 101: the run itself failed, or a node did not come back.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a run that cannot be set up must fail loudly"
)]

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use serde_json::json;
use strongroom_jepsen_tests::{
    Client, Cluster,
    history::{self, Violation},
    logs, machine,
    nemesis::Nemesis,
    workload::{Counts, Load},
};

const MOUNTS: [(&str, bool); 2] = [("plain", false), ("wrapped", true)];
const REGISTERS_PER_MOUNT: usize = 6;
/// With fewer operations of a kind the verdict would mean nothing.
const ENOUGH: u64 = 300;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut number = |name: &str| {
        let text = arguments.next()?;
        Some(
            text.parse::<u64>()
                .unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")),
        )
    };
    let seconds = number("SECONDS").unwrap_or(40);
    let seed = number("SEED").unwrap_or_else(rand::random);
    println!("seed {seed}, {seconds} s");
    run(Duration::from_secs(seconds), seed)
}

fn run(length: Duration, seed: u64) -> ExitCode {
    let binary = server();
    let mut cluster = Cluster::initialized(3, &binary.display().to_string());
    for (mount, seal_wrap) in MOUNTS {
        let answer = cluster.client(1).put(
            &format!("sys/mounts/{mount}"),
            &json!({"type": "kv", "seal_wrap": seal_wrap}),
        );
        assert_eq!(answer.status, 204, "{}", answer.text());
    }
    let paths = MOUNTS
        .iter()
        .flat_map(|(mount, _)| {
            (0..REGISTERS_PER_MOUNT).map(move |n| format!("{mount}/register-{n}"))
        })
        .collect();

    let clients: Vec<Client> = (1..=3)
        .map(|node| cluster.client(node).with_timeout(Duration::from_secs(15)))
        .collect();
    let load = Load::start(
        [clients.clone(), clients.clone()].concat(),
        paths,
        Duration::from_millis(8),
    );
    let mut nemesis = Nemesis::new(seed);
    let end = Instant::now() + length;
    let mut faults = 0;
    nemesis.rest(1000..1500);
    while Instant::now() < end {
        let fault = nemesis.choose(3);
        nemesis.inflict(&mut cluster, fault);
        faults += 1;
        nemesis.rest(200..800);
    }
    let mut finished = load.stop();
    finished.look_at_everything(&clients);

    let panics: Vec<String> = (1..=3)
        .flat_map(|node| logs::panics(&cluster.log(node)))
        .collect();
    assert!(
        panics.is_empty(),
        "a node has panicked:\n{}",
        panics.join("\n")
    );
    let found = history::violations(&finished.history.ops);
    verdict(seed, faults, finished.history.counts, &found)
}

fn verdict(seed: u64, faults: u32, counts: Counts, found: &[Violation]) -> ExitCode {
    let Counts {
        writes,
        reads,
        unknown,
        failed,
    } = counts;
    println!(
        "{faults} faults; {writes} writes acknowledged, {reads} reads answered, {unknown} writes of unknown outcome, {failed} refused"
    );
    for violation in found.iter().take(5) {
        println!("VIOLATION: {violation:#?}");
    }
    if !found.is_empty() {
        println!(
            "NOT linearizable: {} violations; run again with seed {seed}",
            found.len()
        );
        return ExitCode::from(1);
    }
    if writes < ENOUGH || reads < ENOUGH || faults < 2 {
        println!("UNKNOWN: too few operations or faults to tell anything");
        return ExitCode::from(2);
    }
    println!("valid: no acknowledged write was lost, no read was stale on any node");
    ExitCode::SUCCESS
}

fn server() -> PathBuf {
    let own = std::env::current_exe().expect("path of this program");
    machine::server(&own.with_file_name("strongroom"))
}
