//! Whole configurations: good ones, and tables of what each mistake says.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use proptest::prelude::*;

use super::*;

const GOOD: &str = r#"
listener "tcp" {
  address     = "127.0.0.1:8200"
  tls_disable = true
}
storage "raft" {
  path    = "data"
  node_id = "n1"
}
seal "pkcs11" {
  lib         = "/dev/null/none.so"
  token_label = "t"
  pin         = "1234"
  key_label   = "k"
}
"#;

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

fn load_text(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let files = Files::new();
    let path = files.write("c.hcl", text);
    load(&[path], &Environment::fixed(variables))
}

/// Problems without the directory of the file.
fn problems(text: &str) -> Vec<String> {
    match load_text(text, &[]) {
        Ok(_) => Vec::new(),
        Err(error) => short(&error.problems),
    }
}

fn short(findings: &[report::Finding]) -> Vec<String> {
    findings
        .iter()
        .map(|finding| {
            let line = finding.to_string();
            match line.find("c.hcl") {
                Some(at) => line[at..].to_owned(),
                None => line,
            }
        })
        .collect()
}

fn pair(files: &Files) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    (
        files.write("cert.pem", &made.cert.pem()),
        files.write("key.pem", &made.signing_key.serialize_pem()),
    )
}

#[test]
fn a_small_file_gets_vaults_defaults() {
    let loaded = load_text(GOOD, &[]).unwrap();
    let config = loaded.config;
    assert_eq!(config.api_addr, "http://127.0.0.1:8200");
    assert_eq!(config.cluster_addr, "https://127.0.0.1:8201");
    assert_eq!(config.cluster_host_port(), "127.0.0.1:8201");
    assert_eq!(
        config.cluster_listeners(),
        ["127.0.0.1:8201".parse().unwrap()]
    );
    let listener = &config.listeners[0];
    assert!(listener.tls.is_none());
    assert_eq!(listener.max_request_size, Some(32 << 20));
    assert_eq!(listener.max_request_duration, Duration::from_secs(90));
    assert_eq!(config.storage.node_id, "n1");
    assert_eq!(config.storage.performance_multiplier, 1);
    assert_eq!(config.storage.max_entry_size, 1 << 20);
    assert_eq!(config.storage.snapshots, SnapshotOptions::default());
    assert_eq!(*config.seal.pin, "1234");
    assert_eq!(config.seal.max_parallel, 4);
    assert!(!config.seal.generate_key);
    assert_eq!(config.seal.pin_guard, Path::new("data/hsm-pin-guard"));
    assert!(!config.disable_mlock);
    // The module is not there yet: odd, but a node waits for its HSM.
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
}

