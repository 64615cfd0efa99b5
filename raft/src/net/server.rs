//! The accepting side of the cluster port.
//!
//! In: TCP connections. Out: Raft messages handed to openraft, answers; whole streams of other protocols handed to
//! their owner by ALPN name.
//!
//! Invariants
//! - Nothing is read from a peer before TLS has proved which node of this cluster it is.
//! - Handshakes, connections and calls under way are bounded, each step has a time limit.
//! - Raft's own messages are taken from every node of the cluster, even one this node does not know *yet*: a node that
//!   is behind must not refuse a leader that was elected without it. Only a leader with a fresh quorum knows the
//!   membership for certain, and it refuses strangers; streams of other protocols are for known members only.

use std::{
    collections::{HashMap, VecDeque},
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::{FutureExt, Stream, StreamExt, stream, stream::FuturesUnordered};
use openraft::raft::{AppendEntriesResponse, StreamAppendError};
use prost::Message;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::{codec::Framed, sync::CancellationToken};

use super::{
    frame::{FIRST, Frame, FrameCodec, Kind},
    peer::{ALPN, Connection, Directory, certificate_identity, feed, flush, frame, send},
    snapshot::Receiver,
    wire::{
        Append, AppendReply, Call, CallMessage, Hello, PROTOCOL, Purpose, Reply, ReplyMessage,
        Welcome, is_contiguous,
    },
};
use crate::{
    identity::Identity,
    log::lock,
    raft::Raft,
    services::Services,
    suspect::Suspicion,
    tasks::Tasks,
    types::{AppendRequest, AppendResult, Core, TypeConfig},
    vitals::Room,
};

const MAX_HANDSHAKES: usize = 64;
const MAX_CONNECTIONS: usize = 512;
/// Append requests taken from one connection and not answered yet.
const MAX_APPENDS: usize = 64;
/// Before a leader is told that there is no room for its entries.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(500);
/// Calls of one connection under way.
const MAX_CALLS: usize = 256;

/// A connection of another protocol than Raft's, from a member.
pub struct IncomingStream {
    /// The member's Raft id, proved by its certificate.
    pub from: u64,
    /// The connection, after the TLS handshake.
    pub stream: TlsStream<TcpStream>,
}

impl std::fmt::Debug for IncomingStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IncomingStream(from {})", self.from)
    }
}

/// Everything the accepting side needs.
pub(crate) struct Server {
    pub(crate) identity: Identity,
    pub(crate) services: Services,
    pub(crate) suspicion: Arc<Suspicion>,
    pub(crate) raft: Raft,
    pub(crate) directory: Arc<Directory>,
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) streams: HashMap<&'static str, mpsc::Sender<IncomingStream>>,
    /// For each step of a handshake, and for an answer to be taken.
    pub(crate) step: Duration,
    pub(crate) tasks: Tasks,
    /// The connection that each peer uses now, by purpose.
    pub(crate) newest: Mutex<HashMap<(u64, u32), CancellationToken>>,
    pub(crate) snapshots: Receiver,
    /// Refusals that were logged: when, and in which words.
    pub(crate) refused: Mutex<HashMap<u64, (Instant, String)>>,
}

impl Server {
    /// Accepts on every listener until closing.
    pub(crate) fn spawn(self, listeners: Vec<TcpListener>) {
        let server = Arc::new(self);
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        for listener in listeners {
            let accepting = Arc::clone(&server).accept(
                listener,
                Arc::clone(&handshakes),
                Arc::clone(&connections),
            );
            server.tasks.vital("cluster port", accepting);
        }
    }

