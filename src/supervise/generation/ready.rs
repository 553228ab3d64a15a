//! When a generation is ready. The one place that knows the ways to tell.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use log::{debug, warn};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2, read, setpgid};

use crate::config::Ready;
use crate::kernel::accepting::observe;
use crate::kernel::connections::serve;
use crate::kernel::descriptors::SocketInode;
use crate::socket::listener::Listener;
use crate::supervise::plan::Moment;
use crate::supervise::signals::Inherited;
use crate::supervise::upgrade::state::SavedWatch;
use crate::sys::{self, helper};
use crate::target::environ;

/// The first look comes after this, each further one after half as much again, up to the last.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LAST_LOOK: Duration = Duration::from_millis(200);
/// A check command is run this often.
const CHECK_PAUSE: Duration = Duration::from_millis(200);
/// So many looks in a row have to be barred before it is believed: exec and setuid bar one for a moment.
const BARRED_LOOKS: u32 = 20;

/// Watches one generation get ready.
#[derive(Debug)]
pub(crate) struct Watch {
    how: Ready,
    sockets: Vec<SocketInode>,
    /// The generation's main process, once there is one.
    pid: Option<Pid>,
    /// What a check command is run with.
    signals: Inherited,
    begun: Moment,
    /// When to look again.
    next: Moment,
    pause: Duration,
    /// READY=1 came, or what counts as that.
    told: bool,
    /// So many looks in a row could not see everything.
    barred: u32,
    /// Both ends of the pipe for `fd:N`; ours alone once the child has its own.
    pipe: Option<(OwnedFd, Option<OwnedFd>)>,
    check: Option<Check>,
}

/// A running check command, ended with the watch.
#[derive(Debug)]
struct Check(Pid);

/// Is `listener` this socket, and does one of `members` hold a connection from it?
fn is_served(members: &[Pid], socket: SocketInode, listener: &Listener) -> bool {
    // Where the kernel does not tell, it is not known to be.
    SocketInode::of(listener) == Ok(socket) && serve(members, listener).unwrap_or(false)
}

