//! Three nodes: replication, reads anywhere, loss of the leader, hand-over.

use std::time::{Duration, Instant};

use strongroom_raft::{
    Command, DialError, Expect, Next, Outcome, ProposeError, ReadError, TransferError,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Cluster, ECHO, check, local, put, read, soon};

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_read_on_every_node() {
    let cluster = Cluster::of_three().await;
    for round in 0..20 {
        let value = format!("v{round}");
        cluster.write(put("k", &value)).await;
        for node in &cluster.nodes {
            assert_eq!(read(node, "k").await.as_deref(), Some(&value[..]));
        }
    }
    let leader = cluster.leader().await;
    for (position, node) in cluster.nodes.iter().enumerate() {
        assert_eq!(node.raft.state().put_count(), 20);
        let status = node.raft.status();
        assert_eq!(status.leader, Some(cluster.nodes[leader].identity.raft_id));
        assert_eq!(status.leader_since_ms.is_some(), position == leader);
        if position != leader {
            let refused = node.raft.propose(put("k", "no"), soon()).await;
            assert!(
                matches!(refused, Err(ProposeError::NotLeader { leader }) if leader == status.leader),
                "{refused:?}"
            );
        }
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_has_the_leader_propose() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let named = || Command {
        request_id: [9; 16],
        ..put("k", "1")
    };
    let mut indexes = Vec::new();
    for position in [one, other, leader] {
        let raft = &cluster.nodes[position].raft;
        let applied = raft.propose_anywhere(named(), soon()).await.unwrap();
        assert!(applied.is_applied());
        indexes.push(applied.index);
    }
    assert!(
        indexes.iter().all(|index| *index == indexes[0]),
        "applied once: {indexes:?}"
    );
    let raft = cluster.nodes[one].raft.clone();
    let wrong = Command {
        ops: vec![check("k", Expect::Absent)],
        ..Command::default()
    };
    let refused = raft.propose_anywhere(wrong, soon()).await.unwrap();
    assert_eq!(refused.outcome, Outcome::CheckFailed { op: 0 });
    let huge = put("k", &"x".repeat(2 << 20));
    let refused = raft.propose_anywhere(huge, soon()).await;
    assert!(
        matches!(refused, Err(ProposeError::TooLarge { .. })),
        "{refused:?}"
    );
    let many = (0..200).map(|n| {
        let raft = raft.clone();
        async move {
            raft.propose_anywhere(put(&format!("m{n}"), "v"), soon())
                .await
        }
    });
    for applied in futures_util::future::join_all(many).await {
        assert!(applied.unwrap().is_applied());
    }
    assert_eq!(
        read(&cluster.nodes[other], "m199").await.as_deref(),
        Some("v")
    );
    // Without its leader the outcome is either nothing written or not known, and it comes in time.
    drop(cluster.stop(leader).await);
    let asked = Instant::now();
    let lost = raft.propose_anywhere(put("late", "v"), soon()).await;
    assert!(
        matches!(
            lost,
            Ok(_) | Err(ProposeError::NotLeader { .. } | ProposeError::Unknown)
        ),
        "{lost:?}"
    );
    assert!(asked.elapsed() < Duration::from_secs(4));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_leader_loses_nothing_and_it_catches_up_again() {
    let mut cluster = Cluster::of_three().await;
    cluster.write(put("before", "1")).await;
    let leader = cluster.leader().await;
    let stopped = cluster.stop(leader).await;
    let lost = Instant::now();
    cluster.write(put("while", "2")).await;
    assert!(
        lost.elapsed() < Duration::from_secs(5),
        "{:?}",
        lost.elapsed()
    );
    let back = cluster.restart(stopped).await;
    assert_eq!(
        read(&cluster.nodes[back], "while").await.as_deref(),
        Some("2")
    );
    assert_eq!(local(&cluster.nodes[back], "before").as_deref(), Some("1"));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_follower_serves_reads_quickly() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let stopped = cluster.stop(follower).await;
    for round in 0..50 {
        cluster.write(put(&format!("k{round}"), "v")).await;
    }
    // Long enough for the leader's back-off to have grown.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let started = Instant::now();
    let back = cluster.restart(stopped).await;
    assert_eq!(
        read(&cluster.nodes[back], "k49").await.as_deref(),
        Some("v")
    );
    let took = started.elapsed();
    eprintln!("a restarted follower served a linearizable read after {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_three_at_once_come_back() {
    let mut cluster = Cluster::of_three().await;
    cluster.write(put("k", "v")).await;
    let mut stopped = Vec::new();
    while !cluster.nodes.is_empty() {
        stopped.push(cluster.stop(0).await);
    }
    for node in stopped {
        cluster.restart(node).await;
    }
    for node in &cluster.nodes {
        assert_eq!(read(node, "k").await.as_deref(), Some("v"));
    }
    cluster.write(put("k", "w")).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nothing_is_acknowledged_or_read() {
    let mut cluster = Cluster::of_three().await;
    cluster.write(put("k", "v")).await;
    let leader = cluster.leader().await;
    let last = cluster.nodes[leader].identity.raft_id;
    while cluster.nodes.len() > 1 {
        let other = cluster
            .nodes
            .iter()
            .position(|n| n.identity.raft_id != last)
            .unwrap();
        // Not shut down politely one by one: the leader keeps leading until its lease is over.
        cluster.stop(other).await;
    }
    let node = &cluster.nodes[0];
    let short = || Instant::now() + Duration::from_millis(1500);
    let read = node.raft.read_index(short()).await;
    assert!(matches!(read, Err(ReadError::NoQuorum)), "{read:?}");
    let write = node.raft.propose(put("k", "w"), short()).await;
    assert!(
        matches!(
            write,
            Err(ProposeError::NoQuorum | ProposeError::NotLeader { .. } | ProposeError::Unknown)
        ),
        "{write:?}"
    );
    assert_eq!(local(node, "k").as_deref(), Some("v"));
    // It does not go on calling itself the leader either.
    cluster
        .until("the lone leader to notice", |c| {
            let status = c.nodes[0].raft.status();
            status.leader.is_none() && !status.is_ready_leader
        })
        .await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over() {
    let cluster = Cluster::of_three().await;
    cluster.write(put("k", "v")).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let refused = cluster.nodes[follower]
        .raft
        .transfer_leader(Next::Best, soon())
        .await;
    assert!(
        matches!(refused, Err(TransferError::NotLeader)),
        "{refused:?}"
    );
    let nobody = cluster.nodes[leader]
        .raft
        .transfer_leader(Next::Named("x".to_owned()), soon())
        .await;
    assert!(
        matches!(nobody, Err(TransferError::Unknown(_))),
        "{nobody:?}"
    );

    let to = Next::Named(cluster.nodes[follower].identity.name.clone());
    let started = Instant::now();
    cluster.nodes[leader]
        .raft
        .transfer_leader(to, soon())
        .await
        .unwrap();
    let took = started.elapsed();
    assert!(
        took < Duration::from_millis(1400),
        "an election and no transfer: {took:?}"
    );
    assert_eq!(cluster.leader().await, follower);
    cluster.write(put("k", "w")).await;
    cluster.nodes[follower]
        .raft
        .transfer_leader(Next::Best, soon())
        .await
        .unwrap();
    assert_ne!(cluster.leader().await, follower);
    for node in &cluster.nodes {
        assert_eq!(read(node, "k").await.as_deref(), Some("w"));
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_protocols_share_the_port() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let to = cluster.nodes[leader].identity.raft_id;
    let mut incoming = cluster.nodes[leader].streams.take().unwrap();
    let follower = &cluster.nodes[(leader + 1) % 3];
    let echo = tokio::spawn(async move {
        let mut stream = incoming.recv().await.unwrap();
        let mut bytes = [0; 4];
        stream.stream.read_exact(&mut bytes).await.unwrap();
        stream.stream.write_all(&bytes).await.unwrap();
        stream.stream.flush().await.unwrap();
        stream.from
    });
    let mut stream = follower.raft.dial(to, ECHO).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    stream.flush().await.unwrap();
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
    assert_eq!(echo.await.unwrap(), follower.identity.raft_id);
    let unknown = follower.raft.dial(999, ECHO).await;
    assert!(
        matches!(unknown, Err(DialError::UnknownMember(999))),
        "{unknown:?}"
    );
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_at_once_keep_every_write() {
    let cluster = std::sync::Arc::new(Cluster::of_three().await);
    let started = Instant::now();
    let writers: Vec<_> = (0..32)
        .map(|writer| {
            let cluster = std::sync::Arc::clone(&cluster);
            tokio::spawn(async move {
                for round in 0..25 {
                    cluster.write(put(&format!("{writer}/{round}"), "v")).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    eprintln!("800 writes by 32 writers took {:?}", started.elapsed());
    for node in &cluster.nodes {
        read(node, "0/0").await.unwrap();
        let keys = node.raft.state().keys(b"", None, 10_000).unwrap();
        assert_eq!(keys.len(), 800);
        assert_eq!(node.raft.state().put_count(), 800);
    }
    for node in &cluster.nodes {
        node.raft.shutdown().await;
    }
}
