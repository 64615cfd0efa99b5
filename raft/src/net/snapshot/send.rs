//! The sending side.

use std::{io, path::Path, sync::Arc};

use bytes::{Bytes, BytesMut};
use tokio::{sync::mpsc, time::timeout};

use super::{
    Answer, CHUNK, CHUNKS_AHEAD, File, Have, Offer, PATIENCE, Push, Take, Talk, answer_of,
    data_frame, digest, is_database_file, push_frame,
};
use crate::{
    net::{control::chain, peer::Dialer, wire::Purpose},
    state::snapshot::{Counters, Kept, add, blocking},
    types::Vote,
};

/// Why a snapshot was not sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// Worth another try later: no connection, or the other side cannot take it now.
    #[error("{0}")]
    Unreachable(String),
    /// Worth another try at once.
    #[error("sending the snapshot failed")]
    Broken(#[from] io::Error),
}

/// Sends `kept` to member `id` in the name of a leader with this vote, and gives the vote that it answers with.
pub(crate) async fn send(
    dialer: &Dialer,
    id: u64,
    vote: Vote,
    kept: Arc<Kept>,
    counters: &Counters,
) -> Result<Vote, SendError> {
    let opened = dialer.open(id, Purpose::Snapshot).await;
    let connection = opened.map_err(|error| SendError::Unreachable(chain(&error)))?;
    let mut talk = Talk(connection);
    let path = kept.path.clone();
    let files = blocking(move || files_of(&path)).await?;
    let offer = Offer {
        vote,
        meta: kept.meta.clone(),
        files,
    };
    talk.send(push_frame(Push::Offer((&offer).into()))).await?;
    let answer = hear(&mut talk).await?;
    let Answer::Have(have) = answer else {
        return outcome(answer);
    };
    let comparing = same_files(Arc::clone(&kept), offer.files.clone(), have);
    let reuse = talk
        .working(|| push_frame(Push::Working(true)), comparing)
        .await??;
    let mut chunks = read_files(kept, &offer.files, &reuse);
    talk.send(push_frame(Push::Take(Take { reuse }))).await?;
    // A disk that does not answer must not hang this for ever.
    while let Some(chunk) = timeout(PATIENCE, chunks.recv())
        .await
        .map_err(io::Error::from)?
    {
        let frame = match chunk? {
            Chunk::Data(bytes) => {
                add(
                    &counters.sent_bytes,
                    u64::try_from(bytes.len()).unwrap_or(0),
                );
                data_frame(bytes)
            }
            Chunk::End(crc) => push_frame(Push::FileEnd(crc)),
        };
        if let Some(answer) = talk.send_or_hear(frame).await? {
            return outcome(answer);
        }
    }
    if let Some(answer) = talk.send_or_hear(push_frame(Push::Done(true))).await? {
        return outcome(answer);
    }
    outcome(hear(&mut talk).await?)
}

/// The next answer that is more than a sign of life.
async fn hear(talk: &mut Talk) -> io::Result<Answer> {
    loop {
        let answer = answer_of(talk.next().await?)?;
        if !matches!(answer, Answer::Working(_)) {
            return Ok(answer);
        }
    }
}

fn outcome(answer: Answer) -> Result<Vote, SendError> {
    match answer {
        Answer::Vote(vote) => Ok(vote.into()),
        Answer::Refused(why) => Err(SendError::Unreachable(format!("it was refused: {why}"))),
        Answer::Busy(_) => Err(SendError::Unreachable(
            "another one is being received there".to_owned(),
        )),
        Answer::Have(_) | Answer::Working(_) => {
            Err(SendError::Broken(io::Error::other("an answer out of turn")))
        }
    }
}

/// What there is to send. The list is short on what RocksDB writes for itself, such as its log.
fn files_of(path: &Path) -> io::Result<Vec<File>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if let Some(name) = entry
            .file_name()
            .to_str()
            .filter(|name| is_database_file(name))
        {
            files.push(File {
                name: name.to_owned(),
                size: entry.metadata()?.len(),
            });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Positions of the files that the other side has just so.
async fn same_files(kept: Arc<Kept>, files: Vec<File>, have: Have) -> io::Result<Vec<u32>> {
    blocking(move || {
        let mut same = Vec::new();
        for theirs in have.files {
            let position = usize::try_from(theirs.position).unwrap_or(usize::MAX);
            let file = files
                .get(position)
                .ok_or_else(|| io::Error::other("a file that was not offered"))?;
            if digest(&kept.path.join(&file.name))? == theirs.digest {
                same.push(theirs.position);
            }
        }
        Ok(same)
    })
    .await
}

enum Chunk {
    Data(Bytes),
    /// CRC-32C of the file that ends here.
    End(u32),
}

/// Reads the files that are to be sent, one after the other, a few chunks ahead of who takes them.
fn read_files(kept: Arc<Kept>, files: &[File], reuse: &[u32]) -> mpsc::Receiver<io::Result<Chunk>> {
    let (tx, rx) = mpsc::channel(CHUNKS_AHEAD);
    let wanted: Vec<File> = (0u32..)
        .zip(files)
        .filter(|(position, _)| !reuse.contains(position))
        .map(|(_, file)| file.clone())
        .collect();
    tokio::task::spawn_blocking(move || {
        for file in wanted {
            if let Err(error) = read_file(&kept.path, &file, &tx) {
                // Nobody takes it: the other side has gone.
                drop(tx.blocking_send(Err(error)));
                return;
            }
        }
    });
    rx
}

fn read_file(dir: &Path, file: &File, tx: &mpsc::Sender<io::Result<Chunk>>) -> io::Result<()> {
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    let mut from = std::fs::File::open(dir.join(&file.name))?;
    let (mut crc, mut left) = (0, file.size);
    while left > 0 {
        let mut chunk = BytesMut::zeroed(CHUNK.min(usize::try_from(left).unwrap_or(CHUNK)));
        io::Read::read_exact(&mut from, &mut chunk)?;
        left -= u64::try_from(chunk.len()).unwrap_or(left);
        crc = crc32c::crc32c_append(crc, &chunk);
        tx.blocking_send(Ok(Chunk::Data(chunk.freeze())))
            .map_err(gone)?;
    }
    tx.blocking_send(Ok(Chunk::End(crc))).map_err(gone)
}
