//! The one thread that writes and syncs the log: group commit with no timer, and nobody else waits for the disk.
//!
//! In: changes with running numbers, and callbacks that wait for them. Out: all changes that have come, written as one batch,
//! one `flush_wal(sync)`, then the callbacks; what arrives meanwhile waits for the next round.
//!
//! Invariants
//! - Changes are written in the order of their numbers, and a crash leaves all up to some number and none behind it.
//! - A callback taken before the sync began is completed by that sync, never earlier.
//! - What nobody waits for is written with the next round, [`IDLE`] later at the latest, and synced with the next sync.
//! - A failed write or sync is never retried: the kernel may have dropped the dirty pages, so a later success proves
//!   nothing. Everything waiting fails, everything later fails, and the node must stop.

use std::{
    io,
    panic::AssertUnwindSafe,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use openraft::storage::IOFlushed;
use rocksdb::WriteBatch;
use tokio::sync::{oneshot, watch};

use super::{trailer::Trailer, witness::Witness};
use crate::{
    figures::{count, figures, seconds},
    types::TypeConfig,
    vitals::SyncTimes,
};

/// Longest time that changes which nobody waits for stay in memory.
const IDLE: Duration = Duration::from_millis(250);

/// Writes changes, of which the last has left the log like this, not synced; or says why not.
pub(super) type Write = Box<dyn FnMut(WriteBatch, Trailer) -> Result<(), String> + Send>;

/// Makes everything written so far durable, or says why not.
pub(crate) type Sync = Box<dyn FnMut() -> Result<(), String> + Send>;

/// How far the log is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Every change up to this number is on disk.
    pub(crate) batches: u64,
    /// Set once, for ever, when a write or a sync failed.
    pub(crate) failed: Option<String>,
}

pub(super) enum Waiter {
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
    /// Changes that are not written yet.
    batch: WriteBatch,
    waiters: Vec<Waiter>,
    /// The log after the last change.
    after: Trailer,
    stop: bool,
}

/// What is done at once.
struct Round {
    batch: WriteBatch,
    waiters: Vec<Waiter>,
    after: Trailer,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    progress: watch::Sender<Progress>,
}

impl Shared {
    /// From here on nothing is durable any more. These `waiters` and all others are told.
    fn fail(&self, why: &str, waiters: Vec<Waiter>) {
        tracing::error!("{why}");
        self.progress
            .send_modify(|progress| progress.failed = Some(why.to_owned()));
        let later = {
            let mut queue = lock(&self.queue);
            queue.stop = true;
            queue.batch.clear();
            std::mem::take(&mut queue.waiters)
        };
        complete_all(waiters, Some(why));
        complete_all(later, Some(why));
    }
}

