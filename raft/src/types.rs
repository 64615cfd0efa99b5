//! The one place that fixes openraft's type parameters; every other file uses these aliases.
//!
//! Invariants
//! - A Raft id is never used twice, so `u64` without reuse is the node id.
//! - The `Debug` and `Display` of application data print a length only: openraft logs entries at debug level.

use std::fmt;

use bytes::Bytes;
use openraft::RaftTypeConfig;

use crate::command::Applied;

/// What the operator and the other nodes must know about one member. Replicated with the membership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerInfo {
    /// The operator's `node_id`: a name that survives a wiped disk, unlike the Raft id.
    pub name: String,
    /// `host:port` of the cluster port, as other nodes reach it.
    pub cluster_addr: String,
    /// The node's `api_addr`, e.g. `https://10.0.0.2:8200`.
    pub api_addr: String,
    /// Host name, for people.
    pub hostname: String,
    /// Software version, for people and for upgrades.
    pub version: String,
    /// Stays a learner for ever when true.
    pub non_voter: bool,
    /// Never leads while another voter can.
    pub leader_ineligible: bool,
    /// Counts as its version when nodes of a new version take over; empty: [`PeerInfo::version`] does.
    pub upgrade_version: String,
    /// Of the nodes of one zone one votes; empty: in no zone.
    pub redundancy_zone: String,
}

/// An encoded [`crate::Command`]: encoded once by the proposer, then shared by reference count.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Encoded(pub(crate) Bytes);

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command[{}B]", self.0.len())
    }
}

impl fmt::Display for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// openraft's type parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Encoded;
    type R = Applied;
    type NodeId = u64;
    type Node = PeerInfo;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Self::D, Self::NodeId, Self::Node>;
    type Entry = openraft::alias::DefaultEntryOf<Self>;
    type AsyncRuntime = openraft_rt_tokio::TokioRuntime;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type Payload = openraft::alias::PayloadOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, PeerInfo>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type Metrics = openraft::RaftMetrics<TypeConfig>;
pub(crate) type RpcError = openraft::errors::RPCError<TypeConfig>;
pub(crate) type Core = openraft::Raft<TypeConfig, crate::state::Machine>;
pub(crate) type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub(crate) type AppendResult = openraft::raft::StreamAppendResult<TypeConfig>;

/// A log id from its parts.
pub(crate) fn log_id(term: u64, node: u64, index: u64) -> LogId {
    LogId::new(
        LeaderId {
            term,
            node_id: node,
        },
        index,
    )
}
