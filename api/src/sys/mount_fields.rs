//! What clients may say about a mount: decoding and checks of the bodies of enable and tune, in the real server's words.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{
    duration,
    http::{error::ApiError, request},
    mounts::{Mount, MountConfig},
};

/// Longest mount path, bytes.
const MAX_PATH: usize = 512;
/// Most entries in a list or map of a mount's settings.
const MAX_ENTRIES: usize = 256;
/// First segments that mounts may not take.
const RESERVED: [&str; 5] = ["sys", "auth", "cubbyhole", "identity", "audit"];
/// Engines that exist once, made at initialisation.
const NOT_MOUNTABLE: [&str; 5] = ["system", "cubbyhole", "identity", "token", "ns_system"];

type Fields = Map<String, Value>;

fn refused<T>(why: impl Into<String>) -> Result<T, ApiError> {
    Err(ApiError::BadRequest(why.into()))
}

fn wrong_type<T>(field: &str, wanted: &str) -> Result<T, ApiError> {
    refused(format!(
        "Field validation failed: error converting input for field \"{field}\": {wanted} is wanted"
    ))
}

/// Whether `path` belongs to the server itself.
pub(super) fn is_reserved(path: &str) -> bool {
    let first = path.split('/').next().unwrap_or_default();
    RESERVED.contains(&first)
}

/// The mount path with exactly one trailing slash.
pub(super) fn checked_path(path: &str) -> Result<String, ApiError> {
    let bare = path.trim_end_matches('/');
    if bare.is_empty() || bare.len() > MAX_PATH {
        return refused(format!("a mount path has 1 to {MAX_PATH} bytes"));
    }
    if bare.split('/').any(|segment| segment.trim().is_empty()) {
        return refused("a mount path has no empty segment");
    }
    if is_reserved(bare) {
        return refused(format!("cannot mount \"{bare}/\""));
    }
    Ok(format!("{bare}/"))
}

/// The mount that an enable asks for.
pub(super) fn requested(path: &str, fields: &Fields) -> Result<Mount, ApiError> {
    let mut options = options(fields)?;
    let kind = kind(fields, &mut options)?;
    check_options(kind, options.as_ref())?;
    let mut mount = Mount::new(path, kind, text(fields, "description")?);
    mount.local = flag(fields, "local")?.unwrap_or(false);
    mount.seal_wrap = flag(fields, "seal_wrap")?.unwrap_or(false);
    mount.external_entropy_access = flag(fields, "external_entropy_access")?.unwrap_or(false);
    mount.options = options;
    match fields.get("config") {
        None | Some(Value::Null) => {}
        Some(Value::Object(config)) => configure(&mut mount.config, config)?,
        Some(_) => return wrong_type("config", "an object"),
    }
    Ok(mount)
}

/// Name of the engine; the older `kv-v1` and `kv-v2` say the version in `options`.
fn kind(
    fields: &Fields,
    options: &mut Option<BTreeMap<String, String>>,
) -> Result<&'static str, ApiError> {
    let name = match text(fields, "type")? {
        "" | "plugin" => text(fields, "plugin_name")?,
        name => name,
    };
    let version = match name {
        "" => return refused("backend type must be specified as a string"),
        "kv" => return Ok("kv"),
        "generic" => return Ok("generic"),
        "kv-v1" => "1",
        "kv-v2" => "2",
        name if NOT_MOUNTABLE.contains(&name) => {
            return refused(format!("mount type of \"{name}\" is not mountable"));
        }
        name => return refused(format!("plugin not found in the catalog: {name}")),
    };
    options
        .get_or_insert_default()
        .insert("version".to_owned(), version.to_owned());
    Ok("kv")
}

/// Checks what the engine makes of its options.
pub(super) fn check_options(
    kind: &str,
    options: Option<&BTreeMap<String, String>>,
) -> Result<(), ApiError> {
    let version = options.and_then(|options| options.get("version"));
    match (kind, version.map(String::as_str)) {
        ("kv", Some("2")) => refused("kv version 2 is not available yet; enable version 1"),
        ("kv", Some(other)) if !matches!(other, "" | "0" | "1") => {
            refused(format!("kv version \"{other}\" is unknown"))
        }
        _ => Ok(()),
    }
}

