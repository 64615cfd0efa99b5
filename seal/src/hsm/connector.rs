//! The connector: the one thread that makes and remakes the connection to the HSM.
//!
//! Rungs of recovery: a worker opens a new session by itself (A); the connector logs in again on the same context (B);
//! it calls C_Finalize and C_Initialize and starts over (C), with back-off, until it succeeds. A rung counts only when
//! the canary opens: some modules let everything but the operations themselves succeed on a dead device.
//!
//! Invariants
//! - C_Finalize runs only when nobody is inside the module.
//! - One login at most per attempt, and none that the PIN guard or the token's flags speak against.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use cryptoki::{
    context::Pkcs11,
    session::Session,
    slot::{Limit, Slot, TokenInfo},
};

use super::{
    conn::{self, Conn, Locking, to_error, unavailable},
    error::{Fault, Health, HsmError, brief},
    keys::{self, ById, Resolved},
    shared::{Broken, Inbox, Order, Shared, stopping},
    worker::{self, Job},
};
use crate::config::SealConfig;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The first seconds of an outage are retried fast: SoftHSM loses sight of a token while another process logs in.
const FAST_FOR: Duration = Duration::from_secs(10);
const FAST_PAUSE: Duration = Duration::from_millis(500);
/// How often an idle HSM is asked whether it is still there.
const PROBE_AFTER: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_secs(1);
/// More lost logins than this within [`FLAPPING`], and the next one waits: an HSM that drops logins may count them.
const MAX_LOST_LOGINS: usize = 3;
const FLAPPING: Duration = Duration::from_secs(60);
/// How often a key that is not seen is looked for again in a new context.
const LOOKS: u32 = 3;

pub(super) struct Connector {
    shared: Arc<Shared>,
    sender: async_channel::WeakSender<Job>,
    module: Option<Pkcs11>,
    initialized: bool,
    /// Carries the login of the context.
    login: Option<Session>,
    pinned: Option<SealConfig>,
    generation: u64,
    epoch: u64,
    locking: Locking,
    /// See [`Conn::serial`]; one for all connections, because calls on an old one may still run.
    serial: Arc<Mutex<()>>,
    lost_logins: VecDeque<Instant>,
    /// Attempts since the connection was lost.
    failures: u32,
}

/// The token that was found.
#[derive(Clone, Copy)]
struct Token {
    slot: Slot,
    /// See [`Conn::few_sessions`].
    few_sessions: bool,
}

/// Why waiting ended.
enum Woken {
    Time,
    Stop,
}

impl Connector {
    pub(super) fn new(shared: Arc<Shared>, sender: async_channel::WeakSender<Job>) -> Self {
        Self {
            shared,
            sender,
            module: None,
            initialized: false,
            login: None,
            pinned: None,
            generation: 0,
            epoch: 0,
            locking: Locking::Module,
            serial: Arc::default(),
            lost_logins: VecDeque::new(),
            failures: 0,
        }
    }

    pub(super) fn run(mut self) {
        let mut stop = matches!(self.reconnect(None), Woken::Stop);
        while !stop {
            let inbox = self.shared.take_inbox(TICK);
            stop = match (inbox.stop || self.is_orphaned(), inbox.broken) {
                (true, _) => {
                    self.end(inbox);
                    return;
                }
                (false, Some(broken)) if broken.generation == self.generation => {
                    self.refuse_orders(inbox.orders);
                    matches!(self.reconnect(Some(broken)), Woken::Stop)
                }
                (false, _) => self
                    .carry_out(inbox.orders)
                    .is_some_and(|woken| matches!(woken, Woken::Stop)),
            };
            self.probe();
        }
        let inbox = self.shared.take_inbox(Duration::ZERO);
        self.end(inbox);
    }

    /// Whether every handle is gone.
    fn is_orphaned(&self) -> bool {
        self.shared.jobs.is_closed()
    }

