//! A descriptor that is sent over a Unix socket, with a text: SCM_RIGHTS of unix(7), cmsg(3).
//!
//! Not by nix, whose buffers are vectors of bytes: an allocator need not align them for a header.

use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{SockaddrLike, UnixAddr};

/// What a descriptor takes behind its header.
// SAFETY: it only computes.
const ROOM: usize = unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } as usize;

/// Bytes where a header may begin.
union Room {
    bytes: [u8; ROOM],
    #[expect(dead_code, reason = "it aligns")]
    header: libc::cmsghdr,
}

/// Call `act` with a message of these bytes, which has room for a descriptor; its result.
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
    send(socket, None, &mut [0], Some(fd.as_fd()))
}

/// Send a text to this address, with a copy of a descriptor if there is one.
pub(crate) fn send_text(socket: impl AsFd, to: &UnixAddr, text: &str, fd: Option<BorrowedFd>) -> nix::Result<()> {
    send(socket, Some(to), &mut text.as_bytes().to_vec(), fd)
}

fn send(socket: impl AsFd, to: Option<&UnixAddr>, bytes: &mut [u8], fd: Option<BorrowedFd>) -> nix::Result<()> {
    with_message(bytes, |message| {
        if let Some(to) = to {
            message.msg_name = to.as_ptr().cast_mut().cast();
            message.msg_namelen = to.len();
        }
        match fd {
            Some(fd) => add_descriptor(message, fd),
            None => message.msg_controllen = 0,
        }
        // SAFETY: the message names what lives through the call, and the kernel only reads it.
        let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), message, libc::MSG_NOSIGNAL) };
        Errno::result(sent).map(drop)
    })
}

/// Fill the room of a message of `with_message`.
fn add_descriptor(message: &mut libc::msghdr, fd: BorrowedFd) {
    // SAFETY: the message names no room, or one that is aligned for a header.
    let header = unsafe { libc::CMSG_FIRSTHDR(message).as_mut() };
    let header = header.expect("with_message makes room for one header");
    (header.cmsg_level, header.cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
    // SAFETY: it only computes.
    header.cmsg_len = unsafe { libc::CMSG_LEN(size_of::<RawFd>() as u32) } as _;
    // SAFETY: behind the header there is room for a number.
    unsafe { libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd.as_raw_fd()) };
}

/// The descriptor that was sent, close-on-exec; none at the end. Does not wait.
///
/// # Errors
/// EAGAIN if nothing was sent; EMFILE if no number was free for it.
pub(crate) fn receive_descriptor(socket: impl AsFd) -> nix::Result<Option<OwnedFd>> {
    with_message(&mut [0], |message| {
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
