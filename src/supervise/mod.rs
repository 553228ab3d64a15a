//! Stay as the parent: start generations, see them get ready, retire the old ones, answer the control socket.
//!
//! What is done is decided in `plan`; here is the loop around it, one poll(2), and what carries its orders out.

mod act;
pub(crate) mod control;
mod generation;
pub(crate) mod plan;
mod report;
mod requests;
mod signals;
pub(crate) mod upgrade;

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use log::{debug, warn};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::config::Ready;
use crate::config::Supervise;
use crate::kernel::descriptors::SocketInode;
use crate::kernel::processes;
use crate::socket::listener::Listener;
use crate::sys;
use crate::target::pid_file::PidFile;
use control::Control;
use generation::Generation;
use generation::notify_socket::Manager;
use generation::ready::Watch;
use plan::{Event, Id, Moment, Plan};
use signals::Signals;
use upgrade::Check;
use upgrade::state::State;

/// How often a client with a terminal is told how many connections are left.
const LIVE_PAUSE: Duration = Duration::from_millis(500);

/// What else follows when there is no /proc.
const BLIND: &str = "and only READY=1 or --ready tells that it is ready";

/// Between two rounds where poll(2) itself fails.
const PAUSE: Duration = Duration::from_millis(100);

/// A supervisor and everything it holds.
struct Supervisor {
    config: Supervise,
    listeners: Vec<Listener>,
    sockets: Vec<SocketInode>,
    /// Inherited by us and so by every generation.
    others: Vec<OwnedFd>,
    signals: Signals,
    /// The working directory by the name it had at start.
    directory: Option<PathBuf>,
    manager: Manager,
    control: Option<Control>,
    plan: Plan,
    generations: Vec<Generation>,
    /// Where this program is started from, and a newer one that is being looked at.
    program: PathBuf,
    upgrade: Option<Check>,
    /// What happened and was not yet handled.
    events: VecDeque<Event>,
    pid_file: Option<PidFile>,
    last_failure: Option<String>,
    next_live: Option<Moment>,
    /// When a stranger's message may cause a look at all processes again.
    next_stranger: Moment,
    finished: Option<u8>,
}

/// What a descriptor that poll(2) found ready belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Signals,
    End(Id),
    Inbox(Id),
    ReadyPipe(Id),
    Control,
    Client(usize),
    UpgradeCheck,
}

/// Supervise until told to stop, or until the first generation fails; gives the exit status.
pub(crate) fn supervise(config: Supervise, listeners: Vec<Listener>, others: Vec<OwnedFd>) -> Result<u8> {
    let mut supervisor = Supervisor::new(config, listeners, others)?;
    let status = supervisor.run();
    supervisor.leave(status);
    Ok(status)
}

/// Supervise in the place of a predecessor that left `state`.
pub(crate) fn take_over(config: Supervise, state: State, mut claimed: Vec<OwnedFd>) -> Result<u8> {
    let mut supervisor = Supervisor::resume(config, state, &mut claimed)?;
    // What nobody took was inherited by the first of us.
    supervisor.others = claimed;
    let status = supervisor.run();
    supervisor.leave(status);
    Ok(status)
}

impl Supervisor {
    fn new(config: Supervise, listeners: Vec<Listener>, others: Vec<OwnedFd>) -> Result<Supervisor> {
        check_ready_fd(&config.ready, &listeners, &others)?;
        let control = config.control.as_deref().map(Control::listen).transpose()?;
        let signals = Signals::receive()?;
        sys::become_subreaper().context("cannot become a reaper of orphans")?;
        let sockets = listeners.iter().map(SocketInode::of).collect::<nix::Result<_>>()?;
        let (plan, orders) = Plan::begin(config.limits, sys::now());
        let mut supervisor = Supervisor {
            manager: Manager::of(&sys::environment()),
            directory: logical_directory(),
            config,
            listeners,
            sockets,
            others,
            signals,
            control,
            plan,
            generations: Vec::new(),
            program: upgrade::own_program(),
            upgrade: None,
            events: VecDeque::new(),
            pid_file: None,
            last_failure: None,
            next_live: None,
            next_stranger: Moment::ZERO,
            finished: None,
        };
        supervisor.carry_out(orders);
        Ok(supervisor)
    }

    fn run(&mut self) -> u8 {
        if let Err(error) = processes::are_visible() {
            warn!("/proc cannot be read ({error}): of a generation only the main process is watched over, {BLIND}");
        }
        loop {
            self.handle_events();
            if let Some(status) = self.finished {
                return status;
            }
            // Before the sleep: whoever was told everything may wait for nothing but the end.
            if let Some(control) = &mut self.control {
                control.tidy(sys::now());
            }
            for (source, flags) in self.wait() {
                self.wake(source, flags);
            }
            self.look();
            let now = sys::now();
            if self.plan.deadline().is_some_and(|deadline| deadline <= now) {
                self.events.push_back(Event::Tick);
            }
            self.tell_live(now);
            self.time_upgrade(now);
            self.keep_manager_informed(now);
        }
    }

