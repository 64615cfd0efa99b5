//! A checkpoint that is held: the state as it was at one index, readable while the live one goes on.
//!
//! Files are linked, not copied, so making one costs a flush whatever the size of the data; they take disk space of
//! their own only as far as the live state moves on while it is held.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rocksdb::{DB, IteratorMode, checkpoint};

use super::{Position, State, live_family, read_position, split_value};
use crate::{
    error::StateError,
    keys::SNAPSHOT_DIR,
    rocks::{self, Kind, cf},
    types::PeerInfo,
};

/// What the names of held checkpoints start with; a snapshot's name starts with a number.
const PREFIX: &str = "held-";

/// A key, the log index of its last write, its value.
pub type CheckpointRow = (Box<[u8]>, u64, Vec<u8>);

/// See the module's description. Its files go when it is dropped.
pub struct Checkpoint {
    dir: PathBuf,
    /// `None` only while it is made or dropped.
    db: Option<DB>,
    position: Position,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoint(at {})", self.index())
    }
}

impl Checkpoint {
    /// Index of the last entry in it.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.position.applied.map_or(0, |id| id.index)
    }

    /// Term of that entry.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.position.applied.map_or(0, |id| id.leader_id.term)
    }

    /// As [`State::put_count`].
    #[must_use]
    pub fn put_count(&self) -> u64 {
        self.position.puts
    }

    /// The members then, whether each voted, and the log index of that membership.
    #[must_use]
    pub fn members(&self) -> (Vec<(PeerInfo, bool)>, u64) {
        let stored = &self.position.membership;
        let voters: Vec<u64> = stored.voter_ids().collect();
        let members = stored
            .nodes()
            .map(|(id, info)| (info.clone(), voters.contains(id)));
        (members.collect(), stored.log_id().map_or(0, |id| id.index))
    }

    /// Every live key, in byte order.
    ///
    /// # Errors
    /// When the data cannot be read; each row for itself when it is damaged.
    pub fn rows(&self) -> io::Result<impl Iterator<Item = io::Result<CheckpointRow>> + '_> {
        let db = self
            .db
            .as_ref()
            .ok_or_else(|| io::Error::other("the checkpoint is gone"))?;
        let family = cf(db, live_family(db)?)?;
        let items = db.iterator_cf_opt(family, rocks::once(), IteratorMode::Start);
        Ok(items.map(|item| {
            let (key, stored) = item.map_err(io::Error::other)?;
            let (mod_index, value) = split_value(&stored)?;
            Ok((key, mod_index, value.to_vec()))
        }))
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        drop(self.db.take());
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(%error, "a held checkpoint's files stay until the next start");
        }
    }
}

impl State {
    /// The state as it is now, to be read at leisure. Blocks for a flush.
    ///
    /// # Errors
    /// `Closed` during shutdown; `Read` when the disk or the data fails.
    pub fn checkpoint(&self) -> Result<Checkpoint, StateError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let root = self.dir.with_file_name(SNAPSHOT_DIR);
        fs::create_dir_all(&root)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = root.join(format!("{PREFIX}{number}"));
        // 0: flush first, whatever the size. The WAL is off, so only what is in table files exists.
        checkpoint::Checkpoint::new(&*self.db()?)
            .and_then(|checkpoint| checkpoint.create_checkpoint_with_log_size(&dir, 0))
            .map_err(io::Error::other)?;
        // From here on the files go with this, also after an error.
        let mut held = Checkpoint {
            dir,
            db: None,
            position: Position::default(),
        };
        let db = rocks::open_read_only(Kind::State, &held.dir).map_err(io::Error::other)?;
        held.position = read_position(&db)?;
        held.db = Some(db);
        Ok(held)
    }
}

/// Removes what a process that was killed has held.
pub(super) fn forget_held(state_dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(state_dir.with_file_name(SNAPSHOT_DIR)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(PREFIX))
        {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
