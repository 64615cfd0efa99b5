//! `listener "tcp"`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::{
    ClientAuth, Listener, ListenerTls, TlsVersion,
    addresses::bind_address,
    known, pem,
    report::{Origin, Report},
    section::{Labelled, Located, Section},
};

const DEFAULT_ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 8200);
/// 32 MiB.
const MAX_REQUEST_SIZE: usize = 32 << 20;
const MAX_REQUEST_DURATION: Duration = Duration::from_secs(90);
const READ_HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Every listener; none at all, or one address twice, is a mistake.
pub(super) fn check_all(top: &mut Section, report: &mut Report) -> Vec<Listener> {
    let blocks = top.take_labelled("listener", report);
    if blocks.is_empty() {
        report.problem(&Origin::Whole, "no listener \"tcp\" is configured");
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for block in blocks {
        let at = block.at.clone();
        let Some(listener) = check(block, report) else {
            continue;
        };
        for earlier in &listeners {
            if earlier.address == listener.address {
                report.problem(&at, format!("{} is listened on twice", listener.address));
            }
        }
        listeners.push(listener);
    }
    for listener in &listeners {
        if listeners
            .iter()
            .any(|other| other.address == listener.cluster_address)
        {
            report.problem(
                &Origin::Whole,
                format!(
                    "{} is an address and a cluster_address",
                    listener.cluster_address
                ),
            );
        }
    }
    listeners
}

fn check(block: Labelled, report: &mut Report) -> Option<Listener> {
    if block.label != "tcp" {
        report.problem(
            &block.at,
            format!(
                "listener {:?} is not supported; use listener \"tcp\"",
                block.label
            ),
        );
        return None;
    }
    let mut section = Section::new("listener \"tcp\"", block.at, block.entries);
    let address = address(&mut section, "address", report);
    let given_cluster = address_setting(&mut section, "cluster_address", report);
    let tls = tls(&mut section, report);
    let max_request_size = request_size(&mut section, report);
    let mut time = |key, default| {
        section
            .take_duration(key, report)
            .map(|found| found.value)
            .filter(|duration| !duration.is_zero())
            .unwrap_or(default)
    };
    let max_request_duration = time("max_request_duration", MAX_REQUEST_DURATION);
    let http_read_header_timeout = time("http_read_header_timeout", READ_HEADER_TIMEOUT);
    section.without_effect(
        &[
            "http_read_timeout",
            "http_write_timeout",
            "http_idle_timeout",
        ],
        "set max_request_duration and http_read_header_timeout",
        |section, key, report| section.take_duration(key, report).map(|found| found.at),
        report,
    );
    refuse_proxy_protocol(&mut section, report);
    let metrics = super::telemetry::listener(&mut section, report);
    let at = section.at.clone();
    section.finish(known::LISTENER, report);

    let address = address?;
    let cluster_address = match given_cluster {
        Given::Value(cluster) => cluster,
        Given::Absent => next_port(address, &at, report)?,
        Given::Wrong => return None,
    };
    Some(Listener {
        address,
        cluster_address,
        tls: tls?,
        max_request_size,
        max_request_duration,
        http_read_header_timeout,
        metrics,
    })
}

/// A setting that may be absent, or there and wrong (and reported).
enum Given<T> {
    Absent,
    Wrong,
    Value(T),
}

fn address_setting(
    section: &mut Section,
    key: &'static str,
    report: &mut Report,
) -> Given<SocketAddr> {
    let Some(text) = section.take_string(key, report) else {
        return Given::Absent;
    };
    match bind_address(&text.value) {
        Ok(address) => Given::Value(address),
        Err(why) => {
            report.problem(&text.at, format!("{}: {key} {why}", section.title));
            Given::Wrong
        }
    }
}

fn address(section: &mut Section, key: &'static str, report: &mut Report) -> Option<SocketAddr> {
    match address_setting(section, key, report) {
        Given::Value(address) => Some(address),
        Given::Absent => Some(SocketAddr::from(DEFAULT_ADDRESS)),
        Given::Wrong => None,
    }
}

fn next_port(address: SocketAddr, at: &Origin, report: &mut Report) -> Option<SocketAddr> {
    let port = address.port().checked_add(1);
    if port.is_none() {
        report.problem(
            at,
            "listener \"tcp\": cluster_address must be set: there is no port above the one of address",
        );
    }
    Some(SocketAddr::new(address.ip(), port?))
}

/// Zero is the default, a negative number is no limit: as in Vault.
fn request_size(section: &mut Section, report: &mut Report) -> Option<usize> {
    let Some(text) = section.take_string("max_request_size", report) else {
        return Some(MAX_REQUEST_SIZE);
    };
    match text.value.trim().parse::<i64>() {
        Ok(0) => Some(MAX_REQUEST_SIZE),
        Ok(size) if size < 0 => None,
        Ok(size) => Some(usize::try_from(size).unwrap_or(usize::MAX)),
        Err(_) => {
            report.problem(
                &text.at,
                format!(
                    "{}: max_request_size must be a number of bytes",
                    section.title
                ),
            );
            Some(MAX_REQUEST_SIZE)
        }
    }
}

/// Without it the load balancer's prefix would be taken for a broken request.
fn refuse_proxy_protocol(section: &mut Section, report: &mut Report) {
    section.take_all("proxy_protocol_authorized_addrs");
    if let Some(behavior) = section.take_string("proxy_protocol_behavior", report) {
        report.problem(
            &behavior.at,
            format!(
                "{}: proxy_protocol_behavior is not supported; turn the PROXY protocol off in the load balancer",
                section.title
            ),
        );
    }
}

/// `Some(None)`: plain HTTP, on purpose. `None`: wrong, and reported.
#[expect(clippy::option_option, reason = "wrong, off and on are three things")]
fn tls(section: &mut Section, report: &mut Report) -> Option<Option<ListenerTls>> {
    let problems_before = report.problems.len();
    let disabled = section.take_bool("tls_disable", report).unwrap_or(false);
    let unclear = report.problems.len() > problems_before;
    let cert_file = file(section, "tls_cert_file", report);
    let key_file = file(section, "tls_key_file", report);
    let min = version(section, "tls_min_version", report);
    let max = version(section, "tls_max_version", report);
    let client_auth = client_auth(section, disabled, report);
    if disabled {
        return (report.problems.len() == problems_before).then_some(None);
    }
    let max_version = max.as_ref().map_or(TlsVersion::Tls13, |max| max.value);
    let min_version = min.map_or(TlsVersion::Tls12, |min| min.value);
    if let Some(max) = max
        && max.value < min_version
    {
        report.problem(
            &max.at,
            format!(
                "{}: tls_max_version is below tls_min_version",
                section.title
            ),
        );
    }
    for (name, given) in [("tls_cert_file", &cert_file), ("tls_key_file", &key_file)] {
        if given.is_none() && !unclear {
            report.problem(
                &section.at,
                format!(
                    "{}: {name} must be set (or tls_disable = true)",
                    section.title
                ),
            );
        }
    }
    let (cert_file, key_file) = (cert_file?, key_file?);
    if let Err(problems) = pem::pair(&cert_file.value, &key_file.value) {
        for (problem, at) in [(problems.cert, &cert_file.at), (problems.key, &key_file.at)] {
            if let Some(problem) = problem {
                report.problem(at, format!("{}: {problem}", section.title));
            }
        }
    }
    let tls = ListenerTls {
        cert_file: cert_file.value,
        key_file: key_file.value,
        min_version,
        max_version,
        client_auth,
    };
    (report.problems.len() == problems_before).then_some(Some(tls))
}

fn file(section: &mut Section, key: &'static str, report: &mut Report) -> Option<Located<PathBuf>> {
    section
        .take_string(key, report)
        .map(|path| Located::new(PathBuf::from(path.value), path.at))
}

fn version(
    section: &mut Section,
    key: &'static str,
    report: &mut Report,
) -> Option<Located<TlsVersion>> {
    let text = section.take_string(key, report)?;
    let version = match text.value.as_str() {
        "tls12" => TlsVersion::Tls12,
        "tls13" => TlsVersion::Tls13,
        "tls10" | "tls11" => {
            report.problem(
                &text.at,
                format!(
                    "{}: {key}: TLS 1.0 and 1.1 are not supported",
                    section.title
                ),
            );
            return None;
        }
        _ => {
            report.problem(
                &text.at,
                format!("{}: {key} must be tls12 or tls13", section.title),
            );
            return None;
        }
    };
    Some(Located::new(version, text.at))
}

fn client_auth(section: &mut Section, tls_disabled: bool, report: &mut Report) -> ClientAuth {
    let required = section
        .take_bool("tls_require_and_verify_client_cert", report)
        .unwrap_or(false);
    let off = section
        .take_bool("tls_disable_client_certs", report)
        .unwrap_or(false);
    let ca = file(section, "tls_client_ca_file", report);
    if tls_disabled {
        return ClientAuth::Off;
    }
    if required && off {
        report.problem(
            &section.at,
            format!(
                "{}: tls_require_and_verify_client_cert and tls_disable_client_certs exclude each other",
                section.title
            ),
        );
        return ClientAuth::Off;
    }
    if let Some(ca) = &ca
        && let Err(problem) = pem::certificates(&ca.value)
    {
        report.problem(&ca.at, format!("{}: {problem}", section.title));
    }
    match ca {
        Some(ca) if required => ClientAuth::Required { ca_file: ca.value },
        None if required => {
            report.problem(
                &section.at,
                format!(
                    "{}: tls_require_and_verify_client_cert needs tls_client_ca_file",
                    section.title
                ),
            );
            ClientAuth::Off
        }
        Some(ca) if !off => ClientAuth::Optional { ca_file: ca.value },
        Some(_) | None => ClientAuth::Off,
    }
}
