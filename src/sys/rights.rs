//! A descriptor that is sent over a Unix socket: SCM_RIGHTS of unix(7), cmsg(3).
//!
//! Not by nix, whose buffers are vectors of bytes: an allocator need not align them for a header.

use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// What a descriptor takes behind its header.
// SAFETY: it only computes.
const ROOM: usize = unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } as usize;

/// Bytes where a header may begin.
union Room {
    bytes: [u8; ROOM],
    #[expect(dead_code, reason = "it aligns")]
    header: libc::cmsghdr,
}

/// Call `act` with a message of one byte, which has room for a descriptor; its result, and the message then.
fn with_message<T>(act: impl FnOnce(&mut libc::msghdr) -> T) -> T {
    let (mut room, mut byte) = (Room { bytes: [0; ROOM] }, 0_u8);
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: a msghdr of zeroes is one that names nothing.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut room).cast();
    message.msg_controllen = ROOM as _;
    act(&mut message)
}

/// Send a copy of a descriptor.
pub(crate) fn send_descriptor(socket: impl AsFd, fd: impl AsFd) -> nix::Result<()> {
    with_message(|message| {
        // SAFETY: the message has room for one header.
        let header = unsafe { libc::CMSG_FIRSTHDR(message) };
        // SAFETY: it points into that room, which is aligned for it.
        let header = unsafe { &mut *header };
        (header.cmsg_level, header.cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        // SAFETY: it only computes.
        header.cmsg_len = unsafe { libc::CMSG_LEN(size_of::<RawFd>() as u32) } as _;
        // SAFETY: behind the header there is room for a number.
        unsafe { libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd.as_fd().as_raw_fd()) };
        // SAFETY: the message names what lives through the call, and the kernel only reads it.
        let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), message, libc::MSG_NOSIGNAL) };
        Errno::result(sent).map(drop)
    })
}

/// The descriptor that was sent, close-on-exec; none at the end. Does not wait.
///
/// # Errors
/// EAGAIN if nothing was sent; EMFILE if no number was free for it.
pub(crate) fn receive_descriptor(socket: impl AsFd) -> nix::Result<Option<OwnedFd>> {
    with_message(|message| {
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        // SAFETY: the kernel writes at most as much as the message allows, into what lives through the call.
        let length = Errno::result(unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), message, flags) })?;
        // SAFETY: the message is one that the kernel filled.
        let header = unsafe { libc::CMSG_FIRSTHDR(message) };
        // SAFETY: it is null, or points to a header in the room, which is aligned for it.
        let header = unsafe { header.as_ref() };
        let is_it =
            |header: &&libc::cmsghdr| (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        match header.filter(is_it) {
            // Without a free number the kernel delivers the byte alone.
            None if length > 0 => Err(Errno::EMFILE),
            None => Ok(None),
            Some(header) => {
                // SAFETY: behind a header of this type the kernel put a number.
                let number = unsafe { libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned() };
                // SAFETY: the kernel just made it for us alone.
                Ok(Some(unsafe { OwnedFd::from_raw_fd(number) }))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nix::sys::stat::fstat;

    use super::*;
    use crate::sys::is_inheritable;

    #[test]
    fn a_descriptor_arrives_as_a_copy_and_then_the_end() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert_eq!(receive_descriptor(&ours).unwrap_err(), Errno::EAGAIN);
        send_descriptor(&theirs, &theirs).unwrap();
        let received = receive_descriptor(&ours).unwrap().unwrap();
        assert_eq!(fstat(&received).unwrap().st_ino, fstat(&theirs).unwrap().st_ino);
        assert!(!is_inheritable(received.as_raw_fd()));
        drop((received, theirs));
        assert!(receive_descriptor(&ours).unwrap().is_none());
    }
}
