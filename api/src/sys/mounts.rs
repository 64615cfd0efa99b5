//! `sys/mounts`: enable, list, tune and disable engines; `sys/internal/ui/mounts`, which clients ask before they start.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::mount_fields::{self, checked_path, is_reserved, requested};
use crate::{
    core::Core,
    engines::{self, Operation},
    http::{
        error::ApiError,
        request::ApiRequest,
        response::{Data, Reply, object},
    },
    mounts::{Change, Mount, MountError, MountTable},
    storage::Batch,
};

/// Stored keys removed per command when a mount's data goes.
const REMOVE_BATCH: usize = 500;

pub(super) async fn list(core: &Core) -> Result<Reply, ApiError> {
    let table = core.mounts().current(core.storage()).await?;
    Ok(Reply::system(secret_mounts(&table)?))
}

pub(super) async fn ui_list(core: &Core) -> Result<Reply, ApiError> {
    let table = core.mounts().current(core.storage()).await?;
    Ok(Reply::data(object(
        &json!({ "auth": auth_table(core), "secret": secret_mounts(&table)? }),
    )?))
}

/// What somebody without a token may know: mounts whose owner said so.
pub(super) async fn ui_visible(core: &Core) -> Result<Reply, ApiError> {
    let table = core.mounts().current(core.storage()).await?;
    let visible: Map<String, Value> = table
        .mounts
        .iter()
        .filter(|(_, mount)| !mount.tainted && mount.config.listing_visibility == "unauth")
        .map(|(path, mount)| {
            let shown = json!({
                "description": mount.description,
                "options": mount.options,
                "type": mount.kind,
            });
            (path.clone(), shown)
        })
        .collect();
    Ok(Reply::data(object(
        &json!({ "auth": {}, "secret": visible }),
    )?))
}

/// The mount that a path lies in, as the CLI asks before every `kv` command.
pub(super) async fn ui_one(core: &Core, path: &str) -> Result<Reply, ApiError> {
    if path == "auth/token" || path.starts_with("auth/token/") {
        let mut data = token_mount(core);
        data.insert("path".to_owned(), "token/".into());
        return Ok(Reply::data(data));
    }
    let table = core.mounts().current(core.storage()).await?;
    let found = table.route(path).filter(|(mount, _)| !mount.tainted);
    let Some((mount, _)) = found else {
        let path = path.trim_end_matches('/');
        return Err(ApiError::DeniedBecause(format!(
            "preflight capability check returned 403, please ensure client's policies grant access to path \"{path}/\""
        )));
    };
    let mut data = described(mount)?;
    data.insert("path".to_owned(), mount.path.clone().into());
    Ok(Reply::data(data))
}

/// `sys/mounts/PATH` and `sys/mounts/PATH/tune`.
pub(super) async fn one(core: &Core, api: &ApiRequest, path: &str) -> Result<Reply, ApiError> {
    if let Some(path) = path.strip_suffix("/tune") {
        return match api.operation {
            Operation::Read => tuning(core, path).await,
            Operation::Write => tune(core, api, path).await,
            Operation::List | Operation::Delete | Operation::Patch => {
                Err(ApiError::UnsupportedOperation)
            }
        };
    }
    match api.operation {
        Operation::Read => {
            let table = core.mounts().current(core.storage()).await?;
            let mount = find(&table, path).ok_or_else(|| {
                ApiError::BadRequest(format!("No secret engine mount at {}", with_slash(path)))
            })?;
            Ok(Reply::system(described(mount)?))
        }
        Operation::Write => enable(core, api, path).await,
        Operation::Delete => disable(core, api, path).await,
        Operation::List | Operation::Patch => Err(ApiError::UnsupportedOperation),
    }
}

/// The only auth method there is.
pub(super) fn auth_table(core: &Core) -> Map<String, Value> {
    let mut table = Map::new();
    table.insert("token/".to_owned(), token_mount(core).into());
    table
}

/// The token store as a mount. Its identifiers are the same on every node and for ever.
pub(super) fn token_mount(core: &Core) -> Map<String, Value> {
    let digest = core.storage().barrier().hmac("mount", b"auth/token/");
    let (uuid, accessor) = Mount::identifiers("auth_token", &digest);
    let mut mount = Map::new();
    for (key, value) in [
        ("accessor", accessor.into()),
        (
            "config",
            json!({
                "default_lease_ttl": 0,
                "force_no_cache": false,
                "max_lease_ttl": 0,
                "token_type": "default-service",
            }),
        ),
        ("description", "token based credentials".into()),
        ("external_entropy_access", false.into()),
        ("local", false.into()),
        ("options", Value::Null),
        ("plugin_version", "".into()),
        ("running_plugin_version", running_version().into()),
        ("running_sha256", "".into()),
        ("seal_wrap", false.into()),
        ("type", "token".into()),
        ("uuid", uuid.into()),
    ] {
        mount.insert(key.to_owned(), value);
    }
    mount
}

