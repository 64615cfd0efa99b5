//! Worker threads: each takes jobs from the queue and carries them out in a session of its own.
//!
//! Invariants
//! - A job whose deadline has passed, or that nobody waits for any more, never reaches the HSM: otherwise an outage is
//!   followed by a storm of dead work.
//! - A session that has answered an error is not used again: some modules keep the broken operation active.
//! - An answer that may mean either "damaged blob" or "broken HSM" is decided by the canary, so that neither is taken
//!   for the other.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use cryptoki::{error::Error as Pkcs11Error, session::Session};
use tokio::sync::oneshot;

use super::{
    conn::{Conn, unavailable},
    error::{Class, Fault, HsmError, brief, class},
    keys,
    shared::{Broken, Shared},
};

/// Something to do inside the module.
pub(super) trait Run: Send {
    /// May be called again after a fault.
    fn run(&mut self, conn: &Conn, session: &Session) -> Result<(), Fault>;
    /// Tells the caller.
    fn finish(self: Box<Self>, outcome: Result<(), HsmError>);
    /// Whether nobody waits any more.
    fn is_abandoned(&self) -> bool;
}

/// One entry of the queue.
pub(super) struct Job {
    pub(super) deadline: Instant,
    /// How long the call itself may take before its thread is given up.
    pub(super) limit: Duration,
    /// Whether wrong data can be the caller's blob.
    pub(super) opens: bool,
    pub(super) run: Box<dyn Run>,
}

/// A [`Run`] made of a closure.
pub(super) struct Call<T, F> {
    pub(super) work: F,
    pub(super) result: Option<T>,
    pub(super) reply: oneshot::Sender<Result<T, HsmError>>,
}

impl<T, F> Run for Call<T, F>
where
    T: Send,
    F: FnMut(&Conn, &Session) -> Result<T, Fault> + Send,
{
    fn run(&mut self, conn: &Conn, session: &Session) -> Result<(), Fault> {
        self.result = Some((self.work)(conn, session)?);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), HsmError>) {
        let answer = match (outcome, self.result) {
            (Ok(()), Some(result)) => Ok(result),
            (Ok(()), None) => Err(unavailable("the call was not made")),
            (Err(error), _) => Err(error),
        };
        // The caller may have given up; then the result is dropped, and wiped if it is secret.
        let _ = self.reply.send(answer);
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
}

/// Starts one more worker.
pub(super) fn spawn(shared: &Arc<Shared>) -> io::Result<()> {
    let shared = Arc::clone(shared);
    let seat = shared.take_seat();
    let worker = Worker {
        shared: Arc::clone(&shared),
        seat,
        held: None,
    };
    thread::Builder::new()
        .name(format!("hsm-worker-{seat}"))
        .spawn(move || worker.serve())
        .map(|_| ())
        .inspect_err(|_| shared.leave_seat(seat))
}

struct Worker {
    shared: Arc<Shared>,
    seat: u64,
    /// The session, and the context it belongs to.
    held: Option<(u64, Session)>,
}

/// What becomes of a call that failed.
enum Next {
    Again,
    Fail(HsmError),
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.leave_seat(self.seat);
    }
}

impl Worker {
    fn serve(mut self) {
        let shared = Arc::clone(&self.shared);
        while let Ok(mut job) = shared.jobs.recv_blocking() {
            if job.run.is_abandoned() || job.deadline <= Instant::now() {
                job.run.finish(Err(HsmError::Timeout));
                continue;
            }
            let Some(pass) = shared.gate.enter(job.deadline) else {
                job.run.finish(Err(shared.refusal()));
                continue;
            };
            shared.call_begins(self.seat, job.limit);
            let (outcome, given_up) = self.inside(&pass.conn, &mut job);
            drop(pass);
            job.run.finish(outcome);
            if given_up {
                return;
            }
        }
    }

    /// Carries the job out; also says whether this worker was given up meanwhile.
    fn inside(&mut self, conn: &Conn, job: &mut Job) -> (Result<(), HsmError>, bool) {
        let serial = conn.lock();
        let outcome = if job.deadline <= Instant::now() {
            // It has waited for its turn too long.
            Err(HsmError::Timeout)
        } else {
            self.carry_out(conn, job)
        };
        let given_up = self.shared.call_ended(self.seat);
        if given_up || conn.few_sessions {
            self.discard();
        }
        drop(serial);
        (outcome, given_up)
    }

