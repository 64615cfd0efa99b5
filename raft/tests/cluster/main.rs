//! Nodes as a caller uses them: real stores, real TLS, one process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod crash;
mod faults;
mod harness;
mod leadership;
mod members;
mod partitions;
mod single;
mod snapshots;
mod three;
