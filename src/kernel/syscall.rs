//! On which descriptors a thread of another process sleeps, by the system call it is in: `/proc/PID/task/TID/syscall`,
//! and, for poll(2) and select(2), the sets it has handed to the kernel, out of `/proc/PID/mem`.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str;

use libc::{c_int, c_long, c_ulong};

use crate::kernel::descriptors::ForeignFd;

/// How a process waits for a connection or datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Epoll,
    Accept,
    Poll,
    Select,
    /// recv(2) and its like, or read(2), of a datagram socket.
    Receive,
    /// An accept that an io_uring holds.
    Ring,
}

/// Entries of a poll(2) that are looked at; the sockets that a server starts with come first.
const POLL_ENTRIES: usize = 4096;
/// Bytes of a select(2)'s set that are looked at: eight times what FD_SETSIZE allows.
const SELECT_BYTES: usize = 1024;
/// A line of `/proc/PID/task/TID/syscall` is at most this long.
const LINE: usize = 256;

/// A system call a thread is in, with the arguments that show what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SystemCall {
    number: c_long,
    first: u64,
    second: u64,
}

/// What a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitTarget {
    Descriptor(ForeignFd),
    /// An array of struct pollfd, or a set of select(2): its address and length in bytes.
    Array {
        address: u64,
        length: usize,
    },
}

/// How the thread whose directory in /proc is `thread` waits, and for which of `held`.
///
/// # Errors
/// EACCES or EPERM, without permission.
pub(crate) fn waits(
    thread: &Path,
    held: impl Iterator<Item = ForeignFd>,
) -> io::Result<Option<(Wait, Vec<ForeignFd>)>> {
    let mut line = [0; LINE];
    let length = File::open(thread.join("syscall"))?.read(&mut line)?;
    let Some((wait, target)) = SystemCall::parse(&line[..length]).and_then(SystemCall::target) else { return Ok(None) };
    let fds = match target {
        WaitTarget::Descriptor(fd) => held.filter(|other| *other == fd).collect(),
        WaitTarget::Array { address, length } => {
            let set = read_memory(thread, address, length)?;
            let is_in = if wait == Wait::Poll { polls } else { selects };
            held.filter(|fd| is_in(&set, *fd)).collect()
        }
    };
    Ok(Some((wait, fds)))
}

/// As much as there is to read.
fn read_memory(thread: &Path, address: u64, length: usize) -> io::Result<Vec<u8>> {
    let memory = File::open(thread.join("mem"))?;
    let mut bytes = vec![0; length];
    // An address that is not mapped means that the call has ended by now, or will end with EFAULT.
    let length = memory.read_at(&mut bytes, address).unwrap_or(0);
    bytes.truncate(length);
    Ok(bytes)
}

impl SystemCall {
    /// proc_pid_syscall(5): the number in decimal, the arguments in hexadecimal. None for a thread that runs, or
    /// sleeps elsewhere (-1).
    fn parse(line: &[u8]) -> Option<SystemCall> {
        let mut words = str::from_utf8(line).ok()?.split_ascii_whitespace();
        let number = words.next()?.parse().ok().filter(|number| *number >= 0)?;
        let mut argument = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        Some(SystemCall { number, first: argument()?, second: argument()? })
    }

    fn target(self) -> Option<(Wait, WaitTarget)> {
        // The upper half of a register that holds an int is undefined; the kernel ignores it too.
        let descriptor = WaitTarget::Descriptor(ForeignFd(self.first as c_int));
        let wait = wait_of(self.number)?;
        let target = match wait {
            Wait::Poll => {
                let entries = (self.second as u32 as usize).min(POLL_ENTRIES);
                WaitTarget::Array { address: self.first, length: entries * size_of::<libc::pollfd>() }
            }
            Wait::Select => {
                let bits = usize::try_from(self.first as c_int).ok()?;
                let words = bits.div_ceil(c_ulong::BITS as usize);
                WaitTarget::Array { address: self.second, length: (words * size_of::<c_ulong>()).min(SELECT_BYTES) }
            }
            _ => descriptor,
        };
        Some((wait, target))
    }
}

fn wait_of(number: c_long) -> Option<Wait> {
    match number {
        // These two have accept only inside socketcall(2), whose arguments are in memory.
        #[cfg(not(any(target_arch = "x86", target_arch = "s390x")))]
        libc::SYS_accept => Some(Wait::Accept),
        libc::SYS_accept4 => Some(Wait::Accept),
        libc::SYS_ppoll => Some(Wait::Poll),
        libc::SYS_pselect6 => Some(Wait::Select),
        // The newer architectures have only the two above; 32-bit x86 has another call under the name of select.
        #[cfg(any(target_arch = "x86_64", target_arch = "x86", target_arch = "arm", target_arch = "s390x"))]
        libc::SYS_poll => Some(Wait::Poll),
        #[cfg(any(target_arch = "x86_64", target_arch = "s390x"))]
        libc::SYS_select => Some(Wait::Select),
        libc::SYS_recvfrom | libc::SYS_recvmsg | libc::SYS_recvmmsg | libc::SYS_read => Some(Wait::Receive),
        _ => None,
    }
}

