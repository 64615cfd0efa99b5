//! Read indexes from votes: a leader that a quorum of voters still stands by knows everything that was acknowledged.
//!
//! In: a reader that waits, on this node or on a follower. Out: a log index that covers every write acknowledged, and every
//! state read, before the reader came; or nothing, and openraft has to find one by a round of heartbeats to all.
//!
//! Why it holds. A node's vote only ever rises. Whoever was elected above this leader before the reader came got votes from a
//! quorum, one of which is in the quorum that is looked at here after the reader came; so that one's vote would be higher. (The two
//! quorums share a voter even when the membership has just changed: changes are made one after the other is committed.) Hence
//! nobody but this leader, and those before it, had anything acknowledged or applied.
//!
//! Invariants
//! - A vote is taken from the log, where it is before anyone is told of it; never from openraft's metrics, which lag behind.
//! - Only a leader elected in this process counts: one that has restarted may have forgotten what it had committed.
//! - The index covers what this node has applied, its own first entry at least, and what it has told others is committed.
//!
//! Source: Ongaro's dissertation §6.4; instead of exchanging a heartbeat, that a voter has not moved on is asked directly.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use openraft::async_runtime::WatchReceiver as _;
use tokio::time::timeout;

use crate::{
    log::LogStore,
    net::{Call, Links, Reply},
    proto::VoteProto,
    state::State,
    types::{Core, LeaderId, LogId},
};

/// What a leader can be confirmed by.
#[derive(Clone)]
pub(crate) struct Confirm(Arc<Inner>);

struct Inner {
    raft_id: u64,
    core: Core,
    log: LogStore,
    state: Arc<State>,
    links: Option<Arc<Links>>,
    /// How long the voters that are asked may take.
    patience: Duration,
    /// Which voter is asked first: one that did not answer is not asked again next time.
    first: AtomicUsize,
}

/// A leader's index, good if a quorum of `voters` stands by `vote`.
struct Claim {
    vote: LeaderId,
    index: u64,
    /// Voters of the newest membership, and those of the one before as long as it counts too.
    voters: Vec<BTreeSet<u64>>,
}

impl Claim {
    /// Of a node whose vote is `vote` and which leads by openraft's word as `leads`. `told`: see [`Links::told`].
    fn of(
        vote: LeaderId,
        leads: Option<LeaderId>,
        applied: Option<LogId>,
        told: u64,
        voters: Vec<BTreeSet<u64>>,
    ) -> Option<Self> {
        // After a restart the vote is still there, and the leader is not.
        let applied = applied.filter(|id| leads == Some(vote) && id.leader_id == vote)?;
        Some(Self {
            vote,
            index: applied.index.max(told),
            voters,
        })
    }

    fn is_proven_by(&self, standing: &[u64]) -> bool {
        let has_majority = |voters: &BTreeSet<u64>| {
            standing.iter().filter(|id| voters.contains(id)).count() > voters.len() / 2
        };
        !self.voters.is_empty() && self.voters.iter().all(has_majority)
    }
}

impl Confirm {
    pub(crate) fn new(
        raft_id: u64,
        core: Core,
        log: LogStore,
        state: Arc<State>,
        links: Option<Arc<Links>>,
        patience: Duration,
    ) -> Self {
        Self(Arc::new(Inner {
            raft_id,
            core,
            log,
            state,
            links,
            patience,
            first: AtomicUsize::new(0),
        }))
    }

    /// This node's vote, now.
    pub(crate) fn vote(&self) -> Option<VoteProto> {
        self.0.log.vote().as_ref().map(VoteProto::from)
    }

    /// The index, if that voter `id` stands by `vote` proves it. `id` said so after the reader came.
    pub(crate) fn by(&self, id: u64, vote: LeaderId) -> Option<u64> {
        let claim = self.claim().filter(|claim| claim.vote == vote)?;
        claim
            .is_proven_by(&[self.0.raft_id, id])
            .then_some(claim.index)
    }

