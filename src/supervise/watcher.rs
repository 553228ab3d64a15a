//! Without a supervisor: a program becomes the successor of a process, and one of its own, the watcher, leads over what is
//! new, tells the old process to stop when the new one has settled, and is gone when that is over.
//!
//! The watcher is no child of the program, has a session of its own and nothing open but stderr, and what it watches is as
//! a generation to a supervisor. If the program fails, the old process was never told anything.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, ensure};
use log::{error, warn};
use nix::fcntl::{FdFlag, OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, pipe2, setsid};

use crate::config::{Ready, Restart, Supervise};
use crate::failure::Failure;
use crate::kernel::descriptors::{SocketInode, are_open_to_us, sockets};
use crate::kernel::holders::{Holder, holders_of, is_spared, name_of};
use crate::kernel::processes::{Process, Processes};
use crate::logging;
use crate::manager::Manager;
use crate::socket::listener::Listener;
use crate::socket::stored::Stored;
use crate::socket::takeover::{Claim, Predecessor, is_supervisor_name};
use crate::supervise::control::server::Clients;
use crate::supervise::generation::descriptors::Role;
use crate::supervise::generation::{Generation, notify_socket};
use crate::supervise::generations::Generations;
use crate::supervise::plan::{Id, PREDECESSOR, Plan};
use crate::supervise::report::Reporter;
use crate::supervise::signals::Signals;
use crate::supervise::sockets::{Share, Sockets};
use crate::supervise::terminal::Terminal;
use crate::supervise::upgrade::Upgrade;
use crate::supervise::{Duty, Supervisor, lowest, prepare_sockets, ready_fd_is_taken};
use crate::sys::{self, Timestamp};
use crate::target::Begin;
use crate::target::exec;

/// The program that succeeds, as a generation.
const SUCCESSOR: Id = 1;

/// How often it is seen whether a program that has settled still has its sockets.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Looks take at most this part of the processor's time.
const COST_RATIO: u32 = 50;

/// That program.
#[derive(Debug)]
pub(super) struct Settled {
    pid: Pid,
    pub(super) pidfd: OwnedFd,
    pub(super) next_look: Timestamp,
    /// The last look showed that nobody has them.
    was_closed: bool,
}

/// What both sides have before they part.
struct Handover {
    config: Supervise,
    sockets: Sockets,
    /// What the program is given.
    share: Share,
    predecessor: Predecessor,
    claim: Option<Claim>,
    /// How the program reports that it is ready, if it is to.
    ready_channel: Option<ReadyChannel>,
}

/// The watcher's end of what the program reports by, and what the program has of it.
enum ReadyChannel {
    Pipe { ours: OwnedFd, its: OwnedFd },
    NotifySocket { ours: OwnedFd, variable: CString },
}

/// Become the program, and have the process retired that it succeeds. Returns only when that failed.
pub(crate) fn succeed(
    config: Supervise,
    listeners: Vec<Listener>,
    others: Vec<OwnedFd>,
    predecessor: Predecessor,
) -> Failure {
    let begin = || -> Result<_> {
        let handover = Handover::prepare(config, listeners, others, predecessor)?;
        let pipe = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
        Ok((handover, pipe))
    };
    match begin() {
        Err(error) => error.into(),
        Ok((handover, failure)) => match fork_watcher(handover, failure) {
            Err(error) => error.into(),
            Ok((handover, fails)) => handover.become_program(fails),
        },
    }
}

impl Handover {
    /// Bind what is to be bound, before anything is started.
    fn prepare(
        config: Supervise,
        listeners: Vec<Listener>,
        others: Vec<OwnedFd>,
        mut predecessor: Predecessor,
    ) -> Result<Handover> {
        // What is opened after it gets other numbers.
        let ready_channel = ReadyChannel::of(&config.ready, lowest(&config))?;
        let (mut sockets, claim) =
            prepare_sockets(&config, listeners, others, Some(&mut predecessor), &mut Stored::default())?;
        let share = sockets.unused(&[sockets.serving()])?;
        sockets.give(share, SUCCESSOR);
        Ok(Handover { config, sockets, share, predecessor, claim, ready_channel })
    }

