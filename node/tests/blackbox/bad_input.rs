//! Whatever comes in at the HTTP port gets the status and the body that clients know, and the process lives on.

use std::thread;

use serde_json::json;
use strongroom_jepsen_tests::{Client, Cluster, logs::STARTING};

use crate::BINARY;

struct Case {
    what: &'static str,
    method: &'static str,
    path: &'static [u8],
    body: &'static [u8],
    status: u16,
    /// The first error contains this; `None`: `{"errors":[]}` or no body at all.
    error: Option<&'static str>,
}

const fn case(
    what: &'static str,
    method: &'static str,
    path: &'static [u8],
    body: &'static [u8],
    status: u16,
    error: Option<&'static str>,
) -> Case {
    Case {
        what,
        method,
        path,
        body,
        status,
        error,
    }
}

const CASES: &[Case] = &[
    case(
        "JSON cut off",
        "PUT",
        b"/v1/kv/a",
        b"{\"a\":",
        400,
        Some("JSON"),
    ),
    case(
        "JSON with a stray byte",
        "PUT",
        b"/v1/kv/a",
        b"{\"a\":\xff}",
        400,
        Some("JSON"),
    ),
    case(
        "no JSON at all",
        "PUT",
        b"/v1/kv/a",
        b"hello",
        400,
        Some("JSON"),
    ),
    case("an array", "PUT", b"/v1/kv/a", b"[1]", 400, Some("JSON")),
    case(
        "an empty object",
        "PUT",
        b"/v1/kv/a",
        b"{}",
        400,
        Some("missing data fields"),
    ),
    case(
        "nothing to write",
        "PUT",
        b"/v1/kv/a",
        b"",
        400,
        Some("missing data fields"),
    ),
    case(
        "encoded ..",
        "GET",
        b"/v1/kv/%2e%2e/sys/mounts",
        b"",
        400,
        Some("relative paths not supported"),
    ),
    case(
        "encoded / around ..",
        "GET",
        b"/v1/kv/a%2f..%2fb",
        b"",
        400,
        Some("relative paths not supported"),
    ),
    case(
        "encoded .. to write",
        "PUT",
        b"/v1/kv/%2e%2e/b",
        b"{\"a\":1}",
        400,
        Some("relative paths not supported"),
    ),
    case("NUL", "GET", b"/v1/kv/a%00b", b"", 400, None),
    case(
        "NUL to write",
        "PUT",
        b"/v1/kv/a%00b",
        b"{\"a\":1}",
        400,
        None,
    ),
    case("a line break", "GET", b"/v1/kv/a%0ab", b"", 400, None),
    case("escape", "GET", b"/v1/kv/a%1b%5b31m", b"", 400, None),
    case(
        "unknown mount",
        "GET",
        b"/v1/nothere/x",
        b"",
        404,
        Some("no handler for route \"nothere/x\". route entry not found."),
    ),
    case(
        "unknown mount to write",
        "PUT",
        b"/v1/nothere/x",
        b"{\"a\":1}",
        404,
        Some("no handler for route \"nothere/x\""),
    ),
    case(
        "unknown system path",
        "GET",
        b"/v1/sys/nothing",
        b"",
        404,
        Some("unsupported path"),
    ),
    case("no API path", "GET", b"/nothing", b"", 404, None),
    case("wrong method", "DELETE", b"/v1/sys/health", b"", 405, None),
    case(
        "another wrong method",
        "PUT",
        b"/v1/sys/seal-status",
        b"{}",
        405,
        None,
    ),
    case("an unknown method", "FOO", b"/v1/kv/a", b"", 405, None),
    case("TRACE", "TRACE", b"/v1/kv/a", b"", 405, None),
    case(
        "an unknown engine",
        "PUT",
        b"/v1/sys/mounts/x",
        b"{\"type\":\"nosuch\"}",
        400,
        Some("plugin not found in the catalog: nosuch"),
    ),
    case(
        "a mount in a mount",
        "PUT",
        b"/v1/sys/mounts/kv",
        b"{\"type\":\"kv\"}",
        400,
        Some("path is already in use at kv/"),
    ),
    case(
        "a secret that is not there",
        "GET",
        b"/v1/kv/missing",
        b"",
        404,
        None,
    ),
];