#[test]
fn everything_is_read() {
    let files = Files::new();
    let (cert, key) = pair(&files);
    let (cert, key) = (cert.display(), key.display());
    let pin = files.write("pin", "9876\n");
    let text = format!(
        r#"
listener "tcp" {{
  address = "127.0.0.1:8300"
  cluster_address = "127.0.0.1:8400"
  tls_cert_file = "{cert}"
  tls_key_file = "{key}"
  tls_min_version = "tls13"
  tls_client_ca_file = "{cert}"
  tls_require_and_verify_client_cert = "true"
  max_request_size = "-1"
  max_request_duration = "2m"
  http_read_timeout = 45
}}
listener "tcp" {{
  address = "[::1]:8300"
  tls_disable = 1
}}
storage "raft" {{
  path = "/d"
  node_id = "n1"
  performance_multiplier = "1"
  trailing_logs = "500"
  snapshot_threshold = 1000
  snapshot_interval = "90s"
  retry_join {{
    leader_api_addr = "https://10.0.0.2:8200/"
    leader_ca_cert_file = "{cert}"
    leader_client_cert_file = "{cert}"
    leader_client_key_file = "{key}"
    leader_tls_servername = "vault"
  }}
  retry_join {{
    leader_api_addr = "http://10.0.0.3:8200"
  }}
}}
seal "pkcs11" {{
  lib = "/dev/null/none.so"
  slot = 3
  pin = "file://{}"
  key_label = "k"
  hmac_key_label = "h"
  key_id = "0x0a"
  mechanism = "0x1085"
  generate_key = "true"
  max_parallel = 2
}}
api_addr = "https://vault.example:8200"
cluster_name = "c"
log_level = "warn"
log_format = "json"
disable_mlock = "true"
default_lease_ttl = "1h"
max_lease_ttl = 7200
pid_file = "/run/x.pid"
"#,
        pin.display()
    );
    let path = files.write("c.hcl", &text);
    let Loaded { config, warnings } = load(&[path], &Environment::fixed(&[])).unwrap();
    let [first, second] = &config.listeners[..] else {
        panic!("two listeners")
    };
    let tls = first.tls.as_ref().unwrap();
    assert_eq!(tls.min_version, TlsVersion::Tls13);
    assert!(matches!(tls.client_auth, ClientAuth::Required { .. }));
    assert_eq!(first.max_request_size, None);
    assert_eq!(first.max_request_duration, Duration::from_secs(120));
    assert_eq!(first.http_read_header_timeout, Duration::from_secs(10));
    assert!(second.tls.is_none());
    assert_eq!(config.cluster_listeners().len(), 2);
    assert_eq!(config.cluster_addr, "https://vault.example:8201");
    assert_eq!(config.storage.performance_multiplier, 1);
    let snapshots = SnapshotOptions {
        threshold: 1000,
        interval: Duration::from_secs(90),
        trailing_logs: 500,
        // What was asked for is kept, whatever it weighs.
        trailing_bytes: u64::MAX,
        ..SnapshotOptions::default()
    };
    assert_eq!(config.storage.snapshots, snapshots);
    let joins = &config.storage.retry_join;
    assert_eq!(joins[0].leader_api_addr, "https://10.0.0.2:8200");
    let tls = joins[0].tls_parameters().unwrap();
    assert_eq!(tls.server_name.as_deref(), Some("vault"));
    assert!(tls.client.is_some() && tls.ca.is_some());
    assert_eq!(joins[1].leader_api_addr, "http://10.0.0.3:8200");
    let seal = &config.seal;
    assert_eq!((seal.slot, seal.max_parallel), (Some(3), 2));
    assert_eq!(*seal.pin, "9876");
    assert_eq!(seal.mechanism, Some(Mechanism::AesCbcPadHmac));
    assert_eq!(seal.key_id.as_deref(), Some(&[10][..]));
    assert!(seal.generate_key && config.disable_mlock);
    assert_eq!(config.log_level, LogLevel::Warn);
    assert_eq!(config.log_format, LogFormat::Json);
    let odd: Vec<_> = warnings.iter().map(|w| w.what.as_str()).collect();
    for key in ["http_read_timeout", "default_lease_ttl", "max_lease_ttl"] {
        assert!(
            odd.iter()
                .any(|what| what.contains(&format!("{key} has no effect"))),
            "{odd:?}"
        );
    }
}

