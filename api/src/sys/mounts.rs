//! `sys/mounts`: enable, list, tune and disable engines.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value, json};

use crate::{
    core::Core,
    duration,
    engines::Operation,
    http::{
        error::ApiError,
        request::ApiRequest,
        response::{Data, Reply, object},
    },
    mounts::{Change, Mount, MountConfig, MountError, MountTable},
    storage::Batch,
};

/// Longest mount path, bytes.
const MAX_PATH: usize = 512;
/// Stored keys removed per command when a mount's data goes.
const REMOVE_BATCH: usize = 500;
/// First segments that mounts may not take.
const RESERVED: [&str; 5] = ["sys", "auth", "cubbyhole", "identity", "audit"];

pub(super) async fn list(core: &Core) -> Result<Reply, ApiError> {
    let table = core.mounts().current(core.storage()).await?;
    Ok(Reply::system(secret_mounts(&table)))
}

pub(super) async fn ui_list(core: &Core) -> Result<Reply, ApiError> {
    let table = core.mounts().current(core.storage()).await?;
    Ok(Reply::data(object(
        &json!({ "auth": auth_table(), "secret": secret_mounts(&table) }),
    )))
}

/// The mount that a path lies in, as the CLI asks before every `kv` command.
pub(super) async fn ui_one(core: &Core, path: &str) -> Result<Reply, ApiError> {
    let table = core.mounts().current(core.storage()).await?;
    let found = table.route(path).filter(|(mount, _)| !mount.tainted);
    let Some((mount, _)) = found else {
        return Err(ApiError::DeniedBecause(format!(
            "preflight capability check returned 403, please ensure client's policies grant access to path \"{path}/\""
        )));
    };
    let mut data = described(mount);
    data.insert("path".to_owned(), mount.path.clone().into());
    Ok(Reply::data(data))
}

/// `sys/mounts/PATH` and `sys/mounts/PATH/tune`.
pub(super) async fn one(core: &Core, api: &ApiRequest, path: &str) -> Result<Reply, ApiError> {
    if let Some(path) = path.strip_suffix("/tune") {
        return match api.operation {
            Operation::Read => tuning(core, path).await,
            Operation::Write => tune(core, api, path).await,
            Operation::List | Operation::Delete => Err(ApiError::MethodNotAllowed),
        };
    }
    match api.operation {
        Operation::Read => {
            let table = core.mounts().current(core.storage()).await?;
            Ok(Reply::system(described(find(&table, path)?)))
        }
        Operation::Write => enable(core, api, path).await,
        Operation::Delete => disable(core, api, path).await,
        Operation::List => Err(ApiError::MethodNotAllowed),
    }
}

/// The only auth method there is.
pub(super) fn auth_table() -> Map<String, Value> {
    let token = json!({
        "accessor": "auth_token",
        "config": {
            "default_lease_ttl": 0,
            "force_no_cache": false,
            "max_lease_ttl": 0,
            "token_type": "default-service",
        },
        "description": "token based credentials",
        "external_entropy_access": false,
        "local": false,
        "options": null,
        "plugin_version": "",
        "running_plugin_version": running_version(),
        "running_sha256": "",
        "seal_wrap": false,
        "type": "token",
        "uuid": "",
    });
    let mut table = Map::new();
    table.insert("token/".to_owned(), token);
    table
}

async fn enable(core: &Core, api: &ApiRequest, path: &str) -> Result<Reply, ApiError> {
    let path = checked_path(path)?;
    let mount = requested(&path, &api.fields)?;
    let decide = |table: &MountTable| match table.conflict(&path) {
        None => Ok(Some((mount.clone(), Change::Write))),
        Some(existing) => Err(MountError::Refused(format!(
            "path is already in use at {}",
            existing.path
        ))),
    };
    core.mounts()
        .change(core.storage(), api.request_id, api.deadline, decide)
        .await?;
    tracing::info!(kind = %mount.kind, seal_wrap = mount.seal_wrap, "an engine was enabled");
    Ok(Reply::Empty)
}

