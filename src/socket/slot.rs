//! One socket of a group: what is known of it, and what becomes of it while nobody has it.

use std::os::fd::{AsFd, AsRawFd};

use anyhow::Result;
use libc::c_int;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, Shutdown, recv, setsockopt, shutdown, sockopt};

use crate::kernel::descriptors::SocketInode;
use crate::socket::listener::Listener;
use crate::socket::upkeep::{Finding, Upkeep};
use crate::sys;

/// What TCP_WINDOW_CLAMP of a socket in its place is: the most, which is what is without it, too. A shutdown(2) resets it.
const IN_PLACE: c_int = 0xffff << 14;

/// At most so many connections, or datagrams, are dropped at once: the rest is for the next round of the loop.
const MOST_AT_ONCE: usize = 1000;

/// A socket of a group.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(super) listener: Listener,
    pub(super) inode: SocketInode,
    pub(super) upkeep: Upkeep,
    /// Nobody has it.
    is_idle: bool,
    /// Whether it is O_NONBLOCK for the one that gets it.
    is_nonblocking: bool,
    /// It was shut down and cannot listen again: poll(2) would return at once for ever.
    pub(super) is_lost: bool,
    /// TCP_DEFER_ACCEPT, while that is turned off.
    pub(super) deferred: Option<c_int>,
    /// The kernel keeps its mark.
    pub(super) is_marked: bool,
}

impl Slot {
    pub(super) fn of(mut listener: Listener) -> nix::Result<Slot> {
        let inode = SocketInode::of(&listener)?;
        let is_nonblocking = listener.options_beside().is_some_and(|options| options.has("nonblock"));
        Ok(Slot {
            inode,
            upkeep: Upkeep::of(&mut listener),
            is_idle: false,
            is_nonblocking,
            is_lost: false,
            deferred: None,
            is_marked: is_marked(&listener),
            listener,
        })
    }

    /// It is in its place.
    pub(super) fn mark(&mut self) {
        if !self.is_datagram() {
            // Where it cannot be set, a server that shuts it down and listens again goes unseen.
            let _ = sys::set_option(&self.listener, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, IN_PLACE);
            self.is_marked = is_marked(&self.listener);
        }
    }

    /// The same if it has moved, or nothing could be seen of that so far.
    pub(super) fn mark_if(&mut self, has_moved: bool) {
        if has_moved || !self.is_marked {
            self.mark();
        }
    }

    /// Has a server shut it down and listened again? It is behind all others of its group then.
    pub(super) fn has_moved(&self) -> bool {
        self.is_marked && !self.has_left() && !is_marked(&self.listener)
    }

    pub(super) fn is_datagram(&self) -> bool {
        self.upkeep.is_datagram()
    }

    /// Look after a socket that generations share.
    pub(super) fn look_after(&mut self) -> Vec<Finding> {
        self.upkeep.look_after(&mut self.listener)
    }

    /// Listen again after a shutdown(2), at its address, with the backlog that it had.
    pub(super) fn listen_again(&mut self) -> Result<()> {
        self.upkeep.bind_again(&self.listener)?;
        // By then it may be shut down again.
        self.mark();
        Ok(self.listener.listen_again()?)
    }

