//! SIGUSR2 where descriptors are missing, or the program is replaced once more: what could fail after exec is found
//! before.

use std::fs;
use std::io::{self, Seek, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::process::{children, descriptors, status_field};
use crate::harness::{Folder, PROGRAM, Run, Server, Supervisor, handoff_run_with, log, supervise, wait_for};
use crate::upgrade_program::{install, running};

/// Close these in the child.
fn close(numbers: &'static [RawFd]) -> impl FnMut() -> io::Result<()> + Send + Sync + 'static {
    move || {
        for number in numbers {
            // SAFETY: the child is about to exec.
            unsafe { libc::close(*number) };
        }
        Ok(())
    }
}

/// A supervisor that runs from a copy of the program, and waits for its control socket: there may be no log.
fn without(numbers: &'static [RawFd], options: &[&str]) -> Supervisor {
    // Not one in Rust, whose runtime opens what is closed.
    let setup = supervise(Server::Python("serve()"), options);
    let program = setup.folder.path("program");
    install(&program, &fs::read(PROGRAM).unwrap());
    let supervisor = setup.by(Run::of(program)).run(|run| run.before_exec(close(numbers))).start();
    wait_for("it to serve", || {
        let status = supervisor.command("--status", &[]).output();
        status.stdout.contains("serving").then_some(())
    });
    supervisor
}

/// The main process of a generation that serves.
fn serving(supervisor: &Supervisor) -> Pid {
    let table = supervisor.table();
    let line = table.iter().find(|line| line.get(2).is_some_and(|state| state == "serving")).unwrap();
    Pid::from_raw(line[1].parse().unwrap())
}

fn standard(pid: Pid) -> Vec<RawFd> {
    descriptors(pid).into_iter().map(|(number, _)| number).filter(|number| *number < 3).collect()
}

// Its control socket once took the number, and its successor looks for what it inherited from 3 on.
#[test]
fn a_closed_standard_descriptor_is_closed_in_generations_and_no_trouble_at_an_upgrade() {
    for (closed, open) in [(&[0][..], vec![1, 2]), (&[1], vec![0, 2]), (&[2], vec![0, 1]), (&[0, 1, 2], vec![])] {
        let supervisor = without(closed, &["--ready", "after:10ms"]);
        let first = serving(&supervisor);
        assert_eq!(standard(first), open);
        let program = supervisor.folder.path("program");
        for _ in 0..2 {
            install(&program, &fs::read(PROGRAM).unwrap());
            let new = fs::metadata(&program).unwrap().ino();
            supervisor.signal(Signal::SIGUSR2);
            wait_for("the new program", || (running(supervisor.pid) == new).then_some(()));
            assert_eq!(serving(&supervisor), first);
        }
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        assert_ne!(serving(&supervisor), first);
        assert_eq!(standard(serving(&supervisor)), open);
        assert_eq!(supervisor.stop().failure(), (0, ""));
    }
}

// Its stdin is empty, as always, and what it writes has somewhere to go.
#[test]
fn a_check_has_descriptors_of_its_own_where_the_supervisor_has_none() {
    let check = "check:test -c /proc/$$/fd/0 -a -p /proc/$$/fd/1 -a -p /proc/$$/fd/2";
    let supervisor = without(&[0, 1, 2], &["--ready", check]);
    assert_eq!(supervisor.stop().failure(), (0, ""));
}

/// A probe by us of a state with this in it: how it ends.
fn probe(state: &str) -> (i32, String) {
    let folder = Folder::new();
    let mut file = fs::File::create_new(folder.path("state")).unwrap();
    file.write_all(state.replace("PID", &std::process::id().to_string()).as_bytes()).unwrap();
    file.rewind().unwrap();
    let readable = fs::File::open(folder.path("state")).unwrap();
    let line = ["--supervise", "--control", &folder.text("control"), "-l", "127.0.0.1:0", "--", "true"];
    let output = handoff_run_with(&line).env("HANDOFF_STATE", "probe:3").inherit(&readable, 3).output();
    (output.code(), output.stderr)
}

/// A state for a probe that has all descriptors, with these parts.
fn whole(sockets: &str, generations: &str, control: &str) -> String {
    format!(
        "{{\"pid\":PID,\"probe_has_descriptors\":true,\"sockets\":{{\"listeners\":[{sockets}],\"others\":[]}},\
         \"plan\":{{}},\"generations\":[{generations}],\"control\":{{{control}}}}}"
    )
}

#[test]
fn a_probe_refuses_a_state_whose_descriptors_are_not_there() {
    let lost = |part: &str| {
        let words = "handoff-run: cannot take over a part of the state:";
        let end = "handoff-run: cannot take over from another supervisor, as HANDOFF_STATE demands: a part of the state would be lost\n";
        (125, format!("{words} {part}\n{end}"))
    };
    assert_eq!(probe(&whole("", "", "")), (93, String::new()));
    let listener = whole("{\"fd\":77}", "", "");
    assert_eq!(probe(&listener), lost("descriptor 77 of a listener: EBADF: Bad file number"));
    let control = whole("", "", "\"server\":{\"fd\":77}");
    assert_eq!(probe(&control), lost("the control socket: EBADF: Bad file number"));
    let generation =
        "{\"id\":1,\"pid\":2,\"started\":{\"secs\":1,\"nanos\":0},\"descriptors\":[{\"role\":\"pidfd\",\"fd\":77}]}";
    assert_eq!(probe(&whole("", generation, "")), lost("a generation: EBADF: Bad file number"));
    // A first release gave its probe none.
    assert_eq!(probe(&listener.replace("true", "false")), (93, String::new()));
}

#[test]
fn a_probe_removes_no_file_however_it_ends() {
    let folder = Folder::new();
    let _listener = UnixListener::bind(folder.path("app.sock")).unwrap();
    let file = fs::metadata(folder.path("app.sock")).unwrap();
    let saved =
        format!("{{\"path\":\"{}\",\"device\":{},\"inode\":{}}}", folder.text("app.sock"), file.dev(), file.ino());
    // Descriptor 3 is the state's own; 0 is open as well.
    for lost in ["", ",{\"fd\":77}"] {
        let listeners = format!("{{\"fd\":0,\"file\":{saved}}}{lost}");
        let state = whole(&listeners, "", "");
        assert_eq!(probe(&state).0, if lost.is_empty() { 93 } else { 125 });
        // What keeps it is the one that takes over.
        assert!(folder.path("app.sock").exists());
    }
}

/// The program by a script, which waits for a gate before it runs as the probe.
fn script(folder: &Folder) -> String {
    let gate = folder.text("gate");
    format!("#!/bin/sh\nwhile test -e {gate}; do sleep 0.01; done\nexec {PROGRAM} \"$@\"\n")
}

#[test]
fn a_script_is_as_good_a_program() {
    let supervisor = supervise(Server::Directed, &[]);
    let program = supervisor.folder.path("program");
    install(&program, &fs::read(PROGRAM).unwrap());
    let supervisor = supervisor.by(Run::of(&program)).serving();
    install(&program, script(&supervisor.folder).as_bytes());
    supervisor.upgrade();
    assert_eq!(running(supervisor.pid), fs::metadata(PROGRAM).unwrap().ino());
    assert_eq!(supervisor.reload().failure(), (0, ""));
}

#[test]
fn what_is_installed_while_another_program_is_probed_is_not_executed() {
    let supervisor = supervise(Server::Directed, &[]);
    let program = supervisor.folder.path("program");
    install(&program, &fs::read(PROGRAM).unwrap());
    let supervisor = supervisor.by(Run::of(&program)).serving();
    supervisor.folder.open("gate");
    install(&program, script(&supervisor.folder).as_bytes());
    supervisor.signal(Signal::SIGUSR2);
    // It runs the script already, and not only from the next moment on.
    let runs = |pid: &Pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"/bin/sh\0"));
    wait_for("the probe", || children(supervisor.pid).iter().any(runs).then_some(()));
    install(&program, b"#!/bin/sh\nexit 9\n");
    fs::remove_file(supervisor.folder.path("gate")).unwrap();
    supervisor.wait_log("cannot take over, this supervisor goes on: cannot execute it: ESTALE");
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
}

