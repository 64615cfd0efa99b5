//! A snapshot on its way to a member: a connection of its own, so that neither heartbeats nor log entries wait for it.
//!
//! ```text
//! sender                                    receiver
//! Offer: vote, what it covers, files ─────►
//!                                  ◄─────── Have: files it has of that name and size, each with its digest
//! Take: those of them that are the same ──►
//! per file: data …, FileEnd(crc32c) ──────►  written, checked, synced
//! Done ───────────────────────────────────►  linked, opened, claimed, installed
//!                                  ◄─────── Answer: its vote
//! ```
//! Either side says `Working` while the other waits for it; the receiver may end it with `Refused` or `Busy` at any time.
//!
//! Invariants
//! - Nothing that a peer says becomes a path unless it is a name that RocksDB itself gives to files.
//! - There is a limit on silence, none on the whole: the transfer may take as long as it makes progress.
//! - Memory is bounded by a few chunks, whatever the size of the snapshot.
//! - Names say nothing: the table files of two nodes have the same names. A file is reused only if its SHA-256 is the
//!   sender's.

mod receive;
mod send;

use std::{
    collections::HashSet,
    future::poll_fn,
    io,
    path::Path,
    pin::Pin,
    task::{Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_sink::Sink;
use futures_util::StreamExt;
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

pub(crate) use self::{
    receive::{Incoming, Receiver},
    send::{SendError, send},
};
use super::{
    frame::{Frame, Kind},
    peer::{self, Connection},
};
use crate::{
    keys::FORMAT,
    proto::{
        LogIdProto, ProtoError, StoredMembershipProto, VoteProto, log_id_of, log_id_proto, vote_of,
    },
    state::snapshot::Meta,
    types::Vote,
};

/// Longest silence of the other side.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often to say that one is still working.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// Bytes of a file in one frame.
const CHUNK: usize = 512 << 10;
/// Chunks between disk and network.
const CHUNKS_AHEAD: usize = 4;
/// Files of one snapshot; 64 MiB each are 6 TB.
const MAX_FILES: usize = 100_000;

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    name: String,
    size: u64,
}

/// What is sent.
#[derive(Clone, Debug, PartialEq)]
struct Offer {
    vote: Vote,
    meta: Meta,
    files: Vec<File>,
}

/// Why an offer is not taken.
#[derive(Debug, thiserror::Error)]
enum OfferError {
    #[error(transparent)]
    Proto(#[from] ProtoError),
    #[error("the snapshot has layout {0}, which this version does not know")]
    Layout(u32),
    #[error("the snapshot has a file with a name that is none of a database's")]
    Name,
    #[error("the snapshot's list of files makes no sense")]
    Files,
}

#[derive(Clone, PartialEq, Message)]
struct FileProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "2")]
    size: u64,
}

#[derive(Clone, PartialEq, Message)]
struct OfferProto {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteProto>,
    /// [`FORMAT`] of the database.
    #[prost(uint32, tag = "2")]
    format: u32,
    #[prost(message, optional, tag = "3")]
    last: Option<LogIdProto>,
    #[prost(message, optional, tag = "4")]
    membership: Option<StoredMembershipProto>,
    #[prost(message, repeated, tag = "5")]
    files: Vec<FileProto>,
}

impl From<&Offer> for OfferProto {
    fn from(offer: &Offer) -> Self {
        let file = |file: &File| FileProto {
            name: file.name.clone(),
            size: file.size,
        };
        Self {
            vote: Some((&offer.vote).into()),
            format: FORMAT,
            last: log_id_proto(offer.meta.last_log_id.as_ref()),
            membership: Some((&offer.meta.last_membership).into()),
            files: offer.files.iter().map(file).collect(),
        }
    }
}

impl TryFrom<OfferProto> for Offer {
    type Error = OfferError;

    fn try_from(proto: OfferProto) -> Result<Self, OfferError> {
        if proto.format != FORMAT {
            return Err(OfferError::Layout(proto.format));
        }
        let membership = proto.membership.ok_or(ProtoError::Missing("membership"))?;
        let names: HashSet<_> = proto.files.iter().map(|file| file.name.as_str()).collect();
        if !names.iter().all(|name| is_database_file(name)) {
            return Err(OfferError::Name);
        }
        let total = proto
            .files
            .iter()
            .try_fold(0u64, |total, file| total.checked_add(file.size));
        let whole = names.len() == proto.files.len() && names.contains("CURRENT");
        if !whole || names.len() > MAX_FILES || total.is_none() {
            return Err(OfferError::Files);
        }
        let file = |file: FileProto| File {
            name: file.name,
            size: file.size,
        };
        Ok(Self {
            vote: vote_of(proto.vote)?,
            meta: Meta {
                last_log_id: log_id_of(proto.last),
                last_membership: membership.try_into()?,
            },
            files: proto.files.into_iter().map(file).collect(),
        })
    }
}

