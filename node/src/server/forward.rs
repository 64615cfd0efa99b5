//! Requests between nodes: a follower sends whole requests to the leader over the cluster port, HTTP/2 over mutual
//! TLS 1.3, ALPN `strongroom-forward/1`.
//!
//! Invariants
//! - A request that was not sent is told apart from one whose answer was lost.
//! - Requests arriving here are never forwarded again (see `forwarded_router`).
//! - Answers and waiting are bounded.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Body, client::conn::http2::SendRequest, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use strongroom_api::{
    Service,
    ports::{ForwardError, Stream},
};
use strongroom_raft::{IncomingStream, Raft};
use tokio::sync::mpsc;

/// ALPN name of forwarded requests; the number is the version of what is spoken inside.
pub(crate) const ALPN: &str = "strongroom-forward/1";

/// Connections to one leader: HTTP/2 multiplexes, more than one spreads the encryption over cores.
const CONNECTIONS: usize = 2;
/// A forwarded answer larger than this is an error; no API answer comes near.
const MAX_ANSWER: usize = 64 << 20;
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Longest a request waits that has not been sent: for a leader, and for a connection to it.
const HOLD: Duration = Duration::from_secs(15);

/// Longest wait for the answer to a request with a body of any length; one that stands still is cut off long before.
const LONGEST_STREAM: Duration = Duration::from_secs(24 * 3600);

type Sender = SendRequest<Full<Bytes>>;

/// Sends requests to whoever leads.
pub(crate) struct Forwarder {
    raft: Raft,
    own_id: u64,
    pool: Mutex<HashMap<(u64, usize), Sender>>,
    next: AtomicUsize,
    /// Held while connecting: after a fail-over a thousand waiting requests need one connection, not a thousand.
    connecting: tokio::sync::Mutex<()>,
    figures: Figures,
}

impl Forwarder {
    pub(crate) fn new(raft: Raft) -> Self {
        Self {
            own_id: raft.status().raft_id,
            raft,
            pool: Mutex::default(),
            next: AtomicUsize::new(0),
            connecting: tokio::sync::Mutex::new(()),
            figures: Figures::register(),
        }
    }

    /// Sends `request` to the leader, waiting for one for [`HOLD`], and for its answer until `deadline`.
    pub(crate) async fn forward(
        &self,
        request: http::Request<Bytes>,
        deadline: Instant,
    ) -> Result<http::Response<Bytes>, ForwardError> {
        let _waiting = self.figures.enter();
        let began = Instant::now();
        let outcome = self.until_sent(request, deadline).await;
        self.figures.ended(&outcome, began.elapsed());
        outcome
    }

