//! Report on the generations: to the log, to the clients that are waiting, and to the service manager. No other state
//! is changed here.

mod waits;

use std::time::Duration;

use log::{Level, error, log, warn};
use nix::poll::PollFlags;
use nix::sys::signal::Signal;

use crate::config::Limits;
use crate::manager::Manager;
use crate::socket::upkeep::Finding;
use crate::supervise::control::connection::WaitingFor;
use crate::supervise::control::protocol::Reply;
use crate::supervise::control::server::Clients;
use crate::supervise::diagnosis::{Diagnosis, Findings, why_stopped};
use crate::supervise::generations::Generations;
use crate::supervise::plan::{Cause, Id, Plan, Reason, Transition};
use crate::supervise::poll::{Source, Table};
use crate::supervise::sockets::Sockets;
use crate::supervise::wording::{connections, show};
use crate::sys::{self, Ending, Timestamp};
use waits::NONE_SERVES;

/// How often a client with a terminal is sent how many connections are left.
const LIVE_INTERVAL: Duration = Duration::from_millis(500);

/// The error for a client that waits until all have drained.
pub(crate) const KILLED_ONE: &str = "a generation did not drain and was killed";

/// Where reports go, besides the log.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) clients: Clients,
    pub(crate) manager: Manager,
    pub(crate) last_failure: Option<LastFailure>,
    /// What those are called in the log that are no generations of ours.
    names: Vec<(Id, String)>,
    /// That all goes as it is to is not logged but for debugging.
    is_quiet: bool,
    /// The generation that serves while its predecessor stands by.
    settling: Option<Id>,
    /// What keeps clients from a listener and cannot be repaired: a reload fails that ends so.
    pub(crate) broken: Vec<String>,
    /// When live clients are sent numbers again.
    next_live: Option<Timestamp>,
}

/// What went wrong last, until a reload succeeds.
#[derive(Clone, Debug)]
pub(crate) struct LastFailure {
    pub(crate) text: String,
    pub(crate) at: Timestamp,
}

impl LastFailure {
    /// That of a predecessor, which may not have known when it was.
    pub(crate) fn resume(text: Option<String>, at: Option<Timestamp>) -> Option<LastFailure> {
        text.map(|text| LastFailure { text, at: at.unwrap_or_else(sys::now) })
    }
}

impl Reporter {
    pub(crate) fn new(clients: Clients, manager: Manager, last_failure: Option<LastFailure>) -> Reporter {
        Reporter {
            clients,
            manager,
            last_failure,
            names: Vec::new(),
            is_quiet: false,
            settling: None,
            broken: Vec::new(),
            next_live: Some(Timestamp::ZERO),
        }
    }

    /// Go on in the place of a predecessor.
    pub(crate) fn resume(self, plan: &Plan) -> Reporter {
        let settling = plan.standing.and(plan.serving).map(|serving| serving.id);
        Reporter { settling, ..self }
    }

    /// Call this generation so in the log.
    pub(crate) fn call(&mut self, id: Id, name: String) {
        self.names.push((id, name));
    }

    /// Log only what goes wrong.
    pub(crate) fn be_quiet(&mut self) {
        self.is_quiet = true;
    }

    /// What a generation is called in the log.
    pub(crate) fn name_of(&self, id: Id) -> String {
        let name = self.names.iter().find(|(other, _)| *other == id);
        name.map_or_else(|| format!("generation {id}"), |(_, name)| name.clone())
    }

