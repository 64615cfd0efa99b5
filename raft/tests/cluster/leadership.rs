//! Who leads: hand-overs that go wrong, nodes that should not lead, versions; and who votes.

use std::time::{Duration, Instant};

use strongroom_raft::{Autopilot, MembershipError, Next, PeerInfo, Raft, TransferError};
use tokio::net::TcpListener;

use crate::harness::{Cluster, Relay, info, put, read, soon};

/// Settings with which nobody waits long.
fn hasty() -> Autopilot {
    Autopilot {
        server_stabilization_time: Duration::from_secs(1),
        ..Autopilot::default()
    }
}

fn set_everywhere(cluster: &Cluster, settings: &Autopilot) {
    for node in &cluster.nodes {
        node.raft.set_autopilot(settings.clone());
    }
}

fn newer(name: &str) -> PeerInfo {
    PeerInfo {
        version: "0.2.0".to_owned(),
        ..info(name, "")
    }
}

/// Names of the voters, as the leader knows them.
fn voters(raft: &Raft) -> Vec<String> {
    let members = raft.status().members;
    let voters = members.into_iter().filter(|member| member.voter);
    let mut names: Vec<String> = voters.map(|member| member.info.name).collect();
    names.sort();
    names
}

async fn leads(cluster: &Cluster) -> String {
    let leader = cluster.leader().await;
    cluster.nodes[leader].identity.name.clone()
}

fn is_named(node: &crate::harness::Node, name: &str) -> bool {
    node.identity.name == name
}