/// Adds a mount. Its identifiers come from the request's id, so that a repetition finds its own mount and succeeds.
async fn enable(core: &Core, api: &ApiRequest, path: &str) -> Result<Reply, ApiError> {
    let path = checked_path(path)?;
    let mut mount = requested(&path, &api.fields)?;
    let digest = core.storage().barrier().hmac("mount", &api.request_id);
    mount.identify(&digest);
    let decide = |table: &MountTable| match table.conflict(&path) {
        None => Ok(Some((mount.clone(), Change::Write))),
        Some(existing) if existing.uuid == mount.uuid => Ok(None),
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
        return Err(ApiError::BadRequest(format!(
            "cannot unmount \"{}\"",
            with_slash(path)
        )));
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
    let Some(mount) = table.mounts.get(&path).filter(|mount| mount.tainted) else {
        return Ok(Reply::Empty);
    };
    remove_data(core, api, mount).await?;
    let id = uuid::Uuid::new_v4().into_bytes();
    mounts
        .change(storage, id, api.deadline, change(Change::Remove))
        .await?;
    // What was routed before the mount went out of routing, and written after its data was removed.
    remove_data(core, api, mount).await?;
    tracing::info!(kind = %mount.kind, "an engine was disabled");
    Ok(Reply::Empty)
}

async fn remove_data(core: &Core, api: &ApiRequest, mount: &Mount) -> Result<(), ApiError> {
    loop {
        let folder = mount.folder();
        let keys = core.storage().stored_keys(&folder, REMOVE_BATCH).await?;
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
    let mount = find(&table, path).ok_or_else(|| {
        ApiError::BadRequest(format!(
            "cannot fetch sysview for path \"{}\"",
            with_slash(path)
        ))
    })?;
    let mut data = object(&mount.config)?;
    let effective = |seconds| match seconds {
        0 => engines::DEFAULT_LEASE,
        seconds => seconds,
    };
    for (name, seconds) in [
        ("default_lease_ttl", mount.config.default_lease_ttl),
        ("max_lease_ttl", mount.config.max_lease_ttl),
    ] {
        data.insert(name.to_owned(), effective(seconds).into());
    }
    data.insert("description".to_owned(), mount.description.clone().into());
    if let Some(options) = mount.options.as_ref().filter(|options| !options.is_empty()) {
        data.insert("options".to_owned(), json!(options));
    }
    Ok(Reply::system(data))
}

async fn tune(core: &Core, api: &ApiRequest, path: &str) -> Result<Reply, ApiError> {
    let path = with_slash(path);
    let decide = |table: &MountTable| {
        let Some(mount) = find(table, &path) else {
            return Err(MountError::Refused(format!(
                "tune of path \"{path}\" failed: no mount entry found"
            )));
        };
        let mut tuned = Mount::clone(mount);
        mount_fields::tune(&mut tuned, &api.fields)
            .map_err(|error| MountError::Refused(error.to_string()))?;
        Ok((tuned != **mount).then_some((tuned, Change::Write)))
    };
    core.mounts()
        .change(core.storage(), api.request_id, api.deadline, decide)
        .await?;
    if !api.fields.contains_key("seal_wrap") {
        return Ok(Reply::Empty);
    }
    Ok(Reply::Data(Data {
        warnings: vec!["seal_wrap cannot be changed after the mount was enabled".to_owned()],
        ..Data::default()
    }))
}

fn with_slash(path: &str) -> String {
    format!("{}/", path.trim_end_matches('/'))
}

fn find<'t>(table: &'t MountTable, path: &str) -> Option<&'t Arc<Mount>> {
    table
        .mounts
        .get(&with_slash(path))
        .filter(|mount| !mount.tainted)
}

fn secret_mounts(table: &MountTable) -> Result<Map<String, Value>, ApiError> {
    table
        .mounts
        .iter()
        .filter(|(_, mount)| !mount.tainted)
        .map(|(path, mount)| Ok((path.clone(), described(mount)?.into())))
        .collect()
}

/// A mount as clients see it.
fn described(mount: &Mount) -> Result<Map<String, Value>, ApiError> {
    let mut data = object(&json!({
        "accessor": mount.accessor,
        "config": object(&mount.config)?,
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
    }))?;
    if mount.kind == "kv" {
        data.insert("deprecation_status".to_owned(), "supported".into());
    }
    Ok(data)
}

fn running_version() -> &'static str {
    concat!("v", env!("CARGO_PKG_VERSION"), "+builtin.strongroom")
}
