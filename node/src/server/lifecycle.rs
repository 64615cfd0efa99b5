//! A node's life: empty → (init | join) → sealed → unsealed → stopped, driven by one task.
//!
//! In: the data directory, the HSM's health, orders from the API (init, join), the stop signal. Out: the phase that the
//! API answers by.
//!
//! Invariants
//! - Only this task changes the phase, starts or stops Raft, or writes the identity; and the bundle too, but for new keys
//!   that a restore brings ([`serving`]).
//! - Every failure but a broken data directory or a fatal storage error is waited out with back-off: the listener stays
//!   up, `seal-status` says why, nothing needs a person when the cause goes away.
//! - Before unseal no connection to a peer is made or accepted.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use strongroom_api::{
    Service,
    ports::{InitError, InitRequest, InitResult, JoinError, JoinRequest, SnapshotError},
};
use strongroom_raft::{Identity, Next, PeerInfo, Raft, Stores, Transport};
use strongroom_seal::keyring::Keyring;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot, watch},
};
use tokio_util::sync::CancellationToken;

use super::{
    auto, autopilot,
    bundle::SealBundle,
    chain,
    cluster_tls::{self, ClusterTls},
    forward::{self, Forwarder},
    init::{self, HalfInit},
    join::{self, JoinGate, Other, Target},
    leave,
    node::{INIT_GRACE, NodePort, Order, Phase, Running, Shared},
    restore::{self, Candidate},
    save, serving,
};
use crate::config::Config;

/// Why the node cannot go on at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FatalError {
    #[error("the data directory {} cannot be used: {why}", dir.display())]
    DataDirectory { dir: PathBuf, why: String },
    #[error("storage failed: {0}")]
    Storage(String),
    #[error("{0} panicked; the node cannot do without it")]
    Task(&'static str),
}

/// First and longest pause between attempts to unseal or to join.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Nodes to join that are tried in turn: each that does not answer costs seconds of a round.
const MAX_TARGETS: usize = 16;
/// Closing the stores takes longer only on a disk that hangs.
const CLOSE: Duration = Duration::from_secs(20);
/// Pause between rounds over the `retry_join` targets.
const JOIN_PAUSE: Duration = Duration::from_millis(1500);
/// Requests are still taken this long after health has turned unhealthy: two checks of a load balancer that looks every
/// half second, and some.
const NOTICE: Duration = Duration::from_millis(1500);
/// Between two looks at what is on record about this node.
const ANNOUNCE: Duration = Duration::from_secs(60);
/// Time a planned hand-over of leadership may take at shutdown.
const HAND_OVER: Duration = Duration::from_secs(3);
/// Recovery keys and root token are given out once.
const LOST_INIT: &str = "the client of the initialization went away before its answer: recovery keys and root token are \
    lost; wipe the data directory and initialize again";

/// For who comes too late to make a cluster here.
pub(super) const HAS_CLUSTER: &str =
    "the node has joined a cluster or has been initialized meanwhile";

enum Stage {
    Empty,
    Sealed(Box<SealedNode>),
    /// The cluster goes on without this node.
    Removed {
        bundle: Box<SealBundle>,
        why: String,
    },
    Stopped,
}

/// A member of a cluster whose keys are still wrapped.
struct SealedNode {
    identity: Identity,
    bundle: SealBundle,
    /// Already open, if something had to be read from them: opening replays the log, so once is enough.
    stores: Option<Stores>,
}

impl From<SealedNode> for Stage {
    fn from(node: SealedNode) -> Self {
        Self::Sealed(Box::new(node))
    }
}

/// Runs the node until `stop`.
pub(crate) async fn drive(
    shared: Arc<Shared>,
    mut orders: mpsc::Receiver<Order>,
    stop: CancellationToken,
) -> Result<(), FatalError> {
    let mut stage = on_disk(&shared).await?;
    loop {
        stage = match stage {
            Stage::Empty => uninitialized(&shared, &mut orders, &stop).await?,
            Stage::Sealed(node) => match unseal(&shared, &node.bundle, &mut orders, &stop).await {
                None => {
                    if let Some(stores) = node.stores {
                        stores.close().await;
                    }
                    Stage::Stopped
                }
                Some(keyring) => run(&shared, *node, keyring, &mut orders, &stop).await?,
            },
            Stage::Removed { bundle, why } => {
                removed(&shared, &bundle, why, &mut orders, &stop).await
            }
            Stage::Stopped => return Ok(()),
        };
    }
}

