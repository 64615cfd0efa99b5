//! Points at which a test makes the process die, as `kill -9` there would.
//!
//! In: the environment, `STRONGROOM_FAIL_POINT=NAME` or `NAME:N` for the N-th time it is passed. Only in builds with
//! debug assertions; otherwise a point is nothing at all.

/// Ends the process here if the environment says so.
#[cfg(debug_assertions)]
pub(crate) fn point(name: &str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    };
    static CHOSEN: LazyLock<Option<(String, u32)>> = LazyLock::new(|| {
        let chosen = std::env::var("STRONGROOM_FAIL_POINT").ok()?;
        let (name, time) = chosen.split_once(':').unwrap_or((&chosen, "1"));
        Some((name.to_owned(), time.parse().ok()?))
    });
    static PASSED: AtomicU32 = AtomicU32::new(0);
    if let Some((chosen, time)) = &*CHOSEN
        && chosen == name
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *time
    {
        eprintln!("fail-point {name}");
        std::process::abort();
    }
}

/// Nothing, in a build that is meant for use.
#[cfg(not(debug_assertions))]
pub(crate) fn point(_name: &str) {}
