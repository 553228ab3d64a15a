//! What one process is given: sockets, the numbers it finds them at, and their names. Built before fork or exec.

use std::os::fd::{AsFd, BorrowedFd, RawFd};

use anyhow::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::socket::endpoint::Endpoint;
use crate::socket::listener::Listener;
use crate::socket::spec::FdName;
use crate::sys;
use crate::target::Program;
use crate::target::preset::Stdin;
use crate::target::template::Place;

/// The sockets of one process, in their order.
#[derive(Debug)]
pub(crate) struct Handout<'a> {
    sockets: Vec<Given<'a>>,
    stdin: Stdin,
}

/// A socket and its number.
#[derive(Debug)]
struct Given<'a> {
    name: &'a FdName,
    /// Our descriptor, which is at `number` as a rule.
    fd: BorrowedFd<'a>,
    number: RawFd,
}

impl<'a> Handout<'a> {
    /// `listeners`, which were put at the numbers that `program` looks for them at.
    pub(crate) fn of(listeners: &'a [Listener], program: &Program) -> Handout<'a> {
        let given =
            |(number, listener): (RawFd, &'a Listener)| Given { name: &listener.name, fd: listener.as_fd(), number };
        Handout { sockets: (program.first_fd..).zip(listeners).map(given).collect(), stdin: program.stdin }
    }

    /// For LISTEN_FDNAMES.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'a FdName> {
        self.sockets.iter().map(|given| given.name)
    }

    /// The values for templates; the kernel is asked for each address.
    pub(crate) fn places(&self) -> Result<Vec<Place>> {
        let place =
            |given: &Given| Ok(Place { name: given.name.clone(), fd: given.number, endpoint: Endpoint::of(given.fd)? });
        self.sockets.iter().map(place).collect()
    }

    /// Wait until a connection or a datagram can be received; it is left where it is.
    pub(crate) fn wait_for_client(&self) -> nix::Result<()> {
        let input = |given: &Given<'a>| PollFd::new(given.fd, PollFlags::POLLIN);
        let mut waiting: Vec<PollFd> = self.sockets.iter().map(input).collect();
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
        for given in &self.sockets {
            // SAFETY: this is the last step before exec.
            unsafe { sys::place(given.fd, given.number)? };
        }
        match (self.stdin, self.sockets.first()) {
            // SAFETY: as above.
            (Stdin::FirstSocket, Some(first)) => unsafe { sys::place(first.fd, 0) },
            _ => Ok(()),
        }
    }
}
