//! Everything a node keeps on disk for Raft: opened together, checked against each other, closed together.
//!
//! Invariants
//! - One process at a time: a lock file is held as long as the stores are open.
//! - The state is never ahead of the durable log, and agrees with it on the entry it stands at; anything else means
//!   that data was lost or swapped, and is refused with the way to rejoin.

use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
    sync::Arc,
};

use crate::{
    command::Command,
    error::OpenError,
    identity::Identity,
    keys::{self, LOCK_FILE, LOG_DIR, STATE_DIR, be_u64},
    log::{self, LogStore},
    rocks::{self, Kind, cf},
    state::{self, State},
    types::Entry,
};

/// The open log and state of one node.
pub struct Stores {
    pub(crate) identity: Identity,
    pub(crate) log: LogStore,
    pub(crate) state: Arc<State>,
    pub(crate) lock: DirLock,
}

impl std::fmt::Debug for Stores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stores(node {})", self.identity.raft_id)
    }
}

/// Held while the stores are open; released when dropped.
#[derive(Debug)]
pub(crate) struct DirLock(#[expect(dead_code, reason = "held for its lock")] File);

impl DirLock {
    fn take(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(LOCK_FILE);
        let read = |source| OpenError::Read {
            path: path.clone(),
            source,
        };
        let file = File::create(&path).map_err(read)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(OpenError::Locked {
                path: dir.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(read(source)),
        }
    }
}

impl Stores {
    /// Opens (or makes) the stores of `identity` in data directory `dir`. Blocks: milliseconds normally, longer when the
    /// log is replayed after a crash.
    ///
    /// # Errors
    /// `Locked` while another process has them; `Foreign` or `UnknownFormat` when they are not this node's or this
    /// version's; `Damaged` when data that was there once is gone.
    pub fn open(dir: &Path, identity: &Identity) -> Result<Self, OpenError> {
        Self::open_with(dir, identity, LogStore::open)
    }

    /// Like [`Stores::open`], with another way to open the log.
    pub(crate) fn open_with(
        dir: &Path,
        identity: &Identity,
        open_log: impl FnOnce(&Path, &Identity) -> Result<LogStore, OpenError>,
    ) -> Result<Self, OpenError> {
        let read = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Read { path, source }
        };
        let log_dir = dir.join(LOG_DIR);
        std::fs::create_dir_all(&log_dir).map_err(read(&log_dir))?;
        let lock = DirLock::take(dir)?;
        let log = open_log(&log_dir, identity)?;
        let state = match State::open(dir, identity) {
            Ok(state) => Arc::new(state),
            Err(error) => {
                log.close();
                return Err(error);
            }
        };
        let stores = Self {
            identity: identity.clone(),
            log,
            state,
            lock,
        };
        if let Err(error) = stores
            .finish_install()
            .and_then(|()| stores.check_agreement())
        {
            stores.close_now();
            return Err(error);
        }
        Ok(stores)
    }

    /// Ends what a crash has interrupted while a snapshot was installed: the state becomes the snapshot, and the log, if
    /// it ends before that, begins behind it.
    fn finish_install(&self) -> Result<(), OpenError> {
        let read = |source| OpenError::Read {
            path: self.log.path().to_owned(),
            source,
        };
        self.state.finish_install().map_err(read)?;
        let applied = self.state.position().borrow().applied;
        let installed = self.state.installed().map_err(read)?;
        match applied {
            // Only then: entries applied after an installation are in the log, and with them what was purged.
            Some(applied) if Some(applied) == installed => {
                if self
                    .log
                    .last()
                    .is_none_or(|last| last.index < applied.index)
                {
                    self.log.purge(applied).map_err(read)?;
                }
                Ok(())
            }
            Some(_) | None => Ok(()),
        }
    }

    fn check_agreement(&self) -> Result<(), OpenError> {
        let damaged = |why: String| OpenError::Damaged {
            path: self.log.path().to_owned(),
            why,
        };
        let applied = self.state.position().borrow().applied;
        if let Some(purged) = self.log.purged()
            && applied.is_none_or(|applied| applied.index < purged.index)
        {
            return Err(damaged(format!(
                "the log begins after entry {} but the state ends at entry {}",
                purged.index,
                applied.map_or(0, |id| id.index)
            )));
        }
        let Some(applied) = applied else {
            return Ok(());
        };
        let last = self.log.last().map_or(0, |id| id.index);
        if self.log.last().is_none() || last < applied.index {
            return Err(damaged(format!(
                "the log ends at entry {last} but entry {} was applied",
                applied.index
            )));
        }
        let logged = self
            .log
            .id_at(applied.index)
            .map_err(|error| damaged(error.to_string()))?;
        if logged.is_some_and(|logged| logged != applied) {
            return Err(damaged(format!(
                "entry {} of the log is not the one that was applied",
                applied.index
            )));
        }
        Ok(())
    }

    /// Local reads of the state.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    /// Closes both databases and releases the lock, without ever starting Raft on them.
    pub async fn close(self) {
        let closing = tokio::task::spawn_blocking(move || self.close_now()).await;
        if let Err(error) = closing {
            tracing::error!(%error, "closing the stores failed");
        }
    }

    /// State first: it is the one that can be behind.
    pub(crate) fn close_now(self) {
        self.state.close();
        self.log.close();
    }
}

/// The stores of a stopped node, for inspection: nothing is changed, replayed or decrypted.
pub struct ReadOnlyStores {
    log: rocksdb::DB,
    state: rocksdb::DB,
    _lock: DirLock,
}

impl std::fmt::Debug for ReadOnlyStores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReadOnlyStores")
    }
}

