//! What a node does for its peers and for itself on top of openraft: read indexes, announcements, facts about the
//! membership.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use openraft::{
    ReadPolicy,
    async_runtime::WatchReceiver as _,
    errors::{LinearizableReadError, RaftError},
};

use crate::{
    autopilot::Tracker,
    confirm::Confirm,
    error::MembershipError,
    figures::figures,
    net::{Call, CallError, HealthReply, Links, Reply},
    plan::View,
    proto::PeerProto,
    reads::{ProbeError, ReadBatcher},
    reconcile,
    start::Timing,
    tasks::Tasks,
    types::{Core, LeaderId, Metrics, PeerInfo},
    vitals::{Health, Vitals},
};

/// Shared by the facade and the accepting side of the network.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) raft_id: u64,
    pub(crate) core: Core,
    pub(crate) links: Option<Arc<Links>>,
    pub(crate) timing: Timing,
    pub(crate) vitals: Arc<Vitals>,
    /// What autopilot remembers.
    pub(crate) tracker: Arc<Tracker>,
    /// When something last came from a leader, milliseconds after `started`.
    heard: Arc<AtomicU64>,
    started: Instant,
    confirm: Confirm,
    /// Asks this node's own quorum.
    leader_reads: ReadBatcher,
    /// Asks the leader.
    follower_reads: ReadBatcher,
}

/// Election time-outs without a leader after which it is no election any more, but a node that is cut off or a cluster
/// without a quorum.
const LOST: u32 = 5;

impl Services {
    pub(crate) fn new(
        raft_id: u64,
        core: Core,
        confirm: Confirm,
        links: Option<Arc<Links>>,
        timing: Timing,
        tasks: &Tasks,
    ) -> Self {
        let limit = timing.election_max;
        let (own, votes) = (core.clone(), confirm.clone());
        let leader_reads = ReadBatcher::spawn(
            move || probe_quorum(own.clone(), votes.clone()),
            limit,
            &figures().quorum_probe,
            tasks,
        );
        let (theirs, votes, dial) = (core.clone(), confirm.clone(), links.clone());
        let follower_reads = ReadBatcher::spawn(
            move || ask_leader(theirs.clone(), votes.clone(), dial.clone(), limit),
            limit,
            &figures().leader_probe,
            tasks,
        );
        Self {
            raft_id,
            core,
            links,
            timing,
            vitals: Arc::default(),
            tracker: Arc::default(),
            heard: Arc::default(),
            started: Instant::now(),
            confirm,
            leader_reads,
            follower_reads,
        }
    }

    /// The cluster as autopilot sees it; `None` on a node that does not lead.
    pub(crate) fn view(&self) -> Option<View> {
        self.metrics(|metrics| self.tracker.view(metrics, self.timing))
    }

    /// Something came from a leader, or this node leads.
    pub(crate) fn heard_now(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(now, Ordering::Relaxed);
    }

    fn heard_at(&self) -> Instant {
        self.started + Duration::from_millis(self.heard.load(Ordering::Relaxed))
    }

    /// How long nothing has come from a leader; since the start, if nothing ever has.
    pub(crate) fn silence(&self) -> Duration {
        self.heard_at().elapsed()
    }

    /// Whether this node leads and its quorum answers, or a leader was heard of lately.
    pub(crate) fn has_leader(&self) -> bool {
        let longest = self.timing.election_max * LOST;
        let quorum = self.metrics(|metrics| {
            let alone = metrics.membership_config.voter_ids().eq([metrics.id]);
            let acked = metrics.last_quorum_acked.as_ref().filter(|_| !alone);
            let leads = metrics.state.is_leader();
            leads.then(|| acked.map(age).unwrap_or_default())
        });
        quorum.unwrap_or_else(|| self.silence()) < longest
    }

    /// In whose words this node was removed from the cluster, if that is certain.
    pub(crate) fn removed(&self) -> Option<String> {
        let links = self.links.as_ref()?;
        let said = links.dialer.removals(self.heard_at())?;
        let for_long = said.last.duration_since(said.first) >= self.timing.election_max * 2;
        for_long.then_some(said.reason)
    }

    /// Reads openraft's metrics without holding them.
    pub(crate) fn metrics<T>(&self, read: impl FnOnce(&Metrics) -> T) -> T {
        read(&self.core.metrics().borrow_watched())
    }

    pub(crate) fn leads(&self) -> bool {
        self.metrics(|metrics| metrics.state.is_leader())
    }

    /// Whether this node leads and a quorum has confirmed it within one election time-out.
    pub(crate) fn leads_with_quorum(&self) -> bool {
        self.metrics(|metrics| {
            metrics.state.is_leader()
                && metrics
                    .last_quorum_acked
                    .is_some_and(|acked| age(&acked) < self.timing.election_max)
        })
    }

