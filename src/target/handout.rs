//! What one process is given: sockets, the numbers it finds them at, and their names. Built before fork or exec.

use std::os::fd::{AsFd, RawFd};

use anyhow::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::socket::listener::Listener;
use crate::socket::spec::FdName;
use crate::sys;
use crate::target::preset::Stdin;
use crate::target::template::Place;
use crate::target::{Handing, Program};

/// The sockets of one process, and what was announced beside them, in their order.
#[derive(Debug)]
pub(crate) struct Handout<'a> {
    given: Vec<Given<'a>>,
    pub(super) handing: Handing,
    stdin: Stdin,
}

/// A descriptor and its number.
#[derive(Debug)]
struct Given<'a> {
    listener: &'a Listener,
    /// Where ours is as a rule.
    number: RawFd,
}

impl<'a> Handout<'a> {
    /// `listeners`, which were put at the numbers that `program` looks for them at.
    pub(crate) fn of(listeners: impl IntoIterator<Item = &'a Listener>, program: &Program) -> Handout<'a> {
        let given = |(number, listener)| Given { listener, number };
        let given = (program.first_fd..).zip(listeners).map(given).collect();
        Handout { given, handing: program.handing, stdin: program.stdin }
    }

    /// For LISTEN_FDNAMES.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'a FdName> {
        self.given.iter().map(|given| &given.listener.name)
    }

    fn sockets(&self) -> impl Iterator<Item = &Given<'a>> {
        self.given.iter().filter(|given| given.listener.is_socket())
    }

    /// The values for templates; the kernel is asked for each address.
    pub(crate) fn places(&self) -> Result<Vec<Place>> {
        let place = |given: &Given| {
            let endpoint = given.listener.endpoint()?;
            let fd = (self.handing == Handing::Descriptors).then_some(given.number);
            Ok(Place { name: given.listener.name.clone(), fd, endpoint })
        };
        self.sockets().map(place).collect()
    }

    /// Wait until a connection or a datagram can be received; it is left where it is.
    pub(crate) fn wait_for_client(&self) -> nix::Result<()> {
        let input = |given: &Given<'a>| PollFd::new(given.listener.as_fd(), PollFlags::POLLIN);
        let mut waiting: Vec<PollFd> = self.sockets().map(input).collect();
        loop {
            match poll(&mut waiting, PollTimeout::NONE) {
                // Stopped and continued, as by job control.
                Err(Errno::EINTR) => (),
                Err(errno) => return Err(errno),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// The last step before exec: from here on the sockets are inherited.
    pub(crate) fn hand_on(&self) -> nix::Result<()> {
        for given in &self.given {
            // SAFETY: this is the last step before exec.
            unsafe { sys::place(given.listener, given.number)? };
        }
        match (self.stdin, self.sockets().next()) {
            // SAFETY: as above.
            (Stdin::FirstSocket, Some(first)) => unsafe { sys::place(first.listener, 0) },
            _ => Ok(()),
        }
    }
}
