//! openraft's network traits: which connection carries which message.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use openraft::{
    OptionalSend, RPCTypes,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{
        Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
        RaftNetworkFactory,
    },
    raft::{
        SnapshotResponse, StreamAppendError, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};
use tokio_util::sync::CancellationToken;

use super::{
    append::{Acked, Lane, SET_BACK, Session},
    control::{CallError, ControlLink, chain},
    peer::{Dialer, Directory},
    snapshot::{SendError, send},
    wire::{Append, Call, Purpose, Reply, TransferResult},
};
use crate::{
    log::lock,
    state::{
        SnapshotDir,
        snapshot::{Counters, add},
    },
    types::{AppendRequest, AppendResult, PeerInfo, RpcError, TypeConfig, Vote},
};

/// Connections to every member, shared by openraft's clients and by this crate's own calls.
pub(crate) struct Links {
    raft_id: u64,
    pub(crate) dialer: Arc<Dialer>,
    /// What each member has acknowledged, whichever client of openraft's heard it.
    acked: Mutex<HashMap<u64, Arc<Acked>>>,
    control: Mutex<HashMap<u64, Arc<ControlLink>>>,
    propose: Mutex<HashMap<u64, Arc<ControlLink>>>,
    silence: Duration,
    closing: CancellationToken,
    /// Index of the snapshot that each member is being sent.
    sending: Mutex<HashMap<u64, u64>>,
    /// Why the last snapshot for a member was not sent.
    unsent: Mutex<HashMap<u64, String>>,
    counters: Arc<Counters>,
    /// See [`Links::told`].
    told: AtomicU64,
}

impl Links {
    pub(crate) fn new(
        raft_id: u64,
        dialer: Arc<Dialer>,
        silence: Duration,
        closing: CancellationToken,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            raft_id,
            dialer,
            acked: Mutex::default(),
            control: Mutex::default(),
            propose: Mutex::default(),
            silence,
            closing,
            sending: Mutex::default(),
            unsent: Mutex::default(),
            counters,
            told: AtomicU64::new(0),
        }
    }

    /// Highest log index that this node has told another is committed: what any other has applied on its word is not behind it.
    pub(crate) fn told(&self) -> u64 {
        self.told.load(Ordering::SeqCst)
    }

    /// Another node is about to be told.
    fn tell(&self, committed: Option<u64>) {
        if let Some(index) = committed {
            self.told.fetch_max(index, Ordering::SeqCst);
        }
    }

    /// Index of the snapshot that member `id` is being sent.
    pub(crate) fn sending(&self, id: u64) -> Option<u64> {
        lock(&self.sending).get(&id).copied()
    }

    fn begin_sending(self: &Arc<Self>, id: u64, index: u64) -> Sending {
        lock(&self.sending).insert(id, index);
        Sending {
            links: Arc::clone(self),
            id,
            index,
        }
    }

    fn acked(&self, id: u64) -> Arc<Acked> {
        Arc::clone(lock(&self.acked).entry(id).or_default())
    }

    pub(crate) fn control(&self, id: u64) -> Arc<ControlLink> {
        self.link(&self.control, id, Purpose::Control)
    }

    /// For commands that member `id`, the leader, shall propose.
    pub(crate) fn propose(&self, id: u64) -> Arc<ControlLink> {
        self.link(&self.propose, id, Purpose::Propose)
    }

    fn link(
        &self,
        links: &Mutex<HashMap<u64, Arc<ControlLink>>>,
        id: u64,
        purpose: Purpose,
    ) -> Arc<ControlLink> {
        let mut links = lock(links);
        let link = links.entry(id).or_insert_with(|| {
            Arc::new(ControlLink::new(
                id,
                purpose,
                Arc::clone(&self.dialer),
                self.silence,
                self.closing.clone(),
            ))
        });
        Arc::clone(link)
    }

    /// Drops the links to nodes that are no members any more.
    pub(crate) fn retain(&self, directory: &Directory) {
        lock(&self.acked).retain(|id, _| directory.contains(*id));
        lock(&self.control).retain(|id, _| directory.contains(*id));
        lock(&self.propose).retain(|id, _| directory.contains(*id));
    }
}

