//! Threads that wait for the disk, for callers that must not.
//!
//! In: work that blocks. Out: what comes of it, in the caller's task.
//!
//! Handing work to a thread and waking it costs more than a read of what the kernel has cached. So as long as reads are quick, one
//! reader takes whatever has come together. Once they are slow every read has a reader of its own; and when the one reader is
//! held up, by a disk that hangs or a long listing, those that wait have others begin, twice as many every millisecond.
//!
//! Invariants
//! - At most [`MAX_READERS`] run. Work that is not waited for any more, and has not begun, is gone at once, so that no more is here
//!   than there are callers; what has begun keeps its reader until it ends.
//! - While work waits, all readers that there may be are busy, or its caller looks after it.

use std::{
    collections::VecDeque,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, time::timeout};

use crate::log::lock;

/// As many as a disk needs to be at its fastest.
const MAX_READERS: usize = 32;
/// Work that has not begun after this time has other readers begin.
const PATIENCE: Duration = Duration::from_millis(1);
/// A read that takes this long has waited for a disk; one of what the kernel has cached takes a tenth.
const QUICK: Duration = Duration::from_micros(100);

/// The work panicked, or the runtime is shutting down.
#[derive(Debug, thiserror::Error)]
#[error("a read of the disk was given up")]
pub(crate) struct GivenUp;

/// Clones share the threads.
#[derive(Clone)]
pub(crate) struct Readers(Arc<Mutex<Queue>>);

struct Queue {
    /// By number, ascending.
    waiting: VecDeque<(u64, Work)>,
    next: u64,
    running: usize,
    /// When a reader last took work, and when readers last began because work had waited.
    taken: Instant,
    hurried: Instant,
    /// How long the work took lately: each counts an eighth.
    typical: Duration,
}

type Work = Box<dyn FnOnce() + Send>;

impl Queue {
    /// Counts up to `wanted` more readers in; the caller has so many begin.
    fn admit(&mut self, wanted: usize) -> usize {
        let admitted = wanted
            .min(self.waiting.len())
            .min(MAX_READERS - self.running);
        self.running += admitted;
        admitted
    }

    fn took(&mut self, time: Duration) {
        // One that was pushed off its processor says nothing about the disk.
        self.typical = (7 * self.typical + time.min(4 * QUICK)) / 8;
    }

    fn place_of(&self, number: u64) -> Option<usize> {
        let found = self.waiting.binary_search_by_key(&number, |(n, _)| *n);
        found.ok()
    }
}

impl Readers {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Queue {
            waiting: VecDeque::new(),
            next: 0,
            running: 0,
            taken: Instant::now(),
            hurried: Instant::now(),
            typical: Duration::ZERO,
        })))
    }

    /// What `work` gives, done by one of the threads.
    ///
    /// # Errors
    /// When it panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, GivenUp> {
        let (sender, mut done) = oneshot::channel();
        let place = self.enqueue(Box::new(move || {
            // Nobody may be waiting any more.
            let _ = sender.send(work());
        }));
        loop {
            if let Ok(done) = timeout(PATIENCE, &mut done).await {
                return done.map_err(|_| GivenUp);
            }
            if place.hurry() == Progress::Sure {
                return done.await.map_err(|_| GivenUp);
            }
        }
    }

    fn enqueue(&self, work: Work) -> Place<'_> {
        let mut queue = lock(&self.0);
        let number = queue.next;
        queue.next += 1;
        queue.waiting.push_back((number, work));
        // Nobody who runs would come to it soon.
        let alone =
            queue.running == 0 || queue.typical > QUICK || queue.taken.elapsed() >= PATIENCE;
        let begin = if alone { queue.admit(1) } else { 0 };
        drop(queue);
        let place = Place {
            readers: self,
            number,
        };
        self.begin(begin);
        place
    }

    /// The readers have been counted.
    fn begin(&self, readers: usize) {
        let reader = || Reader {
            queue: Arc::clone(&self.0),
            counted: true,
        };
        // All are there before the first begins: should there be no thread for one, the others count themselves out.
        let all: Vec<_> = std::iter::repeat_with(reader).take(readers).collect();
        for reader in all {
            tokio::task::spawn_blocking(move || reader.read());
        }
    }
}

/// A caller's place in the queue, which it leaves when it goes.
struct Place<'a> {
    readers: &'a Readers,
    number: u64,
}

#[derive(PartialEq, Eq)]
enum Progress {
    /// To be looked after again.
    Waiting,
    /// It has begun, or will when any reader is free: there cannot be more.
    Sure,
}

