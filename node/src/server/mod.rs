//! `strongroom server`: configuration in, a serving node out, an exit code at the end.
//!
//! Order of start: harden the process, read the configuration, open the client port (health answers from the first
//! moment), connect the HSM, then whatever the data directory says (see [`lifecycle`]). Order of stop: hand over
//! leadership, drain clients, stop Raft, close the HSM.

mod auto;
mod autopilot;
mod bundle;
mod cluster_tls;
mod files;
mod forward;
mod harden;
mod init;
mod join;
mod leave;
mod lifecycle;
mod listen;
pub(crate) mod node;
mod restore;
mod save;
mod scheduling;
mod serving;
mod wire;

use std::{
    panic::AssertUnwindSafe,
    path::Path,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use strongroom_api::{HttpSettings, Limits, Service, core::ClusterIdentity};
use strongroom_raft::{Identity, OpenError, Options, Pace, PeerInfo, Stores};
use strongroom_seal::hsm::{Hsm, HsmConfig, Mechanism, OaepHash};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{
    bundle::SealBundle,
    lifecycle::FatalError,
    listen::ReloadableCert,
    node::{NodePort, Phase, Shared},
};
use crate::config::{self, Config, Listener};

/// Version reported to clients and peers.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Vault's clients expect a build date; a reproducible build has none, so it is the release's.
pub(crate) const BUILD_DATE: &str = "2026-11-23T00:00:00Z";

/// Bodies are bounded even where the configuration lifts the limit.
const LARGEST_BODY: usize = 1 << 30;
/// Threads for requests and Raft, however few cores there are: the disk can hold the one that applies, and somebody must be able
/// to answer (the log is written on a thread of its own). More than cores cost: with three on two a request takes a twentieth
/// more time.
const MIN_WORKERS: usize = 2;
/// Open requests get this long to end at shutdown.
const DRAIN: Duration = Duration::from_secs(15);
/// The same, when there is nothing left that could answer them.
const FATAL_DRAIN: Duration = Duration::from_secs(1);

/// Runs a node until a signal ends it. 0: stopped as told; 1: could not start or cannot go on.
pub(crate) fn run(config: Config) -> ExitCode {
    crate::telemetry::install();
    // Before there are other threads: they take it over.
    scheduling::no_interrupting();
    let workers = std::thread::available_parallelism().map_or(MIN_WORKERS, usize::from);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers.max(MIN_WORKERS))
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the runtime could not be started");
            return ExitCode::FAILURE;
        }
    };
    // A panic must not wait, on its way out, for threads that never end.
    let serving = AssertUnwindSafe(|| runtime.block_on(serve(Arc::new(config))));
    let outcome = std::panic::catch_unwind(serving);
    // Worker threads may sit in a call to the HSM that never returns.
    runtime.shutdown_timeout(Duration::from_secs(2));
    match outcome.unwrap_or_else(|_| Err("the node panicked".to_owned())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!("{why}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Arc<Config>) -> Result<(), String> {
    harden::harden(!config.disable_mlock).map_err(|error| chain(&error))?;
    let (orders, incoming_orders) = mpsc::channel(1);
    let hsm = Hsm::start(hsm_config(&config)).map_err(|error| chain(&error))?;
    let stop = CancellationToken::new();
    let shared = Arc::new(Shared {
        config: Arc::clone(&config),
        hsm,
        phase: ArcSwap::from_pointee(first_phase(&config)),
        orders,
        restorer: Arc::default(),
        founding: ArcSwapOption::empty(),
        leaving: AtomicBool::new(false),
        stop: stop.clone(),
        started: Instant::now(),
        changed: Notify::new(),
        limits: limits(&config),
    });
    node::held_requests();
    let intervals = tokio::spawn(crate::telemetry::run());
    let stop_clients = CancellationToken::new();
    let mut clients = JoinSet::new();
    let mut certificates = Vec::new();
    for listener in &config.listeners {
        let socket = TcpListener::bind(listener.address)
            .await
            .map_err(|error| format!("listening on {}: {error}", listener.address))?;
        let tls = match &listener.tls {
            None => None,
            Some(settings) => {
                let certificate = ReloadableCert::load(settings.clone()).map_err(|e| chain(&e))?;
                let tls = certificate.server_config().map_err(|e| chain(&e))?;
                certificates.push(certificate);
                Some(tls)
            }
        };
        tracing::info!(address = %listener.address, tls = tls.is_some(), "listening");
        let node = Arc::new(NodePort(Arc::clone(&shared)));
        let settings = listener_settings(listener, &shared.limits);
        clients.spawn(listen::serve(
            socket,
            listener.http_read_header_timeout,
            tls,
            Service::for_clients(node, settings),
            stop_clients.clone(),
        ));
    }

    let signals = tokio::spawn(watch_signals(stop.clone(), certificates));
    let outcome = tokio::select! {
        outcome = lifecycle::drive(Arc::clone(&shared), incoming_orders, stop.clone()) => outcome,
        // They end when they are told to, below.
        Some(_) = clients.join_next() => Err(FatalError::Task("a listener")),
    };
    stop.cancel();
    let drain = match &outcome {
        Ok(()) => {
            lifecycle::leave(&shared).await;
            DRAIN
        }
        Err(error) => {
            // Now: a disk that hangs can hold up the rest.
            tracing::error!(error = %chain(error), "the node cannot go on and stops");
            FATAL_DRAIN
        }
    };
    // Clients learn first; a new leader has been chosen by now if this node led.
    stop_clients.cancel();
    let drained = tokio::time::timeout(drain, async {
        while clients.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        tracing::warn!("some requests did not end in time and are cut off");
    }
    // Nobody is left who may use a key.
    lifecycle::close(&shared).await;
    signals.abort();
    intervals.abort();
    outcome.map_err(|error| chain(&error))
}

/// What `seal-status` says until the data directory has been opened, which takes a while after a crash.
fn first_phase(config: &Config) -> Phase {
    let dir = &config.storage.path;
    // A join that was cut off, or a node that has left, may have the one file and not be a member. What does not parse is reported by
    // the lifecycle.
    let is_member =
        matches!(Identity::load(dir), Ok(Some(_))) && matches!(leave::has_left(dir), Ok(false));
    match SealBundle::load(dir) {
        Ok(Some(bundle)) if is_member => Phase::Sealed {
            config: bundle.config,
            why: node::STARTING.to_owned(),
            failed: false,
        },
        Ok(_) | Err(_) => Phase::Starting,
    }
}

/// First TERM or INT stops in order, a second exits at once; HUP reads the TLS certificates again.
async fn watch_signals(stop: CancellationToken, certificates: Vec<Arc<ReloadableCert>>) {
    let (Ok(mut term), Ok(mut int), Ok(mut hup)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::hangup()),
    ) else {
        tracing::error!("signals cannot be watched; stop the node with SIGKILL");
        return;
    };
    loop {
        tokio::select! {
            _ = hup.recv() => {
                for certificate in &certificates {
                    match certificate.reload() {
                        Ok(()) => tracing::info!("TLS certificates were read again"),
                        Err(error) => tracing::error!(error = %chain(&error), "the old TLS certificate stays in use"),
                    }
                }
                continue;
            }
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        if stop.is_cancelled() {
            tracing::warn!("second signal: exiting at once");
            crate::leave(1);
        }
        tracing::info!("stopping");
        stop.cancel();
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Transparent wrappers repeat their cause.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// `pause` ± 25 %, so that nodes started together do not act in step.
pub(crate) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.75..1.25))
}

/// Opens both databases off the async threads: recovery reads the whole log.
pub(crate) async fn open_stores(dir: &Path, identity: &Identity) -> Result<Stores, OpenError> {
    let (dir, identity) = (dir.to_owned(), identity.clone());
    match tokio::task::spawn_blocking(move || Stores::open(&dir, &identity)).await {
        Ok(opened) => opened,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Limits of one client listener.
fn listener_settings(listener: &Listener, limits: &Limits) -> HttpSettings {
    HttpSettings {
        max_request_size: listener.max_request_size.unwrap_or(LARGEST_BODY),
        max_request_duration: listener.max_request_duration,
        metrics: listener.metrics,
        limits: limits.clone(),
    }
}

/// What all listeners together take: the largest body any of them takes must find room.
fn limits(config: &Config) -> Limits {
    let bodies = config.listeners.iter();
    let largest = bodies.map(|listener| listener.max_request_size.unwrap_or(LARGEST_BODY));
    Limits::for_bodies(largest.max().unwrap_or(0))
}

/// Limits for requests that came in on any node: the widest of this node's listeners.
fn forwarded_settings(config: &Config, limits: &Limits) -> HttpSettings {
    let narrowest = HttpSettings {
        limits: limits.clone(),
        ..HttpSettings::default()
    };
    let listeners = config.listeners.iter();
    listeners.fold(narrowest, |widest, listener| {
        let one = listener_settings(listener, limits);
        HttpSettings {
            max_request_size: widest.max_request_size.max(one.max_request_size),
            max_request_duration: widest.max_request_duration.max(one.max_request_duration),
            ..widest
        }
    })
}

fn hsm_config(config: &Config) -> HsmConfig {
    let seal = &config.seal;
    HsmConfig {
        lib: seal.lib.clone(),
        slot: seal.slot,
        token_label: seal.token_label.clone(),
        pin: seal.pin.to_string().into(),
        key_label: seal.key_label.clone(),
        key_id: seal.key_id.clone(),
        hmac_key_label: seal.hmac_key_label.clone(),
        hmac_key_id: seal.hmac_key_id.clone(),
        mechanism: seal.mechanism.map(|mechanism| match mechanism {
            config::Mechanism::AesCbcPadHmac => Mechanism::AesCbcPadHmac,
            config::Mechanism::AesGcm => Mechanism::AesGcm,
            config::Mechanism::RsaOaep => Mechanism::RsaOaep,
        }),
        rsa_oaep_hash: match seal.rsa_oaep_hash {
            config::OaepHash::Sha1 => OaepHash::Sha1,
            config::OaepHash::Sha224 => OaepHash::Sha224,
            config::OaepHash::Sha256 => OaepHash::Sha256,
            config::OaepHash::Sha384 => OaepHash::Sha384,
            config::OaepHash::Sha512 => OaepHash::Sha512,
        },
        generate_key: seal.generate_key,
        force_rw_session: seal.force_rw_session,
        max_parallel: seal.max_parallel,
        call_deadline: seal.call_deadline,
        pin_guard: seal.pin_guard.clone(),
        ignore_pin_flags: seal.ignore_pin_flags,
    }
}

fn raft_options(config: &Config, identity: Identity) -> Options {
    Options {
        identity,
        me: peer_info(config),
        multiplier: config.storage.performance_multiplier,
        max_entry_size: config.storage.max_entry_size,
        min_free_disk: config.storage.disk_reserve,
        snapshots: config.storage.snapshots,
        pace: Pace {
            update: config.storage.autopilot_update_interval,
            reconcile: config.storage.autopilot_reconcile_interval,
        },
    }
}

/// What the cluster keeps on record about this node.
pub(crate) fn peer_info(config: &Config) -> PeerInfo {
    PeerInfo {
        name: config.storage.node_id.clone(),
        cluster_addr: config.cluster_host_port(),
        api_addr: config.api_addr.clone(),
        hostname: hostname(),
        version: VERSION.to_owned(),
        non_voter: config.storage.retry_join_as_non_voter,
        leader_ineligible: config.storage.leader_ineligible,
        upgrade_version: config.storage.autopilot_upgrade_version.clone(),
        redundancy_zone: config.storage.autopilot_redundancy_zone.clone(),
    }
}

/// How clients see the cluster's id.
pub(crate) fn cluster_uuid(cluster_id: &[u8; 16]) -> String {
    uuid::Uuid::from_bytes(*cluster_id).to_string()
}

/// The name in the configuration, or one made from the id, the same on every node.
pub(crate) fn cluster_identity(config: &Config, cluster_id: &[u8; 16]) -> ClusterIdentity {
    let id = cluster_uuid(cluster_id);
    let short = id.split('-').next().unwrap_or_default();
    let name = config
        .cluster_name
        .clone()
        .unwrap_or_else(|| format!("strongroom-cluster-{short}"));
    ClusterIdentity { name, id }
}

/// This machine's name, empty if it has none that can be printed.
pub(crate) fn hostname() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}
