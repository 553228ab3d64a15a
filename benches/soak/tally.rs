//! What came of all requests: every one that was begun is counted exactly once.

use std::collections::BTreeMap;

use super::client::{Event, Kind, Transport};
use super::clock::Time;
use super::failure::Failure;

/// A request that was not answered, or a connection that ended between two.
#[derive(Clone, Debug)]
pub struct Loss {
    pub kind: Kind,
    pub transport: Transport,
    pub failure: Failure,
    /// When the connection, and the request, were begun, and when the failure was seen.
    pub opened: Time,
    pub begun: Time,
    pub ended: Time,
    /// The client's address.
    pub client: String,
    /// The generation and the process that had answered on this connection before.
    pub server: Option<(u64, i32)>,
}

#[derive(Default)]
pub struct Tally {
    /// By kind of client: answered, and failed.
    pub counts: BTreeMap<String, (u64, u64)>,
    pub losses: Vec<Loss>,
}

impl Tally {
    pub fn count(&mut self, kind: Kind, transport: Transport, event: Event) {
        let counts = self.counts.entry(format!("{transport:?} {kind:?}")).or_default();
        match event {
            Event::Answered => counts.0 += 1,
            Event::Failed(loss) => {
                counts.1 += 1;
                self.losses.push(loss);
            }
        }
    }
}
