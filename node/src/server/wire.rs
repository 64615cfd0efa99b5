//! The traits of `api` implemented on the types of `raft` and `seal`.

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;
use bytes::Bytes;
use strongroom_api::ports::{
    Barrier, BarrierError, Child, Expect, KeyStatus, SealWrap, Store, StoreError, StoredBatch,
    Versioned,
};
use strongroom_raft::{
    Applied, Command, Op, Outcome, ProposeError, Raft, ReadError, State, StateError,
};
use strongroom_seal::{barrier, hsm::HsmError, wrap::SealWrapper};
use zeroize::Zeroizing;

use super::chain;

/// [`Store`] on the Raft node, as long as its data are those that the keys around it belong to.
pub(crate) struct StorePort {
    raft: Raft,
    /// See [`State::restores`].
    restores: u64,
}

impl StorePort {
    pub(crate) fn new(raft: Raft, restores: u64) -> Self {
        Self { raft, restores }
    }

    fn command(&self, batch: StoredBatch) -> Command {
        Command {
            restores: self.restores,
            ..command(batch)
        }
    }
}

#[async_trait]
impl Store for StorePort {
    async fn linearize(&self, deadline: Instant) -> Result<(), StoreError> {
        let index = self.raft.read_index(deadline).await.map_err(read_error)?;
        self.raft
            .wait_applied(index, deadline)
            .await
            .map_err(read_error)
    }

