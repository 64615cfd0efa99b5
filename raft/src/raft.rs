//! The node: openraft, its stores and its network behind one handle.
//!
//! In: commands, reads, membership and hand-over requests. Out: outcomes told apart by what the caller does next.
//!
//! Invariants
//! - A proposal's outcome is one of: nothing written, committed, unknown, fatal.
//! - A read index is never answered from local knowledge alone.
//! - Every wait ends at the caller's deadline.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use openraft::{
    SnapshotPolicy,
    async_runtime::WatchReceiver as _,
    errors::{ClientWriteError, ForwardReason, InitializeError as CoreInitializeError, RaftError},
    impls::OneshotResponder,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    time::timeout_at,
};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    command::{Applied, Command},
    error::{
        DialError, InitializeError, MembershipError, ProposeError, ReadError, StartError,
        TransferError,
    },
    identity::Identity,
    log::{LogStore, lock},
    net::{Dialer, Directory, Factory, IncomingStream, Links, Server},
    reads::ProbeError,
    reconcile,
    services::{Services, age},
    state::{Machine, State},
    stores::{DirLock, Stores},
    types::{Core, Metrics, PeerInfo},
};

/// Bytes of commands proposed here that may wait for their outcome; beyond that proposals get `Busy`.
const MAX_IN_FLIGHT: usize = 256 << 20;
/// Admission is counted in units of this many bytes.
const UNIT: usize = 1 << 10;
/// Largest value that [`Options::max_entry_size`] may have: an append frame holds a chunk and one such entry.
const MAX_ENTRY_SIZE: usize = 4 << 20;

/// How a node takes part.
#[derive(Clone, Debug)]
pub struct Options {
    /// As saved in the data directory.
    pub identity: Identity,
    /// What the cluster keeps on record about this node.
    pub me: PeerInfo,
    /// Scales every time-out; 1 is for a local network and fast disks. 1 to 10.
    pub multiplier: u32,
    /// Largest encoded command, bytes; at most 4 MiB.
    pub max_entry_size: usize,
}

/// The cluster port.
pub struct Transport {
    /// Bound listeners.
    pub listeners: Vec<TcpListener>,
    /// Asks for and verifies the peer's certificate; offers [`crate::ALPN`] and the names in `streams`.
    pub server_tls: Arc<rustls::ServerConfig>,
    /// Verifies the server; the ALPN name is set here per connection.
    pub client_tls: Arc<rustls::ClientConfig>,
    /// Who gets the connections of other protocols, by ALPN name.
    pub streams: HashMap<&'static str, mpsc::Sender<IncomingStream>>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Transport({} listeners)", self.listeners.len())
    }
}

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

/// What part this node plays; changes are announced by [`Raft::watch`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// Current term.
    pub term: u64,
    /// The leader's Raft id, if known.
    pub leader: Option<u64>,
    /// This node leads and has applied the first entry of its own term, so its state holds every earlier write.
    pub is_ready_leader: bool,
}

/// One member as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its Raft id.
    pub raft_id: u64,
    /// What the cluster has on record about it.
    pub info: PeerInfo,
    /// Whether its vote counts.
    pub voter: bool,
    /// Whether it leads.
    pub leader: bool,
    /// How long ago it last answered this node; only on the leader, and never for the leader itself.
    pub last_ack: Option<Duration>,
    /// The last entry known to be on it; only on the leader.
    pub matched: Option<u64>,
}

/// A node's view of itself and the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node's Raft id.
    pub raft_id: u64,
    /// Current term.
    pub term: u64,
    /// The leader's Raft id, if known.
    pub leader: Option<u64>,
    /// See [`Role::is_ready_leader`].
    pub is_ready_leader: bool,
    /// When this node became a ready leader, milliseconds since the Unix epoch; only while it is one.
    pub leader_since_ms: Option<u64>,
    /// Highest log index known to be committed.
    pub committed: u64,
    /// Log index up to which this node has applied.
    pub applied: u64,
    /// Index of the last entry in this node's log.
    pub last_log: u64,
    /// Every member, by Raft id.
    pub members: Vec<MemberStatus>,
    /// Log index of the membership.
    pub membership_index: u64,
}

