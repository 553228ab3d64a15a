//! Where little is given: no /proc, hardly a descriptor, or little memory.

use std::{io, ptr};

use nix::unistd::Uid;

use crate::facts::{compare_after, done, limit, skip};
use crate::harness::handoff_run_with;

/// In a mount namespace of its own, without /proc.
fn leave_proc() -> io::Result<()> {
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the kernel reads strings that are constants.
    done(unsafe { libc::unshare(libc::CLONE_NEWNS) })
        .and(done(unsafe { libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), private, ptr::null()) }))
        .and(done(unsafe { libc::umount2(c"/proc".as_ptr(), libc::MNT_DETACH) }))
}

#[test]
fn without_proc_all_is_the_same() {
    if !Uid::effective().is_root() {
        return skip("only root can unmount /proc");
    }
    let facts = compare_after(leave_proc);
    if let Some(facts) = facts {
        facts.assert("status: errno 2");
    }
}

#[test]
fn without_proc_an_inherited_socket_is_adopted() {
    if !Uid::effective().is_root() {
        return skip("only root can unmount /proc");
    }
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = socket.local_addr().unwrap().to_string();
    let line = ["-l", &spec, "--", "sh", "-c", "echo $LISTEN_FDS $LISTEN_FDNAMES"];
    let output = handoff_run_with(&line).inherit(&socket, 9).before_exec(leave_proc).output();
    assert_eq!((output.failure(), &*output.stdout), ((0, ""), "1 unknown\n"));
}

// Two more than the standard ones: the socket, and what the target reads with.
#[test]
fn five_descriptors_are_enough() {
    compare_after(|| limit(libc::RLIMIT_NOFILE, 5));
}

#[test]
fn no_descriptor_for_a_socket_is_an_error_that_says_so() {
    let run = handoff_run_with(&["-l", "127.0.0.1:0", "--", "true"]);
    let output = run.before_exec(|| limit(libc::RLIMIT_NOFILE, 3)).output();
    let message = "handoff-run: cannot see the open descriptors: EMFILE: Too many open files\n";
    assert_eq!(output.failure(), (125, message));
}

#[test]
fn little_memory_is_enough() {
    compare_after(|| limit(libc::RLIMIT_AS, 24 << 20));
    compare_after(|| limit(libc::RLIMIT_DATA, 16 << 20));
}
