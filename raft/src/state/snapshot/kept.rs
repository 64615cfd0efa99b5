//! The finished snapshots on this disk: the newest is kept.
//!
//! In: finished directories. Out: the newest, with a guard: a directory goes when it is not the newest any more
//! *and* nobody streams or links it.
//!
//! Invariants
//! - A directory with a final name is whole: it was synced under another name before it was renamed.
//! - What a crash left half done has another name, and is swept at start.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Meta, meta, remove_dir, sweep, sync_dir};
use crate::{fail, identity::Identity, log::lock, types::LogId};

/// Snapshots kept, besides those that are in use. Each may hold on to a whole state's worth of files that the live one has
/// replaced.
const KEEP: usize = 1;

/// One finished snapshot. Its directory is there as long as this is.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) meta: Meta,
    pub(crate) path: PathBuf,
    bytes: u64,
    /// Replaced by newer ones: the directory goes with the last user.
    outdated: AtomicBool,
}

impl Kept {
    fn new(meta: Meta, path: PathBuf) -> Self {
        Self {
            meta,
            // Only for people.
            bytes: size_of_dir(&path).unwrap_or(0),
            path,
            outdated: AtomicBool::new(false),
        }
    }

    /// Log index that it covers; 0 for an empty state.
    pub(crate) fn index(&self) -> u64 {
        self.meta.last_log_id.map_or(0, |id| id.index)
    }

    /// Bytes of its files.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn size_of_dir(path: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.outdated.load(Ordering::SeqCst) {
            return;
        }
        let path = std::mem::take(&mut self.path);
        // Removing the last link of large files takes a while, and the last user may be an async task.
        sweep(move || remove_dir(&path));
    }
}

/// The finished snapshots of a node.
#[derive(Debug)]
pub(crate) struct Snapshots {
    root: PathBuf,
    cluster_id: [u8; 16],
    /// By index, the newest last.
    kept: Mutex<Vec<Arc<Kept>>>,
}

impl Snapshots {
    /// Finds the snapshots in `root`, and sweeps what is unfinished, damaged or too old.
    pub(crate) fn open(root: PathBuf, identity: &Identity) -> io::Result<Self> {
        let snapshots = Self {
            root,
            cluster_id: identity.cluster_id,
            kept: Mutex::default(),
        };
        let entries = match fs::read_dir(&snapshots.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(snapshots),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            match snapshots.read(&path) {
                Ok(meta) => snapshots.keep(meta, path),
                Err(error) => {
                    tracing::info!(path = %path.display(), %error, "removing an unfinished snapshot");
                    remove_dir(&path)?;
                }
            }
        }
        Ok(snapshots)
    }

    fn read(&self, path: &Path) -> io::Result<Meta> {
        let meta = meta::read(path, &self.cluster_id)?;
        if path.file_name().and_then(|name| name.to_str()) != Some(&name_of(&meta)) {
            return Err(io::Error::other("the name does not fit the content"));
        }
        Ok(meta)
    }

    /// The newest one.
    pub(crate) fn newest(&self) -> Option<Arc<Kept>> {
        lock(&self.kept).last().cloned()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<Kept>> {
        lock(&self.kept).clone()
    }

    /// Where something can be prepared under a name that the next start sweeps.
    pub(crate) fn aside(&self, name: &str) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.root)?;
        let path = self.root.join(name);
        remove_dir(&path)?;
        Ok(path)
    }

    /// Takes over the finished directory `from`, whose content is synced, under its final name.
    pub(crate) fn adopt(&self, from: &Path, meta: &Meta) -> io::Result<Arc<Kept>> {
        if let Some(same) = self.find(meta.last_log_id) {
            remove_dir(from)?;
            return Ok(same);
        }
        fs::create_dir_all(&self.root)?;
        meta::write(from, meta, &self.cluster_id)?;
        sync_dir(from)?;
        let path = self.root.join(name_of(meta));
        // Not known, so nobody uses it: a removal that did not end.
        remove_dir(&path)?;
        fail::point("snapshot-before-rename");
        fs::rename(from, &path)?;
        sync_dir(&self.root)?;
        fail::point("snapshot-renamed");
        self.keep(meta.clone(), path);
        self.find(meta.last_log_id)
            .ok_or_else(|| io::Error::other("a newer snapshot was made meanwhile"))
    }

    pub(crate) fn find(&self, id: Option<LogId>) -> Option<Arc<Kept>> {
        let kept = lock(&self.kept);
        kept.iter()
            .find(|kept| kept.meta.last_log_id == id)
            .cloned()
    }

    fn keep(&self, meta: Meta, path: PathBuf) {
        let mut kept = lock(&self.kept);
        kept.push(Arc::new(Kept::new(meta, path)));
        kept.sort_by_key(|kept| kept.meta.last_log_id);
        while kept.len() > KEEP {
            kept.remove(0).outdated.store(true, Ordering::SeqCst);
        }
    }
}

/// `<index>-<term>-<node>`.
fn name_of(meta: &Meta) -> String {
    let (index, term, node) = meta.last_log_id.map_or((0, 0, 0), |id| {
        (id.index, id.leader_id.term, id.leader_id.node_id)
    });
    format!("{index}-{term}-{node}")
}
