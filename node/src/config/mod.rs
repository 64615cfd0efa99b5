//! The node's configuration: files and environment in, one checked structure out.
//!
//! Names and defaults are Vault's, so that its files work here. Every mistake is reported at once, each with file, line
//! and column and in the operator's own key names; what Vault knows and this server does not need is a warning; what
//! nobody knows is a mistake.
//!
//! Invariants
//! - Nothing is written and nothing is connected to; only files that are named are read.
//! - No input panics. The PIN is wiped on drop and is in no message.
//!
//! Source: the configuration pages of Vault 1.21 and OpenBao 2.7.

mod addresses;
mod check;
mod env;
mod known;
mod listener;
mod load;
mod pem;
mod report;
mod seal;
mod section;
mod storage;
mod syntax;
mod telemetry;
mod values;

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use strongroom_api::MetricsAccess;
use strongroom_raft::SnapshotOptions;
use zeroize::Zeroizing;

pub(crate) use self::{
    env::Environment,
    load::{Loaded, load},
    report::{ConfigError, Finding},
    telemetry::Telemetry,
    values::{parse_bool, parse_duration},
};
use crate::client::{TlsError, TlsParameters};

/// Everything a node is told by its operator, checked.
#[derive(Debug)]
pub(crate) struct Config {
    /// Where clients connect; at least one.
    pub(crate) listeners: Vec<Listener>,
    /// `storage "raft"`.
    pub(crate) storage: RaftStorage,
    /// `seal "pkcs11"`.
    pub(crate) seal: HsmSeal,
    /// How clients reach this node: `scheme://host:port`, no trailing slash.
    pub(crate) api_addr: String,
    /// How other nodes reach this node: `https://host:port`.
    pub(crate) cluster_addr: String,
    /// The cluster's name; one is made up when absent.
    pub(crate) cluster_name: Option<String>,
    /// Least severe level that is logged.
    pub(crate) log_level: LogLevel,
    /// Form of the log lines.
    pub(crate) log_format: LogFormat,
    /// Do not lock memory.
    pub(crate) disable_mlock: bool,
    /// Where to write the process id.
    pub(crate) pid_file: Option<PathBuf>,
    /// `telemetry`.
    pub(crate) telemetry: Telemetry,
}

impl Config {
    /// `host:port` of [`Config::cluster_addr`].
    pub(crate) fn cluster_host_port(&self) -> String {
        self.cluster_addr
            .split_once("://")
            .map_or(self.cluster_addr.as_str(), |(_, rest)| rest)
            .to_owned()
    }

    /// The addresses to accept other nodes on, each once.
    pub(crate) fn cluster_listeners(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for listener in &self.listeners {
            if !addresses.contains(&listener.cluster_address) {
                addresses.push(listener.cluster_address);
            }
        }
        addresses
    }
}

/// One `listener "tcp"`.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// Where other nodes connect; one port above `address` unless set.
    pub(crate) cluster_address: SocketAddr,
    /// `None`: plain HTTP, asked for by `tls_disable`.
    pub(crate) tls: Option<ListenerTls>,
    /// Largest request body, bytes; `None` is unlimited.
    pub(crate) max_request_size: Option<usize>,
    /// Longest a request may take.
    pub(crate) max_request_duration: Duration,
    /// For the request's headers.
    pub(crate) http_read_header_timeout: Duration,
    /// Who may read `sys/metrics` here.
    pub(crate) metrics: MetricsAccess,
}

/// TLS of one listener. The files were readable and parsed when they were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListenerTls {
    /// PEM, the node's own certificate first.
    pub(crate) cert_file: PathBuf,
    /// PEM, unencrypted.
    pub(crate) key_file: PathBuf,
    /// Oldest version taken.
    pub(crate) min_version: TlsVersion,
    /// Newest version offered; not older than the oldest.
    pub(crate) max_version: TlsVersion,
    /// Whether clients are asked for a certificate.
    pub(crate) client_auth: ClientAuth,
}

/// A TLS version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TlsVersion {
    /// 1.2.
    Tls12,
    /// 1.3.
    Tls13,
}

/// What a listener wants of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClientAuth {
    /// Nothing.
    Off,
    /// A certificate is checked against the CA if there is one.
    Optional {
        /// PEM.
        ca_file: PathBuf,
    },
    /// No certificate, no connection.
    Required {
        /// PEM.
        ca_file: PathBuf,
    },
}

