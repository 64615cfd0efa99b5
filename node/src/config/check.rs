//! From merged entries to a [`Config`]: the top level, and how the parts fit together.
//!
//! Goes on after a mistake, with a stand-in, so that all of them are found in one run.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::{
    Config, Listener, LogFormat, LogLevel,
    addresses::{NodeUrl, own_address},
    env::Environment,
    known, listener,
    report::{Origin, Report},
    seal,
    section::{Located, Section},
    storage,
    syntax::Entry,
    telemetry,
    values::parse_bool,
};

/// Vault's default lease: 32 days.
const DEFAULT_LEASE_TTL: Duration = Duration::from_secs(768 * 3600);
const DEFAULT_API_PORT: u16 = 8200;

/// Checks everything. `None` only together with problems.
pub(super) fn check(
    entries: Vec<Entry>,
    environment: &Environment,
    report: &mut Report,
) -> Option<Config> {
    let mut top = Section::new("", Origin::Whole, entries);
    let listeners = listener::check_all(&mut top, report);
    let storage = storage::check(&mut top, environment, report);
    let data_dir = storage.as_ref().map(|storage| storage.path.clone());
    let seal = seal::check(&mut top, environment, data_dir.as_deref(), report);
    refuse_ha_storage(&mut top, report);

    let api_addr = addr_setting(&mut top, "api_addr", "API_ADDR", environment, report);
    let cluster_addr = addr_setting(
        &mut top,
        "cluster_addr",
        "CLUSTER_ADDR",
        environment,
        report,
    );
    let api_url = api_url(api_addr, &listeners, report);
    let cluster_url = cluster_url(cluster_addr, api_url.as_ref(), report);

    let cluster_name = from_env("CLUSTER_NAME", environment)
        .or_else(|| top.take_string("cluster_name", report))
        .map(|name| name.value);
    let log_level = choice(
        &mut top,
        "log_level",
        "LOG_LEVEL",
        environment,
        report,
        LogLevel::parse,
    )
    .unwrap_or(LogLevel::Info);
    let log_format = choice(
        &mut top,
        "log_format",
        "LOG_FORMAT",
        environment,
        report,
        LogFormat::parse,
    )
    .unwrap_or(LogFormat::Standard);
    let disable_mlock = mlock(&mut top, environment, report);
    leases(&mut top, report);
    let telemetry = telemetry::check(&mut top, report);
    let pid_file = top
        .take_string("pid_file", report)
        .map(|path| PathBuf::from(path.value));
    top.finish(known::TOP, report);

    Some(Config {
        listeners,
        storage: storage?,
        seal: seal?,
        api_addr: api_url?.to_string(),
        cluster_addr: cluster_url?.to_string(),
        cluster_name,
        log_level,
        log_format,
        disable_mlock,
        pid_file,
        telemetry,
    })
}

fn refuse_ha_storage(top: &mut Section, report: &mut Report) {
    for key in ["ha_storage", "ha_backend"] {
        for entry in top.take_all(key) {
            report.problem(
                &entry.at,
                format!("{key} is not supported: storage \"raft\" is highly available by itself"),
            );
        }
    }
}

/// A variable of the environment and its origin.
pub(super) fn from_env(suffix: &str, environment: &Environment) -> Option<Located<String>> {
    environment
        .find(suffix)
        .map(|(name, value)| Located::new(value, Origin::Env(name)))
}

/// The environment before the file; both are looked at, so that neither hides a mistake.
fn addr_setting(
    top: &mut Section,
    key: &'static str,
    suffix: &str,
    environment: &Environment,
    report: &mut Report,
) -> Option<Located<String>> {
    let in_file = top.take_string(key, report);
    from_env(suffix, environment).or(in_file)
}

fn choice<T>(
    top: &mut Section,
    key: &'static str,
    suffix: &str,
    environment: &Environment,
    report: &mut Report,
    parse: fn(&str) -> Option<T>,
) -> Option<T> {
    let found = addr_setting(top, key, suffix, environment, report)?;
    let parsed = parse(&found.value);
    if parsed.is_none() {
        let wanted = match key {
            "log_level" => "trace, debug, info, warn or error",
            _ => "standard or json",
        };
        report.problem(&found.at, format!("{key} must be {wanted}"));
    }
    parsed
}

