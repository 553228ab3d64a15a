//! SIGUSR2: the supervisor becomes the program at its own path, and nothing that it does is interrupted.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Folder, PROGRAM, Run, handoff_run, handoff_run_with, skip, wait_for};
use crate::load::Load;
use crate::stage::{Stage, descriptors, flat_json, hello, server};

/// Replace the supervisor and wait until its successor answers.
#[track_caller]
fn upgrade(stage: &Stage) {
    let before = stage.log().matches("becoming ").count();
    stage.signal(Signal::SIGUSR2);
    stage.await_log_times(before + 1, "becoming ");
    stage.table();
}

/// What `--status --json` says, but for what changes by itself.
fn status(stage: &Stage) -> Vec<String> {
    let output = stage.ask("--status", &["--json"]).output();
    assert_eq!(output.failure(), (0, ""));
    let flat = flat_json(&output.stdout).into_iter().filter(|(key, _)| !key.ends_with(".age"));
    flat.map(|(key, value)| format!("{key}={value}")).collect()
}

/// The file that a process runs.
fn running(pid: Pid) -> u64 {
    fs::metadata(format!("/proc/{pid}/exe")).unwrap().ino()
}

fn resident(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Put a program at a path in one step, as an installer does.
fn install(path: &Path, content: &[u8]) {
    let (source, beside) = (path.with_extension("source"), path.with_extension("new"));
    fs::write(&source, content).unwrap();
    // By a process of its own: a fork of another test must not have the program open for writing when it is to run.
    let output = Run::of("install").args(&["-m", "755"]).args(&[&source, &beside]).output();
    assert_eq!(output.failure(), (0, ""));
    fs::remove_file(source).unwrap();
    fs::rename(beside, path).unwrap();
}

/// A supervisor that runs from a copy of the program in its folder.
fn installed() -> Stage {
    let folder = Folder::new();
    let program = folder.path("program");
    install(&program, &fs::read(PROGRAM).unwrap());
    let stage = Stage::on(folder, Run::of(program), &[], &server());
    stage.await_log("generation 1: ready");
    stage
}

#[test]
fn an_upgrade_keeps_pid_children_sockets_and_state() {
    let folder = Folder::new();
    let unix = folder.text("unix");
    let stage = Stage::on(folder, handoff_run(), &["-l", &unix, "--drain-timeout", "20s"], &server());
    stage.await_log("generation 1: ready");
    kill(stage.pid_of(1), Signal::SIGKILL).unwrap();
    stage.await_log("generation 2: ready");
    let held = stage.hold();
    assert_eq!(stage.ask("--reload", &[]).output().failure(), (0, ""));
    stage.put("fail-4");
    assert_eq!(stage.ask("--reload", &[]).output().code(), 1);
    stage.await_log("generation 4: gone");

    let (before, open) = (status(&stage), stage.descriptors(0));
    assert!(before.contains(&"restarts=1".to_owned()), "{before:?}");
    assert!(before.contains(&"generations.0.state='draining'".to_owned()), "{before:?}");
    upgrade(&stage);
    assert_eq!(status(&stage), before);
    assert_eq!(stage.descriptors(0), open);
    let parent = fs::read_to_string(format!("/proc/{}/status", stage.pid_of(3))).unwrap();
    assert!(parent.contains(&format!("\nPPid:\t{}\n", stage.pid)), "{parent}");

    stage.await_no_accept(2, 3);
    let (_, generation) = stage.hold();
    assert_eq!(generation, 3);
    drop(held);
    stage.await_log("generation 2: gone");
    assert_eq!(stage.ask("--reload", &["--wait"]).output().failure(), (0, ""));
    assert_eq!(stage.states(), [(5, "serving".into())]);
    assert_eq!(stage.ask("--stop", &[]).output().failure(), (0, ""));
    assert!(!Path::new(&unix).exists());
}

#[test]
fn a_deadline_holds_across_an_upgrade() {
    let stage = Stage::new(&["--drain-timeout", "1s"]);
    let mut held = stage.hold();
    let reload = stage.ask("--reload", &["--wait"]).start();
    stage.await_log("generation 1: draining, 1 connection");
    upgrade(&stage);
    // It is killed with the connection open.
    assert_eq!(held.0.read(&mut [0]).unwrap_or(0), 0);
    stage.await_log("generation 1: has not drained in time and is killed");
    assert_eq!(reload.output().failure(), (0, ""));
}

#[test]
fn a_generation_gets_ready_across_upgrades_and_its_client_is_told() {
    for options in [vec![], vec!["--ready", "fd:9", "--env", "TELLS=9"], vec!["--ready", "check:test ! -e $STAGE/gate"]]
    {
        let stage = Stage::new(&options);
        let held = stage.hold();
        stage.close_gate();
        let reload = stage.ask("--reload", &["--wait"]).start();
        stage.await_log("generation 2: started");
        upgrade(&stage);
        assert_eq!(stage.states()[1], (2, "starting".into()), "{options:?}");
        upgrade(&stage);
        stage.open_gate();
        stage.await_log("generation 1: draining, 1 connection");
        upgrade(&stage);
        drop(held);
        assert_eq!(reload.output().failure(), (0, ""), "{options:?}");
        assert_eq!(stage.states(), [(2, "serving".into())]);
    }
}

#[test]
fn a_reload_that_fails_after_an_upgrade_fails_for_its_client() {
    let stage = Stage::new(&[]);
    stage.close_gate();
    let (reload, queued) = (stage.ask("--reload", &[]).start(), stage.request("reload\n"));
    stage.await_log("generation 2: started");
    upgrade(&stage);
    stage.put("fail-2");
    stage.open_gate();
    // Whichever of the two came first.
    let mut told = String::new();
    (&queued).read_to_string(&mut told).unwrap();
    let statuses = [reload.output().code().to_string(), told.lines().last().unwrap().replace("exit ", "")];
    assert!(statuses == ["1", "0"] || statuses == ["0", "1"], "{statuses:?}");
    stage.await_log("generation 3: ready");
}

#[test]
fn a_request_that_was_half_said_is_heard_to_its_end() {
    let stage = Stage::new(&[]);
    let (mut client, mut garbage) = (stage.request("stat"), stage.connect());
    // Half a character.
    garbage.write_all(b"\xc3").unwrap();
    // Both are accepted and read: they came before whoever asks for the table.
    stage.table();
    let before = stage.descriptors(2);
    upgrade(&stage);
    assert_eq!(stage.descriptors(2), before);
    client.write_all(b"us\n").unwrap();
    garbage.write_all(b"\xa9\n").unwrap();
    let mut told = [String::new(), String::new()];
    client.read_to_string(&mut told[0]).unwrap();
    garbage.read_to_string(&mut told[1]).unwrap();
    assert!(told[0].ends_with("exit 0\n"), "{told:?}");
    assert_eq!(told[1], "error the supervisor does not understand the request\nexit 125\n");
}

#[test]
fn fifty_upgrades_under_load_cost_no_request_and_no_descriptor() {
    let server = hello();
    if !Path::new(&server[0]).exists() {
        return skip("the example server is not built: run all of cargo test");
    }
    let stage = Stage::on(Folder::new(), handoff_run(), &[], &server);
    stage.await_log("generation 1: ready");
    upgrade(&stage);
    let (open, memory) = (stage.descriptors(0), resident(stage.pid));
    let done = AtomicBool::new(false);
    let load = Load { duration: Duration::from_secs(60), requests: u64::MAX, ..Load::on(stage.address()) };
    let report = thread::scope(|scope| {
        let load = scope.spawn(|| load.run(&done));
        for round in 0..50 {
            if round % 10 == 5 {
                assert_eq!(stage.ask("--reload", &[]).output().failure(), (0, ""));
            }
            upgrade(&stage);
        }
        done.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    assert!(report.ok > 100 && report.failed() == 0, "{report:?}");
    assert_eq!(report.by_body.len(), 6, "{:?}", report.by_body);
    stage.await_log("generation 5: gone");
    // The pipe and the notify socket are the new generation's own.
    assert_eq!(stage.descriptors(0).len(), open.len());
    let grown = resident(stage.pid).saturating_sub(memory);
    assert!(grown < 1024, "grown by {grown} KiB");
}

#[test]
fn the_program_at_the_path_is_what_runs_however_it_got_there() {
    let stage = installed();
    let program = stage.folder.path("program");
    let first = running(stage.pid);
    install(&program, &fs::read(PROGRAM).unwrap());
    assert_ne!(fs::metadata(&program).unwrap().ino(), first);
    upgrade(&stage);
    assert_eq!(running(stage.pid), fs::metadata(&program).unwrap().ino());
    // Once more, by the successor, to which the file at its start was the second.
    install(&program, &fs::read(PROGRAM).unwrap());
    upgrade(&stage);
    assert_eq!(running(stage.pid), fs::metadata(&program).unwrap().ino());
}

#[test]
fn a_symlink_leads_to_its_new_target() {
    let folder = Folder::new();
    for release in ["one", "two"] {
        install(&folder.path(release), &fs::read(PROGRAM).unwrap());
    }
    let current = folder.path("current");
    symlink("one", &current).unwrap();
    let stage = Stage::on(folder, Run::of(&current), &[], &server());
    stage.await_log("generation 1: ready");
    symlink("two", stage.folder.path("next")).unwrap();
    fs::rename(stage.folder.path("next"), &current).unwrap();
    upgrade(&stage);
    assert_eq!(running(stage.pid), fs::metadata(stage.folder.path("two")).unwrap().ino());
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
    let stage = installed();
    let program = stage.folder.path("program");
    let before = (status(&stage), stage.descriptors(0));
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
        stage.signal(Signal::SIGUSR2);
        stage.await_log_times(count, "cannot take over");
        let line = format!("handoff-run: {} cannot take over, this supervisor goes on: {why}", program.display());
        assert_eq!(stage.log().lines().last().unwrap(), line);
    }
    fs::remove_file(&program).unwrap();
    stage.signal(Signal::SIGUSR2);
    stage.await_log_times(7, "cannot take over");
    assert_eq!((status(&stage), stage.descriptors(0)), before);
    assert_eq!(stage.log().matches("cannot take over").count(), 7);
    // And a good one is welcome again.
    install(&program, &good);
    upgrade(&stage);
    assert_eq!(status(&stage), before.0);
}

/// Ask for an upgrade to a program that never reads the state, and give its pid.
fn hang(stage: &Stage) -> Pid {
    let note = stage.folder.path("sleeper");
    let script = format!("#!/bin/sh\necho $$ >{}\nexec sleep 100\n", note.display());
    install(&stage.folder.path("program"), script.as_bytes());
    stage.signal(Signal::SIGUSR2);
    let written = || fs::read_to_string(&note).ok()?.strip_suffix('\n')?.parse().ok();
    Pid::from_raw(wait_for("the sleeper", written))
}

#[test]
fn a_program_that_hangs_is_given_up_and_nothing_waits_for_it() {
    let stage = installed();
    let sleeper = hang(&stage);
    stage.signal(Signal::SIGUSR2);
    stage.await_log("the new supervisor is being checked already");
    assert_eq!(stage.ask("--reload", &["--wait"]).output().failure(), (0, ""));
    stage.await_log("cannot take over, this supervisor goes on: it did not read the state in time");
    assert!(kill(sleeper, None).is_err());
    assert_eq!(stage.states(), [(2, "serving".into())]);
}

#[test]
fn a_supervisor_that_ends_leaves_no_program_that_hangs() {
    let mut stage = installed();
    let sleeper = hang(&stage);
    assert_eq!(stage.ask("--stop", &[]).output().failure(), (0, ""));
    assert_eq!(stage.end(), 0);
    assert!(kill(sleeper, None).is_err());
}

#[test]
fn two_upgrades_at_once_are_one_or_two_and_no_more_trouble() {
    let stage = Stage::new(&[]);
    stage.signal(Signal::SIGUSR2);
    stage.signal(Signal::SIGUSR2);
    stage.signal(Signal::SIGHUP);
    stage.await_log("generation 2: ready");
    upgrade(&stage);
    assert_eq!(stage.states(), [(2, "serving".into())]);
}

#[test]
fn a_stop_goes_on_after_an_upgrade_and_its_client_is_told() {
    let mut stage = Stage::new(&[]);
    let held = stage.hold();
    let stop = stage.ask("--stop", &[]).start();
    stage.await_log("generation 1: draining");
    upgrade(&stage);
    assert!(status(&stage).contains(&"stopping=True".to_owned()));
    assert_eq!(stage.ask("--reload", &[]).output().code(), 125);
    drop(held);
    assert_eq!(stop.output().failure(), (0, ""));
    assert_eq!(stage.end(), 0);
}

#[test]
fn the_state_reaches_no_generation() {
    let stage = Stage::new(&[]);
    upgrade(&stage);
    assert_eq!(stage.ask("--reload", &[]).output().failure(), (0, ""));
    let environment = fs::read(format!("/proc/{}/environ", stage.pid_of(2))).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("HANDOFF_STATE"));
    // The server's own: three standard ones, the listener, and its pipe and what the test program opens.
    let (first, second) = (descriptors(stage.pid_of(1)), descriptors(stage.pid_of(2)));
    assert!(second.iter().all(|link| !link.contains("memfd")), "{first:?} {second:?}");
}

/// A fresh start with this in HANDOFF_STATE and `text` at descriptor 3.
fn stranger(value: &str, text: &str) -> (i32, String) {
    let folder = Folder::new();
    let mut file = File::create_new(folder.path("state")).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    let readable = File::open(folder.path("state")).unwrap();
    let socket = folder.text("socket");
    let run = handoff_run_with(&["--supervise", "-l", &socket, "--", "true"]);
    let output = run.env("HANDOFF_STATE", value).inherit(&readable, 3).output();
    assert_eq!(folder.names(), ["state"]);
    (output.code(), output.stderr)
}

#[test]
fn a_state_that_is_not_ours_is_refused() {
    let refused = |why: &str| {
        (125, format!("handoff-run: cannot take over from another supervisor, as HANDOFF_STATE demands: {why}\n"))
    };
    for word in ["take", "check"] {
        let here = format!("{word}:3");
        assert_eq!(stranger(&here, "handoff-run state 0\n"), refused("the state is of another version"));
        assert_eq!(stranger(&here, ""), refused("the state is of another version"));
        let (status, message) = stranger(&here, "handoff-run state 1\n");
        assert_eq!(status, 125);
        assert!(message.contains("the state is of process 0, not of "), "{message}");
        assert_eq!(stranger(&format!("{word}:77"), ""), refused("descriptor 77 is not open"));
    }
    assert_eq!(stranger("", ""), refused("no errand"));
    assert_eq!(stranger("steal:3", ""), refused("steal is no errand"));
    assert_eq!(stranger("take:x", ""), refused("no descriptor: invalid digit found in string"));
}

// Without --supervise the variable means nothing, and is not handed on.
#[test]
fn a_state_means_nothing_to_who_does_not_supervise() {
    let report = handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--"]).env("HANDOFF_STATE", "take:3").report();
    assert_eq!(report.get("HANDOFF_STATE"), None);
    assert_eq!(&report["LISTEN_FDS"], "1");
}

/// What is left when the main process has ended was told to stop once, and the upgrade does not tell it again.
#[test]
fn nobody_is_told_to_stop_twice_by_an_upgrade() {
    let script = "
import os, select, signal
path = os.environ['STAGE']
if os.fork() == 0:
    def told(*_): os.write(log, b'told\\n')
    signal.signal(signal.SIGTERM, told)
    log = os.open(path + '/told', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while not os.path.exists(path + '/over'): signal.sigtimedwait([], 0.01)
    os._exit(0)
while not os.path.exists(path + '/told'): pass
select.select([3], [], [])";
    let server = ["python3", "-c", script].map(Into::into);
    let mut stage = Stage::on(Folder::new(), handoff_run(), &[], &server);
    stage.await_log("generation 1: ready");
    let stop = stage.ask("--stop", &[]).start();
    let told = || fs::read_to_string(stage.folder.path("told")).unwrap();
    wait_for("the rest to be told", || (told() == "told\n").then_some(()));
    upgrade(&stage);
    upgrade(&stage);
    assert_eq!(told(), "told\n");
    stage.put("over");
    assert_eq!(stop.output().failure(), (0, ""));
    assert_eq!(stage.end(), 0);
}
