//! What a user types on the first day, on every node, with `strongroom` and with the real `bao`.

use serde_json::{Value, json};
use strongroom_jepsen_tests::{Cluster, Output, cli, logs::STARTING, machine};

use crate::BINARY;

type Run = fn(&Cluster, usize, &[&str]) -> Output;

const TOOLS: [(&str, Run); 2] = [
    ("strongroom", |cluster, node, args| {
        cluster.strongroom(node, args)
    }),
    ("bao", |cluster, node, args| cluster.bao(node, args)),
];

#[test]
fn both_clients_on_every_node() {
    let mut cluster = Cluster::initialized(3, BINARY);
    for (name, run) in TOOLS {
        for node in 1..=3 {
            eprintln!("---- {name} on node {node}");
            let on = |args: &[&str]| run(&cluster, node, args);
            mounts(&on);
            for other in 1..=3 {
                let read = run(
                    &cluster,
                    other,
                    &["kv", "get", "-field=password", "kv-seal-wrapped/wrapped"],
                )
                .ok();
                assert_eq!(read.stdout.trim(), "correct horse", "node {other}");
            }
            values(&on);
            facts(&cluster, &on, node);
            for mount in ["kv-unwrapped", "kv-seal-wrapped"] {
                let gone = on(&["secrets", "disable", mount]).ok();
                assert!(
                    gone.stdout.contains("Success! Disabled the secrets engine"),
                    "{}",
                    gone.stdout
                );
            }
            assert_eq!(
                on(&["read", "kv-unwrapped/unwrapped"]).code,
                2,
                "a disabled mount serves nothing"
            );
        }
    }
    login(&cluster);
    cluster.assert_logs_clean(&[STARTING]);
    for node in 1..=3 {
        assert!(cluster.runs(node));
    }
}

fn mounts(on: &impl Fn(&[&str]) -> Output) {
    let made = on(&["secrets", "enable", "-path=kv-unwrapped", "kv"]).ok();
    assert!(
        made.stdout
            .contains("Success! Enabled the kv secrets engine at: kv-unwrapped/"),
        "{}",
        made.stdout
    );
    let _ = on(&[
        "secrets",
        "enable",
        "-path=kv-seal-wrapped",
        "-seal-wrap",
        "-version=1",
        "-description=layered",
        "kv",
    ])
    .ok();
    let twice = on(&["secrets", "enable", "-path=kv-unwrapped", "kv"]).expect(2);
    assert!(
        twice
            .stderr
            .contains("path is already in use at kv-unwrapped/"),
        "{}",
        twice.stderr
    );

    let list = on(&["secrets", "list", "-format=json"]).ok().json();
    assert_eq!(
        (
            &list["kv-unwrapped/"]["seal_wrap"],
            &list["kv-unwrapped/"]["type"]
        ),
        (&json!(false), &json!("kv"))
    );
    assert_eq!(list["kv-seal-wrapped/"]["seal_wrap"], true);
    assert_eq!(list["kv-seal-wrapped/"]["description"], "layered");
    let table = on(&["secrets", "list", "-detailed"]).ok().stdout;
    assert!(
        table.contains("Seal Wrap") && table.contains("kv-seal-wrapped/"),
        "{table}"
    );

    let put = on(&[
        "kv",
        "put",
        "kv-unwrapped/unwrapped",
        "password=correct horse",
        "user=app",
    ])
    .ok();
    assert!(
        put.stdout
            .contains("Success! Data written to: kv-unwrapped/unwrapped"),
        "{}",
        put.stdout
    );
    let _ = on(&[
        "kv",
        "put",
        "-mount=kv-seal-wrapped",
        "wrapped",
        "password=correct horse",
    ])
    .ok();
}