    async fn wait_applied(&self, index: u64, deadline: Instant) -> bool {
        self.raft.wait_applied(index, deadline).await.is_ok()
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Versioned>, StoreError> {
        let found = self.raft.get_at(self.restores, key).await;
        let found = found.map_err(state_error)?;
        Ok(found.map(|(mod_index, value)| Versioned { mod_index, value }))
    }

    async fn keys(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Bytes>, StoreError> {
        let found = self.raft.keys_at(self.restores, prefix, after, limit).await;
        found.map_err(state_error)
    }

    async fn commit(&self, batch: StoredBatch, deadline: Instant) -> Result<u64, StoreError> {
        index_of(self.raft.propose(self.command(batch), deadline).await)
    }

    async fn commit_anywhere(
        &self,
        batch: StoredBatch,
        deadline: Instant,
    ) -> Result<u64, StoreError> {
        let command = self.command(batch);
        index_of(self.raft.propose_anywhere(command, deadline).await)
    }

    async fn mod_index(&self, key: &[u8]) -> Result<Option<u64>, StoreError> {
        let found = self.raft.mod_index(key).await.map_err(state_error)?;
        // Asked afterwards: whatever was found is of the data known here if they are still the same.
        if self.raft.state().restores() == self.restores {
            Ok(found)
        } else {
            Err(StoreError::Superseded)
        }
    }

    fn applied(&self) -> u64 {
        self.raft.state().applied()
    }
}

fn index_of(proposed: Result<Applied, ProposeError>) -> Result<u64, StoreError> {
    let applied = proposed.map_err(propose_error)?;
    match applied.outcome {
        Outcome::Applied => Ok(applied.index),
        Outcome::CheckFailed { .. } => Err(StoreError::CheckFailed),
        Outcome::Superseded => Err(StoreError::Superseded),
    }
}

/// The Raft command of a batch, for data that no restore has brought.
pub(crate) fn command(batch: StoredBatch) -> Command {
    let checks = batch.checks.into_iter().map(|(key, expect)| Op::Check {
        key: key.into(),
        expect: match expect {
            Expect::Absent => strongroom_raft::Expect::Absent,
            Expect::ModIndex(index) => strongroom_raft::Expect::ModIndex(index),
        },
    });
    let puts = batch.puts.into_iter().map(|(key, value)| Op::Put {
        key: key.into(),
        value,
    });
    let deletes = batch
        .deletes
        .into_iter()
        .map(|key| Op::Delete { key: key.into() });
    Command {
        request_id: batch.request_id,
        ops: checks.chain(puts).chain(deletes).collect(),
        ..Command::default()
    }
}

fn propose_error(error: ProposeError) -> StoreError {
    match error {
        ProposeError::NotLeader { .. } => StoreError::NotLeader,
        ProposeError::NoQuorum => StoreError::NoQuorum,
        ProposeError::Busy => StoreError::Busy,
        ProposeError::NoRoom => StoreError::NoRoom,
        ProposeError::TooLarge { len, max } => StoreError::TooLarge { len, max },
        ProposeError::Unknown => StoreError::Unknown,
        error @ ProposeError::Fatal(_) => StoreError::Fatal(chain(&error)),
    }
}

fn read_error(error: ReadError) -> StoreError {
    match error {
        ReadError::NoQuorum => StoreError::NoQuorum,
        error @ ReadError::Fatal(_) => StoreError::Fatal(chain(&error)),
    }
}

fn state_error(error: StateError) -> StoreError {
    match error {
        StateError::Superseded => StoreError::Superseded,
        error @ (StateError::Closed | StateError::Read(_)) => StoreError::Fatal(chain(&error)),
    }
}

/// [`Barrier`] on the seal crate's; the state tells how many values the whole cluster has encrypted.
pub(crate) struct BarrierPort {
    inner: Arc<barrier::Barrier>,
    state: Option<Arc<State>>,
}

impl BarrierPort {
    pub(crate) fn new(inner: Arc<barrier::Barrier>, state: Option<Arc<State>>) -> Self {
        Self { inner, state }
    }
}

impl Barrier for BarrierPort {
    fn key(&self, path: &str) -> Result<Vec<u8>, BarrierError> {
        self.inner.key(path).map_err(barrier_error)
    }

    fn prefix(&self, folder: &str) -> Result<Vec<u8>, BarrierError> {
        self.inner.prefix(folder).map_err(barrier_error)
    }

    fn child(&self, folder: &str, stored_key: &[u8]) -> Result<Child, BarrierError> {
        let child = self
            .inner
            .child(folder, stored_key)
            .map_err(barrier_error)?;
        Ok(Child {
            name: child.name,
            is_folder: child.is_folder,
            skip_to: child.skip_to,
        })
    }

    fn seal(&self, path: &str, plaintext: &[u8]) -> Result<Vec<u8>, BarrierError> {
        self.inner.seal(path, plaintext).map_err(barrier_error)
    }

    fn open(&self, path: &str, stored: &[u8]) -> Result<Zeroizing<Vec<u8>>, BarrierError> {
        self.inner.open(path, stored).map_err(barrier_error)
    }

    fn hmac(&self, purpose: &'static str, data: &[u8]) -> [u8; 32] {
        self.inner.hmac(purpose, data)
    }

    fn status(&self) -> KeyStatus {
        let active = self.inner.active_key();
        let puts = self.state.as_ref().map_or(0, |state| state.put_count());
        KeyStatus {
            term: active.term,
            install_time_ms: active.install_time_ms,
            encryptions: puts.saturating_sub(active.puts_at_install),
        }
    }
}

fn barrier_error(error: barrier::BarrierError) -> BarrierError {
    match error {
        barrier::BarrierError::Path(why) => BarrierError::Path(why),
        barrier::BarrierError::Damaged => BarrierError::Damaged,
        barrier::BarrierError::UnknownTerm(term) => BarrierError::UnknownTerm(term),
        barrier::BarrierError::Exhausted => BarrierError::Exhausted,
    }
}

/// [`SealWrap`] on the seal crate's.
pub(crate) struct SealWrapPort(Arc<SealWrapper>);

impl SealWrapPort {
    pub(crate) fn new(inner: Arc<SealWrapper>) -> Self {
        Self(inner)
    }
}

#[async_trait]
impl SealWrap for SealWrapPort {
    fn is_wrapped(&self, stored: &[u8]) -> bool {
        strongroom_seal::wrap::is_wrapped(stored)
    }

    async fn wrap(&self, path: &str, barrier_ciphertext: &[u8]) -> Result<Vec<u8>, BarrierError> {
        self.0
            .wrap(path, barrier_ciphertext)
            .await
            .map_err(hsm_error)
    }

    async fn unwrap(&self, path: &str, envelope: &[u8]) -> Result<Bytes, BarrierError> {
        self.0.unwrap(path, envelope).await.map_err(hsm_error)
    }
}

fn hsm_error(error: HsmError) -> BarrierError {
    if error == HsmError::Rejected {
        BarrierError::Damaged
    } else {
        BarrierError::HsmUnavailable(chain(&error))
    }
}
