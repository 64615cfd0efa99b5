//! The write batcher: hands proposals to openraft, at once when the log is idle and together while it is being written.
//!
//! In: encoded commands. Out: their outcomes, as openraft gives them.
//!
//! What comes while the log syncs waits for the next sync in any case. Handed over one by one, each of these proposals
//! costs an append here, a message to every follower and an append there; handed over together they cost that once.
//! A batch goes when the one before it is durable here and at least half as many proposals wait as are under way, or when
//! none is under way any more: few clients never wait longer than for the log, many share messages and syncs.
//!
//! Invariants
//! - A proposal that nobody waits for any more before it is handed over is never handed over: nothing was written.
//! - Proposals are handed over in the order in which they came, and none is held for others longer than the batcher was told.
//! - How many wait is bounded by who admits them.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::ready;
use openraft::{impls::OneshotResponder, raft::ClientWriteResult};
use tokio::{
    sync::{
        Notify, OwnedSemaphorePermit,
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    time::timeout,
};

use crate::{
    log::Progress,
    tasks::Tasks,
    types::{Encoded, TypeConfig},
};

/// Longest time a proposal waits for the log. A sync takes less, unless the disk is in trouble.
pub(crate) const LONGEST: Duration = Duration::from_millis(10);
/// Proposals handed over together, about at most.
const MOST: usize = 1024;

type Outcome = ClientWriteResult<TypeConfig>;
pub(crate) type Responder = OneshotResponder<TypeConfig, Outcome>;

/// What has become of a proposal: nothing yet, nobody wants it, or the number of the batch it was handed over in.
const WAITING: u64 = 0;
const GIVEN_UP: u64 = u64::MAX;

struct Proposal {
    command: Encoded,
    responder: Responder,
    fate: Arc<AtomicU64>,
    /// What was given up still takes up memory here.
    _admitted: Arc<OwnedSemaphorePermit>,
}

/// Why a proposal was not queued; nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotQueued {
    /// Too many wait: Raft does not keep up.
    Full,
    /// Raft has stopped.
    Stopped,
}

/// Why a proposal has no outcome: Raft has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// Nothing was written.
    Before,
    /// It may have been written.
    Meanwhile,
}

/// The last batch of which a proposal has its outcome.
#[derive(Default)]
struct Finished {
    batch: AtomicU64,
    changed: Notify,
}

/// Hands proposals over. Clones share it.
#[derive(Clone)]
pub(crate) struct WriteBatcher {
    queue: mpsc::Sender<Proposal>,
    finished: Arc<Finished>,
}

impl WriteBatcher {
    /// Starts the task that hands over through `submit`, which says whether Raft still takes proposals; `durable` changes
    /// with every sync of the log. `limit`: proposals that may wait; `longest`: for how long for the log.
    pub(crate) fn spawn<F>(
        submit: impl Fn(Encoded, Responder) -> F + Send + Sync + 'static,
        durable: watch::Receiver<Progress>,
        limit: usize,
        longest: Duration,
        tasks: &Tasks,
    ) -> Self
    where
        F: Future<Output = bool> + Send,
    {
        let (queue, proposals) = mpsc::channel(limit);
        let finished = Arc::<Finished>::default();
        let theirs = Arc::clone(&finished);
        tasks.vital("write batcher", async move {
            run(proposals, submit, durable, &theirs, longest).await;
        });
        Self { queue, finished }
    }

    /// Queues a command to be handed over. `admitted` is given back when it neither waits nor has to be waited for.
    ///
    /// # Errors
    /// Nothing was written.
    pub(crate) fn propose(
        &self,
        command: Encoded,
        admitted: Arc<OwnedSemaphorePermit>,
    ) -> Result<Ticket, NotQueued> {
        let (responder, answer) = OneshotResponder::new_pair();
        let fate = Arc::<AtomicU64>::default();
        let proposal = Proposal {
            command,
            responder,
            fate: Arc::clone(&fate),
            _admitted: admitted,
        };
        self.queue.try_send(proposal).map_err(|error| match error {
            TrySendError::Full(_) => NotQueued::Full,
            TrySendError::Closed(_) => NotQueued::Stopped,
        })?;
        Ok(Ticket {
            answer,
            fate,
            finished: Arc::clone(&self.finished),
        })
    }
}

/// Becomes a proposal's outcome.
pub(crate) struct Ticket {
    answer: oneshot::Receiver<Outcome>,
    fate: Arc<AtomicU64>,
    finished: Arc<Finished>,
}

impl Ticket {
    /// Whether the proposal was never handed over, and never will be.
    pub(crate) fn give_up(&self) -> bool {
        self.fate
            .compare_exchange(WAITING, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire)
            .map_or_else(|fate| fate == GIVEN_UP, |_| true)
    }
}

