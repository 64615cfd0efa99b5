//! Snapshots between nodes: who is behind the purged log, or has nothing, catches up by one, and goes on by log.

use std::time::{Duration, Instant};

use strongroom_raft::{Identity, SnapshotOptions};
use tokio::net::TcpListener;

use crate::harness::{
    CLUSTER, Cluster, Node, Relay, info, local, put, read, solo, solo_with, soon, until_ready,
};

/// A snapshot after every so many entries, and next to no log behind it.
fn often(threshold: u64) -> SnapshotOptions {
    SnapshotOptions {
        threshold,
        interval: Duration::from_millis(40),
        trailing_logs: 5,
        ..SnapshotOptions::default()
    }
}

async fn write_many(cluster: &Cluster, name: &str, count: usize, value: &str) {
    for number in 0..count {
        cluster.write(put(&format!("{name}{number}"), value)).await;
    }
}

/// Writes 20 kB at a time, just so much that the first node takes a snapshot, and waits for it. For [`often`] of 100.
async fn write_a_snapshot(cluster: &Cluster, name: &str) {
    let raft = &cluster.nodes[0].raft;
    let last = raft.snapshot_stats().last_index;
    let mut number = 0;
    while raft.status().applied < last + 101 {
        let write = put(&format!("{name}{number}"), &"x".repeat(20_000));
        cluster.write(write).await;
        number += 1;
    }
    cluster
        .until("the snapshot", |c| {
            c.nodes[0].raft.snapshot_stats().last_index > last
        })
        .await;
}

/// Every node that is left has purged its log up to `index`; the leader waits a while for who was there just now.
async fn until_purged(cluster: &Cluster, index: u64) {
    cluster
        .until("purged logs", |c| {
            let purged = |node: &Node| node.raft.snapshot_stats().purged;
            c.nodes.iter().all(|node| purged(node) >= index)
        })
        .await;
}

