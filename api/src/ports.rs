//! What the API needs from the rest of the node, as traits; `node` implements them on its own types.
//!
//! In: opaque stored keys and bytes, plaintext, HTTP requests to forward. Out: outcomes told apart by what the
//! caller does next.
//!
//! Invariants
//! - Nothing here names `raft` or `seal`: this crate depends on neither.
//! - A [`Store`] sees only ciphertext and encrypted names; a [`Barrier`] never does input or output.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty, StreamBody, combinators::UnsyncBoxBody};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{autopilot::AutopilotConfig, core::Core};

/// A stored value with the log index of the command that last wrote it.
///
/// The pair (stored key, `mod_index`) names one immutable value, so anything derived from it may be cached under that
/// pair without ever being invalidated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// Raft log index of the write.
    pub mod_index: u64,
    /// Barrier ciphertext, or a seal-wrap envelope around it.
    pub value: Bytes,
}

/// What a stored key must look like for a batch to be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// No value is stored under the key.
    Absent,
    /// The value was last written at this log index.
    ModIndex(u64),
}

/// All-or-nothing change of the key space: one log entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredBatch {
    /// Names the request; the same id is applied at most once, however often it is sent.
    pub request_id: [u8; 16],
    /// Conditions; any that fails rejects the whole batch.
    pub checks: Vec<(Vec<u8>, Expect)>,
    /// Keys and their new values.
    pub puts: Vec<(Vec<u8>, Bytes)>,
    /// Keys to remove; removing an absent key is not an error.
    pub deletes: Vec<Vec<u8>>,
}

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nothing was written; the leader (if known) should be asked instead.
    #[error("this node is not the leader")]
    NotLeader,
    /// Nothing was written or read: there is no leader, or it cannot reach a quorum.
    #[error("the cluster has no leader with a quorum")]
    NoQuorum,
    /// Nothing was written: too much is in flight; try again later.
    #[error("the server is busy")]
    Busy,
    /// Nothing was written: the leader's disk is nearly full.
    #[error("the disk of the leader is nearly full; it takes no writes until there is room")]
    NoRoom,
    /// Nothing was written: the batch is larger than an entry may be.
    #[error("put failed due to value being too large; got {len} bytes, max: {max} bytes")]
    TooLarge {
        /// Encoded size, bytes.
        len: usize,
        /// Limit, bytes.
        max: usize,
    },
    /// Nothing was written: a condition of the batch did not hold.
    #[error("a condition of the write did not hold")]
    CheckFailed,
    /// Nothing was written or read: a restore has replaced all data, and with it the keys that this store was opened by.
    #[error("the data have just been replaced by a restore")]
    Superseded,
    /// The write may or may not be applied later.
    #[error("the outcome of the write is unknown")]
    Unknown,
    /// The node cannot go on; details are in its log.
    #[error("storage failed: {0}")]
    Fatal(String),
}

/// The replicated key space: opaque keys, opaque values.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Returns once this node's state holds every write acknowledged before the call.
    ///
    /// # Errors
    /// `NoQuorum` when no leader confirms an index before `deadline`.
    ///
    /// Source: Ongaro's dissertation §6.4 (ReadIndex).
    async fn linearize(&self, deadline: Instant) -> Result<(), StoreError>;

    /// Whether this node has applied `index`, waiting for it until `deadline`.
    async fn wait_applied(&self, index: u64, deadline: Instant) -> bool;

    /// The value stored under `key` on this node.
    async fn get(&self, key: &[u8]) -> Result<Option<Versioned>, StoreError>;

    /// Up to `limit` keys that start with `prefix` and sort strictly after `after`, in byte order.
    async fn keys(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Bytes>, StoreError>;

    /// Replicates and applies `batch`; returns its log index. Only the leader can.
    async fn commit(&self, batch: StoredBatch, deadline: Instant) -> Result<u64, StoreError>;

    /// Log index of the last write of `key`, without reading its value.
    async fn mod_index(&self, key: &[u8]) -> Result<Option<u64>, StoreError> {
        Ok(self.get(key).await?.map(|stored| stored.mod_index))
    }

    /// As [`Store::commit`], on any node: one that does not lead has the leader commit the batch.
    async fn commit_anywhere(
        &self,
        batch: StoredBatch,
        deadline: Instant,
    ) -> Result<u64, StoreError>;

    /// Log index this node has applied. Asked for with every request: cheap.
    fn applied(&self) -> u64;
}

