//! A connection for calls to one member, dialing side: many calls at once, each with its own deadline.
//!
//! In: calls. Out: answers, matched by number, in any order.
//!
//! Invariants
//! - A call is never sent twice by this layer.
//! - A connection on which calls wait and nothing arrives for [`ControlLink::silence`], since the oldest of them or since
//!   the last answer, is given up, so that a half-dead one does not swallow calls for minutes.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_sink::Sink;
use futures_util::{Stream, StreamExt};
use prost::Message;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    frame::{Frame, Kind},
    peer::{Dialer, feed, flush},
    wire::{Call, CallMessage, Purpose, Reply, ReplyMessage},
};
use crate::log::lock;

/// Calls that may wait for one member.
const MAX_CALLS: usize = 256;
/// Bytes after which no more calls go out in the same write: answers are not read meanwhile, and a write has a limit.
const MAX_WRITE: usize = 1 << 20;

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
        mut connection: impl Stream<Item = io::Result<Frame>> + Sink<Frame, Error = io::Error> + Unpin,
        calls: &mut mpsc::Receiver<Waiting>,
    ) -> io::Result<()> {
        let mut waiting: HashMap<u64, oneshot::Sender<Result<Reply, CallError>>> = HashMap::new();
        let mut seq = 0u64;
        // Since when something is asked and nothing comes back; callers giving up do not reset it.
        let mut unheard: Option<Instant> = None;
        loop {
            let silent_at = unheard.map(|since| since + self.silence);
            waiting.retain(|_, tx| !tx.is_closed());
            tokio::select! {
                // Answers first: one that came during a long write proves that the other side is there.
                biased;
                frame = connection.next() => {
                    let Some(frame) = frame.transpose()? else {
                        return Ok(());
                    };
                    let (seq, reply) = reply_of(frame)?;
                    if let Some(tx) = waiting.remove(&seq) {
                        // The caller may have given up waiting.
                        drop(tx.send(Ok(reply)));
                    }
                    unheard = (!waiting.is_empty()).then(Instant::now);
                }
                call = calls.recv(), if waiting.len() < MAX_CALLS => {
                    let Some(mut next) = call else {
                        return Ok(());
                    };
                    unheard.get_or_insert_with(Instant::now);
                    // What waits already goes out in the same write.
                    let sending = async {
                        let mut bytes = 0;
                        loop {
                            let (call, tx) = next;
                            seq += 1;
                            waiting.insert(seq, tx);
                            let frame = call_frame(seq, call);
                            bytes += frame.body.len();
                            feed(&mut connection, frame).await?;
                            if waiting.len() >= MAX_CALLS || bytes >= MAX_WRITE {
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

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;
    use tokio_util::codec::Framed;

    use super::*;
    use crate::{
        identity::Identity,
        net::{Directory, ProposeCall, frame::FrameCodec},
    };

    const SILENCE: Duration = Duration::from_secs(1);
    const LONG: Duration = Duration::from_secs(60);

    type Answer = oneshot::Receiver<Result<Reply, CallError>>;

    /// A connection whose other side the test plays.
    struct Wire {
        calls: mpsc::Sender<Waiting>,
        peer: Framed<DuplexStream, FrameCodec>,
        serving: tokio::task::JoinHandle<io::Result<()>>,
    }

    impl Wire {
        fn new() -> Self {
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let tls = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            let identity = Identity {
                cluster_id: [0; 16],
                raft_id: 1,
                name: String::new(),
            };
            let dialer = Dialer::new(identity, Arc::<Directory>::default(), Arc::new(tls), LONG);
            let running = Running {
                id: 2,
                purpose: Purpose::Control,
                dialer: Arc::new(dialer),
                silence: SILENCE,
                down: Arc::default(),
            };
            let (calls, mut receiver) = mpsc::channel(MAX_CALLS);
            let serving = tokio::spawn(async move {
                let connection = Framed::new(ours, FrameCodec);
                running.serve(connection, &mut receiver).await
            });
            Self {
                calls,
                peer: Framed::new(theirs, FrameCodec),
                serving,
            }
        }

        fn ask(&self, call: Call) -> Answer {
            let (tx, rx) = oneshot::channel();
            self.calls.try_send((call, tx)).unwrap();
            rx
        }

        async fn take(&mut self) -> u64 {
            self.peer.next().await.unwrap().unwrap().seq
        }

        async fn answer(&mut self, seq: u64) {
            let message = ReplyMessage {
                reply: Some(Reply::Done(true)),
            };
            let frame = Frame {
                kind: Kind::Reply,
                flags: 0,
                seq,
                body: message.encode_to_vec().into(),
            };
            feed(&mut self.peer, frame).await.unwrap();
            flush(&mut self.peer).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_connection_that_stops_after_an_answer_is_given_up() {
        let mut wire = Wire::new();
        let answered = wire.ask(Call::ReadIndex(true));
        let lost = wire.ask(Call::ReadIndex(true));
        let first = wire.take().await;
        wire.take().await;
        tokio::time::sleep(SILENCE / 2).await;
        let last = Instant::now();
        wire.answer(first).await;
        assert!(matches!(answered.await, Ok(Ok(Reply::Done(true)))));
        // The answer counts as a sign of life, and is the last one.
        let Ok(lost) = timeout(LONG, lost).await else {
            panic!("the second call still waits");
        };
        assert!(lost.is_err());
        assert!((SILENCE..SILENCE * 2).contains(&last.elapsed()));
        let ended = wire.serving.await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn answers_keep_a_slow_call_alive_and_silence_alone_ends_nothing() {
        let mut wire = Wire::new();
        let mut slow = wire.ask(Call::Leave(true));
        let slow_seq = wire.take().await;
        for _ in 0..4 {
            let quick = wire.ask(Call::ReadIndex(true));
            let seq = wire.take().await;
            tokio::time::sleep(SILENCE / 2).await;
            wire.answer(seq).await;
            assert!(quick.await.unwrap().is_ok());
        }
        assert!(slow.try_recv().is_err());
        wire.answer(slow_seq).await;
        assert!(slow.await.unwrap().is_ok());
        // Nothing is asked, so nothing is missing.
        tokio::time::sleep(SILENCE * 2).await;
        let after = wire.ask(Call::ReadIndex(true));
        let seq = wire.take().await;
        wire.answer(seq).await;
        assert!(after.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn an_answer_that_is_there_wins_over_the_silence_before_it() {
        let mut wire = Wire::new();
        let asked = wire.ask(Call::ReadIndex(true));
        let seq = wire.take().await;
        wire.answer(seq).await;
        // As a long write does: the answer and the end of the silence are found together.
        std::thread::sleep(SILENCE * 2);
        assert!(asked.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn calls_that_are_large_do_not_all_go_out_in_one_write() {
        let mut wire = Wire::new();
        let large = || {
            Call::Propose(ProposeCall {
                command: vec![0; MAX_WRITE / 2].into(),
                wait_ms: 0,
            })
        };
        let answers: Vec<Answer> = (0..12).map(|_| wire.ask(large())).collect();
        for _ in 0..answers.len() {
            // A slow network: two of them in half the time that one write may take.
            tokio::time::sleep(SILENCE / 4).await;
            let seq = wire.take().await;
            wire.answer(seq).await;
        }
        for answer in answers {
            assert!(answer.await.unwrap().is_ok());
        }
    }
}