    /// An index that covers every write acknowledged before the call.
    pub(crate) async fn read_index(&self) -> Result<u64, ProbeError> {
        if self.leads() {
            self.leader_reads.read().await
        } else {
            self.follower_reads.read().await
        }
    }

    /// A peer connected: if its log stream waits in a back-off, that ends now.
    pub(crate) async fn peer_is_back(&self, id: u64) {
        if self.leads() {
            // An error means that Raft has stopped, which its owner learns elsewhere.
            drop(self.core.trigger().reset_backoff([id]).await);
        }
    }

    /// `standing`: the voter that asks, and its vote.
    pub(crate) async fn answer_read_index(&self, standing: Option<(u64, LeaderId)>) -> Reply {
        if let Some(index) = standing.and_then(|(id, vote)| self.confirm.by(id, vote)) {
            return Reply::ReadIndex(index);
        }
        if !self.leads() {
            return Reply::NotLeader(true);
        }
        match self.leader_reads.read().await {
            Ok(index) => Reply::ReadIndex(index),
            Err(ProbeError::NoLeader | ProbeError::NoQuorum) => Reply::NotLeader(true),
            Err(error @ ProbeError::Fatal(_)) => Reply::Failed(error.to_string()),
        }
    }

    pub(crate) fn answer_standing(&self) -> Reply {
        match self.confirm.vote() {
            Some(vote) => Reply::Standing(vote),
            None => Reply::Failed("the node has not voted yet".to_owned()),
        }
    }

    pub(crate) async fn answer_announce(&self, from: u64, info: PeerProto) -> Reply {
        match self.set_info(from, info.into()).await {
            Ok(()) => Reply::Announced(true),
            Err(MembershipError::NotLeader { .. }) => Reply::NotLeader(true),
            Err(error) => Reply::Failed(error.to_string()),
        }
    }

    pub(crate) async fn answer_leave(&self, from: u64) -> Reply {
        match reconcile::remove(self, |id, _| id == from).await {
            Ok(()) => Reply::Done(true),
            Err(MembershipError::NotLeader { .. }) => Reply::NotLeader(true),
            Err(error) => Reply::Failed(error.to_string()),
        }
    }

    /// Puts member `id`'s facts on record; the leader only. Its name never changes, and whether it may vote is the
    /// operator's decision after it has joined.
    pub(crate) async fn set_info(&self, id: u64, info: PeerInfo) -> Result<(), MembershipError> {
        self.update(id, |known| {
            if known.name != info.name {
                return Err(MembershipError::Refused(format!(
                    "node {id} is named `{}`",
                    known.name
                )));
            }
            Ok(PeerInfo {
                non_voter: known.non_voter,
                ..info.clone()
            })
        })
        .await
    }

    /// Changes what is on record about member `id`; the leader only.
    pub(crate) async fn update(
        &self,
        id: u64,
        change: impl Fn(&PeerInfo) -> Result<PeerInfo, MembershipError>,
    ) -> Result<(), MembershipError> {
        loop {
            let (known, seen) = self.metrics(|metrics| {
                let stored = &metrics.membership_config;
                (stored.get_node(&id).cloned(), *stored.log_id())
            });
            if !self.leads() {
                return Err(MembershipError::NotLeader {
                    leader: self.leader(),
                });
            }
            let known = known.ok_or(MembershipError::NotMember(id))?;
            let info = change(&known)?;
            if known == info {
                return Ok(());
            }
            let change = openraft::ChangeMembers::SetNodes(BTreeMap::from([(id, info)]));
            match reconcile::change(self, change, true, seen).await {
                // Another change is under way; the caller's limit bounds the wait for it.
                Err(MembershipError::InProgress) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                result => return result,
            }
        }
    }

    /// The leader's Raft id, if known.
    pub(crate) fn leader(&self) -> Option<u64> {
        self.metrics(|metrics| known_leader(metrics, self.timing))
    }

    fn is_on_record(&self, info: &PeerInfo) -> bool {
        self.metrics(|metrics| {
            let known = metrics.membership_config.get_node(&self.raft_id);
            known.is_some_and(|known| {
                let info = PeerInfo {
                    non_voter: known.non_voter,
                    ..info.clone()
                };
                *known == info
            })
        })
    }

    /// Asks the leader to remove this node.
    pub(crate) async fn leave(&self) -> Result<(), MembershipError> {
        let leader = self.leader().filter(|leader| *leader != self.raft_id);
        let (Some(links), Some(id)) = (&self.links, leader) else {
            return Err(MembershipError::NotLeader { leader });
        };
        let limit = self.timing.election_max * 5;
        match links.control(id).call(Call::Leave(true), limit).await {
            Ok(Reply::Done(_)) => Ok(()),
            Ok(Reply::Failed(why)) => Err(MembershipError::Refused(why)),
            Ok(_) => Err(MembershipError::NotLeader { leader }),
            Err(_) => Err(MembershipError::NoQuorum),
        }
    }

