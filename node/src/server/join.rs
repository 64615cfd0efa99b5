//! Joining a cluster: the joiner proves that its HSM holds the cluster's key, and gets a Raft id and the seal bundle.
//!
//! In two requests over the API port of any node (a follower or a load balancer forwards to the leader):
//! 1. challenge: the leader has its HSM encrypt a secret that it can compute again from a nonce, so it keeps no state
//!    per joiner (CVE-2024-8185 is what keeping it costs);
//! 2. answer: an HMAC under that secret over everything the joiner says of itself. Only then is anything allocated.
//!
//! Invariants
//! - Nothing changes on either side before the proof is verified; a node whose HSM holds another key is refused.
//! - The joiner commits by writing `node.json` last; everything before can be repeated.
//! - Challenges cost an HSM operation without authentication, so they are rate-limited.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use strongroom_api::ports::{
    AnswerRequest, Challenge, ChallengeRequest, JoinError, JoinGrant, MoreOfJoiner,
};
use strongroom_raft::{Identity, PeerInfo, Raft, Status};
use strongroom_seal::{config::SealConfig, hsm::Hsm, secret::SecretBytes};

use super::{bundle::SealBundle, chain, files};
use crate::{clock, config::Config};

/// Context of the HSM-wrapped challenge; also keeps it from being mistaken for any stored value.
const CHALLENGE_PATH: &str = "core/join-challenge";
/// A challenge is good for this long; an HSM and a slow start fit in.
const CHALLENGE_LIFETIME_MS: u64 = 60_000;
/// Challenges per second, and at once.
const RATE: f64 = 5.0;
const BURST: f64 = 10.0;
/// A member of the same name that was heard within this time is alive: two nodes were given one name.
const ALIVE: Duration = Duration::from_secs(60);
/// A leader that has led for less knows nothing of members it has not heard of, milliseconds.
const NEW_LEADER_MS: u64 = 60_000;
/// Written by `raft`; it makes a directory a member's.
const IDENTITY_FILE: &str = "node.json";
/// Longest `node_id`, bytes.
const MAX_NAME: usize = 256;

/// The leader's side.
pub(crate) struct JoinGate {
    /// Makes challenge secrets from nonces; new for every process, so a challenge does not outlive it.
    secret: SecretBytes,
    bucket: Mutex<Bucket>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

impl JoinGate {
    /// # Errors
    /// When the system gives no randomness.
    pub(crate) fn new() -> Result<Self, String> {
        Ok(Self {
            secret: SecretBytes::random(32).map_err(|error| chain(&error))?,
            bucket: Mutex::new(Bucket {
                tokens: BURST,
                at: Instant::now(),
            }),
        })
    }

    /// Step one: a secret for `request.server_id` that only the cluster's HSM key can open.
    pub(crate) async fn challenge(
        &self,
        hsm: &Hsm,
        config: &SealConfig,
        request: &ChallengeRequest,
    ) -> Result<Challenge, JoinError> {
        check_name(&request.server_id)?;
        if !self.take_token(Instant::now()) {
            return Err(JoinError::RateLimited);
        }
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| JoinError::Failed(error.to_string()))?;
        let expires = clock::now_ms().saturating_add(CHALLENGE_LIFETIME_MS);
        let nonce = format!("{}.{expires}", hex::encode(random));
        let secret = self.challenge_secret(&request.server_id, &nonce);
        let blob = hsm
            .wrap_core(CHALLENGE_PATH, &secret)
            .await
            .map_err(|error| JoinError::Unavailable(chain(&error)))?;
        let seal_config =
            serde_json::to_value(config).map_err(|error| JoinError::Failed(error.to_string()))?;
        Ok(Challenge {
            challenge: BASE64.encode(blob),
            nonce,
            seal_config,
        })
    }

