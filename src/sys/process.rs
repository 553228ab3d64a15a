//! Processes: the environment, exec, fork, and other processes by their pidfd.

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::{fmt, fs, ptr};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::get_no_new_privs;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitPidFlag;
use nix::unistd::{ForkResult, Pid};
use serde::{Deserialize, Serialize};

use super::in_child::in_child;
use crate::missing::Facility;

unsafe extern "C" {
    // environ(7)
    static environ: *const *const c_char;
}

/// What main was called with. `std::env::args_os` has it before Rust's runtime only where the libc is glibc.
static ARGUMENTS: OnceLock<Vec<OsString>> = OnceLock::new();

/// Keep the arguments that main was called with.
///
/// # Safety
/// `argv` must be an array that ends with a null pointer, and its strings must live as long as the process.
#[cfg_attr(test, expect(dead_code, reason = "the tests' main is another"))]
pub(crate) unsafe fn record_arguments(argv: *const *const c_char) {
    // SAFETY: the caller promises just this.
    let arguments = unsafe { strings(argv) };
    let arguments = arguments.into_iter().map(|word| OsStr::from_bytes(word.to_bytes()).to_owned());
    ARGUMENTS.get_or_init(|| arguments.collect());
}

/// The arguments of this process, its name first.
pub(crate) fn arguments() -> &'static [OsString] {
    ARGUMENTS.get().map_or(&[], Vec::as_slice)
}

/// The variables this process was given, in their order, those without a `=` too, which `std::env` leaves out.
pub(crate) fn environment() -> Vec<&'static CStr> {
    // SAFETY: `environ` is set before main, and nothing changes it.
    let first = unsafe { environ };
    if first.is_null() {
        return Vec::new();
    }
    // SAFETY: the array ends with a null pointer, and its strings live as long as the process.
    unsafe { strings(first) }
}

/// The strings of an array that ends with a null pointer.
///
/// # Safety
/// `entry` must be the first of such an array, and its strings must live as long as the process.
unsafe fn strings(mut entry: *const *const c_char) -> Vec<&'static CStr> {
    let mut strings = Vec::new();
    loop {
        // SAFETY: the array ends with a null pointer, and the loop stops there.
        let string = unsafe { *entry };
        if string.is_null() {
            return strings;
        }
        // SAFETY: each entry is a string that ends with NUL, and the caller promises that it lives.
        strings.push(unsafe { CStr::from_ptr(string) });
        // SAFETY: the entry was not the null pointer, so there is another one behind it.
        entry = unsafe { entry.add(1) };
    }
}

/// AT_EXECFN of getauxval(3): the path that exec was called with.
pub(crate) fn executed_path() -> Option<PathBuf> {
    // SAFETY: it takes an integer, and gives 0 for what is not there.
    let path = unsafe { libc::getauxval(libc::AT_EXECFN) } as *const c_char;
    // SAFETY: the kernel put a string there that lives as long as the process.
    (!path.is_null()).then(|| PathBuf::from(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes())))
}

/// AT_SECURE of getauxval(3): did exec give rights that the caller does not have?
pub(crate) fn is_secure() -> bool {
    // SAFETY: it takes an integer, and gives 0 for what is not there.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// The value of the first entry for `name`, which is the one that getenv(3) finds.
pub(crate) fn variable<'a>(environment: &[&'a CStr], name: &str) -> Option<&'a [u8]> {
    environment.iter().find_map(|entry| entry.to_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// execve(2): become the file `program`. Returns only when that failed.
pub(crate) fn execve(program: &CStr, arguments: &[CString], environment: &[impl AsRef<CStr>]) -> Errno {
    let argv = pointers(arguments);
    let envp = pointers(environment);
    // SAFETY: both arrays end with a null pointer and point to strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Errno::last()
}

/// execveat(2) of the file itself, with AT_EMPTY_PATH: become `program`, wherever its name leads to by now.
///
/// # Errors
/// ENOENT for a script too, whose interpreter could not open a file that exec closes.
pub(crate) fn execute_opened(program: impl AsFd, arguments: &[CString], environment: &[impl AsRef<CStr>]) -> Errno {
    let (argv, envp) = (pointers(arguments), pointers(environment));
    let (program, path) = (program.as_fd().as_raw_fd(), c"".as_ptr());
    // SAFETY: both arrays end with a null pointer and point to strings that outlive the call, as the path does.
    unsafe { libc::syscall(libc::SYS_execveat, program, path, argv.as_ptr(), envp.as_ptr(), libc::AT_EMPTY_PATH) };
    Errno::last()
}

/// prctl(2), PR_SET_NAME: the name that ps(1) shows, of which the kernel keeps 15 bytes.
pub(crate) fn set_name(name: &CStr) {
    // SAFETY: the kernel reads a string that ends with NUL and lives through the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Would a filter need no_new_privs, which is not yet set?
pub(crate) fn would_give_up_privileges() -> bool {
    // linux/capability.h
    const CAP_SYS_ADMIN: u32 = 21;
    !has_capability(CAP_SYS_ADMIN) && get_no_new_privs() == Ok(false)
}

/// Does Yama forbid to look at one's own descendants (Documentation/admin-guide/LSM/Yama.rst)?
pub(crate) fn is_ptrace_restricted() -> bool {
    // linux/capability.h
    const CAP_SYS_PTRACE: u32 = 19;
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match scope.trim() {
        "2" => !has_capability(CAP_SYS_PTRACE),
        scope => scope == "3",
    }
}

/// Has this process the capability, in its user namespace?
fn has_capability(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    capabilities_in(&status) & (1 << number) != 0
}

/// The effective capabilities in a proc_pid_status(5): a number of 16 hexadecimal digits, capabilities(7).
fn capabilities_in(status: &str) -> u64 {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

/// The null-terminated array that exec takes.
fn pointers(strings: &[impl AsRef<CStr>]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ref().as_ptr()).chain([ptr::null()]).collect()
}

/// pidfd_open(2). The number of this process or of an unreaped child is not reused; for any other, the caller must
/// check which process has it now.
pub(crate) fn pidfd_of(process: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, process.as_raw(), 0) })?;
    // SAFETY: the kernel just made `fd`, close-on-exec, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The same of a thread, by which its own table of descriptors is found (Linux 6.9).
