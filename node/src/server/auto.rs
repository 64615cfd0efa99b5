//! Snapshots on a schedule: the leader writes them to a directory of its machine.
//!
//! In: schedules and outcomes kept behind the barrier, the clock. Out: files, old ones removed, outcomes.
//!
//! Invariants
//! - A file has its name only when it is whole and synced: written aside, then renamed.
//! - Only files that a schedule's own names fit are counted or removed, and only after a new one is in place.
//! - A failure is recorded and tried again later, sooner than the schedule says; it stops nothing else.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use strongroom_api::snapshot_auto::{self, Outcome, Schedule};
use tokio::runtime::Handle;

use super::{
    chain, files,
    node::{Running, Shared},
    save::Snapshot,
};
use crate::clock;

/// How often schedules are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// For recording an outcome.
const STEP: Duration = Duration::from_secs(30);
const ENDING: &str = ".snap";
const ASIDE: &str = ".snap.part";

/// Takes snapshots whenever one is due and this node leads. Runs as long as the node.
pub(crate) async fn run(shared: Arc<Shared>, running: Arc<Running>) {
    loop {
        tokio::time::sleep(LOOK).await;
        if !running.raft.watch().borrow().is_ready_leader {
            continue;
        }
        let Some(core) = running.core() else {
            continue;
        };
        let schedules = match snapshot_auto::schedules(&core).await {
            Ok(schedules) => schedules,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the schedules of snapshots could not be read");
                continue;
            }
        };
        for (name, schedule, outcome) in schedules {
            let now = clock::now_ms();
            if now < outcome.next_ms(&schedule) {
                continue;
            }
            let outcome = attempt(&shared, &running, &name, &schedule, outcome).await;
            let recorded = snapshot_auto::record(&core, &name, &outcome, Instant::now() + STEP);
            if let Err(error) = recorded.await {
                tracing::warn!(error = %chain(&error), "the outcome of a snapshot could not be recorded");
                // Or it would be taken again at once.
                break;
            }
        }
    }
}

async fn attempt(
    shared: &Shared,
    running: &Running,
    name: &str,
    schedule: &Schedule,
    before: Outcome,
) -> Outcome {
    let started = clock::now_ms();
    let taken = take(shared, running, schedule).await;
    let outcome = Outcome {
        last_start_ms: started,
        last_end_ms: clock::now_ms(),
        node: shared.config.storage.node_id.clone(),
        ..before
    };
    match taken {
        Ok(path) => {
            tracing::info!(schedule = name, file = %path.display(), "a snapshot was taken");
            Outcome {
                last_error: String::new(),
                last_url: format!("file://{}", path.display()),
                consecutive_errors: 0,
                ..outcome
            }
        }
        Err(why) => {
            tracing::error!(schedule = name, %why, "a snapshot was not taken");
            Outcome {
                last_error: why,
                consecutive_errors: outcome.consecutive_errors.saturating_add(1),
                ..outcome
            }
        }
    }
}

async fn take(shared: &Shared, running: &Running, schedule: &Schedule) -> Result<PathBuf, String> {
    let snapshot = Snapshot::take(&shared.hsm, running)
        .await
        .map_err(|error| chain(&error))?;
    let (schedule, runtime) = (schedule.clone(), Handle::current());
    let dir = schedule.path_prefix.clone();
    let storage = &shared.config.storage;
    let (data, reserve) = (storage.path.clone(), storage.disk_reserve);
    let written = tokio::task::spawn_blocking(move || {
        if fs::metadata(&schedule.path_prefix)?.dev() == fs::metadata(&data)?.dev() {
            let room = strongroom_raft::room_above_reserve(&data, reserve)?;
            check_room(room, snapshot.meta().size)?;
        }
        keep(&snapshot, &schedule, &runtime)
    });
    written
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("{dir}: {error}"))
}

