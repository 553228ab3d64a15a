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

use crate::harness::control::{NOT_UNDERSTOOD, RELOAD, STATUS, SUCCESS};
use crate::harness::json::flat;
use crate::harness::process::{descriptors, exists, status_field, variable};
use crate::harness::{Folder, PROGRAM, Run, Server, Supervisor, handoff_run_with, supervise, wait_for};
use crate::load::Load;

/// What `--status --json` says, but for what changes by itself.
fn status(supervisor: &Supervisor) -> Vec<String> {
    let flat = flat(&supervisor.status(&["--json"])).into_iter().filter(|(key, _)| !key.ends_with(".age"));
    flat.map(|(key, value)| format!("{key}={value}")).collect()
}

/// The file that a process runs.
fn running(pid: Pid) -> u64 {
    fs::metadata(format!("/proc/{pid}/exe")).unwrap().ino()
}

fn resident(pid: Pid) -> u64 {
    status_field(pid, "VmRSS").trim_end_matches(" kB").parse().unwrap()
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
fn installed() -> Supervisor {
    let setup = supervise(Server::Directed, &[]);
    let program = setup.folder.path("program");
    install(&program, &fs::read(PROGRAM).unwrap());
    setup.by(Run::of(program)).serving()
}

#[test]
fn an_upgrade_keeps_pid_children_sockets_and_state() {
    let supervisor = supervise(Server::Directed, &["-l", "./unix", "--drain-timeout", "20s"]).serving();
    kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
    supervisor.wait_ready(2);
    let held = supervisor.hold();
    assert_eq!(supervisor.reload().failure(), (0, ""));
    supervisor.folder.let_fail(4);
    assert_eq!(supervisor.reload().code(), 1);
    supervisor.wait_gone(4);

    let (before, open) = (status(&supervisor), supervisor.descriptors(0));
    assert!(before.contains(&"restarts=1".to_owned()), "{before:?}");
    assert!(before.contains(&"generations.0.state='draining'".to_owned()), "{before:?}");
    supervisor.upgrade();
    assert_eq!(status(&supervisor), before);
    assert_eq!(supervisor.descriptors(0), open);
    assert_eq!(status_field(supervisor.generation(3), "PPid"), supervisor.pid.to_string());

    supervisor.wait_no_accept(2, 3);
    let (_, generation) = supervisor.hold();
    assert_eq!(generation, 3);
    drop(held);
    supervisor.wait_gone(2);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert_eq!(supervisor.states(), [(5, "serving".into())]);
    assert_eq!(supervisor.stop().failure(), (0, ""));
    assert!(!supervisor.folder.path("unix").exists());
}

#[test]
fn a_deadline_holds_across_an_upgrade() {
    let supervisor = supervise(Server::Directed, &["--drain-timeout", "1s"]).serving();
    let mut held = supervisor.hold();
    let reload = supervisor.command("--reload", &["--wait"]).start();
    supervisor.wait_log("generation 1: draining, 1 connection");
    supervisor.upgrade();
    // It is killed with the connection open.
    assert_eq!(held.0.rest().unwrap_or_default(), b"");
    supervisor.wait_log("generation 1: has not drained in time and is killed");
    assert_eq!(reload.output().failure(), (0, ""));
}

#[test]
fn a_generation_gets_ready_across_upgrades_and_its_client_is_told() {
    for options in
        [vec![], vec!["--ready", "fd:9", "--env", "TELLS=9"], vec!["--ready", "check:test ! -e $FOLDER/gate"]]
    {
        let supervisor = supervise(Server::Directed, &options).serving();
        let held = supervisor.hold();
        supervisor.folder.close_gate();
        let reload = supervisor.command("--reload", &["--wait"]).start();
        supervisor.generation(2);
        supervisor.upgrade();
        assert_eq!(supervisor.states()[1], (2, "starting".into()), "{options:?}");
        supervisor.upgrade();
        supervisor.folder.open_gate();
        supervisor.wait_log("generation 1: draining, 1 connection");
        supervisor.upgrade();
        drop(held);
        assert_eq!(reload.output().failure(), (0, ""), "{options:?}");
        assert_eq!(supervisor.states(), [(2, "serving".into())]);
    }
}

#[test]
fn a_reload_that_fails_after_an_upgrade_fails_for_its_client() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    supervisor.folder.close_gate();
    let (reload, queued) = (supervisor.command("--reload", &[]).start(), supervisor.request(RELOAD));
    supervisor.generation(2);
    supervisor.upgrade();
    supervisor.folder.let_fail(2);
    supervisor.folder.open_gate();
    // Whichever of the two came first.
    let mut told = String::new();
    (&queued).read_to_string(&mut told).unwrap();
    let statuses =
        [reload.output().code().to_string(), told.lines().last().unwrap().replace("{\"exit\":", "").replace('}', "")];
    assert!(statuses == ["1", "0"] || statuses == ["0", "1"], "{statuses:?}");
    supervisor.wait_ready(3);
}

#[test]
fn a_request_that_was_half_said_is_heard_to_its_end() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let (mut client, mut garbage) = (supervisor.request(&STATUS[..9]), supervisor.control());
    // Half a character.
    garbage.write_all(b"\xc3").unwrap();
    // Both are accepted and read: they came before whoever asks for the table.
    supervisor.table();
    let before = supervisor.descriptors(2);
    supervisor.upgrade();
    assert_eq!(supervisor.descriptors(2), before);
    client.write_all(&STATUS.as_bytes()[9..]).unwrap();
    garbage.write_all(b"\xa9\n").unwrap();
    let mut told = [String::new(), String::new()];
    client.read_to_string(&mut told[0]).unwrap();
    garbage.read_to_string(&mut told[1]).unwrap();
    assert!(told[0].trim_end().ends_with(SUCCESS), "{told:?}");
    assert_eq!(told[1].lines().collect::<Vec<_>>(), NOT_UNDERSTOOD);
}