/// A node serves reads before its books are made up.
async fn until_received(cluster: &Cluster, node: usize) {
    cluster
        .until("a snapshot", |c| {
            c.nodes[node].raft.snapshot_stats().received == 1
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_behind_the_purged_log_catches_up_by_snapshot_and_goes_on_by_log() {
    let mut cluster = Cluster::with_snapshots(often(100)).await.grown().await;
    write_many(&cluster, "before", 20, "1").await;
    let away = (cluster.leader().await + 1) % 3;
    let stopped = cluster.stop(away).await;
    write_many(&cluster, "meanwhile", 300, "2").await;
    until_purged(&cluster, 200).await;
    let back = cluster.restart(stopped).await;
    assert_eq!(
        read(&cluster.nodes[back], "meanwhile299").await.unwrap(),
        "2"
    );
    // Reads are served before the books are made up.
    let sent = |c: &Cluster| -> u64 {
        let sent = c.nodes.iter().map(|node| node.raft.snapshot_stats().sent);
        sent.sum()
    };
    cluster.until("the snapshot", |c| sent(c) >= 1).await;
    let stats = cluster.nodes[back].raft.snapshot_stats();
    assert_eq!(
        (stats.received, stats.receive_failures),
        (1, 0),
        "{stats:?}"
    );
    for (name, count) in [("before", 20), ("meanwhile", 300)] {
        for number in 0..count {
            assert!(local(&cluster.nodes[back], &format!("{name}{number}")).is_some());
        }
    }
    // By log from here on, through a restart as well, although everybody takes snapshots all the time.
    write_many(&cluster, "after", 120, "3").await;
    assert_eq!(read(&cluster.nodes[back], "after119").await.unwrap(), "3");
    assert_eq!(cluster.nodes[back].raft.snapshot_stats().received, 1);
    let stopped = cluster.stop(back).await;
    let back = cluster.restart(stopped).await;
    assert_eq!(read(&cluster.nodes[back], "before7").await.unwrap(), "1");
    assert_eq!(read(&cluster.nodes[back], "after7").await.unwrap(), "3");
    let puts: Vec<u64> = cluster
        .nodes
        .iter()
        .map(|node| node.raft.state().put_count())
        .collect();
    assert!(puts.iter().all(|count| *count == 440), "{puts:?}");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_an_empty_disk_joins_by_snapshot_and_can_lead() {
    let mut cluster = Cluster::with_snapshots(often(100)).await;
    write_many(&cluster, "key", 250, "1").await;
    until_purged(&cluster, 140).await;
    let mut cluster = {
        cluster.join("b").await;
        cluster.join("c").await;
        cluster
    };
    cluster
        .until("three voters", |c| {
            c.nodes.iter().all(|node| {
                let members = node.raft.status().members;
                members.len() == 3 && members.iter().all(|member| member.voter)
            })
        })
        .await;
    for node in &cluster.nodes[1..] {
        assert_eq!(read(node, "key249").await.unwrap(), "1");
    }
    cluster
        .until("two snapshots", |c| {
            let received = |node: &Node| node.raft.snapshot_stats().received == 1;
            c.nodes[1..].iter().all(received)
        })
        .await;
    // Without the one that has everything from the beginning.
    let stopped = cluster.stop(0).await;
    write_many(&cluster, "later", 150, "2").await;
    let back = cluster.restart(stopped).await;
    assert_eq!(read(&cluster.nodes[back], "later149").await.unwrap(), "2");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_the_receiver_has_are_not_sent_again() {
    let mut cluster = Cluster::with_snapshots(often(150)).await.grown().await;
    let away = (cluster.leader().await + 1) % 3;
    let stopped = cluster.stop(away).await;
    write_many(&cluster, "large", 200, &"x".repeat(20_000)).await;
    until_purged(&cluster, 140).await;
    let back = cluster.restart(stopped).await;
    assert!(read(&cluster.nodes[back], "large199").await.is_some());
    until_received(&cluster, back).await;
    let first = cluster.nodes[back].raft.snapshot_stats();
    assert!(
        first.received == 1 && first.received_bytes > 2_700_000,
        "{first:?}"
    );
    let stopped = cluster.stop(back).await;
    write_many(&cluster, "small", 320, "2").await;
    until_purged(&cluster, 370).await;
    let back = cluster.restart(stopped).await;
    assert_eq!(read(&cluster.nodes[back], "small319").await.unwrap(), "2");
    until_received(&cluster, back).await;
    let again = cluster.nodes[back].raft.snapshot_stats();
    assert!(
        again.received == 1 && again.received_bytes < 1_500_000,
        "{again:?}"
    );
    assert_eq!(local(&cluster.nodes[back], "large0").unwrap().len(), 20_000);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_transfer_goes_on_with_the_file_it_was_at() {
    let mut cluster = Cluster::with_snapshots(often(100)).await;
    // Two table files of about two megabytes, and hardly anything behind them.
    write_a_snapshot(&cluster, "early").await;
    write_a_snapshot(&cluster, "large").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let relay = Relay::breaking(target, 3_000_000).await;
    let added = cluster.nodes[0].raft.add_node(info("b", &relay)).await;
    let identity = Identity {
        cluster_id: CLUSTER,
        raft_id: added.unwrap(),
        name: "b".to_owned(),
    };
    let node = cluster.start(identity, relay, listener).await;
    cluster.nodes.push(node);
    assert!(read(&cluster.nodes[1], "large0").await.is_some());
    until_received(&cluster, 1).await;
    let stats = cluster.nodes[1].raft.snapshot_stats();
    assert!(cluster.nodes[0].raft.snapshot_stats().send_failures >= 1);
    let whole = cluster.nodes[0].raft.snapshot_stats().last_bytes;
    // What had come of the second file, about a megabyte, came twice; the first did not, or it would be three.
    let twice = stats.received_bytes.saturating_sub(whole);
    assert!(
        whole > 3_500_000 && (1..2_000_000).contains(&twice),
        "{stats:?} of {whole}"
    );
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_takes_snapshots_and_starts_again_on_a_purged_log() {
    let dir = tempfile::tempdir().unwrap();
    let raft = solo(dir.path()).await;
    raft.initialize().await.unwrap();
    until_ready(&raft).await;
    raft.shutdown().await;
    let start = || solo_with(dir.path(), often(50));
    let mut raft = start().await;
    until_ready(&raft).await;
    for round in 0..3u64 {
        for number in 0..120u64 {
            let command = put(&format!("k{round}-{number}"), "v");
            raft.propose(command, soon()).await.unwrap();
        }
        while raft.snapshot_stats().last_index < raft.status().applied - 50 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let before = raft.status().applied;
        let copy = raft.state().checkpoint().unwrap();
        assert!((before..=raft.status().applied).contains(&copy.index()));
        assert_eq!(copy.rows().unwrap().count() as u64, (round + 1) * 120);
        drop(copy);
        raft.shutdown().await;
        raft = start().await;
        until_ready(&raft).await;
        assert!(raft.state().get(b"k0-0").unwrap().is_some());
        assert_eq!(raft.state().put_count(), (round + 1) * 120);
    }
    let snapshots = std::fs::read_dir(dir.path().join("snapshots")).unwrap();
    assert!(snapshots.count() <= 2);
    raft.shutdown().await;
}

/// Acknowledged writes a second by 64 clients over `time`.
async fn writes_per_second(cluster: &Cluster, name: &str, time: Duration) -> f64 {
    let leader = cluster.leader().await;
    let started = Instant::now();
    let clients = (0..64).map(|client| {
        let (raft, name) = (cluster.nodes[leader].raft.clone(), name.to_owned());
        tokio::spawn(async move {
            let mut done = 0;
            while started.elapsed() < time {
                let command = put(&format!("{name}/{client}/{done}"), &"v".repeat(512));
                raft.propose(command, soon()).await.unwrap();
                done += 1;
            }
            done
        })
    });
    let mut done = 0;
    for client in clients.collect::<Vec<_>>() {
        done += client.await.unwrap();
    }
    f64::from(done) / started.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn how_fast_writes_are_while_snapshots_are_built_sent_and_installed() {
    let rarely = SnapshotOptions::default();
    let mut cluster = Cluster::with_snapshots(rarely).await.grown().await;
    write_many(&cluster, "large", 2000, &"x".repeat(100_000)).await;
    let time = Duration::from_secs(5);
    let undisturbed = writes_per_second(&cluster, "undisturbed", time).await;
    // The same with a snapshot every second on every node.
    for _ in 0..3 {
        cluster.snapshots = SnapshotOptions {
            threshold: 1,
            interval: Duration::from_millis(700),
            trailing_logs: 5,
            ..rarely
        };
        let stopped = cluster.stop(0).await;
        cluster.restart(stopped).await;
    }
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    let built = writes_per_second(&cluster, "built", time).await;
    let stopped = cluster.stop(away).await;
    write_many(&cluster, "meanwhile", 300, "1").await;
    until_purged(&cluster, 2100).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    let back = cluster.restart(stopped).await;
    let sent = writes_per_second(&cluster, "sent", time).await;
    until_received(&cluster, back).await;
    let stats: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| node.raft.snapshot_stats())
        .collect();
    println!(
        "{undisturbed:.0}/s undisturbed, {built:.0}/s while built, {sent:.0}/s while sent; {stats:#?}"
    );
    cluster.shutdown().await;
}