/// What the data directory says this node is.
async fn on_disk(shared: &Shared) -> Result<Stage, FatalError> {
    let dir = &shared.config.storage.path;
    let unusable = |why: String| FatalError::DataDirectory {
        dir: dir.clone(),
        why,
    };
    std::fs::create_dir_all(dir).map_err(|error| unusable(error.to_string()))?;
    if leave::has_left(dir).map_err(|error| unusable(error.to_string()))? {
        if shared.config.storage.leave_on_shutdown {
            leave::move_aside(dir).map_err(|error| unusable(error.to_string()))?;
            return Ok(Stage::Empty);
        }
        tracing::warn!(
            "this node left the cluster at its last stop, and `leave_on_shutdown` is not set any more: to come back it \
             needs an empty data directory"
        );
    }
    let Some(identity) = Identity::load(dir).map_err(|error| unusable(chain(&error)))? else {
        return Ok(Stage::Empty);
    };
    if identity.name != shared.config.storage.node_id {
        return Err(unusable(format!(
            "it belongs to node_id {:?}, the configuration says {:?}",
            identity.name, shared.config.storage.node_id
        )));
    }
    let stores = super::open_stores(dir, &identity)
        .await
        .map_err(|error| unusable(chain(&error)))?;
    let bundle =
        SealBundle::newest(dir, &stores.state()).map_err(|error| unusable(chain(&error)))?;
    if let Some(bundle) = bundle {
        return Ok(SealedNode {
            identity,
            bundle,
            stores: Some(stores),
        }
        .into());
    }
    // An identity without seal data: an init was cut off. Its log tells whether it had finished.
    let half = init::solo(&shared.config, identity.clone(), stores)
        .await
        .map_err(|error| unusable(chain(&error)))?;
    let finished = half.finished().map_err(|error| unusable(chain(&error)));
    half.close().await;
    match finished? {
        None => Ok(Stage::Empty),
        Some(bundle) => {
            bundle.save(dir).map_err(|error| unusable(chain(&error)))?;
            tracing::info!(
                "an initialisation that had been cut off after its last step is complete"
            );
            Ok(SealedNode {
                identity,
                bundle,
                stores: None,
            }
            .into())
        }
    }
}

/// Waits for an init, or joins.
async fn uninitialized(
    shared: &Arc<Shared>,
    orders: &mut mpsc::Receiver<Order>,
    stop: &CancellationToken,
) -> Result<Stage, FatalError> {
    shared.set_phase(Phase::Uninitialized { why: None });
    tracing::info!(
        "the node is not initialized; it waits for `operator init` or a cluster to join"
    );
    let configured = configured_targets(shared)?;
    let mut retrying: Vec<(Target, bool)> = configured
        .iter()
        .cloned()
        .map(|target| (target, shared.config.storage.retry_join_as_non_voter))
        .collect();
    let mut last_why = String::new();
    loop {
        let round = join_round(shared, &retrying);
        let outcome = tokio::select! {
            () = stop.cancelled() => return Ok(Stage::Stopped),
            order = orders.recv() => match order {
                None => return Ok(Stage::Stopped),
                Some(Order::Init { request, reply }) => {
                    let made = initialise(shared, &configured, request, &reply).await;
                    match founded(shared, made, reply, Some(LOST_INIT)) {
                        Some(stage) => return Ok(stage),
                        None => continue,
                    }
                }
                Some(Order::Restore {
                    candidate,
                    id,
                    force,
                    reply,
                }) => {
                    let made = restore(shared, &configured, &candidate, id, force).await;
                    match founded(shared, made, reply, None) {
                        Some(stage) => return Ok(stage),
                        None => continue,
                    }
                }
                Some(Order::Join { request, reply }) => {
                    ordered_join(shared, request, reply, &mut retrying).await
                }
            },
            opened = round => match opened {
                Err(why) => Err(why),
                Ok(opened) => join::finish(opened, &shared.hsm, &shared.config.storage.path).await,
            },
        };
        match outcome {
            Ok((identity, bundle)) => {
                tracing::info!(raft_id = identity.raft_id, "joined the cluster");
                return Ok(SealedNode {
                    identity,
                    bundle,
                    stores: None,
                }
                .into());
            }
            Err(why) => {
                let why = format!("joining: {}", chain(&why));
                // Once per cause, or a waiting node fills the log.
                if why != last_why {
                    tracing::warn!("{why}");
                    last_why.clone_from(&why);
                }
                shared.set_phase(Phase::Uninitialized { why: Some(why) });
            }
        }
    }
}

