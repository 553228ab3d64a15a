//! All generations of which something is left: which process belongs to which, and which is due to be observed.

use std::collections::VecDeque;
use std::fs;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use log::{debug, warn};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::signal::kill;
use nix::sys::wait::{Id as WaitId, WaitPidFlag, waitid, waitpid};
use nix::unistd::{Pid, geteuid};

use crate::config::Ready;
use crate::kernel::descriptors::{SocketInode, running_thread, sockets};
use crate::kernel::members::{Members, strangers};
use crate::kernel::processes::{Process, ProcessState, Processes, are_visible, is_shortage};
use crate::saved;
use crate::supervise::generation::check::Check;
use crate::supervise::generation::descriptors::Role;
use crate::supervise::generation::notify_socket::Notification;
use crate::supervise::generation::ready::Watch;
use crate::supervise::generation::{Generation, SavedGeneration};
use crate::supervise::plan::{Event, Id};
use crate::supervise::poll::{Source, Table};
use crate::supervise::signals::Dispositions;
use crate::supervise::sockets::{Reach, Sockets};
use crate::sys::{self, Claimed, Timestamp};

/// Notifications from strangers cause at most one survey of all processes in this time.
const STRANGER_INTERVAL: Duration = Duration::from_millis(50);

/// When descriptors ran out while /proc was read, it is read again after this.
const SHORTAGE_BACKOFF: Duration = Duration::from_millis(100);
/// How often those whose main process has ended are looked after: what is left may be another's children, or held by
/// a debugger, and then no SIGCHLD comes.
const REMAINDER_INTERVAL: Duration = Duration::from_secs(1);
/// The same where clients, or who deploys next, wait for that.
const UNTOLD_INTERVAL: Duration = Duration::from_millis(100);

/// The generations, in the order of their start.
#[derive(Debug, Default)]
pub(crate) struct Generations {
    all: Vec<Generation>,
    /// When a notification from a stranger may cause a survey again.
    next_stranger: Timestamp,
    /// When to collect what has ended although no child of ours does.
    next_collection: Option<Timestamp>,
}

impl Generations {
    pub(crate) fn add(&mut self, generation: Generation) {
        self.all.push(generation);
    }

    /// Forget one, which goes on as it is.
    pub(crate) fn forget(&mut self, id: Id) {
        self.all.retain(|generation| generation.id != id);
    }