/// openraft never takes an offer of leadership back: whoever is offered it and dies must not stop the cluster.
#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_dies_on_the_way_stops_nobody() {
    let mut cluster = Cluster::of_three().await;
    // A fourth node that all others reach through a relay.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = Relay::to(listener.local_addr().unwrap().to_string()).await;
    let leader = cluster.leader().await;
    let raft_id = cluster.nodes[leader]
        .raft
        .add_node(info("d", &relay.addr))
        .await
        .unwrap();
    let identity = strongroom_raft::Identity {
        cluster_id: crate::harness::CLUSTER,
        raft_id,
        name: "d".to_owned(),
    };
    let node = cluster.start(identity, relay.addr.clone(), listener).await;
    cluster.nodes.push(node);
    cluster
        .until("four voters", |c| voters(&c.nodes[leader].raft).len() == 4)
        .await;
    cluster.write(put("k", "v")).await;
    relay.set_dead(true);
    let named = cluster.nodes[leader]
        .raft
        .transfer_leader(
            Next::Named("d".to_owned()),
            Instant::now() + Duration::from_millis(1200),
        )
        .await;
    // The others may have elected one by then.
    assert!(
        matches!(
            named,
            Err(TransferError::TimedOut | TransferError::Another { .. })
        ),
        "{named:?}"
    );
    let started = Instant::now();
    cluster.write(put("k", "w")).await;
    let took = started.elapsed();
    assert!(
        took < Duration::from_secs(5),
        "writes went on only after {took:?}"
    );
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_ineligible_leads_only_if_nobody_else_can() {
    let mut cluster = Cluster::new().await;
    let spare = |name: &str| PeerInfo {
        leader_ineligible: true,
        ..info(name, "")
    };
    cluster.join_as(spare("b")).await;
    cluster.join_as(info("c", "")).await;
    cluster
        .until("three voters", |c| voters(&c.nodes[0].raft).len() == 3)
        .await;
    assert_eq!(leads(&cluster).await, "a");
    let named = cluster.nodes[0]
        .raft
        .transfer_leader(Next::Named("b".to_owned()), soon())
        .await;
    assert!(
        matches!(named, Err(TransferError::Ineligible(_))),
        "{named:?}"
    );
    // The leader dies: it is always c, never b, that takes over.
    let first = cluster.stop(0).await;
    assert_eq!(leads(&cluster).await, "c");
    let back = cluster.restart(first).await;
    let c = cluster.leader().await;
    cluster.write(put("k", "v")).await;
    // Marked at run time, the leader gives leadership away.
    let addr = cluster.nodes[c].addr.clone();
    cluster.nodes[c]
        .raft
        .announce(PeerInfo {
            leader_ineligible: true,
            ..info("c", &addr)
        })
        .await
        .unwrap();
    cluster
        .until("a to lead", |c| c.nodes[back].raft.status().is_ready_leader)
        .await;
    // Two that are not eligible are left: the cluster has a leader all the same, after a while.
    let started = Instant::now();
    cluster.stop(back).await;
    while !cluster
        .nodes
        .iter()
        .any(|node| node.raft.status().is_ready_leader)
    {
        assert!(started.elapsed() < Duration::from_secs(30), "nobody leads");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        started.elapsed() > Duration::from_secs(5),
        "somebody was in a hurry"
    );
    assert_eq!(read(&cluster.nodes[0], "k").await.as_deref(), Some("v"));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_follows_the_newer_version_unless_an_operator_says_otherwise() {
    let mut cluster = Cluster::of_three().await;
    cluster.join_as(newer("d")).await;
    set_everywhere(
        &cluster,
        &Autopilot {
            disable_upgrade_migration: true,
            ..hasty()
        },
    );
    cluster
        .until("d to lead", |c| {
            let d = c.nodes.iter().find(|node| is_named(node, "d")).unwrap();
            d.raft.status().is_ready_leader
        })
        .await;
    let d = cluster.leader().await;
    cluster.nodes[d]
        .raft
        .transfer_leader(Next::Named("a".to_owned()), soon())
        .await
        .unwrap();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(4) {
        assert_eq!(leads(&cluster).await, "a");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_a_new_version_take_over() {
    let mut cluster = Cluster::of_three().await;
    set_everywhere(&cluster, &hasty());
    for name in ["d", "e"] {
        cluster.join_as(newer(name)).await;
    }
    set_everywhere(&cluster, &hasty());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let leader = cluster.leader().await;
    let raft = cluster.nodes[leader].raft.clone();
    assert_eq!(voters(&raft), ["a", "b", "c"]);
    assert_eq!(raft.autopilot().unwrap().upgrade.status, "await-new-voters");
    cluster.join_as(newer("f")).await;
    set_everywhere(&cluster, &hasty());
    cluster.write(put("k", "v")).await;
    cluster
        .until("the new ones to vote and to lead", |c| {
            c.nodes.iter().all(|node| {
                let leader = c.nodes.iter().find(|n| n.raft.status().is_ready_leader);
                voters(&node.raft) == ["d", "e", "f"]
                    && leader.is_some_and(|n| ["d", "e", "f"].contains(&n.identity.name.as_str()))
            })
        })
        .await;
    let leader = cluster.leader().await;
    let status = cluster.nodes[leader].raft.autopilot().unwrap();
    assert_eq!(status.upgrade.status, "await-server-removal");
    for name in ["a", "b", "c"] {
        cluster.nodes[leader].raft.remove_node(name).await.unwrap();
    }
    cluster.write(put("k", "w")).await;
    assert_eq!(cluster.nodes[leader].raft.status().members.len(), 3);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vote_is_taken_and_given_back() {
    let cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let raft = &cluster.nodes[leader].raft;
    let follower = cluster.nodes[(leader + 1) % 3].identity.name.clone();
    let own = cluster.nodes[leader].identity.name.clone();
    raft.set_non_voter(&follower, true).await.unwrap();
    assert!(!voters(raft).contains(&follower));
    let again = raft.set_non_voter(&follower, true).await;
    assert!(
        matches!(again, Err(MembershipError::Refused(_))),
        "{again:?}"
    );
    assert!(matches!(
        raft.set_non_voter(&own, true).await,
        Err(MembershipError::IsLeader)
    ));
    assert!(matches!(
        raft.set_non_voter("x", true).await,
        Err(MembershipError::Unknown(_))
    ));
    // It stays so although the node says again what it was configured with.
    let node = &cluster.nodes[(leader + 1) % 3];
    node.raft
        .announce(info(&follower, &node.addr))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(voters(raft).len(), 2);
    raft.set_non_voter(&follower, false).await.unwrap();
    cluster
        .until("three voters", |c| voters(&c.nodes[leader].raft).len() == 3)
        .await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_learns_it() {
    let cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let raft = cluster.nodes[leader].raft.clone();
    let own = cluster.nodes[leader].identity.name.clone();
    assert!(matches!(
        raft.remove_node("x").await,
        Err(MembershipError::Unknown(_))
    ));
    assert!(matches!(
        raft.remove_node(&own).await,
        Err(MembershipError::IsLeader)
    ));
    let there = (leader + 1) % 3;
    let name = cluster.nodes[there].identity.name.clone();
    raft.remove_node(&name).await.unwrap();
    let limit = Duration::from_secs(10);
    let why = tokio::time::timeout(limit, cluster.nodes[there].raft.removed()).await;
    assert!(why.unwrap().contains("was removed or replaced"));
    // It can neither read nor write any more.
    let read_after = cluster.nodes[there]
        .raft
        .read_index(Instant::now() + Duration::from_millis(500))
        .await;
    assert!(read_after.is_err());
    assert_eq!(voters(&raft).len(), 2);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_removed_while_away_learns_it_when_it_comes_back() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    let name = cluster.nodes[away].identity.name.clone();
    let stopped = cluster.stop(away).await;
    cluster.write(put("k", "v")).await;
    let leader = cluster.leader().await;
    let raft = cluster.nodes[leader].raft.clone();
    // The other follower cannot be spared now.
    let other = cluster.nodes[1 - leader].identity.name.clone();
    let refused = raft.remove_node(&other).await;
    assert!(
        matches!(&refused, Err(MembershipError::Quorum(why)) if why.contains("quorum")),
        "{refused:?}"
    );
    raft.remove_node(&name).await.unwrap();
    let restarted = cluster.restart(stopped).await;
    let removed = cluster.nodes[restarted].raft.removed();
    let why = tokio::time::timeout(Duration::from_secs(10), removed).await;
    assert!(why.unwrap().contains("was removed or replaced"));
    let stopped = cluster.stop(restarted).await;
    std::fs::remove_dir_all(&stopped.dir).unwrap();
    // Its name is free.
    cluster.join(&name).await;
    cluster
        .until("three voters", |c| {
            voters(&c.nodes[2].raft) == ["a", "b", "c"]
        })
        .await;
    assert_eq!(read(&cluster.nodes[2], "k").await.as_deref(), Some("v"));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_leaves_by_itself() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let leaver = (leader + 1) % 3;
    let name = cluster.nodes[leaver].identity.name.clone();
    assert!(matches!(
        cluster.nodes[leader].raft.leave().await,
        Err(MembershipError::NotLeader { .. })
    ));
    cluster.nodes[leaver].raft.leave().await.unwrap();
    cluster.stop(leaver).await;
    let leader = cluster.leader().await;
    assert!(!voters(&cluster.nodes[leader].raft).contains(&name));
    cluster.write(put("k", "v")).await;
    cluster.shutdown().await;
}
