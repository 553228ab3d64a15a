//! Put listeners at the numbers where the target looks for them, and what is in the way elsewhere.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use anyhow::{Context, Error, Result, anyhow};
use log::warn;
use nix::errno::Errno;

use crate::socket::listener::Listener;
use crate::sys;

impl Listener {
    /// The same listener at the lowest free number from `lowest` on.
    fn moved(self, lowest: RawFd) -> nix::Result<Listener> {
        Ok(Listener { fd: sys::duplicate_from(&self.fd, lowest)?, ..self })
    }

    /// The same listener at `number`, which is free or its own.
    fn at(self, number: RawFd) -> nix::Result<Listener> {
        let listener = if self.fd.as_raw_fd() == number { self } else { self.moved(number)? };
        // EBUSY cannot be: the descriptor that was there was moved.
        if listener.fd.as_raw_fd() == number { Ok(listener) } else { Err(Errno::EBUSY) }
    }
}

/// Give the listeners the numbers the protocol wants, `first` and on; `others` in the way move up.
///
/// Return `others`, with the numbers they have now.
pub(crate) fn arrange(
    listeners: Vec<Listener>,
    others: Vec<OwnedFd>,
    first: RawFd,
) -> Result<(Vec<Listener>, Vec<OwnedFd>)> {
    let end = RawFd::try_from(listeners.len()).ok().and_then(|count| first.checked_add(count));
    let end = end.context("the descriptor numbers run past the largest there is")?;
    let in_order = (first..).zip(&listeners).all(|(number, listener)| listener.fd.as_raw_fd() == number);
    if in_order {
        return Ok((listeners, others));
    }
    let context = || format!("cannot give the sockets the numbers from {first} on");
    let others = others.into_iter().map(|fd| out_of_the_way(fd, first, end)).collect::<Result<_>>()?;
    let mut listeners: Vec<Option<Listener>> = listeners.into_iter().map(Some).collect();
    let mut arranged = Vec::with_capacity(listeners.len());
    for (at, number) in (first..end).enumerate() {
        // First move away any listener that still has this number; it gets its own later.
        for other in listeners[at + 1..].iter_mut() {
            if let Some(sits) = other.take_if(|other| other.fd.as_raw_fd() == number) {
                *other = Some(sits.moved(end).map_err(beyond_limit).with_context(context)?);
            }
        }
        let listener = listeners[at].take().expect("each is taken once");
        arranged.push(listener.at(number).map_err(beyond_limit).with_context(context)?);
    }
    Ok((arranged, others))
}

/// Explain EINVAL of fcntl(2): no descriptor may have a number that high.
fn beyond_limit(errno: Errno) -> Error {
    if errno == Errno::EINVAL { anyhow!("the limit of open files (ulimit -n) is lower") } else { errno.into() }
}

/// Move a descriptor whose number is from `first` to `end`: it may hold a lock, so it is not closed.
fn out_of_the_way(fd: OwnedFd, first: RawFd, end: RawFd) -> Result<OwnedFd> {
    let number = fd.as_raw_fd();
    if !(first..end).contains(&number) {
        return Ok(fd);
    }
    let moved = sys::duplicate_inheritable_from(&fd, end)
        .map_err(beyond_limit)
        .with_context(|| format!("cannot move descriptor {number} out of the way"))?;
    warn!(
        "descriptor {number} was open and is now {}: a socket belongs there (--first-fd numbers the sockets elsewhere)",
        moved.as_raw_fd()
    );
    Ok(moved)
}
