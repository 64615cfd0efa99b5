//! `kv put|get|list|delete`: asks the server which version the mount is, then uses the right paths.

use http::StatusCode;
use serde_json::{Value, json};

use super::{
    Failure, Invocation,
    api::Api,
    data,
    flags::{Flag, Takes},
    logical::{self, or_nothing, sanitize},
    output::{Format, heading, key_values, plain},
    secret,
};

const MOUNT: Flag = Flag {
    name: "mount",
    takes: Takes::One,
    value: "string",
    help: "Path where the KV store is mounted; the argument is then the secret's path in it. Without this flag the \
           argument holds both.",
};

/// Flags of `kv list` and `kv delete`.
pub(crate) const MOUNT_FLAGS: &[Flag] = &[MOUNT];

/// Flags of `kv get`.
pub(crate) const GET_FLAGS: &[Flag] = &[
    MOUNT,
    Flag {
        name: "version",
        takes: Takes::Number,
        value: "int",
        help: "Version of the secret to read, if the store keeps versions.",
    },
];

/// Flags of `kv put`.
pub(crate) const PUT_FLAGS: &[Flag] = &[
    MOUNT,
    Flag {
        name: "cas",
        takes: Takes::Number,
        value: "int",
        help: "Write only if the secret's current version is this one; 0: only if it does not exist. For a store that \
               keeps versions.",
    },
];

/// Where a secret is.
struct Place {
    /// As typed, for messages.
    shown: String,
    mount: String,
    below: String,
    /// The mount keeps versions.
    versioned: bool,
}

impl Place {
    /// The path to use; `part` is `data` or `metadata`, which only versioned mounts have.
    fn path(&self, part: &str) -> String {
        let pieces = if self.versioned {
            vec![self.mount.as_str(), part, self.below.as_str()]
        } else {
            vec![self.mount.as_str(), self.below.as_str()]
        };
        let pieces: Vec<&str> = pieces
            .into_iter()
            .filter(|piece| !piece.is_empty())
            .collect();
        pieces.join("/")
    }
}

/// Asks where the mount of a path ends and of which version it is.
fn locate(run: &Invocation<'_>, api: &mut Api, arg: &str) -> Result<Place, Failure> {
    let named = run.given.text("mount").map(sanitize);
    let shown = sanitize(arg);
    let asked = named.clone().unwrap_or_else(|| shown.clone());
    let unversioned = |mount: String, below: String| Place {
        shown: shown.clone(),
        mount,
        below,
        versioned: false,
    };
    if api.only_show {
        // Nothing is sent, so nobody can be asked: taken as it was typed.
        return Ok(match named {
            Some(mount) => unversioned(mount, shown.clone()),
            None => unversioned(String::new(), shown.clone()),
        });
    }
    let answer = match api.get(&format!("sys/internal/ui/mounts/{asked}")) {
        Ok(answer) => answer.unwrap_or_default(),
        // A server without that path has only unversioned stores.
        Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => {
            return Ok(match named {
                Some(mount) => unversioned(mount, shown.clone()),
                None => unversioned(String::new(), shown.clone()),
            });
        }
        Err(error) => return Err(error.during("")),
    };
    let mount = answer
        .pointer("/data/path")
        .and_then(Value::as_str)
        .map(sanitize)
        .ok_or_else(|| Failure::Remote("the server did not say where the mount is".to_owned()))?;
    let version = answer.pointer("/data/options/version");
    let versioned = version.is_some_and(|version| plain(version) == "2");
    let below = match &named {
        Some(_) => shown.clone(),
        None => shown.strip_prefix(&mount).map(sanitize).unwrap_or_default(),
    };
    Ok(Place {
        shown,
        mount,
        below,
        versioned,
    })
}

pub(crate) fn get(run: &mut Invocation<'_>) -> Result<(), Failure> {
    let [arg] = run.arguments()?;
    run.format()?;
    let mut api = run.api()?;
    let place = locate(run, &mut api, &arg)?;
    let path = place.path("data");
    let version = run
        .given
        .number("version")
        .filter(|version| *version > 0 && place.versioned)
        .map(|version| version.to_string());
    let query: Vec<(&str, &str)> = version.iter().map(|v| ("version", v.as_str())).collect();
    let answer = or_nothing(api.get_with(&path, &query))
        .map_err(|error| error.during(&format!("Error reading {path}")))?
        .ok_or_else(|| Failure::Remote(format!("No value found at {path}")))?;
    show(run, &place, &answer)
}

