//! Carries out membership changes: those the leader plans by itself, and those it is asked for.
//!
//! Invariants
//! - One change at a time, each against the membership it was planned on (a precondition where one is given).
//! - Only the leader changes anything; a change that fails is planned anew from what is then true.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use openraft::{
    ChangeMembers, Precondition,
    async_runtime::WatchReceiver as _,
    errors::{ChangeMembershipError, ClientWriteError, ForwardToLeader, RaftError},
};

use crate::{
    error::MembershipError,
    plan::{Action, Progress, View, plan},
    services::{Services, age},
    types::{LogId, PeerInfo, TypeConfig},
};

/// Looks for something to do until cancelled.
pub(crate) async fn run(services: Services) {
    let mut last_why = String::new();
    loop {
        tokio::time::sleep(services.timing.heartbeat * 2).await;
        let Some((action, seen)) = next_action(&services) else {
            continue;
        };
        tracing::info!(?action, "changing the membership");
        let change = change_for(action);
        match change_with_limit(&services, change, seen).await {
            Ok(()) => last_why.clear(),
            Err(error) => {
                let why = error.to_string();
                if why != last_why {
                    tracing::warn!("a membership change did not work out: {why}");
                    last_why = why;
                }
            }
        }
    }
}

async fn change_with_limit(
    services: &Services,
    change: ChangeMembers<u64, PeerInfo>,
    seen: Option<LogId>,
) -> Result<(), MembershipError> {
    // A change that cannot commit must not keep the loop from seeing what is true later.
    let limit = services.timing.election_max * 5;
    tokio::time::timeout(limit, self::change(services, change, seen))
        .await
        .unwrap_or(Err(MembershipError::NoQuorum))
}

fn next_action(services: &Services) -> Option<(Action, Option<LogId>)> {
    let receiver = services.core.metrics();
    let metrics = receiver.borrow_watched();
    if !metrics.state.is_leader() {
        return None;
    }
    let stored = &metrics.membership_config;
    let committed = metrics.committed_membership_config.log_id();
    if stored.log_id() != committed {
        // A change is under way.
        return None;
    }
    let acks = metrics.heartbeat.as_ref()?;
    let matched = metrics.replication.as_ref()?;
    let progress: BTreeMap<u64, Progress> = stored
        .nodes()
        .map(|(id, _)| {
            let progress = Progress {
                matched: matched.get(id).copied().flatten().map(|id| id.index),
                ack_age: acks.get(id).copied().flatten().map(|acked| age(&acked)),
            };
            (*id, progress)
        })
        .collect();
    let action = plan(&View {
        leader: services.raft_id,
        membership: stored.membership(),
        progress: &progress,
        last_log: metrics.last_log_index.unwrap_or(0),
        fresh: services.timing.election_max,
    })?;
    Some((action, *stored.log_id()))
}

fn change_for(action: Action) -> ChangeMembers<u64, PeerInfo> {
    match action {
        // Adding nobody: openraft steps from the joint configuration to its second half.
        Action::FinishJoint => ChangeMembers::AddVoterIds(BTreeSet::new()),
        Action::DropLearner(id) => ChangeMembers::RemoveNodes(BTreeSet::from([id])),
        Action::RemoveVoters(ids) => ChangeMembers::RemoveVoters(ids.into_iter().collect()),
        Action::Promote { id, replaces } => ChangeMembers::Batch(vec![
            ChangeMembers::AddVoterIds(BTreeSet::from([id])),
            ChangeMembers::RemoveVoters(replaces.into_iter().collect()),
        ]),
    }
}

/// Makes one change and waits until it is committed. `seen`: fail unless this is the last membership.
///
/// Removed voters leave altogether; they do not stay as learners.
pub(crate) async fn change(
    services: &Services,
    change: ChangeMembers<u64, PeerInfo>,
    seen: Option<LogId>,
) -> Result<(), MembershipError> {
    let preconditions = seen.map(|id| Precondition::LastMembershipLogId {
        last_membership_log_id: Some(id),
    });
    services
        .core
        .change_membership_if(change, false, preconditions)
        .await
        .map(|_| ())
        .map_err(membership_error)
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
