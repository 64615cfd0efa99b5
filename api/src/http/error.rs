//! Every way a request can fail, and the one place where that becomes an HTTP status.
//!
//! Invariants
//! - No text holds a secret, a key, a token or a stored value; details of internal failures go to the log only.
//! - Every variant names its status in [`ApiError::status`]; there is no default.

use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::{
    mounts::MountError,
    ports::{BarrierError, ClusterError, InitError, JoinError, SnapshotError, StoreError},
    storage::StorageError,
};

use super::response::Answer;

/// Why a request is not answered with what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The node is sealed or not initialised.
    #[error("Vault is sealed")]
    Sealed,
    /// The cluster has removed this node.
    #[error(
        "node was removed from the cluster; start it with an empty data directory to take it back"
    )]
    Removed,
    /// The caller sent something wrong; the text says what.
    #[error("{0}")]
    BadRequest(String),
    /// A query parameter does not parse; Vault answers without a text.
    #[error("a query parameter is not valid")]
    BadParameter,
    /// A control character in the path; Vault answers with an empty body.
    #[error("the path holds a control character")]
    BadPath,
    /// No token, a wrong one, or one that may not.
    #[error("permission denied")]
    Denied,
    /// As `Denied`, with a text of its own.
    #[error("{0}")]
    DeniedBecause(String),
    /// Nothing is stored there.
    #[error("not found")]
    NotFound,
    /// No such route; the text says which.
    #[error("{0}")]
    NoRoute(String),
    /// The path does not take this method.
    #[error("method not allowed")]
    MethodNotAllowed,
    /// As `MethodNotAllowed`, from an engine: Vault's text differs.
    #[error("1 error occurred:\n\t* unsupported operation\n\n")]
    UnsupportedOperation,
    /// PATCH with a body of another type.
    #[error("PATCH requires Content-Type of application/merge-patch+json")]
    UnsupportedMediaType,
    /// The body is larger than the listener allows.
    #[error("http: request body too large")]
    BodyTooLarge,
    /// The entry is larger than storage takes.
    #[error("{0}")]
    EntryTooLarge(String),
    /// Too many requests of a kind that is limited.
    #[error("{0}")]
    RateLimited(String),
    /// This node is not the leader: the request goes there. Never reaches a client by itself.
    #[error("this node is not the leader")]
    NotLeader,
    /// Nobody leads, or the leader has no quorum; nothing was written.
    #[error("local node not active but active cluster node not found")]
    NoLeader,
    /// It cannot be done now; nothing was written.
    #[error("{0}")]
    Unavailable(String),
    /// A stale read on a node that is behind what the client has seen.
    #[error("required index state not present")]
    BehindIndex,
    /// Too much is under way; nothing was written. Counted, not logged: a line each would make it worse.
    #[error("{0}")]
    Overloaded(&'static str),
    /// The disk is nearly full; nothing was written. Counted, and logged by whoever watches the disk.
    #[error("{0}")]
    NoRoom(String),
    /// A condition of the write did not hold; nothing was written.
    #[error("another request changed this first; try again")]
    Overtaken,
    /// The write may have happened.
    #[error(
        "the outcome of this request is unknown: it may have been carried out; read before trying again"
    )]
    OutcomeUnknown,
    /// Details are in the log.
    #[error("internal error")]
    Internal(String),
}

