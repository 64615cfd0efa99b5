//! Snapshots on a real cluster: saved and restored by any node, by both command lines; what is refused; what happens when
//! a leader dies in the middle.

use std::{fs, path::Path, thread::JoinHandle, time::Duration};

use serde_json::{Value, json};
use strongroom_jepsen_tests::{Cluster, Options, cli, cluster, hsm::KEY_LABEL, machine::wait_for};

use crate::{
    BINARY,
    limits::{figure, prometheus},
};

const SNAPSHOT: &[&str] = &["operator", "raft", "snapshot"];
const PATIENCE: Duration = Duration::from_secs(60);

/// `operator raft snapshot` with these words.
fn words<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    [SNAPSHOT, rest].concat()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn mount(cluster: &Cluster, path: &str, seal_wrap: bool) {
    let body = json!({"type": "kv", "seal_wrap": seal_wrap});
    let answer = cluster.client(1).put(&format!("sys/mounts/{path}"), &body);
    assert_eq!(answer.status, 204);
}

/// Every node gives these values, soon: a follower opens the new data a moment after the leader.
fn assert_values(cluster: &mut Cluster, want: &[(&str, Option<&str>)]) {
    for node in 1..=cluster.len() {
        if !cluster.runs(node) {
            continue;
        }
        cluster.wait_unsealed(node);
        for (path, value) in want {
            let found = cluster::read(&cluster.client(node), path);
            assert_eq!(found.as_deref(), *value, "{path} on node {node}");
        }
    }
}

#[test]
fn what_was_saved_on_one_node_is_restored_through_another() {
    let mut cluster = Cluster::initialized(3, BINARY);
    mount(&cluster, "plain", false);
    mount(&cluster, "wrapped", true);
    for n in 0..40 {
        cluster::write(&cluster.client(1), &format!("plain/{n}"), "before");
    }
    cluster::write(&cluster.client(1), "wrapped/app", "before");
    let leader = cluster.leader();
    let (first, second) = match leader {
        1 => (2, 3),
        2 => (1, 3),
        _ => (1, 2),
    };
    let file = cluster.dir().join("cluster.snap");
    let saved = cluster
        .strongroom(first, &words(&["save", text(&file)]))
        .ok();
    assert_eq!(saved.all().trim(), "");

    cluster::write(&cluster.client(second), "plain/0", "after");
    cluster::write(&cluster.client(second), "plain/new", "after");
    cluster::write(&cluster.client(second), "wrapped/app", "after");
    assert_eq!(cluster.client(1).delete("plain/1").status, 204);
    mount(&cluster, "later", false);

    let restored = cluster
        .strongroom(second, &words(&["restore", text(&file)]))
        .ok();
    assert_eq!(restored.all().trim(), "");
    let want = [
        ("plain/0", Some("before")),
        ("plain/1", Some("before")),
        ("plain/39", Some("before")),
        ("plain/new", None),
        ("wrapped/app", Some("before")),
    ];
    assert_values(&mut cluster, &want);
    for node in 1..=3 {
        assert_eq!(cluster.client(node).get("later/x").status, 404);
        cluster::write(&cluster.client(node), &format!("plain/from-{node}"), "on");
    }
    let goes_on = [("plain/from-1", Some("on")), ("plain/from-3", Some("on"))];
    assert_values(&mut cluster, &goes_on);

    // The other command line, and a restart on the restored data.
    let theirs = cluster.dir().join("theirs.snap");
    let _ = cluster.bao(leader, &words(&["save", text(&theirs)])).ok();
    cluster::write(&cluster.client(1), "plain/from-1", "changed");
    let _ = cluster.bao(first, &words(&["restore", text(&theirs)])).ok();
    assert_values(&mut cluster, &goes_on);
    for node in 1..=3 {
        assert!(cluster.terminate(node).success());
    }
    for node in 1..=3 {
        cluster.spawn(node);
    }
    for node in 1..=3 {
        cluster.wait_listening(node);
    }
    cluster.wait_all();
    assert_values(&mut cluster, &want);
    assert_values(&mut cluster, &goes_on);
    inspect(&cluster, &file);
    cluster.assert_no_panics();
}

