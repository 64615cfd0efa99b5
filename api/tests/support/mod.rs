//! A cluster in memory: the ports of the API on maps, with faults that tests order.
//!
//! The ciphers here hide nothing; they bind a value to its path, which is what the API relies on.
#![allow(
    dead_code,
    reason = "each test binary uses its own part of this module"
)]

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;
use strongroom_api::{
    HttpSettings, Service,
    autopilot::AutopilotConfig,
    core::{ClusterIdentity, Core},
    initial_writes,
    ports::{
        AnswerRequest, AutopilotServer, AutopilotState, AutopilotUpgrade, Barrier, BarrierError,
        Challenge, ChallengeRequest, Child, ClusterError, Expect, ForwardError, InitError,
        InitRequest, InitResult, JoinError, JoinGrant, JoinRequest, KeyStatus, LeaderStatus,
        Member, MetricsFormat, Node, PeerChange, Role, SealStatus, SealWrap, SnapshotError, Store,
        StoreError, StoredBatch, Stream, Versioned,
    },
};
use tokio::sync::Notify;
use zeroize::Zeroizing;

pub(crate) const CLUSTER_ID: &str = "5c1e7c0a-0000-4000-8000-000000000001";
pub(crate) const NOW_MS: u64 = 1_795_455_635_000;

/// What goes wrong with the next call of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing, this time.
    None,
    /// The write is applied, its outcome is lost.
    AppliedButUnknown,
    /// The write is not applied, its outcome is lost.
    LostAndUnknown,
    /// The node finds that it leads no more; nothing is written.
    NotLeader,
    /// No quorum answers; nothing is written.
    NoQuorum,
    /// As the store says.
    Busy,
    /// As the store says.
    NoRoom,
    /// As the store says.
    TooLarge,
    /// The call panics.
    Panic,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) map: BTreeMap<Vec<u8>, (u64, Bytes)>,
    pub(crate) index: u64,
    /// Outcome by request id: `None` is a condition that did not hold.
    outcomes: HashMap<[u8; 16], Option<u64>>,
    /// Batches applied, repetitions not counted.
    pub(crate) applied: usize,
}

/// Shared by all nodes: one state, as if replication took no time.
pub(crate) struct Cluster {
    pub(crate) state: Mutex<State>,
    pub(crate) leader: Mutex<Option<usize>>,
    pub(crate) commit_faults: Mutex<VecDeque<Fault>>,
    /// The next forwarded requests are carried out, and their answers get lost.
    pub(crate) lost_answers: AtomicUsize,
    pub(crate) hsm_away: AtomicBool,
    pub(crate) unwraps: AtomicUsize,
    /// The next unwrapping waits for this.
    pub(crate) slow_unwrap: Mutex<Option<Arc<Notify>>>,
    pub(crate) wraps: AtomicUsize,
    /// Before the next commit that a follower asks for, this stored key is written by somebody else.
    pub(crate) overtake: Mutex<Option<Vec<u8>>>,
    /// Reading the value under this stored key writes something, as that of a token with limited uses will.
    pub(crate) counted: Mutex<Option<Vec<u8>>>,
    /// Whole requests that followers have sent to the leader.
    pub(crate) forwards: AtomicUsize,
    /// What nodes were told to do with members, in order.
    pub(crate) changes: Mutex<Vec<String>>,
    /// Restores: which node carried it out, and how long the file was.
    pub(crate) restored: Mutex<Vec<(usize, usize)>>,
    nodes: Mutex<Vec<Weak<TestNode>>>,
}

impl Cluster {
    /// `count` unsealed nodes, of which the first leads; and the root token.
    pub(crate) async fn start(count: usize) -> (Arc<Self>, Vec<Arc<TestNode>>, String) {
        let cluster = Arc::new(Self {
            state: Mutex::default(),
            leader: Mutex::new(Some(0)),
            commit_faults: Mutex::default(),
            lost_answers: AtomicUsize::new(0),
            hsm_away: AtomicBool::new(false),
            unwraps: AtomicUsize::new(0),
            slow_unwrap: Mutex::default(),
            wraps: AtomicUsize::new(0),
            overtake: Mutex::default(),
            counted: Mutex::default(),
            forwards: AtomicUsize::new(0),
            changes: Mutex::default(),
            restored: Mutex::default(),
            nodes: Mutex::default(),
        });
        let wrap = TestWrap(Arc::clone(&cluster));
        let (batch, token) = initial_writes(&TestBarrier, &wrap, NOW_MS).await.unwrap();
        cluster.apply(batch).unwrap();
        let nodes: Vec<_> = (0..count).map(|id| TestNode::new(&cluster, id)).collect();
        *cluster.nodes.lock().unwrap() = nodes.iter().map(Arc::downgrade).collect();
        (cluster, nodes, token.to_string())
    }

