//! Bringing a node up: settings, openraft, the tasks around it.
//!
//! Invariants
//! - A failed start closes the stores, so that they can be opened again.
//! - Nothing is accepted from peers before the membership is known.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use openraft::{SnapshotPolicy, async_runtime::WatchReceiver as _};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::{
    compaction,
    confirm::Confirm,
    error::StartError,
    figures::figures,
    local::Reads,
    net::{Dialer, Directory, Factory, Incoming, Links, Receiver, Server},
    raft::{ADMISSION, Inner, Options, Raft, Role, Transport},
    reconcile,
    services::{Services, quorum_answers},
    stamps::Stamps,
    standing,
    state::{Machine, State},
    stores::Stores,
    suspect::Suspicion,
    tasks::Tasks,
    types::{Core, PeerInfo},
    watchdog::Watchdog,
    writes::{self, WriteBatcher},
};

/// Largest value that [`Options::max_entry_size`] may have: an append frame holds a chunk and one such entry.
pub(crate) const MAX_ENTRY_SIZE: usize = 4 << 20;

/// Every time-out, from one multiplier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) heartbeat: Duration,
    pub(crate) election_min: Duration,
    pub(crate) election_max: Duration,
}

impl Timing {
    fn new(multiplier: u32) -> Self {
        Self {
            heartbeat: Duration::from_millis(100) * multiplier,
            election_min: Duration::from_millis(500) * multiplier,
            election_max: Duration::from_millis(1000) * multiplier,
        }
    }

    /// For each step of connecting.
    fn step(&self) -> Duration {
        self.election_max * 3
    }
}

fn settings(options: &Options) -> Result<(Timing, openraft::Config), StartError> {
    if !(1..=10).contains(&options.multiplier) {
        return Err(StartError::Settings(format!(
            "the time-out multiplier is {}; it must be 1 to 10",
            options.multiplier
        )));
    }
    if options.max_entry_size > MAX_ENTRY_SIZE {
        return Err(StartError::Settings(format!(
            "max_entry_size is {}; at most {MAX_ENTRY_SIZE} is possible",
            options.max_entry_size
        )));
    }
    let timing = Timing::new(options.multiplier);
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = openraft::Config {
        cluster_name: "strongroom".to_owned(),
        heartbeat_interval: ms(timing.heartbeat),
        heartbeat_min_interval: Some(0),
        election_timeout_min: ms(timing.election_min),
        election_timeout_max: ms(timing.election_max),
        enable_pre_vote: Some(true),
        // At least a lease and an election time-out: a leader cut off from its quorum must let go.
        quorum_loss_probe_interval: Some(ms(timing.election_max * 2)),
        // A leader that restarts quickly must be elected again: it may have forgotten what it had committed.
        enable_leader_restore: Some(false),
        allow_log_reversion: None,
        max_payload_entries: 1024,
        max_append_entries: Some(4096),
        api_batch_linger_ms: 0,
        state_machine_channel_size: Some(65_536),
        snapshot_policy: SnapshotPolicy::Never,
        // What is purged, `compaction.rs` decides, by bytes as well.
        max_in_snapshot_log_to_keep: u64::MAX,
        install_snapshot_timeout: 60_000,
        ..openraft::Config::default()
    };
    let config = config
        .validate()
        .map_err(|error| StartError::Settings(error.to_string()))?;
    Ok((timing, config))
}

