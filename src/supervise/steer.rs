//! Where new connections go, and the watch over those that are relieved and those that have not settled.

use anyhow::{Context, Result, anyhow};
use log::{debug, error, info, warn};

use crate::config::{Drain, Ready, Supervise};
use crate::kernel::socket_info::{States, addresses};
use crate::missing::Facility;
use crate::socket::group::{Look, Trial};
use crate::socket::listener::{Listener, Sharing};
use crate::socket::steering::Client;
use crate::socket::upkeep::Finding;
use crate::supervise::Supervisor;
use crate::supervise::generation::check::Check;
use crate::supervise::plan::{EARLIER, Event, Id};
use crate::supervise::sockets::{Share, Sockets};
use crate::supervise::wording::show;
use crate::sys::{self, Ending, Timestamp};

/// An odd number: different generations have different salts.
const SALT: u32 = 0x9e37_79b1;

/// What needs a socket for each generation, and what is reported where there is none.
pub(super) fn check(config: &Supervise, sockets: &Sockets) -> Result<()> {
    let address = |listener: &Listener| listener.endpoint().map(|endpoint| endpoint.to_string()).unwrap_or_default();
    let shared: Vec<String> = sockets.shared().map(address).collect();
    let needs = |option: &str, address: &str| {
        anyhow!("{option} needs a socket for each generation, and {address} is shared by all")
    };
    if let (Drain::Idle, Some(first)) = (config.limits.drain_how, shared.first()) {
        return Err(needs("--drain idle", first));
    }
    let reach = sockets.reach();
    match config.ready {
        Ready::Http(_) if reach.first.is_none() => {
            let first = sockets.listeners().next().map(address).unwrap_or_default();
            return Err(anyhow!(
                "--ready http: needs a TCP socket of its own for each generation as the first one, which can be reached \
                 from this machine; {first} is none"
            ));
        }
        Ready::Check(_) if !shared.is_empty() => {
            warn!(
                "--ready check: {} is shared, so another generation than the new one may answer",
                shared.join(" and ")
            );
        }
        Ready::Check(_) if reach.source.is_none() => {
            warn!("--ready check: there is no HANDOFF_SOURCE, so another generation than the new one may answer");
        }
        Ready::Check(_) => {
            for listener in sockets.beyond_source() {
                warn!(
                    "--ready check: {} is not reached from HANDOFF_SOURCE, so another generation may answer",
                    address(listener)
                );
            }
        }
        _ => (),
    }
    // Why none is steered was logged where that was found.
    if config.exec.manner.sharing == Sharing::Steered && !Facility::Steering.is_missing() {
        let alone: Vec<String> = sockets.shared().filter(|listener| listener.is_inet()).map(address).collect();
        if !alone.is_empty() {
            info!(
                "all generations share {}: only what is bound here, without reuseport, is steered",
                alone.join(" and ")
            );
        }
    }
    Ok(())
}

impl Supervisor {
    /// The sockets that the next generation is given: those where clients wait, if nobody serves.
    pub(super) fn share_for_next(&mut self) -> Result<Share> {
        let share = match self.plan.serving {
            None => self.sockets.serving(),
            Some(_) => {
                let used: Vec<Share> = self.generations.iter().map(|generation| generation.share).collect();
                let holders: Vec<String> =
                    self.generations.iter().map(|generation| generation.id.to_string()).collect();
                let context = || format!("all sockets are in use, by the generations {}", holders.join(", "));
                self.sockets.unused(&used).with_context(context)?
            }
        };
        let before = self.owner_of(share);
        let dropped = self.sockets.give(share, self.plan.next - 1);
        if let Some(owner) = before.filter(|_| dropped > 0) {
            self.reporter.dropped(owner, dropped);
        }
        Ok(share)
    }

    fn owner_of(&self, share: Share) -> Option<Id> {
        match share {
            Share::Slot(slot) => self.sockets.owner(slot),
            Share::One => None,
        }
    }

    /// All new connections go to this generation.
    pub(super) fn steer(&mut self, id: Id) {
        // What it did to its socket while it started may have changed the order of all.
        self.look_after_sockets();
        self.check_tried(id);
        let Some(share) = self.generations.get(id).map(|generation| generation.share) else { return };
        let before = self.sockets.serving();
        if let Err(error) = self.sockets.steer(share) {
            error!("generation {id}: new connections cannot be led to it: {error:#}");
            self.events.push_back(Event::Left(id));
        }
        if share != before {
            let is_idle_awaited = self.config.limits.drain_how == Drain::Idle;
            let old = self.generations.iter_mut().filter(|generation| generation.share == before);
            for generation in old {
                generation.is_just_relieved = true;
                if is_idle_awaited {
                    generation.note_present(&self.sockets);
                }
            }
        }
        self.free_sockets();
        // A trial that it ends has no check any more.
        self.generations.iter_mut().for_each(|generation| generation.trial_check = None);
    }

