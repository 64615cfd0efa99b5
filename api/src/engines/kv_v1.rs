//! Key/value, version 1: one JSON object per path, the last write wins. And the cubbyhole: the same, per token.
//!
//! Stored at `logical/<mount uuid>/<path>` (cubbyhole: `logical/<mount uuid>/<salted token accessor>/<path>`) as the
//! JSON object that was sent, numbers digit by digit.
//!
//! Source: the KV version 1 API documentation; answers as recorded from the real server.

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::{Engine, EngineRequest, Operation};
use crate::{
    duration,
    http::{
        error::ApiError,
        response::{Data, Reply},
    },
    storage::Batch,
    token,
};

/// The system's default lease, seconds: 32 days.
pub(crate) const DEFAULT_LEASE: u64 = 2_764_800;

/// Secrets that every token with the right policy sees.
pub(crate) struct KvV1;

/// Secrets that only the token sees which wrote them.
pub(crate) struct Cubbyhole;

#[async_trait]
impl Engine for KvV1 {
    /// The last write wins, whoever makes it.
    fn runs_anywhere(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Write | Operation::Delete)
    }

    async fn handle(&self, request: EngineRequest<'_>) -> Result<Reply, ApiError> {
        let folder = request.mount.folder();
        handle(&request, &folder, true).await
    }
}

#[async_trait]
impl Engine for Cubbyhole {
    /// The last write wins, whoever makes it.
    fn runs_anywhere(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Write | Operation::Delete)
    }

    async fn handle(&self, request: EngineRequest<'_>) -> Result<Reply, ApiError> {
        let owner = token::salted_accessor(request.storage.barrier(), &request.caller.accessor);
        let folder = format!("{}/{owner}", request.mount.folder());
        handle(&request, &folder, false).await
    }
}

async fn handle(
    request: &EngineRequest<'_>,
    folder: &str,
    leased: bool,
) -> Result<Reply, ApiError> {
    match request.operation {
        Operation::Read => read(request, folder, leased).await,
        Operation::List => list(request, folder).await,
        Operation::Write => write(request, folder).await,
        Operation::Delete => delete(request, folder).await,
        Operation::Patch => Err(ApiError::UnsupportedOperation),
    }
}

/// Storage path of the secret, `None` for a folder: a secret has a name, and a name does not end in a slash.
fn secret_path(request: &EngineRequest<'_>, folder: &str) -> Option<String> {
    let is_folder = request.path.is_empty() || request.path.ends_with('/');
    (!is_folder).then(|| format!("{folder}/{}", request.path))
}

async fn read(request: &EngineRequest<'_>, folder: &str, leased: bool) -> Result<Reply, ApiError> {
    let path = secret_path(request, folder).ok_or(ApiError::NotFound)?;
    let entry = request
        .storage
        .get(&path)
        .await?
        .ok_or(ApiError::NotFound)?;
    let data: Map<String, Value> = serde_json::from_slice(&entry.value)
        .map_err(|_| ApiError::Internal("a stored secret is not a JSON object".to_owned()))?;
    let lease_duration = if leased {
        lease(&data).unwrap_or(match request.mount.config.default_lease_ttl {
            0 => DEFAULT_LEASE,
            seconds => seconds,
        })
    } else {
        0
    };
    Ok(Reply::Data(Data {
        data: Some(data),
        lease_duration,
        ..Data::default()
    }))
}

/// Seconds after which a reader should ask again, if the secret says so: `ttl`, or else the older `lease`.
fn lease(data: &Map<String, Value>) -> Option<u64> {
    let field = data.get("ttl").or_else(|| data.get("lease"))?;
    duration::seconds(field)
}

async fn list(request: &EngineRequest<'_>, folder: &str) -> Result<Reply, ApiError> {
    let folder = match request.path.trim_end_matches('/') {
        "" => folder.to_owned(),
        inside => format!("{folder}/{inside}"),
    };
    Reply::list(request.storage.list(&folder).await?)
}

async fn write(request: &EngineRequest<'_>, folder: &str) -> Result<Reply, ApiError> {
    let path = secret_path(request, folder)
        .ok_or_else(|| ApiError::BadRequest("missing path".to_owned()))?;
    if request.fields.is_empty() {
        return Err(ApiError::BadRequest("missing data fields".to_owned()));
    }
    let value = serde_json::to_vec(request.fields)
        .map_err(|_| ApiError::BadRequest("the data cannot be stored as JSON".to_owned()))?;
    let mut batch = Batch::default();
    batch.put(path, value, request.mount.data_layer());
    commit(request, batch).await
}

async fn delete(request: &EngineRequest<'_>, folder: &str) -> Result<Reply, ApiError> {
    let Some(path) = secret_path(request, folder) else {
        // As Vault does: a folder is no secret, so that there is nothing to delete.
        return Ok(Reply::Empty);
    };
    let mut batch = Batch::default();
    batch.delete(path);
    commit(request, batch).await
}

async fn commit(request: &EngineRequest<'_>, batch: Batch) -> Result<Reply, ApiError> {
    request
        .storage
        .commit(batch, request.request_id, request.deadline)
        .await?;
    Ok(Reply::Empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_comes_from_the_secret_if_it_names_one() {
        for (json, want) in [
            (r#"{"a":"b"}"#, None),
            (r#"{"ttl":"1h"}"#, Some(3600)),
            (r#"{"ttl":90}"#, Some(90)),
            (r#"{"lease":"3m"}"#, Some(180)),
            (r#"{"ttl":"1m","lease":"3m"}"#, Some(60)),
            (r#"{"ttl":"zz","lease":"5m"}"#, None),
            (r#"{"ttl":{"a":1}}"#, None),
            (r#"{"ttl":-1}"#, None),
        ] {
            assert_eq!(lease(&serde_json::from_str(json).unwrap()), want, "{json}");
        }
    }
}
