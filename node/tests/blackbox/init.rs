//! Initialisation: once, whatever happens in the middle of it.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use strongroom_jepsen_tests::{
    Cluster, Options, cluster,
    hsm::KEY_LABEL,
    logs::{NODES_AWAY, STARTING},
};

use crate::BINARY;

#[test]
fn parameters_shares_and_the_second_time() {
    let mut cluster = Cluster::start(1, BINARY);
    let client = cluster.anonymous(1);
    for wrong in [
        json!({"recovery_shares": 3}),
        json!({"recovery_shares": 3, "recovery_threshold": 4}),
        json!({"recovery_shares": 3, "recovery_threshold": 1}),
        json!({"recovery_shares": 256, "recovery_threshold": 3}),
        json!({"recovery_shares": 0, "recovery_threshold": 0}),
        json!({"secret_shares": 5, "secret_threshold": 3}),
        json!({"recovery_shares": "many", "recovery_threshold": 3}),
        json!({"recovery_shares": 1, "recovery_threshold": 1, "recovery_pgp_keys": ["AAAA"]}),
    ] {
        let answer = client.put("sys/init", &wrong).expect(400);
        assert!(!answer.errors().is_empty(), "{wrong}: {}", answer.text());
    }
    assert_eq!(
        client.get("sys/init").expect(200).json(),
        json!({"initialized": false})
    );

    let answer = client
        .put(
            "sys/init",
            &json!({"recovery_shares": 3, "recovery_threshold": 2}),
        )
        .expect(200)
        .json();
    assert_eq!(
        (&answer["keys"], &answer["keys_base64"]),
        (&json!([]), &json!([])),
        "an HSM unseals: no unseal keys"
    );
    let shares = answer["recovery_keys"].as_array().unwrap();
    assert_eq!(
        (
            shares.len(),
            answer["recovery_keys_base64"].as_array().unwrap().len()
        ),
        (3, 3)
    );
    for share in shares {
        assert_eq!(
            share.as_str().unwrap().len(),
            66,
            "32 bytes and the share's number, in hex"
        );
    }
    let token = answer["root_token"].as_str().unwrap();
    assert!(
        token.starts_with("hvs.") && token.len() == 28,
        "some clients check the length of tokens"
    );

    let init = cluster.keep_init(&answer);
    // The answer comes when the node serves: clients go on at once.
    let me = cluster
        .client(1)
        .get("auth/token/lookup-self")
        .expect(200)
        .json();
    assert_eq!(me["data"]["policies"], json!(["root"]));
    assert_eq!(me["data"]["id"], json!(init.root_token));
    let again = client
        .put(
            "sys/init",
            &json!({"recovery_shares": 1, "recovery_threshold": 1}),
        )
        .expect(400);
    assert_eq!(again.errors(), ["Vault is already initialized"]);
    assert_eq!(
        client.get("sys/init").expect(200).json(),
        json!({"initialized": true})
    );
    let status = cluster.seal_status(1);
    assert_eq!(
        (&status["t"], &status["n"], &status["sealed"]),
        (&json!(2), &json!(3), &json!(false))
    );
}

#[test]
fn the_command_line_makes_the_key_and_others_join_with_it() {
    let mut cluster = Cluster::prepare(&Options {
        binary: BINARY.into(),
        nodes: 3,
        key_made_before: false,
    });
    assert_eq!(cluster.token(1).count_keys(KEY_LABEL), 0);
    cluster.start_node(1);
    let refused = cluster
        .strongroom(1, &["operator", "init", "-status"])
        .expect(2);
    assert!(
        refused.all().contains("not initialized"),
        "{}",
        refused.all()
    );
    let init = [
        "operator",
        "init",
        "-recovery-shares=1",
        "-recovery-threshold=1",
        "-format=json",
    ];
    let printed = cluster.strongroom(1, &init).ok().json();
    assert_eq!(
        printed["recovery_keys_hex"]
            .as_array()
            .or(printed["recovery_keys"].as_array())
            .unwrap()
            .len(),
        1
    );
    cluster.keep_init(&printed);
    let _ = cluster.strongroom(1, &["operator", "init", "-status"]).ok();
    let again = cluster.strongroom(1, &init).expect(2);
    assert!(
        again.stderr.contains("Vault is already initialized"),
        "{}",
        again.all()
    );

    cluster.adopt_token_of(1);
    assert_eq!(cluster.golden().count_keys(KEY_LABEL), 1);
    for node in [2, 3] {
        cluster.start_node(node);
    }
    cluster.wait_all();
    // A joined node is initialised too.
    let again = cluster
        .anonymous(3)
        .put(
            "sys/init",
            &json!({"recovery_shares": 1, "recovery_threshold": 1}),
        )
        .expect(400);
    assert_eq!(again.errors(), ["Vault is already initialized"]);
    // A node that may generate a key never makes a second one.
    for node in 1..=3 {
        cluster.terminate(node);
    }
    for node in 1..=3 {
        cluster.start_node(node);
    }
    cluster.wait_all();
    for node in 1..=3 {
        assert_eq!(cluster.token(node).count_keys(KEY_LABEL), 1);
    }
    cluster.assert_logs_clean(&[STARTING, NODES_AWAY]);
}