    /// The index, after asking as many voters as are needed; `None` as well when one of them does not answer in time.
    pub(crate) async fn ask(&self) -> Option<u64> {
        let claim = self.claim()?;
        let standing = vec![self.0.raft_id];
        if claim.is_proven_by(&standing) {
            return Some(claim.index);
        }
        let proven = timeout(self.0.patience, self.is_proven(&claim, standing)).await;
        if proven == Ok(true) {
            return Some(claim.index);
        }
        self.0.first.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Asks voters besides those in `standing` whether they stand by the claim's vote.
    async fn is_proven(&self, claim: &Claim, mut standing: Vec<u64>) -> bool {
        let Some(links) = &self.0.links else {
            return false;
        };
        let others: BTreeSet<u64> = claim.voters.iter().flatten().copied().collect();
        let others: Vec<u64> = others
            .into_iter()
            .filter(|id| *id != self.0.raft_id)
            .collect();
        let first = self.0.first.load(Ordering::Relaxed) % others.len().max(1);
        let (before, from) = others.split_at_checked(first).unwrap_or((&others, &[]));
        let mut answers = FuturesUnordered::new();
        let mut asked = standing.clone();
        for id in from.iter().chain(before).copied() {
            if claim.is_proven_by(&asked) {
                break;
            }
            asked.push(id);
            let link = links.control(id);
            let limit = self.0.patience;
            answers.push(async move { (id, link.call(Call::Standing(true), limit).await) });
        }
        while let Some((id, answer)) = answers.next().await {
            match answer {
                Ok(Reply::Standing(vote)) if LeaderId::from(vote) == claim.vote => {
                    standing.push(id)
                }
                // It has moved on, or is of a version that does not know the question.
                Ok(_) | Err(_) => return false,
            }
            if claim.is_proven_by(&standing) {
                return true;
            }
        }
        false
    }

    /// What this node knows as a leader; `None`: it does not lead, or has not applied an entry of its own yet.
    fn claim(&self) -> Option<Claim> {
        let inner = &*self.0;
        let vote = inner.log.vote()?.leader_id;
        let (leads, voters) = {
            let metrics = inner.core.metrics();
            let metrics = metrics.borrow_watched();
            let leads = metrics.state.is_leader().then_some(metrics.vote.leader_id);
            (leads, metrics.membership_config.get_joint_config().clone())
        };
        let applied = inner.state.position().borrow().applied;
        let told = inner.links.as_ref().map_or(0, |links| links.told());
        Claim::of(vote, leads, applied, told, voters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::log_id;

    fn leader(term: u64, node_id: u64) -> LeaderId {
        LeaderId { term, node_id }
    }

    #[test]
    fn only_a_leader_of_this_life_that_has_applied_its_own_entry_claims_an_index() {
        let own = leader(3, 1);
        for (vote, leads, applied, told, index) in [
            (own, Some(own), Some(log_id(3, 1, 7)), 0, Some(7)),
            // A follower has applied what this node has not.
            (own, Some(own), Some(log_id(3, 1, 7)), 9, Some(9)),
            // Restarted: the vote is its own still.
            (own, None, Some(log_id(3, 1, 7)), 9, None),
            // What openraft says of itself lags behind its vote, for another or for itself again.
            (leader(4, 2), Some(own), Some(log_id(3, 1, 7)), 0, None),
            (leader(4, 1), Some(own), Some(log_id(3, 1, 7)), 0, None),
            // Entries of former leaders may be missing, its own included.
            (own, Some(own), Some(log_id(2, 2, 7)), 0, None),
            (own, Some(own), Some(log_id(2, 1, 7)), 9, None),
            (own, Some(own), None, 0, None),
        ] {
            let claim = Claim::of(vote, leads, applied, told, vec![BTreeSet::from([1])]);
            assert_eq!(
                claim.map(|claim| claim.index),
                index,
                "{vote:?} {leads:?} {applied:?} {told}"
            );
        }
    }

    #[test]
    fn a_quorum_of_every_set_of_voters_has_to_stand_by() {
        let sets = |sets: &[&[u64]]| {
            let sets = sets.iter().map(|set| set.iter().copied().collect());
            sets.collect::<Vec<BTreeSet<u64>>>()
        };
        for (voters, standing, proven) in [
            (sets(&[&[1]]), vec![1], true),
            (sets(&[&[1, 2]]), vec![1], false),
            (sets(&[&[1, 2, 3]]), vec![1], false),
            (sets(&[&[1, 2, 3]]), vec![1, 3], true),
            // A learner counts for nothing.
            (sets(&[&[1, 2, 3]]), vec![1, 4], false),
            (sets(&[&[1, 2, 3, 4]]), vec![1, 2], false),
            (sets(&[&[1, 2, 3, 4, 5]]), vec![1, 4, 5], true),
            (sets(&[&[1, 2, 3], &[1, 4, 5]]), vec![1, 2], false),
            (sets(&[&[1, 2, 3], &[1, 4, 5]]), vec![1, 2, 5], true),
            // A leader that is being removed.
            (sets(&[&[1, 2, 3], &[2, 3]]), vec![1, 2], false),
            (sets(&[]), vec![1], false),
        ] {
            let claim = Claim {
                vote: leader(1, 1),
                index: 0,
                voters,
            };
            let said = claim.is_proven_by(&standing);
            assert_eq!(said, proven, "{:?} {standing:?}", claim.voters);
        }
    }
}