    /// In the process that the program is to be: returns only when that failed.
    fn become_program(mut self, fails: OwnedFd) -> Failure {
        let program = &self.config.exec.program;
        let handout = self.sockets.handout(self.share, program);
        let mut variables = vec![];
        let mut inherited = None;
        match self.ready_channel.take() {
            Some(ReadyChannel::Pipe { its, .. }) => {
                if let Err(errno) = sys::set_close_on_exec(&its, FdFlag::empty()) {
                    return Error::new(errno).context("cannot hand on the readiness descriptor").into();
                }
                inherited = Some(its);
            }
            Some(ReadyChannel::NotifySocket { variable, .. }) => variables.push(variable),
            None => (),
        }
        let failure = exec::exec_in_place(program, &handout, Begin::Now, None, variables);
        // The watcher need not report it, and puts back what was changed.
        let _ = File::from(fails).write_all(b"x");
        std::mem::forget(self.sockets);
        drop(inherited);
        failure
    }
}

impl ReadyChannel {
    /// The end of a pipe that the program writes to is at its number from now on, and ours at one from `lowest` on.
    ///
    /// # Errors
    /// If that number is taken.
    fn of(ready: &Ready, lowest: RawFd) -> Result<Option<ReadyChannel>> {
        Ok(match ready {
            Ready::Descriptor(number) => {
                let context = "cannot make a pipe for --ready";
                let (ours, its) = pipe2(OFlag::O_CLOEXEC).context(context)?;
                // Neither may be what has that number.
                let (ours, passing) = (sys::moved_from(ours, lowest), sys::moved_from(its, lowest));
                let its = sys::duplicate_from(&passing, *number).context(context)?;
                ensure!(its.as_raw_fd() == *number, ready_fd_is_taken(*number));
                Some(ReadyChannel::Pipe { ours, its })
            }
            Ready::Notify => {
                let environment = sys::environment();
                let has_manager = sys::variable(&environment, "NOTIFY_SOCKET").is_some_and(|value| !value.is_empty());
                ensure!(
                    !has_manager,
                    "--ready notify: NOTIFY_SOCKET is the service manager's, which would not hear that PROGRAM is ready; \
                     --supervise passes it on"
                );
                let ours = notify_socket::open(&notify_socket::folders(&environment))?;
                let variable = CString::new(notify_socket::variable(&ours)?)?;
                Some(ReadyChannel::NotifySocket { ours, variable })
            }
            _ => None,
        })
    }
}

/// Fork twice, so that the watcher is nobody's child here, and return in the process that the program is to be, once the
/// watcher watches.
fn fork_watcher(mut handover: Handover, (failed, fails): (OwnedFd, OwnedFd)) -> Result<(Handover, OwnedFd)> {
    let (ready, its) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
    let program = Pid::this();
    // SAFETY: this program has one thread.
    match unsafe { sys::fork() }.context("cannot fork")? {
        ForkResult::Child => {
            // It has no terminal, whose Ctrl-C is not for it. A new child leads no group, so this cannot fail.
            let _ = setsid();
            // SAFETY: as above.
            if let Ok(ForkResult::Child) = unsafe { sys::fork() } {
                drop((ready, fails));
                handover.sockets.leave_rest();
                match watch(handover, program, failed, its) {
                    Ok(never) => match never {},
                    Err(error) => error!("{error:#}"),
                }
            }
            sys::exit_at_once(0)
        }
        ForkResult::Parent { child } => {
            drop(its);
            let _ = waitpid(child, None);
            let mut text = String::new();
            let _ = File::from(ready).read_to_string(&mut text);
            let watcher = text.parse().map_err(|_| anyhow!("cannot watch over the handover"))?;
            sys::allow_ptrace(Pid::from_raw(watcher));
            Ok((handover, fails))
        }
    }
}

