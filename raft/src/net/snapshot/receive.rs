//! The receiving side.
//!
//! Invariants
//! - One snapshot is received at a time. A leader that is newer, or the same one again, ends what is under way.
//! - Files that were received whole before a connection broke are kept for the next attempt of this process.
//! - Until everything is here, checked and synced, nothing of it is anything but a directory that the next start sweeps.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use prost::Message;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Answer, CHUNKS_AHEAD, File, Have, HaveFile, Offer, PATIENCE, Push, PushMessage, SIGN_OF_LIFE,
    Take, Talk, answer_frame, digest,
};
use crate::{
    fail,
    keys::RECEIVE_DIR,
    log::lock,
    net::{
        frame::{Frame, Kind},
        peer::Connection,
    },
    services::Services,
    state::{
        SnapshotDir, State,
        snapshot::{self, Received, Snapshot, add, blocking, sync_dir},
    },
    types::Vote,
};

/// Room that must stay when everything is here, bytes.
const SPARE: u64 = 64 << 20;

/// What is being received.
pub(crate) struct Incoming {
    slot: Arc<Semaphore>,
    current: Mutex<Option<(Vote, CancellationToken)>>,
    /// Files in the directory that were received whole, with their sizes.
    whole: Arc<Mutex<HashMap<String, u64>>>,
}

impl Default for Incoming {
    fn default() -> Self {
        Self {
            slot: Arc::new(Semaphore::new(1)),
            current: Mutex::default(),
            whole: Arc::default(),
        }
    }
}

impl Incoming {
    /// The right to receive, and what ends it; `None` while a newer leader's snapshot is received.
    async fn enter(&self, vote: Vote) -> Option<(Arc<OwnedSemaphorePermit>, CancellationToken)> {
        let token = CancellationToken::new();
        {
            let mut current = lock(&self.current);
            if let Some((theirs, under_way)) = &*current {
                if *theirs > vote && !under_way.is_cancelled() {
                    return None;
                }
                under_way.cancel();
            }
            *current = Some((vote, token.clone()));
        }
        let entered = timeout(PATIENCE / 2, Arc::clone(&self.slot).acquire_owned()).await;
        let permit = entered.ok()?.ok()?;
        Some((Arc::new(permit), token))
    }
}

/// Why a snapshot was not received.
enum Failure {
    /// The other side is gone, or says what makes no sense.
    Peer(io::Error),
    /// This side cannot; the other side is told why.
    Here(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Peer(error)
    }
}

fn here(error: &io::Error) -> Failure {
    Failure::Here(error.to_string())
}

/// Takes snapshots from a leader.
pub(crate) struct Receiver {
    pub(crate) services: Services,
    pub(crate) state: Arc<State>,
    pub(crate) incoming: Incoming,
}

impl Receiver {
    /// Receives and installs what node `from` offers on `connection`.
    pub(crate) async fn serve(&self, connection: Connection, from: u64) -> io::Result<()> {
        let mut talk = Talk(connection);
        let Some(Push::Offer(proto)) = push_of(talk.next().await?)? else {
            return Err(io::Error::other("the first message is no offer"));
        };
        let offer = match Offer::try_from(proto) {
            Ok(offer) => offer,
            Err(error) => {
                tracing::warn!(node = from, %error, "a snapshot was refused");
                return talk
                    .send(answer_frame(Answer::Refused(error.to_string())))
                    .await;
            }
        };
        if let Some(vote) = self.not_needed(&offer) {
            return talk.send(answer_frame(Answer::Vote((&vote).into()))).await;
        }
        let Some((permit, ended)) = self.incoming.enter(offer.vote).await else {
            return talk.send(answer_frame(Answer::Busy(true))).await;
        };
        // However this ends.
        let _ended = ended.clone().drop_guard();
        let index = offer.meta.last_log_id.map_or(0, |id| id.index);
        tracing::info!(node = from, index, "receiving a snapshot");
        let receiving = self.receive(&mut talk, offer, permit);
        let outcome = ended.run_until_cancelled(Box::pin(receiving)).await;
        let counters = &self.state.counters;
        let answer = match outcome {
            Some(Ok(vote)) => {
                add(&counters.received, 1);
                tracing::info!(node = from, index, "installed a snapshot");
                Answer::Vote((&vote).into())
            }
            Some(Err(Failure::Here(why))) => {
                add(&counters.receive_failures, 1);
                tracing::warn!(node = from, index, "a snapshot was not installed: {why}");
                Answer::Refused(why)
            }
            Some(Err(Failure::Peer(error))) => {
                add(&counters.receive_failures, 1);
                tracing::warn!(node = from, index, %error, "a snapshot did not arrive");
                return Err(error);
            }
            None => Answer::Busy(true),
        };
        talk.send(answer_frame(answer)).await?;
        // A connection that is closed while data is on its way takes the answer with it.
        drop(
            timeout(SIGN_OF_LIFE, async {
                while let Ok(frame) = talk.next().await {
                    drop(frame)
                }
            })
            .await,
        );
        Ok(())
    }

