//! The server as the command line sees it: flags and environment in, JSON answers out.
//!
//! Precedence of every setting: flag, `STRONGROOM_…`, `VAULT_…`, `BAO_…`, default.

use std::{fmt::Write as _, io::Write, path::Path, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{
    Failure,
    flags::{Flag, Given, Takes},
    token,
};
use crate::{
    client::{Client, ClientError, ClientSettings, Pem, TlsParameters},
    config::{Environment, parse_bool, parse_duration},
    server::chain,
};

const DEFAULT_ADDRESS: &str = "https://127.0.0.1:8200";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_RETRIES: u32 = 2;

/// What may stand in a path as it is (RFC 3986 `pchar`, and the slash).
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@')
    .remove(b'/');

/// Flags of every command that talks to a server.
pub(crate) const HTTP_FLAGS: &[Flag] = &[
    Flag {
        name: "address",
        takes: Takes::One,
        value: "string",
        help: "Address of the server. The default is https://127.0.0.1:8200. This can also be specified via the STRONGROOM_ADDR, VAULT_ADDR or BAO_ADDR environment variable.",
    },
    Flag {
        name: "ca-cert",
        takes: Takes::One,
        value: "string",
        help: "Path to a PEM-encoded CA certificate to verify the server's certificate. Takes precedence over -ca-path. Environment: STRONGROOM_CACERT, VAULT_CACERT, BAO_CACERT.",
    },
    Flag {
        name: "ca-path",
        takes: Takes::One,
        value: "string",
        help: "Path to a directory of PEM-encoded CA certificates to verify the server's certificate. Environment: STRONGROOM_CAPATH, VAULT_CAPATH, BAO_CAPATH.",
    },
    Flag {
        name: "client-cert",
        takes: Takes::One,
        value: "string",
        help: "Path to a PEM-encoded certificate to show to the server; needs -client-key. Environment: STRONGROOM_CLIENT_CERT, VAULT_CLIENT_CERT, BAO_CLIENT_CERT.",
    },
    Flag {
        name: "client-key",
        takes: Takes::One,
        value: "string",
        help: "Path to the PEM-encoded private key of -client-cert. Environment: STRONGROOM_CLIENT_KEY, VAULT_CLIENT_KEY, BAO_CLIENT_KEY.",
    },
    Flag {
        name: "header",
        takes: Takes::Many,
        value: "key=value",
        help: "Header to add to every request. Headers that start with X-Vault- are refused. This can be specified multiple times.",
    },
    Flag {
        name: "namespace",
        takes: Takes::One,
        value: "string",
        help: "Namespace to use for the command; -ns for short. Environment: STRONGROOM_NAMESPACE, VAULT_NAMESPACE, BAO_NAMESPACE.",
    },
    Flag {
        name: "ns",
        takes: Takes::One,
        value: "string",
        help: "Short for -namespace.",
    },
    Flag {
        name: "output-curl-string",
        takes: Takes::Switch,
        value: "",
        help: "Instead of executing the request, print an equivalent cURL command and exit. The default is false.",
    },
    Flag {
        name: "tls-server-name",
        takes: Takes::One,
        value: "string",
        help: "Name the server's certificate must be for, when it is not the host of the address. Environment: STRONGROOM_TLS_SERVER_NAME, VAULT_TLS_SERVER_NAME, BAO_TLS_SERVER_NAME.",
    },
    Flag {
        name: "tls-skip-verify",
        takes: Takes::Switch,
        value: "",
        help: "Do not verify the server's certificate: whoever sits in between can read and change everything. The default is false. Environment: STRONGROOM_SKIP_VERIFY, VAULT_SKIP_VERIFY, BAO_SKIP_VERIFY.",
    },
    Flag {
        name: "wrap-ttl",
        takes: Takes::One,
        value: "duration",
        help: "Wraps the response in a cubbyhole token with this TTL, such as \"30s\" or \"5m\".",
    },
];

/// A server to talk to.
pub(crate) struct Api {
    client: Client,
    runtime: tokio::runtime::Runtime,
    address: String,
    token: Option<Zeroizing<String>>,
    headers: HeaderMap,
    /// Do not send; say how one would with curl.
    pub(crate) only_show: bool,
}

/// Why a request has no useful answer.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// There is no answer.
    Client {
        method: Method,
        url: String,
        source: ClientError,
    },
    /// The server refused.
    Status {
        method: Method,
        url: String,
        status: StatusCode,
        /// As the server gave them; `None` if the body is not of that form.
        errors: Option<Vec<String>>,
        body: Bytes,
    },
    /// The body is not JSON.
    NotJson { url: String },
    /// Not sent: `-output-curl-string`.
    Shown(String),
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Client {
                method,
                url,
                source,
            } => {
                let lower = method.as_str().to_ascii_lowercase();
                let (first, rest) = lower.split_at_checked(1).unwrap_or(("", &lower));
                write!(
                    f,
                    "{}{rest} {url:?}: {}",
                    first.to_ascii_uppercase(),
                    chain(source)
                )
            }
            Self::Status {
                method,
                url,
                status,
                errors,
                body,
            } => {
                let code = status.as_u16();
                write!(
                    f,
                    "Error making API request.\n\nURL: {method} {url}\nCode: {code}. "
                )?;
                match errors {
                    Some(errors) => {
                        f.write_str("Errors:\n\n")?;
                        let lines: Vec<String> =
                            errors.iter().map(|error| format!("* {error}")).collect();
                        f.write_str(&lines.join("\n"))
                    }
                    None => {
                        let shown: String =
                            String::from_utf8_lossy(body).chars().take(1000).collect();
                        write!(f, "Raw Message:\n\n{shown}")
                    }
                }
            }
            Self::NotJson { url } => write!(f, "the answer of {url} is not JSON"),
            Self::Shown(line) => f.write_str(line),
        }
    }
}

