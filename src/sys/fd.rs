//! Descriptors: claimed at the start, copied, and put at a number.

use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use nix::unistd::dup3_raw;

use super::directory::{list_numbers, open_directory};

/// The first descriptor that is not a standard one, SD_LISTEN_FDS_START of `sd_listen_fds(3)`.
pub(crate) const FIRST_FD: RawFd = 3;

/// Where descriptors are looked for when there is no /proc: no server has more open when it starts its successor.
const WITHOUT_PROC: RawFd = 4096;

/// The descriptors from 3 on that this process was started with, in the order of their numbers; or others, by the numbers that
/// they had in a predecessor.
#[derive(Debug, Default)]
pub(crate) struct Claimed {
    all: Vec<(RawFd, OwnedFd)>,
    /// The standard descriptors are among them.
    has_standard: bool,
}

/// Take every open descriptor from 3 on, in the order of their numbers.
///
/// # Safety
/// To be called once, before anything else in the process owns a descriptor.
#[cfg_attr(test, expect(dead_code, reason = "the tests' main is another"))]
pub(crate) unsafe fn claim() -> nix::Result<Claimed> {
    let numbers = match open_descriptors() {
        Ok(numbers) => numbers,
        Err(Errno::ENOENT | Errno::EACCES | Errno::EPERM) => probed_descriptors(),
        // With a full table there is no descriptor to read /proc by.
        Err(Errno::EMFILE | Errno::ENFILE) => probed_descriptors(),
        Err(errno) => return Err(errno),
    };
    // SAFETY: the kernel just named these as open, and the caller promises that they have no owner.
    let all = numbers.into_iter().map(|fd| (fd, unsafe { OwnedFd::from_raw_fd(fd) })).collect();
    Ok(Claimed { all, has_standard: true })
}

impl Claimed {
    /// Those that another process sent, with the numbers by which it knows them.
    pub(crate) fn received(received: Vec<(RawFd, OwnedFd)>) -> Claimed {
        Claimed { all: received, has_standard: false }
    }

    /// Add one that is to be taken by this number.
    pub(crate) fn add(&mut self, number: RawFd, fd: OwnedFd) {
        self.all.push((number, fd));
    }

    /// Take the one of this number, close-on-exec.
    ///
    /// # Errors
    /// EBADF if it is not open, or taken already.
    pub(crate) fn take(&mut self, number: RawFd) -> nix::Result<OwnedFd> {
        if (0..FIRST_FD).contains(&number) && self.has_standard {
            return take_standard(number);
        }
        let fd = self.take_as_it_is(number).ok_or(Errno::EBADF)?;
        set_close_on_exec(&fd, FdFlag::FD_CLOEXEC)?;
        Ok(fd)
    }

    /// Take the one of this number, if it is there, to be inherited further.
    pub(crate) fn take_as_it_is(&mut self, number: RawFd) -> Option<OwnedFd> {
        let at = self.all.iter().position(|(known, _)| *known == number)?;
        Some(self.all.remove(at).1)
    }

    /// Those that were not taken, as they were inherited.
    pub(crate) fn rest(self) -> Vec<OwnedFd> {
        self.all.into_iter().map(|(_, fd)| fd).collect()
    }
}

/// Keep 0, 1 and 2 from being taken by what is opened later: a closed one gets a descriptor that is closed again by
/// exec, and that can be read and written as little as a closed one.
pub(crate) fn occupy_standard() -> nix::Result<()> {
    loop {
        let placeholder = placeholder()?;
        // The lowest free number: all below it are taken.
        if placeholder.as_raw_fd() >= FIRST_FD {
            return Ok(());
        }
        // It stays for as long as the process.
        let _ = placeholder.into_raw_fd();
    }
}

/// A descriptor of no use, which needs no file system, nor permission.
fn placeholder() -> nix::Result<OwnedFd> {
    open(c"/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

/// Move what a predecessor had at the number of a standard descriptor, and leave that as if it were closed.
fn take_standard(number: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes integers and fails with EBADF where the number is closed.
    let moved = Errno::result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, FIRST_FD) })?;
    // SAFETY: the kernel just made `moved` for us alone.
    let moved = unsafe { OwnedFd::from_raw_fd(moved) };
    // SAFETY: a standard descriptor has no owner.
    let kept = unsafe { dup3_raw(placeholder()?, number, OFlag::O_CLOEXEC)? };
    // It stays for as long as the process.
    let _ = kept.into_raw_fd();
    Ok(moved)
}