/// Takes the mount out of routing, removes its data in batches, then the mount itself. Cut off in between, the mount
/// stays out of routing and the same request goes on.
async fn disable(core: &Core, api: &ApiRequest, path: &str) -> Result<Reply, ApiError> {
    if is_reserved(path) {
        let bare = path.trim_end_matches('/');
        return Err(ApiError::BadRequest(format!("cannot unmount \"{bare}/\"")));
    }
    let path = checked_path(path)?;
    let change = |to: Change| {
        let path = path.clone();
        move |table: &MountTable| {
            let Some(mount) = table.mounts.get(&path) else {
                return Ok(None);
            };
            let mut mount = Mount::clone(mount);
            if to == Change::Write && mount.tainted {
                return Ok(None);
            }
            mount.tainted = true;
            Ok(Some((mount, to)))
        }
    };
    let (storage, mounts) = (core.storage(), core.mounts());
    mounts
        .change(storage, api.request_id, api.deadline, change(Change::Write))
        .await?;
    let table = mounts.current(storage).await?;
    let Some(mount) = table.mounts.get(&path) else {
        return Ok(Reply::Empty);
    };
    remove_data(core, api, mount).await?;
    let id = uuid::Uuid::new_v4().into_bytes();
    mounts
        .change(storage, id, api.deadline, change(Change::Remove))
        .await?;
    tracing::info!(kind = %mount.kind, "an engine was disabled");
    Ok(Reply::Empty)
}

async fn remove_data(core: &Core, api: &ApiRequest, mount: &Mount) -> Result<(), ApiError> {
    loop {
        let keys = core.storage().stored_keys(&mount.folder(), REMOVE_BATCH)?;
        if keys.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        for key in keys {
            batch.delete_stored(key.to_vec());
        }
        let id = uuid::Uuid::new_v4().into_bytes();
        core.storage().commit(batch, id, api.deadline).await?;
    }
}

async fn tuning(core: &Core, path: &str) -> Result<Reply, ApiError> {
    let table = core.mounts().current(core.storage()).await?;
    let mount = find(&table, path)?;
    let mut data = config_json(&mount.config);
    data.insert("description".to_owned(), mount.description.clone().into());
    if let Some(options) = &mount.options {
        data.insert("options".to_owned(), json!(options));
    }
    Ok(Reply::system(data))
}

async fn tune(core: &Core, api: &ApiRequest, path: &str) -> Result<Reply, ApiError> {
    let with_slash = format!("{}/", path.trim_end_matches('/'));
    let mut warnings = Vec::new();
    if api.fields.contains_key("seal_wrap") {
        warnings.push("seal_wrap cannot be changed after the mount was enabled".to_owned());
    }
    let decide = |table: &MountTable| {
        let Some(mount) = table.mounts.get(&with_slash).filter(|mount| !mount.tainted) else {
            return Err(MountError::Refused(format!(
                "tune of path \"{with_slash}\" failed: no mount entry found"
            )));
        };
        let mut mount = Mount::clone(mount);
        let refuse = |error: ApiError| MountError::Refused(error.to_string());
        apply_config(&mut mount.config, &api.fields).map_err(refuse)?;
        if let Some(Value::String(description)) = api.fields.get("description") {
            mount.description.clone_from(description);
        }
        if let Some(given) = options(&api.fields).map_err(refuse)? {
            let mut merged = mount.options.take().unwrap_or_default();
            merged.extend(given);
            check_options(&mount.kind, &merged).map_err(refuse)?;
            mount.options = Some(merged);
        }
        Ok(Some((mount, Change::Write)))
    };
    core.mounts()
        .change(core.storage(), api.request_id, api.deadline, decide)
        .await?;
    if warnings.is_empty() {
        return Ok(Reply::Empty);
    }
    Ok(Reply::Data(Data {
        warnings,
        ..Data::default()
    }))
}

fn find<'t>(table: &'t MountTable, path: &str) -> Result<&'t Arc<Mount>, ApiError> {
    table
        .mounts
        .get(&format!("{}/", path.trim_end_matches('/')))
        .filter(|mount| !mount.tainted)
        .ok_or_else(|| {
            ApiError::BadRequest(format!(
                "No secret engine mount at {}/",
                path.trim_end_matches('/')
            ))
        })
}

fn is_reserved(path: &str) -> bool {
    let first = path.split('/').next().unwrap_or_default();
    RESERVED.contains(&first)
}