/// Why the barrier did not give a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    /// The path cannot be stored (empty segment, too long, control characters).
    #[error("the path is not valid: {0}")]
    Path(&'static str),
    /// The bytes do not authenticate under their key and path, or are no barrier value at all.
    #[error("a stored value is damaged or was moved from another path")]
    Damaged,
    /// The value names a key term that the keyring does not hold.
    #[error("the keyring holds no key of term {0}")]
    UnknownTerm(u32),
    /// The active key has encrypted as many values as it may; rotate it.
    #[error("the active barrier key is exhausted")]
    Exhausted,
    /// The HSM is needed and does not answer.
    #[error("the HSM is not available: {0}")]
    HsmUnavailable(String),
}

/// One child of a folder, decoded from a stored key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// Plain name of the segment directly under the folder.
    pub name: String,
    /// Whether the stored key lies deeper, so that the child is a folder.
    pub is_folder: bool,
    /// Pass this as `after` to [`Store::keys`] to skip everything below the child when it is a folder.
    pub skip_to: Vec<u8>,
}

/// Facts about the active barrier key (`sys/key-status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyStatus {
    /// Term of the active key.
    pub term: u32,
    /// When it was installed, milliseconds since the Unix epoch.
    pub install_time_ms: u64,
    /// Values encrypted under it in the whole cluster, as far as this node has applied.
    pub encryptions: u64,
}

/// The software layer: AES-256-GCM bound to the path, names encrypted. No input or output, never blocks.
///
/// Paths are `/`-separated, no leading or trailing slash, no empty segment. A folder is a path with no trailing
/// slash, or `""` for the top.
pub trait Barrier: Send + Sync + 'static {
    /// The stored key of `path`: every segment encrypted deterministically.
    fn key(&self, path: &str) -> Result<Vec<u8>, BarrierError>;
    /// The prefix shared by the stored keys of everything below `folder`.
    fn prefix(&self, folder: &str) -> Result<Vec<u8>, BarrierError>;
    /// Decodes the child of `folder` that `stored_key` is, or lies under.
    fn child(&self, folder: &str, stored_key: &[u8]) -> Result<Child, BarrierError>;
    /// Encrypts `plaintext` for `path`.
    fn seal(&self, path: &str, plaintext: &[u8]) -> Result<Vec<u8>, BarrierError>;
    /// Decrypts what [`Barrier::seal`] gave for the same `path`.
    fn open(&self, path: &str, stored: &[u8]) -> Result<Zeroizing<Vec<u8>>, BarrierError>;
    /// HMAC-SHA256 under a key of the keyring kept for `purpose`; for salting identifiers.
    fn hmac(&self, purpose: &'static str, data: &[u8]) -> [u8; 32];
    /// Facts about the active key.
    fn status(&self) -> KeyStatus;
}

/// The HSM-backed layer on top of barrier ciphertext.
#[async_trait]
pub trait SealWrap: Send + Sync + 'static {
    /// Whether `stored` is a seal-wrap envelope.
    fn is_wrapped(&self, stored: &[u8]) -> bool;
    /// Wraps barrier ciphertext, bound to `path`.
    async fn wrap(&self, path: &str, barrier_ciphertext: &[u8]) -> Result<Vec<u8>, BarrierError>;
    /// Gives back the barrier ciphertext of an envelope made for the same `path`.
    async fn unwrap(&self, path: &str, envelope: &[u8]) -> Result<Bytes, BarrierError>;
}

