//! Partitions, alone and together with killed and paused nodes, while clients on every node and behind HAProxy read and
//! write registers: is every read linearizable, is every acknowledged change there?
//!
//! `partitions [--seconds N] [--seed N] [--nodes 3|5]`: 50 s, a random seed, 3 nodes if not said. Needs root, and the
//! packages iproute2, nftables and haproxy: every node lives in a network namespace of its own. The server is
//! `strongroom` beside this program, or `$STRONGROOM_TEST_BIN`.
//!
//! Exit code 0: linearizable. 1: not so. 2: too little happened to tell, or the checkers disagree. 3: the run itself
//! failed: no namespaces, or a node did not come back.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a run that cannot be set up must fail loudly"
)]

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use strongroom_jepsen_tests::{
    Client, Cluster, Options,
    haproxy::Haproxy,
    network::{Network, Partition},
    run,
    verdict::{Gates, Window},
    workload::Load,
};

const PLACES: usize = 12;
/// What a client allows: long enough for a failover, short enough to go on elsewhere.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the nodes are cut off from each other.
#[derive(Clone, Copy, Debug)]
enum Kind {
    LeaderInMinority,
    LeaderInMajority,
    Bridge,
    Ring,
    LeaderDeaf,
    LeaderMute,
}

/// What happens to a node besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Besides {
    Nothing,
    Kill(usize),
    Pause(usize),
}

fn main() -> ExitCode {
    let seconds = run::number("seconds").unwrap_or(50);
    let seed = run::number("seed").unwrap_or_else(rand::random);
    let nodes = usize::try_from(run::number("nodes").unwrap_or(3)).unwrap_or(3);
    println!("seed {seed}, {seconds} s, {nodes} nodes");
    run::guarded(move || partitions(seconds, seed, nodes))
}

fn partitions(seconds: u64, seed: u64, nodes: usize) -> ExitCode {
    let options = Options {
        binary: run::server(),
        nodes,
        key_made_before: true,
    };
    let mut cluster = Cluster::prepare_in(&options, |nodes| Some(Network::up(nodes)));
    cluster.bring_up();
    cluster.mount_kv("kv", false);
    let haproxy = Haproxy::start(&cluster);

    let pinned: Vec<Client> = (1..=nodes)
        .map(|node| cluster.client(node).with_timeout(PATIENCE))
        .collect();
    let balanced = (0..2).map(|_| haproxy.client(&cluster).with_timeout(PATIENCE));
    let clients = pinned.iter().cycle().take(6.max(nodes)).cloned();
    let load = Load::start(
        clients.chain(balanced).collect(),
        (0..PLACES).map(|n| format!("kv/register-{n}")).collect(),
        Duration::from_millis(8),
    );
    let mut nemesis = Nemesis {
        random: StdRng::seed_from_u64(seed),
        nodes,
        began: Instant::now(),
        queue: Vec::new(),
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut windows = Vec::new();
    nemesis.rest(1500..2000);
    while Instant::now() < end {
        windows.push(nemesis.round(&mut cluster, &load));
        nemesis.rest(500..1000);
    }
    let mut finished = load.stop();
    finished.look_at_everything(&pinned);
    let name = format!("partitions-{nodes}-{seed}");
    run::conclude(&name, &cluster, &finished, &windows, Gates::of(seconds)).exit_code()
}

struct Nemesis {
    random: StdRng,
    nodes: usize,
    began: Instant,
    queue: Vec<Kind>,
}

impl Nemesis {
    /// One partition, perhaps with something besides, and back to health.
    fn round(&mut self, cluster: &mut Cluster, load: &Load) -> Window {
        let leader = cluster.leader();
        let partition = self.partition(leader);
        let besides = self.besides();
        let start = load.now();
        let at = self.began.elapsed().as_secs_f32();
        cluster.network().cut(&partition);
        self.rest(0..1500);
        match besides {
            Besides::Nothing => {}
            Besides::Kill(node) => cluster.kill9(node),
            Besides::Pause(node) => cluster.pause(node),
        }
        self.rest(4000..6000);
        let dropped = cluster.network().dropped();
        assert!(dropped > 0, "{} cut nothing", partition.name);
        let end = load.now();
        // In either order: a node may come back into a network that is still cut.
        if self.random.random_bool(0.5) {
            cluster.network().heal();
            self.rest(0..500);
        }
        match besides {
            Besides::Nothing => {}
            Besides::Kill(node) => cluster.start_node(node),
            Besides::Pause(node) => cluster.resume(node),
        }
        self.rest(0..1000);
        cluster.network().heal();
        cluster.wait_all();
        let what = match besides {
            Besides::Nothing => partition.name.clone(),
            Besides::Kill(_) | Besides::Pause(_) => format!("{}, {besides:?}", partition.name),
        };
        let took = self.began.elapsed().as_secs_f32() - at;
        println!(
            "{at:6.1} s  leader {leader}; {what}; {dropped} packets dropped; all nodes serve {took:.1} s later"
        );
        Window {
            what,
            start,
            end,
            quorum: besides == Besides::Nothing && partition.leaves_quorum(self.nodes),
        }
    }

    fn partition(&mut self, leader: usize) -> Partition {
        if self.queue.is_empty() {
            self.queue = vec![
                Kind::LeaderInMinority,
                Kind::LeaderInMajority,
                Kind::Bridge,
                Kind::LeaderDeaf,
                Kind::LeaderMute,
            ];
            if self.nodes > 3 {
                self.queue.push(Kind::Ring);
            }
        }
        let at = self.random.random_range(0..self.queue.len());
        let nodes = self.nodes;
        let mut followers: Vec<usize> = (1..=nodes).filter(|node| *node != leader).collect();
        let first = self.random.random_range(0..followers.len());
        followers.rotate_left(first);
        match self.queue.swap_remove(at) {
            Kind::LeaderInMinority => {
                let mut minority = followers[..nodes / 2 - 1].to_vec();
                minority.push(leader);
                Partition::split("the leader in a minority", &minority, nodes)
            }
            Kind::LeaderInMajority => {
                Partition::split("the leader in a majority", &followers[..nodes / 2], nodes)
            }
            Kind::Bridge => Partition::bridge(followers[0], nodes),
            Kind::Ring => Partition::ring(nodes),
            Kind::LeaderDeaf => Partition::deaf(leader, nodes),
            Kind::LeaderMute => Partition::mute(leader, nodes),
        }
    }

    fn besides(&mut self) -> Besides {
        let node = self.random.random_range(1..=self.nodes);
        match self.random.random_range(0..5) {
            0 => Besides::Kill(node),
            1 => Besides::Pause(node),
            _ => Besides::Nothing,
        }
    }

    fn rest(&mut self, range: std::ops::Range<u64>) {
        std::thread::sleep(Duration::from_millis(self.random.random_range(range)));
    }
}