/// A running Raft node. Clones share it.
#[derive(Clone)]
pub struct Raft(Arc<Inner>);

struct Inner {
    services: Services,
    state: Arc<State>,
    log: LogStore,
    options: Options,
    dialer: Option<Arc<Dialer>>,
    role: watch::Receiver<Role>,
    leader_since_ms: Arc<AtomicU64>,
    in_flight: Semaphore,
    tasks: TaskTracker,
    closing: CancellationToken,
    lock: Mutex<Option<DirLock>>,
    closed: tokio::sync::Mutex<bool>,
}

impl std::fmt::Debug for Raft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Raft(node {})", self.0.options.identity.raft_id)
    }
}

impl Raft {
    /// Starts Raft on `stores`. Without a `transport` it can only be the single member of its cluster.
    ///
    /// # Errors
    /// `Settings` for options out of range; `Raft` when openraft refuses the stored state.
    pub async fn start(
        stores: Stores,
        options: Options,
        transport: Option<Transport>,
    ) -> Result<Self, StartError> {
        match settings(&options) {
            Ok((timing, config)) => start(stores, options, transport, timing, config).await,
            Err(error) => {
                stores.close().await;
                Err(error)
            }
        }
    }

    /// Whether the node has neither a log nor a vote: it can make a cluster, or join one.
    #[must_use]
    pub fn is_pristine(&self) -> bool {
        self.0.log.is_pristine()
    }

