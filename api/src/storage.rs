//! The one place where store, barrier and seal wrap meet: logical path and plaintext ⇄ stored key and bytes.
//!
//! In: logical paths (`core/mounts/…`), plaintext, a [`Layer`] per value. Out: plaintext with the log index it was
//! written at; batches that are applied as a whole.
//!
//! Invariants
//! - What leaves here for the store is ciphertext under an encrypted name.
//! - The cache holds barrier ciphertext only, by stored key and with the log index it was written at. That pair names one
//!   immutable value, and is compared with what is stored, so an entry is never wrong and never needs to be invalidated.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use moka::sync::Cache;
use zeroize::Zeroizing;

use crate::ports::{Barrier, BarrierError, Expect, SealWrap, Store, StoreError, StoredBatch};

/// Memory for unwrapped (still barrier-encrypted) values, bytes.
const CACHE_BYTES: u64 = 32 << 20;
/// What the cache itself takes for one of them, bytes, roughly.
const CACHE_OVERHEAD: usize = 256;
/// Stored keys read at a time while listing.
const LIST_PAGE: usize = 512;
/// Names one listing may return; more is refused rather than cut off.
pub const MAX_LISTED: usize = 1_000_000;

/// How a value is protected at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// By the barrier.
    Barrier,
    /// By the barrier, and on top of it by the HSM.
    SealWrapped,
}

/// A decrypted value and the log index it was written at.
pub struct Entry {
    /// Plaintext; wiped on drop.
    pub value: Zeroizing<Vec<u8>>,
    /// Log index of the write.
    pub mod_index: u64,
}

