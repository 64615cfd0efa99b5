//! `operator raft list-peers|join`.

use http::Method;
use serde_json::{Value, json};

use super::{
    Failure, Invocation,
    flags::{Flag, Takes},
    output::{Format, key_values, plain, table},
    secret,
};

/// Flags of `operator raft join`.
pub(crate) const JOIN_FLAGS: &[Flag] = &[
    Flag {
        name: "leader-ca-cert",
        takes: Takes::One,
        value: "string",
        help: "CA certificate to verify the other node with: PEM text or @FILE.",
    },
    Flag {
        name: "leader-client-cert",
        takes: Takes::One,
        value: "string",
        help: "Certificate to show to the other node: PEM text or @FILE.",
    },
    Flag {
        name: "leader-client-key",
        takes: Takes::One,
        value: "string",
        help: "Key of that certificate: PEM text or @FILE.",
    },
    Flag {
        name: "leader-tls-servername",
        takes: Takes::One,
        value: "string",
        help: "Name the other node's certificate must be for, when it is not the host of its address.",
    },
    Flag {
        name: "non-voter",
        takes: Takes::Switch,
        value: "",
        help: "Join without a vote. The default is false.",
    },
    Flag {
        name: "retry",
        takes: Takes::Switch,
        value: "",
        help: "Go on trying until it works. The default is false.",
    },
];

pub(crate) fn list_peers(run: &mut Invocation<'_>) -> Result<(), Failure> {
    run.arguments::<0>()?;
    let format = run.format()?;
    let answer = run
        .api()?
        .get("sys/storage/raft/configuration")
        .map_err(|error| error.during("Error reading the raft cluster configuration"))?
        .unwrap_or_default();
    if format != Format::Table {
        return secret::print(run, &answer);
    }
    let mut rows = vec![
        ["Node", "Address", "State", "Voter"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let servers = answer
        .pointer("/data/config/servers")
        .and_then(Value::as_array);
    for server in servers.into_iter().flatten() {
        let field = |name: &str| server.get(name).map_or_else(String::new, plain);
        let state = if server.get("leader") == Some(&Value::Bool(true)) {
            "leader"
        } else {
            "follower"
        };
        rows.push(vec![
            field("node_id"),
            field("address"),
            state.to_owned(),
            field("voter"),
        ]);
    }
    run.print(&table(&rows))
}

pub(crate) fn join(run: &mut Invocation<'_>) -> Result<(), Failure> {
    let format = run.format()?;
    let leader = match run.given.args.as_slice() {
        [] => String::new(),
        _ => run.arguments::<1>()?.concat().trim().to_owned(),
    };
    let pem = |name: &str| from_file(run.given.text(name).unwrap_or_default());
    let body = json!({
        "auto_join": "",
        "auto_join_scheme": "",
        "auto_join_port": 0,
        "leader_api_addr": leader,
        "leader_ca_cert": pem("leader-ca-cert")?,
        "leader_client_cert": pem("leader-client-cert")?,
        "leader_client_key": pem("leader-client-key")?,
        "leader_tls_servername": run.given.text("leader-tls-servername").unwrap_or_default(),
        "retry": run.given.on("retry"),
        "non_voter": run.given.on("non-voter"),
    });
    let answer = run
        .api()?
        .call(Method::POST, "sys/storage/raft/join", Some(&body))
        .map_err(|error| error.during("Error joining the node to the Raft cluster"))?
        .unwrap_or_default();
    if format != Format::Table {
        return secret::print_structured(run, &answer);
    }
    let joined = answer.get("joined").map_or_else(String::new, plain);
    run.print(&key_values(&[("Joined".to_owned(), joined)]))
}

/// PEM text as it is, or the content of the file behind an at sign.
fn from_file(text: &str) -> Result<String, Failure> {
    let Some(path) = text.strip_prefix('@') else {
        return Ok(text.to_owned());
    };
    std::fs::read_to_string(path)
        .map_err(|error| Failure::Local(format!("error reading {path}: {error}")))
}
