//! Carries out membership changes: those the leader plans by itself, and those it is asked for.
//!
//! Invariants
//! - One change at a time, each against the membership it was planned on (a precondition where one is given).
//! - Only the leader changes anything; a change that fails is planned anew from what is then true.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use openraft::{
    ChangeMembers, Precondition,
    errors::{ChangeMembershipError, ClientWriteError, ForwardToLeader, RaftError},
};
use tokio::sync::watch;

use crate::{
    error::MembershipError,
    plan::{Action, Successor, View, plan},
    raft::{Pace, Role},
    services::Services,
    transfer::transfer,
    types::{LogId, PeerInfo, TypeConfig},
    vitals::Room,
};

/// Looks for something to do until cancelled.
pub(crate) async fn run(services: Services, role: watch::Receiver<Role>, pace: Pace) {
    let mut last_why = String::new();
    let mut last_change: Option<Instant> = None;
    loop {
        let pause = pace.update.unwrap_or(services.timing.heartbeat * 2);
        tokio::time::sleep(pause).await;
        let Some((action, seen)) = next_action(&services) else {
            continue;
        };
        // What is half done is finished at once.
        let waits = |since: Instant| pace.reconcile.is_some_and(|pace| since.elapsed() < pace);
        if action != Action::FinishJoint && last_change.is_some_and(waits) {
            continue;
        }
        last_change = Some(Instant::now());
        let why = match carry_out(&services, &role, action, seen).await {
            Ok(()) => String::new(),
            Err(why) => why,
        };
        if why != last_why && !why.is_empty() {
            tracing::warn!("{why}");
        }
        last_why = why;
    }
}

async fn carry_out(
    services: &Services,
    role: &watch::Receiver<Role>,
    action: Action,
    seen: Option<LogId>,
) -> Result<(), String> {
    if let Action::Transfer(to) = action {
        return give_away(services, role, to).await;
    }
    tracing::info!(?action, "changing the membership");
    let (change, retain) = change_for(action);
    change_with_limit(services, change, retain, seen)
        .await
        .map_err(|error| format!("a membership change did not work out: {error}"))
}

/// Autopilot's own hand-over, to a node that should rather lead.
async fn give_away(
    services: &Services,
    role: &watch::Receiver<Role>,
    to: u64,
) -> Result<(), String> {
    if let Some(health) = services.health_of(to, services.timing.heartbeat * 2).await
        && health.room != Room::Plenty
    {
        services.tracker.transferred(false);
        return Err(format!(
            "node {to} should rather lead, but its disk is nearly full"
        ));
    }
    tracing::info!(to, "another node should lead");
    // Before: this node may lead again before it comes to saying so.
    services.tracker.transferred(true);
    let deadline = Instant::now() + services.timing.election_max * 3;
    let result = transfer(services, role.clone(), &Successor::Best, deadline).await;
    result.map_err(|error| {
        services.tracker.transferred(false);
        format!("leadership was not handed over: {error}")
    })
}

async fn change_with_limit(
    services: &Services,
    change: ChangeMembers<u64, PeerInfo>,
    retain: bool,
    seen: Option<LogId>,
) -> Result<(), MembershipError> {
    // A change that cannot commit must not keep the loop from seeing what is true later.
    let limit = services.timing.election_max * 5;
    tokio::time::timeout(limit, self::change(services, change, retain, seen))
        .await
        .unwrap_or(Err(MembershipError::NoQuorum))
}

/// The view, and the log id of its membership; `None` on a node that does not lead, or while a change is under way.
fn settled_view(services: &Services) -> Option<(View, Option<LogId>)> {
    services.metrics(|metrics| {
        let stored = &metrics.membership_config;
        let view = services.tracker.view(metrics, services.timing)?;
        let settled = stored.log_id() == metrics.committed_membership_config.log_id();
        settled.then(|| (view, *stored.log_id()))
    })
}

