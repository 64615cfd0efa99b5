//! Asking the nodes of a cluster: over HTTP, and on the command line.

use std::path::Path;

use serde_json::json;

use super::Cluster;
use crate::{
    cli::{self, Output},
    client::{Client, Response},
    machine,
};

impl Cluster {
    /// A client without a token.
    #[must_use]
    pub fn anonymous(&self, number: usize) -> Client {
        Client::new(self.api_socket(number), self.tls.client.clone())
    }

    /// A client with the root token.
    ///
    /// # Panics
    /// Before init.
    #[must_use]
    pub fn client(&self, number: usize) -> Client {
        self.anonymous(number)
            .with_token(self.root_token().expect("an initialised cluster"))
    }

    /// Mounts a KV engine.
    ///
    /// # Panics
    /// If that is refused.
    #[track_caller]
    pub fn mount_kv(&self, path: &str, seal_wrap: bool) {
        let body = json!({"type": "kv", "seal_wrap": seal_wrap});
        let answer = self.client(1).put(&format!("sys/mounts/{path}"), &body);
        let _: Response = answer.expect(204);
    }

    /// Runs `strongroom ARGS…` against a node.
    #[must_use]
    pub fn strongroom(&self, number: usize, args: &[&str]) -> Output {
        self.strongroom_stdin(number, args, "")
    }

    /// As [`Cluster::strongroom`], with something on its standard input.
    #[must_use]
    pub fn strongroom_stdin(&self, number: usize, args: &[&str], stdin: &str) -> Output {
        self.command(&self.binary, "STRONGROOM", number, args, stdin)
    }

    /// Runs `bao ARGS…` against a node.
    #[must_use]
    pub fn bao(&self, number: usize, args: &[&str]) -> Output {
        self.command(&machine::bao(), "BAO", number, args, "")
    }

    /// Runs a Python script with hvac against a node (`VAULT_ADDR`, `VAULT_TOKEN`, `VAULT_CACERT`).
    #[must_use]
    pub fn python(&self, number: usize, script: &Path) -> Output {
        let script = script.display().to_string();
        self.command(&machine::python(), "VAULT", number, &[&script], "")
    }

    fn command(
        &self,
        program: &Path,
        prefix: &str,
        number: usize,
        args: &[&str],
        stdin: &str,
    ) -> Output {
        let mut command = cli::clean(program);
        command.args(args).env("HOME", self.home());
        command.env(format!("{prefix}_ADDR"), self.url(number));
        command.env(format!("{prefix}_CACERT"), &self.tls.ca_file);
        if let Some(token) = self.root_token() {
            command.env(format!("{prefix}_TOKEN"), token);
        }
        cli::run(&command, stdin)
    }
}

/// A write through any node, for tests that only want something to be there.
///
/// # Panics
/// If it is not acknowledged.
#[track_caller]
pub fn write(client: &Client, path: &str, value: &str) {
    let _: Response = client.put(path, &json!({ "value": value })).expect(204);
}

/// What [`write()`] has written, `None` if there is nothing.
///
/// # Panics
/// If the answer is neither 200 nor 404.
#[must_use]
#[track_caller]
pub fn read(client: &Client, path: &str) -> Option<String> {
    let answer = client.get(path);
    match answer.status {
        404 => None,
        _ => answer.expect(200).json()["data"]["value"]
            .as_str()
            .map(str::to_owned),
    }
}
