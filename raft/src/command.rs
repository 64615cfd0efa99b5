//! The replicated command: an all-or-nothing batch of changes to opaque keys, and what came of it.
//!
//! In: what the proposer built. Out: versioned prost bytes, and back on every node.
//!
//! Invariants
//! - Keys and values are opaque here and never appear in `Debug`.
//! - An unknown format is an error, never skipped: a node that cannot read an entry must not go past it.

use std::fmt;

use bytes::Bytes;
use prost::Message;

use crate::{restore::RestoreStep, types::Encoded};

/// Changing this number makes older nodes stop with a clear message at the first newer command.
const FORMAT: u32 = 1;
/// The one command of this format carries nothing: from its place in the log on, requests are remembered by time (see
/// `state/apply.rs`). Proposed once every member has said that it knows how; one that does not stops here.
pub(crate) const WINDOW_FORMAT: u32 = 2;

/// What a key must look like for a command to be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing is stored under the key.
    Absent,
    /// The value was last written by the command at this log index.
    ModIndex(u64),
}

/// One part of a [`Command`].
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    /// Stores `value` under `key`.
    Put {
        /// Opaque key.
        key: Bytes,
        /// Opaque value.
        value: Bytes,
    },
    /// Removes `key`; an absent key is not an error.
    Delete {
        /// Opaque key.
        key: Bytes,
    },
    /// Rejects the whole command unless `key` looks as expected *before* the command.
    Check {
        /// Opaque key.
        key: Bytes,
        /// The condition.
        expect: Expect,
    },
    /// A step of a restore: always the first operation of its command.
    Restore(RestoreStep),
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put { key, value } => write!(f, "Put({}B, {}B)", key.len(), value.len()),
            Self::Delete { key } => write!(f, "Delete({}B)", key.len()),
            Self::Check { key, expect } => write!(f, "Check({}B, {expect:?})", key.len()),
            Self::Restore(step) => write!(f, "{step:?}"),
        }
    }
}

/// All-or-nothing change of the key space: one log entry.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// Names the request: a second command with the same id changes nothing and gets the first one's outcome. All
    /// zeroes: no such protection.
    pub request_id: [u8; 16],
    /// Milliseconds on the cluster's own clock (`stamps.rs`), the only time that apply may look at. The leader sets it when
    /// it proposes the command; what anybody else has put there does not count.
    pub proposed_at_ms: u64,
    /// How many restores the state had seen that the proposer worked on ([`crate::State::restores`]). The command changes
    /// nothing if a restore has come in between: what it says was made for other data, under other keys.
    pub restores: u64,
    /// Checks are evaluated first, whatever their place; then puts and deletes are carried out in order.
    pub ops: Vec<Op>,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command").field("ops", &self.ops).finish()
    }
}

/// What a committed command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every put and delete took effect.
    Applied,
    /// A check did not hold and nothing changed.
    CheckFailed {
        /// Position of the failed check in the command's `ops`.
        op: u32,
    },
    /// A restore has replaced the data that the command was made for; nothing changed.
    Superseded,
}

/// A committed command's place in the log and its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Log index of the command that took effect: for a repeated request, the first copy's.
    pub index: u64,
    /// What it did.
    pub outcome: Outcome,
}

impl Applied {
    /// Whether the command's changes took effect.
    #[must_use]
    pub fn is_applied(&self) -> bool {
        self.outcome == Outcome::Applied
    }
}

/// Why bytes are not a command this version understands.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Written by a newer version.
    #[error("command format {0} is unknown; this node runs an older version than the leader")]
    UnknownFormat(u32),
    /// Not a command at all.
    #[error("a command is malformed: {0}")]
    Malformed(&'static str),
    /// Not prost.
    #[error("a command does not decode")]
    Decode(#[from] prost::DecodeError),
}

/// Number of the field of that name.
const PROPOSED_AT: u32 = 3;

#[derive(Clone, PartialEq, Message)]
struct CommandProto {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(bytes = "bytes", tag = "2")]
    request_id: Bytes,
    #[prost(uint64, tag = "3")]
    proposed_at_ms: u64,
    #[prost(message, repeated, tag = "4")]
    ops: Vec<OpProto>,
    // Safe to ignore: a node that does not know it stops at the first step of a restore, and before that it is 0.
    #[prost(uint64, tag = "5")]
    restores: u64,
}

