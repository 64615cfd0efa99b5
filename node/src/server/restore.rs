//! Restoring a snapshot: from an upload of any size to the cluster's new data.
//!
//! Steps: (1) the upload is spooled to a file without a name, (2) read to its end and verified, (3) its checksums are
//! compared with those that the HSM sealed, (4) its keyring is opened by this cluster's HSM, given this cluster's CA, and
//! wrapped again, (5) its rows are staged through the log, (6) one command makes them the data of every node.
//!
//! Invariants
//! - Before step 6 nothing has changed for anybody; what was staged is forgotten.
//! - A state whose keys this HSM cannot open is never committed, whatever is forced.
//! - The cluster stays itself: members, cluster id and CA are those from before. Everything behind the barrier is the
//!   snapshot's: tokens, mounts, secrets, recovery key.
//! - Memory does not grow with the snapshot.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Seek as _},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use strongroom_api::{
    drain,
    ports::{SnapshotError, Stream},
};
use strongroom_raft::{Command, Op, ProposeError, Raft, RestoreStep, RowSum};
use strongroom_seal::{
    barrier::core_key,
    config::SealConfig,
    hsm::{Hsm, HsmError},
    keyring::Keyring,
};
use tokio::{
    io::AsyncWriteExt as _,
    sync::{mpsc, oneshot},
};

use super::{
    bundle::{KEYRING, OpenKeyringError, RECOVERY_KEY, ROOT_KEY, SEAL_CONFIG, SealBundle},
    chain,
    node::{Order, Running, Shared},
    serving,
};
use crate::{
    config::RaftStorage,
    snapshot::archive::{self, ArchiveError, SUMS_PATH, Whole},
};

/// Longest time an upload may stand still.
const STALL: Duration = Duration::from_secs(60);
/// Bytes of an upload between two looks at the room on the disk.
const LOOK_FOR_ROOM: u64 = 4 << 20;
/// Bytes of rows in one log entry, about; and chunks read ahead.
const CHUNK: usize = 512 << 10;
const AHEAD: usize = 2;
/// For one step through the log, with all repetitions.
const STEP: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);
/// How long the answer waits for this node to serve the new data.
const SERVES: Duration = Duration::from_secs(10);
/// Pause between looks for a restore that was left unfinished.
const TIDY: Duration = Duration::from_secs(5);

type Id = [u8; 16];

/// Which restore this node carries out: one at a time.
#[derive(Default)]
pub(crate) struct Restorer {
    current: Mutex<Option<Id>>,
}

/// Held while a restore is carried out.
struct Turn {
    restorer: Arc<Restorer>,
    id: Id,
}

impl Restorer {
    fn turn(self: &Arc<Self>) -> Result<Turn, SnapshotError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| unavailable(error.to_string()))?;
        let mut current = self.lock();
        if current.is_some() {
            return Err(unavailable("another restore is running".to_owned()));
        }
        *current = Some(id);
        let restorer = Arc::clone(self);
        Ok(Turn { restorer, id })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Id>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.restorer.lock() = None;
    }
}

fn unavailable(why: String) -> SnapshotError {
    SnapshotError::Unavailable(why)
}

fn bad(why: impl Into<String>) -> SnapshotError {
    SnapshotError::BadSnapshot(why.into())
}

