//! Our socket in the place of a program's own.

use std::os::fd::OwnedFd;

use log::debug;
use nix::errno::Errno;

use crate::kernel::descriptors::{ForeignFd, SocketInode};
use crate::kernel::fdinfo::Registration;
use crate::socket::interception::carried::{carry_blocking, carry_over};
use crate::supervise::Supervisor;
use crate::supervise::generation::Generation;
use crate::supervise::intercept::{Answer, Bind, Theirs, refused};
use crate::supervise::plan::Id;
use crate::sys::{self, Verdict};

impl Supervisor {
    /// Put our socket in the place of `theirs`, wherever the caller has that.
    pub(super) fn hand_over(&mut self, generation: Id, at: usize, bind: &Bind, theirs: &Theirs) -> Answer {
        // The program may have removed its file just now, or shut it down before.
        self.look_after_sockets();
        match self.replace(generation, at, bind, theirs) {
            // The call does not wait any more, or the number is another file's by now.
            Err(Errno::ENOENT) => Ok(Verdict::Continue),
            Err(errno) => {
                if errno == Errno::ETIMEDOUT {
                    self.mark_slow(generation);
                }
                Err(refused("cannot put our socket in the place of its own", errno))
            }
            Ok(()) => {
                debug!("generation {generation}: has our socket");
                Ok(Verdict::Done)
            }
        }
    }

    fn replace(&mut self, generation: Id, at: usize, bind: &Bind, theirs: &Theirs) -> nix::Result<()> {
        let uses = bind.caller.uses(theirs.inode, bind.number)?;
        let flags =
            |number: ForeignFd| uses.numbers.iter().find(|(other, _)| *other == number).map(|(_, flags)| *flags);
        let own_flags = flags(bind.number).ok_or(Errno::ENOENT)?;
        let Some(asker) = self.generations.get(generation) else { return Err(Errno::ENOENT) };
        // Another number is that of a descriptor which has been closed since.
        let known = uses.registrations.iter().filter(|(_, known)| flags(known.number).is_some());
        let copied = known.map(|(epoll, known)| Ok((bind.caller.copy(*epoll)?, *known)));
        let epolls: Vec<(OwnedFd, Registration)> = copied.collect::<nix::Result<_>>()?;
        let notifier = asker.notifier().filter(|notifier| sys::is_pending(notifier, bind.id)).ok_or(Errno::ENOENT)?;
        let ours = self.sockets.taken(at, asker.share);
        let given = SocketInode::of(ours)?;
        // What a program sets on a further socket of its own, as to try its port, is no concern of the one that serves; nor
        // is what another generation sets, where both share a socket.
        let has_it = |generation: &Generation| generation.given.contains(&given);
        if !self.generations.iter().any(has_it) {
            carry_blocking(&theirs.socket, ours)?;
            carry_over(&theirs.socket, &sys::similar(&theirs.socket)?, ours.pattern().as_ref(), ours);
        }
        if !epolls.is_empty() {
            bind.caller.add_to_epolls(epolls, ours)?;
        }
        for (number, flags) in uses.numbers.iter().filter(|(number, _)| *number != bind.number) {
            sys::put(notifier, bind.id, ours, number.0, *flags)?;
        }
        // Last, for by this a call that is interrupted, and made again, is seen to be done.
        sys::put(notifier, bind.id, ours, bind.number.0, own_flags)?;
        let asker = self.generations.get_mut(generation).filter(|asker| !asker.given.contains(&given));
        asker.into_iter().for_each(|asker| asker.given.push(given));
        Ok(())
    }
}
