//! Power failures under load: one node, two, all three lose what they have not synced, and start again. Is every
//! acknowledged change there?
//!
//! `power_failure [--rounds N] [--seed N]`: 20 rounds and a random seed if not said. Needs root and loop devices, and the
//! packages e2fsprogs and xfsprogs: two nodes live on ext4, one on XFS. The server is `strongroom` beside this program, or
//! `$STRONGROOM_TEST_BIN`.
//!
//! `--lie power`: a server whose syncs do nothing, three rounds if not said; this must end with 1. `--lie kill`: such a
//! server, only killed; that ends with 0, which is why this program exists. In these two, every round hits all nodes, and the
//! disks are synced from outside before the clients write what the round shall take away: the nodes come back as they were
//! then, all alike, and not one of them with half a database.
//!
//! Exit code 0: no acknowledged change was lost. 1: one was, or a node does not start again. 2: too little happened to tell.
//! 3: the run itself failed.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a run that cannot be set up must fail loudly"
)]

use std::{fs, os::unix::fs::symlink, process::ExitCode, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use strongroom_jepsen_tests::{
    Client, Cluster, Options,
    disk::{self, Disk, Kind},
    run,
    verdict::{Gates, Verdict, Window},
    workload::Load,
};

const NODES: usize = 3;
const KINDS: [Kind; NODES] = [Kind::Ext4, Kind::Xfs, Kind::Ext4];

/// What is done in each round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Power,
    Kill,
}

/// Whether the server's syncs do anything, and what is done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Trial {
    lie: bool,
    failure: Failure,
}

impl Trial {
    fn named(lie: Option<&str>) -> Self {
        let (lie, failure) = match lie {
            None => (false, Failure::Power),
            Some("power") => (true, Failure::Power),
            Some("kill") => (true, Failure::Kill),
            Some(other) => panic!("--lie is power or kill, not {other:?}"),
        };
        Self { lie, failure }
    }

    /// How many nodes a round hits.
    fn victims(self, round: u64) -> usize {
        if self.lie {
            return NODES;
        }
        usize::try_from(round % 3 + 1).unwrap_or(1)
    }
}

fn main() -> ExitCode {
    run::guarded(|| {
        let trial = Trial::named(run::option("lie").as_deref());
        let rounds = run::number("rounds").unwrap_or(if trial.lie { 3 } else { 20 });
        let seed = run::number("seed").unwrap_or_else(rand::random);
        println!("seed {seed}, {rounds} rounds, {trial:?}");
        power_failure(rounds, seed, trial).exit_code()
    })
}

fn power_failure(rounds: u64, seed: u64, trial: Trial) -> Verdict {
    let options = Options {
        binary: run::server(),
        nodes: NODES,
        key_made_before: true,
    };
    let dir = tempfile::Builder::new()
        .prefix("strongroom-disks-")
        .tempdir()
        .expect("temporary directory");
    // Before the cluster: they are unmounted after its processes have ended.
    let disks: Vec<Disk> = KINDS
        .iter()
        .zip(1..)
        .map(|(kind, node)| Disk::make(&dir.path().join(format!("disk-{node}")), *kind))
        .collect();
    let library = trial.lie.then(|| disk::lying_library(dir.path()));
    let mut cluster = Cluster::prepare(&options);
    for node in 1..=NODES {
        let data = cluster.data_dir(node);
        fs::remove_dir(&data).expect("an empty data directory");
        let own = disks[node - 1].path().join("data");
        fs::create_dir(&own).expect("data directory");
        symlink(own, data).expect("link to the disk");
        if let Some(library) = &library {
            cluster.configure(node, |config| {
                config
                    .environment
                    .push(("LD_PRELOAD".to_owned(), library.display().to_string()));
            });
        }
        disks[node - 1].sync();
    }
    cluster.bring_up();
    cluster.mount_kv("plain", false);
    cluster.mount_kv("wrapped", true);
    let clients: Vec<Client> = (1..=NODES)
        .map(|node| cluster.client(node).with_timeout(Duration::from_secs(15)))
        .collect();
    let places = (0..6)
        .flat_map(|n| {
            [
                format!("plain/register-{n}"),
                format!("wrapped/register-{n}"),
            ]
        })
        .collect();
    let load = Load::start(
        [clients.clone(), clients.clone()].concat(),
        places,
        Duration::from_millis(3),
    );
    let mut random = StdRng::seed_from_u64(seed);
    let mut windows = Vec::new();
    let pause = |random: &mut StdRng, range| {
        std::thread::sleep(Duration::from_millis(random.random_range(range)));
    };
    for round in 0..rounds {
        if trial.lie {
            sync_from_outside(&cluster, &disks);
        }
        pause(
            &mut random,
            if round == 0 || trial.lie {
                1200..1500
            } else {
                300..1200
            },
        );
        let count = trial.victims(round);
        let first = random.random_range(0..NODES);
        let victims: Vec<usize> = (0..count).map(|n| (first + n) % NODES + 1).collect();
        let start = load.now();
        let off: Vec<&Disk> = victims.iter().map(|node| &disks[node - 1]).collect();
        if trial.failure == Failure::Power {
            // A machine without power does not go on for a moment either. And a sync that is under way while ext4 goes down may
            // end without an error although nothing was kept: its caller must not get to act on that.
            for node in &victims {
                cluster.freeze(*node);
            }
            disk::power_off(&off);
        }
        for node in &victims {
            cluster.kill9(*node);
        }
        if trial.failure == Failure::Power {
            off.iter().for_each(|disk| disk.unmount());
            off.iter().for_each(|disk| disk.mount());
        }
        pause(&mut random, 0..500);
        for node in &victims {
            cluster.spawn(*node);
        }
        if let Some(refusal) = cluster.wait_unsealed_or_ended(&victims) {
            let verdict = Verdict::Violation(vec![refusal]);
            verdict.print();
            return verdict;
        }
        cluster.wait_all();
        let what = format!("{:?} failure of nodes {victims:?}", trial.failure);
        let end = load.now();
        println!(
            "{what}; all serve {:.1} s later",
            (end - start) as f64 / 1e9
        );
        windows.push(Window {
            what,
            start,
            end,
            quorum: count == 1,
        });
    }
    pause(&mut random, 300..1200);
    let mut finished = load.stop();
    finished.look_at_everything(&clients);
    let name = format!(
        "power-failure-{seed}{}",
        if trial.lie { "-lie" } else { "" }
    );
    run::conclude(&name, &cluster, &finished, &windows, Gates::of(rounds * 3))
}

/// What comes later is what is lost, not the whole cluster. The nodes stand still meanwhile: else each would come back as of
/// another moment, and the ones that are ahead would have promised what the others never had.
fn sync_from_outside(cluster: &Cluster, disks: &[Disk]) {
    for node in 1..=NODES {
        cluster.pause(node);
    }
    disks.iter().for_each(Disk::sync);
    for node in 1..=NODES {
        cluster.resume(node);
    }
}
