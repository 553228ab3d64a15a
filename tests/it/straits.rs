//! Where little is given: no /proc, hardly a descriptor, little memory, a parent that ignores its children.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::{env, io, ptr};

use nix::unistd::{Uid, User};

use crate::harness::facts::{compare_after, done, ignore, limit};
use crate::harness::{Folder, Run, handoff_run_with, is_root_to};

/// In a mount namespace of its own, without /proc.
pub fn leave_proc() -> io::Result<()> {
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the kernel reads strings that are constants.
    done(unsafe { libc::unshare(libc::CLONE_NEWNS) })
        .and(done(unsafe { libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), private, ptr::null()) }))
        .and(done(unsafe { libc::umount2(c"/proc".as_ptr(), libc::MNT_DETACH) }))
}

#[test]
fn without_proc_all_is_the_same() {
    if !is_root_to("unmount /proc") {
        return;
    }
    let facts = compare_after(leave_proc);
    if let Some(facts) = facts {
        facts.assert("status: errno 2");
    }
}

#[test]
fn without_proc_an_inherited_socket_is_adopted() {
    if !is_root_to("unmount /proc") {
        return;
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
    let message = "handoff-run: cannot listen on 127.0.0.1:0: EMFILE: Too many open files\n";
    assert_eq!(output.failure(), (125, message));
}

#[test]
fn little_memory_is_enough() {
    compare_after(|| limit(libc::RLIMIT_AS, 24 << 20));
    compare_after(|| limit(libc::RLIMIT_DATA, 16 << 20));
}

/// A run that has to look up the name of a user.
fn owned_socket(folder: &Folder) -> Run {
    let user = User::from_uid(Uid::effective()).unwrap().unwrap().name;
    handoff_run_with(&["-l", &format!("{},user={user}", folder.text("s")), "--", "echo", "served"])
}

// wait(2) then finds no child, though getent(1) had answered.
#[test]
fn a_name_is_found_when_the_parent_ignores_its_children() {
    let folder = Folder::new();
    let output = owned_socket(&folder).before_exec(|| ignore(libc::SIGCHLD)).output();
    assert_eq!((output.failure(), &*output.stdout), ((0, ""), "served\n"));
}

// It takes `--` for a key, and does not know ahosts: a name was never found.
#[test]
fn a_name_is_found_by_the_getent_of_alpine() {
    let folder = Folder::new();
    folder.write(
        "getent",
        "#!/bin/sh\n[ \"$2\" != -- ] && [ \"$1\" != ahosts ] || exit 2\nexec /usr/bin/getent \"$@\"\n",
    );
    fs::set_permissions(folder.path("getent"), Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.text(""), env::var("PATH").unwrap());
    let output = owned_socket(&folder).env("PATH", &path).output();
    assert_eq!((output.failure(), &*output.stdout), ((0, ""), "served\n"));
    let host = handoff_run_with(&["-l", "ip6-localhost:0", "--", "echo", "served"]).env("PATH", &path);
    let output = host.output();
    assert!(output.stdout == "served\n" || output.stderr.contains("not found"), "{output:?}");
    for option in ["user=-x", "group=--help"] {
        let spec = format!("{},{option}", folder.text("t"));
        let output = handoff_run_with(&["-l", &spec, "--", "true"]).output();
        assert!(output.code() == 125 && output.stderr.ends_with(": not found\n"), "{output:?}");
    }
}
