//! Start a generation: fork, a process group of its own, everything else as the supervisor found it, exec.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result};
use libc::sock_filter;
use log::info;
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{ForkResult, Pid, chdir, pipe2, setpgid};

use crate::failure::Failure;
use crate::kernel::cgroup::Cgroup;
use crate::manager::Watchdog;
use crate::supervise::plan::Id;
use crate::supervise::signals::Dispositions;
use crate::sys;
use crate::target::Program;
use crate::target::exec::{self, Instance};
use crate::target::handout::Handout;

/// A process that was forked and not yet waited for.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: Pid,
    /// Readable when the process has ended.
    pub(crate) pidfd: OwnedFd,
    /// Carries the exec error; empty if exec succeeded.
    pub(crate) exec_error: OwnedFd,
    /// Carries the notifier, if its bind(2)s are reported.
    pub(crate) notifier_channel: Option<OwnedFd>,
}

/// What a generation is started with.
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Program,
    pub(crate) handout: Handout<'a>,
    pub(crate) dispositions: Dispositions,
    /// The directory by its logical name, which may lead to another one by now.
    pub(crate) directory: Option<&'a Path>,
    pub(crate) generation: Id,
    /// Where it is to be before it becomes the program.
    pub(crate) cgroup: Option<&'a Cgroup>,
    pub(crate) variables: Vec<CString>,
    /// What is reported of its system calls.
    pub(crate) filter: Option<Vec<sock_filter>>,
    /// Whether WATCHDOG_PID has to name the child, whose pid is known only after the fork.
    pub(crate) watchdog: Watchdog,
}

/// The pipe of `--ready fd:N`, and N.
pub(crate) type ReadyPipe<'a> = (BorrowedFd<'a>, RawFd);

impl Launch<'_> {
    /// Fork and exec.
    pub(crate) fn start(self, ready: Option<ReadyPipe>) -> Result<Started> {
        let (exec_error, its) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).context("cannot make a pipe")?;
        let channel = self.filter.is_some().then(notifier_channel).transpose()?;
        let (notifier_channel, its_channel) = channel.unzip();
        // SAFETY: this program has one thread.
        match unsafe { sys::fork() }.context("cannot fork")? {
            ForkResult::Child => {
                let its = clear_of(its, ready);
                let its_channel = its_channel.map(|channel| clear_of(channel, ready));
                let failure = self.become_generation(ready, its_channel.as_ref());
                // A pipe takes a line at once; if not, the status is still seen.
                let _ = File::from(its).write_all(failure.message().as_bytes());
                sys::exit_at_once(failure.status())
            }
            ForkResult::Parent { child } => {
                // The child does the same; whichever comes first, it is done before the group is signalled.
                let _ = setpgid(child, child);
                let pidfd = sys::pidfd_of_child(child).context("cannot open a pidfd")?;
                Ok(Started { pid: child, pidfd, exec_error, notifier_channel })
            }
        }
    }

    /// In the child: become the target, or return why not.
    fn become_generation(self, ready: Option<ReadyPipe>, channel: Option<&OwnedFd>) -> Failure {
        match self.enter(ready) {
            Err(error) => error.into(),
            Ok(instance) => exec::become_generation(self.program, &self.handout, instance, || self.intercept(channel)),
        }
    }

    fn enter(&self, ready: Option<ReadyPipe>) -> Result<Instance> {
        let own_group = Pid::from_raw(0);
        setpgid(own_group, own_group).context("cannot make a process group")?;
        self.enter_cgroup();
        self.dispositions.restore().context("cannot restore the signals")?;
        if let Some(directory) = self.directory {
            // If the name is gone, the child stays in the inherited directory.
            let _ = chdir(directory);
        }
        if let Some((pipe, number)) = ready {
            // SAFETY: the child is about to exec.
            unsafe { sys::place(pipe, number) }.context("cannot place the readiness descriptor")?;
        }
        let mut variables = self.variables.clone();
        if self.watchdog == Watchdog::Watched {
            variables.push(CString::new(format!("WATCHDOG_PID={}", Pid::this()))?);
        }
        Ok(Instance { generation: self.generation, variables })
    }

    /// By ourselves and after fork, for CLONE_INTO_CGROUP needs clone3(2), which filters refuse as a rule. What is started from
    /// now on is in it. If it cannot be entered, the generation is as one without.
    fn enter_cgroup(&self) {
        if let Some(Err(error)) = self.cgroup.map(Cgroup::enter) {
            info!("generation {}: cannot enter its cgroup: {error}", self.generation);
        }
    }

    /// Have the bind(2)s of this process reported from now on.
    fn intercept(&self, channel: Option<&OwnedFd>) -> Result<()> {
        if let (Some(filter), Some(channel)) = (&self.filter, channel) {
            let notifier = sys::filter_calls(filter).context("cannot intercept bind(2)")?;
            sys::send_descriptor(channel, notifier).context("cannot pass on what reports bind(2)")?;
        }
        Ok(())
    }
}

/// Both ends of what carries a notifier: ours, and the child's.
fn notifier_channel() -> Result<(OwnedFd, OwnedFd)> {
    let (kind, flags) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK);
    socketpair(AddressFamily::Unix, kind, None, flags).context("cannot make a pair of sockets")
}

/// The number that `--ready fd:N` is about to fill must not be the one that exec's error, or the notifier, goes to.
fn clear_of(its: OwnedFd, ready: Option<ReadyPipe>) -> OwnedFd {
    match ready {
        Some((_, number)) if number == its.as_raw_fd() => sys::duplicate_from(&its, number + 1).unwrap_or(its),
        _ => its,
    }
}

/// Why exec failed, if it did; to be read when the process has ended.
pub(crate) fn read_exec_error(pipe: impl AsFd) -> Option<String> {
    let mut text = String::new();
    let copy = pipe.as_fd().try_clone_to_owned().ok()?;
    // A descendant cannot hold the other end, which is close-on-exec: this ends.
    let _ = File::from(copy).read_to_string(&mut text);
    Some(text).filter(|text| !text.is_empty())
}