    /// One poll(2): until something happens, or something has to be done.
    fn wait(&self) -> Vec<(Source, PollFlags)> {
        let sources = self.sources();
        let mut fds: Vec<PollFd> = sources.iter().map(|(_, fd)| fd.clone()).collect();
        match poll(&mut fds, self.timeout()) {
            Ok(_) => (),
            Err(Errno::EINTR) => return vec![],
            // As when the limit of open files was lowered below what we have: signals are heard all the same.
            Err(errno) => {
                debug!("poll: {errno}");
                thread::sleep(PAUSE);
                return vec![(Source::Signals, PollFlags::POLLIN)];
            }
        }
        let flags = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        sources.into_iter().map(|(source, _)| source).zip(flags).filter(|(_, flags)| !flags.is_empty()).collect()
    }

    fn sources(&self) -> Vec<(Source, PollFd<'_>)> {
        let mut sources = vec![(Source::Signals, PollFd::new(self.signals.as_fd(), PollFlags::POLLIN))];
        for generation in &self.generations {
            let id = generation.id;
            let input = |fd| PollFd::new(fd, PollFlags::POLLIN);
            sources.extend(generation.pidfd().map(|fd| (Source::End(id), input(fd))));
            sources.push((Source::Inbox(id), input(generation.inbox.as_fd())));
            let pipe = generation.watch.as_ref().and_then(Watch::pipe);
            sources.extend(pipe.map(|fd| (Source::ReadyPipe(id), input(fd))));
        }
        let check = self.upgrade.as_ref().map(|check| PollFd::new(check.fd(), PollFlags::POLLIN));
        sources.extend(check.map(|fd| (Source::UpgradeCheck, fd)));
        if let Some(control) = &self.control {
            let listener = control.listener().map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            sources.extend(listener.map(|fd| (Source::Control, fd)));
            let clients = control.clients.iter().enumerate();
            sources.extend(
                clients.map(|(at, client)| (Source::Client(at), PollFd::new(client.as_fd(), client.poll_for()))),
            );
        }
        sources
    }

    /// Until the next deadline, of whatever has one.
    fn timeout(&self) -> PollTimeout {
        let watches = self.generations.iter().filter_map(|generation| generation.watch.as_ref()?.deadline());
        let control = self.control.as_ref().and_then(Control::deadline);
        let check = self.upgrade.as_ref().map(|check| check.deadline);
        let others = control.into_iter().chain(self.next_live).chain(check).chain(self.manager.deadline());
        let deadline = watches.chain(self.plan.deadline()).chain(others).min();
        let Some(deadline) = deadline else { return PollTimeout::NONE };
        // Rounded up, so as not to wake a moment too early and again.
        let wait = deadline.saturating_sub(sys::now()).as_micros().div_ceil(1000);
        PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
    }

    fn wake(&mut self, source: Source, flags: PollFlags) {
        match source {
            Source::Signals => self.receive_signals(),
            Source::End(id) => self.see_end(id),
            Source::Inbox(id) => self.read_inbox(id),
            Source::ReadyPipe(id) => {
                let watch = self.generation(id).and_then(|generation| generation.watch.as_mut());
                if watch.is_some_and(Watch::read_pipe) {
                    self.events.push_back(Event::Ready(id));
                }
            }
            Source::Control => {
                if let Some(control) = &mut self.control {
                    control.accept(sys::now());
                }
            }
            Source::Client(at) => self.hear_client(at, flags),
            Source::UpgradeCheck => self.end_upgrade_check(),
        }
    }

    fn handle_events(&mut self) {
        while let Some(event) = self.events.pop_front() {
            debug!("{event:?}");
            let orders = self.plan.handle(event, self.config.limits, sys::now());
            self.carry_out(orders);
        }
    }
}

/// The descriptor of `--ready fd:N` must be nobody's: the pipe would take its place in the generation.
fn check_ready_fd(ready: &Ready, listeners: &[Listener], others: &[OwnedFd]) -> Result<()> {
    let Ready::Descriptor(number) = ready else { return Ok(()) };
    let sockets = listeners.iter().map(|listener| listener.as_fd().as_raw_fd());
    let taken = sockets.chain(others.iter().map(AsRawFd::as_raw_fd)).any(|fd| fd == *number);
    ensure!(!taken, "--ready fd:{number} is the number of a descriptor that the program has already");
    Ok(())
}

/// $PWD if it is the working directory: the name may lead to a newer release by the next generation.
fn logical_directory() -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let name = PathBuf::from(std::env::var_os("PWD")?);
    let (named, actual) = (name.metadata().ok()?, std::fs::metadata(".").ok()?);
    (name.is_absolute() && (named.dev(), named.ino()) == (actual.dev(), actual.ino())).then_some(name)
}

/// This process, for messages.
fn own_pid() -> u32 {
    process::id()
}
