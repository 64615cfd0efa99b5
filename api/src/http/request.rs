//! Decoding: from an HTTP request to what the API works on, with every limit applied.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::error::ApiError;
use crate::engines::Operation;

/// Strings (keys and values) a JSON body may hold; more is an attempt to make parsing expensive.
const MAX_STRINGS: usize = 10_000;
/// Longest path, bytes.
const MAX_PATH: usize = 8 << 10;

/// Names the request through forwarding and retries; a client may set it for its own retries.
pub(crate) const REQUEST_ID: &str = "x-strongroom-request-id";

/// A decoded request.
pub(crate) struct ApiRequest {
    pub(crate) operation: Operation,
    /// Decoded path after `/v1/`; may end with a slash.
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) fields: Map<String, Value>,
    pub(crate) token: Option<Zeroizing<String>>,
    /// `X-Vault-No-Request-Forwarding: true`.
    pub(crate) no_forwarding: bool,
    pub(crate) request_id: [u8; 16],
    pub(crate) deadline: Instant,
}

impl ApiRequest {
    /// Value of query parameter `name`.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// What a method means for a path.
pub(crate) fn operation(
    method: &Method,
    query: &[(String, String)],
) -> Result<Operation, ApiError> {
    let list = query
        .iter()
        .any(|(key, value)| key == "list" && matches!(value.as_str(), "true" | "1" | "t"));
    match method.as_str() {
        "GET" | "HEAD" if list => Ok(Operation::List),
        "GET" | "HEAD" => Ok(Operation::Read),
        "LIST" => Ok(Operation::List),
        "PUT" | "POST" | "PATCH" => Ok(Operation::Write),
        "DELETE" => Ok(Operation::Delete),
        _ => Err(ApiError::MethodNotAllowed),
    }
}

/// The decoded path after `/v1/`, checked.
pub(crate) fn path(uri: &Uri) -> Result<String, ApiError> {
    let encoded = uri
        .path()
        .strip_prefix("/v1/")
        .ok_or_else(|| ApiError::NoRoute("404 page not found".to_owned()))?;
    let decoded = percent_encoding::percent_decode_str(encoded)
        .decode_utf8()
        .map_err(|_| ApiError::BadRequest("the path is not valid UTF-8".to_owned()))?;
    if decoded.chars().any(char::is_control) {
        return Err(ApiError::BadPath);
    }
    if decoded.len() > MAX_PATH {
        return Err(ApiError::BadRequest("the path is too long".to_owned()));
    }
    if decoded
        .split('/')
        .any(|segment| segment == ".." || segment == ".")
    {
        return Err(ApiError::BadRequest(
            "relative paths not supported".to_owned(),
        ));
    }
    let inner = decoded.strip_suffix('/').unwrap_or(&decoded);
    if inner.split('/').any(str::is_empty) && !inner.is_empty() {
        return Err(ApiError::BadRequest(
            "empty path segments are not supported".to_owned(),
        ));
    }
    Ok(decoded.into_owned())
}

/// The query's parameters, decoded; what does not decode is left out, as Vault does.
pub(crate) fn query(uri: &Uri) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let spaces = text.replace('+', " ");
        percent_encoding::percent_decode_str(&spaces)
            .decode_utf8()
            .ok()
            .map(std::borrow::Cow::into_owned)
    };
    uri.query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(key)?, decode(value)?))
        })
        .collect()
}

/// The fields of a JSON object; an empty body has none.
pub(crate) fn fields(body: &Bytes) -> Result<Map<String, Value>, ApiError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    if count_strings(body) > MAX_STRINGS {
        return Err(ApiError::BadRequest(
            "refused JSON input due to high complexity".to_owned(),
        ));
    }
    match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(_) => Err(ApiError::BadRequest(
            "error parsing JSON: the body must be an object".to_owned(),
        )),
        // serde_json's texts give a position, never content.
        Err(error) => Err(ApiError::BadRequest(format!("error parsing JSON: {error}"))),
    }
}