/// Why a value was not read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// See [`BarrierError`].
    #[error(transparent)]
    Barrier(#[from] BarrierError),
    /// A stored entry does not parse.
    #[error("a stored entry of kind `{0}` is malformed")]
    Malformed(&'static str),
    /// A folder holds more names than one listing may return.
    #[error("more than {MAX_LISTED} names")]
    TooManyNames,
}

/// Changes on logical paths, applied as a whole.
#[derive(Default)]
pub struct Batch {
    checks: Vec<(String, Expect)>,
    puts: Vec<(String, Zeroizing<Vec<u8>>, Layer)>,
    deletes: Vec<String>,
    stored_deletes: Vec<Vec<u8>>,
}

impl Batch {
    /// Requires `expect` of the value at `path`.
    pub fn check(&mut self, path: impl Into<String>, expect: Expect) -> &mut Self {
        self.checks.push((path.into(), expect));
        self
    }

    /// Writes `value` at `path`.
    pub fn put(&mut self, path: impl Into<String>, value: Vec<u8>, layer: Layer) -> &mut Self {
        self.puts.push((path.into(), Zeroizing::new(value), layer));
        self
    }

    /// Removes the value at `path`, if any.
    pub fn delete(&mut self, path: impl Into<String>) -> &mut Self {
        self.deletes.push(path.into());
        self
    }

    /// Removes a value by its stored key, as [`Storage::stored_keys`] gives it.
    pub fn delete_stored(&mut self, key: Vec<u8>) -> &mut Self {
        self.stored_deletes.push(key);
        self
    }
}

/// Reads and writes decrypted values.
#[derive(Clone)]
pub struct Storage {
    store: Arc<dyn Store>,
    barrier: Arc<dyn Barrier>,
    wrap: Arc<dyn SealWrap>,
    /// By stored key: the newest value that was seen, and the log index of its write. One for each key, or what is written over
    /// and over would fill it.
    unwrapped: Cache<Vec<u8>, (u64, Bytes)>,
    /// Set on a copy for a request that this node carries out without leading; see [`Storage::guarded`].
    guard: Option<Arc<Guard>>,
}

/// What a request that is carried out without leading was decided on, and how its write went.
#[derive(Debug, Default)]
pub struct Guard {
    /// Stored keys and the log index of their last write when they were looked at.
    looked_at: Vec<(Vec<u8>, u64)>,
    /// One of them had changed, so that nothing was written.
    overtaken: AtomicBool,
    /// Log index of the write.
    committed: AtomicU64,
}

impl Guard {
    /// A guard of what was looked at: stored keys and the log index of their last write.
    #[must_use]
    pub fn new(looked_at: Vec<(Vec<u8>, u64)>) -> Self {
        Self {
            looked_at,
            ..Self::default()
        }
    }

    /// Whether a write was refused because something that was looked at had changed.
    #[must_use]
    pub fn was_overtaken(&self) -> bool {
        self.overtaken.load(Ordering::Relaxed)
    }

    /// Log index of the write; 0 before it.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }
}

impl Storage {
    /// Storage on the node's replicated state.
    pub fn new(store: Arc<dyn Store>, barrier: Arc<dyn Barrier>, wrap: Arc<dyn SealWrap>) -> Self {
        let unwrapped = Cache::builder()
            .max_capacity(CACHE_BYTES)
            .weigher(|key: &Vec<u8>, (_, value): &(u64, Bytes)| {
                u32::try_from(key.len() + value.len() + CACHE_OVERHEAD).unwrap_or(u32::MAX)
            })
            .build();
        Self {
            store,
            barrier,
            wrap,
            unwrapped,
            guard: None,
        }
    }

    /// The same storage for one request on a node that need not lead: what it commits is applied only if everything in
    /// `guard` is still as it was looked at, which is checked where the command is applied, so that it is as good as a
    /// look on the leader at that moment.
    #[must_use]
    pub fn guarded(&self, guard: Arc<Guard>) -> Self {
        Self {
            guard: Some(guard),
            ..self.clone()
        }
    }

    /// Returns once reads here see every write acknowledged before the call.
    pub async fn linearize(&self, deadline: Instant) -> Result<(), StorageError> {
        Ok(self.store.linearize(deadline).await?)
    }

    /// Whether this node has applied `index`, waiting for it until `deadline`.
    pub async fn wait_applied(&self, index: u64, deadline: Instant) -> bool {
        self.store.wait_applied(index, deadline).await
    }

    /// Log index this node has applied.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.store.applied()
    }

    /// The barrier, for salts and facts.
    #[must_use]
    pub fn barrier(&self) -> &dyn Barrier {
        &*self.barrier
    }

    /// The value at `path`.
    ///
    /// # Errors
    /// `HsmUnavailable` for a wrapped value that is not cached while the HSM is away; `Damaged` when it does not
    /// authenticate.
    pub async fn get(&self, path: &str) -> Result<Option<Entry>, StorageError> {
        let key = self.barrier.key(path)?;
        let Some(stored) = self.store.get(&key).await? else {
            return Ok(None);
        };
        let mod_index = stored.mod_index;
        let value = if self.wrap.is_wrapped(&stored.value) {
            let cached = self.unwrapped.get(&key);
            let ciphertext = match cached.filter(|(index, _)| *index == mod_index) {
                Some((_, ciphertext)) => ciphertext,
                None => {
                    let ciphertext = self.wrap.unwrap(path, &stored.value).await?;
                    self.keep_unwrapped(key, mod_index, &ciphertext);
                    ciphertext
                }
            };
            self.barrier.open(path, &ciphertext)?
        } else {
            self.barrier.open(path, &stored.value)?
        };
        Ok(Some(Entry { value, mod_index }))
    }

    /// The stored key of `path`, for [`Storage::mod_index`].
    pub fn stored_key(&self, path: &str) -> Result<Vec<u8>, StorageError> {
        Ok(self.barrier.key(path)?)
    }

    /// Log index of the last write at a stored key, without decrypting anything: whatever was derived from the value of
    /// that index is still true.
    pub async fn mod_index(&self, stored_key: &[u8]) -> Result<Option<u64>, StorageError> {
        Ok(self.store.mod_index(stored_key).await?)
    }

    /// Names directly under `folder`, sorted; a name with a trailing slash is a folder.
    ///
    /// # Errors
    /// `TooManyNames` past [`MAX_LISTED`].
    pub async fn list(&self, folder: &str) -> Result<Vec<String>, StorageError> {
        let prefix = self.barrier.prefix(folder)?;
        let mut names: Vec<String> = Vec::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.store.keys(&prefix, after.as_deref(), LIST_PAGE);
            let page = page.await?;
            let full = page.len() == LIST_PAGE;
            let mut resume = None;
            for key in page {
                // A folder's other keys on this page.
                if resume
                    .as_ref()
                    .is_some_and(|skip: &Vec<u8>| key.as_ref() <= skip.as_slice())
                {
                    continue;
                }
                let child = self.barrier.child(folder, &key)?;
                resume = Some(if child.is_folder {
                    names.push(format!("{}/", child.name));
                    child.skip_to
                } else {
                    names.push(child.name);
                    key.to_vec()
                });
                if names.len() > MAX_LISTED {
                    return Err(StorageError::TooManyNames);
                }
            }
            after = resume;
            if !full || after.is_none() {
                break;
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Up to `limit` stored keys of everything under `folder`, for removing it.
    pub async fn stored_keys(
        &self,
        folder: &str,
        limit: usize,
    ) -> Result<Vec<Bytes>, StorageError> {
        let prefix = self.barrier.prefix(folder)?;
        Ok(self.store.keys(&prefix, None, limit).await?)
    }

    /// Encrypts and replicates `batch`; returns its log index.
    ///
    /// `request_id` names the request: the same id is applied once, however often it comes.
    pub async fn commit(
        &self,
        batch: Batch,
        request_id: [u8; 16],
        deadline: Instant,
    ) -> Result<u64, StorageError> {
        let Encrypted { batch, unwrapped } =
            encrypt(&*self.barrier, &*self.wrap, batch, request_id).await?;
        let envelopes: Vec<_> = batch
            .puts
            .iter()
            .filter(|(key, _)| unwrapped.contains_key(key))
            .cloned()
            .collect();
        let index = self.send(batch, deadline).await?;
        // This node may not have applied it yet, and would ask its disk for what was there before.
        if self.guard.is_some() {
            return Ok(index);
        }
        // Just written is often read next: saves the HSM a decryption. A repeated request may have been applied with
        // the first copy's envelopes, so only what is really there is taken.
        for (key, envelope) in envelopes {
            // Whatever goes wrong here, the write is done.
            if let (Some(ciphertext), Ok(Some(stored))) =
                (unwrapped.get(&key), self.store.get(&key).await)
                && stored.value == envelope
            {
                self.keep_unwrapped(key, stored.mod_index, ciphertext);
            }
        }
        Ok(index)
    }
}

impl Storage {
    /// Caches a value, unless a newer one is there: unwrapping takes a while.
    fn keep_unwrapped(&self, key: Vec<u8>, mod_index: u64, ciphertext: &Bytes) {
        self.unwrapped.entry(key).and_upsert_with(|known| {
            let newer = known.filter(|known| known.value().0 > mod_index);
            match newer {
                Some(newer) => newer.into_value(),
                None => (mod_index, ciphertext.clone()),
            }
        });
    }

    async fn send(&self, mut batch: StoredBatch, deadline: Instant) -> Result<u64, StoreError> {
        let Some(guard) = &self.guard else {
            return self.store.commit(batch, deadline).await;
        };
        let looked_at = guard.looked_at.iter();
        let checks = looked_at.map(|(key, index)| (key.clone(), Expect::ModIndex(*index)));
        batch.checks.extend(checks);
        let committed = self.store.commit_anywhere(batch, deadline).await;
        match &committed {
            Ok(index) => guard.committed.store(*index, Ordering::Relaxed),
            Err(StoreError::CheckFailed) => guard.overtaken.store(true, Ordering::Relaxed),
            Err(_) => {}
        }
        committed
    }
}

/// A batch ready for the store, and the barrier ciphertext inside its envelopes by stored key.
pub(crate) struct Encrypted {
    pub(crate) batch: StoredBatch,
    unwrapped: HashMap<Vec<u8>, Bytes>,
}

/// Encrypts names and values of `batch`.
pub(crate) async fn encrypt(
    barrier: &dyn Barrier,
    wrap: &dyn SealWrap,
    batch: Batch,
    request_id: [u8; 16],
) -> Result<Encrypted, BarrierError> {
    let mut unwrapped = HashMap::new();
    let mut stored = StoredBatch {
        request_id,
        ..StoredBatch::default()
    };
    for (path, expect) in batch.checks {
        stored.checks.push((barrier.key(&path)?, expect));
    }
    for (path, value, layer) in batch.puts {
        let key = barrier.key(&path)?;
        let ciphertext = barrier.seal(&path, &value)?;
        let value = match layer {
            Layer::Barrier => ciphertext,
            Layer::SealWrapped => {
                let envelope = wrap.wrap(&path, &ciphertext).await?;
                unwrapped.insert(key.clone(), ciphertext.into());
                envelope
            }
        };
        stored.puts.push((key, value.into()));
    }
    for path in batch.deletes {
        stored.deletes.push(barrier.key(&path)?);
    }
    stored.deletes.extend(batch.stored_deletes);
    Ok(Encrypted {
        batch: stored,
        unwrapped,
    })
}