    /// Makes a cluster whose only member is this node.
    ///
    /// # Errors
    /// `NotPristine` when it already takes part in one.
    pub async fn initialize(&self) -> Result<(), InitializeError> {
        let me = (self.0.options.identity.raft_id, self.0.options.me.clone());
        match self.0.services.core.initialize(BTreeMap::from([me])).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(
                CoreInitializeError::NotAllowed(_) | CoreInitializeError::NotInMembers(_),
            )) => Err(InitializeError::NotPristine),
            Err(RaftError::Fatal(fatal)) => Err(InitializeError::Fatal(fatal.to_string())),
        }
    }

    /// Replicates and applies `command`; only the leader can.
    ///
    /// # Errors
    /// `Unknown` and `Fatal` after the command may have been written; all others mean that nothing was.
    pub async fn propose(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<Applied, ProposeError> {
        let encoded = command.encode();
        let (len, max) = (encoded.0.len(), self.0.options.max_entry_size);
        if len > max {
            return Err(ProposeError::TooLarge { len, max });
        }
        let units = u32::try_from(len / UNIT + 1).unwrap_or(u32::MAX);
        let _admitted = self
            .0
            .in_flight
            .try_acquire_many(units)
            .map_err(|_| ProposeError::Busy)?;
        // Directly after an election the leader's lease is not confirmed yet; one heartbeat confirms it.
        let patience = Instant::now() + self.0.services.timing.heartbeat;
        loop {
            match self.propose_once(&encoded, deadline).await {
                Err(ProposeError::NoQuorum) if Instant::now() < patience.min(deadline) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                result => return result,
            }
        }
    }

    async fn propose_once(
        &self,
        encoded: &crate::types::Encoded,
        deadline: Instant,
    ) -> Result<Applied, ProposeError> {
        let (responder, answer) = OneshotResponder::new_pair();
        let core = &self.0.services.core;
        let submit = core.client_write_ff(encoded.clone(), Some(responder));
        match timeout_at(deadline.into(), submit).await {
            // Dropped before it was handed over.
            Err(_) => return Err(ProposeError::Busy),
            Ok(Err(_)) if self.0.closing.is_cancelled() => {
                return Err(ProposeError::NotLeader { leader: None });
            }
            Ok(Err(fatal)) => return Err(ProposeError::Fatal(fatal.to_string())),
            Ok(Ok(())) => {}
        }
        match timeout_at(deadline.into(), answer).await {
            Err(_) | Ok(Err(_)) => Err(ProposeError::Unknown),
            Ok(Ok(Ok(response))) => Ok(response.data),
            Ok(Ok(Err(ClientWriteError::ForwardToLeader(forward)))) => Err(match forward.reason {
                ForwardReason::LeaseExpired => ProposeError::NoQuorum,
                ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => {
                    ProposeError::NotLeader {
                        leader: forward.leader_id,
                    }
                }
            }),
            Ok(Ok(Err(
                ClientWriteError::LogEntryDiscarded(_)
                | ClientWriteError::ChangeMembershipError(_)
                | ClientWriteError::PreconditionFailed(_),
            ))) => Err(ProposeError::Unknown),
        }
    }

    /// A log index that covers every write acknowledged, anywhere in the cluster, before this call. On any node.
    ///
    /// # Errors
    /// `NoQuorum` when no leader confirmed one before `deadline`.
    pub async fn read_index(&self, deadline: Instant) -> Result<u64, ReadError> {
        let mut role = self.watch();
        loop {
            role.mark_unchanged();
            let asked = timeout_at(deadline.into(), self.0.services.read_index()).await;
            match asked {
                Ok(Ok(index)) => return Ok(index),
                Ok(Err(ProbeError::Fatal(why))) => return Err(ReadError::Fatal(why)),
                Ok(Err(ProbeError::NoLeader | ProbeError::NoQuorum)) => {}
                Err(_) => return Err(ReadError::NoQuorum),
            }
            if self.0.closing.is_cancelled() || Instant::now() >= deadline {
                return Err(ReadError::NoQuorum);
            }
            // A leader may be known any moment; whatever this wait says, the question is asked again.
            let pause = Duration::from_millis(20).min(deadline - Instant::now());
            drop(tokio::time::timeout(pause, role.changed()).await);
        }
    }

    /// Returns once this node has applied `index`.
    ///
    /// # Errors
    /// `NoQuorum` when it has not by `deadline`.
    pub async fn wait_applied(&self, index: u64, deadline: Instant) -> Result<(), ReadError> {
        if self.0.state.applied() >= index {
            return Ok(());
        }
        let mut position = self.0.state.position();
        let reached =
            position.wait_for(|position| position.applied.map_or(0, |id| id.index) >= index);
        tokio::select! {
            reached = timeout_at(deadline.into(), reached) => match reached {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) | Err(_) => Err(ReadError::NoQuorum),
            },
            () = self.0.closing.cancelled() => Err(ReadError::NoQuorum),
        }
    }

    /// Local reads of the state.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.0.state)
    }

    /// This node's view of itself and the cluster. Cheap and never waits.
    #[must_use]
    pub fn status(&self) -> Status {
        let role = *self.0.role.borrow();
        let since = self.0.leader_since_ms.load(Ordering::Relaxed);
        let applied = self.0.state.applied();
        let raft_id = self.0.options.identity.raft_id;
        self.0.services.metrics(|metrics| Status {
            raft_id,
            term: metrics.current_term,
            leader: metrics.current_leader,
            is_ready_leader: role.is_ready_leader && metrics.state.is_leader(),
            leader_since_ms: role.is_ready_leader.then_some(since),
            committed: committed(metrics).max(applied),
            applied,
            last_log: metrics.last_log_index.unwrap_or(0),
            members: members(metrics),
            membership_index: metrics.membership_config.log_id().map_or(0, |id| id.index),
        })
    }

    /// The part this node plays, now and whenever it changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Role> {
        self.0.role.clone()
    }

    /// Admits a new node: gives it a Raft id that was never used, and adds it as a learner. The leader promotes it when
    /// it has caught up, unless it is a non-voter; a voter of the same name leaves in the same change.
    ///
    /// # Errors
    /// Only the leader can; `InProgress` and `NoQuorum` are worth another try.
    pub async fn add_node(&self, info: PeerInfo) -> Result<u64, MembershipError> {
        let limit = self.0.services.timing.election_max * 5;
        tokio::time::timeout(limit, reconcile::add_node(&self.0.services, info))
            .await
            .unwrap_or(Err(MembershipError::NoQuorum))
    }

    /// Puts this node's addresses and version on record, if they have changed. On any node.
    ///
    /// # Errors
    /// `NotLeader` and `NoQuorum` are worth another try; `Refused` says why not.
    pub async fn announce(&self, info: PeerInfo) -> Result<(), MembershipError> {
        let limit = self.0.services.timing.election_max * 5;
        tokio::time::timeout(limit, self.0.services.announce(info))
            .await
            .unwrap_or(Err(MembershipError::NoQuorum))
    }

    /// A mutually authenticated connection to member `raft_id`, for protocol `alpn`.
    ///
    /// # Errors
    /// See [`DialError`]; nothing was sent in any case.
    pub async fn dial(
        &self,
        raft_id: u64,
        alpn: &'static str,
    ) -> Result<TlsStream<TcpStream>, DialError> {
        let dialer = self.0.dialer.as_ref().ok_or(DialError::NoNetwork)?;
        dialer.connect(raft_id, alpn).await
    }

    /// Hands leadership to voter `to`, or to the one that is best caught up, and waits until it leads.
    ///
    /// # Errors
    /// `NoTarget` when there is nobody to hand it to; `TimedOut` at the deadline.
    pub async fn transfer_leader(
        &self,
        to: Option<u64>,
        deadline: Instant,
    ) -> Result<(), TransferError> {
        let target = self.transfer_target(to)?;
        let trigger = self.0.services.core.trigger();
        trigger
            .transfer_leader(target)
            .await
            .map_err(|fatal| TransferError::Fatal(fatal.to_string()))?;
        let mut role = self.watch();
        let own = self.0.options.identity.raft_id;
        let taken = role.wait_for(|role| role.leader.is_some_and(|leader| leader != own));
        match timeout_at(deadline.into(), taken).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(TransferError::TimedOut),
        }
    }

    fn transfer_target(&self, to: Option<u64>) -> Result<u64, TransferError> {
        let status = self.status();
        if status.leader != Some(status.raft_id) {
            return Err(TransferError::NotLeader);
        }
        let fresh = self.0.services.timing.election_max;
        status
            .members
            .iter()
            .filter(|member| member.voter && member.raft_id != status.raft_id)
            .filter(|member| to.is_none_or(|to| to == member.raft_id))
            .filter(|member| member.last_ack.is_some_and(|age| age <= fresh))
            .max_by_key(|member| member.matched)
            .map(|member| member.raft_id)
            .ok_or(TransferError::NoTarget)
    }

    /// Resolves, with the reason, when this node cannot go on: a failed sync, damaged data, a stopped core. The process
    /// should end. Never resolves because of [`Raft::shutdown`].
    pub async fn fatal(&self) -> String {
        let mut metrics = self.0.services.core.metrics();
        let mut log = self.0.log.progress();
        loop {
            let failed = log.borrow_and_update().failed.clone();
            if let Some(why) = failed {
                return why;
            }
            let running = metrics.borrow_and_update().running_state.clone();
            if let Err(fatal) = running
                && !self.0.closing.is_cancelled()
            {
                return fatal.to_string();
            }
            tokio::select! {
                () = self.0.closing.cancelled() => std::future::pending().await,
                changed = metrics.changed() => {
                    if changed.is_err() && !self.0.closing.is_cancelled() {
                        return "Raft has stopped".to_owned();
                    }
                }
                // The log closes only at shutdown; until then a change is looked at above.
                changed = log.changed() => if changed.is_err() {
                    std::future::pending().await
                },
            }
        }
    }

    /// Stops the node and closes its stores, so that they can be opened again. Calling it again does nothing.
    pub async fn shutdown(&self) {
        let mut closed = self.0.closed.lock().await;
        if std::mem::replace(&mut *closed, true) {
            return;
        }
        // Peers first: nothing new comes in.
        self.0.closing.cancel();
        self.0.tasks.close();
        if let Err(error) = self.0.services.core.shutdown().await {
            tracing::error!(%error, "stopping Raft failed");
        }
        let rest = tokio::time::timeout(Duration::from_secs(5), self.0.tasks.wait()).await;
        if rest.is_err() {
            tracing::warn!("some connections did not end in time");
        }
        // Last, when nobody writes any more.
        let (state, log) = (Arc::clone(&self.0.state), self.0.log.clone());
        let closing = tokio::task::spawn_blocking(move || {
            state.close();
            log.close();
        });
        if let Err(error) = closing.await {
            tracing::error!(%error, "closing the stores failed");
        }
        drop(lock(&self.0.lock).take());
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
        max_in_snapshot_log_to_keep: 50_000,
        purge_batch_size: 1024,
        install_snapshot_timeout: 60_000,
        ..openraft::Config::default()
    };
    let config = config
        .validate()
        .map_err(|error| StartError::Settings(error.to_string()))?;
    Ok((timing, config))
}