/// A member is being sent a snapshot as long as this is there.
struct Sending {
    links: Arc<Links>,
    id: u64,
    index: u64,
}

impl Sending {
    fn ended(&self, sent: &Result<Vote, SendError>) {
        let counters = &self.links.counters;
        let (node, index) = (self.id, self.index);
        match sent {
            Ok(_) => {
                add(&counters.sent, 1);
                tracing::info!(node, index, "sent a snapshot");
                lock(&self.links.unsent).remove(&node);
            }
            Err(error) => {
                add(&counters.send_failures, 1);
                let why = chain(error);
                // Tried again every second; said once.
                let said = lock(&self.links.unsent).insert(node, why.clone());
                if said.as_ref() != Some(&why) {
                    tracing::warn!(node, index, "a snapshot was not sent; trying again: {why}");
                }
            }
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        lock(&self.links.sending).remove(&self.id);
    }
}

/// Makes clients for openraft. `None`: a node without a network, which has no other member either.
#[derive(Clone)]
pub(crate) struct Factory(pub(crate) Option<Arc<Links>>);

/// openraft's client to one member.
pub(crate) struct Client {
    id: u64,
    links: Option<Arc<Links>>,
    lane: LaneKind,
}

enum LaneKind {
    /// Log entries: a connection of its own.
    Append(Box<Lane>),
    /// Heartbeats: the control connection, never behind log entries.
    Heartbeat,
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &PeerInfo) -> Client {
        let acked = self.0.as_ref().map(|links| links.acked(target));
        let lane = Lane::new(acked.unwrap_or_default());
        self.client(target, node, LaneKind::Append(Box::new(lane)))
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &PeerInfo) -> Client {
        self.client(target, node, LaneKind::Heartbeat)
    }
}

impl Factory {
    fn client(&self, id: u64, info: &PeerInfo, lane: LaneKind) -> Client {
        if let Some(links) = &self.0 {
            links.dialer.directory.note(id, info);
        }
        Client {
            id,
            links: self.0.clone(),
            lane,
        }
    }
}

impl Client {
    async fn call(
        &self,
        action: RPCTypes,
        call: Call,
        option: &RPCOption,
    ) -> Result<Reply, RpcError> {
        let links = self.links.as_ref().ok_or_else(no_network)?;
        let limit = option.hard_ttl();
        let link = links.control(self.id);
        match link.call(call, limit).await {
            Ok(Reply::Failed(why)) => Err(network(&why)),
            Ok(reply) => Ok(reply),
            Err(CallError::TimedOut) => Err(RPCError::Timeout(Timeout {
                action,
                id: links.raft_id,
                target: self.id,
                timeout: limit,
            })),
            Err(error @ CallError::Unreachable(_)) => Err(unreachable(&error.to_string())),
            Err(error @ (CallError::Busy | CallError::Broken)) => Err(network(&error.to_string())),
        }
    }

    async fn heartbeat(
        &self,
        request: AppendRequest,
        option: &RPCOption,
    ) -> Result<AppendResult, RpcError> {
        if let Some(links) = &self.links {
            links.tell(request.leader_commit.map(|id| id.index));
        }
        let call = Call::Append(Append::from(&request));
        let Reply::Append(reply) = self.call(RPCTypes::AppendEntries, call, option).await? else {
            return Err(wrong_answer());
        };
        match reply.into_result() {
            // What a heartbeat names was acknowledged. Openraft must not hear that it is gone: see `append.rs`.
            Ok(Err(StreamAppendError::Conflict(id))) => {
                tracing::error!(node = self.id, index = id.index, "{SET_BACK}");
                Err(unreachable(SET_BACK))
            }
            Ok(result) => Ok(result),
            Err(why) => Err(network(&why)),
        }
    }
}

fn unreachable(why: &str) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(why))
}

fn network(why: &str) -> RpcError {
    RPCError::Network(NetworkError::from_string(why))
}

