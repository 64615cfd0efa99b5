//! An HSM that does not fit: each mistake has its own message, and nothing is tried that could lock or change the HSM.

use strongroom_jepsen_tests::{
    Cluster,
    cluster::NodeConfig,
    hsm::{KEY_LABEL, PIN},
    logs,
    logs::HSM_AWAY,
};

use crate::BINARY;

/// Restarts node 1 with `change`, expects it to stay up, sealed and to say `message`; then puts all back.
fn sealed_with(cluster: &mut Cluster, message: &str, change: impl FnOnce(&mut NodeConfig)) {
    let mut before = None;
    cluster.configure(1, |config| {
        before = Some(config.clone());
        change(config);
    });
    cluster.start_node(1);
    let warning = cluster.wait_warning(1, message);
    println!("{warning}");
    assert_eq!(cluster.health(1), 503, "{message}");
    assert!(
        cluster.log_text(1).contains(message),
        "{message}: seal-status says it, the log does not"
    );
    assert!(!cluster.log_text(1).contains(PIN), "the PIN is in the log");
    assert!(
        cluster.terminate(1).success(),
        "a sealed node stops in order"
    );
    cluster.configure(1, |config| *config = before.expect("was set"));
}

#[test]
fn each_mistake_has_its_message() {
    let mut cluster = Cluster::initialized(1, BINARY);
    let golden = cluster.golden().clone();
    cluster.terminate(1);
    let restore = |cluster: &Cluster| cluster.token(1).restore_from(&golden);

    sealed_with(&mut cluster, "token", |config| {
        config.token_label = "no-such-token".to_owned()
    });
    sealed_with(&mut cluster, "slot", |config| {
        config.slot = Some("987654321".to_owned())
    });

    cluster.token(1).remove_key(KEY_LABEL);
    sealed_with(&mut cluster, "holds no key labelled", |_| ());

    // The same label and the same id, but another key.
    cluster.token(1).make_key(KEY_LABEL, "5352");
    sealed_with(&mut cluster, "is not this cluster's key", |_| ());

    restore(&cluster);
    cluster.token(1).make_key(KEY_LABEL, "99");
    sealed_with(&mut cluster, "holds 2 keys labelled", |_| ());

    restore(&cluster);
    cluster.start_node(1);
    cluster.wait_unsealed(1);
    cluster.assert_logs_clean(&[HSM_AWAY]);
}

#[test]
fn a_file_that_is_no_module() {
    let mut cluster = Cluster::initialized(1, BINARY);
    cluster.terminate(1);
    let text = cluster.dir().join("not-a-module.so");
    std::fs::write(&text, "not an ELF file").unwrap();
    // A shared library that everything is linked with, so it is there, but it is no PKCS#11 module.
    let libc = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libc = libc
        .lines()
        .find_map(|line| {
            line.split_whitespace()
                .last()
                .filter(|path| path.contains("/libc.so"))
        })
        .unwrap();
    let missing = cluster.dir().join("missing.so");
    for (lib, what) in [
        (text.as_path(), "text"),
        (libc.as_ref(), "library"),
        (missing.as_path(), "missing"),
    ] {
        cluster.configure(1, |config| config.lib = lib.to_owned());
        cluster.spawn(1);
        // Either refused at start, or waiting sealed: in both cases the module is named.
        let name = lib.file_name().unwrap().to_string_lossy().into_owned();
        strongroom_jepsen_tests::machine::wait_for(
            what,
            std::time::Duration::from_secs(15),
            || {
                let log = cluster.log_text(1);
                let named = log
                    .lines()
                    .any(|line| line.contains(&name) && !line.contains(" INFO "));
                (named && (!cluster.runs(1) || cluster.health(1) == 503)).then_some(())
            },
        );
        println!("{what}: {}", logs::tail(&cluster.log(1), 1));
        assert!(!cluster.log_text(1).contains("panicked"));
        cluster.kill9(1);
    }
    cluster.configure(1, |config| {
        config.lib = strongroom_jepsen_tests::machine::softhsm_module()
    });
    cluster.start_node(1);
    cluster.wait_unsealed(1);
}

/// SoftHSM's token says `user PIN count low` from a wrong PIN until the next right one.
fn wrong_pin_was_tried(cluster: &Cluster) -> bool {
    let slots = cluster.token(1).describe_slots();
    assert!(slots.contains("token flags"), "{slots}");
    slots.contains("user PIN count low")
}

#[test]
fn a_wrong_pin_is_tried_once() {
    let mut cluster = Cluster::initialized(1, BINARY);
    assert!(cluster.terminate(1).success());
    // A right login clears the flag.
    assert_eq!(cluster.token(1).count_keys(KEY_LABEL), 1);
    assert!(!wrong_pin_was_tried(&cluster));

    sealed_with(&mut cluster, "PIN", |config| {
        config.pin = "wrong-pin-000".to_owned()
    });
    assert!(
        wrong_pin_was_tried(&cluster),
        "the flag shows nothing: this test could not fail"
    );
    assert_eq!(cluster.token(1).count_keys(KEY_LABEL), 1);
    for _ in 0..2 {
        sealed_with(&mut cluster, "PIN", |config| {
            config.pin = "wrong-pin-000".to_owned()
        });
        assert!(
            !wrong_pin_was_tried(&cluster),
            "the PIN that was refused has been tried again"
        );
    }
    let log = cluster.log_text(1);
    assert!(!log.contains("wrong-pin-000"), "the PIN is in the log");

    // Another PIN is another matter.
    cluster.start_node(1);
    cluster.wait_unsealed(1);
    cluster.assert_logs_clean(&[HSM_AWAY]);
}

/// After `seal-reset-pin-guard` the same PIN is tried once more: somebody may have put the old PIN back into the HSM.
#[test]
fn the_guard_can_be_reset() {
    let mut cluster = Cluster::initialized(1, BINARY);
    assert!(cluster.terminate(1).success());
    sealed_with(&mut cluster, "PIN", |config| {
        config.pin = "wrong-pin-000".to_owned()
    });
    assert_eq!(cluster.token(1).count_keys(KEY_LABEL), 1);
    let config = cluster.config_file(1).display().to_string();
    let _ = cluster
        .strongroom(
            1,
            &[
                "operator",
                "seal-reset-pin-guard",
                &format!("-config={config}"),
            ],
        )
        .ok();
    sealed_with(&mut cluster, "PIN", |config| {
        config.pin = "wrong-pin-000".to_owned()
    });
    assert!(wrong_pin_was_tried(&cluster));
}
