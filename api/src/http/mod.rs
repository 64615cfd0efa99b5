//! The request pipeline: decode → sealed? → where is it carried out → authenticate → authorise → route → engine.
//!
//! Invariants
//! - Reads are answered here after a linearizable barrier, unless the client asks for a stale one; what may write is carried out by the leader only.
//! - A request that a follower sent is never sent on again.
//! - Every request ends by its deadline; a panic in a handler is a 500, never the end of the process.
//! - Neither path nor content of a request is logged: names of secrets are secrets.

pub mod error;
mod here;
mod limits;
pub mod request;
pub mod response;
mod snapshot;

use std::{
    future::{Future as _, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, OnceLock},
    task::Poll,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts,
};
use http_body_util::BodyExt as _;
use tokio::sync::SemaphorePermit;
use tracing::{Span, field};
use uuid::Uuid;

use self::{
    error::ApiError,
    here::Here,
    limits::figures,
    request::{ApiRequest, Behind, Wanted},
    response::{Answer, Reply},
};
pub use self::{limits::Limits, response::Payload, snapshot::drain};
pub use crate::sys::metrics::MetricsAccess;
use crate::{
    alarm::{Alarms, Elapsed},
    core::Core,
    engines::{self, EngineRequest, Operation},
    ports::{BoxError, ForwardError, Node, Role, Stream},
    sys,
    token::TokenEntry,
};

/// Set on an answer to a follower when the request is not done with: `nothing-done` or `unknown`. Never reaches a client.
pub static NOT_LEADER: HeaderName = HeaderName::from_static("x-strongroom-not-leader");
/// Asks for a stale read, and says that an answer is one.
static CONSISTENCY: HeaderName = HeaderName::from_static(request::CONSISTENCY);
/// Log index that a stale answer is at least as new as.
static APPLIED_INDEX: HeaderName = HeaderName::from_static("x-strongroom-applied-index");
/// The node does not lead; nothing was written.
const NOTHING_DONE: &str = "nothing-done";
/// The node led, and cannot tell whether the write will be applied.
const UNKNOWN: &str = "unknown";
/// Longest time a request is held while nobody leads; more than any failover takes.
const HOLD: Duration = Duration::from_secs(15);
/// Pause before asking again who leads.
const PAUSE: Duration = Duration::from_millis(20);

/// A request's body.
pub trait RequestBody:
    http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static
{
}

impl<B> RequestBody for B where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static
{
}

/// Limits of one listener.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Largest request body, bytes.
    pub max_request_size: usize,
    /// Longest time a request may take.
    pub max_request_duration: Duration,
    /// Who may read `sys/metrics`.
    pub metrics: MetricsAccess,
    /// Shared by all listeners of a node.
    pub limits: Limits,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            max_request_size: 32 << 20,
            max_request_duration: Duration::from_secs(90),
            metrics: MetricsAccess::default(),
            limits: Limits::default(),
        }
    }
}

struct Server {
    node: Arc<dyn Node>,
    settings: HttpSettings,
    /// Requests come from a follower: they end here.
    from_follower: bool,
    deadlines: Alarms,
}

/// Answers requests, of whatever version of HTTP. Clones share it.
#[derive(Clone)]
pub struct Service(Arc<Server>);

/// What a log line says of a request.
pub(crate) struct Label {
    method: Method,
    id: OnceLock<Uuid>,
    /// Type of the engine it went to: the mount's path is the user's.
    mount: OnceLock<&'static str>,
}

impl Label {
    /// Where what is logged about the request is logged in. Made only then: most requests log nothing.
    fn span(&self) -> Span {
        tracing::info_span!(
            "request",
            id = self.id.get().map(field::display),
            method = %self.method,
            mount = self.mount.get(),
        )
    }
}

impl Service {
    /// The API for clients.
    #[must_use]
    pub fn for_clients(node: Arc<dyn Node>, settings: HttpSettings) -> Self {
        Self::new(node, settings, false)
    }

    /// The API for requests that a follower sent to this node as the leader.
    #[must_use]
    pub fn for_followers(node: Arc<dyn Node>, settings: HttpSettings) -> Self {
        Self::new(node, settings, true)
    }

