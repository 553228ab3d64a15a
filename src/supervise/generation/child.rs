//! Start a generation: fork, a process group of its own, everything else as the supervisor found it, exec.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, Pid, chdir, pipe2, setpgid};

use crate::failure::Failure;
use crate::supervise::signals::Inherited;
use crate::sys;
use crate::target::Program;
use crate::target::exec::{Instance, become_target};
use crate::target::handout::Handout;

/// A started process, not yet waited for.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: Pid,
    /// Readable when the process has ended.
    pub(crate) pidfd: OwnedFd,
    /// What exec had to complain about; nothing after it succeeded.
    complaint: OwnedFd,
}

/// What a generation is started with.
pub(crate) struct Start<'a> {
    pub(crate) program: &'a Program,
    pub(crate) handout: Handout<'a>,
    pub(crate) signals: Inherited,
    /// The directory by the name that the caller knew it by, which may lead to another one by now.
    pub(crate) directory: Option<&'a PathBuf>,
    pub(crate) generation: u64,
    pub(crate) variables: Vec<CString>,
    /// Whether WATCHDOG_PID has to name the child, whose pid is known only after the fork.
    pub(crate) watchdog: Watchdog,
}

/// Does a service manager watch what we start?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watchdog {
    Watched,
    Unwatched,
}

impl Start<'_> {
    /// Fork and exec; `ready` is a pipe for `--ready fd:N`, and N.
    pub(crate) fn start(self, ready: Option<(&OwnedFd, RawFd)>) -> Result<Child> {
        let (complaint, complain) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).context("cannot make a pipe")?;
        // SAFETY: this program has one thread.
        match unsafe { sys::fork() }.context("cannot fork")? {
            ForkResult::Child => {
                let complain = clear_of(complain, ready);
                let failure = self.become_generation(ready);
                // A pipe takes a line at once; if not, the status still tells.
                let _ = File::from(complain).write_all(failure.message().as_bytes());
                sys::exit_at_once(failure.status())
            }
            ForkResult::Parent { child } => {
                // The child does the same; whoever comes first, it is done before anybody signals the group.
                let _ = setpgid(child, child);
                let pidfd = sys::pidfd_of_child(child).context("cannot open a pidfd")?;
                Ok(Child { pid: child, pidfd, complaint })
            }
        }
    }

    /// In the child: become the target, or say why not.
    fn become_generation(self, ready: Option<(&OwnedFd, RawFd)>) -> Failure {
        match self.prepare(ready) {
            Err(error) => error.into(),
            Ok(instance) => become_target(self.program, &self.handout, instance),
        }
    }

    fn prepare(&self, ready: Option<(&OwnedFd, RawFd)>) -> Result<Instance> {
        let own_group = Pid::from_raw(0);
        setpgid(own_group, own_group).context("cannot make a process group")?;
        self.signals.restore().context("cannot restore the signals")?;
        if let Some(directory) = self.directory {
            // Where the name leads nowhere any more, the directory itself is still ours.
            let _ = chdir(directory);
        }
        if let Some((pipe, number)) = ready {
            sys::place_in_child(pipe, number).context("cannot place the readiness descriptor")?;
        }
        let mut variables = self.variables.clone();
        if self.watchdog == Watchdog::Watched {
            variables.push(CString::new(format!("WATCHDOG_PID={}", Pid::this()))?);
        }
        Ok(Instance { generation: self.generation, variables })
    }
}

/// The number that `--ready fd:N` is about to fill must not be the one that complaints go to.
fn clear_of(complain: OwnedFd, ready: Option<(&OwnedFd, RawFd)>) -> OwnedFd {
    match ready {
        Some((_, number)) if number == complain.as_raw_fd() => {
            sys::duplicate_from(&complain, number + 1).unwrap_or(complain)
        }
        _ => complain,
    }
}

impl Child {
    /// A child that a predecessor of this supervisor started.
    pub(crate) fn resumed(pid: Pid, pidfd: OwnedFd, complaint: OwnedFd) -> Child {
        Child { pid, pidfd, complaint }
    }

    /// Why exec failed, if it did; to be asked when the process has ended.
    pub(crate) fn complaint(&self) -> Option<String> {
        let mut text = String::new();
        let copy = self.complaint.try_clone().ok()?;
        // A descendant cannot hold the other end, which is close-on-exec: this ends.
        let _ = File::from(copy).read_to_string(&mut text);
        Some(text).filter(|text| !text.is_empty())
    }

    /// For the next supervisor.
    pub(crate) fn complaint_fd(&self) -> &OwnedFd {
        &self.complaint
    }
}