/// See [`Raft::start`].
pub(crate) async fn start(
    stores: Stores,
    options: Options,
    transport: Option<Transport>,
) -> Result<Raft, StartError> {
    let (timing, config) = match settings(&options) {
        Ok(settings) => settings,
        Err(error) => {
            stores.close().await;
            return Err(error);
        }
    };
    let raft_id = options.identity.raft_id;
    let tasks = Tasks::default();
    let directory = Arc::<Directory>::default();
    let dialer = transport.as_ref().map(|transport| {
        Arc::new(Dialer::new(
            options.identity.clone(),
            Arc::clone(&directory),
            Arc::clone(&transport.client_tls),
            timing.step(),
        ))
    });
    let links = dialer.clone().map(|dialer| {
        Arc::new(Links::new(
            raft_id,
            dialer,
            timing.election_max,
            tasks.closing.clone(),
            Arc::clone(&stores.state.counters),
        ))
    });
    let users = TaskTracker::new();
    let machine = Machine::new(Arc::clone(&stores.state), stores.log.clone()).tracked(&users);
    let created = Core::new(
        raft_id,
        Arc::new(config),
        Factory(links.clone()),
        stores.log.clone(),
        machine,
    );
    let core = match created.await {
        Ok(core) => core,
        Err(fatal) => {
            stores.close().await;
            return Err(StartError::Raft(fatal.to_string()));
        }
    };
    let confirm = Confirm::new(
        raft_id,
        core.clone(),
        stores.log.clone(),
        Arc::clone(&stores.state),
        links.clone(),
        timing.heartbeat,
    );
    let services = Services::new(raft_id, core, confirm, links, timing, &tasks);
    let suspicion = dialer
        .clone()
        .map(|dialer| Arc::new(Suspicion::new(services.clone(), dialer, tasks.clone())));
    let own = services.core.clone();
    let writes = WriteBatcher::spawn(
        move |command, responder| {
            let core = own.clone();
            async move { core.client_write_ff(command, Some(responder)).await.is_ok() }
        },
        stores.log.progress(),
        ADMISSION,
        writes::LONGEST,
        &tasks,
    );
    let (role, leader_since_ms) = (watch::Sender::new(Role::default()), Arc::default());
    let stamps = Arc::<Stamps>::default();
    let raft = Raft(Arc::new(Inner {
        services: services.clone(),
        reads: Reads::new(Arc::clone(&stores.state)),
        state: stores.state,
        log: stores.log,
        options,
        dialer,
        role: role.subscribe(),
        leader_since_ms: Arc::clone(&leader_since_ms),
        stamps: Arc::clone(&stamps),
        in_flight: Arc::new(Semaphore::new(ADMISSION)),
        writes,
        tasks: tasks.clone(),
        users,
        lock: Mutex::new(Some(stores.lock)),
        closed: tokio::sync::Mutex::new(false),
    }));
    let follow = Follow {
        services: services.clone(),
        state: raft.state(),
        directory: Arc::clone(&directory),
        role,
        leader_since_ms,
        stamps,
    };
    // Before the first connection is accepted: a member must not be taken for a stranger.
    follow.take();
    tasks.vital("role", follow.run());
    let pace = raft.0.options.pace;
    let reconcile = reconcile::run(services.clone(), raft.watch(), pace);
    tasks.vital("autopilot", reconcile);
    tasks.vital("standing for election", standing::run(services.clone()));
    let watchdog = Watchdog {
        services: services.clone(),
        state: raft.state(),
        log: raft.0.log.clone(),
        dir: raft.0.log.path().to_owned(),
        reserve: raft.0.options.min_free_disk,
    };
    tasks.vital("watchdog", watchdog.run());
    let compaction = compaction::run(
        services.clone(),
        raft.state(),
        raft.0.log.clone(),
        raft.0.options.snapshots,
    );
    tasks.vital("snapshots and purge", compaction);
    tasks.vital(
        "table files of the log",
        raft.0.log.clone().keep_moving_to_tables(),
    );
    if let (Some(transport), Some(suspicion)) = (transport, suspicion) {
        let server = Server {
            identity: raft.0.options.identity.clone(),
            services: services.clone(),
            suspicion,
            raft: raft.clone(),
            directory,
            acceptor: TlsAcceptor::from(transport.server_tls),
            streams: transport.streams,
            step: timing.step(),
            tasks,
            newest: Mutex::default(),
            snapshots: Receiver {
                services: services.clone(),
                state: raft.state(),
                incoming: Incoming::default(),
            },
            refused: Mutex::default(),
        };
        server.spawn(transport.listeners);
    }
    elect_at_once_if_alone(&services, raft_id).await;
    Ok(raft)
}

