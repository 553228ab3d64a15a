//! Unix sockets in the file system. Only a dead socket's file is ever replaced: one that no socket is bound to and
//! that refuses connections. The file never has the wrong mode.

use std::fs::{File, TryLockError};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::socket::{self, UnixAddr};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, lstat, umask};
use nix::unistd::{Gid, Uid, fchownat, geteuid};

use crate::kernel::descriptors::SocketInode;
use crate::socket::bound_file::socket_bound_to;
use crate::socket::dead_socket::{identity, kind, remove_dead};
use crate::socket::lookup;
use crate::socket::options::Options;
use crate::socket::socket_file::{Created, Naming};
use crate::sys;

/// All permissions.
const EVERYBODY: Mode = Mode::from_bits_truncate(0o777);

/// What is at the path after bind(2) may not be what bind(2) made.
const REPLACED: &str = "another file was put in its place";

/// How long another process may take to replace a dead socket, and how often to check.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// The owner and mode of the file, resolved before anything is created.
struct Access {
    user: Option<u32>,
    group: Option<u32>,
    mode: Option<u32>,
}

impl Access {
    fn changes_owner(&self) -> bool {
        self.user.is_some() || self.group.is_some()
    }

    fn of(options: &Options) -> Result<Access> {
        Ok(Access {
            user: options.word("user").map(lookup::user).transpose()?,
            group: options.word("group").map(lookup::group).transpose()?,
            mode: options.number("mode"),
        })
    }
}

/// Bind `socket` at `path` and call `listen`.
///
/// The folder may be another user's, who may put any file in the socket's place: what is changed after bind(2) is opened
/// once, without following a link, and has to be the socket's.
pub(crate) fn bind(
    socket: &OwnedFd,
    path: &Path,
    options: &Options,
    naming: Naming,
    listen: impl FnOnce() -> nix::Result<()>,
) -> Result<Created> {
    let access = Access::of(options)?;
    let address = UnixAddr::new(path)?;
    // The file has its mode from the start, for nobody can connect until the socket listens; where it need not listen and
    // the owner changes, it has none until then.
    let usual = umask(EVERYBODY);
    let mode = access.mode.map_or(EVERYBODY - usual, Mode::from_bits_truncate);
    let listens = sys::option(socket, libc::SOL_SOCKET, libc::SO_TYPE)? != libc::SOCK_DGRAM;
    let first = if access.changes_owner() && !listens { Mode::empty() } else { mode };
    umask(EVERYBODY - first);
    let bound = bind_replacing(socket, path, &address);
    umask(usual);
    let _replacing = bound?;
    let seen = lstat(path)?;
    // A default ACL of the folder may have taken a part of it.
    let has_mode = seen.st_mode & EVERYBODY.bits() == mode.bits();
    let is_done = has_mode && !access.changes_owner();
    // Where nothing is to be changed, a file system may show another owner (NFS, FUSE).
    let is_ours =
        if is_done { kind(&seen) == SFlag::S_IFSOCK } else { looks_bound(&seen) && is_bound(socket, path, &seen)? };
    ensure!(is_ours, REPLACED);
    let mut created = Created::new(path, identity(&seen));
    if naming == Naming::Kept {
        // Before it is another user's: then it may be forbidden (fs.protected_hardlinks).
        created.keep();
    }
    let file = if is_done { None } else { Some(open_same(path, &seen)?) };
    if let Some(file) = file.as_ref().filter(|_| access.changes_owner()) {
        let (user, group) = (access.user.map(Uid::from_raw), access.group.map(Gid::from_raw));
        fchownat(file, "", user, group, AtFlags::AT_EMPTY_PATH).context("cannot set its owner")?;
    }
    listen()?;
    if let Some(file) = file.filter(|_| !has_mode) {
        set_mode(&file, mode).context("cannot set its mode")?;
    }
    Ok(created)
}

/// Give the file at `path`, which is that of `socket`, the owner and mode of these options: as if it had just been bound.
///
/// # Errors
/// If another file is there, or this process may not.
pub(crate) fn set_access(socket: &OwnedFd, path: &Path, options: &Options) -> Result<()> {
    let access = Access::of(options)?;
    let seen = lstat(path)?;
    let file = open_same(path, &seen)?;
    ensure!(kind(&seen) == SFlag::S_IFSOCK && is_bound(socket, path, &seen)?, REPLACED);
    let mode = access.mode.map(Mode::from_bits_truncate).filter(|mode| seen.st_mode & EVERYBODY.bits() != mode.bits());
    let (user, group) = (access.user.map(Uid::from_raw), access.group.map(Gid::from_raw));
    if access.changes_owner() {
        fchownat(&file, "", user, group, AtFlags::AT_EMPTY_PATH).context("cannot set its owner")?;
    }
    mode.map_or(Ok(()), |mode| set_mode(&file, mode)).context("cannot set its mode")
}

/// bind(2); the file of a dead socket at `path` is removed before. What is returned keeps others out.
fn bind_replacing(socket: &OwnedFd, path: &Path, address: &UnixAddr) -> Result<Option<File>> {
    match socket::bind(socket.as_raw_fd(), address) {
        Err(Errno::EADDRINUSE) => {
            let replacing = wait_for_others(path);
            remove_dead(path)?;
            socket::bind(socket.as_raw_fd(), address)?;
            Ok(replacing)
        }
        bound => Ok(bound.map(|()| None)?),
    }
}

/// The file at `path`, which has to be the one that was seen there.
fn open_same(path: &Path, seen: &FileStat) -> Result<OwnedFd> {
    let file = open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    ensure!(identity(&fstat(&file)?) == identity(seen), REPLACED);
    Ok(file)
}

/// Does it look like a file that bind(2) made for us, not like a link to another's?
fn looks_bound(file: &FileStat) -> bool {
    kind(file) == SFlag::S_IFSOCK && file.st_uid == geteuid().as_raw() && file.st_nlink == 1
}

/// Is `file`, opened at `path`, the one that `socket` was just bound to? Where the kernel does not report that, it has to
/// look like it.
fn is_bound(socket: &OwnedFd, path: &Path, file: &FileStat) -> nix::Result<bool> {
    match socket_bound_to(path, file) {
        // The kernel reports only 32 bits of a socket's inode.
        Ok(bound) => Ok(bound.map(|bound| bound.0 as u32) == Some(SocketInode::of(socket)?.0 as u32)),
        Err(_) => Ok(true),
    }
}

/// chmod(2) of what is open without being open for reading. The call for it is younger (Linux 6.6) than many filters of
/// system calls, which kill for what they do not know: only without /proc.
fn set_mode(file: &OwnedFd, mode: Mode) -> nix::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    match fchmodat(AT_FDCWD, path.as_str(), mode, FchmodatFlags::FollowSymlink) {
        Err(Errno::ENOENT) => sys::change_mode(file, mode),
        done => done,
    }
}

/// Keep other instances from replacing a socket in this folder at the same time: a new file may have the inode of
/// the dead one, and then the two look the same. An instance that waits finds the new socket alive. Without the
/// folder's flock(2) it goes on after a while, for a flock(1) that we run under may hold it.
fn wait_for_others(path: &Path) -> Option<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = File::open(folder).ok()?;
    for _ in 0..LONGEST_WAIT.as_millis() / PAUSE.as_millis() {
        match folder.try_lock() {
            Err(TryLockError::WouldBlock) => thread::sleep(PAUSE),
            outcome => return outcome.is_ok().then_some(folder),
        }
    }
    None
}
