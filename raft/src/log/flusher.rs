//! The one thread that syncs the log: group commit with no timer.
//!
//! In: callbacks, each naming the write batch it waits for. Out: one `flush_wal(sync)` for all that wait, then their
//! callbacks; what arrives during a sync waits for the next one.
//!
//! Invariants
//! - A callback taken before the sync began is completed by that sync, never earlier.
//! - A failed sync is never retried: the kernel may have dropped the dirty pages, so a later success proves nothing.
//!   Everything waiting fails, everything later fails, and the node must stop.

use std::{
    io,
    panic::AssertUnwindSafe,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

use openraft::storage::IOFlushed;
use tokio::sync::{oneshot, watch};

use super::witness::Witness;
use crate::{
    figures::{count, figures, seconds},
    types::TypeConfig,
    vitals::SyncTimes,
};

/// Makes everything written so far durable, or says why not.
pub(crate) type Sync = Box<dyn FnMut() -> Result<(), String> + Send>;

/// How far the log is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Every write batch up to this number is on disk.
    pub(crate) batches: u64,
    /// Set once, for ever, when a sync failed.
    pub(crate) failed: Option<String>,
}

enum Waiter {
    Append(IOFlushed<TypeConfig>),
    Sync(oneshot::Sender<io::Result<()>>),
}

impl Waiter {
    fn complete(self, result: io::Result<()>) {
        match self {
            Self::Append(callback) => callback.io_completed(result),
            // The receiver is gone only when its caller was cancelled: nobody is left to tell.
            Self::Sync(tx) => drop(tx.send(result)),
        }
    }
}

#[derive(Default)]
struct Queue {
    waiters: Vec<Waiter>,
    /// The last write batch that somebody waits for.
    upto: u64,
    stop: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    progress: watch::Sender<Progress>,
}

impl Shared {
    /// From here on nothing is durable any more.
    fn fail(&self, why: &str) {
        tracing::error!("{why}");
        self.progress
            .send_modify(|progress| progress.failed = Some(why.to_owned()));
        let waiters = {
            let mut queue = lock(&self.queue);
            queue.stop = true;
            std::mem::take(&mut queue.waiters)
        };
        complete_all(waiters, Some(why));
    }
}

