//! The request pipeline: decode → sealed? → where is it carried out → authenticate → authorise → route → engine.
//!
//! Invariants
//! - Reads are answered here after a linearizable barrier; what may write is carried out by the leader only.
//! - A request that a follower sent is never sent on again.
//! - Every request ends by its deadline; a panic in a handler is a 500, never the end of the process.
//! - Neither path nor content of a request is logged: names of secrets are secrets.

pub mod error;
pub mod request;
pub mod response;

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tracing::Instrument as _;

use self::{
    error::{ApiError, NO_LEADER},
    request::ApiRequest,
    response::{Answer, Reply},
};
use crate::{
    core::Core,
    engines::{self, EngineRequest},
    ports::{ForwardError, Node, Role},
    sys, token,
};

/// Set on an answer of a node that turned out not to lead, for the follower that sent the request.
pub static NOT_LEADER: HeaderName = HeaderName::from_static("x-strongroom-not-leader");
/// Longest time a request is held while nobody leads; more than any failover takes.
const HOLD: Duration = Duration::from_secs(15);
/// Pause before asking again who leads.
const PAUSE: Duration = Duration::from_millis(20);

/// Limits of one listener.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Largest request body, bytes.
    pub max_request_size: usize,
    /// Longest time a request may take.
    pub max_request_duration: Duration,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            max_request_size: 32 << 20,
            max_request_duration: Duration::from_secs(90),
        }
    }
}

#[derive(Clone)]
struct Server {
    node: Arc<dyn Node>,
    settings: HttpSettings,
    /// Requests come from a follower: they end here.
    from_follower: bool,
}

/// The API for clients.
pub fn router(node: Arc<dyn Node>, settings: HttpSettings) -> Router {
    build(node, settings, false)
}

/// The API for requests that a follower sent to this node as the leader.
pub fn forwarded_router(node: Arc<dyn Node>, settings: HttpSettings) -> Router {
    build(node, settings, true)
}

fn build(node: Arc<dyn Node>, settings: HttpSettings, from_follower: bool) -> Router {
    let server = Server {
        node,
        settings,
        from_follower,
    };
    Router::new()
        .fallback(
            |state: axum::extract::State<Server>, request: Request<Body>| {
                let server = state.0;
                async move { server.answer(request).await }
            },
        )
        .with_state(server)
}

