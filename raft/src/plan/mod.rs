//! Autopilot's decisions: a pure function of what the leader sees.
//!
//! In: the membership, how far and how healthy each node is, the operator's settings. Out: at most one action.
//!
//! Rules, in order
//! 1. A change that a former leader left half done is finished.
//! 2. Of several nodes with one name the newest Raft id is meant: an older learner of that name is dropped.
//! 3. A voter that is marked as a non-voter gives up its vote.
//! 4. Nodes of a new version take over from those of an old one when there are enough of them ([`upgrade`]).
//! 5. A learner that may vote, has caught up and is stable, is promoted; a voter of its name leaves in the same change.
//!    A learner that may not vote takes its name's place likewise. Of a redundancy zone one votes ([`zones`]).
//! 6. Nodes that have been silent for long are removed, if the operator wants that.
//! 7. Leadership goes to a node that should rather have it ([`lead`]).
//!
//! Invariants (property-tested)
//! - Same view, same action; carrying the actions out ends in a state in which there is nothing left to do.
//! - The leader is never removed. After every action a majority of the voters answers, if one did before.
//! - A silent node is only removed while at least `min_quorum` voters stay.
//! - What was never heard of is not dead before a new leader has waited for it as long as for one that fell silent.
//!
//! Source: the shape, and the rule that a young leader does not wait for stability, are hashicorp/raft-autopilot's.

mod lead;
#[cfg(test)]
mod tests;
mod upgrade;
mod zones;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

pub use self::upgrade::UpgradeStatus;
pub(crate) use self::{
    lead::{Successor, successor, taken_over},
    upgrade::{look_at_versions, newer},
};
use crate::{
    error::MembershipError,
    types::{Membership, PeerInfo},
};

/// A learner this many entries behind, or fewer, has caught up.
pub(crate) const MAX_LAG: u64 = 100;
/// Nothing is weighed against redundancy below this many voters.
const ENOUGH: usize = 3;

/// What the operator wants of autopilot; names and defaults are Vault's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Autopilot {
    /// Whether silent nodes are removed.
    pub cleanup_dead_servers: bool,
    /// For how long a node must have been silent to be removed.
    pub dead_server_last_contact_threshold: Duration,
    /// A node silent for longer is not healthy.
    pub last_contact_threshold: Duration,
    /// A node further behind is not healthy; entries.
    pub max_trailing_logs: u64,
    /// Voters that must stay when silent ones are removed.
    pub min_quorum: u64,
    /// How long a node must have been healthy to get a vote.
    pub server_stabilization_time: Duration,
    /// Whether nodes of a new version are treated like any other.
    pub disable_upgrade_migration: bool,
}

impl Default for Autopilot {
    fn default() -> Self {
        Self {
            cleanup_dead_servers: false,
            dead_server_last_contact_threshold: Duration::from_secs(24 * 3600),
            last_contact_threshold: Duration::from_secs(10),
            max_trailing_logs: 1000,
            min_quorum: 0,
            server_stabilization_time: Duration::from_secs(10),
            disable_upgrade_migration: false,
        }
    }
}

/// How one member is doing, as the leader knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The last entry known to be on it.
    pub(crate) matched: Option<u64>,
    /// How long ago it answered.
    pub(crate) ack_age: Option<Duration>,
    /// How long it has been healthy without a break.
    pub(crate) healthy_for: Option<Duration>,
    /// How long it has been watched without being healthy.
    pub(crate) unhealthy_for: Option<Duration>,
}

