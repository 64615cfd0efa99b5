//! Keeps a data directory of this version for later ones to open: `make_fixture ARCHIVE.tar.gz`. The server is
//! `strongroom` beside this program, or `$STRONGROOM_TEST_BIN`. See `node/tests/fixtures/README.md`.
#![allow(
    clippy::expect_used,
    reason = "a fixture that cannot be made must fail loudly"
)]

use std::path::PathBuf;

use strongroom_jepsen_tests::{fixture, run};

fn main() {
    let archive = std::env::args_os().nth(1).expect("the archive's name");
    fixture::make(&run::server(), &PathBuf::from(archive));
}