fn no_network() -> RpcError {
    unreachable("this node has no cluster network")
}

fn wrong_answer() -> RpcError {
    network("the answer does not fit the call")
}

impl NetStreamAppend<TypeConfig> for Client {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<AppendResult, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            if matches!(self.lane, LaneKind::Heartbeat) {
                let client: &'s Self = self;
                return Ok(client.heartbeats(input, option));
            }
            let links = self.links.clone().ok_or_else(no_network)?;
            let LaneKind::Append(lane) = &mut self.lane else {
                return Err(wrong_answer());
            };
            if lane.connection.is_none() {
                match links.dialer.open(self.id, Purpose::Append).await {
                    Ok(connection) => lane.connected(connection),
                    Err(error) => {
                        // openraft's back-off sits in `input`, which is not read before there is a connection.
                        tokio::time::sleep(lane.pause_after_failure()).await;
                        return Err(unreachable(&chain(&error)));
                    }
                }
            }
            let silence = links.silence;
            let input = input.inspect(move |request| {
                links.tell(request.leader_commit.map(|id| id.index));
            });
            let answers: BoxStream<'s, _> = Box::pin(Session::new(lane, input, silence));
            Ok(answers)
        })
    }
}

impl Client {
    /// One request after the other; ends with the first that is not simply accepted.
    fn heartbeats<'s, S>(
        &'s self,
        input: S,
        option: RPCOption,
    ) -> BoxStream<'s, Result<AppendResult, RpcError>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        Box::pin(stream::unfold(Some(input), move |input| {
            let option = option.clone();
            async move {
                let mut input = input?;
                let request = input.next().await?;
                let answer = self.heartbeat(request, &option).await;
                let goes_on = matches!(answer, Ok(Ok(_)));
                Some((answer, goes_on.then_some(input)))
            }
        }))
    }
}

impl NetVote<TypeConfig> for Client {
    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let call = Call::Vote((&rpc).into());
        let Reply::Vote(reply) = self.call(RPCTypes::Vote, call, &option).await? else {
            return Err(wrong_answer());
        };
        reply.try_into().map_err(|_| wrong_answer())
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let call = Call::PreVote((&rpc).into());
        let Reply::Vote(reply) = self.call(RPCTypes::Vote, call, &option).await? else {
            return Err(wrong_answer());
        };
        reply.try_into().map_err(|_| wrong_answer())
    }
}

impl NetTransferLeader<TypeConfig> for Client {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let call = Call::Transfer((&request).into());
        let answer = self.call(RPCTypes::TransferLeader, call, &option).await?;
        let Reply::Transfer(reply) = answer else {
            return Err(wrong_answer());
        };
        TransferResult::try_from(reply).map_err(|_| wrong_answer())
    }
}

impl NetSnapshot<TypeConfig> for Client {
    type SnapshotData = SnapshotDir;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::alias::SnapshotOf<TypeConfig, SnapshotDir>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let SnapshotDir::Kept(kept) = snapshot.snapshot else {
            return Err(wrong_answer().into());
        };
        let links = self.links.clone().ok_or_else(no_network)?;
        let sending = links.begin_sending(self.id, kept.index());
        links.tell(Some(kept.index()));
        let sent = tokio::select! {
            sent = Box::pin(send(&links.dialer, self.id, vote, kept, &links.counters)) => sent,
            closed = cancel => return Err(closed.into()),
        };
        sending.ended(&sent);
        match sent {
            Ok(vote) => Ok(SnapshotResponse { vote }),
            Err(SendError::Unreachable(why)) => Err(unreachable(&why).into()),
            Err(SendError::Broken(error)) => Err(network(&error.to_string()).into()),
        }
    }
}

impl NetBackoff<TypeConfig> for Client {
    fn backoff(&self) -> Option<Backoff> {
        let steps = [50, 100, 200, 500].map(Duration::from_millis);
        let last = Duration::from_secs(1);
        Some(Backoff::new(
            steps.into_iter().chain(std::iter::repeat(last)),
        ))
    }
}