impl ApiError {
    /// The HTTP status; the only place that decides it.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::BadParameter | Self::BadPath => StatusCode::BAD_REQUEST,
            Self::Denied | Self::DeniedBecause(_) => StatusCode::FORBIDDEN,
            Self::NotFound | Self::NoRoute(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed | Self::UnsupportedOperation => StatusCode::METHOD_NOT_ALLOWED,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge | Self::EntryTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RateLimited(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::BehindIndex => StatusCode::PRECONDITION_FAILED,
            Self::Sealed
            | Self::Removed
            | Self::NotLeader
            | Self::NoLeader
            | Self::Unavailable(_)
            | Self::Overtaken
            | Self::Overloaded(_)
            | Self::NoRoom(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::OutcomeUnknown | Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The answer a client gets. What is our fault is logged here, once; the caller's mistakes are not.
    pub(crate) fn into_answer(self) -> Answer {
        let status = self.status();
        if let Self::Internal(details) = &self {
            tracing::error!(%details, "a request failed");
        } else if status.is_server_error()
            && !matches!(
                self,
                Self::Sealed
                    | Self::Removed
                    | Self::NotLeader
                    | Self::Overloaded(_)
                    | Self::NoRoom(_)
            )
        {
            tracing::warn!(status = status.as_u16(), why = %self, "a request was not carried out");
        }
        if matches!(self, Self::BadPath) {
            return Answer::empty(status);
        }
        let errors = if matches!(
            self,
            Self::NotFound | Self::MethodNotAllowed | Self::BadParameter
        ) {
            Vec::new()
        } else {
            vec![self.to_string()]
        };
        let mut answer = Answer::json(status, &json!({ "errors": errors }));
        if self.passes() {
            answer.header(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(outcome) = self.for_follower() {
            answer.header(super::NOT_LEADER.clone(), HeaderValue::from_static(outcome));
        }
        answer
    }

    /// Whether another try may succeed without anybody doing anything: a sealed node unseals itself.
    fn passes(&self) -> bool {
        matches!(
            self.status(),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
        )
    }

    /// What the follower that sent the request must know besides the status.
    fn for_follower(&self) -> Option<&'static str> {
        match self {
            Self::NotLeader | Self::NoLeader => Some(super::NOTHING_DONE),
            Self::OutcomeUnknown => Some(super::UNKNOWN),
            Self::Sealed
            | Self::Removed
            | Self::BadRequest(_)
            | Self::BadParameter
            | Self::BadPath
            | Self::Denied
            | Self::DeniedBecause(_)
            | Self::NotFound
            | Self::NoRoute(_)
            | Self::MethodNotAllowed
            | Self::UnsupportedOperation
            | Self::UnsupportedMediaType
            | Self::BodyTooLarge
            | Self::EntryTooLarge(_)
            | Self::RateLimited(_)
            | Self::Unavailable(_)
            | Self::Overtaken
            | Self::BehindIndex
            | Self::Overloaded(_)
            | Self::NoRoom(_)
            | Self::Internal(_) => None,
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotLeader => Self::NotLeader,
            StoreError::NoQuorum => Self::NoLeader,
            StoreError::Busy => Self::Overloaded("the server is busy; try again"),
            StoreError::NoRoom => Self::NoRoom(error.to_string()),
            StoreError::TooLarge { .. } => Self::EntryTooLarge(error.to_string()),
            StoreError::CheckFailed => Self::Overtaken,
            StoreError::Superseded => Self::Unavailable(format!("{error}; try again")),
            StoreError::Unknown => Self::OutcomeUnknown,
            StoreError::Fatal(details) => Self::Internal(details),
        }
    }
}

impl From<BarrierError> for ApiError {
    fn from(error: BarrierError) -> Self {
        match error {
            BarrierError::Path(why) => Self::BadRequest(why.to_owned()),
            BarrierError::HsmUnavailable(_) => Self::Unavailable(error.to_string()),
            BarrierError::Exhausted => Self::Unavailable(error.to_string()),
            BarrierError::Damaged | BarrierError::UnknownTerm(_) => {
                Self::Internal(error.to_string())
            }
        }
    }
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Store(error) => error.into(),
            StorageError::Barrier(error) => error.into(),
            StorageError::Malformed(_) => Self::Internal(error.to_string()),
            StorageError::TooManyNames => Self::BadRequest(error.to_string()),
        }
    }
}

impl From<MountError> for ApiError {
    fn from(error: MountError) -> Self {
        match error {
            MountError::Refused(why) => Self::BadRequest(why),
            MountError::Storage(error) => error.into(),
        }
    }
}

impl From<InitError> for ApiError {
    fn from(error: InitError) -> Self {
        match error {
            InitError::AlreadyInitialized | InitError::BadRequest(_) => {
                Self::BadRequest(error.to_string())
            }
            InitError::InProgress
            | InitError::Elsewhere(_)
            | InitError::Undecided(_)
            | InitError::Hsm(_) => Self::Unavailable(error.to_string()),
            // Init has no secrets to give away yet, and its caller is the operator who must act.
            InitError::Failed(why) => {
                tracing::error!(%why, "initialization failed");
                Self::Unavailable(format!("initialization failed: {why}"))
            }
        }
    }
}

impl From<ClusterError> for ApiError {
    fn from(error: ClusterError) -> Self {
        match error {
            ClusterError::NotLeader => Self::NotLeader,
            ClusterError::Refused(why) => Self::BadRequest(why),
            ClusterError::Unavailable(why) => Self::Unavailable(why),
            ClusterError::Failed(why) => Self::Internal(why),
        }
    }
}

impl From<SnapshotError> for ApiError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::BadSnapshot(why) => Self::BadRequest(why),
            SnapshotError::OtherSeal => Self::BadRequest(error.to_string()),
            SnapshotError::NotLeader => Self::NotLeader,
            SnapshotError::Unavailable(why) => Self::Unavailable(why),
            SnapshotError::NoRoom(why) => Self::NoRoom(why),
            SnapshotError::Unknown => Self::OutcomeUnknown,
        }
    }
}

impl From<JoinError> for ApiError {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::BadRequest(why) => Self::BadRequest(why),
            JoinError::Refused(why) => Self::DeniedBecause(why),
            JoinError::RateLimited => Self::RateLimited(error.to_string()),
            JoinError::Unavailable(why) | JoinError::Failed(why) => Self::Unavailable(why),
        }
    }
}
