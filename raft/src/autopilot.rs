//! What autopilot remembers between its looks at the cluster, and what it shows of it.
//!
//! In: openraft's metrics on the leader, the operator's settings. Out: the [`View`] decisions are made on; the health of
//! every member for `autopilot/state`.
//!
//! Invariants
//! - Nothing remembered outlives this node's leadership, except that an operator chose it as the leader.
//! - What is known of a member starts anew with each election: openraft's answers exist on the leader only.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{
    log::lock,
    plan::{Autopilot, Progress, UpgradeStatus, View, look_at_versions, majority},
    services::age,
    start::Timing,
    types::{LogId, Metrics, PeerInfo},
};

/// Pause between hand-overs that autopilot makes by itself.
const BETWEEN_TRANSFERS: Duration = Duration::from_secs(60);
/// Pause after one that did not work out.
const AFTER_FAILED_TRANSFER: Duration = Duration::from_secs(10);
/// How long a leader that an operator named stays although a newer version is there.
pub(crate) const CHOSEN_FOR: Duration = Duration::from_secs(3600);

/// How one member is doing, as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHealth {
    /// Its Raft id.
    pub raft_id: u64,
    /// What is on record about it.
    pub info: PeerInfo,
    /// Whether its vote counts.
    pub voter: bool,
    /// Whether it is the leader.
    pub leader: bool,
    /// Whether it answers.
    pub alive: bool,
    /// Whether it answers and keeps up, by the operator's thresholds.
    pub healthy: bool,
    /// How long ago it answered; for one that was never heard of, since it is a member or this node leads. Zero for the leader.
    pub last_contact: Duration,
    /// Term of the last entry known to be on it.
    pub last_term: u64,
    /// Index of that entry.
    pub last_index: u64,
    /// How long it has been as healthy, or as unhealthy, as it is.
    pub stable_for: Duration,
}

/// The cluster as autopilot sees it; on the leader only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AutopilotStatus {
    /// Every member, by Raft id.
    pub servers: Vec<ServerHealth>,
    /// Healthy voters that may fail before the cluster stops.
    pub failure_tolerance: usize,
    /// Where a change of version stands.
    pub upgrade: UpgradeStatus,
}

#[derive(Clone, Copy, Debug)]
struct Health {
    healthy: bool,
    since: Instant,
}

#[derive(Debug, Default)]
struct Memory {
    /// The term this node leads in, and since when.
    leads: Option<(u64, Instant)>,
    health: BTreeMap<u64, Health>,
    no_transfer_before: Option<Instant>,
    chosen_until: Option<Instant>,
    settings: Option<Autopilot>,
}

/// Autopilot's memory; shared by everything that looks at the cluster.
#[derive(Debug, Default)]
pub(crate) struct Tracker(Mutex<Memory>);

impl Tracker {
    /// What the operator wants, as of now.
    pub(crate) fn set(&self, settings: Autopilot) {
        lock(&self.0).settings = Some(settings);
    }

    /// An operator named this node as the leader.
    pub(crate) fn choose(&self) {
        lock(&self.0).chosen_until = Some(Instant::now() + CHOSEN_FOR);
    }

    /// Notes that leadership is being offered by autopilot, or was in vain.
    pub(crate) fn transferred(&self, worked: bool) {
        let pause = if worked {
            BETWEEN_TRANSFERS
        } else {
            AFTER_FAILED_TRANSFER
        };
        lock(&self.0).no_transfer_before = Some(Instant::now() + pause);
    }