/// Handle of the flusher thread.
pub(crate) struct Flusher {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Flusher {
    /// Starts the thread. `batches` are already durable.
    pub(crate) fn start(
        sync: Sync,
        witness: Witness,
        batches: u64,
        times: Arc<SyncTimes>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            progress: watch::Sender::new(Progress {
                batches,
                failed: None,
            }),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("raft-flush".to_owned())
            .spawn(move || {
                let guarded = AssertUnwindSafe(|| run(&theirs, sync, &witness, &times));
                if std::panic::catch_unwind(guarded).is_err() {
                    // Nobody would be told that its entries are durable, for ever.
                    theirs.fail("the thread that syncs the Raft log panicked");
                }
            })?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Completes `callback` once batch number `batch` is durable.
    pub(crate) fn append(&self, batch: u64, callback: IOFlushed<TypeConfig>) {
        self.push(batch, Waiter::Append(callback));
    }

    /// Gets a result once batch number `batch` is durable.
    pub(crate) fn sync(&self, batch: u64) -> oneshot::Receiver<io::Result<()>> {
        let (tx, rx) = oneshot::channel();
        self.push(batch, Waiter::Sync(tx));
        rx
    }

    fn push(&self, batch: u64, waiter: Waiter) {
        let mut queue = lock(&self.shared.queue);
        if queue.stop {
            drop(queue);
            waiter.complete(Err(io::Error::other("the log is closed")));
            return;
        }
        queue.upto = queue.upto.max(batch);
        queue.waiters.push(waiter);
        drop(queue);
        self.shared.wake.notify_one();
    }

    /// Nothing is durable any more, for a reason that was found elsewhere.
    pub(crate) fn fail(&self, why: &str) {
        self.shared.fail(why);
    }

    /// How far the log is durable, now and later.
    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// Syncs what is waiting and ends the thread. Blocks; calling it again does nothing.
    pub(crate) fn stop(&self) {
        lock(&self.shared.queue).stop = true;
        self.shared.wake.notify_one();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the log flusher thread panicked");
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(shared: &Shared, mut sync: Sync, witness: &Witness, times: &SyncTimes) {
    let mut witness_works = true;
    while let Some((waiters, upto)) = next_round(shared) {
        let failed = shared.progress.borrow().failed.clone();
        if let Some(why) = failed {
            complete_all(waiters, Some(&why));
            continue;
        }
        let began = Instant::now();
        times.begin();
        let outcome = sync();
        let took = began.elapsed();
        times.end(took);
        match outcome {
            Ok(()) => {
                figures().log_sync.record(seconds(took));
                figures().log_sync_appends.record(count(waiters.len()));
                if let Err(error) = witness.record(upto)
                    && std::mem::take(&mut witness_works)
                {
                    tracing::warn!(%error, "the log's witness file cannot be written; damage of the log's tail may go unnoticed");
                }
                // It may have been failed from elsewhere meanwhile.
                let mut failed = None;
                shared.progress.send_modify(|p| {
                    failed.clone_from(&p.failed);
                    if failed.is_none() {
                        p.batches = p.batches.max(upto);
                    }
                });
                complete_all(waiters, failed.as_deref());
            }
            Err(error) => {
                let why = format!("syncing the Raft log failed: {error}");
                tracing::error!("{why}");
                shared
                    .progress
                    .send_modify(|p| p.failed = Some(why.clone()));
                complete_all(waiters, Some(&why));
            }
        }
    }
}

/// What waits now, and the last batch that is waited for; blocks until there is something. `None`: told to stop.
fn next_round(shared: &Shared) -> Option<(Vec<Waiter>, u64)> {
    let mut queue = lock(&shared.queue);
    while queue.waiters.is_empty() {
        if queue.stop {
            return None;
        }
        queue = shared
            .wake
            .wait(queue)
            .unwrap_or_else(PoisonError::into_inner);
    }
    Some((std::mem::take(&mut queue.waiters), queue.upto))
}

fn complete_all(waiters: Vec<Waiter>, failed: Option<&str>) {
    for waiter in waiters {
        waiter.complete(match failed {
            None => Ok(()),
            Some(why) => Err(io::Error::other(why.to_owned())),
        });
    }
}

/// A panic elsewhere does not make the plain data behind these locks inconsistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A flusher whose syncs wait for permission and then give this result.
    fn flusher(dir: &std::path::Path) -> (Flusher, mpsc::Sender<Result<(), String>>) {
        let (witness, _) = Witness::open(dir).unwrap();
        let (tx, rx) = mpsc::channel();
        let flusher = Flusher::start(
            Box::new(move || rx.recv().unwrap_or(Ok(()))),
            witness,
            0,
            Arc::default(),
        )
        .unwrap();
        (flusher, tx)
    }

    #[tokio::test]
    async fn one_sync_serves_all_who_came_before_it_and_nobody_after() {
        let dir = tempfile::tempdir().unwrap();
        let (flusher, syncs) = flusher(dir.path());
        let first = flusher.sync(1);
        // The thread has taken the first waiter when the queue is empty.
        while !lock(&flusher.shared.queue).waiters.is_empty() {
            tokio::task::yield_now().await;
        }
        let mut later: Vec<_> = (2..10).map(|batch| flusher.sync(batch)).collect();
        syncs.send(Ok(())).unwrap();
        first.await.unwrap().unwrap();
        assert_eq!(flusher.progress().borrow().batches, 1);
        assert!(later.iter_mut().all(|waiter| waiter.try_recv().is_err()));
        syncs.send(Ok(())).unwrap();
        for waiter in later {
            waiter.await.unwrap().unwrap();
        }
        assert_eq!(flusher.progress().borrow().batches, 9);
        let (_, said) = Witness::open(dir.path()).unwrap();
        assert_eq!(said, super::super::witness::Testimony::AtLeast(9));
        drop(syncs);
    }

    #[tokio::test]
    async fn a_panic_while_syncing_is_told_and_nobody_waits_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (witness, _) = Witness::open(dir.path()).unwrap();
        let sync = Box::new(|| panic!("ordered by the test"));
        let flusher = Flusher::start(sync, witness, 0, Arc::default()).unwrap();
        let (mut progress, waiting) = (flusher.progress(), flusher.sync(1));
        let failed = progress.wait_for(|p| p.failed.is_some()).await;
        let failed = failed.unwrap().failed.clone().unwrap();
        assert!(failed.contains("panicked"), "{failed}");
        // Taken by the thread or not, whoever waits is told.
        assert!(!matches!(waiting.await, Ok(Ok(()))));
        assert!(flusher.sync(2).await.unwrap().is_err());
        flusher.stop();
    }

    #[tokio::test]
    async fn after_a_failed_sync_nothing_succeeds_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let (flusher, syncs) = flusher(dir.path());
        let (failed, mut progress) = (flusher.sync(1), flusher.progress());
        syncs.send(Err("no such luck".to_owned())).unwrap();
        assert!(failed.await.unwrap().is_err());
        let seen = progress
            .wait_for(|p| p.failed.is_some())
            .await
            .unwrap()
            .clone();
        assert_eq!(seen.batches, 0);
        assert!(seen.failed.unwrap().contains("no such luck"));
        // The next sync would succeed; it must not even be tried.
        syncs.send(Ok(())).unwrap();
        assert!(flusher.sync(2).await.unwrap().is_err());
        assert_eq!(flusher.progress().borrow().batches, 0);
        let (_, said) = Witness::open(dir.path()).unwrap();
        assert_eq!(said, super::super::witness::Testimony::None);
        flusher.stop();
        assert!(flusher.sync(3).await.unwrap().is_err());
    }
}