/// Does this array of struct pollfd ask for input on `fd`?
fn polls(array: &[u8], fd: ForeignFd) -> bool {
    let input = libc::POLLIN | libc::POLLRDNORM;
    array.as_chunks::<{ size_of::<libc::pollfd>() }>().0.iter().any(|&[a, b, c, d, e, f, ..]| {
        c_int::from_ne_bytes([a, b, c, d]) == fd.0 && i16::from_ne_bytes([e, f]) & input != 0
    })
}

/// Is `fd` in this fd_set, an array of c_ulong?
fn selects(set: &[u8], fd: ForeignFd) -> bool {
    let Ok(bit) = usize::try_from(fd.0) else { return false };
    let words = set.as_chunks::<{ size_of::<c_ulong>() }>().0;
    let word = words.get(bit / c_ulong::BITS as usize).copied().map(c_ulong::from_ne_bytes);
    word.is_some_and(|word| word >> (bit % c_ulong::BITS as usize) & 1 == 1)
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    fn target(line: &str) -> Option<(Wait, WaitTarget)> {
        SystemCall::parse(line.as_bytes()).and_then(SystemCall::target)
    }

    #[test]
    fn a_thread_that_runs_or_sleeps_outside_a_call_waits_for_nothing() {
        for line in ["running\n", "-1 0x7ffe 0x7f23\n", "", "0x1 0x2 0x3", "288", "288 0x3", "\u{fffd}"] {
            assert_eq!(target(line), None, "{line:?}");
        }
    }

    #[test]
    fn accept_names_its_descriptor_whatever_is_in_the_upper_half_of_the_register() {
        let line = format!("{} 0xdeadbeef00000007 0x0 0x0 0x80000 0x0 0x0 0x7ffe 0x7f23\n", libc::SYS_accept4);
        assert_eq!(target(&line), Some((Wait::Accept, WaitTarget::Descriptor(ForeignFd(7)))));
    }

    #[test]
    fn a_call_that_is_not_about_input_is_not_a_wait() {
        assert_eq!(target(&format!("{} 0x3 0x0 0x0 0x0 0x0 0x0 0x7ffe 0x7f23\n", libc::SYS_futex)), None);
    }

    #[test]
    fn what_is_read_of_the_sets_is_bounded() {
        let poll = format!("{} 0x1000 0xffffffff 0x0 0x0 0x0 0x0 0x0 0x0", libc::SYS_ppoll);
        assert_eq!(target(&poll), Some((Wait::Poll, WaitTarget::Array { address: 0x1000, length: 8 * POLL_ENTRIES })));
        let select = |count: &str| target(&format!("{} {count} 0x1000 0x0 0x0 0x0 0x0 0x0", libc::SYS_pselect6));
        assert_eq!(select("0x41"), Some((Wait::Select, WaitTarget::Array { address: 0x1000, length: 16 })));
        let most = WaitTarget::Array { address: 0x1000, length: SELECT_BYTES };
        assert_eq!(select("0x7fffffff"), Some((Wait::Select, most)));
        assert_eq!(select("0xffffffff"), None);
    }

    #[test]
    fn a_descriptor_is_polled_if_input_is_asked_for() {
        let entry = |fd: c_int, events: i16| [&fd.to_ne_bytes()[..], &events.to_ne_bytes(), &[0, 0]].concat();
        let array = [entry(4, libc::POLLOUT), entry(5, libc::POLLIN | libc::POLLPRI), entry(-1, libc::POLLIN)].concat();
        assert!(polls(&array, ForeignFd(5)));
        assert!(!polls(&array, ForeignFd(4)));
        assert!(!polls(&array[..15], ForeignFd(5)));
    }

    #[test]
    fn a_descriptor_is_selected_if_its_bit_is_set() {
        let set = [c_ulong::to_ne_bytes(1 << 3), c_ulong::to_ne_bytes(1)].concat();
        assert!(selects(&set, ForeignFd(3)));
        assert!(selects(&set, ForeignFd(c_ulong::BITS as c_int)));
        assert!([0, 4, -1, 5000].into_iter().all(|fd| !selects(&set, ForeignFd(fd))));
    }
}