#[derive(Clone, PartialEq, Message)]
struct OpProto {
    #[prost(oneof = "OpKind", tags = "1, 2, 3, 4")]
    kind: Option<OpKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum OpKind {
    #[prost(message, tag = "1")]
    Put(PutProto),
    #[prost(message, tag = "2")]
    Delete(DeleteProto),
    #[prost(message, tag = "3")]
    Check(CheckProto),
    #[prost(message, tag = "4")]
    Restore(RestoreProto),
}

#[derive(Clone, PartialEq, Message)]
struct PutProto {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct DeleteProto {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct CheckProto {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(oneof = "WantProto", tags = "2, 3")]
    want: Option<WantProto>,
}

#[derive(Clone, Copy, PartialEq, prost::Oneof)]
enum WantProto {
    #[prost(bool, tag = "2")]
    Absent(bool),
    #[prost(uint64, tag = "3")]
    ModIndex(u64),
}

#[derive(Clone, PartialEq, Message)]
struct RestoreProto {
    #[prost(bytes = "bytes", tag = "1")]
    id: Bytes,
    #[prost(oneof = "StepProto", tags = "2, 3, 4, 5")]
    step: Option<StepProto>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum StepProto {
    #[prost(bool, tag = "2")]
    Begin(bool),
    #[prost(message, tag = "3")]
    Chunk(ChunkProto),
    #[prost(message, tag = "4")]
    Commit(CommitProto),
    #[prost(bool, tag = "5")]
    Abort(bool),
}

#[derive(Clone, PartialEq, Message)]
struct ChunkProto {
    #[prost(uint64, tag = "1")]
    seq: u64,
    #[prost(message, repeated, tag = "2")]
    rows: Vec<PutProto>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct CommitProto {
    #[prost(uint64, tag = "1")]
    rows: u64,
    #[prost(uint32, tag = "2")]
    checksum: u32,
    #[prost(uint64, tag = "3")]
    puts: u64,
}

impl Command {
    /// The step of a restore that this command is.
    pub(crate) fn restore_step(&self) -> Option<&RestoreStep> {
        match self.ops.first() {
            Some(Op::Restore(step)) => Some(step),
            Some(Op::Put { .. } | Op::Delete { .. } | Op::Check { .. }) | None => None,
        }
    }

    /// The bytes that travel in the log.
    pub(crate) fn encode(self) -> Encoded {
        let ops = self.ops.into_iter().map(|op| OpProto {
            kind: Some(match op {
                Op::Put { key, value } => OpKind::Put(PutProto { key, value }),
                Op::Delete { key } => OpKind::Delete(DeleteProto { key }),
                Op::Check { key, expect } => OpKind::Check(CheckProto {
                    key,
                    want: Some(match expect {
                        Expect::Absent => WantProto::Absent(true),
                        Expect::ModIndex(index) => WantProto::ModIndex(index),
                    }),
                }),
                Op::Restore(step) => OpKind::Restore(step_to_proto(step)),
            }),
        });
        let proto = CommandProto {
            format: FORMAT,
            request_id: Bytes::copy_from_slice(&self.request_id),
            proposed_at_ms: self.proposed_at_ms,
            ops: ops.collect(),
            restores: self.restores,
        };
        Encoded(proto.encode_to_vec().into())
    }

    /// An encoded command with another time. In protobuf the last value of a field counts, so what a newer version may have
    /// put in stays.
    pub(crate) fn stamp(encoded: &Encoded, at_ms: u64) -> Encoded {
        // Written also when it is 0, which a whole message would leave out.
        let mut stamped = Vec::with_capacity(encoded.0.len() + 11);
        stamped.extend_from_slice(&encoded.0);
        prost::encoding::uint64::encode(PROPOSED_AT, &at_ms, &mut stamped);
        Encoded(stamped.into())
    }