///
/// # Errors
/// EINVAL where the kernel has that of a process alone.
pub(crate) fn pidfd_of_thread(thread: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, thread.as_raw(), libc::PIDFD_THREAD) })?;
    // SAFETY: the kernel just made `fd`, close-on-exec, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A copy of what `process` has open as `number`, close-on-exec.
///
/// # Errors
/// ENOSYS where a filter of system calls does not let it pass; as `in_child` where that cannot be known now.
pub(crate) fn pidfd_getfd(process: impl AsFd, number: c_int) -> nix::Result<OwnedFd> {
    if may_get_descriptors()? { call_pidfd_getfd(process, number) } else { Err(Errno::ENOSYS) }
}

/// May pidfd_getfd(2) be called? It is not in systemd's @system-service, and where a filter is set it may end the
/// process that tries: a child does so first, once.
fn may_get_descriptors() -> nix::Result<bool> {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(*known);
    }
    let ending = try_to_get_descriptors()?;
    if ending != Ending::Exited(0) {
        Facility::Descriptors.report_missing(&format_args!("pidfd_getfd is not permitted, a try {ending}"));
    }
    Ok(*KNOWN.get_or_init(|| ending == Ending::Exited(0)))
}

/// How a child that calls it ends: with 0, or with what the call fails with.
///
/// # Errors
/// As `in_child`.
pub(crate) fn try_to_get_descriptors() -> nix::Result<Ending> {
    in_child(|| {
        // SAFETY: the call takes three integers, of which the first is no descriptor.
        unsafe { libc::syscall(libc::SYS_pidfd_getfd, -1, 0, 0) };
        if Errno::last() == Errno::EBADF { 0 } else { Errno::last() as u8 }
    })
}

fn call_pidfd_getfd(process: impl AsFd, number: c_int) -> nix::Result<OwnedFd> {
    let process = process.as_fd().as_raw_fd();
    // SAFETY: pidfd_getfd takes three integers and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, number, 0) })?;
    // SAFETY: the kernel just made `fd` for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ending {
    Exited(u8),
    /// By this signal, real-time ones included.
    Signaled(i32),
    /// It was reaped elsewhere.
    #[serde(other)]
    Unknown,
}

impl Ending {
    /// The exit status that the shell has for it.
    pub(crate) fn status(self) -> u8 {
        match self {
            Ending::Exited(status) => status,
            Ending::Signaled(signal) => 128 + signal as u8,
            // It may have failed.
            Ending::Unknown => 1,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Exited(status) => write!(f, "ended with status {status}"),
            Ending::Signaled(signal) => match Signal::try_from(*signal) {
                Ok(signal) => write!(f, "was ended by {signal}"),
                Err(_) => write!(f, "was ended by signal {signal}"),
            },
            Ending::Unknown => write!(f, "ended"),
        }
    }
}

/// How a child ended, if it has; it is not reaped.
pub(crate) fn see_end_of(child: Pid) -> Option<Ending> {
    match wait_unreaped(child, libc::WNOHANG) {
        // The end of one that is traced is reported to its tracer first, and to us when that one lets it go.
        Ok(None) if has_ended(child) => Some(ending_in_proc(child).unwrap_or(Ending::Unknown)),
        ending => ending.unwrap_or(Some(Ending::Unknown)),
    }
}

