//! Initialisation: from an empty data directory to a cluster of one whose keys exist.
//!
//! Steps, each safe to be cut off at: (1) identity on disk, (2) Raft bootstrapped as a single voter without a
//! network, (3) the intent to use an HSM key committed, (4) the key generated or adopted and proven by a canary,
//! (5) *one* command that commits seal configuration, wrapped keys and first entries together.
//!
//! Invariants
//! - Before step 5 the node is not initialised, and a later init goes on from the recorded intent: no second HSM key.
//! - Step 5 is not taken when nobody waits for its result any more: recovery shares and root token are given out once.
//!
//! Source: `docs/hsm.md`, section on the key's first generation.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use strongroom_api::ports::{InitError, InitRequest, InitResult, SnapshotError, StoredBatch};
use strongroom_raft::{Command, Expect, Identity, Op, Options, Raft, Stores};
use strongroom_seal::{
    barrier::{Barrier, core_key},
    config::{Recovery, SealConfig, SealKey},
    hsm::Hsm,
    keyring::{Keyring, RootKey},
    secret::SecretBytes,
    shares,
    wrap::SealWrapper,
};
use zeroize::Zeroizing;

use super::{
    bundle::{self, SealBundle},
    cluster_tls, raft_options,
    restore::{self, Candidate},
    wire::{BarrierPort, SealWrapPort},
};
use crate::{clock, config::Config};

/// How long one step of an init may take in Raft; a single node needs milliseconds.
const STEP: Duration = Duration::from_secs(30);
/// The Raft id of a cluster's first node.
const FIRST_RAFT_ID: u64 = 1;

/// Shares and threshold, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecoveryShape {
    shares: u8,
    threshold: u8,
}

/// Checks what the API could not: the numbers of recovery shares.
pub(crate) fn check_request(request: &InitRequest) -> Result<RecoveryShape, InitError> {
    let bad = |why: &str| InitError::BadRequest(why.to_owned());
    let shares = request.recovery_shares.unwrap_or(0);
    let threshold = request.recovery_threshold.unwrap_or(0);
    let (Ok(shares), Ok(threshold)) = (u8::try_from(shares), u8::try_from(threshold)) else {
        return Err(bad(
            "recovery_shares and recovery_threshold must be at most 255",
        ));
    };
    match (shares, threshold) {
        (0, _) => Err(bad("recovery_shares must be at least 1")),
        (_, 0) => Err(bad("recovery_threshold must be at least 1")),
        (s, t) if t > s => Err(bad(
            "recovery_threshold must not be greater than recovery_shares",
        )),
        (s, 1) if s > 1 => Err(bad(
            "recovery_threshold must be greater than one for multiple recovery shares",
        )),
        (shares, threshold) => Ok(RecoveryShape { shares, threshold }),
    }
}

/// A bootstrapped but not initialised single node.
pub(crate) struct HalfInit {
    raft: Raft,
    pub(crate) identity: Identity,
}

/// Opens (or makes) the single-node Raft that an init works in. It has no network.
pub(crate) async fn bootstrap(config: &Config, dir: &Path) -> Result<HalfInit, InitError> {
    let failed = |error: &dyn std::error::Error| InitError::Failed(super::chain(error));
    let identity = match Identity::load(dir).map_err(|e| failed(&e))? {
        Some(identity) => identity,
        None => {
            let mut cluster_id = [0; 16];
            getrandom::fill(&mut cluster_id).map_err(|e| failed(&e))?;
            let identity = Identity {
                cluster_id,
                raft_id: FIRST_RAFT_ID,
                name: config.storage.node_id.clone(),
            };
            identity.save(dir).map_err(|e| failed(&e))?;
            identity
        }
    };
    let stores = super::open_stores(dir, &identity)
        .await
        .map_err(|e| failed(&e))?;
    solo(config, identity, stores).await
}

/// Starts Raft on `stores` without a network and waits until it leads and has applied its whole log.
pub(crate) async fn solo(
    config: &Config,
    identity: Identity,
    stores: Stores,
) -> Result<HalfInit, InitError> {
    let failed = |error: &dyn std::error::Error| InitError::Failed(super::chain(error));
    let options: Options = raft_options(config, identity.clone());
    let raft = Raft::start(stores, options, None)
        .await
        .map_err(|e| failed(&e))?;
    let half = HalfInit { raft, identity };
    if let Err(error) = half.lead().await {
        half.raft.shutdown().await;
        return Err(error);
    }
    Ok(half)
}

