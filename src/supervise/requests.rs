//! What is asked of the supervisor: by signals, and by clients of the control socket.

use log::{debug, info};
use nix::poll::PollFlags;
use nix::sys::signal::Signal;

use crate::config::{Form, Request, Rollout, Until};
use crate::supervise::Supervisor;
use crate::supervise::control::connection::{Client, WaitingFor};
use crate::supervise::control::protocol::{Call, Reply};
use crate::supervise::control::server::Wait;
use crate::supervise::control::status::Status;
use crate::supervise::generation::Generation;
use crate::supervise::plan::{Answer, Cause, Event, Id, Plan, StopMode};
use crate::supervise::signals::{Received, Sender};
use crate::sys;

impl Supervisor {
    pub(super) fn receive_signals(&mut self) {
        while let Some(received) = self.signals.next() {
            debug!("{received:?}");
            match Signal::try_from(received.number) {
                Ok(Signal::SIGCHLD) => {
                    self.see_stops();
                    self.collect_gone();
                }
                Ok(Signal::SIGHUP) => self.hang_up(received.sender),
                Ok(Signal::SIGTERM) => self.terminate(received),
                Ok(Signal::SIGINT) => self.stop(StopMode::Signal),
                // The keyboard's is typed by a user who no longer wants to wait; a process' is some servers' TERM.
                Ok(Signal::SIGQUIT) if received.sender == Sender::Kernel => self.stop(StopMode::Now),
                Ok(Signal::SIGQUIT) => self.stop(StopMode::Signal),
                Ok(Signal::SIGUSR2) => self.begin_upgrade(),
                // SIGWINCH of the terminal is not for the server; a process' signal is.
                _ if received.sender == Sender::Kernel => (),
                _ => self.pass_on(received.number),
            }
        }
    }

    /// HUP of the kernel, or of a shell whose terminal went just now, means that; any other asks for a reload.
    fn hang_up(&mut self, sender: Sender) {
        if sender == Sender::Kernel || self.terminal.went(sys::now()) {
            self.stop(StopMode::Drain);
        } else {
            self.reload(Rollout::default());
        }
    }

    /// TERM from a process of a generation that gets ready, or was seen ready just before it sent it, means that it took
    /// over from its parent, as some servers do.
    fn terminate(&mut self, received: Received) {
        match self.new_sender(received.sender) {
            Some(id) => {
                debug!("generation {id} asks its parent to end: it is ready");
                self.events.push_back(Event::Ready(id));
            }
            None => self.stop(StopMode::Signal),
        }
    }

    /// The new generation that this sender belongs to.
    fn new_sender(&mut self, sender: Sender) -> Option<Id> {
        let Sender::Process(pid) = sender else { return None };
        self.generations.survey();
        let now = sys::now();
        let is_new = |generation: &&Generation| self.plan.is_new(generation.id, now);
        let mut new = self.generations.iter().filter(is_new);
        new.find(|generation| generation.has_member(pid)).map(|generation| generation.id)
    }

    fn reload(&mut self, rollout: Rollout) {
        if self.is_watcher() {
            return;
        }
        if self.sockets.is_lent() {
            let why = "the sockets are lent to a successor: no generation is started";
            // The service manager that asked waits for the end of it.
            self.reporter.manager.reloading(why, sys::now());
            self.reporter.manager.ready(why);
            self.plan.reloads.refuse();
            return info!("{why}");
        }
        let plan = &self.plan;
        let ended =
            plan.serving.is_none() && !plan.starting.as_ref().is_some_and(|starting| starting.cause == Cause::First);
        if ended && plan.stopping.is_none() {
            // The service manager that asked waits for a reload, even where nothing is left to be replaced.
            self.reporter.manager.reloading("starting what has ended", sys::now());
        }
        self.events.push_back(Event::Reload(rollout));
    }

    pub(super) fn stop(&mut self, mode: StopMode) {
        if self.is_watcher() {
            return self.abandon_handover();
        }
        if self.plan.stopping.is_none() {
            self.reporter.manager.stopping("draining", self.config.limits.drain);
        }
        self.events.push_back(Event::Stop(mode));
    }

    fn begin_upgrade(&mut self) {
        if self.is_watcher() {
            return;
        }
        if self.sockets.is_lent() {
            return info!("the sockets are lent to a successor: this supervisor does not become another program");
        }
        if self.upgrade.is_under_way() {
            return info!("the new supervisor is being probed already");
        }
        let begun = self.upgrade.begin(&self.state(), self.signals.dispositions(), &self.handed_on());
        match begun {
            Ok(probe) => self.upgrade.probe = Some(probe),
            Err(error) => self.upgrade.refuse(&error),
        }
    }

