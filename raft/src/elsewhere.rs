//! Commands that a node which does not lead has the leader propose.
//!
//! In: a command, on any node. Out: the outcome that the leader's own caller would get.
//!
//! Invariants
//! - A command is sent once: a connection that breaks behind it makes the outcome unknown, never a second copy.
//! - The leader takes only what it understands itself: what it cannot decode would stop every node that applies it.
//! - The time in a command is the leader's: a follower's clock may be wrong.

use std::time::{Duration, Instant};

use crate::{
    command::{Applied, Command, Outcome},
    error::ProposeError,
    figures::{figures, seconds},
    net::{Call, CallError, FailedCheck, ProposeCall, ProposeReply, Proposed, Reply},
    raft::Raft,
    types::Encoded,
};

impl Raft {
    /// As [`Raft::propose`], on any node: one that does not lead has the leader do it.
    ///
    /// # Errors
    /// As [`Raft::propose`]. `NotLeader` also when the leader is of a version that does not take commands from others.
    pub async fn propose_anywhere(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<Applied, ProposeError> {
        let (role, own) = (self.role(), self.0.options.identity.raft_id);
        if role.is_ready_leader {
            return self.propose(command, deadline).await;
        }
        let leader = role.leader.filter(|leader| *leader != own);
        let (Some(leader), Some(links)) = (leader, &self.0.services.links) else {
            return Err(ProposeError::NotLeader { leader });
        };
        let encoded = command.encode();
        let (len, max) = (encoded.0.len(), self.0.options.max_entry_size);
        if len > max {
            return Err(ProposeError::TooLarge { len, max });
        }
        let wait = deadline.saturating_duration_since(Instant::now());
        let call = Call::Propose(ProposeCall {
            command: encoded.0,
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        });
        let began = Instant::now();
        let answer = links.propose(leader).call(call, wait).await;
        match &answer {
            Ok(Reply::Proposed(_)) => figures().sent_command.record(seconds(began.elapsed())),
            Ok(_) | Err(_) => figures().sent_command_failed.increment(1),
        }
        match answer {
            Ok(Reply::Proposed(reply)) => outcome_of(reply, len),
            Ok(Reply::Failed(_) | Reply::NotLeader(_)) | Err(CallError::Unreachable(_)) => {
                Err(ProposeError::NotLeader {
                    leader: Some(leader),
                })
            }
            Err(CallError::Busy) => Err(ProposeError::Busy),
            Ok(_) | Err(CallError::TimedOut | CallError::Broken) => Err(ProposeError::Unknown),
        }
    }

    /// The leader's side of [`Raft::propose_anywhere`].
    pub(crate) async fn answer_propose(&self, call: ProposeCall) -> ProposeReply {
        let encoded = Encoded(call.command);
        let deadline = Instant::now() + Duration::from_millis(call.wait_ms).min(LONGEST);
        let outcome = match Command::decode(&encoded) {
            // Of a newer version: it can wait until this node does not lead any more.
            Err(_) => Err(ProposeError::NotLeader { leader: None }),
            Ok(_) => {
                let max = self.0.options.max_entry_size;
                let stamped = Command::stamp(&encoded, self.0.stamps.now_ms());
                self.propose_encoded(stamped, max, deadline).await
            }
        };
        let outcome = match outcome {
            Ok(Applied { index, outcome }) => match outcome {
                Outcome::Applied => Proposed::Applied(index),
                Outcome::CheckFailed { op } => Proposed::CheckFailed(FailedCheck { index, op }),
                Outcome::Superseded => Proposed::Superseded(index),
            },
            Err(ProposeError::NotLeader { .. }) => Proposed::NotLeader(true),
            Err(ProposeError::NoQuorum) => Proposed::NoQuorum(true),
            Err(ProposeError::Busy) => Proposed::Busy(true),
            Err(ProposeError::NoRoom) => Proposed::NoRoom(true),
            Err(ProposeError::TooLarge { max, .. }) => {
                Proposed::TooLarge(u64::try_from(max).unwrap_or(u64::MAX))
            }
            // Stopped as it is, it may have written the command.
            Err(ProposeError::Unknown | ProposeError::Fatal(_)) => Proposed::Unknown(true),
        };
        ProposeReply {
            outcome: Some(outcome),
        }
    }
}

/// Nobody waits longer for a command, whatever a peer says.
const LONGEST: Duration = Duration::from_secs(600);

fn outcome_of(reply: ProposeReply, len: usize) -> Result<Applied, ProposeError> {
    let applied = |index, outcome| Ok(Applied { index, outcome });
    match reply.outcome {
        Some(Proposed::Applied(index)) => applied(index, Outcome::Applied),
        Some(Proposed::CheckFailed(FailedCheck { index, op })) => {
            applied(index, Outcome::CheckFailed { op })
        }
        Some(Proposed::Superseded(index)) => applied(index, Outcome::Superseded),
        Some(Proposed::NotLeader(_)) => Err(ProposeError::NotLeader { leader: None }),
        Some(Proposed::NoQuorum(_)) => Err(ProposeError::NoQuorum),
        Some(Proposed::Busy(_)) => Err(ProposeError::Busy),
        Some(Proposed::NoRoom(_)) => Err(ProposeError::NoRoom),
        Some(Proposed::TooLarge(max)) => Err(ProposeError::TooLarge {
            len,
            max: usize::try_from(max).unwrap_or(usize::MAX),
        }),
        // An answer that a newer version gives: it may stand for anything.
        Some(Proposed::Unknown(_)) | None => Err(ProposeError::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Identity, Options, Pace, PeerInfo, SnapshotOptions, Stores, state::tests::window_is_on,
    };

    const HOUR_MS: u64 = 3_600_000;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// A node that leads alone and remembers requests by time.
    async fn leader(dir: &std::path::Path) -> Raft {
        let identity = Identity {
            cluster_id: [5; 16],
            raft_id: 1,
            name: "a".to_owned(),
        };
        identity.save(dir).unwrap();
        let options = Options {
            identity: identity.clone(),
            me: PeerInfo {
                name: "a".to_owned(),
                ..PeerInfo::default()
            },
            multiplier: 1,
            max_entry_size: 1 << 20,
            min_free_disk: Some(1),
            snapshots: SnapshotOptions::default(),
            pace: Pace::default(),
        };
        let stores = Stores::open(dir, &identity).unwrap();
        let raft = Raft::start(stores, options, None).await.unwrap();
        if raft.is_pristine() {
            raft.initialize().await.unwrap();
        }
        let mut role = raft.watch();
        let ready = role.wait_for(|role| role.is_ready_leader);
        tokio::time::timeout(Duration::from_secs(20), ready)
            .await
            .expect("in time")
            .unwrap();
        window_is_on(&raft.state()).await;
        raft
    }

    /// A command that only remembers its request, of somebody whose clock says `at_ms`.
    fn request(number: u8, at_ms: u64) -> Command {
        Command {
            request_id: [number; 16],
            proposed_at_ms: at_ms,
            ..Command::default()
        }
    }

    async fn from_follower(raft: &Raft, command: Command) -> u64 {
        let call = ProposeCall {
            command: command.encode().0,
            wait_ms: 20_000,
        };
        match raft.answer_propose(call).await.outcome {
            Some(Proposed::Applied(index)) => index,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_clock_that_is_ahead_makes_a_request_forgotten_early() {
        let dir = tempfile::tempdir().unwrap();
        let raft = leader(dir.path()).await;
        let first = raft.propose(request(1, 0), soon()).await.unwrap().index;
        let ahead = crate::start::now_ms() + HOUR_MS;
        from_follower(&raft, request(2, ahead)).await;
        assert_eq!(from_follower(&raft, request(1, ahead)).await, first);
        // The leader's own clock is no better.
        raft.propose(request(3, ahead + HOUR_MS), soon())
            .await
            .unwrap();
        let again = raft.propose(request(1, 0), soon()).await.unwrap();
        assert_eq!(again.index, first);
        // The next leader goes on from the same place.
        raft.shutdown().await;
        let raft = leader(dir.path()).await;
        raft.propose(request(4, ahead), soon()).await.unwrap();
        let again = raft.propose(request(1, ahead), soon()).await.unwrap();
        assert_eq!(again.index, first);
        raft.shutdown().await;
    }
}
