//! A small HTTP client for the command line and for joining a cluster.
//!
//! In: method, URL, headers, body. Out: the whole response, bounded.
//!
//! Invariants
//! - Every request ends by its deadline; a response body is at most [`MAX_BODY`] bytes.
//! - Token and body follow a redirect only if that does not leave TLS.
//! - What may have been carried out is not sent again, unless it only reads.

mod tls;
mod transfer;

#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{CONTENT_LENGTH, HOST, LOCATION},
};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

pub(crate) use self::tls::{Pem, TlsError, TlsParameters};

/// Largest response body taken, bytes.
const MAX_BODY: usize = 64 << 20;
const MAX_REDIRECTS: usize = 10;
/// Before the first repetition; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(300);

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The address cannot be used.
    #[error("{0:?} is not a valid http:// or https:// address")]
    Address(String),
    /// The token holds characters that no header may hold.
    #[error("the token holds characters that cannot be sent")]
    Token,
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The server was not reached; nothing was sent.
    #[error("connecting to {authority} failed")]
    Connect {
        /// `host:port`.
        authority: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke after the request was sent.
    #[error("the connection broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nothing came in time.
    #[error("no answer in time")]
    Timeout,
    /// The response is larger than it may be.
    #[error("the response is larger than {MAX_BODY} bytes")]
    TooLarge,
    /// The server sends the client around.
    #[error("more than {MAX_REDIRECTS} redirects")]
    Redirects,
    /// What was received could not be kept, or what is to be sent not be read.
    #[error("the file could not be used")]
    Sink(#[source] std::io::Error),
    /// The redirect would send the token in the clear.
    #[error("refused a redirect from https to http")]
    Downgrade,
}

impl ClientError {
    /// Whether the server cannot have seen the request.
    fn is_unsent(&self) -> bool {
        matches!(self, Self::Connect { .. })
    }

    /// A certificate that is refused now will be refused again.
    fn is_about_trust(&self) -> bool {
        matches!(self, Self::Connect { source, .. } if source.kind() == std::io::ErrorKind::InvalidData)
    }

    fn is_worth_another_try(&self, method: &Method) -> bool {
        let unsent = self.is_unsent() && !self.is_about_trust();
        unsent || (matches!(self, Self::Broken(_)) && is_read(method))
    }
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD) || method.as_str() == "LIST"
}

/// Settings of a client.
#[derive(Clone, Debug)]
pub(crate) struct ClientSettings {
    /// How to verify servers.
    pub(crate) tls: TlsParameters,
    /// For a request with all its repetitions and redirects.
    pub(crate) timeout: Duration,
    /// How often a request is sent again after an error that may pass.
    pub(crate) max_retries: u32,
}

/// Sends requests, each over a connection of its own.
pub(crate) struct Client {
    settings: ClientSettings,
    /// Made when the first `https` address comes up.
    connector: Option<TlsConnector>,
}

/// Sends one request without headers, redirects or repetitions.
///
/// # Errors
/// See [`ClientError`].
pub(crate) async fn one_request(
    method: Method,
    url: &str,
    body: Option<Bytes>,
    tls: &TlsParameters,
    timeout: Duration,
) -> Result<Response<Bytes>, ClientError> {
    let mut client = Client::new(ClientSettings {
        tls: tls.clone(),
        timeout,
        max_retries: 0,
    });
    let uri = parse(url)?;
    let deadline = Instant::now() + timeout;
    let body = body.unwrap_or_default();
    let no_headers = HeaderMap::new();
    let sending = client.exchange(&method, &uri, &no_headers, &body);
    timeout_at(deadline, Box::pin(sending))
        .await
        .map_err(|_elapsed| ClientError::Timeout)?
}

impl Client {
    /// A client; nothing is read or connected yet.
    pub(crate) fn new(settings: ClientSettings) -> Self {
        Self {
            settings,
            connector: None,
        }
    }

    /// How often a request is sent again from now on.
    pub(crate) fn set_retries(&mut self, max_retries: u32) {
        self.settings.max_retries = max_retries;
    }

