//! Copies of another process' sockets: pidfd_getfd(2).

use std::os::fd::OwnedFd;

use anyhow::Error;
use nix::errno::Errno;

use crate::failure::{Failure, Result, plain};
use crate::kernel::descriptors::{self, ForeignFd, Kind, SocketInode};
use crate::socket::candidate::Candidate;
use crate::socket::endpoint::Endpoint;
use crate::socket::takeover::Predecessor;
use crate::socket::takeover::survey::{Chosen, choose};
use crate::sys;

impl Predecessor {
    /// Copies of these of its sockets, each once.
    pub(super) fn copy(&self, inodes: &[SocketInode]) -> Result<Vec<Candidate>> {
        self.copy_if(|inode| inodes.contains(&inode))
    }

    /// The same of all that it has.
    pub(super) fn copy_all(&self, wanted: &[&[Endpoint]]) -> Result<Chosen> {
        let is_elsewhere = !self.is_of_our_network();
        Ok(choose(self.copy_if(|_| is_elsewhere)?, wanted, &[]))
    }

    fn copy_if(&self, is_wanted: impl Fn(SocketInode) -> bool) -> Result<Vec<Candidate>> {
        let open = descriptors::descriptors(self.pid).map_err(|error| self.refused(plain(error)))?;
        let mut copies: Vec<Candidate> = Vec::new();
        for (number, kind) in open {
            let Kind::Socket(inode) = kind else { continue };
            if !is_wanted(inode) || copies.iter().any(|copy| copy.inode == inode.0) {
                continue;
            }
            copies.extend(self.copy_one(number, inode).map_err(|errno| self.refused(errno.into()))?);
        }
        Ok(copies)
    }

    /// A copy, if it still has this socket there.
    fn copy_one(&self, number: ForeignFd, inode: SocketInode) -> nix::Result<Option<Candidate>> {
        let copy: OwnedFd = match sys::pidfd_getfd(&self.pidfd, number.0) {
            // It has closed it since, or ended.
            Err(Errno::EBADF | Errno::ESRCH) => return Ok(None),
            copy => copy?,
        };
        let Ok(kind) = sys::option(&copy, libc::SOL_SOCKET, libc::SO_TYPE) else {
            sys::close_in_time(copy);
            return Ok(None);
        };
        let candidate = Candidate::inspect(copy, kind)?;
        if candidate.inode != inode.0 || !candidate.serves {
            // Not the one that was listed, or a connection.
            sys::close_in_time(candidate.fd);
            return Ok(None);
        }
        Ok(Some(Candidate { number: number.0, ..candidate }))
    }

    /// Its sockets cannot be copied.
    fn refused(&self, error: Error) -> Failure {
        let remedy = match error.downcast_ref() {
            Some(Errno::EPERM | Errno::EACCES) => Some(
                "that needs the same user and, where kernel.yama.ptrace_scope is not 0, CAP_SYS_PTRACE; a supervisor's \
                 control socket as --from needs neither",
            ),
            Some(Errno::ENOSYS) => {
                Some("that needs pidfd_getfd(2): Linux 5.6, and a filter of system calls that lets it pass")
            }
            _ => None,
        };
        Failure::from(error.context(format!("cannot take over from {self}"))).remedy(remedy.map(str::to_owned))
    }
}
