//! `storage "raft"` and its `retry_join` blocks.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use strongroom_raft::SnapshotOptions;
use zeroize::Zeroizing;

use super::{
    RaftStorage, RetryJoin,
    addresses::NodeUrl,
    check::from_env,
    env::Environment,
    known,
    report::{Origin, Report},
    section::{Labelled, Located, Section},
    syntax::Entry,
    values::parse_bool,
};
use crate::{
    client::{Pem, TlsParameters},
    server::chain,
};

/// Where a made-up name is kept, as in Vault.
const NODE_ID_FILE: &str = "node-id";
const MAX_NODE_ID: usize = 256;
const DEFAULT_MULTIPLIER: u64 = 1;
const DEFAULT_MAX_ENTRY: u64 = 1 << 20;
const SHORTEST_INTERVAL: Duration = Duration::from_millis(5);
const LONGEST_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Autopilot that looks less often looks at nothing.
const LONGEST_LOOK: Duration = Duration::from_secs(3600);
/// Peers refuse larger frames.
const LARGEST_ENTRY: u64 = 4 << 20;

impl RaftStorage {
    /// Keeps a made-up name in the data directory, which is created if need be, for the next start.
    ///
    /// # Errors
    /// The directory or the file cannot be written.
    pub(crate) fn keep_node_id(&self) -> std::io::Result<()> {
        use std::{
            io::Write as _,
            os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
        };
        if !self.node_id_is_new {
            return Ok(());
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)?;
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path.join(NODE_ID_FILE))?;
        file.write_all(self.node_id.as_bytes())?;
        file.sync_all()
    }
}

/// The one storage block.
pub(super) fn check(
    top: &mut Section,
    environment: &Environment,
    report: &mut Report,
) -> Option<RaftStorage> {
    let mut blocks = top.take_labelled("storage", report).into_iter();
    let Some(block) = blocks.next() else {
        report.problem(&Origin::Whole, "no storage \"raft\" is configured");
        return None;
    };
    for extra in blocks {
        report.problem(&extra.at, "storage is configured twice");
    }
    if block.label != "raft" {
        let hint = if known::OTHER_STORAGES.contains(&block.label.as_str()) {
            "is not supported here"
        } else {
            "is not a known storage"
        };
        report.problem(
            &block.at,
            format!("storage {:?} {hint}; use storage \"raft\"", block.label),
        );
        return None;
    }
    raft(block, environment, report)
}

fn raft(block: Labelled, environment: &Environment, report: &mut Report) -> Option<RaftStorage> {
    let mut section = Section::new("storage \"raft\"", block.at, block.entries);
    let path = data_path(&mut section, environment, report);
    let node_id = node_id(&mut section, environment, path.as_deref(), report);
    let multiplier = section
        .take_number("performance_multiplier", 0..=10, report)
        .filter(|multiplier| *multiplier != 0)
        .unwrap_or(DEFAULT_MULTIPLIER);
    let snapshots = snapshots(&mut section, report);
    let max_entry_size = section
        .take_number("max_entry_size", 0..=LARGEST_ENTRY, report)
        .filter(|size| *size != 0)
        .unwrap_or(DEFAULT_MAX_ENTRY);
    let disk_reserve = section
        .take_number("disk_reserve", 0..=u64::MAX, report)
        .filter(|reserve| *reserve != 0);
    let non_voter = non_voter(&mut section, environment, report);
    let leader_ineligible = section.take_bool("leader_ineligible", report);
    let leave_on_shutdown = section.take_bool("leave_on_shutdown", report);
    let upgrade_version = upgrade_version(&mut section, report);
    let redundancy_zone = redundancy_zone(&mut section, report);
    let update = interval(&mut section, "autopilot_update_interval", report);
    let reconcile = interval(&mut section, "autopilot_reconcile_interval", report);
    let retry_join: Vec<RetryJoin> = section
        .take_blocks("retry_join", report)
        .into_iter()
        .filter_map(|join| retry_join(join, report))
        .collect();
    section.finish(known::STORAGE, report);
    let (node_id, node_id_is_new) = node_id?;
    Some(RaftStorage {
        path: path?,
        node_id,
        node_id_is_new,
        performance_multiplier: u32::try_from(multiplier).unwrap_or(u32::MAX),
        max_entry_size: usize::try_from(max_entry_size).unwrap_or(usize::MAX),
        disk_reserve,
        snapshots,
        retry_join,
        retry_join_as_non_voter: non_voter,
        leader_ineligible: leader_ineligible.unwrap_or(false),
        leave_on_shutdown: leave_on_shutdown.unwrap_or(false),
        autopilot_upgrade_version: upgrade_version,
        autopilot_redundancy_zone: redundancy_zone,
        autopilot_update_interval: update,
        autopilot_reconcile_interval: reconcile,
    })
}

