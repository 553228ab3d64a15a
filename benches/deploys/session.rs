//! A process that was started here, in a session of its own, and all that it starts. None outlives the value.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};

/// How long a process may take to end.
const DEADLINE: Duration = Duration::from_secs(20);

pub struct Session(Child);

impl Session {
    pub fn start(command: &mut Command) -> Result<Session> {
        // Also when this program is interrupted, what it started is asked to stop.
        let alone = || {
            setsid()?;
            Ok(prctl::set_pdeathsig(Signal::SIGTERM)?)
        };
        // SAFETY: between fork and exec only setsid and prctl are called, which are system calls and no more.
        let command = unsafe { command.pre_exec(alone) };
        Ok(Session(command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?))
    }

    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// Wait for the process to end; how it did.
    pub fn end(&mut self) -> Result<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            if let Some(status) = self.has_ended()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(1));
        }
        bail!("waited in vain for {} to end", self.0.id())
    }

    /// Those that have not ended. A zombie has, whenever its parent gets round to it.
    fn processes(&self) -> Vec<Pid> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        numbers.map(Pid::from_raw).filter(|pid| self.has(*pid).unwrap_or(false)).collect()
    }

    /// Nothing if it has gone meanwhile.
    fn has(&self, pid: Pid) -> Option<bool> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may have spaces and parentheses. Behind it: state, parent, group, session.
        let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
        Some(!matches!(fields[0], "Z" | "X") && fields[3] == self.0.id().to_string())
    }
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