fn inspect(cluster: &Cluster, file: &Path) {
    let shown = cluster.strongroom(1, &words(&["inspect", text(file)])).ok();
    for part in [
        " ID           ",
        " Index        ",
        " Version      1\n",
        " HSM Key      strongroom",
        "Total Size",
    ] {
        assert!(shown.stdout.contains(part), "{part:?} in {}", shown.stdout);
    }
    let json = cluster
        .strongroom(1, &words(&["inspect", "-format=json", text(file)]))
        .ok()
        .json();
    assert_eq!(json["Meta"]["Version"], 1);
    assert!(json["Meta"]["Index"].as_u64().unwrap() > 40);
    assert!(json["TotalCountKV"].as_u64().unwrap() > 40);
}

#[test]
fn what_is_not_a_whole_snapshot_changes_nothing() {
    let mut cluster = Cluster::initialized(1, BINARY);
    mount(&cluster, "kv", false);
    cluster::write(&cluster.client(1), "kv/a", "before");
    let file = cluster.dir().join("cluster.snap");
    let _ = cluster.strongroom(1, &words(&["save", text(&file)])).ok();
    cluster::write(&cluster.client(1), "kv/a", "after");
    let whole = fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for (name, content, why) in [
        (
            "text",
            b"no snapshot at all".to_vec(),
            "gzip: invalid header",
        ),
        (
            "cut",
            whole[..whole.len() - 20].to_vec(),
            "cut off or damaged",
        ),
        ("half", whole[..whole.len() / 2].to_vec(), "cut off"),
        ("flipped", flipped, "failed"),
        ("empty", Vec::new(), "gzip: invalid header"),
    ] {
        let bad = cluster.dir().join(name);
        fs::write(&bad, content).unwrap();
        for force in [false, true] {
            let mut words = words(&["restore"]);
            words.extend(force.then_some("-force"));
            words.push(text(&bad));
            let refused = cluster.strongroom(1, &words).expect(2);
            assert!(
                refused.stderr.contains("Error installing the snapshot"),
                "{}",
                refused.stderr
            );
            assert!(refused.stderr.contains(why), "{name}: {}", refused.stderr);
        }
        let shown = cluster
            .strongroom(1, &words(&["inspect", text(&bad)]))
            .expect(1);
        assert!(shown.stderr.contains(why), "{name}: {}", shown.stderr);
    }
    let client = cluster.client(1);
    let part = &whole[..whole.len() / 3];
    client.cut_off("POST", "/v1/sys/storage/raft/snapshot", whole.len(), part);
    assert_values(&mut cluster, &[("kv/a", Some("after"))]);
    // The place of the upload that was cut off is free again.
    wait_for("the restore that was cut off to end", PATIENCE, || {
        let restored = cluster.strongroom(1, &words(&["restore", text(&file)]));
        (restored.code == 0).then_some(())
    });
    assert_values(&mut cluster, &[("kv/a", Some("before"))]);
    cluster.assert_no_panics();
}