    fn carry_out(&mut self, conn: &Conn, job: &mut Job) -> Result<(), HsmError> {
        let mut first = true;
        loop {
            let outcome = match self.session(conn) {
                Ok(session) => job.run.run(conn, session),
                Err(error) => Err(error.into()),
            };
            let fault = match outcome {
                Ok(()) => {
                    self.shared.succeeded();
                    return Ok(());
                }
                Err(fault) => fault,
            };
            self.discard();
            match self.decide(conn, job, fault, first) {
                Next::Again => first = false,
                Next::Fail(error) => return Err(error),
            }
        }
    }

    fn decide(&self, conn: &Conn, job: &Job, fault: Fault, first: bool) -> Next {
        let error = match fault {
            Fault::Final(error) => return Next::Fail(error),
            Fault::Module(error) => error,
        };
        let class = class(&error);
        match class {
            Class::Data if job.opens => {
                // The HSM has answered: it is well, and the blob is not.
                self.shared.succeeded();
                Next::Fail(HsmError::Rejected)
            }
            // The canary tells whether it is the HSM, or only this operation.
            Class::Ambiguous | Class::Device | Class::Config | Class::Data => match check(conn) {
                Err(fault) => self.broken(conn, &fault, false),
                Ok(()) => self.well(conn, job, &error, first),
            },
            Class::Session if first => Next::Again,
            Class::Session | Class::Login | Class::Pin => {
                let soft = class != Class::Pin;
                self.broken(conn, &Fault::Module(error), soft)
            }
        }
    }

    /// What an error means although the canary opens.
    fn well(&self, conn: &Conn, job: &Job, error: &Pkcs11Error, first: bool) -> Next {
        match class(error) {
            Class::Config => Next::Fail(super::conn::misconfigured(brief(error))),
            Class::Ambiguous | Class::Device if first => Next::Again,
            // Without a key there is no canary, and a session alone proves little.
            Class::Ambiguous | Class::Device if conn.keys.is_empty() => {
                let why = brief(error);
                self.report(conn, false, false, &why);
                Next::Fail(unavailable(why))
            }
            Class::Ambiguous if job.opens => {
                self.shared.succeeded();
                Next::Fail(HsmError::Rejected)
            }
            Class::Ambiguous
            | Class::Device
            | Class::Data
            | Class::Session
            | Class::Login
            | Class::Pin => Next::Fail(unavailable(brief(error))),
        }
    }

    fn broken(&self, conn: &Conn, fault: &Fault, soft: bool) -> Next {
        let (why, login) = match fault {
            Fault::Module(error) => (brief(error), class(error) == Class::Login),
            Fault::Final(error) => (error.to_string(), false),
        };
        self.report(conn, soft, login, &why);
        Next::Fail(unavailable(why))
    }

    fn report(&self, conn: &Conn, soft: bool, login: bool, why: &str) {
        let generation = conn.generation;
        let broken = Broken {
            generation,
            soft,
            login,
        };
        self.shared.report(broken, why);
    }

    /// The worker's session in `conn`'s context.
    fn session(&mut self, conn: &Conn) -> Result<&Session, Pkcs11Error> {
        if self
            .held
            .as_ref()
            .is_some_and(|(epoch, _)| *epoch != conn.epoch)
        {
            // Its context is gone, and with it the session; only the handle is left to be forgotten.
            self.held = None;
        }
        if self.held.is_none() {
            self.held = Some((conn.epoch, conn.open_worker_session()?));
        }
        match &self.held {
            Some((_, session)) => Ok(session),
            None => Err(Pkcs11Error::InvalidValue),
        }
    }

    /// Closes the session; only while inside the gate, so that its context still lives.
    fn discard(&mut self) {
        if let Some((_, session)) = self.held.take()
            && let Err(error) = session.close()
        {
            tracing::debug!(error = brief(&error), "closing a session failed");
        }
    }
}

/// Whether the HSM is well: the canary opens, or, before any key is known, a session can be had.
pub(super) fn check(conn: &Conn) -> Result<(), Fault> {
    let session = conn.open_session(false)?;
    match conn.keys.iter().find(|key| key.is_active()) {
        Some(key) if !keys::opens_canary(&session, &key.key, &key.handles)? => {
            Err(Fault::Final(HsmError::KeyForeign {
                label: key.key.label.clone(),
            }))
        }
        Some(_) => Ok(()),
        None => {
            session.get_session_info()?;
            match conn.pkcs11.get_token_info(conn.slot) {
                Err(error @ Pkcs11Error::Pkcs11(..)) => Err(error.into()),
                // What does not parse was at least answered.
                Ok(_) | Err(_) => Ok(()),
            }
        }
    }
}
