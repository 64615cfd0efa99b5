//! The node: openraft, its stores and its network behind one handle.
//!
//! In: commands, reads, membership and hand-over requests. Out: outcomes told apart by what the caller does next.
//!
//! Invariants
//! - A proposal's outcome is one of: nothing written, committed, unknown, fatal.
//! - A read index is never answered from local knowledge alone, unless this node is the only voter.
//! - Every wait ends at the caller's deadline, but for reads of the state, which wait for the disk and end when they are dropped.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use openraft::{
    async_runtime::WatchReceiver as _,
    errors::{ClientWriteError, ForwardReason, InitializeError as CoreInitializeError, RaftError},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::timeout_at,
};
use tokio_rustls::TlsStream;
use tokio_util::task::TaskTracker;

use crate::{
    autopilot::AutopilotStatus,
    command::{Applied, Command},
    compaction::SnapshotOptions,
    error::{
        DialError, InitializeError, MembershipError, ProposeError, ReadError, StartError,
        StateError, TransferError,
    },
    figures::{figures, seconds},
    identity::Identity,
    local::Reads,
    log::{LogStore, lock},
    net::{Dialer, IncomingStream},
    plan::{Autopilot, Successor},
    reads::ProbeError,
    reconcile,
    rocks::DatabaseSize,
    services::{Services, age, known_leader},
    stamps::Stamps,
    start::{self, Timing},
    state::{SnapshotStats, State},
    stores::{DirLock, Stores},
    tasks::Tasks,
    transfer::transfer,
    types::{Encoded, Metrics, PeerInfo},
    vitals::{Refusal, Room},
    writes::{NotQueued, Stopped, Ticket, WriteBatcher},
};

/// Bytes of commands proposed here that may wait for their outcome; beyond that proposals get `Busy`.
const MAX_IN_FLIGHT: usize = 256 << 20;
/// Admission is counted in units of this many bytes.
const UNIT: usize = 1 << 10;
/// Units of admission a node has.
pub(crate) const ADMISSION: usize = MAX_IN_FLIGHT / UNIT;

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
    /// Bytes to keep free on the data directory's disk; `None`: 2 % of it, 64 MiB to 1 GiB.
    pub min_free_disk: Option<u64>,
    /// When to take snapshots, and how much log to keep.
    pub snapshots: SnapshotOptions,
    /// How often autopilot looks and acts.
    pub pace: Pace,
}

/// How often autopilot looks at the cluster and changes it. `None`: several times a second, so that a node that is ready
/// does not wait.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Between two looks.
    pub update: Option<Duration>,
    /// Least time between two changes.
    pub reconcile: Option<Duration>,
}

/// Who is to lead next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The best one that is eligible.
    Best,
    /// The best one; one that is marked ineligible is better than nobody.
    Anybody,
    /// The node of this name.
    Named(String),
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

/// What part this node plays; changes are announced by [`Raft::watch`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// Current term.
    pub term: u64,
    /// The leader's Raft id, if known.
    pub leader: Option<u64>,
    /// This node leads, has applied the first entry of its own term, so that its state holds every earlier write, and its
    /// quorum answers.
    pub is_ready_leader: bool,
}

/// One member as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its Raft id.
    pub raft_id: u64,
    /// What the cluster has on record about it.
    pub info: PeerInfo,
    /// Whether its vote counts. While a change is under way: whether it counted before and will after.
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

/// What a node holds, for its operator; see [`Raft::usage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of proposals that wait for their outcome.
    pub in_flight_bytes: usize,
    /// The log's database.
    pub log: DatabaseSize,
    /// The state's database.
    pub state: DatabaseSize,
}

