//! Printing what the server answered: one field, a table, or the whole as JSON or YAML.

use serde::Serialize;
use serde_json::Value;

use super::{
    Failure, Invocation,
    output::{Format, Ordered, human_seconds, key_values, plain, structured},
};

/// What Vault's command line keeps of an answer, in its order.
const ENVELOPE: &[&str] = &[
    "request_id",
    "lease_id",
    "lease_duration",
    "renewable",
    "data",
    "warnings",
];

const AUTH: &[&str] = &[
    "client_token",
    "accessor",
    "policies",
    "token_policies",
    "identity_policies",
    "metadata",
    "orphan",
    "entity_id",
    "lease_duration",
    "renewable",
    "mfa_requirement",
];

const WRAP_INFO: &[&str] = &[
    "token",
    "accessor",
    "ttl",
    "creation_time",
    "creation_path",
    "wrapped_accessor",
];

/// The answer in the order Vault's command line prints it; `auth` and `wrap_info` only when there.
pub(crate) fn envelope(answer: &Value) -> Ordered {
    let mut fields = Ordered::default();
    for name in ENVELOPE {
        fields.push(name, answer.get(name).cloned().unwrap_or_default());
    }
    for name in ["auth", "wrap_info"] {
        if let Some(value) = answer.get(name).filter(|value| !value.is_null()) {
            fields.push(name, value.clone());
        }
    }
    fields.arrange("auth", AUTH);
    fields.arrange("wrap_info", WRAP_INFO);
    fields
}

/// Whether there is anything to print: Vault takes an answer without data and warnings for none.
pub(crate) fn is_empty(answer: &Value) -> bool {
    ["data", "warnings", "auth", "wrap_info"]
        .iter()
        .all(|name| answer.get(name).is_none_or(Value::is_null))
}

/// Prints an answer as the flags ask.
///
/// # Errors
/// The field is not there.
pub(crate) fn print(run: &mut Invocation<'_>, answer: &Value) -> Result<(), Failure> {
    if let Some(field) = run.given.text("field").map(str::to_owned) {
        return print_field(run, answer, &field);
    }
    match run.format()? {
        Format::Table => {
            print_warnings(run, answer);
            let pairs = rows(answer);
            if !pairs.is_empty() {
                run.print(&key_values(&pairs))?;
            }
            Ok(())
        }
        format @ (Format::Json | Format::Yaml) => run.print(&structured(&envelope(answer), format)),
    }
}

/// Warnings go to standard error, so that a table can still be read by a program.
pub(crate) fn print_warnings(run: &mut Invocation<'_>, answer: &Value) {
    let warnings = answer.get("warnings").and_then(Value::as_array);
    let Some(warnings) = warnings.filter(|warnings| !warnings.is_empty()) else {
        return;
    };
    run.complain("WARNING! The following warnings were returned from the server:\n");
    for warning in warnings {
        run.complain(&format!("  * {}\n", plain(warning)));
    }
}

/// One field of the data, or of the authentication or wrapping.
///
/// # Errors
/// It is not there.
pub(crate) fn print_field(
    run: &mut Invocation<'_>,
    answer: &Value,
    field: &str,
) -> Result<(), Failure> {
    let found = match field {
        "wrapping_token" => answer.pointer("/wrap_info/token"),
        "wrapping_accessor" => answer.pointer("/wrap_info/accessor"),
        "token" => answer.pointer("/auth/client_token"),
        "token_accessor" => answer.pointer("/auth/accessor"),
        "token_duration" => answer.pointer("/auth/lease_duration"),
        "token_renewable" => answer.pointer("/auth/renewable"),
        "token_policies" => answer.pointer("/auth/token_policies"),
        "policies" => answer.pointer("/auth/policies"),
        "refresh_interval" => answer.get("lease_duration"),
        "data" => answer.get("data"),
        _ => None,
    };
    let found = found
        .or_else(|| answer.get("data").and_then(|data| data.get(field)))
        .filter(|value| !value.is_null());
    match found {
        Some(value) => print_value(run, value),
        None => Err(Failure::Local(format!(
            "Field {field:?} not present in secret"
        ))),
    }
}

