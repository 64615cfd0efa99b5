//! Messages between nodes.
//!
//! Invariants
//! - A message that lacks what it needs is an error that ends the connection.
//! - [`PROTOCOL`] is what a `Hello` offers; what is added within one number must be safe to ignore.

use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, TransferLeaderError, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use prost::Message;

use crate::{
    command::WINDOW_FORMAT,
    proto::{
        EntryProto, LogIdProto, PeerProto, ProtoError, VoteProto, entry_of, log_id_of,
        log_id_proto, vote_of,
    },
    types::{AppendRequest, AppendResult, TypeConfig},
    vitals::{Health, Room},
};

/// Version of the messages behind ALPN `strongroom-raft/1`.
pub(crate) const PROTOCOL: u32 = 1;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A pipelined stream of log entries.
    Append,
    /// Heartbeats, votes, transfers, read indexes: small and urgent.
    Control,
    /// One snapshot.
    Snapshot,
    /// Commands for the leader to propose: many and as large as an entry may be.
    Propose,
}

impl Purpose {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Append => 1,
            Self::Control => 2,
            Self::Snapshot => 3,
            Self::Propose => 4,
        }
    }

    pub(crate) fn of(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Append),
            2 => Some(Self::Control),
            3 => Some(Self::Snapshot),
            4 => Some(Self::Propose),
            _ => None,
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Hello {
    #[prost(uint32, tag = "1")]
    pub(crate) protocol: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) cluster_id: Vec<u8>,
    #[prost(uint64, tag = "3")]
    pub(crate) from: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) to: u64,
    #[prost(uint32, tag = "5")]
    pub(crate) purpose: u32,
}

