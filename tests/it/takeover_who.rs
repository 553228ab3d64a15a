//! Whom `--from` means: what is refused, and that nobody is stopped or copied from who was not meant.

use std::fs;
use std::os::unix::fs::{chown, symlink};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::utimes;
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{Gid, Uid, setgid, setuid};

use crate::harness::by_hand::{by_hand, by_hand_at, by_hand_with, succeed};
use crate::harness::client::ask;
use crate::harness::filter::{Answer, deny};
use crate::harness::process::children;
use crate::harness::run::copy_for_everybody;
use crate::harness::{Folder, PROGRAM, Run, Server, handoff_run_with, is_root_to, supervise, wait_for};

const SERVE: &str = "serve()";
const SUCCESSOR: Server = Server::Python(SERVE);
const SOMEBODY: u32 = 65_432;

/// `--from WHO` at this address fails, with this on stderr.
#[track_caller]
fn assert_refused(address: &str, who: &str, expected: &str) {
    let output = handoff_run_with(&["-l", address, "--from", who, "--", "true"]).output();
    assert_eq!(output.failure(), (125, expected), "--from {who}");
}

// handoff-run(1), TAKEOVER: "the topmost process that has the sockets: a master, not its workers".
#[test]
fn the_master_is_retired_whichever_of_its_processes_is_named() {
    for named in ["worker", "master"] {
        let old = by_hand("if os.fork() == 0: serve()\nsignal.pause()");
        let worker = wait_for("its worker", || children(old.pid()).first().copied());
        let who = if named == "worker" { worker } else { old.pid() };
        let new = old.succeed(&who.to_string(), &[], SUCCESSOR);
        old.wait_end();
        new.wait_serving(&old.address);
        wait_for("its worker to end", || (!crate::harness::process::exists(worker)).then_some(()));
    }
}

#[test]
fn a_process_without_the_socket_is_refused_and_the_one_that_has_it_is_named() {
    let old = by_hand(SERVE);
    let other = Run::of("sleep").args(&["100"]).start();
    let pid = old.pid();
    let expected = format!(
        "handoff-run: cannot take over from pid {} (sleep): it has no socket at that address\n\
         handoff-run: pid {pid} (python3) has one: --from {pid}\n",
        other.pid()
    );
    wait_for("the other to run", || (crate::harness::process::name(other.pid()) == "sleep").then_some(()));
    assert_refused(&old.address, &other.pid().to_string(), &expected);
    assert!(!other.has_ended());
    old.assert_untouched();
}

// What is in the way of the wildcard address need not be what is asked for.
#[test]
fn of_a_process_that_listens_elsewhere_the_address_is_named() {
    let old = by_hand(SERVE);
    let (pid, address) = (old.pid(), &old.address);
    let port = address.rsplit_once(':').unwrap().1;
    for wanted in [format!(":{port}"), format!("0.0.0.0:{port}")] {
        let output = handoff_run_with(&["-l", &wanted, "--from", "auto", "--", "true"]).output();
        assert_eq!(output.code(), 125);
        let remedy = format!("; it listens on {address}: --listen {address} --from {pid} takes that over\n");
        assert!(output.stderr.ends_with(&remedy), "{output:?}");
        let expected = format!(
            "handoff-run: cannot take over from pid {pid} (python3): it has no socket at that address\n\
             handoff-run: it listens on {address}: --listen {address}\n"
        );
        assert_refused(&wanted, &pid.to_string(), &expected);
    }
    old.assert_untouched();
}

// A shell that waits for the server, as npm does.
#[test]
fn of_a_wrapper_the_child_is_named_that_has_the_socket() {
    let folder = Folder::new();
    let old = by_hand(SERVE);
    let file =
        crate::harness::python::write(&folder, "s = opened()\nmark('address', str(s.getsockname()[1]))\nserve()");
    let run = Run::of("sh")
        .args(&["-c", &format!("{} -IS {}; :", crate::harness::python::python().display(), file.display())]);
    let run = run.env("GENERATION", "0").env("FOLDER", folder.path("")).env("ADDRESS", "127.0.0.1:0").env("SOCKET", "");
    let wrapper = run.start();
    let address = format!("127.0.0.1:{}", folder.read("address"));
    let child = children(wrapper.pid())[0];
    let expected = format!(
        "handoff-run: cannot take over from pid {} (sh): it has no socket at that address\n\
         handoff-run: pid {child} (python3) has one: --from {child}\n",
        wrapper.pid()
    );
    assert_refused(&address, &wrapper.pid().to_string(), &expected);
    let new = succeed(Run::of(PROGRAM), &address, &child.to_string(), &[], SUCCESSOR);
    new.wait_serving(&address);
    old.assert_untouched();
}

