//! What a thief of disks sees, and what becomes of bytes that somebody has changed.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use strongroom_jepsen_tests::{
    Cluster, Options,
    cluster::write,
    hsm::{KEY_LABEL, PIN},
};

use crate::BINARY;

const VALUE: &str = "the-quick-brown-value-73918";
const NAME: &str = "name-of-a-secret-48261";
const FOLDER: &str = "folder-of-secrets-90357";
const DESCRIPTION: &str = "description-of-a-mount-15604";
const MOUNTS: [(&str, bool); 2] = [("kv-unwrapped-66", false), ("kv-seal-wrapped-67", true)];

/// A text in every form in which it could be lying around.
fn forms(text: &str) -> Vec<Vec<u8>> {
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    vec![
        text.as_bytes().to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        text.bytes().rev().collect(),
    ]
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
        .collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path))
        } else {
            found.push(path)
        }
    }
    found
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

fn assert_nowhere(cluster: &Cluster, when: &str, needles: &[(&str, Vec<u8>)]) {
    for node in 1..=3 {
        let mut bytes = 0;
        let mut places = files(&cluster.data_dir(node));
        places.push(cluster.log(node));
        for file in places {
            // A running database removes files.
            let Ok(content) = fs::read(&file) else {
                continue;
            };
            bytes += content.len();
            for (what, needle) in needles {
                assert!(
                    !contains(&content, needle),
                    "{when}: {what} is in {} of node {node}",
                    file.display()
                );
            }
        }
        assert!(
            bytes > 10_000,
            "{when}: node {node} has stored {bytes} bytes only: nothing was searched"
        );
    }
}

fn inspect(cluster: &Cluster, node: usize) -> Vec<Value> {
    let data = cluster.data_dir(node).display().to_string();
    let shown = cluster
        .strongroom(
            1,
            &["operator", "storage", "inspect", "-format=json", &data],
        )
        .ok();
    shown.json().as_array().unwrap().clone()
}

#[test]
fn nothing_readable_is_on_any_disk() {
    let mut cluster = Cluster::prepare(&Options {
        binary: BINARY.into(),
        nodes: 3,
        key_made_before: true,
    });
    for node in 1..=3 {
        // Whatever is asked of the log, it holds no secret either.
        cluster.configure(node, |config| config.log_level = "trace");
        cluster.start_node(node);
    }
    let init = cluster.init();
    cluster.wait_all();
    for (mount, seal_wrap) in MOUNTS {
        let body = json!({"type": "kv", "seal_wrap": seal_wrap, "description": DESCRIPTION});
        assert_eq!(
            cluster
                .client(1)
                .put(&format!("sys/mounts/{mount}"), &body)
                .status,
            204
        );
        write(
            &cluster.client(2),
            &format!("{mount}/{FOLDER}/{NAME}"),
            VALUE,
        );
        // Found again by its length, for comparing the layers.
        write(
            &cluster.client(3),
            &format!("{mount}/long"),
            &"x".repeat(1000),
        );
    }
    requests_that_fail(&cluster);
    let mut texts = vec![
        ("a value", VALUE.to_owned()),
        ("the name of a secret", NAME.to_owned()),
        ("the name of a folder", FOLDER.to_owned()),
        ("the path of a mount", MOUNTS[0].0.to_owned()),
        ("the path of a mount", MOUNTS[1].0.to_owned()),
        ("the description of a mount", DESCRIPTION.to_owned()),
        ("the root token", init.root_token.clone()),
        (
            "the root token without its prefix",
            init.root_token[4..].to_owned(),
        ),
        ("the PIN", PIN.to_owned()),
        ("a long value", "x".repeat(100)),
    ];
    texts.extend(
        init.recovery_keys
            .iter()
            .map(|share| ("a recovery share", share.clone())),
    );
    let mut needles: Vec<(&str, Vec<u8>)> = texts
        .iter()
        .flat_map(|(what, text)| forms(text).into_iter().map(|form| (*what, form)))
        .collect();
    needles.extend(
        init.recovery_keys
            .iter()
            .map(|share| ("a recovery share, raw", unhex(share))),
    );
    // The search can find something: labels of HSM keys are configuration, not secrets.
    let label = KEY_LABEL.as_bytes();
    let found = files(&cluster.data_dir(1))
        .iter()
        .any(|file| fs::read(file).is_ok_and(|content| contains(&content, label)));
    assert!(
        found,
        "the seal configuration is not where it was looked for"
    );
    let log = cluster.log_text(1);
    assert!(
        log.contains("DEBUG") || log.contains("TRACE"),
        "the log tells no details, so there was nothing to search"
    );
    assert_nowhere(&cluster, "running", &needles);
    no_core_dumps(&cluster);

    let busy = cluster.strongroom(
        1,
        &[
            "operator",
            "storage",
            "inspect",
            &cluster.data_dir(1).display().to_string(),
        ],
    );
    assert_ne!(
        busy.code, 0,
        "a running node's data must not be opened: {}",
        busy.stdout
    );
    for node in 1..=3 {
        assert!(cluster.terminate(node).success());
    }
    assert_nowhere(&cluster, "stopped", &needles);
    for node in 1..=3 {
        let rows = inspect(&cluster, node);
        decoded_values_tell_nothing(&rows, &needles);
        wrapped_is_longer(&rows);
    }
    let text = cluster
        .strongroom(
            1,
            &[
                "operator",
                "storage",
                "inspect",
                &cluster.data_dir(2).display().to_string(),
            ],
        )
        .ok();
    assert!(
        text.stdout.contains("seal-wrapped by HSM key") && text.stdout.contains("barrier, term 1"),
        "{}",
        text.stdout
    );
}

