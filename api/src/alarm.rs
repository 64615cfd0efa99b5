//! Time-outs that nearly every request sets and that almost never go off.
//!
//! A timer that is made and dropped goes into the runtime's wheel and out again, under its lock. One that is only moved to a
//! later time does neither: so those that are done with are kept and moved.
//!
//! Invariants
//! - All alarms of one [`Alarms`] are set for about the same time ahead, or moving one is no cheaper than making one.
//! - No more than [`KEPT`] are kept. One that is kept may go off and wake a task that does not wait for it any more.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use tokio::time::{Sleep, sleep_until};

/// Timers that may lie ready: as many as there are requests under way at a time, usually.
const KEPT: usize = 256;

/// Alarms that are used again. Clones share them; of one runtime only.
#[derive(Clone, Debug, Default)]
pub struct Alarms(Arc<Mutex<Vec<Pin<Box<Sleep>>>>>);

/// The time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl Alarms {
    /// One that goes off at `time`.
    #[must_use]
    pub fn at(&self, time: Instant) -> Alarm {
        let kept = self.lock().pop();
        let sleep = match kept {
            Some(mut sleep) => {
                sleep.as_mut().reset(time.into());
                sleep
            }
            None => Box::pin(sleep_until(time.into())),
        };
        Alarm {
            sleep: Some(sleep),
            home: self.clone(),
        }
    }

    /// What `work` gives, if it does before `time`. Nothing is set for what needs no waiting.
    ///
    /// # Errors
    /// [`Elapsed`] when it does not; the work is dropped.
    pub async fn within<F: Future>(&self, time: Instant, work: F) -> Result<F::Output, Elapsed> {
        let mut work = pin!(work);
        let mut alarm = None;
        poll_fn(|context| {
            if let Poll::Ready(output) = work.as_mut().poll(context) {
                return Poll::Ready(Ok(output));
            }
            let alarm = alarm.get_or_insert_with(|| self.at(time));
            // Not out of the task's budget: work that has used it up would never be too late.
            pin!(tokio::task::coop::unconstrained(alarm))
                .poll(context)
                .map(|()| Err(Elapsed))
        })
        .await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Pin<Box<Sleep>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Becomes ready at its time.
#[derive(Debug)]
pub struct Alarm {
    /// Taken only when the alarm is dropped.
    sleep: Option<Pin<Box<Sleep>>>,
    home: Alarms,
}

impl Future for Alarm {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().poll(context),
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let Some(sleep) = self.sleep.take() else {
            return;
        };
        let mut kept = self.home.lock();
        if kept.len() < KEPT {
            kept.push(sleep);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const LATE: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn work_in_time_is_done_and_other_work_is_not() {
        let alarms = Alarms::default();
        let now = Instant::now();
        assert_eq!(alarms.within(now, async { 1 }).await, Ok(1));
        assert!(alarms.lock().is_empty(), "nothing was set");
        let waits = tokio::task::yield_now();
        assert_eq!(alarms.within(now + LATE, waits).await, Ok(()));
        assert_eq!(alarms.lock().len(), 1);
        let never = std::future::pending::<()>();
        assert_eq!(alarms.within(now + SOON, never).await, Err(Elapsed));
        assert!(now.elapsed() >= SOON);
    }

    #[tokio::test]
    async fn one_that_is_used_again_goes_off_at_its_new_time() {
        let alarms = Alarms::default();
        let (now, later, still_later) = (Instant::now(), SOON * 20, SOON * 21);
        // Moved to a later time while it waits, after it went off, and to an earlier one.
        for (first, second) in [(later, still_later), (Duration::ZERO, SOON), (LATE, SOON)] {
            let mut alarm = alarms.at(now + first);
            let waits = futures_util::poll!(&mut alarm).is_pending();
            assert_eq!(waits, !first.is_zero());
            drop(alarm);
            let (began, again) = (Instant::now(), alarms.at(Instant::now() + second));
            again.await;
            assert!(began.elapsed() >= second);
            assert_eq!(alarms.lock().len(), 1);
        }
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        let alarms = Alarms::default();
        let late = Instant::now() + LATE;
        let many: Vec<_> = (0..KEPT + 9).map(|_| alarms.at(late)).collect();
        drop(many);
        assert_eq!(alarms.lock().len(), KEPT);
    }
}
