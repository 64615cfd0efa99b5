//! Asks the kernel not to let a thread of this process that wakes up push aside the one that runs.
//!
//! Under load every request wakes some thread: a worker whose socket became readable, the writer of the log. By default the
//! kernel lets the woken thread interrupt whoever runs, a worker of this same process or its client, and most of these
//! switches gain nothing. `SCHED_BATCH` (sched(7)) leaves the share of the processor as it is and turns the interrupting
//! off: a quarter more reads and a fifth more writes per second on two cores, at the same latency for a single client.

use rustix::process::getpriority_process;
use thread_priority::{
    NormalThreadSchedulePolicy::{Batch, Other},
    ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id, thread_schedule_policy,
};

/// Sets the policy of the calling thread and of all that it will start, unless the operator chose another one.
pub(super) fn no_interrupting() {
    if !matches!(
        thread_schedule_policy(),
        Ok(ThreadSchedulePolicy::Normal(Other))
    ) {
        return;
    }
    let nice = getpriority_process(None).map_err(|error| error.to_string());
    let set = nice.and_then(keeping).and_then(|priority| {
        let batch = ThreadSchedulePolicy::Normal(Batch);
        set_thread_priority_and_policy(thread_native_id(), priority, batch)
            .map_err(|error| format!("{error:?}"))
    });
    if let Err(error) = set {
        // A sandbox may forbid it. The server is slower without and no less right.
        tracing::info!(%error, "SCHED_BATCH could not be set");
    }
}

/// The priority that leaves a nice value (-20 to 19) as it is: the crate maps 0 to 99 onto those and sets one together with the
/// policy.
fn keeping(nice: i32) -> Result<ThreadPriority, String> {
    // The middle of the values that are mapped there: it calculates with floats.
    let from_top = ((nice + 20) * 99 + 49) / 39;
    let value = u8::try_from(99 - from_top.min(99)).map_err(|error| error.to_string())?;
    Ok(ThreadPriority::Crossplatform(
        ThreadPriorityValue::try_from(value)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs on a thread of its own, which starts with `nice` more: policy and nice value, first and afterwards.
    fn before_and_after(nice: i32) -> [(ThreadSchedulePolicy, i32); 2] {
        let now = || {
            let nice = getpriority_process(None).unwrap();
            (thread_schedule_policy().unwrap(), nice)
        };
        let changing = move || {
            rustix::process::nice(nice).unwrap();
            let before = now();
            no_interrupting();
            let inherited = std::thread::spawn(now).join().unwrap();
            assert_eq!(now(), inherited);
            [before, inherited]
        };
        std::thread::spawn(changing).join().unwrap()
    }

    #[test]
    fn the_policy_is_set_and_the_nice_value_stays() {
        for more in [0, 1, 5] {
            let [before, after] = before_and_after(more);
            let policy = if before.0 == ThreadSchedulePolicy::Normal(Other) {
                ThreadSchedulePolicy::Normal(Batch)
            } else {
                before.0
            };
            assert_eq!(after, (policy, before.1));
        }
    }

    #[test]
    fn every_nice_value_can_be_kept() {
        for nice in -20..=19 {
            let policy = ThreadSchedulePolicy::Normal(Batch);
            assert_eq!(keeping(nice).unwrap().to_posix(policy).unwrap(), nice);
        }
    }
}