/// The first target that gives a challenge this HSM opens; waits for ever when there is none to try.
async fn join_round(
    shared: &Shared,
    targets: &[(Target, bool)],
) -> Result<join::Opened, JoinError> {
    if targets.is_empty() {
        return std::future::pending().await;
    }
    tokio::time::sleep(super::jittered(JOIN_PAUSE)).await;
    let mut last = None;
    for (target, non_voter) in targets {
        match join::open_challenge(&shared.config, &shared.hsm, target.clone(), *non_voter).await {
            Ok(opened) => return Ok(opened),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| JoinError::Failed("no node to join".to_owned())))
}

/// A join asked for through the API. With `retry` the target joins the list and the caller gets `false` at once.
async fn ordered_join(
    shared: &Shared,
    request: JoinRequest,
    reply: oneshot::Sender<Result<bool, JoinError>>,
    retrying: &mut Vec<(Target, bool)>,
) -> Result<(Identity, SealBundle), JoinError> {
    let retry = request.retry;
    let answer = |reply: oneshot::Sender<_>, result| {
        // The caller may have gone away; the join stands all the same.
        let _ = reply.send(result);
    };
    let non_voter = request.non_voter;
    let target = match target_of(request) {
        Ok(target) => target,
        Err(error) => {
            let copy = JoinError::BadRequest(error.to_string());
            answer(reply, Err(error));
            return Err(copy);
        }
    };
    if retry {
        let known = retrying
            .iter()
            .any(|(other, _)| other.address == target.address);
        if !known && retrying.len() >= MAX_TARGETS {
            let why = format!("{MAX_TARGETS} nodes to join are being tried already");
            answer(reply, Err(JoinError::BadRequest(why.clone())));
            return Err(JoinError::BadRequest(why));
        }
        if !known {
            retrying.push((target, non_voter));
        }
        answer(reply, Ok(false));
        return Err(JoinError::Unavailable(
            "the node asked for has not been tried yet".to_owned(),
        ));
    }
    let joined = match join::open_challenge(&shared.config, &shared.hsm, target, non_voter).await {
        Ok(opened) => join::finish(opened, &shared.hsm, &shared.config.storage.path).await,
        Err(error) => Err(error),
    };
    match joined {
        Ok(done) => {
            answer(reply, Ok(true));
            Ok(done)
        }
        Err(error) => {
            let copy = JoinError::Unavailable(error.to_string());
            answer(reply, Err(error));
            Err(copy)
        }
    }
}

fn target_of(request: JoinRequest) -> Result<Target, JoinError> {
    if !request.auto_join.is_empty() {
        return Err(JoinError::BadRequest(
            "auto_join is not supported; name a node in leader_api_addr".to_owned(),
        ));
    }
    if request.leader_api_addr.is_empty() {
        return Err(JoinError::BadRequest(
            "leader_api_addr must be set".to_owned(),
        ));
    }
    let tls = crate::client::TlsParameters::from_pem(
        &request.leader_ca_cert,
        &request.leader_client_cert,
        &request.leader_client_key,
        &request.leader_tls_servername,
    )
    .map_err(|error| JoinError::BadRequest(chain(&error)))?;
    Ok(Target {
        address: request.leader_api_addr.trim_end_matches('/').to_owned(),
        tls,
    })
}

fn configured_targets(shared: &Shared) -> Result<Vec<Target>, FatalError> {
    let own = &shared.config.api_addr;
    shared
        .config
        .storage
        .retry_join
        .iter()
        // One configuration for all nodes names the node itself too.
        .filter(|stanza| stanza.leader_api_addr.trim_end_matches('/') != own.trim_end_matches('/'))
        .map(|stanza| {
            let tls = stanza
                .tls_parameters()
                .map_err(|error| FatalError::DataDirectory {
                    dir: shared.config.storage.path.clone(),
                    why: format!("retry_join: {}", chain(&error)),
                })?;
            Ok(Target {
                address: stanza.leader_api_addr.trim_end_matches('/').to_owned(),
                tls,
            })
        })
        .collect()
}