/// What part this node plays in the cluster now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes writes; it has applied the first entry of its own term.
    Leader,
    /// Another node is the leader.
    Follower {
        /// The leader's `api_addr`, e.g. `https://10.0.0.2:8200`.
        leader_api_addr: String,
    },
    /// Nobody is known to lead.
    NoLeader,
}

/// Body of `GET sys/seal-status` (field names are Vault's).
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct SealStatus {
    #[serde(rename = "type")]
    pub seal_type: String,
    pub initialized: bool,
    pub sealed: bool,
    /// Recovery threshold.
    pub t: u32,
    /// Recovery shares.
    pub n: u32,
    pub progress: u32,
    pub nonce: String,
    pub version: String,
    pub build_date: String,
    pub migration: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    pub recovery_seal: bool,
    pub recovery_seal_type: String,
    pub storage_type: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub removed_from_cluster: bool,
    /// Why the node is sealed or its HSM is not well, for a person to read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Body of `GET sys/leader` (field names are Vault's).
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct LeaderStatus {
    pub ha_enabled: bool,
    pub is_self: bool,
    /// RFC 3339 time this node became leader; only on the leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_time: Option<String>,
    pub leader_address: String,
    pub leader_cluster_address: String,
    pub performance_standby: bool,
    pub performance_standby_last_remote_wal: u64,
    pub raft_committed_index: u64,
    pub raft_applied_index: u64,
}

/// One node in `sys/ha-status` and `sys/storage/raft/configuration`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The operator's `node_id`.
    pub name: String,
    /// Host name the node reported.
    pub hostname: String,
    /// `api_addr`.
    pub api_addr: String,
    /// `host:port` of the cluster port.
    pub cluster_addr: String,
    /// Software version.
    pub version: String,
    /// Whether it is the leader.
    pub leader: bool,
    /// Whether its vote counts.
    pub voter: bool,
    /// The version it counts as when nodes of a new version take over.
    pub upgrade_version: String,
    /// Empty: in none.
    pub redundancy_zone: String,
    /// RFC 3339 time the leader last heard from it; only known on the leader, never for itself.
    pub last_echo: Option<String>,
}

/// A change of one member's part in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// It leaves the cluster.
    Remove,
    /// It may vote again.
    Promote,
    /// It must not vote any more.
    Demote,
}

/// Why leadership or membership was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Nothing changed here: another node leads, and can do it.
    #[error("this node is not the leader")]
    NotLeader,
    /// Nothing changed; the text says the caller what is wrong.
    #[error("{0}")]
    Refused(String),
    /// Nothing changed, or it is not known; another try is right.
    #[error("{0}")]
    Unavailable(String),
    /// Details are for the log.
    #[error("{0}")]
    Failed(String),
}

/// One member in `autopilot/state`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AutopilotServer {
    /// The operator's `node_id`.
    pub name: String,
    /// `host:port` of the cluster port.
    pub cluster_addr: String,
    /// Software version.
    pub version: String,
    /// The version it counts as.
    pub upgrade_version: String,
    /// Empty: in none.
    pub redundancy_zone: String,
    /// Whether it answers.
    pub alive: bool,
    /// Whether it answers and keeps up.
    pub healthy: bool,
    /// Whether it leads.
    pub leader: bool,
    /// Whether its vote counts.
    pub voter: bool,
    /// Whether it is not to vote.
    pub non_voter: bool,
    /// Since it last answered.
    pub last_contact: std::time::Duration,
    /// Term of the last entry on it.
    pub last_term: u64,
    /// Index of the last entry on it.
    pub last_index: u64,
    /// RFC 3339 time since when it has been as healthy, or unhealthy, as it is.
    pub stable_since: String,
}