    /// Pass a signal on to the generation that serves.
    fn pass_on(&mut self, signal: i32) {
        let Some(generation) = self.plan.serving.and_then(|serving| self.generations.get(serving.id)) else { return };
        if let Err(errno) = generation.signal(signal) {
            debug!("generation {}: cannot pass on signal {signal}: {errno}", generation.id);
        }
    }

    /// Something happened to the client in this place.
    pub(super) fn wake_client(&mut self, at: usize, flags: PollFlags) {
        match self.reporter.clients.wake(at, flags).map(|Call { request, .. }| request) {
            None => (),
            Some(Request::Reload { until, rollout }) => self.reload_for(at, until, rollout),
            Some(Request::Promote) => {
                self.end_handover(at, Event::Promote, |plan| plan.trial.is_some() || plan.standing.is_some());
            }
            Some(Request::Rollback) => self.end_handover(at, Event::Rollback, Plan::can_roll_back),
            Some(Request::Status(form)) => self.show_status(at, form),
            Some(Request::Lend { control }) => self.lend(at, control),
            Some(Request::Descriptors) => self.send_lent(at),
            Some(Request::Succeeded) => self.be_succeeded(at),
            Some(Request::Stop) => {
                let has_room = self.reporter.clients.has_room_to_wait(Wait::ForEnd);
                self.client(at, |client| match has_room {
                    true => client.waiting_for = WaitingFor::End,
                    false => client.end_with_error("the supervisor stops, but too many clients wait for that", 125),
                });
                self.stop(StopMode::Drain);
            }
        }
    }

    /// End what is under way, where it can be ended like this, at the request of a client.
    fn end_handover(&mut self, at: usize, event: Event, can: impl FnOnce(&Plan) -> bool) {
        self.handle_events();
        if !can(&self.plan) {
            let text = "no generation is on trial, and none stands by";
            return self.client(at, |client| client.end_with_error(text, 125));
        }
        self.events.push_back(event);
        self.handle_events();
        self.client(at, |client| client.end(0));
    }

    /// Why a trial cannot be made.
    fn cannot_try(&self, rollout: &Rollout) -> Option<String> {
        let growing = rollout.stages.windows(2).all(|stages| stages[0].percent < stages[1].percent);
        let mut shared = self.sockets.shared().map(|listener| listener.endpoint().map(|at| at.to_string()));
        match shared.next() {
            _ if self.plan.queued && self.plan.queued_rollout != *rollout => {
                Some("a reload waits already that is to take over in another way: try again when it is over".to_owned())
            }
            _ if rollout.stages.is_empty() => None,
            _ if !growing => Some("the shares of a trial have to grow".to_owned()),
            Some(address) => Some(format!(
                "a trial needs a socket for each generation, and {} is shared by all",
                address.unwrap_or_default()
            )),
            None if self.plan.serving.is_none() => Some("a trial needs a generation that serves".to_owned()),
            None => None,
        }
    }

    fn reload_for(&mut self, at: usize, until: Until, rollout: Rollout) {
        // Earlier events come first: the answer depends on them.
        self.handle_events();
        match self.answer(&rollout) {
            Err(why) => {
                self.plan.reloads.refuse();
                self.client(at, |client| client.end_with_error(&why, 125));
            }
            Ok(id) => {
                self.client(at, |client| client.waiting_for = WaitingFor::Generation { id, until });
                self.reload(rollout);
                self.handle_events();
            }
        }
    }

    /// Which generation a reload is to be, or why there is to be none.
    fn answer(&self, rollout: &Rollout) -> Result<Id, String> {
        if let Some(why) = self.cannot_try(rollout) {
            return Err(why);
        }
        if self.sockets.is_lent() {
            return Err("another process takes over from this supervisor".to_owned());
        }
        match self.plan.answer() {
            Answer::Refused => Err("the supervisor is stopping".to_owned()),
            Answer::Generation(_) if !self.reporter.clients.has_room_to_wait(Wait::ForReload) => {
                Err("too many clients are waiting for a reload".to_owned())
            }
            Answer::Generation(id) => Ok(id),
        }
    }

    fn show_status(&mut self, at: usize, form: Form) {
        self.generations.survey();
        let last_failure = self.reporter.last_failure.as_ref();
        let status = Status::of(&self.plan, &self.generations, &self.sockets, last_failure, sys::now());
        let lines = match form {
            Form::Table => status.table(),
            Form::Json => vec![status.json()],
        };
        self.client(at, |client| {
            lines.into_iter().for_each(|line| client.reply(&Reply::Output(line)));
            client.end(0);
        });
    }

    pub(super) fn client(&mut self, at: usize, act: impl FnOnce(&mut Client)) {
        if let Some(client) = self.reporter.clients.get_mut(at) {
            act(client);
        }
    }
}
