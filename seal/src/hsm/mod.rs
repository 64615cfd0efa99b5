//! Access to the HSM over PKCS#11: one supervisor owns the module, callers wait with a deadline.
//!
//! ```text
//! callers ──► bounded queue ──► worker threads, one session each ──► PKCS#11 module
//!                 ▲ refused at once unless health is Ok      ▲ gate: nobody inside while C_Finalize runs
//!             health ◄── connector thread: connect, log in, prove the keys, reconnect with back-off
//!                    ◄── watcher thread: gives up calls that do not return
//! ```
//!
//! In: a configuration, blobs, core parameters. Out: blobs, plaintext, health.
//!
//! Invariants
//! - No PKCS#11 call has a time-out, so none runs on a thread that anybody waits for: every call here has a deadline.
//! - A refused PIN is tried once, also across restarts ([`guard`]).
//! - The cluster's keys are known by a canary, never by a label alone ([`config`](crate::config)).
//! - The HSM being away is no error of the node: calls fail at once, and work again when it is back.

mod conn;
mod connector;
mod crypto;
mod error;
mod gate;
pub mod guard;
mod keys;
mod make;
mod mechanism;
mod shared;
mod worker;

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use cryptoki::session::Session;
use tokio::sync::{oneshot, watch};

pub use error::{Health, HsmError};
pub use mechanism::{Mechanism, MechanismError, OaepHash};

use self::{
    conn::{Conn, misconfigured, unavailable},
    connector::Connector,
    error::Fault,
    shared::{Order, Shared, stopping},
    worker::{Call, Job},
};
use crate::{
    config::{SealConfig, SealKey},
    datakey::DataKey,
    envelope::{self, Blob, Enveloped},
    secret::{SecretBytes, SecretString},
};

/// Jobs that may wait for a worker.
const QUEUE: usize = 256;
/// More worker threads than this make no HSM faster.
const MAX_THREADS: usize = 64;
/// Making a key may take this many deadlines; some HSMs take long to find primes.
const SLOW: u32 = 6;

/// Where the HSM is and how to use it.
#[derive(Debug)]
pub struct HsmConfig {
    /// Path of the PKCS#11 module; must contain a `/`.
    pub lib: PathBuf,
    /// Slot number. Numbers move with some modules: prefer the label.
    pub slot: Option<u64>,
    /// Label of the token.
    pub token_label: Option<String>,
    /// The user PIN.
    pub pin: SecretString,
    /// `CKA_LABEL` of the key.
    pub key_label: String,
    /// `CKA_ID` of the key, to tell keys of one label apart.
    pub key_id: Option<Vec<u8>>,
    /// `CKA_LABEL` of the HMAC key that CBC needs; `None`: the key's label and `-hmac`.
    pub hmac_key_label: Option<String>,
    /// `CKA_ID` of the HMAC key.
    pub hmac_key_id: Option<Vec<u8>>,
    /// How to encrypt; `None`: by what the key and the token can do.
    pub mechanism: Option<Mechanism>,
    /// Hash of OAEP.
    pub rsa_oaep_hash: OaepHash,
    /// Whether initialization may make the key.
    pub generate_key: bool,
    /// Use read/write sessions throughout; for modules that demand it.
    pub force_rw_session: bool,
    /// Worker threads, that is, calls at a time. A thread makes about 1 / (3 round trips) calls per second.
    pub max_parallel: usize,
    /// How long a caller waits.
    pub call_deadline: Duration,
    /// The file that remembers refused PINs; its directory must exist and be writable.
    pub pin_guard: PathBuf,
    /// Log in although the token says that a wrong PIN was entered, or that the next would lock it.
    pub ignore_pin_flags: bool,
}

impl HsmConfig {
    fn threads(&self) -> usize {
        self.max_parallel.clamp(1, MAX_THREADS)
    }

    fn check(&self) -> Result<(), HsmError> {
        if self.pin.expose().is_empty() {
            // Some tokens count an empty PIN as a try.
            return Err(misconfigured("the PIN is empty"));
        }
        if self.key_label.is_empty() {
            return Err(misconfigured("key_label is empty"));
        }
        if self.slot.is_none() && self.token_label.is_none() {
            return Err(misconfigured("neither slot nor token_label is set"));
        }
        if self.call_deadline.is_zero() {
            return Err(misconfigured("the deadline of calls is zero"));
        }
        Ok(())
    }
}

/// A handle to the HSM; all clones share one supervisor. When the last one is dropped, the supervisor ends.
#[derive(Clone)]
pub struct Hsm {
    shared: Arc<Shared>,
    queue: async_channel::Sender<Job>,
}

impl fmt::Debug for Hsm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hsm")
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}