/// Change of version in `autopilot/state`; lists hold names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AutopilotUpgrade {
    /// Vault's word.
    pub status: String,
    /// The newest version there is.
    pub target_version: String,
    /// Voters of that version.
    pub target_voters: Vec<String>,
    /// Others of that version.
    pub target_non_voters: Vec<String>,
    /// Voters of older versions.
    pub other_voters: Vec<String>,
    /// Others of older versions.
    pub other_non_voters: Vec<String>,
}

/// The cluster as the leader's autopilot sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AutopilotState {
    /// Every member, the older of two of one name first.
    pub servers: Vec<AutopilotServer>,
    /// Healthy voters that may fail before the cluster stops.
    pub failure_tolerance: usize,
    /// Change of version.
    pub upgrade: AutopilotUpgrade,
}

/// Parameters of `sys/init`, already checked for type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct InitRequest {
    pub secret_shares: Option<u32>,
    pub secret_threshold: Option<u32>,
    pub stored_shares: Option<u32>,
    pub pgp_keys: Option<Vec<String>>,
    pub recovery_shares: Option<u32>,
    pub recovery_threshold: Option<u32>,
    pub recovery_pgp_keys: Option<Vec<String>>,
    pub root_token_pgp_key: Option<String>,
}

/// What `sys/init` gives out, once. Wiped on drop.
pub struct InitResult {
    /// Recovery shares in Vault's layout (y…, x).
    pub recovery_keys: Vec<Zeroizing<Vec<u8>>>,
    /// The root token.
    pub root_token: Zeroizing<String>,
}

/// Why `sys/init` did not initialise.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The node belongs to an initialised cluster.
    #[error("Vault is already initialized")]
    AlreadyInitialized,
    /// Another init is running, or the node is joining a cluster.
    #[error("initialization or a join is in progress")]
    InProgress,
    /// The node at this address makes a cluster at this moment, or tries to. Nothing has changed here.
    #[error(
        "{0} is being initialized at the same time, so nothing was done here: initialize one node only, the others join it"
    )]
    Elsewhere(String),
    /// The node at this address has just started and may belong to a cluster. Nothing has changed here.
    #[error(
        "{0} has just started and does not know yet whether it is in a cluster, so nothing was done here: try again"
    )]
    Undecided(String),
    /// A parameter is wrong; the text is for the caller.
    #[error("{0}")]
    BadRequest(String),
    /// The HSM refused or does not answer; the text is for the caller and holds no secret.
    #[error("{0}")]
    Hsm(String),
    /// Anything else; details are in the log.
    #[error("initialization failed: {0}")]
    Failed(String),
}

/// Parameters of `sys/storage/raft/join` (Vault's names).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct JoinRequest {
    pub leader_api_addr: String,
    pub leader_ca_cert: String,
    pub leader_client_cert: String,
    pub leader_client_key: String,
    pub leader_tls_servername: String,
    pub retry: bool,
    pub non_voter: bool,
    pub auto_join: String,
}

/// Body of `sys/storage/raft/bootstrap/challenge`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ChallengeRequest {
    /// The joiner's `node_id`.
    pub server_id: String,
}

/// What the leader answers to a challenge request (under `data`).
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Challenge {
    /// Base64 of bytes only the cluster's HSM key can open.
    pub challenge: String,
    /// Opaque to the joiner; goes back with the answer.
    pub nonce: String,
    /// The cluster's seal configuration, so that the joiner knows which HSM key to use.
    pub seal_config: serde_json::Value,
}

/// Body of `sys/storage/raft/bootstrap/answer`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AnswerRequest {
    /// The joiner's `node_id`.
    pub server_id: String,
    /// Base64 proof made from the opened challenge.
    pub answer: String,
    /// As given with the challenge.
    pub nonce: String,
    /// `host:port` of the joiner's cluster port.
    pub cluster_addr: String,
    /// The joiner's `api_addr`.
    #[serde(default)]
    pub api_addr: String,
    /// The joiner's host name.
    #[serde(default)]
    pub hostname: String,
    /// The joiner's software version.
    #[serde(default)]
    pub version: String,
    /// Whether it shall stay without a vote.
    #[serde(default)]
    pub non_voter: bool,
    /// What was added later; older versions pass it over, and the joiner announces it afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<MoreOfJoiner>,
}