/// The only voter has nobody to wait for.
async fn elect_at_once_if_alone(services: &Services, raft_id: u64) {
    let alone = services
        .core
        .with_raft_state(move |state| {
            let voters: Vec<u64> = state.membership_state.effective().voter_ids().collect();
            voters == [raft_id]
        })
        .await;
    if matches!(alone, Ok(true)) {
        // An error means that Raft has stopped, which `fatal` tells.
        drop(services.core.trigger().elect(false).await);
    }
}

/// Follows openraft's metrics: keeps the directory and the role up to date.
struct Follow {
    services: Services,
    state: Arc<State>,
    directory: Arc<Directory>,
    role: watch::Sender<Role>,
    leader_since_ms: Arc<AtomicU64>,
    stamps: Arc<Stamps>,
}

impl Follow {
    async fn run(self) {
        let mut metrics = self.services.core.server_metrics();
        let mut position = self.state.position();
        loop {
            drop(metrics.borrow_and_update());
            position.mark_unchanged();
            let role = self.take();
            // What is applied matters only while a leader waits for its first entry.
            let waits = role.leader == Some(self.services.raft_id) && !role.is_ready_leader;
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() {
                    return;
                },
                changed = position.changed(), if waits => if changed.is_err() {
                    return;
                },
                // Losing the quorum is no event; it shows with time. And openraft's watches change one after the other:
                // whatever was seen half done is seen whole a moment later.
                () = tokio::time::sleep(self.services.timing.heartbeat * 2) => {}
            }
        }
    }

    fn take(&self) -> Role {
        let (applied, clock_ms) = {
            let position = self.state.position();
            let position = position.borrow();
            (position.applied, position.memory.clock_ms)
        };
        let own = self.services.raft_id;
        let timing = self.services.timing;
        let heard = self
            .services
            .metrics(|metrics| quorum_answers(metrics, timing));
        let has_leader = self.services.has_leader();
        // The same watch as the one waited for: openraft updates one after the other.
        let receiver = self.services.core.server_metrics();
        let (role, members) = {
            let metrics = receiver.borrow_watched();
            let leads = metrics.state.is_leader() && heard;
            let own_entry = applied.is_some_and(|id| id.leader_id == metrics.vote.leader_id);
            let role = Role {
                term: metrics.vote.leader_id.term,
                // Openraft names the last one it knew for as long as no other is elected.
                leader: metrics
                    .current_leader
                    .filter(|id| if *id == own { leads } else { has_leader }),
                is_ready_leader: leads && metrics.vote.committed && own_entry,
            };
            let members: BTreeMap<u64, PeerInfo> = metrics
                .membership_config
                .nodes()
                .map(|(id, info)| (*id, info.clone()))
                .collect();
            (role, members)
        };
        self.directory.replace(members);
        if let Some(links) = &self.services.links {
            links.retain(&self.directory);
        }
        self.role.send_if_modified(|known| {
            if *known == role {
                return false;
            }
            if !role.is_ready_leader {
                self.stamps.rest();
            } else if !known.is_ready_leader || known.term != role.term {
                self.stamps.lead(clock_ms);
            }
            if role.is_ready_leader && !known.is_ready_leader {
                self.leader_since_ms.store(now_ms(), Ordering::Relaxed);
            }
            let changed = (known.leader, known.is_ready_leader) != (role.leader, role.is_ready_leader);
            match role.leader {
                _ if !changed => {}
                Some(leader) if leader != own => figures().became_follower.increment(1),
                Some(_) if role.is_ready_leader => figures().became_leader.increment(1),
                Some(_) => {}
                None => figures().lost_leader.increment(1),
            }
            tracing::info!(term = role.term, leader = ?role.leader, ready = role.is_ready_leader, "role");
            *known = role;
            true
        });
        role
    }
}

/// Wall time, for people only: nothing that is replicated depends on it.
#[expect(clippy::disallowed_methods, reason = "shown in the status only")]
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}