impl ApiError {
    /// The failure of a command: `what` goes before the text, as `Error reading x: …`.
    pub(crate) fn during(self, what: &str) -> Failure {
        match self {
            Self::Shown(line) => Failure::Shown(line),
            Self::Client { .. } | Self::Status { .. } | Self::NotJson { .. } => {
                let gap = if what.is_empty() { "" } else { ": " };
                Failure::Remote(format!("{what}{gap}{self}"))
            }
        }
    }

    /// The server's status, if it answered.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            Self::Client { .. } | Self::NotJson { .. } | Self::Shown(_) => None,
        }
    }
}

impl Api {
    /// The server that flags and environment name.
    ///
    /// # Errors
    /// A setting that cannot be used.
    pub(crate) fn new(given: &Given, environment: &Environment) -> Result<Self, Failure> {
        let setting = |flag: &str, suffix: &str| {
            given
                .text(flag)
                .map(str::to_owned)
                .or_else(|| environment.find(suffix).map(|(_, value)| value))
        };
        let address = setting("address", "ADDR").unwrap_or_else(|| DEFAULT_ADDRESS.to_owned());
        let file = |flag, suffix| setting(flag, suffix).map(|path| Pem::File(path.into()));
        let client = match (
            file("client-cert", "CLIENT_CERT"),
            file("client-key", "CLIENT_KEY"),
        ) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                return Err(Failure::Remote(
                    "both a client certificate and its key must be provided".to_owned(),
                ));
            }
        };
        let skip_verify = given.on("tls-skip-verify")
            || environment
                .find("SKIP_VERIFY")
                .is_some_and(|(_, value)| parse_bool(&value) == Some(true));
        let tls = TlsParameters {
            ca: file("ca-cert", "CACERT"),
            ca_dir: setting("ca-path", "CAPATH").map(Into::into),
            client,
            server_name: setting("tls-server-name", "TLS_SERVER_NAME"),
            skip_verify,
        };
        let settings = ClientSettings {
            tls,
            timeout: timeout(environment)?,
            max_retries: retries(environment)?,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| {
                Failure::Remote(format!("the runtime could not be started: {error}"))
            })?;
        let token = token::current(environment)
            .map_err(|error| Failure::Remote(format!("error getting the token: {error}")))?;
        Ok(Self {
            client: Client::new(settings),
            runtime,
            address: address.trim_end_matches('/').to_owned(),
            token,
            headers: headers(given, environment)?,
            only_show: given.on("output-curl-string"),
        })
    }

    /// Uses this token from now on.
    pub(crate) fn set_token(&mut self, token: Zeroizing<String>) {
        self.token = Some(token);
    }

    /// Does not send anything again.
    pub(crate) fn without_retries(&mut self) {
        self.client.set_retries(0);
    }

    /// The server that is asked.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// `GET`.
    pub(crate) fn get(&mut self, path: &str) -> Result<Option<Value>, ApiError> {
        self.call(Method::GET, path, None)
    }

    /// `GET ?list=true`, which is how Vault's clients list.
    pub(crate) fn list(&mut self, path: &str) -> Result<Option<Value>, ApiError> {
        self.send(Method::GET, &format!("{}?list=true", encode(path)), None)
    }

    /// `path` is below `/v1/` and not yet encoded. `None`: success without a body.
    pub(crate) fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Option<Value>, ApiError> {
        self.send(method, &encode(path), body)
    }

    /// With a query, as `("version", "2")`.
    pub(crate) fn get_with(
        &mut self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Option<Value>, ApiError> {
        let query: Vec<String> = query
            .iter()
            .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)))
            .collect();
        let mark = if query.is_empty() { "" } else { "?" };
        self.send(
            Method::GET,
            &format!("{}{mark}{}", encode(path), query.join("&")),
            None,
        )
    }

    fn send(
        &mut self,
        method: Method,
        target: &str,
        body: Option<&Value>,
    ) -> Result<Option<Value>, ApiError> {
        let url = format!("{}/v1/{target}", self.address);
        let body = body.map(Value::to_string);
        if self.only_show {
            return Err(ApiError::Shown(self.curl(&method, &url, body.as_deref())));
        }
        let failed = |source| ApiError::Client {
            method: method.clone(),
            url: url.clone(),
            source,
        };
        let headers = self.request_headers().map_err(failed)?;
        let bytes = Bytes::from(body.unwrap_or_default());
        let sending = Box::pin(self.client.send(&method, &url, &headers, &bytes));
        let response = self.runtime.block_on(sending).map_err(failed)?;
        let status = response.status();
        let body = response.into_body();
        if !status.is_success() {
            return Err(ApiError::Status {
                errors: errors_of(&body),
                method,
                url,
                status,
                body,
            });
        }
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        serde_json::from_slice(&body)
            .map(Some)
            .map_err(|_| ApiError::NotJson { url })
    }

    /// `GET`s something of any length into `sink`.
    pub(crate) fn download(&mut self, path: &str, sink: &mut dyn Write) -> Result<(), ApiError> {
        let url = format!("{}/v1/{}", self.address, encode(path));
        let failed = |source| ApiError::Client {
            method: Method::GET,
            url: url.clone(),
            source,
        };
        let headers = self.request_headers().map_err(failed)?;
        let receiving = Box::pin(self.client.download(&url, &headers, sink));
        let response = self.runtime.block_on(receiving).map_err(failed)?;
        succeeded(Method::GET, url.clone(), response)
    }

    /// `POST`s a file of any length.
    pub(crate) fn upload(&mut self, path: &str, file: &Path) -> Result<(), ApiError> {
        let url = format!("{}/v1/{}", self.address, encode(path));
        if self.only_show {
            let shown = self.curl(&Method::POST, &url, None);
            let data = quoted(&format!("@{}", file.display()));
            return Err(ApiError::Shown(format!("{shown} --data-binary {data}")));
        }
        let failed = |source| ApiError::Client {
            method: Method::POST,
            url: url.clone(),
            source,
        };
        let headers = self.request_headers().map_err(failed)?;
        let sending = Box::pin(self.client.upload(&url, &headers, file));
        let response = self.runtime.block_on(sending).map_err(failed)?;
        succeeded(Method::POST, url.clone(), response)
    }

    fn request_headers(&self) -> Result<HeaderMap, ClientError> {
        let mut headers = self.headers.clone();
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        if let Some(token) = &self.token {
            let mut value = HeaderValue::from_str(token).map_err(|_| ClientError::Token)?;
            value.set_sensitive(true);
            headers.insert("x-vault-token", value);
        }
        Ok(headers)
    }

    /// What `-output-curl-string` prints; the token stays out of it.
    fn curl(&self, method: &Method, url: &str, body: Option<&str>) -> String {
        let mut line = "curl ".to_owned();
        if method != Method::GET {
            // Writing to a String cannot fail.
            let _ = write!(line, "-X {method} ");
        }
        line.push_str("-H \"X-Vault-Request: true\" ");
        if self.token.is_some() {
            line.push_str("-H \"X-Vault-Token: $(strongroom print token)\" ");
        }
        for (name, value) in &self.headers {
            let shown = value.to_str().unwrap_or_default();
            let _ = write!(line, "-H {} ", quoted(&format!("{name}: {shown}")));
        }
        if let Some(body) = body {
            let _ = write!(line, "-d {} ", quoted(body));
        }
        line.push_str(&quoted(url));
        line
    }
}

