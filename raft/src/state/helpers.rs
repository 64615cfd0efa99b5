//! Threads that close databases, or merge what is in them, while nobody waits.
//!
//! In: work. Out: a thread for each, and an end of all of them.
//!
//! Invariant
//! - Who has closed or dropped a state has waited for them, and none starts later: a process that ends in the ordinary way under a
//!   thread that is in RocksDB ends by SIGABRT, since RocksDB's own static objects go first.

use std::{
    io,
    sync::Mutex,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::log::lock;

/// Readers of a replaced database may be slow; then its thread goes on alone.
const WAIT: Duration = Duration::from_secs(5);

/// The helpers of one state.
#[derive(Debug)]
pub(super) struct Helpers {
    /// `None` once they are to end.
    threads: Mutex<Option<Vec<JoinHandle<()>>>>,
}

impl Default for Helpers {
    fn default() -> Self {
        Self {
            threads: Mutex::new(Some(Vec::new())),
        }
    }
}

impl Helpers {
    /// Does `work` on a thread called `name`, or here when the state is gone.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut threads = lock(&self.threads);
        let Some(running) = threads.as_mut() else {
            drop(threads);
            work();
            return Ok(());
        };
        running.retain(|thread| !thread.is_finished());
        running.push(
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(work)?,
        );
        Ok(())
    }

    /// Waits until all have ended, a few seconds at most. Not to be called by one of them.
    pub(super) fn end(&self) {
        let Some(threads) = lock(&self.threads).take() else {
            return;
        };
        let deadline = Instant::now() + WAIT;
        for thread in threads {
            while !thread.is_finished() {
                if Instant::now() >= deadline {
                    tracing::warn!("a replaced state is still in use; it closes when that ends");
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.join().is_err() {
                tracing::error!("a thread that cleans up behind the state panicked");
            }
        }
    }
}
