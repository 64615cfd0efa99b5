//! `secrets enable|list|disable`.

use http::Method;
use serde_json::{Map, Value, json};

use super::{
    Failure, Invocation,
    flags::{Flag, Takes},
    logical::sanitize,
    output::{Format, Ordered, plain, table},
    secret,
};
use crate::config::parse_duration;

/// Flags of `secrets enable`.
pub(crate) const ENABLE_FLAGS: &[Flag] = &[
    Flag {
        name: "path",
        takes: Takes::One,
        value: "string",
        help: "Place where the secrets engine will be accessible. The default is its type.",
    },
    Flag {
        name: "description",
        takes: Takes::One,
        value: "string",
        help: "What the engine is for, for people.",
    },
    Flag {
        name: "seal-wrap",
        takes: Takes::Switch,
        value: "",
        help: "Wrap what users store in it by the HSM as well. Cannot be changed later. The default is false.",
    },
    Flag {
        name: "version",
        takes: Takes::Number,
        value: "int",
        help: "Version of the engine, for engines that have several.",
    },
    Flag {
        name: "local",
        takes: Takes::Switch,
        value: "",
        help: "Mark the engine as local to this cluster. The default is false.",
    },
    Flag {
        name: "default-lease-ttl",
        takes: Takes::One,
        value: "duration",
        help: "Lease of what the engine gives out. The default is the server's.",
    },
    Flag {
        name: "max-lease-ttl",
        takes: Takes::One,
        value: "duration",
        help: "Longest lease. The default is the server's.",
    },
    Flag {
        name: "options",
        takes: Takes::Many,
        value: "key=value",
        help: "Option of the engine. This can be specified multiple times.",
    },
    Flag {
        name: "force-no-cache",
        takes: Takes::Switch,
        value: "",
        help: "Do not cache what the engine reads. The default is false.",
    },
    Flag {
        name: "external-entropy-access",
        takes: Takes::Switch,
        value: "",
        help: "Let the engine use external randomness. The default is false.",
    },
    Flag {
        name: "listing-visibility",
        takes: Takes::One,
        value: "string",
        help: "Whether clients without a token may see that the mount is there: \"unauth\" or \"hidden\".",
    },
    Flag {
        name: "audit-non-hmac-request-keys",
        takes: Takes::Many,
        value: "string",
        help: "Request key that audit devices write as it is. This can be specified multiple times.",
    },
    Flag {
        name: "audit-non-hmac-response-keys",
        takes: Takes::Many,
        value: "string",
        help: "Response key that audit devices write as it is. This can be specified multiple times.",
    },
    Flag {
        name: "passthrough-request-headers",
        takes: Takes::Many,
        value: "string",
        help: "Request header that is passed to the engine. This can be specified multiple times.",
    },
    Flag {
        name: "allowed-response-headers",
        takes: Takes::Many,
        value: "string",
        help: "Response header that the engine may set. This can be specified multiple times.",
    },
    Flag {
        name: "plugin-name",
        takes: Takes::One,
        value: "string",
        help: "Name of the plugin; there are no external plugins.",
    },
    Flag {
        name: "plugin-version",
        takes: Takes::One,
        value: "string",
        help: "Version of the plugin; there are no external plugins.",
    },
];

/// Flags of `secrets list`.
pub(crate) const LIST_FLAGS: &[Flag] = &[Flag {
    name: "detailed",
    takes: Takes::Switch,
    value: "",
    help: "Print more about each engine. The default is false.",
}];

pub(crate) fn enable(run: &mut Invocation<'_>) -> Result<(), Failure> {
    let [kind] = run.arguments()?;
    let kind = kind.trim().to_owned();
    let path = run
        .given
        .text("path")
        .map_or_else(|| kind.clone(), sanitize);
    let body = enable_body(run, &kind)?;
    run.api()?
        .call(Method::POST, &format!("sys/mounts/{path}"), Some(&body))
        .map_err(|error| error.during("Error enabling"))?;
    run.print(&format!(
        "Success! Enabled the {kind} secrets engine at: {path}/\n"
    ))
}

fn enable_body(run: &Invocation<'_>, kind: &str) -> Result<Value, Failure> {
    let given = &run.given;
    let mut options = Map::new();
    if let Some(version) = given.number("version").filter(|version| *version > 0) {
        options.insert("version".to_owned(), version.to_string().into());
    }
    for option in given.all("options") {
        let (name, value) = option.split_once('=').ok_or_else(|| {
            Failure::Local(format!(
                "invalid value {option:?} for flag -options: missing = in KV pair"
            ))
        })?;
        options.insert(name.to_owned(), value.into());
    }
    let options = if options.is_empty() {
        Value::Null
    } else {
        Value::Object(options)
    };
    let mut config = Map::new();
    config.insert("options".to_owned(), Value::Null);
    for (flag, field) in [
        ("default-lease-ttl", "default_lease_ttl"),
        ("max-lease-ttl", "max_lease_ttl"),
    ] {
        config.insert(field.to_owned(), lease(given.text(flag), flag)?.into());
    }
    config.insert(
        "force_no_cache".to_owned(),
        given.on("force-no-cache").into(),
    );
    for name in ["listing-visibility", "plugin-version"] {
        if let Some(value) = given.text(name) {
            config.insert(name.replace('-', "_"), value.into());
        }
    }
    for name in [
        "audit-non-hmac-request-keys",
        "audit-non-hmac-response-keys",
        "passthrough-request-headers",
        "allowed-response-headers",
    ] {
        let values = given.all(name);
        if !values.is_empty() {
            config.insert(name.replace('-', "_"), json!(values));
        }
    }
    Ok(json!({
        "type": given.text("plugin-name").filter(|_| kind == "plugin").unwrap_or(kind),
        "description": given.text("description").unwrap_or_default(),
        "config": config,
        "local": given.on("local"),
        "seal_wrap": given.on("seal-wrap"),
        "external_entropy_access": given.on("external-entropy-access"),
        "options": options,
    }))
}