impl Future for Ticket {
    type Output = Result<Outcome, Stopped>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(context));
        Poll::Ready(match answer {
            Ok(outcome) => {
                let batch = self.fate.load(Ordering::Acquire);
                if self.finished.batch.fetch_max(batch, Ordering::AcqRel) < batch {
                    self.finished.changed.notify_one();
                }
                Ok(outcome)
            }
            Err(_) if self.give_up() => Err(Stopped::Before),
            Err(_) => Err(Stopped::Meanwhile),
        })
    }
}

async fn run<F>(
    mut proposals: mpsc::Receiver<Proposal>,
    submit: impl Fn(Encoded, Responder) -> F + Send + Sync,
    mut durable: watch::Receiver<Progress>,
    finished: &Finished,
    longest: Duration,
) where
    F: Future<Output = bool> + Send,
{
    let mut together = Vec::new();
    let mut outstanding = Outstanding::default();
    // What was gathered while a batch was waited for is handed over even if nothing more comes.
    while !together.is_empty() || proposals.recv_many(&mut together, MOST).await > 0 {
        while together.len() < MOST
            && let Ok(proposal) = proposals.try_recv()
        {
            together.push(proposal);
        }
        let batch = outstanding.newest + 1;
        let mut handed_over = 0;
        durable.mark_unchanged();
        for proposal in together.drain(..) {
            let taken =
                proposal
                    .fate
                    .compare_exchange(WAITING, batch, Ordering::AcqRel, Ordering::Acquire);
            if taken.is_err() {
                continue;
            }
            if !submit(proposal.command, proposal.responder).await {
                // Raft has stopped for good: it takes nothing more either.
                proposal.fate.store(GIVEN_UP, Ordering::Release);
                return;
            }
            handed_over += 1;
        }
        if handed_over == 0 {
            continue;
        }
        outstanding.begin(batch, handed_over);
        let mut is_durable = false;
        let next = async {
            loop {
                tokio::select! {
                    changed = durable.changed() => match changed {
                        Ok(()) => is_durable = true,
                        // Gone with the log: nothing is handed over any more.
                        Err(_) => return false,
                    },
                    () = finished.changed.notified() => {}
                    more = proposals.recv_many(&mut together, MOST), if is_durable && together.len() < MOST => {
                        if more == 0 {
                            return false;
                        }
                    }
                }
                outstanding.end(finished.batch.load(Ordering::Acquire));
                let waiting = together.len() + proposals.len();
                let enough = waiting > 0 && waiting * 2 >= outstanding.proposals;
                if outstanding.proposals == 0 || (is_durable && enough) {
                    return true;
                }
            }
        };
        if matches!(timeout(longest, next).await, Ok(false)) {
            return;
        }
    }
}

/// Proposals that were handed over and have no outcome yet.
#[derive(Default)]
struct Outstanding {
    /// Number and size of each batch, oldest first.
    batches: VecDeque<(u64, usize)>,
    /// In all of them.
    proposals: usize,
    /// Number of the newest one.
    newest: u64,
}

impl Outstanding {
    /// A new batch was handed over.
    fn begin(&mut self, batch: u64, proposals: usize) {
        self.newest = batch;
        self.batches.push_back((batch, proposals));
        self.proposals += proposals;
    }