impl Server {
    async fn answer(self, request: Request<Body>) -> Response<Body> {
        let id = request::request_id(request.headers());
        let (id, bad_id) = match id {
            Ok(id) => (id, None),
            Err(error) => (uuid::Uuid::new_v4(), Some(error)),
        };
        let span = tracing::info_span!("request", id = %id, method = %request.method());
        let work = async {
            if let Some(error) = bad_id {
                return Err(error);
            }
            let deadline = Instant::now() + self.settings.max_request_duration;
            let work = AssertUnwindSafe(self.work(request, id, deadline)).catch_unwind();
            match tokio::time::timeout_at(deadline.into(), work).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_panic)) => Err(ApiError::Internal("a handler panicked".to_owned())),
                Err(_elapsed) => Err(ApiError::OutcomeUnknown),
            }
        };
        work.instrument(span)
            .await
            .unwrap_or_else(ApiError::into_answer)
            .into_http()
    }

    async fn work(
        &self,
        request: Request<Body>,
        id: uuid::Uuid,
        deadline: Instant,
    ) -> Result<Answer, ApiError> {
        if let Some(clean) = clean_path(request.uri().path()) {
            return Ok(redirect(&clean, request.uri().query()));
        }
        let (head, body) = request.into_parts();
        let path = request::path(&head.uri)?;
        let query = request::query(&head.uri);
        let operation = request::operation(&head.method, &query)?;
        let body = self.body(body).await?;
        let api = ApiRequest {
            operation,
            path,
            query,
            fields: request::fields(&body)?,
            token: request::token(&head.headers),
            no_forwarding: head
                .headers
                .get("x-vault-no-request-forwarding")
                .is_some_and(|value| value == "true"),
            request_id: id.into_bytes(),
            deadline,
        };
        if let Some(reply) = sys::local(&*self.node, &api).await? {
            return Ok(Answer::of(reply, &id.to_string()));
        }
        let core = self.node.core().ok_or(ApiError::Sealed)?;
        let mut answer = if operation.is_write() {
            let mut whole = Request::from_parts(head, body);
            let value = HeaderValue::from_str(&id.to_string())
                .map_err(|error| ApiError::Internal(error.to_string()))?;
            whole.headers_mut().insert(request::REQUEST_ID, value);
            self.write(&core, &api, whole).await?
        } else {
            core.storage().linearize(hold(deadline)).await?;
            self.carry_out(&core, &api).await?
        };
        if let Some(value) = vault_index(&core) {
            answer.headers.entry("x-vault-index").or_insert(value);
        }
        Ok(answer)
    }

    async fn body(&self, body: Body) -> Result<Bytes, ApiError> {
        match Limited::new(body, self.settings.max_request_size)
            .collect()
            .await
        {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(ApiError::BodyTooLarge),
            Err(_) => Err(ApiError::BadRequest(
                "the request's body could not be read".to_owned(),
            )),
        }
    }

    /// Carries a write out on whoever leads, waiting for a leader if there is none.
    async fn write(
        &self,
        core: &Core,
        api: &ApiRequest,
        whole: Request<Bytes>,
    ) -> Result<Answer, ApiError> {
        let until = hold(api.deadline);
        loop {
            let outcome = match self.node.role() {
                Role::Leader => self.carry_out(core, api).await,
                Role::Follower { leader_api_addr } if api.no_forwarding && !self.from_follower => {
                    let target = whole.uri().path_and_query().map_or("/", |p| p.as_str());
                    return Ok(redirect(&format!("{leader_api_addr}{target}"), None));
                }
                Role::Follower { .. } | Role::NoLeader if self.from_follower => {
                    Err(ApiError::NotLeader)
                }
                Role::Follower { .. } | Role::NoLeader => {
                    self.forward(api, clone_request(&whole), until).await
                }
            };
            match outcome {
                Err(ApiError::NotLeader) if !self.from_follower && Instant::now() < until => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(ApiError::NotLeader) if !self.from_follower => {
                    return Err(ApiError::Unavailable(NO_LEADER.to_owned()));
                }
                outcome => return outcome,
            }
        }
    }

    /// Sends the request to the leader. `NotLeader`: nothing happened, ask again who leads.
    async fn forward(
        &self,
        api: &ApiRequest,
        whole: Request<Bytes>,
        until: Instant,
    ) -> Result<Answer, ApiError> {
        match self.node.forward(whole, until).await {
            Ok(response) if response.headers().contains_key(&NOT_LEADER) => {
                Err(ApiError::NotLeader)
            }
            Ok(response) => {
                let (head, body) = response.into_parts();
                let mut headers = head.headers;
                headers.remove(header::CONTENT_LENGTH);
                headers.remove(header::DATE);
                Ok(Answer {
                    status: head.status,
                    headers,
                    body,
                })
            }
            Err(ForwardError::NotSent(_)) => Err(ApiError::NotLeader),
            Err(ForwardError::NoLeader) => Err(ApiError::Unavailable(NO_LEADER.to_owned())),
            // A storage write carries its id and is applied once, so it may be sent again; `sys` decides on more.
            Err(ForwardError::Unknown(_)) if !api.path.starts_with("sys/") => {
                Err(ApiError::NotLeader)
            }
            Err(ForwardError::Unknown(_)) => Err(ApiError::OutcomeUnknown),
        }
    }

    /// Authenticates, authorises and answers, here and now.
    async fn carry_out(&self, core: &Core, api: &ApiRequest) -> Result<Answer, ApiError> {
        let id = uuid::Uuid::from_bytes(api.request_id).to_string();
        if let Some(reply) = sys::unauthenticated(&*self.node, api).await? {
            return Ok(Answer::of(reply, &id));
        }
        let caller = match &api.token {
            None => return Err(ApiError::Denied),
            Some(token) => token::lookup(core.storage(), token)
                .await?
                .ok_or(ApiError::Denied)?,
        };
        // Policies other than root cannot be made yet; what is not allowed is denied.
        if !caller.is_root() {
            return Err(ApiError::Denied);
        }
        let reply = match api.path.split_once('/') {
            Some(("sys", inside)) => sys::handle(&*self.node, core, api, inside).await?,
            Some(("auth", inside)) => sys::auth(api, inside, &caller)?,
            _ => self.engine(core, api).await?,
        };
        Ok(Answer::of(reply, &id))
    }

    async fn engine(&self, core: &Core, api: &ApiRequest) -> Result<Reply, ApiError> {
        let table = core.mounts().current(core.storage()).await?;
        let no_route = || {
            ApiError::NoRoute(format!(
                "no handler for route \"{}\". route entry not found.",
                api.path
            ))
        };
        let (mount, path) = table.route(&api.path).ok_or_else(no_route)?;
        if mount.tainted {
            return Err(no_route());
        }
        let engine = engines::engine(&mount.kind).ok_or_else(sys::unsupported)?;
        engine
            .handle(EngineRequest {
                operation: api.operation,
                path,
                fields: &api.fields,
                mount,
                storage: core.storage(),
                request_id: api.request_id,
                deadline: api.deadline,
            })
            .await
    }
}