impl Place<'_> {
    /// Twice as many readers run if the work still waits and none have begun for a while.
    fn hurry(&self) -> Progress {
        let mut queue = lock(&self.readers.0);
        if queue.place_of(self.number).is_none() {
            return Progress::Sure;
        }
        let mut begin = 0;
        if queue.hurried.elapsed() >= PATIENCE {
            let wanted = queue.running.max(1);
            begin = queue.admit(wanted);
            queue.hurried = Instant::now();
        }
        let all = queue.running == MAX_READERS;
        drop(queue);
        self.readers.begin(begin);
        if all {
            Progress::Sure
        } else {
            Progress::Waiting
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queue = lock(&self.readers.0);
        let place = queue.place_of(self.number);
        let unwanted = place.and_then(|place| queue.waiting.remove(place));
        drop(queue);
        // What the work holds goes without the lock.
        drop(unwanted);
    }
}

/// One that is counted; it need not have a thread yet.
struct Reader {
    queue: Arc<Mutex<Queue>>,
    counted: bool,
}

impl Reader {
    fn read(mut self) {
        let mut took = None;
        while let Some(work) = self.next(took) {
            let begun = Instant::now();
            // Its sender is dropped, which tells the caller; the panic's text went to standard error.
            let _ = std::panic::catch_unwind(AssertUnwindSafe(work));
            took = Some(begun.elapsed());
        }
    }

    /// `None`: there is nothing, and from that very moment this reader does not count. `took`: how long the last work took.
    fn next(&mut self, took: Option<Duration>) -> Option<Work> {
        let mut queue = lock(&self.queue);
        if let Some(took) = took {
            queue.took(took);
        }
        let next = queue.waiting.pop_front();
        if next.is_some() {
            queue.taken = queue.taken.max(Instant::now());
        } else {
            queue.running -= 1;
            self.counted = false;
        }
        next.map(|(_, work)| work)
    }
}

