//! Applies committed commands: a pure function of the state and the command.
//!
//! In: entries in log order and a read-only view of the state before them. Out: the changes to make.
//!
//! Invariants
//! - Same state and same entry give the same changes and the same outcome on every node: no clock, no randomness.
//! - Within one batch a command sees what the commands before it changed.
//! - A request id that is still remembered changes nothing and gets the first outcome.
//!
//! Source: Ongaro's dissertation §3.6.3 (state machine safety), §6.3 (linearizable semantics by request ids).

use std::{collections::HashMap, io};

use bytes::Bytes;

use crate::{
    command::{Applied, Command, Expect, Op, Outcome},
    types::{LogId, StoredMembership},
};

/// A command is remembered until this many log entries have followed it. Part of the replicated behaviour: every node
/// must forget at the same index, so changing it needs a command that says when.
pub(crate) const REMEMBERED_ENTRIES: u64 = 65_536;

/// The state before a batch.
pub(crate) trait View {
    /// Log index of the last write to `key`; `None`: nothing is stored there.
    fn mod_index(&self, key: &[u8]) -> io::Result<Option<u64>>;
    /// What came of the command with this request id, if it is still remembered.
    fn remembered(&self, request: &[u8; 16]) -> io::Result<Option<Applied>>;
    /// The request id remembered for the command at `index`.
    fn request_at(&self, index: u64) -> io::Result<Option<[u8; 16]>>;
}

/// One change to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Put {
        key: Bytes,
        mod_index: u64,
        value: Bytes,
    },
    Delete {
        key: Bytes,
    },
    Remember {
        request: [u8; 16],
        /// Where the command itself stands; equals `applied.index`.
        applied: Applied,
    },
    Forget {
        request: [u8; 16],
        index: u64,
    },
}

/// What a batch of entries changes.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) list: Vec<Change>,
    /// Id of the last entry in the batch.
    pub(crate) applied: Option<LogId>,
    /// The last membership in the batch.
    pub(crate) membership: Option<StoredMembership>,
    /// Puts in the batch.
    pub(crate) puts: u64,
    keys: HashMap<Bytes, Option<u64>>,
    requests: HashMap<[u8; 16], Applied>,
}

impl Changes {
    /// Takes the entry at `index` into account that carries no command, or before one is applied.
    pub(crate) fn enter(&mut self, view: &impl View, id: LogId) -> io::Result<()> {
        self.applied = Some(id);
        let Some(old) = id.index.checked_sub(REMEMBERED_ENTRIES) else {
            return Ok(());
        };
        if let Some(request) = view.request_at(old)? {
            self.requests.remove(&request);
            self.list.push(Change::Forget {
                request,
                index: old,
            });
        }
        Ok(())
    }

    /// Applies `command`, the entry at `index`.
    pub(crate) fn apply(
        &mut self,
        view: &impl View,
        index: u64,
        command: Command,
    ) -> io::Result<Applied> {
        let request = command.request_id;
        let counted = request != [0; 16];
        if counted && let Some(first) = self.remembered(view, &request)? {
            return Ok(first);
        }
        let applied = Applied {
            index,
            outcome: self.outcome(view, &command.ops)?,
        };
        if applied.is_applied() {
            command.ops.into_iter().for_each(|op| self.write(index, op));
        }
        if counted {
            self.requests.insert(request, applied);
            self.list.push(Change::Remember { request, applied });
        }
        Ok(applied)
    }

    fn outcome(&self, view: &impl View, ops: &[Op]) -> io::Result<Outcome> {
        for (op, position) in ops.iter().zip(0..) {
            let Op::Check { key, expect } = op else {
                continue;
            };
            let stored = match self.keys.get(key) {
                Some(changed) => *changed,
                None => view.mod_index(key)?,
            };
            let holds = match expect {
                Expect::Absent => stored.is_none(),
                Expect::ModIndex(index) => stored == Some(*index),
            };
            if !holds {
                return Ok(Outcome::CheckFailed { op: position });
            }
        }
        Ok(Outcome::Applied)
    }

    fn write(&mut self, index: u64, op: Op) {
        match op {
            Op::Put { key, value } => {
                self.puts += 1;
                self.keys.insert(key.clone(), Some(index));
                self.list.push(Change::Put {
                    key,
                    mod_index: index,
                    value,
                });
            }
            Op::Delete { key } => {
                self.keys.insert(key.clone(), None);
                self.list.push(Change::Delete { key });
            }
            Op::Check { .. } => {}
        }
    }

    fn remembered(&self, view: &impl View, request: &[u8; 16]) -> io::Result<Option<Applied>> {
        if let Some(applied) = self.requests.get(request) {
            return Ok(Some(*applied));
        }
        let Some(applied) = view.remembered(request)? else {
            return Ok(None);
        };
        // The view is from before the batch: the batch itself may have forgotten it.
        let forgotten = self
            .applied
            .is_some_and(|id| applied.index + REMEMBERED_ENTRIES <= id.index);
        Ok((!forgotten).then_some(applied))
    }
}

#[cfg(test)]
mod tests;
