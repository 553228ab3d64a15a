//! What the plan orders, carried out on processes, and what becomes of processes, told to the plan.

use std::time::Duration;

use anyhow::Result;
use log::{debug, warn};
use nix::unistd::{Pid, geteuid};

use crate::failure::ExitStatus;
use crate::supervise::generation::child::Start;
use crate::supervise::generation::notify_socket::Message;
use crate::supervise::generation::ready::Watch;
use crate::supervise::generation::{Generation, has_member, survey};
use crate::supervise::plan::{Event, Id, Moment, Order};
use crate::supervise::{Supervisor, report};
use crate::sys;
use crate::target::handout::Handout;

/// So many messages of one generation are read before the others have their turn.
const MESSAGES_AT_ONCE: usize = 64;

/// Strangers at a notify socket cause no more than one look at all processes in this time.
const STRANGER_PAUSE: Duration = Duration::from_millis(50);

impl Supervisor {
    pub(super) fn carry_out(&mut self, orders: Vec<Order>) {
        for order in orders {
            debug!("{order:?}");
            match order {
                Order::Start(id) => self.start(id),
                Order::Retire(id) => self.retire(id),
                Order::Kill(id) => self.kill(id),
                Order::Tell(id, news) => self.tell(id, news),
                Order::Finish(status) => self.finished = Some(status),
            }
        }
    }

    pub(super) fn start(&mut self, id: Id) {
        let now = sys::now();
        self.announce_start(id, now);
        match self.try_start(id, now) {
            Ok(generation) => {
                self.say(id, &format!("started (pid {})", generation.child.pid));
                self.generations.push(generation);
            }
            Err(error) => {
                self.complain(id, &format!("cannot be started: {error:#}"), None);
                self.events.push_back(Event::Ended(id, ExitStatus::Ours as u8));
            }
        }
    }

    pub(super) fn try_start(&mut self, id: Id, now: Moment) -> Result<Generation> {
        let start = Start {
            program: &self.config.exec.program,
            handout: Handout::of(&self.listeners, &self.config.exec.program),
            signals: self.signals.inherited(),
            directory: self.directory.as_ref(),
            generation: id,
            variables: vec![],
            watchdog: self.manager.watchdog(),
        };
        let watch = Watch::begin(&self.config.ready, &self.sockets, self.signals.inherited(), now)?;
        Generation::start(start, watch, now)
    }

    pub(super) fn retire(&mut self, id: Id) {
        let signal = self.config.stop_signal;
        self.survey();
        let Some(generation) = self.generation(id) else {
            self.events.push_back(Event::Gone(id));
            return;
        };
        generation.watch = None;
        generation.retire(signal);
        if generation.ended.is_none() {
            let connections = self.connections(id);
            self.say(id, &format!("draining{}", report::connections(connections)));
        }
        self.see_who_is_gone();
    }

    pub(super) fn kill(&mut self, id: Id) {
        self.survey();
        match self.generation(id) {
            None => self.events.push_back(Event::Gone(id)),
            Some(generation) => {
                generation.watch = None;
                generation.kill();
                self.see_who_is_gone();
            }
        }
    }

    pub(super) fn generation(&mut self, id: Id) -> Option<&mut Generation> {
        self.generations.iter_mut().find(|generation| generation.id == id)
    }

    /// See who belongs to whom, and reap orphans.
    pub(super) fn survey(&mut self) {
        let watches = self.generations.iter().filter_map(|generation| generation.watch.as_ref());
        let upgrade = self.upgrade.as_ref().map(|check| check.pid);
        let checks: Vec<Pid> = watches.filter_map(Watch::check_pid).chain(upgrade).collect();
        survey(&mut self.generations, &checks);
    }

