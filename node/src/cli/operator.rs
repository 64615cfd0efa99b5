//! `operator init|members|key-status`.

use http::Method;
use serde_json::{Value, json};

use super::{
    Failure, Invocation,
    api::Api,
    flags::{Flag, Takes},
    output::{Format, Ordered, columns, plain, structured, table},
    secret,
};

const DEFAULT_RECOVERY_SHARES: i64 = 5;
const DEFAULT_RECOVERY_THRESHOLD: i64 = 3;

/// Flags of `operator init`.
pub(crate) const INIT_FLAGS: &[Flag] = &[
    Flag {
        name: "recovery-shares",
        takes: Takes::Number,
        value: "int",
        help: "Number of shares to split the recovery key into. The default is 5.",
    },
    Flag {
        name: "recovery-threshold",
        takes: Takes::Number,
        value: "int",
        help: "Number of shares that make up the recovery key again. The default is 3.",
    },
    Flag {
        name: "key-shares",
        takes: Takes::Number,
        value: "int",
        help: "For servers that are unsealed by hand: number of shares of the unseal key; -n for short.",
    },
    Flag {
        name: "n",
        takes: Takes::Number,
        value: "int",
        help: "Short for -key-shares.",
    },
    Flag {
        name: "key-threshold",
        takes: Takes::Number,
        value: "int",
        help: "For servers that are unsealed by hand: number of shares that unseal; -t for short.",
    },
    Flag {
        name: "t",
        takes: Takes::Number,
        value: "int",
        help: "Short for -key-threshold.",
    },
    Flag {
        name: "status",
        takes: Takes::Switch,
        value: "",
        help: "Print whether the server is initialized. The exit code is 0 if it is, 2 if not, 1 for an error. The default is false.",
    },
];

pub(crate) fn init(run: &mut Invocation<'_>) -> Result<(), Failure> {
    run.arguments::<0>()?;
    let mut api = run.api()?;
    if run.given.on("status") {
        return init_status(run, &mut api);
    }
    let format = run.format()?;
    let seal = api
        .get("sys/seal-status")
        .map_err(|error| error.during("Error initializing"))?
        .unwrap_or_default();
    let auto_seal = seal.get("recovery_seal") == Some(&Value::Bool(true));
    let number = |long: &str, short: &str, default: i64| {
        run.given
            .number(long)
            .or_else(|| run.given.number(short))
            .unwrap_or(default)
    };
    let key_default = |shamir: i64| if auto_seal { 0 } else { shamir };
    let recovery_default = |auto: i64| if auto_seal { auto } else { 0 };
    let shares = number("key-shares", "n", key_default(5));
    let threshold = number("key-threshold", "t", key_default(3));
    let recovery_shares = number(
        "recovery-shares",
        "",
        recovery_default(DEFAULT_RECOVERY_SHARES),
    );
    let recovery_threshold = number(
        "recovery-threshold",
        "",
        recovery_default(DEFAULT_RECOVERY_THRESHOLD),
    );
    let body = json!({
        "secret_shares": shares,
        "secret_threshold": threshold,
        "pgp_keys": null,
        "recovery_shares": recovery_shares,
        "recovery_threshold": recovery_threshold,
        "recovery_pgp_keys": null,
        "root_token_pgp_key": "",
    });
    let answer = api
        .call(Method::PUT, "sys/init", Some(&body))
        .map_err(|error| error.during("Error initializing"))?
        .unwrap_or_default();
    if format == Format::Table {
        return run.print(&init_text(
            &answer,
            [shares, threshold],
            [recovery_shares, recovery_threshold],
        ));
    }
    let list = |name: &str| answer.get(name).cloned().unwrap_or_else(|| json!([]));
    let mut fields = Ordered::default();
    fields.push("unseal_keys_b64", list("keys_base64"));
    fields.push("unseal_keys_hex", list("keys"));
    fields.push("unseal_shares", shares);
    fields.push("unseal_threshold", threshold);
    fields.push("recovery_keys_b64", list("recovery_keys_base64"));
    fields.push("recovery_keys_hex", list("recovery_keys"));
    fields.push("recovery_keys_shares", recovery_shares);
    fields.push("recovery_keys_threshold", recovery_threshold);
    fields.push(
        "root_token",
        answer.get("root_token").cloned().unwrap_or_default(),
    );
    run.print(&structured(&fields, format))
}

