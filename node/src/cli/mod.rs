//! The command line: finds the command, reads its flags, runs it, gives the exit code.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 the command line or
//! something local is wrong, 2 the server refused, cannot be reached or is sealed, 127 no such command.
//!
//! Output is what users of Vault's and OpenBao's tools know; it was compared with the real one.

mod api;
mod cluster;
mod commands;
mod data;
mod flags;
mod help;
mod kv;
mod logical;
mod login;
mod operator;
mod output;
mod raft;
mod secret;
mod secrets;
mod serve;
mod snapshot;
mod status;
mod token;

#[cfg(test)]
mod tests;

use std::io::{IsTerminal as _, Read, Write};

use self::{
    api::Api,
    commands::{COMMANDS, Command},
    flags::{FlagError, Given},
    output::Format,
};
use crate::config::Environment;

/// Name and version, as `strongroom version` prints it.
pub(crate) const VERSION_LINE: &str = concat!("Strongroom v", env!("CARGO_PKG_VERSION"));

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line or something on this machine: exit code 1.
    Local(String),
    /// The server, or the way to it: exit code 2.
    Remote(String),
    /// `-output-curl-string`: printed, exit code 0.
    Shown(String),
    /// All is said already.
    Quiet(u8),
}

/// One run of a command.
pub(crate) struct Invocation<'a> {
    /// Flags and arguments.
    pub(crate) given: Given,
    /// Environment variables.
    pub(crate) environment: &'a Environment,
    /// Standard input.
    pub(crate) input: &'a mut dyn Read,
    /// Standard output.
    pub(crate) out: &'a mut dyn Write,
    /// Standard error.
    pub(crate) err: &'a mut dyn Write,
    /// A person reads the output.
    pub(crate) is_terminal: bool,
    /// A person can be asked.
    pub(crate) can_ask: bool,
}

impl Invocation<'_> {
    /// The server that was named.
    ///
    /// # Errors
    /// A setting that cannot be used.
    pub(crate) fn api(&self) -> Result<Api, Failure> {
        Api::new(&self.given, self.environment)
    }

    /// The form of output that was asked for.
    ///
    /// # Errors
    /// No such form.
    pub(crate) fn format(&self) -> Result<Format, Failure> {
        let named = self
            .given
            .text("format")
            .map(str::to_owned)
            .or_else(|| self.environment.find("FORMAT").map(|(_, value)| value));
        let Some(named) = named.filter(|named| !named.is_empty()) else {
            return Ok(Format::Table);
        };
        Format::parse(&named)
            .ok_or_else(|| Failure::Local(format!("Invalid output format: {named}")))
    }

    /// Writes to standard output.
    ///
    /// # Errors
    /// Nobody reads it any more.
    pub(crate) fn print(&mut self, text: &str) -> Result<(), Failure> {
        self.out
            .write_all(text.as_bytes())
            .map_err(|_| Failure::Quiet(1))
    }

    /// Writes a line to standard error.
    pub(crate) fn complain(&mut self, line: &str) {
        // There is nowhere else to say it.
        let _ = writeln!(self.err, "{line}");
    }

    /// Exactly `N` arguments.
    ///
    /// # Errors
    /// Vault's sentence about their number.
    pub(crate) fn arguments<const N: usize>(&self) -> Result<[String; N], Failure> {
        self.given
            .exactly::<N>()
            .map(|args| args.map(str::to_owned))
            .map_err(Failure::Local)
    }
}

/// Runs the process's own command line; the exit code.
pub(crate) fn main() -> u8 {
    let words: Option<Vec<String>> = std::env::args_os()
        .skip(1)
        .map(|word| word.into_string().ok())
        .collect();
    let Some(words) = words else {
        eprintln!("the command line must be UTF-8");
        return 1;
    };
    let environment = Environment::process();
    let is_terminal = std::io::stdout().is_terminal();
    let can_ask = std::io::stdin().is_terminal();
    let code = run(
        &words,
        &environment,
        &mut std::io::stdin().lock(),
        &mut std::io::stdout(),
        &mut std::io::stderr(),
        (is_terminal, can_ask),
    );
    match std::io::stdout().flush() {
        // What nobody reads any more, `head` for one, is no loss; what does not fit on a disk is.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => code.max(1),
        Ok(()) | Err(_) => code,
    }
}