/// Answer to a [`Hello`].
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Welcome {
    /// Empty: accepted. Otherwise why not, for people to read.
    #[prost(string, tag = "1")]
    pub(crate) refused: String,
    /// Refused because the cluster has removed the node, says a leader whose quorum answers.
    #[prost(bool, tag = "2")]
    pub(crate) removed: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Append {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteProto>,
    #[prost(message, optional, tag = "2")]
    prev: Option<LogIdProto>,
    #[prost(message, optional, tag = "3")]
    leader_commit: Option<LogIdProto>,
    #[prost(message, repeated, tag = "4")]
    entries: Vec<EntryProto>,
}

impl From<&AppendRequest> for Append {
    fn from(request: &AppendRequest) -> Self {
        Self {
            vote: Some((&request.vote).into()),
            prev: log_id_proto(request.prev_log_id.as_ref()),
            leader_commit: log_id_proto(request.leader_commit.as_ref()),
            entries: request.entries.iter().map(EntryProto::from).collect(),
        }
    }
}

impl TryFrom<Append> for AppendRequest {
    type Error = ProtoError;

    fn try_from(append: Append) -> Result<Self, ProtoError> {
        let entries: Result<Vec<_>, _> = append.entries.into_iter().map(entry_of).collect();
        Ok(AppendEntriesRequest {
            vote: vote_of(append.vote)?,
            prev_log_id: log_id_of(append.prev),
            entries: entries?,
            leader_commit: log_id_of(append.leader_commit),
        })
    }
}

/// The message form of a request that must stay whole for the answer: the first entry has to follow `prev`.
pub(crate) fn is_contiguous(request: &AppendRequest) -> bool {
    let mut next = request
        .prev_log_id
        .map_or(0, |id| id.index.saturating_add(1));
    request.entries.iter().all(|entry| {
        let fits = entry.log_id.index == next;
        next = next.saturating_add(1);
        fits
    })
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AppendReply {
    #[prost(oneof = "AppendOutcome", tags = "1, 2, 3, 4, 5")]
    outcome: Option<AppendOutcome>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum AppendOutcome {
    /// Everything up to here is durable.
    #[prost(message, tag = "1")]
    Matched(LogIdProto),
    /// Nothing was there to store, and there is no previous entry.
    #[prost(bool, tag = "2")]
    MatchedNothing(bool),
    #[prost(message, tag = "3")]
    Conflict(LogIdProto),
    #[prost(message, tag = "4")]
    HigherVote(VoteProto),
    /// The node cannot answer; the connection ends.
    #[prost(string, tag = "5")]
    Failed(String),
}

impl AppendReply {
    pub(crate) fn failed(why: String) -> Self {
        Self {
            outcome: Some(AppendOutcome::Failed(why)),
        }
    }

    /// `Err`: the other side's reason for not answering.
    pub(crate) fn into_result(self) -> Result<AppendResult, String> {
        match self.outcome {
            Some(AppendOutcome::Matched(id)) => Ok(Ok(Some(id.into()))),
            Some(AppendOutcome::MatchedNothing(_)) => Ok(Ok(None)),
            Some(AppendOutcome::Conflict(id)) => Ok(Err(StreamAppendError::Conflict(id.into()))),
            Some(AppendOutcome::HigherVote(vote)) => {
                Ok(Err(StreamAppendError::HigherVote(vote.into())))
            }
            Some(AppendOutcome::Failed(why)) => Err(why),
            None => Err("an answer of unknown kind".to_owned()),
        }
    }
}

impl From<&AppendResult> for AppendReply {
    fn from(result: &AppendResult) -> Self {
        Self {
            outcome: Some(match result {
                Ok(Some(id)) => AppendOutcome::Matched(id.into()),
                Ok(None) => AppendOutcome::MatchedNothing(true),
                Err(StreamAppendError::Conflict(id)) => AppendOutcome::Conflict(id.into()),
                Err(StreamAppendError::HigherVote(vote)) => AppendOutcome::HigherVote(vote.into()),
            }),
        }
    }
}

/// Request on a control connection.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CallMessage {
    #[prost(oneof = "Call", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30")]
    pub(crate) call: Option<Call>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Call {
    #[prost(message, tag = "1")]
    Append(Append),
    #[prost(message, tag = "2")]
    Vote(VoteCall),
    #[prost(message, tag = "3")]
    PreVote(VoteCall),
    #[prost(message, tag = "4")]
    Transfer(TransferCall),
    /// Asks the leader for an index to wait for before a linearizable read.
    #[prost(bool, tag = "5")]
    ReadIndex(bool),
    /// Tells the leader how this node is reached now.
    #[prost(message, tag = "6")]
    Announce(PeerProto),
    /// Asks the leader to remove the node that calls.
    #[prost(bool, tag = "7")]
    Leave(bool),
    /// An operator wants the node that is called to lead, although newer ones could.
    #[prost(bool, tag = "8")]
    Chosen(bool),
    /// Like `ReadIndex`, of a node that has this vote. A leader that does not know the question says so.
    #[prost(message, tag = "9")]
    ReadAs(VoteProto),
    /// Asks for the node's vote. A node that does not know the question says so.
    #[prost(bool, tag = "10")]
    Standing(bool),
    /// Asks how fit the node is. A node that does not know the question says so.
    #[prost(bool, tag = "20")]
    Health(bool),
    /// Has the leader propose a command.
    #[prost(message, tag = "30")]
    Propose(ProposeCall),
}

/// Answer on a control connection.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReplyMessage {
    #[prost(oneof = "Reply", tags = "1, 2, 3, 4, 5, 6, 7, 8, 10, 20, 30")]
    pub(crate) reply: Option<Reply>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Reply {
    #[prost(message, tag = "1")]
    Append(AppendReply),
    #[prost(message, tag = "2")]
    Vote(VoteReply),
    #[prost(message, tag = "3")]
    Transfer(TransferReply),
    #[prost(uint64, tag = "4")]
    ReadIndex(u64),
    #[prost(bool, tag = "5")]
    Announced(bool),
    /// The call needs the leader, and this node does not lead or has no quorum now. Nothing was done.
    #[prost(bool, tag = "6")]
    NotLeader(bool),
    /// The call was not carried out; why, for people to read.
    #[prost(string, tag = "7")]
    Failed(String),
    /// Done, or noted.
    #[prost(bool, tag = "8")]
    Done(bool),
    /// The node's vote.
    #[prost(message, tag = "10")]
    Standing(VoteProto),
    #[prost(message, tag = "20")]
    Health(HealthReply),
    #[prost(message, tag = "30")]
    Proposed(ProposeReply),
}

/// See [`Health`].
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct HealthReply {
    #[prost(uint32, tag = "1")]
    room: u32,
    /// Microseconds; 0: not known.
    #[prost(uint64, tag = "2")]
    sync_us: u64,
    /// Newest command format that the node can apply.
    #[prost(uint32, tag = "3")]
    pub(crate) command_format: u32,
}

impl From<Health> for HealthReply {
    fn from(health: Health) -> Self {
        Self {
            room: health.room.number(),
            sync_us: health.sync_us.unwrap_or(0),
            command_format: WINDOW_FORMAT,
        }
    }
}

impl From<HealthReply> for Health {
    fn from(reply: HealthReply) -> Self {
        Self {
            room: Room::of(reply.room),
            sync_us: Some(reply.sync_us).filter(|time| *time != 0),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ProposeCall {
    /// An encoded command.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) command: bytes::Bytes,
    /// How long its proposer waits.
    #[prost(uint64, tag = "2")]
    pub(crate) wait_ms: u64,
}

/// What became of a [`ProposeCall`].
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ProposeReply {
    #[prost(oneof = "Proposed", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub(crate) outcome: Option<Proposed>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Proposed {
    /// Log index of the command that took effect.
    #[prost(uint64, tag = "1")]
    Applied(u64),
    #[prost(message, tag = "2")]
    CheckFailed(FailedCheck),
    /// Nothing was written: ask who leads, or has a quorum, now.
    #[prost(bool, tag = "3")]
    NotLeader(bool),
    /// Nothing was written.
    #[prost(bool, tag = "4")]
    NoQuorum(bool),
    /// Nothing was written.
    #[prost(bool, tag = "5")]
    Busy(bool),
    /// It may be applied.
    #[prost(bool, tag = "6")]
    Unknown(bool),
    /// Nothing was written: more than an entry may be, in bytes.
    #[prost(uint64, tag = "7")]
    TooLarge(u64),
    /// Log index of the command, which was for data that a restore has replaced.
    #[prost(uint64, tag = "8")]
    Superseded(u64),
    /// Nothing was written: the leader's disk is full.
    #[prost(bool, tag = "9")]
    NoRoom(bool),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct FailedCheck {
    #[prost(uint64, tag = "1")]
    pub(crate) index: u64,
    #[prost(uint32, tag = "2")]
    pub(crate) op: u32,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct VoteCall {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteProto>,
    #[prost(message, optional, tag = "2")]
    last: Option<LogIdProto>,
    #[prost(bool, tag = "3")]
    transfer: bool,
}

impl From<&VoteRequest<TypeConfig>> for VoteCall {
    fn from(request: &VoteRequest<TypeConfig>) -> Self {
        Self {
            vote: Some((&request.vote).into()),
            last: log_id_proto(request.last_log_id.as_ref()),
            transfer: request.leadership_transfer,
        }
    }
}

impl TryFrom<VoteCall> for VoteRequest<TypeConfig> {
    type Error = ProtoError;

    fn try_from(call: VoteCall) -> Result<Self, ProtoError> {
        Ok(Self {
            vote: vote_of(call.vote)?,
            last_log_id: log_id_of(call.last),
            leadership_transfer: call.transfer,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct VoteReply {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteProto>,
    #[prost(bool, tag = "2")]
    granted: bool,
    #[prost(message, optional, tag = "3")]
    last: Option<LogIdProto>,
}

impl From<&VoteResponse<TypeConfig>> for VoteReply {
    fn from(response: &VoteResponse<TypeConfig>) -> Self {
        Self {
            vote: Some((&response.vote).into()),
            granted: response.vote_granted,
            last: log_id_proto(response.last_log_id.as_ref()),
        }
    }
}

impl TryFrom<VoteReply> for VoteResponse<TypeConfig> {
    type Error = ProtoError;

    fn try_from(reply: VoteReply) -> Result<Self, ProtoError> {
        Ok(Self {
            vote: vote_of(reply.vote)?,
            vote_granted: reply.granted,
            last_log_id: log_id_of(reply.last),
        })
    }
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct TransferCall {
    #[prost(message, optional, tag = "1")]
    from: Option<VoteProto>,
    #[prost(uint64, tag = "2")]
    to: u64,
    #[prost(message, optional, tag = "3")]
    last: Option<LogIdProto>,
}

impl From<&TransferLeaderRequest<TypeConfig>> for TransferCall {
    fn from(request: &TransferLeaderRequest<TypeConfig>) -> Self {
        Self {
            from: Some(request.from_leader().into()),
            to: *request.to_node_id(),
            last: log_id_proto(request.last_log_id()),
        }
    }
}

impl TryFrom<TransferCall> for TransferLeaderRequest<TypeConfig> {
    type Error = ProtoError;

    fn try_from(call: TransferCall) -> Result<Self, ProtoError> {
        Ok(Self::new(
            vote_of(call.from)?,
            call.to,
            log_id_of(call.last),
        ))
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TransferReply {
    #[prost(oneof = "TransferOutcome", tags = "1, 2, 3")]
    outcome: Option<TransferOutcome>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum TransferOutcome {
    #[prost(bool, tag = "1")]
    Accepted(bool),
    #[prost(message, tag = "2")]
    VoteChanged(VoteChanged),
    #[prost(message, tag = "3")]
    LogNotFlushed(LogNotFlushed),
}

#[derive(Clone, Copy, PartialEq, Message)]
struct VoteChanged {
    #[prost(message, optional, tag = "1")]
    expected: Option<VoteProto>,
    #[prost(message, optional, tag = "2")]
    actual: Option<VoteProto>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct LogNotFlushed {
    #[prost(message, optional, tag = "1")]
    expected: Option<LogIdProto>,
    #[prost(message, optional, tag = "2")]
    actual: Option<LogIdProto>,
}

pub(crate) type TransferResult = Result<(), TransferLeaderError<TypeConfig>>;

impl From<&TransferResult> for TransferReply {
    fn from(result: &TransferResult) -> Self {
        Self {
            outcome: Some(match result {
                Ok(()) => TransferOutcome::Accepted(true),
                Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                    TransferOutcome::VoteChanged(VoteChanged {
                        expected: Some(expected.into()),
                        actual: Some(actual.into()),
                    })
                }
                Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                    TransferOutcome::LogNotFlushed(LogNotFlushed {
                        expected: log_id_proto(expected.as_ref()),
                        actual: log_id_proto(actual.as_ref()),
                    })
                }
            }),
        }
    }
}

impl TryFrom<TransferReply> for TransferResult {
    type Error = ProtoError;

    fn try_from(reply: TransferReply) -> Result<Self, ProtoError> {
        Ok(match reply.outcome.ok_or(ProtoError::Missing("outcome"))? {
            TransferOutcome::Accepted(_) => Ok(()),
            TransferOutcome::VoteChanged(votes) => Err(TransferLeaderError::VoteChanged {
                expected: vote_of(votes.expected)?,
                actual: vote_of(votes.actual)?,
            }),
            TransferOutcome::LogNotFlushed(ids) => Err(TransferLeaderError::LogNotFlushed {
                expected: log_id_of(ids.expected),
                actual: log_id_of(ids.actual),
            }),
        })
    }
}
