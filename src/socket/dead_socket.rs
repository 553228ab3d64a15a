//! A dead socket: a file that no process listens at any more. Only such a file is ever removed to make room.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result, bail, ensure};
use log::debug;
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{FileStat, SFlag, lstat, stat};
use nix::unistd::unlink;

use crate::socket::bound_file::{bound_socket, bound_socket_named, is_held_elsewhere};
use crate::sys;

/// At most this many names that earlier starts left are passed over.
const MOST_LEFT: u32 = 1000;

/// Device and inode of a file.
pub(crate) type FileIdentity = (libc::dev_t, libc::ino_t);

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
pub(crate) fn is_refused(address: &UnixAddr) -> nix::Result<bool> {
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

pub(crate) fn kind(file: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(file.st_mode) & SFlag::S_IFMT
}

/// What is at `path`, or where that leads to, if it is something else than a socket.
pub(crate) fn what_else(path: &Path) -> Option<&'static str> {
    stat(path).ok().filter(|file| kind(file) != SFlag::S_IFSOCK).map(|file| what_is(&file))
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
