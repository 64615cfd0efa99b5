//! Key/value, version 1: one JSON object per path, the last write wins.
//!
//! Stored at `logical/<mount uuid>/<path>` as the JSON object that was sent, numbers digit by digit.
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
};

/// The system's default lease, seconds: 32 days.
const DEFAULT_LEASE: u64 = 2_764_800;

/// See the module.
pub(crate) struct KvV1;

#[async_trait]
impl Engine for KvV1 {
    async fn handle(&self, request: EngineRequest<'_>) -> Result<Reply, ApiError> {
        match request.operation {
            Operation::Read => read(&request).await,
            Operation::List => list(&request),
            Operation::Write => write(&request).await,
            Operation::Delete => delete(&request).await,
        }
    }
}

/// Storage path of the secret; a secret has a name, and a name does not end in a slash.
fn secret_path(request: &EngineRequest<'_>) -> Result<String, ApiError> {
    if request.path.is_empty() || request.path.ends_with('/') {
        return Err(ApiError::MethodNotAllowed);
    }
    Ok(format!("{}/{}", request.mount.folder(), request.path))
}

async fn read(request: &EngineRequest<'_>) -> Result<Reply, ApiError> {
    let path = secret_path(request)?;
    let entry = request
        .storage
        .get(&path)
        .await?
        .ok_or(ApiError::NotFound)?;
    let data: Map<String, Value> = serde_json::from_slice(&entry.value)
        .map_err(|_| ApiError::Internal("a stored secret is not a JSON object".to_owned()))?;
    let default = match request.mount.config.default_lease_ttl {
        0 => DEFAULT_LEASE,
        seconds => seconds,
    };
    // `ttl` wins over the older `lease`; what does not parse is just data.
    let lease_duration = ["ttl", "lease"]
        .iter()
        .find_map(|field| data.get(*field))
        .and_then(duration::seconds)
        .unwrap_or(default);
    Ok(Reply::Data(Data {
        data: Some(data),
        lease_duration,
        ..Data::default()
    }))
}

fn list(request: &EngineRequest<'_>) -> Result<Reply, ApiError> {
    let folder = request.path.trim_end_matches('/');
    let folder = if folder.is_empty() {
        request.mount.folder()
    } else {
        format!("{}/{folder}", request.mount.folder())
    };
    Reply::list(request.storage.list(&folder)?)
}

async fn write(request: &EngineRequest<'_>) -> Result<Reply, ApiError> {
    let path = secret_path(request)?;
    if request.fields.is_empty() {
        return Err(ApiError::BadRequest("missing data fields".to_owned()));
    }
    let value = serde_json::to_vec(request.fields)
        .map_err(|_| ApiError::BadRequest("the data cannot be stored as JSON".to_owned()))?;
    let mut batch = Batch::default();
    batch.put(path, value, request.mount.data_layer());
    commit(request, batch).await
}

async fn delete(request: &EngineRequest<'_>) -> Result<Reply, ApiError> {
    let mut batch = Batch::default();
    batch.delete(secret_path(request)?);
    commit(request, batch).await
}

async fn commit(request: &EngineRequest<'_>, batch: Batch) -> Result<Reply, ApiError> {
    request
        .storage
        .commit(batch, request.request_id, request.deadline)
        .await?;
    Ok(Reply::Empty)
}
