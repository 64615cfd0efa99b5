//! Who is inside the PKCS#11 module.
//!
//! Workers enter with the current connection and leave when their call has returned. The connector closes the gate and
//! waits until it is empty before it calls C_Finalize, which must never run beside another call.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::conn::Conn;

#[derive(Default)]
struct State {
    conn: Option<Arc<Conn>>,
    inside: usize,
    /// Whether those outside may wait for the next connection: it is being remade on purpose and will be there soon.
    wait: bool,
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

/// Being inside, with a connection that stays valid until this is dropped.
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    pub(super) conn: Arc<Conn>,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.inside = state.inside.saturating_sub(1);
        self.gate.changed.notify_all();
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters; `None` when there is no connection (by `until`, if one is being remade).
    pub(super) fn enter(&self, until: Instant) -> Option<Pass<'_>> {
        let mut state = self.lock();
        loop {
            if let Some(conn) = state.conn.clone() {
                state.inside += 1;
                return Some(Pass { gate: self, conn });
            }
            let left = until.saturating_duration_since(Instant::now());
            if !state.wait || left.is_zero() {
                return None;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Lets workers in with `conn`.
    pub(super) fn publish(&self, conn: Arc<Conn>) {
        let mut state = self.lock();
        state.conn = Some(conn);
        state.wait = false;
        self.changed.notify_all();
    }

    /// Lets nobody in any more.
    pub(super) fn close(&self, wait: bool) {
        let mut state = self.lock();
        state.conn = None;
        state.wait = wait;
        self.changed.notify_all();
    }

    /// The current connection, without entering: for its numbers only.
    pub(super) fn current(&self) -> Option<Arc<Conn>> {
        self.lock().conn.clone()
    }

    /// Waits until nobody is inside; `false` when somebody still is after `patience`.
    pub(super) fn drained(&self, patience: Duration) -> bool {
        let state = self.lock();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, patience, |state| state.inside > 0)
            .unwrap_or_else(PoisonError::into_inner);
        state.inside == 0
    }
}
