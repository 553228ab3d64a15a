//! Unix sockets in the file system. Only a dead socket's file is ever replaced: one that no socket is bound to and
//! that refuses connections. The file never has the wrong mode.

use std::fs::{File, TryLockError};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{process, thread};

use anyhow::{Context, Result, bail, ensure};
use log::debug;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, lstat, umask};
use nix::unistd::{Gid, Uid, fchownat, geteuid, unlink};

use crate::kernel::descriptors::SocketInode;
use crate::socket::bound_file::{bound_socket, bound_socket_named, is_held_elsewhere, socket_bound_to};
use crate::socket::lookup;
use crate::socket::options::Options;
use crate::socket::socket_file::{Created, FileIdentity, Naming};
use crate::sys;

/// All permissions.
const EVERYBODY: Mode = Mode::from_bits_truncate(0o777);

/// What is at the path after bind(2) may not be what bind(2) made.
const REPLACED: &str = "another file was put in its place";

/// How long another process may take to replace a dead socket, and how often to check.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// So many names that earlier starts left are passed over.
const MOST_LEFT: u32 = 1000;

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
    ensure!(looks_bound(&seen) && (is_done || is_bound(socket, path, &seen)?), REPLACED);
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

/// Remove the file of a dead socket; any other file is an error and stays.
pub(crate) fn remove_dead(path: &Path) -> Result<()> {
    let file = match lstat(path) {
        // The file was removed meanwhile; if not for good, bind(2) fails.
        Err(Errno::ENOENT) => return Ok(()),
        found => found?,
    };
    ensure!(kind(&file) == SFlag::S_IFSOCK, "{} exists and is {}", path.display(), what_is(&file));
    // Ask the kernel first: connecting would show up in a live server as an empty connection. What cannot be known may
    // be alive.
    ensure!(bound_socket(path) == Ok(None), Errno::EADDRINUSE);
    // It may still live in another network namespace.
    ensure!(is_refused(&UnixAddr::new(path)?)? && !is_held_elsewhere(path), Errno::EADDRINUSE);
    remove_checked(path, &file)
}

/// Does connect(2) fail with ECONNREFUSED? Not blocking, for a full accept queue may stay full.
fn is_refused(address: &UnixAddr) -> nix::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let client = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    Ok(socket::connect(client.as_raw_fd(), address) == Err(Errno::ECONNREFUSED))
}

/// Remove `path` if it is still `file` and dead. Moved aside first, so that a live socket which another process
/// put there meanwhile can be put back.
fn remove_checked(path: &Path, file: &FileStat) -> Result<()> {
    let aside = move_aside(path)?;
    if identity(&lstat(&aside)?) != identity(file) || bound_socket_named(&aside, path) != Ok(None) {
        sys::rename_to_free(&aside, path)?;
        bail!(Errno::EADDRINUSE);
    }
    debug!("{} was a dead socket and is removed", path.display());
    unlink(&aside).context("cannot remove the dead socket there")
}

/// Give the file at `path` a name that nothing has; one that an earlier start left, perhaps another user's, may stay.
fn move_aside(path: &Path) -> nix::Result<PathBuf> {
    let beside = |number| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".dead-{}-{number}", process::id()));
        PathBuf::from(name)
    };
    let mut moved = (1..=MOST_LEFT).map(|number| {
        let aside = beside(number);
        sys::rename_to_free(path, &aside).map(|()| aside)
    });
    moved.find(|moved| *moved != Err(Errno::EEXIST)).unwrap_or(Err(Errno::EEXIST))
}

fn kind(file: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(file.st_mode) & SFlag::S_IFMT
}

fn what_is(file: &FileStat) -> &'static str {
    match kind(file) {
        SFlag::S_IFDIR => "a directory, not a socket",
        SFlag::S_IFLNK => "a symbolic link, not a socket",
        SFlag::S_IFREG => "a regular file, not a socket",
        _ => "not a socket",
    }
}

pub(crate) fn identity(file: &FileStat) -> FileIdentity {
    (file.st_dev, file.st_ino)
}
