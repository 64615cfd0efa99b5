//! What every run of faults has in common: its arguments, its history on disk, its exit code.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    panic::{self, UnwindSafe},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{
    cluster::Cluster,
    history, logs, machine,
    verdict::{self, Gates, Verdict, Window},
    workload::Finished,
};

/// Exit code of a run that could not be set up, or in which the harness failed: it says nothing about the server.
pub const HARNESS_FAILED: u8 = 3;

/// Carries out `run`; a panic in it, which has been printed, is [`HARNESS_FAILED`].
pub fn guarded(run: impl FnOnce() -> ExitCode + UnwindSafe) -> ExitCode {
    panic::catch_unwind(run).unwrap_or(ExitCode::from(HARNESS_FAILED))
}

/// The number after `--NAME` on the command line.
///
/// # Panics
/// If what stands there is none.
#[must_use]
pub fn number(name: &str) -> Option<u64> {
    let text = option(name)?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("--{name} must be a number, not {text:?}")),
    )
}

/// What stands after `--NAME` on the command line.
#[must_use]
pub fn option(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip(1);
    arguments.find(|argument| argument.strip_prefix("--") == Some(name))?;
    arguments.next()
}

/// The server: `strongroom` beside this program, or what `$STRONGROOM_TEST_BIN` names.
///
/// # Panics
/// If this program does not know where it is.
#[must_use]
pub fn server() -> PathBuf {
    let own = std::env::current_exe().expect("path of this program");
    machine::server(&own.with_file_name("strongroom"))
}

/// Keeps the history, judges it, and says so.
///
/// The history is kept in `$STRONGROOM_TEST_HISTORIES`, or in `strongroom-histories` in the directory for temporary
/// files.
///
/// # Panics
/// If a node has panicked, or the history cannot be kept.
#[must_use]
pub fn conclude(
    name: &str,
    cluster: &Cluster,
    finished: &Finished,
    windows: &[Window],
    gates: Gates,
) -> Verdict {
    cluster.assert_no_panics();
    let history = &finished.history;
    let file = keep(name, &history.ops);
    println!(
        "{} faults; {:?}; longest time without an acknowledged write {:.2?}; history in {}",
        windows.len(),
        history.counts,
        history.longest_gap(),
        file.display()
    );
    let verdict = verdict::of_run(&history.ops, history.counts, windows, gates);
    verdict.print();
    if verdict != Verdict::Valid {
        for complaint in history.complaints.iter().take(20) {
            println!("    {complaint}");
        }
        for number in 1..=cluster.len() {
            println!(
                "---- node {number} ----\n{}",
                logs::tail(&cluster.log(number), 15)
            );
        }
    }
    verdict
}

fn keep(name: &str, ops: &[history::Op]) -> PathBuf {
    let dir = match std::env::var_os("STRONGROOM_TEST_HISTORIES") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => std::env::temp_dir().join("strongroom-histories"),
    };
    write(&dir, name, ops)
        .unwrap_or_else(|error| panic!("keeping the history in {}: {error}", dir.display()))
}

fn write(dir: &Path, name: &str, ops: &[history::Op]) -> std::io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let path = dir.join(format!("{name}.jsonl"));
    let mut file = BufWriter::new(File::create(&path)?);
    history::write_lines(ops, &mut file)?;
    file.flush()?;
    file.get_ref().sync_all()?;
    Ok(path)
}
