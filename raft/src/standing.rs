//! Where this node stands: whether it may campaign now, and whether it still belongs to the cluster.
//!
//! In: the membership, room on the disk, how long nothing has come from a leader, what members say when they are asked.
//! Out: openraft's switch for elections, which nobody else sets; the news that this node was removed.
//!
//! Invariants
//! - A node that should not lead waits longer before it campaigns, and then does: a cluster of such nodes has a leader.
//! - Only a leader with a fresh quorum says that a node was removed, and it must say so for some time without any leader
//!   being heard in between. One word of a leader that is just being replaced is not enough.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::{
    net::Call, plan::newer, services::Services, start::Timing, types::Membership, vitals::Room,
};

/// Election time-outs that a node waits if a voter of a newer version could lead; others campaign after one to two.
const OLDER: u32 = 4;
/// Election time-outs that an ineligible node waits if an eligible voter could lead.
const INELIGIBLE: u32 = 10;
/// Election time-outs of silence after which a node asks whether it still belongs.
const ASK_AFTER: u32 = 2;

/// How long this node must have heard from no leader before it may campaign.
pub(crate) fn patience(membership: &Membership, own: u64, timing: Timing) -> Duration {
    let Some(me) = membership.get_node(&own) else {
        return Duration::ZERO;
    };
    let mut others = membership
        .voter_ids()
        .filter(|id| *id != own)
        .filter_map(|id| membership.get_node(&id))
        .filter(|info| !info.leader_ineligible)
        .peekable();
    if me.leader_ineligible && others.peek().is_some() {
        timing.election_max * INELIGIBLE
    } else if others.any(|other| newer(other, me)) {
        timing.election_max * OLDER
    } else {
        Duration::ZERO
    }
}

/// Whether this node may campaign as soon as the leader is known to be gone.
pub(crate) fn may_campaign_at_once(services: &Services) -> bool {
    let patience = services.metrics(|metrics| {
        let membership = metrics.membership_config.membership();
        patience(membership, services.raft_id, services.timing)
    });
    patience.is_zero() && services.vitals.room() != Room::Critical
}

/// Runs until cancelled.
pub(crate) async fn run(services: Services) {
    let mut may_elect = true;
    let mut asked = Instant::now();
    loop {
        tokio::time::sleep(services.timing.heartbeat).await;
        let (leads, patience) = services.metrics(|metrics| {
            let membership = metrics.membership_config.membership();
            let patience = patience(membership, services.raft_id, services.timing);
            (metrics.state.is_leader(), patience)
        });
        if leads {
            services.heard_now();
            continue;
        }
        let silence = services.silence();
        // On a full disk a new leader's first entry would not fit.
        let may = silence >= patience && services.vitals.room() != Room::Critical;
        if may != may_elect {
            services.core.runtime_config().elect(may);
            may_elect = may;
        }
        let pause = services.timing.election_max;
        if silence >= pause * ASK_AFTER && asked.elapsed() >= pause {
            asked = Instant::now();
            ask(&services).await;
        }
    }
}

/// Asks every member something that only the leader answers; one that knows this node as removed says so at the
/// handshake, which [`Services`] takes note of.
async fn ask(services: &Services) {
    let Some(links) = &services.links else {
        return;
    };
    let members: Vec<u64> = services.metrics(|metrics| {
        let nodes = metrics.membership_config.nodes().map(|(id, _)| *id);
        nodes.filter(|id| *id != services.raft_id).collect()
    });
    let limit = services.timing.election_max;
    let asking = members.into_iter().map(|id| {
        let link = links.control(id);
        async move { link.call(Call::ReadIndex(true), limit).await }
    });
    // Answers do not matter: a leader that knows this node will be heard by itself.
    drop(join_all(asking).await);
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::types::PeerInfo;

    #[test]
    fn who_should_not_lead_waits() {
        let timing = Timing {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_secs(1),
        };
        let node = |version: &str, leader_ineligible| PeerInfo {
            version: version.to_owned(),
            leader_ineligible,
            ..PeerInfo::default()
        };
        let seconds = |nodes: &[PeerInfo]| {
            let nodes: BTreeMap<u64, PeerInfo> = (1..).zip(nodes.iter().cloned()).collect();
            let voters: BTreeSet<u64> = nodes.keys().copied().collect();
            let membership = Membership::new(vec![voters], nodes).unwrap();
            patience(&membership, 1, timing).as_secs()
        };
        for (what, nodes, want) in [
            (
                "equals",
                vec![node("1.0.0", false), node("1.0.0", false)],
                0,
            ),
            (
                "older",
                vec![node("1.9.0", false), node("1.10.0", false)],
                4,
            ),
            (
                "newest",
                vec![node("2.0.0", false), node("1.0.0", false)],
                0,
            ),
            (
                "ineligible",
                vec![node("2.0.0", true), node("1.0.0", false)],
                10,
            ),
            (
                "nobody is eligible",
                vec![node("1.0.0", true), node("1.0.0", true)],
                0,
            ),
            (
                "the newer one is not eligible",
                vec![node("1.0.0", false), node("2.0.0", true)],
                0,
            ),
            ("alone", vec![node("1.0.0", true)], 0),
            (
                "a version that is none",
                vec![node("x", false), node("1.0.0", false)],
                4,
            ),
        ] {
            assert_eq!(seconds(&nodes), want, "{what}");
        }
    }
}