#[test]
fn of_two_that_have_the_address_both_are_named_and_one_can_be_chosen() {
    let code = "if os.fork() == 0:\n    if os.fork() == 0:\n        os.setsid(); mark('second', str(os.getpid())); serve()\n    os._exit(0)
os.wait()\nwait_for('second')\nserve()";
    let old = by_hand(code);
    let second: i32 = old.folder.read("second").parse().unwrap();
    let pid = old.pid();
    let output = handoff_run_with(&["-l", &old.address, "--from", "auto", "--", "true"]).output();
    assert_eq!(output.code(), 125);
    let first = output.stderr.lines().next().unwrap();
    assert!(
        first.starts_with("handoff-run: cannot take over by --from auto: pid ") && first.ends_with(" have the address")
    );
    assert!(
        first.contains(&format!("pid {pid} (python3)")) && first.contains(&format!("pid {second} (python3)")),
        "{first}"
    );
    let second = nix::unistd::Pid::from_raw(second);
    let new = old.succeed(&pid.to_string(), &[], SUCCESSOR);
    old.wait_end();
    new.wait_alone();
    assert!(crate::harness::process::exists(second), "it is left as it is");
    kill(second, Signal::SIGKILL).unwrap();
    new.wait_serving(&old.address);
}

// handoff-run(1), TAKEOVER: "From process 1, a service manager, or a process that started handoff-run".
#[test]
fn from_a_process_that_started_us_sockets_are_copied_and_it_is_not_retired() {
    let (listener, address) = crate::harness::socket::tcp();
    let new = succeed(Run::of(PROGRAM), &address, &std::process::id().to_string(), &[], SUCCESSOR);
    wait_for("the program to serve", || ask(&address).ok());
    assert_eq!(new.watcher(), None);
    assert!(new.log().contains("is not asked to stop"), "{}", new.log());
    let output = handoff_run_with(&["-l", &address, "--from", "auto", "--", "true"]).output();
    // The program has it, too, and is somebody who can be retired.
    assert_eq!(output.code(), 0, "{}", output.stderr);
    drop(new);
    wait_for("the program to end", || {
        let output = handoff_run_with(&["-l", &address, "--from", "auto", "--", "true"]).output();
        output.stderr.contains("has the socket, which is not retired").then_some(())
    });
    drop(listener);
}

// handoff-run(1), --from: a pid file.
#[test]
fn a_pid_file_names_the_process_that_it_was_written_for() {
    let old = by_hand(SERVE);
    let folder = Folder::new();
    folder.write("pid", &format!("{}\n", old.pid()));
    symlink("pid", folder.path("link")).unwrap();
    let new = old.succeed(&folder.text("link"), &["--pid-file", &folder.text("link")], SUCCESSOR);
    old.wait_end();
    new.wait_serving(&old.address);
    new.wait_alone();
    assert_eq!(folder.read("pid"), format!("{}\n", new.pid()));
}

#[test]
fn a_pid_file_that_is_older_than_the_process_names_nobody() {
    let old = by_hand(SERVE);
    let folder = Folder::new();
    folder.write("pid", &format!("{}\n", old.pid()));
    let long_ago = TimeVal::seconds(1_000_000_000);
    utimes(&folder.path("pid"), &long_ago, &long_ago).unwrap();
    let output = handoff_run_with(&["-l", &old.address, "--from", &folder.text("pid"), "--", "true"]).output();
    let pid = old.pid();
    let path = folder.text("pid");
    assert_eq!(output.code(), 125);
    let first = format!(
        "handoff-run: {path}: pid {pid} is another process' by now, which the file is older than; if only the clock was set \
         since, name it by --from {pid}\n"
    );
    assert!(output.stderr.starts_with(&first), "{}", output.stderr);
    assert!(output.stderr.contains("EADDRINUSE"), "{}", output.stderr);
    old.assert_untouched();
}