/// Carries out a restore on the leader of a running cluster. To be run to its end, whether somebody waits or not.
pub(crate) async fn restore(
    shared: &Shared,
    running: &Running,
    upload: Stream,
    force: bool,
) -> Result<(), SnapshotError> {
    let turn = shared.restorer.turn()?;
    let candidate = Candidate::receive(upload, &shared.config.storage).await?;
    if !force {
        candidate.check_seal(&shared.hsm).await?;
    }
    let keyring = take_keys(shared, running, &candidate).await?;
    tracing::warn!(
        snapshot = %candidate.whole.meta.id,
        cluster = %candidate.whole.meta.strongroom.cluster_id,
        force,
        "restoring a snapshot: all data will be replaced"
    );
    let raft = &running.raft;
    let before = raft.state().restores();
    let carried_out = commit(raft, turn.id, &candidate, keyring).await;
    if let Err(error) = &carried_out {
        tracing::error!(%error, "the restore was not carried out");
        let abort = one_step(raft, RestoreStep::Abort { id: turn.id }, Vec::new());
        // Whoever leads next clears up as well, and so does the next restore.
        if let Err(error) = abort.await {
            tracing::warn!(%error, "what the restore had staged is not cleared yet");
        }
        return carried_out;
    }
    tracing::warn!(snapshot = %candidate.whole.meta.id, "the snapshot is restored");
    let deadline = Instant::now() + SERVES;
    while Instant::now() < deadline && !serves_after(running, before) {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Has the lifecycle make a new cluster of a snapshot, on a node that is in none.
pub(crate) async fn found(
    shared: &Shared,
    upload: Stream,
    force: bool,
) -> Result<(), SnapshotError> {
    let turn = shared.restorer.turn()?;
    let candidate = Candidate::receive(upload, &shared.config.storage).await?;
    let (reply, answer) = oneshot::channel();
    let order = Order::Restore {
        candidate: Box::new(candidate),
        id: turn.id,
        force,
        reply,
    };
    shared
        .orders
        .try_send(order)
        .map_err(|_| unavailable("an initialization or a join is in progress".to_owned()))?;
    answer
        .await
        .unwrap_or_else(|_| Err(unavailable("the node is shutting down".to_owned())))
}

fn serves_after(running: &Running, restores: u64) -> bool {
    let state = running.raft.state();
    let served = running.core.load();
    state.restores() > restores && served.as_ref().is_some_and(|s| s.on(&state).is_some())
}

/// Stages the rows and makes them the data.
pub(crate) async fn commit(
    raft: &Raft,
    id: Id,
    candidate: &Candidate,
    keyring: Vec<u8>,
) -> Result<(), SnapshotError> {
    one_step(raft, RestoreStep::Begin { id }, Vec::new()).await?;
    tracing::info!("staging the rows of the snapshot");
    let sum = stage(raft, id, candidate).await?;
    if sum != candidate.whole.rows {
        return Err(unavailable("the spooled snapshot has changed".to_owned()));
    }
    let step = RestoreStep::Commit {
        id,
        rows: sum.rows,
        checksum: sum.checksum,
        puts: candidate.whole.meta.strongroom.puts,
    };
    let mut puts = vec![(KEYRING, Bytes::from(keyring))];
    puts.extend(
        candidate
            .core
            .iter()
            .filter(|(name, _)| **name != KEYRING)
            .map(|(name, value)| (*name, value.clone())),
    );
    let puts = puts.into_iter().map(|(name, value)| Op::Put {
        key: core_key(name).into(),
        value,
    });
    match one_step(raft, step, puts.collect()).await {
        Err(SnapshotError::Unknown) => was_committed(raft, id).await,
        outcome => outcome,
    }
}

async fn stage(raft: &Raft, id: Id, candidate: &Candidate) -> Result<RowSum, SnapshotError> {
    let (chunks, mut read) = mpsc::channel(AHEAD);
    let file = candidate.file.try_clone().map_err(spool_error)?;
    let reading = tokio::task::spawn_blocking(move || read_chunks(file, &chunks));
    let mut seq = 0;
    while let Some(rows) = read.recv().await {
        one_step(raft, RestoreStep::Chunk { id, seq, rows }, Vec::new()).await?;
        seq += 1;
    }
    let whole = reading
        .await
        .map_err(|error| unavailable(error.to_string()))?;
    Ok(whole.map_err(archive_error)?.rows)
}

type Rows = Vec<(Bytes, Bytes)>;

fn read_chunks(mut file: File, chunks: &mpsc::Sender<Rows>) -> Result<Whole, ArchiveError> {
    file.rewind().map_err(ArchiveError::Caller)?;
    let gone = || io::Error::other("the restore has ended");
    let (mut chunk, mut bytes) = (Rows::new(), 0);
    let whole = archive::read(file, |_, row| {
        let more = row.key.len() + row.value.len() + 16;
        if !chunk.is_empty() && bytes + more > CHUNK {
            bytes = 0;
            chunks
                .blocking_send(std::mem::take(&mut chunk))
                .map_err(|_| gone())?;
        }
        bytes += more;
        chunk.push((row.key.into(), row.value.into()));
        Ok(())
    })?;
    if !chunk.is_empty() {
        chunks
            .blocking_send(chunk)
            .map_err(|_| ArchiveError::Caller(gone()))?;
    }
    Ok(whole)
}

/// One command through the log. `Unknown` only for a commit: of every other step nothing can be seen.
async fn one_step(raft: &Raft, step: RestoreStep, more: Vec<Op>) -> Result<(), SnapshotError> {
    let is_commit = matches!(step, RestoreStep::Commit { .. });
    let lost = || {
        unavailable(
            "leadership changed during the restore; nothing was changed, try again".to_owned(),
        )
    };
    let mut ops = vec![Op::Restore(step)];
    ops.extend(more);
    let command = Command {
        ops,
        ..Command::default()
    };
    let deadline = Instant::now() + STEP;
    loop {
        match raft.propose(command.clone(), deadline).await {
            Ok(applied) if applied.is_applied() => return Ok(()),
            Ok(_) => return Err(lost()),
            Err(ProposeError::Busy | ProposeError::NoQuorum) if Instant::now() < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(ProposeError::Unknown) if is_commit => return Err(SnapshotError::Unknown),
            Err(ProposeError::NotLeader { .. } | ProposeError::Unknown) => return Err(lost()),
            Err(error @ ProposeError::TooLarge { .. }) => return Err(bad(error.to_string())),
            Err(
                error @ (ProposeError::Busy
                | ProposeError::NoQuorum
                | ProposeError::NoRoom
                | ProposeError::Fatal(_)),
            ) => {
                return Err(unavailable(format!("nothing was changed: {error}")));
            }
        }
    }
}

/// Whether a commit whose outcome was lost has been carried out: an index that covers it is asked for, and by then it has
/// been applied or never will be.
async fn was_committed(raft: &Raft, id: Id) -> Result<(), SnapshotError> {
    let deadline = Instant::now() + STEP;
    let asked = async {
        let index = raft.read_index(deadline).await?;
        raft.wait_applied(index, deadline).await
    };
    match asked.await {
        Ok(()) if raft.state().last_restore() == Some(id) => Ok(()),
        Ok(()) => Err(unavailable(
            "leadership changed during the restore; nothing was changed, try again".to_owned(),
        )),
        Err(_) => Err(SnapshotError::Unknown),
    }
}

/// The snapshot's keyring with this cluster's CA, wrapped by the HSM; proof that the HSM opens the snapshot's keys.
async fn take_keys(
    shared: &Shared,
    running: &Running,
    candidate: &Candidate,
) -> Result<Vec<u8>, SnapshotError> {
    let bundle = running.bundle.load_full();
    let own = bundle
        .open(&shared.hsm)
        .await
        .map_err(|error| unavailable(chain(&error)))?;
    // The HSM looks at one configuration at a time: requests wait, and the cluster's own is put back in any case.
    let same = candidate.bundle.config == bundle.config;
    let _paused = (!same).then(|| serving::Pause::of(running));
    let keyring = candidate.wrap_keyring(&shared.hsm, &own).await;
    // Until it is, nothing may be wrapped: it could be by a key that the other nodes do not have.
    while !same && let Err(error) = shared.hsm.open(&bundle.config).await {
        tracing::error!(error = %chain(&error), "going back to the cluster's own seal keys");
        tokio::time::sleep(PAUSE * 20).await;
    }
    keyring
}

/// A verified snapshot and what is needed of it before its rows.
pub(crate) struct Candidate {
    /// Has no name any more: it goes with the process.
    file: File,
    pub(crate) whole: Whole,
    core: HashMap<&'static str, Bytes>,
    pub(crate) bundle: SealBundle,
}

impl Candidate {
    /// Spools an upload in the data directory and verifies it.
    pub(crate) async fn receive(
        mut upload: Stream,
        storage: &RaftStorage,
    ) -> Result<Self, SnapshotError> {
        let (dir, reserve) = (storage.path.clone(), storage.disk_reserve);
        let room = move || strongroom_raft::room_above_reserve(&dir, reserve);
        let spooled = spool(&mut upload, &storage.path, room).await;
        if spooled.is_err() {
            drain(&mut upload).await;
        }
        let file = spooled?;
        tokio::task::spawn_blocking(move || Self::verify(file))
            .await
            .map_err(|error| unavailable(error.to_string()))?
    }

    fn verify(mut file: File) -> Result<Self, SnapshotError> {
        file.rewind().map_err(spool_error)?;
        let names: HashMap<Vec<u8>, &'static str> = [SEAL_CONFIG, ROOT_KEY, RECOVERY_KEY, KEYRING]
            .into_iter()
            .map(|name| (core_key(name), name))
            .collect();
        let mut core = HashMap::new();
        let copy = file.try_clone().map_err(spool_error)?;
        let whole = archive::read(copy, |_, row| {
            if let Some(name) = names.get(&row.key) {
                core.insert(*name, Bytes::from(row.value));
            }
            Ok(())
        })
        .map_err(archive_error)?;
        let part = |name: &'static str| {
            core.get(name)
                .ok_or_else(|| bad(format!("the snapshot holds no {name}")))
        };
        let config = SealConfig::from_json(part(SEAL_CONFIG)?)
            .map_err(|error| bad(format!("the snapshot's seal configuration: {error}")))?;
        let bundle = SealBundle::new((0, 0), config, part(ROOT_KEY)?, part(KEYRING)?);
        Ok(Self {
            file,
            whole,
            core,
            bundle,
        })
    }

    /// Whether the HSM, with the keys it is known to have now, opens the sealed checksums and they are the right ones.
    pub(crate) async fn check_seal(&self, hsm: &Hsm) -> Result<(), SnapshotError> {
        match hsm.unwrap_core(SUMS_PATH, &self.whole.sealed).await {
            Ok(sums) if *sums.as_ref() == *self.whole.sums => Ok(()),
            Ok(_) | Err(HsmError::Rejected | HsmError::KeyUnknown { .. }) => {
                let keys: Vec<String> = self
                    .whole
                    .meta
                    .strongroom
                    .seal_keys
                    .iter()
                    .map(|key| format!("{} ({})", key.label, key.fingerprint))
                    .collect();
                tracing::warn!(
                    sealed_by = keys.join(", "),
                    "a snapshot of another seal was refused"
                );
                Err(SnapshotError::OtherSeal)
            }
            Err(error) => Err(unavailable(chain(&error))),
        }
    }

    /// The snapshot's keyring with the CA in `own`, for the restored state.
    pub(crate) async fn wrap_keyring(
        &self,
        hsm: &Hsm,
        own: &Keyring,
    ) -> Result<Vec<u8>, SnapshotError> {
        let (root_key, keyring) = self.bundle.open_whole(hsm).await.map_err(keys_error)?;
        let merged = keyring.with_ca_of(own);
        let encrypted = merged
            .encrypt(&root_key)
            .map_err(|error| unavailable(chain(&error)))?;
        hsm.wrap_core(KEYRING, &encrypted)
            .await
            .map_err(|error| keys_error(error.into()))
    }
}

fn keys_error(error: OpenKeyringError) -> SnapshotError {
    let why = chain(&error);
    match error {
        OpenKeyringError::Hsm(
            HsmError::Unavailable { .. }
            | HsmError::Timeout
            | HsmError::Overloaded
            | HsmError::PinRefused { .. },
        ) => unavailable(why),
        OpenKeyringError::Hsm(
            HsmError::Misconfigured { .. }
            | HsmError::KeyMissing { .. }
            | HsmError::KeyDuplicate { .. }
            | HsmError::KeyForeign { .. }
            | HsmError::Rejected
            | HsmError::KeyUnknown { .. },
        )
        | OpenKeyringError::Keyring(_)
        | OpenKeyringError::Damaged(_) => bad(format!(
            "the snapshot's keys cannot be opened with this HSM, so that nobody could read what it holds; nothing was \
             changed: {why}"
        )),
    }
}

fn archive_error(error: ArchiveError) -> SnapshotError {
    if let ArchiveError::Caller(error) = error {
        return spool_error(error);
    }
    tracing::info!(error = %chain(&error), "a snapshot file was refused");
    bad(error.to_string())
}

fn spool_error(error: io::Error) -> SnapshotError {
    unavailable(format!(
        "keeping the snapshot in the data directory while it is checked failed: {error}"
    ))
}

/// Writes an upload to a file that has no name, so that nothing is left of it whatever happens. `room`: bytes that may
/// still be written.
async fn spool(
    upload: &mut Stream,
    dir: &Path,
    room: impl Fn() -> io::Result<u64> + Clone + Send + 'static,
) -> Result<File, SnapshotError> {
    // What its sender says of its length, or nothing.
    let said = upload.size_hint().lower();
    look_for_room(room.clone(), said.max(LOOK_FOR_ROOM)).await?;
    let file = unnamed(dir).map_err(spool_error)?;
    let (mut written, mut looked_at) = (0, 0);
    let mut out = tokio::fs::File::from_std(file.try_clone().map_err(spool_error)?);
    loop {
        let frame = match tokio::time::timeout(STALL, upload.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(_))) => return Err(bad("the upload was cut off; nothing was changed")),
            Err(_elapsed) => {
                return Err(bad(format!(
                    "nothing was sent for {} seconds; nothing was changed",
                    STALL.as_secs()
                )));
            }
        };
        // Trailers mean nothing here.
        if let Ok(data) = frame.into_data() {
            out.write_all(&data).await.map_err(spool_error)?;
            written += data.len() as u64;
        }
        if written - looked_at >= LOOK_FOR_ROOM {
            out.flush().await.map_err(spool_error)?;
            look_for_room(room.clone(), LOOK_FOR_ROOM).await?;
            looked_at = written;
        }
    }
    out.flush().await.map_err(spool_error)?;
    Ok(file)
}

