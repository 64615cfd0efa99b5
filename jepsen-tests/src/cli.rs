//! Command lines run against a node: `strongroom`, the real `bao`, Python with hvac.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

/// Longest a command may take, seconds: what hangs is ended, and counts as failed.
const LIMIT: &str = "60";

/// What a command printed, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// Exit code; 124 when it took too long, -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Itself, if the command ended with `code`.
    ///
    /// # Panics
    /// If it ended otherwise, with all that it printed.
    #[must_use]
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "exit code of `{}`\n{}\n{}",
            self.command, self.stdout, self.stderr
        );
        self
    }

    /// Itself, if the command succeeded.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    #[must_use]
    pub fn ok(self) -> Self {
        self.expect(0)
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> Value {
        let parsed = serde_json::from_str(&self.stdout);
        parsed.unwrap_or_else(|error| {
            panic!(
                "`{}` printed no JSON: {error}\n{}\n{}",
                self.command, self.stdout, self.stderr
            )
        })
    }

    /// Both outputs, for searching.
    #[must_use]
    pub fn all(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

/// A command that inherits nothing that would point it to another server.
#[must_use]
pub fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["VAULT_", "BAO_", "STRONGROOM_", "SOFTHSM2_"]
            .iter()
            .any(|prefix| text.starts_with(prefix))
        {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs `command` to its end, bounded in time, giving it `stdin`.
///
/// # Panics
/// If it cannot be started.
#[must_use]
pub fn run(command: &Command, stdin: &str) -> Output {
    let mut bounded = Command::new("timeout");
    bounded
        .arg("-k")
        .arg("5")
        .arg(LIMIT)
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bounded.env(name, value),
            None => bounded.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        bounded.current_dir(dir);
    }
    let child = bounded
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{bounded:?}: {error}"));
    if let Some(mut input) = child.stdin.take() {
        // A command that does not read its input closes it: not our business.
        let _ = input.write_all(stdin.as_bytes());
    }
    let output = child.wait_with_output().expect("waiting for a command");
    let words: Vec<_> = command
        .get_args()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default();
    Output {
        command: format!("{} {}", program.to_string_lossy(), words.join(" ")),
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
