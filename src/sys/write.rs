//! Writing to a file that another process reads, without waiting for that one, and without setting O_NONBLOCK: the
//! description is shared with generations, and with whatever started us.

use std::ffi::c_long;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{isatty, write};

/// What a pipe or a terminal that poll(2) finds writable takes at once.
const PIPE_BUF: usize = 4096;

/// Write as much of `bytes` to `file` as can be written at once.
///
/// # Errors
/// EAGAIN if that is nothing.
pub(crate) fn write_at_once(file: BorrowedFd, bytes: &[u8]) -> nix::Result<usize> {
    match SFlag::from_bits_truncate(fstat(file)?.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFSOCK => send(file.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL),
        SFlag::S_IFIFO => write_nowait(file, bytes),
        SFlag::S_IFCHR if isatty(file) == Ok(true) => write_to_terminal(file, bytes),
        // No other process can hold it up.
        _ => write(file, bytes),
    }
}

/// pwritev2(2), RWF_NOWAIT, which musl and older glibcs have no function for.
fn write_nowait(pipe: BorrowedFd, bytes: &[u8]) -> nix::Result<usize> {
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // The position, in two halves: as write(2) has it.
    let at: c_long = -1;
    let (number, flags) = (pipe.as_raw_fd(), libc::RWF_NOWAIT);
    // SAFETY: the kernel reads one iovec, and the bytes that it names; both live through the call.
    let written = unsafe { libc::syscall(libc::SYS_pwritev2, number, &raw const part, 1, at, at, flags) };
    match Errno::result(written) {
        Ok(length) => Ok(length as usize),
        Err(errno @ (Errno::EAGAIN | Errno::EPIPE | Errno::EINTR)) => Err(errno),
        // Before Linux 6.4, or where a filter denies it.
        Err(_) => write_if_writable(pipe, bytes),
    }
}

/// Through a description of our own.
fn write_to_terminal(terminal: BorrowedFd, bytes: &[u8]) -> nix::Result<usize> {
    let path = format!("/proc/self/fd/{}", terminal.as_raw_fd());
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    match open(path.as_str(), flags, Mode::empty()) {
        Ok(own) => write(own, bytes),
        // It may be another user's, as after su(1).
        Err(_) => write_if_writable(terminal, bytes),
    }
}

/// Ask first; unless another process writes in between, that little does not wait.
fn write_if_writable(file: BorrowedFd, bytes: &[u8]) -> nix::Result<usize> {
    let mut asked = [PollFd::new(file, PollFlags::POLLOUT)];
    if poll(&mut asked, PollTimeout::ZERO)? == 0 {
        return Err(Errno::EAGAIN);
    }
    write(file, &bytes[..bytes.len().min(PIPE_BUF)])
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use nix::pty::openpty;
    use nix::sys::termios::{FlowArg, tcflow};
    use nix::unistd::pipe;

    use super::*;

    const LINE: &[u8] = b"a line\n";

    /// Write until it is refused; how much that was.
    fn fill(file: impl AsFd, write: impl Fn(BorrowedFd, &[u8]) -> nix::Result<usize>) -> usize {
        let mut written = 0;
        loop {
            match write(file.as_fd(), LINE) {
                Ok(length) => written += length,
                Err(errno) => {
                    assert_eq!(errno, Errno::EAGAIN);
                    return written;
                }
            }
        }
    }

    #[test]
    fn a_full_pipe_refuses_and_takes_more_when_it_was_read() {
        for write in [write_at_once, write_if_writable, write_nowait] {
            let (ours, its) = pipe().unwrap();
            let written = fill(&its, write);
            assert!(written >= PIPE_BUF, "{written}");
            let mut read = vec![0; written];
            File::from(ours.try_clone().unwrap()).read_exact(&mut read).unwrap();
            assert!(read.starts_with(LINE));
            assert_eq!(write(its.as_fd(), LINE), Ok(LINE.len()));
        }
    }

    #[test]
    fn a_full_socket_refuses() {
        let (_ours, its) = UnixStream::pair().unwrap();
        assert!(fill(&its, write_at_once) > 0);
    }

    #[test]
    fn a_terminal_that_is_stopped_refuses() {
        for write in [write_at_once, write_if_writable, write_to_terminal] {
            let terminal = openpty(None, None).unwrap();
            assert_eq!(write(terminal.slave.as_fd(), LINE), Ok(LINE.len()));
            tcflow(&terminal.slave, FlowArg::TCOOFF).unwrap();
            assert_eq!(write(terminal.slave.as_fd(), LINE), Err(Errno::EAGAIN));
            tcflow(&terminal.slave, FlowArg::TCOON).unwrap();
            assert_eq!(write(terminal.slave.as_fd(), LINE), Ok(LINE.len()));
        }
    }

    #[test]
    fn the_description_stays_as_it_was() {
        let (_ours, its) = pipe().unwrap();
        fill(&its, write_at_once);
        let flags = nix::fcntl::fcntl(&its, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        assert_eq!(flags & libc::O_NONBLOCK, 0);
    }

    #[test]
    fn what_has_no_reader_is_an_error() {
        let (ours, its) = UnixStream::pair().unwrap();
        drop(ours);
        assert_eq!(write_at_once(its.as_fd(), LINE), Err(Errno::EPIPE));
    }
}