/// `options` as text: absent is an empty map and `null` none, as the real server keeps them apart.
pub(super) fn options(fields: &Fields) -> Result<Option<BTreeMap<String, String>>, ApiError> {
    let options = match fields.get("options") {
        None => return Ok(Some(BTreeMap::new())),
        Some(Value::Null) => return Ok(None),
        Some(Value::Object(options)) if options.len() <= MAX_ENTRIES => options,
        Some(_) => return wrong_type("options", "an object of strings"),
    };
    options
        .iter()
        .map(|(key, value)| match value {
            Value::String(text) => Ok((key.clone(), text.clone())),
            Value::Number(_) | Value::Bool(_) => Ok((key.clone(), value.to_string())),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                wrong_type("options", "an object of strings")
            }
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

/// Takes over the settings of an enable's `config`.
fn configure(config: &mut MountConfig, fields: &Fields) -> Result<(), ApiError> {
    for (name, title, slot) in [
        (
            "default_lease_ttl",
            "default",
            &mut config.default_lease_ttl,
        ),
        ("max_lease_ttl", "max", &mut config.max_lease_ttl),
    ] {
        if let Some(ttl) = ttl(fields, name).map_err(|given| {
            ApiError::BadRequest(format!(
                "unable to parse {title} TTL of {given}: time: invalid duration \"{given}\""
            ))
        })? {
            *slot = ttl;
        }
    }
    if config.max_lease_ttl != 0 && config.default_lease_ttl > config.max_lease_ttl {
        return refused("given default lease TTL greater than given max lease TTL");
    }
    if let Some(flag) = flag(fields, "force_no_cache")? {
        config.force_no_cache = flag;
    }
    describe(config, fields)
}

/// Takes over the settings of a tune. `force_no_cache` and `seal_wrap` stay as the mount was enabled with.
pub(super) fn tune(mount: &mut Mount, fields: &Fields) -> Result<(), ApiError> {
    check_tunable(mount, fields)?;
    let config = &mut mount.config;
    for (name, slot) in [
        ("default_lease_ttl", &mut config.default_lease_ttl),
        ("max_lease_ttl", &mut config.max_lease_ttl),
    ] {
        if let Some(ttl) = ttl(fields, name)
            .map_err(|given| ApiError::BadRequest(format!("time: invalid duration \"{given}\"")))?
        {
            *slot = ttl;
        }
    }
    if config.max_lease_ttl != 0 && config.default_lease_ttl > config.max_lease_ttl {
        return refused(format!(
            "backend max lease TTL of {} would be less than backend default lease TTL of {}",
            config.max_lease_ttl, config.default_lease_ttl
        ));
    }
    describe(config, fields)?;
    if fields.contains_key("description") {
        text(fields, "description")?.clone_into(&mut mount.description);
    }
    if let Some(given) = options(fields)?.filter(|given| !given.is_empty()) {
        let mut merged = mount.options.take().unwrap_or_default();
        merged.extend(given);
        check_options(&mount.kind, Some(&merged))?;
        mount.options = Some(merged);
    }
    Ok(())
}

fn check_tunable(mount: &Mount, fields: &Fields) -> Result<(), ApiError> {
    let is_given = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    };
    if matches!(mount.path.as_str(), "sys/" | "cubbyhole/") {
        for name in [
            "default_lease_ttl",
            "max_lease_ttl",
            "description",
            "options",
        ] {
            if is_given(name) {
                return refused(format!("cannot tune parameter {name} of {}", mount.path));
            }
        }
    }
    if is_given("token_type") {
        return refused("'token_type' can only be modified on auth mounts");
    }
    if is_given("plugin_version") {
        let version = text(fields, "plugin_version")?;
        return refused(format!(
            "plugin not found in the catalog: {}, version={version}",
            mount.kind
        ));
    }
    Ok(())
}

/// Settings that enable and tune share.
fn describe(config: &mut MountConfig, fields: &Fields) -> Result<(), ApiError> {
    match text(fields, "listing_visibility")? {
        _ if !fields.contains_key("listing_visibility") => {}
        visibility @ ("" | "hidden" | "unauth") => {
            visibility.clone_into(&mut config.listing_visibility);
        }
        other => return refused(format!("invalid listing_visibility {other}")),
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
        if let Some(list) = list(fields, name)? {
            *slot = list;
        }
    }
    Ok(())
}

/// Seconds; `None` leaves the setting alone, as the CLI sends an empty text for what was not said. Fails with the
/// text that is no duration.
fn ttl(fields: &Fields, name: &str) -> Result<Option<u64>, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if text == "system" => Ok(Some(0)),
        Some(value) => match (duration::seconds(value), value) {
            (Some(seconds), _) => Ok(Some(seconds)),
            (None, Value::String(text)) => Err(text.clone()),
            (None, other) => Err(other.to_string()),
        },
    }
}

fn text<'f>(fields: &'f Fields, name: &str) -> Result<&'f str, ApiError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(_) => wrong_type(name, "a string"),
    }
}

fn flag(fields: &Fields, name: &str) -> Result<Option<bool>, ApiError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(Value::String(text)) if text.is_empty() => Ok(Some(false)),
        Some(Value::String(text)) => match request::boolean(text) {
            Some(flag) => Ok(Some(flag)),
            None => wrong_type(name, "a boolean"),
        },
        Some(_) => wrong_type(name, "a boolean"),
    }
}

