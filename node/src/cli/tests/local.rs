//! Login, and what needs no server.

use super::{data::SECRET, *};

const LOOKUP: &str = r#"{"data":{"accessor":"acc","id":"hvs.in","policies":["root"],"ttl":0,"type":"service","meta":null,"entity_id":""}}"#;

#[test]
fn login_keeps_the_token() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().display().to_string();
    let kept = || std::fs::read_to_string(format!("{home}/.vault-token")).ok();
    for (line, input, stores) in [
        ("login -no-store hvs.in", "", false),
        ("login -", "hvs.in\n", true),
        ("login hvs.in", "", true),
        ("login", "hvs.in\n", true),
    ] {
        let (address, server) = serve(vec![get("GET /v1/auth/token/lookup-self", LOOKUP)]);
        let outcome = execute(line, &[("BAO_ADDR", &address), ("HOME", &home)], input);
        assert_eq!(
            server.join().unwrap(),
            ["GET /v1/auth/token/lookup-self hvs.in"]
        );
        assert_eq!(outcome.code, 0, "{line}: {}", outcome.err);
        assert_eq!(kept().is_some(), stores, "{line}");
        assert!(outcome.out.ends_with(
            "token                hvs.in\ntoken_accessor       acc\ntoken_duration       ∞\ntoken_renewable      false\n\
             token_policies       [\"root\"]\nidentity_policies    []\npolicies             [\"root\"]\n"
        ), "{}", outcome.out);
        assert_eq!(
            outcome
                .out
                .starts_with("Success! You are now authenticated."),
            stores
        );
    }
    assert_eq!(kept().as_deref(), Some("hvs.in"));
    let (address, server) = serve(vec![get("GET /v1/x", SECRET)]);
    execute(
        "read x",
        &[
            ("STRONGROOM_ADDR", &address),
            ("VAULT_ADDR", "http://x"),
            ("HOME", &home),
        ],
        "",
    );
    assert_eq!(server.join().unwrap(), ["GET /v1/x hvs.in"]);

    assert_eq!(execute("login -token-only hvs.z", &[], "").out, "hvs.z");
    let outcome = execute("login -method=userpass", &[], "");
    assert_eq!(outcome.code, 1);
    let (address, server) = serve(vec![Exchange {
        request: "GET /v1/auth/token/lookup-self",
        body: "",
        status: 403,
        answer: r#"{"errors":["permission denied"]}"#,
    }]);
    let outcome = execute(
        "login bad",
        &[("VAULT_ADDR", &address), ("HOME", &home)],
        "",
    );
    server.join().unwrap();
    assert_eq!(outcome.code, 2);
    assert!(
        outcome.err.starts_with(
            "Error authenticating: error looking up token: Error making API request.\n"
        )
    );
    assert_eq!(
        kept().as_deref(),
        Some("hvs.in"),
        "a refused token is not kept"
    );
}

#[test]
fn the_command_line_is_judged_before_anything_is_sent() {
    for (line, code, err) in [
        ("read -nope x", 1, "flag provided but not defined: -nope\n"),
        ("read -format=zzz x", 1, "Invalid output format: zzz\n"),
        ("read", 1, "Not enough arguments (expected 1, got 0)\n"),
        ("kv get a b", 1, "Too many arguments (expected 1, got 2)\n"),
        ("kv put", 1, "Not enough arguments (expected >1, got 0)\n"),
        ("kv put kv/a", 1, "Must supply data\n"),
        (
            "kv put kv/a foo",
            1,
            "Failed to parse K=V data: invalid key/value pair \"foo\": format must be key=value\n",
        ),
        ("write kv/a", 1, "Must supply data or use -force\n"),
        (
            "secrets enable",
            1,
            "Not enough arguments (expected 1, got 0)\n",
        ),
        (
            "secrets enable -max-lease-ttl=x kv",
            1,
            "invalid value \"x\" for flag -max-lease-ttl: parse error\n",
        ),
        (
            "operator init -recovery-shares=x",
            1,
            "invalid value \"x\" for flag -recovery-shares: parse error\n",
        ),
        (
            "read -header=X-Vault-Token=x y",
            1,
            "Header key cannot start by \"X-Vault-\": X-Vault-Token\n",
        ),
        (
            "read -client-cert=x y",
            2,
            "both a client certificate and its key must be provided\n",
        ),
        (
            "server",
            1,
            "Must specify at least one config path using -config\n",
        ),
    ] {
        let outcome = execute(line, &[("VAULT_ADDR", "http://127.0.0.1:1")], "");
        assert_eq!((outcome.code, outcome.err.as_str()), (code, err), "{line}");
        assert_eq!(outcome.out, "", "{line}");
    }
    let outcome = execute(
        "read x -format=json",
        &[("VAULT_ADDR", "http://127.0.0.1:1")],
        "",
    );
    assert!(
        outcome
            .err
            .contains("will not be parsed as flags: [-format=json]"),
        "{}",
        outcome.err
    );
}