impl HalfInit {
    async fn lead(&self) -> Result<(), InitError> {
        let failed = |error: &dyn std::error::Error| InitError::Failed(super::chain(error));
        if self.raft.is_pristine() {
            self.raft.initialize().await.map_err(|e| failed(&e))?;
        }
        let deadline = Instant::now() + STEP;
        let mut changes = self.raft.watch();
        while !self.raft.status().is_ready_leader {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(InitError::Failed(
                    "this node did not become the leader of its own cluster".to_owned(),
                ));
            }
            let step = left.min(Duration::from_millis(100));
            // A time-out only means: look again.
            let _ = tokio::time::timeout(step, changes.changed()).await;
        }
        Ok(())
    }

    /// The bundle, if an earlier init was cut off after its last step.
    pub(crate) fn finished(&self) -> Result<Option<SealBundle>, bundle::BundleError> {
        SealBundle::from_state(&self.raft.state())
    }

    /// Stops Raft and closes the stores.
    pub(crate) async fn close(self) {
        self.raft.shutdown().await;
    }

    /// Instead of steps 3 to 5: takes keys and data from a snapshot, with a CA of this new cluster.
    pub(crate) async fn restore(
        &self,
        hsm: &Hsm,
        candidate: &Candidate,
        id: [u8; 16],
        force: bool,
    ) -> Result<SealBundle, SnapshotError> {
        let failed =
            |why: String| SnapshotError::Unavailable(format!("nothing was restored: {why}"));
        match self.finished() {
            Ok(None) => {}
            Ok(Some(_)) => return Err(failed("the node is initialized already".to_owned())),
            Err(error) => return Err(failed(super::chain(&error))),
        }
        let ca = cluster_tls::generate_ca(&self.identity.cluster_id)
            .map_err(|error| failed(super::chain(&error)))?;
        // Only its CA is of use.
        let own = Keyring::generate(clock::now_ms(), &ca.certificate, &ca.key)
            .map_err(|error| failed(super::chain(&error)))?;
        let keyring = candidate.wrap_keyring(hsm, &own).await?;
        if !force {
            candidate.check_seal(hsm).await?;
        }
        restore::commit(&self.raft, id, candidate, keyring).await?;
        match self.finished() {
            Ok(Some(bundle)) => Ok(bundle),
            Ok(None) => Err(failed("the seal data is not in the state".to_owned())),
            Err(error) => Err(failed(super::chain(&error))),
        }
    }

    /// Steps 3 to 5. `wanted` says whether somebody still waits for the result.
    pub(crate) async fn initialise(
        &self,
        hsm: &Hsm,
        shape: RecoveryShape,
        wanted: impl Fn() -> bool,
    ) -> Result<(InitResult, SealBundle), InitError> {
        let key = self.establish_key(hsm).await?;
        let seal_config = SealConfig::new(
            Recovery {
                shares: shape.shares,
                threshold: shape.threshold,
            },
            vec![key],
        );
        hsm.open(&seal_config).await.map_err(hsm_error)?;
        let new = NewKeys::make(self.identity.cluster_id, hsm).await?;
        let (mut batch, root_token) = self.first_entries(hsm, new.keyring).await?;
        let recovery_keys = shares::split(new.recovery_key.as_ref(), shape.shares, shape.threshold)
            .map_err(|error| InitError::Failed(super::chain(&error)))?;
        let config_json = seal_config
            .to_json()
            .map_err(|error| InitError::Failed(super::chain(&error)))?;
        batch.checks.push((
            core_key(bundle::SEAL_CONFIG),
            strongroom_api::ports::Expect::Absent,
        ));
        for (name, value) in [
            (bundle::SEAL_CONFIG, config_json),
            (bundle::ROOT_KEY, new.wrapped_root_key),
            (bundle::RECOVERY_KEY, new.wrapped_recovery_key),
            (bundle::KEYRING, new.wrapped_keyring),
        ] {
            batch.puts.push((core_key(name), Bytes::from(value)));
        }
        batch.deletes.push(core_key(bundle::SEAL_INTENT));
        if !wanted() {
            return Err(InitError::Failed(
                "the client went away before the keys were made; nothing was initialised"
                    .to_owned(),
            ));
        }
        self.commit(super::wire::command(batch)).await?;
        let bundle = self
            .finished()
            .map_err(|error| InitError::Failed(super::chain(&error)))?
            .ok_or_else(|| InitError::Failed("the seal data is not in the state".to_owned()))?;
        let result = InitResult {
            recovery_keys,
            root_token,
        };
        Ok((result, bundle))
    }

    /// Records which HSM key will be used, then makes sure that it exists and works.
    async fn establish_key(&self, hsm: &Hsm) -> Result<SealKey, InitError> {
        let failed = |error: &dyn std::error::Error| InitError::Failed(super::chain(error));
        let key = core_key(bundle::SEAL_INTENT);
        let recorded = self.raft.state().get(&key).map_err(|e| failed(&e))?;
        let intent = match recorded {
            Some((_, json)) => serde_json::from_slice(&json).map_err(|e| failed(&e))?,
            None => {
                let intent = hsm.plan_key().await.map_err(hsm_error)?;
                let json = serde_json::to_vec(&intent).map_err(|e| failed(&e))?;
                let mut request_id = [0; 16];
                getrandom::fill(&mut request_id).map_err(|e| failed(&e))?;
                self.commit(Command {
                    request_id,
                    ops: vec![
                        Op::Check {
                            key: key.clone().into(),
                            expect: Expect::Absent,
                        },
                        Op::Put {
                            key: key.into(),
                            value: json.into(),
                        },
                    ],
                    ..Command::default()
                })
                .await?;
                intent
            }
        };
        hsm.establish_key(&intent).await.map_err(hsm_error)
    }

    /// The API's first entries (mounts, root token, cluster name), encrypted under the new keyring.
    async fn first_entries(
        &self,
        hsm: &Hsm,
        keyring: Keyring,
    ) -> Result<(StoredBatch, Zeroizing<String>), InitError> {
        let barrier = BarrierPort::new(std::sync::Arc::new(Barrier::new(keyring)), None);
        let wrap = SealWrapPort::new(std::sync::Arc::new(SealWrapper::new(hsm.clone())));
        strongroom_api::initial_writes(&barrier, &wrap, clock::now_ms())
            .await
            .map_err(|error| InitError::Failed(super::chain(&error)))
    }

    async fn commit(&self, command: Command) -> Result<(), InitError> {
        let applied = self
            .raft
            .propose(command, Instant::now() + STEP)
            .await
            .map_err(|error| InitError::Failed(super::chain(&error)))?;
        if applied.is_applied() {
            Ok(())
        } else {
            Err(InitError::AlreadyInitialized)
        }
    }
}

