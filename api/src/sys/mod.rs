//! `sys/…` and `auth/token/…`: what the system says of itself and lets be changed.

mod cluster;
pub(crate) mod metrics;
mod mount_fields;
mod mounts;
pub mod snapshot_auto;
mod status;

use serde_json::{Map, Value, json};

use crate::{
    core::Core,
    engines::Operation,
    http::{
        error::ApiError,
        request::{self, ApiRequest},
        response::{Reply, object},
    },
    ports::{AnswerRequest, ChallengeRequest, Node, PeerChange},
    token::TokenEntry,
};

const CHALLENGE: &str = "sys/storage/raft/bootstrap/challenge";
const ANSWER: &str = "sys/storage/raft/bootstrap/answer";
const STEP_DOWN: &str = "sys/step-down";
const UI_MOUNTS: &str = "sys/internal/ui/mounts";

/// Whether every node answers `path` for itself, sealed or not, without a token.
pub(crate) fn is_local(path: &str) -> bool {
    matches!(
        path,
        "sys/init"
            | "sys/seal-status"
            | "sys/health"
            | "sys/leader"
            | "sys/unseal"
            | "sys/storage/raft/join"
    )
}

/// Endpoints for which [`is_local`] holds.
pub(crate) async fn local(node: &dyn Node, api: &ApiRequest) -> Result<Reply, ApiError> {
    match (api.path.as_str(), api.operation) {
        ("sys/init", Operation::Read) => status::initialized(node).await,
        ("sys/init", Operation::Write) => status::init(node, api).await,
        ("sys/seal-status", Operation::Read) => status::seal_status(node),
        ("sys/health", Operation::Read) => status::health(node, api),
        ("sys/leader", Operation::Read) => status::leader(node),
        ("sys/unseal", Operation::Write) => status::unseal(node),
        ("sys/storage/raft/join", Operation::Write) => {
            let joined = node.join(parse(api)?).await?;
            Ok(Reply::Plain(json!({ "joined": joined })))
        }
        _ => Err(ApiError::MethodNotAllowed),
    }
}

/// What only the leader knows: how the members are. Asked for anywhere, it is answered there, so that all say the same.
const LEADERS: [&str; 3] = [
    "sys/ha-status",
    "sys/storage/raft/configuration",
    "sys/storage/raft/autopilot/state",
];

/// Whether the request changes nothing and any node may answer it, whatever its method.
pub(crate) fn only_reads(api: &ApiRequest) -> bool {
    !api.operation.is_write() && !LEADERS.contains(&api.path.as_str())
        || (api.operation == Operation::Write
            && matches!(
                api.path.as_str(),
                "auth/token/lookup-self" | "sys/capabilities-self"
            ))
}

/// Whether carrying the request out again, under the same id, gives what carrying it out once gives.
///
/// Changes of storage do, by their id. A join gives out a Raft id that is never used twice: the joiner starts over
/// with a new challenge. A step-down carried out twice would make the next leader step down too.
pub(crate) fn may_be_repeated(api: &ApiRequest) -> bool {
    api.path != ANSWER && api.path != STEP_DOWN
}

/// Endpoints that need no token: a joining node has none, and the login page has none yet.
pub(crate) async fn unauthenticated(
    node: &dyn Node,
    core: &Core,
    api: &ApiRequest,
) -> Result<Option<Reply>, ApiError> {
    let reply = match (api.path.as_str(), api.operation) {
        (CHALLENGE, Operation::Write) => {
            let request: ChallengeRequest = parse(api)?;
            Reply::data(object(&node.join_challenge(request).await?)?)
        }
        (ANSWER, Operation::Write) => {
            let request: AnswerRequest = parse(api)?;
            Reply::data(object(&node.join_answer(request).await?)?)
        }
        (UI_MOUNTS, Operation::Read) if api.token.is_none() => mounts::ui_visible(core).await?,
        _ => return Ok(None),
    };
    Ok(Some(reply))
}