fn next_action(services: &Services) -> Option<(Action, Option<LogId>)> {
    let (view, seen) = settled_view(services)?;
    Some((plan(&view)?, seen))
}

/// openraft's form of it, and whether voters that lose their vote stay as learners.
fn change_for(action: Action) -> (ChangeMembers<u64, PeerInfo>, bool) {
    let set = |ids: Vec<u64>| ids.into_iter().collect::<BTreeSet<u64>>();
    match action {
        // Adding nobody: openraft steps from the joint configuration to its second half. Who loses the vote stays as a
        // learner, since nobody knows any more whether it was to leave; a replaced one is dropped next.
        Action::FinishJoint | Action::Transfer(_) => {
            (ChangeMembers::AddVoterIds(BTreeSet::new()), true)
        }
        Action::DropLearner(id) | Action::RemoveDead { id, voter: false } => {
            (ChangeMembers::RemoveNodes(set(vec![id])), true)
        }
        Action::RemoveVoters(ids) => (ChangeMembers::RemoveVoters(set(ids)), false),
        Action::RemoveDead { id, voter: true } => {
            (ChangeMembers::RemoveVoters(set(vec![id])), false)
        }
        Action::Promote { id, replaces } => (
            ChangeMembers::Batch(vec![
                ChangeMembers::AddVoterIds(set(vec![id])),
                ChangeMembers::RemoveVoters(set(replaces)),
            ]),
            false,
        ),
        Action::Reshape { promote, demote } => (
            ChangeMembers::Batch(vec![
                ChangeMembers::AddVoterIds(set(promote)),
                ChangeMembers::RemoveVoters(set(demote)),
            ]),
            true,
        ),
    }
}

/// Makes one change and waits until it is committed. `seen`: fail unless this is the last membership. `retain`: voters
/// that lose their vote stay as learners.
pub(crate) async fn change(
    services: &Services,
    change: ChangeMembers<u64, PeerInfo>,
    retain: bool,
    seen: Option<LogId>,
) -> Result<(), MembershipError> {
    let preconditions = seen.map(|id| Precondition::LastMembershipLogId {
        last_membership_log_id: Some(id),
    });
    services
        .core
        .change_membership_if(change, retain, preconditions)
        .await
        .map(|_| ())
        .map_err(membership_error)
}

