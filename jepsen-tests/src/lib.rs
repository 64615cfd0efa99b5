//! Runs real `strongroom` processes on loopback, each with a software HSM of its own, and looks at them from outside.
//!
//! In: the path of a `strongroom` binary. Out: clusters that a test starts, breaks and asks; histories of what clients
//! saw, and a verdict on them.
//!
//! Invariants
//! - Nothing here links to the server: all that a test can see is what a client, an operator or a thief can see.
//! - Servers listen on 127.0.0.1, or in network namespaces of their own, and end with the [`Cluster`] that started them, also when a test panics.
//! - One cluster at a time on a machine, whatever runs the tests: two cores do not carry more without false alarms.
//!
//! The harness panics at the first surprise of its own (no SoftHSM, no free port): a test that cannot be set up has
//! failed, and must not look as if it had passed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "linked into tests only, where a surprise must end the test at the place where it happened"
)]

pub mod chaos;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod disk;
pub mod fixture;
pub mod haproxy;
pub mod history;
pub mod hsm;
pub mod logs;
pub mod machine;
pub mod nemesis;
pub mod network;
pub mod openloop;
pub mod process;
pub mod run;
pub mod stranger;
pub mod tls;
pub mod verdict;
pub mod wgl;
pub mod workload;
pub mod zones;

pub use cli::Output;
pub use client::{Client, RequestError, Response};
pub use cluster::{Cluster, Options};