/// More that a joiner says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct MoreOfJoiner {
    /// Base64 proof of its own: the one of the answer does not cover this.
    pub answer: String,
    /// Never leads while another voter can.
    pub leader_ineligible: bool,
    /// The version it counts as.
    pub upgrade_version: String,
    /// Its redundancy zone.
    pub redundancy_zone: String,
}

/// What a node that proved itself gets (under `data`): nothing in it is plaintext.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct JoinGrant {
    /// The cluster's id.
    pub cluster_id: String,
    /// The joiner's Raft id, never used before.
    pub raft_id: u64,
    /// Seal configuration, HSM-wrapped root key and encrypted keyring, opaque here.
    pub seal_bundle: serde_json::Value,
}

/// Why a join, a challenge or an answer was refused.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The text is for the caller.
    #[error("{0}")]
    BadRequest(String),
    /// The proof does not fit: the joiner's HSM does not hold the cluster's key.
    #[error("{0}")]
    Refused(String),
    /// Too many join requests; try again later.
    #[error("too many join requests; try again in a moment")]
    RateLimited,
    /// The HSM, or the cluster, does not answer now.
    #[error("{0}")]
    Unavailable(String),
    /// Anything else; the text holds no secret.
    #[error("{0}")]
    Failed(String),
}

/// Why a request could not be forwarded to the leader.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// There was no leader until the deadline; the request was never sent.
    #[error("no leader")]
    NoLeader,
    /// The request was not sent.
    #[error("the leader could not be reached: {0}")]
    NotSent(String),
    /// The request was sent and no answer came: it may have been carried out.
    #[error("the connection to the leader broke after the request was sent: {0}")]
    Unknown(String),
}

/// In which form `sys/metrics` is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsFormat {
    /// As go-metrics writes it.
    Json,
    /// Text format 0.0.4.
    Prometheus,
}

/// Any error, as bodies have it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes of any length on their way, such as a snapshot: a body of HTTP, whatever gives it.
#[derive(Debug)]
pub struct Stream(UnsyncBoxBody<Bytes, BoxError>);

impl Stream {
    /// What `body` gives.
    pub fn new<B>(body: B) -> Self
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        Self(body.map_err(Into::into).boxed_unsync())
    }

    /// The chunks of `stream`, one after the other.
    pub fn from_stream<E: Into<BoxError>>(
        stream: impl futures_util::Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> Self {
        Self::new(StreamBody::new(stream.map_ok(Frame::data)))
    }

    /// Nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self::new(Empty::new())
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// Why a snapshot was not taken or not restored.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// What was sent cannot be restored; the text is for the caller. Nothing has changed.
    #[error("{0}")]
    BadSnapshot(String),
    /// The snapshot's checksums were not sealed by this cluster's HSM key. Nothing has changed.
    #[error(
        "could not verify hash file, possibly the snapshot is using a different autoseal key; use the snapshot-force API to bypass this check"
    )]
    OtherSeal,
    /// Another node leads. Nothing has changed.
    #[error("this node is not the leader")]
    NotLeader,
    /// It cannot be done now; the text says why. Nothing has changed.
    #[error("{0}")]
    Unavailable(String),
    /// The disk would be too full; the text says where. Nothing has changed.
    #[error("{0}")]
    NoRoom(String),
    /// The restore may have been carried out.
    #[error("the outcome of the restore is unknown")]
    Unknown,
}