/// Carries out an init.
async fn initialise(
    shared: &Shared,
    configured: &[Target],
    request: InitRequest,
    reply: &oneshot::Sender<Result<InitResult, InitError>>,
) -> Result<(InitResult, SealedNode), InitError> {
    let shape = init::check_request(&request)?;
    let make = async |half: &HalfInit| {
        let already = half
            .finished()
            .map_err(|error| InitError::Failed(chain(&error)))?;
        if already.is_some() {
            return Err(InitError::AlreadyInitialized);
        }
        half.initialise(&shared.hsm, shape, || !reply.is_closed())
            .await
    };
    found(shared, configured, make, |error| error).await
}

/// Makes a new cluster of a snapshot, as an init makes one of nothing: cut off at any point, it can be done again.
async fn restore(
    shared: &Shared,
    configured: &[Target],
    candidate: &Candidate,
    id: [u8; 16],
    force: bool,
) -> Result<((), SealedNode), SnapshotError> {
    let make = async |half: &HalfInit| {
        let bundle = half.restore(&shared.hsm, candidate, id, force).await?;
        Ok(((), bundle))
    };
    let failed = |error: InitError| {
        let why = if matches!(error, InitError::AlreadyInitialized) {
            "another node is in a cluster already; restore there".to_owned()
        } else {
            chain(&error)
        };
        SnapshotError::Unavailable(format!("nothing was restored: {why}"))
    };
    found(shared, configured, make, failed).await
}

/// Founds a cluster whose only member is this node and whose keys and data `make` puts in.
async fn found<T, E>(
    shared: &Shared,
    configured: &[Target],
    make: impl AsyncFnOnce(&HalfInit) -> Result<(T, SealBundle), E>,
    failed: impl Fn(InitError) -> E,
) -> Result<(T, SealedNode), E> {
    let founding = Founding::announce(shared).map_err(&failed)?;
    founding
        .be_the_only_one(configured)
        .await
        .map_err(&failed)?;
    let dir = &shared.config.storage.path;
    let half = init::bootstrap(&shared.config, dir)
        .await
        .map_err(&failed)?;
    let identity = half.identity.clone();
    let made = make(&half).await;
    half.close().await;
    let (result, bundle) = made?;
    bundle
        .save(dir)
        .map_err(|error| failed(InitError::Failed(chain(&error))))?;
    founding.succeeded();
    let node = SealedNode {
        identity,
        bundle,
        stores: None,
    };
    Ok((result, node))
}

/// Says to other nodes that this one makes a cluster, until it is dropped; for ever, once it has succeeded.
///
/// Two nodes that know each other never both go on: each says so before it asks, so of two that ask at about the same
/// time at least one hears of the other. It may be both, and then neither goes on.
struct Founding<'a> {
    shared: &'a Shared,
    attempt: String,
    succeeded: bool,
}

impl<'a> Founding<'a> {
    fn announce(shared: &'a Shared) -> Result<Self, InitError> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| InitError::Failed(error.to_string()))?;
        let attempt = hex::encode(random);
        shared.founding.store(Some(Arc::new(attempt.clone())));
        Ok(Self {
            shared,
            attempt,
            succeeded: false,
        })
    }

    /// Refuses when a node of `configured` belongs to a cluster, which this one is about to join, or makes one.
    async fn be_the_only_one(&self, configured: &[Target]) -> Result<(), InitError> {
        let asked = configured.iter().map(join::ask);
        let answers = futures_util::future::join_all(asked).await;
        if answers.contains(&Other::Initialized) {
            return Err(InitError::AlreadyInitialized);
        }
        let mut asked = answers.iter().zip(configured);
        if let Some((_, target)) = asked.find(|(answer, _)| **answer == Other::Undecided) {
            return Err(InitError::Undecided(target.address.clone()));
        }
        let another = answers.iter().zip(configured).find(|(answer, _)| {
            // This node itself may be behind an address of the list, a load balancer's for one.
            matches!(answer, Other::Founding(attempt) if *attempt != self.attempt)
        });
        match another {
            None => Ok(()),
            Some((_, target)) => Err(InitError::Elsewhere(target.address.clone())),
        }
    }

    fn succeeded(mut self) {
        self.succeeded = true;
    }
}

