//! Every unsafe operation, behind a function that is typed on both sides. What nix offers safely is not repeated here.

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::stat::Mode;

unsafe extern "C" {
    // environ(7)
    static environ: *const *const c_char;
}

/// The first descriptor that is not a standard one, where `sd_listen_fds(3)` says that sockets begin.
pub(crate) const FIRST_FD: RawFd = 3;

/// Where descriptors are looked for when there is no /proc: no server has more open when it starts its successor.
const WITHOUT_PROC: RawFd = 4096;

/// Take every open descriptor from 3 on, in the order of their numbers.
///
/// # Safety
/// To be called once, before anything else in the process owns a descriptor.
#[cfg_attr(test, expect(dead_code, reason = "the tests' main is another"))]
pub(crate) unsafe fn claim() -> nix::Result<Vec<OwnedFd>> {
    let numbers = match open_descriptors() {
        Ok(numbers) => numbers,
        Err(Errno::ENOENT | Errno::EACCES | Errno::EPERM) => probed_descriptors(),
        Err(errno) => return Err(errno),
    };
    // SAFETY: the kernel just named these as open, and the caller promises that nobody owns them.
    Ok(numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect())
}

/// The numbers from 3 on that `/proc/self/fd` lists, sorted.
fn open_descriptors() -> nix::Result<Vec<RawFd>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = open(c"/proc/self/fd", flags, Mode::empty())?;
    let mut numbers: Vec<RawFd> = Vec::new();
    // A few descriptors fit a page of entries; more only take more calls.
    let mut page = [0u8; 2048];
    loop {
        let length = getdents64(&directory, &mut page)?;
        if length == 0 {
            break;
        }
        numbers.extend(entry_names(&page[..length]).filter_map(|name| name.to_str().ok()?.parse::<RawFd>().ok()));
    }
    numbers.retain(|fd| *fd >= FIRST_FD && *fd != directory.as_raw_fd());
    numbers.sort_unstable();
    Ok(numbers)
}

/// The same by asking for each number, for where /proc is not mounted.
fn probed_descriptors() -> Vec<RawFd> {
    (FIRST_FD..WITHOUT_PROC)
        .filter(|fd| {
            // SAFETY: F_GETFD only reads a flag of the table entry, whether or not there is one.
            unsafe { libc::fcntl(*fd, libc::F_GETFD) != -1 }
        })
        .collect()
}

/// getdents64(2): entries of `directory` into `page`; 0 at the end.
fn getdents64(directory: &OwnedFd, page: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: the kernel writes at most `page.len()` bytes into `page`, which lives through the call.
    let length = unsafe { libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), page.as_mut_ptr(), page.len()) };
    Errno::result(length).map(|length| length as usize)
}

/// The names in what getdents64(2) wrote: `d_reclen` stands at 16, `d_name` from 19 on.
fn entry_names(mut entries: &[u8]) -> impl Iterator<Item = &CStr> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*entries.get(16)?, *entries.get(17)?]));
        let (entry, rest) = entries.split_at_checked(length)?;
        entries = rest;
        CStr::from_bytes_until_nul(entry.get(19..)?).ok()
    })
}

/// The variables this process was given, in their order, those without a `=` too, which `std::env` leaves out.
pub(crate) fn environment() -> Vec<&'static CStr> {
    let mut variables = Vec::new();
    // SAFETY: `environ` is set before main and nothing in this program changes the environment.
    let mut entry = unsafe { environ };
    if entry.is_null() {
        return variables;
    }
    loop {
        // SAFETY: the array ends with a null pointer, and the loop stops there.
        let variable = unsafe { *entry };
        if variable.is_null() {
            return variables;
        }
        // SAFETY: each entry is a string that ends with NUL and lives as long as the process.
        variables.push(unsafe { CStr::from_ptr(variable) });
        // SAFETY: the entry was not the null pointer, so there is another one behind it.
        entry = unsafe { entry.add(1) };
    }
}

/// execvpe(3): become `arguments[0]`, looked for in PATH. Returns only when that failed.
pub(crate) fn execvpe(arguments: &[CString], environment: &[impl AsRef<CStr>]) -> Errno {
    let argv = pointers(arguments);
    let envp = pointers(environment);
    // SAFETY: both arrays end with a null pointer and point to strings that outlive the call; argv[0] is there,
    // because the command line has a PROGRAM.
    unsafe { libc::execvpe(argv[0], argv.as_ptr(), envp.as_ptr()) };
    Errno::last()
}

/// The null-terminated array that exec takes.
fn pointers(strings: &[impl AsRef<CStr>]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ref().as_ptr()).chain([ptr::null()]).collect()
}

/// setsockopt(2) with an integer.
pub(crate) fn set_option(socket: impl AsFd, level: c_int, option: c_int, value: c_int) -> nix::Result<()> {
    let length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `value`, which lives through the call.
    let done =
        unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), length) };
    Errno::result(done).map(drop)
}

/// getsockopt(2) of an integer.
pub(crate) fn option(socket: impl AsFd, level: c_int, option: c_int) -> nix::Result<c_int> {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `value`, which lives through the call.
    let done = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut length)
    };
    Errno::result(done).map(|_| value)
}

/// listen(2). The kernel lowers `backlog` to net.core.somaxconn.
pub(crate) fn listen(socket: impl AsFd, backlog: c_int) -> nix::Result<()> {
    // SAFETY: listen takes two integers.
    Errno::result(unsafe { libc::listen(socket.as_fd().as_raw_fd(), backlog) }).map(drop)
}

/// pidfd_open(2) of this very process.
pub(crate) fn pidfd_of_self() -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) })?;
    // SAFETY: the kernel just made `fd`, close-on-exec, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A copy of `fd` at the lowest free number from `lowest` on, close-on-exec.
pub(crate) fn duplicate_from(fd: impl AsFd, lowest: RawFd) -> nix::Result<OwnedFd> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(lowest))?;
    // SAFETY: the kernel just made `copy` for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
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

/// Put a copy of `fd` at descriptor 0, inheritable, in place of what was there.
pub(crate) fn copy_to_stdin(fd: impl AsFd) -> nix::Result<()> {
    // SAFETY: dup2 takes two integers; descriptor 0 is the caller's own, given up by asking for --stdin.
    Errno::result(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), 0) }).map(drop)
}

/// Set or clear close-on-exec.
pub(crate) fn set_close_on_exec(fd: impl AsFd, flag: FdFlag) -> nix::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(flag)).map(drop)
}