/// The key hierarchy of a new cluster, wrapped for storage.
struct NewKeys {
    keyring: Keyring,
    recovery_key: SecretBytes,
    wrapped_root_key: Vec<u8>,
    wrapped_recovery_key: Vec<u8>,
    wrapped_keyring: Vec<u8>,
}

impl NewKeys {
    async fn make(cluster_id: [u8; 16], hsm: &Hsm) -> Result<Self, InitError> {
        let failed = |error: &dyn std::error::Error| InitError::Failed(super::chain(error));
        let ca = cluster_tls::generate_ca(&cluster_id).map_err(|e| failed(&e))?;
        let root_key = RootKey::generate().map_err(|e| failed(&e))?;
        let keyring =
            Keyring::generate(clock::now_ms(), &ca.certificate, &ca.key).map_err(|e| failed(&e))?;
        let encrypted = keyring.encrypt(&root_key).map_err(|e| failed(&e))?;
        let recovery_key = SecretBytes::random(32).map_err(|e| failed(&e))?;
        let wrap = |path, plaintext| hsm.wrap_core(path, plaintext);
        let wrapped_root_key = wrap(bundle::ROOT_KEY, root_key.as_ref())
            .await
            .map_err(hsm_error)?;
        let wrapped_recovery_key = wrap(bundle::RECOVERY_KEY, recovery_key.as_ref())
            .await
            .map_err(hsm_error)?;
        let wrapped_keyring = wrap(bundle::KEYRING, &encrypted).await.map_err(hsm_error)?;
        Ok(Self {
            keyring,
            recovery_key,
            wrapped_root_key,
            wrapped_recovery_key,
            wrapped_keyring,
        })
    }
}

fn hsm_error(error: strongroom_seal::hsm::HsmError) -> InitError {
    InitError::Hsm(super::chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_the_number_of_recovery_shares() {
        let request = |shares, threshold| InitRequest {
            recovery_shares: shares,
            recovery_threshold: threshold,
            ..InitRequest::default()
        };
        for (shares, threshold, ok) in [
            (Some(1), Some(1), true),
            (Some(5), Some(3), true),
            (Some(255), Some(255), true),
            (None, None, false),
            (Some(0), Some(0), false),
            (Some(3), None, false),
            (Some(3), Some(4), false),
            (Some(3), Some(1), false),
            (Some(256), Some(3), false),
        ] {
            assert_eq!(
                check_request(&request(shares, threshold)).is_ok(),
                ok,
                "{shares:?} {threshold:?}"
            );
        }
    }
}