    /// Has a server shut it down? One that does so just now has left its group before that can be seen, and holds the lock of
    /// the socket (inet_shutdown), for which recv(2) waits; it does nothing else to one that listens.
    pub(super) fn has_left(&self) -> bool {
        if !self.is_datagram() {
            let _ = recv(self.listener.as_fd().as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        }
        sys::is_shut_down(&self.listener) || !self.is_datagram() && !self.listener.listens()
    }

    /// What to poll it for, if at all.
    pub(super) fn polled_for(&self) -> Option<PollFlags> {
        match self.is_idle {
            _ if self.is_lost => None,
            true => Some(PollFlags::POLLIN),
            false => self.upkeep.is_watched().then_some(PollFlags::empty()),
        }
    }

    /// How many connections wait to be accepted, or 1 where datagrams wait.
    pub(super) fn waiting(&self) -> usize {
        waiting(&self.listener, self.is_datagram())
    }

    /// Nobody has it from now on: what comes is dropped.
    pub(super) fn leave_idle(&mut self) -> nix::Result<()> {
        if !self.is_idle {
            self.is_idle = true;
            let flags = flags(&self.listener)? | OFlag::O_NONBLOCK;
            fcntl(&self.listener, FcntlArg::F_SETFL(flags))?;
        }
        Ok(())
    }

    /// Another process may have changed it.
    pub(super) fn refresh_idle(&mut self) {
        if std::mem::take(&mut self.is_idle) {
            // It cannot fail for a socket of ours.
            let _ = self.leave_idle();
        }
    }

    /// New connections go elsewhere from now on. One that waits for its first data is given to the server by the client's
    /// next acknowledgement, a second later as a rule: else it would not be seen in the queue for as long as that lasts.
    pub(super) fn relieve(&mut self) {
        if let (false, Ok(seconds @ 1..)) = (self.is_datagram(), self.defer_accept()) {
            self.deferred = Some(seconds);
            self.set_defer_accept(0);
        }
    }

    /// New connections come here from now on, or may.
    pub(super) fn engage(&mut self) {
        if let Some(seconds) = self.deferred.take() {
            self.set_defer_accept(seconds);
        }
    }

    /// A predecessor of this program relieved it, and knew this; or, if it did not say so, its option is off though it was
    /// asked for.
    pub(super) fn resume_deferred(&mut self, known: Option<c_int>) {
        let asked = self.listener.options_beside().and_then(|options| options.number("defer-accept"));
        let asked = asked.filter(|_| self.defer_accept() == Ok(0)).map(|seconds| seconds as c_int);
        self.deferred = known.or(asked);
    }

    fn defer_accept(&self) -> nix::Result<c_int> {
        sys::option(&self.listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT)
    }

    fn set_defer_accept(&self, seconds: c_int) {
        // It cannot fail for a TCP socket.
        let _ = sys::set_option(&self.listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, seconds);
    }

    /// Somebody has it from now on. What waits is dropped; how many that were.
    pub(super) fn give(&mut self) -> usize {
        let dropped = self.sweep();
        if self.is_idle {
            self.renew();
        }
        dropped
    }

    /// Set what its SPEC has, whatever a server left.
    pub(super) fn renew(&mut self) {
        self.is_idle = false;
        if let Ok(mut flags) = flags(&self.listener) {
            flags.set(OFlag::O_NONBLOCK, self.is_nonblocking);
            // It cannot fail for a socket of ours.
            let _ = fcntl(&self.listener, FcntlArg::F_SETFL(flags));
            let deferred = self.listener.options_beside().and_then(|options| options.number("defer-accept"));
            self.deferred = deferred.map(|seconds| seconds as c_int);
            self.engage();
        }
    }

    /// Where nobody has it, drop what waits, a connection by a reset; how many that were.
    pub(super) fn sweep(&mut self) -> usize {
        if !self.is_idle || self.has_left() {
            return 0;
        }
        let mut dropped = 0;
        while dropped < MOST_AT_ONCE {
            let outcome = match self.is_datagram() {
                true => recv(self.listener.as_fd().as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT).map(drop),
                false => sys::accept(&self.listener).map(reset),
            };
            match outcome {
                Ok(()) => dropped += 1,
                // Its client has gone already.
                Err(Errno::EINTR | Errno::ECONNABORTED) => (),
                Err(Errno::EAGAIN) => {
                    // What a server left in the error queue would wake poll(2) for ever.
                    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
                    while self.is_datagram() && recv(self.listener.as_fd().as_raw_fd(), &mut [0], flags).is_ok() {}
                    break;
                }
                // As when there is no descriptor left: poll(2) would return again and again. A shutdown(2) needs none and
                // resets all that wait; the next look lets it listen again.
                Err(_) => {
                    dropped += self.waiting();
                    // It cannot fail for a socket that listens.
                    let _ = shutdown(self.listener.as_fd().as_raw_fd(), Shutdown::Both);
                    break;
                }
            }
        }
        dropped
    }

    /// Another socket in the place of this one, which is returned.
    pub(super) fn replace(&mut self, mut another: Slot) -> nix::Result<Listener> {
        if self.is_idle {
            another.leave_idle()?;
        } else {
            another.give();
        }
        Ok(std::mem::replace(self, another).listener)
    }
}

/// How many connections wait to be accepted, or 1 where datagrams wait.
pub(super) fn waiting(socket: impl AsFd, is_datagram: bool) -> usize {
    match is_datagram {
        true => recv(socket.as_fd().as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT).is_ok().into(),
        false => sys::queue(socket).map_or(0, |queue| queue.length as usize),
    }
}

/// Close a connection so that its client knows at once.
fn reset(connection: impl AsFd) {
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = setsockopt(&connection, sockopt::Linger, &at_once);
}

fn is_marked(listener: &Listener) -> bool {
    sys::option(listener, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP) == Ok(IN_PLACE)
}

fn flags(listener: &Listener) -> nix::Result<OFlag> {
    fcntl(listener, FcntlArg::F_GETFL).map(OFlag::from_bits_retain)
}