    /// Batch `last` and those before count as done. Outcomes come in order, but for refusals: a node that refuses does not
    /// lead, and writes nothing.
    fn end(&mut self, last: u64) {
        while let Some((batch, proposals)) = self.batches.front()
            && *batch <= last
        {
            self.proposals -= proposals;
            self.batches.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use openraft::{errors::ForwardToLeader, raft::responder::Responder as _};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::log::lock;

    const QUEUE: usize = 8;
    const ROOM: usize = 16;
    const NEVER: Duration = Duration::from_secs(3600);

    /// A batcher whose proposals end up in a list, and the log's progress.
    struct Bench {
        batcher: WriteBatcher,
        handed: Arc<Mutex<Vec<(Encoded, Responder)>>>,
        durable: watch::Sender<Progress>,
        tasks: Tasks,
        admission: Arc<Semaphore>,
    }

    impl Bench {
        fn new(takes: bool, longest: Duration) -> Self {
            let handed = Arc::<Mutex<Vec<(Encoded, Responder)>>>::default();
            let (theirs, tasks) = (Arc::clone(&handed), Tasks::default());
            let (durable, progress) = watch::channel(Progress::default());
            let batcher = WriteBatcher::spawn(
                move |command, responder| {
                    if takes {
                        lock(&theirs).push((command, responder));
                    }
                    std::future::ready(takes)
                },
                progress,
                QUEUE,
                longest,
                &tasks,
            );
            Self {
                batcher,
                handed,
                durable,
                tasks,
                admission: Arc::new(Semaphore::new(ROOM)),
            }
        }

        fn try_propose(&self, name: &'static str) -> Result<Ticket, NotQueued> {
            let command = Encoded(Bytes::from_static(name.as_bytes()));
            let permit = Arc::clone(&self.admission).try_acquire_owned().unwrap();
            self.batcher.propose(command, Arc::new(permit))
        }

        fn propose(&self, name: &'static str) -> Ticket {
            self.try_propose(name).unwrap()
        }

        /// What was handed over, in order.
        async fn handed(&self) -> Vec<Bytes> {
            // One thread: whoever can run has run when this returns.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            lock(&self.handed)
                .iter()
                .map(|(c, _)| c.0.clone())
                .collect()
        }

        fn answer(&self, at: usize) {
            let (_, responder) = lock(&self.handed).remove(at);
            responder.on_complete(Err(ForwardToLeader::empty().into()));
        }

        fn sync(&self) {
            self.durable.send_modify(|progress| progress.batches += 1);
        }
    }

    #[tokio::test]
    async fn what_comes_during_a_sync_is_handed_over_when_it_ends() {
        let bench = Bench::new(true, NEVER);
        let _first = bench.propose("a");
        assert_eq!(bench.handed().await, ["a"], "an idle log is not waited for");
        let _more = [bench.propose("b"), bench.propose("c")];
        assert_eq!(bench.handed().await, ["a"]);
        bench.sync();
        assert_eq!(bench.handed().await, ["a", "b", "c"]);
    }

    #[tokio::test]
    async fn many_wait_for_each_other_when_the_log_is_idle() {
        let bench = Bench::new(true, NEVER);
        let mut tickets: Vec<_> = ["a", "b", "c", "d"].map(|name| bench.propose(name)).into();
        assert_eq!(bench.handed().await.len(), 4);
        bench.sync();
        tickets.push(bench.propose("e"));
        assert_eq!(bench.handed().await.len(), 4, "one beside four under way");
        tickets.push(bench.propose("f"));
        assert_eq!(bench.handed().await, ["a", "b", "c", "d", "e", "f"]);
        bench.sync();
        tickets.push(bench.propose("g"));
        assert_eq!(bench.handed().await.len(), 6, "one beside six under way");
        bench.answer(0);
        assert!(tickets.remove(0).await.unwrap().is_err());
        assert_eq!(bench.handed().await, ["b", "c", "d", "e", "f", "g"]);
    }

    #[tokio::test]
    async fn no_proposal_waits_for_ever() {
        let bench = Bench::new(true, Duration::from_millis(1));
        let _first = bench.propose("a");
        assert_eq!(bench.handed().await, ["a"]);
        let _second = bench.propose("b");
        while bench.handed().await.len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn an_outcome_ends_the_wait_for_its_batch_only() {
        let bench = Bench::new(true, NEVER);
        let first = bench.propose("a");
        assert_eq!(bench.handed().await, ["a"]);
        bench.sync();
        let second = bench.propose("b");
        let _third = bench.propose("c");
        assert_eq!(bench.handed().await, ["a", "b", "c"]);
        let _fourth = bench.propose("d");
        bench.answer(0);
        assert!(first.await.unwrap().is_err());
        assert_eq!(
            bench.handed().await,
            ["b", "c"],
            "the first batch ended long ago"
        );
        bench.answer(0);
        assert!(second.await.unwrap().is_err());
        assert_eq!(bench.handed().await, ["c", "d"]);
    }

    #[tokio::test]
    async fn what_was_given_up_is_never_handed_over() {
        let bench = Bench::new(true, NEVER);
        let first = bench.propose("a");
        assert_eq!(bench.handed().await, ["a"]);
        assert!(!first.give_up(), "it is handed over");
        let (second, _third) = (bench.propose("b"), bench.propose("c"));
        assert!(second.give_up());
        drop(second);
        assert_eq!(
            bench.admission.available_permits(),
            ROOM - 2,
            "it still takes up room, not \"a\""
        );
        bench.sync();
        assert_eq!(bench.handed().await, ["a", "c"]);
        assert_eq!(bench.admission.available_permits(), ROOM);
    }

    #[tokio::test]
    async fn a_full_queue_is_not_a_stop() {
        let bench = Bench::new(true, NEVER);
        let _first = bench.propose("a");
        assert_eq!(bench.handed().await, ["a"]);
        let _waiting: Vec<_> = (0..QUEUE).map(|_| bench.propose("b")).collect();
        assert!(matches!(bench.try_propose("c"), Err(NotQueued::Full)));
    }

    #[tokio::test]
    async fn a_stop_says_what_may_be_written() {
        let bench = Bench::new(true, NEVER);
        let handed = bench.propose("a");
        assert_eq!(bench.handed().await, ["a"]);
        let waiting = bench.propose("b");
        bench.tasks.closing.cancel();
        assert_eq!(waiting.await.unwrap_err(), Stopped::Before);
        lock(&bench.handed).clear();
        assert_eq!(handed.await.unwrap_err(), Stopped::Meanwhile);
        let late = bench.try_propose("c");
        assert!(matches!(late, Err(NotQueued::Stopped)));

        let stopped = Bench::new(false, NEVER);
        let ticket = stopped.propose("a");
        assert!(stopped.handed().await.is_empty());
        // The one that found out may be taken for one that was handed over; those behind it never.
        assert!(ticket.await.is_err());
        let late = stopped.try_propose("b");
        assert!(matches!(late, Err(NotQueued::Stopped)));
    }
}