    /// Add the deadlines to the round's table, and what the clients wait for.
    pub(crate) fn poll<'a>(&'a self, table: &mut Table<'a>) {
        self.clients.poll(table);
        table.until(self.manager.deadline());
        if let Some(answer) = self.manager.store_answer() {
            table.events(Source::Store, answer, PollFlags::empty());
        }
        table.until(self.next_live);
    }

    /// What a generation does.
    pub(crate) fn progress(&mut self, id: Id, text: &str) {
        let level = if self.is_quiet { Level::Debug } else { Level::Info };
        self.progress_at(level, id, text);
    }

    fn progress_at(&mut self, level: Level, id: Id, text: &str) {
        log!(level, "{}: {text}", self.name_of(id));
        self.clients.send_all(&Reply::Progress { generation: id, text: text.to_owned() });
    }

    /// A signal stopped a generation, which is no failure of it, but serves nobody.
    pub(crate) fn stopped(&mut self, id: Id, signal: Signal) {
        let text = format!("{}: is stopped by {signal} and serves nobody until SIGCONT", self.name_of(id));
        for line in [Some(text.as_str()), why_stopped(signal)].into_iter().flatten() {
            warn!("{line}");
            self.clients.send_all(&Reply::Error(line.to_owned()));
        }
    }

    /// What went wrong, with what helps.
    pub(crate) fn failure(&mut self, id: Id, text: &str, remedy: Option<&str>) {
        let text = format!("{}: {text}", self.name_of(id));
        for line in [Some(text.as_str()), remedy].into_iter().flatten() {
            error!("{line}");
            self.clients.send_all(&Reply::Error(line.to_owned()));
        }
        self.failed(text);
    }

    /// Keep what went wrong for --status.
    fn failed(&mut self, text: String) {
        self.last_failure = Some(LastFailure { text, at: sys::now() });
    }

    /// What a look at the listeners brought.
    pub(crate) fn found(&mut self, finding: Finding) {
        match finding {
            Finding::Repaired(text) => warn!("{text}"),
            Finding::Broken(text) => {
                error!("{text}");
                self.failed(text);
            }
        }
    }

    /// A generation is about to be started.
    pub(crate) fn starting(&mut self, id: Id, plan: &Plan, limits: Limits, now: Timestamp) {
        let status = format!("starting generation {id}");
        match plan.starting.as_ref().map(|starting| starting.cause) {
            Some(Cause::First) => self.manager.starting(&status, limits.ready),
            Some(Cause::Reload) => self.manager.reloading(&status, now),
            Some(Cause::Restart) | None => self.manager.status(&status),
        }
    }

    /// A generation ended before it was ready.
    pub(crate) fn failed_to_start(&mut self, id: Id, findings: &Findings) {
        self.failure(id, &findings.text, findings.remedy.as_deref());
    }

    /// The generation that served ended unasked.
    pub(crate) fn ended_unasked(&mut self, id: Id, ending: &str, daemon: Option<Findings>) {
        if let Some(findings) = daemon {
            return self.failure(id, &findings.text, findings.remedy.as_deref());
        }
        self.failed(format!("{}: {ending}", self.name_of(id)));
        self.progress(id, ending);
    }

    /// A generation that was asked to stop ended by the very signal, with connections that it held.
    pub(crate) fn ended_without_draining(&mut self, id: Id, ending: Ending, after: Duration, held: usize) {
        let held = connections(Some(held)).replacen(", ", "", 1);
        let text = format!("{ending} {} after the stop signal, with {held}: it does not drain", show(after));
        warn!("{}: {text}", self.name_of(id));
        self.clients.send_all(&Reply::Progress { generation: id, text });
    }

    /// A generation serves, `after` its start, or after its trial.
    pub(crate) fn serves(&mut self, id: Id, after: Option<Duration>, plan: &Plan, now: Timestamp) {
        let text = after.map_or("serves".to_owned(), |after| format!("ready after {}", show(after)));
        self.progress(id, &text);
        self.manager.ready(&format!("generation {id} serves"));
        self.manager.stop_keep_alive();
        self.settling = plan.standing.filter(|standing| standing.has_time()).map(|_| id);
        self.next_live = Some(now);
    }

    /// A generation gets a share of new connections.
    pub(crate) fn on_trial(&mut self, id: Id, percent: u8) {
        self.progress(id, &format!("on trial with {percent} % of new connections"));
        self.manager.ready(&format!("generation {id} is on trial with {percent} %"));
    }

    /// A generation that serves has settled.
    pub(crate) fn settled(&mut self, id: Id, plan: &Plan) {
        if self.settling.take().is_some() {
            self.progress(id, "settled");
        }
        self.await_predecessors(id, plan);
        self.next_live = Some(sys::now());
    }

    /// A generation that was getting ready or on trial, or had not settled, is rolled back. `ending` is how its main process, or
    /// the check, ended, if it has, and `held` how many connections it had when that was last seen.
    pub(crate) fn rolled_back(
        &mut self,
        id: Id,
        reason: Reason,
        ending: Option<Ending>,
        held: Option<usize>,
        plan: &Plan,
    ) {
        let (when, goes_on) = match self.settling.take() {
            Some(_) => ("before it had settled", "serves again"),
            None => ("on trial", "serves on"),
        };
        let why = match (reason, ending) {
            (Reason::Ended(_), Some(ending)) => format!("{ending} {when}{}", last_seen(held)),
            (Reason::Ended(status), None) => format!("ended with status {status} {when}"),
            (Reason::Left, _) => format!("accepts no more, {when}"),
            (Reason::Check, ending) => {
                let how = ending.map(|ending| format!(", which {ending}")).unwrap_or_default();
                format!("failed its check{how}")
            }
            (Reason::CheckTimedOut, _) => "was not checked in time".to_owned(),
            (Reason::Asked, _) => "is rolled back".to_owned(),
        };
        let serves = plan.serving.map(|serving| format!(": {} {goes_on}", self.name_of(serving.id)));
        self.failure(id, &format!("{why}{}", serves.unwrap_or_default()), None);
        self.did_not_serve(id, 1, plan);
    }

    /// A generation is asked to stop though clients still wait for it.
    pub(crate) fn still_waiting(&mut self, id: Id, waiting: usize) {
        let clients = if waiting == 1 { "client still waits" } else { "clients still wait" };
        self.progress(id, &format!("{waiting} {clients} to be accepted"));
    }

    /// What waited for a generation, which nobody will accept, was dropped.
    pub(crate) fn dropped(&mut self, id: Id, count: usize) {
        let what = if count == 1 { "1 client".to_owned() } else { format!("{count} clients") };
        let text = format!("reset {what} that waited for it and cannot be served");
        warn!("{}: {text}", self.name_of(id));
        self.clients.send_all(&Reply::Progress { generation: id, text });
    }

    /// A generation was not ready within `limit`.
    pub(crate) fn timed_out(&mut self, id: Id, limit: Duration, diagnosis: &Diagnosis, plan: &Plan) {
        let findings = diagnosis.of_lateness(&format!("was not ready after {} and is killed", show(limit)));
        self.failure(id, &findings.text, findings.remedy.as_deref());
        self.did_not_serve(id, 124, plan);
    }

    /// A generation is not started again, and everything stops.
    pub(crate) fn given_up(&mut self, id: Id, limits: Limits) {
        self.progress(id, &format!("is not started again (--restart {}): the supervisor ends", limits.restart));
        self.manager.stopping(&format!("generation {id} has ended"), limits.drain);
        for client in self.clients.iter_mut() {
            if let WaitingFor::Predecessors { .. } = client.waiting_for {
                client.end_with_error(NONE_SERVES, 1);
            }
        }
    }

    /// Any other transition.
    pub(crate) fn transition(&mut self, id: Id, transition: Transition, plan: &Plan) {
        match transition {
            // These have reports of their own, above.
            Transition::OnTrial(_) | Transition::Serves | Transition::Settled | Transition::RolledBack(_) => (),
            Transition::TimedOut | Transition::GivenUp => (),
            // Why it failed was reported when it ended.
            Transition::Failed(_) => self.did_not_serve(id, 1, plan),
            Transition::Cancelled => {
                self.each_waiting_for(id, |client| client.end_with_error("the supervisor is stopping", 125));
            }
            // How it ended was reported when it did.
            Transition::Crashed(_) => (),
            Transition::Restarts(backoff) => {
                let text = format!("is started again in {}", show(backoff));
                self.progress(id, &text);
                self.manager.status(&format!("generation {id} has ended and {text}"));
            }
            Transition::Killed => {
                // A watcher reports it, too: clients may have lost what they had.
                let level = if self.is_quiet { Level::Warn } else { Level::Info };
                self.progress_at(level, id, "has not drained in time and is killed");
                self.mark_killed(id);
            }
            Transition::Gone => {
                self.progress(id, "gone");
                self.end_waits(plan);
            }
        }
    }

    /// The keep-alive that is due, and what its queue had no room for.
    pub(crate) fn keep_manager_informed(&mut self, plan: &Plan, now: Timestamp) {
        if plan.serving.is_none() {
            self.manager.start_keep_alive(now);
        }
        self.manager.send_unsent(now);
    }

    /// Send live clients how many connections are left, if that is due.
    pub(crate) fn send_live(&mut self, plan: &Plan, generations: &Generations, sockets: &Sockets, now: Timestamp) {
        if !self.clients.any_live() || plan.draining.is_empty() {
            self.next_live = None;
            return;
        }
        if self.next_live.is_some_and(|at| at > now) {
            return;
        }
        let before = sys::processor_time();
        for id in plan.draining.iter().map(|draining| draining.id) {
            let count = generations.get(id).and_then(|generation| generation.connections(sockets));
            self.clients.send_live(id, &format!("draining{}", connections(count)));
        }
        // At most a fiftieth of the processor's time.
        let cost = sys::processor_time().saturating_sub(before);
        self.next_live = Some(now + LIVE_INTERVAL.max(cost * 50));
    }
}

/// How many connections are lost, as the tail of a sentence.
fn last_seen(held: Option<usize>) -> String {
    match held {
        None => String::new(),
        Some(held) => format!("{} when last looked at", connections(Some(held))),
    }
}
