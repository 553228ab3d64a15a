//! Which descriptor is where: the sockets at their numbers, everything else open and out of the way.

use std::fs::{File, TryLockError};
use std::net::TcpListener;

use crate::harness::socket::{link, tcp};
use crate::harness::{Folder, Report, handoff_run_with};

/// Each open descriptor from 3 on, with text of its own.
fn descriptors(report: &Report) -> Vec<(i32, String)> {
    report.descriptors().into_iter().map(|(fd, link)| (fd, link.to_owned())).collect()
}

/// The numbers from 3 on in the order of `sockets`.
fn from_3(sockets: &[(TcpListener, String)]) -> Vec<(i32, String)> {
    (3..).zip(sockets.iter().map(|(socket, _)| link(socket))).collect()
}

// One may sit on the number of another, and writing it there would lose that one.
#[test]
fn no_socket_is_lost_in_whatever_order_they_were_inherited() {
    let sockets = [tcp(), tcp(), tcp()];
    let specs: Vec<&str> = sockets.iter().flat_map(|(_, address)| ["-l", address.as_str()]).collect();
    for first in [3, 4, 5] {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let place = |run, at: usize| crate::harness::Run::inherit(run, &sockets[at].0, first + order[at]);
            let run = (0..3).fold(handoff_run_with(&specs).args(&["--"]), place);
            let report = run.report();
            assert_eq!(descriptors(&report), from_3(&sockets), "{order:?} from {first}");
            assert_eq!(report.finish().stderr, "");
        }
    }
}

// It may hold a lock, so it is moved and not closed.
#[test]
fn files_in_the_way_of_sockets_are_moved_up_with_their_locks() {
    let folder = Folder::new();
    let [three, four, nine] = ["three", "four", "nine"].map(|name| File::create(folder.path(name)).unwrap());
    three.lock().unwrap();
    let run = handoff_run_with(&["-l", &folder.text("s"), "-l", &folder.text("t"), "--"]);
    let report = run.inherit(&three, 3).inherit(&four, 4).inherit(&nine, 9).report();
    // What the target was given is the only one left that holds the lock.
    drop(three);
    assert!(matches!(File::open(folder.path("three")).unwrap().try_lock(), Err(TryLockError::WouldBlock)));
    let open = descriptors(&report);
    assert!(open[0].1.starts_with("socket:") && open[1].1.starts_with("socket:"), "{open:?}");
    let files = [(7, folder.text("three")), (8, folder.text("four")), (9, folder.text("nine"))];
    assert_eq!(open.iter().map(|(fd, _)| *fd).collect::<Vec<_>>(), [3, 4, 7, 8, 9]);
    assert_eq!(open[2..], files);
    let warning = |from, to| {
        format!(
            "handoff-run: descriptor {from} was open and is now {to}: a socket belongs there (--first-fd numbers the \
             sockets elsewhere)\n"
        )
    };
    assert_eq!(report.finish().stderr, warning(3, 7) + &warning(4, 8));
}

#[test]
fn files_beside_the_sockets_stay_where_they_are() {
    let (listener, address) = tcp();
    let file = File::open("/dev/zero").unwrap();
    let run = handoff_run_with(&["-l", &address, "--"]).inherit(&file, 4).inherit(&listener, 5).inherit(&file, 300);
    let report = run.report();
    let expected = [(3, link(&listener)), (4, "/dev/zero".to_owned()), (300, "/dev/zero".to_owned())];
    assert_eq!(descriptors(&report), expected);
    assert_eq!(report.finish().stderr, "");
}

// handoff-run(1), --first-fd: "Number the sockets from N instead of 3. No LISTEN_ variable is set then."
#[test]
fn first_fd_numbers_the_sockets_from_there_and_announces_nothing() {
    let sockets = [tcp(), tcp()];
    let line = ["-l", &sockets[0].1, "-l", &sockets[1].1, "--first-fd", "100", "--env", "FD={fd}", "--"];
    let run = handoff_run_with(&line).env("LISTEN_FDS", "2").env("LISTEN_PID", "1").env("LISTEN_FDNAMES", "a:b");
    let report = run.inherit(&sockets[1].0, 3).inherit(&sockets[0].0, 4).report();
    assert_eq!(descriptors(&report), [(100, link(&sockets[0].0)), (101, link(&sockets[1].0))]);
    assert_eq!(&report["FD"], "100");
    for variable in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID"] {
        assert_eq!(report.get(variable), None);
    }
    assert_eq!(report.finish().stderr, "");
}

#[test]
fn a_file_in_the_way_of_first_fd_is_moved_too() {
    let (listener, address) = tcp();
    let file = File::open("/dev/zero").unwrap();
    let run = handoff_run_with(&["-q", "-l", &address, "--first-fd", "100", "--"]);
    let report = run.inherit(&listener, 3).inherit(&file, 100).report();
    assert_eq!(descriptors(&report), [(100, link(&listener)), (101, "/dev/zero".to_owned())]);
}

// handoff-run(1), --stdin: "Make the first socket descriptor 0 too."
#[test]
fn stdin_makes_the_first_socket_descriptor_0_too() {
    let sockets = [tcp(), tcp()];
    let line = ["-l", &sockets[0].1, "-l", &sockets[1].1, "--stdin", "--"];
    let report = handoff_run_with(&line).inherit(&sockets[0].0, 3).inherit(&sockets[1].0, 4).report();
    assert_eq!(descriptors(&report), from_3(&sockets));
    assert_eq!(&report["stdin"], link(&sockets[0].0));
}

#[test]
fn without_stdin_descriptor_0_is_left_alone() {
    let (listener, address) = tcp();
    let report = handoff_run_with(&["-l", &address, "--"]).inherit(&listener, 3).report();
    assert_eq!(&report["stdin"], "/dev/null");
}
