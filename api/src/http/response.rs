//! Answers: Vault's envelope, its variants and its headers.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::{Map, Value};

use super::error::ApiError;
use crate::ports::{BoxError, Stream};

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
    pub(crate) fn list(names: Vec<String>) -> Result<Self, ApiError> {
        if names.is_empty() {
            return Err(ApiError::NotFound);
        }
        let mut data = Map::new();
        data.insert("keys".to_owned(), Value::from(names));
        Ok(Self::data(data))
    }
}

/// A serialisable struct as the object it is in JSON.
pub(crate) fn object(value: &impl Serialize) -> Result<Map<String, Value>, ApiError> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) | Err(_) => Err(ApiError::Internal("an answer is no object".to_owned())),
    }
}

/// Fields of the envelope after those of `data`, in Vault's order.
struct Envelope<'a> {
    request_id: &'a str,
    data: &'a Data,
}

/// Names that the envelope itself uses: what `data` repeats beside it may not stand in their place.
const OWN_FIELDS: [&str; 8] = [
    "request_id",
    "lease_id",
    "renewable",
    "lease_duration",
    "data",
    "wrap_info",
    "warnings",
    "auth",
];

impl Serialize for Envelope<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(data) = self.data.data.as_ref().filter(|_| self.data.also_at_top) {
            for (key, value) in data {
                if !OWN_FIELDS.contains(&key.as_str()) {
                    map.serialize_entry(key, value)?;
                }
            }
        }
        map.serialize_entry("request_id", self.request_id)?;
        map.serialize_entry("lease_id", "")?;
        map.serialize_entry("renewable", &false)?;
        map.serialize_entry("lease_duration", &self.data.lease_duration)?;
        map.serialize_entry("data", &self.data.data)?;
        map.serialize_entry("wrap_info", &())?;
        let warnings = Some(&self.data.warnings).filter(|warnings| !warnings.is_empty());
        map.serialize_entry("warnings", &warnings)?;
        map.serialize_entry("auth", &())?;
        map.end()
    }
}

/// A finished answer: status, headers, whole body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Goes out instead of `body`, as it comes.
    pub(crate) stream: Option<Stream>,
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
            stream: None,
        }
    }

    /// A snapshot.
    pub(crate) fn archive(stream: Stream) -> Self {
        let mut answer = Self::empty(StatusCode::OK);
        answer.header(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/gzip"),
        );
        answer.header(
            header::CONTENT_DISPOSITION,
            HeaderValue::from_static("attachment"),
        );
        answer.stream = Some(stream);
        answer
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
            request_id,
            data: &data,
        };
        Self::json(StatusCode::OK, &envelope)
    }

    pub(crate) fn header(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.insert(name, value);
    }

    pub(crate) fn into_http(self) -> http::Response<Payload> {
        let body = match self.stream {
            None => Payload::Whole(Full::new(self.body)),
            Some(stream) => Payload::Stream(stream),
        };
        let mut response = http::Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// An answer's body.
#[derive(Debug)]
pub enum Payload {
    /// What most answers are.
    Whole(Full<Bytes>),
    /// As long as it gets.
    Stream(Stream),
}

impl Body for Payload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole)
                .poll_frame(context)
                .map_err(|never| match never {}),
            Self::Stream(stream) => Pin::new(stream).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(reply: Reply) -> String {
        let answer = Answer::of(reply, "id");
        String::from_utf8(answer.body.to_vec()).unwrap()
    }

    fn object_of(value: Value) -> Map<String, Value> {
        object(&value).unwrap()
    }

    #[test]
    fn the_envelope_has_vaults_fields_in_vaults_order() {
        let data = json!({ "n": serde_json::from_str::<Value>("1.10").unwrap() });
        assert_eq!(
            body(Reply::data(object_of(data))),
            concat!(
                r#"{"request_id":"id","lease_id":"","renewable":false,"lease_duration":0,"#,
                r#""data":{"n":1.10},"wrap_info":null,"warnings":null,"auth":null}"#,
                "\n"
            )
        );
    }

    #[test]
    fn data_beside_the_envelope_does_not_replace_its_fields() {
        let data = json!({ "auth": 1, "kv/": 2 });
        assert_eq!(
            body(Reply::system(object_of(data))),
            concat!(
                r#"{"kv/":2,"request_id":"id","lease_id":"","renewable":false,"lease_duration":0,"#,
                r#""data":{"auth":1,"kv/":2},"wrap_info":null,"warnings":null,"auth":null}"#,
                "\n"
            )
        );
    }

    #[test]
    fn warnings_are_a_list_or_null() {
        let reply = Reply::Data(Data {
            warnings: vec!["w".to_owned()],
            ..Data::default()
        });
        assert!(body(reply).contains(r#""data":null,"wrap_info":null,"warnings":["w"]"#));
    }
}
