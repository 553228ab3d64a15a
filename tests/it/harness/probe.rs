//! The target: this test program, run again by handoff-run. It tells the test that waits for it what it was given.

use std::fmt::Write;
use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::{env, fs, process};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Not a test unless it is run as a target: `PROBE` names the socket of the test that waits.
#[test]
fn probe() {
    let Some(path) = env::var_os("PROBE") else { return };
    let open = open_descriptors();
    let mut connection = UnixStream::connect(path).unwrap();
    let text = facts(&open);
    let sockets: Vec<RawFd> =
        open.iter().filter(|(_, link)| link.starts_with("socket:")).map(|(fd, _)| *fd).take(200).collect();
    let rights = [ControlMessage::ScmRights(&sockets)];
    let rights = if sockets.is_empty() { &[][..] } else { &rights };
    let sent = sendmsg::<()>(connection.as_raw_fd(), &[IoSlice::new(text.as_bytes())], rights, MsgFlags::empty(), None);
    assert_eq!(sent, Ok(text.len()));
    // Stay until the test has seen enough.
    let _ = connection.read(&mut [0]);
}

/// Number and link of each descriptor from 3 on that is inherited further, in the order of the numbers.
fn open_descriptors() -> Vec<(RawFd, String)> {
    let numbers: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    let mut open: Vec<(RawFd, String)> = numbers.into_iter().filter_map(inherited).collect();
    open.sort_unstable();
    open
}

/// What the test program opened itself is close-on-exec; what it was given is not.
fn inherited(fd: RawFd) -> Option<(RawFd, String)> {
    let link = fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    let flags = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
    let close_on_exec = i32::from_str_radix(flags, 8).unwrap() & libc::O_CLOEXEC != 0;
    (fd >= 3 && !close_on_exec).then(|| (fd, link.to_str().unwrap().to_owned()))
}

fn facts(open: &[(RawFd, String)]) -> String {
    let mut text = format!("pid={}\nparent={}\n", process::id(), std::os::unix::process::parent_id());
    for (key, value) in env::vars().filter(|(key, value)| key != "PROBE" && !value.contains('\n')) {
        writeln!(text, "{key}={value}").unwrap();
    }
    for (fd, link) in open {
        writeln!(text, "fd{fd}={link}").unwrap();
    }
    writeln!(text, "stdin={}", fs::read_link("/proc/self/fd/0").unwrap().display()).unwrap();
    writeln!(text, "arguments={:?}", env::args().skip(5).collect::<Vec<_>>()).unwrap();
    text
}
