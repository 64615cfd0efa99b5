//! Seal wrap: barrier ciphertext inside an envelope that only the HSM can open.
//!
//! In: a path and barrier ciphertext. Out: an envelope (`envelope` has the bytes), or back.
//!
//! Invariants
//! - One data key serves at most `MAX_VALUES` values and `DEK_LIFE` seconds of writes, so the HSM's speed bounds
//!   batches, not writes; each value has a key of its own derived from it.
//! - Unwrapped data keys are cached by everything the HSM authenticates about them, at most `CACHE_MAX` for at most
//!   `CACHE_TTL`, and wiped when they leave. Concurrent readers of one data key ask the HSM once.
//! - When the HSM is away nothing is written unwrapped: wrapping fails.

use std::{
    sync::{Arc, Mutex as StdMutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use moka::sync::Cache;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, OnceCell};

pub use crate::inspect::is_envelope as is_wrapped;
use crate::{
    datakey::{DataKey, Purpose},
    hsm::{Hsm, HsmError, parse_envelope},
};

/// Values encrypted under one data key.
const MAX_VALUES: u32 = 1024;
/// How long one data key is used for writing.
const DEK_LIFE: Duration = Duration::from_secs(1);
/// Unwrapped data keys held for reading.
const CACHE_MAX: u64 = 1024;
/// How long each is held.
const CACHE_TTL: Duration = Duration::from_secs(60);
/// How often expired ones are wiped even if nobody reads.
const SWEEP: Duration = Duration::from_secs(15);

/// Wraps and unwraps; see the module's description. Share it behind an `Arc`.
pub struct SealWrapper {
    hsm: Hsm,
    /// The data key that writes use now.
    current: Mutex<Current>,
    /// SHA-256 of everything before the nonce → data key.
    cache: Arc<Cache<[u8; 32], Arc<Slot>>>,
}

#[derive(Default)]
struct Current {
    key: Option<WriteKey>,
    /// The last failure to make one, for those who were waiting when it happened.
    failed: Option<(Instant, HsmError)>,
}

struct WriteKey {
    dek: Arc<DataKey>,
    prefix: Arc<[u8]>,
    made: Instant,
    used: u32,
}

#[derive(Default)]
struct Slot {
    dek: OnceCell<Arc<DataKey>>,
    failed: StdMutex<Option<(Instant, HsmError)>>,
}

impl std::fmt::Debug for SealWrapper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealWrapper")
            .field("cached_keys", &self.cache.entry_count())
            .finish_non_exhaustive()
    }
}

