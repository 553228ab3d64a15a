//! Where messages go: stdout and stderr as the caller has them, full, closed, or read by someone who trusts lines.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

use nix::unistd::close;

use crate::harness::{Folder, Run, handoff_run_with};

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// Without this standard descriptor.
fn without(run: Run, number: i32) -> Run {
    run.before_exec(move || close(number).map_err(io::Error::from))
}

#[test]
fn help_and_version_are_on_stdout_and_0() {
    for option in ["--help", "-h", "--version", "-V", "--help-servers"] {
        let output = handoff_run_with(&[option]).output();
        assert_eq!(output.failure(), (0, ""), "{option}");
        assert!(!output.stdout.is_empty());
    }
    assert_eq!(handoff_run_with(&["--version"]).output().stdout, "handoff-run 0.1.0\n");
}

#[test]
fn help_that_cannot_be_written_is_a_failure() {
    let message = "handoff-run: cannot write to stdout: ENOSPC: No space left on device\n";
    for option in ["--help", "--version", "--help-servers"] {
        assert_eq!(handoff_run_with(&[option]).stdout(full()).output().failure(), (125, message));
    }
}

// std takes a closed stdout for one that takes everything.
#[test]
fn help_without_a_stdout_is_a_failure() {
    let message = "handoff-run: cannot write to stdout: EBADF: Bad file number\n";
    for option in ["--help", "--version", "--help-servers"] {
        assert_eq!(without(handoff_run_with(&[option]), 1).output().failure(), (125, message));
    }
}

#[test]
fn a_stderr_that_is_full_or_closed_changes_no_status() {
    for (line, status) in [(["-l", "127.0.0.1:0", "--", "true"], 0), (["-l", "fd:9", "--", "true"], 125)] {
        assert_eq!(handoff_run_with(&line).stderr(full()).output().code(), status);
        assert_eq!(without(handoff_run_with(&line), 2).output().code(), status);
    }
    assert_eq!(handoff_run_with(&["--bogus"]).stderr(full()).output().code(), 125);
}

// A socket that took the place of stderr would send what is said there to a client.
#[test]
fn a_closed_stderr_is_not_filled_by_a_socket() {
    let folder = Folder::new();
    let run =
        handoff_run_with(&["-l", &folder.text("s"), "--", "sh", "-c", "readlink /proc/$$/fd/2; echo $LISTEN_FDS"]);
    assert_eq!(without(run, 2).output().stdout, "1\n");
}

// A line of ours with someone else's in the middle of it says nothing: many processes share one stderr.
#[test]
fn a_message_is_one_write() {
    // Datagrams keep what is written in pieces.
    let (reader, writer) = UnixDatagram::pair().unwrap();
    let folder = Folder::new();
    let path = folder.text("missing/s");
    let stderr = OwnedFd::from(writer);
    let output = handoff_run_with(&["-l", &path, "--", "true"]).stderr(stderr).output();
    assert_eq!(output.code(), 125);
    let mut message = [0; 4096];
    let length = reader.recv(&mut message).unwrap();
    let expected = format!("handoff-run: cannot listen on {path}: ENOENT: No such file or directory\n");
    assert_eq!(String::from_utf8_lossy(&message[..length]), expected);
}

/// Whatever the user's words hold, these are the lines of stderr.
#[track_caller]
fn assert_lines(arguments: &[&str], status: i32, lines: &[&str]) {
    let output = handoff_run_with(arguments).output();
    let message: String = lines.iter().map(|line| format!("handoff-run: {line}\n")).collect();
    assert_eq!(output.failure(), (status, message.as_str()));
}

#[test]
fn control_characters_forge_no_second_line() {
    let line = r"cannot run a\nhandoff-run: b\u{1b}[2J: ENOENT: No such file or directory";
    assert_lines(&["-q", "-l", "127.0.0.1:0", "--", "a\nhandoff-run: b\u{1b}[2J"], 127, &[line]);
    let folder = Folder::new();
    let path = folder.text("a\nb/s");
    let line = format!(r"cannot listen on {}: ENOENT: No such file or directory", path.replace('\n', r"\n"));
    let folder = path.replace('\n', r"\n").replace("/s", "");
    assert_lines(&["-l", &path, "--", "true"], 125, &[&line, &format!("there is no folder {folder}")]);
}

// clap's text was once cut into lines with the user's words in it.
#[test]
fn control_characters_forge_no_remedy_in_a_usage_error() {
    let line = r"unexpected argument '--x\n\n  tip: y' found";
    let remedy = r"to pass '--x\n\n  tip: y' as a value, use '-- --x\n\n  tip: y'";
    assert_lines(&["--x\n\n  tip: y", "true"], 125, &[line, remedy]);
    let line = r"invalid value 'fd:3,a\n  tip: y' for '--listen <SPEC>': unknown option a\n  tip: y; a socket that is open already takes none";
    assert_lines(&["-l", "fd:3,a\n  tip: y", "true"], 125, &[line, "see handoff-run --help"]);
    let line = r"invalid value 'x\n  tip: y' for '--as <SERVER>'";
    assert_lines(&["--as", "x\n  tip: y", "true"], 125, &[line, "see handoff-run --help-servers"]);
}

#[test]
fn control_characters_of_the_holder_forge_no_line_either() {
    let folder = Folder::new();
    let path = folder.text("s");
    let held = handoff_run_with(&["-q", "-l", &path, "--", "sh", "-c", "echo; read _", "a\nhandoff-run: b"]);
    let (stdin, _kept) = UnixStream::pair().unwrap();
    let mut holder = held.stdin(OwnedFd::from(stdin)).start();
    holder.line();
    let pid = holder.pid();
    let held = format!(r"it is held by pid {pid}: sh -c echo; read _ a\nhandoff-run: b; --from {pid} takes it over");
    let line = format!("cannot listen on {path}: EADDRINUSE: Address already in use");
    assert_lines(&["-l", &path, "--", "true"], 125, &[&line, &held]);
}

// Once it was said in the words and the form of a library.
#[test]
fn a_log_level_that_is_none_is_ignored_and_that_is_said_like_everything_else() {
    let run =
        |level: &str| handoff_run_with(&["-l", "/nonexistent/s", "--", "true"]).env("HANDOFF_LOG", level).output();
    let error = "handoff-run: cannot listen on /nonexistent/s: ENOENT: No such file or directory\n\
                 handoff-run: there is no folder /nonexistent\n";
    for level in ["", "error", "WARN", " info", "off"] {
        assert_eq!(run(level).failure(), (125, error), "{level:?}");
    }
    for (level, shown) in [("loud", "loud"), ("a\nb", r"a\nb"), ("handoff_run=", "handoff_run="), ("info,x", "info,x")]
    {
        let warning = format!(
            "handoff-run: HANDOFF_LOG={shown} is none of error, warn, info, debug, trace and off: it is ignored\n{error}"
        );
        assert_eq!(run(level).failure(), (125, warning.as_str()));
    }
}