    fn new(node: Arc<dyn Node>, settings: HttpSettings, from_follower: bool) -> Self {
        Self(Arc::new(Server {
            node,
            settings,
            from_follower,
            deadlines: Alarms::default(),
        }))
    }

    /// Answers every request, whatever happens while it is carried out.
    pub async fn answer<B: RequestBody>(&self, request: Request<B>) -> Response<Payload> {
        let server = &*self.0;
        let may_write = !matches!(request.method().as_str(), "GET" | "HEAD" | "LIST");
        let began = Instant::now();
        let (longest, deadlines) = if snapshot::is_streamed(request.uri().path()) {
            // Much later than the others: not to be kept among them.
            (snapshot::LONGEST, &Alarms::default())
        } else {
            (server.settings.max_request_duration, &server.deadlines)
        };
        let deadline = began + longest;
        let label = Arc::new(Label {
            method: request.method().clone(),
            id: OnceLock::new(),
            mount: OnceLock::new(),
        });
        let place = server.settings.limits.enter();
        // What tells how the node is must get through, or an overloaded node is taken for a dead one.
        let outcome = if place.is_none() && !is_local(request.uri()) {
            Err(ApiError::Overloaded(
                "too many requests are under way; try again",
            ))
        } else {
            // Large: polled where it is made, not moved from one adapter into the next.
            let mut work = pin!(server.work(request, deadline, Arc::clone(&label)));
            let caught = poll_fn(|context| {
                let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
                match polled {
                    Ok(poll) => poll.map(Ok),
                    Err(panic) => Poll::Ready(Err(panic)),
                }
            });
            match deadlines.within(deadline, caught).await {
                Ok(Ok(outcome)) => outcome,
                // The panic's own text went to standard error.
                Ok(Err(_panic)) => Err(ApiError::Internal("a handler panicked".to_owned())),
                Err(Elapsed) if may_write => Err(ApiError::OutcomeUnknown),
                Err(Elapsed) => Err(ApiError::Unavailable(
                    "the request took too long".to_owned(),
                )),
            }
        };
        let mut answer =
            outcome.unwrap_or_else(|error| label.span().in_scope(|| error.into_answer()));
        if !server.from_follower {
            answer.headers.remove(&NOT_LEADER);
        }
        figures().answered(server.from_follower, answer.status, began.elapsed());
        answer.into_http()
    }
}

