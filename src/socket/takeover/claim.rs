//! Only one takes over from a process at a time: an abstract name is bound for as long as that lasts (unix(7)), and whoever
//! finds it taken asks the kernel which process listens there.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use log::warn;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, socket, sockopt};
use nix::unistd::{Pid, geteuid};

use crate::kernel::holders::with_name;
use crate::socket::takeover::Predecessor;
use crate::sys;

/// As many that came too late are told who was first.
const MOST_RIVALS: i32 = 1024;

/// The right to take over from a process; it ends with the last copy.
#[derive(Debug)]
pub(crate) struct Claim(#[expect(dead_code, reason = "it is held")] Option<OwnedFd>);

impl Claim {
    /// # Errors
    /// If another process takes over from it already.
    pub(crate) fn make(predecessor: &Predecessor) -> Result<Claim> {
        let Predecessor { pid, started, .. } = predecessor;
        let context = || format!("cannot take over from {predecessor}");
        let name = UnixAddr::new_abstract(format!("handoff-run/from/{pid}/{started}").as_bytes())?;
        let fd = new_socket().with_context(context)?;
        match bind(fd.as_raw_fd(), &name) {
            Err(Errno::EADDRINUSE) => match holder(&name) {
                // It is gone again, which is as good as never.
                Err(Errno::ECONNREFUSED) => bail!("{}: another process was about to do so just now", context()),
                holder => {
                    let (pid, user) = holder.with_context(context)?;
                    if [0, geteuid().as_raw()].contains(&user) {
                        let who = with_name(Pid::from_raw(pid));
                        bail!("{}: {who} does so already", context());
                    }
                    // Anybody can bind that name.
                    warn!("pid {pid} of user {user} claims to take over from {predecessor}, which is not believed");
                    Ok(Claim(None))
                }
            },
            bound => {
                bound.with_context(context)?;
                sys::listen(&fd, MOST_RIVALS).with_context(context)?;
                Ok(Claim(Some(fd)))
            }
        }
    }
}

fn new_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

/// The process that listens there, and its user.
fn holder(name: &UnixAddr) -> nix::Result<(i32, u32)> {
    let fd = new_socket()?;
    connect(fd.as_raw_fd(), name)?;
    let peer = getsockopt(&fd, sockopt::PeerCredentials)?;
    Ok((peer.pid(), peer.uid()))
}
