//! `sys/storage/raft/snapshot` and `snapshot-force`: the two endpoints whose bodies have no bounded length, so that they
//! have a pipeline of their own.
//!
//! Invariants
//! - A body is never in memory as a whole, in either direction.
//! - A snapshot is what this node holds after a linearizable barrier; it is given by any node.
//! - A restore is carried out by the leader; its body is sent there once, so it is not tried again.

use std::time::{Duration, Instant};

use http::{Request, request::Parts};
use http_body_util::BodyExt as _;

use super::{Server, authenticate, error::ApiError, forwarded, hold, request, response::Answer};
use crate::{
    core::Core,
    engines::Operation,
    ports::{Role, Stream},
    sys,
};

const SAVE: &str = "sys/storage/raft/snapshot";
const FORCE: &str = "sys/storage/raft/snapshot-force";
/// Longest time a transfer may take; one that stands still is cut off long before.
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// What is still taken of the body of a restore that is refused: a client that is cut off while it sends does not see
/// the answer.
const DRAIN_BYTES: usize = 32 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(3);

/// A decoded request.
pub(super) struct Asked {
    pub(super) operation: Operation,
    /// Below `/v1/`.
    pub(super) path: String,
}

/// Whether a request to this (still encoded) path is answered here.
pub(super) fn is_streamed(path: &str) -> bool {
    path.strip_prefix("/v1/")
        .is_some_and(|path| matches!(path, SAVE | FORCE))
}

impl Server {
    pub(super) async fn snapshot(
        &self,
        asked: Asked,
        head: Parts,
        body: Stream,
    ) -> Result<Answer, ApiError> {
        request::check_headers(&head.headers)?;
        let until = hold(Instant::now() + self.settings.max_request_duration);
        match (asked.path.as_str(), asked.operation) {
            (SAVE, Operation::Read) => self.save(&head, until).await,
            (SAVE | FORCE, Operation::Write) => {
                let force = asked.path == FORCE;
                let mut body = Watched { body: Some(body) };
                let outcome = self.restore(force, head, &mut body, until).await;
                if outcome.is_err() {
                    drain(&mut body.take()).await;
                }
                outcome
            }
            (SAVE | FORCE, _) => Err(ApiError::UnsupportedOperation),
            _ => Err(sys::unsupported()),
        }
    }

    async fn save(&self, head: &Parts, until: Instant) -> Result<Answer, ApiError> {
        let core = self.open(until).await?;
        core.storage().linearize(until).await?;
        authenticate(&core, request::token(&head.headers).as_ref()).await?;
        let stream = self.node.snapshot().await?;
        Ok(Answer::archive(stream))
    }

    async fn open(&self, until: Instant) -> Result<std::sync::Arc<Core>, ApiError> {
        let core = self.node.core_soon(until).await;
        core.ok_or(ApiError::Sealed)
    }

    async fn restore(
        &self,
        force: bool,
        head: Parts,
        body: &mut Watched,
        until: Instant,
    ) -> Result<Answer, ApiError> {
        if !self.node.seal_status().initialized {
            // There is nothing to protect yet, and nobody who could have a token.
            self.node.found(body.take(), force).await?;
            return Ok(Answer::empty(http::StatusCode::NO_CONTENT));
        }
        let core = self.open(until).await?;
        loop {
            match self.node.role() {
                Role::Leader => {
                    authenticate(&core, request::token(&head.headers).as_ref()).await?;
                    self.node.restore(body.take(), force).await?;
                    return Ok(Answer::empty(http::StatusCode::NO_CONTENT));
                }
                Role::Follower { .. } | Role::NoLeader if self.from_follower => {
                    return Err(ApiError::NotLeader);
                }
                Role::Follower { .. } => {
                    let request = Request::from_parts(head, body.take());
                    let outcome = self.node.forward_stream(request, until).await;
                    return match forwarded(outcome) {
                        // The body is gone: the client must send it again.
                        Err(ApiError::NotLeader) => Err(ApiError::NoLeader),
                        other => other,
                    };
                }
                Role::NoLeader if Instant::now() >= until => return Err(ApiError::NoLeader),
                Role::NoLeader => tokio::time::sleep(super::PAUSE).await,
            }
        }
    }
}

/// The body of a restore, until somebody takes it.
struct Watched {
    body: Option<Stream>,
}

impl Watched {
    fn take(&mut self) -> Stream {
        self.body.take().unwrap_or_else(Stream::empty)
    }
}

/// Takes a bounded part of the body of a restore that nobody wants, so that its sender comes to read the answer.
pub async fn drain(body: &mut Stream) {
    let drain = async {
        let mut taken = 0;
        while let Some(Ok(frame)) = body.frame().await {
            taken += frame.data_ref().map_or(0, bytes::Bytes::len);
            if taken > DRAIN_BYTES {
                return;
            }
        }
    };
    // A slow client does not see the answer.
    let _ = tokio::time::timeout(DRAIN_TIME, drain).await;
}