    /// The cluster now; `None` on a node that does not lead.
    pub(crate) fn view(&self, metrics: &Metrics, timing: Timing) -> Option<View> {
        let mut memory = lock(&self.0);
        if !metrics.state.is_leader() {
            memory.leads = None;
            memory.health.clear();
            return None;
        }
        let now = Instant::now();
        let term = metrics.vote.leader_id.term;
        let since = match memory.leads {
            Some((known, since)) if known == term => since,
            Some(_) | None => {
                memory.health.clear();
                memory.leads = Some((term, now));
                now
            }
        };
        let leader_age = now.duration_since(since);
        let mut view = View {
            leader: metrics.id,
            membership: metrics.membership_config.membership().clone(),
            progress: progress(metrics),
            last_log: metrics.last_log_index.unwrap_or(0),
            fresh: timing.election_max,
            leader_age,
            defaults: Autopilot::default(),
            autopilot: memory.settings.clone(),
            // A leader that has not heard from its nodes yet knows too little.
            may_transfer: leader_age >= timing.election_max
                && memory.no_transfer_before.is_none_or(|until| now >= until),
            is_chosen: memory.chosen_until.is_some_and(|until| now < until),
        };
        memory.observe(&mut view, now);
        Some(view)
    }
}

impl Memory {
    /// Since when each member is as it is.
    fn observe(&mut self, view: &mut View, now: Instant) {
        let members: Vec<u64> = view.membership.nodes().map(|(id, _)| *id).collect();
        self.health.retain(|id, _| members.contains(id));
        for id in members {
            let healthy = is_healthy(view, id);
            let known = self.health.entry(id).or_insert(Health {
                healthy,
                since: now,
            });
            if known.healthy != healthy {
                *known = Health {
                    healthy,
                    since: now,
                };
            }
            let progress = view.progress.entry(id).or_default();
            let since = Some(now.duration_since(known.since));
            if healthy {
                progress.healthy_for = since;
            } else {
                progress.unhealthy_for = since;
            }
        }
    }
}

/// By the operator's thresholds. One that was never heard of is not, however short the time.
fn is_healthy(view: &View, id: u64) -> bool {
    if id == view.leader {
        return true;
    }
    let settings = view.settings();
    let known = view.progress.get(&id).and_then(|progress| progress.ack_age);
    known.is_some_and(|age| age <= settings.last_contact_threshold)
        && view.lag(id) <= settings.max_trailing_logs
}

fn progress(metrics: &Metrics) -> BTreeMap<u64, Progress> {
    let acks = metrics.heartbeat.as_ref();
    let members = metrics.membership_config.nodes().map(|(id, _)| *id);
    members
        .map(|id| {
            let acked = acks.and_then(|acks| acks.get(&id).copied().flatten());
            let progress = Progress {
                matched: matched(metrics, id).map(|id| id.index),
                ack_age: acked.map(|acked| age(&acked)),
                ..Progress::default()
            };
            (id, progress)
        })
        .collect()
}

fn matched(metrics: &Metrics, id: u64) -> Option<LogId> {
    metrics.replication.as_ref()?.get(&id).copied().flatten()
}

impl Tracker {
    /// For people; `None` on a node that does not lead.
    pub(crate) fn status(&self, metrics: &Metrics, timing: Timing) -> Option<AutopilotStatus> {
        let view = self.view(metrics, timing)?;
        let now = Instant::now();
        let voters = view.voters();
        let memory = lock(&self.0);
        let server = |(id, info): (&u64, &PeerInfo)| {
            let leads = *id == view.leader;
            let last = if leads {
                (metrics.vote.leader_id.term, view.last_log)
            } else {
                matched(metrics, *id).map_or((0, 0), |id| (id.leader_id.term, id.index))
            };
            let health = memory.health.get(id);
            ServerHealth {
                raft_id: *id,
                info: info.clone(),
                voter: voters.contains(id),
                leader: leads,
                alive: view.silence(*id) <= view.settings().last_contact_threshold,
                healthy: health.is_some_and(|health| health.healthy),
                last_contact: view.silence(*id),
                last_term: last.0,
                last_index: last.1,
                stable_for: health
                    .map_or(Duration::ZERO, |health| now.duration_since(health.since)),
            }
        };
        let servers: Vec<ServerHealth> = view.membership.nodes().map(server).collect();
        let healthy = servers.iter().filter(|s| s.voter && s.healthy).count();
        Some(AutopilotStatus {
            servers,
            failure_tolerance: healthy.saturating_sub(majority(voters.len())),
            upgrade: look_at_versions(&view),
        })
    }
}
