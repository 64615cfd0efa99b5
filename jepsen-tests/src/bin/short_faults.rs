//! The short fault-injection run: three nodes, clients on all of them, nodes killed and HSMs taken away at random.
//!
//! `short_faults [SECONDS [SEED]]`, 40 seconds and a random seed if not said. The server is `strongroom` beside this
//! program, or `$STRONGROOM_TEST_BIN`. Exit code 0: every acknowledged change is there and no read was stale. 1: not so.
//! 2: too little happened to tell, or the checkers disagree. 3: the run itself failed, or a node did not come back.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a run that cannot be set up must fail loudly"
)]

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use strongroom_jepsen_tests::{
    Client, Cluster,
    nemesis::Nemesis,
    run,
    verdict::{Gates, Window},
    workload::Load,
};

const MOUNTS: [(&str, bool); 2] = [("plain", false), ("wrapped", true)];
const REGISTERS_PER_MOUNT: usize = 6;

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
    run::guarded(|| short_faults(seconds, seed))
}

fn short_faults(seconds: u64, seed: u64) -> ExitCode {
    let mut cluster = Cluster::initialized(3, &run::server().display().to_string());
    for (mount, seal_wrap) in MOUNTS {
        cluster.mount_kv(mount, seal_wrap);
    }
    let places = MOUNTS
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
        places,
        Duration::from_millis(8),
    );
    let mut nemesis = Nemesis::new(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut windows = Vec::new();
    nemesis.rest(1000..1500);
    while Instant::now() < end {
        let fault = nemesis.choose(3);
        let start = load.now();
        nemesis.inflict(&mut cluster, fault);
        windows.push(Window {
            what: fault.to_string(),
            start,
            end: load.now(),
            quorum: fault.leaves_quorum(),
        });
        nemesis.rest(200..800);
    }
    let mut finished = load.stop();
    finished.look_at_everything(&clients);
    let name = format!("short-faults-{seed}");
    run::conclude(&name, &cluster, &finished, &windows, Gates::of(seconds)).exit_code()
}
