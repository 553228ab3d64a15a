//! What epolls and rings of other processes wait for, by `/proc/PID/fdinfo`.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::net::UnixDatagram;

use libc::c_int;
use nix::sys::stat::{fstat, minor};
use nix::unistd::Pid;

use crate::kernel::descriptors::{ForeignFd, SocketInode, has_vanished, running_thread};

/// Empty if the descriptor was closed meanwhile.
pub(crate) fn read(pid: Pid, fd: ForeignFd) -> io::Result<String> {
    read_at_most(pid, fd, u64::MAX)
}

/// The same, of its first `most` bytes.
pub(crate) fn read_at_most(pid: Pid, fd: ForeignFd, most: u64) -> io::Result<String> {
    let text = |path: String| {
        let mut text = String::new();
        File::open(path)?.take(most).read_to_string(&mut text).map(|_| text)
    };
    let read = |directory: &str| match text(format!("{directory}/fdinfo/{}", fd.0)) {
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

/// How a socket was registered with an epoll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    /// By this number.
    pub(crate) number: ForeignFd,
    pub(crate) events: u32,
    pub(crate) data: u64,
}

/// Every registration of this socket.
pub(crate) fn registrations(fdinfo: &str, sockfs: u64, socket: SocketInode) -> Vec<Registration> {
    let registration = |line: &str| {
        let text = line.replace(':', " ");
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let word = |name: &str| words.iter().skip_while(|word| **word != name).nth(1);
        let field = |name: &str| u64::from_str_radix(word(name)?, 16).ok();
        let is_its = (field("ino")?, field("sdev")?) == (socket.0, sockfs);
        let number = ForeignFd(word("tfd")?.parse().ok().filter(|number| *number >= 0)?);
        is_its.then_some(Registration { number, events: field("events")? as u32, data: field("data")? })
    };
    fdinfo.lines().filter(|line| line.starts_with("tfd:")).filter_map(registration).collect()
}

/// The flags of a descriptor, in octal: `flags:\t02004002`.
pub(crate) fn flags(fdinfo: &str) -> Option<c_int> {
    c_int::from_str_radix(fdinfo.lines().find_map(|line| line.strip_prefix("flags:"))?.trim(), 8).ok()
}

/// The requests of a ring that wait for a connection, by IORING_OP_ACCEPT: `  op=13, task_works=0`.
pub(crate) fn pending_accepts(fdinfo: &str) -> usize {
    fdinfo.lines().filter(|line| line.trim_start().starts_with("op=13,")).count()
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

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
    fn a_registration_is_read_as_it_was_made() {
        let text = "pos:\t0\ntfd:       17 events: 80002019 data: ffffffff00000011  pos:0 ino:b4ad sdev:8\n\
                    tfd: 5 events: 1 data: 5  pos:0 ino:b4ad sdev:c\ntfd: 6 events: 1 data: 6  pos:0 ino:1 sdev:8\ntfd: x\n\
                    tfd: -3 events: 1 data: 3  pos:0 ino:b4ad sdev:8";
        let expected = Registration { number: ForeignFd(17), events: 0x8000_2019, data: 0xffff_ffff_0000_0011 };
        assert_eq!(registrations(text, SOCKFS, SocketInode(0xb4ad)), [expected]);
    }

    #[test]
    fn the_flags_of_a_descriptor_are_octal() {
        assert_eq!(flags("pos:\t0\nflags:\t02004002\n"), Some(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_RDWR));
        assert_eq!(flags("pos:\t0\n"), None);
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