    /// This percentage of new connections goes to this generation, on trial.
    pub(super) fn share(&mut self, id: Id, percent: u8) {
        self.check_tried(id);
        let Some(generation) = self.generations.get_mut(id) else { return };
        // The next stage has a check of its own.
        generation.trial_check = None;
        let is_sticky = self.plan.trial.as_ref().is_some_and(|trial| trial.rollout.sticky);
        // Each trial is made with other clients; the next supervisor goes on with the same.
        let salt = (id as u32).wrapping_mul(SALT);
        let serving = self.plan.serving.and_then(|serving| self.generations.get(serving.id));
        let (Some(serving), Some(generation)) = (serving, self.generations.get(id)) else { return };
        let trial = Trial { slot: generation.share.slot(), percent, is_sticky, salt };
        if let Err(error) = self.sockets.try_out(serving.share, trial) {
            error!("generation {id}: no share of new connections can be led to it: {error:#}");
            self.events.push_back(Event::Left(id));
        }
    }

    /// A generation is ready, and gets a share of new connections from now on, or a larger one.
    pub(super) fn try_out(&mut self, id: Id, percent: u8) {
        let now = sys::now();
        let Some(generation) = self.generations.get_mut(id) else { return };
        let after = generation.age(now);
        if generation.watch.take().is_some() {
            self.reporter.progress(id, &format!("ready after {}", show(after)));
            self.watch_sockets();
        }
        self.reporter.on_trial(id, percent);
    }

    /// Watch whether those keep their sockets of which that counts, and no others.
    pub(super) fn watch_sockets(&mut self) {
        // A socket may be a worker's that was forked since.
        self.generations.survey();
        for generation in self.generations.iter_mut().filter(|generation| !self.plan.is_draining(generation.id)) {
            match self.plan.is_watched(generation.id) {
                true => generation.note_sockets(&self.sockets),
                false => generation.settle(),
            }
        }
    }

    /// Clients may wait for generations that a predecessor of this supervisor told to stop.
    pub(super) fn resume_waits(&mut self) {
        let told = self.plan.draining.iter().filter(|draining| draining.stop.is_none()).map(|draining| draining.id);
        for id in told {
            if let Some(generation) = self.generations.get_mut(id) {
                generation.resume_waiting(&self.sockets);
            }
        }
    }

    /// Run the check at the end of a stage.
    pub(super) fn check(&mut self, id: Id) {
        let Some(trial) = &self.plan.trial else { return };
        let Some(command) = &trial.rollout.check else { return };
        let mut variables = vec![format!("HANDOFF_GENERATION={id}"), format!("HANDOFF_SHARE={}", trial.percent())];
        variables.extend(self.sockets.reach().source.map(|source| format!("HANDOFF_SOURCE={source}")));
        let Some(generation) = self.generations.get_mut(id) else { return };
        match Check::start(command, generation.pid, &variables, self.signals.dispositions()) {
            Ok(check) => generation.trial_check = Some(check),
            Err(error) => {
                error!("generation {id}: cannot run the check: {error:#}");
                self.events.push_back(Event::Checked(id, false));
            }
        }
    }

    /// See whether the check of a trial has ended, of which SIGCHLD told.
    pub(super) fn observe_check(&mut self) {
        let Some(id) = self.plan.trial.as_ref().map(|trial| trial.id) else { return };
        let Some(generation) = self.generations.get_mut(id) else { return };
        if let Some(ending) = generation.trial_check.as_mut().and_then(Check::ending) {
            generation.trial_check = None;
            generation.last_check = Some(ending);
            self.events.push_back(Event::Checked(id, ending == Ending::Exited(0)));
        }
    }

    /// List the connections that were being made when a generation was relieved: they will still be its own. That takes
    /// the kernel some milliseconds, for which no client has to wait.
    pub(super) fn list_handshakes(&mut self) {
        let mut relieved = self.generations.iter_mut().filter(|generation| generation.is_just_relieved).peekable();
        if relieved.peek().is_some()
            && let Ok(begun) = self.sockets.peers(States::HANDSHAKE).map(addresses)
        {
            for generation in relieved {
                generation.is_just_relieved = false;
                generation.handshakes.clone_from(&begun);
            }
        }
    }

    /// What nobody has any more is emptied.
    pub(super) fn free_sockets(&mut self) {
        let alive = self.generations.iter().filter(|generation| !generation.is_over());
        let used: Vec<Share> = alive.map(|generation| generation.share).collect();
        self.sockets.free_all_but(&used);
    }