    /// The answer, if nothing has to be sent: an older leader, or a state that is there already.
    fn not_needed(&self, offer: &Offer) -> Option<Vote> {
        let own = self.services.metrics(|metrics| metrics.vote);
        if own > offer.vote {
            return Some(own);
        }
        let applied = self.state.position().borrow().applied;
        (applied >= offer.meta.last_log_id).then_some(offer.vote)
    }

    async fn receive(
        &self,
        talk: &mut Talk,
        offer: Offer,
        permit: Arc<OwnedSemaphorePermit>,
    ) -> Result<Vote, Failure> {
        fail::point("receive-begin");
        let dir = self.state.beside(RECEIVE_DIR);
        let reuse = self.agree(talk, &offer, &dir).await?;
        let expected = expected(&offer.files, &reuse);
        let (chunks, written) = write_files(
            dir.clone(),
            expected,
            Arc::clone(&self.incoming.whole),
            Arc::clone(&permit),
        );
        self.take_files(talk, chunks, written).await?;
        fail::point("receive-whole");
        lock(&self.incoming.whole).clear();
        let (state, meta) = (Arc::clone(&self.state), offer.meta.clone());
        let preparing = blocking(move || {
            sync_dir(&dir)?;
            let prepared = snapshot::prepare(&state, &meta, &dir)?;
            Ok(Received::new(dir, prepared, permit))
        });
        let received = talk.working(working, preparing).await?;
        let snapshot = Snapshot {
            meta: offer.meta,
            snapshot: SnapshotDir::Received(Box::new(received.map_err(|error| here(&error))?)),
        };
        let core = &self.services.core;
        let installing = core.install_full_snapshot(offer.vote, snapshot);
        match talk.working(working, installing).await? {
            Ok(response) => Ok(response.vote),
            Err(fatal) => Err(Failure::Here(fatal.to_string())),
        }
    }

    /// Finds out with the sender which files are here already, and clears the directory of everything else.
    async fn agree(&self, talk: &mut Talk, offer: &Offer, dir: &Path) -> Result<Vec<u32>, Failure> {
        let (state, files, at) = (Arc::clone(&self.state), offer.files.clone(), dir.to_owned());
        let whole = Arc::clone(&self.incoming.whole);
        let looking = blocking(move || candidates(&state, &whole, &files, &at));
        let found = talk.working(working, looking).await?;
        let found = found.map_err(|error| here(&error))?;
        check_room(dir, offer, &found)?;
        let positions: Vec<u32> = found.iter().map(|have| have.position).collect();
        let have = Have { files: found };
        talk.send(answer_frame(Answer::Have(have))).await?;
        let Take { reuse } = loop {
            match push_of(talk.next().await?)? {
                Some(Push::Take(take)) => break take,
                Some(Push::Working(_)) => {}
                _ => return Err(Failure::Peer(io::Error::other("a message out of turn"))),
            }
        };
        if !reuse.iter().all(|position| positions.contains(position)) {
            return Err(Failure::Peer(io::Error::other("a file that is not here")));
        }
        for position in positions {
            if reuse.contains(&position) {
                continue;
            }
            if let Some(file) = usize::try_from(position)
                .ok()
                .and_then(|at| offer.files.get(at))
            {
                lock(&self.incoming.whole).remove(&file.name);
                fs::remove_file(dir.join(&file.name)).map_err(|error| here(&error))?;
            }
        }
        Ok(reuse)
    }

    /// Hands to the disk what comes, until everything is written.
    async fn take_files(
        &self,
        talk: &mut Talk,
        chunks: mpsc::Sender<Chunk>,
        written: JoinHandle<io::Result<()>>,
    ) -> Result<(), Failure> {
        loop {
            let frame = talk.next().await?;
            let chunk = if frame.kind == Kind::SnapshotData {
                let bytes = u64::try_from(frame.body.len()).unwrap_or(0);
                add(&self.state.counters.received_bytes, bytes);
                Chunk::Data(frame.body)
            } else {
                match push_of(frame)? {
                    Some(Push::FileEnd(crc)) => Chunk::End(crc),
                    Some(Push::Done(_)) => break,
                    Some(Push::Working(_)) => continue,
                    _ => return Err(Failure::Peer(io::Error::other("a message out of turn"))),
                }
            };
            if !feed(talk, &chunks, chunk).await? {
                // The disk's side has ended, and knows why.
                let ended = written.await.map_err(io::Error::other);
                return ended
                    .and_then(|result| result)
                    .map_err(|error| here(&error));
            }
        }
        drop(chunks);
        let ended = talk.working(working, written).await?;
        let ended = ended.map_err(io::Error::other).and_then(|result| result);
        ended.map_err(|error| here(&error))
    }
}

fn working() -> Frame {
    answer_frame(Answer::Working(true))
}

fn push_of(frame: Frame) -> io::Result<Option<Push>> {
    if frame.kind != Kind::Snapshot {
        return Err(io::Error::other("a frame that is no part of a snapshot"));
    }
    let message = PushMessage::decode(frame.body).map_err(io::Error::other)?;
    Ok(message.push)
}