/// What the leader sees.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) leader: u64,
    pub(crate) membership: Membership,
    pub(crate) progress: BTreeMap<u64, Progress>,
    pub(crate) last_log: u64,
    /// A member that answered this recently is there.
    pub(crate) fresh: Duration,
    /// How long this node has led.
    pub(crate) leader_age: Duration,
    /// Stands in for `autopilot` until that has been read.
    pub(crate) defaults: Autopilot,
    /// The operator's settings; `None`: not read yet, so nothing is done that they might forbid.
    pub(crate) autopilot: Option<Autopilot>,
    /// Whether leadership may be given away by autopilot now: not just after it came or was offered.
    pub(crate) may_transfer: bool,
    /// An operator named this node as the leader a while ago.
    pub(crate) is_chosen: bool,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Leave the joint configuration.
    FinishJoint,
    /// Remove a learner that another node of its name has taken over from.
    DropLearner(u64),
    /// Make a learner a voter and remove the voters it replaces.
    Promote { id: u64, replaces: Vec<u64> },
    /// Remove voters whose name now belongs to a node that does not vote.
    RemoveVoters(Vec<u64>),
    /// Give some the vote and take it from others, who stay as learners.
    Reshape { promote: Vec<u64>, demote: Vec<u64> },
    /// Remove a node that has been silent for too long.
    RemoveDead { id: u64, voter: bool },
    /// Hand leadership to this voter.
    Transfer(u64),
}

/// The next action, if any.
pub(crate) fn plan(view: &View) -> Option<Action> {
    if view.membership.get_joint_config().len() > 1 {
        return Some(Action::FinishJoint);
    }
    view.superseded_learner()
        .map(Action::DropLearner)
        .or_else(|| view.marked_voter())
        .or_else(|| upgrade::migrate(view))
        .or_else(|| view.promotion())
        .or_else(|| zones::surplus(view))
        .or_else(|| view.dead())
        .or_else(|| lead::better_leader(view).map(Action::Transfer))
}

impl View {
    pub(crate) fn settings(&self) -> &Autopilot {
        self.autopilot.as_ref().unwrap_or(&self.defaults)
    }

    pub(crate) fn voters(&self) -> BTreeSet<u64> {
        self.membership.voter_ids().collect()
    }

