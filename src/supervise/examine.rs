//! What can be seen of a generation, and is reported: why it is not ready, and what its successor will lack.

use log::warn;

use crate::kernel::elsewhere::{ForeignAddress, listening_elsewhere};
use crate::socket::listener::Listener;
use crate::supervise::Supervisor;
use crate::supervise::diagnosis::{Diagnosis, Findings};
use crate::supervise::generation::ready::{Watch, unattended};
use crate::supervise::generation::{Generation, HINT_INTERVAL};
use crate::supervise::plan::Id;
use crate::sys::{Ending, Timestamp};
use crate::target::Handing;

impl Supervisor {
    /// A generation was not ready in time; the order to kill it follows.
    pub(super) fn time_out(&mut self, id: Id) {
        self.generations.survey();
        let Some(generation) = self.generations.get(id) else { return };
        let diagnosis = self.diagnose(generation);
        self.reporter.timed_out(id, self.config.limits.ready, &diagnosis, &self.plan);
        self.sockets.forget_versions();
    }

    /// A generation ended before it was ready; with an exec error if its program never ran.
    pub(super) fn report_failed_start(&mut self, id: Id, ending: Ending, exec_error: Option<String>) {
        if self.is_watcher() && exec_error.is_some() {
            // The process that failed to become the program has said why.
            return;
        }
        let Some(generation) = self.generations.get(id) else { return };
        let findings = match exec_error {
            Some(text) => Findings { text, remedy: None },
            None => {
                let addresses: Vec<String> = self.sockets.listeners().map(address_of).collect();
                self.diagnose(generation).of_end(ending, &addresses)
            }
        };
        self.reporter.failed_to_start(id, &findings);
        self.sockets.forget_versions();
    }

    /// Report that a generation listens elsewhere before its time is over: somebody may look on.
    pub(super) fn hint_at_elsewhere(&mut self, now: Timestamp) {
        let is_due = |generation: &&mut Generation| generation.next_hint.is_some_and(|at| at <= now);
        let starting = |generation: &&mut Generation| self.plan.is_starting(generation.id);
        let Some(generation) = self.generations.iter_mut().filter(starting).find(is_due) else { return };
        generation.next_hint = Some(now + HINT_INTERVAL);
        let (id, alive) = (generation.id, generation.members.alive());
        let elsewhere = listening_elsewhere(&alive, &self.sockets.inodes()).unwrap_or_default();
        if let Some(other) = elsewhere.into_iter().next() {
            generation.next_hint = None;
            self.reporter.progress(id, &format!("not ready yet: it listens on {}, not on our socket", other.address));
        }
    }

    /// What can be seen of a generation that gets ready. It was surveyed just now.
    fn diagnose(&self, generation: &Generation) -> Diagnosis {
        let (alive, set) = (generation.members.alive(), self.sockets.set(generation.share));
        let elsewhere = listening_elsewhere(&alive, &set.inodes).unwrap_or_default();
        let watch = generation.watch.as_ref();
        // One that was seen to accept is only busy.
        let has_accepted = watch.is_some_and(Watch::has_accepted);
        let seen = if has_accepted { Some(vec![]) } else { unattended(&alive, &set) };
        Diagnosis {
            elsewhere: elsewhere.into_iter().next(),
            was_given: !generation.given.is_empty() && self.config.exec.program.handing == Handing::Interception,
            opened_by_serving: self.opened_by_serving(),
            refusal: generation.refusal.clone(),
            stopped: generation.stopped_by(),
            awaited: watch.and_then(Watch::awaited),
            unattended: seen.iter().flatten().map(|listener| address_of(listener)).collect(),
            unobservable: seen.is_none(),
            processes: alive.len(),
            taken_before: generation.id > 1 && self.config.ready.is_observed(),
            whereabouts: self.sockets.whereabouts(&self.config.exec.program),
        }
    }

    /// What the first generation has opened itself, its successor may miss.
    pub(super) fn warn_of_opened(&self, id: Id) {
        if let Some(address) = self.opened_by_serving().filter(|_| id == 1) {
            let spec = self.sockets.whereabouts(&self.config.exec.program).spec_beside(&address);
            warn!(
                "generation {id}: also listens on {address}, which it opened itself: if that port is always the same, the next \
                 generation cannot open it; add --listen {spec}"
            );
        }
    }

    /// Where the serving generation listens on what it has opened itself, if that is what generations do.
    fn opened_by_serving(&self) -> Option<ForeignAddress> {
        let is_its = self.config.exec.program.handing == Handing::Interception;
        let serving = self.generations.get(self.plan.serving.filter(|_| is_its)?.id)?;
        let opened = listening_elsewhere(&serving.members.alive(), &self.sockets.inodes()).unwrap_or_default();
        opened.into_iter().next().map(|listener| listener.address)
    }
}

/// The address of a socket, as far as the kernel gives it.
fn address_of(listener: &Listener) -> String {
    listener.endpoint().map(|endpoint| endpoint.to_string()).unwrap_or_default()
}
