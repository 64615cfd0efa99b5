//! `operator raft snapshot save|restore|inspect`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use strongroom_seal::inspect::{KeyName, describe_key};

use super::{
    Failure, Invocation,
    flags::{Flag, Takes},
    output::{Format, columns},
    secret,
};
use crate::{
    server::chain,
    snapshot::archive::{self, ArchiveError, Whole},
};

const SAVE: &str = "sys/storage/raft/snapshot";
const FORCE: &str = "sys/storage/raft/snapshot-force";

/// Flags of `operator raft snapshot restore`.
pub(crate) const RESTORE_FLAGS: &[Flag] = &[Flag {
    name: "force",
    takes: Takes::Switch,
    value: "",
    help: "Restore although the snapshot's checksums were not sealed by this cluster's HSM key, or are damaged. Its keys \
           must open with this HSM all the same. The default is false.",
}];

pub(crate) fn save(run: &mut Invocation<'_>) -> Result<(), Failure> {
    let [path] = run.arguments::<1>()?;
    let mut api = run.api()?;
    let failed = |what: String| Failure::Remote(format!("Error taking the snapshot: {what}"));
    if api.only_show {
        // Says so without opening anything.
        return match api.get(SAVE) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.during("")),
        };
    }
    let mut target = Target::open(Path::new(&path)).map_err(|error| failed(error.to_string()))?;
    api.download(SAVE, &mut target.file)
        .map_err(|error| error.during("Error taking the snapshot"))?;
    target.keep().map_err(failed)
}

/// The file to write: aside until it is whole, if it is a file at all.
struct Target {
    file: File,
    aside: Option<PathBuf>,
    path: PathBuf,
}

impl Target {
    fn open(path: &Path) -> io::Result<Self> {
        let is_special = fs::metadata(path).is_ok_and(|found| {
            let kind = found.file_type();
            kind.is_char_device() || kind.is_fifo() || kind.is_socket()
        });
        let mut options = OpenOptions::new();
        options.read(!is_special).write(true).mode(0o600);
        if is_special {
            return Ok(Self {
                file: options.open(path)?,
                aside: None,
                path: path.to_owned(),
            });
        }
        let mut name = path
            .file_name()
            .ok_or_else(|| io::Error::other(format!("{} is not a file", path.display())))?
            .to_owned();
        name.push(".part");
        let aside = path.with_file_name(name);
        Ok(Self {
            file: options.create(true).truncate(true).open(&aside)?,
            aside: Some(aside),
            path: path.to_owned(),
        })
    }

    /// Verifies what was written and gives it its name.
    fn keep(mut self) -> Result<(), String> {
        self.file.flush().map_err(|error| error.to_string())?;
        let Some(aside) = self.aside.clone() else {
            return Ok(());
        };
        let written = File::open(&aside).map_err(|error| error.to_string())?;
        archive::read(written, |_, _| Ok(()))
            .map_err(|error| format!("incomplete snapshot, it was not kept: {}", chain(&error)))?;
        let kept = self
            .file
            .sync_all()
            .and_then(|()| fs::rename(&aside, &self.path));
        kept.map_err(|error| error.to_string())?;
        self.aside = None;
        let parent = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))
            .and_then(|dir| dir.sync_all())
            .map_err(|error| error.to_string())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(aside) = &self.aside {
            // A half of a snapshot is of no use; if it stays, its name says what it is.
            let _ = fs::remove_file(aside);
        }
    }
}

pub(crate) fn restore(run: &mut Invocation<'_>) -> Result<(), Failure> {
    let [path] = run.arguments::<1>()?;
    let path = Path::new(&path);
    File::open(path)
        .map_err(|error| Failure::Remote(format!("Error opening source file: {error}")))?;
    let target = if run.given.on("force") { FORCE } else { SAVE };
    let mut api = run.api()?;
    api.upload(target, path)
        .map_err(|error| error.during("Error installing the snapshot"))
}

pub(crate) fn inspect(run: &mut Invocation<'_>) -> Result<(), Failure> {
    let [path] = run.arguments::<1>()?;
    let format = run.format()?;
    let failed = |error: &dyn std::error::Error| {
        Failure::Local(format!("Failed to read snapshot: {}", chain(error)))
    };
    let file = File::open(&path).map_err(|error| failed(&error))?;
    let (whole, kinds) = count(file).map_err(|error| failed(&error))?;
    if format != Format::Table {
        return secret::print_structured(run, &as_json(&whole, &kinds));
    }
    run.print(&as_text(&whole, &kinds))
}