    async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        handshakes: Arc<Semaphore>,
        connections: Arc<Semaphore>,
    ) {
        loop {
            let permits = tokio::try_join!(
                Arc::clone(&handshakes).acquire_owned(),
                Arc::clone(&connections).acquire_owned()
            );
            let Ok((handshake, connection)) = permits else {
                return;
            };
            match listener.accept().await {
                Ok((tcp, _)) => {
                    let server = Arc::clone(&self);
                    self.tasks.passing(async move {
                        if let Err(error) = Box::pin(server.handle(tcp, handshake)).await {
                            tracing::debug!(%error, "a connection on the cluster port ended");
                        }
                        drop(connection);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting on the cluster port failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn handle(&self, tcp: TcpStream, handshake: OwnedSemaphorePermit) -> io::Result<()> {
        tcp.set_nodelay(true)?;
        let tls = timeout(self.step, self.acceptor.accept(tcp)).await??;
        let (_, session) = tls.get_ref();
        let proved = session
            .peer_certificates()
            .and_then(<[_]>::first)
            .and_then(certificate_identity);
        let from = match proved {
            Some((cluster, from)) if cluster == self.identity.cluster_id => from,
            _ => return Err(io::Error::other("a certificate of no node of this cluster")),
        };
        let alpn = session.alpn_protocol().unwrap_or_default().to_vec();
        if alpn != ALPN.as_bytes() {
            return self.hand_over(from, &alpn, tls.into()).await;
        }
        let mut connection = Framed::new(tls.into(), FrameCodec);
        let greeted = timeout(self.step, self.greet(&mut connection, from)).await??;
        drop(handshake);
        let Some(purpose) = greeted else {
            return Ok(());
        };
        let replaced = self.supersede(from, purpose);
        let serving = async {
            match purpose {
                Purpose::Append => self.serve_append(connection).await,
                Purpose::Snapshot => self.snapshots.serve(connection, from).await,
                Purpose::Control | Purpose::Propose => self.serve_control(connection, from).await,
            }
        };
        let Some(ended) = replaced.run_until_cancelled(serving).await else {
            return Ok(());
        };
        self.suspicion.connection_ended(from);
        ended
    }

    /// Ends the peer's former connection for the same purpose: a peer uses one at a time, so the former one is dead, and
    /// may never say so if the network swallowed its end.
    fn supersede(&self, from: u64, purpose: Purpose) -> CancellationToken {
        let token = CancellationToken::new();
        let former = lock(&self.newest).insert((from, purpose.number()), token.clone());
        former.inspect(CancellationToken::cancel);
        token
    }

    async fn hand_over(
        &self,
        from: u64,
        alpn: &[u8],
        stream: TlsStream<TcpStream>,
    ) -> io::Result<()> {
        if !self.directory.contains(from) {
            tracing::warn!(node = from, "a node that is no member was turned away");
            return Err(io::Error::other("a stream from no member"));
        }
        let owner = self
            .streams
            .iter()
            .find(|(name, _)| name.as_bytes() == alpn);
        let Some((_, owner)) = owner else {
            return Err(io::Error::other("a protocol nobody speaks here"));
        };
        timeout(self.step, owner.send(IncomingStream { from, stream }))
            .await?
            .map_err(|_| io::Error::other("the owner of the protocol is gone"))
    }

    /// Checks the hello and answers it; `None`: refused.
    async fn greet(&self, connection: &mut Connection, from: u64) -> io::Result<Option<Purpose>> {
        let hello = connection
            .next()
            .await
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))??;
        if hello.kind != Kind::Hello {
            return Err(io::Error::other("the first frame is no hello"));
        }
        let hello = Hello::decode(hello.body).map_err(io::Error::other)?;
        let removed = self.knows_as_removed(from);
        let (purpose, refused) = match self.check(&hello, from) {
            Ok(purpose) => (Some(purpose), String::new()),
            Err(why) => {
                self.log_refusal(from, &why);
                (None, why)
            }
        };
        let welcome = frame(Kind::Welcome, &Welcome { refused, removed });
        send(connection, welcome).await?;
        if purpose.is_some() {
            self.services.peer_is_back(from).await;
        }
        Ok(purpose)
    }

    /// Whether `from` is no member, and this node leads with a fresh quorum, so that it knows.
    fn knows_as_removed(&self, from: u64) -> bool {
        !self.directory.contains(from) && self.services.leads_with_quorum()
    }

    /// A node that was removed asks again and again: once an hour is enough.
    fn log_refusal(&self, from: u64, why: &str) {
        const HOUR: Duration = Duration::from_secs(3600);
        let now = Instant::now();
        let mut refused = lock(&self.refused);
        refused.retain(|_, (said, _)| now.duration_since(*said) < HOUR);
        let known = refused.get(&from).is_some_and(|(_, known)| known == why);
        if !known && refused.len() < MAX_CONNECTIONS {
            refused.insert(from, (now, why.to_owned()));
            tracing::warn!(node = from, "a connection was refused: {why}");
        }
    }

    fn check(&self, hello: &Hello, from: u64) -> Result<Purpose, String> {
        let own = &self.identity;
        if hello.protocol != PROTOCOL {
            return Err(format!(
                "protocol {} is unknown here; this node speaks {PROTOCOL}",
                hello.protocol
            ));
        }
        if hello.cluster_id != own.cluster_id {
            return Err("this node belongs to another cluster".to_owned());
        }
        if hello.from != from {
            return Err(format!("the certificate is node {from}'s"));
        }
        if hello.to != own.raft_id {
            return Err(format!("this is node {}", own.raft_id));
        }
        if self.knows_as_removed(from) {
            return Err(format!(
                "node {from} is not a member of the cluster: it was removed or replaced, and must \
                 rejoin with an empty data directory"
            ));
        }
        Purpose::of(hello.purpose)
            .ok_or_else(|| format!("purpose {} is unknown here", hello.purpose))
    }

    async fn serve_append(&self, mut connection: Connection) -> io::Result<()> {
        let mut session: Option<AppendSession> = None;
        loop {
            let room = session.as_ref().is_none_or(AppendSession::has_room);
            tokio::select! {
                frame = connection.next(), if room => {
                    let Some(frame) = frame.transpose()? else {
                        return Ok(());
                    };
                    if self.services.vitals.room() == Room::Critical {
                        // Not at once: the leader would only ask again.
                        tokio::time::sleep(NO_ROOM_PAUSE).await;
                        return Err(io::Error::other("there is no room on this node's disk"));
                    }
                    take_append(&self.services.core, &mut session, frame)?;
                }
                (seq, result) = next_result(&mut session) => {
                    if matches!(&result, Some(Ok(Ok(_)))) {
                        self.services.heard_now();
                    }
                    let (reply, goes_on) = match &result {
                        Some(Ok(result)) => (AppendReply::from(result), result.is_ok()),
                        Some(Err(why)) => (AppendReply::failed(why.clone()), false),
                        None => (AppendReply::failed("the stream ended".to_owned()), false),
                    };
                    if !goes_on {
                        session = None;
                    }
                    let frame = Frame {
                        kind: Kind::AppendReply,
                        flags: 0,
                        seq,
                        body: reply.encode_to_vec().into(),
                    };
                    timeout(self.step, send(&mut connection, frame)).await??;
                }
            }
        }
    }

    async fn serve_control(&self, mut connection: Connection, from: u64) -> io::Result<()> {
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                frame = connection.next(), if under_way.len() < MAX_CALLS => {
                    let Some(frame) = frame.transpose()? else {
                        return Ok(());
                    };
                    if frame.kind != Kind::Call {
                        return Err(io::Error::other("a frame that is no call"));
                    }
                    // It learns of it when it connects again.
                    if self.knows_as_removed(from) {
                        return Err(io::Error::other("a call of a node that was removed"));
                    }
                    let message = CallMessage::decode(frame.body).map_err(io::Error::other)?;
                    under_way.push(async move { (frame.seq, self.answer(message.call, from).await) });
                }
                Some((seq, reply)) = under_way.next() => {
                    // What is ready too goes out in the same write.
                    let sending = async {
                        let mut next = Some((seq, reply));
                        while let Some((seq, reply)) = next {
                            feed(&mut connection, reply_frame(seq, reply)).await?;
                            next = under_way.next().now_or_never().flatten();
                        }
                        flush(&mut connection).await
                    };
                    timeout(self.step, sending).await??;
                }
            }
        }
    }

    async fn answer(&self, call: Option<Call>, from: u64) -> Reply {
        let answered = match call {
            None => Err("a call of unknown kind".to_owned()),
            Some(Call::Append(append)) => self.heartbeat(append).await,
            Some(Call::Vote(vote)) => match vote.try_into() {
                Err(error) => Err(format!("{error}")),
                Ok(request) => match self.services.core.vote(request).await {
                    Ok(response) => Ok(Reply::Vote((&response).into())),
                    Err(error) => Err(error.to_string()),
                },
            },
            Some(Call::PreVote(vote)) => match vote.try_into() {
                Err(error) => Err(format!("{error}")),
                Ok(request) => match self.services.core.pre_vote(request).await {
                    Ok(response) => Ok(Reply::Vote((&response).into())),
                    Err(error) => Err(error.to_string()),
                },
            },
            Some(Call::Transfer(transfer)) => match transfer.try_into() {
                Err(error) => Err(format!("{error}")),
                Ok(request) => match self.services.core.handle_transfer_leader(request).await {
                    Ok(result) => Ok(Reply::Transfer((&result).into())),
                    Err(error) => Err(error.to_string()),
                },
            },
            Some(Call::ReadIndex(_)) => Ok(self.services.answer_read_index(None).await),
            Some(Call::ReadAs(vote)) => {
                let standing = Some((from, vote.into()));
                Ok(self.services.answer_read_index(standing).await)
            }
            Some(Call::Standing(_)) => Ok(self.services.answer_standing()),
            Some(Call::Health(_)) => Ok(Reply::Health(self.services.vitals.health().into())),
            Some(Call::Announce(info)) => Ok(self.services.answer_announce(from, info).await),
            Some(Call::Leave(_)) => Ok(self.services.answer_leave(from).await),
            Some(Call::Chosen(_)) => {
                self.services.tracker.choose();
                Ok(Reply::Done(true))
            }
            Some(Call::Propose(call)) => Ok(Reply::Proposed(self.raft.answer_propose(call).await)),
        };
        answered.unwrap_or_else(Reply::Failed)
    }

    async fn heartbeat(&self, append: Append) -> Result<Reply, String> {
        let request = AppendRequest::try_from(append).map_err(|error| error.to_string())?;
        if !is_contiguous(&request) {
            return Err("entries with a hole".to_owned());
        }
        let prev = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(prev);
        let response = self.services.core.append_entries(request).await;
        let response = response.map_err(|error| error.to_string())?;
        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
            self.services.heard_now();
        }
        let result: AppendResult = match response {
            AppendEntriesResponse::Success => Ok(last),
            AppendEntriesResponse::PartialSuccess(matched) => Ok(matched),
            AppendEntriesResponse::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote)),
            AppendEntriesResponse::Conflict => match prev {
                // A heartbeat names what this node has acknowledged to this very leader.
                Some(prev) => {
                    self.raft.0.log.set_back(prev.index);
                    Err(StreamAppendError::Conflict(prev))
                }
                None => return Err("a conflict with nothing".to_owned()),
            },
        };
        Ok(Reply::Append((&result).into()))
    }
}

