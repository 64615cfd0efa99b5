//! Commands that need no server: `server` itself, and what looks at its files.

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};

use serde_json::json;
use tracing_subscriber::EnvFilter;

use super::{
    Failure, Invocation,
    flags::{Flag, Takes},
    output::Format,
    secret,
};
use crate::config::{self, Config, ConfigError, Loaded, LogFormat, LogLevel};

const CONFIG: Flag = Flag {
    name: "config",
    takes: Takes::Many,
    value: "string",
    help: "Path to a configuration file, or to a directory of which all .hcl and .json files are read. This can be \
           specified multiple times.",
};

/// Flags of commands that read a configuration.
pub(crate) const CONFIG_FLAGS: &[Flag] = &[CONFIG];

/// Flags of `server`.
pub(crate) const FLAGS: &[Flag] = &[
    CONFIG,
    Flag {
        name: "log-level",
        takes: Takes::One,
        value: "string",
        help: "Least severe level to log: trace, debug, info, warn or error. Goes before the configuration.",
    },
    Flag {
        name: "log-format",
        takes: Takes::One,
        value: "string",
        help: "Form of log lines: standard or json. Goes before the configuration.",
    },
];

fn config_paths(run: &Invocation<'_>) -> Result<Vec<PathBuf>, Failure> {
    let named = run.given.all("config");
    if named.is_empty() {
        return Err(Failure::Local(
            "Must specify at least one config path using -config".to_owned(),
        ));
    }
    Ok(named.iter().map(PathBuf::from).collect())
}

fn refused(error: &ConfigError) -> Failure {
    let count = error.problems.len();
    let noun = if count == 1 { "mistake" } else { "mistakes" };
    Failure::Local(format!("{error}\n{count} {noun} in the configuration"))
}

/// Starts a node; comes back when it has ended.
pub(crate) fn server(run: &mut Invocation<'_>) -> Result<(), Failure> {
    run.arguments::<0>()?;
    let paths = config_paths(run)?;
    let Loaded {
        mut config,
        warnings,
    } = config::load(&paths, run.environment).map_err(|error| refused(&error))?;
    if let Some(level) = run.given.text("log-level") {
        config.log_level = LogLevel::parse(level)
            .ok_or_else(|| Failure::Local(format!("unknown log level: {level}")))?;
    }
    if let Some(format) = run.given.text("log-format") {
        config.log_format = LogFormat::parse(format)
            .ok_or_else(|| Failure::Local(format!("unknown log format: {format}")))?;
    }
    start_log(&config);
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    config.storage.keep_node_id().map_err(|error| {
        let path = config.storage.path.display();
        Failure::Local(format!("keeping the node's name in {path} failed: {error}"))
    })?;
    let pid_file = config.pid_file.clone();
    if let Some(path) = &pid_file {
        std::fs::write(path, format!("{}\n", std::process::id())).map_err(|error| {
            Failure::Local(format!(
                "writing the process id to {} failed: {error}",
                path.display()
            ))
        })?;
    }
    let code = crate::server::run(config);
    if let Some(path) = pid_file
        && let Err(error) = std::fs::remove_file(&path)
    {
        tracing::warn!(%error, "the file with the process id could not be removed");
    }
    exit(code)
}

fn exit(code: ExitCode) -> Result<(), Failure> {
    if code == ExitCode::SUCCESS {
        Ok(())
    } else {
        Err(Failure::Quiet(1))
    }
}

/// To standard error. Libraries speak from one level higher, or an info log would be mostly theirs.
fn start_log(config: &Config) {
    let level = config.log_level.as_str();
    let quieter = match config.log_level {
        LogLevel::Trace => "debug",
        LogLevel::Debug => "info",
        LogLevel::Info | LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    };
    // Two libraries overdo it: cryptoki reports every mechanism it has no name for as an error, and openraft every missed
    // heartbeat as a warning, which our own transport reports once.
    let filter = EnvFilter::new(format!(
        "{quieter},cryptoki::mechanism=off,openraft=error,strongroom={level},strongroom_api={level},strongroom_raft={level},strongroom_seal={level}"
    ));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match config.log_format {
        LogFormat::Standard => subscriber.try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
    if let Err(error) = started {
        eprintln!("the log could not be started: {error}");
    }
}

/// 0: a node could start with it.
pub(crate) fn validate_config(run: &mut Invocation<'_>) -> Result<(), Failure> {
    run.arguments::<0>()?;
    let paths = config_paths(run)?;
    let (problems, warnings) = match config::load(&paths, run.environment) {
        Ok(loaded) => (Vec::new(), loaded.warnings),
        Err(error) => (error.problems, error.warnings),
    };
    let lines = |findings: &[config::Finding]| -> Vec<String> {
        findings.iter().map(config::Finding::to_string).collect()
    };
    let (problems, warnings) = (lines(&problems), lines(&warnings));
    let valid = problems.is_empty();
    if run.format()? != Format::Table {
        let report = json!({"valid": valid, "problems": problems, "warnings": warnings});
        secret::print_structured(run, &report)?;
    } else {
        for warning in &warnings {
            run.print(&format!("warning: {warning}\n"))?;
        }
        for problem in &problems {
            run.print(&format!("error: {problem}\n"))?;
        }
        if valid {
            run.print("Success! The configuration is valid.\n")?;
        }
    }
    if valid {
        Ok(())
    } else {
        Err(Failure::Quiet(1))
    }
}

/// Lets the PIN be tried once more.
pub(crate) fn reset_pin_guard(run: &mut Invocation<'_>) -> Result<(), Failure> {
    run.arguments::<0>()?;
    let paths = config_paths(run)?;
    let loaded = config::load(&paths, run.environment).map_err(|error| refused(&error))?;
    let guard = &loaded.config.seal.pin_guard;
    match std::fs::remove_file(guard) {
        Ok(()) => run.print(
            "Success! The PIN of the configuration will be tried once at the node's next start.\n",
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            run.print("No PIN was refused; there is nothing to forget.\n")
        }
        Err(error) => Err(Failure::Local(format!(
            "removing {} failed: {error}",
            guard.display()
        ))),
    }
}

/// Shows a stopped node's data.
pub(crate) fn inspect(run: &mut Invocation<'_>) -> Result<(), Failure> {
    let [path] = run.arguments()?;
    let json = run.format()? != Format::Table;
    exit(crate::inspect::run(&PathBuf::from(path), json))
}