/// One log entry, for inspection.
#[derive(Clone, Debug)]
pub struct LogRow {
    /// Log index.
    pub index: u64,
    /// Term of the leader that proposed it.
    pub term: u64,
    /// What it holds.
    pub content: LogContent,
}

/// What a log entry holds.
#[derive(Clone, Debug)]
pub enum LogContent {
    /// A leader's first entry, or one that only takes an index.
    Blank,
    /// A command: opaque keys and values.
    Command(Command),
    /// A membership: voters (one set, or two during a change) and everybody, for people to read.
    Membership(String),
}

/// One key of the state, for inspection.
#[derive(Clone)]
pub struct StateRow {
    /// Column family: `kv` for replicated keys, `meta` for this crate's bookkeeping.
    pub family: &'static str,
    /// The key as stored.
    pub key: Vec<u8>,
    /// Log index of the last write; 0 in family `meta`.
    pub mod_index: u64,
    /// The value as stored, without the index.
    pub value: Vec<u8>,
}

impl std::fmt::Debug for StateRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StateRow({}, {}B)", self.family, self.value.len())
    }
}

impl Stores {
    /// Opens the stores of a stopped node for inspection.
    ///
    /// # Errors
    /// `Locked` while a node runs on them; otherwise as [`Stores::open`].
    pub fn open_read_only(dir: &Path) -> Result<ReadOnlyStores, OpenError> {
        let log_dir = dir.join(LOG_DIR);
        if !log_dir.is_dir() {
            return Err(OpenError::Read {
                path: log_dir,
                source: io::Error::new(io::ErrorKind::NotFound, "this is not a data directory"),
            });
        }
        let lock = DirLock::take(dir)?;
        let state_dir = dir.join(STATE_DIR);
        let number = state::current_generation(&state_dir)?.unwrap_or(keys::FIRST_GENERATION);
        let generation = state::generation_dir(&state_dir, number);
        Ok(ReadOnlyStores {
            log: rocks::open_read_only(Kind::Log, &log_dir)?,
            state: rocks::open_read_only(Kind::State, &generation)?,
            _lock: lock,
        })
    }
}

impl ReadOnlyStores {
    /// Every log entry, in order.
    ///
    /// # Errors
    /// When the log cannot be read; each row for itself when it is damaged.
    pub fn log(&self) -> io::Result<impl Iterator<Item = io::Result<LogRow>> + '_> {
        Ok(log::entries(&self.log)?.map(|entry| log_row(entry?)))
    }

    /// Every key of the state as of its last flush: after a crash the newest entries are in the log only.
    ///
    /// # Errors
    /// When the state cannot be read; each row for itself when it is damaged.
    pub fn state(&self) -> io::Result<impl Iterator<Item = io::Result<StateRow>> + '_> {
        let live = state::live_family(&self.state)?;
        let rows = |family: &'static str, shown: &'static str| -> io::Result<_> {
            let family_handle = cf(&self.state, family)?;
            let items = self
                .state
                .iterator_cf(family_handle, rocksdb::IteratorMode::Start);
            Ok(items.map(move |item| {
                let (key, value) = item.map_err(io::Error::other)?;
                let (mod_index, value) = if shown == keys::CF_META {
                    (0, &value[..])
                } else {
                    state::split_value(&value)?
                };
                Ok(StateRow {
                    family: shown,
                    key: key.into_vec(),
                    mod_index,
                    value: value.to_vec(),
                })
            }))
        };
        let kv = rows(live, keys::CF_KV)?;
        Ok(kv.chain(rows(keys::CF_META, keys::CF_META)?))
    }

    /// Index of the last log entry.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn last_log_index(&self) -> io::Result<Option<u64>> {
        let last = self
            .log
            .iterator_cf(cf(&self.log, keys::CF_LOG)?, rocksdb::IteratorMode::End)
            .next();
        match last {
            None => Ok(None),
            Some(item) => {
                let (key, _) = item.map_err(io::Error::other)?;
                Ok(be_u64(&key))
            }
        }
    }
}

fn log_row(entry: Entry) -> io::Result<LogRow> {
    let content = match &entry.payload {
        openraft::EntryPayload::Blank => LogContent::Blank,
        openraft::EntryPayload::Normal(encoded) => {
            LogContent::Command(Command::decode(encoded).map_err(io::Error::other)?)
        }
        openraft::EntryPayload::Membership(membership) => {
            let nodes: Vec<String> = membership
                .nodes()
                .map(|(id, info)| format!("{id}={} ({})", info.name, info.cluster_addr))
                .collect();
            LogContent::Membership(format!(
                "voters {:?}, nodes {}",
                membership.get_joint_config(),
                nodes.join(", ")
            ))
        }
    };
    Ok(LogRow {
        index: entry.log_id.index,
        term: entry.log_id.leader_id.term,
        content,
    })
}
