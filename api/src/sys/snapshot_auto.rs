//! `sys/storage/raft/snapshot-auto`: schedules of snapshots that the leader takes by itself.
//!
//! In: parameters as Vault's Enterprise edition takes them. Out: schedules and their outcomes, kept behind the barrier;
//! the node carries them out.
//!
//! Invariants
//! - Only directories on the leader's machine are written to; other kinds of storage are refused, not ignored.
//! - What came of the last attempt is kept with the data, so that a new leader goes on where the last one was.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{parse, unsupported};
use crate::{
    core::Core,
    duration,
    engines::Operation,
    http::{
        error::ApiError,
        request::ApiRequest,
        response::{Reply, object},
    },
    storage::{Batch, Layer, Storage, StorageError},
};

const CONFIGS: &str = "core/snapshot-auto/config";
const OUTCOMES: &str = "core/snapshot-auto/status";
/// Longest name of a schedule, bytes.
const MAX_NAME: usize = 128;
/// Schedules there may be.
const MAX_SCHEDULES: usize = 32;
/// Seconds.
const SHORTEST_INTERVAL: u64 = 1;
const LONGEST_INTERVAL: u64 = 366 * 24 * 3600;

/// One schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Seconds between two snapshots.
    pub interval: u64,
    /// Snapshots that are kept.
    pub retain: u32,
    /// Directory, absolute.
    pub path_prefix: String,
    /// What the files' names start with.
    pub file_prefix: String,
    /// Bytes that all snapshots of the schedule may take together; 0: no limit.
    pub local_max_space: u64,
}

/// What came of the attempts of a schedule so far. Times are milliseconds since the Unix epoch; 0: never.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// Start of the last attempt.
    pub last_start_ms: u64,
    /// Its end.
    pub last_end_ms: u64,
    /// Why it failed; empty: it did not.
    pub last_error: String,
    /// `file://` URL of the last snapshot that was taken.
    pub last_url: String,
    /// Attempts that have failed since one succeeded.
    pub consecutive_errors: u32,
    /// Node that made the last attempt.
    pub node: String,
}

impl Outcome {
    /// When the next attempt is due, milliseconds since the Unix epoch. A failure is tried again sooner.
    #[must_use]
    pub fn next_ms(&self, schedule: &Schedule) -> u64 {
        let interval = schedule.interval.saturating_mul(1000);
        let pause = match self.consecutive_errors {
            0 => interval,
            errors => interval.min(15_000_u64.saturating_mul(1 << errors.min(8))),
        };
        match self.last_start_ms {
            0 => 0,
            start => start.saturating_add(pause),
        }
    }
}

/// Every schedule with what came of it, by name.
///
/// # Errors
/// When the state cannot be read.
pub async fn schedules(core: &Core) -> Result<Vec<(String, Schedule, Outcome)>, StorageError> {
    let storage = core.storage();
    let mut found = Vec::new();
    for name in storage.list(CONFIGS).await? {
        if let Some(schedule) = get(storage, CONFIGS, &name).await? {
            let outcome = get(storage, OUTCOMES, &name).await?.unwrap_or_default();
            found.push((name, schedule, outcome));
        }
    }
    Ok(found)
}

/// Records what came of an attempt. Only the leader can.
///
/// # Errors
/// See [`StorageError`].
pub async fn record(
    core: &Core,
    name: &str,
    outcome: &Outcome,
    deadline: Instant,
) -> Result<(), StorageError> {
    let json =
        serde_json::to_vec(outcome).map_err(|_| StorageError::Malformed("snapshot outcome"))?;
    let mut batch = Batch::default();
    batch.put(format!("{OUTCOMES}/{name}"), json, Layer::Barrier);
    let id = uuid::Uuid::new_v4().into_bytes();
    core.storage().commit(batch, id, deadline).await?;
    Ok(())
}

async fn get<T: serde::de::DeserializeOwned>(
    storage: &Storage,
    folder: &str,
    name: &str,
) -> Result<Option<T>, StorageError> {
    let Some(entry) = storage.get(&format!("{folder}/{name}")).await? else {
        return Ok(None);
    };
    serde_json::from_slice(&entry.value)
        .map(Some)
        .map_err(|_| StorageError::Malformed("snapshot schedule"))
}