impl Drop for Founding<'_> {
    fn drop(&mut self) {
        if !self.succeeded {
            self.shared.founding.store(None);
        }
    }
}

/// Answers who has asked for a new cluster: as soon as it serves, or after [`INIT_GRACE`] whatever keeps it from serving,
/// since what was made is there by then. `None`: none was made, and the caller has been told. `lost`: for the log, if
/// nobody waits any more for what was made.
fn founded<T: Send + 'static, E: std::error::Error + Send + 'static>(
    shared: &Arc<Shared>,
    made: Result<(T, SealedNode), E>,
    reply: oneshot::Sender<Result<T, E>>,
    lost: Option<&'static str>,
) -> Option<Stage> {
    match made {
        Ok((result, node)) => {
            tracing::info!("the cluster is initialized");
            let shared = Arc::clone(shared);
            tokio::spawn(async move {
                serves(&shared, Instant::now() + INIT_GRACE).await;
                if reply.send(Ok(result)).is_err()
                    && let Some(lost) = lost
                {
                    tracing::error!("{lost}");
                }
            });
            Some(node.into())
        }
        Err(error) => {
            tracing::warn!(error = %chain(&error), "initialization did not succeed");
            // Nobody to tell if the caller has gone away.
            let _ = reply.send(Err(error));
            None
        }
    }
}

