//! Breaks things at random, and puts them right again: processes killed, HSMs taken away, both at once.
//!
//! Each fault ends with the node serving again by itself; that it does is part of what is tested.

use std::{
    fmt, thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::cluster::Cluster;

/// What is done to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of one node, and a restart.
    Kill(usize),
    /// SIGKILL of the leader, and a restart.
    KillLeader,
    /// SIGKILL of all nodes at once, and a restart of all.
    KillAll,
    /// One node's HSM is away for a while.
    HsmAway(usize),
    /// SIGKILL of one node, whose HSM is away when it starts again and comes back later.
    KillAndHsmAway(usize),
    /// One node stands still for a while.
    Pause(usize),
    /// The leader stands still for a while: it must not take itself for the leader when it wakes up.
    PauseLeader,
    /// SIGTERM of one node, and a restart.
    Terminate(usize),
    /// SIGTERM of the leader, and a restart.
    TerminateLeader,
    /// SIGKILL of one node, whose disk is empty when it starts again: it joins anew under its name.
    Wipe(usize),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(node) => write!(f, "kill -9 of node {node}"),
            Self::KillLeader => f.write_str("kill -9 of the leader"),
            Self::KillAll => f.write_str("kill -9 of all nodes"),
            Self::HsmAway(node) => write!(f, "HSM of node {node} away"),
            Self::KillAndHsmAway(node) => {
                write!(f, "kill -9 of node {node}, HSM away at its start")
            }
            Self::Pause(node) => write!(f, "node {node} stopped for a while"),
            Self::PauseLeader => f.write_str("the leader stopped for a while"),
            Self::Terminate(node) => write!(f, "SIGTERM of node {node}"),
            Self::TerminateLeader => f.write_str("SIGTERM of the leader"),
            Self::Wipe(node) => write!(f, "kill -9 of node {node}, empty disk at its start"),
        }
    }
}

impl Fault {
    /// Whether two of three nodes serve all the time, or nearly.
    ///
    /// Not while a node stands still: if it leads, nobody takes its place before its lease has run out, which takes longer
    /// than the fault.
    #[must_use]
    pub fn leaves_quorum(self) -> bool {
        !matches!(self, Self::KillAll | Self::Pause(_) | Self::PauseLeader)
    }
}

/// How many kinds of faults there are.
const KINDS: u32 = 10;

/// Chooses faults from a seed.
pub struct Nemesis {
    random: StdRng,
    began: Instant,
    queue: Vec<u32>,
}

impl Nemesis {
    /// The same seed gives the same faults; when they hit is up to the machine.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            began: Instant::now(),
            queue: Vec::new(),
        }
    }

    /// The next fault: every kind once, in random order, before any comes again.
    pub fn choose(&mut self, nodes: usize) -> Fault {
        if self.queue.is_empty() {
            self.queue = (0..KINDS).collect();
        }
        let at = self.random.random_range(0..self.queue.len());
        let kind = self.queue.swap_remove(at);
        let node = self.random.random_range(1..=nodes);
        match kind {
            0 => Fault::Kill(node),
            1 => Fault::KillLeader,
            2 => Fault::KillAll,
            3 => Fault::HsmAway(node),
            4 => Fault::KillAndHsmAway(node),
            5 => Fault::Pause(node),
            6 => Fault::PauseLeader,
            7 => Fault::Terminate(node),
            8 => Fault::TerminateLeader,
            _ => Fault::Wipe(node),
        }
    }

    /// Carries out `fault` and waits until every node serves again.
    pub fn inflict(&mut self, cluster: &mut Cluster, fault: Fault) {
        let at = self.began.elapsed().as_secs_f32();
        match fault {
            Fault::Kill(node) => self.kill(cluster, &[node], false),
            Fault::KillLeader => {
                let leader = cluster.leader();
                self.kill(cluster, &[leader], false);
            }
            Fault::KillAll => {
                let all: Vec<usize> = (1..=cluster.len()).collect();
                self.kill(cluster, &all, false);
            }
            Fault::KillAndHsmAway(node) => self.kill(cluster, &[node], true),
            Fault::HsmAway(node) => {
                cluster.token(node).take_away();
                self.rest(1500..3000);
                cluster.token(node).give_back();
            }
            Fault::Pause(node) => self.pause(cluster, node),
            Fault::PauseLeader => {
                let leader = cluster.leader();
                self.pause(cluster, leader);
            }
            Fault::Terminate(node) => self.terminate(cluster, node),
            Fault::TerminateLeader => {
                let leader = cluster.leader();
                self.terminate(cluster, leader);
            }
            Fault::Wipe(node) => {
                cluster.kill9(node);
                cluster.wipe(node);
                self.rest(0..1000);
                cluster.start_node(node);
            }
        }
        cluster.wait_all();
        let took = self.began.elapsed().as_secs_f32() - at;
        println!("{at:6.1} s  {fault}; all nodes serve {took:.1} s later");
    }

    fn pause(&mut self, cluster: &Cluster, node: usize) {
        cluster.pause(node);
        self.rest(500..2500);
        cluster.resume(node);
    }

    fn terminate(&mut self, cluster: &mut Cluster, node: usize) {
        let status = cluster.terminate(node);
        assert!(status.success(), "node {node} stopped with {status}");
        self.rest(0..1000);
        cluster.start_node(node);
    }

    fn kill(&mut self, cluster: &mut Cluster, nodes: &[usize], hsm_away: bool) {
        for node in nodes {
            cluster.kill9(*node);
            if hsm_away {
                cluster.token(*node).take_away();
            }
        }
        self.rest(0..1500);
        for node in nodes {
            cluster.start_node(*node);
        }
        if hsm_away {
            self.rest(1000..2000);
            for node in nodes {
                cluster.token(*node).give_back();
            }
        }
    }

    /// Lets time pass, milliseconds.
    pub fn rest(&mut self, range: std::ops::Range<u64>) {
        thread::sleep(Duration::from_millis(self.random.random_range(range)));
    }
}