fn succeeded(method: Method, url: String, response: http::Response<Bytes>) -> Result<(), ApiError> {
    let (status, body) = (response.status(), response.into_body());
    if status.is_success() {
        return Ok(());
    }
    Err(ApiError::Status {
        errors: errors_of(&body),
        method,
        url,
        status,
        body,
    })
}

/// In single quotes for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn encode(path: &str) -> String {
    utf8_percent_encode(path, PATH).to_string()
}

fn errors_of(body: &[u8]) -> Option<Vec<String>> {
    let parsed: Value = serde_json::from_slice(body).ok()?;
    let errors = parsed.get("errors")?.as_array()?;
    let texts = errors.iter().map(|error| match error.as_str() {
        Some(text) => text.to_owned(),
        None => error.to_string(),
    });
    Some(texts.collect())
}

fn timeout(environment: &Environment) -> Result<Duration, Failure> {
    let Some((name, value)) = environment.find("CLIENT_TIMEOUT") else {
        return Ok(DEFAULT_TIMEOUT);
    };
    parse_duration(&value)
        .filter(|timeout| !timeout.is_zero())
        .ok_or_else(|| Failure::Remote(format!("could not parse {name}: {value:?}")))
}

fn retries(environment: &Environment) -> Result<u32, Failure> {
    let Some((name, value)) = environment.find("MAX_RETRIES") else {
        return Ok(DEFAULT_RETRIES);
    };
    value
        .parse()
        .map_err(|_| Failure::Remote(format!("could not parse {name}: {value:?}")))
}