/// Is the pidfd of a child readable?
fn has_ended(child: Pid) -> bool {
    pidfd_of(child).is_ok_and(is_readable)
}

/// Can this be read from now? A pidfd can when its process has ended.
pub(crate) fn is_readable(fd: impl AsFd) -> bool {
    poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
}

/// Let this process, and none but it, look at us where Yama forbids that: PR_SET_PTRACER (PR_SET_PTRACER(2const)).
pub(crate) fn allow_ptrace(process: Pid) {
    // SAFETY: this operation takes integers only. Without Yama it is unknown, and not needed.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, process.as_raw(), 0, 0, 0) };
}

/// What a process does: the state in its proc_pid_stat(5).
pub(crate) fn state_of(process: Pid) -> Option<u8> {
    state_in(&fs::read(format!("/proc/{process}/stat")).ok()?)
}

/// That in such a line, whose name may be any bytes, parentheses too.
fn state_in(line: &[u8]) -> Option<u8> {
    line.rsplit(|byte| *byte == b')').next()?.strip_prefix(b" ")?.first().copied()
}

/// How a child ended, by its `/proc/PID/stat`.
fn ending_in_proc(child: Pid) -> Option<Ending> {
    ending_in(&fs::read(format!("/proc/{child}/stat")).ok()?)
}

/// The last field of such a line, in the form of wait(2).
fn ending_in(line: &[u8]) -> Option<Ending> {
    let status: c_int = str::from_utf8(line.rsplit(|byte| *byte == b' ').next()?).ok()?.trim_end().parse().ok()?;
    Some(match libc::WIFEXITED(status) {
        true => Ending::Exited(libc::WEXITSTATUS(status) as u8),
        false => Ending::Signaled(libc::WTERMSIG(status)),
    })
}

/// Wait until a child has ended; it is not reaped.
pub(crate) fn await_end_of(child: Pid) -> Ending {
    loop {
        match wait_unreaped(child, 0) {
            Err(Errno::EINTR) => (),
            outcome => return outcome.ok().flatten().unwrap_or(Ending::Unknown),
        }
    }
}

/// waitid(2), WNOWAIT. nix' own cannot return a real-time signal.
///
/// # Errors
/// ECHILD if it was reaped already, as by the kernel where SIGCHLD is ignored.
fn wait_unreaped(child: Pid, flags: c_int) -> nix::Result<Option<Ending>> {
    // SAFETY: a siginfo of zeros is one, with no process in it.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOWAIT | flags;
    // SAFETY: the kernel writes a siginfo, which lives through the call.
    Errno::result(unsafe { libc::waitid(libc::P_PID, child.as_raw() as libc::id_t, &raw mut info, flags) })?;
    // SAFETY: after waitid the fields of SIGCHLD are there, zeros if nothing has ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok((pid != 0).then_some(match info.si_code {
        libc::CLD_EXITED => Ending::Exited(status as u8),
        _ => Ending::Signaled(status),
    }))
}

/// The pidfd of a child that was just forked. Where that fails, the child is killed: it could not be watched.
pub(crate) fn pidfd_of_child(child: Pid) -> nix::Result<OwnedFd> {
    pidfd_of(child).inspect_err(|_| {
        // It is our unreaped child, so both affect it alone.
        let _ = nix::sys::signal::kill(child, Signal::SIGKILL);
        // A debugger may hold it; it is then reaped with the orphans.
        let _ = nix::sys::wait::waitpid(child, Some(WaitPidFlag::WNOHANG));
    })
}

/// pidfd_send_signal(2); where that is denied, kill(2), for which `pid` must be known to be this process' own still.
pub(crate) fn send_signal(process: impl AsFd, pid: Pid, signal: c_int) -> nix::Result<()> {
    match send_signal_by(process, signal) {
        Ok(()) => Ok(()),
        Err(Errno::ESRCH) => Err(Errno::ESRCH),
        // SAFETY: kill takes two integers.
        Err(_) => Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop),
    }
}

/// pidfd_send_signal(2): to this process, or to none.
pub(crate) fn send_signal_by(process: impl AsFd, signal: c_int) -> nix::Result<()> {
    let process = process.as_fd().as_raw_fd();
    // SAFETY: without a siginfo the call takes integers and a null pointer.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process, signal, ptr::null::<libc::siginfo_t>(), 0) };
    Errno::result(sent).map(drop)
}

/// fork(2).
///
/// # Safety
/// The process must have one thread only, so that the child may do anything that the parent may.
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

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
