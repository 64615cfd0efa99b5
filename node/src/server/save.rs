//! Saving a snapshot: the state of this node as a file, streamed to a client or written to a directory.
//!
//! Invariants
//! - Memory does not grow with the data: a held checkpoint is read twice (tar wants to know the length before), and what
//!   the reader has not taken yet is bounded.
//! - Nothing is sent before the HSM has shown that it can seal the checksums.
//! - Packing takes half a processor at most for each snapshot, so that requests keep theirs.
//! - A client that takes nothing for [`STALL`] is given up, and the checkpoint with it.

use std::{
    io::{self, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use strongroom_api::ports::{SnapshotError, Stream};
use strongroom_raft::Checkpoint;
use strongroom_seal::{barrier::core_key, config::SealConfig, hsm::Hsm};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, mpsc},
};

use super::{VERSION, bundle::SEAL_CONFIG, chain, node::Running};
use crate::{
    clock,
    snapshot::{
        archive::{self, Configuration, Meta, Own, PutRow, SUMS_PATH, SealKeyName, Server},
        rows,
    },
};

/// Snapshots that are taken at the same time: each holds files that the state would give back.
pub(crate) const AT_ONCE: usize = 2;
/// Longest time a reader may take nothing.
const STALL: Duration = Duration::from_secs(60);
/// Bytes handed over at a time, and how many such pieces may wait.
const PIECE: usize = 128 << 10;
const PIECES: usize = 4;
/// Longest rest after a piece.
const MAX_REST: Duration = Duration::from_millis(10);

/// A snapshot that is ready to be written.
pub(crate) struct Snapshot {
    checkpoint: Checkpoint,
    meta: Meta,
    hsm: Hsm,
    _slot: OwnedSemaphorePermit,
}

impl Snapshot {
    /// Takes one of this node's state as it is now.
    pub(crate) async fn take(hsm: &Hsm, running: &Running) -> Result<Self, SnapshotError> {
        let unavailable = |why: String| SnapshotError::Unavailable(why);
        let slot = Arc::clone(&running.saves)
            .try_acquire_owned()
            .map_err(|_| unavailable("too many snapshots are being taken; try again".to_owned()))?;
        hsm.wrap_core(SUMS_PATH, b"probe")
            .await
            .map_err(|error| unavailable(chain(&error)))?;
        let state = running.raft.state();
        let facts = Own {
            software: VERSION.to_owned(),
            created: clock::rfc3339(clock::now_ms()),
            cluster_id: super::cluster_uuid(&running.cluster_id),
            cluster_name: running.cluster_name.clone(),
            seal_type: "pkcs11".to_owned(),
            ..Own::default()
        };
        let taken = tokio::task::spawn_blocking(move || {
            let checkpoint = state.checkpoint().map_err(|error| chain(&error))?;
            let meta = describe(&checkpoint, facts).map_err(|error| error.to_string())?;
            // The slot too: a client that goes away meanwhile makes no room before the checkpoint is gone.
            Ok((checkpoint, meta, slot))
        });
        let (checkpoint, meta, slot) = taken
            .await
            .map_err(|error| unavailable(error.to_string()))?
            .map_err(unavailable)?;
        Ok(Self {
            checkpoint,
            meta,
            hsm: hsm.clone(),
            _slot: slot,
        })
    }

    /// Names it.
    pub(crate) fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Writes the file. Blocks, and needs the runtime for the HSM.
    pub(crate) fn write<W: Write>(&self, out: W, runtime: &Handle) -> io::Result<W> {
        let each = |put: &mut PutRow<'_>| {
            let mut pace = Pace::new();
            for row in self.checkpoint.rows()? {
                let (key, mod_index, value) = row?;
                put(&key, mod_index, &value)?;
                pace.keep(key.len() + value.len());
            }
            Ok(())
        };
        let seal = |sums: &[u8]| {
            runtime
                .block_on(self.hsm.wrap_core(SUMS_PATH, sums))
                .map_err(io::Error::other)
        };
        archive::write(out, &self.meta, each, seal)
    }

    /// The file as it is written.
    pub(crate) fn stream(self) -> Stream {
        let (pieces, mut taken) = mpsc::channel(PIECES);
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || {
            let out = ToReader {
                pieces: pieces.clone(),
                runtime: runtime.clone(),
                piece: BytesMut::with_capacity(PIECE),
            };
            let written = self.write(out, &runtime).and_then(|mut out| out.flush());
            if let Err(error) = written {
                tracing::warn!(%error, "a snapshot was not sent to its end");
                // The reader must not take what it has for the whole.
                let _ = runtime.block_on(tokio::time::timeout(STALL, pieces.send(Err(error))));
            }
        });
        Stream::from_stream(futures_util::stream::poll_fn(move |context| {
            taken.poll_recv(context)
        }))
    }
}