#[test]
fn another_seal_is_refused_and_forced_only_if_its_keys_open() {
    let mut cluster = Cluster::prepare(&Options {
        binary: BINARY.into(),
        nodes: 1,
        key_made_before: true,
    });
    cluster.golden().make_key("other", "4f54");
    let golden = cluster.golden().clone();
    cluster.token(1).restore_from(&golden);
    cluster.start_node(1);
    cluster.init();
    cluster.wait_all();
    mount(&cluster, "kv", false);
    cluster::write(&cluster.client(1), "kv/a", "of the first cluster");
    let file = cluster.dir().join("first.snap");
    let _ = cluster.strongroom(1, &words(&["save", text(&file)])).ok();
    let first_token = cluster.root_token().unwrap().to_owned();

    // Another cluster, with another key of the same HSM.
    assert!(cluster.terminate(1).success());
    cluster.wipe(1);
    cluster.configure(1, |config| config.key_label = "other".to_owned());
    cluster.start_node(1);
    cluster.init();
    cluster.wait_all();
    mount(&cluster, "kv", false);
    cluster::write(&cluster.client(1), "kv/a", "of the second cluster");
    let refused = cluster
        .strongroom(1, &words(&["restore", text(&file)]))
        .expect(2);
    let why = "could not verify hash file, possibly the snapshot is using a different autoseal key; use the \
               snapshot-force API to bypass this check";
    assert!(refused.stderr.contains(why), "{}", refused.stderr);
    assert_values(&mut cluster, &[("kv/a", Some("of the second cluster"))]);

    // Forced, while the first cluster's key is not in the HSM: nobody could read it.
    let id = cluster.seal_status(1)["cluster_id"].clone();
    assert!(cluster.terminate(1).success());
    cluster.token(1).remove_key(KEY_LABEL);
    cluster.start_node(1);
    cluster.wait_all();
    let refused = cluster
        .strongroom(1, &words(&["restore", "-force", text(&file)]))
        .expect(2);
    assert!(
        refused.stderr.contains("cannot be opened with this HSM"),
        "{}",
        refused.stderr
    );
    assert_values(&mut cluster, &[("kv/a", Some("of the second cluster"))]);

    // Forced, with it.
    assert!(cluster.terminate(1).success());
    cluster.token(1).restore_from(&golden);
    cluster.start_node(1);
    cluster.wait_all();
    let _ = cluster
        .strongroom(1, &words(&["restore", "-force", text(&file)]))
        .ok();
    cluster.wait_unsealed(1);
    assert_eq!(
        cluster.client(1).get("kv/a").status,
        403,
        "the second cluster's token is gone"
    );
    let first = cluster.anonymous(1).with_token(&first_token);
    assert_eq!(
        cluster::read(&first, "kv/a").as_deref(),
        Some("of the first cluster")
    );
    assert_eq!(
        cluster.seal_status(1)["cluster_id"],
        id,
        "the cluster is still itself"
    );
    assert!(cluster.terminate(1).success());
    cluster.start_node(1);
    cluster.wait_unsealed(1);
    assert_eq!(
        cluster::read(&first, "kv/a").as_deref(),
        Some("of the first cluster")
    );
    cluster.assert_no_panics();
}

#[test]
fn a_leader_killed_in_the_middle_leaves_everything_as_it_was() {
    let mut cluster = Cluster::initialized(3, BINARY);
    mount(&cluster, "kv", false);
    let large = "x".repeat(300 << 10);
    for n in 0..150 {
        cluster::write(&cluster.client(1), &format!("kv/large-{n}"), &large);
    }
    let file = cluster.dir().join("cluster.snap");
    let _ = cluster.strongroom(1, &words(&["save", text(&file)])).ok();
    cluster::write(&cluster.client(1), "kv/marker", "after");
    let leader = cluster.leader();
    let follower = cluster.follower();
    let restoring = restore_beside(&cluster, follower, &file);
    wait_for("the restore to begin", PATIENCE, || {
        cluster
            .log_text(leader)
            .contains("staging the rows of the snapshot")
            .then_some(())
    });
    std::thread::sleep(Duration::from_millis(50));
    cluster.kill9(leader);
    let outcome = restoring.join().unwrap();
    let next = cluster.leader();
    cluster.start_node(leader);
    cluster.wait_all();
    // Killed before its commit, with 90 chunks to write: unless the machine was very fast, the restore is void.
    let marker = cluster::read(&cluster.client(next), "kv/marker");
    println!(
        "the restore ended with {}: {}",
        outcome.code, outcome.stderr
    );
    match outcome.code {
        0 => assert_eq!(marker, None),
        _ => assert_values(&mut cluster, &[("kv/marker", Some("after"))]),
    }
    assert_eq!(outcome.code == 0, marker.is_none());
    if outcome.code != 0 {
        // Whoever leads now finds what was staged.
        wait_for("the cut-off restore to be cleared", PATIENCE, || {
            let cleared = |node| cluster.log_text(node).contains("it has changed nothing");
            (1..=3).any(cleared).then_some(())
        });
    }
    cluster::write(&cluster.client(next), "kv/marker", "on");
    let _ = cluster
        .strongroom(follower, &words(&["restore", text(&file)]))
        .ok();
    assert_values(
        &mut cluster,
        &[("kv/marker", None), ("kv/large-149", Some(&large))],
    );
    cluster.assert_no_panics();
}

