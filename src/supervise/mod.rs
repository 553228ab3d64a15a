//! Stay as the parent: start generations, see them get ready, retire the old ones, answer the control socket.
//!
//! A supervisor is its parts. What is done is decided in `plan`; `act` carries it out, `report` reports it, and here is
//! the loop around them, one poll(2).

mod act;
pub(crate) mod control;
mod delegation;
mod diagnosis;
mod examine;
pub(crate) mod generation;
mod generations;
pub(crate) mod intercept;
mod lend;
pub(crate) mod plan;
mod poll;
mod predecessor;
mod report;
mod requests;
mod signals;
mod sockets;
mod steer;
mod store;
mod succession;
mod terminal;
pub(crate) mod upgrade;
mod watcher;
mod wording;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::env;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use log::debug;
use nix::poll::PollFlags;

use crate::config::{Limits, Ready, Supervise};
use crate::manager::Manager;
use crate::pid_file::PidFile;
use crate::socket::listener::Listener;
use crate::socket::stored::Stored;
use crate::socket::takeover::{Claim, Predecessor};
use crate::sys;
use crate::target::Handing;
use control::connection::WaitingFor;
use control::server::Clients;
use delegation::Delegation;
use generations::{Generations, warn_without_proc};
use plan::{Event, KILLED, PREDECESSOR, Plan};
use poll::{Source, Table};
use report::{KILLED_ONE, Reporter};
use signals::Signals;
use sockets::{Share, Sockets};
use store::Store;
pub(crate) use succession::{rehearse, take_over};
use terminal::Terminal;
use upgrade::{ProgramFile, Upgrade};
use watcher::Settled;
pub(crate) use watcher::succeed;
use wording::show;

/// The lowest number of what only the supervisor has, as a rule.
pub(crate) const LOWEST: RawFd = 64;

/// A supervisor: its parts, each of which owns what it holds.
struct Supervisor {
    config: Supervise,
    /// The working directory by its name at start.
    directory: Option<PathBuf>,
    signals: Signals,
    terminal: Terminal,
    plan: Plan,
    /// What happened and was not yet handled.
    events: VecDeque<Event>,
    sockets: Sockets,
    generations: Generations,
    /// The cgroup in which each of them has its own.
    delegation: Option<Delegation>,
    reporter: Reporter,
    upgrade: Upgrade,
    store: Option<Store>,
    pid_file: Option<PidFile>,
    /// Only one takes over from a process at a time.
    claim: Option<Claim>,
    duty: Duty,
    /// The program that has settled beside a predecessor which drains.
    let_go: Option<Settled>,
    finished: Option<u8>,
}

/// What there is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duty {
    /// Supervise until asked to stop.
    Supervise,
    /// Watch over a handover between two processes that are no children of ours, of which the new one has this set.
    Handover(Share),
}

/// Supervise until asked to stop, or until the first generation fails; return the exit status.
pub(crate) fn supervise(
    config: Supervise,
    listeners: Vec<Listener>,
    others: Vec<OwnedFd>,
    predecessor: Option<Predecessor>,
    stored: Stored,
) -> Result<u8> {
    Ok(Supervisor::new(config, listeners, others, predecessor, stored)?.run())
}

impl Supervisor {
    fn new(
        config: Supervise,
        listeners: Vec<Listener>,
        others: Vec<OwnedFd>,
        mut predecessor: Option<Predecessor>,
        mut stored: Stored,
    ) -> Result<Supervisor> {
        sys::occupy_standard().context("cannot occupy the standard descriptors")?;
        let (sockets, claim) = prepare_sockets(&config, listeners, others, predecessor.as_mut(), &mut stored)?;
        check_ready_fd(&config.ready, &sockets)?;
        let lender = predecessor.as_mut().and_then(|predecessor| predecessor.lender.as_mut());
        let control = lender.and_then(|lender| lender.control.take());
        let clients = match (control, &config.control) {
            (Some(lent), Some(spec)) => Clients::listen_on(spec, lent)?,
            _ => Clients::listen(config.control.as_ref())?,
        };
        let signals = Signals::receive()?;
        sys::become_subreaper().context("cannot become a reaper of orphans")?;
        let begin = if predecessor.is_some() { Plan::succeed } else { Plan::begin };
        let (plan, orders) = begin(config.limits, sys::now());
        let manager = Manager::of(&sys::environment());
        let store = Store::begin(config.exec.keeper, &config.exec.specs, stored, &manager);
        let mut supervisor = Supervisor {
            config,
            directory: logical_directory(),
            signals,
            terminal: Terminal::open(),
            plan,
            events: VecDeque::new(),
            sockets,
            generations: Generations::default(),
            delegation: Delegation::enter(),
            reporter: Reporter::new(clients, manager, None),
            upgrade: Upgrade::new(upgrade::own_program()),
            store,
            pid_file: None,
            claim,
            duty: Duty::Supervise,
            let_go: None,
            finished: None,
        };
        if let Some(predecessor) = predecessor {
            supervisor.add_predecessor(predecessor);
        }
        supervisor.carry_out(orders);
        Ok(supervisor)
    }

