//! Applies committed commands: a pure function of the state and the command.
//!
//! In: entries in log order and a read-only view of the state before them. Out: the changes to make.
//!
//! Invariants
//! - Same state and same entry give the same changes and the same outcome on every node: no clock, no randomness.
//! - Within one batch a command sees what the commands before it changed.
//! - A request id that is still remembered changes nothing and gets the first outcome.
//! - A command made for data that a restore has replaced since changes nothing.
//! - Whether it is remembered depends on the log alone: on indexes, and on the times that commands carry. Removing what
//!   is forgotten (`outcomes.rs`) can be late on one node and early on another without making a difference.
//!
//! Source: Ongaro's dissertation §3.6.3 (state machine safety), §6.3 (linearizable semantics by request ids).

use std::{collections::HashMap, io};

use bytes::Bytes;

use crate::{
    command::{Applied, Command, Expect, Op, Outcome},
    keys,
    restore::{RestoreStep, Staging},
    types::{LogId, StoredMembership},
};

/// Before [`Command::window`]: a command is remembered until this many log entries have followed it. Part of the
/// replicated behaviour, as the next two are: every node must forget at the same index, so changing one of them needs
/// another command that says when.
pub(crate) const REMEMBERED_ENTRIES: u64 = 65_536;
/// After it: a command is remembered until this many entries have followed it (as many as a hash table of 2^20 places
/// holds) …
pub(crate) const WINDOW_ENTRIES: u64 = 900_000;
/// … or until a command carries a time this much later, milliseconds; whichever comes first.
pub(crate) const WINDOW_MS: u64 = 10 * 60 * 1000;

/// How requests are remembered at some place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// By time and distance; otherwise by a shorter distance only.
    pub(crate) window: bool,
    /// The latest time that a command carried since then: the proposers' clocks may differ, this one never goes back.
    pub(crate) clock_ms: u64,
}

/// What came of a command with a request id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) applied: Applied,
    /// [`Memory::clock_ms`] then; `None` for one from before.
    pub(crate) at_ms: Option<u64>,
}

impl Remembered {
    /// Whether it is remembered by the entry at `index`.
    pub(crate) fn holds(&self, index: u64, memory: Memory) -> bool {
        let distance = index.saturating_sub(self.applied.index);
        match self.at_ms {
            None => distance < REMEMBERED_ENTRIES,
            Some(at) => {
                distance < WINDOW_ENTRIES && memory.clock_ms.saturating_sub(at) <= WINDOW_MS
            }
        }
    }
}

/// The state before a batch.
pub(crate) trait View {
    /// Log index of the last write to `key` in `family`; `None`: nothing is stored there.
    fn mod_index(&self, family: &'static str, key: &[u8]) -> io::Result<Option<u64>>;
    /// How many restores there have been: says which family is live.
    fn restores(&self) -> u64;
    /// The restore under way.
    fn staging(&self) -> io::Result<Option<Staging>>;
    /// How requests are remembered.
    fn memory(&self) -> Memory;
    /// What came of the command with this request id; it may be due to be forgotten.
    fn remembered(&self, request: &[u8; 16]) -> io::Result<Option<Remembered>>;
}

/// One change to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Put {
        family: &'static str,
        key: Bytes,
        mod_index: u64,
        value: Bytes,
    },
    Delete {
        family: &'static str,
        key: Bytes,
    },
    /// Empties a family that is not live.
    Clear {
        family: &'static str,
    },
    /// Records how far the restore under way is; `None`: there is none.
    Staging(Option<Staging>),
    /// The live family is another one from here on.
    Restored {
        restores: u64,
        id: [u8; 16],
    },
    Remember {
        request: [u8; 16],
        outcome: Remembered,
    },
    /// From here on requests are remembered by time.
    Window,
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
    /// What the count of puts is at least, after the batch.
    pub(crate) puts_floor: u64,
    keys: HashMap<&'static str, Overlay>,
    restores: Option<u64>,
    staging: Option<Option<Staging>>,
    requests: HashMap<[u8; 16], Remembered>,
    memory: Option<Memory>,
}

/// What the batch has changed in one family.
#[derive(Default)]
struct Overlay {
    /// Nothing of what was there before the batch is left.
    cleared: bool,
    keys: HashMap<Bytes, Option<u64>>,
}

impl Changes {
    /// Takes the entry with this id into account that carries no command, or before one is applied.
    pub(crate) fn enter(&mut self, id: LogId) {
        self.applied = Some(id);
    }

    /// How requests are remembered after the batch so far.
    pub(crate) fn memory_after(&mut self, view: &impl View) -> &mut Memory {
        self.memory.get_or_insert_with(|| view.memory())
    }

    /// Has requests remembered by time from here on; a second time changes nothing.
    pub(crate) fn window(&mut self, view: &impl View) {
        let memory = self.memory_after(view);
        if !std::mem::replace(&mut memory.window, true) {
            self.list.push(Change::Window);
        }
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
        let memory = self.memory_after(view);
        if memory.window {
            memory.clock_ms = memory.clock_ms.max(command.proposed_at_ms);
        }
        let at_ms = memory.window.then_some(memory.clock_ms);
        if counted && let Some(first) = self.remembered(view, &request)? {
            return Ok(first);
        }
        let restores = self.restores(view);
        if command.restores != restores && command.restore_step().is_none() {
            // Not remembered: the same request may come again, made for the new data.
            return Ok(Applied {
                index,
                outcome: Outcome::Superseded,
            });
        }
        let applied = Applied {
            index,
            outcome: self.outcome(view, restores, &command.ops)?,
        };
        if applied.is_applied() {
            for op in command.ops {
                self.write(view, index, op)?;
            }
        }
        if counted {
            let outcome = Remembered { applied, at_ms };
            self.requests.insert(request, outcome);
            self.list.push(Change::Remember { request, outcome });
        }
        Ok(applied)
    }

