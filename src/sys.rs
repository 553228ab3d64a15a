//! Every unsafe operation, behind a function that is typed on both sides. What nix offers safely is not repeated here.

use std::ffi::{CStr, CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;
use std::{mem, ptr};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::signal::{SigAction, SigSet, Signal, sigaction};
use nix::sys::socket::{SockFlag, accept4};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Pid};

unsafe extern "C" {
    // environ(7)
    static mut environ: *const *const c_char;
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

/// The numbers from 3 on that `/proc/self/fd` lists, which goes through the table in order.
fn open_descriptors() -> nix::Result<Vec<RawFd>> {
    // As a rule there are the standard ones alone, and to count is cheaper than to list. Before Linux 6.2 the size of
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

/// The entries of a directory of /proc that are numbers: processes, threads or descriptors.
pub(crate) fn numbers_in(directory: &str) -> nix::Result<Vec<i32>> {
    list_numbers(&open_directory(directory)?)
}

fn open_directory(path: &str) -> nix::Result<OwnedFd> {
    open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

fn list_numbers(directory: &OwnedFd) -> nix::Result<Vec<i32>> {
    let mut numbers: Vec<i32> = Vec::new();
    // A few descriptors fit a page of entries; more only take more calls.
    let mut page = [0u8; 2048];
    loop {
        let length = getdents64(directory, &mut page)?;
        // Less than a page is not the end: a signal that is pending cuts a call short.
        if length == 0 {
            return Ok(numbers);
        }
        numbers.extend(entry_names(&page[..length]).filter_map(|name| name.to_str().ok()?.parse::<i32>().ok()));
    }
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
    // SAFETY: `environ` is set before main, and what `execvpe` does to it is undone when that returns.
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

/// Become `arguments[0]`, looked for in the PATH of `environment`, as env(1) does and execvpe(3) does not: that one
/// asks the caller's. Returns only when that failed.
pub(crate) fn execvpe(arguments: &[CString], environment: &[impl AsRef<CStr>]) -> Errno {
    let argv = pointers(arguments);
    let envp = pointers(environment);
    // SAFETY: the array ends with a null pointer, and there is no other thread to look at `environ` meanwhile.
    let before = unsafe { ptr::replace(&raw mut environ, envp.as_ptr()) };
    // SAFETY: both arrays end with a null pointer and point to strings that outlive the call; argv[0] is there,
    // because the command line has a PROGRAM.
    unsafe { libc::execvp(argv[0], argv.as_ptr()) };
    let errno = Errno::last();
    // SAFETY: as above; `envp` ends with this function.
    unsafe { environ = before };
    errno
}

/// execve(2): become the file `program`. Returns only when that failed.
pub(crate) fn execve(program: &CStr, arguments: &[CString], environment: &[impl AsRef<CStr>]) -> Errno {
    let argv = pointers(arguments);
    let envp = pointers(environment);
    // SAFETY: both arrays end with a null pointer and point to strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
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

/// sigaction(2) to an action that runs no code: the default, ignoring, or what was found before.
pub(crate) fn set_action(signal: Signal, action: &SigAction) -> nix::Result<SigAction> {
    // SAFETY: this program installs no handler, so whatever the action is, no handler of its own runs.
    unsafe { sigaction(signal, action) }
}

/// Is a signal of this number ignored?
pub(crate) fn is_ignored(number: c_int) -> bool {
    let mut found = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the new action is null, so that nothing is changed, and the old one is written where there is room for it.
    let asked = unsafe { libc::sigaction(number, ptr::null(), found.as_mut_ptr()) };
    // SAFETY: every part of it may be zero, as it is if sigaction failed.
    asked == 0 && unsafe { found.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// The numbers of the real-time signals, which nix's enumeration of signals does not have.
pub(crate) fn real_time_signals() -> impl Iterator<Item = c_int> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

/// The signals in `signals`, by number, real-time ones too.
pub(crate) fn numbers_of(signals: &SigSet) -> Vec<c_int> {
    let set: libc::sigset_t = *signals.as_ref();
    // SAFETY: `set` is an initialised set, and the numbers are of signals.
    (1..=libc::SIGRTMAX()).filter(|number| unsafe { libc::sigismember(&raw const set, *number) } == 1).collect()
}

/// The opposite; numbers of no signal are left out.
pub(crate) fn set_of(numbers: &[c_int]) -> SigSet {
    let mut set: libc::sigset_t = *SigSet::empty().as_ref();
    for number in numbers {
        // SAFETY: `set` is an initialised set; a wrong number is refused with EINVAL.
        unsafe { libc::sigaddset(&raw mut set, *number) };
    }
    // SAFETY: the set was initialised by nix and sigaddset keeps it so.
    unsafe { SigSet::from_sigset_t_unchecked(set) }
}

/// pidfd_open(2). Of this process or of a child that was not waited for, the number is still its own; of any other, the
/// caller has to look at who has it now.
pub(crate) fn pidfd_of(process: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, process.as_raw(), 0) })?;
    // SAFETY: the kernel just made `fd`, close-on-exec, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A copy of what `process` has open as `number`, close-on-exec.
pub(crate) fn pidfd_getfd(process: impl AsFd, number: c_int) -> nix::Result<OwnedFd> {
    let process = process.as_fd().as_raw_fd();
    // SAFETY: pidfd_getfd takes three integers and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, number, 0) })?;
    // SAFETY: the kernel just made `fd` for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// waitid(2) of a child that shall not be reaped yet: si_code and si_status if it has ended. nix' own cannot tell a
/// real-time signal.
pub(crate) fn see_end(child: impl AsFd) -> nix::Result<Option<(c_int, c_int)>> {
    // SAFETY: a siginfo of zeros is one, with no process in it.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let child = child.as_fd().as_raw_fd() as libc::id_t;
    let flags = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
    // SAFETY: the kernel writes a siginfo, which lives through the call.
    Errno::result(unsafe { libc::waitid(libc::P_PIDFD, child, &raw mut info, flags) })?;
    // SAFETY: after waitid the fields of SIGCHLD are there, zeros if nobody has ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok((pid != 0).then_some((info.si_code, status)))
}

/// The pidfd of a child that was just forked. Where there is none to be had, the child is ended: nobody could watch it.
pub(crate) fn pidfd_of_child(child: Pid) -> nix::Result<OwnedFd> {
    pidfd_of(child).inspect_err(|_| {
        // It is our unreaped child, so both reach it and nobody else.
        let _ = nix::sys::signal::kill(child, Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(child, None);
    })
}

/// pidfd_send_signal(2).
pub(crate) fn send_signal(process: impl AsFd, signal: c_int) -> nix::Result<()> {
    let process = process.as_fd().as_raw_fd();
    // SAFETY: without a siginfo the call takes integers and a null pointer.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process, signal, ptr::null::<libc::siginfo_t>(), 0) };
    Errno::result(sent).map(drop)
}

/// fork(2).
///
/// # Safety
/// The process must have one thread only, so that the child may do whatever the parent could.
pub(crate) unsafe fn fork() -> nix::Result<ForkResult> {
    // SAFETY: the caller promises that there is one thread.
    unsafe { nix::unistd::fork() }
}

/// End a forked child at once, without flushing or destroying what it shares with its parent.
pub(crate) fn exit_at_once(status: u8) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(status.into()) }
}

/// prctl(2), PR_SET_CHILD_SUBREAPER: orphaned descendants become our children.
pub(crate) fn become_subreaper() -> nix::Result<()> {
    // SAFETY: this operation takes integers only.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// The monotonic clock, which no setting of the time moves, since boot.
pub(crate) fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a timespec, which lives through the call; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Put a copy of `fd` at `number` in a forked child, inheritable, in place of the parent's there.
pub(crate) fn place_in_child(fd: impl AsFd, number: RawFd) -> nix::Result<()> {
    // dup2(2) of a number to itself does nothing, and would leave it close-on-exec.
    if fd.as_fd().as_raw_fd() == number {
        return set_close_on_exec(fd, FdFlag::empty());
    }
    // SAFETY: dup2 takes two integers; the child is about to exec and uses no other descriptor of the supervisor.
    Errno::result(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), number) }).map(drop)
}

/// recvmsg(2) of the next message into `buffer`: its length, and who sent it, as the kernel vouches for (SO_PASSCRED).
///
/// There is room for that alone, so that the kernel itself closes descriptors that come along: none ever gets here, not
/// even half of them where the table is full.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> nix::Result<(usize, Option<libc::ucred>)> {
    let mut room = Room { bytes: [0; ROOM] };
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a msghdr of zeroes is one that names nothing.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut room).cast();
    message.msg_controllen = ROOM as _;
    // SAFETY: the kernel writes at most as much as the message says into `buffer` and `room`, which live through it.
    let length = Errno::result(unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, 0) })?;
    // SAFETY: the kernel says by the new msg_controllen whether a header is there, and `room` is aligned for it.
    let sender = unsafe {
        libc::CMSG_FIRSTHDR(&raw const message)
            .as_ref()
            .filter(|header| (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_CREDENTIALS))
            .map(|header| libc::CMSG_DATA(header).cast::<libc::ucred>().read_unaligned())
    };
    Ok((length as usize, sender))
}

/// What a `ucred` takes behind its header.
// SAFETY: it only computes.
const ROOM: usize = unsafe { libc::CMSG_SPACE(size_of::<libc::ucred>() as u32) } as usize;

/// Bytes where a header may begin.
union Room {
    bytes: [u8; ROOM],
    #[expect(dead_code, reason = "it aligns")]
    header: libc::cmsghdr,
}

/// accept4(2), the connection close-on-exec and non-blocking.
pub(crate) fn accept(listener: impl AsFd) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let number = accept4(listener.as_fd().as_raw_fd(), flags)?;
    // SAFETY: the kernel just made it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