/// In the watcher: watch to the end.
fn watch(handover: Handover, program: Pid, failed: OwnedFd, ready: OwnedFd) -> Result<Infallible> {
    logging::never_wait();
    leave_standard_descriptors().context("cannot leave the standard descriptors")?;
    let supervisor = Supervisor::watch(handover, program, failed)?;
    File::from(ready).write_all(Pid::this().to_string().as_bytes()).context("cannot begin to watch")?;
    if Pid::parent() == program {
        warn!(
            "pid {} watches the handover, and is a child of PROGRAM: there is no other that it could be one of",
            Pid::this()
        );
    }
    let status = supervisor.run();
    sys::exit_at_once(status)
}

/// Whoever waits for the end of these need not wait for us.
fn leave_standard_descriptors() -> nix::Result<()> {
    let nothing = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    // SAFETY: no owner uses the standard descriptors.
    (0..=1).try_for_each(|number| unsafe { sys::place(nothing.as_fd(), number) })
}

impl Supervisor {
    /// A supervisor of both processes until the one has succeeded the other.
    fn watch(handover: Handover, program: Pid, failed: OwnedFd) -> Result<Supervisor> {
        let Handover { mut config, sockets, share, predecessor, claim, ready_channel } = handover;
        claim.iter().for_each(Claim::renew);
        config.limits.restart = Restart::No;
        let now = sys::now();
        let signals = Signals::receive()?;
        let pidfd = sys::pidfd_of(program).context("cannot open a pidfd")?;
        let mut successor = Generation::foreign(SUCCESSOR, program, pidfd, share, now);
        successor.given = sockets.set(share).inodes;
        successor.expect(&config.ready, signals.dispositions(), sockets.reach(), now);
        successor.add(Role::ExecError, failed);
        match ready_channel {
            Some(ReadyChannel::Pipe { ours, .. }) => successor.add(Role::Ready, ours),
            Some(ReadyChannel::NotifySocket { ours, .. }) => successor.add(Role::Notify, ours),
            None => (),
        }
        let (plan, _start) = Plan::succeed(config.limits, now);
        let mut reporter = Reporter::new(Clients::default(), Manager::of(&[]), None);
        reporter.be_quiet();
        reporter.call(SUCCESSOR, format!("pid {program}"));
        let mut supervisor = Supervisor {
            config,
            directory: None,
            signals,
            terminal: Terminal::default(),
            plan,
            events: Default::default(),
            sockets,
            generations: Generations::default(),
            delegation: None,
            reporter,
            upgrade: Upgrade::new(Default::default()),
            store: None,
            pid_file: None,
            claim,
            duty: Duty::Handover(share),
            let_go: None,
            finished: None,
        };
        supervisor.add_predecessor(predecessor);
        supervisor.generations.add(successor);
        Ok(supervisor)
    }

    /// The program has ended, and may have left processes that were not seen while it was their parent: whoever has a socket
    /// that only it was given is its own. What a supervisor lent is that one's too, and it sees to the rest.
    pub(super) fn adopt_holders(&mut self, id: Id) {
        let predecessor = self.generations.get(PREDECESSOR);
        if id != SUCCESSOR || predecessor.is_some_and(Generation::is_lender) {
            return;
        }
        let others: Vec<SocketInode> = predecessor.iter().flat_map(|predecessor| predecessor.given.clone()).collect();
        let Some(successor) = self.generations.get_mut(id) else { return };
        let its: Vec<SocketInode> = successor.given.iter().copied().filter(|inode| !others.contains(inode)).collect();
        let Ok((_, holders)) = holders_of(&its) else { return };
        for Holder { process, .. } in holders {
            // One that looks for whom to succeed copies sockets for a moment.
            let is_another = is_spared(process.pid) || is_supervisor_name(&name_of(process.pid));
            if !is_another && process.pid != successor.pid && !successor.members.contains(&process) {
                successor.members.adopt(&process);
            }
        }
    }