    /// Sends a request; follows redirects, and repeats what may be repeated.
    ///
    /// # Errors
    /// See [`ClientError`]. An answer of the server, whatever its status, is no error.
    pub(crate) async fn send(
        &mut self,
        method: &Method,
        url: &str,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Response<Bytes>, ClientError> {
        let uri = parse(url)?;
        let deadline = Instant::now() + self.settings.timeout;
        let mut pause = FIRST_PAUSE;
        let mut left = self.settings.max_retries;
        loop {
            let once = Box::pin(self.follow(method, uri.clone(), headers, body));
            let outcome = timeout_at(deadline, once)
                .await
                .map_err(|_elapsed| ClientError::Timeout)?;
            let again = match &outcome {
                Ok(response) => is_read(method) && may_pass(response),
                Err(error) => error.is_worth_another_try(method),
            };
            if !again || left == 0 || Instant::now() + pause >= deadline {
                return outcome;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
            left -= 1;
        }
    }

    async fn follow(
        &mut self,
        method: &Method,
        mut uri: Uri,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Response<Bytes>, ClientError> {
        for _ in 0..=MAX_REDIRECTS {
            let response = self.exchange(method, &uri, headers, body).await?;
            let Some(next) = redirect(&uri, method, &response)? else {
                return Ok(response);
            };
            uri = next;
        }
        Err(ClientError::Redirects)
    }

    /// One request on one connection.
    async fn exchange(
        &mut self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Response<Bytes>, ClientError> {
        let invalid = || ClientError::Address(uri.to_string());
        let request = build(method, uri, headers, body).ok_or_else(invalid)?;
        let stream = self.connect(uri).await?;
        talk(stream, request).await
    }

    async fn connect(&mut self, uri: &Uri) -> Result<Box<dyn Connection>, ClientError> {
        let invalid = || ClientError::Address(uri.to_string());
        let is_tls = uri.scheme_str() == Some("https");
        let host = uri.host().ok_or_else(invalid)?;
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let authority = uri.authority().ok_or_else(invalid)?.as_str();
        let bare_host = host.trim_start_matches('[').trim_end_matches(']');
        let failed = |source| ClientError::Connect {
            authority: authority.to_owned(),
            source,
        };
        let stream = TcpStream::connect((bare_host, port))
            .await
            .map_err(failed)?;
        // Requests are small and wait for their answer: never worth a delay.
        stream.set_nodelay(true).map_err(failed)?;
        if !is_tls {
            return Ok(Box::new(stream));
        }
        let name = self
            .settings
            .tls
            .server_name
            .as_deref()
            .unwrap_or(bare_host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| invalid())?;
        let connector = self.connector()?;
        let stream = connector.connect(name, stream).await.map_err(failed)?;
        Ok(Box::new(stream))
    }

    fn connector(&mut self) -> Result<TlsConnector, TlsError> {
        if let Some(connector) = &self.connector {
            return Ok(connector.clone());
        }
        let connector = TlsConnector::from(self.settings.tls.client_config()?);
        self.connector = Some(connector.clone());
        Ok(connector)
    }
}

/// TCP, or TLS on it.
trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// An absolute `http` or `https` URL.
fn parse(url: &str) -> Result<Uri, ClientError> {
    let invalid = || ClientError::Address(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| invalid())?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri),
        _ => Err(invalid()),
    }
}

fn build(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &Bytes,
) -> Option<Request<Full<Bytes>>> {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .body(Full::new(body.clone()))
        .ok()?;
    let map = request.headers_mut();
    map.clone_from(headers);
    map.insert(HOST, HeaderValue::from_str(uri.authority()?.as_str()).ok()?);
    if !body.is_empty() {
        map.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    Some(request)
}

async fn talk(
    stream: Box<dyn Connection>,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, ClientError> {
    let broken = |error: hyper::Error| ClientError::Broken(Box::new(error));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    // Ends with the sender; its error is also what the request gets.
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(broken)?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, MAX_BODY)
        .collect()
        .await
        .map_err(|error| {
            if error.is::<LengthLimitError>() {
                ClientError::TooLarge
            } else {
                ClientError::Broken(error)
            }
        })?
        .to_bytes();
    driver.abort();
    Ok(Response::from_parts(parts, body))
}

/// Statuses that Vault's client tries again; a sealed node stays sealed until somebody acts.
fn may_pass(response: &Response<Bytes>) -> bool {
    let status = response.status();
    let passing = status == StatusCode::PRECONDITION_FAILED
        || (status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED);
    passing && !contains(response.body(), b"Vault is sealed")
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

/// Where to go on: 307 and 308 with everything, 301 and 302 only for reads.
fn redirect(
    from: &Uri,
    method: &Method,
    response: &Response<Bytes>,
) -> Result<Option<Uri>, ClientError> {
    let follow = match response.status() {
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => is_read(method),
        _ => false,
    };
    let location = response
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .filter(|location| !location.is_empty());
    let (true, Some(location)) = (follow, location) else {
        return Ok(None);
    };
    let absolute = if location.starts_with('/') {
        let scheme = from.scheme_str().unwrap_or("https");
        let authority = from.authority().map_or("", |authority| authority.as_str());
        format!("{scheme}://{authority}{location}")
    } else {
        location.to_owned()
    };
    let next = parse(&absolute)?;
    if from.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
        return Err(ClientError::Downgrade);
    }
    Ok(Some(next))
}
