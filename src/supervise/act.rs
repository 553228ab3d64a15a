//! Carry out the plan's orders on processes, and feed it the events of processes.

use std::ffi::CString;

use anyhow::Result;
use log::{debug, error, warn};
use nix::unistd::Pid;

use crate::failure::ExitStatus;
use crate::kernel::cgroup::Cgroup;
use crate::pid_file::PidFile;
use crate::supervise::Supervisor;
use crate::supervise::diagnosis::{cut_short, gone_to_background};
use crate::supervise::generation::Generation;
use crate::supervise::generation::child::Launch;
use crate::supervise::generation::descriptors::Role;
use crate::supervise::plan::{Event, Id, Order, Outcome, PREDECESSOR, Reason, Transition};
use crate::supervise::sockets::Share;
use crate::supervise::wording::connections;
use crate::sys;
use crate::target::Handing;

/// At most this many notifications of one generation are read before the others are handled.
const NOTIFICATIONS_AT_ONCE: usize = 64;

impl Supervisor {
    pub(super) fn carry_out(&mut self, orders: Vec<Order>) {
        for order in orders {
            debug!("{order:?}");
            match order {
                Order::Start(id) => self.start(id),
                Order::Steer(id) => self.steer(id),
                Order::Share(id, percent) => self.share(id, percent),
                Order::Check(id) => self.check(id),
                Order::Release(id) => self.release(id),
                Order::Retire(id) => self.retire(id),
                Order::Kill(id) => self.kill(id),
                Order::Report(id, transition) => self.report(id, transition),
                Order::Finish(status) => self.finished = Some(status),
            }
        }
    }

    fn report(&mut self, id: Id, transition: Transition) {
        if self.plan.reloads.end(id, transition, &self.reporter.broken, sys::now()) == Some(Outcome::Succeeded) {
            // What failed before is mended.
            self.reporter.last_failure = None;
        }
        match transition {
            Transition::Serves => self.serve(id),
            Transition::TimedOut => self.time_out(id),
            Transition::GivenUp => self.reporter.given_up(id, self.config.limits),
            Transition::RolledBack(reason) => self.roll_back(id, reason),
            Transition::Settled => self.settle(id),
            Transition::OnTrial(percent) => self.try_out(id, percent),
            _ => self.reporter.transition(id, transition, &self.plan),
        }
    }

    fn start(&mut self, id: Id) {
        self.look_after_sockets();
        self.reporter.starting(id, &self.plan, self.config.limits, sys::now());
        let launched = self.share_for_next().and_then(|share| self.launch(id, share));
        match launched {
            Ok(generation) => {
                self.reporter.progress(id, &format!("started (pid {})", generation.pid));
                self.generations.add(generation);
            }
            Err(error) => {
                // The sockets were given to nobody.
                self.free_sockets();
                self.reporter.failure(id, &format!("cannot be started: {error:#}"), None);
                self.events.push_back(Event::Ended(id, ExitStatus::Ours as u8));
            }
        }
    }

    fn launch(&mut self, id: Id, share: Share) -> Result<Generation> {
        let program = &self.config.exec.program;
        let confinement = self.delegation.as_ref().and_then(|delegation| delegation.make(id));
        let cgroup = confinement.as_ref().map(|(cgroup, _)| cgroup);
        let launch = Launch {
            program,
            handout: self.sockets.handout(share, program),
            dispositions: self.signals.dispositions(),
            directory: self.directory.as_deref(),
            generation: id,
            cgroup,
            variables: Vec::<CString>::new(),
            filter: self.filter(),
            watchdog: self.reporter.manager.watchdog(),
        };
        let started = Generation::start(launch, share, &self.config.ready, self.sockets.reach(), sys::now());
        if started.is_err() {
            let _ = cgroup.map(Cgroup::remove);
        }
        let mut generation = started?;
        confinement.into_iter().for_each(|(cgroup, events)| generation.confine(cgroup, events));
        if program.handing == Handing::Descriptors {
            generation.given = self.sockets.set(share).inodes;
        }
        Ok(generation)
    }

    /// Ask a generation to stop.
    fn retire(&mut self, id: Id) {
        self.generations.survey();
        let Some(generation) = self.generations.get_mut(id) else {
            self.events.push_back(Event::Gone(id));
            return;
        };
        // Before the signal: it may end at once.
        let held = generation.ended.is_none().then(|| generation.connections(&self.sockets));
        let waiting = generation.end_release(&self.sockets);
        let (pid, is_there) = (generation.pid, generation.ended.is_none());
        if id == PREDECESSOR && is_there {
            self.warn_of_manager(pid);
        }
        let signal = self.stop_signal(id);
        let Some(generation) = self.generations.get_mut(id) else { return };
        generation.retire(signal);
        if let Some(held) = held {
            generation.asked_to_stop = held.map(|held| (sys::now(), held));
            self.reporter.progress(id, &format!("draining{}", connections(held)));
        }
        if waiting > 0 {
            self.reporter.still_waiting(id, waiting);
        }
        self.collect_gone();
    }