/// A bare value: text as it is and without a line break unless a person reads it; `-format=json` quotes it.
pub(crate) fn print_value(run: &mut Invocation<'_>, value: &Value) -> Result<(), Failure> {
    let format = run.format()?;
    let text = match (format, value) {
        (Format::Json | Format::Yaml, _) => structured(value, format).trim_end().to_owned(),
        (Format::Table, Value::Object(_) | Value::Array(_)) => plain(value),
        (Format::Table, Value::String(text)) => text.clone(),
        (Format::Table, Value::Null | Value::Bool(_) | Value::Number(_)) => plain(value),
    };
    run.print(&text)?;
    if run.is_terminal {
        run.print("\n")?;
    }
    Ok(())
}

/// Anything else, as JSON or YAML.
pub(crate) fn print_structured<T: Serialize>(
    run: &mut Invocation<'_>,
    value: &T,
) -> Result<(), Failure> {
    let format = run.format()?;
    run.print(&structured(value, format))
}

/// A field in a table: numbers under a name that speaks of time are durations.
pub(crate) fn shown(name: &str, value: &Value) -> String {
    let is_time = matches!(name, "period" | "lease_max" | "ttl_max")
        || ["ttl", "duration", "period"].iter().any(|word| {
            name.strip_suffix(word)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('_'))
        });
    match value.as_i64() {
        Some(seconds) if is_time => human_seconds(seconds),
        _ => plain(value),
    }
}

fn rows(answer: &Value) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut add = |name: &str, value: String| pairs.push((name.to_owned(), value));
    let lease = answer
        .get("lease_duration")
        .and_then(Value::as_i64)
        .unwrap_or(0);
    let lease_id = answer.get("lease_id").and_then(Value::as_str).unwrap_or("");
    if lease > 0 {
        if lease_id.is_empty() {
            add("refresh_interval", human_seconds(lease));
        } else {
            add("lease_id", lease_id.to_owned());
            add("lease_duration", human_seconds(lease));
            add(
                "lease_renewable",
                plain(answer.get("renewable").unwrap_or(&Value::Null)),
            );
        }
    }
    if let Some(wrap) = answer.get("wrap_info").filter(|wrap| !wrap.is_null()) {
        let field = |name: &str| plain(wrap.get(name).unwrap_or(&Value::Null));
        add("wrapping_token:", field("token"));
        add("wrapping_accessor:", field("accessor"));
        let ttl = wrap.get("ttl").and_then(Value::as_i64).unwrap_or(0);
        add("wrapping_token_ttl:", human_seconds(ttl));
        add("wrapping_token_creation_time:", field("creation_time"));
        add("wrapping_token_creation_path:", field("creation_path"));
    }
    if let Some(auth) = answer.get("auth").filter(|auth| !auth.is_null()) {
        auth_rows(auth, &mut add);
    }
    if let Some(Value::Object(data)) = answer.get("data") {
        let mut fields: Vec<_> = data.iter().collect();
        fields.sort_by_key(|(name, _)| *name);
        for (name, value) in fields {
            add(name, shown(name, value));
        }
    }
    pairs
}

fn auth_rows(auth: &Value, add: &mut dyn FnMut(&str, String)) {
    let field = |name: &str| auth.get(name).unwrap_or(&Value::Null);
    add("token", plain(field("client_token")));
    add("token_accessor", plain(field("accessor")));
    let duration = match field("lease_duration").as_i64() {
        None | Some(0) => "∞".to_owned(),
        Some(seconds) => human_seconds(seconds),
    };
    add("token_duration", duration);
    add("token_renewable", plain(field("renewable")));
    for name in ["token_policies", "identity_policies", "policies"] {
        let empty = Vec::new();
        let policies = field(name).as_array().unwrap_or(&empty);
        let quoted: Vec<String> = policies.iter().map(Value::to_string).collect();
        add(name, format!("[{}]", quoted.join(" ")));
    }
}
