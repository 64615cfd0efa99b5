//! The task that keeps [`Vitals`](crate::vitals::Vitals) true and hands leadership over when this node should not lead.
//!
//! In: room on the disk, times of the log's syncs, what was appended and applied. Out: the vitals, and transfers of
//! leadership to a voter that says it is fitter.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::{task::JoinHandle, time::timeout};

use crate::{
    command::{Command, WINDOW_FORMAT},
    figures::{figures, seconds},
    log::LogStore,
    services::{Services, age},
    state::State,
    vitals::{Candidate, Room, SyncWindow, Unfit, default_reserve, room, successor, unfit},
};

/// How often room and backlog are looked at: a busy node writes tens of megabytes a second.
const LOOK: Duration = Duration::from_millis(200);
/// Looks in a second.
const LOOKS: u32 = 5;
/// A node that has given leadership away, or has found nobody to take it, waits this long before it tries again.
const PATIENCE_ROOM: Duration = Duration::from_secs(5);
const PATIENCE_SLOW: Duration = Duration::from_secs(60);

/// What the task works on.
pub(crate) struct Watchdog {
    pub(crate) services: Services,
    pub(crate) state: Arc<State>,
    pub(crate) log: LogStore,
    /// The data directory.
    pub(crate) dir: PathBuf,
    /// Bytes to keep free; `None`: [`default_reserve`].
    pub(crate) reserve: Option<u64>,
}

