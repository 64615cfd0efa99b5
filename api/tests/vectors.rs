//! Replays recorded exchanges with the real server: one JSON file each in `tests/vectors/`.
//!
//! A file holds where its answer comes from, the node that is asked (`leader`, `standby`, `sealed`, `uninitialized`),
//! what is sent before, the request and the answer. `"*"` stands for any value that differs from run to run; every
//! other value, every key and the absence of further keys must be the same. Where Strongroom says more than the
//! recording (Vault's own fields in `sys/health`), the file holds what Strongroom says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

mod support;

use std::{
    fs,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use serde_json::Value;
use support::{Cluster, request};

#[tokio::test]
async fn answers_are_those_of_the_real_server() {
    let folder = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("tests/vectors");
    let mut failures = Vec::new();
    let mut count = 0;
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let vector: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        if let Err(why) = replay(&vector).await {
            let name = path.file_stem().unwrap().to_string_lossy();
            failures.push(format!("{name}: {why}"));
        }
        count += 1;
    }
    assert!(count > 90, "only {count} recordings were found");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

async fn replay(vector: &Value) -> Result<(), String> {
    let (_cluster, nodes, token) = Cluster::start(2).await;
    for step in vector["setup"].as_array().unwrap() {
        let (method, path) = (step[0].as_str().unwrap(), step[1].as_str().unwrap());
        let answer = nodes[0]
            .send(request(method, path, &token, &step[2].to_string()))
            .await;
        if answer.code() != 204 {
            return Err(format!("setup {method} {path}: {answer:?}"));
        }
    }
    let node = Arc::clone(match vector["node"].as_str().unwrap() {
        "standby" => &nodes[1],
        "sealed" => {
            nodes[0].sealed.store(true, Ordering::SeqCst);
            &nodes[0]
        }
        "uninitialized" => {
            nodes[0].initialized.store(false, Ordering::SeqCst);
            &nodes[0]
        }
        _ => &nodes[0],
    });
    let asked = &vector["request"];
    let token = if asked["token"] == true {
        token.as_str()
    } else {
        ""
    };
    let (method, path) = (
        asked["method"].as_str().unwrap(),
        asked["path"].as_str().unwrap(),
    );
    let mut sent = request(method, path, token, "");
    if !asked["body"].is_null() {
        *sent.body_mut() = Bytes::from(asked["body"].to_string());
    }
    for (name, value) in asked["headers"].as_object().into_iter().flatten() {
        let name: http::HeaderName = name.parse().unwrap();
        sent.headers_mut()
            .insert(name, value.as_str().unwrap().parse().unwrap());
    }
    let answer = node.send(sent).await;
    let wanted = &vector["response"];
    if u64::from(answer.code()) != wanted["status"] {
        return Err(format!("status {}, body {}", answer.code(), answer.json()));
    }
    if method == "HEAD" {
        return Ok(());
    }
    same(&wanted["body"], &answer.json(), "body")
}

/// Where `got` is not what was recorded.
fn same(wanted: &Value, got: &Value, at: &str) -> Result<(), String> {
    match (wanted, got) {
        (Value::String(any), got) if any == "*" && !got.is_null() => Ok(()),
        (Value::Object(wanted), Value::Object(got)) => {
            for key in wanted.keys().chain(got.keys()) {
                match (wanted.get(key), got.get(key)) {
                    (Some(wanted), Some(got)) => same(wanted, got, &format!("{at}.{key}"))?,
                    (Some(_), None) => return Err(format!("{at}.{key} is missing")),
                    (None, _) => return Err(format!("{at}.{key} is too much")),
                }
            }
            Ok(())
        }
        (Value::Array(wanted), Value::Array(got)) if wanted.len() == got.len() => wanted
            .iter()
            .zip(got)
            .enumerate()
            .try_for_each(|(index, (wanted, got))| same(wanted, got, &format!("{at}[{index}]"))),
        (wanted, got) if wanted == got => Ok(()),
        (wanted, got) => Err(format!("{at} is {got}, not {wanted}")),
    }
}
