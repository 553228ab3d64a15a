//! What explains a loss, and a deploy that failed: nothing but what is in this table.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::client::{self, Transport};
use super::clock::Time;
use super::deploys::Deploy;
use super::diary::Life;
use super::failure::Failure;
use super::faults::{Fault, Kind};
use super::site::DRAIN_TIMEOUT;
use super::tally::Loss;

/// How long a datagram takes, at most, to whom it is sent.
const TRANSIT: Duration = Duration::from_millis(100);
/// How long a busy machine takes, at most, to let a process see a signal.
const SLOWNESS: Duration = Duration::from_secs(1);

/// All that was done.
pub struct Records<'a> {
    pub faults: &'a [Fault],
    pub deploys: &'a [Deploy],
    /// What processes have written down of themselves.
    pub lives: &'a HashMap<i32, Life>,
}

/// A reason for which something may be lost.
pub struct Cause {
    pub name: &'static str,
    /// Where it is said that this may be lost.
    pub source: &'static str,
    explains: fn(&Records, &Loss) -> bool,
}

pub const CAUSES: &[Cause] = &[
    Cause {
        name: "held by a process that was killed",
        source: "README, the promises: what a generation holds is as safe as its own stop",
        explains: |records, loss| {
            let held = |fault: &&Fault| {
                loss.opened <= fault.killed && fault.killed <= loss.ended && fault.held.contains(&loss.client)
            };
            loss.was_cut() && records.killed().any(|fault| held(&fault))
        },
    },
    Cause {
        name: "a datagram read by a process that was killed",
        source: "the same; a datagram is gone from the queue once it is read",
        explains: |records, loss| {
            let was_read = |fault: &Fault| fault.stopped <= loss.begun + TRANSIT && loss.begun <= fault.killed;
            loss.is_datagram() && records.killed().any(was_read)
        },
    },
    Cause {
        name: "waited for a generation that was killed during a deploy",
        source: "handoff-run(1), STEERING: if a new one was getting ready, that takes its place, and what waited is answered \
                 by the processes that are left of the old one, ... or is reset",
        explains: |records, loss| {
            let waited = |fault: &Fault| {
                let mut ends = records.under_way(fault.killed).map(|deploy| deploy.ended.min(fault.ended));
                ends.any(|end| loss.is_of_queue(fault.stopped, end))
            };
            records.of(Kind::KillGroup).chain(records.of(Kind::KillMain)).any(waited)
        },
    },
    Cause {
        name: "held by a release that died before it had settled",
        source: "handoff-run(1), Settled: lost are the connections that the new one had accepted",
        explains: |records, loss| {
            let mut deaths = records.lives.values().filter_map(|life| life.died.as_ref());
            let held = |(time, held): &(Time, HashSet<String>)| {
                loss.opened <= *time && *time <= loss.ended && held.contains(&loss.client)
            };
            loss.was_cut() && deaths.any(held)
        },
    },
    Cause {
        name: "waited for a generation that failed before it had settled",
        source: "handoff-run(1), Settled: and reset those that waited for it",
        explains: |records, loss| {
            let waited = |deploy: &Deploy| {
                let deaths = records.lives.values().filter_map(|life| Some(life.died.as_ref()?.0));
                let ends = deaths.chain(records.unsettled().map(|fault| fault.stopped));
                let end = ends.filter(|time| deploy.begun <= *time && *time <= deploy.ended).max();
                end.is_some_and(|time| loss.is_of_queue(time, deploy.ended))
            };
            records.failed().any(waited)
        },
    },
    Cause {
        name: "came while a supervisor was dying of SIGKILL",
        source: "handoff-run(1), STEERING: a client that comes while it dies may be reset, and a datagram lost",
        explains: |records, loss| {
            records.of(Kind::KillSupervisor).any(|fault| loss.is_of_queue(fault.killed, fault.gone))
        },
    },
    Cause {
        name: "kept by its client beyond the drain timeout",
        source: "handoff-run(1), Retired: --drain-timeout after the stop signal all of it is killed",
        explains: |records, loss| {
            let life = loss.server.and_then(|(_, pid)| records.lives.get(&pid));
            let was_kept = |life: &&Life| loss.kind == client::Kind::WebSocket || life.release == "stays";
            let asked = life.filter(was_kept).and_then(|life| life.asked);
            let is_late = |asked| {
                let sent = loss.server.map_or(asked, |(_, pid)| records.sent(pid, asked));
                loss.opened <= asked && sent + DRAIN_TIMEOUT <= loss.ended + SLOWNESS
            };
            loss.was_cut() && asked.is_some_and(is_late)
        },
    },
];

