//! Whole commands against a server that plays back a script: what is sent, what is printed, the exit code.
//!
//! The exchanges and the output were recorded from the real `bao` 2.7.2 and its server.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    thread::JoinHandle,
};

use super::*;

mod cluster;
mod data;
mod local;

/// What the server is to be asked, and what it answers.
struct Exchange {
    request: &'static str,
    body: &'static str,
    status: u16,
    answer: &'static str,
}

const fn get(request: &'static str, answer: &'static str) -> Exchange {
    Exchange {
        request,
        body: "",
        status: 200,
        answer,
    }
}

/// Answers one connection per exchange; gives back what it was asked.
fn serve(script: Vec<Exchange>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let handle = std::thread::spawn(move || {
        let mut seen = Vec::new();
        for exchange in script {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let mut length = 0;
            let mut headers = Vec::new();
            loop {
                let mut header = String::new();
                reader.read_line(&mut header).unwrap();
                let header = header.trim_end().to_ascii_lowercase();
                if header.is_empty() {
                    break;
                }
                if let Some(value) = header.strip_prefix("content-length: ") {
                    length = value.parse().unwrap();
                }
                headers.push(header);
            }
            assert!(headers.contains(&"x-vault-request: true".to_owned()));
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let asked = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
            let body = String::from_utf8(body).unwrap();
            assert_eq!(asked, exchange.request);
            if !exchange.body.is_empty() {
                let [got, want] = [body.as_str(), exchange.body]
                    .map(|text| serde_json::from_str::<serde_json::Value>(text).unwrap());
                assert_eq!(got, want, "{asked}");
            }
            let token = headers
                .iter()
                .find_map(|header| header.strip_prefix("x-vault-token: "));
            seen.push(format!("{asked} {}", token.unwrap_or("-")));
            let answer = format!(
                "HTTP/1.1 {} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{}",
                exchange.status,
                exchange.answer.len(),
                exchange.answer
            );
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
        }
        seen
    });
    (address, handle)
}

struct Outcome {
    code: u8,
    out: String,
    err: String,
}

fn execute(line: &str, variables: &[(&str, &str)], input: &str) -> Outcome {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let environment = Environment::fixed(variables);
    let code = run(
        &words,
        &environment,
        &mut input.as_bytes(),
        &mut out,
        &mut err,
        (false, false),
    );
    Outcome {
        code,
        out: String::from_utf8(out).unwrap(),
        err: String::from_utf8(err).unwrap(),
    }
}

/// Runs `line` against a script with a token; every exchange must have happened.
fn against(line: &str, script: Vec<Exchange>) -> Outcome {
    let (address, server) = serve(script);
    let variables = [
        ("VAULT_ADDR", address.as_str()),
        ("VAULT_TOKEN", "hvs.t"),
        ("VAULT_MAX_RETRIES", "0"),
    ];
    let outcome = execute(line, &variables, "{\"k\": 1}");
    for seen in server.join().unwrap() {
        assert!(seen.ends_with(" hvs.t"), "{seen}");
    }
    Outcome {
        err: outcome.err.replace(&address, "ADDR"),
        out: outcome.out.replace(&address, "ADDR"),
        ..outcome
    }
}

const UNSEALED: &str = r#"{"type":"pkcs11","initialized":true,"sealed":false,"t":3,"n":5,"progress":0,"nonce":"","version":"0.1.0","build_date":"2026-11-23T00:00:00Z","migration":false,"cluster_name":"c","cluster_id":"8a5abad1","recovery_seal":true,"recovery_seal_type":"shamir","storage_type":"raft"}"#;
const SEALED: &str = r#"{"type":"pkcs11","initialized":true,"sealed":true,"t":3,"n":5,"progress":0,"nonce":"","version":"0.1.0","build_date":"2026-11-23T00:00:00Z","migration":false,"recovery_seal":true,"recovery_seal_type":"shamir","storage_type":"raft","warnings":["HSM: away"]}"#;

