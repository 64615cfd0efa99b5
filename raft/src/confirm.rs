//! Read indexes from votes: a leader that a quorum of voters still stands by knows everything that was acknowledged.
//!
//! In: a reader that waits, on this node or on a follower. Out: a log index that covers every write acknowledged, and every
//! state read, before the reader came; or nothing, and openraft has to find one by a round of heartbeats to all.
//!
//! Why it holds. A node's vote only ever rises. Whoever was elected above this leader before the reader came got votes from a
//! quorum, one of which is in the quorum that is looked at here after the reader came; so that one's vote would be higher. (The two
//! quorums share a voter even when the membership has just changed: each change waits until the one before is committed, and
//! openraft's metrics, where the voters are looked up, are at most one behind.) Hence nobody but this leader, and those before it, had
//! anything acknowledged or applied.
//!
//! Invariants
//! - A vote is taken from the log, where it is before anyone is told of it; never from the metrics, which lag behind.
//! - Only a leader elected in this process counts: one that has restarted may have forgotten what it had committed.
//! - The index covers all that anybody can have been shown: here, from the moment before it can be read; elsewhere, what this node has
//!   told others is committed. Its own first entry, and with it all of its predecessors', is applied.
//!
//! Source: Ongaro's dissertation §6.4; instead of exchanging a heartbeat, that a voter has not moved on is asked directly.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use openraft::async_runtime::WatchReceiver as _;
use tokio::time::{sleep, timeout};

use crate::{
    log::{LogStore, lock},
    net::{Call, Links, Reply},
    proto::VoteProto,
    state::State,
    types::{Core, LeaderId, LogId},
};

/// After this part of the patience a further voter is asked: longer than an answer takes, unless something is wrong.
const HEDGE: u32 = 8;
/// Every so many probes one voter more than needed is asked.
const COMPARED: u32 = 256;

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
    /// The voters of the last quorum, in the order of their answers.
    quickest: Mutex<Vec<u64>>,
    probes: AtomicU32,
}

/// A leader's index, good if a quorum of `voters` stands by `vote`.
struct Claim {
    vote: LeaderId,
    index: u64,
    /// Voters of the newest membership, and those of the one before as long as it counts too.
    voters: Vec<BTreeSet<u64>>,
}

impl Claim {
    /// Of a node whose vote is `vote` and which leads by openraft's word as `leads`. Everything up to `shown` may have been seen.
    fn of(
        vote: LeaderId,
        leads: Option<LeaderId>,
        applied: Option<LogId>,
        shown: u64,
        voters: Vec<BTreeSet<u64>>,
    ) -> Option<Self> {
        // After a restart the vote is still there, and the leader is not.
        let applied = applied.filter(|id| leads == Some(vote) && id.leader_id == vote)?;
        Some(Self {
            vote,
            index: applied.index.max(shown),
            voters,
        })
    }

    fn is_proven_by(&self, standing: &BTreeSet<u64>) -> bool {
        let has_majority =
            |voters: &BTreeSet<u64>| voters.intersection(standing).count() > voters.len() / 2;
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
            quickest: Mutex::default(),
            probes: AtomicU32::new(0),
        }))
    }

    /// This node's vote, now.
    pub(crate) fn vote(&self) -> Option<VoteProto> {
        self.0.log.vote().as_ref().map(VoteProto::from)
    }

    /// The index, if that voter `id`, another node, stands by `vote` proves it. `id` said so after the reader came.
    pub(crate) fn by(&self, id: u64, vote: LeaderId) -> Option<u64> {
        let claim = self.claim().filter(|claim| claim.vote == vote)?;
        let standing = BTreeSet::from([self.0.raft_id, id]);
        claim.is_proven_by(&standing).then_some(claim.index)
    }

    /// The index, after asking as many voters as are needed; `None` as well when too few of them answer in time.
    pub(crate) async fn ask(&self) -> Option<u64> {
        let claim = self.claim()?;
        let proven = timeout(self.0.patience, self.ask_voters(&claim)).await;
        (proven == Ok(true)).then_some(claim.index)
    }

    /// Whether enough voters stand by the claim's vote. Asks the quickest of the last time, and further ones when an answer is of no
    /// use or takes long.
    async fn ask_voters(&self, claim: &Claim) -> bool {
        let mut standing = BTreeSet::from([self.0.raft_id]);
        // Those asked of whom nothing is known yet are in it too.
        let mut hoped = standing.clone();
        let mut others = self.in_order(claim).into_iter();
        // All that have not refused.
        let mut possible: BTreeSet<u64> = others.clone().collect();
        possible.insert(self.0.raft_id);
        let mut quickest = Vec::new();
        let mut answers = FuturesUnordered::new();
        // Now and then one more than is needed: it may have become quicker.
        let probe = self.0.probes.fetch_add(1, Ordering::Relaxed);
        let compared = probe.is_multiple_of(COMPARED);
        if compared && let Some(id) = others.next_back() {
            answers.push(self.stands_by(id, claim.vote));
        }
        loop {
            if claim.is_proven_by(&standing) {
                if !quickest.is_empty() {
                    *lock(&self.0.quickest) = quickest;
                }
                return true;
            }
            while !claim.is_proven_by(&hoped)
                && let Some(id) = others.next()
            {
                hoped.insert(id);
                answers.push(self.stands_by(id, claim.vote));
            }
            tokio::select! {
                biased;
                answer = answers.next() => match answer {
                    Some((id, true)) => {
                        standing.insert(id);
                        quickest.push(id);
                    }
                    Some((id, false)) => {
                        hoped.remove(&id);
                        possible.remove(&id);
                        if !claim.is_proven_by(&possible) {
                            return false;
                        }
                    }
                    None => return false,
                },
                () = sleep(self.0.patience / HEDGE), if others.len() > 0 => {
                    if let Some(id) = others.next() {
                        hoped.insert(id);
                        answers.push(self.stands_by(id, claim.vote));
                    }
                }
            }
        }
    }

    /// Whether voter `id` has voted for nobody else since.
    async fn stands_by(&self, id: u64, vote: LeaderId) -> (u64, bool) {
        let Some(links) = &self.0.links else {
            return (id, false);
        };
        let link = links.control(id);
        let answer = link.call(Call::Standing(true), self.0.patience).await;
        // Anything else: it has moved on, or is of a version that does not know the question.
        let stands =
            matches!(answer, Ok(Reply::Standing(theirs)) if LeaderId::from(theirs) == vote);
        (id, stands)
    }

    /// The other voters, those to ask first in front.
    fn in_order(&self, claim: &Claim) -> Vec<u64> {
        let mut others: BTreeSet<u64> = claim.voters.iter().flatten().copied().collect();
        others.remove(&self.0.raft_id);
        let quickest = lock(&self.0.quickest).clone();
        let mut order: Vec<u64> = quickest
            .into_iter()
            .filter(|id| others.remove(id))
            .collect();
        order.extend(others);
        order
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
        let shown = inner.state.readable().max(told);
        Claim::of(vote, leads, applied, shown, voters)
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
        for (vote, leads, applied, shown, index) in [
            (own, Some(own), Some(log_id(3, 1, 7)), 0, Some(7)),
            // A reader may have seen more, here or on a follower.
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
            let claim = Claim::of(vote, leads, applied, shown, vec![BTreeSet::from([1])]);
            assert_eq!(
                claim.map(|claim| claim.index),
                index,
                "{vote:?} {leads:?} {applied:?} {shown}"
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
            let said = claim.is_proven_by(&standing.iter().copied().collect());
            assert_eq!(said, proven, "{:?} {standing:?}", claim.voters);
        }
    }
}
