//! A connection for calls to one member, dialing side: many calls at once, each with its own deadline.
//!
//! In: calls. Out: answers, matched by number, in any order.
//!
//! Invariants
//! - A call is never sent twice by this layer.
//! - A connection on which calls wait and nothing arrives is given up, so that a half-dead one does not swallow calls
//!   for minutes.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use prost::Message;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    frame::{Frame, Kind},
    peer::{Connection, Dialer, feed, flush},
    wire::{Call, CallMessage, Purpose, Reply, ReplyMessage},
};
use crate::log::lock;

/// Calls that may wait for one member.
const MAX_CALLS: usize = 256;

/// Why a call has no answer. In every case it may have been carried out, unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("no connection: {0}")]
    Unreachable(String),
    #[error("too many calls wait for this node; the call was not sent")]
    Busy,
    #[error("no answer in time")]
    TimedOut,
    #[error("the connection broke")]
    Broken,
}

type Waiting = (Call, oneshot::Sender<Result<Reply, CallError>>);

/// The connection to one member for one purpose; dials when there is something to say.
pub(crate) struct ControlLink {
    id: u64,
    purpose: Purpose,
    dialer: Arc<Dialer>,
    /// Longest silence while calls wait.
    silence: Duration,
    closing: CancellationToken,
    calls: Mutex<Option<mpsc::Sender<Waiting>>>,
    /// Whether the last attempt failed, so that a failure is logged once and not ten times a second.
    down: Arc<Mutex<bool>>,
}

impl ControlLink {
    pub(crate) fn new(
        id: u64,
        purpose: Purpose,
        dialer: Arc<Dialer>,
        silence: Duration,
        closing: CancellationToken,
    ) -> Self {
        Self {
            id,
            purpose,
            dialer,
            silence,
            closing,
            calls: Mutex::default(),
            down: Arc::default(),
        }
    }

    /// Sends `call` and waits for its answer, at most `limit`.
    pub(crate) async fn call(&self, call: Call, limit: Duration) -> Result<Reply, CallError> {
        let (tx, rx) = oneshot::channel();
        self.sender()
            .try_send((call, tx))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => CallError::Busy,
                mpsc::error::TrySendError::Closed(_) => CallError::Broken,
            })?;
        match timeout(limit, rx).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(CallError::Broken),
            Err(_) => Err(CallError::TimedOut),
        }
    }

    fn sender(&self) -> mpsc::Sender<Waiting> {
        let mut calls = lock(&self.calls);
        if let Some(sender) = calls.as_ref().filter(|sender| !sender.is_closed()) {
            return sender.clone();
        }
        let (sender, receiver) = mpsc::channel(MAX_CALLS);
        let connection = Running {
            id: self.id,
            purpose: self.purpose,
            dialer: Arc::clone(&self.dialer),
            silence: self.silence,
            down: Arc::clone(&self.down),
        };
        let closing = self.closing.clone();
        tokio::spawn(async move { closing.run_until_cancelled(connection.run(receiver)).await });
        calls.insert(sender).clone()
    }
}

struct Running {
    id: u64,
    purpose: Purpose,
    dialer: Arc<Dialer>,
    silence: Duration,
    down: Arc<Mutex<bool>>,
}

impl Running {
    async fn run(self, mut calls: mpsc::Receiver<Waiting>) {
        let connection = match self.dialer.open(self.id, self.purpose).await {
            Ok(connection) => connection,
            Err(error) => {
                let why = chain(&error);
                if !std::mem::replace(&mut *lock(&self.down), true) {
                    tracing::warn!(node = self.id, "no connection to a member: {why}");
                }
                calls.close();
                while let Some((_, tx)) = calls.recv().await {
                    // The caller may have given up waiting.
                    drop(tx.send(Err(CallError::Unreachable(why.clone()))));
                }
                return;
            }
        };
        if std::mem::replace(&mut *lock(&self.down), false) {
            tracing::info!(node = self.id, "connected to a member again");
        }
        if let Err(error) = self.serve(connection, &mut calls).await {
            tracing::debug!(node = self.id, %error, "a control connection ended");
        }
    }

    async fn serve(
        &self,
        mut connection: Connection,
        calls: &mut mpsc::Receiver<Waiting>,
    ) -> io::Result<()> {
        let mut waiting: HashMap<u64, oneshot::Sender<Result<Reply, CallError>>> = HashMap::new();
        let mut seq = 0u64;
        // Since when something is asked and nothing at all has come back; callers giving up do not reset it.
        let mut unheard: Option<Instant> = None;
        loop {
            let silent_at = unheard.map(|since| since + self.silence);
            waiting.retain(|_, tx| !tx.is_closed());
            tokio::select! {
                frame = connection.next() => {
                    let Some(frame) = frame.transpose()? else {
                        return Ok(());
                    };
                    unheard = None;
                    let (seq, reply) = reply_of(frame)?;
                    if let Some(tx) = waiting.remove(&seq) {
                        // The caller may have given up waiting.
                        drop(tx.send(Ok(reply)));
                    }
                }
                call = calls.recv(), if waiting.len() < MAX_CALLS => {
                    let Some(mut next) = call else {
                        return Ok(());
                    };
                    unheard.get_or_insert_with(Instant::now);
                    // What waits already goes out in the same write.
                    let sending = async {
                        loop {
                            let (call, tx) = next;
                            seq += 1;
                            waiting.insert(seq, tx);
                            feed(&mut connection, call_frame(seq, call)).await?;
                            if waiting.len() >= MAX_CALLS {
                                break;
                            }
                            match calls.try_recv() {
                                Ok(more) => next = more,
                                Err(_) => break,
                            }
                        }
                        flush(&mut connection).await
                    };
                    timeout(self.silence, sending)
                        .await
                        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                }
                () = tokio::time::sleep_until(silent_at.unwrap_or_else(Instant::now)), if silent_at.is_some() => {
                    return Err(io::Error::from(io::ErrorKind::TimedOut));
                }
            }
        }
    }
}

fn call_frame(seq: u64, call: Call) -> Frame {
    let message = CallMessage { call: Some(call) };
    Frame {
        kind: Kind::Call,
        flags: 0,
        seq,
        body: message.encode_to_vec().into(),
    }
}

fn reply_of(frame: Frame) -> io::Result<(u64, Reply)> {
    if frame.kind != Kind::Reply {
        return Err(io::Error::other("a frame that is no reply"));
    }
    let message = ReplyMessage::decode(frame.body).map_err(io::Error::other)?;
    // A kind of answer that this version does not know.
    let reply = message
        .reply
        .unwrap_or_else(|| Reply::Failed("an answer of unknown kind".to_owned()));
    Ok((frame.seq, reply))
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
