//! Limits: a full descriptor table is one line and leaves nothing behind, a large one is no problem.

use std::{io, process};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::harness::{Folder, PROGRAM, Run, handoff_run, handoff_run_with};

/// With at most this many open files.
fn limited(run: Run, files: u64) -> Run {
    run.before_exec(move || {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(io::Error::from)?;
        setrlimit(Resource::RLIMIT_NOFILE, files.min(hard), hard).map_err(io::Error::from)
    })
}

// The standard descriptors are counted without opening anything; the socket is the first that has no room.
#[test]
fn a_table_without_room_for_one_descriptor_is_an_error() {
    for files in [0, 1, 2, 3] {
        let folder = Folder::new();
        let socket = folder.text("s");
        let output = limited(handoff_run_with(&["-l", &socket, "--", "true"]), files).output();
        let message = format!("handoff-run: cannot listen on {socket}: EMFILE: Too many open files\n");
        assert_eq!(output.failure(), (125, message.as_str()), "{files}");
        assert_eq!(folder.names(), [""; 0]);
    }
}

#[test]
fn room_for_one_descriptor_is_enough_for_one_socket() {
    let folder = Folder::new();
    // A target that opens nothing.
    let run = handoff_run_with(&["-l", &folder.text("s"), "--", PROGRAM, "--version"]);
    assert_eq!(limited(run, 4).output().failure(), (0, ""));
    assert_eq!(folder.names(), ["s"]);
}

#[test]
fn a_table_that_gets_full_is_an_error_and_leaves_nothing() {
    for files in [4, 5, 6] {
        let folder = Folder::new();
        let names: Vec<String> = (3..10).map(|number| folder.text(&number.to_string())).collect();
        let specs: Vec<&str> = names.iter().flat_map(|name| ["-l", name]).collect();
        let output = limited(handoff_run_with(&specs).args(&["--", "true"]), files).output();
        let message =
            format!("handoff-run: cannot listen on {}: EMFILE: Too many open files\n", folder.text(&files.to_string()));
        assert_eq!(output.failure(), (125, message.as_str()));
        assert_eq!(folder.names(), [""; 0]);
    }
}

// fcntl(2) calls it EINVAL, which says nothing to anybody.
#[test]
fn numbers_beyond_the_limit_are_an_error() {
    let folder = Folder::new();
    for first in ["64", "1000000"] {
        let line = ["-l", &folder.text("s"), "--first-fd", first, "--", "true"];
        let output = limited(handoff_run_with(&line), 64).output();
        let message = format!(
            "handoff-run: cannot give the sockets the numbers from {first} on: the limit of open files (ulimit -n) is \
             lower\n"
        );
        assert_eq!(output.failure(), (125, message.as_str()));
    }
    let line = ["-l", &folder.text("s"), "--first-fd", "2147483647", "--", "true"];
    let message = "handoff-run: the descriptor numbers run past the largest there is\n";
    assert_eq!(handoff_run_with(&line).output().failure(), (125, message));
    assert_eq!(folder.names(), [""; 0]);
}

/// Unix sockets whose names begin so and go on from 3, as their numbers will.
fn ten_thousand(prefix: &str) -> Run {
    let specs: Vec<String> = (3..10_003).flat_map(|number| ["-l".to_owned(), format!("{prefix}{number}")]).collect();
    handoff_run().args(&specs).args(&["--"])
}

#[test]
fn ten_thousand_sockets_beyond_the_limit_are_one_line_and_leave_nothing() {
    let folder = Folder::new();
    let output = limited(ten_thousand(&folder.text("")).args(&["true"]), 1024).output();
    let message = format!("handoff-run: cannot listen on {}: EMFILE: Too many open files\n", folder.text("1024"));
    assert_eq!(output.failure(), (125, message.as_str()));
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn ten_thousand_sockets_within_the_limit_are_no_problem() {
    if getrlimit(Resource::RLIMIT_NOFILE).unwrap().1 < 11_000 {
        eprintln!("skipped: the hard limit of open files is too low");
        return;
    }
    let prefix = format!("unix:@handoff-run-{}-", process::id());
    let count = ["sh", "-c", "echo $LISTEN_FDS; readlink /proc/$$/fd/10002 | cut -c 1-8"];
    let output = limited(ten_thousand(&prefix).args(&count), 11_000).output();
    assert_eq!((output.failure(), output.stdout.as_str()), ((0, ""), "10000\nsocket:[\n"));
}