    fn learners(&self) -> impl Iterator<Item = u64> + '_ {
        self.membership.learner_ids()
    }

    pub(crate) fn info(&self, id: u64) -> Option<&PeerInfo> {
        self.membership.get_node(&id)
    }

    fn progress(&self, id: u64) -> Progress {
        self.progress.get(&id).copied().unwrap_or_default()
    }

    /// Whether `id` answers now. The leader does.
    pub(crate) fn answers(&self, id: u64) -> bool {
        let age = self.progress(id).ack_age;
        id == self.leader || age.is_some_and(|age| age <= self.fresh)
    }

    /// How long nothing has come from `id`; for one that was never heard of, as long as it has been listened for: a node that
    /// has joined a moment ago is not dead, however old its leader.
    pub(crate) fn silence(&self, id: u64) -> Duration {
        if id == self.leader {
            return Duration::ZERO;
        }
        let Progress {
            ack_age,
            unhealthy_for,
            ..
        } = self.progress(id);
        // One that was never heard of has never been healthy.
        ack_age.or(unhealthy_for).unwrap_or(self.leader_age)
    }

    /// Entries `id` lacks.
    pub(crate) fn lag(&self, id: u64) -> u64 {
        if id == self.leader {
            return 0;
        }
        let matched = self.progress(id).matched.unwrap_or(0);
        self.last_log.saturating_sub(matched)
    }

    fn has_caught_up(&self, id: u64) -> bool {
        self.answers(id) && self.progress(id).matched.is_some() && self.lag(id) <= MAX_LAG
    }

    /// Whether `id` has been healthy for `time`.
    fn healthy_for(&self, id: u64, time: Duration) -> bool {
        id == self.leader || self.progress(id).healthy_for.is_some_and(|age| age >= time)
    }

    /// Whether `id` may get a vote as far as its health goes. A leader too young to have watched for that long, and a
    /// cluster that has no redundancy yet, do not wait.
    fn is_stable(&self, id: u64) -> bool {
        let wanted = self.settings().server_stabilization_time;
        self.has_caught_up(id)
            && (self.voters().len() < ENOUGH
                || self.leader_age <= wanted.mul_f64(1.1)
                || self.healthy_for(id, wanted))
    }

    /// Whether a majority of `voters` answers.
    pub(crate) fn is_quorate(&self, voters: &BTreeSet<u64>) -> bool {
        let there = voters.iter().filter(|id| self.answers(**id)).count();
        !voters.is_empty() && there >= majority(voters.len())
    }

    fn superseded_learner(&self) -> Option<u64> {
        self.learners().find(|id| {
            let own = self.info(*id).map(|info| &info.name);
            *id != self.leader
                && self
                    .membership
                    .nodes()
                    .any(|(other, info)| other > id && Some(&info.name) == own)
        })
    }

    fn marked_voter(&self) -> Option<Action> {
        let voters = self.voters();
        let marked = |id: &u64| self.info(*id).is_some_and(|info| info.non_voter);
        let id = voters.iter().copied().find(|id| {
            marked(id) && *id != self.leader && self.is_quorate(&without(&voters, &[*id]))
        })?;
        Some(Action::Reshape {
            promote: Vec::new(),
            demote: vec![id],
        })
    }

    fn promotion(&self) -> Option<Action> {
        // Of several the newest version first: an older one may not be wanted any more then.
        let mut learners: Vec<u64> = self.learners().collect();
        learners.sort_by(|a, b| {
            let version = |id: &u64| self.info(*id).map(upgrade::version_of);
            version(b).cmp(&version(a)).then(a.cmp(b))
        });
        learners.into_iter().find_map(|id| self.take_place(id))
    }

    fn take_place(&self, id: u64) -> Option<Action> {
        if !self.has_caught_up(id) {
            return None;
        }
        let info = self.info(id)?;
        let named = |voter: &u64| self.info(*voter).is_some_and(|it| it.name == info.name);
        let replaces: Vec<u64> = self
            .membership
            .voter_ids()
            .filter(|voter| *voter < id && *voter != self.leader)
            .filter(named)
            .collect();
        if info.non_voter {
            let rest = without(&self.voters(), &replaces);
            let goes = !replaces.is_empty() && self.is_quorate(&rest);
            return goes.then_some(Action::RemoveVoters(replaces));
        }
        if !replaces.is_empty() {
            let mut after = without(&self.voters(), &replaces);
            after.insert(id);
            return self
                .is_quorate(&after)
                .then_some(Action::Promote { id, replaces });
        }
        if !self.is_stable(id) || upgrade::holds_back(self, id) {
            return None;
        }
        zones::promotion(self, id)
    }

    fn dead(&self) -> Option<Action> {
        let settings = self.autopilot.as_ref()?;
        let min_quorum = usize::try_from(settings.min_quorum).unwrap_or(usize::MAX);
        if !settings.cleanup_dead_servers || min_quorum < ENOUGH {
            return None;
        }
        let voters = self.voters();
        let is_dead = |id: &u64| self.silence(*id) > settings.dead_server_last_contact_threshold;
        if let Some(id) = self.learners().find(|id| *id != self.leader && is_dead(id)) {
            return Some(Action::RemoveDead { id, voter: false });
        }
        let id = voters.iter().copied().find(|id| {
            let rest = without(&voters, &[*id]);
            *id != self.leader && is_dead(id) && rest.len() >= min_quorum && self.is_quorate(&rest)
        })?;
        Some(Action::RemoveDead { id, voter: true })
    }

    /// Why the vote of `ids` cannot be given up, if it cannot.
    ///
    /// # Errors
    /// `Quorum`, in words for the operator.
    pub(crate) fn may_lose(&self, ids: &[u64]) -> Result<(), MembershipError> {
        let voters = self.voters();
        let rest = without(&voters, ids);
        if rest == voters {
            return Ok(());
        }
        if rest.is_empty() {
            return Err(MembershipError::Quorum(
                "it is the last voter: the cluster would be gone".to_owned(),
            ));
        }
        if self.is_quorate(&rest) {
            return Ok(());
        }
        let there = rest.iter().filter(|id| self.answers(**id)).count();
        Err(MembershipError::Quorum(format!(
            "it would leave {} voters, of which {there} answer now: fewer than the {} that a quorum needs",
            rest.len(),
            majority(rest.len()),
        )))
    }
}

/// Votes that decide among `voters`.
pub(crate) fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

fn without(voters: &BTreeSet<u64>, ids: &[u64]) -> BTreeSet<u64> {
    let stay = voters.iter().filter(|id| !ids.contains(id));
    stay.copied().collect()
}