    async fn until_sent(
        &self,
        request: http::Request<Bytes>,
        deadline: Instant,
    ) -> Result<http::Response<Bytes>, ForwardError> {
        let (head, body) = request.into_parts();
        let mut request = http::Request::from_parts(prepare(head)?, Full::new(body));
        let held_until = deadline.min(Instant::now() + HOLD);
        loop {
            let leader = self.wait_for_leader(held_until).await?;
            let error = match self.send(leader, request, held_until, deadline).await {
                Ok(response) => return Ok(response),
                Err(Attempt::Unknown(why)) => return Err(ForwardError::Unknown(why)),
                Err(Attempt::NotSent(back, why)) => {
                    request = *back;
                    why
                }
            };
            if Instant::now() + RETRY_PAUSE >= held_until {
                return Err(ForwardError::NotSent(error));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// As [`Forwarder::forward`], for a body of any length: it goes over a connection of its own, so that it does not
    /// hold up others, and is sent once. `until` bounds everything before that.
    pub(crate) async fn forward_stream(
        &self,
        request: http::Request<Stream>,
        until: Instant,
    ) -> Result<http::Response<Bytes>, ForwardError> {
        let (head, body) = request.into_parts();
        let head = prepare(head)?;
        let mut sender = loop {
            let leader = self.wait_for_leader(until).await?;
            match self.connect(leader).await {
                Ok(sender) => break sender,
                Err(why) if Instant::now() + RETRY_PAUSE >= until => {
                    return Err(ForwardError::NotSent(why));
                }
                Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
            }
        };
        let answer = async {
            let request = http::Request::from_parts(head, body);
            let response = sender.send_request(request).await;
            let (head, body) = response
                .map_err(|error| ForwardError::Unknown(super::chain(&error)))?
                .into_parts();
            let body = Limited::new(body, MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| ForwardError::Unknown(super::chain(error.as_ref())))?;
            Ok(http::Response::from_parts(head, body.to_bytes()))
        };
        tokio::time::timeout(LONGEST_STREAM, answer)
            .await
            .unwrap_or_else(|_elapsed| Err(ForwardError::Unknown("no answer in time".to_owned())))
    }

    async fn wait_for_leader(&self, deadline: Instant) -> Result<u64, ForwardError> {
        let mut changes = self.raft.watch();
        let mut held = false;
        loop {
            let role = *changes.borrow_and_update();
            match role.leader {
                Some(leader) if leader != self.own_id => return Ok(leader),
                Some(_) if role.is_ready_leader => {
                    return Err(ForwardError::NotSent(
                        "this node became the leader".to_owned(),
                    ));
                }
                Some(_) | None => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ForwardError::NoLeader);
            }
            if !held {
                held = true;
                self.figures.held.increment(1);
            }
            // A time-out only means: look again.
            let _ = tokio::time::timeout(left.min(RETRY_PAUSE), changes.changed()).await;
        }
    }

    async fn send(
        &self,
        leader: u64,
        request: http::Request<Full<Bytes>>,
        connect_until: Instant,
        deadline: Instant,
    ) -> Result<http::Response<Bytes>, Attempt> {
        let slot = (
            leader,
            self.next.fetch_add(1, Ordering::Relaxed) % CONNECTIONS,
        );
        // A leader that cannot be reached must not take the time in which the caller still learns that nothing was sent.
        let connected = tokio::time::timeout_at(connect_until.into(), self.connection(slot)).await;
        let mut sender = match connected {
            Ok(Ok(sender)) => sender,
            Ok(Err(why)) => return Err(Attempt::NotSent(Box::new(request), why)),
            Err(_elapsed) => {
                let why = "connecting to the leader takes too long".to_owned();
                return Err(Attempt::NotSent(Box::new(request), why));
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = tokio::time::timeout(left, async {
            let response = match sender.try_send_request(request).await {
                Ok(response) => response,
                Err(mut error) => {
                    let back = error.take_message();
                    let why = super::chain(error.error());
                    return Err(match back {
                        Some(request) => Attempt::NotSent(Box::new(request), why),
                        None => Attempt::Unknown(why),
                    });
                }
            };
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| Attempt::Unknown(super::chain(error.as_ref())))?;
            Ok(http::Response::from_parts(head, body.to_bytes()))
        })
        .await;
        match answer {
            Ok(Ok(response)) => Ok(response),
            // A connection that broke says so itself and is replaced by the next request.
            Ok(Err(attempt)) => Err(attempt),
            Err(_elapsed) => Err(Attempt::Unknown("no answer in time".to_owned())),
        }
    }

    async fn connection(&self, slot: (u64, usize)) -> Result<Sender, String> {
        if let Some(sender) = self.open(slot) {
            return Ok(sender);
        }
        let _one_at_a_time = self.connecting.lock().await;
        if let Some(sender) = self.open(slot) {
            return Ok(sender);
        }
        let sender = self.connect(slot.0).await?;
        self.lock().insert(slot, sender.clone());
        Ok(sender)
    }

    async fn connect<B>(&self, leader: u64) -> Result<SendRequest<B>, String>
    where
        B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
            + Send
            + Unpin
            + 'static,
    {
        let stream = self
            .raft
            .dial(leader, ALPN)
            .await
            .map_err(|error| super::chain(&error))?;
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(Duration::from_secs(1)))
            .keep_alive_timeout(Duration::from_secs(2))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(16 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| super::chain(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a forwarding connection ended");
            }
        });
        Ok(sender)
    }

    fn open(&self, slot: (u64, usize)) -> Option<Sender> {
        let existing = self.lock().get(&slot).cloned();
        existing.filter(|sender| !sender.is_closed())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(u64, usize), Sender>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is counted of forwarded requests.
struct Figures {
    time: Histogram,
    answered: Counter,
    not_sent: Counter,
    unknown: Counter,
    /// Waited because nobody led.
    held: Counter,
    under_way: Gauge,
}

/// One request under way; counted out when dropped, however that comes.
struct UnderWay<'a>(&'a Gauge);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl Figures {
    fn register() -> Self {
        describe_histogram!(
            "strongroom.forward_seconds",
            "Forwarding a request to the leader, waiting for one included"
        );
        describe_counter!(
            "strongroom.forwards_total",
            "Requests forwarded to the leader, by outcome"
        );
        describe_counter!(
            "strongroom.forwards_held_total",
            "Forwarded requests that waited for a leader"
        );
        describe_gauge!(
            "strongroom.forwards_in_flight",
            "Forwarded requests under way"
        );
        let outcome = |name: &'static str| counter!("strongroom.forwards_total", "outcome" => name);
        Self {
            time: histogram!("strongroom.forward_seconds"),
            answered: outcome("answered"),
            not_sent: outcome("not_sent"),
            unknown: outcome("unknown"),
            held: counter!("strongroom.forwards_held_total"),
            under_way: gauge!("strongroom.forwards_in_flight"),
        }
    }

    fn enter(&self) -> UnderWay<'_> {
        self.under_way.increment(1.0);
        UnderWay(&self.under_way)
    }

    fn ended(&self, outcome: &Result<http::Response<Bytes>, ForwardError>, took: Duration) {
        match outcome {
            Ok(_) => {
                self.answered.increment(1);
                self.time.record(took.as_secs_f64());
            }
            Err(ForwardError::NotSent(_) | ForwardError::NoLeader) => self.not_sent.increment(1),
            Err(ForwardError::Unknown(_)) => self.unknown.increment(1),
        }
    }
}

enum Attempt {
    NotSent(Box<http::Request<Full<Bytes>>>, String),
    Unknown(String),
}

/// Makes the request fit for HTTP/2: absolute URI, no connection headers.
fn prepare(mut head: http::request::Parts) -> Result<http::request::Parts, ForwardError> {
    let path = head
        .uri
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    head.uri = format!("https://leader.strongroom{path}")
        .parse()
        .map_err(|error: http::uri::InvalidUri| ForwardError::NotSent(error.to_string()))?;
    head.version = http::Version::HTTP_2;
    for name in [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
    ] {
        head.headers.remove(name);
    }
    Ok(head)
}

/// Serves forwarded requests as they come in from peers, until the sending side is dropped.
pub(crate) async fn serve(mut streams: mpsc::Receiver<IncomingStream>, service: Service) {
    while let Some(incoming) = streams.recv().await {
        let service = service.clone();
        tokio::spawn(async move {
            let from = incoming.from;
            let service = service_fn(move |request| {
                let service = service.clone();
                async move { Ok::<_, Infallible>(service.answer(request).await) }
            });
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(Some(Duration::from_secs(5)))
                .max_concurrent_streams(1024)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(16 << 20)
                .serve_connection(TokioIo::new(incoming.stream), service);
            if let Err(error) = serving.await {
                tracing::debug!(%error, from, "a forwarding connection ended");
            }
        });
    }
}

/// Shared by the lifecycle and the API.
pub(crate) type SharedForwarder = Arc<Forwarder>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forwarded_request_keeps_path_query_and_token_but_no_connection_headers() {
        let request = http::Request::put("/v1/kv/a%20b?list=true")
            .header("host", "lb:8200")
            .header("connection", "keep-alive")
            .header("x-vault-token", "t")
            .body(Bytes::from_static(b"{}"))
            .unwrap();
        let prepared = prepare(request.into_parts().0).unwrap();
        assert_eq!(
            prepared.uri.path_and_query().unwrap().as_str(),
            "/v1/kv/a%20b?list=true"
        );
        assert_eq!(prepared.headers.get("x-vault-token").unwrap(), "t");
        assert!(prepared.headers.get("connection").is_none());
        assert!(prepared.headers.get("host").is_none());
    }
}
