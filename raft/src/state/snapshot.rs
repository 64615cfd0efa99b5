//! Local snapshots: RocksDB checkpoints of the state (hard links), and their installation.
//!
//! In: the live state, or a snapshot directory. Out: a snapshot directory, or a new generation of the state.
//!
//! Nothing triggers a snapshot yet and the log is never purged, so none is ever sent; building and installing are here
//! because openraft's storage contract needs them whole, and sending adds to them without changing them.
//!
//! Invariants
//! - What a snapshot covers is read from the checkpoint itself, never from live memory.
//! - Installing commits by one atomic rename of `CURRENT`: a crash leaves the old generation or the new one.
//! - Cost does not grow with the data: files are linked, not copied.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use openraft::RaftSnapshotBuilder;
use rocksdb::{DB, checkpoint::Checkpoint};

use super::{Generation, Position, State, claim, generation_dir, read_position, set_current};
use crate::{
    keys::{self, CF_META, META_FORMAT, SNAPSHOT_DIR},
    rocks::{self, Kind, cf},
    types::TypeConfig,
};

type Meta = openraft::alias::SnapshotMetaOf<TypeConfig>;
type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotDir>;

/// A finished snapshot on the local disk.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotDir(PathBuf);

/// Builds a snapshot of the live state.
pub(crate) struct Builder(Arc<State>);

impl Builder {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self(state)
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotDir;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let state = Arc::clone(&self.0);
        blocking(move || build(&state)).await
    }
}

/// The newest local snapshot.
pub(super) async fn newest(state: &Arc<State>) -> io::Result<Option<Snapshot>> {
    let root = root(state);
    blocking(move || {
        let Some((_, path)) = list(&root)?.into_iter().max() else {
            return Ok(None);
        };
        describe(path).map(Some)
    })
    .await
}

/// Replaces the live state by the snapshot.
pub(super) async fn install(
    state: &Arc<State>,
    meta: &Meta,
    snapshot: SnapshotDir,
) -> io::Result<()> {
    let (state, meta) = (Arc::clone(state), meta.clone());
    blocking(move || install_now(&state, &meta, &snapshot.0)).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

fn root(state: &State) -> PathBuf {
    state.dir.with_file_name(SNAPSHOT_DIR)
}

fn build(state: &State) -> io::Result<Snapshot> {
    let root = root(state);
    fs::create_dir_all(&root)?;
    let aside = root.join("building");
    remove_dir(&aside)?;
    let db = state.db().map_err(io::Error::other)?;
    // 0: flush first, whatever the size. The WAL is off, so only what is in table files exists.
    Checkpoint::new(&db)
        .and_then(|checkpoint| checkpoint.create_checkpoint_with_log_size(&aside, 0))
        .map_err(io::Error::other)?;
    let position = position_of(&aside)?;
    let (index, term, node) = position.applied.map_or((0, 0, 0), |id| {
        (id.index, id.leader_id.term, id.leader_id.node_id)
    });
    let path = root.join(format!("{index}-{term}-{node}"));
    remove_dir(&path)?;
    fs::rename(&aside, &path)?;
    fs::File::open(&root)?.sync_all()?;
    for (older, path) in list(&root)? {
        if older < index {
            remove_dir(&path)?;
        }
    }
    Ok(snapshot_of(position, path))
}

/// Finished snapshots by the index they cover.
fn list(root: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let index = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.split('-').next())
            .and_then(|index| index.parse().ok());
        // Anything else here is a half-built snapshot, which the next build removes.
        found.extend(index.map(|index| (index, path)));
    }
    Ok(found)
}

fn describe(path: PathBuf) -> io::Result<Snapshot> {
    let position = position_of(&path)?;
    Ok(snapshot_of(position, path))
}

fn position_of(path: &Path) -> io::Result<Position> {
    let db = rocks::open_read_only(Kind::State, path).map_err(io::Error::other)?;
    read_position(&db)
}

fn snapshot_of(position: Position, path: PathBuf) -> Snapshot {
    Snapshot {
        meta: Meta {
            last_log_id: position.applied,
            last_membership: position.membership,
        },
        snapshot: SnapshotDir(path),
    }
}

fn install_now(state: &State, meta: &Meta, from: &Path) -> io::Result<()> {
    let old = state
        .live
        .load_full()
        .ok_or_else(|| io::Error::other("the state is closed"))?;
    let number = old.number + 1;
    let path = generation_dir(&state.dir, number);
    remove_dir(&path)?;
    link_dir(from, &path)?;
    let db = rocks::open(Kind::State, &path).map_err(io::Error::other)?;
    let position = read_position(&db)?;
    if position.applied != meta.last_log_id || position.membership != meta.last_membership {
        return Err(io::Error::other(
            "the snapshot is not what it was announced as",
        ));
    }
    adopt(&db, state)?;
    set_current(&state.dir, number)?;
    let db = Arc::new(db);
    let generation = Generation::new(number, db, &position)?;
    state.live.store(Some(Arc::new(generation)));
    state.position.send_replace(position);
    let old_path = generation_dir(&state.dir, old.number);
    let db = Arc::clone(&old.db);
    drop(old);
    crate::log::drop_last(db, "state");
    remove_dir(&old_path)?;
    keep_as_snapshot(state, meta, from)
}

/// The installed snapshot is this node's newest one too.
fn keep_as_snapshot(state: &State, meta: &Meta, from: &Path) -> io::Result<()> {
    let root = root(state);
    let (index, term, node) = meta.last_log_id.map_or((0, 0, 0), |id| {
        (id.index, id.leader_id.term, id.leader_id.node_id)
    });
    let path = root.join(format!("{index}-{term}-{node}"));
    if path == from {
        return Ok(());
    }
    fs::create_dir_all(&root)?;
    let aside = root.join("keeping");
    remove_dir(&aside)?;
    link_dir(from, &aside)?;
    remove_dir(&path)?;
    fs::rename(&aside, &path)?;
    fs::File::open(&root)?.sync_all()
}

/// Turns another node's data of the same cluster into this node's.
fn adopt(db: &DB, state: &State) -> io::Result<()> {
    let found = db
        .get_cf(cf(db, CF_META)?, META_FORMAT)
        .map_err(io::Error::other)?;
    let ours = keys::format_value(&state.identity.cluster_id, state.identity.raft_id);
    // Layout and cluster id, without the Raft id.
    if found.as_deref().and_then(|value| value.get(..20)) != ours.get(..20) {
        return Err(io::Error::other(
            "the snapshot is of another cluster or another layout",
        ));
    }
    claim(db, &state.identity)
}

/// Table files never change, so a link is a copy; the few small files that RocksDB rewrites are copied.
fn link_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let Some(name) = path.file_name() else {
            continue;
        };
        if path.extension().is_some_and(|ext| ext == "sst") {
            fs::hard_link(&path, to.join(name))?;
        } else {
            fs::copy(&path, to.join(name))?;
            fs::File::open(to.join(name))?.sync_all()?;
        }
    }
    fs::File::open(to)?.sync_all()
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
