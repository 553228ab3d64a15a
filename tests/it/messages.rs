//! Where messages go: stdout and stderr as the caller has them, full, closed, or read by someone who trusts lines.

use std::fs::File;
use std::io;

use nix::unistd::close;

use crate::harness::{Run, handoff_run_with};

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
    let message = "handoff-run: cannot write to stdout: No space left on device (os error 28)\n";
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
