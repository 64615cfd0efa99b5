//! The node's background tasks: what their end means.
//!
//! Invariants
//! - A task that the node cannot do without and that panics ends the node, with its name: a node that goes on without
//!   watching its disk, following its role or accepting peers looks well and is not.
//! - All end when the node closes, and closing waits for them.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Shared by all that start tasks.
#[derive(Clone, Default)]
pub(crate) struct Tasks {
    pub(crate) tracker: TaskTracker,
    pub(crate) closing: CancellationToken,
    died: watch::Sender<Option<String>>,
}

impl Tasks {
    /// Runs a task that the node needs as long as it lives.
    pub(crate) fn vital(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let Self {
            tracker,
            closing,
            died,
        } = self.clone();
        tracker.spawn(async move {
            let guarded = AssertUnwindSafe(task).catch_unwind();
            // The panic's own text went to standard error.
            if let Some(Err(_panic)) = closing.run_until_cancelled(guarded).await {
                died.send_replace(Some(format!("the task `{name}` panicked")));
            }
        });
    }

    /// Runs a task about one connection, which is all that it can harm.
    pub(crate) fn passing(&self, task: impl Future<Output = ()> + Send + 'static) {
        let closing = self.closing.clone();
        self.tracker
            .spawn(async move { closing.run_until_cancelled(task).await });
    }

    /// What has become of a vital task, now and later.
    pub(crate) fn died(&self) -> watch::Receiver<Option<String>> {
        self.died.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_panic_of_a_vital_task_is_told() {
        let tasks = Tasks::default();
        let mut died = tasks.died();
        tasks.passing(async { panic!("ordered by the test") });
        tasks.vital("ends", async {});
        tasks.vital("goes on", std::future::pending());
        while tasks.tracker.len() > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*died.borrow_and_update(), None);
        tasks.vital("watchdog", async { panic!("ordered by the test") });
        died.changed().await.unwrap();
        let told = died.borrow().clone();
        assert_eq!(told.as_deref(), Some("the task `watchdog` panicked"));
        tasks.closing.cancel();
        tasks.tracker.close();
        tasks.tracker.wait().await;
    }
}