impl Hsm {
    /// Starts the supervisor's threads; does not wait for the HSM. One per process: PKCS#11 state is the process's.
    ///
    /// # Errors
    /// `Misconfigured` for a configuration that cannot work (empty PIN, no token selector); `Unavailable` when the
    /// system gives no threads. A module or token that is wrong or away is no error here but [`Hsm::health`].
    pub fn start(mut config: HsmConfig) -> Result<Self, HsmError> {
        config.check()?;
        let pin = std::mem::replace(&mut config.pin, SecretString::from(String::new()));
        let (queue, jobs) = async_channel::bounded(QUEUE);
        let shared = Arc::new(Shared::new(config, pin, jobs));
        let no_threads = |error: std::io::Error| unavailable(format!("no thread: {error}"));
        for _ in 0..shared.config.threads() {
            worker::spawn(&shared).map_err(no_threads)?;
        }
        let watched = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("hsm-watcher".to_owned())
            .spawn(move || shared::watch(&watched))
            .map_err(no_threads)?;
        let connector = Connector::new(Arc::clone(&shared), queue.downgrade());
        std::thread::Builder::new()
            .name("hsm-connector".to_owned())
            .spawn(move || connector.run())
            .map_err(no_threads)?;
        Ok(Self { shared, queue })
    }

    /// How the connection is now. Never touches the HSM.
    #[must_use]
    pub fn health(&self) -> Health {
        self.shared.health()
    }

    /// Follows [`Hsm::health`].
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Health> {
        self.shared.subscribe()
    }

    /// Resolves when a logged-in context exists, with the cluster's keys proven if they are known. May be dropped.
    pub async fn connected(&self) {
        // Fails only when the sender is gone, and this handle keeps it.
        let _ = self
            .subscribe()
            .wait_for(|health| *health == Health::Ok)
            .await;
    }

    /// What init does first: looks under the configured label and says which key to use. Changes nothing in the HSM.
    ///
    /// No key and `generate_key`: an intent with a new random `CKA_ID`. Exactly one key: an intent that adopts it.
    ///
    /// # Errors
    /// `KeyMissing` without `generate_key`, `KeyDuplicate` for more than one, `Misconfigured` when the token cannot do
    /// what is configured, or as any call.
    pub async fn plan_key(&self) -> Result<SealKey, HsmError> {
        let shared = Arc::clone(&self.shared);
        self.call(1, false, move |conn, session| {
            make::plan(session, conn, &shared.config)
        })
        .await
    }

    /// Makes sure that the key of `intent` exists and works, and gives the record to keep, with its canary.
    ///
    /// May be repeated: a key that an earlier try has made is found by its label and id.
    ///
    /// # Errors
    /// `KeyDuplicate` when another key has the label, `KeyMissing` when the key to adopt is gone, `Misconfigured` when
    /// the HSM does not do what it must, or as any call.
    pub async fn establish_key(&self, intent: &SealKey) -> Result<SealKey, HsmError> {
        intent.check()?;
        let (shared, intent) = (Arc::clone(&self.shared), intent.clone());
        self.call(SLOW, false, move |conn, session| {
            make::establish(session, conn, &shared.config, &intent)
        })
        .await
    }

    /// Pins the cluster's keys: finds each, proves it by its canary, and does so again at every reconnect.
    ///
    /// A key that is not seen is looked for again in a new context (C_Finalize and C_Initialize).
    ///
    /// # Errors
    /// `KeyMissing`, `KeyDuplicate` or `KeyForeign` for what is under the label, `Misconfigured` when `config` breaks
    /// its rules, `PinRefused`, or `Unavailable` when the HSM is away. What was pinned before stays pinned then.
    pub async fn open(&self, config: &SealConfig) -> Result<(), HsmError> {
        config.check()?;
        let patience = self.shared.config.call_deadline.saturating_mul(SLOW);
        let until = Instant::now() + patience;
        self.ready(until).await?;
        let (reply, answer) = oneshot::channel();
        self.shared.order(Order::Open {
            config: Box::new(config.clone()),
            reply,
        });
        match tokio::time::timeout_at(until.into(), answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(stopping()),
            Err(_) => Err(HsmError::Timeout),
        }
    }

    /// Encrypts a core parameter in the HSM, bound to `path`, under the active key. Output: a self-describing blob.
    ///
    /// # Errors
    /// `Misconfigured` before [`Hsm::open`]; else as any call: `Unavailable`, `Timeout`, `Overloaded`, `PinRefused`.
    pub async fn wrap_core(&self, path: &str, plaintext: &[u8]) -> Result<Vec<u8>, HsmError> {
        let path = path.to_owned();
        let plaintext = SecretBytes::from(plaintext.to_vec());
        self.call(1, false, move |conn, session| {
            let key = active(conn)?;
            crypto::seal_core(session, &key.handles, &path, &plaintext)
        })
        .await
    }