fn headers(given: &Given, environment: &Environment) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    let bad = |header: &str| {
        Failure::Local(format!(
            "Failed to parse header {header:?}: it must be key=value"
        ))
    };
    for header in given.all("header") {
        let (name, value) = header.split_once('=').ok_or_else(|| bad(header))?;
        if name.to_ascii_lowercase().starts_with("x-vault-") {
            return Err(Failure::Local(format!(
                "Header key cannot start by \"X-Vault-\": {name}"
            )));
        }
        headers.append(
            name.parse::<HeaderName>().map_err(|_| bad(header))?,
            HeaderValue::from_str(value).map_err(|_| bad(header))?,
        );
    }
    let namespace = given
        .text("namespace")
        .or_else(|| given.text("ns"))
        .map(str::to_owned)
        .or_else(|| environment.find("NAMESPACE").map(|(_, value)| value));
    let wrap_ttl = given
        .text("wrap-ttl")
        .map(str::to_owned)
        .or_else(|| environment.find("WRAP_TTL").map(|(_, value)| value));
    for (name, value) in [
        ("x-vault-namespace", namespace),
        ("x-vault-wrap-ttl", wrap_ttl),
    ] {
        if let Some(value) = value {
            let parsed = HeaderValue::from_str(&value).map_err(|_| bad(name))?;
            headers.insert(name, parsed);
        }
    }
    Ok(headers)
}
