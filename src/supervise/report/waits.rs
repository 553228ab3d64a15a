//! The clients that wait for a generation, and what comes of their wait.

use crate::config::Until;
use crate::supervise::control::connection::{Client, WaitingFor};
use crate::supervise::control::protocol::Reply;
use crate::supervise::plan::{Id, Plan};
use crate::supervise::report::{KILLED_ONE, Reporter};

/// The error for a client whose generation is no longer there when its predecessors are gone.
pub(super) const NONE_SERVES: &str = "the new generation has ended, and nothing serves";

impl Reporter {
    /// A generation that was asked for will not serve. The service manager waits for READY=1 after RELOADING=1,
    /// whatever came of it; that the first one failed, it sees when we exit.
    pub(super) fn did_not_serve(&mut self, id: Id, status: u8, plan: &Plan) {
        match plan.serving {
            _ if plan.stopping.is_some() => (),
            Some(serving) => self.manager.ready(&format!("generation {} serves, generation {id} failed", serving.id)),
            None => self.manager.ready(&format!("none serves, generation {id} failed")),
        }
        self.each_waiting_for(id, |client| client.end(status));
    }

    /// The clients that asked for `id` have it; some wait for its predecessors to be gone.
    pub(super) fn await_predecessors(&mut self, id: Id, plan: &Plan) {
        for client in self.clients.iter_mut() {
            match client.waiting_for {
                WaitingFor::Generation { id: wanted, until: Until::Serving } if wanted == id => {
                    end_reload(client, &self.broken);
                }
                WaitingFor::Generation { id: wanted, until: Until::OldGone } if wanted == id => {
                    client.waiting_for = WaitingFor::Predecessors { id, killed: false };
                }
                _ => (),
            }
        }
        // There may have been none before it.
        if plan.draining.len() + usize::from(plan.serving.is_some()) <= 1 {
            self.end_waits(plan);
        }
    }

    pub(super) fn end_waits(&mut self, plan: &Plan) {
        for client in self.clients.iter_mut() {
            let WaitingFor::Predecessors { id, killed } = client.waiting_for else { continue };
            if plan.draining.iter().any(|draining| draining.id < id) {
                continue;
            }
            match killed {
                _ if plan.serving.is_none() && plan.stopping.is_none() => {
                    client.end_with_error(NONE_SERVES, 1);
                }
                true => client.end_with_error(KILLED_ONE, 1),
                false => end_reload(client, &self.broken),
            }
        }
    }

    /// Clients that wait for a generation to be gone are to see that it was killed.
    pub(super) fn mark_killed(&mut self, killed_id: Id) {
        for client in self.clients.iter_mut() {
            if let WaitingFor::Predecessors { id, killed } = &mut client.waiting_for {
                *killed |= killed_id < *id;
            }
        }
    }

    pub(super) fn each_waiting_for(&mut self, id: Id, mut act: impl FnMut(&mut Client)) {
        let waits = |client: &&mut Client| matches!(client.waiting_for, WaitingFor::Generation { id: wanted, .. } if wanted == id);
        self.clients.iter_mut().filter(waits).for_each(&mut act);
    }
}

/// A reload took effect: whether it succeeded depends on whether clients can reach all listeners.
fn end_reload(client: &mut Client, broken: &[String]) {
    broken.iter().for_each(|text| client.reply(&Reply::Error(text.clone())));
    client.end(if broken.is_empty() { 0 } else { 1 });
}