/// Waits for the HSM and opens the keyring; `None` when the node is told to stop.
async fn unseal(
    shared: &Shared,
    bundle: &SealBundle,
    orders: &mut mpsc::Receiver<Order>,
    stop: &CancellationToken,
) -> Option<Keyring> {
    let mut pause = FIRST_PAUSE;
    let mut last_why = String::new();
    // Why an earlier attempt has failed is told until this one is through.
    if !matches!(&**shared.phase.load(), Phase::Sealed { failed: true, .. }) {
        shared.set_phase(Phase::Sealed {
            config: bundle.config.clone(),
            why: "waiting for the HSM".to_owned(),
            failed: false,
        });
    }
    loop {
        let attempt = async {
            shared.hsm.connected().await;
            bundle.open(&shared.hsm).await
        };
        let opened = tokio::select! {
            () = stop.cancelled() => return None,
            () = refuse(orders) => return None,
            opened = attempt => opened,
        };
        let why = match opened {
            Ok(keyring) => return Some(keyring),
            Err(error) => format!("unsealing: {}", chain(&error)),
        };
        if why != last_why {
            tracing::error!("{why}");
            last_why.clone_from(&why);
        }
        set_failed(shared, bundle, &why);
        tokio::select! {
            () = stop.cancelled() => return None,
            () = refuse(orders) => return None,
            () = tokio::time::sleep(super::jittered(pause)) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn set_failed(shared: &Shared, bundle: &SealBundle, why: &str) {
    shared.set_phase(Phase::Sealed {
        config: bundle.config.clone(),
        why: why.to_owned(),
        failed: true,
    });
}

/// Answers orders that came too late; ends only when nobody can give any more.
async fn refuse(orders: &mut mpsc::Receiver<Order>) {
    while let Some(order) = orders.recv().await {
        // The caller may have gone away.
        let _ = match order {
            Order::Init { reply, .. } => reply.send(Err(InitError::AlreadyInitialized)).is_ok(),
            Order::Join { reply, .. } => reply.send(Ok(true)).is_ok(),
            Order::Restore { reply, .. } => {
                let why = HAS_CLUSTER.to_owned();
                reply.send(Err(SnapshotError::Unavailable(why))).is_ok()
            }
        };
    }
}

/// Runs Raft and serves until told to stop or until storage fails.
async fn run(
    shared: &Arc<Shared>,
    node: SealedNode,
    keyring: Keyring,
    orders: &mut mpsc::Receiver<Order>,
    stop: &CancellationToken,
) -> Result<Stage, FatalError> {
    let SealedNode {
        identity,
        bundle,
        stores,
    } = node;
    let running = match start(shared, &identity, &bundle, keyring, stores, stop).await {
        Ok(running) => running,
        Err(StartError::Fatal(error)) => return Err(error),
        Err(StartError::Again { why, stores }) => {
            tracing::error!("{why}");
            set_failed(shared, &bundle, &why);
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(super::jittered(LONGEST_PAUSE)) => {}
            }
            return Ok(SealedNode {
                identity,
                bundle,
                stores,
            }
            .into());
        }
    };
    shared.set_phase(Phase::Unsealed(Arc::clone(&running)));
    tracing::info!(raft_id = identity.raft_id, "the node is unsealed");
    let background = CancellationToken::new();
    tokio::spawn(
        background
            .clone()
            .run_until_cancelled_owned(announce(running.raft.clone(), own_info(shared))),
    );
    let outcome = tokio::select! {
        () = stop.cancelled() => Ok(Stage::Stopped),
        () = refuse(orders) => Ok(Stage::Stopped),
        why = running.raft.fatal() => Err(FatalError::Storage(why)),
        name = running.task_died() => Err(FatalError::Task(name)),
        why = running.raft.removed() => {
            shut_down(&running).await;
            Ok(Stage::Removed { bundle: Box::new(bundle), why })
        }
    };
    background.cancel();
    outcome
}

/// The cluster has removed this node: nothing is served but the news of it.
async fn removed(
    shared: &Shared,
    bundle: &SealBundle,
    why: String,
    orders: &mut mpsc::Receiver<Order>,
    stop: &CancellationToken,
) -> Stage {
    let dir = shared.config.storage.path.display();
    tracing::error!(
        "this node was removed from the cluster and serves nothing any more ({why}). To take it back: stop it, move \
         {dir} away, and start it with an empty data directory; it joins under its name and gets everything from the \
         others"
    );
    shared.set_phase(Phase::Removed {
        config: bundle.config.clone(),
    });
    tokio::select! {
        () = stop.cancelled() => {}
        () = refuse(orders) => {}
    }
    Stage::Stopped
}

/// Ends Raft and closes its stores.
async fn shut_down(running: &Running) {
    running.core.store(None);
    let closing = tokio::time::timeout(CLOSE, running.raft.shutdown());
    if closing.await.is_err() {
        tracing::error!("the stores did not close in time; the next start replays their log");
    }
}

/// Leaves a cluster that goes on: health turns unhealthy, leadership is handed over, and requests are served until every
/// load balancer has noticed. A node alone has nobody to leave to.
pub(crate) async fn leave(shared: &Shared) {
    let Some(running) = shared.running() else {
        return;
    };
    let status = running.raft.status();
    let others = status
        .members
        .iter()
        .filter(|m| m.raft_id != status.raft_id);
    let nobody = !others.into_iter().any(|member| member.voter);
    if nobody || running.core().is_none() {
        return;
    }
    shared.leaving.store(true, Ordering::Relaxed);
    let noticed = tokio::time::sleep(NOTICE);
    hand_over(&running.raft).await;
    noticed.await;
    let storage = &shared.config.storage;
    if storage.leave_on_shutdown && !running.raft.watch().borrow().is_ready_leader {
        leave::leave(&running.raft, &storage.path).await;
    }
}

/// Stops Raft after the listeners have drained.
pub(crate) async fn close(shared: &Shared) {
    if let Some(running) = shared.running() {
        shut_down(&running).await;
    }
    if tokio::time::timeout(CLOSE, shared.hsm.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("the HSM did not close in time");
    }
}

/// Gives leadership away before the node leaves, so that nobody waits for an election.
async fn hand_over(raft: &Raft) {
    if !raft.watch().borrow().is_ready_leader {
        return;
    }
    let deadline = Instant::now() + HAND_OVER;
    match raft.transfer_leader(Next::Anybody, deadline).await {
        Ok(()) => tracing::info!("leadership was handed over"),
        Err(error) => tracing::warn!(error = %chain(&error), "leadership was not handed over"),
    }
}

enum StartError {
    Fatal(FatalError),
    /// The cause may go away: a port in use, for one.
    Again {
        why: String,
        stores: Option<Stores>,
    },
}

/// What the cluster port needs besides Raft: its sockets and certificates.
async fn cluster_port(
    config: &Config,
    identity: &Identity,
    keyring: &Keyring,
) -> Result<(Vec<TcpListener>, ClusterTls), String> {
    let tls = cluster_tls::node_tls(
        keyring.ca_certificate(),
        keyring.ca_key(),
        &identity.cluster_id,
        identity.raft_id,
        &[strongroom_raft::ALPN, forward::ALPN],
    )
    .map_err(|error| format!("cluster certificates: {}", chain(&error)))?;
    let mut listeners = Vec::new();
    for address in config.cluster_listeners() {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| format!("cluster address {address}: {error}"))?;
        listeners.push(listener);
    }
    Ok((listeners, tls))
}

async fn start(
    shared: &Arc<Shared>,
    identity: &Identity,
    bundle: &SealBundle,
    keyring: Keyring,
    stores: Option<Stores>,
    stop: &CancellationToken,
) -> Result<Arc<Running>, StartError> {
    let config = &shared.config;
    let prepared = match (
        cluster_port(config, identity, &keyring).await,
        JoinGate::new(),
    ) {
        (Ok(port), Ok(gate)) => Ok((port, gate)),
        (Err(why), _) | (_, Err(why)) => Err(why),
    };
    let ((listeners, tls), gate) = match prepared {
        Ok(prepared) => prepared,
        Err(why) => return Err(StartError::Again { why, stores }),
    };
    let (forwarded, incoming) = mpsc::channel(64);
    let transport = Transport {
        listeners,
        server_tls: tls.server,
        client_tls: tls.client,
        streams: HashMap::from([(forward::ALPN, forwarded)]),
    };
    let dir = &config.storage.path;
    let unusable = |why: String| {
        StartError::Fatal(FatalError::DataDirectory {
            dir: dir.clone(),
            why,
        })
    };
    let stores = match stores {
        Some(stores) => stores,
        None => super::open_stores(dir, identity)
            .await
            .map_err(|error| unusable(chain(&error)))?,
    };
    let options = super::raft_options(config, identity.clone());
    let raft = Raft::start(stores, options, Some(transport))
        .await
        .map_err(|error| unusable(chain(&error)))?;

    let cluster = super::cluster_identity(config, &identity.cluster_id);
    let running = Arc::new(Running {
        raft: raft.clone(),
        raft_id: identity.raft_id,
        cluster_id: identity.cluster_id,
        cluster_name: cluster.name,
        bundle: ArcSwap::from_pointee(bundle.clone()),
        forwarder: Arc::new(Forwarder::new(raft.clone())),
        gate,
        core: ArcSwapOption::empty(),
        between: AtomicBool::new(false),
        paused: AtomicBool::new(false),
        trouble: ArcSwapOption::empty(),
        died: watch::Sender::default(),
        saves: Arc::new(Semaphore::new(save::AT_ONCE)),
    });
    let node = Arc::new(NodePort(Arc::clone(shared)));
    let service = Service::for_followers(node, super::forwarded_settings(config, &shared.limits));
    tokio::spawn(forward::serve(incoming, service));
    let serve = serving::keep(Arc::clone(shared), Arc::clone(&running), keyring);
    running.vital("serving", stop, serve);
    let tidy = restore::tidy(Arc::clone(shared), Arc::clone(&running));
    running.vital("clearing up after restores", stop, tidy);
    let snapshots = auto::run(Arc::clone(shared), Arc::clone(&running));
    running.vital("snapshots on a schedule", stop, snapshots);
    let settings = autopilot::follow_settings(Arc::clone(&running));
    running.vital("autopilot's settings", stop, settings);
    Ok(running)
}

/// Waits until this node leads and serves, or until `deadline`.
async fn serves(shared: &Shared, deadline: Instant) {
    let serves = || {
        shared.running().is_some_and(|running| {
            running.core().is_some() && running.raft.watch().borrow().is_ready_leader
        })
    };
    while Instant::now() < deadline && !serves() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Keeps this node's addresses and version on record: a leader of an older version drops what it does not know.
async fn announce(raft: Raft, info: PeerInfo) {
    let mut last_why = String::new();
    let mut role = raft.watch();
    loop {
        let pause = match raft.announce(info.clone()).await {
            Ok(()) => ANNOUNCE,
            Err(error) => {
                let why = chain(&error);
                if why != last_why {
                    tracing::debug!("announcing this node's addresses: {why}");
                    last_why = why;
                }
                Duration::from_secs(1)
            }
        };
        role.mark_unchanged();
        tokio::select! {
            () = tokio::time::sleep(super::jittered(pause)) => {}
            changed = role.changed(), if pause == ANNOUNCE => if changed.is_err() {
                return;
            },
        }
    }
}

fn own_info(shared: &Shared) -> PeerInfo {
    super::peer_info(&shared.config)
}
