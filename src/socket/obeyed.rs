//! Does the kernel obey the program that chooses among sockets? A sandbox may take it and ignore it.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, bind, getsockname, recv, sendto, setsockopt, socket,
    sockopt,
};

use crate::socket::steering::Course;
use crate::sys;

/// Try it with two sockets of our own. Where that cannot be tried, as without a loopback interface, it is believed.
pub(super) fn is_obeyed() -> bool {
    try_it().unwrap_or(true)
}

fn try_it() -> nix::Result<bool> {
    let first = pair_member(0)?;
    let address: SockaddrIn = getsockname(first.as_raw_fd())?;
    let pair = [first, pair_member(address.port())?];
    let client = datagram_socket()?;
    for place in 0..pair.len() {
        sys::choose_by(&pair[0], &Course::straight(place as u32).program())?;
        sendto(client.as_raw_fd(), &[0], &address, MsgFlags::MSG_DONTWAIT)?;
        // On a loopback it is there when sendto(2) returns.
        if recv(pair[place].as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn datagram_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
}

fn pair_member(port: u16) -> nix::Result<OwnedFd> {
    let member = datagram_socket()?;
    setsockopt(&member, sockopt::ReusePort, &true)?;
    bind(member.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port))?;
    Ok(member)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_obeys() {
        assert_eq!(try_it(), Ok(true));
    }
}