    /// How fit member `id` says it is; `None`: it does not say.
    pub(crate) async fn health_of(&self, id: u64, limit: Duration) -> Option<Health> {
        self.ask_health(id, limit).await.map(Health::from)
    }

    /// The newest command format that member `id` says it can apply; 0: it does not say.
    pub(crate) async fn command_format(&self, id: u64, limit: Duration) -> u32 {
        let said = self.ask_health(id, limit).await;
        said.map_or(0, |said| said.command_format)
    }

    async fn ask_health(&self, id: u64, limit: Duration) -> Option<HealthReply> {
        let link = self.links.as_ref()?.control(id);
        match link.call(Call::Health(true), limit).await {
            Ok(Reply::Health(health)) => Some(health),
            // An older version does not know the question.
            Ok(_) | Err(_) => None,
        }
    }

    /// Tells the leader how this node is reached.
    pub(crate) async fn announce(&self, info: PeerInfo) -> Result<(), MembershipError> {
        if self.leads() {
            return self.set_info(self.raft_id, info).await;
        }
        if self.is_on_record(&info) {
            return Ok(());
        }
        let leader = self.leader();
        let (Some(links), Some(id)) = (&self.links, leader) else {
            return Err(MembershipError::NotLeader { leader });
        };
        let call = Call::Announce(info.into());
        match links.control(id).call(call, self.timing.election_max).await {
            Ok(Reply::Announced(_)) => Ok(()),
            Ok(Reply::Failed(why)) => Err(MembershipError::Refused(why)),
            Ok(_) => Err(MembershipError::NotLeader { leader }),
            Err(
                CallError::Unreachable(_)
                | CallError::Busy
                | CallError::TimedOut
                | CallError::Broken,
            ) => Err(MembershipError::NoQuorum),
        }
    }
}

/// The leader as far as this node can tell. Itself only while it does lead and its quorum answers: openraft goes on
/// naming a node that has restarted, or that has lost its quorum.
pub(crate) fn known_leader(metrics: &Metrics, timing: Timing) -> Option<u64> {
    let leads = metrics.state.is_leader() && quorum_answers(metrics, timing);
    metrics
        .current_leader
        .filter(|leader| *leader != metrics.id || leads)
}

/// Whether a leader's quorum has answered it lately; true as well before its first answer.
pub(crate) fn quorum_answers(metrics: &Metrics, timing: Timing) -> bool {
    let alone = metrics.membership_config.voter_ids().eq([metrics.id]);
    let heard = metrics
        .last_quorum_acked
        .is_none_or(|acked| age(&acked) < timing.election_max * 2);
    alone || heard
}

/// Time since an instant of openraft's.
pub(crate) fn age(instant: &openraft::alias::SerdeInstantOf<crate::types::TypeConfig>) -> Duration {
    use openraft::Instant as _;
    instant.elapsed()
}

async fn probe_quorum(core: Core, confirm: Confirm) -> Result<u64, ProbeError> {
    if let Some(index) = confirm.ask().await {
        return Ok(index);
    }
    match core.get_read_linearizer(ReadPolicy::ReadIndex).await {
        Ok(linearizer) => Ok(linearizer.read_log_id().index()),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => {
            Err(ProbeError::NoLeader)
        }
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
            Err(ProbeError::NoQuorum)
        }
        Err(RaftError::Fatal(fatal)) => Err(ProbeError::Fatal(fatal.to_string())),
    }
}

async fn ask_leader(
    core: Core,
    confirm: Confirm,
    links: Option<Arc<Links>>,
    limit: Duration,
) -> Result<u64, ProbeError> {
    let (own, leader) = {
        let metrics = core.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.id, metrics.current_leader)
    };
    // After a restart openraft may still name this node, whose own word would count for nothing.
    let leader = leader.filter(|leader| *leader != own);
    let (Some(links), Some(leader)) = (links, leader) else {
        return Err(ProbeError::NoLeader);
    };
    let link = links.control(leader);
    let mut answer = match confirm.vote() {
        Some(vote) => link.call(Call::ReadAs(vote), limit).await,
        None => link.call(Call::ReadIndex(true), limit).await,
    };
    // A leader of an older version.
    if matches!(answer, Ok(Reply::Failed(_))) {
        answer = link.call(Call::ReadIndex(true), limit).await;
    }
    match answer {
        Ok(Reply::ReadIndex(index)) => Ok(index),
        Ok(_) => Err(ProbeError::NoLeader),
        Err(_) => Err(ProbeError::NoQuorum),
    }
}