#[test]
fn json_in_every_shape() {
    let seal = r#"{"pkcs11":{"lib":"/dev/null/x.so","slot":"0","pin":"1","key_label":"k"}}"#;
    for (listener, storage) in [
        (
            r#"{"tcp":{"tls_disable":true}}"#,
            r#"{"raft":{"path":"d","node_id":"n"}}"#,
        ),
        (
            r#"[{"tcp":{"tls_disable":"true"}}]"#,
            r#"[{"raft":[{"path":"d","node_id":"n"}]}]"#,
        ),
        (
            r#"{"tcp":[{"tls_disable":1}]}"#,
            r#"{"raft":{"path":"d","node_id":"n","retry_join":[{"leader_api_addr":"http://a:1"}]}}"#,
        ),
        (
            r#"[{"type":"tcp","tls_disable":1}]"#,
            r#"{"raft":{"path":"d","node_id":"n","retry_join":{"leader_api_addr":"http://a:1"}}}"#,
        ),
    ] {
        for key in ["storage", "backend"] {
            let text =
                format!(r#"{{"listener":{listener},"{key}":{storage},"seal":{seal},"ui":true}}"#);
            let loaded = load_text(&text, &[]).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(loaded.config.storage.node_id, "n");
            assert_eq!(loaded.config.listeners.len(), 1);
        }
    }
}

#[test]
fn every_mistake_is_reported_at_once_with_its_place() {
    let text = r#"listener "tcp" {
  adress = "127.0.0.1:8200"
  tls_disable = "maybe"
  max_request_duration = "soon"
}
storage "raft" {
  node_id = "a b"
  performance_multiplier = 11
  snapshot_interval = "1ms"
  retry_join {
    auto_join = "provider=aws"
  }
}
seal "pkcs11" {
  lib = "libsofthsm2.so"
  mechanism = "0x0001"
}
api_addr = "127.0.0.1:8200"
uii = true
"#;
    let want = [
        r#"2:3: listener "tcp": adress is not a known setting; did you mean address?"#,
        r#"3:17: listener "tcp": tls_disable must be true or false"#,
        r#"4:26: listener "tcp": max_request_duration must be a duration such as "30s" or "1h""#,
        r#"6:9: storage "raft": path must be set to the data directory"#,
        r#"7:13: storage "raft": node_id must not hold spaces or control characters"#,
        r#"8:28: storage "raft": performance_multiplier must be a whole number from 0 to 10"#,
        r#"9:23: storage "raft": snapshot_interval must be from 5ms to 24h"#,
        "11:17: retry_join: auto_join is not supported; list the nodes, one retry_join with leader_api_addr each",
        r#"14:6: seal "pkcs11": key_label must be set"#,
        r#"14:6: seal "pkcs11": pin must be set (the PIN, or file://PATH, env://NAME, string://PIN)"#,
        r#"14:6: seal "pkcs11": slot or token_label must be set"#,
        r#"15:9: seal "pkcs11": lib must be a path, with at least one /"#,
        r#"16:15: seal "pkcs11": mechanism: CKM_AES_CBC (0x1082) and CKM_RSA_PKCS (0x0001) are open to padding attacks and not supported; use 0x1087, 0x1085 or 0x0009"#,
        "18:12: api_addr must be a URL such as https://host:8200",
        "19:1: uii is not a known setting; did you mean ui?",
    ]
    .map(|line| format!("c.hcl:{line}"));
    assert_eq!(problems(text), want);
}

#[test]
fn vaults_other_settings_are_warnings() {
    let text = format!(
        "{GOOD}ui = true\ndisable_cache = true\nplugin_directory = \"/p\"\nlicense_path = \"x\"\nplugin \"kms\" \"pkcs11\" {{\n}}\n"
    );
    let loaded = load_text(&text, &[]).unwrap();
    let said = short(&loaded.warnings).join("\n");
    for name in [
        "ui",
        "disable_cache",
        "plugin_directory",
        "license_path",
        "plugin",
    ] {
        assert!(
            said.contains(&format!(": {name} has no effect: ")),
            "{name} in {said}"
        );
    }
}

