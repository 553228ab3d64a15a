//! --pid-file: written whole before the program runs, or not at all.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::harness::socket::tcp;
use crate::harness::{Folder, handoff_run_with};

// handoff-run(1), --pid-file: "Write the process id to this file before becoming PROGRAM".
#[test]
fn the_program_finds_its_own_pid_in_the_file() {
    let folder = Folder::new();
    let file = folder.text("app.pid");
    let running = handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--pid-file", &file, "--", "cat", &file]).start();
    let pid = running.pid();
    assert_eq!(running.output().stdout, format!("{pid}\n"));
    assert_eq!(folder.names(), ["app.pid"]);
}

// "Written whole or not at all": whoever has the old file open keeps reading the old number.
#[test]
fn an_old_file_is_replaced_and_not_written_over() {
    let folder = Folder::new();
    fs::write(folder.path("app.pid"), "1234567 and more than that\n").unwrap();
    fs::hard_link(folder.path("app.pid"), folder.path("old")).unwrap();
    let file = folder.text("app.pid");
    let running = handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--pid-file", &file, "--", "true"]).start();
    let pid = running.pid();
    assert_eq!(running.output().failure(), (0, ""));
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{pid}\n"));
    assert_eq!(fs::read_to_string(folder.path("old")).unwrap(), "1234567 and more than that\n");
    assert_ne!(fs::metadata(&file).unwrap().ino(), fs::metadata(folder.path("old")).unwrap().ino());
    assert_eq!(folder.names(), ["app.pid", "old"]);
}

// It may be the predecessor's, which goes on serving.
#[test]
fn the_file_is_as_it_was_if_the_program_cannot_run() {
    let folder = Folder::new();
    let line = ["-q", "-l", "127.0.0.1:0", "--pid-file", &folder.text("app.pid"), "--", "/nonexistent/program"];
    assert_eq!(handoff_run_with(&line).output().code(), 127);
    assert_eq!(folder.names(), [""; 0]);
    fs::write(folder.path("app.pid"), "42\n").unwrap();
    assert_eq!(handoff_run_with(&line).output().code(), 127);
    assert_eq!(fs::read_to_string(folder.path("app.pid")).unwrap(), "42\n");
    assert_eq!(folder.names(), ["app.pid"]);
}

#[test]
fn the_file_is_not_written_if_a_socket_cannot_be_bound() {
    let folder = Folder::new();
    let (_holder, address) = tcp();
    let line = ["-q", "-l", &address, "--pid-file", &folder.text("app.pid"), "--", "true"];
    assert_eq!(handoff_run_with(&line).output().code(), 125);
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn a_folder_that_is_not_there_is_an_error_and_leaves_no_socket() {
    let folder = Folder::new();
    let file = folder.text("missing/app.pid");
    let output = handoff_run_with(&["-l", &folder.text("s"), "--pid-file", &file, "--", "true"]).output();
    let message = format!(
        "handoff-run: cannot write {file}: ENOENT: No such file or directory\nhandoff-run: there is no folder {}\n",
        folder.text("missing")
    );
    assert_eq!(output.failure(), (125, message.as_str()));
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn a_folder_in_place_of_the_file_is_an_error() {
    let folder = Folder::new();
    let file = folder.text(".");
    let output = handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--pid-file", &file, "--", "true"]).output();
    let message = format!("handoff-run: cannot write {file}: EISDIR: Is a directory\n");
    assert_eq!(output.failure(), (125, message.as_str()));
}
