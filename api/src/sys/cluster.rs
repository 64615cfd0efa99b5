//! Who leads, who takes part, and autopilot.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::parse;
use crate::{
    autopilot::AutopilotConfig,
    core::Core,
    duration,
    http::{
        error::ApiError,
        request::{self, ApiRequest},
        response::{Reply, object},
    },
    ports::{AutopilotServer, AutopilotState, Node, PeerChange},
};

/// Longest time for a hand-over of leadership; after that the voters elect by themselves.
const HAND_OVER: Duration = Duration::from_secs(5);
/// Silent nodes must not be removed sooner, seconds.
const LEAST_DEAD: u64 = 60;
/// Voters that must stay when silent ones are removed.
const LEAST_QUORUM: u64 = 3;
/// A cluster could not tell a healthy node from a dead one with a shorter time, seconds.
const LEAST_CONTACT: u64 = 1;

/// The step-down; `to` is our extension.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StepDown {
    to: String,
}

/// `sys/step-down`: answered when another node leads.
pub(super) async fn step_down(node: &dyn Node, api: &ApiRequest) -> Result<Reply, ApiError> {
    let wanted: StepDown = parse(api)?;
    let to = Some(wanted.to).filter(|name| !name.is_empty());
    let deadline = api.deadline.min(Instant::now() + HAND_OVER);
    node.step_down(to, deadline).await?;
    Ok(Reply::Empty)
}

#[derive(Debug, Deserialize)]
struct Peer {
    server_id: String,
}

/// `sys/storage/raft/remove-peer`, `promote`, `demote`.
pub(super) async fn change_peer(
    node: &dyn Node,
    api: &ApiRequest,
    change: PeerChange,
) -> Result<Reply, ApiError> {
    if api
        .fields
        .get("server_id")
        .is_none_or(|id| id.as_str() == Some(""))
    {
        return Err(ApiError::BadRequest("no server id provided".to_owned()));
    }
    let peer: Peer = parse(api)?;
    let deadline = api.deadline.min(Instant::now() + HAND_OVER);
    node.change_peer(change, &peer.server_id, deadline).await?;
    Ok(Reply::Empty)
}

/// `GET sys/storage/raft/autopilot/configuration`.
pub(super) async fn autopilot_config(core: &Core) -> Result<Reply, ApiError> {
    let (config, _) = AutopilotConfig::load(core.storage()).await?;
    let time = |seconds| duration::go(Duration::from_secs(seconds));
    let data = json!({
        "cleanup_dead_servers": config.cleanup_dead_servers,
        "dead_server_last_contact_threshold": time(config.dead_server_last_contact_threshold),
        "disable_upgrade_migration": config.disable_upgrade_migration,
        "last_contact_threshold": time(config.last_contact_threshold),
        "max_trailing_logs": config.max_trailing_logs,
        "min_quorum": config.min_quorum,
        "server_stabilization_time": time(config.server_stabilization_time),
    });
    Ok(Reply::data(object(&data)?))
}

/// `POST sys/storage/raft/autopilot/configuration`: what is not named stays.
pub(super) async fn set_autopilot_config(
    node: &dyn Node,
    core: &Core,
    api: &ApiRequest,
) -> Result<Reply, ApiError> {
    let (known, expect) = AutopilotConfig::load(core.storage()).await?;
    let config = changed(known, &api.fields).map_err(ApiError::BadRequest)?;
    core.storage()
        .commit(config.put(expect), api.request_id, api.deadline)
        .await?;
    node.autopilot_changed(&config);
    Ok(Reply::Empty)
}

fn changed(
    mut config: AutopilotConfig,
    fields: &Map<String, Value>,
) -> Result<AutopilotConfig, String> {
    let flag = |name: &str, known: bool| match fields.get(name) {
        None | Some(Value::Null) => Ok(known),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => other
            .as_str()
            .and_then(request::boolean)
            .ok_or_else(|| format!("{name} must be true or false")),
    };
    let number = |name: &str, known: u64| match fields.get(name) {
        None | Some(Value::Null) => Ok(known),
        Some(value) => value
            .as_u64()
            .or_else(|| value.as_str().and_then(|text| text.parse().ok()))
            .ok_or_else(|| format!("{name} must be a whole number, not negative")),
    };
    let time = |name: &str, known: u64| match fields.get(name) {
        None | Some(Value::Null) => Ok(known),
        Some(value) => duration::seconds(value)
            .ok_or_else(|| format!("{name} must be a duration, such as 10s or 24h")),
    };
    config.cleanup_dead_servers = flag("cleanup_dead_servers", config.cleanup_dead_servers)?;
    config.disable_upgrade_migration = flag(
        "disable_upgrade_migration",
        config.disable_upgrade_migration,
    )?;
    config.max_trailing_logs = number("max_trailing_logs", config.max_trailing_logs)?;
    config.min_quorum = number("min_quorum", config.min_quorum)?;
    config.last_contact_threshold = time("last_contact_threshold", config.last_contact_threshold)?;
    config.server_stabilization_time = time(
        "server_stabilization_time",
        config.server_stabilization_time,
    )?;
    config.dead_server_last_contact_threshold = time(
        "dead_server_last_contact_threshold",
        config.dead_server_last_contact_threshold,
    )?;
    if config.dead_server_last_contact_threshold < LEAST_DEAD {
        return Err(format!(
            "dead_server_last_contact_threshold should not be set to less than 1m; received: {}",
            config.dead_server_last_contact_threshold
        ));
    }
    if config.last_contact_threshold < LEAST_CONTACT {
        return Err("last_contact_threshold must be at least 1s".to_owned());
    }
    if config.cleanup_dead_servers && config.min_quorum < LEAST_QUORUM {
        return Err(format!(
            "min_quorum must be set when cleanup_dead_servers is set and it should at least be 3; \
             cleanup_dead_servers: true, min_quorum: {:#x}",
            config.min_quorum
        ));
    }
    Ok(config)
}