    /// Step two: verifies the proof. Changes nothing.
    pub(crate) fn verify(&self, request: &AnswerRequest) -> Result<(), JoinError> {
        check_name(&request.server_id)?;
        let refused = |why: &str| JoinError::Refused(why.to_owned());
        let expires = request
            .nonce
            .split_once('.')
            .and_then(|(_, expires)| expires.parse::<u64>().ok())
            .ok_or_else(|| JoinError::BadRequest("the nonce is malformed".to_owned()))?;
        if expires < clock::now_ms() {
            return Err(refused("the challenge has expired; ask for a new one"));
        }
        let given = BASE64
            .decode(&request.answer)
            .map_err(|_| JoinError::BadRequest("the answer is not base64".to_owned()))?;
        let more = match &request.more {
            None => Some(Vec::new()),
            Some(more) => BASE64.decode(&more.answer).ok(),
        };
        let secret = self.challenge_secret(&request.server_id, &request.nonce);
        let matches = proof_matches(&secret, request, &given)
            && more.is_some_and(|given| more_matches(&secret, request, &given));
        if matches {
            Ok(())
        } else {
            Err(refused(
                "the answer to the challenge is wrong: this node's HSM does not hold the cluster's seal key, or \
                 leadership changed in between",
            ))
        }
    }

    fn challenge_secret(&self, server_id: &str, nonce: &str) -> [u8; 32] {
        strongroom_seal::hmac_sha256(
            self.secret.as_ref(),
            &[
                b"strongroom-challenge/1",
                server_id.as_bytes(),
                nonce.as_bytes(),
            ],
        )
    }

    fn take_token(&self, now: Instant) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.tokens = (bucket.tokens + elapsed * RATE).min(BURST);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

/// Adds the proven joiner as a learner; the leader promotes it when it has caught up.
pub(crate) async fn admit(
    raft: &Raft,
    bundle: &SealBundle,
    cluster_id: &[u8; 16],
    request: &AnswerRequest,
) -> Result<JoinGrant, JoinError> {
    refuse_name_in_use(&raft.status(), request)?;
    let more = request.more.clone().unwrap_or_default();
    if more.upgrade_version.len().max(more.redundancy_zone.len()) > MAX_NAME {
        return Err(JoinError::BadRequest(
            "the version or the redundancy zone is too long".to_owned(),
        ));
    }
    let info = PeerInfo {
        name: request.server_id.clone(),
        cluster_addr: checked_address(&request.cluster_addr)?,
        api_addr: request.api_addr.clone(),
        hostname: request.hostname.clone(),
        version: request.version.clone(),
        non_voter: request.non_voter,
        leader_ineligible: more.leader_ineligible,
        upgrade_version: more.upgrade_version,
        redundancy_zone: more.redundancy_zone,
    };
    let raft_id = raft
        .add_node(info)
        .await
        .map_err(|error| JoinError::Unavailable(chain(&error)))?;
    tracing::info!(raft_id, name = %request.server_id, "a node joined; it votes when it has caught up");
    let seal_bundle =
        serde_json::to_value(bundle).map_err(|error| JoinError::Failed(error.to_string()))?;
    Ok(JoinGrant {
        cluster_id: hex::encode(cluster_id),
        raft_id,
        seal_bundle,
    })
}

fn refuse_name_in_use(status: &Status, request: &AnswerRequest) -> Result<(), JoinError> {
    let in_use = status.members.iter().find(|member| {
        // A new leader has heard of nobody yet: that is no sign of death.
        let just_elected = status
            .leader_since_ms
            .is_none_or(|since| clock::now_ms() < since.saturating_add(NEW_LEADER_MS));
        let alive = member.raft_id == status.raft_id
            || member.last_ack.map_or(just_elected, |age| age < ALIVE);
        // The same address cannot be held by two live nodes: that one was wiped and came back.
        alive
            && member.info.name == request.server_id
            && member.info.cluster_addr != request.cluster_addr
    });
    match in_use {
        None => Ok(()),
        Some(member) => Err(JoinError::Refused(format!(
            "a node named {} is alive at {}; give every node its own node_id",
            member.info.name, member.info.cluster_addr
        ))),
    }
}

fn check_name(name: &str) -> Result<(), JoinError> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(JoinError::BadRequest(format!(
            "server_id must be 1 to {MAX_NAME} printable characters"
        )));
    }
    Ok(())
}

