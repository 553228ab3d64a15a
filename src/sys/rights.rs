//! Descriptors that are sent over a Unix socket, with a text: SCM_RIGHTS of unix(7), cmsg(3).
//!
//! Not by nix, whose buffers are vectors of bytes: an allocator need not align them for a header.

use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{SockaddrLike, UnixAddr};

/// As many descriptors go with one message; the kernel takes a few more (SCM_MAX_FD).
pub(crate) const MOST_AT_ONCE: usize = 250;

/// What they take behind their header.
// SAFETY: it only computes.
const ROOM: usize = unsafe { libc::CMSG_SPACE((MOST_AT_ONCE * size_of::<RawFd>()) as u32) } as usize;

/// Bytes where a header may begin.
union Room {
    bytes: [u8; ROOM],
    #[expect(dead_code, reason = "it aligns")]
    header: libc::cmsghdr,
}

/// Call `act` with a message of these bytes, which has room for descriptors; its result.
fn with_message<T>(bytes: &mut [u8], act: impl FnOnce(&mut libc::msghdr) -> T) -> T {
    let mut room = Room { bytes: [0; ROOM] };
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
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
    send(socket, None, &mut [0], &[fd.as_fd()])
}

/// Send copies of these, of which there are at most `MOST_AT_ONCE`.
pub(crate) fn send_descriptors(socket: impl AsFd, fds: &[BorrowedFd]) -> nix::Result<()> {
    send(socket, None, &mut [0], fds)
}

/// Send a text to this address, with a copy of a descriptor if there is one.
pub(crate) fn send_text(socket: impl AsFd, to: &UnixAddr, text: &str, fd: Option<BorrowedFd>) -> nix::Result<()> {
    send(socket, Some(to), &mut text.as_bytes().to_vec(), fd.as_slice())
}

fn send(socket: impl AsFd, to: Option<&UnixAddr>, bytes: &mut [u8], fds: &[BorrowedFd]) -> nix::Result<()> {
    with_message(bytes, |message| {
        if let Some(to) = to {
            message.msg_name = to.as_ptr().cast_mut().cast();
            message.msg_namelen = to.len();
        }
        add_descriptors(message, fds);
        // SAFETY: the message names what lives through the call, and the kernel only reads it.
        let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), message, libc::MSG_NOSIGNAL) };
        Errno::result(sent).map(drop)
    })
}

/// Fill the room of a message of `with_message`.
fn add_descriptors(message: &mut libc::msghdr, fds: &[BorrowedFd]) {
    assert!(fds.len() <= MOST_AT_ONCE, "there is room for so many");
    if fds.is_empty() {
        message.msg_controllen = 0;
        return;
    }
    let length = size_of_val(fds) as u32;
    // SAFETY: it only computes.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(length) } as _;
    // SAFETY: the message names a room.
    let header = unsafe { libc::CMSG_FIRSTHDR(message) };
    assert!(!header.is_null(), "with_message makes room for one header");
    // SAFETY: the room is aligned for a header.
    unsafe { ((*header).cmsg_level, (*header).cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS) };
    // SAFETY: as above; the rest only computes.
    unsafe { (*header).cmsg_len = libc::CMSG_LEN(length) as _ };
    // SAFETY: it only computes.
    let numbers = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
    for (at, fd) in fds.iter().enumerate() {
        // SAFETY: behind the header there is room for so many numbers.
        unsafe { numbers.add(at).write_unaligned(fd.as_raw_fd()) };
    }
}

/// The descriptor that was sent, close-on-exec; none at the end. Does not wait.
///
/// # Errors
/// EAGAIN if nothing was sent; EMFILE if no number was free for it.
pub(crate) fn receive_descriptor(socket: impl AsFd) -> nix::Result<Option<OwnedFd>> {
    receive_descriptors(socket).map(|fds| fds.into_iter().next())
}

/// Those that were sent with one message, close-on-exec; none at the end. Does not wait.
///
/// # Errors
/// EAGAIN if nothing was sent; EMFILE if there was not a free number for each.
pub(crate) fn receive_descriptors(socket: impl AsFd) -> nix::Result<Vec<OwnedFd>> {
    with_message(&mut [0], |message| {
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        // SAFETY: the kernel writes at most as much as the message allows, into what lives through the call.
        let length = Errno::result(unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), message, flags) })?;
        // SAFETY: the message is one that the kernel filled.
        let first = unsafe { libc::CMSG_FIRSTHDR(message) };
        // SAFETY: it is null, or points to a header in the room, which is aligned for it.
        let header = (!first.is_null()).then(|| unsafe { first.read() });
        let is_it =
            |header: &libc::cmsghdr| (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        match header.filter(is_it) {
            // Without a free number the kernel delivers the byte alone.
            None if length > 0 => Err(Errno::EMFILE),
            None => Ok(vec![]),
            Some(header) => {
                // SAFETY: it only computes.
                let length = |count: &usize| unsafe { libc::CMSG_LEN((count * size_of::<RawFd>()) as u32) };
                // Its type is another with musl.
                let count = (0..=MOST_AT_ONCE).rev().find(|count| header.cmsg_len >= length(count) as _).unwrap_or(0);
                // SAFETY: it only computes.
                let numbers = unsafe { libc::CMSG_DATA(first) }.cast::<RawFd>();
                // SAFETY: behind a header of this type the kernel put so many numbers, which it just made for us alone.
                let take = |at: usize| unsafe { OwnedFd::from_raw_fd(numbers.add(at).read_unaligned()) };
                let fds = (0..count).map(take).collect();
                if message.msg_flags & libc::MSG_CTRUNC != 0 { Err(Errno::EMFILE) } else { Ok(fds) }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};

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

    #[test]
    fn as_many_as_fit_arrive_with_one_message_in_their_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let all: Vec<_> = [ours.as_fd(), theirs.as_fd()].into_iter().cycle().take(MOST_AT_ONCE).collect();
        send_descriptors(&theirs, &all).unwrap();
        let inode = |fd: &dyn AsFd| fstat(fd.as_fd()).unwrap().st_ino;
        let received: Vec<_> = receive_descriptors(&ours).unwrap().iter().map(|fd| inode(fd)).collect();
        assert_eq!(received, all.iter().map(|fd| inode(fd)).collect::<Vec<_>>());
    }

    #[test]
    fn a_text_arrives_with_a_descriptor_or_without() {
        let name = format!("rights-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let (to, sender) = (UnixAddr::new_abstract(name.as_bytes()).unwrap(), UnixDatagram::unbound().unwrap());
        send_text(&sender, &to, "A=1", None).unwrap();
        send_text(&sender, &to, "x", Some(sender.as_fd())).unwrap();
        let mut text = [0; 9];
        assert_eq!(manager.recv(&mut text).unwrap(), 3);
        assert_eq!(&text[..3], b"A=1");
        assert!(receive_descriptor(&manager).unwrap().is_some());
    }
}