impl Watchdog {
    /// Runs until it is dropped.
    pub(crate) async fn run(self) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut window, mut looks) = (SyncWindow::default(), 0u32);
        let mut looking = None;
        let mut not_before = Instant::now();
        loop {
            ticks.tick().await;
            self.look_at_backlog();
            self.look_at_disk(&mut looking).await;
            looks += 1;
            if looks < LOOKS {
                continue;
            }
            looks = 0;
            let vitals = &self.services.vitals;
            vitals.set_sync_us(window.second(self.log.sync_times()));
            self.sample_contact();
            self.widen_memory().await;
            let heartbeat = self.services.timing.heartbeat;
            if let Some(why) = unfit(vitals.health(), heartbeat)
                && Instant::now() >= not_before
                && self.services.leads()
            {
                self.hand_over(why).await;
                not_before = Instant::now()
                    + match why {
                        Unfit::NoRoom => PATIENCE_ROOM,
                        Unfit::Slow => PATIENCE_SLOW,
                    };
            }
        }
    }

    /// Has requests remembered by time, once every member can do it. Members that are away are waited for.
    async fn widen_memory(&self) {
        let (window, own_entry) = {
            let position = self.state.position();
            let position = position.borrow();
            (position.memory.window, position.applied)
        };
        if window {
            return;
        }
        let others: Option<Vec<u64>> = self.services.metrics(|metrics| {
            // Ready: the state holds what earlier leaders did about it.
            let ready = metrics.state.is_leader()
                && own_entry.is_some_and(|id| id.leader_id == metrics.vote.leader_id);
            let nodes = metrics.membership_config.nodes();
            ready.then(|| {
                nodes
                    .map(|(id, _)| *id)
                    .filter(|id| *id != metrics.id)
                    .collect()
            })
        });
        let Some(others) = others else {
            return;
        };
        let limit = self.services.timing.election_max;
        let asked = others
            .into_iter()
            .map(|id| self.services.command_format(id, limit));
        if join_all(asked)
            .await
            .iter()
            .any(|known| *known < WINDOW_FORMAT)
        {
            return;
        }
        match self.services.core.client_write(Command::window()).await {
            Ok(_) => tracing::info!("requests are remembered by time from now on"),
            // It is tried again.
            Err(error) => {
                tracing::debug!(%error, "the way of remembering requests was not changed")
            }
        }
    }

    fn look_at_backlog(&self) {
        let last = self.log.last().map_or(0, |id| id.index);
        let waiting = last.saturating_sub(self.state.applied());
        self.services.vitals.set_backlog(waiting);
    }

    fn sample_contact(&self) {
        let acked = self.services.metrics(|metrics| {
            let leads = metrics.state.is_leader();
            metrics
                .last_quorum_acked
                .filter(|_| leads)
                .map(|at| age(&at))
        });
        if let Some(acked) = acked {
            figures().leader_contact.record(seconds(acked));
        }
    }

    /// `looking`: the look that is under way.
    async fn look_at_disk(&self, looking: &mut Option<JoinHandle<io::Result<(u64, u64)>>>) {
        let dir = self.dir.clone();
        // A disk that hangs must hold neither an async thread nor this task, which gives leadership away because of it.
        let asked = looking.get_or_insert_with(|| tokio::task::spawn_blocking(move || disk(&dir)));
        let Ok(asked) = timeout(LOOK, asked).await else {
            return;
        };
        *looking = None;
        let (free, size) = match asked {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the room on the disk is not known");
                return;
            }
            Err(error) => {
                tracing::debug!(%error, "the room on the disk was not looked at");
                return;
            }
        };
        let reserve = self.reserve.unwrap_or_else(|| default_reserve(size));
        let vitals = &self.services.vitals;
        let (before, now) = (vitals.room(), room(vitals.room(), free, reserve));
        if before == now {
            return;
        }
        // See [`crate::standing`] for what follows of it for elections.
        vitals.set_room(now);
        let (free_mib, reserve_mib) = (free >> 20, reserve >> 20);
        match now {
            Room::Plenty => tracing::info!(
                free_mib,
                "there is room on the disk again: the node takes part as before"
            ),
            Room::Low => tracing::error!(
                free_mib,
                reserve_mib,
                "the disk is nearly full: this node takes no writes and hands leadership over; make room"
            ),
            Room::Critical => tracing::error!(
                free_mib,
                reserve_mib,
                "the disk is full but for the last reserve: this node takes no log entries, and falls behind; make room"
            ),
        }
    }

    async fn hand_over(&self, why: Unfit) {
        let own = self.services.vitals.health();
        let candidates = self.candidates().await;
        let Some(to) = successor(why, own, &candidates) else {
            tracing::warn!(
                ?why,
                sync_us = own.sync_us,
                "this node should not lead, and no other voter is known to be fitter"
            );
            return;
        };
        tracing::warn!(
            ?why,
            sync_us = own.sync_us,
            to,
            "this node should not lead: leadership goes to another voter"
        );
        if let Err(error) = self.services.core.trigger().transfer_leader(to).await {
            tracing::debug!(%error, "leadership was not handed over");
        }
    }

    /// The other voters that have answered lately, and what they say of themselves.
    async fn candidates(&self) -> Vec<Candidate> {
        let limit = self.services.timing.election_max;
        let fresh: Vec<(u64, u64)> = self.services.metrics(|metrics| {
            let last = metrics.last_log_index.unwrap_or(0);
            let acks = metrics.heartbeat.as_ref();
            let matched = metrics.replication.as_ref();
            metrics
                .membership_config
                .voter_ids()
                .filter(|id| *id != metrics.id)
                .filter(|id| {
                    let info = metrics.membership_config.get_node(id);
                    info.is_some_and(|info| !info.leader_ineligible)
                })
                .filter(|id| {
                    let acked = acks.and_then(|acks| acks.get(id).copied().flatten());
                    acked.is_some_and(|at| age(&at) <= limit)
                })
                .map(|id| {
                    let on_it = matched.and_then(|matched| matched.get(&id).copied().flatten());
                    (id, last.saturating_sub(on_it.map_or(0, |id| id.index)))
                })
                .collect()
        });
        let asked = fresh.into_iter().map(|(id, lag)| async move {
            Candidate {
                id,
                lag,
                health: self.services.health_of(id, limit).await,
            }
        });
        join_all(asked).await
    }
}

/// Bytes that can be written to the disk of `dir` before a node there takes no more writes; `reserve` as in
/// [`Options::min_free_disk`](crate::Options::min_free_disk).
///
/// # Errors
/// What the system says of that disk.
pub fn room_above_reserve(dir: &std::path::Path, reserve: Option<u64>) -> io::Result<u64> {
    let (free, size) = disk(dir)?;
    Ok(free.saturating_sub(reserve.unwrap_or_else(|| default_reserve(size))))
}

/// Free bytes that this process may use, and size, of the disk that holds `dir`.
fn disk(dir: &std::path::Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(dir)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok((bytes(stat.f_bavail), bytes(stat.f_blocks)))
}