/// The mount path with exactly one trailing slash.
fn checked_path(path: &str) -> Result<String, ApiError> {
    let bare = path.trim_matches('/');
    let bad = |why: String| Err(ApiError::BadRequest(why));
    if bare.is_empty() || bare.len() > MAX_PATH {
        return bad(format!("a mount path has 1 to {MAX_PATH} bytes"));
    }
    if bare.split('/').any(str::is_empty) || bare.chars().any(char::is_whitespace) {
        return bad("a mount path has no empty segment and no white space".to_owned());
    }
    if is_reserved(bare) {
        return bad(format!(
            "path '{bare}/' is reserved and cannot be mounted on"
        ));
    }
    Ok(format!("{bare}/"))
}

/// The mount a request asks for.
fn requested(path: &str, fields: &Map<String, Value>) -> Result<Mount, ApiError> {
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let flag = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(flag)) if matches!(flag.as_str(), "true" | "1") => Ok(true),
        Some(Value::String(flag)) if matches!(flag.as_str(), "false" | "0" | "") => Ok(false),
        Some(_) => Err(ApiError::BadRequest(format!(
            "error converting input for field {name:?}: a boolean is wanted"
        ))),
    };
    let given = match text("type") {
        "" | "plugin" => text("plugin_name"),
        kind => kind,
    };
    let mut options = options(fields)?;
    let kind = match given {
        "" => {
            return Err(ApiError::BadRequest(
                "backend type must be specified as a string".to_owned(),
            ));
        }
        "kv" | "generic" => "kv",
        "kv-v1" => {
            options
                .get_or_insert_default()
                .insert("version".to_owned(), "1".to_owned());
            "kv"
        }
        "kv-v2" => {
            options
                .get_or_insert_default()
                .insert("version".to_owned(), "2".to_owned());
            "kv"
        }
        other => {
            return Err(ApiError::BadRequest(format!(
                "plugin not found in the catalog: {other}"
            )));
        }
    };
    check_options(kind, options.as_ref().unwrap_or(&BTreeMap::new()))?;
    let mut mount = Mount::new(path, kind, text("description"));
    mount.local = flag("local")?;
    mount.seal_wrap = flag("seal_wrap")?;
    mount.external_entropy_access = flag("external_entropy_access")?;
    mount.options = options;
    if let Some(Value::Object(config)) = fields.get("config") {
        apply_config(&mut mount.config, config)?;
    }
    Ok(mount)
}

fn check_options(kind: &str, options: &BTreeMap<String, String>) -> Result<(), ApiError> {
    match (kind, options.get("version").map(String::as_str)) {
        ("kv", Some("2")) => Err(ApiError::BadRequest(
            "kv version 2 is not available yet; enable version 1".to_owned(),
        )),
        ("kv", Some(other)) if !matches!(other, "" | "0" | "1") => Err(ApiError::BadRequest(
            format!("kv version {other:?} is unknown"),
        )),
        _ => Ok(()),
    }
}

fn options(fields: &Map<String, Value>) -> Result<Option<BTreeMap<String, String>>, ApiError> {
    match fields.get("options") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(options)) => {
            let text = |value: &Value| {
                value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned)
            };
            Ok(Some(
                options
                    .iter()
                    .map(|(key, value)| (key.clone(), text(value)))
                    .collect(),
            ))
        }
        Some(_) => Err(ApiError::BadRequest("options must be an object".to_owned())),
    }
}

