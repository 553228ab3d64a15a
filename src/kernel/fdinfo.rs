//! What epolls and rings of other processes wait for, by `/proc/PID/fdinfo`.

use std::fs;
use std::io;
use std::os::unix::net::UnixDatagram;

use libc::c_int;
use nix::sys::stat::{fstat, minor};
use nix::unistd::Pid;

use crate::kernel::descriptors::{ForeignFd, SocketInode, has_vanished, running_thread};

/// Empty if the descriptor was closed meanwhile.
pub(crate) fn read(pid: Pid, fd: ForeignFd) -> io::Result<String> {
    let read = |directory: &str| match fs::read_to_string(format!("{directory}/fdinfo/{}", fd.0)) {
        Err(error) if has_vanished(&error) => Ok(None),
        read => read.map(Some),
    };
    if let Some(text) = read(&format!("/proc/{pid}"))? {
        return Ok(text);
    }
    let Some(thread) = running_thread(pid) else { return Ok(String::new()) };
    Ok(read(&thread)?.unwrap_or_default())
}

/// The device of sockfs, without which an inode may be that of any other file.
pub(crate) fn sockfs() -> io::Result<u64> {
    Ok(minor(fstat(UnixDatagram::unbound()?)?.st_dev))
}

/// The sockets for whose input an epoll asks: `tfd: 3 events: 19 data: 3  pos:0 ino:b4ad sdev:8`, all but the first
/// in hexadecimal. They may have been registered through a descriptor that is closed by now.
pub(crate) fn watched(fdinfo: &str, sockfs: u64) -> impl Iterator<Item = SocketInode> {
    fdinfo.lines().filter(|line| line.starts_with("tfd:")).filter_map(move |line| {
        let words = || line.split_ascii_whitespace();
        let hexadecimal = |word: &str| u64::from_str_radix(word, 16).ok();
        let field = |name: &str| hexadecimal(words().find_map(|word| word.strip_prefix(name))?);
        let events = hexadecimal(words().skip_while(|word| *word != "events:").nth(1)?)?;
        // Registered without input, it is being set up, paused, or just now served (EPOLLONESHOT).
        let input = events as c_int & (libc::EPOLLIN | libc::EPOLLRDNORM) != 0;
        (input && field("sdev:")? == sockfs).then_some(SocketInode(field("ino:")?))
    })
}

/// The requests of a ring that wait for a connection, by IORING_OP_ACCEPT: `  op=13, task_works=0`.
pub(crate) fn pending_accepts(fdinfo: &str) -> usize {
    fdinfo.lines().filter(|line| line.trim_start().starts_with("op=13,")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKFS: u64 = 8;

    #[test]
    fn an_epoll_s_targets_are_sockets_whose_input_it_asks_for() {
        let line = |events, device| format!("tfd: 3 events: {events} data: ffff  pos:0 ino:b4ad sdev:{device}\n");
        let found = |text: &str| watched(text, SOCKFS).collect::<Vec<_>>();
        assert_eq!(found(&line("2019", "8")), [SocketInode(0xb4ad)]);
        assert_eq!(found(&format!("pos:\t0\nino:\t7\n{}{}", line("8000001d", "8"), line("1", "8"))).len(), 2);
        for text in [line("40000000", "8"), line("4", "8"), line("1", "c"), "tfd:".into(), "tfd: 1 events:".into()] {
            assert_eq!(found(&text), [], "{text}");
        }
    }

    #[test]
    fn a_ring_s_pending_accepts_are_counted() {
        assert_eq!(
            pending_accepts("PollList:\n  op=13, task_works=0\n  op=6, task_works=0\n  op=13, task_works=0\n"),
            2
        );
        assert_eq!(pending_accepts("UserFiles:\t0\nPollList:\nop=130, x\n"), 0);
    }
}
