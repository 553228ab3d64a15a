//! LISTEN_FDS and LISTEN_FDNAMES: the last word without --listen, and no more than hints with it.

use std::fs::File;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::harness::client::Client;
use crate::harness::setup::supervise_in;
use crate::harness::socket::{link, tcp};
use crate::harness::{Folder, Run, Server, handoff_run_with};

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
    for (count, number) in [("3", 5), ("7", 5), ("4294967295", 5)] {
        let run = handoff_run_with(&["--", "true"]).env("LISTEN_FDS", count);
        let output = run.inherit(&listener, 3).inherit(&file, 4).output();
        let message = format!("handoff-run: LISTEN_FDS={count} announces descriptor {number}, which is not open\n");
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
        assert_eq!((&report["LISTEN_FDS"], &report["LISTEN_FDNAMES"]), ("2", "web:unknown"));
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

// handoff-run(1), LISTEN_FDS_FIRST_FD: "the number of the first announced descriptor". It was not read.
#[test]
fn what_is_announced_from_another_number_on_is_found_there() {
    let ((a, _), (b, at_b)) = (tcp(), tcp());
    let announce = |run: Run| {
        let run = run.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "a:b").env("LISTEN_FDS_FIRST_FD", "200");
        run.inherit(&a, 200).inherit(&b, 201)
    };
    let report = announce(handoff_run_with(&["--"])).report();
    assert_eq!(report.descriptors(), [(3, link(&a).as_str()), (4, link(&b).as_str())]);
    assert_eq!((&report["LISTEN_FDS"], &report["LISTEN_FDNAMES"]), ("2", "a:b"));
    assert!(report.get("LISTEN_FDS_FIRST_FD").is_none());
    assert_eq!(report.finish().stderr, "");
    // By name, in spite of the order; and one that is not wanted is closed.
    let report = announce(handoff_run_with(&["-l", "b=127.0.0.1:0", "-l", "a=127.0.0.1:0", "--"])).report();
    assert_eq!(report.descriptors(), [(3, link(&b).as_str()), (4, link(&a).as_str())]);
    assert_eq!(report.finish().stderr, "");
    let report = announce(handoff_run_with(&["-l", "a=127.0.0.1:0", "--"])).report();
    assert_eq!(report.descriptors(), [(3, link(&a).as_str())]);
    let message = format!("handoff-run: no --listen asks for descriptor 201, a listener on {at_b}: it is closed\n");
    assert_eq!(report.finish().stderr, message);
}

#[test]
fn a_first_number_that_is_none_is_an_error_and_with_listen_ignored_with_a_warning() {
    let (listener, address) = tcp();
    for text in ["2", "-1", "x"] {
        let run = |line: &[&str]| {
            let run = handoff_run_with(line).env("LISTEN_FDS", "1").env("LISTEN_FDS_FIRST_FD", text);
            run.inherit(&listener, 3)
        };
        let reason = format!("handoff-run: LISTEN_FDS_FIRST_FD={text} is not the number of a descriptor from 3 on");
        assert_eq!(run(&["--", "true"]).output().failure(), (125, format!("{reason}\n").as_str()));
        let output = run(&["-l", &address, "--", "true"]).output();
        assert_eq!(output.failure(), (0, format!("{reason}: ignored\n").as_str()));
    }
}

// handoff-run(1): "An announced descriptor that is no socket […] is handed on and announced by its name". It was an error.
#[test]
fn what_is_announced_and_no_socket_is_handed_on_with_its_name() {
    let ((a, at_a), (b, at_b)) = (tcp(), tcp());
    let file = File::open("/dev/null").unwrap();
    let (a_link, b_link) = (link(&a), link(&b));
    let announce = |run: Run| {
        let run = run.env("LISTEN_FDS", "3").env("LISTEN_FDNAMES", "a:file:b");
        run.inherit(&a, 3).inherit(&file, 4).inherit(&b, 5)
    };
    let report = announce(handoff_run_with(&["--"])).report();
    assert_eq!(report.descriptors(), [(3, a_link.as_str()), (4, "/dev/null"), (5, b_link.as_str())]);
    assert_eq!((&report["LISTEN_FDS"], &report["LISTEN_FDNAMES"]), ("3", "a:file:b"));
    assert_eq!(report.finish().stderr, "");
    let specs = ["-l", &format!("b={at_b}"), "-l", &format!("a={at_a}"), "--"];
    let report = announce(handoff_run_with(&specs)).report();
    assert_eq!(report.descriptors(), [(3, b_link.as_str()), (4, a_link.as_str()), (5, "/dev/null")]);
    assert_eq!((&report["LISTEN_FDS"], &report["LISTEN_FDNAMES"]), ("3", "b:a:file"));
    assert_eq!(report.finish().stderr, "");
    // It is nothing to listen on, and has no address.
    let output = handoff_run_with(&["--", "true"]).env("LISTEN_FDS", "1").inherit(&file, 3).output();
    let message = "handoff-run: no listening socket was inherited, and no --listen was given\n";
    assert_eq!(output.failure(), (125, message));
    let run = announce(handoff_run_with(&["--lazy", "--stdin", "--", "echo", "{fd:a}{fd:b}"]));
    let _client = TcpStream::connect(&at_b).unwrap();
    assert_eq!(run.output().stdout, "35\n");
}

#[test]
fn every_generation_is_given_what_is_announced_and_no_socket() {
    let (listener, address) = tcp();
    let folder = Arc::new(Folder::new());
    folder.write("file", "content");
    let file = File::open(folder.path("file")).unwrap();
    let script = "
mark('given' + gen, f\"{os.environ['LISTEN_FDS']} {os.environ['LISTEN_FDNAMES']} {os.pread(4, 100, 0).decode()}\")
serve()";
    let announced = |run: Run| run.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "file:web");
    let setup = supervise_in(&folder, Server::Python(script), &[]).listen(&format!("web={address}"));
    let supervisor = setup.run(|run| announced(run).inherit(&file, 3).inherit(&listener, 4)).serving();
    let mut client = Client::connect(&address).unwrap();
    client.ask().unwrap();
    supervisor.upgrade();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    drop(client);
    for generation in ["given1", "given2"] {
        assert_eq!(folder.read(generation), "2 web:file content");
    }
    supervisor.stopped();
}