    /// The main process of a generation ended.
    pub(super) fn see_end(&mut self, id: Id) {
        // Before it is gone from the table: its group and its children are found through it.
        self.survey();
        let Some(generation) = self.generation(id) else { return };
        let Some(ending) = generation.see_end() else { return };
        let complaint = generation.child.complaint();
        let never_ran = complaint.is_some();
        let was_ready = generation.watch.is_none();
        generation.watch = None;
        let reason = complaint.unwrap_or_else(|| ending.to_string());
        if self.plan.starting.is_some_and(|starting| starting.id == id) {
            self.failed_to_start(id, &reason, never_ran);
        } else if self.plan.serving.is_some_and(|serving| serving.id == id) {
            self.last_failure = Some(format!("generation {id}: {reason}"));
            self.say(id, &reason);
        }
        debug!("generation {id}: {ending}, ready before: {was_ready}");
        self.events.push_back(Event::Ended(id, ending.status()));
    }

    /// A process ended: perhaps the last of a generation.
    pub(super) fn see_who_is_gone(&mut self) {
        self.survey();
        // Who was born between the last look and the signal was not hit; its parent's end is what brings us here.
        for generation in self.generations.iter_mut().filter(|generation| generation.killed && !generation.is_over()) {
            generation.kill();
        }
        let (over, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.generations).into_iter().partition(Generation::is_over);
        self.generations = left;
        for generation in over {
            let id = generation.id;
            if self.plan.draining.iter().any(|draining| draining.id == id) {
                generation.reap();
                self.events.push_back(Event::Gone(id));
            } else {
                // Its end is still to be handled.
                self.generations.push(generation);
            }
        }
    }

    /// Look at those that get ready.
    pub(super) fn look(&mut self) {
        let now = sys::now();
        let due = |watch: &Watch| watch.deadline().is_some_and(|deadline| deadline <= now);
        if !self.generations.iter().any(|generation| generation.watch.as_ref().is_some_and(due)) {
            return;
        }
        self.survey();
        for generation in &mut self.generations {
            let Some(watch) = &mut generation.watch else { continue };
            let members = &generation.members;
            if watch.look(|| members.alive(), &self.listeners, now) {
                self.events.push_back(Event::Ready(generation.id));
            }
        }
    }

    pub(super) fn read_inbox(&mut self, id: Id) {
        let now = sys::now();
        // Who speaks may be younger than the last look, and have left the group.
        if self.generation(id).is_some_and(|generation| generation.watch.is_some()) {
            self.survey();
        }
        let serves = self.plan.serving.is_some_and(|serving| serving.id == id);
        let mut watchdog = false;
        // Whoever floods us does not keep us from the rest.
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(message) = self.generation(id).and_then(|generation| generation.inbox.next()) else { break };
            debug!("generation {id}: {:?} from pid {}", message.text, message.pid);
            if !self.is_heard(id, &message) {
                self.ignore_stranger(id, message.pid);
                continue;
            }
            if message.says("READY=1")
                && let Some(watch) = self.generation(id).and_then(|generation| generation.watch.as_mut())
            {
                watch.tell(now);
            }
            watchdog |= message.says("WATCHDOG=1");
        }
        if watchdog && serves {
            self.manager.alive();
        }
    }

    /// Once: whoever sends a thousand messages shall not fill the log.
    fn ignore_stranger(&mut self, id: Id, pid: i32) {
        let Some(generation) = self.generation(id) else { return };
        if !std::mem::replace(&mut generation.heard_stranger, true) {
            warn!("generation {id}: what pid {pid} sends, which is not of it, is ignored");
        }
    }

    /// Root, our own user, and whoever the generation itself made another user.
    fn is_heard(&mut self, id: Id, message: &Message) -> bool {
        let ours = [0, geteuid().as_raw()].contains(&message.uid);
        let sender = Pid::from_raw(message.pid);
        let mut is_member = || self.generation(id).is_some_and(|generation| has_member(generation, sender));
        if ours || is_member() {
            return true;
        }
        // It may have been born since the last look; but a stranger who talks all the time is not to keep us busy.
        let now = sys::now();
        if now < self.next_stranger {
            return false;
        }
        self.next_stranger = now + STRANGER_PAUSE;
        self.survey();
        self.generation(id).is_some_and(|generation| has_member(generation, sender))
    }
}
