//! Configuration files as an operator gets them wrong: every mistake at once, with its line, and the exit code.

use std::{fs, path::Path};

use strongroom_jepsen_tests::{Cluster, Options, Output, cli, hsm::PIN, machine};

use crate::BINARY;

fn validate(config: &Path) -> Output {
    let mut command = cli::clean(&machine::server(Path::new(BINARY)));
    command.args([
        "operator",
        "validate-config",
        &format!("-config={}", config.display()),
    ]);
    cli::run(&command, "")
}

fn serve(config: &Path) -> Output {
    let mut command = cli::clean(&machine::server(Path::new(BINARY)));
    command.args(["server", &format!("-config={}", config.display())]);
    cli::run(&command, "")
}

#[test]
fn good_and_bad_files() {
    let cluster = Cluster::prepare(&Options {
        binary: BINARY.into(),
        nodes: 1,
        key_made_before: true,
    });
    let good = cluster.config_file(1);
    let _ = validate(&good).ok();
    let text = fs::read_to_string(&good).unwrap();
    let file = cluster.dir().join("bad.hcl");

    for (what, bad, messages) in [
        (
            "an unknown key",
            format!("{text}\nnosuchkey = 1\n"),
            &["nosuchkey"][..],
        ),
        (
            "two mistakes",
            text.replace("key_label", "key_lable")
                .replace("cluster_name", "cluster_nam"),
            &["key_lable", "cluster_nam"],
        ),
        (
            "no seal",
            text.replace("seal \"pkcs11\"", "seal \"awskms\""),
            &["awskms"],
        ),
        (
            "no storage",
            text.replace("storage \"raft\"", "storage \"consul\""),
            &["consul"],
        ),
        (
            "a port that is none",
            text.replace(
                "address         = \"127.0.0.1:",
                "address         = \"127.0.0.1:9",
            ),
            &["address"],
        ),
        (
            "broken syntax",
            format!("{text}\nlistener \"tcp\" {{\n"),
            &["bad.hcl:"],
        ),
    ] {
        fs::write(&file, bad).unwrap();
        let checked = validate(&file).expect(1);
        for message in messages {
            assert!(checked.all().contains(message), "{what}: {}", checked.all());
        }
        assert!(
            checked.all().contains("bad.hcl:"),
            "{what}: no line is named\n{}",
            checked.all()
        );
        // The server does not start with it either, and says the same.
        let served = serve(&file).expect(1);
        for message in messages {
            assert!(served.all().contains(message), "{what}: {}", served.all());
        }
    }

    // Vault users bring such lines along.
    fs::write(
        &file,
        format!("ui = true\nplugin_directory = \"/x\"\ndisable_cache = true\n{text}"),
    )
    .unwrap();
    let warned = validate(&file).ok();
    for key in ["ui", "plugin_directory", "disable_cache"] {
        assert!(warned.all().contains(key), "{}", warned.all());
    }
    for (args, code) in [
        (&["server", "-config=/nosuch/file.hcl"][..], 1),
        (&["nosuchcommand"], 127),
        (&["status", "-nosuchflag"], 1),
    ] {
        let mut command = cli::clean(&machine::server(Path::new(BINARY)));
        let done = cli::run(command.args(args), "");
        assert!(
            done.code == code || (code == 127 && (1..=127).contains(&done.code)),
            "{args:?}: {}",
            done.all()
        );
        assert!(!done.all().contains("panicked"));
    }
}

/// The PIN by reference and by environment, a second listener without TLS, a directory of files, JSON.
#[test]
fn the_ways_to_say_it() {
    let mut cluster = Cluster::initialized(1, BINARY);
    let pin_file = cluster.dir().join("pin");
    fs::write(&pin_file, format!("{PIN}\n")).unwrap();
    let by_file = format!("file://{}", pin_file.display());
    let environment = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    for (pin, environment) in [
        (by_file.as_str(), Vec::new()),
        ("env://SOME_PIN", environment("SOME_PIN", PIN)),
        ("wrong-in-the-file", environment("VAULT_HSM_PIN", PIN)),
        ("wrong-in-the-file", environment("BAO_HSM_PIN", PIN)),
    ] {
        assert!(cluster.terminate(1).success());
        cluster.configure(1, |config| {
            config.pin = pin.to_owned();
            config.environment = environment;
        });
        cluster.start_node(1);
        cluster.wait_unsealed(1);
    }

    assert!(cluster.terminate(1).success());
    let plain = machine::free_port();
    cluster.configure(1, |config| {
        config.extra = format!(
            "listener \"tcp\" {{\n  address = \"127.0.0.1:{plain}\"\n  tls_disable = \"true\"\n}}\n"
        );
    });
    cluster.start_node(1);
    cluster.wait_unsealed(1);
    let address = format!("-address=http://127.0.0.1:{plain}");
    for status in [
        cluster.strongroom(1, &["status", &address]),
        cluster.bao(1, &["status", &address]),
    ] {
        assert!(status.ok().stdout.contains("Sealed"));
    }
}