/// The numbers from 3 on that `/proc/self/fd` lists, which goes through the table in order.
fn open_descriptors() -> nix::Result<Vec<RawFd>> {
    // As a rule there are the standard ones alone, and counting is cheaper than listing. Before Linux 6.2 the size of
    // the directory, which is the count, was 0.
    let open = nix::sys::stat::stat("/proc/self/fd")?.st_size;
    if open > 0 && open == (0..FIRST_FD).filter(|fd| is_open(*fd)).count() as i64 {
        return Ok(Vec::new());
    }
    let directory = open_directory("/proc/self/fd")?;
    let mut numbers = list_numbers(&directory)?;
    numbers.retain(|fd| *fd >= FIRST_FD && *fd != directory.as_raw_fd());
    Ok(numbers)
}

/// The same by asking for each number, for where /proc is not mounted.
fn probed_descriptors() -> Vec<RawFd> {
    (FIRST_FD..WITHOUT_PROC).filter(|fd| is_open(*fd)).collect()
}

/// Is there a descriptor of this number?
fn is_open(number: RawFd) -> bool {
    // SAFETY: F_GETFD only reads a flag of the table entry, whether or not there is one.
    unsafe { libc::fcntl(number, libc::F_GETFD) != -1 }
}

/// A copy of `fd` at the lowest free number from `lowest` on, close-on-exec.
pub(crate) fn duplicate_from(fd: impl AsFd, lowest: RawFd) -> nix::Result<OwnedFd> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(lowest))?;
    // SAFETY: the kernel just made `copy` for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// The same descriptor at a number from `lowest` on, close-on-exec; where none is free there, as it is.
pub(crate) fn moved_from(fd: OwnedFd, lowest: RawFd) -> OwnedFd {
    if fd.as_raw_fd() < lowest { duplicate_from(&fd, lowest).unwrap_or(fd) } else { fd }
}

/// The same without close-on-exec, for a descriptor that was inherited so.
pub(crate) fn duplicate_inheritable_from(fd: impl AsFd, lowest: RawFd) -> nix::Result<OwnedFd> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD(lowest))?;
    // SAFETY: the kernel just made `copy` for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// A copy of descriptor 0 if there is one, close-on-exec.
pub(crate) fn duplicate_stdin() -> nix::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes integers and fails with EBADF where descriptor 0 is closed.
    let copy = Errno::result(unsafe { libc::fcntl(0, libc::F_DUPFD_CLOEXEC, FIRST_FD) })?;
    // SAFETY: the kernel just made `copy` for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Does descriptor 0 lead to a listening socket?
pub(crate) fn stdin_listens() -> bool {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `value`, which lives through the call.
    let done =
        unsafe { libc::getsockopt(0, libc::SOL_SOCKET, libc::SO_ACCEPTCONN, (&raw mut value).cast(), &raw mut length) };
    done == 0 && value == 1
}

/// Is there a descriptor at `number` that a program which is executed would have?
pub(crate) fn is_inheritable(number: RawFd) -> bool {
    // SAFETY: fcntl with F_GETFD takes integers and changes nothing, whosever the descriptor is.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

/// Set or clear close-on-exec.
pub(crate) fn set_close_on_exec(fd: impl AsFd, flag: FdFlag) -> nix::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(flag)).map(drop)
}

/// Put a copy of `fd` at `number`, inheritable, in place of what is there.
///
/// # Safety
/// What is at `number` must have no owner, or the process must be about to exec.
pub(crate) unsafe fn place(fd: impl AsFd, number: RawFd) -> nix::Result<()> {
    // dup2(2) of a number to itself does nothing, and would leave it close-on-exec.
    if fd.as_fd().as_raw_fd() == number {
        return set_close_on_exec(fd, FdFlag::empty());
    }
    // SAFETY: dup2 takes two integers, and the caller promises that no owner uses `number` afterwards.
    Errno::result(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), number) }).map(drop)
}