/// A node that has not joined yet must not found a cluster of its own beside the one that is there.
#[test]
fn the_second_time_on_another_node() {
    let mut cluster = Cluster::start(3, BINARY);
    let request = json!({"recovery_shares": 1, "recovery_threshold": 1});
    let first = cluster
        .anonymous(1)
        .put("sys/init", &request)
        .expect(200)
        .json();
    // At once: whether the others have joined by now or not, they must not found a cluster of their own.
    for node in 2..=3 {
        let answer = cluster.anonymous(node).put("sys/init", &request);
        assert_eq!(answer.status, 400, "node {node}: {}", answer.text());
        assert_eq!(answer.errors(), ["Vault is already initialized"]);
    }
    cluster.keep_init(&first);
    cluster.wait_all();
    assert_eq!(cluster.servers(1).len(), 3);
}

/// Power goes at a random moment of init: afterwards there is a cluster that unseals itself, or nothing that hinders the
/// next init. In both cases the HSM holds one key.
#[test]
fn kill_9_in_the_middle() {
    let mut cluster = Cluster::prepare(&Options {
        binary: BINARY.into(),
        nodes: 1,
        key_made_before: false,
    });
    let request = json!({"recovery_shares": 1, "recovery_threshold": 1});
    let mut length = Duration::from_millis(1500);
    let (mut nothing, mut finished) = (0, 0);
    let end = Instant::now() + Duration::from_secs(35);
    for round in 0..12 {
        if Instant::now() > end && nothing > 1 {
            break;
        }
        cluster.start_node(1);
        let client = cluster.anonymous(1);
        if round > 0 {
            let (client, request) = (client.clone(), request.clone());
            let asked =
                thread::spawn(move || client.request("PUT", "/v1/sys/init", Some(&request)));
            thread::sleep(length.mul_f64(rand::random_range(0.05..1.0)));
            cluster.kill9_keep_token(1);
            // Killed before or after the answer: both happen.
            let _ = asked.join().unwrap();
            cluster.start_node(1);
        }
        let initialized = |cluster: &Cluster| {
            cluster.anonymous(1).get("sys/init").expect(200).json()["initialized"] == true
        };
        if initialized(&cluster) {
            finished += 1;
        } else {
            nothing += 1;
            let asked = Instant::now();
            let answer = client.put("sys/init", &request).expect(200).json();
            let took = asked.elapsed();
            cluster.keep_init(&answer);
            if round == 0 {
                length = took;
            } else {
                // The first was cold and made the key.
                length = length.min(took);
            }
            assert_eq!(
                client.put("sys/init", &request).expect(400).errors(),
                ["Vault is already initialized"]
            );
            let client = cluster.client(1);
            assert_eq!(
                client.put("sys/mounts/kv", &json!({"type": "kv"})).status,
                204
            );
            cluster::write(&client, "kv/a", "b");
        }
        cluster.wait_unsealed(1);
        assert_eq!(
            cluster.token(1).count_keys(KEY_LABEL),
            1,
            "keys under the label"
        );
        cluster.kill9_keep_token(1);
        cluster.wipe(1);
        if round % 3 == 2 {
            // From here on a key is made again, not adopted.
            cluster.kill9(1);
        }
    }
    println!(
        "an init takes {length:?}; after a kill {finished} were finished, {nothing} had to be made (the first was not cut off)"
    );
    assert!(
        nothing > 1,
        "no kill came before the end of an init: nothing was tested"
    );
    let panics = cluster.log_text(1).contains("panicked");
    assert!(!panics, "{}", cluster.log_text(1));
}