#[test]
fn telemetry_is_vaults() {
    let open = |inside: &str| {
        GOOD.replace(
            "tls_disable = true",
            &format!("tls_disable = true\n{inside}"),
        )
    };
    let text = format!(
        "{}telemetry {{\n  prometheus_retention_time = \"0s\"\n  disable_hostname = true\n  metrics_prefix = \"bank\"\n  \
         enable_hostname_label = true\n  statsd_address = \"a:1\"\n  usage_gauge_period = \"5m\"\n}}\n",
        open("telemetry {\n unauthenticated_metrics_access = \"true\"\n}")
    );
    let loaded = load_text(&text, &[]).unwrap();
    let telemetry = &loaded.config.telemetry;
    assert_eq!(
        (
            telemetry.prometheus,
            telemetry.metrics_prefix.as_str(),
            telemetry.enable_hostname_label
        ),
        (false, "bank", true)
    );
    assert_eq!(loaded.config.listeners[0].metrics, MetricsAccess::Everybody);
    let said = short(&loaded.warnings).join("\n");
    for name in ["statsd_address", "usage_gauge_period"] {
        assert!(
            said.contains(&format!("telemetry: {name} has no effect: ")),
            "{said}"
        );
    }
    assert!(!said.contains("disable_hostname"), "{said}");

    let plain = load_text(GOOD, &[]).unwrap().config;
    assert_eq!(plain.telemetry, Telemetry::default());
    assert_eq!(plain.listeners[0].metrics, MetricsAccess::Token);
    let closed = open("telemetry {\n disallow_metrics = true\n}");
    assert_eq!(
        load_text(&closed, &[]).unwrap().config.listeners[0].metrics,
        MetricsAccess::Nobody
    );

    for (text, want) in [
        (
            "telemetry {\n  prometheus_retention_time = \"soon\"\n}\n",
            "prometheus_retention_time must be a duration",
        ),
        (
            "telemetry {\n  metrics_prefix = \"a-b\"\n}\n",
            "metrics_prefix may hold letters",
        ),
        (
            "telemetry {\n  retention = 1\n}\n",
            "retention is not a known setting",
        ),
        (
            "telemetry {\n}\ntelemetry {\n}\n",
            "telemetry is configured twice",
        ),
    ] {
        let said = problems(&format!("{GOOD}{text}")).join("\n");
        assert!(said.contains(want), "{want} in {said}");
    }
}

