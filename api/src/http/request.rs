//! Decoding: from an HTTP request to what the API works on, with every limit applied.
//!
//! Invariants
//! - Nothing a client sends is indexed or unwrapped; what does not decode is a 400 that says why.
//! - No error text repeats content of a body: it may be a secret.

use std::{fmt::Write as _, sync::Arc, time::Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::{HeaderMap, Method, Uri, header};
use serde_json::{Map, Value, error::Category};
use zeroize::Zeroizing;

use super::{Label, error::ApiError};
use crate::engines::Operation;

/// Strings (keys and values) a JSON body may hold; more is an attempt to make parsing expensive.
const MAX_STRINGS: usize = 1_000;
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
    pub(crate) label: Arc<Label>,
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
    headers: &HeaderMap,
    path: &str,
    query: &[(String, String)],
) -> Result<Operation, ApiError> {
    match method.as_str() {
        "HEAD" if path == "sys/health" => Ok(Operation::Read),
        "GET" if asks_for_list(query)? => Ok(Operation::List),
        "GET" => Ok(Operation::Read),
        "LIST" => Ok(Operation::List),
        "PUT" | "POST" => Ok(Operation::Write),
        "DELETE" => Ok(Operation::Delete),
        "PATCH" => merge_patch(headers),
        "OPTIONS" => Err(ApiError::BadRequest(
            "cannot handle internal-only request operation".to_owned(),
        )),
        _ => Err(ApiError::MethodNotAllowed),
    }
}

fn asks_for_list(query: &[(String, String)]) -> Result<bool, ApiError> {
    match query.iter().find(|(key, _)| key == "list") {
        None => Ok(false),
        Some((_, value)) => boolean(value).ok_or(ApiError::BadParameter),
    }
}

/// The spellings of a boolean that Vault's clients use.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn merge_patch(headers: &HeaderMap) -> Result<Operation, ApiError> {
    match media_type(headers) {
        None => Err(ApiError::BadRequest("mime: no media type".to_owned())),
        Some("application/merge-patch+json") => Ok(Operation::Patch),
        Some(_) => Err(ApiError::UnsupportedMediaType),
    }
}

fn media_type(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim()).filter(|text| !text.is_empty())
}

/// The decoded path after `/v1/`, checked.
pub(crate) fn path(uri: &Uri) -> Result<String, ApiError> {
    let encoded = uri.path().strip_prefix("/v1/").ok_or(ApiError::NotFound)?;
    if !escapes_are_whole(encoded) {
        return Err(ApiError::BadRequest("invalid URL escape".to_owned()));
    }
    let decoded = percent_encoding::percent_decode_str(encoded)
        .decode_utf8()
        .map_err(|_| ApiError::BadRequest("the path is not valid UTF-8".to_owned()))?;
    if decoded.chars().any(is_unprintable) {
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
    if inner.split('/').any(str::is_empty) && !decoded.is_empty() {
        return Err(ApiError::BadRequest(
            "empty path segments are not supported".to_owned(),
        ));
    }
    Ok(decoded.into_owned())
}

/// Whether every `%` is followed by two hexadecimal digits.
fn escapes_are_whole(encoded: &str) -> bool {
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_hexdigit());
            let (high, low) = (bytes.next(), bytes.next());
            if !digit(high) || !digit(low) {
                return false;
            }
        }
    }
    true
}

/// Characters that show nothing, or change how the rest is shown: two names that look alike must be alike.
fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The query's parameters, decoded; what does not decode is left out, as Vault does.
pub(crate) fn query(uri: &Uri) -> Vec<(String, String)> {
    form(uri.query().unwrap_or_default())
}

fn form(text: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let spaces = text.replace('+', " ");
        percent_encoding::percent_decode_str(&spaces)
            .decode_utf8()
            .ok()
            .map(std::borrow::Cow::into_owned)
    };
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(key)?, decode(value)?))
        })
        .collect()
}

