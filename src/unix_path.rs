//! Unix sockets in the file system. Nobody's file is ever destroyed: only a socket that nobody is bound to, and that
//! refuses connections, is replaced; and there is no moment at which the file has the wrong mode.

use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result, bail, ensure};
use log::{debug, warn};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::socket;
use nix::sys::socket::UnixAddr;
use nix::sys::stat::{Mode, umask};

use crate::options::Options;
use crate::{diag, lookup};

/// A socket's file that we made. Removed when dropped, if it is still the one we made.
#[derive(Debug)]
pub(crate) struct Created {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for Created {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|file| identity(&file) == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Who may connect, resolved before anything is made.
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

/// Bind `socket` at `path` and call `listen`; only then let anybody in.
pub(crate) fn bind(
    socket: &OwnedFd,
    path: &str,
    options: &Options,
    listen: impl FnOnce() -> nix::Result<()>,
) -> Result<Created> {
    let access = Access::of(options)?;
    let address = UnixAddr::new(path)?;
    let bind_closed = || {
        // Nobody but root gets in until owner and mode are as they shall be, and the socket listens.
        let usual = umask(Mode::from_bits_truncate(0o777));
        let bound = socket::bind(socket.as_raw_fd(), &address);
        umask(usual);
        bound.map(|()| usual)
    };
    let usual = match bind_closed() {
        Err(Errno::EADDRINUSE) => {
            remove_dead(Path::new(path))?;
            bind_closed()
        }
        bound => bound,
    }?;
    let inode = identity(&fs::symlink_metadata(path)?);
    let created = Created { path: PathBuf::from(path), inode };
    if access.user.is_some() || access.group.is_some() {
        lchown(path, access.user, access.group).context("cannot set its owner")?;
    }
    listen()?;
    let mode = access.mode.unwrap_or(0o777 & !usual.bits());
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).context("cannot set its mode")?;
    Ok(created)
}

/// The socket that is bound to the file at `path`, by its own inode in sockfs.
pub(crate) fn bound_socket(path: &Path) -> Option<u32> {
    let file = fs::symlink_metadata(path).ok()?;
    // The kernel tells but 32 bits of the file's inode.
    diag::unix_sockets().ok()?.into_iter().find(|socket| socket.file == Some(file.ino() as u32)).map(|s| s.inode)
}

/// Remove a socket's file that nobody answers at; anything else is an error and stays.
fn remove_dead(path: &Path) -> Result<()> {
    let file = match fs::symlink_metadata(path) {
        // Whoever was there a moment ago is gone: bind(2) will tell.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    ensure!(file.file_type().is_socket(), "{} exists and is {}", path.display(), kind(&file));
    // Ask the kernel first: a connection would reach a live server as an empty one.
    ensure!(bound_socket(path).is_none(), Errno::EADDRINUSE);
    // It may still live in another network namespace, of which sock_diag(7) does not tell.
    match UnixStream::connect(path) {
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => remove_checked(path, &file),
        _ => bail!(Errno::EADDRINUSE),
    }
}

/// Remove `path` if it is still `file`. Moved aside first, so that a live socket which somebody put there meanwhile
/// can be put back.
fn remove_checked(path: &Path, file: &Metadata) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".dead-{}", process::id()));
    let aside = PathBuf::from(aside);
    renameat2(AT_FDCWD, path, AT_FDCWD, &aside, RenameFlags::RENAME_NOREPLACE)?;
    if identity(&fs::symlink_metadata(&aside)?) != identity(file) {
        renameat2(AT_FDCWD, &aside, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE)?;
        bail!(Errno::EADDRINUSE);
    }
    debug!("{} was a dead socket and is removed", path.display());
    fs::remove_file(&aside).context("cannot remove the dead socket there")
}

fn kind(file: &Metadata) -> &'static str {
    let kind = file.file_type();
    match () {
        () if kind.is_dir() => "a directory, not a socket",
        () if kind.is_symlink() => "a symbolic link, not a socket",
        () if kind.is_file() => "a regular file, not a socket",
        () => "not a socket",
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}
