//! Snapshots: RocksDB checkpoints of the state (hard links), and the installation of one as a new generation.
//!
//! In: the live state, or a snapshot directory. Out: a snapshot directory, or a new generation of the state.
//!
//! Invariants
//! - What a snapshot covers is read from the checkpoint itself, never from live memory.
//! - Building neither stops nor slows what is applied meanwhile: a flush, hard links, on a thread of its own. If it fails,
//!   nothing has changed and the node goes on.
//! - Installing commits by one atomic rename of `CURRENT`: a crash leaves the old generation or the new one. Before
//!   that the snapshot is this node's own newest, so that the next start can finish, and the log has made durable
//!   everything that was written to it, so that no entry that contradicts the snapshot comes back.
//! - All that takes time (linking, opening, claiming) is done before openraft is told; applying waits for a few syncs.
//! - Cost does not grow with the data: files are linked, not copied.

mod counters;
mod kept;
mod meta;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use openraft::RaftSnapshotBuilder;
use prost::Message;
use rocksdb::{DB, checkpoint::Checkpoint};
use tokio::sync::OwnedSemaphorePermit;

pub use self::counters::SnapshotStats;
pub(crate) use self::{
    counters::{Counters, add, set, set_time},
    kept::{Kept, Snapshots},
};
use super::{
    Generation, Position, State, flush, generation_dir, generations, helpers::Helpers,
    read_position, set_current, without_wal,
};
use crate::{
    fail,
    keys::{self, CF_META, META_FORMAT, META_INSTALLED, SNAPSHOT_META_FILE},
    log::{LogStore, lock},
    proto::LogIdProto,
    rocks::{self, Kind, cf},
    types::{LogId, TypeConfig},
};

/// Name of the threads that remove files.
const SWEEPER: &str = "raft-sweep";

pub(crate) type Meta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotDir>;

/// A snapshot on the local disk.
#[derive(Debug)]
pub(crate) enum SnapshotDir {
    /// One of this node's finished ones.
    Kept(Arc<Kept>),
    /// One that another node sent, verified and ready to become the state.
    Received(Box<Received>),
}

/// A received snapshot. Unless it is installed it goes with this value.
#[derive(Debug)]
pub(crate) struct Received {
    /// `None` once it is installed.
    parts: Option<(PathBuf, Prepared)>,
    /// Until this is dropped no other snapshot can be received.
    receiving: Arc<OwnedSemaphorePermit>,
}

impl Received {
    /// The directory `path`, whose content is synced, and the generation that was made from it.
    pub(crate) fn new(
        path: PathBuf,
        prepared: Prepared,
        receiving: Arc<OwnedSemaphorePermit>,
    ) -> Self {
        Self {
            parts: Some((path, prepared)),
            receiving,
        }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Some((path, mut prepared)) = self.parts.take() {
            let receiving = Arc::clone(&self.receiving);
            prepared.discard(move || {
                let removed = remove_dir(&path);
                drop(receiving);
                removed
            });
        }
    }
}

/// A generation made from a snapshot, opened and claimed for this node. Unless it becomes the live one it goes with this
/// value.
pub(crate) struct Prepared {
    path: PathBuf,
    position: Position,
    /// `None` once it is live.
    generation: Option<Generation>,
    helpers: Arc<Helpers>,
}

impl Prepared {
    /// Closes and removes it, and does what comes `after`, while nobody waits.
    fn discard(&mut self, after: impl FnOnce() -> io::Result<()> + Send + 'static) {
        let generation = self.generation.take();
        let path = std::mem::take(&mut self.path);
        sweep_with(&self.helpers, move || {
            drop(generation);
            remove_dir(&path).and(after())
        });
    }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prepared({})", self.path.display())
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if self.generation.is_some() {
            self.discard(|| Ok(()));
        }
    }
}

/// Gives openraft a snapshot.
pub(crate) enum Builder {
    /// Builds one of the live state.
    Build(Arc<State>),
    /// Hands out one that is there.
    Ready(Arc<Kept>),
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotDir;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        match self {
            Self::Ready(kept) => Ok(snapshot_of(Arc::clone(kept))),
            Self::Build(state) => {
                let state = Arc::clone(state);
                blocking(move || build(&state)).await.map(snapshot_of)
            }
        }
    }
}