fn checked_address(address: &str) -> Result<String, JoinError> {
    let port = address
        .rsplit_once(':')
        .map(|(host, port)| (host, port.parse::<u16>()));
    match port {
        Some((host, Ok(port))) if !host.is_empty() && port > 0 && address.len() <= 512 => {
            Ok(address.to_owned())
        }
        _ => Err(JoinError::BadRequest(
            "cluster_addr must be host:port".to_owned(),
        )),
    }
}

/// HMAC over everything the joiner says of itself, length-prefixed so that no two field lists collide.
fn proof(secret: &[u8], request: &AnswerRequest) -> [u8; 32] {
    let non_voter = [u8::from(request.non_voter)];
    strongroom_seal::hmac_sha256(
        secret,
        &[
            b"strongroom-join/1",
            request.server_id.as_bytes(),
            request.nonce.as_bytes(),
            request.cluster_addr.as_bytes(),
            request.api_addr.as_bytes(),
            request.hostname.as_bytes(),
            request.version.as_bytes(),
            &non_voter,
        ],
    )
}

/// As [`proof`], for what was added later.
fn proof_of_more(secret: &[u8], request: &AnswerRequest, more: &MoreOfJoiner) -> [u8; 32] {
    let leader_ineligible = [u8::from(more.leader_ineligible)];
    strongroom_seal::hmac_sha256(
        secret,
        &[
            b"strongroom-join-more/1",
            request.server_id.as_bytes(),
            request.nonce.as_bytes(),
            &leader_ineligible,
            more.upgrade_version.as_bytes(),
            more.redundancy_zone.as_bytes(),
        ],
    )
}

fn more_matches(secret: &[u8], request: &AnswerRequest, given: &[u8]) -> bool {
    request.more.as_ref().is_none_or(|more| {
        strongroom_seal::constant_time_eq(&proof_of_more(secret, request, more), given)
    })
}

fn proof_matches(secret: &[u8], request: &AnswerRequest, given: &[u8]) -> bool {
    strongroom_seal::constant_time_eq(&proof(secret, request), given)
}

/// How to reach one node of the cluster to join.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// `https://host:port`, or `http://` for a listener without TLS.
    pub(crate) address: String,
    pub(crate) tls: crate::client::TlsParameters,
}

/// A challenge that this node's HSM has opened.
pub(crate) struct Opened {
    target: Target,
    answer: AnswerRequest,
}

/// Step one, joiner's side: fetches a challenge from `target` and has the HSM open it. Changes nothing and may be
/// dropped at any time.
pub(crate) async fn open_challenge(
    config: &Config,
    hsm: &Hsm,
    target: Target,
    non_voter: bool,
) -> Result<Opened, JoinError> {
    let node_id = config.storage.node_id.clone();
    let request = ChallengeRequest {
        server_id: node_id.clone(),
    };
    let challenge: Challenge = put(&target, "challenge", &request).await?;
    let seal_config = serde_json::to_vec(&challenge.seal_config)
        .ok()
        .and_then(|json| SealConfig::from_json(&json).ok())
        .ok_or_else(|| {
            JoinError::Failed(format!(
                "{} sent a seal configuration that this version does not understand",
                target.address
            ))
        })?;
    hsm.open(&seal_config)
        .await
        .map_err(|error| JoinError::Unavailable(chain(&error)))?;
    let blob = BASE64
        .decode(&challenge.challenge)
        .map_err(|_| JoinError::Failed(format!("{} sent a bad challenge", target.address)))?;
    let secret = hsm
        .unwrap_core(CHALLENGE_PATH, &blob)
        .await
        .map_err(|error| JoinError::Unavailable(chain(&error)))?;
    let mut answer = AnswerRequest {
        server_id: node_id,
        answer: String::new(),
        nonce: challenge.nonce,
        cluster_addr: config.cluster_host_port(),
        api_addr: config.api_addr.clone(),
        hostname: super::hostname(),
        version: super::VERSION.to_owned(),
        non_voter,
        more: None,
    };
    answer.answer = BASE64.encode(proof(secret.as_ref(), &answer));
    let mut more = MoreOfJoiner {
        answer: String::new(),
        leader_ineligible: config.storage.leader_ineligible,
        upgrade_version: config.storage.autopilot_upgrade_version.clone(),
        redundancy_zone: config.storage.autopilot_redundancy_zone.clone(),
    };
    more.answer = BASE64.encode(proof_of_more(secret.as_ref(), &answer, &more));
    answer.more = Some(more);
    Ok(Opened { target, answer })
}