    /// Connects, over and over, until it succeeds.
    fn reconnect(&mut self, broken: Option<Broken>) -> Woken {
        let began = Instant::now();
        self.failures = 0;
        let mut soft = broken.is_some_and(|broken| broken.soft);
        if broken.is_some_and(|broken| broken.login) {
            self.lost_logins.push_back(began);
        }
        loop {
            if let Some(wait) = self.wait_for_login() {
                self.shared.set_health(Health::Down {
                    since: began,
                    why: "the HSM drops the login again and again; waiting a minute".to_owned(),
                });
                if matches!(self.pause(wait), Woken::Stop) {
                    return Woken::Stop;
                }
            }
            let outcome = if std::mem::take(&mut soft) {
                self.log_in_again()
            } else {
                self.start_over()
            };
            self.shared.connector_inside(false);
            match outcome {
                Ok(()) => return Woken::Time,
                Err(error) => self.shared.set_health(health_of(error, began)),
            }
            let pause = self.next_pause(began);
            if matches!(self.pause(pause), Woken::Stop) {
                return Woken::Stop;
            }
        }
    }

    /// How long the next login must wait because too many were lost.
    fn wait_for_login(&mut self) -> Option<Duration> {
        self.lost_logins.retain(|at| at.elapsed() < FLAPPING);
        if self.lost_logins.len() <= MAX_LOST_LOGINS {
            return None;
        }
        let oldest = self.lost_logins.front()?;
        Some(FLAPPING.saturating_sub(oldest.elapsed()))
    }