/// `inside` is the path below `snapshot-auto/`.
pub(super) async fn handle(core: &Core, api: &ApiRequest, inside: &str) -> Result<Reply, ApiError> {
    match (inside.split_once('/'), api.operation) {
        (None, Operation::List) if inside == "config" => list(core).await,
        (Some(("config", "")), Operation::List) => list(core).await,
        (Some(("config", name)), operation) if !name.is_empty() => match operation {
            Operation::Read => read(core, name).await,
            Operation::Write => write(core, api, name).await,
            Operation::Delete => delete(core, api, name).await,
            Operation::List | Operation::Patch => Err(ApiError::UnsupportedOperation),
        },
        (Some(("status", name)), Operation::Read) if !name.is_empty() => status(core, name).await,
        (Some(("status", _)), _) => Err(ApiError::UnsupportedOperation),
        _ => Err(unsupported()),
    }
}

async fn list(core: &Core) -> Result<Reply, ApiError> {
    Reply::list(core.storage().list(CONFIGS).await?)
}

async fn read(core: &Core, name: &str) -> Result<Reply, ApiError> {
    let schedule: Schedule = find(core, name).await?;
    let mut data = object(&schedule)?;
    data.insert("storage_type".to_owned(), "local".into());
    data.insert("autoload_enabled".to_owned(), false.into());
    Ok(Reply::data(data))
}

async fn find(core: &Core, name: &str) -> Result<Schedule, ApiError> {
    check_name(name)?;
    get(core.storage(), CONFIGS, name)
        .await?
        .ok_or(ApiError::NotFound)
}

async fn write(core: &Core, api: &ApiRequest, name: &str) -> Result<Reply, ApiError> {
    check_name(name)?;
    let known = core.storage().list(CONFIGS).await?;
    if known.len() >= MAX_SCHEDULES && !known.iter().any(|other| other == name) {
        return Err(bad(format!(
            "there are {MAX_SCHEDULES} schedules already; remove one first"
        )));
    }
    let schedule = checked(parse(api)?, &api.fields)?;
    let json =
        serde_json::to_vec(&schedule).map_err(|error| ApiError::Internal(error.to_string()))?;
    let mut batch = Batch::default();
    batch.put(format!("{CONFIGS}/{name}"), json, Layer::Barrier);
    core.storage()
        .commit(batch, api.request_id, api.deadline)
        .await?;
    Ok(Reply::Empty)
}

async fn delete(core: &Core, api: &ApiRequest, name: &str) -> Result<Reply, ApiError> {
    check_name(name)?;
    let mut batch = Batch::default();
    batch.delete(format!("{CONFIGS}/{name}"));
    batch.delete(format!("{OUTCOMES}/{name}"));
    core.storage()
        .commit(batch, api.request_id, api.deadline)
        .await?;
    Ok(Reply::Empty)
}

async fn status(core: &Core, name: &str) -> Result<Reply, ApiError> {
    let schedule = find(core, name).await?;
    let outcome: Outcome = get(core.storage(), OUTCOMES, name)
        .await?
        .unwrap_or_default();
    let time = |ms: u64| {
        let ms = i64::try_from(ms).ok().filter(|ms| *ms > 0)?;
        let time = jiff::Timestamp::from_millisecond(ms).ok()?;
        Some(time.to_string())
    };
    Ok(Reply::data(object(&json!({
        "consecutive_errors": outcome.consecutive_errors,
        "last_snapshot_start": time(outcome.last_start_ms),
        "last_snapshot_end": time(outcome.last_end_ms),
        "last_snapshot_error": outcome.last_error,
        "last_snapshot_url": outcome.last_url,
        "last_snapshot_node": outcome.node,
        "next_snapshot_start": time(outcome.next_ms(&schedule)),
    }))?))
}

fn bad(why: impl Into<String>) -> ApiError {
    ApiError::BadRequest(why.into())
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.len() > MAX_NAME || !name.chars().all(plain) || name.starts_with('.') {
        return Err(bad(format!(
            "a schedule's name is up to {MAX_NAME} letters, digits, '-', '_' and '.'"
        )));
    }
    Ok(())
}

/// Parameters as they come; those of other kinds of storage are named so that they can be refused.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Parameters {
    interval: Value,
    retain: Value,
    path_prefix: String,
    file_prefix: Option<String>,
    storage_type: String,
    local_max_space: Value,
    autoload_enabled: bool,
}