fn reply_frame(seq: u64, reply: Reply) -> Frame {
    let message = ReplyMessage { reply: Some(reply) };
    Frame {
        kind: Kind::Reply,
        flags: 0,
        seq,
        body: message.encode_to_vec().into(),
    }
}

type Results =
    Pin<Box<dyn Stream<Item = Result<AppendResult, openraft::errors::Fatal<TypeConfig>>> + Send>>;

/// One session on an append connection: requests handed to openraft, answers awaited in order.
struct AppendSession {
    requests: mpsc::Sender<AppendRequest>,
    results: Results,
    /// Numbers of the requests under way.
    under_way: VecDeque<u64>,
}

impl AppendSession {
    fn new(core: &Core) -> Self {
        let (requests, receiver) = mpsc::channel(MAX_APPENDS);
        let input = stream::unfold(
            receiver,
            |mut receiver: mpsc::Receiver<AppendRequest>| async {
                receiver.recv().await.map(|request| (request, receiver))
            },
        );
        Self {
            requests,
            results: Box::pin(core.stream_append(Box::pin(input))),
            under_way: VecDeque::new(),
        }
    }

    fn has_room(&self) -> bool {
        self.under_way.len() < MAX_APPENDS
    }
}

fn take_append(core: &Core, session: &mut Option<AppendSession>, frame: Frame) -> io::Result<()> {
    if frame.kind != Kind::Append {
        return Err(io::Error::other("a frame that is no append"));
    }
    let message = Append::decode(frame.body).map_err(io::Error::other)?;
    let request = AppendRequest::try_from(message).map_err(io::Error::other)?;
    if !is_contiguous(&request) {
        return Err(io::Error::other("entries with a hole"));
    }
    if frame.flags & FIRST != 0 {
        *session = Some(AppendSession::new(core));
    }
    // No session: requests that were on their way when the last one ended; the dialing side knows.
    if let Some(session) = session {
        session.under_way.push_back(frame.seq);
        session
            .requests
            .try_send(request)
            .map_err(|_| io::Error::other("more requests than there is room for"))?;
    }
    Ok(())
}

/// The next answer of the session and its number; never, without anything under way.
async fn next_result(
    session: &mut Option<AppendSession>,
) -> (u64, Option<Result<AppendResult, String>>) {
    let Some(session) = session else {
        return std::future::pending().await;
    };
    let Some(seq) = session.under_way.front().copied() else {
        return std::future::pending().await;
    };
    let result = session.results.next().await;
    session.under_way.pop_front();
    (
        seq,
        result.map(|result| result.map_err(|fatal| fatal.to_string())),
    )
}