async fn start(
    stores: Stores,
    options: Options,
    transport: Option<Transport>,
    timing: Timing,
    config: openraft::Config,
) -> Result<Raft, StartError> {
    let raft_id = options.identity.raft_id;
    let (tasks, closing) = (TaskTracker::new(), CancellationToken::new());
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
            closing.clone(),
        ))
    });
    let machine = Machine::new(Arc::clone(&stores.state), stores.log.clone());
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
    let services = Services::new(raft_id, core, links, timing, &tasks, &closing);
    let (role, leader_since_ms) = (watch::Sender::new(Role::default()), Arc::default());
    let raft = Raft(Arc::new(Inner {
        services: services.clone(),
        state: stores.state,
        log: stores.log,
        options,
        dialer,
        role: role.subscribe(),
        leader_since_ms: Arc::clone(&leader_since_ms),
        in_flight: Semaphore::new(MAX_IN_FLIGHT / UNIT),
        tasks: tasks.clone(),
        closing: closing.clone(),
        lock: Mutex::new(Some(stores.lock)),
        closed: tokio::sync::Mutex::new(false),
    }));
    let follow = Follow {
        services: services.clone(),
        state: raft.state(),
        directory: Arc::clone(&directory),
        role,
        leader_since_ms,
    };
    // Before the first connection is accepted: a member must not be taken for a stranger.
    follow.take();
    spawn(&tasks, &closing, follow.run());
    spawn(&tasks, &closing, reconcile::run(services.clone()));
    if let Some(transport) = transport {
        let server = Server {
            identity: raft.0.options.identity.clone(),
            services: services.clone(),
            directory,
            acceptor: TlsAcceptor::from(transport.server_tls),
            streams: transport.streams,
            step: timing.step(),
            closing,
            tasks,
        };
        server.spawn(transport.listeners);
    }
    elect_at_once_if_alone(&services, raft_id).await;
    Ok(raft)
}