fn values(on: &impl Fn(&[&str]) -> Output) {
    for (mount, name) in [
        ("kv-unwrapped", "unwrapped"),
        ("kv-seal-wrapped", "wrapped"),
    ] {
        let path = format!("{mount}/{name}");
        let got = on(&["kv", "get", "-format=json", &path]).ok().json();
        assert_eq!(got["data"]["password"], "correct horse");
        assert!(
            on(&["kv", "get", &path])
                .ok()
                .stdout
                .contains("password    correct horse")
        );
        let _ = on(&["write", &format!("{mount}/dir/deep"), "a=1", "b=two"]).ok();
        assert_eq!(
            on(&["read", "-field=b", &format!("{mount}/dir/deep")])
                .ok()
                .stdout
                .trim(),
            "two"
        );
        assert_eq!(
            on(&["list", "-format=json", mount]).ok().json(),
            json!(["dir/", name])
        );
        assert_eq!(
            on(&["kv", "list", "-format=json", &format!("{mount}/dir")])
                .ok()
                .json(),
            json!(["deep"])
        );
        let _ = on(&["delete", &format!("{mount}/dir/deep")]).ok();
        let _ = on(&["kv", "delete", &path]).ok();
        let missing = on(&["kv", "get", &path]).expect(2);
        assert!(
            missing.stderr.contains("No value found at"),
            "{}",
            missing.stderr
        );
        assert_eq!(on(&["list", mount]).code, 2, "nothing is left to list");
        let _ = on(&["kv", "put", &path, "password=correct horse"]).ok();
    }
    assert_eq!(on(&["kv", "get", "nosuchmount/x"]).code, 2);
}

