//! The sockets in a state that is handed on, and those that a predecessor of this supervisor held.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use anyhow::Result;

use crate::manager::store::Item;
use crate::saved;
use crate::socket::group::{Group, SavedGroup};
use crate::socket::interception::Versions;
use crate::socket::listener::{Listener, SavedListener};
use crate::socket::saved_sockets::SavedSockets;
use crate::socket::spec::{FdName, Spec};
use crate::socket::store_name;
use crate::supervise::sockets::{Listed, Share, Sockets};
use crate::sys::Claimed;

impl Sockets {
    pub(crate) fn save(&self) -> SavedSockets {
        SavedSockets {
            beside: self.beside.iter().map(Listener::save).collect(),
            reserved: self.reserved.iter().map(|share| share.slot()).collect(),
            others: Some(self.others.iter().map(AsRawFd::as_raw_fd).collect()),
            ..save(&self.listed.iter().collect::<Vec<_>>())
        }
    }

    /// What is stored for the next start.
    pub(crate) fn save_stored(&self) -> SavedSockets {
        let listed: Vec<&Listed> = self.listed.iter().filter(|listed| listed.is_bound_for_good()).collect();
        let mut saved = save(&listed);
        for (listener, inode) in listed.iter().flat_map(|listed| listed.group.members()) {
            saved.inodes.push((inode.0 as usize, listener.as_fd().as_raw_fd()));
        }
        saved
    }

    /// The same for the service manager, with names made of those of the SPECs.
    pub(crate) fn items(&self, names: &[FdName]) -> Vec<Item<'_>> {
        let mut items = Vec::new();
        for (at, listed) in self.listed.iter().enumerate().filter(|(_, listed)| listed.is_bound_for_good()) {
            let base = names.get(listed.spec).cloned().unwrap_or_default();
            let is_one = !listed.group.is_steered() && !self.is_beside(at);
            for (listener, inode) in listed.group.members() {
                let name = if is_one { base.clone() } else { store_name::of_slot(&base, inode) };
                items.push(Item { name, inode, fd: listener.as_fd() });
            }
        }
        items
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

impl Listed {
    /// One whose IP versions are not chosen may have to be bound anew, which cannot be done while another process has it;
    /// nobody has been served there.
    fn is_bound_for_good(&self) -> bool {
        matches!(self.versions, Versions::Chosen | Versions::Given)
    }
}

fn save(listed: &[&Listed]) -> SavedSockets {
    let mut saved = SavedSockets::default();
    for listed in listed {
        let (first, group) = listed.group.save();
        saved.listeners.push(first);
        saved.steered.extend(group);
        saved.versions.push(listed.versions);
        saved.spec_of.push(listed.spec);
    }
    saved
}
