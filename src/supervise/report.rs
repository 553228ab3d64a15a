//! What is said of the generations: in the log, to whoever waits at the control socket, and to the service manager.

use log::{error, info};

use crate::config::{Form, Until};
use crate::kernel::connections::{held_by, open_connections};
use crate::kernel::elsewhere::listening_elsewhere;
use crate::kernel::processes::are_visible;
use crate::supervise::control::status::{GenerationStatus, ListenerStatus, Status, show};
use crate::supervise::control::{Client, Live, Wants};
use crate::supervise::plan::{Cause, Id, Moment, News};
use crate::supervise::{LIVE_PAUSE, Supervisor, own_pid};
use crate::sys;
use crate::target::pid_file::PidFile;

/// What helps when a server did not take the socket.
const TAKE_IT: &str = "its socket is open at descriptor 3 and announced in LISTEN_FDS; \
                       see 'handoff-run --help-servers' for how servers take it";

impl Supervisor {
    /// Say something of a generation, to everyone who listens.
    pub(super) fn say(&mut self, id: Id, text: &str) {
        info!("generation {id}: {text}");
        if let Some(control) = &mut self.control {
            control.tell_all(&format!("at {id} {text}"));
        }
    }

    /// Say what went wrong, with what helps.
    pub(super) fn complain(&mut self, id: Id, text: &str, remedy: Option<&str>) {
        self.last_failure = Some(format!("generation {id}: {text}"));
        error!("generation {id}: {text}");
        if let Some(remedy) = remedy {
            error!("{remedy}");
        }
        let Some(control) = &mut self.control else { return };
        control.tell_all(&format!("error generation {id}: {text}"));
        if let Some(remedy) = remedy {
            control.tell_all(&format!("error {remedy}"));
        }
    }

    /// A generation ended before it was ready.
    pub(super) fn failed_to_start(&mut self, id: Id, reason: &str, never_ran: bool) {
        if never_ran {
            return self.complain(id, reason, None);
        }
        let addresses: Vec<String> =
            self.listeners.iter().filter_map(|l| Some(l.endpoint().ok()?.to_string())).collect();
        let remedy = format!("if it tried to bind {} itself, it need not: {TAKE_IT}", addresses.join(" or "));
        self.complain(id, &format!("{reason} before it was ready"), Some(&remedy));
    }

    /// Tell what became of a generation.
    pub(super) fn tell(&mut self, id: Id, news: News) {
        match news {
            News::Serves => self.tell_serves(id),
            // Why it failed was said when it ended.
            News::Failed(_) => {
                self.tell_manager_of_failure(id);
                self.end_reloads(id, 1);
            }
            News::TimedOut => {
                self.tell_timed_out(id);
                self.tell_manager_of_failure(id);
                self.end_reloads(id, 124);
            }
            News::Cancelled => self.cancel_reloads(id),
            News::Crashed(_, pause) if pause.is_zero() => (),
            News::Crashed(_, pause) => {
                let text = format!("is started again in {}", show(pause));
                self.say(id, &text);
                self.manager.status(&format!("generation {id} has ended and {text}"));
            }
            News::Killed => self.say(id, "has not drained in time and is killed"),
            News::Gone => {
                self.say(id, "gone");
                self.end_waits();
            }
        }
    }

    fn tell_serves(&mut self, id: Id) {
        let now = sys::now();
        let Some(generation) = self.generation(id) else { return };
        generation.watch = None;
        let after = now.saturating_sub(generation.started);
        self.say(id, &format!("ready after {}", show(after)));
        self.restore_backlogs();
        self.leave_pid_file();
        self.manager.ready(&format!("generation {id} serves"));
        self.manager.stand_back();
        self.turn_to_predecessors(id);
        self.next_live = Some(now);
    }

    fn tell_timed_out(&mut self, id: Id) {
        self.survey();
        let limit = show(self.config.limits.ready);
        let ours = self.sockets.clone();
        let Some(generation) = self.generation(id) else { return };
        let barred = generation.watch.as_ref().is_some_and(|watch| watch.is_barred());
        let elsewhere = listening_elsewhere(&generation.members.alive(), &ours).unwrap_or_default();
        let text = format!("was not ready after {limit} and is killed");
        match elsewhere.first() {
            Some(other) => {
                let text = format!("{text}: it listens on {}, not on our socket", other.address);
                self.complain(id, &text, Some(TAKE_IT));
            }
            None if barred => {
                let remedy = "what it waits on cannot be seen: tell by --ready when it is ready";
                self.complain(id, &text, Some(remedy));
            }
            None => self.complain(id, &text, Some(TAKE_IT)),
        }
    }

    /// The supervisor's pid, once something serves.
    fn leave_pid_file(&mut self) {
        let Some(path) = self.config.exec.pid_file.clone().filter(|_| self.pid_file.is_none()) else { return };
        match PidFile::write(&path, own_pid()) {
            Ok(pid_file) => self.pid_file = Some(pid_file),
            // What serves goes on serving.
            Err(error) => error!("{error:#}"),
        }
    }

    /// Servers call listen(2) again and make the queue shorter for everyone.
    fn restore_backlogs(&self) {
        for listener in &self.listeners {
            listener.restore_backlog();
        }
    }

    /// Tell the service manager what is being started.
    pub(super) fn announce_start(&mut self, id: Id, now: Moment) {
        let status = format!("starting generation {id}");
        match self.plan.starting.map(|starting| starting.cause) {
            Some(Cause::First) => self.manager.starting(&status, self.config.limits.ready),
            Some(Cause::Reload) => self.manager.reloading(&status, now),
            Some(Cause::Restart) | None => self.manager.status(&status),
        }
    }