/// `storage "raft"`.
#[derive(Debug)]
pub(crate) struct RaftStorage {
    /// The data directory; may not exist yet.
    pub(crate) path: PathBuf,
    /// The operator's name for this node. Made up when absent: see `node_id_is_new`.
    pub(crate) node_id: String,
    /// The name was made up just now and must be kept by [`RaftStorage::keep_node_id`].
    pub(crate) node_id_is_new: bool,
    /// Stretches Raft's time-outs: 1 (fastest, and the default) to 10.
    pub(crate) performance_multiplier: u32,
    /// Largest entry, bytes.
    pub(crate) max_entry_size: usize,
    /// Bytes to keep free on the disk of `path`; `None`: chosen by its size.
    pub(crate) disk_reserve: Option<u64>,
    /// When to take snapshots, and how much log to keep.
    pub(crate) snapshots: SnapshotOptions,
    /// Nodes to join, tried until one takes this node in.
    pub(crate) retry_join: Vec<RetryJoin>,
    /// Join without a vote.
    pub(crate) retry_join_as_non_voter: bool,
    /// Do not lead while another voter can.
    pub(crate) leader_ineligible: bool,
    /// Leave the cluster at each orderly stop, and join it anew at the next start.
    pub(crate) leave_on_shutdown: bool,
    /// Counts in the program version's place when nodes of a new version take over; may be empty.
    pub(crate) autopilot_upgrade_version: String,
    /// Of the nodes of one zone one votes; empty: in no zone.
    pub(crate) autopilot_redundancy_zone: String,
    /// Pause between autopilot's looks at the cluster; `None`: several times a second.
    pub(crate) autopilot_update_interval: Option<Duration>,
    /// Least time between two of its changes; `None`: none.
    pub(crate) autopilot_reconcile_interval: Option<Duration>,
}

/// One `retry_join`.
#[derive(Clone, Debug)]
pub(crate) struct RetryJoin {
    /// `scheme://host:port` of the other node's client port.
    pub(crate) leader_api_addr: String,
    /// How to verify it.
    pub(crate) tls: TlsParameters,
}

impl RetryJoin {
    /// How to verify the other node.
    ///
    /// # Errors
    /// A certificate file that cannot be read any more.
    pub(crate) fn tls_parameters(&self) -> Result<TlsParameters, TlsError> {
        self.tls.check()?;
        Ok(self.tls.clone())
    }
}

/// `seal "pkcs11"`.
pub(crate) struct HsmSeal {
    /// The PKCS#11 module; its path holds a `/`.
    pub(crate) lib: PathBuf,
    /// Slot number. At least one of slot and token label is set.
    pub(crate) slot: Option<u64>,
    /// Label of the token.
    pub(crate) token_label: Option<String>,
    /// The user PIN; not empty.
    pub(crate) pin: Zeroizing<String>,
    /// Label of the key.
    pub(crate) key_label: String,
    /// `CKA_ID` of the key.
    pub(crate) key_id: Option<Vec<u8>>,
    /// Label of the HMAC key that a CBC mechanism needs.
    pub(crate) hmac_key_label: Option<String>,
    /// `CKA_ID` of that key.
    pub(crate) hmac_key_id: Option<Vec<u8>>,
    /// `None`: the best one the token offers.
    pub(crate) mechanism: Option<Mechanism>,
    /// Hash of RSA-OAEP.
    pub(crate) rsa_oaep_hash: OaepHash,
    /// Make the key at initialisation if there is none.
    pub(crate) generate_key: bool,
    /// Read-write sessions always.
    pub(crate) force_rw_session: bool,
    /// Calls to the HSM at one time; 1 to 64.
    pub(crate) max_parallel: usize,
    /// A call that takes longer is given up.
    pub(crate) call_deadline: Duration,
    /// Log in even if the token says that a wrong PIN was tried.
    pub(crate) ignore_pin_flags: bool,
    /// Remembers a refused PIN across restarts.
    pub(crate) pin_guard: PathBuf,
}

/// Leaves the PIN out.
impl std::fmt::Debug for HsmSeal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HsmSeal")
            .field("lib", &self.lib)
            .field("slot", &self.slot)
            .field("token_label", &self.token_label)
            .field("key_label", &self.key_label)
            .field("mechanism", &self.mechanism)
            .field("generate_key", &self.generate_key)
            .finish_non_exhaustive()
    }
}

/// How the HSM wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mechanism {
    /// `CKM_AES_CBC_PAD` (0x1085) with HMAC-SHA256 over IV and ciphertext.
    AesCbcPadHmac,
    /// `CKM_AES_GCM` (0x1087).
    AesGcm,
    /// `CKM_RSA_PKCS_OAEP` (0x0009).
    RsaOaep,
}

/// Hash of RSA-OAEP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OaepHash {
    /// SHA-1.
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// Least severe level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogLevel {
    /// Everything.
    Trace,
    /// For finding a fault.
    Debug,
    /// What happens.
    Info,
    /// Odd but carried on.
    Warn,
    /// A person must look.
    Error,
}

impl LogLevel {
    /// Vault's names, any case.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(match text.trim().to_ascii_lowercase().as_str() {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" | "notice" => Self::Info,
            "warn" | "warning" => Self::Warn,
            "error" | "err" => Self::Error,
            _ => return None,
        })
    }

    /// As in the configuration.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Standard,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// Vault's names, any case.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "standard" => Some(Self::Standard),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}