/// Takes over every known setting that is there; empty durations change nothing, as the CLI sends them.
fn apply_config(config: &mut MountConfig, fields: &Map<String, Value>) -> Result<(), ApiError> {
    for (name, slot) in [
        ("default_lease_ttl", &mut config.default_lease_ttl),
        ("max_lease_ttl", &mut config.max_lease_ttl),
    ] {
        match fields.get(name) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) if text.is_empty() => {}
            Some(Value::String(text)) if text == "system" => *slot = 0,
            Some(value) => {
                *slot = duration::seconds(value).ok_or_else(|| {
                    ApiError::BadRequest(format!("unable to parse {name} as a duration"))
                })?;
            }
        }
    }
    if config.max_lease_ttl != 0 && config.default_lease_ttl > config.max_lease_ttl {
        return Err(ApiError::BadRequest(
            "default lease ttl must not be greater than max lease ttl".to_owned(),
        ));
    }
    if let Some(Value::Bool(flag)) = fields.get("force_no_cache") {
        config.force_no_cache = *flag;
    }
    if let Some(Value::String(text)) = fields.get("listing_visibility") {
        if !matches!(text.as_str(), "" | "hidden" | "unauth") {
            return Err(ApiError::BadRequest(format!(
                "invalid listing_visibility {text:?}"
            )));
        }
        config.listing_visibility.clone_from(text);
    }
    for (name, slot) in [
        (
            "passthrough_request_headers",
            &mut config.passthrough_request_headers,
        ),
        (
            "allowed_response_headers",
            &mut config.allowed_response_headers,
        ),
        (
            "audit_non_hmac_request_keys",
            &mut config.audit_non_hmac_request_keys,
        ),
        (
            "audit_non_hmac_response_keys",
            &mut config.audit_non_hmac_response_keys,
        ),
    ] {
        match fields.get(name) {
            Some(Value::Array(items)) => {
                *slot = items
                    .iter()
                    .filter_map(|item| item.as_str().map(str::to_owned))
                    .collect();
            }
            Some(Value::String(items)) => {
                *slot = items
                    .split(',')
                    .map(|item| item.trim().to_owned())
                    .filter(|item| !item.is_empty())
                    .collect();
            }
            _ => {}
        }
    }
    Ok(())
}

fn secret_mounts(table: &MountTable) -> Map<String, Value> {
    table
        .mounts
        .iter()
        .filter(|(_, mount)| !mount.tainted)
        .map(|(path, mount)| (path.clone(), described(mount).into()))
        .collect()
}

/// A mount as clients see it.
fn described(mount: &Mount) -> Map<String, Value> {
    let mut data = object(&json!({
        "accessor": mount.accessor,
        "description": mount.description,
        "external_entropy_access": mount.external_entropy_access,
        "local": mount.local,
        "options": mount.options,
        "plugin_version": "",
        "running_plugin_version": running_version(),
        "running_sha256": "",
        "seal_wrap": mount.seal_wrap,
        "type": mount.kind,
        "uuid": mount.uuid,
    }));
    data.insert("config".to_owned(), config_json(&mount.config).into());
    if mount.kind == "kv" {
        data.insert("deprecation_status".to_owned(), "supported".into());
    }
    data
}

fn config_json(config: &MountConfig) -> Map<String, Value> {
    object(config)
}

fn running_version() -> &'static str {
    concat!("v", env!("CARGO_PKG_VERSION"), "+builtin.strongroom")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_paths_are_checked() {
        for (path, want) in [
            ("kv", Ok("kv/")),
            ("kv/", Ok("kv/")),
            ("team/kv", Ok("team/kv/")),
            ("", Err(())),
            ("/", Err(())),
            ("a b", Err(())),
            ("sys", Err(())),
            ("sys/x", Err(())),
            ("auth/x", Err(())),
            ("system", Ok("system/")),
        ] {
            let got = checked_path(path).map_err(|_| ());
            assert_eq!(got, want.map(str::to_owned), "{path:?}");
        }
    }

    #[test]
    fn what_cannot_be_mounted_is_refused_with_a_reason() {
        for (body, want) in [
            (r#"{"type":"kv"}"#, ""),
            (r#"{"type":"kv","options":{"version":"1"}}"#, ""),
            (r#"{"type":"kv-v1","options":null}"#, ""),
            (r#"{"type":"kv-v2"}"#, "version 2"),
            (r#"{"type":"kv","options":{"version":2}}"#, "version 2"),
            (r#"{"type":"kv","options":{"version":"9"}}"#, "unknown"),
            (
                r#"{"type":"nosuch"}"#,
                "plugin not found in the catalog: nosuch",
            ),
            (r#"{}"#, "backend type"),
            (r#"{"type":"kv","seal_wrap":"maybe"}"#, "boolean"),
            (
                r#"{"type":"kv","config":{"max_lease_ttl":"x"}}"#,
                "duration",
            ),
            (
                r#"{"type":"kv","config":{"max_lease_ttl":"1h","default_lease_ttl":"2h"}}"#,
                "greater",
            ),
        ] {
            let fields: Map<String, Value> = serde_json::from_str(body).unwrap();
            match requested("kv/", &fields) {
                Ok(_) => assert_eq!(want, "", "{body}"),
                Err(error) => assert!(
                    !want.is_empty() && error.to_string().contains(want),
                    "{body}: {error}"
                ),
            }
        }
    }
}