/// Keys of one kind, and their bytes in the file.
#[derive(Default)]
struct Kind {
    name: &'static str,
    count: u64,
    size: u64,
}

fn count(file: File) -> Result<(Whole, Vec<Kind>), ArchiveError> {
    let kind = |name| Kind {
        name,
        ..Kind::default()
    };
    let mut encrypted = kind("(encrypted names)");
    let mut core = kind("core");
    let whole = archive::read(file, |_, row| {
        let kind = match describe_key(&row.key) {
            KeyName::Core(_) => &mut core,
            KeyName::Encrypted(_) | KeyName::Unknown => &mut encrypted,
        };
        kind.count += 1;
        kind.size += (row.key.len() + row.value.len()) as u64;
        Ok(())
    })?;
    Ok((whole, vec![encrypted, core]))
}

fn as_json(whole: &Whole, kinds: &[Kind]) -> Value {
    let meta = &whole.meta;
    let stats: Vec<Value> = kinds
        .iter()
        .map(|kind| json!({ "Name": kind.name, "Count": kind.count, "Size": kind.size }))
        .collect();
    json!({
        "Meta": {
            "ID": meta.id,
            "Size": meta.size,
            "Index": meta.index,
            "Term": meta.term,
            "Version": meta.version,
        },
        "StatsKV": stats,
        "TotalCountKV": kinds.iter().map(|kind| kind.count).sum::<u64>(),
        "TotalSizeKV": kinds.iter().map(|kind| kind.size).sum::<u64>(),
        "Strongroom": meta.strongroom,
    })
}

fn as_text(whole: &Whole, kinds: &[Kind]) -> String {
    let (meta, own) = (&whole.meta, &whole.meta.strongroom);
    let mut facts = vec![
        ("ID", meta.id.clone()),
        ("Size", meta.size.to_string()),
        ("Index", meta.index.to_string()),
        ("Term", meta.term.to_string()),
        ("Version", meta.version.to_string()),
        ("Created", own.created.clone()),
        (
            "Cluster",
            format!("{} ({})", own.cluster_name, own.cluster_id),
        ),
        ("Seal", own.seal_type.clone()),
    ];
    for key in &own.seal_keys {
        let shown = format!("{} ({})", key.label, key.fingerprint);
        facts.push(("HSM Key", shown));
    }
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 6;
    let mut text = String::new();
    for (name, value) in facts {
        text.push_str(&format!(" {name:width$}{value}\n"));
    }
    let mut rows = vec![
        row([" Key Name", "Count", "Size"]),
        row([" ----", "----", "----"]),
    ];
    for kind in kinds {
        let name = format!(" {}", kind.name);
        rows.push(row([&name, &kind.count.to_string(), &bytes(kind.size)]));
    }
    rows.push(row([" ----", "----", " "]));
    let total = kinds.iter().map(|kind| kind.size).sum();
    rows.push(row([" Total Size", " ", &bytes(total)]));
    text.push('\n');
    text.push_str(&columns(&rows));
    text
}

fn row(cells: [&str; 3]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// As Vault prints sizes: `0`, `17B`, `1.5KB`, `2MB`.
fn bytes(size: u64) -> String {
    let units = [(40, "TB"), (30, "GB"), (20, "MB"), (10, "KB"), (0, "B")];
    let Some((shift, unit)) = units.into_iter().find(|(shift, _)| size >= 1 << shift) else {
        return "0".to_owned();
    };
    #[expect(clippy::cast_precision_loss, reason = "one decimal place is shown")]
    let value = size as f64 / (1_u64 << shift) as f64;
    let shown = format!("{value:.1}");
    format!("{}{unit}", shown.strip_suffix(".0").unwrap_or(&shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_as_vault_shows_them() {
        for (size, want) in [
            (0, "0"),
            (17, "17B"),
            (1024, "1KB"),
            (1536, "1.5KB"),
            (5 << 20, "5MB"),
            (3 << 40, "3TB"),
        ] {
            assert_eq!(bytes(size), want);
        }
    }
}
