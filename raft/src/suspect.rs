//! Notices that the leader's process is gone, so that nobody has to wait until its lease runs out.
//!
//! In: connections from the leader that ended. Out: an election as soon as a majority has seen the same.
//!
//! When a process dies its kernel closes its connections at once, and refuses new ones on its port. A follower that sees
//! both ends *its own* lease and asks for a pre-vote. Whoever has not seen it still holds its lease and refuses, so one
//! follower's broken network elects nobody. A machine that vanished, and a process that hangs, close nothing: there the
//! lease runs out as before.
//!
//! Invariants
//! - Only an address that *refuses* the connection counts; silence, a reset or an answer do not.
//! - Nothing is decided here: this calls an election earlier, by Raft's own rules. Nothing is ever read by a lease, so
//!   ending one early costs stability at worst, never safety.
//!
//! Source: openraft `Raft::handle_transfer_leader`, which ends the lease of the leader named, and nothing else unless
//! this node is the target; dissertation §4.2.3 (disruptive servers), §9.6 (pre-vote).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use openraft::raft::TransferLeaderRequest;
use tokio::time::{Instant, sleep};

use crate::{
    net::{Dialer, Probe},
    services::Services,
    standing,
    tasks::Tasks,
    types::Vote,
};

/// Between two attempts to reach the leader: its listener may close a moment after its connections.
const PROBE_PAUSE: Duration = Duration::from_millis(10);
/// Between the first candidacies of two nodes, so that they do not meet.
const STAGGER: Duration = Duration::from_millis(15);

/// Looks into it when the leader's connections end.
pub(crate) struct Suspicion {
    services: Services,
    dialer: Arc<Dialer>,
    tasks: Tasks,
    /// One look at a time.
    looking: AtomicBool,
}

impl Suspicion {
    pub(crate) fn new(services: Services, dialer: Arc<Dialer>, tasks: Tasks) -> Self {
        Self {
            services,
            dialer,
            tasks,
            looking: AtomicBool::new(false),
        }
    }

    /// A connection from member `from` ended, for whatever reason.
    pub(crate) fn connection_ended(self: &Arc<Self>, from: u64) {
        let vote = self.services.metrics(|metrics| metrics.vote);
        if !follows(&vote, from, self.services.raft_id)
            || self.looking.swap(true, Ordering::Relaxed)
        {
            return;
        }
        let suspicion = Arc::clone(self);
        self.tasks.vital("suspicion", async move {
            suspicion.look_into(from, vote).await;
            suspicion.looking.store(false, Ordering::Relaxed);
        });
    }

    async fn look_into(&self, leader: u64, vote: Vote) {
        if !self.is_gone(leader, &vote).await {
            return;
        }
        tracing::info!(
            node = leader,
            "the leader's process is gone; asking for an election"
        );
        let core = &self.services.core;
        // Named as its own successor it ends the lease on it here, and does nothing else.
        let end_lease = TransferLeaderRequest::new(vote, leader, None);
        if core.handle_transfer_leader(end_lease).await.is_err() {
            // Raft has stopped, which its owner learns elsewhere.
            return;
        }
        self.campaign(leader, &vote).await;
    }

    /// Whether `leader`'s address refuses connections, and it still is the leader as far as this node knows.
    async fn is_gone(&self, leader: u64, vote: &Vote) -> bool {
        let until = Instant::now() + self.services.timing.heartbeat * 3;
        while Instant::now() < until {
            let probe = self
                .dialer
                .probe(leader, self.services.timing.heartbeat)
                .await;
            if self.services.metrics(|metrics| metrics.vote) != *vote {
                return false;
            }
            match probe {
                Probe::Refused => return true,
                Probe::Silent => return false,
                Probe::Answers => sleep(PROBE_PAUSE).await,
            }
        }
        false
    }

    /// Asks for a pre-vote until there is another leader, or openraft's own timer would have done so.
    async fn campaign(&self, old: u64, vote: &Vote) {
        let timing = self.services.timing;
        let (rank, voter) = self.services.metrics(|metrics| {
            let mut others: Vec<u64> = metrics
                .membership_config
                .voter_ids()
                .filter(|id| *id != old)
                .collect();
            others.sort_unstable();
            let rank = others.iter().position(|id| *id == self.services.raft_id);
            (
                u32::try_from(rank.unwrap_or(0)).unwrap_or(0),
                rank.is_some(),
            )
        });
        // Who should not lead has ended its lease above, and leaves the rest to the others.
        if !voter || !standing::may_campaign_at_once(&self.services) {
            return;
        }
        sleep(STAGGER * rank).await;
        let until = Instant::now() + timing.election_max;
        // An election that is under way gets time before the next one is called.
        let mut called: Option<(Vote, Instant)> = None;
        while Instant::now() < until {
            let now = self.services.metrics(|metrics| metrics.vote);
            if now.committed && now != *vote {
                return;
            }
            let under_way = called.is_some_and(|(of, since)| {
                of != *vote && of == now && since.elapsed() < timing.election_min
            });
            if !under_way {
                if self.services.core.trigger().elect(true).await.is_err() {
                    return;
                }
                called = Some((now, Instant::now()));
            }
            sleep(timing.heartbeat / 2 + STAGGER * rank).await;
        }
    }
}

/// Whether `vote` says that this node follows `leader`.
fn follows(vote: &Vote, leader: u64, own: u64) -> bool {
    vote.committed && vote.leader_id.node_id == leader && leader != own
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::LeaderId;

    #[test]
    fn only_the_leader_that_is_followed_is_looked_into() {
        let vote = |node_id, committed| Vote {
            leader_id: LeaderId { term: 3, node_id },
            committed,
        };
        for (vote, from, own, want) in [
            (vote(1, true), 1, 2, true),
            (vote(1, true), 3, 2, false),
            (vote(1, false), 1, 2, false),
            (vote(2, true), 2, 2, false),
        ] {
            assert_eq!(follows(&vote, from, own), want, "{vote:?} {from} {own}");
        }
    }
}
