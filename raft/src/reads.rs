//! Batched read indexes: however many readers there are, one probe at a time.
//!
//! In: readers. Out: a log index that covers every write acknowledged before the reader came.
//!
//! Invariants
//! - A reader is answered by a probe that *began* after it came; one that arrives during a probe joins the next.
//! - Waiting readers are bounded.
//!
//! Source: Ongaro's dissertation §6.4.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    figures::{Probe, count, seconds},
    tasks::Tasks,
};

/// Readers that may wait, and as many again whom a probe is for; more get `NoQuorum`.
const MAX_WAITING: usize = 65_536;

/// Why there is no index now. Trying again is right for all but `Fatal`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProbeError {
    /// No leader is known, or the one that was asked does not lead.
    #[error("no leader")]
    NoLeader,
    /// The leader was not confirmed by a quorum in time, or does not answer.
    #[error("no quorum in time")]
    NoQuorum,
    /// Raft has stopped.
    #[error("Raft failed: {0}")]
    Fatal(String),
}

type Answer = Result<u64, ProbeError>;

/// Joins readers into probes.
#[derive(Clone)]
pub(crate) struct ReadBatcher(mpsc::Sender<oneshot::Sender<Answer>>);

impl ReadBatcher {
    /// Starts the task that runs `probe`, each at most `limit`.
    pub(crate) fn spawn<F>(
        probe: impl Fn() -> F + Send + Sync + 'static,
        limit: Duration,
        figures: &'static Probe,
        tasks: &Tasks,
    ) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let (tx, rx) = mpsc::channel(MAX_WAITING);
        tasks.vital("read indexes", run(rx, probe, limit, figures));
        Self(tx)
    }

    /// An index from a probe that begins after this call.
    pub(crate) async fn read(&self) -> Answer {
        let (tx, rx) = oneshot::channel();
        self.0.try_send(tx).map_err(|_| ProbeError::NoQuorum)?;
        rx.await.unwrap_or(Err(ProbeError::NoLeader))
    }
}

async fn run<F>(
    mut readers: mpsc::Receiver<oneshot::Sender<Answer>>,
    probe: impl Fn() -> F + Send + Sync,
    limit: Duration,
    figures: &Probe,
) where
    F: Future<Output = Answer> + Send,
{
    let mut batch = Vec::new();
    while readers.recv_many(&mut batch, MAX_WAITING).await > 0 {
        // Some may have given up.
        batch.retain(|reader| !reader.is_closed());
        if batch.is_empty() {
            continue;
        }
        let began = Instant::now();
        let answer = timeout(limit, probe())
            .await
            .unwrap_or(Err(ProbeError::NoQuorum));
        match &answer {
            Ok(_) => {
                figures.time.record(seconds(began.elapsed()));
                figures.readers.record(count(batch.len()));
            }
            Err(_) => figures.failed.increment(1),
        }
        for reader in batch.drain(..) {
            // The reader may have given up.
            drop(reader.send(answer.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn a_reader_that_comes_during_a_probe_gets_the_next_one() {
        let (probes, go) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
        let (theirs, wait) = (Arc::clone(&probes), Arc::clone(&go));
        let batcher = ReadBatcher::spawn(
            move || {
                let number = theirs.fetch_add(1, Ordering::SeqCst) + 1;
                let wait = Arc::clone(&wait);
                async move {
                    wait.notified().await;
                    Ok(number)
                }
            },
            Duration::from_secs(5),
            &crate::figures::figures().quorum_probe,
            &Tasks::default(),
        );
        let reader = || {
            let batcher = batcher.clone();
            tokio::spawn(async move { batcher.read().await })
        };
        let first = reader();
        while probes.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let late: Vec<_> = (0..10).map(|_| reader()).collect();
        // Lets the late readers queue up while the first probe still runs.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        go.notify_one();
        assert_eq!(first.await.unwrap(), Ok(1));
        go.notify_one();
        for reader in late {
            assert_eq!(reader.await.unwrap(), Ok(2));
        }
        assert_eq!(probes.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_probe_that_hangs_is_given_up() {
        let batcher = ReadBatcher::spawn(
            std::future::pending::<Answer>,
            Duration::from_millis(50),
            &crate::figures::figures().quorum_probe,
            &Tasks::default(),
        );
        assert_eq!(batcher.read().await, Err(ProbeError::NoQuorum));
    }
}