#[test]
fn status_of_the_leader() {
    let leader = r#"{"ha_enabled":true,"is_self":true,"active_time":"2026-11-23T21:41:10Z","leader_address":"http://a:1","leader_cluster_address":"https://a:2","performance_standby":false,"performance_standby_last_remote_wal":0,"raft_committed_index":30,"raft_applied_index":30}"#;
    let script = || {
        vec![
            get("GET /v1/sys/seal-status", UNSEALED),
            get("GET /v1/sys/leader", leader),
        ]
    };
    let outcome = against("status", script());
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    assert_eq!(
        outcome.out,
        "\
Key                      Value
---                      -----
Seal Type                pkcs11
Recovery Seal Type       shamir
Initialized              true
Sealed                   false
Total Recovery Shares    5
Threshold                3
Version                  0.1.0
Build Date               2026-11-23T00:00:00Z
Storage Type             raft
Cluster Name             c
Cluster ID               8a5abad1
HA Enabled               true
HA Cluster               https://a:2
HA Mode                  active
Active Since             2026-11-23T21:41:10Z
Raft Committed Index     30
Raft Applied Index       30
"
    );
    let json: serde_json::Value =
        serde_json::from_str(&against("status -format=json", script()).out).unwrap();
    assert_eq!(json["sealed"], false);
    assert_eq!(json["is_self"], true);
    assert_eq!(against("status -field=n", script()).out, "5");
}

#[test]
fn status_of_a_follower_and_of_a_sealed_node() {
    let leader = r#"{"ha_enabled":true,"is_self":false,"leader_address":"http://a:1","leader_cluster_address":"https://a:2","raft_committed_index":3,"raft_applied_index":3}"#;
    let follower = vec![
        get("GET /v1/sys/seal-status", UNSEALED),
        get("GET /v1/sys/leader", leader),
    ];
    let outcome = against("status", follower);
    assert!(
        outcome
            .out
            .contains("HA Mode                  standby\nActive Node Address      http://a:1\n")
    );

    let sealed = vec![
        get("GET /v1/sys/seal-status", SEALED),
        Exchange {
            request: "GET /v1/sys/leader",
            body: "",
            status: 503,
            answer: r#"{"errors":["Vault is sealed"]}"#,
        },
    ];
    let outcome = against("status", sealed);
    assert_eq!(outcome.code, 2);
    for line in [
        "Unseal Progress          0/3\n",
        "Unseal Nonce             n/a\n",
        "HA Enabled               true\n",
        "Warning                  HSM: away\n",
    ] {
        assert!(outcome.out.contains(line), "{line} in {}", outcome.out);
    }
}

#[test]
fn nobody_there_is_1_for_status_and_2_for_the_rest() {
    let variables = [
        ("VAULT_ADDR", "http://127.0.0.1:1"),
        ("VAULT_MAX_RETRIES", "0"),
    ];
    for (line, code, want) in [
        (
            "status",
            1,
            "Error checking seal status: Get \"http://127.0.0.1:1/v1/sys/seal-status\": ",
        ),
        (
            "read a",
            2,
            "Error reading a: Get \"http://127.0.0.1:1/v1/a\": ",
        ),
        ("operator init -status", 1, "Error checking init status: "),
    ] {
        let outcome = execute(line, &variables, "");
        assert_eq!(outcome.code, code, "{line}");
        assert!(outcome.err.starts_with(want), "{line}: {}", outcome.err);
        assert_eq!(outcome.out, "");
    }
}

const INIT: &str = r#"{"keys":[],"keys_base64":[],"recovery_keys":["aa","bb"],"recovery_keys_base64":["qg==","uw=="],"root_token":"hvs.root"}"#;

#[test]
fn init_prints_shares_and_token() {
    let script = |body| {
        vec![
            get("GET /v1/sys/seal-status", SEALED),
            Exchange {
                request: "PUT /v1/sys/init",
                body,
                status: 200,
                answer: INIT,
            },
        ]
    };
    let body = r#"{"secret_shares":0,"secret_threshold":0,"pgp_keys":null,"recovery_shares":2,"recovery_threshold":2,"recovery_pgp_keys":null,"root_token_pgp_key":""}"#;
    let outcome = against(
        "operator init -recovery-shares=2 -recovery-threshold 2",
        script(body),
    );
    assert_eq!(outcome.code, 0);
    assert!(outcome.out.starts_with(
        "Recovery Key 1: qg==\nRecovery Key 2: uw==\n\nInitial Root Token: hvs.root\n\nSuccess! Vault is initialized\n\n"
    ));
    let body = r#"{"secret_shares":0,"secret_threshold":0,"pgp_keys":null,"recovery_shares":5,"recovery_threshold":3,"recovery_pgp_keys":null,"root_token_pgp_key":""}"#;
    let outcome = against("operator init -format=json", script(body));
    assert_eq!(
        outcome.out,
        "\
{
  \"unseal_keys_b64\": [],
  \"unseal_keys_hex\": [],
  \"unseal_shares\": 0,
  \"unseal_threshold\": 0,
  \"recovery_keys_b64\": [
    \"qg==\",
    \"uw==\"
  ],
  \"recovery_keys_hex\": [
    \"aa\",
    \"bb\"
  ],
  \"recovery_keys_shares\": 5,
  \"recovery_keys_threshold\": 3,
  \"root_token\": \"hvs.root\"
}
"
    );
}