/// As Vault's client sends it: seconds with a unit.
fn lease(text: Option<&str>, flag: &str) -> Result<String, Failure> {
    let Some(text) = text else {
        return Ok("0s".to_owned());
    };
    parse_duration(text)
        .map(|duration| format!("{}s", duration.as_secs()))
        .ok_or_else(|| {
            Failure::Local(format!(
                "invalid value {text:?} for flag -{flag}: parse error"
            ))
        })
}

pub(crate) fn disable(run: &mut Invocation<'_>) -> Result<(), Failure> {
    let [path] = run.arguments()?;
    let path = sanitize(&path);
    run.api()?
        .call(Method::DELETE, &format!("sys/mounts/{path}"), None)
        .map_err(|error| error.during(&format!("Error disabling secrets engine at {path}/")))?;
    run.print(&format!(
        "Success! Disabled the secrets engine (if it existed) at: {path}/\n"
    ))
}

/// Vault's order.
const MOUNT_FIELDS: &[&str] = &[
    "uuid",
    "type",
    "description",
    "accessor",
    "config",
    "options",
    "local",
    "seal_wrap",
    "external_entropy_access",
    "plugin_version",
    "running_plugin_version",
    "running_sha256",
    "deprecation_status",
];

const CONFIG_FIELDS: &[&str] = &[
    "default_lease_ttl",
    "max_lease_ttl",
    "force_no_cache",
    "audit_non_hmac_request_keys",
    "audit_non_hmac_response_keys",
    "listing_visibility",
    "passthrough_request_headers",
    "allowed_response_headers",
    "token_type",
];

pub(crate) fn list(run: &mut Invocation<'_>) -> Result<(), Failure> {
    run.arguments::<0>()?;
    let format = run.format()?;
    let answer = run
        .api()?
        .get("sys/mounts")
        .map_err(|error| error.during("Error listing secrets engines"))?
        .unwrap_or_default();
    let mut mounts: Vec<(&String, &Value)> = answer
        .get("data")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .collect();
    mounts.sort_by_key(|(path, _)| *path);
    if format != Format::Table {
        let mounts: std::collections::BTreeMap<&String, Ordered> = mounts
            .into_iter()
            .map(|(path, mount)| {
                let mut fields = Ordered::pick(mount, MOUNT_FIELDS);
                fields.arrange("config", CONFIG_FIELDS);
                if mount.get("deprecation_status").is_none() {
                    fields.push("deprecation_status", "");
                }
                (path, fields)
            })
            .collect();
        return secret::print_structured(run, &mounts);
    }
    let rows = if run.given.on("detailed") {
        detailed(&mounts)
    } else {
        simple(&mounts)
    };
    run.print(&table(&rows))
}

fn text(mount: &Value, pointer: &str) -> String {
    match mount.pointer(pointer) {
        None | Some(Value::Null) => String::new(),
        Some(value) => plain(value),
    }
}

fn simple(mounts: &[(&String, &Value)]) -> Vec<Vec<String>> {
    let mut rows = vec![
        ["Path", "Type", "Accessor", "Description"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (path, mount) in mounts {
        rows.push(vec![
            (*path).clone(),
            text(mount, "/type"),
            text(mount, "/accessor"),
            text(mount, "/description"),
        ]);
    }
    rows
}

fn detailed(mounts: &[(&String, &Value)]) -> Vec<Vec<String>> {
    let mut rows = vec![
        [
            "Path",
            "Plugin",
            "Accessor",
            "Default TTL",
            "Max TTL",
            "Force No Cache",
            "Replication",
            "Seal Wrap",
            "External Entropy Access",
            "Options",
            "Description",
            "UUID",
            "Version",
            "Running Version",
            "Running SHA256",
            "Deprecation Status",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for (path, mount) in mounts {
        let local = mount.get("local") == Some(&Value::Bool(true));
        let options = mount.get("options").filter(|options| options.is_object());
        rows.push(vec![
            (*path).clone(),
            text(mount, "/type"),
            text(mount, "/accessor"),
            ttl(mount, "/config/default_lease_ttl"),
            ttl(mount, "/config/max_lease_ttl"),
            text(mount, "/config/force_no_cache"),
            if local { "local" } else { "replicated" }.to_owned(),
            text(mount, "/seal_wrap"),
            text(mount, "/external_entropy_access"),
            options.map_or_else(|| "map[]".to_owned(), plain),
            text(mount, "/description"),
            text(mount, "/uuid"),
            text(mount, "/plugin_version"),
            text(mount, "/running_plugin_version"),
            text(mount, "/running_sha256"),
            text(mount, "/deprecation_status"),
        ]);
    }
    rows
}

/// Engines of the server itself have no leases of their own.
fn ttl(mount: &Value, pointer: &str) -> String {
    let kind = mount
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if matches!(kind, "system" | "cubbyhole") {
        return String::new();
    }
    match mount.pointer(pointer).and_then(Value::as_i64) {
        None | Some(0) => "system".to_owned(),
        Some(seconds) => seconds.to_string(),
    }
}