/// A list of texts, or one text with commas.
fn list(fields: &Fields, name: &str) -> Result<Option<Vec<String>>, ApiError> {
    let list: Vec<String> = match fields.get(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(items)) => items
            .split(',')
            .map(|item| item.trim().to_owned())
            .filter(|item| !item.is_empty())
            .collect(),
        Some(Value::Array(items)) => {
            let Some(items) = items
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect()
            else {
                return wrong_type(name, "a list of strings");
            };
            items
        }
        Some(_) => return wrong_type(name, "a list of strings"),
    };
    if list.len() > MAX_ENTRIES {
        return wrong_type(name, "a shorter list");
    }
    Ok(Some(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn mount_paths_are_checked() {
        for (path, want) in [
            ("kv", Ok("kv/")),
            ("kv/", Ok("kv/")),
            ("team/kv", Ok("team/kv/")),
            ("a b", Ok("a b/")),
            ("system", Ok("system/")),
            ("", Err("a mount path has 1 to 512 bytes")),
            ("/", Err("a mount path has 1 to 512 bytes")),
            ("a/ /b", Err("a mount path has no empty segment")),
            ("sys", Err("cannot mount \"sys/\"")),
            ("sys/x", Err("cannot mount \"sys/x/\"")),
            ("auth/x", Err("cannot mount \"auth/x/\"")),
            ("audit", Err("cannot mount \"audit/\"")),
        ] {
            let got = checked_path(path).map_err(|error| error.to_string());
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{path:?}");
        }
    }

    #[test]
    fn what_cannot_be_mounted_is_refused_with_a_reason() {
        for (body, want) in [
            (r#"{"type":"kv"}"#, ""),
            (r#"{"type":"generic"}"#, ""),
            (r#"{"type":"kv","options":{"version":1}}"#, ""),
            (r#"{"type":"kv-v1","options":null}"#, ""),
            (r#"{"type":"kv","seal_wrap":"true"}"#, ""),
            (
                r#"{"type":"kv-v2"}"#,
                "kv version 2 is not available yet; enable version 1",
            ),
            (
                r#"{"type":"kv","options":{"version":2}}"#,
                "kv version 2 is not available yet; enable version 1",
            ),
            (
                r#"{"type":"kv","options":{"version":"9"}}"#,
                "kv version \"9\" is unknown",
            ),
            (
                r#"{"type":"nosuch"}"#,
                "plugin not found in the catalog: nosuch",
            ),
            (
                r#"{"type":"system"}"#,
                "mount type of \"system\" is not mountable",
            ),
            ("{}", "backend type must be specified as a string"),
            (
                r#"{"type":"kv","seal_wrap":"maybe"}"#,
                "Field validation failed: error converting input for field \"seal_wrap\": a boolean is wanted",
            ),
            (
                r#"{"type":"kv","config":{"default_lease_ttl":"zzz"}}"#,
                "unable to parse default TTL of zzz: time: invalid duration \"zzz\"",
            ),
            (
                r#"{"type":"kv","config":{"max_lease_ttl":"1h","default_lease_ttl":"2h"}}"#,
                "given default lease TTL greater than given max lease TTL",
            ),
            (
                r#"{"type":"kv","config":{"listing_visibility":"zz"}}"#,
                "invalid listing_visibility zz",
            ),
        ] {
            let got = requested("kv/", &fields(body)).err();
            assert_eq!(
                got.map_or_else(String::new, |error| error.to_string()),
                want,
                "{body}"
            );
        }
    }

    #[test]
    fn options_keep_absent_and_null_apart() {
        for (body, want) in [
            (r#"{"type":"kv"}"#, Some(0)),
            (r#"{"type":"kv","options":null}"#, None),
            (r#"{"type":"kv-v1","options":null}"#, Some(1)),
        ] {
            let mount = requested("kv/", &fields(body)).unwrap();
            assert_eq!(mount.options.map(|options| options.len()), want, "{body}");
        }
    }

    #[test]
    fn a_tune_changes_what_it_names_and_nothing_else() {
        let mut mount = Mount::new("kv/", "kv", "old");
        mount.config.max_lease_ttl = 3600;
        let before = mount.clone();
        let cli =
            r#"{"options":null,"default_lease_ttl":"","max_lease_ttl":"","force_no_cache":true}"#;
        tune(&mut mount, &fields(cli)).unwrap();
        assert_eq!(mount, before);
        tune(
            &mut mount,
            &fields(r#"{"description":"new","default_lease_ttl":"30m"}"#),
        )
        .unwrap();
        assert_eq!(
            (mount.description.as_str(), mount.config.default_lease_ttl),
            ("new", 1800)
        );
        tune(&mut mount, &fields(r#"{"default_lease_ttl":"system"}"#)).unwrap();
        assert_eq!(mount.config.default_lease_ttl, 0);
        for (body, want) in [
            (
                r#"{"default_lease_ttl":"2h"}"#,
                "backend max lease TTL of 3600 would be less than backend default lease TTL of 7200",
            ),
            (r#"{"max_lease_ttl":"zz"}"#, "time: invalid duration \"zz\""),
            (
                r#"{"token_type":"service"}"#,
                "'token_type' can only be modified on auth mounts",
            ),
            (
                r#"{"options":{"version":"2"}}"#,
                "kv version 2 is not available yet; enable version 1",
            ),
        ] {
            let error = tune(&mut mount.clone(), &fields(body)).unwrap_err();
            assert_eq!(error.to_string(), want, "{body}");
        }
        let mut system = Mount::new("sys/", "system", "");
        let error = tune(&mut system, &fields(r#"{"description":"x"}"#)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot tune parameter description of sys/"
        );
    }
}
