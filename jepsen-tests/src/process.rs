//! One server process: started with its output in a file, ended by its pid.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::machine::wait_for;

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts `command`, appending what it prints to `log`.
    ///
    /// It stays in this process's group, so that whoever ends the tests as a group ends it too.
    #[must_use]
    pub fn start(name: &str, command: &mut Command, log: &PathBuf) -> Self {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("log file");
        let copy = file.try_clone().expect("log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            .spawn()
            .unwrap_or_else(|error| panic!("starting {name}: {error}"));
        Self {
            child,
            name: name.to_owned(),
        }
    }

    /// How it ended; `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("waiting for a child of ours")
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal`; nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .expect("a pid");
        // It may have ended since; it is not reaped yet, so the pid cannot be somebody else's.
        let _ = kill_process(pid, signal);
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    /// SIGTERM, and waits until it has ended by itself.
    pub fn terminate(mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        let what = format!("{} to stop on SIGTERM", self.name);
        wait_for(&what, limit, || self.ended())
    }

    fn end(&mut self) {
        // Already gone is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