impl Drop for Check {
    fn drop(&mut self) {
        // It was not waited for, so the number is still its own.
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = killpg(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

impl Watch {
    /// Begin to watch a generation that is about to be started.
    pub(crate) fn begin(how: &Ready, sockets: &[SocketInode], signals: Inherited, now: Moment) -> Result<Watch> {
        let pipe = match how {
            Ready::Descriptor(_) => {
                let (ours, its) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe for --ready")?;
                Some((ours, Some(its)))
            }
            _ => None,
        };
        Ok(Watch { pipe, ..Watch::of(how, sockets, signals, now) })
    }

    fn of(how: &Ready, sockets: &[SocketInode], signals: Inherited, begun: Moment) -> Watch {
        let first = match how {
            Ready::After(time) => *time,
            _ => FIRST_LOOK,
        };
        Watch {
            how: how.clone(),
            sockets: sockets.to_vec(),
            pid: None,
            signals,
            begun,
            next: begun + first,
            pause: FIRST_LOOK,
            told: false,
            barred: 0,
            pipe: None,
            check: None,
        }
    }

    /// The end of the pipe that the generation gets, with its number there.
    pub(crate) fn pipe_for_child(&self) -> Option<(&OwnedFd, i32)> {
        match (&self.how, &self.pipe) {
            (Ready::Descriptor(number), Some((_, Some(its)))) => Some((its, *number)),
            _ => None,
        }
    }

    /// The generation is started as `pid`: its end of the pipe is its own business.
    pub(crate) fn started(&mut self, pid: Pid) {
        self.pid = Some(pid);
        if let Some((_, its)) = &mut self.pipe {
            its.take();
        }
    }

    /// What to poll for.
    pub(crate) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(|(ours, _)| ours.as_fd())
    }

    /// The pipe can be read: is the generation ready?
    pub(crate) fn read_pipe(&mut self) -> bool {
        let Some((ours, _)) = &self.pipe else { return false };
        let written = read(ours, &mut [0; 64]).is_ok_and(|length| length > 0);
        // One byte is enough, and after an end there is nothing to wait for.
        self.pipe = None;
        written
    }

    /// READY=1 came: to be looked at once more, now.
    pub(crate) fn tell(&mut self, now: Moment) {
        self.told = true;
        if matches!(self.how, Ready::Auto | Ready::Notify) {
            self.next = now;
        }
    }

    /// When to look again; never, if something else tells.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        (!matches!(self.how, Ready::Descriptor(_))).then_some(self.next)
    }

    /// Look, if it is time: is the generation ready? `members` are its living processes.
    pub(crate) fn look(&mut self, members: impl FnOnce() -> Vec<Pid>, listeners: &[Listener], now: Moment) -> bool {
        if now < self.next {
            return false;
        }
        match &self.how {
            Ready::After(_) => true,
            Ready::Descriptor(_) => false,
            Ready::Check(command) => {
                let command = command.clone();
                self.next = now + CHECK_PAUSE;
                self.check_passed(&command)
            }
            Ready::Notify if !self.told => {
                self.back_off(now);
                false
            }
            Ready::Auto | Ready::Notify | Ready::Accepting => {
                self.back_off(now);
                self.accepts(&members(), listeners)
            }
        }
    }

    fn back_off(&mut self, now: Moment) {
        self.pause = (self.pause * 3 / 2).min(LAST_LOOK);
        self.next = now + self.pause;
    }

    /// Is somebody seen waiting on each socket? Where that cannot be seen, READY=1 has to do.
    fn accepts(&mut self, members: &[Pid], listeners: &[Listener]) -> bool {
        let mut seen = observe(members, &self.sockets);
        // One that is busy all the time may never be met waiting; but then it holds those whom it serves.
        seen.missing.retain(|socket| !listeners.iter().any(|listener| is_served(members, *socket, listener)));
        if seen.missing.is_empty() {
            debug!("seen to accept: {:?}", seen.evidence);
            return true;
        }
        let Some(obstacle) = seen.obstacle else {
            self.barred = 0;
            return false;
        };
        self.barred += 1;
        if self.told && self.how != Ready::Accepting {
            return self.barred > 1;
        }
        if self.barred == BARRED_LOOKS {
            warn!("{obstacle}, so whether it accepts cannot be seen; unless it says READY=1, tell by --ready");
        }
        false
    }

    /// Run the check, or see how it ended.
    fn check_passed(&mut self, command: &str) -> bool {
        let Some(check) = &self.check else {
            match self.start_check(command) {
                Ok(pid) => self.check = Some(Check(pid)),
                Err(error) => warn!("cannot run the check: {error}"),
            }
            return false;
        };
        match waitpid(check.0, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => false,
            ended => {
                let check = self.check.take();
                // It is reaped: nobody is to be killed.
                std::mem::forget(check);
                matches!(ended, Ok(WaitStatus::Exited(_, 0)))
            }
        }
    }

    fn start_check(&self, command: &str) -> Result<Pid> {
        let words = ["sh", "-c", command].map(CString::new).into_iter().collect::<Result<Vec<_>, _>>()?;
        let pid = self.pid.map(|pid| pid.to_string()).unwrap_or_default();
        let environment = environ::with(&sys::environment(), CString::new(format!("MAINPID={pid}"))?);
        Ok(helper::start(&words, &environment, || {
            // A group of its own, so that what the command started ends with it.
            setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            self.signals.restore()
        })?)
    }

    /// The process of a check, which nobody else is to wait for.
    pub(crate) fn check_pid(&self) -> Option<Pid> {
        self.check.as_ref().map(|check| check.0)
    }

    /// Why it is not ready, for the message at the timeout.
    pub(crate) fn is_barred(&self) -> bool {
        self.barred >= BARRED_LOOKS
    }

    /// What the next supervisor must know to go on watching.
    pub(crate) fn save(&self) -> SavedWatch {
        let pipe = self.pipe.as_ref().map(|(ours, _)| ours.as_raw_fd());
        SavedWatch { begun: self.begun, told: self.told, pipe }
    }

    /// Go on where a predecessor stopped.
    pub(crate) fn resume(
        how: &Ready,
        sockets: &[SocketInode],
        signals: Inherited,
        pid: Pid,
        saved: SavedWatch,
        pipe: Option<OwnedFd>,
    ) -> Watch {
        let mut watch = Watch::of(how, sockets, signals, saved.begun);
        watch.pid = Some(pid);
        watch.told = saved.told;
        watch.pipe = pipe.map(|ours| (ours, None));
        watch
    }
}
