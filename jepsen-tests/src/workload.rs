//! Clients that write and read registers while things break, and what they saw.
//!
//! A register is a path of a KV mount; its value is `{"value": N}`. Every client has one request under way at a time and
//! repeats nothing. After a number of operations a place of a register goes to a fresh one, so that no register's history
//! grows too long to be judged by search.

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
/// Operations on one register before another takes its place.
const OPERATIONS_PER_REGISTER: u64 = 200;
/// One change in so many is a delete, in registers that are ever deleted: every fourth.
const DELETES: u32 = 8;

/// How many operations ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Deletes that were acknowledged.
    pub deletes: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Changes whose outcome is not known.
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
    next_process: AtomicU64,
    places: Vec<String>,
    /// Operations at each place so far.
    used: Vec<AtomicU64>,
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos())
            .unwrap_or(u64::MAX)
            .max(1)
    }

    /// The register that is at `place` now.
    fn register(&self, place: usize) -> usize {
        let used = self.used[place].fetch_add(1, Ordering::Relaxed);
        let generation = usize::try_from(used / OPERATIONS_PER_REGISTER).unwrap_or(usize::MAX);
        generation * self.places.len() + place
    }

    /// Registers there have been so far, at all places.
    fn registers(&self) -> Vec<usize> {
        let mut all = Vec::new();
        for (place, used) in self.used.iter().enumerate() {
            let generations = used
                .load(Ordering::Relaxed)
                .div_ceil(OPERATIONS_PER_REGISTER);
            let generations = usize::try_from(generations.max(1)).unwrap_or(usize::MAX);
            all.extend((0..generations).map(|generation| generation * self.places.len() + place));
        }
        all
    }

    fn path(&self, key: usize) -> String {
        let (place, generation) = (key % self.places.len(), key / self.places.len());
        format!("{}-{generation}", self.places[place])
    }

    fn process(&self) -> u64 {
        self.next_process.fetch_add(1, Ordering::Relaxed)
    }
}

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<History>>,
}

impl Load {
    /// One thread for each of `clients`, at registers at `places` (`MOUNT/NAME`), resting `pause` after each request.
    #[must_use]
    pub fn start(clients: Vec<Client>, places: Vec<String>, pause: Duration) -> Self {
        let shared = Arc::new(Shared {
            began: Instant::now(),
            stop: AtomicBool::new(false),
            next_value: AtomicU64::new(ABSENT + 1),
            next_process: AtomicU64::new(0),
            used: places.iter().map(|_| AtomicU64::new(0)).collect(),
            places,
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

    /// Nanoseconds from the start of the history, by the clock of the operations.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.shared.now()
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
    all.counts.deletes += one.counts.deletes;
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
    /// Reads every register through each of `clients`; the newest at each place is written too, and read again. All of
    /// that is added to the history.
    ///
    /// # Panics
    /// If any of that is not answered: the cluster is supposed to be healthy by now.
    pub fn look_at_everything(&mut self, clients: &[Client]) {
        let places = self.shared.places.len();
        let registers = self.shared.registers();
        for client in clients {
            let mut worker = Worker::new(&self.shared, client.clone());
            for key in &registers {
                let is_newest = !registers.contains(&(key + places));
                let answered =
                    worker.read(*key) && (!is_newest || worker.write(*key) && worker.read(*key));
                assert!(
                    answered,
                    "{} cannot be read and written through {}: {:?}",
                    self.shared.path(*key),
                    client.addr(),
                    worker.history.complaints
                );
            }
            merge(&mut self.history, worker.history);
        }
    }
}

fn work(shared: &Shared, client: Client, pause: Duration) -> History {
    let mut worker = Worker::new(shared, client);
    while !shared.stop.load(Ordering::Relaxed) {
        let key = shared.register(rand::random_range(0..shared.places.len()));
        let served = if rand::random_bool(0.5) {
            worker.read(key)
        } else if key % 4 == 3 && rand::random_ratio(1, DELETES) {
            worker.delete(key)
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
    process: u64,
    history: History,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared, client: Client) -> Self {
        let session = Session::new(client.clone());
        Self {
            shared,
            client,
            session,
            process: shared.process(),
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
        self.record(key, Action::Read(value), start, Some(end));
        true
    }

    fn write(&mut self, key: usize) -> bool {
        let value = self.shared.next_value.fetch_add(1, Ordering::Relaxed);
        self.change(key, Action::Write(value))
    }

    fn delete(&mut self, key: usize) -> bool {
        self.change(key, Action::Delete)
    }

    fn change(&mut self, key: usize, action: Action) -> bool {
        let start = self.shared.now();
        let answer = match action {
            Action::Write(value) => self.ask("PUT", key, Some(value)),
            Action::Delete | Action::Read(_) => self.ask("DELETE", key, None),
        };
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
        self.record(key, action, start, end);
        match (end, action) {
            (Some(end), Action::Write(_)) => {
                self.history.counts.writes += 1;
                self.history.acknowledged.push(end);
            }
            (Some(_), Action::Delete | Action::Read(_)) => self.history.counts.deletes += 1,
            (None, _) => {
                self.history.counts.unknown += 1;
                // The operation goes on for ever, and a process does one thing at a time.
                self.process = self.shared.process();
            }
        }
        end.is_some()
    }

    fn record(&mut self, key: usize, action: Action, start: u64, end: Option<u64>) {
        self.history.ops.push(Op {
            process: self.process,
            key,
            action,
            start,
            end,
        });
    }

    fn ask(
        &mut self,
        method: &str,
        key: usize,
        value: Option<u64>,
    ) -> Result<Response, RequestError> {
        let path = format!("/v1/{}", self.shared.path(key));
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
