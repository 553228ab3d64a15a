//! The notify socket of a generation: what it sends by sd_notify(3).
//!
//! It is at a path, for some clients cannot use an abstract name, and none can from another network namespace. Nobody
//! else can list the folder, and a generation that has become another user can send.

use std::env;
use std::ffi::{CStr, OsStr};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use log::debug;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, getsockname, setsockopt, socket, sockopt};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{geteuid, mkdir};

use crate::kernel::holders::NOTIFY_FOLDER;
use crate::missing::Facility;
use crate::socket::dead_socket::is_refused;
use crate::sys;

/// Of a longer notification the lines count that are within this length.
const LONGEST: usize = 4096;

/// A folder younger than this may be another supervisor's that is just making it.
const YOUNG: Duration = Duration::from_secs(10);

/// A notification and its sender.
#[derive(Debug)]
pub(crate) struct Notification {
    pub(crate) text: String,
    /// The sending process and user, as verified by the kernel.
    pub(crate) pid: i32,
    pub(crate) uid: u32,
}

/// The file of a notify socket, removed when dropped with the folder that was made for it.
#[derive(Debug)]
pub(crate) struct NotifyFile(PathBuf);

impl NotifyFile {
    /// The file that `socket` was bound to, if its name is not abstract.
    pub(crate) fn of(socket: impl AsFd) -> Option<NotifyFile> {
        let address: UnixAddr = getsockname(socket.as_fd().as_raw_fd()).ok()?;
        address.path().map(|path| NotifyFile(path.to_owned()))
    }
}

impl Drop for NotifyFile {
    fn drop(&mut self) {
        // Nobody else knows these names, and with the unit its folder may be gone already.
        let _ = fs::remove_file(&self.0);
        let _ = self.0.parent().map(fs::remove_dir);
    }
}

/// The NOTIFY_SOCKET of an environment.
pub(crate) fn variable(socket: impl AsFd) -> Result<Vec<u8>> {
    Ok([b"NOTIFY_SOCKET=", address(socket)?.as_slice()].concat())
}

/// A new notify socket, in the first of `folders` where that can be, else at an abstract name that the kernel chooses.
pub(crate) fn open(folders: &[PathBuf]) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None).context("cannot make a notify socket")?;
    setsockopt(&fd, sockopt::PassCred, &true)?;
    let mut refused = Errno::ENOENT;
    for folder in folders {
        match bind_in(folder, &fd) {
            Ok(()) => return Ok(fd),
            Err(errno) => {
                debug!("no notify socket in {}: {errno}", folder.display());
                refused = errno;
            }
        }
    }
    Facility::NotifyFolder.report_missing(&refused);
    // An address of the family alone asks for a free abstract name (unix(7), autobind).
    bind(fd.as_raw_fd(), &UnixAddr::new_unnamed()).context("cannot bind a notify socket")?;
    Ok(fd)
}

/// The folders for notify sockets, the best one first.
pub(crate) fn folders(environment: &[&CStr]) -> Vec<PathBuf> {
    let named = |name| sys::variable(environment, name).map(|value| PathBuf::from(OsStr::from_bytes(value)));
    // systemd separates several by colons.
    let runtime = named("RUNTIME_DIRECTORY").and_then(|list| env::split_paths(&list).next());
    let temporary = named("TMPDIR").unwrap_or("/tmp".into());
    let all = [runtime, named("XDG_RUNTIME_DIR"), Some("/run".into()), Some(temporary)];
    all.into_iter().flatten().filter(|folder| folder.is_absolute()).collect()
}

/// Bind `socket` in a new folder in `folder`.
fn bind_in(folder: &Path, socket: &OwnedFd) -> nix::Result<()> {
    // Only root's generations become other users.
    if geteuid().is_root() && !is_open_to_all(folder) {
        return Err(Errno::EACCES);
    }
    let ours = folder.join(format!("handoff-run-{:016x}", unguessable()));
    let address = UnixAddr::new(&ours.join(format!("{:016x}", unguessable())))?;
    // Not chmod(2) afterwards: the names may lead elsewhere by then.
    under(0o066, || mkdir(&ours, Mode::from_bits_truncate(0o777)))?;
    under(0o111, || bind(socket.as_raw_fd(), &address)).inspect_err(|_| {
        let _ = fs::remove_dir(&ours);
    })
}

