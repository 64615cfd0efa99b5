//! Answers: Vault's envelope, its variants and its headers.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::{Map, Value};

/// What an endpoint gives back.
#[derive(Debug)]
pub enum Reply {
    /// 204.
    Empty,
    /// 200 with an object as it is, without the envelope.
    Plain(Value),
    /// 200 with the envelope.
    Data(Data),
    /// Any status with an object as it is.
    Status(StatusCode, Value),
}

/// Content of the envelope.
#[derive(Debug, Default)]
pub struct Data {
    /// `data`; `None` is `null`.
    pub data: Option<Map<String, Value>>,
    /// Whether the keys of `data` stand beside it too, as old clients of `sys` expect.
    pub also_at_top: bool,
    /// Seconds.
    pub lease_duration: u64,
    /// For people; empty is `null`.
    pub warnings: Vec<String>,
}

impl Reply {
    /// The envelope around `data`.
    #[must_use]
    pub fn data(data: Map<String, Value>) -> Self {
        Self::Data(Data {
            data: Some(data),
            ..Data::default()
        })
    }

    /// The envelope around `data`, whose keys stand at the top too.
    #[must_use]
    pub fn system(data: Map<String, Value>) -> Self {
        Self::Data(Data {
            data: Some(data),
            also_at_top: true,
            ..Data::default()
        })
    }

    /// The envelope around a list of names; 404 when there is none.
    pub(crate) fn list(names: Vec<String>) -> Result<Self, super::error::ApiError> {
        if names.is_empty() {
            return Err(super::error::ApiError::NotFound);
        }
        let mut data = Map::new();
        data.insert("keys".to_owned(), Value::from(names));
        Ok(Self::data(data))
    }
}

/// Turns any serialisable struct into an object; anything else into an empty one.
pub(crate) fn object(value: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => map,
        Ok(_) | Err(_) => Map::new(),
    }
}

/// Vault's envelope, fields in Vault's order.
#[derive(Serialize)]
struct Envelope<'a> {
    #[serde(flatten)]
    top: Option<&'a Map<String, Value>>,
    request_id: &'a str,
    lease_id: &'a str,
    renewable: bool,
    lease_duration: u64,
    data: Option<&'a Map<String, Value>>,
    wrap_info: Option<Value>,
    warnings: Option<&'a [String]>,
    auth: Option<Value>,
}

/// A finished answer: status, headers, whole body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// No body.
    pub(crate) fn empty(status: StatusCode) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(
            header::STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static("max-age=31536000; includeSubDomains"),
        );
        // Even without a body, as Vault does.
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        Self {
            status,
            headers,
            body: Bytes::new(),
        }
    }

    /// `value` and a newline.
    pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Self {
        let mut answer = Self::empty(status);
        match serde_json::to_vec(value) {
            Ok(mut body) => {
                body.push(b'\n');
                answer.body = body.into();
            }
            Err(error) => {
                tracing::error!(%error, "an answer could not be encoded");
                answer.status = StatusCode::INTERNAL_SERVER_ERROR;
            }
        }
        answer
    }

    pub(crate) fn of(reply: Reply, request_id: &str) -> Self {
        let data = match reply {
            Reply::Empty => return Self::empty(StatusCode::NO_CONTENT),
            Reply::Plain(value) => return Self::json(StatusCode::OK, &value),
            Reply::Status(status, value) => return Self::json(status, &value),
            Reply::Data(data) => data,
        };
        let envelope = Envelope {
            top: data.data.as_ref().filter(|_| data.also_at_top),
            request_id,
            lease_id: "",
            renewable: false,
            lease_duration: data.lease_duration,
            data: data.data.as_ref(),
            wrap_info: None,
            warnings: Some(data.warnings.as_slice()).filter(|w| !w.is_empty()),
            auth: None,
        };
        Self::json(StatusCode::OK, &envelope)
    }

    pub(crate) fn header(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.insert(name, value);
    }

    pub(crate) fn into_http(self) -> http::Response<axum::body::Body> {
        let mut response = http::Response::new(axum::body::Body::from(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}
