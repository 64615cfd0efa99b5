//! Clients that write and read registers while things break, and what they saw.
//!
//! A register is a path of a KV mount; its value is `{"value": N}`. Every client has one request under way at a time and
//! repeats nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    client::{Client, RequestError, Response, Session},
    history::{ABSENT, Action, Op},
};

/// Complaints kept of each client.
const COMPLAINTS: usize = 5;

/// How many operations ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Writes whose outcome is not known.
    pub unknown: u64,
    /// Requests that were refused, or could not be sent, and reads without an answer.
    pub failed: u64,
}

/// Everything that all clients saw.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The operations.
    pub ops: Vec<Op>,
    /// How they ended.
    pub counts: Counts,
    /// When each acknowledged write ended, nanoseconds; not sorted.
    pub acknowledged: Vec<u64>,
    /// What came instead of an answer that is wanted, the first few of each client.
    pub complaints: Vec<String>,
}

impl History {
    /// The longest time without an acknowledged write between the first and the last.
    #[must_use]
    pub fn longest_gap(&self) -> Duration {
        let mut ends = self.acknowledged.clone();
        ends.sort_unstable();
        let longest = ends
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap_or_default();
        Duration::from_nanos(longest)
    }
}

struct Shared {
    began: Instant,
    stop: AtomicBool,
    next_value: AtomicU64,
    paths: Vec<String>,
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos())
            .unwrap_or(u64::MAX)
            .max(1)
    }
}

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<History>>,
}

impl Load {
    /// One thread for each of `clients`, at registers at `paths` (`MOUNT/NAME`), resting `pause` after each request.
    #[must_use]
    pub fn start(clients: Vec<Client>, paths: Vec<String>, pause: Duration) -> Self {
        let shared = Arc::new(Shared {
            began: Instant::now(),
            stop: AtomicBool::new(false),
            next_value: AtomicU64::new(ABSENT + 1),
            paths,
        });
        let threads = clients
            .into_iter()
            .map(|client| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || work(&shared, client, pause))
            })
            .collect();
        Self { shared, threads }
    }

    /// Ends the clients.
    ///
    /// # Panics
    /// If one of them has.
    #[must_use]
    pub fn stop(self) -> Finished {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut history = History::default();
        for thread in self.threads {
            let one = thread.join().expect("a client of the workload");
            merge(&mut history, one);
        }
        Finished {
            shared: self.shared,
            history,
        }
    }
}

fn merge(all: &mut History, one: History) {
    all.ops.extend(one.ops);
    all.acknowledged.extend(one.acknowledged);
    all.complaints.extend(one.complaints);
    all.counts.writes += one.counts.writes;
    all.counts.reads += one.counts.reads;
    all.counts.unknown += one.counts.unknown;
    all.counts.failed += one.counts.failed;
}

/// Clients that have ended; more can still be asked by the same clock.
pub struct Finished {
    shared: Arc<Shared>,
    /// What was seen.
    pub history: History,
}

impl Finished {
    /// Reads every register through each of `clients`, writes it, reads it again; all of that is added to the history.
    ///
    /// # Panics
    /// If any of that is not answered: the cluster is supposed to be healthy by now.
    pub fn look_at_everything(&mut self, clients: &[Client]) {
        for client in clients {
            let mut worker = Worker::new(&self.shared, client.clone());
            for key in 0..self.shared.paths.len() {
                assert!(
                    worker.read(key),
                    "{} is not read from {}",
                    self.shared.paths[key],
                    client.addr()
                );
                assert!(
                    worker.write(key),
                    "{} is not written through {}",
                    self.shared.paths[key],
                    client.addr()
                );
                assert!(
                    worker.read(key),
                    "{} is not read from {}",
                    self.shared.paths[key],
                    client.addr()
                );
            }
            merge(&mut self.history, worker.history);
        }
    }
}

fn work(shared: &Shared, client: Client, pause: Duration) -> History {
    let mut worker = Worker::new(shared, client);
    while !shared.stop.load(Ordering::Relaxed) {
        let key = rand::random_range(0..shared.paths.len());
        let served = if rand::random_bool(0.5) {
            worker.read(key)
        } else {
            worker.write(key)
        };
        // A server that is away must not be asked in a tight loop.
        thread::sleep(if served {
            pause
        } else {
            pause.max(Duration::from_millis(50))
        });
    }
    worker.history
}

struct Worker<'a> {
    shared: &'a Shared,
    client: Client,
    session: Session,
    history: History,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared, client: Client) -> Self {
        let session = Session::new(client.clone());
        Self {
            shared,
            client,
            session,
            history: History::default(),
        }
    }

    fn read(&mut self, key: usize) -> bool {
        let start = self.shared.now();
        let answer = self.ask("GET", key, None);
        let end = self.shared.now();
        let Some(value) = answer.ok().as_ref().and_then(value_read) else {
            self.history.counts.failed += 1;
            return false;
        };
        self.history.counts.reads += 1;
        self.history.ops.push(Op {
            key,
            action: Action::Read(value),
            start,
            end: Some(end),
        });
        true
    }

    fn write(&mut self, key: usize) -> bool {
        let value = self.shared.next_value.fetch_add(1, Ordering::Relaxed);
        let start = self.shared.now();
        let answer = self.ask("PUT", key, Some(value));
        let now = self.shared.now();
        let end = match answer {
            Ok(answer) if answer.status == 204 => Some(now),
            Err(RequestError::NotSent(_)) => {
                self.history.counts.failed += 1;
                return false;
            }
            // Redirects and refusals of the request itself are decided before anything is proposed.
            Ok(answer) if (300..500).contains(&answer.status) => {
                self.history.counts.failed += 1;
                return false;
            }
            Ok(_) | Err(RequestError::Unknown(_)) => None,
        };
        match end {
            Some(end) => {
                self.history.counts.writes += 1;
                self.history.acknowledged.push(end);
            }
            None => self.history.counts.unknown += 1,
        }
        self.history.ops.push(Op {
            key,
            action: Action::Write(value),
            start,
            end,
        });
        end.is_some()
    }

    fn ask(
        &mut self,
        method: &str,
        key: usize,
        value: Option<u64>,
    ) -> Result<Response, RequestError> {
        let path = format!("/v1/{}", self.shared.paths[key]);
        let body = value.map(|value| json!({ "value": value }));
        let answer = self.session.request(method, &path, body.as_ref());
        let complaint = match &answer {
            Ok(answer) if matches!(answer.status, 200 | 204 | 404) => None,
            Ok(answer) => Some(format!("{} {}", answer.status, answer.text().trim())),
            Err(error) => Some(error.to_string()),
        };
        if let Some(complaint) = complaint.filter(|_| self.history.complaints.len() < COMPLAINTS) {
            let seconds = self.shared.began.elapsed().as_secs_f32();
            let line = format!(
                "{seconds:.3} s  {method} at {}: {complaint}",
                self.client.addr()
            );
            self.history.complaints.push(line);
        }
        if answer.is_err() {
            self.session = Session::new(self.client.clone());
        }
        answer
    }
}

/// The register's value in an answer to a read; `None` if the read failed.
fn value_read(answer: &Response) -> Option<u64> {
    match answer.status {
        200 => answer.json()["data"]["value"].as_u64(),
        // Nothing there. A 404 with a text means something else: no such mount.
        404 if answer.errors().is_empty() => Some(ABSENT),
        _ => None,
    }
}