    pub(crate) fn get(&self, id: Id) -> Option<&Generation> {
        self.all.iter().find(|generation| generation.id == id)
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> Option<&mut Generation> {
        self.all.iter_mut().find(|generation| generation.id == id)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Generation> {
        self.all.iter_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Generation> {
        self.all.iter()
    }

    /// Add what is waited for to the round's table.
    pub(crate) fn poll<'a>(&'a self, table: &mut Table<'a>) {
        table.until(self.next_collection);
        for generation in &self.all {
            for (role, fd) in generation.polled() {
                table.input(Source::Generation(generation.id, role), fd);
            }
            table.until(generation.watch.as_ref().and_then(|watch| watch.deadline()));
            table.until(generation.next_look());
            if let Some(events) = generation.awaited_events() {
                // It can be read at any time.
                table.events(Source::Generation(generation.id, Role::Cgroup), events, PollFlags::POLLPRI);
            }
            if let Some((fd, flags)) = generation.watch.as_ref().and_then(Watch::polled) {
                table.events(Source::Generation(generation.id, Role::Probe), fd, flags);
            }
        }
    }

    /// Is it time to collect what has ended, without a SIGCHLD?
    pub(crate) fn is_collection_due(&self, now: Timestamp) -> bool {
        self.next_collection.is_some_and(|at| at <= now)
    }

    /// One that is waited for may end, and nothing will tell.
    pub(crate) fn collect_soon(&mut self) {
        let soon = sys::now() + UNTOLD_INTERVAL;
        self.next_collection = Some(self.next_collection.map_or(soon, |at| at.min(soon)));
    }

    /// Observe those that get ready and are due.
    pub(crate) fn observe(&mut self, sockets: &Sockets, now: Timestamp, events: &mut VecDeque<Event>) {
        let deadline = |generation: &Generation| generation.watch.as_ref()?.deadline();
        if !self.all.iter().filter_map(deadline).any(|deadline| deadline <= now) {
            return;
        }
        let before = sys::processor_time();
        self.survey();
        // What the one that starts did to them, the one that serves has to bear.
        sockets.restore_backlogs();
        for generation in &mut self.all {
            let Some(watch) = &mut generation.watch else { continue };
            if watch.observe(|| generation.members.alive(), &sockets.set(generation.share), now) {
                events.push_back(Event::Ready(generation.id));
            }
            watch.spare(sys::processor_time().saturating_sub(before), now);
        }
    }

    /// Learn which processes belong to which generation, and return all that there are. Without /proc only the main
    /// processes are known.
    pub(crate) fn survey(&mut self) -> Option<Processes> {
        let foreign = self.all.iter().filter(|generation| generation.is_foreign);
        let beside: Vec<Pid> =
            foreign.flat_map(|generation| [generation.pid].into_iter().chain(generation.members.alive())).collect();
        match Processes::read_with(&beside) {
            Ok(processes) => {
                self.learn(&processes);
                Some(processes)
            }
            Err(error) => {
                debug!("cannot read the processes: {error}");
                if is_shortage(&error) {
                    self.next_collection.get_or_insert(sys::now() + SHORTAGE_BACKOFF);
                    self.forget_reaped();
                }
                None
            }
        }
    }

    /// What can be learnt without a descriptor: reap those that have become our children, and forget what is gone.
    fn forget_reaped(&mut self) {
        for generation in &mut self.all {
            let main = generation.pid;
            generation.members.retain(|process| {
                if process.pid != main {
                    let _ = waitpid(process.pid, Some(WaitPidFlag::WNOHANG));
                }
                kill(process.pid, None) != Err(Errno::ESRCH)
            });
        }
    }

    fn learn(&mut self, processes: &Processes) {
        let foreign = self.all.iter().filter(|generation| generation.is_foreign && generation.ended.is_none());
        let apart: Vec<Pid> = foreign.map(|generation| generation.pid).collect();
        for generation in &mut self.all {
            generation.members.learn(processes, &apart);
        }
        self.adopt_confined(processes);
        let all: Vec<&Members> = self.all.iter().map(|generation| &generation.members).collect();
        let unknown: Vec<Process> = strangers(processes, Pid::this(), &all).copied().collect();
        for stranger in unknown {
            let directory = running_thread(stranger.pid).unwrap_or_else(|| format!("/proc/{}", stranger.pid));
            let Ok(environment) = fs::read(format!("{directory}/environ")) else { continue };
            let marked = self.all.iter().position(|generation| generation.marks(&environment));
            // One that writes its title over its environment, as nginx does, has a socket that no other generation has.
            if let Some(owner) = marked.or_else(|| self.only_owner_of(&stranger)) {
                self.all[owner].members.adopt(&stranger);
            }
        }
    }

    /// What is in a generation's cgroup and no other generation's by descent is its own.
    fn adopt_confined(&mut self, processes: &Processes) {
        for at in 0..self.all.len() {
            for pid in self.all[at].confined() {
                let process = processes.get(pid).copied().or_else(|| Process::read(pid));
                let is_known = |process: &Process| self.all.iter().any(|one| one.members.contains(process));
                if let Some(process) = process.filter(|process| !is_known(process)) {
                    self.all[at].members.adopt(&process);
                }
            }
        }
    }

    /// The place of the generation that alone was given a socket which this process has.
    fn only_owner_of(&self, process: &Process) -> Option<usize> {
        let file = |pid: &str| fs::read_link(format!("/proc/{pid}/exe")).ok();
        if file(&process.pid.to_string()) == file("self") {
            // A child of ours that is about to become a helper, and has all that we have.
            return None;
        }
        let held: Vec<SocketInode> = sockets(process.pid).collect();
        let has_its = |generation: &Generation| generation.given.iter().any(|inode| held.contains(inode));
        let mut owners = (0..self.all.len()).filter(|at| has_its(&self.all[*at]));
        owners.next().filter(|_| owners.next().is_none())
    }

    /// Children ended: reap the orphans among them, and take out the generations of which nothing is left and that
    /// `drains`. Only their owner may reap `helpers`.
    pub(crate) fn take_gone(&mut self, helpers: &[Pid], drains: impl Fn(Id) -> bool) -> Vec<Generation> {
        self.next_collection = None;
        let processes = self.survey();
        self.reap_orphans(processes.as_ref(), helpers);
        if processes.is_none() {
            self.forget_reaped();
        }
        // A process forked after the survey escaped SIGKILL; its parent's SIGCHLD brings us back, so kill again.
        for generation in self.all.iter_mut().filter(|generation| generation.killed && !generation.is_over()) {
            generation.kill();
        }
        // The end of one that does not drain yet is still to be handled.
        let gone = self.all.extract_if(.., |generation| generation.is_over() && drains(generation.id)).collect();
        if self.all.iter().any(|generation| generation.ended.is_some() && !generation.is_end_reported()) {
            self.next_collection.get_or_insert(sys::now() + REMAINDER_INTERVAL);
        }
        gone
    }

    /// Reap processes that were reparented to us.
    fn reap_orphans(&self, processes: Option<&Processes>, helpers: &[Pid]) {
        let is_held = |pid: Pid| helpers.contains(&pid) || self.all.iter().any(|generation| generation.pid == pid);
        let Some(processes) = processes else { return reap_unseen(is_held) };
        let ended = processes.children(Pid::this()).filter(|child| child.state == ProcessState::Zombie);
        for orphan in ended.filter(|child| !is_held(child.pid)) {
            let _ = waitpid(orphan.pid, Some(WaitPidFlag::WNOHANG));
        }
    }

    /// The processes of check commands.
    pub(crate) fn checks(&self) -> impl Iterator<Item = Pid> {
        let of_trial = |generation: &Generation| generation.trial_check.as_ref().map(Check::pid);
        let of_start = |generation: &Generation| generation.watch.as_ref()?.check_pid();
        self.all.iter().flat_map(move |generation| [of_trial(generation), of_start(generation)]).flatten()
    }

    /// End the check commands that run.
    pub(crate) fn stop_checks(&mut self) {
        for generation in &mut self.all {
            generation.trial_check = None;
            generation.watch.iter_mut().for_each(Watch::stop_check);
        }
    }

    /// Is a notification accepted? If it comes from root, our own user, or a process of the generation, which may be
    /// another user's by now.
    pub(crate) fn believes(&mut self, id: Id, notification: &Notification, now: Timestamp) -> bool {
        let sender = Pid::from_raw(notification.pid);
        let is_member = |all: &Generations| all.get(id).is_some_and(|generation| generation.has_member(sender));
        if [0, geteuid().as_raw()].contains(&notification.uid) || is_member(self) {
            return true;
        }
        // It may have been forked since the last survey; but a stranger that sends continually must not keep us busy.
        if now < self.next_stranger {
            return false;
        }
        self.next_stranger = now + STRANGER_INTERVAL;
        self.survey();
        is_member(self)
    }

    /// What the supervisor that takes the place of this one needs open.
    pub(crate) fn handed_on(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.all.iter().flat_map(Generation::handed_on)
    }

    pub(crate) fn save(&self) -> Vec<SavedGeneration> {
        self.all.iter().map(Generation::save).collect()
    }

    /// What a predecessor started. One that cannot be resumed is reported and left alone.
    pub(crate) fn resume(
        saved: Vec<SavedGeneration>,
        how: &Ready,
        dispositions: Dispositions,
        reach: Reach,
        claimed: &mut Claimed,
    ) -> Generations {
        let mut resume = |saved| {
            let resumed = Generation::resume(saved, how, dispositions, reach, claimed);
            resumed.map_err(|error| saved::lost(&format_args!("a generation: {error}"))).ok()
        };
        let all = saved.into_iter().filter_map(&mut resume).collect();
        Generations { all, ..Generations::default() }
    }

    /// Reap all main processes, at the end.
    pub(crate) fn reap_all(&mut self) {
        self.all.drain(..).for_each(Generation::reap);
    }
}

/// Log a warning if /proc cannot be read.
pub(crate) fn warn_without_proc() {
    if let Err(error) = are_visible() {
        warn!(
            "/proc cannot be read ({error}): of a generation only the main process is watched over, and only READY=1 \
             or --ready tells that it is ready"
        );
    }
}

/// Reap ended children, up to the first that `is_held`: waitid(2) does not report those behind it until it is reaped
/// itself.
fn reap_unseen(is_held: impl Fn(Pid) -> bool) {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(status) = waitid(WaitId::All, flags)
        && let Some(pid) = status.pid().filter(|pid| !is_held(*pid))
    {
        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    }
}