/// Without a look at the queue only when the runtime shuts down before the reader has run.
impl Drop for Reader {
    fn drop(&mut self) {
        if self.counted {
            lock(&self.queue).running -= 1;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::mpsc;

    use futures_util::{FutureExt as _, future::join_all};

    use super::*;

    /// Every reader there may be, held up as by a disk that hangs, until this is dropped.
    pub(crate) struct Held(Vec<mpsc::Sender<()>>);

    pub(crate) async fn hold(readers: &Readers) -> Held {
        let mut held = Held(Vec::new());
        while held.0.len() < MAX_READERS {
            let (release, released) = mpsc::channel::<()>();
            let (begun, has_begun) = oneshot::channel();
            let readers = readers.clone();
            tokio::spawn(async move {
                let hang = move || {
                    begun.send(()).unwrap();
                    released.recv().unwrap_err();
                };
                readers.run(hang).await.unwrap();
            });
            has_begun.await.unwrap();
            held.0.push(release);
        }
        held
    }

    /// However long this test is held up, no reader is taken for one that is.
    fn never_late(readers: &Readers) {
        lock(&readers.0).taken = Instant::now() + Duration::from_secs(60);
    }

    async fn idle(readers: &Readers) {
        let running = || lock(&readers.0).running;
        for _ in 0..10_000 {
            if running() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{} readers still run", running());
    }

    /// Work that holds its reader up until what this returns second is dropped.
    fn hanging() -> (impl Fn() -> Work, mpsc::Sender<()>) {
        let (release, released) = mpsc::channel();
        let released = Arc::new(Mutex::new(released));
        let work = move || -> Work {
            let released = Arc::clone(&released);
            Box::new(move || assert!(lock(&released).recv().is_err()))
        };
        (work, release)
    }

    #[tokio::test]
    async fn one_reader_does_what_has_come_together() {
        let readers = Readers::new();
        never_late(&readers);
        let (release, released) = mpsc::channel::<()>();
        let first = readers.run(move || released.recv().unwrap_err());
        let rest =
            join_all((0..100).map(|n| readers.run(move || (n, std::thread::current().id()))));
        let (mut first, mut rest) = (Box::pin(first), Box::pin(rest));
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut rest).now_or_never().is_none());
        assert_eq!(lock(&readers.0).running, 1);
        drop(release);
        let done = rest.await;
        first.await.unwrap();
        for (at, done) in done.into_iter().enumerate() {
            assert_eq!(done.unwrap().0, at);
        }
        idle(&readers).await;
        assert_eq!(readers.run(|| 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_read_that_hangs_holds_up_no_other() {
        let readers = Readers::new();
        let (release, released) = mpsc::channel::<()>();
        let mut hangs = Box::pin(readers.run(move || released.recv().unwrap_err()));
        assert!((&mut hangs).now_or_never().is_none());
        assert_eq!(readers.run(|| 7).await.unwrap(), 7);
        drop(release);
        hangs.await.unwrap();
    }

    #[tokio::test]
    async fn readers_double_while_work_waits() {
        let readers = Readers::new();
        let (hanging, release) = hanging();
        let places: Vec<_> = (0..2 * MAX_READERS)
            .map(|_| readers.enqueue(hanging()))
            .collect();
        let last = places.last().unwrap();
        let running = || lock(&readers.0).running;
        while running() < MAX_READERS {
            let before = running();
            let long_ago = Instant::now().checked_sub(PATIENCE).unwrap();
            lock(&readers.0).hurried = long_ago;
            assert!(last.hurry() == Progress::Waiting || running() == MAX_READERS);
            assert_eq!(running(), MAX_READERS.min(2 * before));
        }
        assert!(last.hurry() == Progress::Sure);
        drop(release);
        idle(&readers).await;
    }

    #[tokio::test]
    async fn slow_reads_have_a_reader_each() {
        let readers = Readers::new();
        for (typical, each) in [(QUICK, false), (2 * QUICK, true)] {
            lock(&readers.0).typical = typical;
            never_late(&readers);
            let (hanging, release) = hanging();
            let places: Vec<_> = (0..8).map(|_| readers.enqueue(hanging())).collect();
            assert_eq!(lock(&readers.0).running == 8, each);
            drop(release);
            idle(&readers).await;
            drop(places);
        }
    }

    #[test]
    fn what_is_slow_now_and_then_is_quick() {
        let readers = Readers::new();
        let mut queue = lock(&readers.0);
        queue.took(Duration::from_secs(30));
        assert!(queue.typical <= QUICK);
        for _ in 0..9 {
            queue.took(2 * QUICK);
        }
        assert!(queue.typical > QUICK);
        for _ in 0..9 {
            queue.took(QUICK / 10);
        }
        assert!(queue.typical <= QUICK);
    }

    #[tokio::test]
    async fn a_reader_that_is_held_up_is_not_counted_on() {
        let readers = Readers::new();
        let (hanging, release) = hanging();
        let held = readers.enqueue(hanging());
        let long_ago = Instant::now().checked_sub(PATIENCE).unwrap();
        while held.hurry() == Progress::Waiting || lock(&readers.0).running > 1 {
            tokio::task::yield_now().await;
        }
        lock(&readers.0).taken = long_ago;
        let next = readers.enqueue(hanging());
        assert_eq!(lock(&readers.0).running, 2);
        drop(release);
        idle(&readers).await;
        drop((held, next));
    }

    #[tokio::test]
    async fn readers_are_no_more_than_the_limit_and_nothing_unwanted_waits() {
        let readers = Readers::new();
        let held = hold(&readers).await;
        let waits = timeout(Duration::from_millis(20), readers.run(|| 1));
        assert!(waits.await.is_err());
        assert_eq!(lock(&readers.0).running, MAX_READERS);
        assert_eq!(lock(&readers.0).waiting.len(), 0);

        let mut still = Box::pin(readers.run(|| 2));
        let mut unwanted = Box::pin(readers.run(|| 3));
        assert!((&mut still).now_or_never().is_none());
        assert!((&mut unwanted).now_or_never().is_none());
        assert_eq!(lock(&readers.0).waiting.len(), 2);
        drop(unwanted);
        assert_eq!(lock(&readers.0).waiting.len(), 1);
        drop(held);
        assert_eq!(still.await.unwrap(), 2);
        idle(&readers).await;
    }

    #[tokio::test]
    async fn a_panic_is_told_to_its_caller_alone() {
        let readers = Readers::new();
        let panics = readers.run(|| panic!("ordered by the test"));
        let other = readers.run(|| 7);
        let (panics, other) = futures_util::join!(panics, other);
        panics.unwrap_err();
        assert_eq!(other.unwrap(), 7);
        idle(&readers).await;
    }

    #[test]
    fn a_runtime_that_ends_counts_its_readers_out() {
        let readers = Readers::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let (release, released) = mpsc::channel::<()>();
        runtime.spawn_blocking(move || released.recv().unwrap_err());
        runtime.block_on(async {
            assert!(readers.run(|| ()).now_or_never().is_none());
        });
        runtime.shutdown_background();
        drop(release);
        while lock(&readers.0).running > 0 {
            std::thread::yield_now();
        }
    }
}
