//! The sockets that a supervisor begins with: bound just now, inherited, or stored by the service manager with what is known
//! of them; and how it leaves those.

use std::os::fd::{OwnedFd, RawFd};

use anyhow::Result;

use crate::kernel::descriptors::SocketInode;
use crate::socket::group::{Group, Route, check_obedience};
use crate::socket::interception::Versions;
use crate::socket::listener::Listener;
use crate::socket::stored::{Kept, Stored};
use crate::supervise::sockets::{Listed, Share, Sockets};
use crate::sys::Claimed;
use crate::target::Handing;

impl Sockets {
    /// Those of `given`; further ones get numbers from `lowest` on.
    pub(crate) fn new(
        given: Vec<Listener>,
        others: Vec<OwnedFd>,
        lowest: RawFd,
        handing: Handing,
        stored: &mut Stored,
    ) -> Result<Sockets> {
        let (mut listeners, beside): (Vec<_>, _) = given.into_iter().partition(Listener::is_socket);
        check_obedience(&mut listeners);
        let is_open = |first: &Listener| handing == Handing::Interception && first.is_for_any_version();
        let (mut listed, mut besides, mut is_again) = (vec![], vec![], false);
        for (spec, first) in listeners.into_iter().enumerate() {
            let mut kept = stored.take(SocketInode::of(&first)?).into_iter();
            let Some(known) = kept.next() else {
                let versions = if is_open(&first) { Versions::Undecided } else { Versions::Given };
                listed.push(Listed { group: Group::of(first, lowest)?, versions, spec });
                continue;
            };
            is_again = true;
            // Only a program that binds by itself has asked for more than one address of a SPEC.
            for kept in kept.filter(|_| handing == Handing::Interception) {
                // If it came back.
                let Ok(beside) = Listener::resume(kept.first.clone(), &mut stored.members) else { continue };
                let beside = beside.not_alone_as(&first);
                besides.push(Listed::again(spec, beside, kept, &mut stored.members, lowest)?);
            }
            listed.push(Listed::again(spec, first, known, &mut stored.members, lowest)?);
        }
        listed.append(&mut besides);
        let mut sockets = Sockets::looked_after(listed, beside, others, lowest);
        if is_again {
            sockets.begin_again()?;
        }
        Ok(sockets)
    }

    /// Nobody has any of those that came back: the first generation gets the ones that served, and what waits there.
    fn begin_again(&mut self) -> Result<()> {
        let (Route { serving, .. }, lowest) = (self.route, self.lowest);
        let most = self.groups().map(Group::slots).max().unwrap_or(0).max(serving + 1);
        for group in self.groups_mut().filter(|group| group.is_steered()) {
            while group.slots() < most {
                group.grow(lowest)?;
            }
        }
        // Where that fails it is tried again when the first generation is ready, and is reported then.
        let _ = self.steer(Share::Slot(serving));
        self.free_all_but(&[]);
        Ok(())
    }
}

impl Listed {
    /// An address that was served before this start.
    fn again(spec: usize, first: Listener, kept: Kept, members: &mut Claimed, lowest: RawFd) -> Result<Listed> {
        let Kept { first: known, group, versions, .. } = kept;
        let first = first.remember(known);
        let group = match (group, first.options_beside().cloned()) {
            (Some(group), Some(options)) => Group::renew(first, group, options, members)?,
            _ => Group::of(first, lowest)?,
        };
        Ok(Listed { group, versions, spec })
    }
}
