//! `operator step-down`, `operator raft remove-peer|promote|demote`, `operator raft autopilot …`.

use http::Method;
use serde_json::{Map, Value, json};

use super::{
    Failure, Invocation,
    flags::{Flag, Takes},
    output::{Format, Ordered, key_values, plain, structured},
    secret,
};

const AUTOPILOT: &str = "sys/storage/raft/autopilot/configuration";

/// Flags of `operator step-down`.
pub(crate) const STEP_DOWN_FLAGS: &[Flag] = &[Flag {
    name: "to",
    takes: Takes::One,
    value: "string",
    help: "Name (node_id) of the node that is to lead. The default is the one that is best caught up.",
}];

/// Flags of `operator raft autopilot set-config`.
pub(crate) const SET_CONFIG_FLAGS: &[Flag] = &[
    Flag {
        name: "cleanup-dead-servers",
        takes: Takes::One,
        value: "bool",
        help: "Whether nodes that have been silent for long are removed from the cluster.",
    },
    Flag {
        name: "last-contact-threshold",
        takes: Takes::One,
        value: "duration",
        help: "A node that has been silent for longer is not healthy.",
    },
    Flag {
        name: "dead-server-last-contact-threshold",
        takes: Takes::One,
        value: "duration",
        help: "How long a node must have been silent to be removed; at least 1m.",
    },
    Flag {
        name: "max-trailing-logs",
        takes: Takes::Number,
        value: "uint",
        help: "A node that lacks more log entries is not healthy.",
    },
    Flag {
        name: "min-quorum",
        takes: Takes::Number,
        value: "uint",
        help: "Number of voters that stay when silent ones are removed; at least 3.",
    },
    Flag {
        name: "server-stabilization-time",
        takes: Takes::One,
        value: "duration",
        help: "How long a node must be healthy to get a vote.",
    },
    Flag {
        name: "disable-upgrade-migration",
        takes: Takes::One,
        value: "bool",
        help: "Whether nodes of a new version are treated like all others.",
    },
];

pub(crate) fn step_down(run: &mut Invocation<'_>) -> Result<(), Failure> {
    run.arguments::<0>()?;
    let body = run
        .given
        .text("to")
        .filter(|name| !name.is_empty())
        .map(|name| json!({ "to": name }));
    let mut api = run.api()?;
    // Once is what was asked for: a second one would take leadership from the next leader.
    api.without_retries();
    api.call(Method::PUT, "sys/step-down", body.as_ref())
        .map_err(|error| error.during("Error stepping down"))?;
    let address = api.address().to_owned();
    run.print(&format!("Success! Stepped down: {address}\n"))
}

pub(crate) fn remove_peer(run: &mut Invocation<'_>) -> Result<(), Failure> {
    change_peer(
        run,
        "remove-peer",
        "Error removing the peer from raft cluster",
        "Peer removed successfully!",
    )
}

pub(crate) fn promote(run: &mut Invocation<'_>) -> Result<(), Failure> {
    change_peer(
        run,
        "promote",
        "Error promoting server",
        "Server promoted successfully!",
    )
}

pub(crate) fn demote(run: &mut Invocation<'_>) -> Result<(), Failure> {
    change_peer(
        run,
        "demote",
        "Error demoting server",
        "Server demoted successfully!",
    )
}

fn change_peer(
    run: &mut Invocation<'_>,
    what: &str,
    during: &str,
    done: &str,
) -> Result<(), Failure> {
    let [id] = run.arguments::<1>()?;
    let body = json!({ "server_id": id.trim() });
    run.api()?
        .call(
            Method::PUT,
            &format!("sys/storage/raft/{what}"),
            Some(&body),
        )
        .map_err(|error| error.during(during))?;
    run.print(&format!("{done}\n"))
}

/// The object under `data`, or the answer itself.
fn data(answer: &Value) -> Value {
    let inner = answer.get("data").filter(|data| data.is_object());
    inner.unwrap_or(answer).clone()
}