fn keep(snapshot: &Snapshot, schedule: &Schedule, runtime: &Handle) -> io::Result<PathBuf> {
    let dir = Path::new(&schedule.path_prefix);
    clear_aside(dir, &schedule.file_prefix)?;
    let there = listed(dir, &schedule.file_prefix)?;
    check_space(schedule, &there, snapshot.meta().size)?;
    let stem = format!("{}-{}000000", schedule.file_prefix, clock::now_ms());
    let (aside, path) = (
        dir.join(format!("{stem}{ASIDE}")),
        dir.join(format!("{stem}{ENDING}")),
    );
    let written = write(snapshot, &aside, runtime).and_then(|()| fs::rename(&aside, &path));
    if let Err(error) = written {
        // If it stays, its name says what it is, and the next attempt removes it.
        let _ = fs::remove_file(&aside);
        return Err(error);
    }
    files::sync_dir(dir)?;
    let mut all = listed(dir, &schedule.file_prefix)?;
    all.sort_by_key(|file| std::cmp::Reverse(file.at));
    let retain = usize::try_from(schedule.retain).unwrap_or(usize::MAX);
    for old in all.into_iter().skip(retain) {
        fs::remove_file(old.path)?;
    }
    Ok(path)
}

fn write(snapshot: &Snapshot, path: &Path, runtime: &Handle) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let out = io::BufWriter::with_capacity(256 << 10, file);
    let file: File = snapshot
        .write(out, runtime)?
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    file.sync_all()
}

/// A snapshot of a schedule.
struct Kept {
    path: PathBuf,
    at: u64,
    size: u64,
}

/// Files in `dir` that are named as this schedule's snapshots are.
fn listed(dir: &Path, prefix: &str) -> io::Result<Vec<Kept>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let at = entry
            .file_name()
            .to_str()
            .and_then(|name| taken_at(name, prefix, ENDING));
        if let Some(at) = at {
            found.push(Kept {
                path: entry.path(),
                at,
                size: entry.metadata()?.len(),
            });
        }
    }
    Ok(found)
}

/// Removes what attempts that were cut off have left.
fn clear_aside(dir: &Path, prefix: &str) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_aside = entry
            .file_name()
            .to_str()
            .is_some_and(|name| taken_at(name, prefix, ASIDE).is_some());
        if is_aside {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The time in a snapshot's name, `None` if it is not one of this schedule.
fn taken_at(name: &str, prefix: &str, ending: &str) -> Option<u64> {
    let digits = name
        .strip_prefix(prefix)?
        .strip_prefix('-')?
        .strip_suffix(ending)?;
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())?
}

fn check_space(schedule: &Schedule, there: &[Kept], size: u64) -> io::Result<()> {
    let used: u64 = there.iter().map(|file| file.size).sum();
    let limit = schedule.local_max_space;
    if limit > 0 && used.saturating_add(size) > limit {
        return Err(io::Error::other(format!(
            "the snapshot needs about {size} bytes and {used} are used already; local_max_space allows {limit}"
        )));
    }
    Ok(())
}

/// On the disk of the data directory: a snapshot must not take the room that the node itself needs.
fn check_room(room: u64, size: u64) -> io::Result<()> {
    if size > room {
        return Err(io::Error::other(format!(
            "the snapshot needs about {size} bytes, and the disk, which is that of the data directory, may take {room} more \
             before its reserve (`disk_reserve`) is touched"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_schedules_own_files_are_its_own() {
        for (name, want) in [
            (
                "auto-1700000000000000000.snap",
                Some(1_700_000_000_000_000_000),
            ),
            ("auto-.snap", None),
            ("auto-1.snap.part", None),
            ("auto-1", None),
            ("auto-x1.snap", None),
            ("auto-+1.snap", None),
            ("auto-daily-1.snap", None),
            ("automatic-1.snap", None),
            ("other-1.snap", None),
        ] {
            assert_eq!(taken_at(name, "auto", ENDING), want, "{name}");
        }
        assert_eq!(taken_at("auto-7.snap.part", "auto", ASIDE), Some(7));
    }

    #[test]
    fn space_is_counted() {
        let schedule = |local_max_space| Schedule {
            interval: 1,
            retain: 1,
            path_prefix: String::new(),
            file_prefix: String::new(),
            local_max_space,
        };
        let there = [Kept {
            path: PathBuf::new(),
            at: 1,
            size: 60,
        }];
        for (limit, size, fits) in [(0, 1000, true), (100, 40, true), (100, 41, false)] {
            assert_eq!(
                check_space(&schedule(limit), &there, size).is_ok(),
                fits,
                "{limit} {size}"
            );
        }
    }
    #[test]
    fn a_snapshot_leaves_the_reserve_alone() {
        assert!(check_room(10, 10).is_ok());
        let refused = check_room(9, 10).unwrap_err();
        assert!(refused.to_string().contains("disk_reserve"), "{refused}");
    }
}
