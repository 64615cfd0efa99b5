//! What a node serves by: a [`Core`] on the keys that belong to the data in the state.
//!
//! In: the keys the node was unsealed with, the state's count of restores. Out: the core that the API works on, replaced
//! whenever a restore has replaced the data.
//!
//! Invariants
//! - A core is used only with data of the restore count it was made for; what it writes is refused by apply otherwise.
//! - While the HSM does not open the new keys the node waits, with back-off, and says so in `seal-status`.
//! - `seal.json` follows the keys in the state.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use strongroom_api::core::Core;
use strongroom_raft::State;
use strongroom_seal::{barrier::Barrier, keyring::Keyring, wrap::SealWrapper};

use super::{
    bundle::SealBundle,
    chain,
    node::{Running, Shared},
    wire::{BarrierPort, SealWrapPort, StorePort},
};

/// First and longest pause between attempts to open new keys.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Pause before looking again whether the state has caught up.
const LOOK: Duration = Duration::from_millis(50);
/// A joiner to which nothing has been sent for so long says so.
const NOTHING_CAME: Duration = Duration::from_secs(10);
const NOTHING_SENT: &str = "joined, but no data have come: the leader does not reach this node's cluster_addr, or it was removed \
    from the cluster since (`operator raft list-peers` on another node tells). If it was, start it with an empty data directory";

/// A core and the data it belongs to.
pub(crate) struct Served {
    /// See [`State::restores`].
    restores: u64,
    core: Arc<Core>,
}

impl Served {
    /// The core, if `state` holds the data it was made for.
    pub(crate) fn on(&self, state: &State) -> Option<Arc<Core>> {
        (state.restores() == self.restores).then(|| Arc::clone(&self.core))
    }
}

/// Holds requests back while keys are looked at that may not be the cluster's; they are served again when it is dropped.
pub(crate) struct Pause<'r>(&'r AtomicBool);

impl<'r> Pause<'r> {
    pub(crate) fn of(running: &'r Running) -> Self {
        running.paused.store(true, Ordering::Release);
        Self(&running.paused)
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Serves by `keyring` as soon as the state is where it belongs, and by others when a restore brings them. Runs as long
/// as the node.
pub(crate) async fn keep(shared: Arc<Shared>, running: Arc<Running>, keyring: Keyring) {
    let mut bundle = running.bundle.load_full();
    let mut keyring = Some(keyring);
    loop {
        let opened = match keyring.take() {
            Some(keyring) => keyring,
            None => {
                let (newer, opened) = open_newest(&shared, &running).await;
                if let Err(error) = newer.save(&shared.config.storage.path) {
                    // The copy in the state is newer, so that the next start does without.
                    tracing::error!(error = %chain(&error), "the new seal data could not be kept in a file");
                }
                bundle = Arc::new(newer);
                running.bundle.store(Arc::clone(&bundle));
                opened
            }
        };
        if caught_up(&running, bundle.restores).await {
            let core = make_core(&shared, &running, opened, bundle.restores);
            running.core.store(Some(Arc::new(Served {
                restores: bundle.restores,
                core,
            })));
            running.between.store(false, Ordering::Release);
            shared.changed.notify_waiters();
            tracing::info!("the node serves");
        }
        running.raft.state().restored(bundle.restores).await;
        running.between.store(true, Ordering::Release);
        running.core.store(None);
        tracing::info!("a restore has replaced the data; opening their keys");
    }
}

/// Waits until this node's state holds the data of that many restores, with the cluster's first entries (a fresh
/// joiner's does not yet). `false`: it has gone past them.
async fn caught_up(running: &Running, restores: u64) -> bool {
    let state = running.raft.state();
    let mut changes = running.raft.watch();
    let began = Instant::now();
    let mut told = false;
    loop {
        let reached = match SealBundle::from_state(&state) {
            Ok(Some(found)) if found.restores == restores => Some(true),
            Ok(Some(found)) if found.restores > restores => Some(false),
            Ok(_) => None,
            Err(error) => {
                tracing::error!(error = %chain(&error), "reading the seal data failed");
                None
            }
        };
        if let Some(reached) = reached {
            if told {
                running.trouble.store(None);
            }
            return reached;
        }
        if !told && state.applied() == 0 && began.elapsed() > NOTHING_CAME {
            told = true;
            tracing::warn!("{NOTHING_SENT}");
            running
                .trouble
                .store(Some(Arc::new(NOTHING_SENT.to_owned())));
        }
        // A time-out only means: look again.
        let _ = tokio::time::timeout(LOOK, changes.changed()).await;
    }
}

/// The keys in the state, opened by the HSM; waits for as long as that takes.
async fn open_newest(shared: &Shared, running: &Running) -> (SealBundle, Keyring) {
    let state = running.raft.state();
    let mut pause = FIRST_PAUSE;
    loop {
        let why = match SealBundle::from_state(&state) {
            Ok(Some(bundle)) => match bundle.open(&shared.hsm).await {
                Ok(keyring) => {
                    running.trouble.store(None);
                    return (bundle, keyring);
                }
                Err(error) => chain(&error),
            },
            Ok(None) => "the restored data hold no keys".to_owned(),
            Err(error) => chain(&error),
        };
        // From here on it may take long: requests are refused instead of held.
        running.between.store(false, Ordering::Release);
        let why = format!("opening the keys of the restored data: {why}");
        let known = running.trouble.swap(Some(Arc::new(why.clone())));
        // Once per cause, or a waiting node fills the log.
        if known.is_none_or(|known| *known != why) {
            tracing::error!("{why}");
        }
        tokio::time::sleep(super::jittered(pause)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn make_core(shared: &Shared, running: &Running, keyring: Keyring, restores: u64) -> Arc<Core> {
    let raft = running.raft.clone();
    let barrier = BarrierPort::new(Arc::new(Barrier::new(keyring)), Some(raft.state()));
    let wrap = SealWrapPort::new(Arc::new(SealWrapper::new(shared.hsm.clone())));
    Arc::new(Core::new(
        Arc::new(StorePort::new(raft, restores)),
        Arc::new(barrier),
        Arc::new(wrap),
        super::cluster_identity(&shared.config, &running.cluster_id),
    ))
}
