//! One run of the command of `--ready check:COMMAND`. What it writes goes to the log, labelled, line by line.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use anyhow::Result;
use log::info;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, pipe2, read, setpgid};

use crate::supervise::signals::Dispositions;
use crate::sys::{self, Ending, Helper};
use crate::target::environ;

/// A line that is longer is logged in pieces.
const LONGEST_LINE: usize = 1000;

/// At most this often its output is read before the others are handled: one that never ceases to write then waits.
const READS_AT_ONCE: usize = 4;

/// A running check; it ends with the value, and so does what it started.
#[derive(Debug)]
pub(crate) struct Check {
    helper: Helper,
    /// What it writes to stdout and stderr.
    output: OwnedFd,
    /// The line that has not ended yet.
    line: Vec<u8>,
}

impl Check {
    /// Run the command by the shell, for the generation whose main process is `main`, with further `variables`.
    pub(crate) fn start(command: &str, main: Pid, variables: &[String], dispositions: Dispositions) -> Result<Check> {
        let words = ["sh", "-c", command].map(CString::new).into_iter().collect::<Result<Vec<_>, _>>()?;
        let variables = variables.iter().cloned().chain([format!("MAINPID={main}")]).map(CString::new);
        let environment = environ::with(&sys::environment(), variables.collect::<Result<_, _>>()?);
        let (output, its) = pipe2(OFlag::O_CLOEXEC)?;
        // Only ours: the two ends of a pipe have flags of their own.
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let helper = Helper::start(&words, &environment, || {
            // A group of its own, so that what the command started ends with it.
            setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            // SAFETY: the child is about to exec.
            unsafe { sys::place(&its, 1)? };
            // SAFETY: as above.
            unsafe { sys::place(&its, 2)? };
            dispositions.restore()
        })?;
        Ok(Check { helper, output, line: Vec::new() })
    }

    /// Log what it wrote, and see how it ended, if it has.
    pub(crate) fn ending(&mut self) -> Option<Ending> {
        if sys::see_end_of(self.pid()).is_some() {
            // What it started and left behind ends with it; it is not reaped yet, so the group's number is its own.
            let _ = killpg(self.pid(), Signal::SIGKILL);
        }
        let ending = self.helper.ending();
        self.log_output();
        ending
    }

    /// Its process, which only the check may wait for.
    pub(crate) fn pid(&self) -> Pid {
        self.helper.pid()
    }

    fn log_output(&mut self) {
        let mut buffer = [0; 4096];
        for _ in 0..READS_AT_ONCE {
            let Ok(length @ 1..) = read(&self.output, &mut buffer) else { break };
            for byte in &buffer[..length] {
                match byte {
                    b'\n' => self.log_line(),
                    byte => self.line.push(*byte),
                }
                if self.line.len() >= LONGEST_LINE {
                    self.log_line();
                }
            }
        }
    }

    fn log_line(&mut self) {
        info!("check: {}", String::from_utf8_lossy(&self.line));
        self.line.clear();
    }
}

impl Drop for Check {
    /// The last line may have no end.
    fn drop(&mut self) {
        self.log_output();
        if !self.line.is_empty() {
            self.log_line();
        }
    }
}