#[test]
fn what_is_no_pid_file_is_refused() {
    let old = by_hand(SERVE);
    let folder = Folder::new();
    folder.write("words", "one two\n");
    folder.write("negative", "-1\n");
    folder.write("zero", "0\n");
    fs::create_dir(folder.path("folder")).unwrap();
    for (name, why) in [
        ("words", "it is no pid file: there is more in it than a process id"),
        ("negative", "it is no pid file: there is more in it than a process id"),
        ("zero", "it is no pid file: there is more in it than a process id"),
        ("folder", "EISDIR: Is a directory"),
    ] {
        let path = folder.text(name);
        assert_refused(&old.address, &path, &format!("handoff-run: cannot take over by --from {path}: {why}\n"));
    }
    assert_refused(
        &old.address,
        "/dev/null",
        "handoff-run: cannot take over by --from /dev/null: it is not a regular file\n",
    );
    old.assert_untouched();
}

// Whoever may write the file could have any process of ours stopped.
#[test]
fn the_pid_file_of_another_user_may_name_only_processes_of_that_user() {
    if !is_root_to("give a file to another user") {
        return;
    }
    let old = by_hand(SERVE);
    let folder = Folder::new();
    folder.write("pid", &format!("{}\n", old.pid()));
    chown(folder.path("pid"), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    let path = folder.text("pid");
    let why = format!("it is a file of user {SOMEBODY}, who may not name pid {} (python3)", old.pid());
    assert_refused(&old.address, &path, &format!("handoff-run: cannot take over by --from {path}: {why}\n"));
    // Nor by a link to a file of ours.
    folder.write("ours", &format!("{}\n", old.pid()));
    symlink("ours", folder.path("link")).unwrap();
    std::os::unix::fs::lchown(folder.path("link"), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    let path = folder.text("link");
    let why = "it is another user's symbolic link to what is not that user's";
    assert_refused(&old.address, &path, &format!("handoff-run: cannot take over by --from {path}: {why}\n"));
    old.assert_untouched();
}

/// Be somebody else.
fn as_somebody() -> std::io::Result<()> {
    setgid(Gid::from_raw(SOMEBODY))?;
    Ok(setuid(Uid::from_raw(SOMEBODY))?)
}

// The name by which a takeover is claimed can be bound by anybody.
#[test]
fn nobody_else_can_keep_a_process_from_being_succeeded() {
    if !is_root_to("be somebody else") {
        return;
    }
    for how in ["bound", "full", "listening"] {
        let old = by_hand(SERVE);
        let started = &crate::harness::process::stat(old.pid()).unwrap()[19];
        let name = format!("handoff-run/from/{}/{started}", old.pid());
        let code = "
import socket, sys, time
name, how = '\\0' + sys.argv[1], sys.argv[2]
s = socket.socket(socket.AF_UNIX)
s.bind(name)
clients = []
if how != 'bound': s.listen(0 if how == 'full' else 9)
while how == 'full':
    clients.append(socket.socket(socket.AF_UNIX))
    clients[-1].setblocking(False)
    try: clients[-1].connect(name)
    except BlockingIOError: break
print('up', flush=True)
time.sleep(100)";
        let stranger = Run::of("python3").args(&["-c", code, &name, how]).current_dir("/").before_exec(as_somebody);
        let mut stranger = stranger.stdout(std::process::Stdio::piped()).start();
        assert_eq!(stranger.line(), "up");
        let new = old.succeed("auto", &[], SUCCESSOR);
        old.wait_end();
        new.wait_serving(&old.address);
        let warning =
            format!("of user {SOMEBODY} claims to take over from pid {} (python3), which is not believed", old.pid());
        assert!(new.log().contains(&warning), "{how}: {}", new.log());
    }
}

// handoff-run(1), TAKEOVER: "as the user of that process".
#[test]
fn root_joins_the_socket_of_another_user_as_that_user() {
    if !is_root_to("open a socket as another user") {
        return;
    }
    // A socket is of the user who asked for it, whatever its process becomes.
    let code = "os.seteuid(65432); s = opened(); os.seteuid(0)\nserve()";
    let old = by_hand_with("127.0.0.1:0", code, |run| run);
    let new = old.succeed("auto", &[], SUCCESSOR);
    old.wait_end();
    new.wait_serving(&old.address);
    assert!(!new.log().contains("shared"), "{}", new.log());
}

#[test]
fn another_user_is_told_what_that_needs() {
    if !is_root_to("run it as another user") {
        return;
    }
    let old = by_hand(SERVE);
    let folder = Folder::new();
    let program = copy_for_everybody(&folder);
    let run = |who: &str| {
        let run = Run::of(&program).args(&["-l", &old.address, "--from", who, "--", "true"]).current_dir("/");
        run.before_exec(as_somebody).output()
    };
    let pid = old.pid();
    for who in [pid.to_string().as_str(), "auto"] {
        let output = run(who);
        assert_eq!(output.code(), 125, "{}", output.stderr);
        assert_eq!(output.stderr.lines().count(), 2, "{}", output.stderr);
        assert!(output.stderr.starts_with("handoff-run: cannot take over "), "{}", output.stderr);
    }
    old.assert_untouched();
}

// It would be started again, on a socket that both then have.
#[test]
fn a_generation_of_another_user_s_supervisor_is_not_taken_from_it() {
    if !is_root_to("run it as another user") {
        return;
    }
    let code = "
if os.getuid() == 0:
    os.setgid(65432); os.setuid(65432)
    os.execv(sys.executable, [sys.executable] + sys.argv)
serve()";
    let supervisor = supervise(Server::Python(code), &[]).serving();
    let (address, server) = (supervisor.address(), supervisor.generation(1));
    let folder = Folder::new();
    let program = copy_for_everybody(&folder);
    for who in [server.to_string().as_str(), "auto"] {
        let run = Run::of(&program).args(&["-l", &address, "--from", who, "--", "true"]).current_dir("/");
        let expected = format!(
            "handoff-run: cannot take over from pid {server} (python3): pid {} (handoff-run) supervises it, which is another \
             user's\nhandoff-run: run it as that user, or as root\n",
            supervisor.pid
        );
        assert_eq!(run.before_exec(as_somebody).output().failure(), (125, expected.as_str()), "{who}");
    }
    assert_eq!(supervisor.served_by(), server);
    supervisor.stopped();
}

// As a filter of system calls does.
#[test]
fn where_descriptors_may_not_be_copied_the_error_says_what_helps() {
    let old = by_hand(SERVE);
    let pid = old.pid();
    for errno in [Errno::EPERM, Errno::ENOSYS] {
        let run = handoff_run_with(&["-l", &old.address, "--from", &pid.to_string(), "--", "true"]);
        let output = run.before_exec(deny(libc::SYS_pidfd_getfd, Answer::Error(errno))).output();
        assert_eq!(output.code(), 125, "{}", output.stderr);
        let expected = format!(
            "handoff-run: cannot take over from pid {pid} (python3): ENOSYS: Function not implemented\nhandoff-run: that needs \
             pidfd_getfd(2): Linux 5.6, and a filter of system calls that lets it pass\n"
        );
        assert!(output.stderr.ends_with(&expected), "{}\n{expected}", output.stderr);
    }
    old.assert_untouched();
}

#[test]
fn an_address_that_is_another_one_is_not_taken_over() {
    let old = by_hand(SERVE);
    let port = old.address.rsplit(':').next().unwrap();
    let output = handoff_run_with(&["-l", &format!(":{port}"), "--from", "auto", "--", "true"]).output();
    assert_eq!(output.code(), 125);
    assert!(
        output.stderr.starts_with(&format!("handoff-run: cannot listen on :{port}: EADDRINUSE")),
        "{}",
        output.stderr
    );
    old.assert_untouched();
    let every = by_hand_at("0.0.0.0:0", SERVE);
    let port = every.address.rsplit(':').next().unwrap();
    // :PORT is IPv4 alone where that is what is there.
    let new = succeed(Run::of(PROGRAM), &format!(":{port}"), "auto", &[], SUCCESSOR);
    every.wait_end();
    new.wait_serving(&format!("127.0.0.1:{port}"));
}

#[test]
fn from_needs_to_know_what_to_listen_on_and_neither_waits_for_a_client_nor_stores_what_it_has() {
    let output = handoff_run_with(&["--from", "auto", "--", "true"]).output();
    assert_eq!(output.code(), 125);
    assert!(output.stderr.contains("--listen"), "{}", output.stderr);
    let output = handoff_run_with(&["-l", ":0", "--from", "auto", "--lazy", "--", "true"]).output();
    assert_eq!(output.code(), 125);
    assert!(output.stderr.contains("--lazy"), "{}", output.stderr);
    let output = handoff_run_with(&["-l", ":0", "--from", "auto", "--fdstore", "--", "true"]).output();
    let expected =
        "handoff-run: --fdstore needs --supervise where --from is given\nhandoff-run: see handoff-run --help\n";
    assert_eq!(output.failure(), (125, expected));
    for (nobody, why) in [("0", "there is no process 0"), ("", "a process id, a pid file, a control socket or auto")] {
        let output = handoff_run_with(&["-l", ":0", "--from", nobody, "--", "true"]).output();
        assert!(output.code() == 125 && output.stderr.contains(why), "{}", output.stderr);
    }
}
