//! A leader that freezes, a follower behind a dead network.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use strongroom_raft::{Identity, Next, ProposeError, Raft};
use tokio::{net::TcpListener, runtime::Runtime};

use crate::harness::{CLUSTER, Cluster, Relay, info, local, put, read, soon};

/// A runtime with one thread: blocking that thread freezes every task of the node on it.
fn freezable() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_frozen_never_answers_with_the_past() {
    let mut cluster = Cluster::of_three().await;
    let frozen = freezable();
    // The fourth node lives on a runtime of its own, and leads.
    let listener = frozen.block_on_here(TcpListener::bind("127.0.0.1:0")).await;
    let addr = listener.local_addr().unwrap().to_string();
    let leader = cluster.leader().await;
    let raft_id = cluster.nodes[leader]
        .raft
        .add_node(info("d", &addr))
        .await
        .unwrap();
    let identity = Identity {
        cluster_id: CLUSTER,
        raft_id,
        name: "d".to_owned(),
    };
    let fourth = frozen.start_node(&cluster, identity, addr, listener).await;
    cluster.nodes.push(fourth);
    cluster
        .until("four voters", |c| {
            let members = c.nodes[3].raft.status().members;
            members.len() == 4 && members.iter().all(|member| member.voter)
        })
        .await;
    cluster.write(put("k", "old")).await;
    let leader = cluster.leader().await;
    if leader != 3 {
        cluster.nodes[leader]
            .raft
            .transfer_leader(Next::Named("d".to_owned()), soon())
            .await
            .unwrap();
    }
    assert_eq!(cluster.leader().await, 3);
    assert_eq!(read(&cluster.nodes[3], "k").await.as_deref(), Some("old"));

    let victim = cluster.nodes.pop().unwrap();
    let woken = {
        let raft = victim.raft.clone();
        frozen.spawn(async move {
            std::thread::sleep(Duration::from_secs(4));
            // The first thing after waking, before any message is read: it still thinks that it leads.
            assert!(raft.status().is_ready_leader);
            let index = raft.read_index(soon()).await.unwrap();
            raft.wait_applied(index, soon()).await.unwrap();
            let (_, value) = raft.state().get(b"k").unwrap().unwrap();
            value
        })
    };
    let frozen_at = Instant::now();
    cluster.write(put("k", "new")).await;
    let failover = frozen_at.elapsed();
    assert!(
        failover < Duration::from_secs(4),
        "written too late to prove anything: {failover:?}"
    );
    assert_eq!(woken.await.unwrap(), "new");
    let raft = victim.raft.clone();
    frozen
        .spawn(async move { raft.shutdown().await })
        .await
        .unwrap();
    cluster.shutdown().await;
    frozen.shutdown_background();
}

/// Runs parts of a test on another runtime, so that their tasks and sockets belong to it.
trait Elsewhere {
    async fn block_on_here<T, F>(&self, future: F) -> T
    where
        F: Future<Output = std::io::Result<T>> + Send + 'static,
        T: Send + 'static;

    async fn start_node(
        &self,
        cluster: &Cluster,
        identity: Identity,
        addr: String,
        listener: TcpListener,
    ) -> crate::harness::Node;
}

