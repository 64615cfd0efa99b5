//! Writes that a follower carries out itself, instead of sending the whole request to the leader.
//!
//! It authenticates, routes, runs the engine and encrypts; only the finished command goes to the leader. That halves what
//! a forwarded write costs the cluster.
//!
//! Invariants
//! - What the follower looked at (token, mount table) may be old; the command carries where it was written, and is applied
//!   only if that is still so. So the decision is as good as one made on the leader at that moment.
//! - Whatever is not a plain success is decided again by the leader, on the whole request. The same id is used if the
//!   command may have been written; another one if it is known not to have been.

use std::sync::Arc;

use uuid::Uuid;

use super::{error::ApiError, request::ApiRequest, response::Answer, vault_index};
use crate::{
    core::Core,
    engines::{self, EngineRequest},
    storage::Guard,
};

/// What came of an attempt.
pub(super) enum Here {
    /// Done.
    Answered(Answer),
    /// Nothing was written under this id: have the leader do it.
    Leader,
    /// Nothing was written, and the id is used up: have the leader do it under another one.
    LeaderUnderAnotherId,
    /// It may be applied: have the leader do it under the same id.
    Unknown,
}

/// Carries the write out if its engine says that a follower can.
pub(super) async fn attempt(core: &Core, api: &ApiRequest) -> Here {
    match run(core, api).await {
        Ok(Some(answer)) => Here::Answered(answer),
        Ok(None) => Here::Leader,
        Err(Failed::Overtaken) => Here::LeaderUnderAnotherId,
        Err(Failed::With(ApiError::OutcomeUnknown | ApiError::Internal(_))) => Here::Unknown,
        // What is wrong here may be right where the newest state is.
        Err(Failed::With(_)) => Here::Leader,
    }
}

/// The id for what failed under `id` because a follower had been overtaken: always the same one for the same id, since a
/// client may repeat its request, to any node.
pub(super) fn another_id(id: [u8; 16]) -> [u8; 16] {
    id.map(|byte| !byte)
}

enum Failed {
    Overtaken,
    With(ApiError),
}

impl<E: Into<ApiError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::With(error.into())
    }
}

async fn run(core: &Core, api: &ApiRequest) -> Result<Option<Answer>, Failed> {
    let is_engines = !api.path.starts_with("sys/") && !api.path.starts_with("auth/");
    if !is_engines || api.path.ends_with('/') || api.parameter("help").is_some() {
        return Ok(None);
    }
    let storage = core.storage();
    let Some(token) = &api.token else {
        return Ok(None);
    };
    let Some(caller) = core.tokens().lookup(storage, token).await? else {
        return Ok(None);
    };
    if !caller.entry.is_root() {
        return Ok(None);
    }
    let table = core.mounts().current(storage).await?;
    let found = table.route(&api.path).filter(|(mount, _)| !mount.tainted);
    let Some((mount, path)) = found else {
        return Ok(None);
    };
    let engine = engines::engine(&mount.kind).filter(|(_, e)| e.runs_anywhere(api.operation));
    let Some((_, engine)) = engine else {
        return Ok(None);
    };
    let guard = Arc::new(Guard::new(vec![
        (caller.stored_key.to_vec(), caller.mod_index),
        (core.mounts().version_key(storage)?.to_vec(), table.version),
    ]));
    let handled = engine
        .handle(EngineRequest {
            operation: api.operation,
            path,
            fields: &api.fields,
            mount,
            caller: &caller.entry,
            storage: &storage.guarded(Arc::clone(&guard)),
            request_id: api.request_id,
            deadline: api.deadline,
        })
        .await;
    if guard.was_overtaken() {
        return Err(Failed::Overtaken);
    }
    match (guard.committed(), &handled) {
        // Without a command nothing has checked what was looked at.
        (0, Ok(_)) => return Ok(None),
        (0, Err(_)) | (_, Ok(_)) => {}
        // Written, and something failed afterwards.
        (_, Err(_)) => return Err(ApiError::OutcomeUnknown.into()),
    }
    let mut answer = Answer::of(handled?, &Uuid::from_bytes(api.request_id).to_string());
    // This node may not have applied the write yet; whoever waits for the index waits for it.
    let index = guard.committed().max(storage.applied());
    if let Some(value) = vault_index(core, index) {
        answer.headers.insert("x-vault-index", value);
    }
    Ok(Some(answer))
}