#[test]
fn init_twice_and_init_status() {
    let script = vec![
        get("GET /v1/sys/seal-status", UNSEALED),
        Exchange {
            request: "PUT /v1/sys/init",
            body: "",
            status: 400,
            answer: r#"{"errors":["Vault is already initialized"]}"#,
        },
    ];
    let outcome = against("operator init", script);
    assert_eq!(outcome.code, 2);
    assert_eq!(
        outcome.err,
        "Error initializing: Error making API request.\n\nURL: PUT ADDR/v1/sys/init\nCode: 400. Errors:\n\n* Vault is \
         already initialized\n"
    );
    for (answer, code, out) in [
        (r#"{"initialized":true}"#, 0, "Vault is initialized\n"),
        (r#"{"initialized":false}"#, 2, "Vault is not initialized\n"),
    ] {
        let outcome = against(
            "operator init -status",
            vec![get("GET /v1/sys/init", answer)],
        );
        assert_eq!((outcome.code, outcome.out.as_str()), (code, out));
    }
}

#[test]
fn cluster() {
    let nodes = r#"{"nodes":[{"hostname":"vm","api_address":"http://a:1","cluster_address":"https://a:2","active_node":true,"last_echo":null,"version":"2.7.2","upgrade_version":"2.7.2"}]}"#;
    for answer in [nodes.to_owned(), nodes.replace("nodes", "Nodes")] {
        let answer: &'static str = answer.leak();
        let outcome = against(
            "operator members",
            vec![get("GET /v1/sys/ha-status", answer)],
        );
        assert_eq!(
            outcome.out,
            "Host Name    API Address    Cluster Address    Active Node    Version    Upgrade Version    Last Echo\n\
             ---------    -----------    ---------------    -----------    -------    ---------------    ---------\n\
             vm           http://a:1     https://a:2        true           2.7.2      2.7.2              n/a\n"
        );
        let outcome = against(
            "operator members -format=json",
            vec![get("GET /v1/sys/ha-status", answer)],
        );
        assert!(
            outcome
                .out
                .starts_with("{\n  \"Nodes\": [\n    {\n      \"hostname\": \"vm\",\n")
        );
    }
    let peers = r#"{"data":{"config":{"index":0,"servers":[{"address":"a:2","leader":true,"node_id":"n1","protocol_version":"3","voter":true},{"address":"b:2","leader":false,"node_id":"n2","voter":false}]}}}"#;
    let outcome = against(
        "operator raft list-peers",
        vec![get("GET /v1/sys/storage/raft/configuration", peers)],
    );
    assert_eq!(
        outcome.out,
        "Node    Address    State       Voter\n----    -------    -----       -----\nn1      a:2        leader      true\nn2      \
         b:2        follower    false\n"
    );
    let status = r#"{"term":1,"install_time":"2026-11-23T21:41:10.40749285Z","encryptions":18,"data":{"term":1,"install_time":"2026-11-23T21:41:10.40749285Z","encryptions":18}}"#;
    let outcome = against(
        "operator key-status",
        vec![get("GET /v1/sys/key-status", status)],
    );
    assert_eq!(
        outcome.out,
        "Key Term            1\nInstall Time        23 Nov 26 21:41 UTC\nEncryption Count    18\n"
    );
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    std::fs::write(&ca, "PEM").unwrap();
    let join = Exchange {
        request: "POST /v1/sys/storage/raft/join",
        body: r#"{"auto_join":"","auto_join_scheme":"","auto_join_port":0,"leader_api_addr":"https://l:1","leader_ca_cert":"PEM","leader_client_cert":"","leader_client_key":"","leader_tls_servername":"","retry":true,"non_voter":false}"#,
        status: 200,
        answer: r#"{"joined":true}"#,
    };
    let line = format!(
        "operator raft join -retry -leader-ca-cert=@{} https://l:1",
        ca.display()
    );
    let outcome = against(&line, vec![join]);
    assert_eq!(
        outcome.out, "Key       Value\n---       -----\nJoined    true\n",
        "{}",
        outcome.err
    );
}