/// `GET sys/storage/raft/autopilot/state`: the leader's view.
pub(super) fn autopilot_state(node: &dyn Node) -> Result<Reply, ApiError> {
    let state = node.autopilot().ok_or(ApiError::NotLeader)?;
    Ok(Reply::data(shown(&state)))
}

fn shown(state: &AutopilotState) -> Map<String, Value> {
    let names = |which: &dyn Fn(&&AutopilotServer) -> bool| -> Vec<&str> {
        let chosen = state.servers.iter().filter(which);
        let mut names: Vec<&str> = chosen.map(|server| server.name.as_str()).collect();
        names.sort_unstable();
        names
    };
    let none_if_empty = |names: Vec<&str>| {
        if names.is_empty() {
            Value::Null
        } else {
            Value::from(names)
        }
    };
    let mut servers = Map::new();
    // Of two of one name, the newer one comes later and is meant.
    for server in &state.servers {
        servers.insert(server.name.clone(), shown_server(server));
    }
    let mut data = Map::new();
    let mut put = |name: &str, value: Value| data.insert(name.to_owned(), value);
    let healthy = !state.servers.is_empty() && state.servers.iter().all(|server| server.healthy);
    put("healthy", healthy.into());
    put("failure_tolerance", state.failure_tolerance.into());
    let standby = state.servers.iter().filter(|s| s.healthy && is_standby(s));
    put(
        "optimistic_failure_tolerance",
        (state.failure_tolerance + standby.count()).into(),
    );
    let leader = state.servers.iter().find(|server| server.leader);
    put("leader", leader.map_or("", |server| &server.name).into());
    put("voters", names(&|server| server.voter).into());
    put("non_voters", none_if_empty(names(&|server| !server.voter)));
    put("servers", servers.into());
    let zones = zones(state);
    if !zones.is_empty() {
        put("redundancy_zones", zones.into());
    }
    let upgrade = &state.upgrade;
    put(
        "upgrade_info",
        json!({
            "status": upgrade.status,
            "target_version": upgrade.target_version,
            "target_version_voters": upgrade.target_voters,
            "target_version_non_voters": upgrade.target_non_voters,
            "other_version_voters": upgrade.other_voters,
            "other_version_non_voters": upgrade.other_non_voters,
            "redundancy_zones": {},
        }),
    );
    data
}

/// Waits for its zone's voter to fail.
fn is_standby(server: &AutopilotServer) -> bool {
    !server.voter && !server.non_voter && !server.redundancy_zone.is_empty()
}

fn shown_server(server: &AutopilotServer) -> Value {
    let zoned = !server.redundancy_zone.is_empty();
    let node_type = match (server.non_voter, zoned, server.voter) {
        (true, _, _) => "read-replica",
        (false, false, _) => "voter",
        (false, true, true) => "zone-voter",
        (false, true, false) => "zone-standby",
    };
    let status = match (server.leader, server.voter) {
        (true, _) => "leader",
        (false, true) => "voter",
        (false, false) => "non-voter",
    };
    let mut shown = json!({
        "id": server.name,
        "name": server.name,
        "address": server.cluster_addr,
        "node_status": if server.alive { "alive" } else { "failed" },
        "last_contact": duration::go(server.last_contact),
        "last_term": server.last_term,
        "last_index": server.last_index,
        "healthy": server.healthy,
        "stable_since": server.stable_since,
        "status": status,
        "version": server.version,
        "upgrade_version": server.upgrade_version,
        "node_type": node_type,
        "read_replica": server.non_voter,
    });
    if zoned && let Some(object) = shown.as_object_mut() {
        object.insert(
            "redundancy_zone".to_owned(),
            server.redundancy_zone.clone().into(),
        );
    }
    shown
}

/// By zone: who is there, who votes, and how many of them may fail before nobody of the zone can vote.
fn zones(state: &AutopilotState) -> Map<String, Value> {
    let mut zones = Map::new();
    for server in &state.servers {
        let zone = &server.redundancy_zone;
        if zone.is_empty() || zones.contains_key(zone) {
            continue;
        }
        let inside = || state.servers.iter().filter(|s| s.redundancy_zone == *zone);
        let names: Vec<&str> = inside().map(|s| s.name.as_str()).collect();
        let voters = inside().filter(|s| s.voter);
        let voters: Vec<&str> = voters.map(|s| s.name.as_str()).collect();
        let may_vote = inside().filter(|s| s.healthy && !s.non_voter).count();
        let shown = json!({
            "servers": names,
            "voters": voters,
            "failure_tolerance": may_vote.saturating_sub(1),
        });
        zones.insert(zone.clone(), shown);
    }
    zones
}