/// `false`: who writes has ended. Nothing is read from the connection meanwhile: the sender waits, and is told why.
async fn feed(talk: &mut Talk, chunks: &mpsc::Sender<Chunk>, chunk: Chunk) -> io::Result<bool> {
    loop {
        match timeout(SIGN_OF_LIFE, chunks.reserve()).await {
            Ok(Ok(place)) => {
                place.send(chunk);
                return Ok(true);
            }
            Ok(Err(_)) => return Ok(false),
            Err(_) => talk.send(working()).await?,
        }
    }
}

/// Files of the offer that are on this disk under the same name and with the same size, now linked into `dir`, with their
/// digests. Everything else in `dir` is removed. Blocks.
fn candidates(
    state: &State,
    whole: &Mutex<HashMap<String, u64>>,
    files: &[File],
    dir: &Path,
) -> io::Result<Vec<HaveFile>> {
    fs::create_dir_all(dir)?;
    let is_whole = |file: &File| lock(whole).get(&file.name) == Some(&file.size);
    let kept: HashMap<&str, &File> = files
        .iter()
        .filter(|file| is_whole(file))
        .map(|file| (file.name.as_str(), file))
        .collect();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry
            .file_name()
            .to_str()
            .is_some_and(|name| kept.contains_key(name))
        {
            fs::remove_file(entry.path())?;
        }
    }
    let mut found = Vec::new();
    for (position, file) in (0u32..).zip(files) {
        let path = dir.join(&file.name);
        if !path.exists() {
            lock(whole).remove(&file.name);
            // Only table files never change.
            if !file.name.ends_with(".sst") || !link_own(state, file, &path) {
                continue;
            }
        }
        found.push(HaveFile {
            position,
            digest: digest(&path)?,
        });
    }
    Ok(found)
}

/// Links a file of this node's own state or snapshots; it may go away there at any moment.
fn link_own(state: &State, file: &File, to: &Path) -> bool {
    let own = state
        .table_dirs()
        .into_iter()
        .map(|dir| dir.join(&file.name));
    let fits = |path: &PathBuf| fs::metadata(path).is_ok_and(|found| found.len() == file.size);
    own.filter(fits).any(|path| fs::hard_link(path, to).is_ok())
}

/// The files that will come.
fn expected(files: &[File], reuse: &[u32]) -> Vec<File> {
    (0u32..)
        .zip(files)
        .filter(|(position, _)| !reuse.contains(position))
        .map(|(_, file)| file.clone())
        .collect()
}

fn check_room(dir: &Path, offer: &Offer, found: &[HaveFile]) -> Result<(), Failure> {
    let positions: Vec<u32> = found.iter().map(|have| have.position).collect();
    let needed: u64 = expected(&offer.files, &positions)
        .iter()
        .map(|file| file.size)
        .sum();
    let free = rustix::fs::statvfs(dir)
        .map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
        .map_err(|error| here(&error.into()))?;
    if needed.saturating_add(SPARE) > free {
        return Err(Failure::Here(format!(
            "the disk of the data directory has {} MiB free; {} MiB are needed",
            free >> 20,
            needed.saturating_add(SPARE) >> 20
        )));
    }
    Ok(())
}

enum Chunk {
    Data(Bytes),
    /// CRC-32C of the file that ends here.
    End(u32),
}

/// Writes what comes into `files`, one after the other, each synced; ends with an error unless all become whole.
fn write_files(
    dir: PathBuf,
    files: Vec<File>,
    whole: Arc<Mutex<HashMap<String, u64>>>,
    permit: Arc<OwnedSemaphorePermit>,
) -> (mpsc::Sender<Chunk>, JoinHandle<io::Result<()>>) {
    let (tx, mut rx) = mpsc::channel(CHUNKS_AHEAD);
    let written = tokio::task::spawn_blocking(move || {
        // Until this ends nobody else may use the directory.
        let _receiving = permit;
        for file in files {
            write_file(&dir, &file, &mut rx)?;
            lock(&whole).insert(file.name, file.size);
            fail::point("receive-file");
        }
        match rx.blocking_recv() {
            None => Ok(()),
            Some(_) => Err(io::Error::other("more came than was offered")),
        }
    });
    (tx, written)
}

fn write_file(dir: &Path, file: &File, chunks: &mut mpsc::Receiver<Chunk>) -> io::Result<()> {
    let wrong = |what: &str| io::Error::other(format!("file {}: {what}", file.name));
    let mut to = fs::File::create_new(dir.join(&file.name))?;
    let (mut crc, mut left) = (0, file.size);
    loop {
        match chunks.blocking_recv() {
            None => return Err(wrong("it did not come whole")),
            Some(Chunk::Data(bytes)) => {
                let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                left = left
                    .checked_sub(length)
                    .ok_or_else(|| wrong("it is longer than it was said to be"))?;
                crc = crc32c::crc32c_append(crc, &bytes);
                to.write_all(&bytes)?;
            }
            Some(Chunk::End(theirs)) if left == 0 && theirs == crc => return to.sync_all(),
            Some(Chunk::End(_)) => return Err(wrong("its checksum or size does not fit")),
        }
    }
}