impl SealWrapper {
    /// A wrapper on `hsm`, which must have its keys opened before the first use.
    #[must_use]
    pub fn new(hsm: Hsm) -> Self {
        let cache = Arc::new(
            Cache::builder()
                .max_capacity(CACHE_MAX)
                .time_to_live(CACHE_TTL)
                .build(),
        );
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(sweep(Arc::downgrade(&cache)));
        }
        Self {
            hsm,
            current: Mutex::default(),
            cache,
        }
    }

    /// Wraps `barrier_ciphertext`, bound to `path`.
    ///
    /// # Errors
    /// As any HSM call, when a new data key is needed and cannot be had.
    pub async fn wrap(&self, path: &str, barrier_ciphertext: &[u8]) -> Result<Vec<u8>, HsmError> {
        let (dek, prefix) = self.write_key().await?;
        dek.seal(&prefix, Purpose::Wrap, path, barrier_ciphertext)
            .ok_or_else(|| HsmError::Misconfigured {
                why: "the value is too long to be wrapped".to_owned(),
            })
    }

    /// Gives back the barrier ciphertext of an envelope made for the same `path`.
    ///
    /// # Errors
    /// `Rejected` when the envelope is damaged or was moved; `KeyUnknown`; or as any HSM call when its data key is not
    /// cached.
    pub async fn unwrap(&self, path: &str, envelope: &[u8]) -> Result<Bytes, HsmError> {
        let parsed = parse_envelope(envelope).ok_or(HsmError::Rejected)?;
        let id: [u8; 32] = Sha256::digest(parsed.prefix).into();
        let slot = self.cache.get_with(id, Arc::default);
        let dek = match slot.get(|| self.hsm.unwrap_dek(&parsed)).await {
            Ok(dek) => dek,
            Err(error) => {
                // Nothing was learned, so nothing is kept.
                self.cache.invalidate(&id);
                return Err(error);
            }
        };
        let mut value = dek
            .open(&parsed, Purpose::Wrap, path)
            .ok_or(HsmError::Rejected)?;
        // What is inside is ciphertext: it need not be wiped.
        Ok(std::mem::take(&mut *value).into())
    }

    /// Whether `stored` is a seal-wrap envelope.
    #[must_use]
    pub fn is_wrapped(&self, stored: &[u8]) -> bool {
        is_wrapped(stored)
    }

    /// Forgets and wipes every data key; for sealing and for a change of keys.
    pub async fn clear(&self) {
        *self.current.lock().await = Current::default();
        self.cache.invalidate_all();
        self.cache.run_pending_tasks();
    }

    /// The data key for the next value; makes a new one when the old one has served its time.
    async fn write_key(&self) -> Result<(Arc<DataKey>, Arc<[u8]>), HsmError> {
        let arrived = Instant::now();
        let mut current = self.current.lock().await;
        if let Some(error) = recent(current.failed.as_ref(), arrived) {
            return Err(error);
        }
        let fresh = |key: &&mut WriteKey| key.used < MAX_VALUES && key.made.elapsed() < DEK_LIFE;
        if let Some(key) = current.key.as_mut().filter(fresh) {
            key.used += 1;
            return Ok((Arc::clone(&key.dek), Arc::clone(&key.prefix)));
        }
        current.key = None;
        let dek = Arc::new(DataKey::generate()?);
        let prefix: Arc<[u8]> = match self.hsm.wrap_dek(Arc::clone(&dek)).await {
            Ok(prefix) => prefix.into(),
            Err(error) => {
                current.failed = Some((Instant::now(), error.clone()));
                return Err(error);
            }
        };
        // Whoever wrote is likely to read.
        let slot = Slot {
            dek: OnceCell::new_with(Some(Arc::clone(&dek))),
            failed: StdMutex::default(),
        };
        self.cache
            .insert(Sha256::digest(&prefix).into(), Arc::new(slot));
        current.key = Some(WriteKey {
            dek: Arc::clone(&dek),
            prefix: Arc::clone(&prefix),
            made: Instant::now(),
            used: 1,
        });
        Ok((dek, prefix))
    }
}

impl Slot {
    /// The data key; of several callers one asks the HSM, and a failure is everybody's who was waiting.
    async fn get<F>(&self, ask: impl FnOnce() -> F) -> Result<Arc<DataKey>, HsmError>
    where
        F: Future<Output = Result<DataKey, HsmError>>,
    {
        let arrived = Instant::now();
        let init = || async {
            if let Some(error) = self.recent_failure(arrived) {
                return Err(error);
            }
            let outcome = ask().await;
            if let Err(error) = &outcome {
                *self.failed.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((Instant::now(), error.clone()));
            }
            outcome.map(Arc::new)
        };
        self.dek.get_or_try_init(init).await.cloned()
    }

    fn recent_failure(&self, arrived: Instant) -> Option<HsmError> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        recent(failed.as_ref(), arrived)
    }
}

/// The failure that happened while one was waiting.
fn recent(failed: Option<&(Instant, HsmError)>, arrived: Instant) -> Option<HsmError> {
    failed
        .filter(|(at, _)| *at >= arrived)
        .map(|(_, error)| error.clone())
}

async fn sweep(cache: Weak<Cache<[u8; 32], Arc<Slot>>>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        match cache.upgrade() {
            Some(cache) => cache.run_pending_tasks(),
            None => return,
        }
    }
}
