//! The append stream to one member, dialing side: log entries pipelined over one connection.
//!
//! In: openraft's stream of append requests. Out: the answers, in order.
//!
//! Invariants
//! - Answers pair with requests by number; those of an abandoned session are skipped.
//! - At most [`MAX_REQUESTS`] or [`MAX_BYTES`] are under way.
//! - A conflict at an entry that the member has acknowledged is an error of that member's: openraft's leader would stop, or in
//!   builds without debug assertions wait for it for ever.
//! - When requests are under way and nothing arrives for `silence`, the connection is given up.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures_sink::Sink;
use futures_util::{FutureExt, Stream, StreamExt};
use openraft::{
    errors::{NetworkError, RPCError, Unreachable},
    raft::StreamAppendError,
};
use prost::Message;
use tokio::time::{Instant, Sleep};

use super::{
    frame::{FIRST, Frame, Kind},
    peer::Connection,
    wire::{Append, AppendReply},
};
use crate::{
    log::lock,
    types::{AppendRequest, AppendResult, RpcError},
};

const MAX_REQUESTS: usize = 64;
const MAX_BYTES: usize = 16 << 20;
/// Short, so that a node that comes back is caught up at once; long enough not to spin.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The last entry that a member has acknowledged, and the term of the leader to which it did.
#[derive(Default)]
pub(crate) struct Acked(Mutex<(u64, u64)>);

impl Acked {
    fn note(&self, term: u64, index: u64) {
        let mut known = lock(&self.0);
        *known = (*known).max((term, index));
    }

    fn covers(&self, term: u64, index: u64) -> bool {
        let known = *lock(&self.0);
        known.0 == term && index <= known.1
    }
}

/// Why nothing more is sent to a member.
pub(crate) const SET_BACK: &str = "the node lacks entries that it has acknowledged: its disk was set back, or does not keep what it \
    has synced; it must be started anew with an empty data directory";

/// What outlives a session: the connection and the numbering on it.
pub(crate) struct Lane {
    acked: Arc<Acked>,
    pub(crate) connection: Option<Connection>,
    seq: u64,
    /// Failed attempts to connect in a row.
    failures: u32,
}

impl Lane {
    pub(crate) fn new(acked: Arc<Acked>) -> Self {
        Self {
            acked,
            connection: None,
            seq: 0,
            failures: 0,
        }
    }

    /// A connection for the sessions to come.
    pub(crate) fn connected(&mut self, connection: Connection) {
        self.connection = Some(connection);
        self.failures = 0;
    }

    /// How long to wait before the next attempt: 20 ms, doubled with each failure up to [`LONGEST_PAUSE`].
    pub(crate) fn pause_after_failure(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let doublings = self.failures.min(10) - 1;
        (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
    }
}

/// One stream of requests and its answers.
pub(crate) struct Session<'lane, S> {
    lane: &'lane mut Lane,
    input: S,
    input_ended: bool,
    /// Number of the session's first request.
    first: u64,
    /// Of the leader whose requests these are.
    term: u64,
    /// Number and size of what is under way.
    under_way: VecDeque<(u64, usize)>,
    bytes: usize,
    silence: Duration,
    deadline: Pin<Box<Sleep>>,
    ended: bool,
}

impl<'lane, S> Session<'lane, S>
where
    S: Stream<Item = AppendRequest> + Unpin,
{
    /// Starts a session on `lane`, whose connection must be open.
    pub(crate) fn new(lane: &'lane mut Lane, input: S, silence: Duration) -> Self {
        let first = lane.seq + 1;
        Self {
            lane,
            input,
            input_ended: false,
            first,
            term: 0,
            under_way: VecDeque::new(),
            bytes: 0,
            silence,
            deadline: Box::pin(tokio::time::sleep(silence)),
            ended: false,
        }
    }

    /// Sends what there is to send and there is room for.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(connection) = self.lane.connection.as_mut() else {
            return Err(io::Error::from(io::ErrorKind::NotConnected));
        };
        while !self.input_ended && self.under_way.len() < MAX_REQUESTS && self.bytes < MAX_BYTES {
            match Pin::new(&mut *connection).poll_ready(cx)? {
                Poll::Pending => break,
                Poll::Ready(()) => {}
            }
            match self.input.poll_next_unpin(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => self.input_ended = true,
                Poll::Ready(Some(request)) => {
                    self.lane.seq += 1;
                    self.term = request.vote.leader_id.term;
                    let seq = self.lane.seq;
                    let body = Append::from(&request).encode_to_vec();
                    if self.under_way.is_empty() {
                        self.deadline.as_mut().reset(Instant::now() + self.silence);
                    }
                    self.under_way.push_back((seq, body.len()));
                    self.bytes += body.len();
                    Pin::new(&mut *connection).start_send(Frame {
                        kind: Kind::Append,
                        flags: if seq == self.first { FIRST } else { 0 },
                        seq,
                        body: body.into(),
                    })?;
                }
            }
        }
        match Pin::new(connection).poll_flush(cx)? {
            Poll::Ready(()) | Poll::Pending => Ok(()),
        }
    }

    /// The answer to the oldest request under way.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<AppendResult>> {
        loop {
            let Some(connection) = self.lane.connection.as_mut() else {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::NotConnected)));
            };
            let frame = match connection.poll_next_unpin(cx)? {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof)));
                }
                Poll::Ready(Some(frame)) => frame,
            };
            if frame.kind != Kind::AppendReply {
                return Poll::Ready(Err(io::Error::other("a frame that is no append reply")));
            }
            if frame.seq < self.first {
                continue;
            }
            let Some((seq, bytes)) = self.under_way.pop_front() else {
                return Poll::Ready(Err(io::Error::other("an answer to nothing")));
            };
            if seq != frame.seq {
                return Poll::Ready(Err(io::Error::other("an answer out of order")));
            }
            self.bytes -= bytes;
            self.deadline.as_mut().reset(Instant::now() + self.silence);
            let reply = AppendReply::decode(frame.body).map_err(io::Error::other)?;
            return Poll::Ready(reply.into_result().map_err(io::Error::other));
        }
    }

    fn poll_session(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<AppendResult>>> {
        if let Err(error) = self.poll_send(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        if let Poll::Ready(answer) = self.poll_answer(cx) {
            return Poll::Ready(Some(answer));
        }
        if self.under_way.is_empty() {
            return if self.input_ended {
                Poll::Ready(None)
            } else {
                Poll::Pending
            };
        }
        match self.deadline.poll_unpin(cx) {
            Poll::Ready(()) => Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut)))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S> Stream for Session<'_, S>
where
    S: Stream<Item = AppendRequest> + Unpin,
{
    type Item = Result<AppendResult, RpcError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        match this.poll_session(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                this.ended = true;
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(Err(StreamAppendError::Conflict(id)))))
                if this.lane.acked.covers(this.term, id.index) =>
            {
                this.ended = true;
                this.lane.connection = None;
                tracing::error!(index = id.index, "{SET_BACK}");
                Poll::Ready(Some(Err(RPCError::Unreachable(Unreachable::from_string(
                    SET_BACK,
                )))))
            }
            Poll::Ready(Some(Ok(answer))) => {
                if let Ok(Some(id)) = &answer {
                    this.lane.acked.note(this.term, id.index);
                }
                // After a conflict or a higher vote the other side takes nothing more in this session.
                this.ended = answer.is_err();
                Poll::Ready(Some(Ok(answer)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.ended = true;
                this.lane.connection = None;
                Poll::Ready(Some(Err(RPCError::Network(NetworkError::new(&error)))))
            }
        }
    }
}