/// Remove the notify sockets that supervisors of this user left in `folders` when they were killed.
pub(crate) fn remove_left(folders: &[PathBuf]) {
    for folder in folders.iter().flat_map(|folder| entries(folder)).filter(|folder| is_left(folder)) {
        for socket in entries(&folder) {
            // Whatever is no socket refuses too.
            let is_socket = fs::symlink_metadata(&socket).is_ok_and(|found| found.file_type().is_socket());
            if is_socket && UnixAddr::new(&socket).and_then(|address| is_refused(&address)) == Ok(true) {
                drop(NotifyFile(socket));
            }
        }
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// Is this a folder for a notify socket, put there by this user, and not just now? A socket that is being bound refuses.
fn is_left(folder: &Path) -> bool {
    let prefix = NOTIFY_FOLDER.trim_start_matches('/');
    let number = folder.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_prefix(prefix));
    // The folder of this program's sources begins alike.
    let is_named =
        number.is_some_and(|number| number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let Some(found) = fs::symlink_metadata(folder).ok().filter(|_| is_named) else { return false };
    let is_old = found.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > YOUNG));
    found.is_dir() && found.uid() == geteuid().as_raw() && is_old
}

/// May everybody go through this folder, whatever their user?
fn is_open_to_all(folder: &Path) -> bool {
    let open = |folder: &Path| fs::metadata(folder).is_ok_and(|folder| folder.permissions().mode() & 0o001 != 0);
    fs::canonicalize(folder).is_ok_and(|folder| folder.ancestors().all(open))
}

/// Do `act` under this umask.
fn under<T>(mask: libc::mode_t, act: impl FnOnce() -> T) -> T {
    let usual = umask(Mode::from_bits_truncate(mask));
    let done = act();
    umask(usual);
    done
}

/// A random number: std seeds its hashes from getrandom(2).
fn unguessable() -> u64 {
    RandomState::new().hash_one(0)
}

/// The value for NOTIFY_SOCKET.
pub(crate) fn address(socket: impl AsFd) -> Result<Vec<u8>> {
    let address: UnixAddr = getsockname(socket.as_fd().as_raw_fd())?;
    match (address.path(), address.as_abstract()) {
        (Some(path), _) => Ok(path.as_os_str().as_bytes().to_vec()),
        (_, Some(name)) => Ok([b"@", name].concat()),
        _ => Err(Errno::EINVAL).context("the notify socket has no name"),
    }
}

/// The next notification, if there is one.
pub(crate) fn receive(socket: impl AsFd) -> Option<Notification> {
    let mut buffer = [0; LONGEST + 1];
    // A descriptor sent along (FDSTORE=1, BARRIER=1) is closed by now, which answers a barrier: everything before
    // it has been read.
    let (length, sender) = sys::receive(socket, &mut buffer).ok()?;
    let sender = sender?;
    let text = String::from_utf8_lossy(whole_lines(&buffer[..length])).into_owned();
    Some(Notification { text, pid: sender.pid, uid: sender.uid })
}

/// What was read without a line that was cut, for its beginning may mean something else.
fn whole_lines(read: &[u8]) -> &[u8] {
    if read.len() <= LONGEST {
        return read;
    }
    let end = read.iter().rposition(|byte| *byte == b'\n');
    &read[..end.map_or(0, |end| end + 1)]
}

impl Notification {
    /// Does it have this assignment as a line?
    pub(crate) fn has(&self, assignment: &str) -> bool {
        self.text.lines().any(|line| line == assignment)
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    use nix::sys::socket::{MsgFlags, send, socketpair};

    use super::*;

    /// What becomes of a datagram.
    fn received(datagram: &[u8]) -> Notification {
        let (ours, its) = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC).unwrap();
        setsockopt(&ours, sockopt::PassCred, &true).unwrap();
        assert_eq!(send(its.as_raw_fd(), datagram, MsgFlags::empty()), Ok(datagram.len()));
        receive(&ours).unwrap()
    }

    // The beginning of a line once passed for all of it.
    #[test]
    fn a_line_that_is_cut_does_not_count_and_those_before_it_do() {
        let datagram = |length: usize, rest: &str| ["STATUS=", &"x".repeat(length - 7 - rest.len()), rest].concat();
        assert!(received(datagram(4096, "\nREADY=1").as_bytes()).has("READY=1"));
        let cut = datagram(4096, "\nREADY=1") + "0";
        assert!(!received(cut.as_bytes()).has("READY=1"));
        assert!(received((datagram(4000, "\nREADY=1\nSTATUS=") + &"x".repeat(200)).as_bytes()).has("READY=1"));
        assert_eq!(received("x".repeat(5000).as_bytes()).text, "");
    }
}