    /// The program that succeeds has settled: what becomes of it from now on is its own affair.
    pub(super) fn let_successor_go(&mut self) {
        self.let_go = self.generations.get(SUCCESSOR).and_then(|successor| {
            let pidfd = successor.pidfd()?.try_clone_to_owned().ok()?;
            let next_look = sys::now() + LOOK_INTERVAL;
            Some(Settled { pid: successor.pid, pidfd, next_look, was_closed: false })
        });
        self.generations.forget(SUCCESSOR);
        self.plan.serving = None;
        // Whoever succeeds that program waits for the end of this process.
        self.plan.limit_earlier(self.config.limits, sys::now());
    }

    /// See whether that program has closed its sockets, as one does that drains.
    pub(super) fn see_settled(&mut self, now: Timestamp) {
        let (Some(settled), Duty::Handover(share)) = (&mut self.let_go, self.duty) else { return };
        if settled.next_look > now {
            return;
        }
        let before = sys::processor_time();
        let inodes = self.sockets.set(share).inodes;
        let has_one = |process: &Pid| sockets(*process).any(|inode| inodes.contains(&inode));
        // Its workers may have them, be they shown to us or not.
        let is_closed = !has_one(&settled.pid)
            && Processes::scan().is_ok_and(|processes| {
                let is_its =
                    |process: &&Process| processes.ancestors(process.pid).any(|above| above.pid == settled.pid);
                let its = processes.iter().filter(is_its).map(|process| process.pid);
                let its: Vec<Pid> = [settled.pid].into_iter().chain(its).collect();
                are_open_to_us(&its) && !its.iter().any(has_one)
            });
        let cost = sys::processor_time().saturating_sub(before);
        settled.next_look = now + LOOK_INTERVAL.max(cost * COST_RATIO);
        if std::mem::replace(&mut settled.was_closed, is_closed) && is_closed {
            self.let_go_of_sockets();
        }
    }

    /// That program has ended, or accepts no more, while its predecessor still drains: nobody is to wait for it at sockets that
    /// only we have, and whoever is started in its place may have the address, and take over what is left.
    pub(super) fn let_go_of_sockets(&mut self) {
        self.let_go = None;
        self.sockets.let_go();
        self.claim = None;
    }

    /// The watcher was asked to end before its work was done.
    pub(super) fn abandon_handover(&mut self) {
        let name = self.reporter.name_of(PREDECESSOR);
        let what = match self.plan.is_predecessor_needed() {
            true => format!("{name} is not retired"),
            false => format!("{name} is left as it is"),
        };
        error!("the handover is given up: {what}");
        self.finished = Some(0);
    }

    /// Let go of everything.
    pub(super) fn leave_to(mut self, successor: Share) {
        // A server may have removed its socket's name at its very end.
        self.look_after_sockets();
        if self.plan.is_predecessor_needed() || self.plan.stopping.is_some() {
            if let Some(pid_file) = self.pid_file {
                pid_file.restore();
            }
            let lives = self.generations.get(SUCCESSOR).is_some_and(|successor| successor.ended.is_none());
            if lives {
                self.sockets.leave_to_predecessor();
            }
            // Dropped, they are as they were.
            return;
        }
        self.sockets.leave_to(successor);
    }

    /// Is this process what the program is started by?
    pub(super) fn is_watcher(&self) -> bool {
        self.duty != Duty::Supervise
    }

    /// The process whose number goes into the pid file.
    pub(super) fn announced_pid(&self) -> u32 {
        let successor = self.generations.get(SUCCESSOR).filter(|_| self.is_watcher());
        successor.map_or_else(std::process::id, |successor| successor.pid.as_raw() as u32)
    }
}