/// The fields of a request's body: a JSON object, or a form (`curl -d key=value`); an empty body has none.
pub(crate) fn fields(headers: &HeaderMap, body: &Bytes) -> Result<Map<String, Value>, ApiError> {
    let is_form = media_type(headers) == Some("application/x-www-form-urlencoded");
    match body.first() {
        None => Ok(Map::new()),
        Some(b'{' | b'[') => json_fields(body),
        Some(_) if is_form => form_fields(body),
        Some(_) => json_fields(body),
    }
}

/// A field that comes more than once is joined with commas, as Vault does.
fn form_fields(body: &Bytes) -> Result<Map<String, Value>, ApiError> {
    let text = std::str::from_utf8(body)
        .map_err(|_| ApiError::BadRequest("the body is not valid UTF-8".to_owned()))?;
    let pairs = form(text);
    if pairs.len() > MAX_STRINGS / 2 {
        return Err(too_complex());
    }
    let mut fields = Map::new();
    for (key, value) in pairs {
        match fields.get_mut(&key) {
            Some(Value::String(joined)) => {
                joined.push(',');
                joined.push_str(&value);
            }
            Some(_) | None => {
                fields.insert(key, Value::String(value));
            }
        }
    }
    Ok(fields)
}

fn json_fields(body: &Bytes) -> Result<Map<String, Value>, ApiError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    if count_strings(body) > MAX_STRINGS {
        return Err(too_complex());
    }
    match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(_) => Err(bad_json("the body must be an object")),
        Err(error) => Err(bad_json(&where_json_breaks(&error))),
    }
}

fn too_complex() -> ApiError {
    ApiError::BadRequest(
        "refused JSON input due to high complexity: exceeded maximum number of strings".to_owned(),
    )
}

/// The answer to a body that does not decode.
pub(crate) fn bad_json(why: &str) -> ApiError {
    ApiError::BadRequest(format!("failed to decode JSON input: {why}"))
}

/// What is wrong and where; never the content that is wrong.
fn where_json_breaks(error: &serde_json::Error) -> String {
    let mut text = match error.classify() {
        Category::Eof => "unexpected end".to_owned(),
        Category::Syntax => "invalid syntax".to_owned(),
        Category::Data | Category::Io => "a value cannot be used".to_owned(),
    };
    // Writing to a String cannot fail.
    let _ = write!(text, " at line {} column {}", error.line(), error.column());
    text
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
        let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| token.trim())
            .filter(|token| !token.is_empty())
    };
    own.or_else(bearer)
        .map(|token| Zeroizing::new(token.to_owned()))
}

/// Refuses headers that ask for what there is not: silently leaving it out would give a secret away unwrapped, or
/// work in another namespace than was meant.
pub(crate) fn check_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name: &str| match headers.get(name) {
        None => "",
        Some(value) => value.to_str().unwrap_or("?").trim(),
    };
    if !matches!(text("x-vault-namespace").trim_matches('/'), "" | "root") {
        return Err(ApiError::NoRoute("namespace not found".to_owned()));
    }
    if !matches!(text("x-vault-wrap-ttl"), "" | "0" | "0s") {
        return Err(ApiError::BadRequest(
            "response wrapping is not available yet".to_owned(),
        ));
    }
    Ok(())
}

/// How up to date the state must be that a read is answered from.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// This node's state as it is, without asking a leader: `X-Strongroom-Consistency: stale`.
    pub(crate) stale: bool,
    /// The index a client has seen, and the cluster it saw it in: `X-Vault-Index`.
    pub(crate) index: Option<(String, u64)>,
    /// What to do about a state that is behind it: `X-Vault-Inconsistent`.
    pub(crate) behind: Behind,
}

/// What a read does whose node is behind the index that the client has seen. Only a stale read can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Behind {
    /// Waits for it; `await-state`.
    #[default]
    Wait,
    /// 412; `fail`.
    Fail,
    /// Is no stale read then; `forward-active-node`.
    Linearize,
}

/// Asks for a stale read, and marks the answer to one.
pub(crate) const CONSISTENCY: &str = "x-strongroom-consistency";

