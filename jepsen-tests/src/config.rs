//! A node's configuration file, as an operator would write it.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::tls::Tls;

/// What is in a node's configuration file.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// `node_id`.
    pub name: String,
    /// Where it listens.
    pub host: IpAddr,
    /// Port of the API.
    pub api_port: u16,
    /// Port for other nodes.
    pub cluster_port: u16,
    /// `lib` of the seal.
    pub lib: PathBuf,
    /// `token_label` of the seal; not written when a slot is given.
    pub token_label: String,
    /// `slot` of the seal.
    pub slot: Option<String>,
    /// `pin` of the seal, a reference or the PIN itself.
    pub pin: String,
    /// `key_label` of the seal.
    pub key_label: String,
    /// `generate_key` of the seal.
    pub generate_key: bool,
    /// Addresses of `retry_join` blocks.
    pub retry_join: Vec<String>,
    /// `log_level`.
    pub log_level: &'static str,
    /// Written into the listener, as it is.
    pub listener_extra: String,
    /// Written into the storage, as it is.
    pub storage_extra: String,
    /// Written at the end, as it is.
    pub extra: String,
    /// Environment of the process, besides the HSM's.
    pub environment: Vec<(String, String)>,
}

impl NodeConfig {
    /// The file's text, for data in `data` and the certificates of `tls`.
    #[must_use]
    pub fn hcl(&self, data: &Path, tls: &Tls) -> String {
        let Self {
            name,
            host,
            api_port,
            cluster_port,
            pin,
            key_label,
            generate_key,
            log_level,
            listener_extra,
            storage_extra,
            extra,
            ..
        } = self;
        let token = match &self.slot {
            Some(slot) => format!("slot = \"{slot}\""),
            None => format!("token_label = \"{}\"", self.token_label),
        };
        let ca = tls.ca_file.display();
        let joins: String = self
            .retry_join
            .iter()
            .map(|address| {
                format!("  retry_join {{\n    leader_api_addr = \"{address}\"\n    leader_ca_cert_file = \"{ca}\"\n  }}\n")
            })
            .collect();
        format!(
            r#"cluster_name  = "strongroom-test"
api_addr      = "https://{host}:{api_port}"
cluster_addr  = "https://{host}:{cluster_port}"
disable_mlock = true
log_level     = "{log_level}"

listener "tcp" {{
  address         = "{host}:{api_port}"
  cluster_address = "{host}:{cluster_port}"
  tls_cert_file   = "{cert}"
  tls_key_file    = "{key}"
  {listener_extra}
}}

seal "pkcs11" {{
  lib          = "{lib}"
  {token}
  pin          = "{pin}"
  key_label    = "{key_label}"
  generate_key = "{generate_key}"
}}

storage "raft" {{
  path                   = "{data}"
  node_id                = "{name}"
  performance_multiplier = 1
  {storage_extra}
{joins}}}
{extra}
"#,
            cert = tls.cert_file.display(),
            key = tls.key_file.display(),
            lib = self.lib.display(),
            data = data.display(),
        )
    }
}