fn init_text(answer: &Value, [shares, threshold]: [i64; 2], recovery: [i64; 2]) -> String {
    let mut text = String::new();
    let keys = |name: &str| -> Vec<String> {
        let list = answer.get(name).and_then(Value::as_array);
        list.into_iter().flatten().map(plain).collect()
    };
    let unseal = keys("keys_base64");
    for (at, key) in unseal.iter().enumerate() {
        text.push_str(&format!("Unseal Key {}: {key}\n", at + 1));
    }
    for (at, key) in keys("recovery_keys_base64").iter().enumerate() {
        text.push_str(&format!("Recovery Key {}: {key}\n", at + 1));
    }
    let token = answer.get("root_token").map_or_else(String::new, plain);
    text.push_str(&format!(
        "\nInitial Root Token: {token}\n\nSuccess! Vault is initialized\n\n"
    ));
    if unseal.is_empty() {
        let [shares, threshold] = recovery;
        text.push_str(&format!(
            "The recovery key is split into {shares} shares, of which any {threshold} make it up again.\nThe shares and \
             the root token above are shown this once: hand each share to\nsomebody else, and keep them apart from this \
             cluster.\n"
        ));
    } else {
        text.push_str(&format!(
            "The unseal key is split into {shares} shares, of which any {threshold} unseal the server.\nThe shares and \
             the root token above are shown this once: hand each share to\nsomebody else.\n"
        ));
    }
    text
}

/// Exit code 0 initialised, 2 not, 1 error.
fn init_status(run: &mut Invocation<'_>, api: &mut Api) -> Result<(), Failure> {
    let answer = match api.get("sys/init") {
        Ok(answer) => answer.unwrap_or_default(),
        Err(error) => {
            return Err(match error.during("Error checking init status") {
                Failure::Remote(why) => Failure::Local(why),
                other @ (Failure::Local(_) | Failure::Shown(_) | Failure::Quiet(_)) => other,
            });
        }
    };
    let initialized = answer.get("initialized") == Some(&Value::Bool(true));
    if run.format()? == Format::Table {
        let negation = if initialized { "" } else { "not " };
        run.print(&format!("Vault is {negation}initialized\n"))?;
    } else {
        let mut fields = Ordered::default();
        fields.push("Initialized", initialized);
        secret::print_structured(run, &fields)?;
    }
    if initialized {
        Ok(())
    } else {
        Err(Failure::Quiet(2))
    }
}

/// Vault's order.
const MEMBER_FIELDS: &[&str] = &[
    "hostname",
    "api_address",
    "cluster_address",
    "active_node",
    "last_echo",
    "echo_duration_ms",
    "clock_skew_ms",
    "version",
    "upgrade_version",
    "redundancy_zone",
];

pub(crate) fn members(run: &mut Invocation<'_>) -> Result<(), Failure> {
    run.arguments::<0>()?;
    let format = run.format()?;
    let answer = run
        .api()?
        .get("sys/ha-status")
        .map_err(|error| error.during(""))?
        .unwrap_or_default();
    // Vault's name has a capital, OpenBao's wire has none.
    let nodes = ["/Nodes", "/nodes", "/data/Nodes", "/data/nodes"]
        .iter()
        .find_map(|pointer| answer.pointer(pointer).and_then(Value::as_array));
    let empty = Vec::new();
    let nodes = nodes.unwrap_or(&empty);
    if format != Format::Table {
        let nodes: Vec<Ordered> = nodes
            .iter()
            .map(|node| Ordered::pick(node, MEMBER_FIELDS))
            .collect();
        return secret::print_structured(
            run,
            &std::collections::BTreeMap::from([("Nodes", nodes)]),
        );
    }
    let mut rows = vec![
        [
            "Host Name",
            "API Address",
            "Cluster Address",
            "Active Node",
            "Version",
            "Upgrade Version",
            "Last Echo",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for node in nodes {
        let field = |name: &str| match node.get(name) {
            None | Some(Value::Null) => String::new(),
            Some(value) => plain(value),
        };
        rows.push(vec![
            field("hostname"),
            field("api_address"),
            field("cluster_address"),
            field("active_node"),
            field("version"),
            field("upgrade_version"),
            field("last_echo"),
        ]);
    }
    run.print(&table(&rows))
}

pub(crate) fn key_status(run: &mut Invocation<'_>) -> Result<(), Failure> {
    run.arguments::<0>()?;
    let format = run.format()?;
    let answer = run
        .api()?
        .get("sys/key-status")
        .map_err(|error| error.during("Error reading key status"))?
        .unwrap_or_default();
    let status = answer
        .get("data")
        .filter(|data| data.is_object())
        .unwrap_or(&answer);
    if format != Format::Table {
        let fields = Ordered::pick(status, &["term", "install_time", "encryptions"]);
        return secret::print_structured(run, &fields);
    }
    let field = |name: &str| status.get(name).map_or_else(String::new, plain);
    let installed = field("install_time");
    // As Vault writes it: "23 Nov 26 21:41 UTC".
    let installed = installed
        .parse::<jiff::Timestamp>()
        .map(|time| time.strftime("%d %b %y %H:%M UTC").to_string())
        .unwrap_or(installed);
    let rows = [
        ("Key Term", field("term")),
        ("Install Time", installed),
        ("Encryption Count", field("encryptions")),
    ]
    .map(|(name, value)| vec![name.to_owned(), value]);
    run.print(&columns(&rows))
}
