//! The node as the API sees it: what phase it is in, who leads, and the hand-over of init and join to the lifecycle.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use metrics::{Counter, counter, describe_counter};
use strongroom_api::{
    Limits,
    autopilot::AutopilotConfig,
    core::Core,
    ports::{
        AnswerRequest, AutopilotState, Challenge, ChallengeRequest, ClusterError, ForwardError,
        InitError, InitRequest, InitResult, JoinError, JoinGrant, JoinRequest, LeaderStatus,
        Member, MetricsFormat, Node, PeerChange, Role, SealStatus, SnapshotError, Stream,
    },
};
use strongroom_raft::Raft;
use strongroom_seal::{
    config::SealConfig,
    hsm::{Health, Hsm},
};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    VERSION, autopilot,
    bundle::SealBundle,
    forward::SharedForwarder,
    join::{self, JoinGate},
    lifecycle,
    restore::{self, Candidate, Restorer},
    save::Snapshot,
    serving::Served,
};
use crate::{clock, config::Config, telemetry};

/// For `seal-status`, and for who would have it join again.
const REMOVED: &str = "this node was removed from the cluster; to take it back, start it with an empty data directory";

/// For `seal-status`, before anything has happened.
pub(crate) const STARTING: &str = "starting";

/// Where the node is in its life.
pub(crate) enum Phase {
    /// The data directory has not been read, and its files alone do not tell whether this node is in a cluster: it may be new, or its
    /// init or join was cut off.
    Starting,
    /// No cluster yet; holds why a join does not get on, for `seal-status`.
    Uninitialized { why: Option<String> },
    /// Keys are wrapped; holds why they stay so.
    Sealed {
        config: SealConfig,
        why: String,
        /// An attempt to unseal has failed: nobody knows how long it takes from here on.
        failed: bool,
    },
    /// Raft runs and the keyring is open.
    Unsealed(Arc<Running>),
    /// The cluster has removed this node.
    Removed { config: SealConfig },
}

/// Everything that exists only while unsealed.
pub(crate) struct Running {
    pub(crate) raft: Raft,
    pub(crate) raft_id: u64,
    pub(crate) cluster_id: [u8; 16],
    pub(crate) cluster_name: String,
    /// The keys in use, wrapped.
    pub(crate) bundle: ArcSwap<SealBundle>,
    pub(crate) forwarder: SharedForwarder,
    pub(crate) gate: JoinGate,
    /// Set while this node's state holds data that its keys open.
    pub(crate) core: ArcSwapOption<Served>,
    /// The data have just been replaced by a restore: there will be another core in a moment.
    pub(crate) between: AtomicBool,
    /// Requests wait while a restore tries other keys.
    pub(crate) paused: AtomicBool,
    /// Why the keys of restored data do not open.
    pub(crate) trouble: ArcSwapOption<String>,
    /// The task that this node cannot do without and that has panicked.
    pub(crate) died: watch::Sender<Option<&'static str>>,
    /// One permit for each snapshot that may be taken at the same time.
    pub(crate) saves: Arc<Semaphore>,
}

impl Running {
    /// Runs `task` until `stop`; its panic ends the node ([`Running::task_died`]).
    pub(crate) fn vital(
        self: &Arc<Self>,
        name: &'static str,
        stop: &CancellationToken,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let (running, stop) = (Arc::clone(self), stop.clone());
        tokio::spawn(async move {
            let guarded = AssertUnwindSafe(task).catch_unwind();
            // The panic's own text went to standard error.
            if let Some(Err(_panic)) = stop.run_until_cancelled(guarded).await {
                running.died.send_replace(Some(name));
            }
        });
    }

    /// Resolves when a task that this node cannot do without has panicked, with its name.
    pub(crate) async fn task_died(&self) -> &'static str {
        let mut died = self.died.subscribe();
        loop {
            if let Some(name) = *died.borrow_and_update() {
                return name;
            }
            if died.changed().await.is_err() {
                // The sender is in `self`.
                std::future::pending().await
            }
        }
    }

    /// What the API works on; `None` while there is nothing that fits the data.
    pub(crate) fn core(&self) -> Option<Arc<Core>> {
        if self.paused.load(Ordering::Acquire) {
            return None;
        }
        self.core.load().as_ref()?.on(&self.raft.state())
    }

    /// Whether [`Running::core`] will be there again in a moment.
    fn is_between(&self) -> bool {
        self.paused.load(Ordering::Acquire)
            || self.between.load(Ordering::Acquire)
            // A restore has come that nobody has noticed yet.
            || self.core.load().is_some()
    }
}

