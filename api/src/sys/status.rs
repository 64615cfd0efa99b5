//! Health, seal, leader, members, keys; and init.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::StatusCode;
use serde_json::{Value, json};

use super::parse;
use crate::{
    core::Core,
    http::{
        error::ApiError,
        request::{self, ApiRequest},
        response::{Reply, object},
    },
    ports::{InitRequest, Node, Role},
};

/// Shares of the recovery key that Shamir's scheme over GF(256) can give out.
const MAX_SHARES: u32 = 255;

pub(super) fn seal_status(node: &dyn Node) -> Result<Reply, ApiError> {
    Ok(Reply::Plain(object(&node.seal_status())?.into()))
}

/// What anybody may ask; `initializing` is for other nodes, and only there while a cluster is being made.
pub(super) async fn initialized(node: &dyn Node) -> Result<Reply, ApiError> {
    let Some(initialized) = node.is_initialized().await else {
        let why = "the node is starting and does not know yet whether it is initialized";
        return Err(ApiError::Unavailable(why.to_owned()));
    };
    // Asked afterwards: an attempt that has succeeded goes on being told.
    Ok(Reply::Plain(
        match node.initializing().filter(|_| !initialized) {
            Some(attempt) => json!({ "initialized": initialized, "initializing": attempt }),
            None => json!({ "initialized": initialized }),
        },
    ))
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
    seal_status(node)
}

/// `sys/init`. The keys leave here once, in the answer, and are kept nowhere.
pub(super) async fn init(node: &dyn Node, api: &ApiRequest) -> Result<Reply, ApiError> {
    let status = node.seal_status();
    let wanted: InitRequest = parse(api)?;
    check_init(&wanted, &status.seal_type).map_err(ApiError::BadRequest)?;
    if status.initialized {
        return Err(ApiError::BadRequest(
            "Vault is already initialized".to_owned(),
        ));
    }
    let made = node.init(wanted).await?;
    let keys = made.recovery_keys.iter().map(|key| key.as_slice());
    let base64: Vec<String> = keys.clone().map(|key| BASE64.encode(key)).collect();
    let hex: Vec<String> = keys.map(hex::encode).collect();
    Ok(Reply::Plain(json!({
        "keys": [],
        "keys_base64": [],
        "recovery_keys": hex,
        "recovery_keys_base64": base64,
        "root_token": made.root_token.as_str(),
    })))
}

/// The rules of an initialisation with an auto-seal, in the real server's words.
fn check_init(wanted: &InitRequest, seal_type: &str) -> Result<(), String> {
    let is_given = |value: Option<u32>| value.unwrap_or(0) > 0;
    let any = |keys: &Option<Vec<String>>| keys.as_ref().is_some_and(|keys| !keys.is_empty());
    let not_applicable: Vec<&str> = [
        ("secret_shares", is_given(wanted.secret_shares)),
        ("secret_threshold", is_given(wanted.secret_threshold)),
        ("pgp_keys", any(&wanted.pgp_keys)),
    ]
    .into_iter()
    .filter_map(|(name, given)| given.then_some(name))
    .collect();
    if !not_applicable.is_empty() {
        let names = not_applicable.join(",");
        return Err(format!(
            "parameters {names} not applicable to seal type {seal_type}"
        ));
    }
    let has_root_key = wanted
        .root_token_pgp_key
        .as_ref()
        .is_some_and(|key| !key.is_empty());
    if any(&wanted.recovery_pgp_keys) || has_root_key {
        return Err(
            "encrypting recovery keys or the root token with PGP is not supported".to_owned(),
        );
    }
    let shares = wanted.recovery_shares.unwrap_or(0);
    let threshold = wanted.recovery_threshold.unwrap_or(0);
    let why = match (shares, threshold) {
        (0, _) => "shares must be at least one",
        (shares, _) if shares > MAX_SHARES => "shares must be less than 256",
        (shares, threshold) if threshold > shares => "threshold cannot be larger than shares",
        (2.., 0 | 1) => "threshold must be greater than one for multiple shares",
        (_, 0) => "threshold must be at least one",
        _ => return Ok(()),
    };
    Err(format!("invalid recovery configuration: {why}"))
}

