//! `read`, `write`, `list` and `delete`: any path, as it is.

use http::{Method, StatusCode};
use serde_json::Value;

use super::{
    Failure, Invocation,
    api::{Api, ApiError},
    data,
    flags::{Flag, Takes},
    output::{Format, table},
    secret,
};

/// Flags of `write`.
pub(crate) const WRITE_FLAGS: &[Flag] = &[
    Flag {
        name: "force",
        takes: Takes::Switch,
        value: "",
        help: "Allow the operation to continue with no key=value pairs. The default is false.",
    },
    Flag {
        name: "f",
        takes: Takes::Switch,
        value: "",
        help: "Short for -force.",
    },
];

/// As typed, without spaces and slashes around it.
pub(crate) fn sanitize(path: &str) -> String {
    path.trim().trim_matches('/').to_owned()
}

/// 404 is no error for what only asks: `None`, unless the body has something to say.
///
/// # Errors
/// Any other refusal.
pub(crate) fn or_nothing(
    outcome: Result<Option<Value>, ApiError>,
) -> Result<Option<Value>, ApiError> {
    match outcome {
        Err(ApiError::Status { status, body, .. }) if status == StatusCode::NOT_FOUND => {
            let parsed: Option<Value> = serde_json::from_slice(&body).ok();
            Ok(parsed.filter(|answer| !secret::is_empty(answer)))
        }
        other => other,
    }
}

fn nothing_at(path: &str) -> Failure {
    Failure::Remote(format!("No value found at {path}"))
}

pub(crate) fn read(run: &mut Invocation<'_>) -> Result<(), Failure> {
    let [path] = run.arguments()?;
    let path = sanitize(&path);
    run.format()?;
    let answer = or_nothing(run.api()?.get(&path))
        .map_err(|error| error.during(&format!("Error reading {path}")))?;
    match answer {
        Some(answer) => secret::print(run, &answer),
        None => Err(nothing_at(&path)),
    }
}

pub(crate) fn write(run: &mut Invocation<'_>) -> Result<(), Failure> {
    let Some((path, pairs)) = run.given.args.split_first() else {
        return Err(Failure::Local(
            "Not enough arguments (expected 1, got 0)".to_owned(),
        ));
    };
    let path = sanitize(path);
    let forced = run.given.on("force") || run.given.on("f");
    if pairs.is_empty() && !forced {
        return Err(Failure::Local("Must supply data or use -force".to_owned()));
    }
    let data = data::parse(pairs, run.input)
        .map_err(|why| Failure::Local(format!("Failed to parse K=V data: {why}")))?;
    let mut api = run.api()?;
    put(run, &mut api, &path, &Value::Object(data))
}

/// Writes and says so, or prints what came back.
///
/// # Errors
/// The server refused.
pub(crate) fn put(
    run: &mut Invocation<'_>,
    api: &mut Api,
    path: &str,
    data: &Value,
) -> Result<(), Failure> {
    let format = run.format()?;
    let answer = api
        .call(Method::PUT, path, Some(data))
        .map_err(|error| error.during(&format!("Error writing data to {path}")))?;
    match answer {
        Some(answer) => secret::print(run, &answer),
        None if format == Format::Table => {
            run.print(&format!("Success! Data written to: {path}\n"))
        }
        None => Ok(()),
    }
}

pub(crate) fn delete(run: &mut Invocation<'_>) -> Result<(), Failure> {
    let [path] = run.arguments()?;
    let path = sanitize(&path);
    let mut api = run.api()?;
    remove(run, &mut api, &path)
}

/// Deletes and says so.
///
/// # Errors
/// The server refused.
pub(crate) fn remove(run: &mut Invocation<'_>, api: &mut Api, path: &str) -> Result<(), Failure> {
    let format = run.format()?;
    let answer = api
        .call(Method::DELETE, path, None)
        .map_err(|error| error.during(&format!("Error deleting {path}")))?;
    if let Some(answer) = &answer {
        secret::print_warnings(run, answer);
    }
    if format == Format::Table {
        run.print(&format!(
            "Success! Data deleted (if it existed) at: {path}\n"
        ))?;
    }
    Ok(())
}

pub(crate) fn list(run: &mut Invocation<'_>) -> Result<(), Failure> {
    let [path] = run.arguments()?;
    let path = sanitize(&path);
    let mut api = run.api()?;
    list_at(run, &mut api, &path, &path)
}

/// Lists `path`; messages name `shown`.
///
/// # Errors
/// The server refused, or there is nothing.
pub(crate) fn list_at(
    run: &mut Invocation<'_>,
    api: &mut Api,
    path: &str,
    shown: &str,
) -> Result<(), Failure> {
    let format = run.format()?;
    let answer = or_nothing(api.list(path))
        .map_err(|error| error.during(&format!("Error listing {shown}")))?;
    let keys = answer
        .as_ref()
        .and_then(|answer| answer.pointer("/data/keys"))
        .filter(|keys| keys.is_array());
    let Some(keys) = keys else {
        if format == Format::Table {
            return Err(nothing_at(shown));
        }
        run.print("{}\n")?;
        return Err(Failure::Quiet(2));
    };
    if format != Format::Table {
        return secret::print_structured(run, keys);
    }
    let mut rows = vec![vec!["Keys".to_owned()]];
    for key in keys.as_array().into_iter().flatten() {
        rows.push(vec![key.as_str().unwrap_or_default().to_owned()]);
    }
    if let Some(answer) = &answer {
        secret::print_warnings(run, answer);
    }
    run.print(&table(&rows))
}