#[test]
fn the_successor_has_the_name_of_its_program() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let name = || fs::read_to_string(format!("/proc/{}/comm", supervisor.pid)).unwrap();
    let before = name();
    supervisor.upgrade();
    assert_eq!(name(), before);
    assert!(supervisor.log().contains(log::UPGRADE));
}

/// Files of at most this many bytes.
fn limit_files(bytes: u64) -> impl FnMut() -> io::Result<()> + Send + Sync + 'static {
    move || setrlimit(Resource::RLIMIT_FSIZE, bytes, bytes).map_err(io::Error::from)
}

// SIGXFSZ would end the supervisor. The log is such a file, too.
#[test]
fn a_file_that_gets_too_large_ends_nothing() {
    let supervisor = supervise(Server::Script("echo >&9; exec sleep 100 9>&-"), &["--ready", "fd:9"]);
    let supervisor = supervisor.run(|run| run.before_exec(limit_files(700))).serving();
    supervisor.signal(Signal::SIGUSR2);
    supervisor.wait_log("goes on: cannot write the state: EFBIG: File too large");
    for _ in 0..4 {
        assert_eq!(supervisor.reload_and_wait().code(), 0);
    }
    assert_eq!(supervisor.log().len(), 700);
    let generation = serving(&supervisor);
    for pid in [supervisor.pid, generation] {
        let bits = u64::from_str_radix(&status_field(pid, "SigIgn"), 16).unwrap();
        let ignored = [Signal::SIGXFSZ, Signal::SIGTTOU].map(|signal| bits >> (signal as u32 - 1) & 1 == 1);
        assert_eq!(ignored, [pid == supervisor.pid; 2]);
    }
    assert_eq!(supervisor.stop().code(), 0);
}

// What was ignored at the start is it in each generation, of each supervisor.
#[test]
fn an_upgrade_knows_which_signals_were_ignored_at_the_start() {
    let ignore = || {
        // SAFETY: SIG_IGN is no handler.
        unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
        Ok(())
    };
    let supervisor = supervise(Server::Script("echo >&9; exec sleep 100 9>&-"), &["--ready", "fd:9"]);
    let supervisor = supervisor.run(|run| run.before_exec(ignore)).serving();
    let ignored = |pid| status_field(pid, "SigIgn");
    let before = (ignored(supervisor.pid), ignored(supervisor.generation(1)));
    for generation in [2, 3] {
        supervisor.upgrade();
        assert_eq!(supervisor.reload().failure(), (0, ""));
        assert_eq!((ignored(supervisor.pid), ignored(supervisor.generation(generation))), before);
    }
}