/// Strings in a JSON text, counted without building anything.
fn count_strings(body: &[u8]) -> usize {
    let (mut count, mut inside, mut escaped) = (0, false, false);
    for byte in body {
        match (inside, escaped, byte) {
            (true, true, _) => escaped = false,
            (true, false, b'\\') => escaped = true,
            (true, false, b'"') => inside = false,
            (false, _, b'"') => {
                inside = true;
                count += 1;
            }
            _ => {}
        }
    }
    count
}

/// The token, from Vault's header or a bearer authorisation.
pub(crate) fn token(headers: &HeaderMap) -> Option<Zeroizing<String>> {
    let own = headers
        .get("x-vault-token")
        .and_then(|value| value.to_str().ok())
        .filter(|value| !value.is_empty());
    let bearer = || {
        let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| token.trim())
            .filter(|token| !token.is_empty())
    };
    own.or_else(bearer)
        .map(|token| Zeroizing::new(token.to_owned()))
}

/// The id in the headers, or a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> Result<uuid::Uuid, ApiError> {
    match headers.get(REQUEST_ID) {
        None => Ok(uuid::Uuid::new_v4()),
        Some(value) => value
            .to_str()
            .ok()
            .and_then(|text| uuid::Uuid::parse_str(text).ok())
            .filter(|id| !id.is_nil())
            .ok_or_else(|| ApiError::BadRequest(format!("{REQUEST_ID} must be a UUID"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_decoded_and_checked() {
        for (uri, want) in [
            ("/v1/kv/app", Ok("kv/app")),
            ("/v1/kv/a%20b", Ok("kv/a b")),
            ("/v1/kv/", Ok("kv/")),
            ("/v1/kv/%2e%2e/sys", Err("relative paths not supported")),
            ("/v1/kv/../sys", Err("relative paths not supported")),
            ("/v1/kv//app", Err("empty path segments are not supported")),
            ("/v1/kv/%00", Err("the path holds a control character")),
            ("/v1/kv/%ff", Err("the path is not valid UTF-8")),
            ("/ui", Err("404 page not found")),
        ] {
            let got = path(&uri.parse().unwrap()).map_err(|e| e.to_string());
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{uri}");
        }
    }

    #[test]
    fn bodies_are_objects() {
        for (body, ok) in [
            ("", true),
            (" \n", true),
            ("{}", true),
            ("null", true),
            (r#"{"a":1}"#, true),
            ("[1]", false),
            ("{", false),
            ("\"x\"", false),
            (r#"{"a":1}x"#, false),
        ] {
            assert_eq!(
                fields(&Bytes::from_static(body.as_bytes())).is_ok(),
                ok,
                "{body}"
            );
        }
        let deep = "[".repeat(100_000);
        assert!(fields(&Bytes::from(format!("{{\"a\":{deep}"))).is_err());
        let many = format!("{{\"a\":[{}\"\"]}}", "\"\",".repeat(MAX_STRINGS));
        assert!(matches!(
            fields(&Bytes::from(many)),
            Err(ApiError::BadRequest(_))
        ));
    }

    #[test]
    fn numbers_keep_their_digits() {
        let text = r#"{"a":1234567890123456789012345,"b":1.10}"#;
        let parsed = fields(&Bytes::from_static(text.as_bytes())).unwrap();
        assert_eq!(serde_json::to_string(&parsed).unwrap(), text);
    }

    proptest! {
        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = fields(&Bytes::from(body));
        }

        #[test]
        fn a_path_that_passes_has_no_way_up(text in "(/v1/)?[a-z%./0-9A-F]{0,40}") {
            if let Ok(uri) = text.parse::<Uri>()
                && let Ok(path) = path(&uri)
            {
                prop_assert!(path.split('/').all(|s| s != ".." && s != "."));
            }
        }
    }
}