    fn run(mut self) -> u8 {
        warn_without_proc();
        // The SIGCHLD of a child that ended while a predecessor became this program may be lost.
        self.collect_gone();
        loop {
            self.handle_events();
            if self.is_watcher() && self.plan.generations().next().is_none() {
                self.finished = Some(0);
            }
            if let Some(status) = self.finished {
                self.leave(status);
                return status;
            }
            // Before the sleep: a client whose last reply was sent only waits for its connection to close.
            self.reporter.clients.tidy(sys::now());
            self.see_borrower();
            self.store_sockets();
            for (source, flags) in self.table().wait(sys::now()) {
                self.wake(source, flags);
            }
            self.look_after();
        }
    }

    /// What the next round waits for.
    fn table(&self) -> Table<'_> {
        let mut table = Table::new();
        self.signals.poll(&mut table);
        self.terminal.poll(&mut table);
        if self.keeps_sockets() {
            self.sockets.poll(&mut table);
        }
        self.generations.poll(&mut table);
        if let Some(successor) = &self.let_go {
            table.input(Source::Successor, successor.pidfd.as_fd());
            table.until(Some(successor.next_look));
        }
        self.upgrade.poll(&mut table);
        self.reporter.poll(&mut table);
        table.until(self.plan.deadline());
        table
    }

    fn wake(&mut self, source: Source, flags: PollFlags) {
        match source {
            Source::Signals => self.receive_signals(),
            Source::Terminal => self.terminal.observe(sys::now()),
            Source::Generation(id, role) => self.wake_generation(id, role),
            Source::Successor => self.let_go_of_sockets(),
            Source::Listener => self.look_after_sockets(),
            Source::Control => self.reporter.clients.accept(sys::now()),
            Source::Client(at) => self.wake_client(at, flags),
            // Its outcome is checked in every round.
            Source::Probe | Source::Store => (),
        }
    }

    /// Do everything that is due.
    fn look_after(&mut self) {
        let now = sys::now();
        if self.generations.is_collection_due(now) {
            self.collect_gone();
        }
        self.generations.observe(&self.sockets, now, &mut self.events);
        self.hint_at_elsewhere(now);
        self.lead_probes();
        self.observe_check();
        self.observe_handover(now);
        self.see_stopped();
        self.see_settled(now);
        if self.plan.deadline().is_some_and(|deadline| deadline <= now) {
            self.events.push_back(Event::Tick);
        }
        self.reporter.send_live(&self.plan, &self.generations, &self.sockets, now);
        self.reporter.keep_manager_informed(&self.plan, now);
        match self.upgrade.outcome(now) {
            None => (),
            Some(Err(error)) => self.upgrade.refuse(&error),
            Some(Ok(file)) => match self.become_successor(&file) {
                Ok(never) => match never {},
                Err(error) => self.upgrade.refuse(&error),
            },
        }
    }

    fn handle_events(&mut self) {
        while let Some(event) = self.events.pop_front() {
            debug!("{event:?}");
            let event = self.verify(event);
            let orders = self.plan.handle(event, self.config.limits, sys::now());
            self.carry_out(orders);
        }
    }

    /// Exec; returns only when that failed, with everything as it was.
    fn become_successor(&mut self, file: &ProgramFile) -> Result<Infallible> {
        // What happened until now is in the state, what happens from now on stays in the descriptors.
        self.look_after_sockets();
        self.handle_events();
        ensure!(self.finished.is_none(), "everything stops");
        // No other process would know of them.
        self.generations.stop_checks();
        self.list_handshakes();
        self.generations.survey();
        let outcome =
            self.upgrade.become_successor(file, &self.state(), self.signals.dispositions(), &self.handed_on());
        // This supervisor goes on: the check that was ended for the other runs again.
        let checked = self.plan.trial.as_ref().filter(|trial| trial.is_checked).map(|trial| trial.id);
        checked.into_iter().for_each(|id| self.check(id));
        outcome
    }

    /// Every descriptor that the state names.
    fn handed_on(&self) -> Vec<BorrowedFd<'_>> {
        let parts = self.sockets.handed_on().chain(self.generations.handed_on());
        let parts = parts.chain(self.reporter.clients.handed_on());
        let parts = parts.chain(self.claim.iter().flat_map(Claim::handed_on));
        parts.chain(self.store.as_ref().and_then(Store::handed_on)).collect()
    }

    /// All is over: remove what is ours, and reply to the clients that waited for it.
    fn leave(mut self, status: u8) {
        if let Duty::Handover(successor) = self.duty {
            return self.leave_to(successor);
        }
        // It is there if it was let go of, and serves on.
        let is_predecessor_left = self.generations.get(PREDECESSOR).is_some();
        self.generations.reap_all();
        let is_stored = self.is_stored();
        if is_stored {
            // What the last generations did to them is repaired for the next start.
            self.look_after_sockets();
            self.store_sockets();
        }
        match self.pid_file {
            Some(pid_file) if is_predecessor_left => pid_file.restore(),
            Some(pid_file) => pid_file.remove(),
            None => (),
        }
        // A client may start the next supervisor as soon as it gets the last reply: sockets and files go first.
        if is_stored || self.sockets.is_lent() {
            self.sockets.leave_names();
        }
        if self.sockets.is_lent() {
            self.reporter.clients.leave_lent();
        }
        drop(self.sockets);
        for mut client in self.reporter.clients.close() {
            match client.waiting_for {
                WaitingFor::End if status == KILLED => client.end_with_error(KILLED_ONE, 1),
                WaitingFor::End => client.end(0),
                WaitingFor::Nothing => (),
                _ => client.end_with_error("the supervisor has ended", 125),
            }
        }
    }
}