/// Handle of the flusher thread.
pub(crate) struct Flusher {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Flusher {
    /// Starts the thread. What is up to `durable` is already durable.
    pub(super) fn start(
        write: Write,
        sync: Sync,
        witness: Witness,
        durable: Trailer,
        times: Arc<SyncTimes>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                after: durable,
                ..Queue::default()
            }),
            wake: Condvar::new(),
            progress: watch::Sender::new(Progress {
                batches: durable.number,
                failed: None,
            }),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("raft-flush".to_owned())
            .spawn(move || {
                let guarded = AssertUnwindSafe(|| run(&theirs, write, sync, &witness, &times));
                if std::panic::catch_unwind(guarded).is_err() {
                    // Nobody would be told that its entries are durable, for ever.
                    theirs.fail("the thread that writes the Raft log panicked", Vec::new());
                }
            })?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Adds changes: `fill` puts those that leave the log as `after` says, and nothing else, into what will be written.
    ///
    /// # Errors
    /// When nothing is written any more; `waiter` is not told then.
    pub(super) fn write(
        &self,
        after: Trailer,
        waiter: Option<Waiter>,
        fill: impl FnOnce(&mut WriteBatch),
    ) -> io::Result<()> {
        let mut queue = lock(&self.shared.queue);
        if queue.stop {
            drop(queue);
            return Err(self.stopped());
        }
        fill(&mut queue.batch);
        queue.after = after;
        let waits = waiter.is_some();
        queue.waiters.extend(waiter);
        drop(queue);
        // What nobody waits for is not worth waking the thread.
        if waits {
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    /// Gets a result once everything that has come before is durable.
    pub(crate) fn sync(&self) -> oneshot::Receiver<io::Result<()>> {
        let (tx, rx) = oneshot::channel();
        let mut queue = lock(&self.shared.queue);
        if queue.stop {
            drop(queue);
            Waiter::Sync(tx).complete(Err(self.stopped()));
            return rx;
        }
        queue.waiters.push(Waiter::Sync(tx));
        drop(queue);
        self.shared.wake.notify_one();
        rx
    }

    fn stopped(&self) -> io::Error {
        let failed = self.shared.progress.borrow().failed.clone();
        io::Error::other(failed.unwrap_or_else(|| "the log is closed".to_owned()))
    }

    /// Bytes that are not being written yet.
    pub(super) fn queued(&self) -> usize {
        lock(&self.shared.queue).batch.size_in_bytes()
    }

    /// How many wait for a sync that has not begun.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        lock(&self.shared.queue).waiters.len()
    }

    /// Nothing is durable any more, for a reason that was found elsewhere.
    pub(crate) fn fail(&self, why: &str) {
        self.shared.fail(why, Vec::new());
    }

    /// How far the log is durable, now and later.
    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// Writes and syncs what is waiting and ends the thread. Blocks; calling it again does nothing.
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

fn run(shared: &Shared, mut write: Write, mut sync: Sync, witness: &Witness, times: &SyncTimes) {
    let mut witness_works = true;
    let mut written = shared.progress.borrow().batches;
    while let Some(round) = next_round(shared) {
        let Round {
            batch,
            waiters,
            after,
        } = round;
        let failed = shared.progress.borrow().failed.clone();
        if let Some(why) = failed {
            complete_all(waiters, Some(&why));
            return;
        }
        let began = Instant::now();
        times.begin();
        // A change of nothing has a number too, of which the witness will speak.
        if after.number > written
            && let Err(error) = write(batch, after)
        {
            shared.fail(&format!("writing the Raft log failed: {error}"), waiters);
            return;
        }
        written = after.number;
        if waiters.is_empty() {
            times.pass();
            // Nothing is durable that was not, and there is more room.
            shared.progress.send_modify(|_| {});
            continue;
        }
        let outcome = sync();
        let took = began.elapsed();
        times.end(took);
        if let Err(error) = outcome {
            shared.fail(&format!("syncing the Raft log failed: {error}"), waiters);
            return;
        }
        figures().log_sync.record(seconds(took));
        figures().log_sync_appends.record(count(waiters.len()));
        if let Err(error) = witness.record(after.number)
            && std::mem::take(&mut witness_works)
        {
            tracing::warn!(%error, "the log's witness file cannot be written; damage of the log's tail may go unnoticed");
        }
        // It may have been failed from elsewhere meanwhile.
        let mut failed = None;
        shared.progress.send_modify(|p| {
            failed.clone_from(&p.failed);
            if failed.is_none() {
                p.batches = p.batches.max(after.number);
            }
        });
        complete_all(waiters, failed.as_deref());
    }
}

/// What there is to do now; blocks until there is something. `None`: told to stop, and everything is done.
fn next_round(shared: &Shared) -> Option<Round> {
    let mut queue = lock(&shared.queue);
    let mut timed_out = false;
    while queue.waiters.is_empty() && (queue.batch.is_empty() || !timed_out) && !queue.stop {
        let waited = shared
            .wake
            .wait_timeout(queue, IDLE)
            .unwrap_or_else(PoisonError::into_inner);
        timed_out = waited.1.timed_out();
        queue = waited.0;
    }
    if queue.waiters.is_empty() && queue.batch.is_empty() {
        return None;
    }
    Some(Round {
        batch: std::mem::take(&mut queue.batch),
        waiters: std::mem::take(&mut queue.waiters),
        after: queue.after,
    })
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

    use super::{super::trailer::Summary, *};

    fn start(dir: &std::path::Path, write: Write, sync: Sync) -> Flusher {
        let (witness, _) = Witness::open(dir).unwrap();
        Flusher::start(write, sync, witness, Trailer::default(), Arc::default()).unwrap()
    }

    /// A flusher whose syncs wait for permission and then give this result.
    fn flusher(dir: &std::path::Path) -> (Flusher, mpsc::Sender<Result<(), String>>) {
        let (tx, rx) = mpsc::channel();
        let sync = Box::new(move || rx.recv().unwrap_or(Ok(())));
        (start(dir, Box::new(|_, _| Ok(())), sync), tx)
    }

    fn numbered(number: u64) -> Trailer {
        Trailer::new(number, &Summary::default())
    }

    /// Change number `number`, and what comes of it.
    fn change(flusher: &Flusher, number: u64) -> oneshot::Receiver<io::Result<()>> {
        let (tx, rx) = oneshot::channel();
        let waiter = Some(Waiter::Sync(tx));
        let put = |batch: &mut WriteBatch| batch.put(b"key", b"value");
        // The receiver shows a refusal: its sender is gone.
        drop(flusher.write(numbered(number), waiter, put));
        rx
    }

    #[tokio::test]
    async fn one_sync_serves_all_who_came_before_it_and_nobody_after() {
        let dir = tempfile::tempdir().unwrap();
        let (flusher, syncs) = flusher(dir.path());
        let first = change(&flusher, 1);
        // The thread has taken the first waiter when the queue is empty.
        while !lock(&flusher.shared.queue).waiters.is_empty() {
            tokio::task::yield_now().await;
        }
        let mut later: Vec<_> = (2..10).map(|number| change(&flusher, number)).collect();
        later.push(flusher.sync());
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
    async fn what_nobody_waits_for_is_written_soon_and_durable_with_the_next_sync() {
        let dir = tempfile::tempdir().unwrap();
        let (writes, mut written) = tokio::sync::mpsc::unbounded_channel();
        let write = Box::new(move |batch: WriteBatch, after: Trailer| {
            writes.send((batch.len(), after.number)).unwrap();
            Ok(())
        });
        let flusher = start(dir.path(), write, Box::new(|| Ok(())));
        for number in 1..=2 {
            let put = |batch: &mut WriteBatch| batch.put(b"key", b"value");
            flusher.write(numbered(number), None, put).unwrap();
        }
        let mut changes = 0;
        while changes < 2 {
            changes += written.recv().await.unwrap().0;
        }
        assert_eq!(flusher.progress().borrow().batches, 0);
        flusher.sync().await.unwrap().unwrap();
        assert_eq!(flusher.progress().borrow().batches, 2);
        // The end does not wait.
        flusher
            .write(numbered(3), None, |batch| batch.put(b"key", b"value"))
            .unwrap();
        flusher.stop();
        assert_eq!(written.recv().await, Some((1, 3)));
    }

    #[tokio::test]
    async fn a_panic_while_syncing_is_told_and_nobody_waits_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let sync = Box::new(|| panic!("ordered by the test"));
        let flusher = start(dir.path(), Box::new(|_, _| Ok(())), sync);
        let (mut progress, waiting) = (flusher.progress(), change(&flusher, 1));
        let failed = progress.wait_for(|p| p.failed.is_some()).await;
        let failed = failed.unwrap().failed.clone().unwrap();
        assert!(failed.contains("panicked"), "{failed}");
        // Taken by the thread or not, whoever waits is told.
        assert!(!matches!(waiting.await, Ok(Ok(()))));
        assert!(flusher.sync().await.unwrap().is_err());
        assert!(change(&flusher, 2).await.is_err());
        flusher.stop();
    }

    #[tokio::test]
    async fn after_a_failed_write_or_sync_nothing_succeeds_any_more() {
        for (write, sync) in [
            (Err("no such luck".to_owned()), Ok(())),
            (Ok(()), Err("no such luck".to_owned())),
        ] {
            let dir = tempfile::tempdir().unwrap();
            // The next write and sync would succeed; they must not even be tried.
            let (mut write, mut sync) = (Some(write), Some(sync));
            let flusher = start(
                dir.path(),
                Box::new(move |_, _| write.take().unwrap()),
                Box::new(move || sync.take().unwrap()),
            );
            let (failed, mut progress) = (change(&flusher, 1), flusher.progress());
            assert!(failed.await.unwrap().is_err());
            let seen = progress
                .wait_for(|p| p.failed.is_some())
                .await
                .unwrap()
                .clone();
            assert_eq!(seen.batches, 0);
            assert!(seen.failed.unwrap().contains("no such luck"));
            assert!(flusher.sync().await.unwrap().is_err());
            assert!(change(&flusher, 2).await.is_err());
            assert_eq!(flusher.progress().borrow().batches, 0);
            let (_, said) = Witness::open(dir.path()).unwrap();
            assert_eq!(said, super::super::witness::Testimony::None);
            flusher.stop();
            assert!(flusher.sync().await.unwrap().is_err());
        }
    }
}