    fn next_pause(&mut self, began: Instant) -> Duration {
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10));
        self.failures += 1;
        let cap = if began.elapsed() < FAST_FOR {
            FAST_PAUSE
        } else {
            LONGEST_PAUSE
        };
        // ± 50 %, so that nodes do not hammer a shared HSM in step.
        doubled.min(cap).mul_f64(rand::random_range(0.5..1.5))
    }

    /// Waits, answering orders meanwhile.
    fn pause(&mut self, length: Duration) -> Woken {
        let until = Instant::now() + length;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let inbox = self.shared.take_inbox(left.min(TICK));
            self.refuse_orders(inbox.orders);
            if inbox.stop || self.is_orphaned() {
                if let Some(done) = inbox.shutdown {
                    self.shared.shut_down(done);
                }
                return Woken::Stop;
            }
            if left.is_zero() {
                return Woken::Time;
            }
        }
    }

    fn refuse_orders(&self, orders: Vec<Order>) {
        for Order::Open { reply, .. } in orders {
            // The caller may have gone.
            let _ = reply.send(Err(self.shared.refusal()));
        }
    }

    /// Rung B. The old login session is forgotten: closing it could end the login.
    fn log_in_again(&mut self) -> Result<(), HsmError> {
        self.enter();
        let module = self
            .module
            .clone()
            .ok_or_else(|| unavailable("not loaded"))?;
        // Calls on the old connection may still run.
        let serial = Arc::clone(&self.serial);
        let _alone = (self.locking == Locking::Ours)
            .then(|| serial.lock().unwrap_or_else(PoisonError::into_inner));
        let token = self.log_in(&module)?;
        self.publish(&module, token)
    }

    /// Rung C.
    fn start_over(&mut self) -> Result<(), HsmError> {
        self.finalize(false)?;
        let module = match &self.module {
            Some(module) => module.clone(),
            None => {
                self.enter();
                let module = conn::load(&self.shared.config.lib)?;
                self.module = Some(module.clone());
                module
            }
        };
        self.enter();
        self.locking = conn::initialize(&module)?;
        self.initialized = true;
        self.epoch += 1;
        let token = self.log_in(&module)?;
        self.publish(&module, token)
    }

    /// Finds the token and logs in; the login lasts as long as its session.
    fn log_in(&mut self, module: &Pkcs11) -> Result<Token, HsmError> {
        self.enter();
        let (slot, info) = conn::find_slot(module, &self.shared.config)?;
        self.enter();
        let session = {
            let pin = self
                .shared
                .pin
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let pin = pin.as_ref().ok_or_else(stopping)?;
            conn::log_in(module, slot, info.as_ref(), &self.shared.config, pin)?
        };
        self.login = Some(session);
        Ok(Token {
            slot,
            few_sessions: info.is_some_and(|info| self.has_few_sessions(&info)),
        })
    }

    /// Proves the cluster's keys, if they are known, and lets workers in.
    fn publish(&mut self, module: &Pkcs11, token: Token) -> Result<(), HsmError> {
        self.enter();
        let mut conn = Conn {
            generation: self.generation + 1,
            epoch: self.epoch,
            pkcs11: module.clone(),
            slot: token.slot,
            force_rw: self.shared.config.force_rw_session,
            serial: (token.few_sessions || self.locking == Locking::Ours)
                .then(|| Arc::clone(&self.serial)),
            few_sessions: token.few_sessions,
            keys: Vec::new(),
        };
        match &self.pinned {
            Some(config) => conn.keys = self.resolve(&conn, config)?,
            None => worker::check(&conn).map_err(to_error)?,
        }
        self.admit(conn);
        Ok(())
    }

    fn resolve(&self, conn: &Conn, config: &SealConfig) -> Result<Vec<Resolved>, HsmError> {
        self.enter();
        keys::resolve(conn, config, ById::of(&self.shared.config)).map_err(to_error)
    }

    /// Whether the token has no session for every worker beside the login and a check.
    fn has_few_sessions(&self, info: &TokenInfo) -> bool {
        let wanted = self.shared.config.threads() as u64 + 2;
        matches!(info.max_session_count(), Limit::Max(most) if most < wanted)
    }

    fn admit(&mut self, conn: Conn) {
        self.generation = conn.generation;
        self.shared.gate.publish(Arc::new(conn));
        self.shared.set_health(Health::Ok);
    }

    /// Ends the context, once nobody is inside it.
    fn finalize(&mut self, remade_at_once: bool) -> Result<(), HsmError> {
        self.shared.gate.close(remade_at_once);
        let patience = self.shared.config.call_deadline.saturating_mul(2);
        if !self.shared.gate.drained(patience) {
            self.shared.set_health(Health::Stuck);
            return Err(HsmError::Timeout);
        }
        // Its context ends with it.
        self.login = None;
        if std::mem::take(&mut self.initialized)
            && let Some(module) = self.module.clone()
        {
            self.enter();
            if let Err(error) = module.finalize() {
                tracing::debug!(error = brief(&error), "C_Finalize failed");
            }
        }
        Ok(())
    }

    fn enter(&self) {
        self.shared.connector_inside(true);
    }

    fn carry_out(&mut self, orders: Vec<Order>) -> Option<Woken> {
        let mut woken = None;
        for Order::Open { config, reply } in orders {
            if reply.is_closed() {
                continue;
            }
            let outcome = self.open(&config);
            self.shared.connector_inside(false);
            let lost = self.shared.gate.current().is_none();
            // The caller may have gone.
            let _ = reply.send(outcome);
            if lost {
                woken = Some(self.reconnect(None));
            }
        }
        woken
    }

    /// Pins `config`'s keys.
    fn open(&mut self, config: &SealConfig) -> Result<(), HsmError> {
        let current = self
            .shared
            .gate
            .current()
            .ok_or_else(|| self.shared.refusal())?;
        if self.pinned.as_ref() == Some(config) && !current.keys.is_empty() {
            return Ok(());
        }
        let mut looked = 0;
        loop {
            let error = match self.look(config) {
                Ok(conn) => {
                    self.pinned = Some(config.clone());
                    self.admit(conn);
                    return Ok(());
                }
                Err(error) => error,
            };
            looked += 1;
            match &error {
                // A key that another process made may be invisible to this context for good.
                // And one that is logged in to by another process may be out of order for a moment.
                HsmError::KeyMissing { .. }
                | HsmError::KeyForeign { .. }
                | HsmError::Unavailable { .. }
                    if looked < LOOKS =>
                {
                    std::thread::sleep(FIRST_PAUSE.saturating_mul(looked));
                    self.restart_context()?;
                }
                HsmError::KeyMissing { .. }
                | HsmError::KeyForeign { .. }
                | HsmError::KeyDuplicate { .. }
                | HsmError::Misconfigured { .. } => return Err(error),
                HsmError::Unavailable { .. }
                | HsmError::Timeout
                | HsmError::Overloaded
                | HsmError::PinRefused { .. }
                | HsmError::Rejected
                | HsmError::KeyUnknown { .. } => {
                    self.lose(error.clone());
                    return Err(error);
                }
            }
        }
    }

    /// The current connection, with `config`'s keys.
    fn look(&self, config: &SealConfig) -> Result<Conn, HsmError> {
        let current = self
            .shared
            .gate
            .current()
            .ok_or_else(|| self.shared.refusal())?;
        self.enter();
        let _alone = current.lock();
        Ok(Conn {
            generation: self.generation + 1,
            epoch: current.epoch,
            pkcs11: current.pkcs11.clone(),
            slot: current.slot,
            force_rw: current.force_rw,
            serial: current.serial.clone(),
            few_sessions: current.few_sessions,
            keys: self.resolve(&current, config)?,
        })
    }

    /// Rung C on purpose, while all is well.
    fn restart_context(&mut self) -> Result<(), HsmError> {
        let restarted = self.finalize(true).and_then(|()| self.start_over());
        restarted.inspect_err(|error| self.lose(error.clone()))
    }

    fn lose(&self, error: HsmError) {
        self.shared.gate.close(false);
        self.shared.set_health(health_of(error, Instant::now()));
    }

    /// Asks an idle or stuck HSM whether it is well; the answer is dealt with like any other call's.
    fn probe(&self) {
        let stuck = matches!(self.shared.health(), Health::Stuck);
        let due = self.shared.idle() >= PROBE_AFTER || stuck;
        // A job that waits asks the same question.
        if !due || self.shared.gate.current().is_none() || !self.shared.jobs.is_empty() {
            return;
        }
        let Some(sender) = self.sender.upgrade() else {
            return;
        };
        let deadline = self.shared.config.call_deadline;
        let probe = Probe;
        let job = Job {
            deadline: Instant::now() + deadline,
            limit: deadline.saturating_mul(2),
            opens: false,
            run: Box::new(probe),
        };
        // A full queue asks the same question more urgently.
        let _ = sender.try_send(job);
    }

    /// Forgets what would block, ends the context if it can, wipes the PIN.
    fn end(mut self, inbox: Inbox) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.shared.jobs.close();
        *self
            .shared
            .pin
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
        for Order::Open { reply, .. } in inbox.orders {
            // The caller may have gone.
            let _ = reply.send(Err(stopping()));
        }
        self.shared.gate.close(false);
        let patience = self.shared.config.call_deadline.min(Duration::from_secs(1));
        if self.shared.gate.drained(patience) {
            if let Err(error) = self.finalize(false) {
                tracing::debug!(%error, "the HSM's context could not be ended");
            }
        } else {
            tracing::warn!("a call into the PKCS#11 module does not return; leaving it behind");
        }
        // The library stays loaded: code of a call that has not returned may still run in it.
        std::mem::forget(self.module.take());
        if let Some(done) = inbox.shutdown {
            // Nobody may wait any more.
            let _ = done.send(());
        }
    }
}