    pub(crate) fn set_leader(&self, leader: Option<usize>) {
        *self.leader.lock().unwrap() = leader;
    }

    pub(crate) fn fail_next_commits(&self, faults: &[Fault]) {
        self.commit_faults.lock().unwrap().extend(faults);
    }

    pub(crate) fn applied(&self) -> usize {
        self.state.lock().unwrap().applied
    }

    /// Every stored byte, keys and values.
    pub(crate) fn stored(&self) -> Vec<(Vec<u8>, Bytes)> {
        let state = self.state.lock().unwrap();
        let entries = state.map.iter();
        entries
            .map(|(key, (_, value))| (key.clone(), value.clone()))
            .collect()
    }

    fn apply(&self, batch: StoredBatch) -> Result<u64, StoreError> {
        let mut state = self.state.lock().unwrap();
        if let Some(outcome) = state.outcomes.get(&batch.request_id) {
            return outcome.ok_or(StoreError::CheckFailed);
        }
        state.index += 1;
        let index = state.index;
        let holds = batch.checks.iter().all(|(key, expect)| {
            let found = state.map.get(key).map(|(index, _)| *index);
            match expect {
                Expect::Absent => found.is_none(),
                Expect::ModIndex(wanted) => found == Some(*wanted),
            }
        });
        state
            .outcomes
            .insert(batch.request_id, holds.then_some(index));
        if !holds {
            return Err(StoreError::CheckFailed);
        }
        state.applied += 1;
        for (key, value) in batch.puts {
            state.map.insert(key, (index, value));
        }
        for key in batch.deletes {
            state.map.remove(&key);
        }
        Ok(index)
    }
}

struct TestStore {
    cluster: Arc<Cluster>,
    id: usize,
}

