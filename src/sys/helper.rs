//! A small program that runs beside us: getent(1) for a name, sh(1) for a check, a new supervisor that is probed.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, getpgid, pipe2};

use super::process::{Ending, await_end_of, see_end_of};
use crate::failure::ExitStatus;
use crate::sys;

/// A running helper. It is killed when dropped, and with it what it started in a group of its own.
#[derive(Debug)]
pub(crate) struct Helper {
    pid: Pid,
    ended: Option<Ending>,
}

impl Helper {
    /// Fork; the child does `become_program`, and where that returns, exits with the shell's status for the error.
    pub(crate) fn fork(become_program: impl FnOnce() -> nix::Result<Infallible>) -> nix::Result<Helper> {
        let parent = Pid::this();
        // SAFETY: this program has one thread.
        match unsafe { sys::fork() }? {
            ForkResult::Parent { child } => Ok(Helper { pid: child, ended: None }),
            ForkResult::Child => match end_with(parent).and_then(|()| become_program()) {
                Err(Errno::ENOENT) => sys::exit_at_once(ExitStatus::NotFound as u8),
                _ => sys::exit_at_once(ExitStatus::CannotExecute as u8),
            },
        }
    }

    /// Start `words[0]`, looked for in PATH, with `environment`, and with an empty stdin; `prepare` is called in
    /// the child before.
    pub(crate) fn start(
        words: &[CString],
        environment: &[impl AsRef<CStr>],
        prepare: impl FnOnce() -> nix::Result<()>,
    ) -> nix::Result<Helper> {
        Helper::fork(|| {
            prepare()?;
            let nothing = open(c"/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
            // SAFETY: the child is about to exec.
            unsafe { sys::place(&nothing, 0)? };
            Err(sys::execute(words, environment))
        })
    }

    /// Its process, which only its owner may wait for.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, if it has. It is reaped then.
    pub(crate) fn ending(&mut self) -> Option<Ending> {
        if self.ended.is_none() {
            self.ended = see_end_of(self.pid);
            if self.ended.is_some() {
                let _ = waitpid(self.pid, Some(WaitPidFlag::WNOHANG));
            }
        }
        self.ended
    }

    /// Wait for its end.
    fn wait(mut self) -> Ending {
        let ended = await_end_of(self.pid);
        let _ = waitpid(self.pid, Some(WaitPidFlag::WNOHANG));
        self.ended = Some(ended);
        ended
    }
}

/// In the child: end when the parent is killed, which then cannot kill us.
fn end_with(parent: Pid) -> nix::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    // It may have been killed before.
    if Pid::parent() == parent { Ok(()) } else { Err(Errno::ESRCH) }
}

impl Drop for Helper {
    /// Never waits: a helper that a debugger holds cannot end yet. It is then reaped with the orphans.
    fn drop(&mut self) {
        if self.ended.is_some() {
            return;
        }
        // It was not waited for, so that the number is still its own.
        if getpgid(Some(self.pid)) == Ok(self.pid) {
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, Some(WaitPidFlag::WNOHANG));
    }
}

/// Run `words` to the end and return what it wrote to stdout.
///
/// # Errors
/// ENOENT where it could not be run.
pub(crate) fn output(words: &[CString]) -> io::Result<Vec<u8>> {
    let (ours, its) = pipe2(OFlag::O_CLOEXEC)?;
    let helper = Helper::start(words, &sys::environment(), || {
        let quiet = open(c"/dev/null", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        // SAFETY: the child is about to exec.
        unsafe { sys::place(&its, 1)? };
        // SAFETY: as above.
        unsafe { sys::place(&quiet, 2) }
    })?;
    drop(its);
    let mut answer = Vec::new();
    let read = File::from(ours).read_to_end(&mut answer);
    match helper.wait() {
        Ending::Exited(126 | 127) => Err(Errno::ENOENT.into()),
        _ => read.map(|_| answer),
    }
}
