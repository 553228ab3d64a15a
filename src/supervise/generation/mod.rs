//! One generation of the server: its processes, from the fork to the last of them.

pub(crate) mod check;
pub(crate) mod child;
mod confined;
pub(crate) mod descriptors;
mod ending;
mod handover;
mod http;
mod notifier;
pub(crate) mod notify_socket;
pub(crate) mod ready;
mod save;

use std::ffi::CString;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpgid, pipe2, read};

use crate::config::Ready;
use crate::kernel::accepting::observe;
use crate::kernel::cgroup::Cgroup;
use crate::kernel::connections::{held_by, open_connections};
use crate::kernel::descriptors::{ForeignFd, SocketInode, sockets};
use crate::kernel::members::Members;
use crate::kernel::processes::{are_visible, is_stopped};
use crate::missing::Facility;
use crate::supervise::diagnosis::Findings;
use crate::supervise::plan;
use crate::supervise::signals::Dispositions;
use crate::supervise::sockets::{Reach, Share, Sockets};
use crate::sys::{self, Ending, Timestamp};
use check::Check;
use child::{Launch, read_exec_error};
use descriptors::{Descriptors, Role};
use handover::Handover;
use notify_socket::{Notification, NotifyFile};
use ready::Watch;
pub(crate) use save::SavedGeneration;

/// One that is not ready after this time, and then as often, may listen elsewhere.
pub(crate) const HINT_INTERVAL: Duration = Duration::from_secs(3);
/// A generation that ends within this time after the stop signal did not drain what it still had.
const AT_ONCE: Duration = Duration::from_secs(1);

/// One that was not seen to serve so often does not.
const MOST_UNSEEN: u32 = 10;

/// A generation that has been started and of which something may be left.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) id: plan::Id,
    /// Its main process.
    pub(crate) pid: Pid,
    /// It is no child of ours: only its pidfd shows its end, and it is never signalled by a group's number.
    pub(crate) is_foreign: bool,
    /// A supervisor, which has generations of its own.
    pub(crate) is_supervisor: bool,
    /// Which sockets it serves on.
    pub(crate) share: Share,
    descriptors: Descriptors,
    /// Goes with the generation.
    _notify_file: Option<NotifyFile>,
    /// While it gets ready.
    pub(crate) watch: Option<Watch>,
    pub(crate) members: Members,
    /// Its own, where one is delegated to the supervisor.
    cgroup: Option<Cgroup>,
    pub(crate) started: Timestamp,
    /// At how many looks in a row it was not seen to serve.
    unseen: u32,
    /// All its processes are to be killed.
    pub(crate) killed: bool,
    /// Those of them that may not be.
    unkillable: Vec<Pid>,
    /// How its main process ended; it stays unreaped until nothing is left, so that its group keeps its number.
    pub(crate) ended: Option<Ending>,
    /// Why its last bind(2) was refused, and what helps; none once one has succeeded.
    pub(crate) refusal: Option<Findings>,
    /// The sockets that it was given: at its start, or in the place of its own.
    pub(crate) given: Vec<SocketInode>,
    /// The thread, and the number, of a bind(2) that was done and could not be answered, since a signal had interrupted it.
    pub(crate) unanswered: Option<(Pid, ForeignFd)>,
    /// To read what it gives to bind(2) took too long once.
    pub(crate) is_slow: bool,
    /// When it is looked at for a listener elsewhere, while it is not ready; never again once that was reported.
    pub(crate) next_hint: Option<Timestamp>,
    /// Some other process sent to its notify socket.
    pub(crate) stranger_reported: bool,
    /// What its main process was last seen stopped by.
    stopped: Option<Signal>,
    /// When it was, and with how many connections.
    pub(crate) asked_to_stop: Option<(Timestamp, usize)>,
    /// The clients whose connections to it were being made when it was relieved.
    pub(crate) handshakes: Vec<SocketAddr>,
    /// Those are to be listed now.
    pub(crate) is_just_relieved: bool,
    /// With `idle`, those of all connections that there were then, or were being made, if the kernel listed them.
    present: Option<Vec<SocketAddr>>,
    handover: Option<Handover>,
    /// How many connections it had when it was last seen to have its sockets.
    pub(crate) last_held: Option<usize>,
    /// The check at the end of a stage of its trial.
    pub(crate) trial_check: Option<Check>,
    /// How the last one ended.
    pub(crate) last_check: Option<Ending>,
}