fn spawn(
    tasks: &TaskTracker,
    closing: &CancellationToken,
    task: impl Future<Output = ()> + Send + 'static,
) {
    let closing = closing.clone();
    tasks.spawn(async move { closing.run_until_cancelled(task).await });
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
            }
        }
    }

    fn take(&self) -> Role {
        let applied = self.state.position().borrow().applied;
        let receiver = self.services.core.server_metrics();
        let (role, members) = {
            let metrics = receiver.borrow_watched();
            let leads = metrics.state.is_leader();
            let own_entry = applied.is_some_and(|id| id.leader_id == metrics.vote.leader_id);
            let role = Role {
                term: metrics.vote.leader_id.term,
                leader: metrics.current_leader,
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
            if role.is_ready_leader && !known.is_ready_leader {
                self.leader_since_ms.store(now_ms(), Ordering::Relaxed);
            }
            tracing::info!(term = role.term, leader = ?role.leader, ready = role.is_ready_leader, "role");
            *known = role;
            true
        });
        role
    }
}

/// Wall time, for people only: nothing that is replicated depends on it.
#[allow(clippy::disallowed_methods, reason = "shown in the status only")]
fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

fn committed(metrics: &Metrics) -> u64 {
    let known = metrics.cluster_committed.max(metrics.local_committed);
    known.map_or(0, |id| id.index)
}

fn members(metrics: &Metrics) -> Vec<MemberStatus> {
    let stored = &metrics.membership_config;
    let voters: Vec<u64> = stored.voter_ids().collect();
    let member = |(id, info): (&u64, &PeerInfo)| {
        let acks = metrics.heartbeat.as_ref();
        let matched = metrics.replication.as_ref();
        MemberStatus {
            raft_id: *id,
            info: info.clone(),
            voter: voters.contains(id),
            leader: metrics.current_leader == Some(*id),
            last_ack: acks
                .and_then(|acks| acks.get(id).copied().flatten())
                .filter(|_| *id != metrics.id)
                .map(|acked| age(&acked)),
            matched: matched
                .and_then(|matched| matched.get(id).copied().flatten())
                .map(|id| id.index),
        }
    };
    stored.nodes().map(member).collect()
}
