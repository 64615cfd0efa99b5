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

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    // Both of our users of TLS, client and server, take the process's default provider. It fails only if there is one.
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("the cryptography provider was set twice");
        leave(1);
    }
    leave(cli::main())
}

/// Ends the process here and now. What C and C++ libraries have put aside for an exit is left out: they would take RocksDB and the
/// module of an HSM apart under threads that are still in them (a call that never returns, a compaction), and wait for others.
/// Standard output must have been flushed.
pub(crate) fn leave(code: u8) -> ! {
    signal_hook::low_level::exit(code.into())
}