/// Runs one command line; the exit code.
pub(crate) fn run(
    words: &[String],
    environment: &Environment,
    input: &mut dyn Read,
    out: &mut dyn Write,
    err: &mut dyn Write,
    (is_terminal, can_ask): (bool, bool),
) -> u8 {
    let (command, rest) = match find(words) {
        Found::Command(command, rest) => (command, rest),
        Found::Text { text, to_out, code } => {
            // Nobody reads it any more: nothing left to do.
            let _ = if to_out {
                out.write_all(text.as_bytes())
            } else {
                err.write_all(text.as_bytes())
            };
            return code;
        }
    };
    let given = match flags::parse(&command.flags(), rest) {
        Ok(given) => given,
        Err(FlagError::Help) => {
            let _ = out.write_all(help::of_command(command).as_bytes());
            return 0;
        }
        Err(error) => {
            let _ = writeln!(err, "{error}");
            return 1;
        }
    };
    warn_of_late_flags(&given, err);
    let mut invocation = Invocation {
        given,
        environment,
        input,
        out,
        err,
        is_terminal,
        can_ask,
    };
    let outcome = (command.run)(&mut invocation);
    match outcome {
        Ok(()) => 0,
        Err(Failure::Quiet(code)) => code,
        Err(Failure::Shown(line)) => {
            let _ = writeln!(invocation.out, "{line}");
            0
        }
        Err(Failure::Local(why)) => {
            invocation.complain(&why);
            1
        }
        Err(Failure::Remote(why)) => {
            invocation.complain(&why);
            2
        }
    }
}

/// Flags behind an argument are arguments; people who expect otherwise should hear of it.
fn warn_of_late_flags(given: &Given, err: &mut dyn Write) {
    let late: Vec<&str> = given
        .args
        .iter()
        .skip(1)
        .map(String::as_str)
        .filter(|word| word.starts_with('-') && word.len() > 1)
        .collect();
    if !late.is_empty() {
        let _ = writeln!(
            err,
            "Command flags must be provided before positional arguments. The following arguments will not be parsed as \
             flags: [{}]",
            late.join(",")
        );
    }
}

enum Found<'a> {
    Command(&'static Command, &'a [String]),
    Text {
        text: String,
        to_out: bool,
        code: u8,
    },
}

/// The longest run of leading words that names a command.
fn find(words: &[String]) -> Found<'_> {
    let first = words.first().map(String::as_str);
    if matches!(first, Some("-v" | "-version" | "--version")) {
        return Found::Text {
            text: format!("{VERSION_LINE}\n"),
            to_out: true,
            code: 0,
        };
    }
    let mut group: &[String] = &[];
    for length in 1..=words.len() {
        let Some((path, rest)) = words.split_at_checked(length) else {
            break;
        };
        if let Some(command) = COMMANDS.iter().find(|command| command.is(path)) {
            return Found::Command(command, rest);
        }
        if !COMMANDS.iter().any(|command| command.is_below(path)) {
            break;
        }
        group = path;
    }
    let asked = words
        .get(group.len())
        .is_some_and(|word| matches!(word.as_str(), "-h" | "-help" | "--help" | "help"));
    // As in Vault: an unknown top-level command is 127, an unknown subcommand 1, help that was asked for 0.
    let code = match (asked, group.is_empty()) {
        (true, _) => 0,
        (false, true) => 127,
        (false, false) => 1,
    };
    Found::Text {
        text: help::of_group(group),
        to_out: asked,
        code,
    }
}