    fn kill(&mut self, id: Id) {
        self.generations.survey();
        match self.generations.get_mut(id) {
            None => self.events.push_back(Event::Gone(id)),
            Some(generation) => {
                generation.kill();
                self.collect_gone();
            }
        }
    }

    /// A generation is ready, and serves from now on.
    fn serve(&mut self, id: Id) {
        let now = sys::now();
        let Some(generation) = self.generations.get_mut(id) else { return };
        // One that was on trial is no longer watched.
        let after = generation.watch.take().map(|_| generation.age(now));
        self.watch_sockets();
        let Some(generation) = self.generations.get(id) else { return };
        if let Some(warning) = generation.name().and_then(|name| cut_short(&name, self.config.limits.drain)) {
            warn!("generation {id}: {warning}");
        }
        self.sockets.settle_versions();
        self.look_after_sockets();
        self.warn_of_opened(id);
        // Before it is reported: a manager or a script looks for it then.
        self.write_pid_file();
        self.reporter.serves(id, after, &self.plan, now);
    }

    /// A generation that serves has settled.
    fn settle(&mut self, id: Id) {
        self.watch_sockets();
        self.reporter.settled(id, &self.plan);
        if self.is_watcher() {
            self.let_successor_go();
        }
    }

    /// A generation that was on trial, or had not settled, makes room for the one that serves again.
    fn roll_back(&mut self, id: Id, reason: Reason) {
        if let Some(generation) = self.generations.get(id).filter(|_| reason == Reason::Left)
            && let Some(held) = generation.still_held(&self.sockets)
        {
            // A socket that it has closed is nobody's, though it lives.
            self.sockets.free_closed(generation.share, &held);
        }
        // What waited for it is reset.
        self.look_after_sockets();
        self.watch_sockets();
        let generation = self.generations.get(id);
        let ending = match reason {
            Reason::Check => generation.and_then(|generation| generation.last_check),
            _ => generation.and_then(|generation| generation.ended),
        };
        let held = generation.and_then(|generation| generation.last_held);
        self.reporter.rolled_back(id, reason, ending, held, &self.plan);
    }

    /// The supervisor's pid, once something serves.
    fn write_pid_file(&mut self) {
        let Some(path) = self.config.exec.pid_file.as_deref().filter(|_| self.pid_file.is_none()) else { return };
        match PidFile::write(path, self.announced_pid()) {
            Ok(pid_file) => self.pid_file = Some(pid_file),
            // An error is no reason to stop serving.
            Err(error) => error!("{error:#}"),
        }
    }

    /// A descriptor of a generation can be read.
    pub(super) fn wake_generation(&mut self, id: Id, role: Role) {
        match role {
            Role::Pidfd => self.see_end(id),
            Role::Notify => self.read_notifications(id),
            Role::Ready => {
                if self.generations.get_mut(id).is_some_and(Generation::read_ready) {
                    self.events.push_back(Event::Ready(id));
                }
            }
            Role::Probe => {
                let watch = self.generations.get_mut(id).and_then(|generation| generation.watch.as_mut());
                watch.into_iter().for_each(|watch| watch.look_now(sys::now()));
            }
            Role::NotifierChannel => {
                self.generations.get_mut(id).into_iter().for_each(Generation::receive_notifier);
            }
            Role::Notifier => self.answer_binds(id),
            Role::Cgroup => {
                self.generations.get_mut(id).into_iter().for_each(Generation::see_events);
                self.collect_gone();
            }
            Role::ExecError | Role::Lender | Role::Other => (),
        }
    }

    /// The main process of a generation ended.
    fn see_end(&mut self, id: Id) {
        // While it is still in the process table: its group and children are found through it.
        self.generations.survey();
        let Some(ending) = self.generations.get_mut(id).and_then(Generation::see_end) else { return };
        if self.is_watcher() {
            self.adopt_holders(id);
        }
        self.look_after_sockets();
        if self.goes_on_without_main(id) {
            self.reporter.progress(id, "its main process has ended, and others of it serve on");
            return self.generations.collect_soon();
        }
        let Some(generation) = self.generations.get(id) else { return };
        let exec_error = generation.exec_error();
        let undrained = generation.died_of(self.stop_signal(id), ending, sys::now());
        if self.plan.is_starting(id) {
            self.report_failed_start(id, ending, exec_error);
        } else if self.plan.is_unsettled(id) {
            // It is rolled back, which is reported then.
        } else if self.plan.is_serving(id) {
            let left = self.generations.get(id).map_or(0, |generation| generation.members.alive().len());
            let daemon = gone_to_background(ending, left);
            self.reporter.ended_unasked(id, &exec_error.unwrap_or(ending.to_string()), daemon);
        } else if let Some((after, held)) = undrained {
            self.reporter.ended_without_draining(id, ending, after, held);
        }
        debug!("generation {id}: {ending}");
        self.events.push_back(Event::Ended(id, ending.status()));
    }

