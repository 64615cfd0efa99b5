//! A blocking HTTP/1.1 client that says whether a request can have reached the server.
//!
//! In: method, path as it goes on the wire, JSON or raw bytes. Out: status, headers, body; or [`RequestError`].
//!
//! Invariants
//! - Nothing is sent twice, no redirect is followed: a history must hold what happened, not what a library made of it.
//! - [`RequestError::NotSent`] only if no byte of the request was handed to the connection.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use serde_json::Value;

/// Longest answer read, bytes.
const MAX_ANSWER: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no answer.
#[derive(Debug)]
pub enum RequestError {
    /// No connection: the server has seen nothing of the request.
    NotSent(String),
    /// The request, or a part of it, went out: it may have been carried out.
    Unknown(String),
}

impl std::fmt::Display for RequestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotSent(why) => write!(f, "not sent: {why}"),
            Self::Unknown(why) => write!(f, "sent, no answer: {why}"),
        }
    }
}

impl std::error::Error for RequestError {}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
    /// The body, decoded from chunks.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as JSON, `null` if there is none or it is something else.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The first header of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    /// The texts under `errors`.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        let errors = self.json()["errors"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        errors
            .iter()
            .map(|e| e.as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// Itself, if the status is `status`.
    ///
    /// # Panics
    /// If it is another one, with the body.
    #[must_use]
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }
}

/// Talks to one server, with a new connection for each request.
#[derive(Clone, Debug)]
pub struct Client {
    addr: SocketAddr,
    tls: Arc<ClientConfig>,
    token: Option<String>,
    headers: Vec<(String, String)>,
    timeout: Duration,
}

impl Client {
    /// A client without a token.
    #[must_use]
    pub fn new(addr: SocketAddr, tls: Arc<ClientConfig>) -> Self {
        Self {
            addr,
            tls,
            token: None,
            headers: Vec::new(),
            timeout: Duration::from_secs(30),
        }
    }

    /// Sends `token` from now on.
    #[must_use]
    pub fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Sends one more header from now on.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Gives up after `timeout`, counted from the connection's start.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Where it connects to.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// One request, with a JSON body if there is one. `path` begins with `/` and is sent as it is.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response, RequestError> {
        let body = body
            .map(|json| json.to_string().into_bytes())
            .unwrap_or_default();
        self.request_bytes(method, path.as_bytes(), &body)
    }

    /// One request with any bytes as path and body.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn request_bytes(
        &self,
        method: &str,
        path: &[u8],
        body: &[u8],
    ) -> Result<Response, RequestError> {
        let head = self.head(method, path, body.len(), "close");
        Connection::open(self)?.exchange(method, &head, body)
    }

    /// Announces a body of `length` bytes, sends `part` of it, and goes away.
    ///
    /// # Panics
    /// If the server cannot be reached.
    pub fn cut_off(&self, method: &str, path: &str, length: usize, part: &[u8]) {
        let head = self.head(method, path.as_bytes(), length, "close");
        let mut connection = Connection::open(self).expect("a connection");
        // The server may have closed it: it is cut off either way.
        let _ = connection.stream.write_all(&[&head, part].concat());
        let _ = connection.stream.flush();
    }

    fn head(&self, method: &str, path: &[u8], length: usize, connection: &str) -> Vec<u8> {
        let mut head = Vec::with_capacity(256);
        head.extend_from_slice(method.as_bytes());
        head.push(b' ');
        head.extend_from_slice(path);
        let port = self.addr.port();
        head.extend_from_slice(
            format!(" HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: {connection}\r\n")
                .as_bytes(),
        );
        if length > 0 || matches!(method, "PUT" | "POST") {
            let lines = format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
            head.extend_from_slice(lines.as_bytes());
        }
        for (name, value) in &self.headers {
            head.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        if let Some(token) = &self.token {
            head.extend_from_slice(format!("X-Vault-Token: {token}\r\n").as_bytes());
        }
        head.extend_from_slice(b"\r\n");
        head
    }

    /// GET `/v1/PATH`.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.must("GET", path, None)
    }

    /// PUT `/v1/PATH`.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    #[track_caller]
    pub fn put(&self, path: &str, body: &Value) -> Response {
        self.must("PUT", path, Some(body))
    }

    /// DELETE `/v1/PATH`.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    #[track_caller]
    pub fn delete(&self, path: &str) -> Response {
        self.must("DELETE", path, None)
    }

    /// LIST `/v1/PATH`: the names, empty if there is nothing.
    ///
    /// # Panics
    /// If there is no answer, or one that is neither 200 nor 404.
    #[must_use]
    #[track_caller]
    pub fn list(&self, path: &str) -> Vec<String> {
        let answer = self.must("LIST", path, None);
        assert!(
            matches!(answer.status, 200 | 404),
            "{} {}",
            answer.status,
            answer.text()
        );
        let keys = answer.json()["data"]["keys"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        keys.iter()
            .map(|k| k.as_str().unwrap_or_default().to_owned())
            .collect()
    }

    #[track_caller]
    fn must(&self, method: &str, path: &str, body: Option<&Value>) -> Response {
        match self.request(method, &format!("/v1/{path}"), body) {
            Ok(answer) => answer,
            Err(error) => panic!("{method} {path} at {}: {error}", self.addr),
        }
    }
}

