//! Leadership, membership and autopilot: the API's words for them, and Raft's.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use strongroom_api::{
    autopilot::AutopilotConfig,
    ports::{AutopilotServer, AutopilotState, AutopilotUpgrade, ClusterError, PeerChange},
};
use strongroom_raft::{
    Autopilot, AutopilotStatus, MembershipError, Next, PeerInfo, Raft, ServerHealth, TransferError,
};

use super::{chain, node::Running};
use crate::clock;

/// The leader looks this often whether the settings are still those it goes by.
const LOOK: Duration = Duration::from_secs(10);

/// `sys/step-down`.
pub(super) async fn step_down(
    raft: &Raft,
    to: Option<String>,
    deadline: Instant,
) -> Result<(), ClusterError> {
    let next = to.map_or(Next::Best, Next::Named);
    raft.transfer_leader(next, deadline)
        .await
        .map_err(transfer_error)
}

/// `sys/storage/raft/remove-peer`, `promote` and `demote`. A leader whom it concerns makes another one first.
pub(super) async fn change_peer(
    raft: &Raft,
    change: PeerChange,
    name: &str,
    deadline: Instant,
) -> Result<(), ClusterError> {
    let changed = match change {
        PeerChange::Remove => raft.remove_node(name).await,
        PeerChange::Promote => raft.set_non_voter(name, false).await,
        PeerChange::Demote => raft.set_non_voter(name, true).await,
    };
    match changed {
        Ok(()) => Ok(()),
        Err(MembershipError::IsLeader) => {
            tracing::info!(
                ?change,
                "the leader is meant: another node takes over first"
            );
            raft.transfer_leader(Next::Best, deadline)
                .await
                .map_err(transfer_error)?;
            Err(ClusterError::NotLeader)
        }
        Err(error) => Err(membership_error(error)),
    }
}

fn transfer_error(error: TransferError) -> ClusterError {
    match error {
        TransferError::NotLeader => ClusterError::NotLeader,
        error @ (TransferError::NoTarget
        | TransferError::Unknown(_)
        | TransferError::LeadsAlready(_)
        | TransferError::NotVoter(_)
        | TransferError::Ineligible(_)
        | TransferError::Silent(_)
        | TransferError::Behind { .. }) => ClusterError::Refused(error.to_string()),
        error @ (TransferError::TimedOut | TransferError::Another { .. }) => {
            ClusterError::Unavailable(error.to_string())
        }
        error @ TransferError::Fatal(_) => ClusterError::Failed(chain(&error)),
    }
}

fn membership_error(error: MembershipError) -> ClusterError {
    match error {
        MembershipError::NotLeader { .. } | MembershipError::IsLeader => ClusterError::NotLeader,
        error @ (MembershipError::InProgress | MembershipError::NoQuorum) => {
            ClusterError::Unavailable(error.to_string())
        }
        error @ (MembershipError::NotMember(_)
        | MembershipError::Unknown(_)
        | MembershipError::Quorum(_)
        | MembershipError::Refused(_)) => ClusterError::Refused(error.to_string()),
        error @ MembershipError::Fatal(_) => ClusterError::Failed(chain(&error)),
    }
}

/// The operator's settings in Raft's terms.
pub(super) fn settings(config: &AutopilotConfig) -> Autopilot {
    Autopilot {
        cleanup_dead_servers: config.cleanup_dead_servers,
        dead_server_last_contact_threshold: Duration::from_secs(
            config.dead_server_last_contact_threshold,
        ),
        last_contact_threshold: Duration::from_secs(config.last_contact_threshold),
        max_trailing_logs: config.max_trailing_logs,
        min_quorum: config.min_quorum,
        server_stabilization_time: Duration::from_secs(config.server_stabilization_time),
        disable_upgrade_migration: config.disable_upgrade_migration,
    }
}

/// Keeps Raft's autopilot at the stored settings whenever this node leads.
pub(super) async fn follow_settings(running: Arc<Running>) {
    let mut role = running.raft.watch();
    let mut last_why = String::new();
    loop {
        let leads = role.borrow_and_update().is_ready_leader;
        if let Some(core) = running.core().filter(|_| leads) {
            match AutopilotConfig::load(core.storage()).await {
                Ok((config, _)) => {
                    running.raft.set_autopilot(settings(&config));
                    last_why.clear();
                }
                Err(error) => {
                    let why = chain(&error);
                    if why != last_why {
                        tracing::error!("autopilot goes on without its settings: {why}");
                        last_why = why;
                    }
                }
            }
        }
        // A time-out only means: look again.
        if let Ok(Err(_stopped)) = tokio::time::timeout(LOOK, role.changed()).await {
            return;
        }
    }
}

/// The version a member counts as.
pub(super) fn upgrade_version(info: &PeerInfo) -> String {
    if info.upgrade_version.is_empty() {
        info.version.clone()
    } else {
        info.upgrade_version.clone()
    }
}

/// The leader's view in the API's terms.
pub(super) fn state(status: AutopilotStatus, now_ms: u64) -> AutopilotState {
    let names = |ids: &[u64]| -> Vec<String> {
        let named = |id: &u64| {
            let server = status.servers.iter().find(|server| server.raft_id == *id);
            server.map(|server| server.info.name.clone())
        };
        ids.iter().filter_map(named).collect()
    };
    let upgrade = &status.upgrade;
    AutopilotState {
        upgrade: AutopilotUpgrade {
            status: upgrade.status.to_owned(),
            target_version: upgrade.target_version.clone(),
            target_voters: names(&upgrade.target_voters),
            target_non_voters: names(&upgrade.target_non_voters),
            other_voters: names(&upgrade.other_voters),
            other_non_voters: names(&upgrade.other_non_voters),
        },
        servers: status
            .servers
            .iter()
            .map(|one| server(one, now_ms))
            .collect(),
        failure_tolerance: status.failure_tolerance,
    }
}

fn server(server: &ServerHealth, now_ms: u64) -> AutopilotServer {
    let stable = u64::try_from(server.stable_for.as_millis()).unwrap_or(u64::MAX);
    AutopilotServer {
        name: server.info.name.clone(),
        cluster_addr: server.info.cluster_addr.clone(),
        version: server.info.version.clone(),
        upgrade_version: upgrade_version(&server.info),
        redundancy_zone: server.info.redundancy_zone.clone(),
        alive: server.alive,
        healthy: server.healthy,
        leader: server.leader,
        voter: server.voter,
        non_voter: server.info.non_voter,
        last_contact: server.last_contact,
        last_term: server.last_term,
        last_index: server.last_index,
        stable_since: clock::rfc3339(now_ms.saturating_sub(stable)),
    }
}