    /// Opens what [`Hsm::wrap_core`] gave for the same `path`.
    ///
    /// # Errors
    /// `Rejected` when the blob is damaged, was moved, or comes from another HSM key; `KeyUnknown` when the pinned
    /// configuration lacks its key version; else as any call.
    pub async fn unwrap_core(&self, path: &str, blob: &[u8]) -> Result<SecretBytes, HsmError> {
        // Before the HSM is bothered.
        envelope::parse(blob).ok_or(HsmError::Rejected)?;
        let (path, blob) = (path.to_owned(), blob.to_vec());
        self.call(1, true, move |conn, session| {
            let parsed = envelope::parse(&blob).ok_or(HsmError::Rejected)?;
            let key = known(conn, parsed.head().key)?;
            crypto::open_core(session, &key.handles, &path, &parsed)
        })
        .await
    }

    /// Wraps a data key: everything of an envelope before its nonce.
    pub(crate) async fn wrap_dek(&self, dek: Arc<DataKey>) -> Result<Vec<u8>, HsmError> {
        self.call(1, false, move |conn, session| {
            crypto::wrap_dek(session, &active(conn)?.handles, &dek)
        })
        .await
    }

    /// Opens the data key of an envelope.
    pub(crate) async fn unwrap_dek(&self, envelope: &Enveloped<'_>) -> Result<DataKey, HsmError> {
        let head = envelope.head;
        let (bound, wrapped) = (envelope.bound.to_vec(), envelope.wrapped_dek.to_owned());
        self.call(1, true, move |conn, session| {
            let key = known(conn, head.key)?;
            crypto::unwrap_dek(session, &key.handles, head, &bound, wrapped.as_ref())
        })
        .await
    }

    /// Closes sessions, ends the context and wipes the PIN. A call that hangs is left behind rather than waited for.
    pub async fn shutdown(&self) {
        let (done, ended) = oneshot::channel();
        self.shared.shut_down(done);
        self.queue.close();
        let patience = self
            .shared
            .config
            .call_deadline
            .saturating_mul(2)
            .min(Duration::from_secs(3));
        // Either it ends in time, or its thread hangs inside the module and dies with the process.
        let _ = tokio::time::timeout(patience, ended).await;
    }

    /// Waits out the first attempt to connect; refuses at once in any other state than `Ok`.
    async fn ready(&self, until: Instant) -> Result<(), HsmError> {
        if self.shared.stopping.load(Ordering::Relaxed) {
            return Err(stopping());
        }
        if self.health() == Health::Connecting {
            let mut health = self.subscribe();
            let settled = health.wait_for(|health| *health != Health::Connecting);
            // A time-out leaves `Connecting`, which is refused below.
            let _ = tokio::time::timeout_at(until.into(), settled).await;
        }
        self.health().refusal().map_or(Ok(()), Err)
    }

    /// Has a worker run `work`, within `deadlines` times the configured deadline.
    async fn call<T, F>(&self, deadlines: u32, opens: bool, work: F) -> Result<T, HsmError>
    where
        T: Send + 'static,
        F: FnMut(&Conn, &Session) -> Result<T, Fault> + Send + 'static,
    {
        let patience = self.shared.config.call_deadline.saturating_mul(deadlines);
        let deadline = Instant::now() + patience;
        self.ready(deadline).await?;
        let (reply, answer) = oneshot::channel();
        let job = Job {
            deadline,
            limit: patience.saturating_mul(2),
            opens,
            run: Box::new(Call {
                work,
                result: None,
                reply,
            }),
        };
        match tokio::time::timeout(patience / 4, self.queue.send(job)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(stopping()),
            Err(_) => return Err(HsmError::Overloaded),
        }
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(outcome)) => outcome,
            // The job was dropped with the queue.
            Ok(Err(_)) => Err(stopping()),
            Err(_) => Err(HsmError::Timeout),
        }
    }
}

fn active(conn: &Conn) -> Result<&keys::Resolved, Fault> {
    let key = conn.keys.iter().find(|key| key.is_active());
    key.ok_or_else(|| Fault::Final(misconfigured("no seal key has been opened yet")))
}

fn known(conn: &Conn, version: u32) -> Result<&keys::Resolved, Fault> {
    conn.key(version)
        .ok_or(Fault::Final(HsmError::KeyUnknown { version }))
}

/// Whether `blob` is one this module could have made; looks only at its form.
pub(crate) fn parse_envelope(blob: &[u8]) -> Option<Enveloped<'_>> {
    match envelope::parse(blob)? {
        Blob::Enveloped(enveloped) => Some(enveloped),
        Blob::Whole(_) => None,
    }
}