/// Five nodes: one is sent a snapshot while the restore goes on, one has no HSM when its keys change. Both come right by
/// themselves, and nobody gives anything that is neither the restored data nor newer.
#[test]
fn a_restore_finds_one_node_catching_up_and_one_without_its_hsm() {
    let mut cluster = Cluster::prepare(&Options {
        binary: BINARY.into(),
        nodes: 5,
        key_made_before: true,
    });
    for node in 1..=5 {
        cluster.configure(node, |config| {
            config.storage_extra =
                "  snapshot_threshold = 40\n  snapshot_interval = \"100ms\"\n  trailing_logs = 5\n"
                    .to_owned();
        });
        cluster.spawn(node);
    }
    for node in 1..=5 {
        cluster.wait_listening(node);
    }
    cluster.init();
    cluster.wait_all();
    mount(&cluster, "plain", false);
    mount(&cluster, "wrapped", true);
    let leader = cluster.leader();
    let mut others = (1..=5).filter(|node| *node != leader);
    let mut next = || others.next().unwrap();
    let (behind, without_hsm, asked) = (next(), next(), next());
    let large = "x".repeat(300 << 10);
    for n in 0..60 {
        cluster::write(&cluster.client(asked), &format!("plain/large-{n}"), &large);
    }
    cluster::write(&cluster.client(asked), "wrapped/app", "before");
    let file = cluster.dir().join("cluster.snap");
    let _ = cluster
        .strongroom(asked, &words(&["save", text(&file)]))
        .ok();

    // What `behind` needs is purged meanwhile.
    cluster.kill9(behind);
    for n in 0..120 {
        cluster::write(
            &cluster.client(asked),
            &format!("plain/later-{n}"),
            &large[..100_000],
        );
    }
    cluster::write(&cluster.client(asked), "wrapped/app", "after");
    wait_for("a purged log", PATIENCE, || {
        let page = prometheus(&cluster.client(leader));
        (figure(&page, "strongroom_log_purged_index") > 150.0).then_some(())
    });
    assert_eq!(
        cluster::read(&cluster.client(without_hsm), "wrapped/app").as_deref(),
        Some("after")
    );
    cluster.token(without_hsm).take_away();

    let restoring = restore_beside(&cluster, asked, &file);
    cluster.start_node(behind);
    let outcome = restoring.join().unwrap();
    assert_eq!(outcome.code, 0, "{}", outcome.all());
    let want = [
        ("wrapped/app", Some("before")),
        ("plain/large-59", Some(large.as_str())),
        ("plain/later-0", None),
    ];
    for node in [leader, asked, behind] {
        cluster.wait_unsealed(node);
        for (path, value) in &want {
            let found = cluster::read(&cluster.client(node), path);
            assert_eq!(found.as_deref(), *value, "{path} on node {node}");
        }
    }
    assert!(cluster.log_text(behind).contains("installed a snapshot"));
    // The keys are others, and only the HSM opens them.
    let warning = cluster.wait_warning(without_hsm, "opening the keys of the restored data");
    println!("the node without its HSM says: {warning}");
    let refused = cluster.client(without_hsm).get("plain/large-0");
    assert_eq!(refused.status, 503, "{}", refused.text());
    cluster::write(&cluster.client(asked), "wrapped/new", "on");

    cluster.token(without_hsm).give_back();
    cluster.wait_all();
    assert_values(&mut cluster, &want);
    assert_values(&mut cluster, &[("wrapped/new", Some("on"))]);
    for node in [without_hsm, behind] {
        cluster::write(&cluster.client(node), &format!("wrapped/from-{node}"), "on");
    }
    cluster.assert_no_panics();
}

/// `operator raft snapshot restore FILE` on a thread of its own.
fn restore_beside(cluster: &Cluster, node: usize, file: &Path) -> JoinHandle<cli::Output> {
    let mut command = cli::clean(cluster.binary());
    command
        .args(words(&["restore", text(file)]))
        .env("STRONGROOM_ADDR", cluster.url(node))
        .env("STRONGROOM_TOKEN", cluster.root_token().unwrap())
        .env("STRONGROOM_CACERT", &cluster.tls().ca_file);
    std::thread::spawn(move || cli::run(&command, ""))
}