fn facts(cluster: &Cluster, on: &impl Fn(&[&str]) -> Output, node: usize) {
    let status = on(&["status", "-format=json"]).ok().json();
    for (field, value) in [
        ("sealed", json!(false)),
        ("initialized", json!(true)),
        ("type", json!("pkcs11")),
        ("storage_type", json!("raft")),
        ("ha_enabled", json!(true)),
        ("cluster_name", json!("strongroom-test")),
    ] {
        assert_eq!(status[field], value, "{field} in {status}");
    }
    assert!(
        on(&["status"])
            .ok()
            .stdout
            .contains("Sealed                   false")
    );

    let peers = on(&["operator", "raft", "list-peers", "-format=json"])
        .ok()
        .json();
    let servers = peers["data"]["config"]["servers"]
        .as_array()
        .unwrap()
        .clone();
    let mut names: Vec<&str> = servers
        .iter()
        .map(|server| server["node_id"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["node-1", "node-2", "node-3"]);
    assert!(
        servers.iter().all(|server| server["voter"] == true),
        "{peers}"
    );
    let leaders = |servers: &[Value]| {
        servers
            .iter()
            .filter(|server| server["leader"] == true)
            .count()
    };
    assert_eq!(leaders(&servers), 1, "{peers}");
    assert!(
        on(&["operator", "raft", "list-peers"])
            .ok()
            .stdout
            .contains("node-3")
    );

    let members = on(&["operator", "members", "-format=json"]).ok().json();
    let nodes = members["nodes"]
        .as_array()
        .or(members["Nodes"].as_array())
        .or(members.as_array())
        .unwrap();
    assert_eq!(nodes.len(), 3, "{members}");
    assert!(
        nodes
            .iter()
            .any(|member| member["api_address"] == cluster.url(node)),
        "{members}"
    );
    assert!(
        on(&["operator", "members"])
            .ok()
            .stdout
            .contains("Active Node")
    );

    let key = on(&["operator", "key-status", "-format=json"]).ok().json();
    assert_eq!(
        key["term"].as_u64().or(key["data"]["term"].as_u64()),
        Some(1),
        "{key}"
    );
    assert!(
        on(&["operator", "key-status"])
            .ok()
            .stdout
            .contains("Key Term")
    );
    assert!(on(&["version"]).ok().stdout.contains('v'));
}

/// A token given at login is kept in the home directory and used from there.
fn login(cluster: &Cluster) {
    let token = cluster.root_token().unwrap().to_owned();
    let helper = cluster.home().join(".vault-token");
    for (name, program, prefix) in [
        ("strongroom", cluster.binary().to_owned(), "STRONGROOM"),
        ("bao", machine::bao(), "BAO"),
    ] {
        // Not there before the first login.
        let _ = std::fs::remove_file(&helper);
        let run = |args: &[&str], stdin: &str| {
            let mut command = cli::clean(&program);
            command.args(args).env("HOME", cluster.home());
            command.env(format!("{prefix}_ADDR"), cluster.url(2));
            command.env(format!("{prefix}_CACERT"), &cluster.tls().ca_file);
            cli::run(&command, stdin)
        };
        assert_eq!(
            run(&["secrets", "list"], "").code,
            2,
            "{name}: no token yet"
        );
        let done = run(&["login", &token], "").ok();
        assert!(
            done.stdout.contains("Success! You are now authenticated."),
            "{name}: {}",
            done.stdout
        );
        assert!(done.stdout.contains("root"), "{name}: {}", done.stdout);
        assert_eq!(std::fs::read_to_string(&helper).unwrap(), token, "{name}");
        let _ = run(&["secrets", "list"], "").ok();
        assert_eq!(
            run(&["login", "hvs.nosuchtokennosuchtokennosu"], "").code,
            2,
            "{name}"
        );
        let _ = run(&["secrets", "list"], "").ok();
        let typed = run(&["login", "-"], &token).ok();
        assert!(
            typed.stdout.contains("Success! You are now authenticated."),
            "{name}: {}",
            typed.all()
        );
    }
}

/// The same server, the same question: users must not have to learn a second way of reading the answer.
#[test]
fn strongroom_prints_what_bao_prints() {
    let cluster = Cluster::initialized(1, BINARY);
    for setup in [
        &[
            "secrets",
            "enable",
            "-path=kv-seal-wrapped",
            "-seal-wrap",
            "-description=layered",
            "kv",
        ][..],
        &[
            "kv",
            "put",
            "kv-seal-wrapped/app",
            "password=correct horse",
            "user=app",
        ],
        &["kv", "put", "kv-seal-wrapped/dir/app", "number=1"],
    ] {
        let _ = cluster.strongroom(1, setup).ok();
    }
    let mut differences = Vec::new();
    for args in [
        &["kv", "get", "kv-seal-wrapped/app"][..],
        &["kv", "get", "-field=user", "kv-seal-wrapped/app"],
        &["kv", "get", "kv-seal-wrapped/missing"],
        &["kv", "get", "nosuchmount/x"],
        &["kv", "list", "kv-seal-wrapped"],
        &["kv", "list", "-format=json", "kv-seal-wrapped"],
        &["kv", "list", "kv-seal-wrapped/nothing"],
        &["kv", "put", "kv-seal-wrapped/other", "a=b"],
        &["kv", "delete", "kv-seal-wrapped/other"],
        &["read", "kv-seal-wrapped/app"],
        &["read", "-field=password", "kv-seal-wrapped/app"],
        &["read", "-field=nothing", "kv-seal-wrapped/app"],
        &["read", "kv-seal-wrapped/missing"],
        &["list", "kv-seal-wrapped/"],
        &["write", "kv-seal-wrapped/other", "a=b"],
        &["delete", "kv-seal-wrapped/other"],
        &["secrets", "list"],
        &["secrets", "list", "-detailed"],
        &["secrets", "list", "-format=json"],
        &["secrets", "enable", "-path=kv-seal-wrapped", "kv"],
        &["secrets", "enable", "nosuch"],
        &["operator", "raft", "list-peers"],
        &["operator", "members", "-format=json"],
        &["operator", "key-status"],
        &["operator", "init", "-status"],
    ] {
        let (ours, theirs) = (cluster.strongroom(1, args), cluster.bao(1, args));
        if (ours.code, steady(&ours.stdout)) != (theirs.code, steady(&theirs.stdout)) {
            differences.push(format!(
                "`{}`\nstrongroom, exit {}:\n{}\nbao, exit {}:\n{}",
                args.join(" "),
                ours.code,
                ours.all(),
                theirs.code,
                theirs.all()
            ));
        }
    }
    assert!(
        differences.is_empty(),
        "{} commands differ:\n{}",
        differences.len(),
        differences.join("\n\n")
    );
}

/// Without what changes from request to request. JSON is compared by meaning; a field that one tool leaves out and the
/// other leaves empty means the same.
fn steady(text: &str) -> String {
    if let Ok(json) = serde_json::from_str::<Value>(text) {
        return without_noise(json).to_string();
    }
    text.lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
}

fn without_noise(json: Value) -> Value {
    match json {
        Value::Object(fields) => {
            let noise = |name: &str, value: &Value| {
                matches!(name, "request_id" | "last_echo") || *value == json!("")
            };
            let kept = fields
                .into_iter()
                .filter(|(name, value)| !noise(name, value));
            Value::Object(
                kept.map(|(name, value)| (name, without_noise(value)))
                    .collect(),
            )
        }
        Value::Array(values) => Value::Array(values.into_iter().map(without_noise).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => json,
    }
}
