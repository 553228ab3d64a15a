//! Becoming the target: numbers, variables, arguments, exit statuses.

use crate::harness::{Folder, handoff_run_with};

// handoff-run(1): "finds them from descriptor 3 on with LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES".
#[test]
fn the_target_sees_its_sockets_from_3_on_in_the_order_given() {
    let report = handoff_run_with(&["-q", "-l", "web=127.0.0.1:0", "-l", "admin=127.0.0.1:0", "--"]).report();
    assert_eq!(&report["LISTEN_FDS"], "2");
    assert_eq!(&report["LISTEN_FDNAMES"], "web:admin");
    assert_eq!(&report["LISTEN_PID"], &report["pid"]);
    assert_eq!(report.descriptors().iter().map(|(fd, _)| *fd).collect::<Vec<_>>(), [3, 4]);
}

// handoff-run(1): "becomes PROGRAM": the same process, not a child.
#[test]
fn the_target_is_the_process_that_was_started() {
    let report = handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--"]).report();
    assert_eq!(&report["pid"], report.running.pid().to_string());
}

#[test]
fn a_missing_target_is_127_and_leaves_no_socket_file() {
    let folder = Folder::new();
    let output = handoff_run_with(&["-l", &folder.text("s"), "--", "/nonexistent/program"]).output();
    let message = "handoff-run: cannot run /nonexistent/program: ENOENT: No such file or directory\n";
    assert_eq!(output.failure(), (127, message));
    assert!(folder.names().is_empty());
}