    /// Lead what asks a generation that gets ready to that generation.
    pub(super) fn lead_probes(&mut self) {
        let Some(watched) = self.generations.iter_mut().find(|generation| generation.watch.is_some()) else {
            // What the check of a trial sends; else nobody is to be led any more. An error leaves it as it was.
            let tried = self.plan.trial.as_ref().and_then(|trial| self.generations.get(trial.id));
            let source = tried.and_then(|_| self.sockets.reach().source);
            let client = source.zip(tried).map(|(source, tried)| (Client::Address(source.into()), tried.share));
            let _ = self.sockets.except(client);
            return;
        };
        let share = watched.share;
        let Some(watch) = &mut watched.watch else { return };
        match self.sockets.except(watch.client().map(|client| (client, share))) {
            Ok(()) => watch.lead(sys::now()),
            Err(error) => debug!("a probe cannot be led: {error:#}"),
        }
    }

    /// Wait until nothing waits for a generation that was relieved, or for what is left of it.
    pub(super) fn release(&mut self, id: Id) {
        let drain_how = if id < EARLIER { self.config.limits.drain_how } else { Drain::Idle };
        if self.generations.get(id).is_some_and(|generation| generation.ended.is_some()) {
            // Its workers may have ended with it: then nobody accepts what waits.
            self.generations.survey();
        }
        match self.generations.get_mut(id) {
            Some(generation) if id >= EARLIER => generation.begin_release(drain_how, sys::now()),
            Some(generation) if matches!(generation.share, Share::Slot(_)) && !generation.is_over() => {
                generation.begin_release(drain_how, sys::now());
            }
            _ => self.events.push_back(Event::Released(id)),
        }
    }

    /// See whether those that are relieved may stop, and whether the one that has not settled still accepts.
    pub(super) fn observe_handover(&mut self, now: Timestamp) {
        self.list_handshakes();
        let is_due = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        if !self.generations.iter().any(|generation| is_due(generation.next_look())) {
            return;
        }
        let (before, mut abandoned) = (sys::processor_time(), vec![]);
        // Of a datagram socket that was shut down nothing wakes us.
        self.look_after_sockets();
        self.generations.survey();
        for generation in self.generations.iter_mut().filter(|generation| is_due(generation.next_look())) {
            if let Some(held) = generation.given_up(&self.sockets, now) {
                abandoned.push((generation.share, held));
            }
            if generation.is_released(&self.sockets, now) {
                self.events.push_back(Event::Released(generation.id));
            }
            if self.plan.is_watched(generation.id) && generation.has_left(&self.sockets, now) {
                self.events.push_back(Event::Left(generation.id));
            }
        }
        let cost = sys::processor_time().saturating_sub(before);
        self.generations.iter_mut().for_each(|generation| generation.spare_looks(cost, now));
        if !abandoned.is_empty() {
            abandoned.into_iter().for_each(|(share, held)| self.sockets.free_closed(share, &held));
            self.look_after_sockets();
        }
    }

    /// Report what a look at a group has brought.
    pub(super) fn report_look(&mut self, look: Look) {
        for slot in look.left {
            let owner = self.sockets.owner(slot);
            debug!("slot {slot} of generation {owner:?} was shut down");
            let left = owner.filter(|id| self.plan.is_watched(*id));
            self.events.extend(left.map(Event::Left));
        }
        look.findings.into_iter().for_each(|finding: Finding| self.reporter.found(finding));
        for (slot, count) in look.dropped {
            if let Some(owner) = self.sockets.owner(slot) {
                self.reporter.dropped(owner, count);
            }
        }
    }

    /// An event as it is: a generation that is ready cannot serve where somebody else listens beside it.
    pub(super) fn verify(&mut self, event: Event) -> Event {
        let Event::Ready(id) = event else { return event };
        if self.plan.is_starting(id) && self.is_crowded_out(id) { Event::Left(id) } else { event }
    }

    /// Would somebody else get what is for this generation? That is reported.
    fn is_crowded_out(&mut self, id: Id) -> bool {
        let strangers = self.sockets.strangers();
        let Some((address, _)) = strangers.first() else { return false };
        let text =
            format!("some process listens on {address} beside our sockets, and would take connections from them");
        let remedy = "a server that binds the address itself, once per worker (SO_REUSEPORT), needs --shared";
        self.reporter.failure(id, &text, Some(remedy));
        true
    }

    /// The same of one that was ready before: the end of a stage is another such moment.
    fn check_tried(&mut self, id: Id) {
        let is_tried = self.generations.get(id).is_some_and(|generation| generation.watch.is_none());
        if is_tried && self.plan.is_unsettled(id) && self.is_crowded_out(id) {
            self.events.push_back(Event::Left(id));
        }
    }
}
