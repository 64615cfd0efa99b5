//! What workers, connector, watcher and callers share: health, the gate, the queue, who is inside for how long.
//!
//! Invariants
//! - Health is the circuit breaker: unless it is `Ok`, callers are refused at once. Only the connector closes it again
//!   (by a canary, never by a user's request), except that a stuck module which answers again is well.
//! - A report about an older connection than the current one changes nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};

use super::{
    HsmConfig,
    error::{Health, HsmError},
    gate::Gate,
    worker::Job,
};
use crate::{config::SealConfig, secret::SecretString};

/// Calls given up on before the HSM counts as stuck; each costs a thread until it returns.
const MAX_GIVEN_UP: usize = 4;

/// What is asked of the connector.
pub(super) enum Order {
    /// Verify these keys now and at each reconnect.
    Open {
        config: Box<SealConfig>,
        reply: oneshot::Sender<Result<(), HsmError>>,
    },
}

/// The connector's inbox.
#[derive(Default)]
pub(super) struct Inbox {
    pub(super) orders: Vec<Order>,
    /// A broken connection, and whether only its login is gone.
    pub(super) broken: Option<Broken>,
    pub(super) shutdown: Option<oneshot::Sender<()>>,
    pub(super) stop: bool,
}

/// What a worker found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Broken {
    /// Of the connection it was seen on.
    pub(super) generation: u64,
    /// Whether logging in again on the same context may do.
    pub(super) soft: bool,
    /// Whether the HSM has dropped the login.
    pub(super) login: bool,
}

/// One worker thread.
struct Seat {
    /// When its current call began, and how long it may take.
    call: Option<(Instant, Duration)>,
    given_up: bool,
}

pub(super) struct Shared {
    pub(super) config: HsmConfig,
    pub(super) pin: Mutex<Option<SecretString>>,
    pub(super) gate: Gate,
    pub(super) jobs: async_channel::Receiver<Job>,
    health: watch::Sender<Health>,
    inbox: Mutex<Inbox>,
    rung: Condvar,
    seats: Mutex<BTreeMap<u64, Seat>>,
    next_seat: AtomicU64,
    pub(super) stopping: AtomicBool,
    started: Instant,
    /// Milliseconds after `started`.
    last_success: AtomicU64,
    /// The connector's call in progress.
    pub(super) connecting: Mutex<Option<Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(
        config: HsmConfig,
        pin: SecretString,
        jobs: async_channel::Receiver<Job>,
    ) -> Self {
        Self {
            config,
            pin: Mutex::new(Some(pin)),
            gate: Gate::default(),
            jobs,
            health: watch::Sender::new(Health::Connecting),
            inbox: Mutex::default(),
            rung: Condvar::new(),
            seats: Mutex::default(),
            next_seat: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            started: Instant::now(),
            last_success: AtomicU64::new(0),
            connecting: Mutex::default(),
        }
    }

    pub(super) fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Changes health and logs the change, once per reason.
    pub(super) fn set_health(&self, new: Health) {
        self.health.send_if_modified(|health| {
            let new = match (&*health, new) {
                // The outage began when it began, whatever its latest reason is.
                (Health::Down { since, .. }, Health::Down { why, .. }) => {
                    Health::Down { since: *since, why }
                }
                (_, new) => new,
            };
            if *health == new {
                return false;
            }
            match &new {
                Health::Ok => tracing::info!("the HSM is connected"),
                Health::Connecting => {}
                Health::Down { .. } | Health::Stuck => tracing::warn!("the HSM is {new}"),
                Health::PinRefused { .. } | Health::Misconfigured { .. } => {
                    tracing::error!("the HSM: {new}");
                }
            }
            *health = new;
            true
        });
    }

    /// Why calls are refused now.
    pub(super) fn refusal(&self) -> HsmError {
        if self.stopping.load(Ordering::Relaxed) {
            return stopping();
        }
        self.health().refusal().unwrap_or(HsmError::Unavailable {
            why: "the connection is being remade".to_owned(),
        })
    }

    /// A worker has found its connection broken: refuse calls and have it remade.
    pub(super) fn report(&self, broken: Broken, why: &str) {
        let mut inbox = lock(&self.inbox);
        let current = self.gate.current().map(|conn| conn.generation);
        if current != Some(broken.generation) {
            return;
        }
        self.gate.close(false);
        self.set_health(Health::Down {
            since: Instant::now(),
            why: why.to_owned(),
        });
        inbox.broken = Some(broken);
        self.rung.notify_all();
    }