/// Until when a request waits for a leader.
fn hold(deadline: Instant) -> Instant {
    deadline.min(Instant::now() + HOLD)
}

fn clone_request(request: &Request<Bytes>) -> Request<Bytes> {
    let mut copy = Request::new(request.body().clone());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Where this node's state stands, as Vault's clients carry it around.
fn vault_index(core: &Core) -> Option<HeaderValue> {
    let (applied, _) = core.storage().indexes();
    let json = format!(
        r#"{{"cluster":"{}","value":"{applied}"}}"#,
        core.cluster().id
    );
    HeaderValue::from_str(&BASE64.encode(json)).ok()
}

fn redirect(target: &str, query: Option<&str>) -> Answer {
    let mut answer = Answer::empty(StatusCode::TEMPORARY_REDIRECT);
    let target = match query {
        Some(query) => format!("{target}?{query}"),
        None => target.to_owned(),
    };
    if let Ok(value) = HeaderValue::from_str(&target) {
        answer.header(header::LOCATION, value);
    }
    answer
}

/// The path without `//`, `/./` and `/../` written out, `None` if it has none; encoded ones are refused later.
fn clean_path(path: &str) -> Option<String> {
    let inner = path.strip_prefix('/')?;
    let body = inner.strip_suffix('/').unwrap_or(inner);
    let is_clean = |segment: &str| !segment.is_empty() && segment != "." && segment != "..";
    if path == "/" || body.split('/').all(is_clean) {
        return None;
    }
    let mut kept: Vec<&str> = Vec::new();
    for segment in inner.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            segment => kept.push(segment),
        }
    }
    let slash = if inner.ends_with('/') && !kept.is_empty() {
        "/"
    } else {
        ""
    };
    Some(format!("/{}{slash}", kept.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unclean_paths_are_redirected_to_clean_ones() {
        for (path, want) in [
            ("/v1/kv/app", None),
            ("/v1/kv/", None),
            ("/", None),
            ("/v1//kv/app", Some("/v1/kv/app")),
            ("/v1/kv/../sys/mounts", Some("/v1/sys/mounts")),
            ("/v1/./kv/", Some("/v1/kv/")),
            ("/../../x", Some("/x")),
            ("//", Some("/")),
        ] {
            assert_eq!(clean_path(path).as_deref(), want, "{path}");
        }
    }
}