fn decoded_values_tell_nothing(rows: &[Value], needles: &[(&str, Vec<u8>)]) {
    assert!(rows.len() > 8, "only {} values", rows.len());
    for row in rows {
        for field in ["key_hex", "value_hex"] {
            let bytes = unhex(row[field].as_str().unwrap());
            for (what, needle) in needles {
                assert!(!contains(&bytes, needle), "{what} is in {row}");
            }
        }
    }
}

/// The same value lies in both mounts; the layer of the HSM costs room, and is all around.
fn wrapped_is_longer(rows: &[Value]) {
    let lengths = |layer: &str| -> Vec<u64> {
        let of_layer = rows
            .iter()
            .filter(|row| row["layer"].as_str().unwrap().starts_with(layer));
        of_layer
            .map(|row| row["length"].as_u64().unwrap())
            .filter(|length| (1000..1600).contains(length))
            .collect()
    };
    let (barrier, wrapped) = (lengths("barrier"), lengths("seal-wrapped"));
    assert_eq!(
        (barrier.len(), wrapped.len()),
        (1, 1),
        "{barrier:?} {wrapped:?}"
    );
    assert!(wrapped[0] > barrier[0] + 50, "{barrier:?} {wrapped:?}");
}

/// Mistakes are what gets logged: each of these carries a secret.
fn requests_that_fail(cluster: &Cluster) {
    let path = format!("{}/{FOLDER}/{NAME}", MOUNTS[0].0);
    for node in 1..=3 {
        let client = cluster.client(node);
        let broken = format!("{{\"value\":\"{VALUE}\",");
        let answers = [
            client.request_bytes("PUT", format!("/v1/{path}").as_bytes(), broken.as_bytes()),
            client.request_bytes("FOO", format!("/v1/{path}").as_bytes(), VALUE.as_bytes()),
            client.request_bytes("GET", format!("/v1/{NAME}/{VALUE}").as_bytes(), b""),
            client.request_bytes("GET", format!("/v1/{path}/%2e%2e/x").as_bytes(), b""),
            cluster
                .anonymous(node)
                .request("GET", &format!("/v1/{path}"), None),
            cluster
                .anonymous(node)
                .with_token(VALUE)
                .request("GET", &format!("/v1/{path}"), None),
        ];
        for answer in answers {
            let status = answer.unwrap().status;
            assert!((400..500).contains(&status), "{status}");
        }
    }
}

fn no_core_dumps(cluster: &Cluster) {
    let limits = fs::read_to_string(format!("/proc/{}/limits", cluster.pid(1))).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(
        core.split_whitespace().filter(|word| *word == "0").count(),
        2,
        "{core}"
    );
}

