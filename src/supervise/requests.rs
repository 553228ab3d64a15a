//! What is asked of the supervisor: by signals, and by clients of the control socket.

use log::debug;
use nix::poll::PollFlags;
use nix::sys::signal::Signal;

use crate::config::Until;
use crate::supervise::Supervisor;
use crate::supervise::control::{Asked, Client, Control, Live, Wants};
use crate::supervise::generation::{Generation, has_member};
use crate::supervise::plan::{Answer, Cause, Event, Haste, KILLED};
use crate::supervise::signals::{Received, Sender};
use crate::sys;

impl Supervisor {
    pub(super) fn receive_signals(&mut self) {
        while let Some(received) = self.signals.next() {
            debug!("{received:?}");
            match Signal::try_from(received.number) {
                Ok(Signal::SIGCHLD) => self.see_who_is_gone(),
                Ok(Signal::SIGHUP) if received.sender == Sender::Kernel => self.stop(Haste::Drain),
                Ok(Signal::SIGHUP) => self.reload(),
                Ok(Signal::SIGTERM) => self.terminate(received),
                Ok(Signal::SIGINT) => self.stop(Haste::Drain),
                Ok(Signal::SIGQUIT) => self.stop(Haste::Now),
                Ok(Signal::SIGUSR2) => self.begin_upgrade(),
                // The terminal's resize is not the server's business, a process' signal is.
                _ if received.sender == Sender::Kernel => (),
                _ => self.pass_on(received.number),
            }
        }
    }

    /// TERM from a process of the generation that starts means that it took over from its parent, as some servers do.
    pub(super) fn terminate(&mut self, received: Received) {
        self.survey();
        let starting = self.plan.starting.map(|starting| starting.id);
        let from_it = |generation: &&Generation| match received.sender {
            Sender::Process(pid) => Some(generation.id) == starting && has_member(generation, pid),
            Sender::Kernel => false,
        };
        match self.generations.iter().find(from_it).map(|generation| generation.id) {
            Some(id) => {
                debug!("generation {id} asks its parent to end: it is ready");
                self.events.push_back(Event::Ready(id));
            }
            None => self.stop(Haste::Drain),
        }
    }

    pub(super) fn reload(&mut self) {
        let plan = &self.plan;
        let ended = plan.serving.is_none() && !plan.starting.is_some_and(|starting| starting.cause == Cause::First);
        if ended && plan.stopping.is_none() {
            // The service manager that asked waits for a reload, even where nothing is left to be replaced.
            self.manager.reloading("starting what has ended", sys::now());
        }
        self.events.push_back(Event::Reload);
    }

    pub(super) fn stop(&mut self, haste: Haste) {
        if self.plan.stopping.is_none() {
            self.manager.stopping("draining", self.config.limits.drain);
        }
        self.events.push_back(Event::Stop(haste));
    }

    /// Give a signal to the generation that serves.
    pub(super) fn pass_on(&mut self, signal: i32) {
        let Some(serving) = self.plan.serving else { return };
        if let Some(generation) = self.generation(serving.id)
            && let Err(errno) = sys::send_signal(&generation.child.pidfd, signal)
        {
            debug!("generation {}: cannot pass on signal {signal}: {errno}", serving.id);
        }
    }

    pub(super) fn hear_client(&mut self, at: usize, flags: PollFlags) {
        let Some(client) = self.control.as_mut().and_then(|control| control.clients.get_mut(at)) else { return };
        if flags.contains(PollFlags::POLLOUT) {
            client.send();
        }
        let asked = if flags.contains(PollFlags::POLLIN) { client.hear() } else { None };
        if flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
            client.hang_up();
        }
        match asked {
            None => (),
            Some(Asked::Reload(until, live)) => self.reload_for(at, until, live),
            Some(Asked::Status(form)) => self.show_status(at, form),
            Some(Asked::Stop) => {
                self.client(at, |client| client.wants = Wants::End);
                self.stop(Haste::Drain);
            }
        }
    }

    pub(super) fn reload_for(&mut self, at: usize, until: Until, live: Live) {
        // What came before it has to be decided first: the answer counts generations.
        self.handle_events();
        match self.plan.answer() {
            Answer::Refused => self.client(at, |client| client.end_with_error("the supervisor is stopping", 125)),
            Answer::Generation(id) => {
                self.client(at, |client| client.wants = Wants::Generation { id, until, live });
                self.reload();
                self.handle_events();
            }
        }
    }

    pub(super) fn client(&mut self, at: usize, act: impl FnOnce(&mut Client)) {
        if let Some(client) = self.control.as_mut().and_then(|control| control.clients.get_mut(at)) {
            act(client);
        }
    }

    /// All is over: remove what is ours, and tell those who waited for it.
    pub(super) fn leave(mut self, status: u8) {
        for generation in self.generations.drain(..) {
            generation.reap();
        }
        if let Some(pid_file) = self.pid_file.take() {
            pid_file.remove();
        }
        // Whoever is told that all is over may start the next one at once, and must find nothing in its way.
        self.listeners.clear();
        self.others.clear();
        let clients = self.control.take().map(Control::close).unwrap_or_default();
        for mut client in clients {
            match client.wants {
                Wants::End if status == KILLED => {
                    client.end_with_error("a generation did not drain and was killed", 1);
                }
                Wants::End => client.end(0),
                Wants::Nothing => (),
                _ => client.end_with_error("the supervisor has ended", 125),
            }
        }
    }
}