impl Elsewhere for Runtime {
    async fn block_on_here<T, F>(&self, future: F) -> T
    where
        F: Future<Output = std::io::Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        self.spawn(future).await.unwrap().unwrap()
    }

    async fn start_node(
        &self,
        cluster: &Cluster,
        identity: Identity,
        addr: String,
        listener: TcpListener,
    ) -> crate::harness::Node {
        // Tasks are spawned on the runtime that is entered while the future is polled.
        let handle = self.handle().clone();
        let mut starting = Box::pin(cluster.start(identity, addr, listener));
        std::future::poll_fn(move |cx| {
            let _entered = handle.enter();
            starting.as_mut().poll(cx)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_behind_a_dead_network_catches_up_when_it_is_back() {
    let mut cluster = Cluster::new().await;
    cluster.join("b").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = Relay::to(listener.local_addr().unwrap().to_string()).await;
    let leader = cluster.leader().await;
    let info = info("c", &relay.addr);
    let raft_id = cluster.nodes[leader].raft.add_node(info).await.unwrap();
    let identity = Identity {
        cluster_id: CLUSTER,
        raft_id,
        name: "c".to_owned(),
    };
    let node = cluster.start(identity, relay.addr.clone(), listener).await;
    cluster.nodes.push(node);
    cluster
        .until("three voters", |c| {
            let members = c.nodes[2].raft.status().members;
            members.len() == 3 && members.iter().all(|member| member.voter)
        })
        .await;
    let mut slow = 0;
    for round in 0..3 {
        relay.set_dead(true);
        for write in 0..20 {
            let started = Instant::now();
            cluster.write(put(&format!("{round}/{write}"), "v")).await;
            slow += usize::from(started.elapsed() > Duration::from_secs(1));
        }
        // Long enough for connections to be given up, and for the follower to want an election.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let last = format!("{round}/19");
        assert_eq!(local(&cluster.nodes[2], &last), None);
        relay.set_dead(false);
        let healed = Instant::now();
        assert_eq!(read(&cluster.nodes[2], &last).await.as_deref(), Some("v"));
        eprintln!(
            "round {round}: caught up {:?} after the network was back",
            healed.elapsed()
        );
    }
    // The disk may have hung once.
    assert!(slow <= 1, "one dead follower stalls nobody: {slow} of 60");
    let term = cluster.nodes[2].raft.status().term;
    assert!(
        term <= 2,
        "the dead follower disturbed the others: term {term}"
    );
    cluster.shutdown().await;
}

/// Writes unique keys one after the other until told to stop; gives the number of acknowledged ones.
async fn write_through_everything(
    writer: u8,
    nodes: Arc<Mutex<Vec<Raft>>>,
    stop: Arc<AtomicBool>,
) -> u32 {
    let mut done = 0u32;
    while !stop.load(Ordering::SeqCst) {
        let mut command = put(&format!("{writer}/{done}"), "v");
        command.request_id = [writer; 16];
        command.request_id[..4].copy_from_slice(&done.to_be_bytes());
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            assert!(Instant::now() < deadline, "no progress for 20 seconds");
            let leader = {
                let nodes = nodes.lock().unwrap();
                nodes
                    .iter()
                    .find(|raft| raft.status().is_ready_leader)
                    .cloned()
            };
            let Some(leader) = leader else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let limit = Instant::now() + Duration::from_secs(1);
            match leader.propose(command.clone(), limit).await {
                Ok(applied) => {
                    assert!(applied.is_applied());
                    break;
                }
                // Nothing was written, or perhaps it was: the request id makes both safe to send again.
                Err(
                    ProposeError::NotLeader { .. }
                    | ProposeError::NoQuorum
                    | ProposeError::Busy
                    | ProposeError::Unknown,
                ) => tokio::time::sleep(Duration::from_millis(10)).await,
                // A node that is being stopped.
                Err(ProposeError::Fatal(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        }
        done += 1;
    }
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_is_applied_once_through_restarts_and_hand_overs() {
    let mut cluster = Cluster::of_three().await;
    let rafts = |cluster: &Cluster| -> Vec<Raft> {
        cluster.nodes.iter().map(|node| node.raft.clone()).collect()
    };
    let nodes = Arc::new(Mutex::new(rafts(&cluster)));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (1..=4)
        .map(|writer| {
            let (nodes, stop) = (Arc::clone(&nodes), Arc::clone(&stop));
            tokio::spawn(write_through_everything(writer, nodes, stop))
        })
        .collect();
    for round in 0..5 {
        let leader = cluster.leader().await;
        match round % 3 {
            // The leader goes without a word, while writes are under way.
            0 => {
                let stopped = cluster.stop(leader).await;
                *nodes.lock().unwrap() = rafts(&cluster);
                tokio::time::sleep(Duration::from_millis(300)).await;
                cluster.restart(stopped).await;
            }
            1 => {
                let handed = cluster.nodes[leader]
                    .raft
                    .transfer_leader(Next::Best, soon())
                    .await;
                // Somebody may have been too far behind just then.
                drop(handed);
            }
            _ => {
                let stopped = cluster.stop((leader + 1) % 3).await;
                *nodes.lock().unwrap() = rafts(&cluster);
                tokio::time::sleep(Duration::from_millis(300)).await;
                cluster.restart(stopped).await;
            }
        }
        *nodes.lock().unwrap() = rafts(&cluster);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    stop.store(true, Ordering::SeqCst);
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.push(writer.await.unwrap());
    }
    let total = u64::from(acknowledged.iter().sum::<u32>());
    eprintln!("{total} writes");
    for node in &cluster.nodes {
        let index = node.raft.read_index(soon()).await.unwrap();
        node.raft.wait_applied(index, soon()).await.unwrap();
        for (writer, done) in (1..).zip(&acknowledged) {
            for number in 0..*done {
                let key = format!("{writer}/{number}");
                assert!(local(node, &key).is_some(), "{key} is gone");
            }
        }
        // A second copy of any of them would count.
        assert_eq!(node.raft.state().put_count(), total);
    }
    cluster.shutdown().await;
}