/// Rests as long as it has worked: the rows are read, hashed and packed as fast as a processor can, which all requests share.
struct Pace {
    bytes: usize,
    since: Instant,
}

impl Pace {
    fn new() -> Self {
        Self {
            bytes: 0,
            since: Instant::now(),
        }
    }

    /// After `bytes` more.
    fn keep(&mut self, bytes: usize) {
        if let Some(rest) = self.rest(bytes, Instant::now()) {
            std::thread::sleep(rest);
            self.since = Instant::now();
        }
    }

    fn rest(&mut self, bytes: usize, now: Instant) -> Option<Duration> {
        self.bytes += bytes;
        if self.bytes < PIECE {
            return None;
        }
        self.bytes = 0;
        // Longer, it has waited for its reader or the disk.
        Some((now - self.since).min(MAX_REST))
    }
}

/// What `meta.json` says, from one pass over the rows.
fn describe(checkpoint: &Checkpoint, facts: Own) -> io::Result<Meta> {
    let (mut length, mut count) = (rows::Length::empty(), 0);
    let seal_config = core_key(SEAL_CONFIG);
    let mut seal_keys = Vec::new();
    let mut pace = Pace::new();
    for row in checkpoint.rows()? {
        let (key, _, value) = row?;
        length.add(&key, &value);
        pace.keep(key.len() + value.len());
        count += 1;
        if *key == *seal_config {
            let config = SealConfig::from_json(&value).map_err(io::Error::other)?;
            let name = |key: &strongroom_seal::config::SealKey| SealKeyName {
                version: key.version,
                label: key.label.clone(),
                fingerprint: key.fingerprint.clone().unwrap_or_default(),
            };
            seal_keys = config.keys().iter().map(name).collect();
        }
    }
    let (members, configuration_index) = checkpoint.members();
    let server = |(info, voter): (strongroom_raft::PeerInfo, bool)| Server {
        suffrage: u32::from(!voter),
        id: info.name,
        address: info.cluster_addr,
    };
    let (index, term) = (checkpoint.index(), checkpoint.term());
    let meta = Meta {
        id: format!("{term}-{index}-{}", clock::now_ms()),
        index,
        term,
        configuration: Configuration {
            servers: members.into_iter().map(server).collect(),
        },
        configuration_index,
        size: length.0,
        strongroom: Own {
            seal_keys,
            rows: count,
            puts: checkpoint.put_count(),
            ..facts
        },
        ..Meta::default()
    };
    Ok(meta.stamp())
}

/// Hands bytes to an async reader, waiting for it within limits.
struct ToReader {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    runtime: Handle,
    piece: BytesMut,
}

impl Write for ToReader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = self.piece.split().freeze();
        let sending = self.pieces.send(Ok(piece));
        match self
            .runtime
            .block_on(async { tokio::time::timeout(STALL, sending).await })
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the client went away",
            )),
            Err(_elapsed) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client takes nothing",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_time_is_rest() {
        let mut pace = Pace::new();
        let after = |ms| pace.since + Duration::from_millis(ms);
        let (soon, late) = (after(3), after(3000));
        assert_eq!(pace.rest(PIECE - 1, soon), None);
        assert_eq!(pace.rest(1, soon), Some(Duration::from_millis(3)));
        assert_eq!(pace.rest(PIECE - 1, late), None);
        assert_eq!(pace.rest(9 * PIECE, late), Some(MAX_REST));
    }

    #[tokio::test]
    async fn a_reader_that_went_away_ends_the_writer() {
        let (pieces, taken) = mpsc::channel(PIECES);
        let mut out = ToReader {
            pieces,
            runtime: Handle::current(),
            piece: BytesMut::new(),
        };
        drop(taken);
        let written = tokio::task::spawn_blocking(move || out.write(&[0; PIECE + 1]));
        let error = written.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
