//! Directories: the numbers that name the entries of one of /proc, a rename that replaces nothing, and the mode of a file
//! that is only looked at.

use std::ffi::{CStr, OsStr, OsString};
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{LinkatFlags, linkat, unlink};

/// The entries of a directory of /proc that are numbers: processes, threads or descriptors.
pub(crate) fn numbers_in(directory: &str) -> nix::Result<Vec<i32>> {
    list_numbers(&open_directory(directory)?)
}

pub(super) fn open_directory(path: &(impl NixPath + ?Sized)) -> nix::Result<OwnedFd> {
    open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

pub(super) fn list_numbers(directory: &OwnedFd) -> nix::Result<Vec<i32>> {
    list(directory, |_, name| name.to_str().ok()?.parse().ok())
}

/// The directories in a directory of a kernel's file system, where every entry shows its type.
pub(crate) fn directories_in(path: &Path) -> nix::Result<Vec<OsString>> {
    list(&open_directory(path)?, |kind, name| {
        let is_below = kind == libc::DT_DIR && name != c"." && name != c"..";
        is_below.then(|| OsStr::from_bytes(name.to_bytes()).to_owned())
    })
}

/// What `read` makes of the type and the name of each entry.
fn list<T>(directory: &OwnedFd, read: impl Fn(u8, &CStr) -> Option<T>) -> nix::Result<Vec<T>> {
    let mut found = Vec::new();
    // A few descriptors fit a page of entries; more only take more calls.
    let mut page = [0u8; 2048];
    loop {
        let length = getdents64(directory, &mut page)?;
        // Less than a page is not the end: a signal that is pending cuts a call short.
        if length == 0 {
            return Ok(found);
        }
        found.extend(entries(&page[..length]).filter_map(|(kind, name)| read(kind, name)));
    }
}

/// getdents64(2): entries of `directory` into `page`; 0 at the end.
fn getdents64(directory: &OwnedFd, page: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: the kernel writes at most `page.len()` bytes into `page`, which lives through the call.
    let length = unsafe { libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), page.as_mut_ptr(), page.len()) };
    Errno::result(length).map(|length| length as usize)
}

/// The types and names in what getdents64(2) wrote, one `dirent64` after another.
fn entries(mut entries: &[u8]) -> impl Iterator<Item = (u8, &CStr)> {
    std::iter::from_fn(move || {
        let length = entries.get(offset_of!(libc::dirent64, d_reclen)..)?.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let (entry, rest) = entries.split_at_checked(length)?;
        entries = rest;
        let kind = *entry.get(offset_of!(libc::dirent64, d_type))?;
        Some((kind, CStr::from_bytes_until_nul(entry.get(offset_of!(libc::dirent64, d_name)..)?).ok()?))
    })
}

/// The device and the inode of a file, as far as they are known here: of a file system over a network, statx(2) does not ask.
pub(crate) fn identity_of(file: impl AsFd) -> nix::Result<(u64, u64)> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    // SAFETY: all zero is a valid one.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let number = file.as_fd().as_raw_fd();
    // SAFETY: the path ends with NUL, and the kernel fills the struct; both live through the call.
    let done = unsafe { libc::statx(number, c"".as_ptr(), flags, libc::STATX_INO, &raw mut found) };
    Errno::result(done)?;
    Ok((libc::makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino))
}

/// Has the file capabilities, which exec would add (capabilities(7))?
pub(crate) fn has_capabilities(path: &Path) -> bool {
    attribute(path, c"security.capability", &mut []).is_ok_and(|size| size > 0)
}

/// Has the file the extended attribute `name` with this value, which has to be short?
pub(crate) fn has_attribute(path: &Path, name: &CStr, value: &[u8]) -> bool {
    let mut buffer = [0; 16];
    attribute(path, name, &mut buffer).is_ok_and(|size| buffer[..size] == *value)
}

/// getxattr(2): its size; an empty buffer only asks for that.
fn attribute(path: &Path, name: &CStr, buffer: &mut [u8]) -> nix::Result<usize> {
    let (name, value, size) = (name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: the call reads two strings, which end with NUL, and writes at most `size` bytes; all live through it.
    let size = path.with_nix_path(|path| unsafe { libc::getxattr(path.as_ptr(), name, value, size) })?;
    Errno::result(size).map(|size| size as usize)
}

/// setxattr(2): give the file the extended attribute `name`, or another value of it.
pub(crate) fn set_attribute(path: &Path, name: &CStr, value: &[u8]) -> nix::Result<()> {
    let (name, size) = (name.as_ptr(), value.len());
    let value = value.as_ptr().cast();
    // SAFETY: the call reads two strings, which end with NUL, and `size` bytes; all live through it.
    let set = path.with_nix_path(|path| unsafe { libc::setxattr(path.as_ptr(), name, value, size, 0) })?;
    Errno::result(set).map(drop)
}

/// renameat2(2), RENAME_NOREPLACE: give the file at `from` the name `to` if nothing has it. musl has no function for it.
pub(crate) fn rename_to_free(from: &Path, to: &Path) -> nix::Result<()> {
    let rename = |from: &CStr, to: &CStr| {
        let (from, to, flags) = (from.as_ptr(), to.as_ptr(), libc::RENAME_NOREPLACE);
        // SAFETY: the call reads two strings, which end with NUL and live through it.
        unsafe { libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, flags) }
    };
    match Errno::result(from.with_nix_path(|from| to.with_nix_path(|to| rename(from, to)))??) {
        // A file system without flags, such as NFS, or a kernel without the call.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            linkat(AT_FDCWD, from, AT_FDCWD, to, LinkatFlags::empty())?;
            unlink(from)
        }
        renamed => renamed.map(drop),
    }
}

/// The mode of a file that was opened with O_PATH, by fchmodat2(2).
///
/// # Errors
/// ENOSYS before Linux 6.6.
pub(crate) fn change_mode(file: impl AsFd, mode: Mode) -> nix::Result<()> {
    /// The same number on every architecture that Rust has.
    const FCHMODAT2: libc::c_long = 452;
    let (file, here, mode) = (file.as_fd().as_raw_fd(), c"".as_ptr(), mode.bits());
    // SAFETY: the call reads an empty string, which is static.
    Errno::result(unsafe { libc::syscall(FCHMODAT2, file, here, mode, libc::AT_EMPTY_PATH) }).map(drop)
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
