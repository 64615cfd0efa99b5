//! `sys/metrics`: every node about itself, for Prometheus or as JSON.
//!
//! Invariants
//! - It works while the cluster does not: it never waits long for a leader. A token that this node does not know to be
//!   revoked is enough then, and only for this.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::{
    core::Core,
    engines::Operation,
    http::{error::ApiError, request, response::Answer},
    ports::{MetricsFormat, Node},
};

/// The one path.
pub(crate) const PATH: &str = "sys/metrics";
/// How long a leader is waited for before the node's own state decides about a token.
const PATIENCE: Duration = Duration::from_millis(500);

/// Who may read the figures on a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetricsAccess {
    /// Who has a token that may.
    #[default]
    Token,
    /// Everybody: `unauthenticated_metrics_access`.
    Everybody,
    /// Nobody: `disallow_metrics`.
    Nobody,
}

/// The answer on a listener where `access` holds.
pub(crate) async fn answer(
    node: &dyn Node,
    core: Option<&Core>,
    access: MetricsAccess,
    operation: Operation,
    headers: &HeaderMap,
    query: &[(String, String)],
) -> Result<Answer, ApiError> {
    match access {
        MetricsAccess::Everybody => {}
        MetricsAccess::Nobody => return Err(super::unsupported()),
        MetricsAccess::Token => authorise(core.ok_or(ApiError::Sealed)?, headers).await?,
    }
    if operation != Operation::Read {
        return Err(ApiError::UnsupportedOperation);
    }
    let Some(format) = format(headers, query) else {
        let asked = query.iter().find(|(key, _)| key == "format");
        let asked = asked.map_or("", |(_, value)| value);
        let why = format!("metric response format {asked:?} unknown");
        return Ok(text(StatusCode::BAD_REQUEST, "text/plain", why));
    };
    Ok(match (node.metrics(format), format) {
        (None, _) => {
            let why = "prometheus is not enabled".to_owned();
            text(StatusCode::BAD_REQUEST, "text/plain", why)
        }
        (Some(body), MetricsFormat::Prometheus) => text(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            body,
        ),
        (Some(body), MetricsFormat::Json) => text(StatusCode::OK, "application/json", body),
    })
}

async fn authorise(core: &Core, headers: &HeaderMap) -> Result<(), ApiError> {
    request::check_headers(headers)?;
    let token = request::token(headers).ok_or(ApiError::Denied)?;
    // Without a leader the figures are needed most.
    drop(core.storage().linearize(Instant::now() + PATIENCE).await);
    let caller = core
        .tokens()
        .lookup(core.storage(), &token)
        .await?
        .ok_or(ApiError::Denied)?;
    if caller.entry.is_root() {
        Ok(())
    } else {
        Err(ApiError::Denied)
    }
}

/// As Vault decides it; `None`: an unknown one.
fn format(headers: &HeaderMap, query: &[(String, String)]) -> Option<MetricsFormat> {
    let asked = query.iter().find(|(key, _)| key == "format");
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    match asked.map_or("", |(_, value)| value.as_str()) {
        "prometheus" => Some(MetricsFormat::Prometheus),
        "" if accept.starts_with("application/openmetrics-text")
            || accept == "prometheus/telemetry" =>
        {
            Some(MetricsFormat::Prometheus)
        }
        "" => Some(MetricsFormat::Json),
        _ => None,
    }
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Answer::empty(status);
    answer.header(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.body = body.into();
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_goes_before_the_accept_header() {
        use MetricsFormat::{Json, Prometheus};
        for (query, accept, want) in [
            (None, None, Some(Json)),
            (Some(""), None, Some(Json)),
            (Some("prometheus"), None, Some(Prometheus)),
            (Some("xml"), None, None),
            (Some("xml"), Some("prometheus/telemetry"), None),
            (None, Some("prometheus/telemetry"), Some(Prometheus)),
            (
                None,
                Some("application/openmetrics-text;version=1.0.0,*/*"),
                Some(Prometheus),
            ),
            (None, Some("application/json"), Some(Json)),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            }
            let query: Vec<_> = query
                .map(|format| ("format".to_owned(), format.to_owned()))
                .into_iter()
                .collect();
            assert_eq!(format(&headers, &query), want, "{query:?} {accept:?}");
        }
    }
}