    /// What is not ours to start again is there as long as any of its processes serves: the workers of a master, or the
    /// generation of a supervisor.
    fn goes_on_without_main(&mut self, id: Id) -> bool {
        if id != PREDECESSOR || !self.plan.is_predecessor_needed() {
            return false;
        }
        let predecessor = self.generations.get_mut(id).filter(|predecessor| predecessor.ended.is_some());
        predecessor.is_some_and(|predecessor| predecessor.serves_on(&self.sockets))
    }

    /// Processes ended: reap them, and see which generations are gone.
    pub(super) fn collect_gone(&mut self) {
        self.collect_all();
        if self.is_watcher() && self.generations.iter().any(|generation| generation.ended.is_some()) {
            // They are no children of ours, and who deploys next waits for the end of this process.
            self.generations.collect_soon();
        }
        let has_ended = |generation: &Generation| generation.ended.is_some();
        let is_told = self.events.iter().any(|event| matches!(event, Event::Ended(PREDECESSOR, _)));
        let is_needed = self.plan.is_predecessor_needed() && !is_told;
        if is_needed && self.generations.get(PREDECESSOR).is_some_and(has_ended) {
            match self.goes_on_without_main(PREDECESSOR) {
                true => self.generations.collect_soon(),
                false => {
                    self.reporter.ended_unasked(PREDECESSOR, "what was left of it serves no more", None);
                    self.events.push_back(Event::Ended(PREDECESSOR, 1));
                }
            }
        }
    }

    fn collect_all(&mut self) {
        let helpers: Vec<Pid> = self.generations.checks().chain(self.upgrade.probe_pid()).collect();
        let gone = self.generations.take_gone(&helpers, |id| self.plan.is_draining(id));
        if !gone.is_empty() {
            self.free_sockets();
            self.look_after_sockets();
        }
        for generation in gone {
            if let [first, ..] = generation.unkillable() {
                let text = format!("process {first} is another user's and may not be killed: it is left as it is");
                self.reporter.failure(generation.id, &text, None);
            }
            self.events.push_back(Event::Gone(generation.id));
            if generation.id == PREDECESSOR {
                self.succeeded();
            }
            generation.reap();
        }
    }

    /// Processes were stopped or continued: report it of the main ones. One that drains is continued by us.
    pub(super) fn see_stops(&mut self) {
        for generation in self.generations.iter_mut() {
            match generation.see_stop() {
                Some(Some(signal)) => self.reporter.stopped(generation.id, signal),
                Some(None) if generation.ended.is_none() && !self.plan.is_draining(generation.id) => {
                    self.reporter.progress(generation.id, "goes on");
                }
                _ => (),
            }
        }
    }

    /// One that has not settled and is stopped serves nobody.
    pub(super) fn see_stopped(&mut self) {
        let is_stopped = |generation: &&Generation| self.plan.is_unsettled(generation.id) && generation.is_stopped();
        let stopped = self.generations.iter().find(is_stopped).map(|generation| generation.id);
        if let Some(id) = stopped {
            // Its SIGCHLD may still be on its way, and the cause is reported first.
            self.see_stops();
            self.events.push_back(Event::Left(id));
        }
    }

    /// Repair what generations did to their sockets. At the end of all they may do as they like, unless somebody has those
    /// sockets after us.
    pub(super) fn look_after_sockets(&mut self) {
        if !self.keeps_sockets() {
            return;
        }
        for look in self.sockets.look_after() {
            self.report_look(look);
        }
        self.reporter.broken = self.sockets.problems().flatten().map(str::to_owned).collect();
    }

    fn read_notifications(&mut self, id: Id) {
        let now = sys::now();
        // The sender may be younger than the last survey, and have left the group.
        if self.generations.get(id).is_some_and(|generation| generation.watch.is_some()) {
            self.generations.survey();
        }
        let mut keep_alive = false;
        // Limited, so that a flood does not keep us from the rest.
        for _ in 0..NOTIFICATIONS_AT_ONCE {
            let Some(notification) = self.generations.get(id).and_then(Generation::next_notification) else { break };
            debug!("generation {id}: {:?} from pid {}", notification.text, notification.pid);
            let believed = self.generations.believes(id, &notification, now);
            let Some(generation) = self.generations.get_mut(id) else { break };
            if !believed {
                warn_of_stranger(generation, notification.pid);
                continue;
            }
            if let Some(watch) = generation.watch.as_mut().filter(|_| notification.has("READY=1")) {
                watch.notify(now);
            }
            keep_alive |= notification.has("WATCHDOG=1");
        }
        if keep_alive && self.plan.is_serving(id) {
            self.reporter.manager.alive();
        }
    }
}

/// Once: a stranger that sends a thousand notifications must not fill the log.
fn warn_of_stranger(generation: &mut Generation, pid: i32) {
    if !std::mem::replace(&mut generation.stranger_reported, true) {
        warn!("generation {}: ignoring notifications of pid {pid}, which does not belong to it", generation.id);
    }
}