/// Vault's order and headings.
const CONFIG_FIELDS: &[(&str, &str)] = &[
    ("cleanup_dead_servers", "Cleanup Dead Servers"),
    ("last_contact_threshold", "Last Contact Threshold"),
    (
        "dead_server_last_contact_threshold",
        "Dead Server Last Contact Threshold",
    ),
    ("server_stabilization_time", "Server Stabilization Time"),
    ("min_quorum", "Min Quorum"),
    ("max_trailing_logs", "Max Trailing Logs"),
    ("disable_upgrade_migration", "Disable Upgrade Migration"),
];

pub(crate) fn get_config(run: &mut Invocation<'_>) -> Result<(), Failure> {
    run.arguments::<0>()?;
    let format = run.format()?;
    let answer = run
        .api()?
        .get(AUTOPILOT)
        .map_err(|error| error.during("Error getting the autopilot configuration"))?
        .unwrap_or_default();
    let config = data(&answer);
    if format != Format::Table {
        return secret::print_structured(run, &config);
    }
    let rows: Vec<(String, String)> = CONFIG_FIELDS
        .iter()
        .filter_map(|(name, heading)| Some(((*heading).to_owned(), plain(config.get(*name)?))))
        .collect();
    run.print(&key_values(&rows))
}

pub(crate) fn set_config(run: &mut Invocation<'_>) -> Result<(), Failure> {
    run.arguments::<0>()?;
    let mut body = Map::new();
    for flag in SET_CONFIG_FLAGS {
        let name = flag.name.replace('-', "_");
        let value = match flag.takes {
            Takes::Number => run.given.number(flag.name).map(Value::from),
            Takes::Switch | Takes::One | Takes::Many => {
                run.given.text(flag.name).map(|text| match text {
                    "true" => Value::Bool(true),
                    "false" => Value::Bool(false),
                    text => Value::from(text),
                })
            }
        };
        if let Some(value) = value {
            body.insert(name, value);
        }
    }
    run.api()?
        .call(Method::PUT, AUTOPILOT, Some(&Value::Object(body)))
        .map_err(|error| error.during("Error updating the autopilot configuration"))?;
    Ok(())
}

/// Field on the wire, in structured output, and as a heading; Vault's order.
const SERVER_FIELDS: &[(&str, &str, &str)] = &[
    ("id", "ID", ""),
    ("name", "Name", "Name"),
    ("address", "Address", "Address"),
    ("status", "", "Status"),
    ("node_status", "NodeStatus", "Node Status"),
    ("healthy", "", "Healthy"),
    ("last_contact", "LastContact", "Last Contact"),
    ("last_term", "LastTerm", "Last Term"),
    ("last_index", "LastIndex", "Last Index"),
    ("healthy", "Healthy", ""),
    ("stable_since", "StableSince", ""),
    ("status", "Status", ""),
    ("version", "Version", "Version"),
    ("upgrade_version", "UpgradeVersion", "Upgrade Version"),
    ("redundancy_zone", "RedundancyZone", "Redundancy Zone"),
    ("node_type", "NodeType", "Node Type"),
];

pub(crate) fn state(run: &mut Invocation<'_>) -> Result<(), Failure> {
    run.arguments::<0>()?;
    let format = run.format()?;
    let answer = run
        .api()?
        .get("sys/storage/raft/autopilot/state")
        .map_err(|error| error.during("Error checking autopilot state"))?
        .unwrap_or_default();
    let state = data(&answer);
    if format == Format::Table {
        return run.print(&state_text(&state));
    }
    run.print(&structured(&state_fields(&state), format))
}

