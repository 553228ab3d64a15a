//! The sockets in a state that is handed on, and those that a predecessor of this supervisor held.

use std::os::fd::{AsRawFd, RawFd};

use anyhow::Result;

use crate::saved;
use crate::socket::group::{Group, SavedGroup};
use crate::socket::listener::{Listener, SavedListener};
use crate::socket::saved_sockets::SavedSockets;
use crate::socket::spec::Spec;
use crate::supervise::sockets::{Listed, Share, Sockets};
use crate::sys::Claimed;

impl Sockets {
    pub(crate) fn save(&self) -> SavedSockets {
        let (listeners, steered): (Vec<_>, Vec<_>) = self.groups().map(Group::save).unzip();
        SavedSockets {
            listeners,
            steered: steered.into_iter().flatten().collect(),
            beside: self.beside.iter().map(Listener::save).collect(),
            versions: self.listed.iter().map(|listed| listed.versions).collect(),
            spec_of: self.listed.iter().map(|listed| listed.spec).collect(),
            reserved: self.reserved.iter().map(|share| share.slot()).collect(),
            others: Some(self.others.iter().map(AsRawFd::as_raw_fd).collect()),
        }
    }

    /// What a predecessor held, which had the same `specs`. A listener that cannot be resumed is reported and left out: the
    /// rest serves on.
    pub(crate) fn resume(saved: SavedSockets, specs: &[Spec], lowest: RawFd, claimed: &mut Claimed) -> Sockets {
        let (mut steered, spec_of, versions) = (saved.steered, saved.spec_of, saved.versions);
        let mut resume = |(at, saved): (usize, SavedListener)| -> Result<Listed> {
            let of_first = |group: &mut SavedGroup| group.first == saved.number();
            let beside = steered.extract_if(.., of_first).next();
            let (first, spec) = (Listener::resume(saved, claimed)?, spec_of.get(at).copied().unwrap_or(at));
            let group = match beside {
                None => Group::of(first, lowest)?,
                Some(beside) => {
                    let options = specs.get(spec).map(|spec| spec.options.clone()).unwrap_or_default();
                    Group::resume(first, beside, options, claimed)?
                }
            };
            Ok(Listed { group, versions: versions.get(at).copied().unwrap_or_default(), spec })
        };
        let listeners = saved.listeners.into_iter().enumerate();
        let listed = listeners.filter_map(|saved| resume(saved).map_err(|error| saved::lost(&error)).ok()).collect();
        let mut resume = |saved| Listener::resume_beside(saved, claimed).map_err(|error| saved::lost(&error)).ok();
        let beside = saved.beside.into_iter().filter_map(&mut resume).collect();
        let others = saved.others.into_iter().flatten().filter_map(|number| claimed.take_as_it_is(number)).collect();
        let reserved = saved.reserved.into_iter().map(Share::Slot).collect();
        Sockets { reserved, ..Sockets::looked_after(listed, beside, others, lowest) }
    }
}
