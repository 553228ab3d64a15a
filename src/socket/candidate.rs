//! The descriptors that this process inherited: sockets, with what the kernel reports of them, and the rest, left
//! unchanged.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use log::{debug, info, warn};
use nix::fcntl::FdFlag;
use nix::sys::stat::fstat;

use crate::kernel::descriptors::SocketInode;
use crate::socket::address::UnixName;
use crate::socket::announced::Announced;
use crate::socket::bound_file::is_bound_at;
use crate::socket::endpoint::Endpoint;
use crate::sys;

/// Every inherited descriptor from 3 on.
#[derive(Debug)]
pub(crate) struct Candidates {
    /// In the order of their numbers, but for those that came back from a store; a socket that is taken is removed.
    pub(crate) sockets: Vec<Candidate>,
    /// Not sockets, or sockets that do not concern us; neither closed nor changed.
    pub(crate) others: Vec<OwnedFd>,
}

/// An inherited socket.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) fd: OwnedFd,
    /// The number it was inherited at.
    pub(crate) number: RawFd,
    /// Two descriptors of one socket have the same.
    pub(crate) inode: u64,
    /// Where it is bound, if its family is one of ours.
    pub(crate) endpoint: Option<Endpoint>,
    /// Clients can reach it: it listens, or is a bound datagram socket.
    pub(crate) serves: bool,
}

impl Candidates {
    /// Sort what was claimed into sockets, which become close-on-exec, and others.
    pub(crate) fn sort(claimed: Vec<OwnedFd>) -> nix::Result<Candidates> {
        let mut candidates = Candidates { sockets: Vec::new(), others: Vec::new() };
        for fd in claimed {
            match sys::option(&fd, libc::SOL_SOCKET, libc::SO_TYPE) {
                Ok(kind) => candidates.sockets.push(Candidate::inspect(fd, kind)?),
                Err(_) => candidates.others.push(fd),
            }
        }
        Ok(candidates)
    }

    /// Take the socket that was inherited at `number`.
    pub(crate) fn take(&mut self, number: RawFd) -> Option<Candidate> {
        let at = self.sockets.iter().position(|socket| socket.number == number)?;
        Some(self.sockets.remove(at))
    }

    /// Take what was inherited at `number` and is no socket.
    pub(crate) fn take_other(&mut self, number: RawFd) -> nix::Result<Option<OwnedFd>> {
        let Some(at) = self.others.iter().position(|fd| fd.as_raw_fd() == number) else { return Ok(None) };
        let fd = self.others.remove(at);
        sys::set_close_on_exec(&fd, FdFlag::FD_CLOEXEC)?;
        Ok(Some(fd))
    }

    /// Close what no SPEC asked for: a second descriptor of a taken socket is closed, and so is a listener that
    /// was announced and is wanted no more; everything else stays open.
    pub(crate) fn let_go(self, taken: &[u64], announced: &Announced) -> nix::Result<Vec<OwnedFd>> {
        let mut others = self.others;
        for socket in self.sockets {
            let number = socket.number;
            if taken.contains(&socket.inode) {
                debug!("descriptor {number} is a second one of the same socket and is closed");
            } else if socket.serves && announced.name_of(number).is_some() {
                info!("no --listen asks for descriptor {number}, {}: it is closed", socket.describe());
            } else {
                if socket.serves {
                    let listener = socket.describe();
                    warn!("descriptor {number}, {listener}, stays open though no --listen asks for it");
                }
                sys::set_close_on_exec(&socket.fd, FdFlag::empty())?;
                others.push(socket.fd);
            }
        }
        Ok(others)
    }
}

impl Candidate {
    pub(super) fn inspect(fd: OwnedFd, kind: i32) -> nix::Result<Candidate> {
        sys::set_close_on_exec(&fd, FdFlag::FD_CLOEXEC)?;
        let endpoint = Endpoint::of(&fd).ok();
        let serves = match kind {
            libc::SOCK_DGRAM => endpoint.is_some() && !is_connected(&fd),
            _ => sys::option(&fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN) == Ok(1),
        };
        Ok(Candidate { number: fd.as_raw_fd(), inode: fstat(&fd)?.st_ino, fd, endpoint, serves })
    }

    /// Descriptor 0, copied, if it leads to a listening socket.
    pub(crate) fn from_stdin() -> Option<Candidate> {
        if !sys::stdin_listens() {
            return None;
        }
        let socket = Candidate::inspect(sys::duplicate_stdin().ok()?, libc::SOCK_STREAM).ok()?;
        Some(Candidate { number: 0, ..socket })
    }

    /// Is this what bind(2) to `wanted` would have made?
    pub(crate) fn is_at(&self, wanted: &Endpoint) -> bool {
        let Some(endpoint) = self.endpoint.as_ref().filter(|_| self.serves) else { return false };
        match (wanted, endpoint) {
            (
                Endpoint::Unix { kind, name: UnixName::Path(path) },
                Endpoint::Unix { kind: own, name: UnixName::Path(bound) },
            ) => {
                // The name is what it was bound to once; only the file shows which socket is bound there now.
                kind == own && is_bound_at(path, SocketInode(self.inode), bound)
            }
            _ => wanted.is_served_by(endpoint),
        }
    }

    /// Has it a peer?
    pub(crate) fn is_connected(&self) -> bool {
        is_connected(&self.fd)
    }

    /// In words, for a message.
    pub(super) fn describe(&self) -> String {
        self.endpoint.as_ref().map_or("a socket".to_owned(), |endpoint| format!("a listener on {endpoint}"))
    }
}

/// A datagram socket with a peer is a connection, not a listener.
fn is_connected(fd: &OwnedFd) -> bool {
    nix::sys::socket::getpeername::<nix::sys::socket::SockaddrStorage>(fd.as_raw_fd()).is_ok()
}