/// What the lifecycle does on somebody's behalf.
pub(crate) enum Order {
    /// Makes a new cluster of a snapshot.
    Restore {
        candidate: Box<Candidate>,
        id: [u8; 16],
        force: bool,
        reply: oneshot::Sender<Result<(), SnapshotError>>,
    },
    Init {
        request: InitRequest,
        reply: oneshot::Sender<Result<InitResult, InitError>>,
    },
    Join {
        request: JoinRequest,
        reply: oneshot::Sender<Result<bool, JoinError>>,
    },
}

/// Shared by listeners and lifecycle.
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) hsm: Hsm,
    pub(crate) phase: ArcSwap<Phase>,
    pub(crate) orders: mpsc::Sender<Order>,
    /// One restore at a time, whatever the node is.
    pub(crate) restorer: Arc<Restorer>,
    /// Names the attempt to make a cluster that this node is at, or has succeeded with.
    pub(crate) founding: ArcSwapOption<String>,
    /// Told to stop: still serving, but nobody should send anything new.
    pub(crate) leaving: AtomicBool,
    /// Told to stop, or unable to go on.
    pub(crate) stop: CancellationToken,
    /// See [`HELD_AT_START`].
    pub(crate) started: Instant,
    /// Notified when there may be a core that was not there before.
    pub(crate) changed: Notify,
    /// What all listeners together may have under way.
    pub(crate) limits: Limits,
}

impl Shared {
    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.store(Arc::new(phase));
        self.changed.notify_waiters();
    }

    pub(crate) fn running(&self) -> Option<Arc<Running>> {
        match &**self.phase.load() {
            Phase::Unsealed(running) => Some(Arc::clone(running)),
            Phase::Starting
            | Phase::Uninitialized { .. }
            | Phase::Sealed { .. }
            | Phase::Removed { .. } => None,
        }
    }

    /// Whether it is the lifecycle that says what becomes of an order to make, join or restore a cluster.
    fn may_be_empty(&self) -> bool {
        let phase = self.phase.load();
        matches!(&**phase, Phase::Starting | Phase::Uninitialized { .. })
    }

    /// Whether there will be a core in a moment, without anybody's doing.
    fn core_is_coming(&self) -> bool {
        if self.stop.is_cancelled() {
            return false;
        }
        let age = self.started.elapsed();
        match &**self.phase.load() {
            Phase::Starting => age < HELD_AT_START,
            Phase::Sealed { failed, .. } => match self.hsm.health() {
                Health::Connecting | Health::Ok if !failed => age < HELD_AT_START,
                Health::Connecting | Health::Ok | Health::Down { .. } => age < HELD_IN_TROUBLE,
                Health::PinRefused { .. } | Health::Misconfigured { .. } | Health::Stuck => false,
            },
            Phase::Unsealed(running) => {
                running.is_between() || (age < HELD_AT_START && running.trouble.load().is_none())
            }
            Phase::Uninitialized { .. } | Phase::Removed { .. } => false,
        }
    }

    /// Sentences for `seal-status`: what keeps the node from serving, and how the HSM is.
    fn warnings(&self, phase: &Phase) -> Vec<String> {
        let mut warnings = Vec::new();
        match phase {
            Phase::Starting => warnings.push(STARTING.to_owned()),
            Phase::Uninitialized { why: Some(why) } | Phase::Sealed { why, .. } => {
                warnings.push(why.clone());
            }
            Phase::Removed { .. } => warnings.push(REMOVED.to_owned()),
            Phase::Uninitialized { why: None } | Phase::Unsealed(_) => {}
        }
        if let Phase::Unsealed(running) = phase
            && let Some(why) = running.trouble.load_full()
        {
            warnings.push(why.to_string());
        }
        let health = self.hsm.health();
        if !matches!(health, Health::Ok | Health::Connecting) {
            warnings.push(format!("HSM: {health}"));
        }
        warnings
    }
}

/// [`Node`] on the shared state.
pub(crate) struct NodePort(pub(crate) Arc<Shared>);

