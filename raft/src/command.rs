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

use crate::types::Encoded;

/// Changing this number makes older nodes stop with a clear message at the first newer command.
const FORMAT: u32 = 1;

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
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put { key, value } => write!(f, "Put({}B, {}B)", key.len(), value.len()),
            Self::Delete { key } => write!(f, "Delete({}B)", key.len()),
            Self::Check { key, expect } => write!(f, "Check({}B, {expect:?})", key.len()),
        }
    }
}

/// All-or-nothing change of the key space: one log entry.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// Names the request: a second command with the same id changes nothing and gets the first one's outcome. All
    /// zeroes: no such protection.
    pub request_id: [u8; 16],
    /// The proposer's clock, milliseconds since the Unix epoch: the only time that apply may look at.
    pub proposed_at_ms: u64,
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
}

#[derive(Clone, PartialEq, Message)]
struct OpProto {
    #[prost(oneof = "OpKind", tags = "1, 2, 3")]
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

impl Command {
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
            }),
        });
        let proto = CommandProto {
            format: FORMAT,
            request_id: Bytes::copy_from_slice(&self.request_id),
            proposed_at_ms: self.proposed_at_ms,
            ops: ops.collect(),
        };
        Encoded(proto.encode_to_vec().into())
    }

    /// Reads what [`Command::encode`] gave.
    ///
    /// # Errors
    /// `UnknownFormat` for a newer version's command, otherwise `Malformed` or `Decode`.
    pub(crate) fn decode(encoded: &Encoded) -> Result<Self, CommandError> {
        let proto = CommandProto::decode(encoded.0.clone())?;
        if proto.format != FORMAT {
            return Err(CommandError::UnknownFormat(proto.format));
        }
        let request_id = <[u8; 16]>::try_from(&proto.request_id[..])
            .map_err(|_| CommandError::Malformed("the request id is not 16 bytes"))?;
        let ops: Result<Vec<Op>, CommandError> =
            proto.ops.into_iter().map(|op| op_of(op.kind)).collect();
        Ok(Self {
            request_id,
            proposed_at_ms: proto.proposed_at_ms,
            ops: ops?,
        })
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
        None => return Err(CommandError::Malformed("an operation of unknown kind")),
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

    proptest! {
        #[test]
        fn a_command_survives_encoding(
            request_id: [u8; 16],
            proposed_at_ms: u64,
            ops in proptest::collection::vec(any_op(), 0..6),
        ) {
            let command = Command { request_id, proposed_at_ms, ops };
            prop_assert_eq!(&Command::decode(&command.clone().encode()).unwrap(), &command);
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
            format: 2,
            request_id: Bytes::from_static(&[0; 16]),
            ..CommandProto::default()
        };
        let error = Command::decode(&Encoded(proto.encode_to_vec().into())).unwrap_err();
        assert!(matches!(error, CommandError::UnknownFormat(2)), "{error}");
    }

    #[test]
    fn debug_shows_lengths_only() {
        let command = Command {
            ops: vec![Op::Put {
                key: Bytes::from_static(b"hush-key"),
                value: Bytes::from_static(b"hush-value"),
            }],
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
