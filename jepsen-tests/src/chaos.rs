//! An HSM that does what a test tells it: a PKCS#11 module in front of a node's software HSM.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    config::NodeConfig,
    machine::{in_repository, softhsm_module},
};

/// The module of one node.
#[derive(Debug)]
pub struct Chaos {
    dir: PathBuf,
}

impl Chaos {
    /// Makes the module in `dir`, which exists; it passes every call on until it is ordered something.
    ///
    /// # Panics
    /// If it does not compile.
    #[must_use]
    pub fn make(dir: &Path) -> Self {
        let chaos = Self {
            dir: dir.to_owned(),
        };
        chaos.order("");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(chaos.module())
            .arg(in_repository("seal/tests/chaos.c"))
            .args(["-ldl", "-lpthread"])
            .status()
            .expect("cc, from the package gcc");
        assert!(status.success(), "cc ended with {status}");
        chaos
    }

    /// Has a node of this configuration use the module from its next start on.
    pub fn configure(&self, config: &mut NodeConfig) {
        config.lib = self.module();
        for (name, value) in [
            ("CHAOS_MODULE", softhsm_module()),
            ("CHAOS_CTL", self.control()),
        ] {
            let value = value.to_str().expect("a path in UTF-8").to_owned();
            config.environment.push((name.to_owned(), value));
        }
    }

    /// What it does from now on; `chaos.c` says what there is, the empty order is nothing out of the ordinary.
    pub fn order(&self, order: &str) {
        let temporary = self.dir.join("chaos.tmp");
        fs::write(&temporary, order).expect("an order for the HSM");
        fs::rename(temporary, self.control()).expect("an order for the HSM");
    }

    fn module(&self) -> PathBuf {
        self.dir.join("chaos.so")
    }

    fn control(&self) -> PathBuf {
        self.dir.join("chaos.ctl")
    }
}
