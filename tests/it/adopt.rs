//! Adopting: a socket that was inherited is not bound again, whatever way it came. Shown by its inode.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::Command;

use crate::harness::socket::{link, tcp};
use crate::harness::{Folder, PROGRAM, Report, handoff_run, handoff_run_with};

/// The probe behind two runs of handoff-run for `address`, and between the two a shell's `script`, whose words `"$@"`
/// are the second.
fn through(script: &str, listener: &TcpListener, address: &str) -> Report {
    let line = ["-l", address, "--", "sh", "-c", script, "sh", PROGRAM, "-l", address, "--"];
    handoff_run_with(&line).inherit(listener, 3).report()
}

/// The only descriptor is this socket's at 3, and the variables speak to the process that has it.
#[track_caller]
fn assert_adopted(report: &Report, listener: &TcpListener) {
    assert_eq!(report.descriptors(), [(3, link(listener).as_str())]);
    assert_eq!(&report["LISTEN_FDS"], "1");
    assert_eq!(&report["LISTEN_PID"], &report["pid"]);
}

// handoff-run(1): "A server that runs the same line again hands its own sockets to its successor: what is inherited is
// not bound again."
#[test]
fn the_same_line_again_adopts_what_the_first_run_bound() {
    let script = "readlink /proc/self/fd/3; exec \"$@\"";
    let line = ["-q", "-l", "127.0.0.1:0", "--", "sh", "-c", script, "sh", PROGRAM, "-l", "127.0.0.1:{port}", "--"];
    let mut report = handoff_run_with(&line).report();
    let bound = report.running.line();
    assert_eq!(report.descriptors(), [(3, bound.as_str())]);
    assert_eq!(report.finish().stderr, "");
}

#[test]
fn a_socket_is_adopted_from_a_predecessor_that_became_us() {
    let (listener, address) = tcp();
    let report = through("exec \"$@\"", &listener, &address);
    assert_adopted(&report, &listener);
    assert_eq!(&report["pid"], report.running.pid().to_string());
    assert_eq!(report.finish().stderr, "");
}

// sd_listen_fds(3): $LISTEN_PID is to be compared. We do not: the predecessor's own number is in it.
#[test]
fn a_socket_is_adopted_from_a_predecessor_that_forked() {
    let (listener, address) = tcp();
    let report = through("\"$@\"; true", &listener, &address);
    assert_adopted(&report, &listener);
    assert_eq!(&report["parent"], report.running.pid().to_string());
    assert_eq!(report.finish().stderr, "");
}

#[test]
fn a_socket_is_adopted_through_several_commands_of_a_shell() {
    let (listener, address) = tcp();
    let report = through("true; (:; \"$@\"); true", &listener, &address);
    assert_adopted(&report, &listener);
}

// Most libraries unset the variables when they have read them.
#[test]
fn a_socket_is_adopted_from_a_predecessor_that_unset_the_variables() {
    let (listener, address) = tcp();
    let script = "exec env -u LISTEN_FDS -u LISTEN_PID -u LISTEN_FDNAMES -u LISTEN_PIDFDID \"$@\"";
    let report = through(script, &listener, &address);
    assert_adopted(&report, &listener);
    assert_eq!(report.finish().stderr, "");
}

#[test]
fn a_socket_is_adopted_from_any_number() {
    let (listener, address) = tcp();
    let report = handoff_run_with(&["-l", &address, "--"]).inherit(&listener, 57).report();
    assert_adopted(&report, &listener);
}

#[test]
fn a_socket_is_adopted_from_pythons_subprocess() {
    let (listener, address) = tcp();
    let script = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:], pass_fds=[3]))";
    let line = ["-l", &address, "--", "python3", "-c", script, PROGRAM, "-l", &address, "--"];
    let report = handoff_run_with(&line).inherit(&listener, 3).report();
    assert_adopted(&report, &listener);
    assert_ne!(&report["pid"], report.running.pid().to_string());
}

