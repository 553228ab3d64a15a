//! Sockets: integer options, listening, whether it was shut down, accepting, and messages with their sender.

use std::ffi::c_int;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockFlag, accept4};

/// What an internet socket carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

/// setsockopt(2) with an integer.
pub(crate) fn set_option(socket: impl AsFd, level: c_int, option: c_int, value: c_int) -> nix::Result<()> {
    let length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `value`, which lives through the call.
    let done =
        unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), length) };
    Errno::result(done).map(drop)
}

/// getsockopt(2) of an integer.
pub(crate) fn option(socket: impl AsFd, level: c_int, option: c_int) -> nix::Result<c_int> {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `value`, which lives through the call.
    let done = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut length)
    };
    Errno::result(done).map(|_| value)
}

/// SO_PEERPIDFD of asm-generic/socket.h, Linux 6.5.
const SO_PEERPIDFD: c_int = 77;

/// Does the process live that the other end of a Unix connection is of? Where the kernel does not know it is taken to.
pub(crate) fn is_peer_alive(connection: impl AsFd) -> bool {
    match option(connection, libc::SOL_SOCKET, SO_PEERPIDFD) {
        // SAFETY: the kernel just made it for us alone, close-on-exec.
        Ok(pidfd) => !super::process::is_readable(unsafe { OwnedFd::from_raw_fd(pidfd) }),
        Err(errno) => errno == Errno::ENOPROTOOPT,
    }
}

/// The longest value of an option that is read as it is: that of a congestion control's name.
const LONGEST_OPTION: usize = 16;

/// getsockopt(2) of any value of at most 16 bytes.
pub(crate) fn option_bytes(socket: impl AsFd, level: c_int, option: c_int) -> nix::Result<Vec<u8>> {
    let mut value = vec![0; LONGEST_OPTION];
    let mut length = value.len() as libc::socklen_t;
    let at = value.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `length` bytes there, which live through the call.
    let done = unsafe { libc::getsockopt(socket.as_fd().as_raw_fd(), level, option, at, &raw mut length) };
    Errno::result(done)?;
    value.truncate(length as usize);
    Ok(value)
}

/// setsockopt(2) of the same.
pub(crate) fn set_option_bytes(socket: impl AsFd, level: c_int, option: c_int, value: &[u8]) -> nix::Result<()> {
    let (at, length) = (value.as_ptr().cast(), value.len() as libc::socklen_t);
    // SAFETY: the kernel reads `length` bytes of it, which live through the call.
    let done = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, at, length) };
    Errno::result(done).map(drop)
}

/// The number of the network namespace that a socket is of (SO_NETNS_COOKIE, Linux 5.14), unique since boot.
pub(crate) fn network_of(socket: impl AsFd) -> nix::Result<u64> {
    let mut value: u64 = 0;
    let mut length = size_of::<u64>() as libc::socklen_t;
    let (socket, value_at) = (socket.as_fd().as_raw_fd(), (&raw mut value).cast());
    // SAFETY: the kernel writes at most `length` bytes into `value`, which lives through the call.
    let done = unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, value_at, &raw mut length) };
    Errno::result(done).map(|_| value)
}

/// asm-generic/socket.h, which libc has not for musl.
const SO_NETNS_COOKIE: c_int = 71;

/// listen(2). The kernel lowers `backlog` to net.core.somaxconn.
pub(crate) fn listen(socket: impl AsFd, backlog: c_int) -> nix::Result<()> {
    // SAFETY: listen takes two integers.
    Errno::result(unsafe { libc::listen(socket.as_fd().as_raw_fd(), backlog) }).map(drop)
}

/// connect(2) to no address: what shutdown(2) left is over. A listener must not listen, or it is closed.
///
/// A TCP socket that is shut down when it was shut down already does not listen any more, and keeps that when it listens
/// again: all connections that it accepts are shut down too (net/ipv4/af_inet.c, inet_shutdown).
pub(crate) fn disconnect(socket: impl AsFd) -> nix::Result<()> {
    // SAFETY: a sockaddr of zeroes is one of AF_UNSPEC.
    let nowhere: libc::sockaddr = unsafe { mem::zeroed() };
    let length = size_of_val(&nowhere) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of it, which lives through the call.
    let done = unsafe { libc::connect(socket.as_fd().as_raw_fd(), &raw const nowhere, length) };
    Errno::result(done).map(drop)
}