    /// The service manager waits for READY=1 after RELOADING=1, whatever came of it. If the first one fails, it sees
    /// that by our end.
    fn tell_manager_of_failure(&mut self, id: Id) {
        if self.plan.stopping.is_some() {
            return;
        }
        match self.plan.serving {
            Some(serving) => self.manager.ready(&format!("generation {} serves, generation {id} failed", serving.id)),
            None => self.manager.ready(&format!("none serves, generation {id} failed")),
        }
    }

    /// Say what is due to be said to the service manager.
    pub(super) fn keep_manager_informed(&mut self, now: Moment) {
        if self.plan.serving.is_none() {
            self.manager.stand_in(now);
        }
        self.manager.send_unsent(now);
    }

    /// Those who asked for `id` and got something else.
    fn end_reloads(&mut self, id: Id, status: u8) {
        self.each_waiting(|client, wanted| {
            if wanted == id {
                client.end(status);
            }
        });
    }

    fn cancel_reloads(&mut self, id: Id) {
        self.each_waiting(|client, wanted| {
            if wanted == id {
                client.end_with_error("the supervisor is stopping", 125);
            }
        });
    }

    /// Those who asked for `id` have it; some wait for its predecessors to be gone.
    fn turn_to_predecessors(&mut self, id: Id) {
        let Some(control) = &mut self.control else { return };
        for client in &mut control.clients {
            match client.wants {
                Wants::Generation { id: wanted, until: Until::Serving, .. } if wanted == id => client.end(0),
                Wants::Generation { id: wanted, until: Until::OldGone, live } if wanted == id => {
                    client.wants = Wants::Predecessors { id, live };
                }
                _ => (),
            }
        }
        // There may have been nobody before it.
        let waits_for = self.plan.draining.len() + usize::from(self.plan.serving.is_some());
        if waits_for <= 1 {
            self.end_waits();
        }
    }

    fn end_waits(&mut self) {
        let Some(control) = &mut self.control else { return };
        for client in &mut control.clients {
            if let Wants::Predecessors { id, .. } = client.wants
                && !self.plan.draining.iter().any(|draining| draining.id < id)
            {
                client.end(0);
            }
        }
    }

    fn each_waiting(&mut self, act: impl Fn(&mut Client, Id)) {
        let Some(control) = &mut self.control else { return };
        for client in &mut control.clients {
            if let Wants::Generation { id, .. } = client.wants {
                act(client, id);
            }
        }
    }

    /// Tell clients with a terminal how many connections are left.
    pub(super) fn tell_live(&mut self, now: Moment) {
        let lively = |client: &Client| {
            matches!(
                client.wants,
                Wants::Predecessors { live: Live::Yes, .. } | Wants::Generation { live: Live::Yes, .. }
            )
        };
        let watched = self.control.as_ref().is_some_and(|control| control.clients.iter().any(lively));
        if !watched || self.plan.draining.is_empty() {
            self.next_live = None;
            return;
        }
        if self.next_live.is_some_and(|at| at > now) {
            return;
        }
        self.next_live = Some(now + LIVE_PAUSE);
        let draining: Vec<Id> = self.plan.draining.iter().map(|draining| draining.id).collect();
        let lines: Vec<String> =
            draining.into_iter().map(|id| format!("live {id} draining{}", connections(self.connections(id)))).collect();
        let Some(control) = &mut self.control else { return };
        for client in control.clients.iter_mut().filter(|client| lively(client)) {
            lines.iter().for_each(|line| client.say(line));
        }
    }

    /// The open connections that a generation holds, if the kernel tells.
    pub(super) fn connections(&mut self, id: Id) -> Option<usize> {
        are_visible().ok()?;
        let open = open_connections(&self.listeners).ok()?;
        let generation = self.generation(id)?;
        Some(held_by(&generation.members.alive(), &open))
    }

    pub(super) fn show_status(&mut self, at: usize, form: Form) {
        let status = self.status();
        self.client(at, |client| {
            let lines = match form {
                Form::Table => status.table(),
                Form::Json => vec![status.json()],
            };
            lines.iter().for_each(|line| client.say(&format!("out {line}")));
            client.end(0);
        });
    }

    fn status(&mut self) -> Status {
        self.survey();
        let now = sys::now();
        let open = are_visible().ok().and_then(|()| open_connections(&self.listeners).ok());
        let generation = |generation: &super::Generation| GenerationStatus {
            id: generation.id,
            pid: generation.child.pid.as_raw(),
            state: self.state_of(generation.id),
            age: now.saturating_sub(generation.started),
            connections: open.as_ref().map(|open| held_by(&generation.members.alive(), open)),
        };
        let listeners = self.listeners.iter().map(|listener| ListenerStatus {
            name: listener.name.to_string(),
            address: listener.endpoint().map(|endpoint| endpoint.to_string()).unwrap_or_default(),
        });
        Status {
            pid: own_pid(),
            stopping: self.plan.stopping.is_some(),
            restarts: self.plan.restarts,
            last_failure: self.last_failure.clone(),
            listeners: listeners.collect(),
            generations: self.generations.iter().map(generation).collect(),
        }
    }

    fn state_of(&self, id: Id) -> &'static str {
        match (self.plan.starting, self.plan.serving) {
            (Some(starting), _) if starting.id == id => "starting",
            (_, Some(serving)) if serving.id == id => "serving",
            _ => "draining",
        }
    }
}

/// How many connections, as the tail of a sentence.
pub(super) fn connections(count: Option<usize>) -> String {
    match count {
        None => String::new(),
        Some(1) => ", 1 connection".to_owned(),
        Some(count) => format!(", {count} connections"),
    }
}
