//! Which socket is bound to a file: by the file where the kernel shows that, else by the socket's name. What cannot be
//! known is no answer.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{FileStat, SFlag, lstat, major, minor};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, statfs};

use crate::kernel::descriptors::SocketInode;
use crate::kernel::proc_net;
use crate::kernel::socket_info::{States, UnixSocket};
use crate::kernel::sockets::unix_sockets;
use crate::sys;

/// The socket that is bound to the file at `path`, by its own inode in sockfs; none of those of this network namespace.
///
/// # Errors
/// ENOENT if there is no file; any other where the kernel does not list its sockets.
pub(crate) fn bound_socket(path: &Path) -> nix::Result<Option<SocketInode>> {
    bound_socket_named(path, path)
}

/// The same for a file that was moved to `path`, and was at `name` when a socket was bound there.
pub(crate) fn bound_socket_named(path: &Path, name: &Path) -> nix::Result<Option<SocketInode>> {
    find(path, name, &lstat(path)?)
}

/// The same for a file that was seen at `path`, whatever is there now.
pub(super) fn socket_bound_to(path: &Path, file: &FileStat) -> nix::Result<Option<SocketInode>> {
    find(path, path, file)
}

fn find(path: &Path, name: &Path, file: &FileStat) -> nix::Result<Option<SocketInode>> {
    let here = unix_sockets(States::ALL)?.into_iter().find(is_at(path, name, file));
    Ok(here.map(|socket| socket.inode))
}

/// Is this inherited socket, which was bound by the name `bound`, the one at `path` now?
pub(crate) fn is_bound_at(path: &Path, socket: SocketInode, bound: &Path) -> bool {
    let Ok(file) = lstat(path) else { return false };
    // The kernel reports only 32 bits of a socket's inode.
    let is_ours = |other: &UnixSocket| other.inode.0 as u32 == socket.0 as u32;
    let listed = unix_sockets(States::ALL).unwrap_or_default();
    let files = || listed.iter().filter(|other| other.file.is_some());
    match files().find(|other| is_at(path, path, &file)(other)) {
        Some(other) => is_ours(other),
        // The file of the socket is another.
        None if files().any(is_ours) => false,
        // It is not listed, as one of another network namespace, or listed without its file: then its name counts.
        None => is_socket(&file) && is_named(bound, path, &file),
    }
}

/// A socket of another network namespace is not listed for us, and refuses connections while it does not listen, as a
/// dead one does: is such a one bound by this name, as far as /proc shows?
pub(crate) fn is_held_elsewhere(path: &Path) -> bool {
    let list = |process: &str| format!("/proc/{process}/net/unix");
    // The same inode is the same list.
    let inode = |list: &str| fs::metadata(list).map(|list| list.ino()).ok();
    let mut known = vec![inode(&list("self"))];
    for process in sys::numbers_in("/proc").unwrap_or_default() {
        let list = list(&process.to_string());
        let inode = inode(&list);
        if known.contains(&inode) {
            continue;
        }
        known.push(inode);
        let sockets = proc_net::read_unix(&list, States::UNCONNECTED).unwrap_or_default();
        if sockets.iter().any(|socket| socket.name == path.as_os_str().as_bytes()) {
            return true;
        }
    }
    false
}

/// Whether a socket is at `path`, which is `file`.
fn is_at(path: &Path, name: &Path, file: &FileStat) -> impl Fn(&UnixSocket) -> bool {
    let device = device_inside(path, file);
    move |socket| {
        let here = match &socket.file {
            // The kernel reports only 32 bits of the file's inode.
            Some(bound) => bound.inode == file.st_ino as u32 && device.is_none_or(|device| bound.device == device),
            None => is_named(Path::new(std::ffi::OsStr::from_bytes(&socket.name)), name, file),
        };
        // A connection that was accepted keeps the file of its listener.
        here && !socket.connected
    }
}

/// Is `bound`, the name of a socket, that of `file`, which is or was at `path`? It may be relative to another folder.
fn is_named(bound: &Path, path: &Path, file: &FileStat) -> bool {
    let is_path = !bound.as_os_str().as_bytes().is_empty() && !bound.as_os_str().as_bytes().starts_with(b"\0");
    let is_same = || lstat(bound).is_ok_and(|other| (other.st_dev, other.st_ino) == (file.st_dev, file.st_ino));
    is_path && (bound == path || is_same())
}

fn is_socket(file: &FileStat) -> bool {
    SFlag::from_bits_truncate(file.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK
}

/// The kernel's internal number of a file's file system; none where stat(2) reports another, as Btrfs does
/// for its subvolumes.
fn device_inside(path: &Path, file: &FileStat) -> Option<u32> {
    let kind = statfs(path).ok()?.filesystem_type();
    let honest = kind != BTRFS_SUPER_MAGIC && kind != OVERLAYFS_SUPER_MAGIC;
    honest.then(|| (major(file.st_dev) << 20 | minor(file.st_dev)) as u32)
}