/// Tries `attempt` against the newest membership until no other change gets in its way; the caller bounds the time.
///
/// In the view, only who has answered since the call is there: one that has just died must not be counted on. So a
/// quorum is waited for, as long as a node that is well takes to answer.
async fn settled<F>(
    services: &Services,
    attempt: impl Fn(View, Option<LogId>) -> F,
) -> Result<(), MembershipError>
where
    F: Future<Output = Result<(), MembershipError>>,
{
    let started = Instant::now();
    let patience = services.timing.election_max;
    loop {
        if !services.leads() {
            return Err(MembershipError::NotLeader {
                leader: services.leader(),
            });
        }
        if let Some((mut view, seen)) = settled_view(services) {
            view.fresh = view.fresh.min(started.elapsed());
            match attempt(view, seen).await {
                Err(MembershipError::InProgress) => {}
                Err(MembershipError::Quorum(_)) if started.elapsed() < patience => {}
                result => return result,
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Members for which `which` holds.
fn chosen(view: &View, which: impl Fn(u64, &PeerInfo) -> bool) -> Vec<u64> {
    let members = view.membership.nodes();
    members
        .filter(|(id, info)| which(**id, info))
        .map(|(id, _)| *id)
        .collect()
}

/// Removes members, voters or not; the leader only.
///
/// # Errors
/// `Refused` when the rest would have no quorum; `IsLeader`.
pub(crate) async fn remove(
    services: &Services,
    which: impl Fn(u64, &PeerInfo) -> bool,
) -> Result<(), MembershipError> {
    settled(services, |view, seen| {
        let ids = chosen(&view, &which);
        async move {
            if ids.is_empty() {
                // Gone already, by the first copy of this request for one; the caller has looked before.
                return Ok(());
            }
            view.may_lose(&ids)?;
            if ids.contains(&view.leader) {
                return Err(MembershipError::IsLeader);
            }
            let voters = view.voters();
            let (voters, learners): (BTreeSet<u64>, BTreeSet<u64>) =
                ids.into_iter().partition(|id| voters.contains(id));
            tracing::info!(?voters, ?learners, "removing members");
            let batch = ChangeMembers::Batch(vec![
                ChangeMembers::RemoveNodes(learners),
                ChangeMembers::RemoveVoters(voters),
            ]);
            change(services, batch, false, seen).await
        }
    })
    .await
}

/// Takes a member's vote for good, or lets it have one again; the leader only.
///
/// # Errors
/// `Refused` when there is nothing to change, or when the rest would have no quorum; `IsLeader`.
pub(crate) async fn set_non_voter(
    services: &Services,
    name: &str,
    non_voter: bool,
) -> Result<(), MembershipError> {
    settled(services, |view, seen| {
        // The newest of its name is meant.
        let id = chosen(&view, |_, info| info.name == name).pop();
        async move {
            let id = id.ok_or_else(|| MembershipError::Unknown(name.to_owned()))?;
            let info = view.info(id).cloned().unwrap_or_default();
            if info.non_voter == non_voter {
                let why = if non_voter {
                    "is a non-voter already"
                } else {
                    "is not a non-voter"
                };
                return Err(MembershipError::Refused(format!("node `{name}` {why}")));
            }
            if non_voter {
                view.may_lose(&[id])?;
                if id == view.leader {
                    return Err(MembershipError::IsLeader);
                }
            }
            let marked = PeerInfo { non_voter, ..info };
            let mut batch = vec![ChangeMembers::SetNodes(BTreeMap::from([(id, marked)]))];
            if non_voter {
                batch.push(ChangeMembers::RemoveVoters(BTreeSet::from([id])));
            }
            tracing::info!(id, name, non_voter, "changing who may vote");
            change(services, ChangeMembers::Batch(batch), true, seen).await
        }
    })
    .await
}

/// Takes a Raft id that was never used and never will be again, and adds its node as a learner.
pub(crate) async fn add_node(services: &Services, info: PeerInfo) -> Result<u64, MembershipError> {
    let blank = services
        .core
        .write_blank()
        .await
        .map_err(membership_error)?;
    let id = blank.log_id.index;
    loop {
        let added = services.core.add_learner(id, info.clone(), false).await;
        match added.map_err(membership_error) {
            Ok(_) => return Ok(id),
            Err(MembershipError::InProgress) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

type WriteError = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

fn membership_error(error: WriteError) -> MembershipError {
    match error {
        RaftError::Fatal(fatal) => MembershipError::Fatal(fatal.to_string()),
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => not_leader(&forward),
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => MembershipError::NoQuorum,
        RaftError::APIError(ClientWriteError::PreconditionFailed(_)) => MembershipError::InProgress,
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
            ChangeMembershipError::InProgress(_)
            | ChangeMembershipError::UncommittedLeaderLog(_) => MembershipError::InProgress,
            error @ (ChangeMembershipError::EmptyMembership(_)
            | ChangeMembershipError::LearnerNotFound(_)
            | ChangeMembershipError::UnsupportedMembershipTransition(_)
            | ChangeMembershipError::NodeMetadataChanged(_)) => {
                MembershipError::Refused(error.to_string())
            }
        },
    }
}

fn not_leader(forward: &ForwardToLeader<TypeConfig>) -> MembershipError {
    match forward.reason {
        openraft::errors::ForwardReason::LeaseExpired => MembershipError::NoQuorum,
        openraft::errors::ForwardReason::NotLeader
        | openraft::errors::ForwardReason::LeadershipTransfer => MembershipError::NotLeader {
            leader: forward.leader_id,
        },
    }
}
