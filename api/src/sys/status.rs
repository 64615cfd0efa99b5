//! Health, seal, leader, members, keys; and init.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::StatusCode;
use serde_json::json;
use zeroize::Zeroizing;

use super::parse;
use crate::{
    core::Core,
    http::{
        error::ApiError,
        request::ApiRequest,
        response::{Reply, object},
    },
    ports::{InitRequest, Node, Role},
};

pub(super) fn seal_status(node: &dyn Node) -> Reply {
    Reply::Plain(serde_json::to_value(node.seal_status()).unwrap_or_default())
}

/// Unsealing by hand: there is nothing to do on a node that unseals itself, and nothing anybody could do.
pub(super) fn unseal(node: &dyn Node) -> Result<Reply, ApiError> {
    let status = node.seal_status();
    if !status.initialized {
        return Err(ApiError::BadRequest(
            "server is not yet initialized".to_owned(),
        ));
    }
    if status.sealed {
        return Err(ApiError::BadRequest(format!(
            "this node unseals itself with its HSM and takes no unseal keys; it is sealed because: {}",
            status.warnings.join("; ")
        )));
    }
    Ok(seal_status(node))
}

pub(super) async fn init(node: &dyn Node, api: &ApiRequest) -> Result<Reply, ApiError> {
    if node.seal_status().initialized {
        return Err(ApiError::BadRequest(
            "Vault is already initialized".to_owned(),
        ));
    }
    let request: InitRequest = parse(api)?;
    let refused = |why: &str| Err(ApiError::BadRequest(why.to_owned()));
    let given = |value: Option<u32>| value.unwrap_or(0) > 0;
    if given(request.secret_shares) || given(request.secret_threshold) {
        return refused(
            "parameters secret_shares,secret_threshold not applicable to seal type pkcs11",
        );
    }
    if request
        .pgp_keys
        .as_ref()
        .is_some_and(|keys| !keys.is_empty())
    {
        return refused("parameters pgp_keys not applicable to seal type pkcs11");
    }
    let pgp = request
        .recovery_pgp_keys
        .as_ref()
        .is_some_and(|keys| !keys.is_empty())
        || request
            .root_token_pgp_key
            .as_ref()
            .is_some_and(|key| !key.is_empty());
    if pgp {
        return refused("encrypting recovery keys or the root token with PGP is not supported");
    }
    let made = node.init(request).await?;
    let hex: Vec<Zeroizing<String>> = made
        .recovery_keys
        .iter()
        .map(|key| Zeroizing::new(hex::encode(key.as_slice())))
        .collect();
    let base64: Vec<Zeroizing<String>> = made
        .recovery_keys
        .iter()
        .map(|key| Zeroizing::new(BASE64.encode(key.as_slice())))
        .collect();
    let text = |keys: &[Zeroizing<String>]| -> Vec<String> {
        keys.iter().map(|key| key.to_string()).collect()
    };
    Ok(Reply::Plain(json!({
        "keys": [],
        "keys_base64": [],
        "recovery_keys": text(&hex),
        "recovery_keys_base64": text(&base64),
        "root_token": made.root_token.as_str(),
    })))
}

/// `sys/health`: the body is always the same, the status says what the node is.
pub(super) fn health(node: &dyn Node, api: &ApiRequest) -> Result<Reply, ApiError> {
    let status = node.seal_status();
    let standby = !matches!(node.role(), Role::Leader);
    let code = |name: &str, default: u16| -> Result<StatusCode, ApiError> {
        match api.parameter(name) {
            None => Ok(default),
            Some(text) => text
                .parse::<u16>()
                .map_err(|_| ApiError::BadRequest(format!("invalid value for {name}"))),
        }
        .and_then(|code| {
            StatusCode::from_u16(code)
                .ok()
                .filter(|code| code.as_u16() >= 200)
                .ok_or_else(|| ApiError::BadRequest(format!("invalid value for {name}")))
        })
    };
    // All are read, so that a mistake in any of them shows at once.
    let uninitialized = code("uninitcode", 501)?;
    let sealed = code("sealedcode", 503)?;
    let standby_code = code("standbycode", 429)?;
    let active = code("activecode", 200)?;
    for unused in [
        "drsecondarycode",
        "performancestandbycode",
        "haunhealthycode",
        "removedcode",
    ] {
        code(unused, 200)?;
    }
    let standby_ok = api
        .parameter("standbyok")
        .is_some_and(|value| !matches!(value, "false" | "0" | "f"));
    let code = match (status.initialized, status.sealed) {
        (false, _) => uninitialized,
        (true, true) => sealed,
        (true, false) if standby && !standby_ok => standby_code,
        (true, false) => active,
    };
    let mut body = object(&json!({
        "initialized": status.initialized,
        "sealed": status.sealed,
        "standby": standby,
        "performance_standby": false,
        "replication_performance_mode": "disabled",
        "replication_dr_mode": "disabled",
        "server_time_utc": node.now_ms() / 1000,
        "version": status.version,
        "enterprise": false,
        "echo_duration_ms": 0,
        "clock_skew_ms": 0,
        "replication_primary_canary_age_ms": 0,
    }));
    if let (Some(name), Some(id)) = (status.cluster_name, status.cluster_id) {
        body.insert("cluster_name".to_owned(), name.into());
        body.insert("cluster_id".to_owned(), id.into());
    }
    Ok(Reply::Status(code, body.into()))
}

pub(super) fn leader(node: &dyn Node) -> Result<Reply, ApiError> {
    if node.core().is_none() {
        return Err(ApiError::Sealed);
    }
    Ok(Reply::Plain(
        serde_json::to_value(node.leader_status()).unwrap_or_default(),
    ))
}

pub(super) fn ha_status(node: &dyn Node) -> Reply {
    let (members, _) = node.members();
    let nodes: Vec<_> = members
        .iter()
        .map(|member| {
            json!({
                "hostname": member.hostname,
                "api_address": member.api_addr,
                "cluster_address": format!("https://{}", member.cluster_addr),
                "active_node": member.leader,
                "last_echo": member.last_echo,
                "version": member.version,
                "upgrade_version": member.version,
            })
        })
        .collect();
    Reply::system(object(&json!({ "nodes": nodes })))
}

pub(super) fn raft_configuration(node: &dyn Node) -> Reply {
    let (members, index) = node.members();
    let servers: Vec<_> = members
        .iter()
        .map(|member| {
            json!({
                "node_id": member.name,
                "address": member.cluster_addr,
                "leader": member.leader,
                "protocol_version": "3",
                "voter": member.voter,
            })
        })
        .collect();
    Reply::data(object(
        &json!({ "config": { "servers": servers, "index": index } }),
    ))
}

pub(super) fn key_status(core: &Core) -> Reply {
    let status = core.storage().barrier().status();
    let installed = i64::try_from(status.install_time_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(String::new, |time| time.to_string());
    Reply::system(object(&json!({
        "term": status.term,
        "install_time": installed,
        "encryptions": status.encryptions,
    })))
}