    /// Whether the other family is the live one after the batch so far.
    pub(crate) fn restored(&self) -> bool {
        self.restores.is_some()
    }

    fn restores(&self, view: &impl View) -> u64 {
        self.restores.unwrap_or_else(|| view.restores())
    }

    fn staging(&self, view: &impl View) -> io::Result<Option<Staging>> {
        self.staging.map_or_else(|| view.staging(), Ok)
    }

    fn outcome(&self, view: &impl View, restores: u64, ops: &[Op]) -> io::Result<Outcome> {
        let live = keys::live(restores);
        for (op, position) in ops.iter().zip(0..) {
            let holds = match op {
                Op::Check { key, expect } => {
                    let stored = self.mod_index(view, live, key)?;
                    match expect {
                        Expect::Absent => stored.is_none(),
                        Expect::ModIndex(index) => stored == Some(*index),
                    }
                }
                Op::Restore(step) => fits(step, self.staging(view)?.as_ref()),
                Op::Put { .. } | Op::Delete { .. } => true,
            };
            if !holds {
                return Ok(Outcome::CheckFailed { op: position });
            }
        }
        Ok(Outcome::Applied)
    }

    fn mod_index(
        &self,
        view: &impl View,
        family: &'static str,
        key: &Bytes,
    ) -> io::Result<Option<u64>> {
        match self.keys.get(family) {
            Some(overlay) if overlay.cleared => {
                Ok(overlay.keys.get(key).copied().unwrap_or_default())
            }
            Some(overlay) => match overlay.keys.get(key) {
                Some(changed) => Ok(*changed),
                None => view.mod_index(family, key),
            },
            None => view.mod_index(family, key),
        }
    }

    fn write(&mut self, view: &impl View, index: u64, op: Op) -> io::Result<()> {
        match op {
            Op::Put { key, value } => {
                self.puts += 1;
                if self.puts_floor > 0 {
                    self.puts_floor += 1;
                }
                let family = keys::live(self.restores(view));
                self.put(family, index, key, value);
            }
            Op::Delete { key } => {
                let family = keys::live(self.restores(view));
                let overlay = self.keys.entry(family).or_default();
                overlay.keys.insert(key.clone(), None);
                self.list.push(Change::Delete { family, key });
            }
            Op::Restore(step) => self.step(view, index, step)?,
            Op::Check { .. } => {}
        }
        Ok(())
    }

    fn put(&mut self, family: &'static str, index: u64, key: Bytes, value: Bytes) {
        let overlay = self.keys.entry(family).or_default();
        overlay.keys.insert(key.clone(), Some(index));
        self.list.push(Change::Put {
            family,
            key,
            mod_index: index,
            value,
        });
    }

    /// Carries out a step that fits.
    fn step(&mut self, view: &impl View, index: u64, step: RestoreStep) -> io::Result<()> {
        let restores = self.restores(view);
        let family = keys::staging(restores);
        match step {
            RestoreStep::Begin { id } => {
                let cleared = Overlay {
                    cleared: true,
                    ..Overlay::default()
                };
                self.keys.insert(family, cleared);
                self.list.push(Change::Clear { family });
                self.stage(Some(Staging::new(id)));
            }
            RestoreStep::Chunk { rows, .. } => {
                let Some(mut staging) = self.staging(view)? else {
                    return Ok(());
                };
                staging.next += 1;
                for (key, value) in rows {
                    staging.sum.add(&key, &value);
                    self.put(family, index, key, value);
                }
                self.stage(Some(staging));
            }
            RestoreStep::Commit { id, puts, .. } => {
                self.stage(None);
                self.restores = Some(restores + 1);
                self.puts_floor = self.puts_floor.max(puts);
                let restores = restores + 1;
                self.list.push(Change::Restored { restores, id });
            }
            RestoreStep::Abort { .. } => self.stage(None),
        }
        Ok(())
    }

    fn stage(&mut self, staging: Option<Staging>) {
        self.staging = Some(staging);
        self.list.push(Change::Staging(staging));
    }

    fn remembered(&self, view: &impl View, request: &[u8; 16]) -> io::Result<Option<Applied>> {
        let found = match self.requests.get(request) {
            Some(found) => Some(*found),
            None => view.remembered(request)?,
        };
        let index = self.applied.map_or(0, |id| id.index);
        let memory = self.memory.unwrap_or_default();
        Ok(found
            .filter(|found| found.holds(index, memory))
            .map(|found| found.applied))
    }
}

/// Whether `step` may be carried out on what is staged.
fn fits(step: &RestoreStep, staged: Option<&Staging>) -> bool {
    match step {
        RestoreStep::Begin { .. } => true,
        RestoreStep::Chunk { id, seq, .. } => {
            staged.is_some_and(|staged| staged.id == *id && staged.next == *seq)
        }
        RestoreStep::Commit {
            id, rows, checksum, ..
        } => staged.is_some_and(|staged| {
            staged.id == *id && staged.sum.rows == *rows && staged.sum.checksum == *checksum
        }),
        RestoreStep::Abort { id } => staged.is_some_and(|staged| staged.id == *id),
    }
}

#[cfg(test)]
mod tests;
