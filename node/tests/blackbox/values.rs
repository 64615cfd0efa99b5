//! What is written is what is read: bytes, numbers, names, sizes, order.

use serde_json::{Value, json};
use strongroom_jepsen_tests::{Client, Cluster, Response, logs::STARTING};

use crate::BINARY;

/// Writes `body` as it is and gives the answer of a read through another node.
fn through(writer: &Client, reader: &Client, path: &str, body: &str) -> Response {
    let path = format!("/v1/{path}");
    let written = writer
        .request_bytes("PUT", path.as_bytes(), body.as_bytes())
        .unwrap();
    assert_eq!(written.status, 204, "{path}: {}", written.text());
    reader.request("GET", &path, None).unwrap().expect(200)
}

#[test]
fn come_back_as_they_were_written() {
    let mut cluster = Cluster::initialized(3, BINARY);
    let (follower, leader) = (cluster.follower(), cluster.leader());
    let (writer, reader) = (cluster.client(follower), cluster.client(leader));
    for (mount, seal_wrap) in [("plain", false), ("wrapped", true)] {
        let body = json!({"type": "kv", "seal_wrap": seal_wrap});
        assert_eq!(
            writer.put(&format!("sys/mounts/{mount}"), &body).status,
            204
        );
        numbers_and_texts(&writer, &reader, mount);
        names(&writer, &reader, mount);
        sizes(&writer, &reader, mount);
        order_of_lists(&writer, &reader, mount);
        leases(&writer, &reader, mount);
    }
    cluster.assert_logs_clean(&[STARTING]);
}

fn numbers_and_texts(writer: &Client, reader: &Client, mount: &str) {
    for value in [
        "1",
        "-0",
        "0.1",
        "1.10",
        "1e+400",
        "12345678901234567890123456789",
        "9007199254740993",
        "true",
        "null",
        r#""""#,
        r#""\u0000""#,
        r#""ü 漢 🔐""#,
        r#""\"quoted\" \\ and / and \n""#,
        "[]",
        "{}",
        r#"[1,[2,{"a":null}]]"#,
    ] {
        let answer = through(
            writer,
            reader,
            &format!("{mount}/value"),
            &format!("{{\"v\":{value}}}"),
        );
        let text = answer.text();
        // Numbers are compared as text: a float would have lost digits.
        if value.parse::<f64>().is_ok() {
            assert!(text.contains(&format!("\"v\":{value}")), "{value}: {text}");
        } else {
            assert_eq!(
                answer.json()["data"]["v"],
                serde_json::from_str::<Value>(value).unwrap(),
                "{text}"
            );
        }
    }
}

fn names(writer: &Client, reader: &Client, mount: &str) {
    for (path, name) in [
        ("a%20b", "a b"),
        ("%C3%BC", "ü"),
        ("%E6%BC%A2", "漢"),
        ("100%25", "100%"),
        ("a+b", "a+b"),
        ("a.b", "a.b"),
        ("a%3Fb", "a?b"),
        ("UPPER", "UPPER"),
        ("upper", "upper"),
    ] {
        let answer = through(
            writer,
            reader,
            &format!("{mount}/names/{path}"),
            &json!({"name": name}).to_string(),
        );
        assert_eq!(answer.json()["data"]["name"], name, "{path}");
        assert!(
            reader
                .list(&format!("{mount}/names"))
                .contains(&name.to_owned()),
            "{name}"
        );
    }
    assert_eq!(reader.list(&format!("{mount}/names")).len(), 9);
    let long = "n".repeat(400);
    let deep = vec!["d"; 40].join("/");
    for path in [long, deep] {
        let answer = through(writer, reader, &format!("{mount}/{path}"), r#"{"a":"b"}"#);
        assert_eq!(answer.json()["data"]["a"], "b");
        assert_eq!(writer.delete(&format!("{mount}/{path}")).status, 204);
    }
}

/// Up to the largest entry it works; beyond that it is refused, and nothing else suffers.
fn sizes(writer: &Client, reader: &Client, mount: &str) {
    for length in [0, 1, 1000, 100_000, 700_000] {
        let value = "x".repeat(length);
        let answer = through(
            writer,
            reader,
            &format!("{mount}/size"),
            &json!({"v": value}).to_string(),
        );
        assert_eq!(
            answer.json()["data"]["v"].as_str().map(str::len),
            Some(length)
        );
    }
    let refused = writer.put(&format!("{mount}/size"), &json!({"v": "x".repeat(3 << 20)}));
    assert!(
        (400..=500).contains(&refused.status),
        "{} {:.200}",
        refused.status,
        refused.text()
    );
    let kept = reader.get(&format!("{mount}/size")).expect(200).json();
    assert_eq!(
        kept["data"]["v"].as_str().map(str::len),
        Some(700_000),
        "a refused write changes nothing"
    );
}

fn order_of_lists(writer: &Client, reader: &Client, mount: &str) {
    for name in ["b", "a/x", "a", "c/y/z", "B", "10", "9"] {
        let _: Response = writer
            .put(&format!("{mount}/list/{name}"), &json!({"k": "v"}))
            .expect(204);
    }
    assert_eq!(
        reader.list(&format!("{mount}/list")),
        ["10", "9", "B", "a", "a/", "b", "c/"]
    );
    assert_eq!(reader.list(&format!("{mount}/list/c/")), ["y/"]);
    assert_eq!(writer.delete(&format!("{mount}/list/a")).status, 204);
    assert_eq!(
        reader.list(&format!("{mount}/list")),
        ["10", "9", "B", "a/", "b", "c/"]
    );
    assert_eq!(
        writer.delete(&format!("{mount}/list/nothing")).status,
        204,
        "deleting nothing is no mistake"
    );
    // More than any page.
    for number in 0..300 {
        let _: Response = writer
            .put(&format!("{mount}/many/{number:04}"), &json!({"k": number}))
            .expect(204);
    }
    let many = reader.list(&format!("{mount}/many"));
    assert_eq!(
        (
            many.len(),
            many.first().unwrap().as_str(),
            many.last().unwrap().as_str()
        ),
        (300, "0000", "0299")
    );
}

/// KV version 1 hands on the wish for a lease in the value itself.
fn leases(writer: &Client, reader: &Client, mount: &str) {
    for (body, seconds) in [
        (r#"{"a":"b"}"#, 2_764_800),
        (r#"{"a":"b","ttl":"1h"}"#, 3600),
        (r#"{"a":"b","ttl":60}"#, 60),
    ] {
        let answer = through(writer, reader, &format!("{mount}/lease"), body).json();
        assert_eq!(
            (&answer["lease_duration"], &answer["renewable"]),
            (&json!(seconds), &json!(false)),
            "{body}"
        );
        assert_eq!(answer["lease_id"], "");
    }
}