fn mlock(top: &mut Section, environment: &Environment, report: &mut Report) -> bool {
    let in_file = top.take_bool("disable_mlock", report).unwrap_or(false);
    let Some(found) = from_env("DISABLE_MLOCK", environment) else {
        return in_file;
    };
    parse_bool(&found.value).unwrap_or_else(|| {
        report.problem(&found.at, "must be true or false");
        in_file
    })
}

/// Checked, so that a mistake shows now and not when leases come.
fn leases(top: &mut Section, report: &mut Report) {
    let default = top.take_duration("default_lease_ttl", report);
    let max = top.take_duration("max_lease_ttl", report);
    let nonzero = |found: &Option<Located<Duration>>| {
        found
            .as_ref()
            .map(|ttl| ttl.value)
            .filter(|ttl| !ttl.is_zero())
    };
    let longest = nonzero(&max).unwrap_or(DEFAULT_LEASE_TTL);
    for (key, found) in [("default_lease_ttl", &default), ("max_lease_ttl", &max)] {
        if let Some(found) = found {
            report.warn(
                &found.at,
                format!("{key} has no effect: nothing has a lease yet"),
            );
        }
    }
    if nonzero(&default).is_some_and(|default| default > longest)
        && let Some(place) = default.or(max)
    {
        report.problem(
            &place.at,
            "default_lease_ttl must not be longer than max_lease_ttl (768h unless set)",
        );
    }
}

/// What clients are told. Without a setting: the first listener, and this machine's address if that one is for all
/// of them.
fn api_url(
    setting: Option<Located<String>>,
    listeners: &[Listener],
    report: &mut Report,
) -> Option<NodeUrl> {
    if let Some(setting) = setting {
        let parsed = NodeUrl::parse(&setting.value);
        if let Err(why) = &parsed {
            report.problem(&setting.at, format!("api_addr {why}"));
        }
        return parsed.ok();
    }
    let first = listeners.first();
    let scheme = match first {
        Some(listener) if listener.tls.is_none() => "http",
        _ => "https",
    };
    let address = first.map_or_else(
        || SocketAddr::from(([127, 0, 0, 1], DEFAULT_API_PORT)),
        |listener| listener.address,
    );
    if !address.ip().is_unspecified() {
        return Some(NodeUrl::of(scheme, address));
    }
    let Some(ip) = own_address() else {
        report.problem(
            &Origin::Whole,
            "api_addr must be set: the listener takes every address, and this machine's own is not known",
        );
        return None;
    };
    let url = NodeUrl::of(scheme, SocketAddr::new(ip, address.port()));
    report.warn(
        &Origin::Whole,
        format!("api_addr is not set; others are told {url}"),
    );
    Some(url)
}

/// What other nodes are told: a URL or `host:port`; always TLS.
fn cluster_url(
    setting: Option<Located<String>>,
    api: Option<&NodeUrl>,
    report: &mut Report,
) -> Option<NodeUrl> {
    let Some(setting) = setting else {
        let default = api?.cluster_default();
        if default.is_none() {
            report.problem(
                &Origin::Whole,
                "cluster_addr must be set: there is no port above the one of api_addr",
            );
        }
        return default;
    };
    let text = if setting.value.contains("://") {
        setting.value.clone()
    } else {
        format!("https://{}", setting.value)
    };
    let after_scheme = text.split_once("://").map_or("", |(_, rest)| rest);
    let parsed = NodeUrl::parse(&text).and_then(|url| {
        let bare = after_scheme.trim_end_matches('/');
        if url.scheme == "https" && !bare.ends_with(&format!(":{}", url.port)) {
            return Err("must name its port".to_owned());
        }
        Ok(NodeUrl {
            // As in Vault, the scheme is taken and does not matter: nodes always speak TLS.
            scheme: "https".to_owned(),
            ..url
        })
    });
    if let Err(why) = &parsed {
        report.problem(&setting.at, format!("cluster_addr {why}"));
    }
    parsed.ok()
}