fn show(run: &mut Invocation<'_>, place: &Place, answer: &Value) -> Result<(), Failure> {
    let data = if place.versioned {
        answer.pointer("/data/data")
    } else {
        answer.get("data")
    };
    if let Some(field) = run.given.text("field").map(str::to_owned) {
        if !place.versioned {
            return secret::print_field(run, answer, &field);
        }
        return match data.and_then(|data| data.get(&field)) {
            Some(value) => secret::print_value(run, value),
            None => Err(Failure::Local(format!(
                "Field {field:?} not present in secret"
            ))),
        };
    }
    if run.format()? != Format::Table {
        return secret::print(run, answer);
    }
    secret::print_warnings(run, answer);
    let mut text = String::new();
    if place.versioned {
        text.push_str(&secret_path(&place.path("data")));
        let metadata = answer.pointer("/data/metadata").unwrap_or(&Value::Null);
        text.push_str(&section("Metadata", metadata));
        text.push('\n');
    }
    if let Some(data) = data.filter(|data| data.is_object()) {
        text.push_str(&section("Data", data));
    }
    run.print(&text)
}

fn secret_path(path: &str) -> String {
    format!("{}{path}\n\n", heading("Secret Path", path.chars().count()))
}

/// A heading and the fields of an object, sorted.
fn section(title: &str, object: &Value) -> String {
    let mut fields: Vec<(String, String)> = object
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), secret::shown(name, value)))
        .collect();
    fields.sort();
    // As wide as the line under the heading would be if the longest key were in it.
    let longest = fields.iter().map(|(name, _)| name.chars().count()).max();
    let width = longest.unwrap_or(0) + "    Value".len();
    format!("{}{}", heading(title, width), key_values(&fields))
}

pub(crate) fn put(run: &mut Invocation<'_>) -> Result<(), Failure> {
    let Some((arg, pairs)) = run.given.args.split_first() else {
        return Err(Failure::Local(
            "Not enough arguments (expected >1, got 0)".to_owned(),
        ));
    };
    let arg = arg.clone();
    if pairs.is_empty() {
        return Err(Failure::Local("Must supply data".to_owned()));
    }
    let data = data::parse(pairs, run.input)
        .map_err(|why| Failure::Local(format!("Failed to parse K=V data: {why}")))?;
    let mut api = run.api()?;
    let place = locate(run, &mut api, &arg)?;
    let path = place.path("data");
    if !place.versioned {
        return logical::put(run, &mut api, &path, &Value::Object(data));
    }
    let mut options = json!({});
    if let (Some(cas), Some(options)) = (run.given.number("cas"), options.as_object_mut())
        && cas >= 0
    {
        options.insert("cas".to_owned(), json!(cas));
    }
    let body = json!({"data": data, "options": options});
    let answer = api
        .call(http::Method::PUT, &path, Some(&body))
        .map_err(|error| error.during(&format!("Error writing data to {path}")))?
        .unwrap_or_default();
    if run.given.text("field").is_some() || run.format()? != Format::Table {
        return secret::print(run, &answer);
    }
    secret::print_warnings(run, &answer);
    let metadata = answer.get("data").unwrap_or(&Value::Null);
    let text = secret_path(&path) + &section("Metadata", metadata);
    run.print(&text)
}

pub(crate) fn list(run: &mut Invocation<'_>) -> Result<(), Failure> {
    // With -mount alone the whole mount is listed.
    let arg = match (run.given.args.as_slice(), run.given.text("mount")) {
        ([], Some(_)) => String::new(),
        _ => run.arguments::<1>()?.concat(),
    };
    let mut api = run.api()?;
    let place = locate(run, &mut api, &arg)?;
    let path = place.path("metadata");
    logical::list_at(run, &mut api, &path, &path)
}

pub(crate) fn delete(run: &mut Invocation<'_>) -> Result<(), Failure> {
    let [arg] = run.arguments()?;
    let mut api = run.api()?;
    let place = locate(run, &mut api, &arg)?;
    let path = place.path("data");
    logical::remove(run, &mut api, &path).map_err(|failure| match failure {
        Failure::Remote(why) => Failure::Remote(why.replacen(&path, &place.shown, 1)),
        other @ (Failure::Local(_) | Failure::Shown(_) | Failure::Quiet(_)) => other,
    })
}