fn state_fields(state: &Value) -> Ordered {
    let field = |name: &str| state.get(name).cloned().unwrap_or_default();
    let mut servers = Ordered::default();
    for (name, server) in state
        .get("servers")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let mut shown = Ordered::default();
        for (wire, structured, _) in SERVER_FIELDS {
            if let Some(value) = server.get(*wire).filter(|_| !structured.is_empty()) {
                shown.push(structured, value.clone());
            }
        }
        servers.push_ordered(name, shown);
    }
    let mut fields = Ordered::default();
    fields.push("Healthy", field("healthy"));
    fields.push("FailureTolerance", field("failure_tolerance"));
    fields.push_ordered("Servers", servers);
    fields.push("Leader", field("leader"));
    fields.push("Voters", field("voters"));
    fields.push("NonVoters", field("non_voters"));
    fields.push("RedundancyZones", field("redundancy_zones"));
    fields.push("Upgrade", field("upgrade_info"));
    fields.push(
        "OptimisticFailureTolerance",
        field("optimistic_failure_tolerance"),
    );
    fields
}

/// As Vault lays it out: a heading, then what belongs to it three spaces further in.
fn state_text(state: &Value) -> String {
    let mut text = String::new();
    let mut line = |indent: usize, heading: &str, value: &str| {
        let space = " ".repeat(indent);
        if value.is_empty() {
            text.push_str(&format!("{space}{heading}\n"));
            return;
        }
        let width = match indent {
            0 => 33,
            3 => 30,
            _ => 19,
        };
        let heading = format!("{heading}:");
        text.push_str(&format!("{space}{heading:<width$}{value}\n"));
    };
    let field = |name: &str| state.get(name).map_or_else(String::new, plain);
    let list = |name: &str| -> Vec<String> {
        let names = state.get(name).and_then(Value::as_array);
        names.into_iter().flatten().map(plain).collect()
    };
    line(0, "Healthy", &field("healthy"));
    line(0, "Failure Tolerance", &field("failure_tolerance"));
    line(0, "Leader", &field("leader"));
    for (heading, name) in [("Voters:", "voters"), ("Non Voters:", "non_voters")] {
        let names = list(name);
        if !names.is_empty() {
            line(0, heading, "");
        }
        for name in names {
            line(3, &name, "");
        }
    }
    let optimistic = field("optimistic_failure_tolerance");
    if !matches!(optimistic.as_str(), "" | "0") {
        line(0, "Optimistic Failure Tolerance", &optimistic);
    }
    let zones = state.get("redundancy_zones").and_then(Value::as_object);
    if let Some(zones) = zones {
        line(0, "Redundancy Zones:", "");
        for (zone, inside) in zones {
            let joined = |name: &str| -> String {
                let names = inside.get(name).and_then(Value::as_array);
                let names: Vec<String> = names.into_iter().flatten().map(plain).collect();
                names.join(", ")
            };
            line(3, zone, "");
            line(6, "Servers", &joined("servers"));
            line(6, "Voters", &joined("voters"));
            let tolerance = inside.get("failure_tolerance");
            line(
                6,
                "Failure Tolerance",
                &tolerance.map_or_else(String::new, plain),
            );
        }
    }
    if let Some(upgrade) = state.get("upgrade_info").filter(|info| info.is_object()) {
        line(0, "Upgrade Info:", "");
        for (heading, name) in [("Status", "status"), ("Target Version", "target_version")] {
            line(
                3,
                heading,
                &upgrade.get(name).map_or_else(String::new, plain),
            );
        }
        for (heading, name) in [
            ("Target Version Voters", "target_version_voters"),
            ("Target Version Non-Voters", "target_version_non_voters"),
            ("Other Version Voters", "other_version_voters"),
            ("Other Version Non-Voters", "other_version_non_voters"),
        ] {
            let names = upgrade.get(name).and_then(Value::as_array);
            let names: Vec<String> = names.into_iter().flatten().map(plain).collect();
            if !names.is_empty() {
                line(3, heading, &names.join(", "));
            }
        }
    }
    line(0, "Servers:", "");
    let servers = state.get("servers").and_then(Value::as_object);
    for (name, server) in servers.into_iter().flatten() {
        line(3, name, "");
        for (wire, _, heading) in SERVER_FIELDS {
            let value = server.get(*wire).map_or_else(String::new, plain);
            if !heading.is_empty() && !value.is_empty() {
                line(6, heading, &value);
            }
        }
    }
    text
}