/// When to take snapshots and how much log to keep.
fn snapshots(section: &mut Section, report: &mut Report) -> SnapshotOptions {
    let mut options = SnapshotOptions::default();
    let threshold = section.take_number("snapshot_threshold", 0..=u64::MAX, report);
    options.threshold = threshold.unwrap_or(options.threshold);
    if let Some(entries) = section.take_number("trailing_logs", 0..=u64::MAX, report) {
        options.trailing_logs = entries;
        // Who asks for a number of entries gets them, whatever they weigh.
        options.trailing_bytes = u64::MAX;
    }
    if let Some(interval) = section.take_duration("snapshot_interval", report) {
        if (SHORTEST_INTERVAL..=LONGEST_INTERVAL).contains(&interval.value) {
            options.interval = interval.value;
        } else {
            let what = "snapshot_interval must be from 5ms to 24h";
            report.problem(&interval.at, format!("{}: {what}", section.title));
        }
    }
    options
}

fn upgrade_version(section: &mut Section, report: &mut Report) -> String {
    let Some(found) = section.take_string("autopilot_upgrade_version", report) else {
        return String::new();
    };
    if semver::Version::parse(&found.value).is_err() {
        report.problem(
            &found.at,
            format!(
                "{}: autopilot_upgrade_version must be a version such as \"1.2.3\"",
                section.title
            ),
        );
    }
    found.value
}

fn redundancy_zone(section: &mut Section, report: &mut Report) -> String {
    let Some(found) = section.take_string("autopilot_redundancy_zone", report) else {
        return String::new();
    };
    if let Err(why) = checked_name(&found.value) {
        report.problem(
            &found.at,
            format!("{}: autopilot_redundancy_zone {why}", section.title),
        );
    }
    found.value
}

/// 0 is as good as absent, as in Vault.
fn interval(section: &mut Section, key: &'static str, report: &mut Report) -> Option<Duration> {
    let found = section.take_duration(key, report)?;
    if found.value > LONGEST_LOOK {
        report.problem(
            &found.at,
            format!("{}: {key} must be at most 1h", section.title),
        );
    }
    Some(found.value).filter(|interval| !interval.is_zero())
}

fn data_path(
    section: &mut Section,
    environment: &Environment,
    report: &mut Report,
) -> Option<PathBuf> {
    let in_file = section.take_string("path", report);
    let Some(found) = from_env("RAFT_PATH", environment).or(in_file) else {
        report.problem(
            &section.at,
            format!("{}: path must be set to the data directory", section.title),
        );
        return None;
    };
    let path = PathBuf::from(&found.value);
    if path.exists() && !path.is_dir() {
        report.problem(
            &found.at,
            format!("{}: path is not a directory", section.title),
        );
        return None;
    }
    Some(path)
}

/// The name and whether it was made up just now.
fn node_id(
    section: &mut Section,
    environment: &Environment,
    data_dir: Option<&Path>,
    report: &mut Report,
) -> Option<(String, bool)> {
    let in_file = section.take_string("node_id", report);
    if let Some(found) = from_env("RAFT_NODE_ID", environment).or(in_file) {
        if let Err(why) = checked_name(&found.value) {
            report.problem(&found.at, format!("{}: node_id {why}", section.title));
            return None;
        }
        return Some((found.value, false));
    }
    let kept_in = data_dir?.join(NODE_ID_FILE);
    match std::fs::read_to_string(&kept_in) {
        Ok(text) if checked_name(text.trim()).is_ok() => Some((text.trim().to_owned(), false)),
        Ok(_) => {
            report.problem(
                &section.at,
                format!(
                    "{}: node_id is not set, and {} holds no valid one",
                    section.title,
                    kept_in.display()
                ),
            );
            None
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Some((uuid::Uuid::new_v4().to_string(), true))
        }
        Err(error) => {
            report.problem(
                &section.at,
                format!(
                    "{}: node_id is not set, and {} cannot be read: {error}",
                    section.title,
                    kept_in.display()
                ),
            );
            None
        }
    }
}