#[async_trait]
impl Store for TestStore {
    async fn linearize(&self, deadline: Instant) -> Result<(), StoreError> {
        while self.cluster.leader.lock().unwrap().is_none() {
            if Instant::now() >= deadline {
                return Err(StoreError::NoQuorum);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn wait_applied(&self, index: u64, deadline: Instant) -> bool {
        while self.cluster.state.lock().unwrap().index < index {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Versioned>, StoreError> {
        let counted = self.cluster.counted.lock().unwrap().as_deref() == Some(key);
        if counted {
            if *self.cluster.leader.lock().unwrap() != Some(self.id) {
                return Err(StoreError::NotLeader);
            }
            match self.cluster.commit_faults.lock().unwrap().pop_front() {
                Some(Fault::NoQuorum) => return Err(StoreError::NoQuorum),
                Some(Fault::LostAndUnknown) => return Err(StoreError::Unknown),
                _ => {}
            }
        }
        let state = self.cluster.state.lock().unwrap();
        Ok(state.map.get(key).map(|(mod_index, value)| Versioned {
            mod_index: *mod_index,
            value: value.clone(),
        }))
    }

    async fn keys(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Bytes>, StoreError> {
        let state = self.cluster.state.lock().unwrap();
        Ok(state
            .map
            .keys()
            .filter(|key| {
                key.starts_with(prefix) && after.is_none_or(|after| key.as_slice() > after)
            })
            .take(limit)
            .map(|key| Bytes::copy_from_slice(key))
            .collect())
    }

    async fn commit(&self, batch: StoredBatch, _deadline: Instant) -> Result<u64, StoreError> {
        if *self.cluster.leader.lock().unwrap() != Some(self.id) {
            return Err(StoreError::NotLeader);
        }
        let fault = self.cluster.commit_faults.lock().unwrap().pop_front();
        match fault {
            None | Some(Fault::None) => self.cluster.apply(batch),
            Some(Fault::AppliedButUnknown) => {
                let _ = self.cluster.apply(batch);
                Err(StoreError::Unknown)
            }
            Some(Fault::LostAndUnknown) => Err(StoreError::Unknown),
            Some(Fault::NotLeader) => Err(StoreError::NotLeader),
            Some(Fault::NoQuorum) => Err(StoreError::NoQuorum),
            Some(Fault::Busy) => Err(StoreError::Busy),
            Some(Fault::NoRoom) => Err(StoreError::NoRoom),
            Some(Fault::TooLarge) => Err(StoreError::TooLarge { len: 9, max: 8 }),
            Some(Fault::Panic) => panic!("ordered by the test"),
        }
    }

    async fn commit_anywhere(
        &self,
        batch: StoredBatch,
        deadline: Instant,
    ) -> Result<u64, StoreError> {
        let Some(leader) = *self.cluster.leader.lock().unwrap() else {
            return Err(StoreError::NoQuorum);
        };
        if let Some(key) = self.cluster.overtake.lock().unwrap().take() {
            let mut state = self.cluster.state.lock().unwrap();
            state.index += 1;
            let index = state.index;
            state.map.get_mut(&key).unwrap().0 = index;
        }
        let theirs = Self {
            cluster: Arc::clone(&self.cluster),
            id: leader,
        };
        theirs.commit(batch, deadline).await
    }

    fn applied(&self) -> u64 {
        self.cluster.state.lock().unwrap().index
    }
}

pub(crate) struct TestBarrier;

impl Barrier for TestBarrier {
    fn key(&self, path: &str) -> Result<Vec<u8>, BarrierError> {
        if path.split('/').any(str::is_empty) {
            return Err(BarrierError::Path("a segment is empty"));
        }
        if path.len() > 4096 {
            return Err(BarrierError::Path("longer than 4096 bytes"));
        }
        Ok(path.as_bytes().to_vec())
    }

    fn prefix(&self, folder: &str) -> Result<Vec<u8>, BarrierError> {
        let mut prefix = self.key(folder)?;
        prefix.push(b'/');
        Ok(prefix)
    }

    fn child(&self, folder: &str, stored_key: &[u8]) -> Result<Child, BarrierError> {
        let mut prefix = self.prefix(folder)?;
        let rest = stored_key
            .strip_prefix(prefix.as_slice())
            .ok_or(BarrierError::Damaged)?;
        let rest = String::from_utf8(rest.to_vec()).map_err(|_| BarrierError::Damaged)?;
        let (name, is_folder) = match rest.split_once('/') {
            Some((name, _)) => (name, true),
            None => (rest.as_str(), false),
        };
        prefix.extend_from_slice(name.as_bytes());
        prefix.extend_from_slice(b"/\xff");
        Ok(Child {
            name: name.to_owned(),
            is_folder,
            skip_to: prefix,
        })
    }

    fn seal(&self, path: &str, plaintext: &[u8]) -> Result<Vec<u8>, BarrierError> {
        let mut sealed = vec![b'B'];
        sealed.extend_from_slice(&self.hmac("path", path.as_bytes()));
        sealed.extend(plaintext.iter().map(|byte| byte ^ 0x5a));
        Ok(sealed)
    }

    fn open(&self, path: &str, stored: &[u8]) -> Result<Zeroizing<Vec<u8>>, BarrierError> {
        let hidden = stored
            .strip_prefix(b"B")
            .and_then(|rest| rest.strip_prefix(&self.hmac("path", path.as_bytes())))
            .ok_or(BarrierError::Damaged)?;
        Ok(Zeroizing::new(
            hidden.iter().map(|byte| byte ^ 0x5a).collect(),
        ))
    }

    fn hmac(&self, purpose: &'static str, data: &[u8]) -> [u8; 32] {
        let mut digest = [0; 32];
        for (turn, part) in digest.chunks_mut(8).enumerate() {
            let mut hasher = DefaultHasher::new();
            (turn, purpose, data).hash(&mut hasher);
            part.copy_from_slice(&hasher.finish().to_be_bytes());
        }
        digest
    }

    fn status(&self) -> KeyStatus {
        KeyStatus {
            term: 1,
            install_time_ms: NOW_MS,
            encryptions: 7,
        }
    }
}

struct TestWrap(Arc<Cluster>);

impl TestWrap {
    fn hsm(&self) -> Result<(), BarrierError> {
        if self.0.hsm_away.load(Ordering::SeqCst) {
            return Err(BarrierError::HsmUnavailable(
                "no token in the slot".to_owned(),
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl SealWrap for TestWrap {
    fn is_wrapped(&self, stored: &[u8]) -> bool {
        stored.starts_with(b"W")
    }

    async fn wrap(&self, _path: &str, barrier_ciphertext: &[u8]) -> Result<Vec<u8>, BarrierError> {
        self.hsm()?;
        // No two envelopes are the same.
        let count = self.0.wraps.fetch_add(1, Ordering::SeqCst);
        let mut envelope = format!("W{count:08}").into_bytes();
        envelope.extend_from_slice(barrier_ciphertext);
        Ok(envelope)
    }

    async fn unwrap(&self, _path: &str, envelope: &[u8]) -> Result<Bytes, BarrierError> {
        self.hsm()?;
        self.0.unwraps.fetch_add(1, Ordering::SeqCst);
        let slow = self.0.slow_unwrap.lock().unwrap().take();
        if let Some(slow) = slow {
            slow.notified().await;
        }
        let inside = envelope.get(9..).ok_or(BarrierError::Damaged)?;
        Ok(Bytes::copy_from_slice(inside))
    }
}

/// One node. Sealed or not initialised by order of the test.
pub(crate) struct TestNode {
    cluster: Arc<Cluster>,
    id: usize,
    core: Arc<Core>,
    pub(crate) sealed: AtomicBool,
    pub(crate) initialized: AtomicBool,
    pub(crate) leaving: AtomicBool,
    pub(crate) cut_off: AtomicBool,
}

impl TestNode {
    fn new(cluster: &Arc<Cluster>, id: usize) -> Arc<Self> {
        let store = TestStore {
            cluster: Arc::clone(cluster),
            id,
        };
        let identity = ClusterIdentity {
            name: "test".to_owned(),
            id: CLUSTER_ID.to_owned(),
        };
        Arc::new(Self {
            cluster: Arc::clone(cluster),
            id,
            core: Arc::new(Core::new(
                Arc::new(store),
                Arc::new(TestBarrier),
                Arc::new(TestWrap(Arc::clone(cluster))),
                identity,
            )),
            sealed: AtomicBool::new(false),
            initialized: AtomicBool::new(true),
            leaving: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
        })
    }

    /// Sends one request to the node's client port.
    pub(crate) async fn send(self: &Arc<Self>, request: Request<Bytes>) -> Answer {
        Answer::of(&Service::for_clients(self.port(), settings()), request).await
    }

    pub(crate) fn port(self: &Arc<Self>) -> Arc<dyn Node> {
        Arc::clone(self) as Arc<dyn Node>
    }
}

/// Short limits, so that tests end soon.
pub(crate) fn settings() -> HttpSettings {
    HttpSettings {
        max_request_size: 64 << 10,
        max_request_duration: Duration::from_secs(1),
        ..HttpSettings::default()
    }
}

#[async_trait]
impl Node for TestNode {
    fn core(&self) -> Option<Arc<Core>> {
        let serves = self.initialized.load(Ordering::SeqCst) && !self.sealed.load(Ordering::SeqCst);
        serves.then(|| Arc::clone(&self.core))
    }

    fn role(&self) -> Role {
        match *self.cluster.leader.lock().unwrap() {
            Some(leader) if leader == self.id => Role::Leader,
            Some(leader) => Role::Follower {
                leader_api_addr: format!("https://10.0.0.{leader}:8200"),
            },
            None => Role::NoLeader,
        }
    }

    async fn is_initialized(&self) -> Option<bool> {
        Some(self.initialized.load(Ordering::SeqCst))
    }

    fn seal_status(&self) -> SealStatus {
        let initialized = self.initialized.load(Ordering::SeqCst);
        let open = self.core().is_some();
        SealStatus {
            seal_type: "pkcs11".to_owned(),
            initialized,
            sealed: !open,
            t: 3,
            n: 5,
            progress: 0,
            nonce: String::new(),
            version: "0.1.0".to_owned(),
            build_date: "2026-11-23T00:00:00Z".to_owned(),
            migration: false,
            cluster_name: open.then(|| "test".to_owned()),
            cluster_id: open.then(|| CLUSTER_ID.to_owned()),
            recovery_seal: true,
            recovery_seal_type: "shamir".to_owned(),
            storage_type: "raft".to_owned(),
            removed_from_cluster: false,
            warnings: Vec::new(),
        }
    }

    fn leader_status(&self) -> LeaderStatus {
        let is_self = self.role() == Role::Leader;
        LeaderStatus {
            ha_enabled: true,
            is_self,
            active_time: is_self.then(|| "2026-11-23T17:40:35Z".to_owned()),
            leader_address: "https://10.0.0.0:8200".to_owned(),
            leader_cluster_address: "https://10.0.0.0:8201".to_owned(),
            performance_standby: false,
            performance_standby_last_remote_wal: 0,
            raft_committed_index: 30,
            raft_applied_index: 30,
        }
    }

    fn members(&self) -> (Vec<Member>, u64) {
        let member = |id: usize| Member {
            name: format!("n{id}"),
            hostname: "vm".to_owned(),
            api_addr: format!("https://10.0.0.{id}:8200"),
            cluster_addr: format!("10.0.0.{id}:8201"),
            version: "0.1.0".to_owned(),
            leader: id == 0,
            voter: true,
            upgrade_version: "0.1.0".to_owned(),
            redundancy_zone: String::new(),
            last_echo: None,
        };
        ((0..2).map(member).collect(), 4)
    }

    async fn step_down(&self, to: Option<String>, _deadline: Instant) -> Result<(), ClusterError> {
        let next = match to.as_deref() {
            None => (self.id + 1) % 2,
            Some("n0") => 0,
            Some("n1") => 1,
            Some(name) => return Err(ClusterError::Refused(format!("no node named `{name}`"))),
        };
        *self.cluster.leader.lock().unwrap() = Some(next);
        Ok(())
    }

    /// Like the real one, a leader that is meant itself makes another one first.
    async fn change_peer(
        &self,
        change: PeerChange,
        name: &str,
        _deadline: Instant,
    ) -> Result<(), ClusterError> {
        let own = format!("n{}", self.id);
        if name == own && change != PeerChange::Promote {
            *self.cluster.leader.lock().unwrap() = Some((self.id + 1) % 2);
            return Err(ClusterError::NotLeader);
        }
        let mut changes = self.cluster.changes.lock().unwrap();
        changes.push(format!("{own}: {change:?} {name}"));
        Ok(())
    }

    fn autopilot(&self) -> Option<AutopilotState> {
        if self.role() != Role::Leader {
            return None;
        }
        let server = |id: usize| AutopilotServer {
            name: format!("n{id}"),
            cluster_addr: format!("10.0.0.{id}:8201"),
            version: "0.1.0".to_owned(),
            upgrade_version: "0.1.0".to_owned(),
            alive: true,
            healthy: true,
            leader: id == self.id,
            voter: true,
            last_contact: Duration::from_micros(5_041_773 * (id as u64)),
            last_term: 3,
            last_index: 78,
            stable_since: "2026-11-23T17:40:35.162Z".to_owned(),
            ..AutopilotServer::default()
        };
        Some(AutopilotState {
            servers: vec![server(0), server(1)],
            failure_tolerance: 0,
            upgrade: AutopilotUpgrade {
                status: "idle".to_owned(),
                ..AutopilotUpgrade::default()
            },
        })
    }

    fn autopilot_changed(&self, config: &AutopilotConfig) {
        let mut changes = self.cluster.changes.lock().unwrap();
        changes.push(format!("n{}: min_quorum {}", self.id, config.min_quorum));
    }

    async fn init(&self, request: InitRequest) -> Result<InitResult, InitError> {
        self.initialized.store(true, Ordering::SeqCst);
        let share = |number: u32| Zeroizing::new(vec![u8::try_from(number).unwrap(); 33]);
        Ok(InitResult {
            recovery_keys: (1..=request.recovery_shares.unwrap()).map(share).collect(),
            root_token: Zeroizing::new("hvs.aaaaaaaaaaaaaaaaaaaaaaaa".to_owned()),
        })
    }

    async fn join(&self, _request: JoinRequest) -> Result<bool, JoinError> {
        Ok(true)
    }

    async fn join_challenge(&self, request: ChallengeRequest) -> Result<Challenge, JoinError> {
        Ok(Challenge {
            challenge: "Y2hhbGxlbmdl".to_owned(),
            nonce: format!("for {}", request.server_id),
            seal_config: Value::Null,
        })
    }

    async fn join_answer(&self, _request: AnswerRequest) -> Result<JoinGrant, JoinError> {
        Err(JoinError::Refused("the proof does not fit".to_owned()))
    }

    async fn forward(
        &self,
        request: Request<Bytes>,
        deadline: Instant,
    ) -> Result<Response<Bytes>, ForwardError> {
        self.cluster.forwards.fetch_add(1, Ordering::SeqCst);
        let leader = loop {
            if let Some(leader) = *self.cluster.leader.lock().unwrap() {
                break leader;
            }
            if Instant::now() >= deadline {
                return Err(ForwardError::NoLeader);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let node = self.cluster.nodes.lock().unwrap()[leader]
            .upgrade()
            .unwrap();
        let service = Service::for_followers(node, settings());
        let answer = Answer::of(&service, request).await;
        let lost = &self.cluster.lost_answers;
        if lost.load(Ordering::SeqCst) > 0 {
            lost.fetch_sub(1, Ordering::SeqCst);
            return Err(ForwardError::Unknown("connection reset".to_owned()));
        }
        Ok(answer.into_http())
    }

    fn metrics(&self, format: MetricsFormat) -> Option<String> {
        match format {
            MetricsFormat::Json => Some("{}".to_owned()),
            MetricsFormat::Prometheus => Some("figures\n".to_owned()),
        }
    }

    async fn core_soon(&self, _until: Instant) -> Option<Arc<Core>> {
        self.core()
    }

    async fn snapshot(&self) -> Result<Stream, SnapshotError> {
        Ok(Stream::new(format!("the state of node {}", self.id)))
    }

    async fn found(&self, file: Stream, force: bool) -> Result<(), SnapshotError> {
        assert!(!self.initialized.load(Ordering::SeqCst));
        self.restore(file, force).await
    }

    async fn restore(&self, file: Stream, force: bool) -> Result<(), SnapshotError> {
        let file = file.collect().await.unwrap().to_bytes();
        let mut restored = self.cluster.restored.lock().unwrap();
        if file.is_empty() {
            return Err(SnapshotError::BadSnapshot("it is empty".to_owned()));
        }
        if !force && file.starts_with(b"other seal") {
            return Err(SnapshotError::OtherSeal);
        }
        restored.push((self.id, file.len()));
        Ok(())
    }

    async fn forward_stream(
        &self,
        request: Request<Stream>,
        until: Instant,
    ) -> Result<Response<Bytes>, ForwardError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        self.forward(Request::from_parts(head, body), until).await
    }

    fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    fn has_leader(&self) -> bool {
        !self.cut_off.load(Ordering::SeqCst)
    }

    fn now_ms(&self) -> u64 {
        NOW_MS
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) async fn of(service: &Service, request: Request<Bytes>) -> Self {
        let (head, body) = service.answer(request.map(Full::new)).await.into_parts();
        Self {
            status: head.status,
            headers: head.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    fn into_http(self) -> Response<Bytes> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }

    pub(crate) fn code(&self) -> u16 {
        self.status.as_u16()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as JSON, `null` if there is none.
    pub(crate) fn errors(&self) -> Vec<String> {
        serde_json::from_value(self.json()["errors"].clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        if self.body.is_empty() {
            return Value::Null;
        }
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The first of `errors`.
    pub(crate) fn error(&self) -> String {
        self.json()["errors"][0]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

/// A request as clients send it.
pub(crate) fn request(method: &str, path: &str, token: &str, body: &str) -> Request<Bytes> {
    Request::builder()
        .method(method)
        .uri(format!("/v1/{path}"))
        .header("x-vault-token", token)
        .body(Bytes::copy_from_slice(body.as_bytes()))
        .unwrap()
}
