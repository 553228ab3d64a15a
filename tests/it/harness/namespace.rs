//! Tests in a namespace of their own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::thread;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::skip;

/// Do it in a thread with a namespace of its own; none where that takes more privilege.
pub fn in_namespace<T: Send + 'static>(kind: libc::c_int, act: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let inside = move || {
        // SAFETY: unshare takes an integer and changes this thread alone.
        match Errno::result(unsafe { libc::unshare(kind) }) {
            Ok(_) => Some(act()),
            Err(errno) => {
                skip(&format!("no namespace of its own for this test: {errno}"));
                None
            }
        }
    };
    thread::spawn(inside).join().unwrap()
}

/// Do it in a thread that is in the network of a process.
pub fn in_network_of<T: Send>(process: Pid, act: impl FnOnce() -> T + Send) -> T {
    let network = File::open(format!("/proc/{process}/ns/net")).unwrap();
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // SAFETY: setns takes two integers and changes this thread alone.
            Errno::result(unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) }).unwrap();
            act()
        });
        inside.join().unwrap()
    })
}