impl Generation {
    /// Start one that serves on `share`, and watch it get ready.
    pub(crate) fn start(
        mut launch: Launch,
        share: Share,
        how: &Ready,
        reach: Reach,
        now: Timestamp,
    ) -> Result<Generation> {
        let mut descriptors = Descriptors::default();
        let notify = notify_socket::open(&notify_socket::folders(&sys::environment()))?;
        let notify_file = NotifyFile::of(&notify);
        launch.variables.push(CString::new(notify_socket::variable(&notify)?)?);
        descriptors.add(Role::Notify, notify);
        let its = match how {
            Ready::Descriptor(number) => {
                let (ours, its) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe for --ready")?;
                descriptors.add(Role::Ready, ours);
                Some((its, *number))
            }
            _ => None,
        };
        let (id, dispositions) = (launch.generation, launch.dispositions);
        let started = launch.start(its.as_ref().map(|(pipe, number)| (pipe.as_fd(), *number)))?;
        descriptors.add(Role::Pidfd, started.pidfd);
        descriptors.add(Role::ExecError, started.exec_error);
        if let Some(channel) = started.notifier_channel {
            descriptors.add(Role::NotifierChannel, channel);
        }
        let members = Members::of(started.pid);
        Ok(Generation {
            _notify_file: notify_file,
            watch: Some(Watch::begin(how, started.pid, dispositions, reach, now)),
            next_hint: Some(now + HINT_INTERVAL),
            ..Generation::new(id, started.pid, share, descriptors, members, now)
        })
    }

    /// A process that is no child of ours, and what it started.
    pub(crate) fn foreign(id: plan::Id, pid: Pid, pidfd: OwnedFd, share: Share, started: Timestamp) -> Generation {
        let mut descriptors = Descriptors::default();
        descriptors.add(Role::Pidfd, pidfd);
        let members = Members::foreign(pid);
        Generation { is_foreign: true, ..Generation::new(id, pid, share, descriptors, members, started) }
    }

    /// Watch it get ready, which it was not when this was called.
    pub(crate) fn expect(&mut self, how: &Ready, dispositions: Dispositions, reach: Reach, now: Timestamp) {
        self.watch = Some(Watch::begin(how, self.pid, dispositions, reach, now));
        self.next_hint = Some(now + HINT_INTERVAL);
    }

    /// One more descriptor of it.
    pub(crate) fn add(&mut self, role: Role, fd: OwnedFd) {
        if role == Role::Notify {
            self._notify_file = NotifyFile::of(&fd);
        }
        self.descriptors.add(role, fd);
    }

    /// One of which nothing was seen yet.
    fn new(
        id: plan::Id,
        pid: Pid,
        share: Share,
        descriptors: Descriptors,
        members: Members,
        started: Timestamp,
    ) -> Generation {
        Generation {
            id,
            pid,
            is_foreign: false,
            is_supervisor: false,
            unseen: 0,
            share,
            descriptors,
            _notify_file: None,
            watch: None,
            members,
            cgroup: None,
            started,
            killed: false,
            unkillable: vec![],
            ended: None,
            refusal: None,
            given: vec![],
            unanswered: None,
            is_slow: false,
            next_hint: None,
            stranger_reported: false,
            stopped: None,
            asked_to_stop: None,
            handshakes: vec![],
            is_just_relieved: false,
            present: None,
            handover: None,
            last_held: None,
            trial_check: None,
            last_check: None,
        }
    }

    /// The name of its main process, where /proc shows it.
    pub(crate) fn name(&self) -> Option<String> {
        Some(fs::read_to_string(format!("/proc/{}/comm", self.pid)).ok()?.trim_end().to_owned())
    }

    /// What the supervisor that takes the place of this one needs open.
    pub(crate) fn handed_on(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.descriptors.iter().map(|(_, fd)| fd)
    }

    /// What to wait for: the end of the main process until it was seen, and what it sends.
    pub(crate) fn polled(&self) -> impl Iterator<Item = (Role, BorrowedFd<'_>)> {
        self.descriptors.iter().filter(|(role, _)| match role {
            Role::Pidfd => self.ended.is_none(),
            Role::Notify | Role::Ready | Role::NotifierChannel | Role::Notifier => true,
            Role::ExecError | Role::Cgroup | Role::Lender | Role::Probe | Role::Other => false,
        })
    }

    /// How the main process ended, if it just did. It is not reaped.
    pub(crate) fn see_end(&mut self) -> Option<Ending> {
        if self.ended.is_some() {
            return None;
        }
        self.ended = match self.is_foreign {
            true => self.descriptors.get(Role::Pidfd).is_none_or(sys::is_readable).then_some(Ending::Unknown),
            false => sys::see_end_of(self.pid),
        };
        if self.ended.is_some() {
            self.members.end_main();
            self.watch = None;
        }
        self.ended
    }

