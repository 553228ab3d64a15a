//! A process that was started here, in a session of its own, and all that it starts. None outlives the value.

#![allow(dead_code, reason = "the benchmarks each need their part of it")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, setsid};

use super::waiting::wait_for;

/// How long a process may take to end.
const DEADLINE: Duration = Duration::from_secs(20);

pub struct Session(Child);

impl Session {
    pub fn start(command: &mut Command) -> Result<Session> {
        // Also when this program is interrupted, what it started is asked to stop.
        let alone = || {
            setsid()?;
            // A signal mask outlives exec.
            SigSet::empty().thread_set_mask()?;
            Ok(prctl::set_pdeathsig(Signal::SIGTERM)?)
        };
        // SAFETY: between fork and exec only setsid, pthread_sigmask and prctl are called, which are system calls and no more.
        let command = unsafe { command.pre_exec(alone) };
        Ok(Session(command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?))
    }

    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// Wait for the process to end; how it did.
    pub fn end(&mut self) -> Result<ExitStatus> {
        wait_for(&format!("{} to end", self.0.id()), || self.has_ended())
    }

    pub fn id(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    /// Those that have not ended. A zombie has, whenever its parent gets round to it.
    pub fn processes(&self) -> Vec<Pid> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        numbers.map(Pid::from_raw).filter(|pid| self.has(*pid)).collect()
    }

    /// Whether this process is one of them.
    pub fn has(&self, pid: Pid) -> bool {
        stat(pid).is_some_and(|stat| !["Z", "X"].contains(&stat[0].as_str()) && stat[3] == self.0.id().to_string())
    }

    /// Those of them that this process has started.
    pub fn children(&self, parent: Pid) -> Vec<Pid> {
        self.processes().into_iter().filter(|pid| self.parent(*pid) == Some(parent)).collect()
    }

    /// The parent of a process, if that is one of them.
    pub fn parent(&self, pid: Pid) -> Option<Pid> {
        let parent = Pid::from_raw(stat(pid)?[1].parse().ok()?);
        self.has(parent).then_some(parent)
    }
}

/// State, parent, group, session and so on of a process; nothing if it has gone.
fn stat(pid: Pid) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, before them, may have spaces and parentheses.
    Some(stat[stat.rfind(')')? + 1..].split_whitespace().map(str::to_owned).collect())
}

impl Drop for Session {
    fn drop(&mut self) {
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            for pid in left {
                // Gone already is what is wanted.
                let _ = kill(pid, Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(1));
        }
        // It has ended, unless a file system holds it: then there is nobody left to report that to.
        let _ = self.0.try_wait();
    }
}