#[async_trait]
impl Node for NodePort {
    fn core(&self) -> Option<Arc<Core>> {
        self.0.running().and_then(|running| running.core())
    }

    async fn core_soon(&self, until: Instant) -> Option<Arc<Core>> {
        let mut held = false;
        loop {
            let changed = self.0.changed.notified();
            if let Some(core) = self.core() {
                return Some(core);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.0.core_is_coming() {
                return None;
            }
            if !std::mem::replace(&mut held, true) {
                held_requests().increment(1);
            }
            tokio::select! {
                () = changed => {}
                () = self.0.stop.cancelled() => {}
                // Not everything that is looked at tells when it changes.
                () = tokio::time::sleep(left.min(LOOK)) => {}
            }
        }
    }

    fn role(&self) -> Role {
        let Some(running) = self.0.running() else {
            return Role::NoLeader;
        };
        // Asked for every write: the role alone is cheap, the whole status is not.
        let role = running.raft.role();
        if role.is_ready_leader {
            return Role::Leader;
        }
        let leader = role.leader.filter(|leader| *leader != running.raft_id);
        match leader.and_then(|leader| running.raft.api_addr(leader)) {
            Some(leader_api_addr) => Role::Follower { leader_api_addr },
            None => Role::NoLeader,
        }
    }

    async fn is_initialized(&self) -> Option<bool> {
        let known = async {
            loop {
                let changed = self.0.changed.notified();
                match &**self.0.phase.load() {
                    Phase::Starting => {}
                    Phase::Uninitialized { .. } => return false,
                    Phase::Sealed { .. } | Phase::Unsealed(_) | Phase::Removed { .. } => {
                        return true;
                    }
                }
                changed.await;
            }
        };
        tokio::select! {
            biased;
            known = tokio::time::timeout(KNOWN_WITHIN, known) => known.ok(),
            () = self.0.stop.cancelled() => None,
        }
    }

    fn seal_status(&self) -> SealStatus {
        let phase = self.0.phase.load();
        let recovery = match &**phase {
            Phase::Starting | Phase::Uninitialized { .. } => None,
            Phase::Sealed { config, .. } | Phase::Removed { config } => Some(config.recovery()),
            Phase::Unsealed(running) => Some(running.bundle.load().config.recovery()),
        };
        let running = self.0.running();
        let sealed = self.core().is_none();
        let open = running.as_ref().filter(|_| !sealed);
        SealStatus {
            seal_type: "pkcs11".to_owned(),
            initialized: recovery.is_some(),
            sealed,
            t: recovery.map_or(0, |recovery| u32::from(recovery.threshold)),
            n: recovery.map_or(0, |recovery| u32::from(recovery.shares)),
            progress: 0,
            nonce: String::new(),
            version: VERSION.to_owned(),
            build_date: super::BUILD_DATE.to_owned(),
            migration: false,
            cluster_name: open.map(|r| r.cluster_name.clone()),
            cluster_id: open.map(|r| super::cluster_uuid(&r.cluster_id)),
            recovery_seal: true,
            recovery_seal_type: "shamir".to_owned(),
            storage_type: "raft".to_owned(),
            removed_from_cluster: matches!(&**phase, Phase::Removed { .. }),
            warnings: self.0.warnings(&phase),
        }
    }

    fn leader_status(&self) -> LeaderStatus {
        let status = self.0.running().map(|running| running.raft.status());
        let leader = status.as_ref().and_then(|status| {
            let id = status.leader?;
            status.members.iter().find(|member| member.raft_id == id)
        });
        let is_self = status.as_ref().is_some_and(|s| s.is_ready_leader);
        LeaderStatus {
            ha_enabled: true,
            is_self,
            active_time: status
                .as_ref()
                .filter(|_| is_self)
                .and_then(|s| s.leader_since_ms)
                .map(clock::rfc3339),
            leader_address: leader.map_or_else(String::new, |m| m.info.api_addr.clone()),
            leader_cluster_address: leader
                .map_or_else(String::new, |m| format!("https://{}", m.info.cluster_addr)),
            performance_standby: false,
            performance_standby_last_remote_wal: 0,
            raft_committed_index: status.as_ref().map_or(0, |s| s.committed),
            raft_applied_index: status.as_ref().map_or(0, |s| s.applied),
        }
    }

    fn members(&self) -> (Vec<Member>, u64) {
        let Some(running) = self.0.running() else {
            return (Vec::new(), 0);
        };
        let status = running.raft.status();
        let now = clock::now_ms();
        let members = status.members.iter().map(|member| Member {
            name: member.info.name.clone(),
            hostname: member.info.hostname.clone(),
            api_addr: member.info.api_addr.clone(),
            cluster_addr: member.info.cluster_addr.clone(),
            version: member.info.version.clone(),
            leader: status.leader == Some(member.raft_id),
            voter: member.voter,
            upgrade_version: autopilot::upgrade_version(&member.info),
            redundancy_zone: member.info.redundancy_zone.clone(),
            last_echo: member.last_ack.map(|age| {
                let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
                clock::rfc3339(now.saturating_sub(age))
            }),
        });
        (members.collect(), status.membership_index)
    }

    async fn step_down(&self, to: Option<String>, deadline: Instant) -> Result<(), ClusterError> {
        let running = self.0.running().ok_or(ClusterError::NotLeader)?;
        autopilot::step_down(&running.raft, to, deadline).await
    }

    async fn change_peer(
        &self,
        change: PeerChange,
        name: &str,
        deadline: Instant,
    ) -> Result<(), ClusterError> {
        let running = self.0.running().ok_or(ClusterError::NotLeader)?;
        autopilot::change_peer(&running.raft, change, name, deadline).await
    }

    fn autopilot(&self) -> Option<AutopilotState> {
        let status = self.0.running()?.raft.autopilot()?;
        Some(autopilot::state(status, clock::now_ms()))
    }

    fn autopilot_changed(&self, config: &AutopilotConfig) {
        if let Some(running) = self.0.running() {
            running.raft.set_autopilot(autopilot::settings(config));
        }
    }

    async fn init(&self, request: InitRequest) -> Result<InitResult, InitError> {
        if !self.0.may_be_empty() {
            return Err(InitError::AlreadyInitialized);
        }
        let (reply, answer) = oneshot::channel();
        self.0
            .orders
            .try_send(Order::Init { request, reply })
            .map_err(|_| InitError::InProgress)?;
        answer
            .await
            .unwrap_or_else(|_| Err(InitError::Failed("the node is shutting down".to_owned())))
    }

    async fn join(&self, request: JoinRequest) -> Result<bool, JoinError> {
        if matches!(&**self.0.phase.load(), Phase::Removed { .. }) {
            return Err(JoinError::BadRequest(REMOVED.to_owned()));
        }
        if !self.0.may_be_empty() {
            // As Vault does: a node that is in a cluster says so and changes nothing.
            return Ok(true);
        }
        let (reply, answer) = oneshot::channel();
        self.0
            .orders
            .try_send(Order::Join { request, reply })
            .map_err(|_| {
                JoinError::Unavailable("an initialization or a join is in progress".to_owned())
            })?;
        answer
            .await
            .unwrap_or_else(|_| Err(JoinError::Failed("the node is shutting down".to_owned())))
    }

    async fn join_challenge(&self, request: ChallengeRequest) -> Result<Challenge, JoinError> {
        let running = self.leading()?;
        running
            .gate
            .challenge(&self.0.hsm, &running.bundle.load().config, &request)
            .await
    }

    async fn join_answer(&self, request: AnswerRequest) -> Result<JoinGrant, JoinError> {
        let running = self.leading()?;
        running.gate.verify(&request)?;
        join::admit(
            &running.raft,
            &running.bundle.load(),
            &running.cluster_id,
            &request,
        )
        .await
    }

    async fn forward(
        &self,
        request: http::Request<Bytes>,
        deadline: Instant,
    ) -> Result<http::Response<Bytes>, ForwardError> {
        match self.0.running() {
            Some(running) => running.forwarder.forward(request, deadline).await,
            None => Err(ForwardError::NotSent("this node is sealed".to_owned())),
        }
    }

    fn metrics(&self, format: MetricsFormat) -> Option<String> {
        let settings = &self.0.config.telemetry;
        let naming = telemetry::Naming {
            prefix: settings.metrics_prefix.clone(),
            host: settings.enable_hostname_label.then(super::hostname),
        };
        let (gauges, now) = (telemetry::gather(&self.0), clock::now_ms());
        match format {
            MetricsFormat::Json => Some(telemetry::json(&gauges, &naming, now).to_string()),
            MetricsFormat::Prometheus => settings
                .prometheus
                .then(|| telemetry::prometheus(&gauges, &naming, now)),
        }
    }

    async fn snapshot(&self) -> Result<Stream, SnapshotError> {
        let running = self.0.running().ok_or_else(sealed)?;
        Ok(Snapshot::take(&self.0.hsm, &running).await?.stream())
    }

    async fn restore(&self, file: Stream, force: bool) -> Result<(), SnapshotError> {
        let shared = Arc::clone(&self.0);
        let is_leader = |running: &Running| running.raft.watch().borrow().is_ready_leader;
        let work = match &**self.0.phase.load() {
            Phase::Starting
            | Phase::Uninitialized { .. }
            | Phase::Sealed { .. }
            | Phase::Removed { .. } => return Err(sealed()),
            Phase::Unsealed(running) if !is_leader(running) => {
                return Err(SnapshotError::NotLeader);
            }
            Phase::Unsealed(running) => {
                let running = Arc::clone(running);
                tokio::spawn(async move { restore::restore(&shared, &running, file, force).await })
            }
        };
        // In a task of its own: a client that goes away must not stop it half way.
        work.await.unwrap_or(Err(SnapshotError::Unknown))
    }

    async fn found(&self, file: Stream, force: bool) -> Result<(), SnapshotError> {
        if !self.0.may_be_empty() {
            return Err(SnapshotError::Unavailable(
                lifecycle::HAS_CLUSTER.to_owned(),
            ));
        }
        let shared = Arc::clone(&self.0);
        let work = tokio::spawn(async move { restore::found(&shared, file, force).await });
        work.await.unwrap_or(Err(SnapshotError::Unknown))
    }

    async fn forward_stream(
        &self,
        request: http::Request<Stream>,
        until: Instant,
    ) -> Result<http::Response<Bytes>, ForwardError> {
        match self.0.running() {
            Some(running) => running.forwarder.forward_stream(request, until).await,
            None => Err(ForwardError::NotSent("this node is sealed".to_owned())),
        }
    }

    fn falls_behind(&self) -> bool {
        self.0
            .running()
            .is_some_and(|running| running.raft.takes_no_entries())
    }

    fn initializing(&self) -> Option<String> {
        self.0.founding.load().as_deref().cloned()
    }

    fn is_leaving(&self) -> bool {
        self.0.leaving.load(Ordering::Relaxed)
    }

    fn has_leader(&self) -> bool {
        let running = self.0.running();
        running.is_none_or(|running| running.raft.has_leader())
    }

    fn now_ms(&self) -> u64 {
        clock::now_ms()
    }
}

impl NodePort {
    fn leading(&self) -> Result<Arc<Running>, JoinError> {
        self.0
            .running()
            .filter(|running| running.raft.watch().borrow().is_ready_leader)
            .ok_or_else(|| JoinError::Unavailable("this node is not the leader".to_owned()))
    }
}

/// Requests that waited for a core. To be there from the start on, or the first ones would not show as a rise.
pub(crate) fn held_requests() -> &'static Counter {
    static HELD: LazyLock<Counter> = LazyLock::new(|| {
        describe_counter!(
            "strongroom.requests_held_total",
            "Requests that waited for this node to serve, after its start or after a restore"
        );
        counter!("strongroom.requests_held_total")
    });
    &HELD
}

/// How long one who asks waits while the node does not know whether there is a cluster. Other nodes that ask give up after two seconds.
const KNOWN_WITHIN: Duration = Duration::from_millis(1500);

/// Longest pause before looking again for a core.
const LOOK: Duration = Duration::from_millis(100);

/// A node that has just started, and is about to serve, has requests wait so long after its start at most: a load balancer that
/// has not noticed its absence sends it some. Whoever allows less time has given up by then.
const HELD_AT_START: Duration = Duration::from_secs(15);
/// The same while something has gone wrong that may pass in a moment: an HSM that still counts the sessions of the process
/// before, for one.
const HELD_IN_TROUBLE: Duration = Duration::from_secs(3);

fn sealed() -> SnapshotError {
    SnapshotError::Unavailable("Vault is sealed".to_owned())
}

/// How long the answer to an init waits for the node to serve; the keys exist by then, so it is given in any case.
pub(crate) const INIT_GRACE: Duration = Duration::from_secs(10);