/// Step two, joiner's side: answers, checks what comes back, and commits the identity to disk. Must not be dropped
/// half-way; it is bounded by the client's time-outs.
pub(crate) async fn finish(
    opened: Opened,
    hsm: &Hsm,
    dir: &Path,
) -> Result<(Identity, SealBundle), JoinError> {
    let Opened { target, answer } = opened;
    let failed = |error: &dyn std::error::Error| JoinError::Failed(chain(error));
    // Before the leader gives out an id: what is left of an init would refuse the new identity afterwards.
    discard_half_initialised(dir).map_err(|e| failed(&e))?;
    let grant: JoinGrant = put(&target, "answer", &answer).await?;
    let mut cluster_id = [0; 16];
    hex::decode_to_slice(&grant.cluster_id, &mut cluster_id).map_err(|e| failed(&e))?;
    let json = serde_json::to_vec(&grant.seal_bundle).map_err(|e| failed(&e))?;
    let bundle = SealBundle::parse(&json).map_err(|e| failed(&e))?;
    // Proven before anything is kept: a bundle that this HSM cannot open would leave a node that never unseals.
    bundle.open(hsm).await.map_err(|e| failed(&e))?;
    let identity = Identity {
        cluster_id,
        raft_id: grant.raft_id,
        name: answer.server_id,
    };
    bundle.save(dir).map_err(|e| failed(&e))?;
    identity.save(dir).map_err(|e| failed(&e))?;
    Ok((identity, bundle))
}

/// Removes what an init that was cut off left behind: nothing in it was ever acknowledged. The identity goes first, so
/// that a crash in between leaves an empty node, not one with an identity and no data.
fn discard_half_initialised(dir: &Path) -> std::io::Result<()> {
    let gone = |removed: std::io::Result<()>| match removed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    };
    let mut any = gone(std::fs::remove_file(dir.join(IDENTITY_FILE)))?;
    files::sync_dir(dir)?;
    for name in ["raft", "state"] {
        any |= gone(std::fs::remove_dir_all(dir.join(name)))?;
    }
    files::sync_dir(dir)?;
    if any {
        tracing::info!("removed the data of an initialisation that was never finished");
    }
    Ok(())
}

/// What another node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Other {
    /// It does not answer, or says nothing that is understood.
    Silent,
    /// It has just started and does not know yet.
    Undecided,
    /// It belongs to no cluster.
    Empty,
    /// It makes a cluster at this moment; the name of that attempt.
    Founding(String),
    /// It belongs to a cluster.
    Initialized,
}

/// Asks `target` whether it belongs to a cluster.
pub(crate) async fn ask(target: &Target) -> Other {
    asked(target).await.unwrap_or(Other::Silent)
}

async fn asked(target: &Target) -> Option<Other> {
    let response = crate::client::one_request(
        http::Method::GET,
        &format!("{}/v1/sys/init", target.address),
        None,
        &target.tls,
        Duration::from_secs(2),
    )
    .await
    .ok()?;
    // What a load balancer says that finds no node is no JSON.
    let body: serde_json::Value = serde_json::from_slice(response.body()).ok()?;
    if response.status() == http::StatusCode::SERVICE_UNAVAILABLE && body.get("errors").is_some() {
        return Some(Other::Undecided);
    }
    if body.get("initialized")?.as_bool()? {
        return Some(Other::Initialized);
    }
    let attempt = body.get("initializing").and_then(|id| id.as_str());
    Some(attempt.map_or(Other::Empty, |id| Other::Founding(id.to_owned())))
}

