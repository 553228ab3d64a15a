//! Unix sockets as the kernel lists them: sock_diag(7) over netlink, in this network namespace.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// One Unix socket.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnixSocket {
    /// Its inode in sockfs, as `/proc/PID/fd` shows it, 32 bits of it.
    pub(crate) inode: u32,
    /// The file it is bound to (UNIX_DIAG_VFS).
    pub(crate) file: Option<BoundFile>,
}

/// A file as the kernel knows it inside.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BoundFile {
    /// Its inode, 32 bits of it.
    pub(crate) inode: u32,
    /// The number of its file system, twelve bits of major and twenty of minor.
    pub(crate) device: u32,
}

// linux/sock_diag.h, linux/unix_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UDIAG_SHOW_VFS: u32 = 2;
const UNIX_DIAG_VFS: u16 = 1;
// The states of net/tcp_states.h serve Unix sockets too.
const TCP_ESTABLISHED: u8 = 1;
/// Lengths of struct nlmsghdr and struct unix_diag_msg.
const HEADER: usize = 16;
const MESSAGE: usize = 16;

/// Every Unix socket of this network namespace but the connections: one that was accepted keeps the path of its listener.
pub(crate) fn unix_sockets() -> nix::Result<Vec<UnixSocket>> {
    let netlink =
        socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    send(netlink.as_raw_fd(), &request(), MsgFlags::empty())?;
    let mut sockets = Vec::new();
    // The kernel fills at most 32 KiB for one recv(2) of a dump.
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if !read_messages(&buffer[..length], &mut sockets)? {
            return Ok(sockets);
        }
    }
}

/// struct nlmsghdr and struct unix_diag_req: a dump of all states with the files' inodes.
fn request() -> Vec<u8> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut bytes = Vec::with_capacity(40);
    bytes.extend(40u32.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(UDIAG_SHOW_VFS.to_ne_bytes());
    bytes.extend([0xff; 8]);
    bytes
}

/// Add the sockets of one datagram; false when the dump has ended.
fn read_messages(mut bytes: &[u8], sockets: &mut Vec<UnixSocket>) -> nix::Result<bool> {
    while bytes.len() >= HEADER {
        let length = (number(bytes, 0).unwrap_or(0) as usize).clamp(HEADER, bytes.len());
        let (message, rest) = bytes.split_at(length);
        match i32::from(half(message, 4).unwrap_or(0)) {
            libc::NLMSG_DONE => return Ok(false),
            libc::NLMSG_ERROR => {
                return Err(Errno::from_raw((number(message, HEADER).unwrap_or(0) as i32).wrapping_neg()));
            }
            _ => sockets.extend(read_socket(&message[HEADER..])),
        }
        bytes = rest;
    }
    Ok(true)
}

/// struct unix_diag_msg and its attributes; none for a connection. A datagram socket with a peer still has its name.
fn read_socket(message: &[u8]) -> Option<UnixSocket> {
    let (kind, state) = (*message.get(1)?, *message.get(2)?);
    if state == TCP_ESTABLISHED && i32::from(kind) != libc::SOCK_DGRAM {
        return None;
    }
    let inode = number(message, 4)?;
    let mut attributes = message.get(MESSAGE..)?;
    let mut file = None;
    while let (Some(length), Some(kind)) = (half(attributes, 0), half(attributes, 2)) {
        if kind == UNIX_DIAG_VFS {
            file = read_file(attributes);
        }
        attributes = attributes.get(usize::from(length).max(4).next_multiple_of(4)..).unwrap_or_default();
    }
    Some(UnixSocket { inode, file })
}

/// struct unix_diag_vfs behind its attribute's header.
fn read_file(attribute: &[u8]) -> Option<BoundFile> {
    Some(BoundFile { inode: number(attribute, 4)?, device: number(attribute, 8)? })
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
