//! `login`: checks a token and keeps it.

use std::io::Read as _;

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    Failure, Invocation,
    flags::{Flag, Takes},
    output::Format,
    secret, token,
};

/// Longest token taken from standard input, bytes.
const MAX_TOKEN: u64 = 64 << 10;

/// Flags of `login`.
pub(crate) const FLAGS: &[Flag] = &[
    Flag {
        name: "method",
        takes: Takes::One,
        value: "string",
        help: "Kind of authentication. Only \"token\", the default, is available.",
    },
    Flag {
        name: "path",
        takes: Takes::One,
        value: "string",
        help: "Path of the authentication method; nothing to set for tokens.",
    },
    Flag {
        name: "no-print",
        takes: Takes::Switch,
        value: "",
        help: "Do not display the token. The default is false.",
    },
    Flag {
        name: "no-store",
        takes: Takes::Switch,
        value: "",
        help: "Do not keep the token. The default is false.",
    },
    Flag {
        name: "token-only",
        takes: Takes::Switch,
        value: "",
        help: "Print the token alone, without checking or keeping it. The default is false.",
    },
];

const STORED: &str = "\
Success! You are now authenticated. The token information displayed below is
already stored in the token helper. You do NOT need to run \"strongroom login\"
again. Future requests will automatically use this token.

";
const NOT_STORED: &str = "\
The token was not stored in token helper. Set the STRONGROOM_TOKEN or VAULT_TOKEN
environment variable or pass the token below with each request.
";

pub(crate) fn login(run: &mut Invocation<'_>) -> Result<(), Failure> {
    let format = run.format()?;
    if let Some(method) = run.given.text("method").filter(|method| *method != "token") {
        return Err(Failure::Local(format!(
            "Unknown auth method: {method}. Only \"token\" is available."
        )));
    }
    let entered = entered_token(run)?;
    if run.given.on("token-only") {
        return run.print(&entered);
    }
    let mut api = run.api()?;
    api.set_token(entered.clone());
    let found = api
        .get("auth/token/lookup-self")
        .map_err(|error| error.during("Error authenticating: error looking up token"))?
        .unwrap_or_default();
    let stored = !run.given.on("no-store");
    if stored {
        token::store(run.environment, &entered).map_err(|error| {
            Failure::Local(format!(
                "Error storing token: {error}\n\nAuthentication was successful, but the token was not persisted."
            ))
        })?;
        warn_of_environment(run);
    }
    if run.given.on("no-print") {
        return Ok(());
    }
    let answer = authenticated(&entered, found.get("data").unwrap_or(&Value::Null));
    if format == Format::Table && run.given.text("field").is_none() {
        if stored {
            run.print(STORED)?;
        } else {
            run.complain(NOT_STORED);
        }
    }
    secret::print(run, &answer)
}

/// A token in the environment goes before the kept one, so the login would seem to have had no effect.
fn warn_of_environment(run: &mut Invocation<'_>) {
    if let Some((name, _)) = run.environment.find("TOKEN") {
        run.complain(&format!(
            "WARNING! The {name} environment variable is set! The value of this variable\nwill take precedence; if this \
             is unwanted please unset {name} or update its\nvalue accordingly.\n"
        ));
    }
}

/// The argument, standard input for `-`, or what a person types unseen.
fn entered_token(run: &mut Invocation<'_>) -> Result<Zeroizing<String>, Failure> {
    let cannot = |error: std::io::Error| {
        Failure::Remote(format!(
            "Error authenticating: error reading token: {error}"
        ))
    };
    let arg = match run.given.args.as_slice() {
        [] => None,
        [arg] => Some(arg.clone()),
        more => {
            return Err(Failure::Local(format!(
                "Too many arguments (expected 0-1, got {})",
                more.len()
            )));
        }
    };
    let text = match arg.as_deref() {
        None if run.can_ask => {
            write!(run.err, "Token (will be hidden): ").map_err(cannot)?;
            Zeroizing::new(rpassword::read_password().map_err(cannot)?)
        }
        None | Some("-") => {
            let mut text = Zeroizing::new(String::new());
            let input: &mut dyn std::io::Read = run.input;
            input
                .take(MAX_TOKEN)
                .read_to_string(&mut text)
                .map_err(cannot)?;
            text
        }
        // `token=…` is what the method's parameter is called.
        Some(arg) => Zeroizing::new(arg.strip_prefix("token=").unwrap_or(arg).to_owned()),
    };
    let token = Zeroizing::new(text.trim().to_owned());
    if token.is_empty() {
        return Err(Failure::Remote(
            "Error authenticating: a token must be supplied".to_owned(),
        ));
    }
    Ok(token)
}

/// The lookup's answer in the form of a login's, as Vault's token method makes it.
fn authenticated(token: &str, data: &Value) -> Value {
    let field = |name: &str| data.get(name).cloned().unwrap_or_default();
    let policies = field("policies");
    let identity = field("identity_policies");
    let own: Vec<Value> = policies
        .as_array()
        .into_iter()
        .flatten()
        .filter(|policy| {
            !identity
                .as_array()
                .is_some_and(|list| list.contains(policy))
        })
        .cloned()
        .collect();
    json!({
        "request_id": "",
        "lease_id": "",
        "lease_duration": 0,
        "renewable": false,
        "data": null,
        "warnings": null,
        "auth": {
            "client_token": token,
            "accessor": field("accessor"),
            "policies": policies,
            "token_policies": own,
            "identity_policies": identity,
            "metadata": field("meta"),
            "orphan": false,
            "entity_id": field("entity_id"),
            "lease_duration": field("ttl").as_i64().unwrap_or(0),
            "renewable": field("renewable").as_bool().unwrap_or(false),
            "mfa_requirement": null,
        },
    })
}