impl Records<'_> {
    fn killed(&self) -> impl Iterator<Item = &Fault> {
        self.faults.iter().filter(|fault| [Kind::KillWorker, Kind::KillGroup].contains(&fault.kind))
    }

    /// Faults that strike a generation which has not settled.
    fn unsettled(&self) -> impl Iterator<Item = &Fault> {
        self.faults.iter().filter(|fault| fault.is_of_unsettled())
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = &Fault> {
        self.faults.iter().filter(move |fault| fault.kind == kind)
    }

    /// When at the earliest a signal was sent which a process has seen at this time: one that is stopped sees it when it goes on.
    fn sent(&self, pid: i32, seen: Time) -> Time {
        let was_stopped =
            |fault: &&Fault| fault.victims.contains(&pid) && fault.stopped <= seen && seen <= fault.ended + SLOWNESS;
        self.of(Kind::StopGroup).find(was_stopped).map_or(seen, |fault| fault.stopped)
    }

    /// Deploys that were under way at this time.
    fn under_way(&self, time: Time) -> impl Iterator<Item = &Deploy> {
        self.deploys.iter().filter(move |deploy| deploy.begun <= time && time <= deploy.ended)
    }

    fn failed(&self) -> impl Iterator<Item = &Deploy> {
        self.deploys.iter().filter(|deploy| deploy.status == 1)
    }

    /// How many generations the last supervisor had at a time, with those that one before it had left.
    pub fn most_generations(&self) -> usize {
        let most = self.faults.iter().map(|fault| fault.states.len()).max().unwrap_or_default();
        most + self.of(Kind::KillSupervisor).last().map_or(0, |fault| fault.states.len())
    }

    /// Why this was lost, if that is known.
    pub fn explain(&self, loss: &Loss) -> Option<&'static str> {
        CAUSES.iter().find(|cause| (cause.explains)(self, loss)).map(|cause| cause.name)
    }

    /// Whether a deploy ended as it may.
    pub fn allows(&self, deploy: &Deploy) -> bool {
        let usual = match deploy.release {
            "dies" | "dies-late" => 1,
            "hangs" => 124,
            _ => 0,
        };
        let meanwhile = |fault: &&Fault| {
            // The generation that it strikes is that of the deploy which was under way then, and of no later one.
            let end = if fault.is_of_unsettled() { fault.stopped } else { fault.ended };
            fault.begun <= deploy.ended && deploy.begun <= end
        };
        let meanwhile = self.faults.iter().filter(meanwhile);
        deploy.status == usual || meanwhile.flat_map(allowed).any(|status| *status == deploy.status)
    }
}

/// With what a deploy may end meanwhile, beside what it would have ended with.
fn allowed(fault: &Fault) -> &'static [i32] {
    match fault.kind {
        // The one that serves ends, or is stopped, before it has settled.
        _ if fault.is_of_unsettled() => &[1],
        // Nobody is there to be asked; or nothing can be opened to start a generation, or to answer.
        Kind::KillSupervisor => &[125],
        Kind::NoDescriptors => &[1, 125],
        _ => &[],
    }
}

impl Fault {
    fn is_of_unsettled(&self) -> bool {
        let is_of_serving = matches!(self.kind, Kind::KillWorker | Kind::KillMain | Kind::KillGroup | Kind::StopGroup);
        is_of_serving && self.states.iter().any(|one| one.state == "standing-by")
    }
}

impl Loss {
    /// The server's end of its connection is gone.
    fn was_cut(&self) -> bool {
        matches!(self.failure, Failure::Reset | Failure::Short | Failure::Lost)
    }

    /// The same before anybody had answered on it, perhaps before anybody had accepted it.
    fn was_reset_unserved(&self) -> bool {
        self.failure == Failure::Reset && self.transport == Transport::Tcp && self.server.is_none()
    }

    /// A refused one is none: somebody has the socket at any time.
    fn is_datagram(&self) -> bool {
        self.transport == Transport::Udp && self.failure == Failure::Timeout
    }

    /// It came between these times, and waited where nobody accepted it any more: it was reset by their end, or is a datagram,
    /// which is only missed.
    fn is_of_queue(&self, begun: Time, ended: Time) -> bool {
        let was_reset = self.was_reset_unserved() && self.ended <= ended + SLOWNESS;
        (was_reset || self.is_datagram()) && begun <= self.begun + TRANSIT && self.begun <= ended
    }
}
