//! Unix sockets in the file system. Only a dead socket's file is ever replaced: one that no socket is bound to and
//! that refuses connections. The file never has the wrong mode.

use std::fs::{File, TryLockError};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{process, thread};

use anyhow::{Context, Result, bail, ensure};
use log::{debug, warn};
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, lstat, umask};
use nix::unistd::unlink;
use serde::{Deserialize, Serialize};

use crate::saved::SavedPath;
use crate::socket::bound_file::{bound_socket, bound_socket_named, is_held_elsewhere};
use crate::socket::lookup;
use crate::socket::options::Options;
use crate::sys;

/// A socket's file that we made. Removed when dropped, if it is still the one we made.
#[derive(Debug)]
pub(crate) struct Created {
    path: PathBuf,
    inode: (libc::dev_t, libc::ino_t),
}

/// The same in a state that is handed on: another file may be at the path by then.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedFile {
    path: SavedPath,
    device: libc::dev_t,
    inode: libc::ino_t,
}

impl Created {
    /// For the program that takes the place of this one.
    pub(crate) fn save(&self) -> SavedFile {
        let (device, inode) = self.inode;
        SavedFile { path: SavedPath(self.path.clone()), device, inode }
    }

    /// The file that a predecessor of this program made for the socket it left us.
    pub(crate) fn resume(saved: SavedFile) -> Created {
        Created { path: saved.path.0, inode: (saved.device, saved.inode) }
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        let ours = lstat(&self.path).is_ok_and(|file| identity(&file) == self.inode);
        if ours && let Err(error) = unlink(&self.path) {
            warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// All permissions, for a umask that takes them from everybody.
const EVERYBODY: Mode = Mode::from_bits_truncate(0o777);

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
    fn of(options: &Options) -> Result<Access> {
        Ok(Access {
            user: options.word("user").map(lookup::user).transpose()?,
            group: options.word("group").map(lookup::group).transpose()?,
            mode: options.number("mode"),
        })
    }
}

/// Bind `socket` at `path` and call `listen`; only then allow connections.
pub(crate) fn bind(
    socket: &OwnedFd,
    path: &Path,
    options: &Options,
    listen: impl FnOnce() -> nix::Result<()>,
) -> Result<Created> {
    let access = Access::of(options)?;
    let address = UnixAddr::new(path)?;
    let bind_closed = || {
        // Only root can connect until owner and mode are set and the socket listens.
        let usual = umask(EVERYBODY);
        let bound = socket::bind(socket.as_raw_fd(), &address);
        umask(usual);
        bound.map(|()| usual)
    };
    let (usual, _replacing) = match bind_closed() {
        Err(Errno::EADDRINUSE) => {
            let replacing = wait_for_others(path);
            remove_dead(path, &address)?;
            (bind_closed()?, replacing)
        }
        bound => (bound?, None),
    };
    let created = Created { path: PathBuf::from(path), inode: identity(&lstat(path)?) };
    if access.user.is_some() || access.group.is_some() {
        let owned = lchown(path, access.user, access.group);
        owned
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))
            .context("cannot set its owner")?;
    }
    listen()?;
    let mode = access.mode.map_or(EVERYBODY - usual, Mode::from_bits_truncate);
    fchmodat(AT_FDCWD, path, mode, FchmodatFlags::FollowSymlink).context("cannot set its mode")?;
    Ok(created)
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
fn remove_dead(path: &Path, address: &UnixAddr) -> Result<()> {
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
    ensure!(is_refused(address)? && !is_held_elsewhere(path), Errno::EADDRINUSE);
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
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".dead-{}", process::id()));
    let aside = PathBuf::from(aside);
    sys::rename_to_free(path, &aside)?;
    if identity(&lstat(&aside)?) != identity(file) || bound_socket_named(&aside, path) != Ok(None) {
        sys::rename_to_free(&aside, path)?;
        bail!(Errno::EADDRINUSE);
    }
    debug!("{} was a dead socket and is removed", path.display());
    unlink(&aside).context("cannot remove the dead socket there")
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

fn identity(file: &FileStat) -> (libc::dev_t, libc::ino_t) {
    (file.st_dev, file.st_ino)
}