impl Server {
    async fn work<B: RequestBody>(
        &self,
        request: Request<B>,
        deadline: Instant,
        label: Arc<Label>,
    ) -> Result<Answer, ApiError> {
        if let Some(clean) = clean_path(request.uri().path()) {
            return Ok(redirect(&clean, request.uri().query()));
        }
        let (head, body) = request.into_parts();
        let path = request::path(&head.uri)?;
        let query = request::query(&head.uri);
        let operation = request::operation(&head.method, &head.headers, &path, &query)?;
        if path == sys::metrics::PATH && !self.from_follower {
            let (node, core) = (&*self.node, self.node.core());
            let (core, access) = (core.as_deref(), self.settings.metrics);
            let answer = sys::metrics::answer(node, core, access, operation, &head.headers, &query);
            return Box::pin(answer).await;
        }
        if snapshot::is_streamed(head.uri.path()) {
            let asked = snapshot::Asked { operation, path };
            return Box::pin(self.snapshot(asked, head, Stream::new(body))).await;
        }
        let mut memory = Vec::new();
        // Before anything is waited for: of a client that goes away nothing is heard while its body has not been read, and what
        // it has given up must not be carried out later.
        let body = match operation {
            Operation::Write | Operation::Patch => self.body(body, &mut memory).await?,
            Operation::Read | Operation::List | Operation::Delete => Bytes::new(),
        };
        let mut core = self.node.core();
        if !sys::is_local(&path) {
            if core.is_none() {
                core = self.node.core_soon(hold(deadline)).await;
            }
            if core.is_none() {
                return Err(if self.node.seal_status().removed_from_cluster {
                    ApiError::Removed
                } else {
                    ApiError::Sealed
                });
            }
            request::check_headers(&head.headers)?;
        }
        let fields = request::fields(&head.headers, &body)?;
        let id = self.request_id(core.as_deref(), &head, &body, operation)?;
        // Set once, here.
        let _ = label.id.set(id);
        let api = ApiRequest {
            operation,
            path,
            query,
            fields,
            token: request::token(&head.headers),
            no_forwarding: head
                .headers
                .get("x-vault-no-request-forwarding")
                .is_some_and(|value| value == "true"),
            request_id: id.into_bytes(),
            deadline,
            label,
        };
        if sys::is_local(&api.path) {
            let reply = Box::pin(sys::local(&*self.node, &api)).await?;
            return Ok(Answer::of(reply, &id.to_string()));
        }
        let core = core.ok_or(ApiError::Sealed)?;
        let wanted = request::wanted(&head.headers)?;
        // What the leader should answer is answered here for who takes what this node knows: there may be no leader.
        let here = sys::only_reads(&api) || (wanted.stale && !api.operation.is_write());
        let mut whole = Request::from_parts(head, body);
        let leaders = if here && !wanted.stale && !self.from_follower && self.node.falls_behind() {
            // Should it write something there and come back unanswered: it is the same request then.
            whole
                .headers_mut()
                .insert(request::REQUEST_ID, id_header(id)?);
            self.read_at_leader(&api, &whole).await
        } else {
            // Was not asked.
            Err(ApiError::NotLeader)
        };
        let mut answer = if let Ok(answer) = leaders {
            answer
        } else if here {
            let mut perhaps_applied = matches!(leaders, Err(ApiError::OutcomeUnknown));
            let fresh = read(&core, &wanted, hold(deadline)).await?;
            match self.carry_out(&core, &api).await {
                // What looks like a read writes something, and could not: on its way as a write it goes on.
                Err(
                    error @ (ApiError::NotLeader | ApiError::NoLeader | ApiError::OutcomeUnknown),
                ) if sys::only_reads(&api) => {
                    perhaps_applied |= matches!(error, ApiError::OutcomeUnknown);
                    // A write is never stale.
                    whole.headers_mut().remove(&CONSISTENCY);
                    self.write(&core, api, whole, perhaps_applied).await?
                }
                outcome => fresh.mark(outcome?),
            }
        } else if wanted.stale {
            return Err(ApiError::BadRequest(
                "a write cannot be stale: leave X-Strongroom-Consistency out".to_owned(),
            ));
        } else {
            self.write(&core, api, whole, false).await?
        };
        if let Some(value) = vault_index(&core, core.storage().applied()) {
            answer.headers.entry("x-vault-index").or_insert(value);
        }
        Ok(answer)
    }

    /// The id under which a write is applied at most once.
    ///
    /// A follower has chosen it already. One that a client gave is bound to what the client asked for, so that using
    /// it again for something else is another request instead of being taken for a repetition. One that it gave to a read says
    /// nothing: should the read write, asking again is using again.
    fn request_id(
        &self,
        core: Option<&Core>,
        head: &Parts,
        body: &Bytes,
        operation: Operation,
    ) -> Result<Uuid, ApiError> {
        let (given, core) = match (request::given_id(&head.headers)?, core) {
            (Some(id), _) if self.from_follower => return Ok(id),
            (Some(id), Some(core)) if operation.is_write() => (id, core),
            (Some(id), None) if operation.is_write() => return Ok(id),
            _ => return Ok(Uuid::new_v4()),
        };
        let token = request::token(&head.headers);
        let mut asked = Vec::with_capacity(body.len() + 256);
        let target = head
            .uri
            .path_and_query()
            .map_or("", |target| target.as_str());
        for part in [
            given.as_bytes().as_slice(),
            head.method.as_str().as_bytes(),
            target.as_bytes(),
            token.as_ref().map_or(&[], |token| token.as_bytes()),
            body,
        ] {
            asked.extend_from_slice(&(part.len() as u64).to_be_bytes());
            asked.extend_from_slice(part);
        }
        let asked = zeroize::Zeroizing::new(asked);
        let digest = core.storage().barrier().hmac("request", &asked);
        let mut id = [0; 16];
        id.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        Ok(Uuid::from_bytes(id))
    }