fn checked_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > MAX_NODE_ID {
        return Err("must be 1 to 256 characters long");
    }
    if name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("must not hold spaces or control characters");
    }
    Ok(())
}

fn non_voter(section: &mut Section, environment: &Environment, report: &mut Report) -> bool {
    let in_file = section
        .take_bool("retry_join_as_non_voter", report)
        .unwrap_or(false);
    let Some(found) = from_env("RAFT_RETRY_JOIN_AS_NON_VOTER", environment) else {
        return in_file;
    };
    parse_bool(&found.value).unwrap_or_else(|| {
        report.problem(&found.at, "must be true or false");
        in_file
    })
}

fn retry_join(block: Located<Vec<Entry>>, report: &mut Report) -> Option<RetryJoin> {
    let mut section = Section::new("retry_join", block.at, block.value);
    let before = report.problems.len();
    for key in ["auto_join", "auto_join_scheme", "auto_join_port"] {
        if let Some(found) = section.take_string(key, report) {
            report.problem(
                &found.at,
                format!("retry_join: {key} is not supported; list the nodes, one retry_join with leader_api_addr each"),
            );
        }
    }
    let asks_discovery = report.problems.len() > before;
    let address = leader_address(&mut section, asks_discovery, report);
    let tls = join_tls(&mut section, report);
    section.finish(&[], report);
    if report.problems.len() > before {
        return None;
    }
    Some(RetryJoin {
        leader_api_addr: address?,
        tls,
    })
}

fn leader_address(
    section: &mut Section,
    may_be_absent: bool,
    report: &mut Report,
) -> Option<String> {
    let Some(found) = section.take_string("leader_api_addr", report) else {
        if !may_be_absent {
            report.problem(&section.at, "retry_join: leader_api_addr must be set");
        }
        return None;
    };
    let parsed = NodeUrl::parse(&found.value);
    if let Err(why) = &parsed {
        report.problem(&found.at, format!("retry_join: leader_api_addr {why}"));
    }
    parsed.ok().map(|url| url.to_string())
}

/// Files or PEM text for each of the three, not both.
fn join_tls(section: &mut Section, report: &mut Report) -> TlsParameters {
    let server_name = section
        .take_string("leader_tls_servername", report)
        .map(|name| name.value);
    let ca = pem_setting(section, "leader_ca_cert", "leader_ca_cert_file", report);
    let cert = pem_setting(
        section,
        "leader_client_cert",
        "leader_client_cert_file",
        report,
    );
    let key = pem_setting(
        section,
        "leader_client_key",
        "leader_client_key_file",
        report,
    );
    let mut tls = TlsParameters {
        server_name,
        ..TlsParameters::default()
    };
    if let Some(ca) = &ca {
        tls.ca = Some(ca.value.clone());
        report_pem(tls.check(), &ca.at, report);
    }
    match (cert, key) {
        (Some(cert), Some(key)) => {
            tls.client = Some((cert.value, key.value));
            report_pem(tls.check(), &cert.at, report);
        }
        (None, None) => {}
        (Some(alone), None) | (None, Some(alone)) => report.problem(
            &alone.at,
            "retry_join: leader_client_cert and leader_client_key (or their files) belong together",
        ),
    }
    tls
}

fn report_pem(checked: Result<(), crate::client::TlsError>, at: &Origin, report: &mut Report) {
    if let Err(error) = checked {
        report.problem(at, format!("retry_join: {}", chain(&error)));
    }
}

fn pem_setting(
    section: &mut Section,
    inline_key: &'static str,
    file_key: &'static str,
    report: &mut Report,
) -> Option<Located<Pem>> {
    let inline = section
        .take_text(inline_key, report)
        .filter(|text| !text.value.is_empty());
    let file = section.take_string(file_key, report);
    match (inline, file) {
        (Some(inline), None) => {
            let bytes = Zeroizing::new(inline.value.as_bytes().to_vec());
            Some(Located::new(Pem::Inline(bytes.into()), inline.at))
        }
        (None, Some(file)) => Some(Located::new(Pem::File(file.value.into()), file.at)),
        (None, None) => None,
        (Some(_), Some(file)) => {
            report.problem(
                &file.at,
                format!("retry_join: set {inline_key} or {file_key}, not both"),
            );
            None
        }
    }
}
