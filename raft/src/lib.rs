//! Replication of Strongroom: the Raft log, the replicated state, the transport between nodes.
//!
//! In: all-or-nothing commands on opaque keys and opaque bytes. Out: a committed index and an outcome, a local copy of
//! the state on every node, and an index to wait for before a linearizable read.
//!
//! Invariants
//! - This crate never sees plaintext or a key, speaks no HTTP, and knows neither `seal` nor `api`.
//! - Every import of openraft stays in this crate: its alpha releases change the interface every few weeks.
//! - An acknowledged command is on the disks of a quorum, synced.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod autopilot;
mod command;
mod compaction;
mod confirm;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod damage;
mod elsewhere;
mod error;
mod fail;
mod figures;
#[cfg(test)]
mod golden;
mod identity;
mod keys;
mod local;
mod log;
mod net;
mod plan;
mod proto;
mod raft;
mod readers;
mod reads;
mod reconcile;
mod records;
mod restore;
mod rocks;
mod services;
mod stamps;
mod standing;
mod start;
mod state;
mod stores;
mod suspect;
mod tasks;
mod transfer;
mod types;
mod vitals;
mod watchdog;
mod writes;

pub use crate::{
    autopilot::{AutopilotStatus, ServerHealth},
    command::{Applied, Command, CommandError, Expect, Op, Outcome},
    compaction::SnapshotOptions,
    error::{
        DialError, InitializeError, MembershipError, OpenError, ProposeError, ReadError,
        StartError, StateError, TransferError,
    },
    identity::{Identity, IdentityError},
    net::{ALPN, IncomingStream},
    plan::{Autopilot, UpgradeStatus},
    raft::{MemberStatus, Next, Options, Pace, Raft, Role, Status, Transport, Usage},
    restore::{RestoreStep, RowSum},
    rocks::DatabaseSize,
    state::{Checkpoint, CheckpointRow, SnapshotStats, State},
    stores::{LogContent, LogRow, ReadOnlyStores, StateRow, Stores},
    types::PeerInfo,
    watchdog::room_above_reserve,
};
