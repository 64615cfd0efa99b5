//! Reads the files that were named, merges them and has them checked.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use zeroize::Zeroizing;

use super::{
    Config, ConfigError,
    check::check,
    env::Environment,
    report::{Origin, Report, Warning},
    syntax::{self, Entry, Source},
};

/// Files larger than this are no configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Settings of which every file adds its own; of all others the last file's counts.
const ADDED_UP: &[&str] = &["listener", "seal"];

/// A configuration that a node can start with.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The configuration.
    pub(crate) config: Config,
    /// What was odd.
    pub(crate) warnings: Vec<Warning>,
}

/// Reads and checks `paths`: files, or directories of which all `*.hcl` and `*.json` are taken in order of name.
///
/// # Errors
/// Every mistake at once.
pub(crate) fn load(paths: &[PathBuf], environment: &Environment) -> Result<Loaded, ConfigError> {
    let mut report = Report::default();
    let mut merged = Vec::new();
    if paths.is_empty() {
        report.problem(
            &Origin::Whole,
            "no configuration file was named: -config=FILE",
        );
    }
    for (order, path) in expand(paths, &mut report).iter().enumerate() {
        if let Some(entries) = read(order, path, &mut report) {
            merge(&mut merged, entries);
        }
    }
    // A file that could not be read would make everything in it look missing.
    if !report.problems.is_empty() && merged.is_empty() {
        return Err(failed(report));
    }
    let config = check(merged, environment, &mut report);
    match config {
        Some(config) if report.problems.is_empty() => {
            report.sort();
            Ok(Loaded {
                config,
                warnings: report.warnings,
            })
        }
        _ => Err(failed(report)),
    }
}

fn failed(mut report: Report) -> ConfigError {
    report.sort();
    ConfigError {
        problems: report.problems,
        warnings: report.warnings,
    }
}

/// The files behind `paths`.
fn expand(paths: &[PathBuf], report: &mut Report) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        match directory(path) {
            Ok(found) if found.is_empty() => {
                report.problem(&whole(path), "the directory holds no *.hcl or *.json file");
            }
            Ok(found) => files.extend(found),
            Err(error) => report.problem(&whole(path), format!("cannot be read: {error}")),
        }
    }
    files
}

fn directory(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let file = entry?.path();
        let wanted = file
            .extension()
            .is_some_and(|extension| extension == "hcl" || extension == "json");
        // Editors leave such files beside the real ones.
        let hidden = file
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if wanted && !hidden && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn whole(path: &Path) -> Origin {
    place(0, path)
}

fn place(order: usize, path: &Path) -> Origin {
    Origin::Place {
        order,
        file: path.display().to_string().into(),
        line: 1,
        column: 1,
    }
}

fn read(order: usize, path: &Path, report: &mut Report) -> Option<Vec<Entry>> {
    let at = place(order, path);
    let text = match read_text(path) {
        Ok(text) => text,
        Err(why) => {
            report.problem(&at, why);
            return None;
        }
    };
    let name: Arc<str> = path.display().to_string().into();
    let source = Source {
        order,
        name,
        text: &text,
    };
    Some(syntax::parse(&source, report))
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    let file = std::fs::File::open(path).map_err(cannot)?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err("is larger than 1 MiB".to_owned());
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(
            text.trim_start_matches('\u{feff}').to_owned(),
        )),
        Err(_) => Err("is not UTF-8 text".to_owned()),
    }
}

/// Adds a file's entries: what it sets replaces what earlier files set, except where every file adds its own.
/// `backend` is Vault's old name of `storage`.
fn merge(merged: &mut Vec<Entry>, mut entries: Vec<Entry>) {
    for entry in &mut entries {
        if entry.name == "backend" {
            entry.name = "storage".to_owned();
        }
    }
    merged.retain(|old| {
        ADDED_UP.contains(&old.name.as_str()) || entries.iter().all(|new| new.name != old.name)
    });
    merged.extend(entries);
}