#[test]
fn help_everywhere() {
    for command in COMMANDS {
        let words = command.path.join(" ");
        for flag in ["-h", "--help", "-help"] {
            let outcome = execute(&format!("{words} {flag}"), &[], "");
            assert_eq!(outcome.code, 0, "{words}");
            assert!(
                outcome
                    .out
                    .starts_with(&format!("Usage: strongroom {words}"))
            );
            assert!(
                outcome.out.lines().all(|line| line.chars().count() <= 80),
                "{words}"
            );
        }
    }
    for (line, code, to_out) in [
        ("", 127, false),
        ("nope", 127, false),
        ("--help", 0, true),
        ("kv", 1, false),
        ("kv nope", 1, false),
        ("operator raft -h", 0, true),
        ("operator storage", 1, false),
    ] {
        let outcome = execute(line, &[], "");
        assert_eq!(outcome.code, code, "{line}");
        let text = if to_out { outcome.out } else { outcome.err };
        assert!(text.starts_with("Usage: strongroom "), "{line}: {text}");
    }
    for line in ["version", "-v", "--version"] {
        assert_eq!(execute(line, &[], "").out, format!("{VERSION_LINE}\n"));
    }
}

#[test]
fn curl_instead_of_sending() {
    let variables = [("VAULT_ADDR", "http://a:1"), ("VAULT_TOKEN", "hvs.secret")];
    for (line, want) in [
        (
            "kv get -output-curl-string kv/w",
            "curl -H \"X-Vault-Request: true\" -H \"X-Vault-Token: $(strongroom print token)\" 'http://a:1/v1/kv/w'\n",
        ),
        (
            "write -output-curl-string kv/w a=it's",
            "curl -X PUT -H \"X-Vault-Request: true\" -H \"X-Vault-Token: $(strongroom print token)\" -d '{\"a\":\"it'\\''s\"}' 'http://a:1/v1/kv/w'\n",
        ),
    ] {
        let outcome = execute(line, &variables, "");
        assert_eq!(
            (outcome.code, outcome.out.as_str()),
            (0, want),
            "{}",
            outcome.err
        );
    }
    assert_eq!(execute("print token", &variables, "").out, "hvs.secret\n");
}

#[test]
fn configurations_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.hcl");
    let data = dir.path().join("data");
    let good = format!(
        "listener \"tcp\" {{\n tls_disable = true\n}}\nstorage \"raft\" {{\n path = {:?}\n node_id = \"n\"\n}}\nseal \
         \"pkcs11\" {{\n lib = \"/etc/hostname\"\n slot = 1\n pin = \"1\"\n key_label = \"k\"\n}}\nui = true\n",
        data.display().to_string()
    );
    std::fs::write(&path, &good).unwrap();
    let shown = path.display();
    let line = |command: &str| format!("operator {command} -config={shown}");
    let outcome = execute(&line("validate-config"), &[], "");
    assert_eq!(outcome.code, 0, "{}", outcome.out);
    assert_eq!(
        outcome.out,
        format!(
            "warning: {shown}:14:1: ui has no effect: there is no web interface\nSuccess! The configuration is valid.\n"
        )
    );
    let outcome = execute(&line("seal-reset-pin-guard"), &[], "");
    assert_eq!(
        (outcome.code, outcome.out.starts_with("No PIN was refused")),
        (0, true)
    );
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("hsm-pin-guard"), "x").unwrap();
    let outcome = execute(&line("seal-reset-pin-guard"), &[], "");
    assert_eq!(
        (outcome.code, outcome.out.starts_with("Success!")),
        (0, true)
    );
    assert!(!data.join("hsm-pin-guard").exists());

    std::fs::write(&path, good.replace("slot = 1", "slto = 1")).unwrap();
    let outcome = execute(&line("validate-config"), &[], "");
    assert_eq!(outcome.code, 1);
    assert!(outcome.out.contains(&format!(
        "error: {shown}:10:2: seal \"pkcs11\": slto is not a known setting; did you mean slot?\n"
    )));
    let outcome = execute(&line("validate-config -format=json"), &[], "");
    let json: serde_json::Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(
        (
            json["valid"].as_bool(),
            json["problems"].as_array().unwrap().len()
        ),
        (Some(false), 2)
    );
    let outcome = execute(&format!("server -config={shown}"), &[], "");
    assert_eq!(outcome.code, 1);
    assert!(
        outcome.err.ends_with("2 mistakes in the configuration\n"),
        "{}",
        outcome.err
    );
}
