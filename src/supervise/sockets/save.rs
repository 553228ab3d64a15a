//! The sockets in a state that is handed on, and those that a predecessor of this supervisor held.

use std::os::fd::{AsRawFd, RawFd};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::saved;
use crate::socket::group::{Group, SavedGroup};
use crate::socket::interception::Versions;
use crate::socket::listener::{Listener, SavedListener};
use crate::socket::spec::Spec;
use crate::supervise::sockets::Sockets;
use crate::sys::Claimed;

/// The sockets in a state that is handed on.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedSockets {
    #[serde(deserialize_with = "saved::lenient")]
    listeners: Vec<SavedListener>,
    /// What belongs to some of those listeners.
    #[serde(deserialize_with = "saved::lenient")]
    steered: Vec<SavedGroup>,
    #[serde(deserialize_with = "saved::lenient")]
    beside: Vec<SavedListener>,
    /// How firmly each address has its IP versions.
    versions: Vec<Versions>,
    /// The SPEC of each listener.
    spec_of: Vec<usize>,
    /// None: everything that is not taken.
    pub(crate) others: Option<Vec<RawFd>>,
}

impl Sockets {
    pub(crate) fn save(&self) -> SavedSockets {
        let (listeners, steered): (Vec<_>, Vec<_>) = self.groups.iter().map(Group::save).unzip();
        SavedSockets {
            listeners,
            steered: steered.into_iter().flatten().collect(),
            beside: self.beside.iter().map(Listener::save).collect(),
            versions: self.versions.clone(),
            spec_of: self.spec_of.clone(),
            others: Some(self.others.iter().map(AsRawFd::as_raw_fd).collect()),
        }
    }

    /// What a predecessor held, which had the same `specs`. A listener that cannot be resumed is reported and left out: the
    /// rest serves on.
    pub(crate) fn resume(saved: SavedSockets, specs: &[Spec], lowest: RawFd, claimed: &mut Claimed) -> Sockets {
        let (mut steered, spec_of) = (saved.steered, saved.spec_of);
        let spec = |at: usize| specs.get(spec_of.get(at).copied().unwrap_or(at));
        let mut resume = |(at, saved): (usize, SavedListener)| -> Result<Group> {
            let of_first = |group: &mut SavedGroup| group.first == saved.number();
            let beside = steered.extract_if(.., of_first).next();
            let first = Listener::resume(saved, claimed)?;
            match beside {
                None => Ok(Group::of(first, lowest)?),
                Some(beside) => {
                    let options = spec(at).map(|spec| spec.options.clone()).unwrap_or_default();
                    Group::resume(first, beside, options, claimed)
                }
            }
        };
        let listeners = saved.listeners.into_iter().enumerate();
        let groups = listeners.filter_map(|saved| resume(saved).map_err(|error| saved::lost(&error)).ok()).collect();
        let mut resume = |saved| Listener::resume_beside(saved, claimed).map_err(|error| saved::lost(&error)).ok();
        let beside = saved.beside.into_iter().filter_map(&mut resume).collect();
        let others = saved.others.into_iter().flatten().filter_map(|number| claimed.take_as_it_is(number)).collect();
        let mut sockets = Sockets::looked_after(groups, beside, others, lowest);
        // Where one was lost, it is not known which is which.
        if saved.versions.len() == sockets.groups.len() && spec_of.len() == sockets.groups.len() {
            (sockets.versions, sockets.spec_of) = (saved.versions, spec_of);
        }
        sockets
    }
}
