//! SIGUSR2: which program the supervisor becomes, and that it goes on when that one cannot take over.

use std::fs::{self};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::process::exists;
use crate::harness::{PROGRAM, Run, Server, Supervisor, supervise, wait_for};

/// The file that a process runs.
pub fn running(pid: Pid) -> u64 {
    fs::metadata(format!("/proc/{pid}/exe")).unwrap().ino()
}

/// Put a program at a path in one step, as an installer does.
pub fn install(path: &Path, content: &[u8]) {
    let (source, beside) = (path.with_extension("source"), path.with_extension("new"));
    fs::write(&source, content).unwrap();
    // By a process of its own: a fork of another test must not have the program open for writing when it is to run.
    let output = Run::of("install").args(&["-m", "755"]).args(&[&source, &beside]).output();
    assert_eq!(output.failure(), (0, ""));
    fs::remove_file(source).unwrap();
    fs::rename(beside, path).unwrap();
}

/// A supervisor that runs from a copy of the program in its folder.
pub fn installed() -> Supervisor {
    let setup = supervise(Server::Directed, &[]);
    let program = setup.folder.path("program");
    install(&program, &fs::read(PROGRAM).unwrap());
    setup.by(Run::of(program)).serving()
}

#[test]
fn the_program_at_the_path_is_what_runs_however_it_got_there() {
    let supervisor = installed();
    let program = supervisor.folder.path("program");
    let first = running(supervisor.pid);
    install(&program, &fs::read(PROGRAM).unwrap());
    assert_ne!(fs::metadata(&program).unwrap().ino(), first);
    supervisor.upgrade();
    assert_eq!(running(supervisor.pid), fs::metadata(&program).unwrap().ino());
    // Once more, by the successor, to which the file at its start was the second.
    install(&program, &fs::read(PROGRAM).unwrap());
    supervisor.upgrade();
    assert_eq!(running(supervisor.pid), fs::metadata(&program).unwrap().ino());
}

#[test]
fn a_symlink_leads_to_its_new_target() {
    let setup = supervise(Server::Directed, &[]);
    for release in ["one", "two"] {
        install(&setup.folder.path(release), &fs::read(PROGRAM).unwrap());
    }
    let current = setup.folder.path("current");
    symlink("one", &current).unwrap();
    let supervisor = setup.by(Run::of(&current)).serving();
    symlink("two", supervisor.folder.path("next")).unwrap();
    fs::rename(supervisor.folder.path("next"), &current).unwrap();
    supervisor.upgrade();
    assert_eq!(running(supervisor.pid), fs::metadata(supervisor.folder.path("two")).unwrap().ino());
}

/// This machine's own program, for another one.
fn foreign() -> Vec<u8> {
    let mut program = fs::read(PROGRAM).unwrap();
    // e_machine of elf(5): 0xdead is nobody's.
    program[18..20].copy_from_slice(&[0xad, 0xde]);
    program
}

#[test]
fn a_program_that_cannot_take_over_changes_nothing() {
    let supervisor = installed();
    let program = supervisor.folder.path("program");
    let before = (supervisor.json(), supervisor.descriptors(0));
    let (good, cannot) = (fs::read(PROGRAM).unwrap(), "it cannot be executed");
    let bad: [(&[u8], &str); 6] = [
        (b"not a program", cannot),
        (&foreign(), cannot),
        (b"#!/nonexistent/interpreter\n", cannot),
        (&fs::read("/bin/true").unwrap(), "it ended with status 0"),
        // Anything that refuses the arguments.
        (b"#!/bin/sh\nexit 125\n", "it ended with status 125"),
        (b"#!/bin/sh\nkill -SEGV $$\n", "it was ended by SIGSEGV"),
    ];
    for (count, (content, why)) in (1..).zip(bad) {
        install(&program, content);
        supervisor.signal(Signal::SIGUSR2);
        supervisor.wait_log_times(count, "cannot take over");
        let line = format!("handoff-run: {} cannot take over, this supervisor goes on: {why}", program.display());
        assert_eq!(supervisor.log().lines().last().unwrap(), line);
    }
    fs::remove_file(&program).unwrap();
    supervisor.signal(Signal::SIGUSR2);
    supervisor.wait_log_times(7, "cannot take over");
    assert_eq!((supervisor.json(), supervisor.descriptors(0)), before);
    assert_eq!(supervisor.log().matches("cannot take over").count(), 7);
    // And a good one is welcome again.
    install(&program, &good);
    supervisor.upgrade();
    assert_eq!(supervisor.json(), before.0);
}

/// Ask for an upgrade to a program that never reads the state, and give its pid.
pub fn hang(supervisor: &Supervisor) -> Pid {
    let note = supervisor.folder.path("sleeper");
    let script = format!("#!/bin/sh\necho $$ >{}\nexec sleep 100\n", note.display());
    install(&supervisor.folder.path("program"), script.as_bytes());
    supervisor.signal(Signal::SIGUSR2);
    let written = || fs::read_to_string(&note).ok()?.strip_suffix('\n')?.parse().ok();
    Pid::from_raw(wait_for("the sleeper", written))
}

#[test]
fn a_program_that_hangs_is_given_up_and_nothing_waits_for_it() {
    let supervisor = installed();
    let sleeper = hang(&supervisor);
    supervisor.signal(Signal::SIGUSR2);
    supervisor.wait_log("the new supervisor is being probed already");
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    supervisor.wait_log("cannot take over, this supervisor goes on: it did not read the state in time");
    wait_for("the program to be gone", || (!exists(sleeper)).then_some(()));
    assert_eq!(supervisor.states(), [(2, "serving".into())]);
}

#[test]
fn a_supervisor_that_ends_leaves_no_program_that_hangs() {
    let mut supervisor = installed();
    let sleeper = hang(&supervisor);
    assert_eq!(supervisor.stop().failure(), (0, ""));
    assert_eq!(supervisor.end().0, 0);
    wait_for("the program to be gone", || (!exists(sleeper)).then_some(()));
}