#[test]
fn the_environment_goes_before_the_file() {
    let variables = [
        ("VAULT_API_ADDR", "https://env:1"),
        ("BAO_API_ADDR", "https://bao:1"),
        ("BAO_CLUSTER_ADDR", "https://env:2"),
        ("VAULT_RAFT_NODE_ID", "env-node"),
        ("STRONGROOM_RAFT_PATH", "env-path"),
        ("VAULT_LOG_LEVEL", "debug"),
        ("VAULT_HSM_PIN", "from-env"),
        ("BAO_HSM_TOKEN_LABEL", "env-token"),
        ("STRONGROOM_HSM_GENERATE_KEY", "true"),
        ("VAULT_HSM_SLOT", ""),
    ];
    let config = load_text(GOOD, &variables).unwrap().config;
    assert_eq!(config.api_addr, "https://env:1");
    assert_eq!(config.cluster_addr, "https://env:2");
    assert_eq!(config.storage.node_id, "env-node");
    assert_eq!(config.storage.path, Path::new("env-path"));
    assert_eq!(config.log_level, LogLevel::Debug);
    assert_eq!(*config.seal.pin, "from-env");
    assert_eq!(config.seal.token_label.as_deref(), Some("env-token"));
    assert_eq!(config.seal.slot, None);
    assert!(config.seal.generate_key);

    let error = load_text(GOOD, &[("VAULT_API_ADDR", "nonsense")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "environment variable VAULT_API_ADDR: api_addr must be a URL such as https://host:8200"
    );
}

#[test]
fn the_seal_can_come_from_the_environment_alone() {
    let text = GOOD.split("seal").next().unwrap();
    let variables = [
        ("VAULT_SEAL_TYPE", "pkcs11"),
        ("VAULT_HSM_LIB", "/dev/null/x.so"),
        ("VAULT_HSM_SLOT", "7"),
        ("VAULT_HSM_PIN", "env://THE_PIN"),
        ("THE_PIN", "4711"),
        ("VAULT_HSM_KEY_LABEL", "k"),
    ];
    let config = load_text(text, &variables).unwrap().config;
    assert_eq!(
        (config.seal.slot, config.seal.pin.as_str()),
        (Some(7), "4711")
    );
    assert!(
        problems(text)
            .iter()
            .any(|p| p.contains("no seal \"pkcs11\""))
    );
}

#[test]
fn pin_references() {
    let with = |pin: &str| GOOD.replace("\"1234\"", &format!("{pin:?}"));
    assert_eq!(
        *load_text(&with("string://env://x"), &[])
            .unwrap()
            .config
            .seal
            .pin,
        "env://x"
    );
    for (pin, want) in [
        ("", "pin must be set"),
        ("env://NOT_SET", "NOT_SET is not set"),
        ("file:///nonexistent/pin", "cannot be read"),
        ("string://", "pin must not be empty"),
    ] {
        let found = problems(&with(pin));
        assert!(
            found.len() == 1 && found[0].contains(want),
            "{pin}: {found:?}"
        );
    }
    let shown = format!("{:?}", load_text(GOOD, &[]).unwrap());
    assert!(!shown.contains("1234"), "{shown}");
}

#[test]
fn single_mistakes() {
    for (from, to, want) in [
        (
            "listener \"tcp\"",
            "listener \"unix\"",
            "c.hcl:2:10: listener \"unix\" is not supported; use listener \"tcp\"",
        ),
        (
            "storage \"raft\"",
            "storage \"consul\"",
            "c.hcl:6:9: storage \"consul\" is not supported here; use storage \"raft\"",
        ),
        (
            "seal \"pkcs11\"",
            "seal \"awskms\"",
            "c.hcl:10:6: seal \"awskms\" is not supported; use seal \"pkcs11\"",
        ),
        (
            "tls_disable = true",
            "",
            "c.hcl:2:10: listener \"tcp\": tls_cert_file must be set (or tls_disable = true)",
        ),
        (
            "token_label = \"t\"",
            "",
            "c.hcl:10:6: seal \"pkcs11\": slot or token_label must be set",
        ),
        (
            "token_label = \"t\"",
            "slot = \"x\"",
            "c.hcl:12:10: seal \"pkcs11\": slot must be a slot number",
        ),
        (
            "127.0.0.1:8200",
            "127.0.0.1",
            "c.hcl:3:17: listener \"tcp\": address must be host:port; the port is missing",
        ),
        (
            "\"data\"",
            "[1]",
            "c.hcl:7:13: storage \"raft\": path must be a string, not a list",
        ),
        (
            "\"data\"",
            "\"${x}\"",
            "c.hcl:7:13: ${…} and %{…} are not expanded; write $${ or %%{ for the characters themselves",
        ),
        (
            "\"data\"",
            "dir()",
            "c.hcl:7:13: expressions are not supported here; write a string (in quotes), a number, true, false, a list or an object",
        ),
        (
            "key_label   = \"k\"",
            "key_label   = \"k\"\n  nonsense = 1",
            "c.hcl:15:3: seal \"pkcs11\": nonsense is not a known setting",
        ),
        (
            "\nstorage",
            "\nha_storage \"raft\" {\n}\nstorage",
            "c.hcl:6:1: ha_storage is not supported: storage \"raft\" is highly available by itself",
        ),
        (
            "\nstorage",
            "\nlog_level = \"loud\"\nstorage",
            "c.hcl:6:13: log_level must be trace, debug, info, warn or error",
        ),
        (
            "\nstorage",
            "\ndefault_lease_ttl = \"1000h\"\nstorage",
            "c.hcl:6:21: default_lease_ttl must not be longer than max_lease_ttl (768h unless set)",
        ),
        (
            "\nstorage",
            "\nstorage \"raft\" {\n  path = \"b\"\n}\nstorage",
            "c.hcl:9:9: storage is configured twice",
        ),
    ] {
        let text = GOOD.replacen(from, to, 1);
        let found = problems(&text);
        assert!(found.iter().any(|p| p == want), "{to:?} gave {found:#?}");
    }
}

#[test]
fn tls_files_are_tried() {
    let files = Files::new();
    let (cert, key) = pair(&files);
    let other = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
    let other_key = files.write("other.pem", &other.signing_key.serialize_pem());
    let junk = files.write("junk.pem", "junk");
    let tls = |cert: &Path, key: &Path| {
        let (cert, key) = (cert.display(), key.display());
        GOOD.replace(
            "tls_disable = true",
            &format!("tls_cert_file = \"{cert}\"\ntls_key_file = \"{key}\""),
        )
    };
    assert_eq!(problems(&tls(&cert, &key)), Vec::<String>::new());
    for (cert, key, want) in [
        (&cert, &other_key, "is not the key of the certificate"),
        (&junk, &key, "holds no PEM certificate"),
        (&cert, &junk, "holds no unencrypted PEM private key"),
        (&files.path().join("none"), &key, "cannot be read"),
    ] {
        let found = problems(&tls(cert, key));
        assert!(
            found.len() == 1 && found[0].contains(want),
            "{want}: {found:?}"
        );
    }
}

#[test]
fn files_and_directories_merge() {
    let files = Files::new();
    files.write("10-base.hcl", GOOD);
    files.write("20-more.json", r#"{"log_level":"warn","cluster_name":"a","listener":{"tcp":{"address":"127.0.0.1:9000","tls_disable":true}}}"#);
    files.write("30-last.hcl", "cluster_name = \"b\"\n");
    files.write("README.txt", "not read");
    let dir = files.path().to_owned();
    let config = load(&[dir], &Environment::fixed(&[])).unwrap().config;
    assert_eq!(config.cluster_name.as_deref(), Some("b"));
    assert_eq!(config.log_level, LogLevel::Warn);
    assert_eq!(config.listeners.len(), 2);

    let empty = tempfile::tempdir().unwrap();
    let error = load(&[empty.path().to_owned()], &Environment::fixed(&[])).unwrap_err();
    assert!(error.to_string().contains("holds no *.hcl or *.json file"));
    let error = load(
        &[PathBuf::from("/nonexistent/c.hcl")],
        &Environment::fixed(&[]),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("/nonexistent/c.hcl:1:1: cannot be read")
    );
    assert!(load(&[], &Environment::fixed(&[])).is_err());
}

#[test]
fn syntax_errors_have_a_place() {
    for (text, want) in [
        ("listener \"tcp\" {\n  address = \n}\n", "c.hcl:2:"),
        ("a = \"x", "c.hcl:1:"),
        ("{\"a\": }", "c.hcl:1:"),
        ("{\n \"a\": 1,\n \"b\" 2}", "c.hcl:3:"),
        ("a = 1\na = 2\n", "c.hcl:2:"),
    ] {
        let found = problems(text);
        assert!(
            found[0].starts_with(want) && found[0].contains("not valid"),
            "{text:?}: {found:?}"
        );
    }
    let twice = r#"{"cluster_name":"a","cluster_name":"b"}"#;
    assert!(problems(twice).contains(&"c.hcl:1:21: cluster_name is set twice".to_owned()));
}

#[test]
fn a_name_is_made_up_once() {
    let files = Files::new();
    let data = files.path().join("data");
    let text = GOOD
        .replace("  node_id = \"n1\"\n", "")
        .replace("\"data\"", &format!("{:?}", data.display().to_string()));
    let path = files.write("c.hcl", &text);
    let load_it = || {
        load(std::slice::from_ref(&path), &Environment::fixed(&[]))
            .unwrap()
            .config
            .storage
    };
    let first = load_it();
    assert!(first.node_id_is_new && first.node_id.len() == 36);
    assert!(!data.exists(), "a check writes nothing");
    first.keep_node_id().unwrap();
    let second = load_it();
    assert_eq!(second.node_id, first.node_id);
    assert!(!second.node_id_is_new);
    second.keep_node_id().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics(text in ".{0,300}") {
        let mut report = report::Report::default();
        for name in ["c.hcl", "c.json"] {
            let source = syntax::Source { order: 0, name: name.into(), text: &text };
            let entries = syntax::parse(&source, &mut report);
            check::check(entries, &Environment::fixed(&[]), &mut report);
        }
    }

    /// Near misses: a good file with something cut out and something put in.
    #[test]
    fn no_edit_panics(cut in 0..GOOD.len(), len in 0usize..40, put in "[-a-z0-9\"{}=\\[\\]$%<\n ]{0,12}") {
        let end = (cut + len).min(GOOD.len());
        let text = format!("{}{put}{}", &GOOD[..cut], &GOOD[end..]);
        let mut report = report::Report::default();
        let source = syntax::Source { order: 0, name: "c.hcl".into(), text: &text };
        let entries = syntax::parse(&source, &mut report);
        let config = check::check(entries, &Environment::fixed(&[]), &mut report);
        prop_assert!(config.is_some() || !report.problems.is_empty());
    }
}
