//! Requests by the clock, whatever became of the former ones: what users of a service see while it fails over.
//!
//! Every request has a moment at which it is due, and its time is counted from then: a client that waits for an answer
//! and is late for the next request has made that one slow too.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::client::{Client, Session};

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whether it changed something.
    pub write: bool,
    /// When it should have been sent.
    pub due: Instant,
    /// When it was sent.
    pub sent: Instant,
    /// When its answer was there, or the attempt was given up.
    pub ended: Instant,
    /// What came instead of the answer that is wanted.
    pub failed: Option<String>,
}

/// Clients at work.
pub struct OpenLoop {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Request>>>,
}

impl OpenLoop {
    /// Each of `clients` sends a request every `interval` to registers below `mount`, writes and reads in turn.
    #[must_use]
    pub fn start(clients: Vec<Client>, mount: &str, interval: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = u32::try_from(clients.len()).unwrap_or(u32::MAX);
        let begin = Instant::now();
        let threads = clients
            .into_iter()
            .zip(0..)
            .map(|(client, number)| {
                let (stop, mount) = (Arc::clone(&stop), mount.to_owned());
                // Spread evenly over the interval.
                let first = begin + interval * number / count;
                thread::spawn(move || work(&stop, client, &mount, number, first, interval))
            })
            .collect();
        Self { stop, threads }
    }

    /// Ends the clients: every request, in the order in which they were due.
    ///
    /// # Panics
    /// If one of them has.
    #[must_use]
    pub fn stop(self) -> Vec<Request> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all: Vec<Request> = self
            .threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a client of the load"))
            .collect();
        all.sort_by_key(|request| request.due);
        all
    }
}

fn work(
    stop: &AtomicBool,
    client: Client,
    mount: &str,
    number: u32,
    first: Instant,
    interval: Duration,
) -> Vec<Request> {
    let mut session = Session::new(client.clone());
    let mut requests = Vec::new();
    let mut due = first;
    let path = format!("/v1/{mount}/client-{number}");
    for round in 0u64.. {
        let wait = due.saturating_duration_since(Instant::now());
        thread::sleep(wait);
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let write = round.is_multiple_of(2);
        let sent = Instant::now();
        let answer = if write {
            session.request("PUT", &path, Some(&json!({ "value": round })))
        } else {
            session.request("GET", &path, None)
        };
        let failed = match &answer {
            Ok(answer) if answer.status == if write { 204 } else { 200 } => None,
            Ok(answer) => Some(format!("{} {}", answer.status, answer.text().trim())),
            Err(error) => Some(error.to_string()),
        };
        if answer.is_err() {
            session = Session::new(client.clone());
        }
        requests.push(Request {
            write,
            due,
            sent,
            ended: Instant::now(),
            failed,
        });
        due += interval;
    }
    requests
}

/// From `event` to the end of the first write that was sent after it and acknowledged.
#[must_use]
pub fn gap(requests: &[Request], event: Instant) -> Option<Duration> {
    let after =
        |request: &&Request| request.write && request.failed.is_none() && request.sent >= event;
    let first = requests
        .iter()
        .filter(after)
        .map(|request| request.ended)
        .min()?;
    Some(first - event)
}