/// The sockets to begin with, and the right to succeed the predecessor, if there is one.
///
/// # Errors
/// If the line asks for what they cannot give, or another process succeeds the predecessor already.
fn prepare_sockets(
    config: &Supervise,
    listeners: Vec<Listener>,
    others: Vec<OwnedFd>,
    mut predecessor: Option<&mut Predecessor>,
    stored: &mut Stored,
) -> Result<(Sockets, Option<Claim>)> {
    let claim = predecessor.as_deref().map(Claim::make).transpose()?;
    let mut sockets = Sockets::new(listeners, others, lowest(config), config.exec.program.handing, stored)?;
    if let Some(predecessor) = &mut predecessor {
        let used = predecessor.lender.as_mut().map(|lender| std::mem::take(&mut lender.used));
        sockets.begin_beside_predecessor(&used.unwrap_or_default())?;
    }
    steer::check(config, &sockets)?;
    check_ready_after(&config.ready, config.limits)?;
    Ok((sockets, claim))
}

/// The descriptor of `--ready fd:N` must be free: the pipe would take its place in the generation.
fn check_ready_fd(ready: &Ready, sockets: &Sockets) -> Result<()> {
    let Ready::Descriptor(number) = ready else { return Ok(()) };
    ensure!(!sockets.has_number(*number), ready_fd_is_taken(*number));
    Ok(())
}

fn ready_fd_is_taken(number: RawFd) -> String {
    format!("--ready fd:{number} is the number of a descriptor that the program has already")
}

/// Where the sockets are numbered from that are acquired at the start.
pub(crate) fn first_number(config: &Supervise) -> RawFd {
    match config.exec.program.handing {
        Handing::Descriptors => config.exec.program.first_fd,
        Handing::Interception => lowest(config),
    }
}

/// Sockets that no generation has at their own number stay clear of the numbers that the program has.
pub(crate) fn lowest(config: &Supervise) -> RawFd {
    let number = if let Ready::Descriptor(number) = config.ready { number } else { 0 };
    LOWEST.max(number + 1)
}

/// A generation that is ready only when its time is over would never be.
fn check_ready_after(ready: &Ready, limits: Limits) -> Result<()> {
    let Ready::After(time) = ready else { return Ok(()) };
    let (after, limit) = (show(*time), show(limits.ready));
    ensure!(*time < limits.ready, "--ready after:DURATION, {after}, is not shorter than --ready-timeout, {limit}");
    Ok(())
}

/// $PWD if it is the working directory: the name may lead to a newer release by the next generation.
fn logical_directory() -> Option<PathBuf> {
    let name = PathBuf::from(env::var_os("PWD")?);
    let (named, actual) = (name.metadata().ok()?, fs::metadata(".").ok()?);
    (name.is_absolute() && (named.dev(), named.ino()) == (actual.dev(), actual.ino())).then_some(name)
}