/// Whether RocksDB gives a file this name. No separator, no dots but one, nothing that is not ASCII.
fn is_database_file(name: &str) -> bool {
    let number =
        |text: &str| (1..=20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let numbered = ["MANIFEST-", "OPTIONS-"]
        .iter()
        .filter_map(|prefix| name.strip_prefix(prefix))
        .chain(
            [".sst", ".log"]
                .iter()
                .filter_map(|suffix| name.strip_suffix(suffix)),
        )
        .any(number);
    numbered || matches!(name, "CURRENT" | "IDENTITY")
}

/// From sender to receiver, in frames of kind [`Kind::Snapshot`].
#[derive(Clone, PartialEq, Message)]
struct PushMessage {
    #[prost(oneof = "Push", tags = "1, 2, 3, 4, 5")]
    push: Option<Push>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Push {
    #[prost(message, tag = "1")]
    Offer(OfferProto),
    #[prost(message, tag = "2")]
    Take(Take),
    /// The file is complete; CRC-32C of its content.
    #[prost(fixed32, tag = "3")]
    FileEnd(u32),
    /// All files are complete.
    #[prost(bool, tag = "4")]
    Done(bool),
    #[prost(bool, tag = "5")]
    Working(bool),
}

/// Positions, in the offer, of the files that are not sent because the receiver has them.
#[derive(Clone, PartialEq, Message)]
struct Take {
    #[prost(uint32, repeated, tag = "1")]
    reuse: Vec<u32>,
}

/// From receiver to sender, in frames of kind [`Kind::SnapshotReply`].
#[derive(Clone, PartialEq, Message)]
struct AnswerMessage {
    #[prost(oneof = "Answer", tags = "1, 2, 3, 4, 5")]
    answer: Option<Answer>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Answer {
    #[prost(message, tag = "1")]
    Have(Have),
    #[prost(bool, tag = "2")]
    Working(bool),
    /// It is installed, or not wanted because of this vote.
    #[prost(message, tag = "3")]
    Vote(VoteProto),
    /// Why it is not installed, for people to read.
    #[prost(string, tag = "4")]
    Refused(String),
    /// Another snapshot is being received.
    #[prost(bool, tag = "5")]
    Busy(bool),
}

#[derive(Clone, PartialEq, Message)]
struct Have {
    #[prost(message, repeated, tag = "1")]
    files: Vec<HaveFile>,
}

#[derive(Clone, PartialEq, Message)]
struct HaveFile {
    /// Position in the offer.
    #[prost(uint32, tag = "1")]
    position: u32,
    /// SHA-256.
    #[prost(bytes = "vec", tag = "2")]
    digest: Vec<u8>,
}

fn push_frame(push: Push) -> Frame {
    peer::frame(Kind::Snapshot, &PushMessage { push: Some(push) })
}

fn data_frame(body: Bytes) -> Frame {
    Frame {
        kind: Kind::SnapshotData,
        flags: 0,
        seq: 0,
        body,
    }
}

fn answer_frame(answer: Answer) -> Frame {
    let answer = Some(answer);
    peer::frame(Kind::SnapshotReply, &AnswerMessage { answer })
}

fn answer_of(frame: Frame) -> io::Result<Answer> {
    if frame.kind != Kind::SnapshotReply {
        return Err(io::Error::other("a frame that is no answer"));
    }
    let message = AnswerMessage::decode(frame.body).map_err(io::Error::other)?;
    // What a newer version says beyond this is no reason to wait longer.
    message
        .answer
        .ok_or_else(|| io::Error::other("an answer of unknown kind"))
}

/// SHA-256 of a file. Blocks.
fn digest(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = io::Read::read(&mut file, &mut buffer)?;
        match buffer.get(..read) {
            Some([]) | None => return Ok(hash.finalize().to_vec()),
            Some(bytes) => hash.update(bytes),
        }
    }
}

/// A connection on which silence has a limit.
struct Talk(Connection);

impl Talk {
    async fn next(&mut self) -> io::Result<Frame> {
        timeout(PATIENCE, self.0.next())
            .await?
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?
    }

    async fn send(&mut self, frame: Frame) -> io::Result<()> {
        timeout(PATIENCE, peer::send(&mut self.0, frame)).await?
    }

    /// Sends `frame`, listening meanwhile. Anything heard but a sign of life ends it.
    async fn send_or_hear(&mut self, frame: Frame) -> io::Result<Option<Answer>> {
        let mut frame = Some(frame);
        loop {
            let connection = &mut self.0;
            let step = poll_fn(|cx| {
                match connection.poll_next_unpin(cx)? {
                    Poll::Ready(Some(heard)) => return Poll::Ready(Ok(Some(heard))),
                    Poll::Ready(None) => {
                        return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof)));
                    }
                    Poll::Pending => {}
                }
                if frame.is_some() {
                    ready!(Pin::new(&mut *connection).poll_ready(cx))?;
                    if let Some(frame) = frame.take() {
                        Pin::new(&mut *connection).start_send(frame)?;
                    }
                }
                ready!(Pin::new(&mut *connection).poll_flush(cx))?;
                Poll::Ready(Ok(None))
            });
            let heard = timeout(PATIENCE, step).await??;
            let answer = heard.map(answer_of).transpose()?;
            if !matches!(answer, Some(Answer::Working(_))) {
                return Ok(answer);
            }
        }
    }

    /// Waits for `work`, telling the other side now and then that it goes on; the other side has nothing to say
    /// meanwhile.
    async fn working<T>(
        &mut self,
        sign_of_life: impl Fn() -> Frame,
        work: impl Future<Output = T>,
    ) -> io::Result<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                heard = self.0.next() => match heard {
                    Some(frame) => is_sign_of_life(&frame?)?,
                    None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                },
                () = tokio::time::sleep(SIGN_OF_LIFE) => self.send(sign_of_life()).await?,
            }
        }
    }
}

fn is_sign_of_life(frame: &Frame) -> io::Result<()> {
    let push = PushMessage {
        push: Some(Push::Working(true)),
    };
    let answer = AnswerMessage {
        answer: Some(Answer::Working(true)),
    };
    let fits = match frame.kind {
        Kind::Snapshot => frame.body == push.encode_to_vec(),
        Kind::SnapshotReply => frame.body == answer.encode_to_vec(),
        Kind::SnapshotData
        | Kind::Hello
        | Kind::Welcome
        | Kind::Append
        | Kind::AppendReply
        | Kind::Call
        | Kind::Reply => false,
    };
    if fits {
        Ok(())
    } else {
        Err(io::Error::other("a frame out of turn"))
    }
}

#[cfg(test)]
mod tests;
