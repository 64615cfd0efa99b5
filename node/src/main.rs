//! `strongroom`: the server and its command line in one binary.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod cli;
mod client;
mod clock;
mod config;
mod inspect;
mod server;
mod snapshot;
mod telemetry;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Both of our users of TLS, client and server, take the process's default provider. It fails only if there is one.
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("the cryptography provider was set twice");
        return ExitCode::FAILURE;
    }
    cli::main()
}