/// One step of the exchange; the answer's `data` is parsed, an error answer's text is passed on.
async fn put<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
    target: &Target,
    step: &str,
    body: &Q,
) -> Result<A, JoinError> {
    let url = format!("{}/v1/sys/storage/raft/bootstrap/{step}", target.address);
    let unusable = |why: String| JoinError::Unavailable(format!("{}: {why}", target.address));
    let body = serde_json::to_vec(body).map_err(|error| unusable(error.to_string()))?;
    let response = crate::client::one_request(
        http::Method::PUT,
        &url,
        Some(body.into()),
        &target.tls,
        Duration::from_secs(10),
    )
    .await
    .map_err(|error| unusable(chain(&error)))?;
    let status = response.status();
    let parsed: serde_json::Value = serde_json::from_slice(response.body())
        .map_err(|_| unusable(format!("answered {status} and no JSON")))?;
    if !status.is_success() {
        let text = parsed
            .pointer("/errors/0")
            .and_then(serde_json::Value::as_str)
            .unwrap_or("no reason given");
        return Err(unusable(format!("{status}: {text}")));
    }
    let data = parsed.get("data").cloned().unwrap_or_default();
    serde_json::from_value(data).map_err(|error| unusable(format!("unexpected answer: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> AnswerRequest {
        AnswerRequest {
            server_id: "n2".to_owned(),
            answer: String::new(),
            nonce: format!("00.{}", clock::now_ms() + 1000),
            cluster_addr: "127.0.0.1:8201".to_owned(),
            api_addr: "https://127.0.0.1:8200".to_owned(),
            hostname: "h".to_owned(),
            version: "v".to_owned(),
            non_voter: false,
            more: None,
        }
    }

    #[test]
    fn a_proof_is_bound_to_everything_said() {
        let gate = JoinGate::new().unwrap();
        let mut good = answer();
        let secret = gate.challenge_secret("n2", &good.nonce);
        good.answer = BASE64.encode(proof(&secret, &good));
        assert!(gate.verify(&good).is_ok(), "an older joiner says no more");
        let mut more = MoreOfJoiner {
            redundancy_zone: "a".to_owned(),
            ..MoreOfJoiner::default()
        };
        more.answer = BASE64.encode(proof_of_more(&secret, &good, &more));
        good.more = Some(more);
        assert!(gate.verify(&good).is_ok());
        let changes: [fn(&mut AnswerRequest); 8] = [
            |a| a.more.as_mut().unwrap().redundancy_zone.push('b'),
            |a| a.more.as_mut().unwrap().leader_ineligible = true,
            |a| a.server_id = "n3".to_owned(),
            |a| a.cluster_addr = "127.0.0.1:9999".to_owned(),
            |a| a.api_addr.push('x'),
            |a| a.non_voter = true,
            |a| a.nonce = a.nonce.replacen('0', "1", 1),
            |a| a.answer = BASE64.encode([0; 32]),
        ];
        for (at, change) in changes.iter().enumerate() {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(
                matches!(gate.verify(&bad), Err(JoinError::Refused(_))),
                "{at}"
            );
        }
        let another_process = JoinGate::new().unwrap();
        assert!(another_process.verify(&good).is_err());
    }

    #[test]
    fn an_expired_or_malformed_challenge_is_refused() {
        let gate = JoinGate::new().unwrap();
        for nonce in ["00.1", "00", "", "00.x", "00.-1"] {
            let mut bad = answer();
            bad.nonce = nonce.to_owned();
            assert!(gate.verify(&bad).is_err(), "{nonce}");
        }
    }

    #[test]
    fn challenges_are_rate_limited() {
        let gate = JoinGate::new().unwrap();
        let now = Instant::now();
        let granted = (0..100).filter(|_| gate.take_token(now)).count();
        assert_eq!(granted, 10);
        assert!(gate.take_token(now + Duration::from_secs(1)));
    }

    #[test]
    fn addresses_are_checked() {
        for (address, ok) in [
            ("127.0.0.1:8201", true),
            ("[::1]:8201", true),
            ("host", false),
            (":1", false),
            ("h:0", false),
            ("h:70000", false),
        ] {
            assert_eq!(checked_address(address).is_ok(), ok, "{address}");
        }
    }
}
