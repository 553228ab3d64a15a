//! LISTEN_FDS and LISTEN_FDNAMES: the last word without --listen, and no more than hints with it.

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use crate::harness::handoff_run_with;
use crate::harness::socket::{link, tcp};

// handoff-run(1), --listen: "Without this option the inherited sockets are handed on as they are."
#[test]
fn without_listen_the_announced_sockets_are_handed_on_with_their_names() {
    let ((a, _), (b, _)) = (tcp(), tcp());
    let run = handoff_run_with(&["--"]).env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "a/1:b=2").env("LISTEN_PID", "1");
    let report = run.inherit(&a, 3).inherit(&b, 4).report();
    assert_eq!(report.descriptors(), [(3, link(&a).as_str()), (4, link(&b).as_str())]);
    assert_eq!(&report["LISTEN_FDS"], "2");
    assert_eq!(&report["LISTEN_FDNAMES"], "a/1:b=2");
    assert_eq!(&report["LISTEN_PID"], &report["pid"]);
    assert_eq!(report.finish().stderr, "");
}

#[test]
fn without_listen_and_with_nothing_announced_every_listener_is_handed_on_by_number() {
    let ((a, _), (b, _)) = (tcp(), tcp());
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let file = File::open("/dev/null").unwrap();
    let run = handoff_run_with(&["--"]).inherit(&b, 20).inherit(&a, 8).inherit(&datagrams, 11).inherit(&file, 9);
    let report = run.report();
    let expected = [(3, link(&a)), (4, link(&datagrams)), (5, link(&b)), (9, "/dev/null".to_owned())];
    let found: Vec<(i32, String)> = report.descriptors().into_iter().map(|(fd, link)| (fd, link.to_owned())).collect();
    assert_eq!(found, expected);
    assert_eq!(&report["LISTEN_FDS"], "3");
    assert_eq!(&report["LISTEN_FDNAMES"], "unknown:unknown:unknown");
    assert_eq!(report.finish().stderr, "");
}

#[test]
fn without_listen_an_unannounced_listener_stays_where_it_is_with_a_warning() {
    let ((a, _), (b, at_b)) = (tcp(), tcp());
    let report = handoff_run_with(&["--"]).env("LISTEN_FDS", "1").inherit(&a, 3).inherit(&b, 4).report();
    assert_eq!(report.descriptors(), [(3, link(&a).as_str()), (4, link(&b).as_str())]);
    assert_eq!(&report["LISTEN_FDS"], "1");
    let message =
        format!("handoff-run: descriptor 4, a listener on {at_b}, stays open though no --listen asks for it\n");
    assert_eq!(report.finish().stderr, message);
}

#[test]
fn without_listen_a_socket_that_is_announced_twice_is_handed_on_once() {
    let (a, _) = tcp();
    let report = handoff_run_with(&["--"]).env("LISTEN_FDS", "2").inherit(&a, 3).inherit(&a, 4).report();
    assert_eq!(report.descriptors(), [(3, link(&a).as_str())]);
    assert_eq!(&report["LISTEN_FDS"], "1");
}

// inetd's "wait" gives it so, and nothing else.
#[test]
fn without_listen_a_listener_at_descriptor_0_alone_is_handed_on() {
    let (listener, _) = tcp();
    let stdin = OwnedFd::from(listener.try_clone().unwrap());
    let report = handoff_run_with(&["--"]).stdin(stdin).report();
    assert_eq!(report.descriptors(), [(3, link(&listener).as_str())]);
    assert_eq!(&report["LISTEN_FDS"], "1");
}

#[test]
fn without_listen_there_must_be_something_to_hand_on() {
    let message = "handoff-run: no listening socket was inherited, and no --listen was given\n";
    assert_eq!(handoff_run_with(&["--", "true"]).output().failure(), (125, message));
    for count in ["", "0"] {
        let output = handoff_run_with(&["--", "true"]).env("LISTEN_FDS", count).output();
        assert_eq!(output.failure(), (125, message), "{count:?}");
    }
}

// Handing on fewer, or others, would give the target the wrong sockets by their numbers.
#[test]
fn without_listen_an_announcement_that_is_not_true_is_an_error() {
    let (listener, _) = tcp();
    let file = File::open("/dev/null").unwrap();
    for (count, number) in [("2", 4), ("7", 4), ("4294967295", 4)] {
        let run = handoff_run_with(&["--", "true"]).env("LISTEN_FDS", count);
        let output = run.inherit(&listener, 3).inherit(&file, 4).output();
        let message = format!("handoff-run: LISTEN_FDS={count} announces descriptor {number}, which is no socket\n");
        assert_eq!(output.failure(), (125, message.as_str()));
    }
}

#[test]
fn without_listen_a_count_that_is_none_is_an_error() {
    let (listener, _) = tcp();
    for count in ["-1", "x", "+1", " 1", "1 ", "99999999999", "0x1"] {
        let output = handoff_run_with(&["--", "true"]).env("LISTEN_FDS", count).inherit(&listener, 3).output();
        let message = format!("handoff-run: LISTEN_FDS={count} is not a count of descriptors\n");
        assert_eq!(output.failure(), (125, message.as_str()));
    }
}

#[test]
fn with_listen_a_count_that_is_none_is_ignored_with_a_warning() {
    let (listener, address) = tcp();
    for count in ["-1", "x"] {
        let report = handoff_run_with(&["-l", &address, "--"]).env("LISTEN_FDS", count).inherit(&listener, 3).report();
        assert_eq!(report.descriptors(), [(3, link(&listener).as_str())]);
        assert_eq!(&report["LISTEN_FDS"], "1");
        let message = format!("handoff-run: LISTEN_FDS={count} is not a count of descriptors: ignored\n");
        assert_eq!(report.finish().stderr, message);
    }
}

// The names were once gone through up to the count: four thousand million of them.
#[test]
fn with_listen_a_count_larger_than_the_truth_is_no_matter() {
    let (listener, _) = tcp();
    let file = File::open("/dev/null").unwrap();
    for count in ["2", "2147483647", "4294967295"] {
        let run = handoff_run_with(&["-l", "web=127.0.0.1:0", "--"]).env("LISTEN_FDS", count);
        let report = run.inherit(&listener, 3).inherit(&file, 4).report();
        assert_eq!(report.descriptors(), [(3, link(&listener).as_str()), (4, "/dev/null")], "{count}");
        assert_eq!(&report["LISTEN_FDS"], "1");
        assert_eq!(report.finish().stderr, "");
    }
}

#[test]
fn names_that_no_protocol_allows_become_unknown() {
    let ((a, _), (b, _)) = (tcp(), tcp());
    for (names, expected) in [("only-one", "unknown:unknown"), ("a:b:c", "unknown:unknown"), ("a:\u{e9}", "a:unknown")]
    {
        let run = handoff_run_with(&["--"]).env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", names);
        let report = run.inherit(&a, 3).inherit(&b, 4).report();
        assert_eq!(&report["LISTEN_FDNAMES"], expected);
    }
}
