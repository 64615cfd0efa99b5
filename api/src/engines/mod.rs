//! Engines: what answers below a mount's path.

mod kv_v1;

pub(crate) use self::kv_v1::DEFAULT_LEASE;

use std::time::Instant;

use async_trait::async_trait;
use serde_json::{Map, Value};

use crate::{
    http::{error::ApiError, response::Reply},
    mounts::Mount,
    storage::Storage,
    token::TokenEntry,
};

/// What a request wants, whatever method it came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// GET.
    Read,
    /// LIST, or GET with `list=true`.
    List,
    /// PUT or POST.
    Write,
    /// PATCH: a JSON merge patch (RFC 7396).
    Patch,
    /// DELETE.
    Delete,
}

impl Operation {
    /// Whether it may change something, so that the leader must carry it out.
    #[must_use]
    pub fn is_write(self) -> bool {
        match self {
            Self::Write | Self::Patch | Self::Delete => true,
            Self::Read | Self::List => false,
        }
    }

    /// Whether its body is read.
    #[must_use]
    pub fn has_body(self) -> bool {
        match self {
            Self::Write | Self::Patch => true,
            Self::Read | Self::List | Self::Delete => false,
        }
    }
}

/// A request as an engine sees it: routed and authorised.
pub struct EngineRequest<'a> {
    /// What is wanted.
    pub operation: Operation,
    /// Path inside the mount, no leading slash; may end with one.
    pub path: &'a str,
    /// The body's fields.
    pub fields: &'a Map<String, Value>,
    /// The mount.
    pub mount: &'a Mount,
    /// Whose request it is.
    pub caller: &'a TokenEntry,
    /// Where data lives; keep to [`Mount::folder`].
    pub storage: &'a Storage,
    /// Names the request through retries.
    pub request_id: [u8; 16],
    /// When the caller gives up.
    pub deadline: Instant,
}

/// An engine.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Whether this operation can be carried out by a node that does not lead: it reads nothing that it then depends on,
    /// and writes at most once.
    fn runs_anywhere(&self, _operation: Operation) -> bool {
        false
    }

    /// Carries out a request.
    async fn handle(&self, request: EngineRequest<'_>) -> Result<Reply, ApiError>;
}

/// The engine of a mount and its type's name, `None` for those that have no data of their own here.
#[must_use]
pub fn engine(kind: &str) -> Option<(&'static str, &'static dyn Engine)> {
    match kind {
        "kv" | "generic" => Some(("kv", &kv_v1::KvV1)),
        "cubbyhole" => Some(("cubbyhole", &kv_v1::Cubbyhole)),
        _ => None,
    }
}
