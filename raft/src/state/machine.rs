//! openraft's state machine trait on [`State`].
//!
//! Invariants
//! - The gate: an entry is applied only once it is durable in the local log, although openraft may know it committed by
//!   others earlier. Otherwise a flushed state could be ahead of the log after a crash, and the node would have to be
//!   refused or, worse, would serve older data than it had served before.
//! - A reply is sent after the batch is visible.
//! - Nothing follows a restore's commit in its batch: the next entries may empty the family that was live, and readers are told
//!   of the restore only after the batch is written.

use std::{io, panic::AssertUnwindSafe, sync::Arc, time::Instant};

use futures_util::{FutureExt, Stream, StreamExt};
use openraft::{
    EntryPayload, OptionalSend,
    storage::{EntryResponder, RaftStateMachine},
};

use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use super::{
    DbView, State,
    apply::Changes,
    snapshot::{self, Builder, Meta, Snapshot, SnapshotDir},
};
use crate::{
    command::{Applied, Command, Outcome},
    figures::{count, figures, seconds},
    log::LogStore,
    types::{Encoded, LogId, StoredMembership, TypeConfig},
};

/// Entries and bytes applied in one batch; bounds how long the first reply waits.
const MAX_ENTRIES: usize = 512;
const MAX_BYTES: usize = 2 << 20;

type Responder = openraft::storage::ApplyResponder<TypeConfig>;

/// The writer of the state: there is one, owned by openraft.
pub(crate) struct Machine {
    state: Arc<State>,
    log: LogStore,
    /// Tells, by being dropped, that openraft will not use the stores any more.
    _in_use: Option<TaskTrackerToken>,
}

impl Machine {
    pub(crate) fn new(state: Arc<State>, log: LogStore) -> Self {
        Self {
            state,
            log,
            _in_use: None,
        }
    }

    /// Counts as one of `users` until openraft drops it.
    pub(crate) fn tracked(mut self, users: &TaskTracker) -> Self {
        self._in_use = Some(users.token());
        self
    }

    async fn apply_all<S>(&self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(item) = entries.next().await {
            let item = item?;
            bytes += size(&item.0.payload);
            batch.push(item);
            if batch.len() >= MAX_ENTRIES || bytes >= MAX_BYTES {
                self.apply_batch(std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
        }
        self.apply_batch(batch).await
    }

    async fn apply_batch(&self, batch: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let Some((last, _)) = batch.last() else {
            return Ok(());
        };
        self.log.wait_durable(last.log_id.index).await?;
        let mut entries = batch.into_iter().peekable();
        while entries.peek().is_some() {
            self.apply_some(&mut entries)?;
        }
        Ok(())
    }

    /// Applies `entries` up to a restore's commit, all at once.
    fn apply_some(
        &self,
        entries: &mut impl Iterator<Item = EntryResponder<TypeConfig>>,
    ) -> io::Result<()> {
        let (began, mut applied_entries) = (Instant::now(), 0);
        let view = DbView {
            generation: self.state.generation().map_err(io::Error::other)?,
            memory: self.state.position.borrow().memory,
        };
        let mut changes = Changes::default();
        let mut replies: Vec<(Responder, Applied)> = Vec::new();
        for (entry, responder) in entries {
            let applied = apply_entry(&view, &mut changes, entry.log_id, entry.payload)?;
            replies.extend(responder.map(|responder| (responder, applied)));
            applied_entries += 1;
            if changes.restored() {
                break;
            }
        }
        self.state.commit(&view, &mut changes)?;
        figures().apply.record(seconds(began.elapsed()));
        figures().apply_entries.record(count(applied_entries));
        for (responder, applied) in replies {
            responder.send(applied);
        }
        Ok(())
    }
}

fn apply_entry(
    view: &DbView,
    changes: &mut Changes,
    id: LogId,
    payload: crate::types::Payload,
) -> io::Result<Applied> {
    changes.enter(id);
    let nothing = Applied {
        index: id.index,
        outcome: Outcome::Applied,
    };
    match payload {
        EntryPayload::Blank => Ok(nothing),
        EntryPayload::Membership(membership) => {
            changes.membership = Some(StoredMembership::new(Some(id), membership));
            Ok(nothing)
        }
        EntryPayload::Normal(encoded) => apply_command(view, changes, id.index, &encoded),
    }
}

fn apply_command(
    view: &DbView,
    changes: &mut Changes,
    index: u64,
    encoded: &Encoded,
) -> io::Result<Applied> {
    let (command, window) = Command::decode_any(encoded)
        .map_err(|error| io::Error::other(format!("log entry {index}: {error}")))?;
    if window {
        changes.window(view);
    }
    changes.apply(view, index, command)
}

fn size(payload: &crate::types::Payload) -> usize {
    match payload {
        EntryPayload::Normal(command) => command.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotDir;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let position = self.state.position.borrow();
        Ok((position.applied, position.membership.clone()))
    }

    /// A panic is an error like any other, which ends the node: openraft would notice the end of its worker only when the
    /// next entry comes.
    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        AssertUnwindSafe(self.apply_all(entries))
            .catch_unwind()
            .await
            .unwrap_or_else(|_panic| Err(io::Error::other("applying log entries panicked")))
    }

    /// `force` comes from a start without a snapshot. Otherwise the one is meant that was built before openraft was told:
    /// a failure while building (a full disk) must not reach openraft, which would stop the node.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        if force {
            return Some(self.get_snapshot_builder().await);
        }
        self.state.snapshots.newest().map(Builder::Ready)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder::Build(Arc::clone(&self.state))
    }

    async fn install_snapshot(&mut self, meta: &Meta, snapshot: SnapshotDir) -> io::Result<()> {
        snapshot::install(&self.state, &self.log, meta, snapshot).await
    }

    /// Never one that lies before what the log has purged: who got that could not be caught up by log afterwards.
    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let newest = self.state.snapshots.newest();
        let purged = self.log.purged();
        Ok(newest
            .filter(|kept| kept.meta.last_log_id >= purged)
            .map(snapshot::snapshot_of))
    }
}