/// A node whose init was cut off after its last step finds that in its data only: until it has looked there it does not say, or
/// another one would make a second cluster.
#[test]
fn a_node_that_does_not_know_yet_does_not_say_that_there_is_no_cluster() {
    let mut cluster = Cluster::initialized(1, BINARY);
    let client = cluster.anonymous(1);
    for _ in 0..6 {
        cluster.kill9_keep_token(1);
        std::fs::remove_file(cluster.data_dir(1).join("seal.json")).unwrap();
        cluster.spawn(1);
        // Its very first answer.
        let answer = loop {
            if let Ok(answer) = client.request("GET", "/v1/sys/init", None) {
                break answer.expect(200).json();
            }
            assert!(cluster.runs(1));
            thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(answer, json!({"initialized": true}));
        cluster.wait_unsealed(1);
    }
    cluster.assert_logs_clean(&[STARTING]);
}

/// Two operators, or one script on two machines: there is one cluster afterwards, or none and a clear message.
#[test]
fn two_nodes_at_once_never_make_two_clusters() {
    let rounds: u32 = std::env::var("STRONGROOM_TEST_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(4);
    let mut cluster = Cluster::prepare(&Options {
        binary: BINARY.into(),
        nodes: 2,
        key_made_before: true,
    });
    let request = json!({"recovery_shares": 1, "recovery_threshold": 1});
    let clients = [1, 2].map(|number| cluster.anonymous(number));
    let (mut neither, mut refused) = (0, 0);
    for round in 0..rounds {
        for number in [1, 2] {
            cluster.start_node(number);
        }
        // Every other time a moment apart: an answer then comes while the other makes its keys.
        let apart = Duration::from_millis(u64::from(round % 2 * (round % 7) * 5));
        let answers = thread::scope(|scope| {
            let asking = [0, 1].map(|at| {
                let (clients, request) = (&clients, &request);
                scope.spawn(move || {
                    thread::sleep(apart * at);
                    clients[at as usize].put("sys/init", request)
                })
            });
            asking.map(|asking| asking.join().unwrap())
        });
        let mut made = None;
        for answer in &answers {
            match answer.status {
                200 => assert!(made.replace(answer.json()).is_none(), "two clusters"),
                400 => assert_eq!(answer.errors(), ["Vault is already initialized"]),
                503 => {
                    refused += 1;
                    let why = answer.text();
                    let known = ["initialize one node only", "a join is in progress"];
                    assert!(known.iter().any(|known| why.contains(known)), "{why}");
                }
                other => panic!("{other}: {}", answer.text()),
            }
        }
        let made = made.unwrap_or_else(|| {
            neither += 1;
            clients[0].put("sys/init", &request).expect(200).json()
        });
        cluster.keep_init(&made);
        cluster.wait_all();
        let ids = [1, 2].map(|number| cluster.seal_status(number)["cluster_id"].clone());
        assert_eq!(ids[0], ids[1]);
        for number in [1, 2] {
            cluster.kill9(number);
            cluster.wipe(number);
        }
    }
    println!("{rounds} rounds: {refused} inits were refused, {neither} times both");
}

/// An init whose HSM does not fit is refused with the reason, and may be repeated when it does.
#[test]
fn refused_while_the_hsm_does_not_fit() {
    let mut cluster = Cluster::prepare(&Options {
        binary: BINARY.into(),
        nodes: 1,
        key_made_before: false,
    });
    cluster.configure(1, |config| config.generate_key = false);
    cluster.start_node(1);
    let client = cluster.anonymous(1);
    let request = json!({"recovery_shares": 1, "recovery_threshold": 1});
    let refuse = |why: &str| {
        let answer = client.put("sys/init", &request);
        assert!(
            (400..=503).contains(&answer.status),
            "{} {}",
            answer.status,
            answer.text()
        );
        assert!(
            answer.errors().iter().any(|error| error.contains(why)),
            "{why}: {}",
            answer.text()
        );
        assert_eq!(
            client.get("sys/init").expect(200).json(),
            json!({"initialized": false})
        );
    };
    refuse("holds no key labelled");
    assert!(cluster.terminate(1).success());
    cluster.token(1).make_key(KEY_LABEL, "01");
    cluster.token(1).make_key(KEY_LABEL, "02");
    cluster.start_node(1);
    refuse("holds 2 keys labelled");
    assert!(cluster.terminate(1).success());
    cluster.token(1).remove_key(KEY_LABEL);
    cluster.start_node(1);
    let answer: Value = client.put("sys/init", &request).expect(200).json();
    cluster.keep_init(&answer);
    cluster.wait_unsealed(1);
}