/// A running Raft node. Clones share it.
#[derive(Clone)]
pub struct Raft(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) services: Services,
    pub(crate) state: Arc<State>,
    pub(crate) reads: Reads,
    pub(crate) log: LogStore,
    pub(crate) options: Options,
    pub(crate) dialer: Option<Arc<Dialer>>,
    pub(crate) role: watch::Receiver<Role>,
    pub(crate) leader_since_ms: Arc<AtomicU64>,
    pub(crate) stamps: Arc<Stamps>,
    pub(crate) in_flight: Arc<Semaphore>,
    pub(crate) writes: WriteBatcher,
    pub(crate) tasks: Tasks,
    /// openraft's part of the stores' users.
    pub(crate) users: TaskTracker,
    pub(crate) lock: Mutex<Option<DirLock>>,
    pub(crate) closed: tokio::sync::Mutex<bool>,
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
        start::start(stores, options, transport).await
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
        mut command: Command,
        deadline: Instant,
    ) -> Result<Applied, ProposeError> {
        command.proposed_at_ms = self.0.stamps.now_ms();
        // A restored row may be as large as another cluster's entries were.
        let max = match command.restore_step() {
            Some(_) => start::MAX_ENTRY_SIZE,
            None => self.0.options.max_entry_size,
        };
        self.propose_encoded(command.encode(), max, deadline).await
    }

    /// See [`Raft::propose`]; `max`: largest size, bytes.
    pub(crate) async fn propose_encoded(
        &self,
        encoded: Encoded,
        max: usize,
        deadline: Instant,
    ) -> Result<Applied, ProposeError> {
        let len = encoded.0.len();
        if len > max {
            figures().refused_size.increment(1);
            return Err(ProposeError::TooLarge { len, max });
        }
        if Instant::now() >= deadline {
            return Err(ProposeError::Busy);
        }
        let units = u32::try_from(len / UNIT + 1).unwrap_or(u32::MAX);
        match self.0.services.vitals.refusal() {
            None => {}
            Some(Refusal::Room) => {
                figures().refused_room.increment(1);
                return Err(ProposeError::NoRoom);
            }
            Some(Refusal::Backlog) => {
                figures().refused_busy.increment(1);
                return Err(ProposeError::Busy);
            }
        }
        let in_flight = Arc::clone(&self.0.in_flight);
        let admitted = in_flight
            .try_acquire_many_owned(units)
            .map(Arc::new)
            .map_err(|_| {
                figures().refused_busy.increment(1);
                ProposeError::Busy
            })?;
        let began = Instant::now();
        // Directly after an election the leader's lease is not confirmed yet; one heartbeat confirms it.
        let patience = Instant::now() + self.0.services.timing.heartbeat;
        loop {
            match self.propose_once(&encoded, &admitted, deadline).await {
                Err(ProposeError::NoQuorum) if Instant::now() < patience.min(deadline) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(applied) => {
                    figures().commit.record(seconds(began.elapsed()));
                    return Ok(applied);
                }
                result => return result,
            }
        }
    }

    async fn propose_once(
        &self,
        encoded: &Encoded,
        admitted: &Arc<OwnedSemaphorePermit>,
        deadline: Instant,
    ) -> Result<Applied, ProposeError> {
        let queued = self.0.writes.propose(encoded.clone(), Arc::clone(admitted));
        let ticket = match queued {
            Ok(ticket) => ticket,
            Err(NotQueued::Full) => return Err(ProposeError::Busy),
            Err(NotQueued::Stopped) => return Err(self.stopped(Stopped::Before)),
        };
        let mut pending = Pending {
            ticket: Some(ticket),
            admitted,
        };
        match timeout_at(deadline.into(), pending.outcome()).await {
            Err(_) if pending.give_up() => Err(ProposeError::Busy),
            Err(_) => Err(ProposeError::Unknown),
            Ok(Err(stopped)) => Err(self.stopped(stopped)),
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

    fn stopped(&self, stopped: Stopped) -> ProposeError {
        match stopped {
            Stopped::Meanwhile => ProposeError::Unknown,
            Stopped::Before if self.0.tasks.closing.is_cancelled() => {
                ProposeError::NotLeader { leader: None }
            }
            Stopped::Before => ProposeError::Fatal("Raft has stopped".to_owned()),
        }
    }

    /// A log index that covers every write acknowledged, anywhere in the cluster, before this call. On any node.
    ///
    /// # Errors
    /// `NoQuorum` when no leader confirmed one before `deadline`.
    pub async fn read_index(&self, deadline: Instant) -> Result<u64, ReadError> {
        loop {
            // Probes are bounded by themselves; a timer per read costs as much as the read's share of a probe.
            let bounded = self.0.services.timing.election_max * 3;
            let asked = if deadline.saturating_duration_since(Instant::now()) > bounded {
                Ok(self.0.services.read_index().await)
            } else {
                timeout_at(deadline.into(), self.0.services.read_index()).await
            };
            match asked {
                Ok(Ok(index)) => return Ok(index),
                Ok(Err(ProbeError::Fatal(why))) => return Err(ReadError::Fatal(why)),
                Ok(Err(ProbeError::NoLeader | ProbeError::NoQuorum)) => {}
                Err(_) => return Err(ReadError::NoQuorum),
            }
            let mut role = self.watch();
            role.mark_unchanged();
            if self.0.tasks.closing.is_cancelled() || Instant::now() >= deadline {
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
            () = self.0.tasks.closing.cancelled() => Err(ReadError::NoQuorum),
        }
    }

    /// As [`State::get_at`]; other work goes on while the disk is read.
    ///
    /// # Errors
    /// Those of [`State::get_at`].
    pub async fn get_at(
        &self,
        restores: u64,
        key: &[u8],
    ) -> Result<Option<(u64, Bytes)>, StateError> {
        self.0.reads.get_at(restores, key).await
    }

    /// As [`State::keys_at`]; other work goes on while the disk is read.
    ///
    /// # Errors
    /// Those of [`State::keys_at`].
    pub async fn keys_at(
        &self,
        restores: u64,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Bytes>, StateError> {
        self.0.reads.keys_at(restores, prefix, after, limit).await
    }

    /// As [`State::mod_index`]; other work goes on while the disk is read.
    ///
    /// # Errors
    /// Those of [`State::mod_index`].
    pub async fn mod_index(&self, key: &[u8]) -> Result<Option<u64>, StateError> {
        self.0.reads.mod_index(key).await
    }

    /// Local reads of the state.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.0.state)
    }

    /// What this node did with snapshots since it started. Cheap and never waits.
    #[must_use]
    pub fn snapshot_stats(&self) -> SnapshotStats {
        let newest = self.0.state.snapshots.newest();
        let last = newest.map_or(0, |newest| newest.index());
        let purged = self.0.log.purged().map_or(0, |id| id.index);
        self.0.state.counters.stats(last, purged)
    }

    /// This node's view of itself and the cluster. Cheap and never waits.
    #[must_use]
    pub fn status(&self) -> Status {
        let role = *self.0.role.borrow();
        let since = self.0.leader_since_ms.load(Ordering::Relaxed);
        let applied = self.0.state.applied();
        let raft_id = self.0.options.identity.raft_id;
        let timing = self.0.services.timing;
        let has_leader = self.0.services.has_leader();
        self.0.services.metrics(|metrics| Status {
            raft_id,
            term: metrics.current_term,
            leader: known_leader(metrics, timing).filter(|_| has_leader),
            is_ready_leader: role.is_ready_leader && metrics.state.is_leader(),
            leader_since_ms: role.is_ready_leader.then_some(since),
            committed: committed(metrics).max(applied),
            applied,
            last_log: metrics.last_log_index.unwrap_or(0),
            members: members(metrics, timing),
            membership_index: metrics.membership_config.log_id().map_or(0, |id| id.index),
        })
    }

    /// The part this node plays now. Cheap.
    #[must_use]
    pub fn role(&self) -> Role {
        *self.0.role.borrow()
    }

    /// Whether there is a leader as far as this node can tell, if need be from what it heard five election time-outs ago:
    /// `false` on a node that is cut off, and on all nodes of a cluster that has lost its quorum. A node that leads alone is
    /// never without.
    #[must_use]
    pub fn has_leader(&self) -> bool {
        self.0.services.has_leader()
    }

    /// The `api_addr` on record of member `raft_id`. Cheap.
    #[must_use]
    pub fn api_addr(&self, raft_id: u64) -> Option<String> {
        self.0.dialer.as_ref()?.directory.api_addr(raft_id)
    }

    /// What the node holds at this moment, for its operator.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let free = self.0.in_flight.available_permits();
        Usage {
            in_flight_bytes: ADMISSION.saturating_sub(free) * UNIT,
            log: self.0.log.size(),
            state: self.0.state.size(),
        }
    }

    /// Whether the disk is so full that this node takes no log entries, and so falls behind.
    #[must_use]
    pub fn takes_no_entries(&self) -> bool {
        self.0.services.vitals.room() == Room::Critical
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

    /// Hands leadership over and waits until another node leads.
    ///
    /// # Errors
    /// Why there is nobody to hand it to, or why the named node cannot lead: nothing has changed then. `TimedOut` at the
    /// deadline.
    pub async fn transfer_leader(&self, to: Next, deadline: Instant) -> Result<(), TransferError> {
        let wanted = match to {
            Next::Best => Successor::Best,
            Next::Anybody => Successor::Anybody,
            Next::Named(name) => Successor::Named(name),
        };
        if self.status().leader != Some(self.0.options.identity.raft_id) {
            return Err(TransferError::NotLeader);
        }
        transfer(&self.0.services, self.watch(), &wanted, deadline).await
    }

    /// What the operator wants of autopilot. To be told on every node, or at least on the leader whenever it becomes
    /// one: until then autopilot does nothing that the operator might have forbidden.
    pub fn set_autopilot(&self, settings: Autopilot) {
        self.0.services.tracker.set(settings);
    }

    /// The cluster as autopilot sees it; `None` on a node that does not lead.
    #[must_use]
    pub fn autopilot(&self) -> Option<AutopilotStatus> {
        let services = &self.0.services;
        services.metrics(|metrics| services.tracker.status(metrics, services.timing))
    }

    /// Removes the node of this name, or all of them: only the leader can.
    ///
    /// # Errors
    /// `Unknown`; `Refused` when the rest would have no quorum; `IsLeader` when it is this node.
    pub async fn remove_node(&self, name: &str) -> Result<(), MembershipError> {
        let members = self.status().members;
        if !members.iter().any(|member| member.info.name == name) {
            return Err(MembershipError::Unknown(name.to_owned()));
        }
        let removing = reconcile::remove(&self.0.services, |_, info| info.name == name);
        self.limited(removing).await
    }

    /// Takes the vote of the node of this name until it is given back, or gives it back: the node then votes as soon as
    /// it has caught up. Only the leader can.
    ///
    /// # Errors
    /// `Unknown`; `Refused` when there is nothing to change or the rest would have no quorum; `IsLeader`.
    pub async fn set_non_voter(&self, name: &str, non_voter: bool) -> Result<(), MembershipError> {
        let changing = reconcile::set_non_voter(&self.0.services, name, non_voter);
        self.limited(changing).await
    }

    /// Asks the leader to remove this node; not while it leads itself.
    ///
    /// # Errors
    /// `Refused` when the rest would have no quorum; `NotLeader` and `NoQuorum` are worth another try.
    pub async fn leave(&self) -> Result<(), MembershipError> {
        self.limited(self.0.services.leave()).await
    }

    async fn limited(
        &self,
        change: impl Future<Output = Result<(), MembershipError>>,
    ) -> Result<(), MembershipError> {
        let limit = self.0.services.timing.election_max * 5;
        tokio::time::timeout(limit, change)
            .await
            .unwrap_or(Err(MembershipError::NoQuorum))
    }

    /// Resolves, in words for the operator, when it is certain that the cluster has removed this node.
    pub async fn removed(&self) -> String {
        loop {
            if let Some(reason) = self.0.services.removed() {
                return reason;
            }
            tokio::time::sleep(self.0.services.timing.heartbeat).await;
        }
    }

    /// Resolves, with the reason, when this node cannot go on: a failed sync, damaged data, a stopped core, a task that has
    /// panicked. The process should end. Never resolves because of [`Raft::shutdown`].
    pub async fn fatal(&self) -> String {
        let mut metrics = self.0.services.core.metrics();
        let mut log = self.0.log.progress();
        let mut tasks = self.0.tasks.died();
        loop {
            if let Some(why) = tasks.borrow_and_update().clone() {
                return why;
            }
            let failed = log.borrow_and_update().failed.clone();
            if let Some(why) = failed {
                return why;
            }
            let running = metrics.borrow_and_update().running_state.clone();
            if let Err(fatal) = running
                && !self.0.tasks.closing.is_cancelled()
            {
                return fatal.to_string();
            }
            tokio::select! {
                () = self.0.tasks.closing.cancelled() => std::future::pending().await,
                changed = metrics.changed() => {
                    if changed.is_err() && !self.0.tasks.closing.is_cancelled() {
                        return "Raft has stopped".to_owned();
                    }
                }
                // Its sender is in `self`.
                _ = tasks.changed() => {}
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
        self.0.tasks.closing.cancel();
        wait(&self.0.tasks.tracker, "connections").await;
        if let Err(error) = self.0.services.core.shutdown().await {
            tracing::error!(%error, "stopping Raft failed");
        }
        wait(&self.0.users, "applying").await;
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

/// A proposal under way. When nobody waits for its outcome any more it still counts as under way until it has one: what may
/// yet be applied is bounded, not only what is waited for.
struct Pending<'a> {
    ticket: Option<Ticket>,
    admitted: &'a Arc<OwnedSemaphorePermit>,
}

impl Pending<'_> {
    async fn outcome(&mut self) -> <Ticket as Future>::Output {
        match &mut self.ticket {
            None => std::future::pending().await,
            Some(ticket) => {
                let outcome = ticket.await;
                self.ticket = None;
                outcome
            }
        }
    }

    /// See [`Ticket::give_up`].
    fn give_up(&mut self) -> bool {
        let given_up = self.ticket.as_ref().is_some_and(Ticket::give_up);
        if given_up {
            self.ticket = None;
        }
        given_up
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.give_up() {
            return;
        }
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        let admitted = Arc::clone(self.admitted);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                drop(ticket.await);
                drop(admitted);
            });
        }
    }
}

/// Waits a bounded time for everything tracked to end.
async fn wait(tracker: &TaskTracker, what: &str) {
    tracker.close();
    let ended = tokio::time::timeout(Duration::from_secs(5), tracker.wait()).await;
    if ended.is_err() {
        tracing::warn!("{what} did not end in time");
    }
}

fn committed(metrics: &Metrics) -> u64 {
    let known = metrics.cluster_committed.max(metrics.local_committed);
    known.map_or(0, |id| id.index)
}

fn members(metrics: &Metrics, timing: Timing) -> Vec<MemberStatus> {
    let leader = known_leader(metrics, timing);
    let stored = &metrics.membership_config;
    let configs = stored.get_joint_config();
    let member = |(id, info): (&u64, &PeerInfo)| {
        let acks = metrics.heartbeat.as_ref();
        let matched = metrics.replication.as_ref();
        MemberStatus {
            raft_id: *id,
            info: info.clone(),
            voter: configs.iter().all(|voters| voters.contains(id)),
            leader: leader == Some(*id),
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
