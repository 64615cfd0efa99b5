//! What all listeners of a node together may have under way: requests, and bytes of their bodies.
//!
//! Invariants
//! - Nothing waits here: what is too much is refused at once, with 503 and `Retry-After`, so that no queue grows.
//! - Counting a request costs two atomic operations.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicUsize, Ordering},
};

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use tokio::sync::Semaphore;

/// Requests under way: as many as one listener takes connections.
const MAX_REQUESTS: usize = 8192;
/// Bodies in memory, bytes. A body costs a few times its size while it is decoded.
const MAX_BODIES: usize = 256 << 20;

/// Shared by every listener of a node. Clones share it.
#[derive(Clone, Debug)]
pub struct Limits(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    under_way: AtomicUsize,
    max_requests: usize,
    /// KiB of bodies that may still be taken into memory.
    memory: Semaphore,
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(MAX_REQUESTS, MAX_BODIES)
    }
}

impl Limits {
    /// Room for `max_requests` and for `memory` bytes of bodies.
    #[must_use]
    pub fn new(max_requests: usize, memory: usize) -> Self {
        let kib = memory.div_ceil(1024).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Shared {
            under_way: AtomicUsize::new(0),
            max_requests,
            memory: Semaphore::new(kib),
        }))
    }

    /// As many requests as are usual, where listeners take bodies of up to `largest_body` bytes: two of that size find
    /// room in any case.
    #[must_use]
    pub fn for_bodies(largest_body: usize) -> Self {
        Self::new(MAX_REQUESTS, MAX_BODIES.max(largest_body.saturating_mul(2)))
    }

    /// A place for one more request until it is dropped; `None`: there are too many.
    pub(super) fn enter(&self) -> Option<Place> {
        let others = self.0.under_way.fetch_add(1, Ordering::Relaxed);
        if others < self.0.max_requests {
            figures().in_flight.increment(1.0);
            return Some(Place(Arc::clone(&self.0)));
        }
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
        figures().refused_requests.increment(1);
        None
    }

    /// KiB of bodies.
    pub(super) fn memory(&self) -> &Semaphore {
        &self.0.memory
    }
}

/// A request's place; see [`Limits::enter`].
pub(super) struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
        figures().in_flight.decrement(1.0);
    }
}

/// What is counted of requests. The set of series is fixed: no label comes from a client.
pub(super) struct Figures {
    /// By first digit of the status, from 1.
    from_clients: [Counter; 5],
    from_nodes: [Counter; 5],
    client_time: Histogram,
    node_time: Histogram,
    in_flight: Gauge,
    refused_requests: Counter,
    pub(super) refused_bodies: Counter,
}

/// See [`Figures`].
pub(super) fn figures() -> &'static Figures {
    static FIGURES: LazyLock<Figures> = LazyLock::new(Figures::register);
    &FIGURES
}

impl Figures {
    fn register() -> Self {
        describe_counter!(
            "strongroom.http_requests_total",
            "Requests answered, by class of status and by who sent them"
        );
        describe_histogram!(
            "strongroom.http_request_seconds",
            "From a request's head to its answer"
        );
        describe_gauge!("vault.core.in_flight_requests", "Requests under way");
        let classes = |from: &'static str| {
            ["1xx", "2xx", "3xx", "4xx", "5xx"].map(
                |class| counter!("strongroom.http_requests_total", "from" => from, "class" => class),
            )
        };
        let time =
            |from: &'static str| histogram!("strongroom.http_request_seconds", "from" => from);
        let refused = |why: &'static str| counter!("strongroom.refused_total", "why" => why);
        Self {
            from_clients: classes("client"),
            from_nodes: classes("node"),
            client_time: time("client"),
            node_time: time("node"),
            in_flight: gauge!("vault.core.in_flight_requests"),
            refused_requests: refused("requests"),
            refused_bodies: refused("bodies"),
        }
    }

    /// Counts one answer.
    pub(super) fn answered(
        &self,
        from_node: bool,
        status: http::StatusCode,
        took: std::time::Duration,
    ) {
        let (classes, time) = if from_node {
            (&self.from_nodes, &self.node_time)
        } else {
            (&self.from_clients, &self.client_time)
        };
        let class = usize::from(status.as_u16() / 100).wrapping_sub(1);
        if let Some(counter) = classes.get(class) {
            counter.increment(1);
        }
        time.record(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let limits = Limits::new(2, 0);
        let (first, second) = (limits.enter(), limits.enter());
        assert!(first.is_some() && second.is_some());
        assert!(limits.enter().is_none());
        // The refused one left nothing behind.
        drop(first);
        assert!(limits.enter().is_some());
    }

    #[test]
    fn the_largest_body_always_finds_room() {
        for (largest, want) in [(0, 256 << 10), (32 << 20, 256 << 10), (1 << 30, 2 << 20)] {
            let limits = Limits::for_bodies(largest);
            assert_eq!(limits.memory().available_permits(), want, "{largest}");
        }
    }
}
