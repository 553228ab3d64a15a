//! LISTEN_PID and LISTEN_PIDFDID: they name the process that serves, whoever was named before.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::Pid;

use crate::harness::socket::{link, tcp};
use crate::harness::{PROGRAM, Report, handoff_run_with};

/// PIDFS_MAGIC of linux/magic.h.
const PIDFS: FsType = FsType(0x5049_4446);

/// What LISTEN_PIDFDID is for a process; none where this kernel's pidfds have no inodes of their own.
fn pidfd_id(process: &str) -> Option<String> {
    let pid = Pid::from_raw(process.parse().unwrap());
    // SAFETY: pidfd_open takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    assert!(fd >= 0);
    // SAFETY: the kernel just made `fd` for us alone.
    let pidfd = File::from(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    (fstatfs(&pidfd).unwrap().filesystem_type() == PIDFS).then(|| pidfd.metadata().unwrap().ino().to_string())
}

#[track_caller]
fn assert_stamped(report: &Report) {
    assert_eq!(&report["LISTEN_PID"], &report["pid"]);
    assert_eq!(report.get("LISTEN_PIDFDID"), pidfd_id(&report["pid"]).as_deref());
}

// LISTEN_PIDFDID (systemd 259): the decimal inode of the target's pidfd, set where pidfs exists.
#[test]
fn the_target_is_named_by_pid_and_by_pidfd() {
    assert_stamped(&handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--"]).report());
}

// It survives exec and differs after fork: whoever rewrites LISTEN_PID rewrites or unsets it.
#[test]
fn after_a_fork_the_names_are_the_new_process() {
    let line = ["-q", "-l", "127.0.0.1:0", "--", "sh", "-c", "\"$@\"; true", "sh", PROGRAM, "--"];
    let report = handoff_run_with(&line).report();
    assert_stamped(&report);
    let outer = report.running.pid().to_string();
    assert_ne!(&report["pid"], outer);
    assert!(report.get("LISTEN_PIDFDID").is_none_or(|id| Some(id) != pidfd_id(&outer).as_deref()));
}

// handoff-run(1), --no-pid: "Leave LISTEN_PID out. For wrappers which fork."
#[test]
fn no_pid_leaves_out_what_names_the_process() {
    let report = handoff_run_with(&["-q", "-l", "web=127.0.0.1:0", "--no-pid", "--"]).report();
    assert_eq!(&report["LISTEN_FDS"], "1");
    assert_eq!(&report["LISTEN_FDNAMES"], "web");
    assert_eq!((report.get("LISTEN_PID"), report.get("LISTEN_PIDFDID")), (None, None));
}

// The names of a manager outside would make the target refuse its sockets, or look beside them.
#[test]
fn nothing_of_an_outer_managers_stamp_is_left() {
    for option in [&[][..], &["--no-pid"], &["--first-fd", "50"]] {
        let (listener, address) = tcp();
        let stale = [("LISTEN_PID", "1"), ("LISTEN_PIDFDID", "7"), ("LISTEN_FDS_FIRST_FD", "9")];
        let run = handoff_run_with(option).args(&["-l", &address, "--"]).inherit(&listener, 3);
        let report = stale.into_iter().fold(run, |run, (key, value)| run.env(key, value)).report();
        assert_eq!(report.descriptors()[0].1, link(&listener));
        for (key, value) in stale {
            assert_ne!(report.get(key), Some(value), "{option:?}");
        }
        assert_eq!(report.get("LISTEN_FDS_FIRST_FD"), None);
    }
}