/// The accept queue of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queue {
    /// The connections that wait in it.
    pub(crate) length: u32,
    /// How many may.
    pub(crate) backlog: u32,
}

/// The accept queue of a TCP listener, as TCP_INFO shows it.
pub(crate) fn queue(listener: impl AsFd) -> nix::Result<Queue> {
    // Of struct tcp_info: eight bytes, then numbers of 32 bits; of a listener the fifth and the sixth are its queue's.
    let mut info = [0u32; 8];
    let mut length = size_of_val(&info) as libc::socklen_t;
    let (level, option) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: the kernel writes at most `length` bytes into `info`, which lives through the call.
    let done = unsafe {
        let info = info.as_mut_ptr().cast();
        libc::getsockopt(listener.as_fd().as_raw_fd(), level, option, info, &raw mut length)
    };
    Errno::result(done)?;
    let is_whole = length as usize == size_of_val(&info);
    is_whole.then_some(Queue { length: info[6], backlog: info[7] }).ok_or(Errno::ENOPROTOOPT)
}

/// What poll(2) shows of a listener that was shut down: wholly, or for reading alone.
const SHUT_DOWN: PollFlags = PollFlags::from_bits_retain(libc::POLLHUP | libc::POLLRDHUP);

/// Was shutdown(2) called on this listener or datagram socket?
pub(crate) fn is_shut_down(socket: impl AsFd) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), SHUT_DOWN)];
    let polled = poll(&mut fds, PollTimeout::ZERO);
    // nix has no name for POLLRDHUP: flags with it are none.
    polled.is_ok() && fds[0].revents().is_none_or(|flags| flags.intersects(SHUT_DOWN))
}

/// recvmsg(2) of the next message into `buffer`: its length and its sender, as verified by the kernel (SO_PASSCRED).
///
/// There is room for the credentials alone, so that the kernel itself closes descriptors sent along: none is ever
/// received, not even some of them where the table is full.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> nix::Result<(usize, Option<libc::ucred>)> {
    let mut room = Room { bytes: [0; ROOM] };
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a msghdr of zeroes is one that names nothing.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut room).cast();
    message.msg_controllen = ROOM as _;
    // SAFETY: the kernel writes at most as much as the message header allows into `buffer` and `room`, which live
    // through it.
    let length = Errno::result(unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, 0) })?;
    // SAFETY: the message is one that the kernel filled.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: it is null, or points to a header in `room`, which is aligned for it.
    let header = unsafe { header.as_ref() };
    let is_sender =
        |header: &&libc::cmsghdr| (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_CREDENTIALS);
    let sender = header.filter(is_sender).map(|header| {
        // SAFETY: the header is in `room`, and what it announces is behind it.
        let credentials = unsafe { libc::CMSG_DATA(header) };
        // SAFETY: behind a header of this type the kernel put a `ucred`.
        unsafe { credentials.cast::<libc::ucred>().read_unaligned() }
    });
    Ok((length as usize, sender))
}

/// What a `ucred` takes behind its header.
// SAFETY: it only computes.
const ROOM: usize = unsafe { libc::CMSG_SPACE(size_of::<libc::ucred>() as u32) } as usize;

/// Bytes where a header may begin.
union Room {
    bytes: [u8; ROOM],
    #[expect(dead_code, reason = "it aligns")]
    header: libc::cmsghdr,
}

/// A socket of the same family, type and protocol, on which nothing is set.
pub(crate) fn similar(socket: impl AsFd) -> nix::Result<OwnedFd> {
    let of = |name| option(&socket, libc::SOL_SOCKET, name);
    let (domain, kind, protocol) = (of(libc::SO_DOMAIN)?, of(libc::SO_TYPE)?, of(libc::SO_PROTOCOL)?);
    // SAFETY: socket takes three integers and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel just made `fd` for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// accept4(2), the connection close-on-exec and non-blocking.
pub(crate) fn accept(listener: impl AsFd) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let number = accept4(listener.as_fd().as_raw_fd(), flags)?;
    // SAFETY: the kernel just made it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