fn check(client: &Client, case: &Case, problems: &mut Vec<String>) {
    let answer = match client.request_bytes(case.method, case.path, case.body) {
        Ok(answer) => answer,
        Err(error) => return problems.push(format!("{}: {error}", case.what)),
    };
    let fits = answer.status == case.status
        && match case.error {
            Some(text) => answer
                .errors()
                .first()
                .is_some_and(|error| error.contains(text)),
            None => answer.errors().is_empty() && !answer.text().contains("panic"),
        };
    if !fits {
        problems.push(format!(
            "{}: {} {}; wanted {} {:?}",
            case.what,
            answer.status,
            answer.text(),
            case.status,
            case.error
        ));
    }
}

#[test]
fn gets_the_answers_clients_know() {
    let mut cluster = Cluster::initialized(3, BINARY);
    assert_eq!(
        cluster
            .client(1)
            .put("sys/mounts/kv", &json!({"type": "kv"}))
            .status,
        204
    );
    let mut problems = Vec::new();
    for node in [cluster.leader(), cluster.follower()] {
        let client = cluster.client(node);
        for case in CASES {
            check(&client, case, &mut problems);
        }
        paths_that_redirect(&client, &mut problems);
        bad_tokens(&cluster.anonymous(node), &mut problems);
        too_much(&client, &mut problems);
        not_utf8(&client, &mut problems);
        not_http(&client);
        joiners(&cluster.anonymous(node), &mut problems);
    }
    assert!(
        problems.is_empty(),
        "{} answers are wrong:\n{}",
        problems.len(),
        problems.join("\n")
    );
    for node in 1..=3 {
        assert!(cluster.runs(node));
        assert_eq!(
            cluster.client(node).list("kv"),
            Vec::<String>::new(),
            "nothing of all that was stored"
        );
    }
    cluster.assert_logs_clean(&[STARTING]);
}

/// A path with a plain `..` or an empty segment is redirected to the path it would mean, as Vault does.
fn paths_that_redirect(client: &Client, problems: &mut Vec<String>) {
    for (path, target) in [("/v1/kv/../a", "/v1/a"), ("/v1//kv/a", "/v1/kv/a")] {
        let answer = client.request("GET", path, None).unwrap();
        let fits = match answer.status {
            307 => answer.header("location") == Some(target),
            status => status == 400,
        };
        if !fits {
            problems.push(format!(
                "{path}: {} {:?} {}",
                answer.status,
                answer.header("location"),
                answer.text()
            ));
        }
    }
}

fn bad_tokens(client: &Client, problems: &mut Vec<String>) {
    let long = "x".repeat(4000);
    for token in [
        "",
        "nope",
        "hvs.AAAAAAAAAAAAAAAAAAAAAAAA",
        "s.ünïcödé",
        &long,
    ] {
        for (method, body) in [
            ("GET", None),
            ("PUT", Some(json!({"a": 1}))),
            ("LIST", None),
            ("DELETE", None),
        ] {
            let answer = client
                .clone()
                .with_token(token)
                .request(method, "/v1/kv/a", body.as_ref())
                .unwrap();
            if answer.status != 403 || answer.errors() != ["permission denied"] {
                problems.push(format!(
                    "token {token:.30}, {method}: {} {}",
                    answer.status,
                    answer.text()
                ));
            }
        }
    }
}

fn too_much(client: &Client, problems: &mut Vec<String>) {
    let body = format!("{{\"a\":\"{}\"}}", "a".repeat(33 << 20));
    // The server may close while we still send; the answer can be lost with the connection, but not every time.
    let answers = (0..5).map(|_| client.request_bytes("PUT", b"/v1/kv/a", body.as_bytes()));
    match answers.flatten().next() {
        Some(answer) if answer.status == 413 => {}
        Some(answer) => problems.push(format!("33 MiB: {} {}", answer.status, answer.text())),
        None => problems.push("33 MiB: never an answer".to_owned()),
    }
    let strings: serde_json::Map<_, _> = (0..2000).map(|n| (format!("k{n}"), json!("v"))).collect();
    let answer = client.put("kv/a", &strings.into());
    if answer.status != 400
        || !answer
            .errors()
            .iter()
            .any(|error| error.contains("high complexity"))
    {
        problems.push(format!("2000 strings: {} {}", answer.status, answer.text()));
    }
    let deep = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let answer = client
        .request_bytes("PUT", b"/v1/kv/a", deep.as_bytes())
        .unwrap();
    if answer.status != 400 {
        problems.push(format!(
            "10,000 levels: {} {}",
            answer.status,
            answer.text()
        ));
    }
    let long = format!("/v1/kv/{}", "a".repeat(100_000));
    let answer = client.request("GET", &long, None).unwrap();
    if !(400..500).contains(&answer.status) {
        problems.push(format!(
            "a path of 100,000 bytes: {} {}",
            answer.status,
            answer.text()
        ));
    }
}