#[test]
fn fifty_upgrades_under_load_cost_no_request_and_no_descriptor() {
    let supervisor = supervise(Server::Hello, &[]).serving();
    supervisor.upgrade();
    let (open, memory) = (supervisor.descriptors(0), resident(supervisor.pid));
    let done = AtomicBool::new(false);
    let load = Load {
        duration: Duration::from_secs(60),
        requests: u64::MAX,
        ..Load::on(supervisor.address().parse().unwrap())
    };
    let report = thread::scope(|scope| {
        let load = scope.spawn(|| load.run(&done));
        for round in 0..50 {
            if round % 10 == 5 {
                assert_eq!(supervisor.reload().failure(), (0, ""));
            }
            supervisor.upgrade();
        }
        done.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    assert!(report.ok > 100 && report.failed() == 0, "{report:?}");
    assert_eq!(report.by_body.len(), 6, "{:?}", report.by_body);
    supervisor.wait_gone(5);
    // The pipe and the notify socket are the new generation's own.
    assert_eq!(supervisor.descriptors(0).len(), open.len());
    let grown = resident(supervisor.pid).saturating_sub(memory);
    assert!(grown < 1024, "grown by {grown} KiB");
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
    let before = (status(&supervisor), supervisor.descriptors(0));
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
    assert_eq!((status(&supervisor), supervisor.descriptors(0)), before);
    assert_eq!(supervisor.log().matches("cannot take over").count(), 7);
    // And a good one is welcome again.
    install(&program, &good);
    supervisor.upgrade();
    assert_eq!(status(&supervisor), before.0);
}

/// Ask for an upgrade to a program that never reads the state, and give its pid.
fn hang(supervisor: &Supervisor) -> Pid {
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

#[test]
fn two_upgrades_at_once_are_one_or_two_and_no_more_trouble() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    supervisor.signal(Signal::SIGUSR2);
    supervisor.signal(Signal::SIGUSR2);
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_ready(2);
    supervisor.upgrade();
    assert_eq!(supervisor.states(), [(2, "serving".into())]);
}

#[test]
fn a_stop_goes_on_after_an_upgrade_and_its_client_is_told() {
    let mut supervisor = supervise(Server::Directed, &[]).serving();
    let held = supervisor.hold();
    let stop = supervisor.command("--stop", &[]).start();
    supervisor.wait_draining(1);
    supervisor.upgrade();
    assert!(status(&supervisor).contains(&"stopping=True".to_owned()));
    assert_eq!(supervisor.reload().code(), 125);
    drop(held);
    assert_eq!(stop.output().failure(), (0, ""));
    assert_eq!(supervisor.end().0, 0);
}

#[test]
fn the_state_reaches_no_generation() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    supervisor.upgrade();
    assert_eq!(supervisor.reload().failure(), (0, ""));
    assert_eq!(variable(supervisor.generation(2), "HANDOFF_STATE"), None);
    // The server's own: three standard ones, the listener, and its pipe and what the test program opens.
    let (first, second) = (descriptors(supervisor.generation(1)), descriptors(supervisor.generation(2)));
    assert!(second.iter().all(|(_, link)| !link.contains("memfd")), "{first:?} {second:?}");
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
    for word in ["take", "probe"] {
        let here = format!("{word}:3");
        for no_state in ["", "handoff-run state 0\n", "[]", "{}", "{\"pid\":-1e9}"] {
            let (status, message) = stranger(&here, no_state);
            assert_eq!(status, 125);
            assert!(message.contains("demands: the predecessor's state makes no sense: "), "{message}");
        }
        let (status, message) = stranger(&here, "{\"pid\":0}");
        assert_eq!(status, 125);
        assert!(message.contains("the state is of process 0, not of "), "{message}");
        let refusal = refused("the predecessor's state needs slots, which this version does not understand");
        assert_eq!(stranger(&here, "{\"pid\":0,\"needs\":[\"slots\"]}"), refusal);
        assert_eq!(stranger(&format!("{word}:77"), ""), refused("descriptor 77 is not open"));
    }
    assert_eq!(stranger("", ""), refused("no mode"));
    assert_eq!(stranger("steal:3", ""), refused("steal is no mode"));
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
if os.fork() == 0:
    def asked(*_): os.write(log, b'asked\\n')
    signal.signal(signal.SIGTERM, asked)
    log = os.open(path('asked'), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    wait_for('over')
    os._exit(0)
wait_for('asked')
select.select([3], [], [])";
    let mut supervisor = supervise(Server::Python(script), &[]).serving();
    let stop = supervisor.command("--stop", &[]).start();
    let asked = || fs::read_to_string(supervisor.folder.path("asked")).unwrap();
    wait_for("the rest to be asked", || (asked() == "asked\n").then_some(()));
    supervisor.upgrade();
    supervisor.upgrade();
    assert_eq!(asked(), "asked\n");
    supervisor.folder.open("over");
    assert_eq!(stop.output().failure(), (0, ""));
    assert_eq!(supervisor.end().0, 0);
}
