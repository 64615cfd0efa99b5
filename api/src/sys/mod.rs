//! `sys/…` and `auth/token/…`: what the system says of itself and lets be changed.

mod mounts;
mod status;

use serde_json::{Map, Value, json};

use crate::{
    core::Core,
    engines::Operation,
    http::{
        error::ApiError,
        request::ApiRequest,
        response::{Reply, object},
    },
    ports::Node,
    token::TokenEntry,
};

/// Endpoints that every node answers for itself, sealed or not, without a token. `None`: another kind of path.
pub(crate) async fn local(node: &dyn Node, api: &ApiRequest) -> Result<Option<Reply>, ApiError> {
    let reply = match (api.path.trim_end_matches('/'), api.operation) {
        ("sys/init", Operation::Read) => {
            Reply::Plain(json!({ "initialized": node.seal_status().initialized }))
        }
        ("sys/init", Operation::Write) => status::init(node, api).await?,
        ("sys/seal-status", Operation::Read) => status::seal_status(node),
        ("sys/health", Operation::Read) => status::health(node, api)?,
        ("sys/leader", Operation::Read) => status::leader(node)?,
        ("sys/unseal", Operation::Write) => status::unseal(node)?,
        ("sys/storage/raft/join", Operation::Write) => {
            let joined = node.join(parse(api)?).await?;
            Reply::Plain(json!({ "joined": joined }))
        }
        (
            "sys/init"
            | "sys/seal-status"
            | "sys/health"
            | "sys/leader"
            | "sys/unseal"
            | "sys/storage/raft/join",
            _,
        ) => return Err(ApiError::MethodNotAllowed),
        _ => return Ok(None),
    };
    Ok(Some(reply))
}

/// Endpoints that the leader answers without a token: a joining node has none.
pub(crate) async fn unauthenticated(
    node: &dyn Node,
    api: &ApiRequest,
) -> Result<Option<Reply>, ApiError> {
    if api.operation != Operation::Write {
        return Ok(None);
    }
    let reply = match api.path.as_str() {
        "sys/storage/raft/bootstrap/challenge" => {
            Reply::data(object(&node.join_challenge(parse(api)?).await?))
        }
        "sys/storage/raft/bootstrap/answer" => {
            Reply::data(object(&node.join_answer(parse(api)?).await?))
        }
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
    let bare = inside.trim_end_matches('/');
    match (bare, api.operation) {
        ("mounts", Operation::Read) => mounts::list(core).await,
        ("internal/ui/mounts", Operation::Read) => mounts::ui_list(core).await,
        ("auth", Operation::Read) => Ok(Reply::system(mounts::auth_table())),
        ("ha-status", Operation::Read) => Ok(status::ha_status(node)),
        ("key-status", Operation::Read) => Ok(status::key_status(core)),
        ("storage/raft/configuration", Operation::Read) => Ok(status::raft_configuration(node)),
        ("capabilities-self", Operation::Write) => capabilities_self(api),
        (
            "mounts"
            | "internal/ui/mounts"
            | "auth"
            | "ha-status"
            | "key-status"
            | "storage/raft/configuration",
            _,
        ) => Err(ApiError::MethodNotAllowed),
        _ => {
            if let Some(path) = bare.strip_prefix("internal/ui/mounts/") {
                return match api.operation {
                    Operation::Read => mounts::ui_one(core, path).await,
                    Operation::List | Operation::Write | Operation::Delete => {
                        Err(ApiError::MethodNotAllowed)
                    }
                };
            }
            match bare.strip_prefix("mounts/") {
                Some(path) => mounts::one(core, api, path).await,
                None => Err(unsupported()),
            }
        }
    }
}

/// `auth/…`; `inside` is the path below it.
pub(crate) fn auth(api: &ApiRequest, inside: &str, caller: &TokenEntry) -> Result<Reply, ApiError> {
    match (inside, api.operation) {
        ("token/lookup-self", Operation::Read | Operation::Write) => {
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
            Ok(Reply::data(object(&data)))
        }
        ("token/lookup-self", _) => Err(ApiError::MethodNotAllowed),
        _ => Err(ApiError::NoRoute(format!(
            "no handler for route \"{}\". route entry not found.",
            api.path
        ))),
    }
}

fn capabilities_self(api: &ApiRequest) -> Result<Reply, ApiError> {
    let paths: Vec<String> = match (api.fields.get("paths"), api.fields.get("path")) {
        (Some(Value::Array(paths)), _) => paths
            .iter()
            .filter_map(|path| path.as_str().map(str::to_owned))
            .collect(),
        (Some(Value::String(path)), _) | (None, Some(Value::String(path))) => vec![path.clone()],
        _ => Vec::new(),
    };
    if paths.is_empty() {
        return Err(ApiError::BadRequest("paths must be supplied".to_owned()));
    }
    // Only root tokens get here.
    let mut data = Map::new();
    data.insert("capabilities".to_owned(), json!(["root"]));
    for path in paths {
        data.insert(path, json!(["root"]));
    }
    Ok(Reply::system(data))
}

/// Vault's answer for a path that its router knows but does not serve.
pub(crate) fn unsupported() -> ApiError {
    ApiError::NoRoute("1 error occurred:\n\t* unsupported path\n\n".to_owned())
}

/// The body's fields as a typed request.
fn parse<T: serde::de::DeserializeOwned>(api: &ApiRequest) -> Result<T, ApiError> {
    let without_nulls: Map<String, Value> = api
        .fields
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    serde_json::from_value(Value::Object(without_nulls))
        .map_err(|error| ApiError::BadRequest(format!("error parsing JSON: {error}")))
}
