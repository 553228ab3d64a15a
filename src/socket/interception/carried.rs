//! What a program had set on its socket before bind(2), set on ours as far as it can be, so that a server behaves as on its
//! own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::c_int;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::sys;

/// socket(7), tcp(7), ip(7), ipv6(7), udp(7), unix(7): what is inherited by connections, or has a meaning for a socket that
/// listens or receives datagrams. Without what binds the socket (SO_REUSEPORT, SO_BINDTODEVICE, IPV6_V6ONLY) and what marks
/// it for us (TCP_WINDOW_CLAMP).
const OPTIONS: &[(c_int, c_int)] = &[
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    (libc::SOL_SOCKET, libc::SO_MARK),
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::SOL_SOCKET, libc::SO_DONTROUTE),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMP),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (libc::SOL_SOCKET, libc::SO_PASSCRED),
    (libc::SOL_SOCKET, libc::SO_RXQ_OVFL),
    (libc::SOL_SOCKET, libc::SO_BUSY_POLL),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_CORK),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2),
    (libc::IPPROTO_TCP, libc::TCP_CONGESTION),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (libc::IPPROTO_IP, libc::IP_RECVERR),
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
    (libc::IPPROTO_IP, libc::IP_RECVTOS),
    (libc::IPPROTO_IP, libc::IP_RECVTTL),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
    (libc::SOL_UDP, libc::UDP_GRO),
];

/// The kernel reports twice what was asked for (socket(7)).
const DOUBLED: [c_int; 2] = [libc::SO_RCVBUF, libc::SO_SNDBUF];

/// SO_BUF_LOCK (Linux 5.14), of which libc has no name: whether the buffers have the size that was set, or the kernel's.
const SO_BUF_LOCK: c_int = 72;

/// Set on `ours` what differs between `theirs` and `fresh`, a socket of their kind on which nothing was set; and the rest,
/// where `usual` has it, as that has it: an earlier program may have set it.
pub(crate) fn carry_over(theirs: &OwnedFd, fresh: &OwnedFd, usual: Option<&OwnedFd>, ours: impl AsFd) {
    for &(level, option) in OPTIONS {
        let value = |socket: BorrowedFd| sys::option_bytes(socket, level, option).ok();
        if let Some(wanted) = wanted(value, theirs, fresh, usual, ours.as_fd()) {
            // As far as it can be: another version of IP has other options, and some take a privilege.
            let _ = sys::set_option_bytes(&ours, level, option, &wanted);
        }
    }
    let value = |option| move |socket: BorrowedFd| sys::option(socket, libc::SOL_SOCKET, option).ok();
    for option in DOUBLED {
        if let Some(wanted) = wanted(value(option), theirs, fresh, usual, ours.as_fd()) {
            let _ = sys::set_option(&ours, libc::SOL_SOCKET, option, wanted / 2);
        }
    }
    // Behind those that set it.
    if let Some(wanted) = wanted(value(SO_BUF_LOCK), theirs, fresh, usual, ours.as_fd()) {
        let _ = sys::set_option(&ours, libc::SOL_SOCKET, SO_BUF_LOCK, wanted);
    }
    let segment = |socket: BorrowedFd| sys::option(socket, libc::IPPROTO_TCP, libc::TCP_MAXSEG).ok();
    if let Some(wanted) = wanted(segment, theirs, fresh, usual, ours.as_fd()) {
        // Set as it is read where it was not set, it would be a limit: 0 takes that away.
        let is_set = segment(theirs.as_fd()) != segment(fresh.as_fd());
        let _ = sys::set_option(&ours, libc::IPPROTO_TCP, libc::TCP_MAXSEG, if is_set { wanted } else { 0 });
    }
}

/// What is to be set on `ours`, if anything.
fn wanted<T: PartialEq>(
    value: impl Fn(BorrowedFd) -> Option<T>,
    theirs: &OwnedFd,
    fresh: &OwnedFd,
    usual: Option<&OwnedFd>,
    ours: BorrowedFd,
) -> Option<T> {
    let set = value(theirs.as_fd()).filter(|set| value(fresh.as_fd()).as_ref() != Some(set));
    let wanted = set.or_else(|| value(usual?.as_fd()))?;
    (value(ours).as_ref() != Some(&wanted)).then_some(wanted)
}

/// Make `ours` O_NONBLOCK if `theirs` is, or not.
pub(crate) fn carry_blocking(theirs: &OwnedFd, ours: impl AsFd) -> nix::Result<()> {
    let flags = |fd: BorrowedFd| fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    let (wanted, mut now) = (flags(theirs.as_fd())?, flags(ours.as_fd())?);
    if (wanted ^ now).contains(OFlag::O_NONBLOCK) {
        now.set(OFlag::O_NONBLOCK, wanted.contains(OFlag::O_NONBLOCK));
        fcntl(&ours, FcntlArg::F_SETFL(now))?;
    }
    Ok(())
}