// handoff-run(1), --first-fd: "For wrappers that close low descriptors: 100 survives npm and npx."
#[test]
fn a_socket_at_100_is_adopted_through_npm() {
    if Command::new("npm").arg("--version").output().is_err() {
        eprintln!("skipped: npm is not installed");
        return;
    }
    let (listener, address) = tcp();
    let folder = Folder::new();
    let script = format!("{PROGRAM} -l {address} --");
    fs::write(folder.path("package.json"), format!("{{\"scripts\": {{\"start\": \"{script}\"}}}}")).unwrap();
    let line = ["-l", &address, "--first-fd", "100", "--", "npm", "start", "--"];
    let run = handoff_run_with(&line).inherit(&listener, 3).current_dir(&folder);
    let report = run.env("npm_config_update_notifier", "false").report();
    assert_eq!(report.descriptors()[0], (3, link(&listener).as_str()));
    assert_eq!(&report["LISTEN_PID"], &report["pid"]);
    assert_ne!(&report["pid"], report.running.pid().to_string());
}

// Some wrappers close everything but the standard descriptors.
#[test]
fn a_socket_at_descriptor_0_alone_is_adopted() {
    let (listener, address) = tcp();
    let stdin = OwnedFd::from(listener.try_clone().unwrap());
    let report = handoff_run_with(&["-l", &address, "--"]).stdin(stdin).report();
    assert_adopted(&report, &listener);
    assert_eq!(&report["stdin"], link(&listener));
}

#[test]
fn what_stdin_was_given_survives_a_wrapper_that_closes_the_rest() {
    let (listener, address) = tcp();
    let script = "exec \"$@\" 3<&-";
    let line = ["-l", &address, "--stdin", "--", "sh", "-c", script, "sh", PROGRAM, "-l", &address, "--"];
    let report = handoff_run_with(&line).inherit(&listener, 3).report();
    assert_adopted(&report, &listener);
}

// handoff-run(1), --listen: "the order gives the descriptor numbers".
#[test]
fn the_order_of_the_command_line_counts_and_not_the_inherited_one() {
    let ((one, at_one), (two, at_two)) = (tcp(), tcp());
    let line = ["-l", &format!("two={at_two}"), "-l", &format!("one={at_one}"), "--"];
    let report = handoff_run_with(&line).env("LISTEN_FDS", "2").inherit(&one, 3).inherit(&two, 4).report();
    assert_eq!(report.descriptors(), [(3, link(&two).as_str()), (4, link(&one).as_str())]);
    assert_eq!(&report["LISTEN_FDNAMES"], "two:one");
    assert_eq!(report.finish().stderr, "");
}

#[test]
fn a_listener_that_is_added_is_bound_beside_the_adopted_one() {
    let (old, address) = tcp();
    let folder = Folder::new();
    let report = handoff_run_with(&["-l", &folder.text("new"), "-l", &address, "--"]).inherit(&old, 3).report();
    let descriptors = report.descriptors();
    assert_eq!(descriptors.iter().map(|(fd, _)| *fd).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(descriptors[1].1, link(&old));
    assert_eq!(folder.names(), ["new"]);
    assert_eq!(report.finish().stderr, "");
}

#[test]
fn an_announced_listener_that_is_wanted_no_more_is_closed() {
    let ((kept, address), (removed, removed_address)) = (tcp(), tcp());
    let run = handoff_run_with(&["-l", &address, "--"]).env("LISTEN_FDS", "2");
    let report = run.inherit(&removed, 3).inherit(&kept, 4).report();
    assert_adopted(&report, &kept);
    let message =
        format!("handoff-run: no --listen asks for descriptor 3, a listener on {removed_address}: it is closed\n");
    assert_eq!(report.finish().stderr, message);
}

#[test]
fn an_unannounced_listener_that_nobody_asks_for_stays_open_with_a_warning() {
    let ((kept, address), (other, other_address)) = (tcp(), tcp());
    let report = handoff_run_with(&["-l", &address, "--"]).inherit(&kept, 3).inherit(&other, 4).report();
    assert_eq!(report.descriptors(), [(3, link(&kept).as_str()), (4, link(&other).as_str())]);
    assert_eq!(&report["LISTEN_FDS"], "1");
    let message = format!(
        "handoff-run: descriptor 4, a listener on {other_address}, stays open though no --listen asks for it\n"
    );
    assert_eq!(report.finish().stderr, message);
}

#[test]
fn a_failure_leaves_the_callers_own_sockets_alone() {
    let (listener, address) = tcp();
    let line = ["-q", "-l", &address, "-l", "fd:9", "--", "true"];
    let output = handoff_run().args(&line).inherit(&listener, 3).output();
    let message = "handoff-run: cannot listen on fd:9: descriptor 9 is not an open socket\n";
    assert_eq!(output.failure(), (125, message));
    std::net::TcpStream::connect(&address).unwrap();
    listener.accept().unwrap();
}