/// A job nobody waits for: it counts by what the worker does with its failure.
struct Probe;

impl worker::Run for Probe {
    fn run(&mut self, conn: &Conn, session: &Session) -> Result<(), Fault> {
        match conn.keys.iter().find(|key| key.is_active()) {
            Some(key) => keys::opens_canary(session, &key.key, &key.handles).map(|_| ()),
            None => {
                session.get_session_info()?;
                Ok(())
            }
        }
    }

    fn finish(self: Box<Self>, outcome: Result<(), HsmError>) {
        if let Err(error) = outcome {
            tracing::debug!(%error, "probing the HSM failed");
        }
    }

    fn is_abandoned(&self) -> bool {
        false
    }
}

impl Resolved {
    pub(super) fn is_active(&self) -> bool {
        self.key.state == crate::config::KeyState::Active
    }
}

fn health_of(error: HsmError, since: Instant) -> Health {
    match error {
        HsmError::PinRefused { why } => Health::PinRefused { why },
        HsmError::Misconfigured { why } => Health::Misconfigured { why },
        error @ (HsmError::KeyMissing { .. }
        | HsmError::KeyDuplicate { .. }
        | HsmError::KeyForeign { .. }) => Health::Misconfigured {
            why: error.to_string(),
        },
        HsmError::Unavailable { why } => Health::Down { since, why },
        // A call that does not return keeps the context from being ended.
        HsmError::Timeout => Health::Stuck,
        error @ (HsmError::Overloaded | HsmError::Rejected | HsmError::KeyUnknown { .. }) => {
            Health::Down {
                since,
                why: error.to_string(),
            }
        }
    }
}