/// `sys/health`: the body is always the same, the status says what the node is.
pub(super) fn health(node: &dyn Node, api: &ApiRequest) -> Result<Reply, ApiError> {
    let status = node.seal_status();
    let standby = !matches!(node.role(), Role::Leader) || status.sealed || !status.initialized;
    let code = |name: &str, default: StatusCode| match api.parameter(name) {
        None => Ok(default),
        Some(text) => text
            .parse::<u16>()
            .ok()
            // Below 200 is not an answer but a promise of one.
            .filter(|code| *code >= 200)
            .and_then(|code| StatusCode::from_u16(code).ok())
            .ok_or(ApiError::BadParameter),
    };
    // All are read, so that a mistake in any of them shows at once.
    let uninitialized = code("uninitcode", StatusCode::NOT_IMPLEMENTED)?;
    let sealed = code("sealedcode", StatusCode::SERVICE_UNAVAILABLE)?;
    let standby_code = code("standbycode", StatusCode::TOO_MANY_REQUESTS)?;
    let active = code("activecode", StatusCode::OK)?;
    let removed = code("removedcode", enterprise(530))?;
    let cut_off = code("haunhealthycode", enterprise(474))?;
    for unused in ["drsecondarycode", "performancestandbycode"] {
        code(unused, StatusCode::OK)?;
    }
    let standby_ok = api
        .parameter("standbyok")
        .is_some_and(|value| request::boolean(value) != Some(false));
    let is_cut_off = status.initialized && !status.sealed && !node.has_leader();
    let code = match (status.initialized, status.sealed) {
        (false, _) => uninitialized,
        (true, _) if status.removed_from_cluster => removed,
        (true, true) => sealed,
        // Whatever `standbyok` says: the node will be gone in a moment.
        (true, false) if node.is_leaving() => sealed,
        // The same: a load balancer would send it requests that it can only hold and then refuse.
        (true, false) if is_cut_off => cut_off,
        (true, false) if standby && !standby_ok => standby_code,
        (true, false) => active,
    };
    let replication = if status.initialized && !status.sealed {
        "disabled"
    } else {
        "unknown"
    };
    let mut body = object(&json!({
        "initialized": status.initialized,
        "sealed": status.sealed,
        "standby": standby,
        "performance_standby": false,
        "replication_performance_mode": replication,
        "replication_dr_mode": replication,
        "server_time_utc": node.now_ms() / 1000,
        "version": status.version,
        "enterprise": false,
        "echo_duration_ms": 0,
        "clock_skew_ms": 0,
        "replication_primary_canary_age_ms": 0,
    }))?;
    if status.removed_from_cluster {
        body.insert("removed_from_cluster".to_owned(), true.into());
    }
    if is_cut_off {
        body.insert("ha_connection_healthy".to_owned(), false.into());
    }
    if let (Some(name), Some(id)) = (status.cluster_name, status.cluster_id) {
        body.insert("cluster_name".to_owned(), name.into());
        body.insert("cluster_id".to_owned(), id.into());
    }
    Ok(Reply::Status(code, body.into()))
}

/// A code that only Vault has.
fn enterprise(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
}

pub(super) fn leader(node: &dyn Node) -> Result<Reply, ApiError> {
    if node.core().is_none() {
        return Err(ApiError::Sealed);
    }
    Ok(Reply::Plain(object(&node.leader_status())?.into()))
}

pub(super) fn ha_status(node: &dyn Node) -> Result<Reply, ApiError> {
    let (members, _) = node.members();
    let nodes: Vec<Value> = members
        .iter()
        .map(|member| {
            let mut node = json!({
                "hostname": member.hostname,
                "api_address": member.api_addr,
                "cluster_address": format!("https://{}", member.cluster_addr),
                "active_node": member.leader,
                "last_echo": member.last_echo,
                "version": member.version,
                "upgrade_version": member.upgrade_version,
            });
            if !member.redundancy_zone.is_empty()
                && let Some(node) = node.as_object_mut()
            {
                let zone = member.redundancy_zone.clone();
                node.insert("redundancy_zone".to_owned(), zone.into());
            }
            node
        })
        .collect();
    // Vault documents `Nodes`, bao sends `nodes`; Go's clients read either.
    Ok(Reply::system(object(&json!({ "nodes": nodes }))?))
}

pub(super) fn raft_configuration(node: &dyn Node) -> Result<Reply, ApiError> {
    let (members, index) = node.members();
    let servers: Vec<Value> = members
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
    Ok(Reply::data(object(
        &json!({ "config": { "servers": servers, "index": index } }),
    )?))
}

pub(super) fn key_status(core: &Core) -> Result<Reply, ApiError> {
    let status = core.storage().barrier().status();
    let installed = i64::try_from(status.install_time_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(String::new, |time| time.to_string());
    Ok(Reply::system(object(&json!({
        "term": status.term,
        "install_time": installed,
        "encryptions": status.encryptions,
    }))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_parameters_are_checked_in_the_real_servers_words() {
        let recovery = "invalid recovery configuration: ";
        for (json, want) in [
            (r#"{"recovery_shares":5,"recovery_threshold":3}"#, ""),
            (
                r#"{"recovery_shares":1,"recovery_threshold":1,"stored_shares":1}"#,
                "",
            ),
            (r#"{"recovery_shares":255,"recovery_threshold":255}"#, ""),
            (
                r#"{"recovery_shares":5,"recovery_threshold":3,"secret_shares":0,"pgp_keys":[]}"#,
                "",
            ),
            (
                r#"{"secret_shares":5,"secret_threshold":3}"#,
                "parameters secret_shares,secret_threshold not applicable to seal type pkcs11",
            ),
            (
                r#"{"recovery_shares":1,"recovery_threshold":1,"pgp_keys":["x"]}"#,
                "parameters pgp_keys not applicable to seal type pkcs11",
            ),
            ("{}", "shares must be at least one"),
            (r#"{"recovery_shares":1}"#, "threshold must be at least one"),
            (
                r#"{"recovery_shares":3,"recovery_threshold":1}"#,
                "threshold must be greater than one for multiple shares",
            ),
            (
                r#"{"recovery_shares":3}"#,
                "threshold must be greater than one for multiple shares",
            ),
            (
                r#"{"recovery_shares":1,"recovery_threshold":2}"#,
                "threshold cannot be larger than shares",
            ),
            (
                r#"{"recovery_shares":256,"recovery_threshold":3}"#,
                "shares must be less than 256",
            ),
            (
                r#"{"recovery_shares":1,"recovery_threshold":1,"recovery_pgp_keys":["k"]}"#,
                "encrypting recovery keys or the root token with PGP is not supported",
            ),
            (
                r#"{"recovery_shares":1,"recovery_threshold":1,"root_token_pgp_key":"k"}"#,
                "encrypting recovery keys or the root token with PGP is not supported",
            ),
        ] {
            let got = check_init(&serde_json::from_str(json).unwrap(), "pkcs11");
            let got = got.err().unwrap_or_default();
            assert_eq!(got.strip_prefix(recovery).unwrap_or(&got), want, "{json}");
        }
    }
}