/// Bytes that are no UTF-8: refused, not stored under another name.
fn not_utf8(client: &Client, problems: &mut Vec<String>) {
    for path in [&b"/v1/kv/%ff%fe"[..], b"/v1/kv/a\xff"] {
        for (method, body) in [("GET", &b""[..]), ("PUT", b"{\"a\":1}")] {
            let status = client
                .request_bytes(method, path, body)
                .map(|answer| answer.status);
            if !matches!(status, Ok(400 | 500)) {
                problems.push(format!(
                    "{method} {:?}: {status:?}",
                    String::from_utf8_lossy(path)
                ));
            }
        }
    }
}

/// Whoever wants to join needs no token: what comes in there comes from anybody.
fn joiners(client: &Client, problems: &mut Vec<String>) {
    let challenge = "sys/storage/raft/bootstrap/challenge";
    let answer = "sys/storage/raft/bootstrap/answer";
    let long = "n".repeat(300);
    for (path, body) in [
        (challenge, json!({})),
        (challenge, json!({"server_id": ""})),
        (challenge, json!({"server_id": long})),
        (challenge, json!({"server_id": "a\nb"})),
        (challenge, json!({"server_id": 7})),
        (challenge, json!({"server_id": ["a"]})),
        (answer, json!({})),
        (
            answer,
            json!({"server_id": "x", "answer": "!", "nonce": "x", "cluster_addr": "x"}),
        ),
        (
            answer,
            json!({"server_id": "x", "answer": "AAAA", "nonce": "00.99999999999999999999", "cluster_addr": ""}),
        ),
        (
            answer,
            json!({"server_id": "x", "answer": "AAAA", "nonce": "00.1", "cluster_addr": "127.0.0.1:1"}),
        ),
        (
            answer,
            json!({"server_id": "x", "answer": "AAAA", "nonce": format!("00.{}", u64::MAX), "cluster_addr": "127.0.0.1:1"}),
        ),
    ] {
        let got = client.put(path, &body);
        if !(400..500).contains(&got.status) || got.errors().is_empty() {
            problems.push(format!("{path} {body:.100}: {} {}", got.status, got.text()));
        }
    }
    // Each costs the HSM something: too many are turned away, and everything else goes on.
    let ask = || {
        let again = json!({"server_id": "again-and-again"});
        (0..10)
            .map(|_| client.put(challenge, &again).status)
            .collect::<Vec<_>>()
    };
    let statuses: Vec<u16> = thread::scope(|scope| {
        let askers: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        askers
            .into_iter()
            .flat_map(|asker| asker.join().unwrap())
            .collect()
    });
    let turned_away = statuses.iter().filter(|status| **status == 429).count();
    if turned_away == 0 || !statuses.iter().all(|status| matches!(status, 200 | 429)) {
        problems.push(format!("80 challenges, eight at a time: {statuses:?}"));
    }
    let health = client.get("sys/health?standbyok=true").status;
    if health != 200 {
        problems.push(format!("health after challenges: {health}"));
    }
}

/// Nothing to answer here; the node must only survive it.
fn not_http(client: &Client) {
    for bytes in [
        &b"\x00\x01\x02"[..],
        b"GET",
        b"PUT /v1/kv/a HTTP/9.9\r\n\r\n",
    ] {
        if let Ok(mut stream) = std::net::TcpStream::connect(client.addr()) {
            // Not even TLS: the server may close at any moment.
            let _ = std::io::Write::write_all(&mut stream, bytes);
        }
    }
}