#[test]
fn a_new_cluster_is_made_from_a_snapshot() {
    let mut cluster = Cluster::initialized(1, BINARY);
    mount(&cluster, "kv", true);
    cluster::write(&cluster.client(1), "kv/a", "kept");
    let file = cluster.dir().join("cluster.snap");
    let _ = cluster.strongroom(1, &words(&["save", text(&file)])).ok();
    let old_id = cluster.seal_status(1)["cluster_id"].clone();
    assert!(cluster.terminate(1).success());
    cluster.wipe(1);
    cluster.start_node(1);
    let half = cluster.dir().join("half.snap");
    let whole = fs::read(&file).unwrap();
    fs::write(&half, &whole[..whole.len() / 2]).unwrap();
    let _ = cluster
        .strongroom(1, &words(&["restore", text(&half)]))
        .expect(2);
    assert_eq!(cluster.seal_status(1)["initialized"], false);
    let _ = cluster
        .strongroom(1, &words(&["restore", text(&file)]))
        .ok();
    cluster.wait_all();
    assert_values(&mut cluster, &[("kv/a", Some("kept"))]);
    assert_ne!(cluster.seal_status(1)["cluster_id"], old_id);

    // Others join it.
    let second = cluster.add_node();
    cluster.start_node(second);
    cluster.wait_all();
    cluster::write(&cluster.client(second), "kv/b", "new");
    assert_values(
        &mut cluster,
        &[("kv/a", Some("kept")), ("kv/b", Some("new"))],
    );
    cluster.assert_no_panics();
}

#[test]
fn snapshots_are_taken_on_a_schedule_and_old_ones_go() {
    let mut cluster = Cluster::initialized(1, BINARY);
    mount(&cluster, "kv", false);
    cluster::write(&cluster.client(1), "kv/a", "before");
    let dir = cluster.dir().join("snaps");
    let client = cluster.client(1);
    let schedule = json!({
        "storage_type": "local", "interval": "1s", "retain": 2, "path_prefix": text(&dir), "file_prefix": "auto",
    });
    let path = "sys/storage/raft/snapshot-auto/config/hourly";
    assert_eq!(client.put(path, &schedule).status, 204);
    assert_eq!(
        client.list("sys/storage/raft/snapshot-auto/config"),
        ["hourly"]
    );
    let kept = client.get(path).expect(200).json();
    assert_eq!(kept["data"]["interval"], 1);
    assert_eq!(kept["data"]["storage_type"], "local");
    let status = || {
        client
            .get("sys/storage/raft/snapshot-auto/status/hourly")
            .expect(200)
            .json()["data"]
            .clone()
    };
    // Nobody has made the directory: that is told, and nothing else happens.
    let told = |status: &Value| {
        status["last_snapshot_error"]
            .as_str()
            .is_some_and(|why| why.contains(&dir.display().to_string()))
    };
    wait_for("a failure", PATIENCE, || told(&status()).then_some(()));
    fs::create_dir(&dir).unwrap();
    let files = || -> Vec<_> {
        let mut names: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        names
    };
    let first = wait_for("a snapshot", PATIENCE, || {
        files()
            .first()
            .filter(|f| f.extension().is_some_and(|e| e == "snap"))
            .cloned()
    });
    wait_for("the first to go", PATIENCE, || {
        (!first.exists()).then_some(())
    });
    let told = status();
    assert_eq!(
        (&told["last_snapshot_error"], &told["consecutive_errors"]),
        (&json!(""), &json!(0))
    );
    assert!(
        told["last_snapshot_url"]
            .as_str()
            .unwrap()
            .starts_with("file:///"),
        "{told}"
    );
    assert_eq!(client.delete(path).status, 204);
    assert_eq!(client.get(path).status, 404);
    std::thread::sleep(Duration::from_secs(3));
    let left = files();
    assert!((1..=2).contains(&left.len()), "{left:?}");
    let newest = left.last().unwrap();
    cluster::write(&cluster.client(1), "kv/a", "after");
    let _ = cluster
        .strongroom(1, &words(&["restore", text(newest)]))
        .ok();
    assert_values(&mut cluster, &[("kv/a", Some("before"))]);
    let refused = client
        .put(path, &json!({"storage_type": "aws-s3", "interval": "1h"}))
        .expect(400);
    assert!(
        refused.errors()[0].contains("aws-s3"),
        "{:?}",
        refused.errors()
    );
}
