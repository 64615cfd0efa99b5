//! Leaving the cluster at an orderly stop (`leave_on_shutdown`), and coming back at the next start.
//!
//! Invariants
//! - A node leaves only if the others keep a quorum; if not, it stops as a member.
//! - The mark is written when the cluster has let go, and gone when the old data is aside: a crash in between is
//!   repeated from where it stopped.
//! - Nothing is deleted: old data is renamed to `removed-<time>` in the data directory.

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use strongroom_raft::{MembershipError, Raft};

use super::{chain, files};
use crate::clock;

/// Says that the cluster has let this node go.
const MARK: &str = "left";
/// What belongs to a membership. The identity goes last: without it the rest is nobody's.
const OLD: [&str; 7] = [
    "raft",
    "state",
    "snapshots",
    "recv",
    "raft.lock",
    "seal.json",
    "node.json",
];
/// The leader may just be changing.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

/// Has the cluster remove this node, which does not lead any more. `false`: it stays a member.
pub(super) async fn leave(raft: &Raft, dir: &Path) -> bool {
    let until = Instant::now() + PATIENCE;
    loop {
        match raft.leave().await {
            Ok(()) => break,
            Err(
                MembershipError::NotLeader { .. }
                | MembershipError::NoQuorum
                | MembershipError::InProgress,
            ) if Instant::now() < until => tokio::time::sleep(PAUSE).await,
            Err(error) => {
                tracing::warn!(
                    "this node stops without leaving the cluster: {}",
                    chain(&error)
                );
                return false;
            }
        }
    }
    if let Err(error) = files::write_atomically(dir, MARK, b"") {
        // The next start finds out that the node was removed, and says what to do.
        tracing::error!(%error, "the node has left the cluster, but could not take a note of it");
    }
    tracing::info!("this node has left the cluster");
    true
}

/// Whether the last stop left the cluster.
pub(super) fn has_left(dir: &Path) -> io::Result<bool> {
    dir.join(MARK).try_exists()
}

/// Moves what is left of a former membership aside, so that the node can join anew.
pub(super) fn move_aside(dir: &Path) -> io::Result<()> {
    let aside = dir.join(format!("removed-{}", clock::now_ms()));
    std::fs::create_dir(&aside)?;
    for name in OLD {
        match std::fs::rename(dir.join(name), aside.join(name)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    files::sync_dir(&aside)?;
    files::sync_dir(dir)?;
    std::fs::remove_file(dir.join(MARK))?;
    files::sync_dir(dir)?;
    tracing::info!(
        path = %aside.display(),
        "this node left the cluster at its last stop and joins anew; its former data, which nobody needs any more, was \
         moved aside"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_data_is_moved_and_everything_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(!has_left(dir.path()).unwrap());
        for name in [
            "node.json",
            "seal.json",
            "raft.lock",
            "node-id",
            "hsm-pin-guard",
            MARK,
        ] {
            std::fs::write(at(name), name).unwrap();
        }
        std::fs::create_dir_all(at("raft/log")).unwrap();
        assert!(has_left(dir.path()).unwrap());
        move_aside(dir.path()).unwrap();
        assert!(!has_left(dir.path()).unwrap());
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let aside = names.pop().unwrap();
        assert_eq!(names, ["hsm-pin-guard", "node-id"]);
        assert!(aside.starts_with("removed-"), "{aside}");
        assert!(at(&aside).join("raft/log").is_dir() && at(&aside).join("node.json").is_file());
    }
}
