//! Threads that close databases, or merge what is in them, while nobody waits.
//!
//! In: work. Out: a thread for each, and a wait for all of them.
//!
//! Invariant
//! - Who has closed or dropped a state has waited for them: a process that ends under a thread that is in RocksDB ends by SIGABRT,
//!   since RocksDB's own static objects go first.

use std::{
    io,
    sync::Mutex,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::log::lock;

/// Readers of a replaced database may be slow; then the thread goes on alone.
const WAIT: Duration = Duration::from_secs(5);

/// The helpers of one state.
#[derive(Debug, Default)]
pub(super) struct Helpers(Mutex<Vec<JoinHandle<()>>>);

impl Helpers {
    /// Does `work` on a thread called `name`.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let spawned = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(work)?;
        let mut threads = lock(&self.0);
        threads.retain(|thread| !thread.is_finished());
        threads.push(spawned);
        Ok(())
    }

    /// Waits until all have ended, a few seconds at most. Not to be called by one of them.
    pub(super) fn wait(&self) {
        let deadline = Instant::now() + WAIT;
        // One may have started another.
        while let Some(thread) = lock(&self.0).pop() {
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
