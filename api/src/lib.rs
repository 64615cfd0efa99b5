//! The Vault HTTP API of Strongroom: decoding, authentication, mounts, engines and `sys`.
//!
//! In: HTTP requests and the ports that `node` implements. Out: Vault's answers.
//!
//! Invariants
//! - This crate knows neither `raft` nor `seal`; everything it needs of them is a trait in [`ports`].
//! - Plaintext exists only between decoding a request and encrypting for storage, or between decrypting and answering.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

pub mod alarm;
pub mod autopilot;
pub mod core;
pub mod duration;
pub mod engines;
pub mod http;
pub mod mounts;
pub mod ports;
pub mod storage;
mod sys;
pub mod token;

use zeroize::Zeroizing;

use self::ports::{Barrier, BarrierError, SealWrap, StoredBatch};
pub use self::{
    http::{HttpSettings, Limits, MetricsAccess, NOT_LEADER, Payload, RequestBody, Service, drain},
    sys::snapshot_auto,
};

/// Why the first entries of a cluster could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FirstEntriesError {
    /// See [`BarrierError`].
    #[error(transparent)]
    Barrier(#[from] BarrierError),
    /// No randomness for the root token.
    #[error(transparent)]
    Random(#[from] token::RandomError),
}

/// What a new cluster's state starts with (mounts and the root token), encrypted; and the root token, once.
pub async fn initial_writes(
    barrier: &dyn Barrier,
    wrap: &dyn SealWrap,
    now_ms: u64,
) -> Result<(StoredBatch, Zeroizing<String>), FirstEntriesError> {
    let mut batch = storage::Batch::default();
    mounts::initial(&mut batch);
    let root_token = token::initial_root(barrier, now_ms, &mut batch)?;
    let id = uuid::Uuid::new_v4().into_bytes();
    let encrypted = storage::encrypt(barrier, wrap, batch, id).await?;
    Ok((encrypted.batch, root_token))
}