    /// The whole body, bounded by itself and together with all others in memory; `memory` is given back with it.
    async fn body<'s, B: RequestBody>(
        &'s self,
        body: B,
        memory: &mut Vec<SemaphorePermit<'s>>,
    ) -> Result<Bytes, ApiError> {
        let mut body = pin!(body);
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                ApiError::BadRequest("the request's body could not be read".to_owned())
            })?;
            // Trailers mean nothing here.
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if whole.len() + data.len() > self.settings.max_request_size {
                return Err(ApiError::BodyTooLarge);
            }
            let held = whole.len().div_ceil(1024);
            whole.extend_from_slice(&data);
            let more = u32::try_from(whole.len().div_ceil(1024) - held).unwrap_or(u32::MAX);
            // A client may send its body byte by byte: permits must not cost more than what they stand for.
            if more == 0 {
                continue;
            }
            let permit = self.settings.limits.memory().try_acquire_many(more);
            let permit = permit.map_err(|_| {
                figures().refused_bodies.increment(1);
                ApiError::Overloaded("too many large requests at once; try again")
            })?;
            match memory.first_mut() {
                Some(held) => held.merge(permit),
                None => memory.push(permit),
            }
        }
        Ok(whole.freeze())
    }

    /// Has a write carried out by whoever leads, waiting for a leader if there is none.
    ///
    /// It is sent again after a loss of leadership, or of the connection to the leader: its id makes sure that it is
    /// applied once. `perhaps_applied`: a copy that was sent before may be.
    async fn write(
        &self,
        core: &Core,
        mut api: ApiRequest,
        mut whole: Request<Bytes>,
        mut perhaps_applied: bool,
    ) -> Result<Answer, ApiError> {
        let until = hold(api.deadline);
        if !self.from_follower
            && !api.no_forwarding
            && matches!(self.node.role(), Role::Follower { .. })
        {
            match here::attempt(core, &api).await {
                Here::Answered(answer) => return Ok(answer),
                Here::Leader => {}
                Here::LeaderUnderAnotherId => api.request_id = here::another_id(api.request_id),
                Here::Unknown => perhaps_applied = true,
            }
        }
        let id = id_header(Uuid::from_bytes(api.request_id))?;
        whole.headers_mut().insert(request::REQUEST_ID, id);
        let (api, whole) = (&api, &whole);
        loop {
            let outcome = match self.node.role() {
                Role::Leader => self.carry_out(core, api).await,
                Role::Follower { .. } | Role::NoLeader if self.from_follower => {
                    Err(ApiError::NotLeader)
                }
                // The client would send it again under another id.
                Role::Follower { .. } if api.no_forwarding && perhaps_applied => {
                    return Err(ApiError::OutcomeUnknown);
                }
                Role::Follower { leader_api_addr } if api.no_forwarding => {
                    let target = whole.uri().path_and_query().map_or("/", |p| p.as_str());
                    let leader = leader_api_addr.trim_end_matches('/');
                    return Ok(redirect(&format!("{leader}{target}"), None));
                }
                // Who leads is known: what takes long there, a removal of much data for one, is waited for.
                Role::Follower { .. } => self.forward(whole, before(api.deadline)).await,
                Role::NoLeader => self.forward(whole, until).await,
            };
            let again = match &outcome {
                Err(ApiError::NotLeader | ApiError::NoLeader) => true,
                Err(ApiError::OutcomeUnknown) => {
                    perhaps_applied = true;
                    sys::may_be_repeated(api)
                }
                // The first copy may have been applied: "nothing was written" is true of this copy only.
                Err(
                    ApiError::Unavailable(_)
                    | ApiError::Overtaken
                    | ApiError::Overloaded(_)
                    | ApiError::NoRoom(_),
                ) => perhaps_applied,
                Ok(answer) => perhaps_applied && is_temporary(answer.status),
                Err(_) => false,
            };
            if self.from_follower {
                return match outcome {
                    // Of a copy that was sent before, the follower must not take it for the truth.
                    Err(ApiError::NotLeader) if perhaps_applied => Err(ApiError::OutcomeUnknown),
                    outcome => outcome,
                };
            }
            if !again {
                return settled(outcome, perhaps_applied);
            }
            if Instant::now() >= until {
                return Err(if perhaps_applied {
                    ApiError::OutcomeUnknown
                } else {
                    ApiError::NoLeader
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The leader's answer to a read that this node would have to wait for.
    ///
    /// # Errors
    /// `OutcomeUnknown`: it may have written something there. Others: there is no answer, or this node leads.
    async fn read_at_leader(
        &self,
        api: &ApiRequest,
        whole: &Request<Bytes>,
    ) -> Result<Answer, ApiError> {
        if api.no_forwarding || !matches!(self.node.role(), Role::Follower { .. }) {
            return Err(ApiError::NotLeader);
        }
        let answer = self.forward(whole, hold(api.deadline)).await?;
        // A leader that cannot answer now is no better than this node.
        if is_temporary(answer.status) {
            return Err(ApiError::NotLeader);
        }
        Ok(answer)
    }

    /// Sends the request to the leader. `NotLeader`, `NoLeader`: nothing was written.
    async fn forward(&self, whole: &Request<Bytes>, until: Instant) -> Result<Answer, ApiError> {
        forwarded(self.node.forward(clone_request(whole), until).await)
    }

    /// Authenticates, authorises and answers, here and now.
    async fn carry_out(&self, core: &Core, api: &ApiRequest) -> Result<Answer, ApiError> {
        let id = Uuid::from_bytes(api.request_id).to_string();
        if let Some(reply) = sys::unauthenticated(&*self.node, core, api).await? {
            return Ok(Answer::of(reply, &id));
        }
        let caller = authenticate(core, api.token.as_ref()).await?;
        if api.operation.has_body() && api.path.ends_with('/') {
            return Err(ApiError::BadRequest(
                "cannot write to a path ending in '/'".to_owned(),
            ));
        }
        if api
            .parameter("help")
            .is_some_and(|value| request::boolean(value) == Some(true))
        {
            return Err(ApiError::BadRequest("help is not available yet".to_owned()));
        }
        let reply = match api.path.split_once('/') {
            Some(("sys", inside)) => Box::pin(sys::handle(&*self.node, core, api, inside)).await?,
            Some(("auth", inside)) => sys::auth(api, inside, &caller)?,
            _ => engine(core, api, &caller).await?,
        };
        Ok(Answer::of(reply, &id))
    }
}

/// How a read may be answered.
enum Fresh {
    /// With everything that was acknowledged before it came.
    Linearizable,
    /// With what this node has, up to this log index at least.
    Stale { applied: u64 },
}

impl Fresh {
    /// Says in the answer that it may be old.
    fn mark(&self, mut answer: Answer) -> Answer {
        if let Self::Stale { applied } = self {
            answer.header(CONSISTENCY.clone(), HeaderValue::from_static("stale"));
            answer.header(APPLIED_INDEX.clone(), HeaderValue::from(*applied));
        }
        answer
    }
}

/// Waits until this node's state is as the client wants it.
async fn read(core: &Core, wanted: &Wanted, deadline: Instant) -> Result<Fresh, ApiError> {
    let storage = core.storage();
    let seen = wanted.index.as_ref();
    // What was seen in another cluster says nothing here.
    let seen = seen
        .filter(|(cluster, _)| *cluster == core.cluster().id)
        .map_or(0, |(_, index)| *index);
    let applied = storage.applied();
    if !wanted.stale || (applied < seen && wanted.behind == Behind::Linearize) {
        storage.linearize(deadline).await?;
        return Ok(Fresh::Linearizable);
    }
    if applied < seen {
        let reached = wanted.behind == Behind::Wait && storage.wait_applied(seen, deadline).await;
        if !reached {
            return Err(ApiError::BehindIndex);
        }
    }
    Ok(Fresh::Stale {
        applied: applied.max(seen),
    })
}

/// What a leader's answer means here. `NotLeader`, `NoLeader`: nothing was written.
fn forwarded(outcome: Result<Response<Bytes>, ForwardError>) -> Result<Answer, ApiError> {
    match outcome {
        Ok(response) => {
            let (head, body) = response.into_parts();
            match head.headers.get(&NOT_LEADER) {
                None => {}
                Some(outcome) if outcome == NOTHING_DONE => return Err(ApiError::NotLeader),
                Some(_) => return Err(ApiError::OutcomeUnknown),
            }
            let mut headers = head.headers;
            headers.remove(header::CONTENT_LENGTH);
            headers.remove(header::DATE);
            Ok(Answer {
                status: head.status,
                headers,
                body,
                stream: None,
            })
        }
        Err(ForwardError::NotSent(_)) => Err(ApiError::NotLeader),
        Err(ForwardError::NoLeader) => Err(ApiError::NoLeader),
        Err(ForwardError::Unknown(_)) => Err(ApiError::OutcomeUnknown),
    }
}

/// The caller behind a token.
async fn authenticate(
    core: &Core,
    token: Option<&zeroize::Zeroizing<String>>,
) -> Result<Arc<TokenEntry>, ApiError> {
    let caller = match token {
        None => return Err(ApiError::Denied),
        Some(token) => {
            core.tokens()
                .lookup(core.storage(), token)
                .await?
                .ok_or(ApiError::Denied)?
                .entry
        }
    };
    // Policies other than root cannot be made yet; what is not allowed is denied.
    if !caller.is_root() {
        return Err(ApiError::Denied);
    }
    Ok(caller)
}

/// Routes to the engine of the mount the path lies in.
async fn engine(core: &Core, api: &ApiRequest, caller: &TokenEntry) -> Result<Reply, ApiError> {
    let table = core.mounts().current(core.storage()).await?;
    let (mount, path) = table
        .route(&api.path)
        .filter(|(mount, _)| !mount.tainted)
        .ok_or_else(|| sys::no_handler(&api.path))?;
    let (kind, engine) = engines::engine(&mount.kind).ok_or_else(sys::unsupported)?;
    // Whichever came first, if a request goes through here twice: they are the same.
    let _ = api.label.mount.set(kind);
    let under = |request_id| {
        engine.handle(EngineRequest {
            operation: api.operation,
            path,
            fields: &api.fields,
            mount,
            caller,
            storage: core.storage(),
            request_id,
            deadline: api.deadline,
        })
    };
    match under(api.request_id).await {
        // It sets no condition of its own: a follower has tried the same request, and one of its conditions failed.
        Err(ApiError::Overtaken) if engine.runs_anywhere(api.operation) => {
            under(here::another_id(api.request_id)).await
        }
        outcome => outcome,
    }
}

/// The last outcome of a request as its client may take it. A refusal is about the copy that was sent last; if a former one
/// may have been applied, it says nothing about the request: a token that has revoked itself is refused afterwards.
fn settled(outcome: Result<Answer, ApiError>, perhaps_applied: bool) -> Result<Answer, ApiError> {
    let refused = match &outcome {
        Ok(answer) => answer.status.is_client_error(),
        Err(error) => error.status().is_client_error(),
    };
    if perhaps_applied && refused {
        return Err(ApiError::OutcomeUnknown);
    }
    outcome
}

/// Whether an answer says that nothing was done and that it is worth another try.
fn is_temporary(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
    )
}

/// Whether a request is about the node itself.
fn is_local(uri: &http::Uri) -> bool {
    let inside = uri.path().strip_prefix("/v1/");
    inside.is_some_and(|path| sys::is_local(path) || path == sys::metrics::PATH)
}

/// Until when a request waits for a leader.
fn hold(deadline: Instant) -> Instant {
    before(deadline).min(Instant::now() + HOLD)
}

/// Early enough before `deadline` to answer with what is known by then.
fn before(deadline: Instant) -> Instant {
    let now = Instant::now();
    let left = deadline.saturating_duration_since(now);
    now + (left - left / 8)
}

fn id_header(id: Uuid) -> Result<HeaderValue, ApiError> {
    HeaderValue::from_str(&id.to_string()).map_err(|e| ApiError::Internal(e.to_string()))
}

fn clone_request(request: &Request<Bytes>) -> Request<Bytes> {
    let mut copy = Request::new(request.body().clone());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Log index `applied` as Vault's clients carry it around.
fn vault_index(core: &Core, applied: u64) -> Option<HeaderValue> {
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