/// A byte changed on a stopped node's disk: the node refuses to start, or refuses to give what it was in, or it was in
/// nothing that matters. It never gives anything else than what was written, and never says that there is nothing.
#[test]
fn a_changed_byte_is_noticed() {
    let mut cluster = Cluster::initialized(1, BINARY);
    let client = cluster.client(1);
    for (mount, seal_wrap) in MOUNTS {
        assert_eq!(
            client
                .put(
                    &format!("sys/mounts/{mount}"),
                    &json!({"type": "kv", "seal_wrap": seal_wrap})
                )
                .status,
            204
        );
    }
    let secret = |n: usize| {
        (
            format!("{}/secret-{n}", MOUNTS[n % 2].0),
            format!("{n}-{}", "v".repeat(400)),
        )
    };
    for n in 0..20 {
        let (path, value) = secret(n);
        write(&client, &path, &value);
    }
    assert!(cluster.terminate(1).success());
    let (data, saved) = (cluster.data_dir(1), cluster.dir().join("saved"));
    copy(&data, &saved);
    let mut targets: Vec<PathBuf> = files(&saved)
        .into_iter()
        .filter(|path| holds_data(path))
        .collect();
    targets.sort();
    assert!(!targets.is_empty(), "{:?}", files(&saved));

    let (mut noticed, mut harmless) = (0, 0);
    let end = Instant::now() + Duration::from_secs(40);
    for round in 0..15 {
        if Instant::now() > end {
            break;
        }
        fs::remove_dir_all(&data).unwrap();
        copy(&saved, &data);
        let target = &targets[round % targets.len()];
        let file = data.join(target.strip_prefix(&saved).unwrap());
        let mut bytes = fs::read(&file).unwrap();
        let at = rand::random_range(0..bytes.len());
        // The first round changes nothing: it shows that all is well if nothing is wrong.
        let control = round == 0;
        if !control {
            bytes[at] ^= 1 << rand::random_range(0..8);
        }
        fs::write(&file, bytes).unwrap();

        let place = format!(
            "byte {at} of {}",
            target.strip_prefix(&saved).unwrap().display()
        );
        cluster.spawn(1);
        let client = cluster.client(1);
        let patience = Duration::from_secs(if control { 30 } else { 4 });
        if !comes_up(&mut cluster, patience) {
            assert!(!control, "it does not even serve what it has stored itself");
            println!("{place}: it does not serve");
            noticed += 1;
        } else {
            let mut refused = 0;
            for n in 0..20 {
                let (path, value) = secret(n);
                let answer = client.get(&path);
                if answer.status >= 500 {
                    refused += 1;
                } else {
                    assert_eq!(
                        answer.status,
                        200,
                        "{place}: {path} is gone: {}",
                        answer.text()
                    );
                    assert_eq!(answer.json()["data"]["value"], value, "{place}: {path}");
                }
            }
            assert!(
                !control || refused == 0,
                "{refused} of 20 values were refused although nothing was changed"
            );
            println!("{place}: it serves, {refused} of 20 values refused");
            if refused > 0 {
                noticed += 1
            } else {
                harmless += 1
            }
        }
        assert!(!cluster.log_text(1).contains("panicked"), "{place}");
        cluster.kill9(1);
    }
    println!("{noticed} noticed, {harmless} hit nothing that matters");
    assert!(noticed > 0, "no change was noticed");
}

/// Serving in time? Not, if it has ended or stays sealed.
fn comes_up(cluster: &mut Cluster, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    while Instant::now() < end && cluster.runs(1) {
        let ready = cluster
            .client(1)
            .request("GET", "/v1/auth/token/lookup-self", None);
        if cluster.health(1) == 200 && ready.is_ok_and(|answer| answer.status == 200) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    false
}

/// Files that hold entries or values, as opposed to RocksDB's notes about itself.
fn holds_data(path: &Path) -> bool {
    let big = fs::metadata(path).is_ok_and(|data| data.len() > 0);
    big && path
        .extension()
        .is_some_and(|extension| extension == "sst" || extension == "log")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
