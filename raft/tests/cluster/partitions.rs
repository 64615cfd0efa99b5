//! Nodes that do not reach each other, and a leader that is gone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use strongroom_raft::Raft;

use crate::harness::{Cluster, local, put, read, soon};

/// The schedule by which a lease that a restart has forgotten lets an old leader answer with the past: B is cut off from
/// the leader A, C restarts and so forgets that it must not vote yet, C votes for B, B commits, and A still has its lease.
///
/// Source: tikv/tikv#15035; reproduced with openraft's `ReadPolicy::LeaseRead`, which is why reads here are `ReadIndex`.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_follower_restarts_never_answers_with_the_past() {
    for round in 0..2 {
        let (mut cluster, relays) = Cluster::of_three_behind_relays().await;
        cluster.write(put("k", "old")).await;
        let leader = cluster.leader().await;
        let id = |position: usize| cluster.nodes[position].identity.raft_id;
        let (other, restarted) = ((leader + 1) % 3, (leader + 2) % 3);
        let (a, b, c) = (id(leader), id(other), id(restarted));
        let old = cluster.nodes[leader].raft.clone();

        // Asks A again and again: when a question began, and whether the answer was the past.
        let stop = Arc::new(AtomicBool::new(false));
        let asking = tokio::spawn({
            let (old, stop) = (old.clone(), Arc::clone(&stop));
            async move {
                let mut answers = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let began = Instant::now();
                    let limit = began + Duration::from_millis(50);
                    if let Ok(index) = old.read_index(limit).await
                        && old.wait_applied(index, limit).await.is_ok()
                    {
                        let (_, value) = old.state().get(b"k").unwrap().unwrap();
                        answers.push((began, value == "old"));
                    }
                }
                answers
            }
        });
        cluster.cuts.cut(a, b);
        for position in [leader, other] {
            relays[position].break_connections();
        }
        // B's own lease runs out, C's does not: C hears A.
        tokio::time::sleep(Duration::from_millis(1500 + 400 * round)).await;
        let stopped = cluster.stop(restarted).await;
        // A's next heartbeat would remind C of the lease: B comes first.
        cluster.cuts.cut(a, c);
        // The relay is what the others connect to; the node listens behind it again.
        let relay = &relays[restarted];
        cluster.restart_behind(stopped, relay).await;
        let position_of = |cluster: &Cluster, id: u64| {
            let mut nodes = cluster.nodes.iter();
            nodes.position(|node| node.identity.raft_id == id).unwrap()
        };
        let deadline = soon();
        let others: Vec<Raft> = [b, c]
            .map(|id| cluster.nodes[position_of(&cluster, id)].raft.clone())
            .to_vec();
        // B, or C with B's vote: either way without A, and while A's lease has time left.
        let written = 'taken_over: loop {
            assert!(Instant::now() < deadline, "nobody took over");
            for new in &others {
                let limit = Instant::now() + Duration::from_secs(1);
                if new.propose(put("k", "new"), limit).await.is_ok() {
                    break 'taken_over Instant::now();
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        tokio::time::sleep(Duration::from_millis(1500)).await;
        stop.store(true, Ordering::SeqCst);
        let answers = asking.await.unwrap();
        let before = answers.iter().filter(|(began, _)| *began < written).count();
        eprintln!(
            "round {round}: {} answers, {before} before the write",
            answers.len()
        );
        assert!(before > 0, "the leader was never asked before");
        for (began, past) in &answers {
            assert!(
                !past || *began < written,
                "asked {:?} after the write, the old leader answered with the past",
                began.duration_since(written)
            );
        }
        cluster.cuts.heal();
        let everybody = |value: &'static str| {
            move |c: &Cluster| {
                let mut nodes = c.nodes.iter();
                nodes.all(|node| local(node, "k").as_deref() == Some(value))
            }
        };
        cluster
            .until("everybody to have it", everybody("new"))
            .await;
        assert!(
            cluster.nodes[position_of(&cluster, a)]
                .raft
                .status()
                .leader
                .is_some()
        );
        cluster.shutdown().await;
    }
}

/// Reads need one voter besides the leader, whichever it is.
#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_everywhere_when_one_voter_hangs() {
    let (cluster, relays) = Cluster::of_three_behind_relays().await;
    let leader = cluster.leader().await;
    let mut took = Vec::new();
    for (round, hung) in [(leader + 1) % 3, (leader + 2) % 3].into_iter().enumerate() {
        let value = format!("v{round}");
        relays[hung].set_dead(true);
        cluster.write(put("k", &value)).await;
        for _ in 0..3 {
            for node in (0..3).filter(|node| *node != hung) {
                let began = Instant::now();
                let found = read(&cluster.nodes[node], "k").await;
                assert_eq!(found.as_ref(), Some(&value));
                took.push(began.elapsed());
            }
        }
        relays[hung].set_dead(false);
        let hung = &cluster.nodes[hung];
        assert_eq!(read(hung, "k").await.as_ref(), Some(&value));
    }
    // The heartbeat's time that is given to who is asked first; a slow machine may be slower once.
    took.sort_unstable();
    assert!(
        took.iter().rev().nth(1) < Some(&Duration::from_millis(900)),
        "{took:?}"
    );
    cluster.shutdown().await;
}

/// A process that dies leaves a port that refuses: nobody waits for its lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_process_is_gone_is_followed_at_once() {
    let mut cluster = Cluster::of_three().await;
    let mut took = Vec::new();
    for round in 0..5 {
        let leader = cluster.leader().await;
        let began = Instant::now();
        let stopped = cluster.stop(leader).await;
        let closed = began.elapsed();
        cluster.write(put("k", &format!("{round}"))).await;
        let written = began.elapsed();
        // How long its files take to close is no matter of the others.
        took.push(written.saturating_sub(closed));
        eprintln!("round {round}: stopped in {closed:?}, written after {written:?}");
        cluster.restart(stopped).await;
        cluster
            .until("the restarted node to have caught up", |c| {
                let mut nodes = c.nodes.iter();
                nodes.all(|node| local(node, "k").as_deref() == Some(&*format!("{round}")))
            })
            .await;
    }
    took.sort_unstable();
    // By the lease alone it takes 1.5 s at least.
    assert!(took[2] < Duration::from_millis(1200), "{took:?}");
    cluster.shutdown().await;
}

/// Connections break and come back without anybody being gone: no reason for an election.
#[tokio::test(flavor = "multi_thread")]
async fn broken_connections_elect_nobody() {
    let (cluster, relays) = Cluster::of_three_behind_relays().await;
    let leader = cluster.leader().await;
    let term = cluster.nodes[leader].raft.status().term;
    for round in 0..10 {
        for relay in &relays {
            relay.break_connections();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.write(put("k", &format!("{round}"))).await;
    }
    assert_eq!(cluster.leader().await, leader);
    assert_eq!(cluster.nodes[leader].raft.status().term, term);
    cluster.shutdown().await;
}
