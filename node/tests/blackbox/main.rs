//! The real binary, three times on loopback with a software HSM each, seen from outside: by HTTP, by the command lines
//! `strongroom` and `bao`, by hvac, and by whoever steals the disks.
//!
//! One module per theme. Every test that needs a cluster starts its own; the harness lets one run at a time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod at_rest;
mod autopilot;
mod bad_input;
mod configuration;
mod crash;
mod cut_off;
mod disk;
mod failover;
mod five;
mod forwarding;
mod health;
mod hsm;
mod hvac;
mod init;
mod join;
mod limits;
mod members;
mod misconfigured;
mod snapshot;
mod snapshots;
mod starting;
mod strangers;
mod upgrade;
mod values;
mod walkthrough;

/// The binary under test.
const BINARY: &str = env!("CARGO_BIN_EXE_strongroom");