    /// A call has come back with a result.
    pub(super) fn succeeded(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_success.store(now, Ordering::Relaxed);
        if self.gate.current().is_some() && matches!(*self.health.borrow(), Health::Stuck) {
            self.set_health(Health::Ok);
        }
    }

    /// How long ago the HSM last answered a call.
    pub(super) fn idle(&self) -> Duration {
        let last = Duration::from_millis(self.last_success.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }

    pub(super) fn order(&self, order: Order) {
        lock(&self.inbox).orders.push(order);
        self.rung.notify_all();
    }

    /// Asks the connector to end; `done` is dropped or told when it has.
    pub(super) fn shut_down(&self, done: oneshot::Sender<()>) {
        self.stopping.store(true, Ordering::Relaxed);
        let mut inbox = lock(&self.inbox);
        inbox.stop = true;
        inbox.shutdown = Some(done);
        self.rung.notify_all();
    }

    /// Takes what is in the inbox, waiting up to `patience` for something to be there.
    pub(super) fn take_inbox(&self, patience: Duration) -> Inbox {
        let inbox = lock(&self.inbox);
        let (mut inbox, _) = self
            .rung
            .wait_timeout_while(inbox, patience, |inbox| {
                inbox.orders.is_empty() && inbox.broken.is_none() && !inbox.stop
            })
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *inbox)
    }

    /// A new worker's number.
    pub(super) fn take_seat(&self) -> u64 {
        let id = self.next_seat.fetch_add(1, Ordering::Relaxed);
        lock(&self.seats).insert(
            id,
            Seat {
                call: None,
                given_up: false,
            },
        );
        id
    }

    pub(super) fn leave_seat(&self, id: u64) {
        lock(&self.seats).remove(&id);
    }

    pub(super) fn call_begins(&self, id: u64, limit: Duration) {
        if let Some(seat) = lock(&self.seats).get_mut(&id) {
            seat.call = Some((Instant::now(), limit));
        }
    }

    /// Whether the worker was given up meanwhile and must end.
    pub(super) fn call_ended(&self, id: u64) -> bool {
        match lock(&self.seats).get_mut(&id) {
            Some(seat) => {
                seat.call = None;
                seat.given_up
            }
            None => true,
        }
    }

    /// Gives up workers whose call does not return; says how many new ones are wanted.
    pub(super) fn watch(&self) -> usize {
        let mut seats = lock(&self.seats);
        let mut given_up = seats.values().filter(|seat| seat.given_up).count();
        let mut stuck = false;
        for seat in seats.values_mut().filter(|seat| !seat.given_up) {
            if seat
                .call
                .is_some_and(|(since, limit)| since.elapsed() > limit)
            {
                if given_up < MAX_GIVEN_UP {
                    seat.given_up = true;
                    given_up += 1;
                } else {
                    stuck = true;
                }
            }
        }
        let serving = seats.values().filter(|seat| !seat.given_up).count();
        drop(seats);
        let patience = self.config.call_deadline.saturating_mul(2);
        let connector = *lock(&self.connecting);
        if stuck || connector.is_some_and(|since| since.elapsed() > patience) {
            self.set_health(Health::Stuck);
        }
        self.config.threads().saturating_sub(serving)
    }

    /// Notes that the connector enters the module, or has left it.
    pub(super) fn connector_inside(&self, inside: bool) {
        *lock(&self.connecting) = inside.then(Instant::now);
    }
}

pub(super) fn stopping() -> HsmError {
    HsmError::Unavailable {
        why: "this node is shutting down".to_owned(),
    }
}

/// Gives up threads that hang and replaces them, until the connector ends.
pub(super) fn watch(shared: &Arc<Shared>) {
    let pause = (shared.config.call_deadline / 5)
        .clamp(Duration::from_millis(10), Duration::from_millis(500));
    while !shared.stopping.load(Ordering::Relaxed) {
        for _ in 0..shared.watch() {
            if let Err(error) = super::worker::spawn(shared) {
                tracing::error!(%error, "no thread for an HSM worker");
                break;
            }
        }
        std::thread::sleep(pause);
    }
}