    /// Does any of its processes serve, though its main process has ended? One that has a socket and was not seen to wait for
    /// clients, or to have one, at so many looks in a row is taken not to.
    pub(crate) fn serves_on(&mut self, all: &Sockets) -> bool {
        let members = self.members.alive();
        let has_one = |process: &Pid| sockets(*process).any(|inode| self.given.contains(&inode));
        if !members.iter().any(has_one) {
            return false;
        }
        let seen = observe(&members, &self.given);
        let is_seen =
            !seen.evidence.is_empty() || seen.obstacle.is_some() || self.connections(all).is_none_or(|held| held > 0);
        self.unseen = if is_seen { 0 } else { self.unseen + 1 };
        self.unseen < MOST_UNSEEN
    }

    /// Did it end by the signal that asked it to stop, at once and with connections? How long after, and with how many.
    pub(crate) fn died_of(&self, signal: Signal, ending: Ending, now: Timestamp) -> Option<(Duration, usize)> {
        let (asked, held) = self.asked_to_stop?;
        let after = now.saturating_sub(asked);
        // The JVM, and shells, end with that status themselves.
        let by_signal = ending.status() == 128 + signal as u8;
        (by_signal && held > 0 && after < AT_ONCE).then_some((after, held))
    }

    /// What stopped its main process, which serves nobody until SIGCONT.
    pub(crate) fn stopped_by(&self) -> Option<Signal> {
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match self.ended.is_none().then(|| waitid(Id::Pid(self.pid), flags)) {
            Some(Ok(WaitStatus::Stopped(_, signal))) => Some(signal),
            _ => None,
        }
    }

    /// Is its main process stopped, whoever's child it is?
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped_by().is_some() || self.is_foreign && is_stopped(self.pid)
    }

    /// The same, if that has changed since this was last asked.
    pub(crate) fn see_stop(&mut self) -> Option<Option<Signal>> {
        let now = self.stopped_by();
        (std::mem::replace(&mut self.stopped, now) != now).then_some(now)
    }

    /// Why exec failed, if it did; to be read when the main process has ended.
    pub(crate) fn exec_error(&self) -> Option<String> {
        self.descriptors.get(Role::ExecError).and_then(read_exec_error)
    }

    /// The next notification it sent, if there is one.
    pub(crate) fn next_notification(&self) -> Option<Notification> {
        self.descriptors.get(Role::Notify).and_then(notify_socket::receive)
    }

    /// The pipe of `--ready fd:N` can be read: was anything written? Then, or at its end, it is closed.
    pub(crate) fn read_ready(&mut self) -> bool {
        let Some(pipe) = self.descriptors.get(Role::Ready) else { return false };
        // This end's description is ours alone.
        let _ = fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        let read = read(pipe, &mut [0; 64]);
        if read == Err(Errno::EAGAIN) {
            return false;
        }
        self.descriptors.close(Role::Ready);
        read.is_ok_and(|length| length > 0)
    }

    /// The open connections that it holds of those that came in by its sockets, if the kernel can be asked.
    pub(crate) fn connections(&self, sockets: &Sockets) -> Option<usize> {
        are_visible().ok()?;
        let open = open_connections(&sockets.set(self.share).listeners);
        let open = open.inspect_err(|errno| Facility::Connections.report_missing(errno)).ok()?;
        Some(held_by(&self.members.alive(), &open))
    }

    /// How long ago it was started.
    pub(crate) fn age(&self, now: Timestamp) -> Duration {
        now.saturating_sub(self.started)
    }

    /// Is `pid` one of its processes, and not merely a number that was one's?
    pub(crate) fn has_member(&self, pid: Pid) -> bool {
        // The kernel reports the group even of a process that is too new to be known, or that /proc hides.
        let in_group = !self.is_foreign && getpgid(Some(pid)) == Ok(self.pid);
        in_group || self.members.alive().contains(&pid) && kill(pid, None) != Err(Errno::ESRCH)
    }

    /// A process that left group and parent is still known by its environment: the name of the notify socket is
    /// unique to its generation.
    pub(crate) fn marks(&self, environment: &[u8]) -> bool {
        let variable = self.descriptors.get(Role::Notify).and_then(|socket| notify_socket::variable(socket).ok());
        variable.is_some_and(|variable| environment.split(|byte| *byte == 0).any(|entry| entry == variable))
    }
}
