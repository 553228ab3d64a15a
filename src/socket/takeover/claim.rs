//! Only one takes over from a process at a time: an abstract name is bound for as long as that lasts (unix(7)), and whoever
//! finds it taken asks the kernel which process listens there.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail, ensure};
use log::warn;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, socket, sockopt};
use nix::unistd::{Pid, geteuid};
use serde::{Deserialize, Serialize};

use crate::kernel::holders::with_name;
use crate::kernel::processes::Process;
use crate::kernel::socket_info::States;
use crate::kernel::sockets::unix_sockets;
use crate::socket::takeover::Predecessor;
use crate::sys::{self, Claimed};

/// As many that came too late are told who was first.
const MOST_RIVALS: i32 = 1024;

/// The right to take over from a process, and to be left alone by those that would take over from this one meanwhile; it ends
/// with the last copy.
#[derive(Debug)]
pub(crate) struct Claim {
    from: Option<OwnedFd>,
    /// The successor, which is not to be succeeded before it has succeeded.
    by: Option<OwnedFd>,
}

/// The same in a state that is handed on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedClaim {
    from: Option<RawFd>,
    by: Option<RawFd>,
}

impl Claim {
    /// For this process, and what it becomes.
    ///
    /// # Errors
    /// If another process takes over from it already, or has done so, or it is in the middle of a takeover itself.
    pub(crate) fn make(predecessor: &Predecessor) -> Result<Claim> {
        let claim = Claim::bind(predecessor)?;
        // Its sockets were copied before: by now they may be those of a process that another one has succeeded.
        ensure!(!sys::is_readable(&predecessor.pidfd), "cannot take over from {predecessor}: it ended just now");
        Ok(claim)
    }

    fn bind(predecessor: &Predecessor) -> Result<Claim> {
        let Predecessor { pid, started, .. } = predecessor;
        let context = || format!("cannot take over from {predecessor}");
        let from = Claim::from(predecessor, &name("from", *pid, *started)?)?;
        if let Some(who) = Holder::of(&name("by", *pid, *started)?).filter(Holder::is_believed) {
            bail!("{}: {who} leads the takeover that it began with: try again when that is over", context());
        }
        let by = Process::read(Pid::this()).and_then(|this| own(&name("by", Pid::this(), this.started).ok()?));
        Ok(Claim { from, by })
    }

    /// What the program needs open that takes the place of this one.
    pub(crate) fn handed_on(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.from.iter().chain(&self.by).map(AsFd::as_fd)
    }

    pub(crate) fn save(&self) -> SavedClaim {
        let number = |fd: &Option<OwnedFd>| fd.as_ref().map(AsRawFd::as_raw_fd);
        SavedClaim { from: number(&self.from), by: number(&self.by) }
    }

    /// That of a predecessor of this program.
    pub(crate) fn resume(saved: SavedClaim, claimed: &mut Claimed) -> Claim {
        let mut take = |number: Option<RawFd>| number.and_then(|number| claimed.take(number).ok());
        Claim { from: take(saved.from), by: take(saved.by) }
    }

    /// This process holds it from now on, for those who ask.
    pub(crate) fn renew(&self) {
        // SO_PEERCRED is of the process that called this last. It cannot fail for a socket that listens.
        for fd in self.from.iter().chain(&self.by) {
            let _ = sys::listen(fd, MOST_RIVALS);
        }
    }

    fn from(predecessor: &Predecessor, name: &UnixAddr) -> Result<Option<OwnedFd>> {
        let context = || format!("cannot take over from {predecessor}");
        let fd = new_socket().with_context(context)?;
        match bind(fd.as_raw_fd(), name) {
            Err(Errno::EADDRINUSE) => match Holder::of(name) {
                Some(who) if !who.is_believed() => {
                    let user = who.user;
                    warn!("{who} of user {user} claims to take over from {predecessor}, which is not believed");
                    Ok(None)
                }
                Some(who) if who.pid.is_some() => bail!("{}: {who} does so already", context()),
                // It may be gone again, which is as good as never.
                _ => bail!("{}: another process was about to do so just now", context()),
            },
            bound => {
                bound.with_context(context)?;
                sys::listen(&fd, MOST_RIVALS).with_context(context)?;
                Ok(Some(fd))
            }
        }
    }
}

fn name(role: &str, pid: Pid, started: u64) -> nix::Result<UnixAddr> {
    UnixAddr::new_abstract(format!("handoff-run/{role}/{pid}/{started}").as_bytes())
}

/// Whoever has such a name, which anybody can bind.
struct Holder {
    /// If it listens there, and its queue is not full.
    pid: Option<Pid>,
    user: u32,
}

impl Holder {
    /// None if nobody has it, or that is not known.
    fn of(name: &UnixAddr) -> Option<Holder> {
        match peer(name) {
            Ok((pid, user)) => Some(Holder { pid: Some(Pid::from_raw(pid)), user }),
            Err(_) => {
                let bytes = bytes(name)?;
                let listed =
                    [States::LISTENING, States::UNCONNECTED].map(|states| unix_sockets(states).unwrap_or_default());
                let socket = listed.into_iter().flatten().find(|socket| socket.name == bytes)?;
                Some(Holder { pid: None, user: socket.user? })
            }
        }
    }

    fn is_believed(&self) -> bool {
        [0, geteuid().as_raw()].contains(&self.user)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => f.write_str(&with_name(pid)),
            None => f.write_str("a process"),
        }
    }
}

/// As the kernel lists it.
fn bytes(name: &UnixAddr) -> Option<Vec<u8>> {
    name.as_abstract().map(|name| [b"\0", name].concat())
}

/// Listen there; nothing if somebody else does.
fn own(name: &UnixAddr) -> Option<OwnedFd> {
    let fd = new_socket().ok()?;
    bind(fd.as_raw_fd(), name).ok()?;
    sys::listen(&fd, MOST_RIVALS).ok()?;
    Some(fd)
}

fn new_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

/// The process that listens there, and its user.
fn peer(name: &UnixAddr) -> nix::Result<(i32, u32)> {
    let fd = new_socket()?;
    connect(fd.as_raw_fd(), name)?;
    let peer = getsockopt(&fd, sockopt::PeerCredentials)?;
    Ok((peer.pid(), peer.uid()))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn nobody_takes_over_from_a_process_that_has_ended_since_it_was_found() {
        let mut process = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let predecessor = Predecessor::of(Pid::from_raw(process.id() as i32), None).unwrap().unwrap();
        drop(Claim::make(&predecessor).unwrap());
        process.kill().unwrap();
        process.wait().unwrap();
        let error = Claim::make(&predecessor).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot take over from {predecessor}: it ended just now"));
    }
}