    /// The command that has requests remembered by time.
    pub(crate) fn window() -> Encoded {
        let proto = CommandProto {
            format: WINDOW_FORMAT,
            request_id: Bytes::from_static(&[0; 16]),
            ..CommandProto::default()
        };
        Encoded(proto.encode_to_vec().into())
    }

    /// Reads what [`Command::encode`] gave.
    ///
    /// # Errors
    /// `UnknownFormat` for a newer version's command, otherwise `Malformed` or `Decode`.
    pub(crate) fn decode(encoded: &Encoded) -> Result<Self, CommandError> {
        Self::decode_any(encoded).map(|(command, _)| command)
    }

    /// As [`Command::decode`], and whether it is [`Command::window`].
    pub(crate) fn decode_any(encoded: &Encoded) -> Result<(Self, bool), CommandError> {
        let proto = CommandProto::decode(encoded.0.clone())?;
        if !matches!(proto.format, FORMAT | WINDOW_FORMAT) {
            return Err(CommandError::UnknownFormat(proto.format));
        }
        let window = proto.format == WINDOW_FORMAT;
        let request_id = <[u8; 16]>::try_from(&proto.request_id[..])
            .map_err(|_| CommandError::Malformed("the request id is not 16 bytes"))?;
        let ops: Result<Vec<Op>, CommandError> =
            proto.ops.into_iter().map(|op| op_of(op.kind)).collect();
        let ops = ops?;
        if ops.iter().skip(1).any(|op| matches!(op, Op::Restore(_))) {
            return Err(CommandError::Malformed(
                "a step of a restore is not its command's first operation",
            ));
        }
        let command = Self {
            request_id,
            proposed_at_ms: proto.proposed_at_ms,
            restores: proto.restores,
            ops,
        };
        Ok((command, window))
    }
}

fn op_of(kind: Option<OpKind>) -> Result<Op, CommandError> {
    Ok(match kind {
        Some(OpKind::Put(PutProto { key, value })) => Op::Put { key, value },
        Some(OpKind::Delete(DeleteProto { key })) => Op::Delete { key },
        Some(OpKind::Check(CheckProto { key, want })) => Op::Check {
            key,
            expect: match want {
                Some(WantProto::Absent(true)) => Expect::Absent,
                Some(WantProto::ModIndex(index)) => Expect::ModIndex(index),
                Some(WantProto::Absent(false)) | None => {
                    return Err(CommandError::Malformed("a check has no condition"));
                }
            },
        },
        Some(OpKind::Restore(proto)) => Op::Restore(step_of(proto)?),
        None => {
            return Err(CommandError::Malformed(
                "an operation of unknown kind; this node runs an older version than the leader",
            ));
        }
    })
}

fn step_to_proto(step: RestoreStep) -> RestoreProto {
    let (id, step) = match step {
        RestoreStep::Begin { id } => (id, StepProto::Begin(true)),
        RestoreStep::Chunk { id, seq, rows } => {
            let rows = rows
                .into_iter()
                .map(|(key, value)| PutProto { key, value })
                .collect();
            (id, StepProto::Chunk(ChunkProto { seq, rows }))
        }
        RestoreStep::Commit {
            id,
            rows,
            checksum,
            puts,
        } => {
            let commit = CommitProto {
                rows,
                checksum,
                puts,
            };
            (id, StepProto::Commit(commit))
        }
        RestoreStep::Abort { id } => (id, StepProto::Abort(true)),
    };
    RestoreProto {
        id: Bytes::copy_from_slice(&id),
        step: Some(step),
    }
}

fn step_of(proto: RestoreProto) -> Result<RestoreStep, CommandError> {
    let id = <[u8; 16]>::try_from(&proto.id[..])
        .map_err(|_| CommandError::Malformed("the id of a restore is not 16 bytes"))?;
    Ok(match proto.step {
        Some(StepProto::Begin(_)) => RestoreStep::Begin { id },
        Some(StepProto::Chunk(ChunkProto { seq, rows })) => RestoreStep::Chunk {
            id,
            seq,
            rows: rows.into_iter().map(|row| (row.key, row.value)).collect(),
        },
        Some(StepProto::Commit(commit)) => RestoreStep::Commit {
            id,
            rows: commit.rows,
            checksum: commit.checksum,
            puts: commit.puts,
        },
        Some(StepProto::Abort(_)) => RestoreStep::Abort { id },
        None => {
            return Err(CommandError::Malformed(
                "a step of a restore of unknown kind; this node runs an older version than the leader",
            ));
        }
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn any_op() -> impl Strategy<Value = Op> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        prop_oneof![
            (bytes(), bytes()).prop_map(|(key, value)| Op::Put { key, value }),
            bytes().prop_map(|key| Op::Delete { key }),
            (bytes(), any::<Option<u64>>()).prop_map(|(key, index)| Op::Check {
                key,
                expect: index.map_or(Expect::Absent, Expect::ModIndex),
            }),
        ]
    }

    pub(crate) fn any_step() -> impl Strategy<Value = RestoreStep> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let rows = proptest::collection::vec((bytes(), bytes()), 0..4);
        prop_oneof![
            any::<[u8; 16]>().prop_map(|id| RestoreStep::Begin { id }),
            (any::<[u8; 16]>(), any::<u64>(), rows)
                .prop_map(|(id, seq, rows)| RestoreStep::Chunk { id, seq, rows }),
            any::<([u8; 16], u64, u32, u64)>().prop_map(|(id, rows, checksum, puts)| {
                RestoreStep::Commit {
                    id,
                    rows,
                    checksum,
                    puts,
                }
            }),
            any::<[u8; 16]>().prop_map(|id| RestoreStep::Abort { id }),
        ]
    }

    proptest! {
        #[test]
        fn a_command_survives_encoding(
            request_id: [u8; 16],
            proposed_at_ms: u64,
            restores: u64,
            step in proptest::option::of(any_step()),
            ops in proptest::collection::vec(any_op(), 0..6),
        ) {
            let ops = step.into_iter().map(Op::Restore).chain(ops).collect();
            let command = Command { request_id, proposed_at_ms, restores, ops };
            prop_assert_eq!(&Command::decode(&command.clone().encode()).unwrap(), &command);
            for other in [0, proposed_at_ms / 2, u64::MAX] {
                let stamped = Command::stamp(&command.clone().encode(), other);
                let want = Command { proposed_at_ms: other, ..command.clone() };
                prop_assert_eq!(Command::decode(&stamped).unwrap(), want);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Either outcome is fine; the property is that it returns.
            let _ = Command::decode(&Encoded(bytes.into()));
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let proto = CommandProto {
            format: 3,
            request_id: Bytes::from_static(&[0; 16]),
            ..CommandProto::default()
        };
        let error = Command::decode(&Encoded(proto.encode_to_vec().into())).unwrap_err();
        assert!(matches!(error, CommandError::UnknownFormat(3)), "{error}");
        let (window, is_window) = Command::decode_any(&Command::window()).unwrap();
        assert!(is_window && window == Command::default());
        assert!(!Command::decode_any(&Command::default().encode()).unwrap().1);
    }

    #[test]
    fn a_step_of_a_restore_comes_first_or_not_at_all() {
        let abort = || Op::Restore(RestoreStep::Abort { id: [1; 16] });
        let command = Command {
            ops: vec![abort(), abort()],
            ..Command::default()
        };
        let error = Command::decode(&command.encode()).unwrap_err();
        assert!(matches!(error, CommandError::Malformed(_)), "{error}");
    }

    #[test]
    fn debug_shows_lengths_only() {
        let (key, value) = (
            Bytes::from_static(b"hush-key"),
            Bytes::from_static(b"hush-value"),
        );
        let command = Command {
            ops: vec![
                Op::Restore(RestoreStep::Chunk {
                    id: [0; 16],
                    seq: 0,
                    rows: vec![(key.clone(), value.clone())],
                }),
                Op::Put { key, value },
            ],
            ..Command::default()
        };
        let texts = [
            format!("{command:?}"),
            format!("{:?}", command.clone().encode()),
            format!("{}", command.encode()),
        ];
        for text in texts {
            assert!(!text.contains("hush"), "{text}");
        }
    }
}