/// Keeps its connection from request to request, as real clients do.
#[derive(Debug)]
pub struct Session {
    client: Client,
    connection: Option<Connection>,
}

impl Session {
    /// Connects at the first request.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            client,
            connection: None,
        }
    }

    /// As [`Client::request`]. A request on a connection that the server closed meanwhile is [`RequestError::Unknown`].
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response, RequestError> {
        let body = body
            .map(|json| json.to_string().into_bytes())
            .unwrap_or_default();
        let head = self
            .client
            .head(method, path.as_bytes(), body.len(), "keep-alive");
        let mut connection = match self.connection.take() {
            Some(mut connection) => {
                connection.deadline = Instant::now() + self.client.timeout;
                connection
            }
            None => Connection::open(&self.client)?,
        };
        let answer = connection.exchange(method, &head, &body)?;
        let closes = answer
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if !closes {
            self.connection = Some(connection);
        }
        Ok(answer)
    }
}

#[derive(Debug)]
struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    /// Bytes read beyond what has been parsed.
    read: Vec<u8>,
    deadline: Instant,
}

impl Connection {
    fn open(client: &Client) -> Result<Self, RequestError> {
        let not_sent = |error: &dyn std::fmt::Display| RequestError::NotSent(error.to_string());
        let deadline = Instant::now() + client.timeout;
        let tcp = TcpStream::connect_timeout(&client.addr, CONNECT_TIMEOUT.min(client.timeout))
            .map_err(|e| not_sent(&e))?;
        tcp.set_nodelay(true).map_err(|e| not_sent(&e))?;
        tcp.set_read_timeout(Some(CONNECT_TIMEOUT))
            .map_err(|e| not_sent(&e))?;
        let name = ServerName::IpAddress(client.addr.ip().into());
        let tls = ClientConnection::new(Arc::clone(&client.tls), name).map_err(|e| not_sent(&e))?;
        let mut stream = StreamOwned::new(tls, tcp);
        while stream.conn.is_handshaking() {
            stream
                .conn
                .complete_io(&mut stream.sock)
                .map_err(|e| not_sent(&e))?;
        }
        Ok(Self {
            stream,
            read: Vec::new(),
            deadline,
        })
    }

    fn exchange(
        &mut self,
        method: &str,
        head: &[u8],
        body: &[u8],
    ) -> Result<Response, RequestError> {
        // A server may refuse a long body before it has all of it: its answer counts, not that the rest did not go out.
        let sent = self.send(head).and_then(|()| self.send(body));
        match (self.receive(method), sent) {
            (Ok(answer), _) => Ok(answer),
            (Err(_), Err(error)) | (Err(error), Ok(())) => {
                Err(RequestError::Unknown(error.to_string()))
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let left = self.left()?;
        self.stream.sock.set_write_timeout(Some(left))?;
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    fn receive(&mut self, method: &str) -> io::Result<Response> {
        loop {
            let head = self.read_until(b"\r\n\r\n")?;
            let (status, headers) = parse_head(&head)?;
            if status == 100 {
                continue;
            }
            let mut answer = Response {
                status,
                headers,
                body: Vec::new(),
            };
            if method == "HEAD" || matches!(status, 204 | 304) {
                return Ok(answer);
            }
            answer.body = if answer
                .header("transfer-encoding")
                .is_some_and(|v| v.eq_ignore_ascii_case("chunked"))
            {
                self.read_chunks()?
            } else if let Some(length) = answer.header("content-length") {
                let length = length.parse().map_err(|_| malformed("content-length"))?;
                self.read_exactly(length)?
            } else {
                self.read_to_end()?
            };
            return Ok(answer);
        }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
        }
        Ok(left)
    }

    /// Reads some more; `false` at the end.
    fn more(&mut self) -> io::Result<bool> {
        if self.read.len() > MAX_ANSWER {
            return Err(malformed("longer than anything we ask for"));
        }
        let left = self.left()?;
        self.stream.sock.set_read_timeout(Some(left))?;
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk) {
            Ok(n) => {
                self.read.extend_from_slice(&chunk[..n]);
                Ok(n > 0)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn read_until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self
                .read
                .windows(end.len())
                .position(|window| window == end)
            {
                return Ok(self.read.drain(..at + end.len()).collect());
            }
            if !self.more()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn read_exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.read.len() < length {
            if !self.more()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.read.drain(..length).collect())
    }

    fn read_chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.read_until(b"\r\n")?;
            let size = String::from_utf8_lossy(&line);
            let size = size.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| malformed("size of a chunk"))?;
            if size > MAX_ANSWER {
                return Err(malformed("size of a chunk"));
            }
            body.extend(self.read_exactly(size)?);
            self.read_until(b"\r\n")?;
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        while self.more()? {}
        Ok(std::mem::take(&mut self.read))
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("malformed answer: {what}"),
    )
}

fn parse_head(head: &[u8]) -> io::Result<(u16, Vec<(String, String)>)> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| malformed("status line"))?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok((status, headers))
}