/// As openraft wants it.
pub(super) fn snapshot_of(kept: Arc<Kept>) -> Snapshot {
    Snapshot {
        meta: kept.meta.clone(),
        snapshot: SnapshotDir::Kept(kept),
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

/// Makes a snapshot of the live state the newest one, unless it already is. Blocks.
pub(crate) fn build(state: &State) -> io::Result<Arc<Kept>> {
    let _one_at_a_time = lock(&state.building);
    let applied = state.position.borrow().applied;
    if let Some(same) = state.snapshots.find(applied) {
        return Ok(same);
    }
    let aside = state.snapshots.aside("building")?;
    fail::point("snapshot-begin");
    let db = state.db().map_err(io::Error::other)?;
    link_live_files(&db, &aside)?;
    drop(db);
    fail::point("snapshot-linked");
    let position = position_of(&aside)?;
    let meta = Meta {
        last_log_id: position.applied,
        last_membership: position.membership,
    };
    state.snapshots.adopt(&aside, &meta)
}

/// A checkpoint of `db` in `path`, durable.
pub(super) fn link_live_files(db: &DB, path: &Path) -> io::Result<()> {
    // 0: flush first, whatever the size. The WAL is off, so only what is in table files exists.
    Checkpoint::new(db)
        .and_then(|checkpoint| checkpoint.create_checkpoint_with_log_size(path, 0))
        .map_err(io::Error::other)?;
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        // RocksDB has synced its table files long ago.
        if !is_table(&file) {
            fs::File::open(file)?.sync_all()?;
        }
    }
    sync_dir(path)
}

fn position_of(path: &Path) -> io::Result<Position> {
    let db = rocks::open_read_only(Kind::State, path).map_err(io::Error::other)?;
    read_position(&db)
}

/// Makes a new generation from the snapshot in `from`, ready to become the live one. Blocks.
///
/// # Errors
/// When it is not what `meta` says, is of another cluster, or the disk fails: nothing has changed then.
pub(crate) fn prepare(state: &State, meta: &Meta, from: &Path) -> io::Result<Prepared> {
    let newest = generations(&state.dir)?.into_iter().max();
    let number = newest.unwrap_or(keys::FIRST_GENERATION) + 1;
    let path = generation_dir(&state.dir, number);
    let prepared = link_dir(from, &path).and_then(|()| {
        fail::point("install-linked");
        open_prepared(state, meta, number, &path)
    });
    fail::point("install-claimed");
    match prepared {
        Ok((generation, position)) => Ok(Prepared {
            path,
            position,
            generation: Some(generation),
            helpers: Arc::clone(&state.helpers),
        }),
        Err(error) => {
            remove_dir(&path)?;
            Err(error)
        }
    }
}

fn open_prepared(
    state: &State,
    meta: &Meta,
    number: u64,
    path: &Path,
) -> io::Result<(Generation, Position)> {
    let db = rocks::open(Kind::State, path).map_err(io::Error::other)?;
    let position = read_position(&db)?;
    if position.applied != meta.last_log_id || position.membership != meta.last_membership {
        return Err(io::Error::other(
            "the snapshot is not what it was announced as",
        ));
    }
    claim_foreign(&db, state, meta.last_log_id)?;
    let generation = Generation::new(number, Arc::new(db), &position)?;
    Ok((generation, position))
}

/// Replaces the live state by the snapshot.
pub(super) async fn install(
    state: &Arc<State>,
    log: &LogStore,
    meta: &Meta,
    snapshot: SnapshotDir,
) -> io::Result<()> {
    // openraft has truncated what contradicts the snapshot; that must not come back after a crash.
    let started = Instant::now();
    log.barrier().await?;
    let (state, meta) = (Arc::clone(state), meta.clone());
    blocking(move || {
        install_now(&state, &meta, snapshot)?;
        set_time(&state.counters.last_install_us, started.elapsed());
        Ok(())
    })
    .await
}

/// See [`install`]. Blocks; the log must have been synced.
pub(super) fn install_now(state: &State, meta: &Meta, snapshot: SnapshotDir) -> io::Result<()> {
    fail::point("install-begin");
    let prepared = match snapshot {
        SnapshotDir::Kept(kept) => {
            let prepared = prepare(state, meta, &kept.path)?;
            if state.snapshots.find(meta.last_log_id).is_none() {
                let aside = state.snapshots.aside("keeping")?;
                link_dir(&kept.path, &aside)?;
                state.snapshots.adopt(&aside, meta)?;
            }
            prepared
        }
        SnapshotDir::Received(mut received) => {
            let Some((path, prepared)) = received.parts.take() else {
                return Err(io::Error::other("the snapshot was installed before"));
            };
            state.snapshots.adopt(&path, meta)?;
            fail::point("install-kept");
            prepared
        }
    };
    make_live(state, prepared)
}

/// The commit point, and what follows from it.
fn make_live(state: &State, mut prepared: Prepared) -> io::Result<()> {
    let Some(generation) = prepared.generation.take() else {
        return Err(io::Error::other("the snapshot was installed before"));
    };
    fail::point("install-before-current");
    set_current(&state.dir, generation.number)?;
    fail::point("install-current");
    let old = state.live.swap(Some(Arc::new(generation)));
    // After the swap: who waits for this position must find it.
    state.position.send_replace(prepared.position.clone());
    if let Some(old) = old {
        let path = generation_dir(&state.dir, old.number);
        // Readers may still hold it, and nobody else waits for them.
        sweep_with(&state.helpers, move || {
            let db = Arc::clone(&old.db);
            drop(old);
            close_unused(db)?;
            remove_dir(&path)?;
            fail::point("install-swept");
            Ok(())
        });
    }
    fail::point("install-live");
    Ok(())
}

/// Closes a database when its last reader has let go of it.
fn close_unused(db: Arc<DB>) -> io::Result<()> {
    let mut db = db;
    for _ in 0..6_000 {
        match Arc::try_unwrap(db) {
            Ok(last) => {
                drop(last);
                return Ok(());
            }
            Err(shared) => db = shared,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(io::Error::other("the replaced state is still being read"))
}

/// Turns another node's data of the same cluster into this node's.
fn claim_foreign(db: &DB, state: &State, last: Option<LogId>) -> io::Result<()> {
    let meta = cf(db, CF_META)?;
    let found = db.get_cf(meta, META_FORMAT).map_err(io::Error::other)?;
    let found = found.unwrap_or_default();
    // The snapshot's layout stays: it says how requests are remembered.
    let layout = [keys::FORMAT, keys::WINDOW_FORMAT]
        .into_iter()
        .find(|layout| found.starts_with(&layout.to_be_bytes()));
    let owner = &state.identity;
    let ours = keys::format_value_of(
        layout.unwrap_or(keys::FORMAT),
        &owner.cluster_id,
        owner.raft_id,
    );
    // Layout and cluster id, without the Raft id.
    if layout.is_none() || found.get(..20) != ours.get(..20) {
        return Err(io::Error::other(
            "the snapshot is of another cluster or another layout",
        ));
    }
    let installed = last.map(|id| LogIdProto::from(&id).encode_to_vec());
    let mut batch = rocksdb::WriteBatch::default();
    batch.put_cf(meta, META_FORMAT, ours);
    batch.put_cf(meta, META_INSTALLED, installed.unwrap_or_default());
    db.write_opt(batch, &without_wal())
        .map_err(io::Error::other)?;
    flush(db, true)
}

/// Table files never change, so a link is a copy; the few small files that RocksDB rewrites are copied.
fn link_dir(from: &Path, to: &Path) -> io::Result<()> {
    remove_dir(to)?;
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let Some(name) = path.file_name() else {
            continue;
        };
        if is_table(&path) {
            fs::hard_link(&path, to.join(name))?;
        } else if name != SNAPSHOT_META_FILE {
            fs::copy(&path, to.join(name))?;
            fs::File::open(to.join(name))?.sync_all()?;
        }
    }
    sync_dir(to)
}

fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|ext| ext == "sst")
}

/// Makes the names in directory `path` durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// Removes a directory that need not be there.
pub(crate) fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes files, which takes a while and nobody waits for. If it fails, the next start does it.
fn sweep(work: impl FnOnce() -> io::Result<()> + Send + 'static) {
    let spawned = std::thread::Builder::new()
        .name(SWEEPER.to_owned())
        .spawn(move || swept(work()));
    swept(spawned.map(drop));
}

/// As [`sweep`], of files of a database that is closed first.
fn sweep_with(helpers: &Helpers, work: impl FnOnce() -> io::Result<()> + Send + 'static) {
    swept(helpers.spawn(SWEEPER, move || swept(work())));
}

fn swept(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "files that are not needed were not removed; the next start does it");
    }
}