fn checked(given: Parameters, fields: &Map<String, Value>) -> Result<Schedule, ApiError> {
    match given.storage_type.as_str() {
        "local" => {}
        "" => return Err(bad("storage_type must be set; \"local\" is supported")),
        other => {
            return Err(bad(format!(
                "storage_type {other:?} is not supported; use \"local\" with a directory that is copied or mounted from \
                 elsewhere"
            )));
        }
    }
    if given.autoload_enabled {
        return Err(bad("autoload_enabled is not supported"));
    }
    let foreign = ["aws_", "azure_", "google_"];
    if let Some(name) = fields
        .keys()
        .find(|name| foreign.iter().any(|prefix| name.starts_with(prefix)))
    {
        return Err(bad(format!(
            "{name} does not go with storage_type \"local\""
        )));
    }
    let interval = duration::seconds(&given.interval)
        .filter(|seconds| (SHORTEST_INTERVAL..=LONGEST_INTERVAL).contains(seconds))
        .ok_or_else(|| bad("interval must be a duration from 1s to 366 days"))?;
    let retain = number(&given.retain, 1)
        .and_then(|retain| u32::try_from(retain).ok())
        .filter(|retain| *retain > 0)
        .ok_or_else(|| bad("retain must be a number of at least 1"))?;
    let local_max_space = number(&given.local_max_space, 0)
        .ok_or_else(|| bad("local_max_space must be a number of bytes"))?;
    let path_prefix = given.path_prefix.trim_end_matches('/');
    if !path_prefix.starts_with('/') || path_prefix.split('/').any(|part| part == "..") {
        return Err(bad("path_prefix must be an absolute directory"));
    }
    let file_prefix = given
        .file_prefix
        .unwrap_or_else(|| "vault-snapshot".to_owned());
    if file_prefix.is_empty()
        || file_prefix.len() > MAX_NAME
        || file_prefix.starts_with('.')
        || file_prefix.contains('/')
    {
        return Err(bad("file_prefix must be the start of a file's name"));
    }
    Ok(Schedule {
        interval,
        retain,
        path_prefix: path_prefix.to_owned(),
        file_prefix,
        local_max_space,
    })
}

/// A number, also as text as the command line sends it.
fn number(value: &Value, default: u64) -> Option<u64> {
    match value {
        Value::Null => Some(default),
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: Value) -> Result<Schedule, String> {
        let Value::Object(fields) = given.clone() else {
            panic!("an object");
        };
        checked(serde_json::from_value(given).unwrap(), &fields).map_err(|error| error.to_string())
    }

    #[test]
    fn parameters_are_checked() {
        let with = |name: &str, value: Value| {
            let mut given =
                json!({"storage_type": "local", "interval": "1h", "path_prefix": "/var/snaps"});
            given[name] = value;
            check(given)
        };
        let schedule = with("retain", json!("7")).unwrap();
        assert_eq!((schedule.interval, schedule.retain), (3600, 7));
        assert_eq!(schedule.file_prefix, "vault-snapshot");
        for (name, value, want) in [
            (
                "storage_type",
                json!("aws-s3"),
                "\"aws-s3\" is not supported",
            ),
            ("storage_type", json!(""), "storage_type must be set"),
            ("interval", json!("soon"), "interval must be"),
            ("interval", json!(0), "interval must be"),
            ("retain", json!(0), "retain must be"),
            ("retain", json!("many"), "retain must be"),
            ("path_prefix", json!("snaps"), "path_prefix must be"),
            ("path_prefix", json!("/a/../b"), "path_prefix must be"),
            ("file_prefix", json!("a/b"), "file_prefix must be"),
            ("file_prefix", json!(""), "file_prefix must be"),
            ("local_max_space", json!(-1), "local_max_space must be"),
            ("aws_s3_bucket", json!("b"), "aws_s3_bucket does not go"),
            ("autoload_enabled", json!(true), "autoload_enabled is not"),
        ] {
            let error = with(name, value).unwrap_err();
            assert!(error.contains(want), "{name}: {error}");
        }
        for name in ["a/b", "..", ".a", "a b", "a%"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_failure_is_tried_again_sooner() {
        let schedule =
            check(json!({"storage_type": "local", "interval": "1h", "path_prefix": "/s"})).unwrap();
        let after = |errors| {
            let outcome = Outcome {
                last_start_ms: 1_000_000,
                consecutive_errors: errors,
                ..Outcome::default()
            };
            outcome.next_ms(&schedule) - 1_000_000
        };
        assert_eq!(Outcome::default().next_ms(&schedule), 0);
        assert_eq!(
            [after(0), after(1), after(2), after(7), after(99)],
            [3_600_000, 30_000, 60_000, 1_920_000, 3_600_000]
        );
    }
}
