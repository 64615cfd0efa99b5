//! Keeps secrets inside the process: no core dumps, no debugger of another user, no swap.
//!
//! Invariant: runs before any key exists in memory.

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
};

/// Why the process could not be hardened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HardenError {
    #[error("core dumps could not be turned off")]
    CoreDumps(#[source] std::io::Error),
    #[error(
        "memory could not be locked (the limit is too low: set LimitMEMLOCK=infinity, give CAP_IPC_LOCK, or set \
         disable_mlock = true if this machine has no swap or only encrypted swap)"
    )]
    LockMemory(#[source] std::io::Error),
}

/// Connections and database files need more descriptors than the 1,024 that most systems start with.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

/// Turns core dumps off and, if asked, locks all present and future memory.
pub(crate) fn harden(lock_memory: bool) -> Result<(), HardenError> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(|e| HardenError::CoreDumps(e.into()))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| HardenError::CoreDumps(e.into()))?;
    raise_open_files();
    if lock_memory {
        // ONFAULT: only pages that are used are locked, so reserved thread stacks cost nothing.
        let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
        mlockall(flags).map_err(|e| HardenError::LockMemory(e.into()))?;
    }
    Ok(())
}