/// The node around the API: lifecycle, cluster facts, forwarding.
#[async_trait]
pub trait Node: Send + Sync + 'static {
    /// Everything that works on decrypted data; `None` while the node is sealed or not initialised.
    fn core(&self) -> Option<Arc<Core>>;
    /// The part this node plays now.
    fn role(&self) -> Role;
    /// `sys/seal-status`. Never touches the HSM.
    fn seal_status(&self) -> SealStatus;
    /// Whether there is a cluster, for who makes one if there is none. Waits while the node still reads its data directory; `None` when
    /// that takes too long.
    async fn is_initialized(&self) -> Option<bool>;
    /// `sys/leader`; only asked while unsealed.
    fn leader_status(&self) -> LeaderStatus;
    /// Every member of the cluster and the log index of the configuration.
    fn members(&self) -> (Vec<Member>, u64);
    /// Hands leadership to the node of this name, or to the best one, and returns when another node leads.
    async fn step_down(&self, to: Option<String>, deadline: Instant) -> Result<(), ClusterError>;
    /// Changes the part of the member of this name. `NotLeader` as well when it is about this node and another one has
    /// just been made the leader: that one can do it.
    async fn change_peer(
        &self,
        change: PeerChange,
        name: &str,
        deadline: Instant,
    ) -> Result<(), ClusterError>;
    /// The leader's view of the members; `None` on another node.
    fn autopilot(&self) -> Option<AutopilotState>;
    /// The operator's settings of autopilot were changed through this node, the leader.
    fn autopilot_changed(&self, config: &AutopilotConfig);
    /// `sys/init`.
    async fn init(&self, request: InitRequest) -> Result<InitResult, InitError>;
    /// `sys/storage/raft/join` on the joining node. `true`: joined.
    async fn join(&self, request: JoinRequest) -> Result<bool, JoinError>;
    /// Leader's side of a join, step one.
    async fn join_challenge(&self, request: ChallengeRequest) -> Result<Challenge, JoinError>;
    /// Leader's side of a join, step two.
    async fn join_answer(&self, request: AnswerRequest) -> Result<JoinGrant, JoinError>;
    /// Sends a whole request to the leader and gives back its whole answer.
    async fn forward(
        &self,
        request: http::Request<Bytes>,
        deadline: Instant,
    ) -> Result<http::Response<Bytes>, ForwardError>;
    /// This node's figures; `None`: the configuration turns this form off.
    fn metrics(&self, format: MetricsFormat) -> Option<String>;
    /// As [`Node::core`], waiting, for as long as that is worth it, while there will be one in a moment: the node has just started and
    /// unseals itself, or opens the keys of restored data.
    async fn core_soon(&self, until: Instant) -> Option<Arc<Core>>;
    /// The state as a snapshot file. The caller has made sure that this node's state is recent enough.
    async fn snapshot(&self) -> Result<Stream, SnapshotError>;
    /// Replaces all data by those of a snapshot file. Only the leader can.
    async fn restore(&self, file: Stream, force: bool) -> Result<(), SnapshotError>;
    /// Makes a cluster of a snapshot file. Only a node that belongs to none can.
    async fn found(&self, file: Stream, force: bool) -> Result<(), SnapshotError>;
    /// As [`Node::forward`] for a body of any length, which can be sent once only. `until` bounds the wait for a leader.
    async fn forward_stream(
        &self,
        request: http::Request<Stream>,
        until: Instant,
    ) -> Result<http::Response<Bytes>, ForwardError>;
    /// Whether this node falls behind the leader and knows it: reads are better answered there.
    fn falls_behind(&self) -> bool {
        false
    }
    /// Set while this node makes a new cluster, different for each attempt: a node that is about to make one asks the others
    /// after it has said so itself.
    fn initializing(&self) -> Option<String> {
        None
    }
    /// Whether the node is about to stop: `sys/health` says so before anything else changes, so that a load balancer
    /// sends requests elsewhere while this node still serves those it has.
    fn is_leaving(&self) -> bool {
        false
    }
    /// Whether the node leads, or has heard of a leader within a time in which any election ends.
    fn has_leader(&self) -> bool {
        true
    }
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64;
}
