//! `status`: sealed or not, and the part in the cluster. Exit code 0 unsealed, 1 error, 2 sealed.

use serde_json::Value;

use super::{
    Failure, Invocation,
    output::{Format, Ordered, key_values, plain, structured},
    secret,
};

/// Vault's order.
const SEAL_FIELDS: &[&str] = &[
    "type",
    "initialized",
    "sealed",
    "t",
    "n",
    "progress",
    "nonce",
    "version",
    "build_date",
    "migration",
    "cluster_name",
    "cluster_id",
    "recovery_seal",
    "recovery_seal_type",
    "storage_type",
    "removed_from_cluster",
    "warnings",
];
const LEADER_FIELDS: &[&str] = &[
    "ha_enabled",
    "is_self",
    "active_time",
    "leader_address",
    "leader_cluster_address",
    "performance_standby",
    "performance_standby_last_remote_wal",
    "last_wal",
    "raft_committed_index",
    "raft_applied_index",
];

pub(crate) fn status(run: &mut Invocation<'_>) -> Result<(), Failure> {
    run.arguments::<0>()?;
    let format = run.format()?;
    let mut api = run.api()?;
    // Asked for the state of this moment: waiting for a better one would be wrong.
    api.without_retries();
    let seal = api
        .get("sys/seal-status")
        .map_err(|error| local(error.during("Error checking seal status")))?
        .unwrap_or_default();
    // A sealed node does not say who leads.
    let leader = match api.get("sys/leader") {
        Ok(leader) => leader.unwrap_or_default(),
        Err(error) if error.status().is_some_and(|status| status == 503) => Value::Null,
        Err(error) => return Err(local(error.during("Error checking leader status"))),
    };
    let sealed = is_true(&seal, "sealed");
    if let Some(field) = run.given.text("field").map(str::to_owned) {
        let found = seal.get(&field).or_else(|| leader.get(&field));
        let Some(found) = found else {
            return Err(Failure::Local(format!(
                "Field {field:?} not present in seal status"
            )));
        };
        secret::print_value(run, found)?;
    } else if format == Format::Table {
        run.print(&key_values(&rows(&seal, &leader)))?;
    } else {
        run.print(&structured(&fields(&seal, &leader), format))?;
    }
    if sealed {
        Err(Failure::Quiet(2))
    } else {
        Ok(())
    }
}

/// Here an error is 1, since 2 means sealed.
fn local(failure: Failure) -> Failure {
    match failure {
        Failure::Remote(why) => Failure::Local(why),
        other @ (Failure::Local(_) | Failure::Shown(_) | Failure::Quiet(_)) => other,
    }
}

fn is_true(object: &Value, field: &str) -> bool {
    object.get(field) == Some(&Value::Bool(true))
}

fn fields(seal: &Value, leader: &Value) -> Ordered {
    let mut fields = Ordered::pick(seal, SEAL_FIELDS);
    let highly_available = ha_enabled(seal, leader);
    let mut cluster = Ordered::pick(leader, LEADER_FIELDS);
    if cluster.0.is_empty() {
        cluster.push("ha_enabled", highly_available);
    }
    fields.0.extend(cluster.0);
    fields
}

/// A sealed node says nothing about its cluster, but Raft storage is always one.
fn ha_enabled(seal: &Value, leader: &Value) -> bool {
    is_true(leader, "ha_enabled") || seal.get("storage_type") == Some(&Value::from("raft"))
}

fn rows(seal: &Value, leader: &Value) -> Vec<(String, String)> {
    let field = |name: &str| seal.get(name).map_or_else(String::new, plain);
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: String| rows.push((name.to_owned(), value));
    let recovery = is_true(seal, "recovery_seal");
    add("Seal Type", field("type"));
    if recovery {
        add("Recovery Seal Type", field("recovery_seal_type"));
    }
    add("Initialized", field("initialized"));
    add("Sealed", field("sealed"));
    let shares = if recovery {
        "Total Recovery Shares"
    } else {
        "Total Shares"
    };
    add(shares, field("n"));
    add("Threshold", field("t"));
    if is_true(seal, "sealed") {
        add(
            "Unseal Progress",
            format!("{}/{}", field("progress"), field("t")),
        );
        add("Unseal Nonce", field("nonce"));
    }
    if is_true(seal, "migration") {
        add("Seal Migration in Progress", "true".to_owned());
    }
    add("Version", field("version"));
    for (name, key) in [
        ("Build Date", "build_date"),
        ("Storage Type", "storage_type"),
        ("Cluster Name", "cluster_name"),
        ("Cluster ID", "cluster_id"),
        ("Removed From Cluster", "removed_from_cluster"),
    ] {
        let value = field(key);
        if !value.is_empty() {
            add(name, value);
        }
    }
    add("HA Enabled", ha_enabled(seal, leader).to_string());
    if !is_true(seal, "sealed") && is_true(leader, "ha_enabled") {
        ha_rows(leader, &mut add);
    }
    for warning in seal
        .get("warnings")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        add("Warning", plain(warning));
    }
    rows
}

fn ha_rows(leader: &Value, add: &mut dyn FnMut(&str, String)) {
    let field = |name: &str| leader.get(name).map_or_else(String::new, plain);
    add("HA Cluster", field("leader_cluster_address"));
    if is_true(leader, "is_self") {
        add("HA Mode", "active".to_owned());
        let since = field("active_time");
        if !since.is_empty() {
            add("Active Since", since);
        }
    } else {
        let address = field("leader_address");
        let shown = if address.is_empty() {
            "<none>".to_owned()
        } else {
            address
        };
        add("HA Mode", "standby".to_owned());
        add("Active Node Address", shown);
        if is_true(leader, "performance_standby") {
            add("Performance Standby Node", "true".to_owned());
        }
    }
    for (name, key) in [
        ("Raft Committed Index", "raft_committed_index"),
        ("Raft Applied Index", "raft_applied_index"),
    ] {
        let index = leader.get(key).and_then(Value::as_u64).unwrap_or(0);
        if index > 0 {
            add(name, index.to_string());
        }
    }
}