/// Refuses when fewer than `wanted` bytes may be written.
async fn look_for_room(
    room: impl Fn() -> io::Result<u64> + Send + 'static,
    wanted: u64,
) -> Result<(), SnapshotError> {
    // A disk that hangs must not hold an async thread.
    let found = tokio::task::spawn_blocking(room)
        .await
        .map_err(|error| unavailable(error.to_string()))?
        .map_err(spool_error)?;
    if found >= wanted {
        return Ok(());
    }
    tracing::warn!(
        room_mib = found >> 20,
        "a restore was refused: the disk of the data directory would fall below its reserve"
    );
    Err(SnapshotError::NoRoom(format!(
        "there is no room for the snapshot on the leader, which keeps it in its data directory while it is checked: the \
         disk may take {} MiB more before its reserve (`disk_reserve`) is touched; nothing was changed",
        found >> 20
    )))
}

fn unnamed(dir: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = dir.join("restore.upload");
    // One that a process left between these two lines.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Clears up after a leader that went away in the middle of a restore. Runs as long as the node.
pub(crate) async fn tidy(shared: Arc<Shared>, running: Arc<Running>) {
    loop {
        tokio::time::sleep(super::jittered(TIDY)).await;
        let leads = running.raft.watch().borrow().is_ready_leader;
        let Some(id) = running.raft.state().staged_restore().filter(|_| leads) else {
            continue;
        };
        let own = *shared.restorer.lock();
        if own == Some(id) {
            continue;
        }
        match one_step(&running.raft, RestoreStep::Abort { id }, Vec::new()).await {
            Ok(()) => {
                tracing::warn!("a restore that was cut off is cleared; it has changed nothing")
            }
            Err(error) => tracing::debug!(%error, "clearing a restore that was cut off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use http_body_util::Full;

    use super::*;

    /// An upload of this many MiB, of which nobody has said how long it is.
    fn upload(mib: usize) -> Stream {
        let pieces = (0..mib).map(|_| Ok::<_, io::Error>(Bytes::from(vec![7; 1 << 20])));
        Stream::from_stream(futures_util::stream::iter(pieces))
    }

    /// A disk with this much room, of which every look takes [`LOOK_FOR_ROOM`]; and how often it was looked at.
    fn disk(bytes: u64) -> (Arc<AtomicU64>, impl Fn() -> io::Result<u64> + Clone + Send) {
        let looks = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&looks);
        let room = move || {
            let before = counted.fetch_add(1, Ordering::SeqCst);
            Ok(bytes.saturating_sub(before * LOOK_FOR_ROOM))
        };
        (looks, room)
    }

    #[tokio::test]
    async fn an_upload_stops_where_the_reserve_begins() {
        let dir = tempfile::tempdir().unwrap();
        let (looks, room) = disk(12 << 20);
        let refused = spool(&mut upload(64), dir.path(), room).await.unwrap_err();
        assert!(matches!(refused, SnapshotError::NoRoom(_)), "{refused}");
        assert!(refused.to_string().contains("disk_reserve"), "{refused}");
        assert_eq!(looks.load(Ordering::SeqCst), 4, "three times 4 MiB fit");
        // What says how long it is, is not taken at all.
        let mut whole = Stream::new(Full::from(vec![7; 13 << 20]));
        let (looks, room) = disk(12 << 20);
        let refused = spool(&mut whole, dir.path(), room).await.unwrap_err();
        assert!(matches!(refused, SnapshotError::NoRoom(_)), "{refused}");
        assert_eq!(looks.load(Ordering::SeqCst), 1);
        // Nothing is left of either.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        let (_, room) = disk(64 << 20);
        let file = spool(&mut upload(12), dir.path(), room).await.unwrap();
        assert_eq!(file.metadata().unwrap().len(), 12 << 20);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