/// See [`Wanted`]; none of these headers is the usual case, and costs next to nothing.
pub(crate) fn wanted(headers: &HeaderMap) -> Result<Wanted, ApiError> {
    let text = |name: &str| match headers.get(name) {
        None => "",
        Some(value) => value.to_str().unwrap_or("?").trim(),
    };
    let bad = |name: &str| ApiError::BadRequest(format!("failed to decode \"{name}\""));
    let index = match text("x-vault-index") {
        "" => None,
        index => Some(seen_index(index).ok_or_else(|| bad("X-Vault-Index"))?),
    };
    let behind = match text("x-vault-inconsistent") {
        "" | "await-state" => Behind::Wait,
        "fail" => Behind::Fail,
        "forward-active-node" => Behind::Linearize,
        _ => return Err(bad("X-Vault-Inconsistent")),
    };
    let stale = match text(CONSISTENCY) {
        "" | "linearizable" => false,
        "stale" => true,
        _ => return Err(bad("X-Strongroom-Consistency")),
    };
    Ok(Wanted {
        stale,
        index,
        behind,
    })
}

/// Cluster and index as [`super`] gives them out.
fn seen_index(text: &str) -> Option<(String, u64)> {
    let json = BASE64.decode(text).ok()?;
    let fields = serde_json::from_slice::<Map<String, Value>>(&json).ok()?;
    let cluster = fields.get("cluster")?.as_str()?.to_owned();
    let index = match fields.get("value")? {
        Value::String(text) => text.parse().ok()?,
        Value::Number(number) => number.as_u64()?,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    Some((cluster, index))
}

/// The id in the headers, if there is one.
pub(crate) fn given_id(headers: &HeaderMap) -> Result<Option<uuid::Uuid>, ApiError> {
    match headers.get(REQUEST_ID) {
        None => Ok(None),
        Some(value) => value
            .to_str()
            .ok()
            .and_then(|text| uuid::Uuid::parse_str(text).ok())
            .filter(|id| !id.is_nil())
            .map(Some)
            .ok_or_else(|| ApiError::BadRequest(format!("{REQUEST_ID} must be a UUID"))),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn typed(content_type: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))])
    }

    #[test]
    fn paths_are_decoded_and_checked() {
        for (uri, want) in [
            ("/v1/kv/app", Ok("kv/app")),
            ("/v1/kv/a%20b", Ok("kv/a b")),
            ("/v1/kv/%C3%A9", Ok("kv/é")),
            ("/v1/kv/a%2Fb", Ok("kv/a/b")),
            ("/v1/kv/a..b", Ok("kv/a..b")),
            ("/v1/kv/", Ok("kv/")),
            ("/v1/", Ok("")),
            ("/v1/kv/%2e%2e/sys", Err("relative paths not supported")),
            ("/v1/kv/../sys", Err("relative paths not supported")),
            ("/v1/kv%2F%2e%2E%2fsys", Err("relative paths not supported")),
            ("/v1/kv//app", Err("empty path segments are not supported")),
            (
                "/v1/kv/%2Fapp",
                Err("empty path segments are not supported"),
            ),
            ("/v1/%2F", Err("empty path segments are not supported")),
            ("/v1/kv/%00", Err("the path holds a control character")),
            ("/v1/kv/a%0a", Err("the path holds a control character")),
            (
                "/v1/kv/%E2%80%AE",
                Err("the path holds a control character"),
            ),
            ("/v1/kv/%ff", Err("the path is not valid UTF-8")),
            ("/v1/kv/%zz", Err("invalid URL escape")),
            ("/v1/kv/%4", Err("invalid URL escape")),
            ("/ui", Err("not found")),
            ("/v1", Err("not found")),
            ("/v1x/a", Err("not found")),
        ] {
            let got = path(&uri.parse().unwrap()).map_err(|e| e.to_string());
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{uri}");
        }
    }

    #[test]
    fn methods_mean_what_vault_means() {
        let none = HeaderMap::new();
        let patch = typed("application/merge-patch+json; charset=utf-8");
        let json = typed("application/json");
        for (method, headers, path, query, want) in [
            ("GET", &none, "kv/a", "", Ok(Operation::Read)),
            ("GET", &none, "kv/a", "list=true", Ok(Operation::List)),
            ("GET", &none, "kv/a", "list=1", Ok(Operation::List)),
            ("GET", &none, "kv/a", "list=false", Ok(Operation::Read)),
            ("GET", &none, "kv/a", "list=yes", Err(400)),
            ("LIST", &none, "kv/a", "", Ok(Operation::List)),
            ("PUT", &none, "kv/a", "", Ok(Operation::Write)),
            ("POST", &none, "kv/a", "list=yes", Ok(Operation::Write)),
            ("DELETE", &none, "kv/a", "", Ok(Operation::Delete)),
            ("PATCH", &patch, "kv/a", "", Ok(Operation::Patch)),
            ("PATCH", &json, "kv/a", "", Err(415)),
            ("PATCH", &none, "kv/a", "", Err(400)),
            ("HEAD", &none, "kv/a", "", Err(405)),
            ("HEAD", &none, "sys/health", "", Ok(Operation::Read)),
            ("OPTIONS", &none, "kv/a", "", Err(400)),
            ("TRACE", &none, "kv/a", "", Err(405)),
            ("list", &none, "kv/a", "", Err(405)),
            ("FOO", &none, "kv/a", "", Err(405)),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let got = operation(&method, headers, path, &form(query))
                .map_err(|error| error.status().as_u16());
            assert_eq!(got, want, "{method} {path}?{query}");
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
            (r#"{"a":"\ud800"}"#, false),
        ] {
            let got = fields(&HeaderMap::new(), &Bytes::from_static(body.as_bytes()));
            assert_eq!(got.is_ok(), ok, "{body}");
        }
        let deep = "[".repeat(100_000);
        assert!(json_fields(&Bytes::from(format!("{{\"a\":{deep}"))).is_err());
        for (strings, ok) in [(MAX_STRINGS - 1, true), (MAX_STRINGS, false)] {
            let body = format!("{{\"a\":[{}]}}", vec!["\"\\\"\""; strings].join(","));
            assert_eq!(json_fields(&Bytes::from(body)).is_ok(), ok, "{strings}");
        }
    }

    #[test]
    fn errors_never_repeat_the_body() {
        for body in [
            r#""hunter2""#,
            r#"{"a":hunter2}"#,
            r#"{"hunter2"}"#,
            r#"["hunter2"]"#,
        ] {
            let error = json_fields(&Bytes::from_static(body.as_bytes())).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn forms_are_read_as_fields() {
        let headers = typed("application/x-www-form-urlencoded");
        let read = |body: &'static str| {
            fields(&headers, &Bytes::from_static(body.as_bytes())).map(Value::Object)
        };
        for (body, want) in [
            ("a=b&c=d&c=e", r#"{"a":"b","c":"d,e"}"#),
            ("pass+word=p%40ss%3D", r#"{"pass word":"p@ss="}"#),
            (r#"{"a":1}"#, r#"{"a":1}"#),
            ("", "{}"),
        ] {
            assert_eq!(read(body).unwrap().to_string(), want, "{body}");
        }
    }

    #[test]
    fn numbers_keep_their_digits() {
        // An exponent may be spelled in another way (`1E5` comes back as `1e+5`), its digits stay too.
        let text = r#"{"a":1234567890123456789012345,"b":1.10,"c":1.50e+5,"d":-0.0}"#;
        let parsed = json_fields(&Bytes::from_static(text.as_bytes())).unwrap();
        assert_eq!(serde_json::to_string(&parsed).unwrap(), text);
    }

    #[test]
    fn headers_that_ask_for_what_is_missing_are_refused() {
        for (name, value, ok) in [
            ("x-vault-namespace", "", true),
            ("x-vault-namespace", "root/", true),
            ("x-vault-namespace", "team", false),
            ("x-vault-wrap-ttl", "1m0s", false),
            ("x-vault-wrap-ttl", "0", true),
            ("x-vault-request", "true", true),
        ] {
            let name: http::HeaderName = name.parse().unwrap();
            let headers = HeaderMap::from_iter([(name.clone(), value.parse().unwrap())]);
            assert_eq!(check_headers(&headers).is_ok(), ok, "{name}: {value}");
        }
    }

    #[test]
    fn how_fresh_a_read_must_be() {
        let seen = |value: &str| BASE64.encode(format!(r#"{{"cluster":"c","value":{value}}}"#));
        let (text, number, word) = (seen("\"3\""), seen("3"), seen("\"x\""));
        let at = |index| Wanted {
            index: Some(("c".to_owned(), index)),
            ..Wanted::default()
        };
        let behind = |behind| Wanted {
            behind,
            ..Wanted::default()
        };
        let stale = Wanted {
            stale: true,
            ..Wanted::default()
        };
        for (name, value, want) in [
            ("x-vault-request", "true", Some(Wanted::default())),
            ("x-vault-index", "", Some(Wanted::default())),
            ("x-vault-index", "zz", None),
            ("x-vault-index", "e30=", None),
            ("x-vault-index", word.as_str(), None),
            ("x-vault-index", text.as_str(), Some(at(3))),
            ("x-vault-index", number.as_str(), Some(at(3))),
            ("x-vault-inconsistent", "fail", Some(behind(Behind::Fail))),
            (
                "x-vault-inconsistent",
                "await-state",
                Some(behind(Behind::Wait)),
            ),
            (
                "x-vault-inconsistent",
                "forward-active-node",
                Some(behind(Behind::Linearize)),
            ),
            ("x-vault-inconsistent", "x", None),
            ("x-strongroom-consistency", "stale", Some(stale)),
            (
                "x-strongroom-consistency",
                "linearizable",
                Some(Wanted::default()),
            ),
            ("x-strongroom-consistency", "Stale", None),
        ] {
            let name: http::HeaderName = name.parse().unwrap();
            let headers = HeaderMap::from_iter([(name.clone(), value.parse().unwrap())]);
            assert_eq!(wanted(&headers).ok(), want, "{name}: {value}");
        }
    }

    #[test]
    fn tokens_come_in_two_ways() {
        for (name, value, want) in [
            ("x-vault-token", "hvs.a", Some("hvs.a")),
            ("authorization", "Bearer hvs.a", Some("hvs.a")),
            ("authorization", "bearer  hvs.a ", Some("hvs.a")),
            ("authorization", "Basic hvs.a", None),
            ("authorization", "Bearer ", None),
            ("x-vault-token", "", None),
        ] {
            let name: http::HeaderName = name.parse().unwrap();
            let headers = HeaderMap::from_iter([(name.clone(), value.parse().unwrap())]);
            assert_eq!(
                token(&headers).as_deref().map(String::as_str),
                want,
                "{value:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..512), form: bool) {
            let headers = if form { typed("application/x-www-form-urlencoded") } else { HeaderMap::new() };
            // Either outcome is fine; only a panic is not.
            let _ = fields(&headers, &Bytes::from(body));
        }

        #[test]
        fn an_accepted_body_comes_back_as_it_was(number in "-?[1-9][0-9]{0,40}(\\.[0-9]{1,20})?", text: String) {
            let text = serde_json::to_string(&text).unwrap();
            let body = format!("{{\"n\":{number},\"t\":{text}}}");
            let parsed = json_fields(&Bytes::from(body.clone())).unwrap();
            prop_assert_eq!(serde_json::to_string(&parsed).unwrap(), body);
        }

        #[test]
        fn a_path_that_passes_has_no_way_up(text in "/v1/[a-z%./0-9A-F]{0,40}") {
            if let Ok(uri) = text.parse::<Uri>()
                && let Ok(path) = path(&uri)
            {
                prop_assert!(path.split('/').all(|s| s != ".." && s != "."));
                prop_assert!(!path.contains("//") && !path.starts_with('/'));
                prop_assert!(!path.chars().any(char::is_control));
            }
        }

        #[test]
        fn no_path_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let encoded: String = bytes.iter().map(|byte| format!("%{byte:02x}")).collect();
            let uri: Uri = format!("/v1/{encoded}").parse().unwrap();
            match (path(&uri), String::from_utf8(bytes)) {
                (Ok(path), Ok(text)) => prop_assert_eq!(path, text),
                (Ok(_), Err(_)) => prop_assert!(false, "invalid UTF-8 passed"),
                (Err(_), _) => {}
            }
        }
    }
}