/// Everything else under `sys/`; `inside` is the path below it. The caller is authorised.
pub(crate) async fn handle(
    node: &dyn Node,
    core: &Core,
    api: &ApiRequest,
    inside: &str,
) -> Result<Reply, ApiError> {
    if let Some(path) = inside.strip_prefix("storage/raft/snapshot-auto/") {
        return snapshot_auto::handle(core, api, path).await;
    }
    if let Some(path) = inside.strip_prefix("internal/ui/mounts/") {
        return match api.operation {
            Operation::Read if !path.is_empty() => mounts::ui_one(core, path).await,
            Operation::Read | Operation::List => Err(unsupported()),
            Operation::Write | Operation::Patch | Operation::Delete => {
                Err(ApiError::UnsupportedOperation)
            }
        };
    }
    if let Some(path) = inside
        .strip_prefix("mounts/")
        .filter(|path| !path.is_empty())
    {
        return mounts::one(core, api, path).await;
    }
    match (inside, api.operation) {
        ("mounts", Operation::Read) => mounts::list(core).await,
        ("internal/ui/mounts", Operation::Read) => mounts::ui_list(core).await,
        ("auth", Operation::Read) => Ok(Reply::system(mounts::auth_table(core))),
        ("auth/token", Operation::Read) => Ok(Reply::system(mounts::token_mount(core))),
        ("ha-status", Operation::Read) => status::ha_status(node),
        ("key-status", Operation::Read) => status::key_status(core),
        ("storage/raft/configuration", Operation::Read) => status::raft_configuration(node),
        ("step-down", Operation::Write) => cluster::step_down(node, api).await,
        ("storage/raft/remove-peer", Operation::Write) => {
            cluster::change_peer(node, api, PeerChange::Remove).await
        }
        ("storage/raft/promote", Operation::Write) => {
            cluster::change_peer(node, api, PeerChange::Promote).await
        }
        ("storage/raft/demote", Operation::Write) => {
            cluster::change_peer(node, api, PeerChange::Demote).await
        }
        ("storage/raft/autopilot/configuration", Operation::Read) => {
            cluster::autopilot_config(core).await
        }
        ("storage/raft/autopilot/configuration", Operation::Write) => {
            cluster::set_autopilot_config(node, core, api).await
        }
        ("storage/raft/autopilot/state", Operation::Read) => cluster::autopilot_state(node),
        ("capabilities-self", Operation::Write) => capabilities_self(api),
        (
            "mounts"
            | "auth"
            | "auth/token"
            | "ha-status"
            | "key-status"
            | "capabilities-self"
            | "storage/raft/configuration"
            | "storage/raft/remove-peer"
            | "storage/raft/promote"
            | "storage/raft/demote"
            | "storage/raft/autopilot/configuration"
            | "storage/raft/autopilot/state"
            | "step-down"
            | "internal/ui/mounts",
            Operation::Read | Operation::Write | Operation::Patch | Operation::Delete,
        ) => Err(ApiError::UnsupportedOperation),
        _ => Err(unsupported()),
    }
}

/// `auth/…`; `inside` is the path below it.
pub(crate) fn auth(api: &ApiRequest, inside: &str, caller: &TokenEntry) -> Result<Reply, ApiError> {
    match (inside, api.operation) {
        ("token/lookup-self", Operation::Read | Operation::Write) => lookup_self(api, caller),
        ("token/lookup-self", Operation::Delete | Operation::Patch) => {
            Err(ApiError::UnsupportedOperation)
        }
        _ if inside.starts_with("token/") => Err(unsupported()),
        _ => Err(no_handler(&api.path)),
    }
}

fn lookup_self(api: &ApiRequest, caller: &TokenEntry) -> Result<Reply, ApiError> {
    let token = api.token.as_ref().map_or("", |token| token.as_str());
    let data = json!({
        "accessor": caller.accessor,
        "creation_time": caller.creation_time,
        "creation_ttl": caller.creation_ttl,
        "display_name": caller.display_name,
        "entity_id": "",
        "expire_time": null,
        "explicit_max_ttl": 0,
        "id": token,
        "meta": null,
        "num_uses": caller.num_uses,
        "orphan": caller.orphan,
        "path": caller.path,
        "policies": caller.policies,
        "ttl": caller.creation_ttl,
        "type": "service",
    });
    Ok(Reply::data(object(&data)?))
}

fn capabilities_self(api: &ApiRequest) -> Result<Reply, ApiError> {
    let given = api.fields.get("paths").or_else(|| api.fields.get("path"));
    let paths: Vec<&str> = match given {
        Some(Value::Array(paths)) => paths.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(paths)) => paths.split(',').map(str::trim).collect(),
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => {
            Vec::new()
        }
    };
    if paths.iter().all(|path| path.is_empty()) {
        return Err(ApiError::BadRequest("paths must be supplied".to_owned()));
    }
    // Only root tokens get here.
    let mut data = Map::new();
    if paths.len() == 1 {
        data.insert("capabilities".to_owned(), json!(["root"]));
    }
    for path in paths {
        data.insert(path.to_owned(), json!(["root"]));
    }
    Ok(Reply::system(data))
}

/// Vault's answer for a path that its router knows but does not serve.
pub(crate) fn unsupported() -> ApiError {
    ApiError::NoRoute("1 error occurred:\n\t* unsupported path\n\n".to_owned())
}

/// Vault's answer for a path that lies in no mount.
pub(crate) fn no_handler(path: &str) -> ApiError {
    ApiError::NoRoute(format!(
        "no handler for route \"{path}\". route entry not found."
    ))
}

/// The body's fields as a typed request; `null` is as good as absent.
fn parse<T: serde::de::DeserializeOwned>(api: &ApiRequest) -> Result<T, ApiError> {
    let without_nulls: Map<String, Value> = api
        .fields
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    // serde's own text would repeat the value that does not fit.
    serde_json::from_value(Value::Object(without_nulls))
        .map_err(|_| request::bad_json("a field is missing or of the wrong type"))
}
