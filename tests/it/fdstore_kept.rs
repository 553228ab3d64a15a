//! --fdstore: what the service manager is given, what is taken from it, and what is reported where there is none.

use std::net::UdpSocket;
use std::sync::Arc;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::client::{Client, ask};
use crate::harness::manager::Manager;
use crate::harness::process;
use crate::harness::setup::{Setup, supervise_in};
use crate::harness::socket::{address, link, listeners_on};
use crate::harness::store::Store;
use crate::harness::trial::port_for_no_client;
use crate::harness::{DEADLINE, Folder, Report, Run, Server, handoff_run_with, wait_for};

fn fdstore(folder: &Arc<Folder>, script: &str) -> Setup {
    supervise_in(folder, Server::Python(script), &["--fdstore"])
}

/// What a target was given by a line with these options, started by this manager.
fn target(store: &Store, options: &[&str]) -> Report {
    let run = handoff_run_with(&[&["-q", "--fdstore"], options, &["--"]].concat());
    store.manage(run, |given| given.reverse()).report()
}

fn inodes(report: &Report) -> Vec<String> {
    report.sockets.iter().map(link).collect()
}

// handoff-run(1): "a SPEC without a name gets one that is made of its text". The target is told what its SPECs say.
#[test]
fn a_target_gets_the_sockets_of_its_predecessor_under_the_names_of_its_specs() {
    let folder = Folder::new();
    let store = Store::new(&folder);
    let path = folder.text("s");
    let udp = "udp:127.0.0.1:0";
    let line = ["-l", "a=127.0.0.1:0", "-l", "127.0.0.1:0", "-l", "a=127.0.0.1:0", "-l", udp, "-l", &path, "-l", "@x"];
    let line = [&line[..10], &["-l", "127.0.0.1:0"]].concat();
    let first = target(&store, &line);
    assert_eq!(
        store.names(),
        [&*path, "127.0.0.1/0", "127.0.0.1/0-2", "a", "a-2", "udp/127.0.0.1/0"].map(str::to_owned)
    );
    let before = inodes(&first);
    drop(first);
    let again = target(&store, &line);
    assert_eq!(again.get("LISTEN_FDNAMES"), Some("a:unknown:a:unknown:unknown:unknown"));
    assert_eq!(inodes(&again), before);
    assert_eq!(again.get("fd9"), None);
}

// handoff-run(1): "What no --listen asks for any more is taken from the store, and its address is free for another".
#[test]
fn a_socket_that_is_not_asked_for_leaves_the_store_before_another_is_bound_there() {
    for options in [&[][..], &["--supervise", "--control", "CONTROL"]] {
        let folder = Folder::new();
        let control = folder.text("control");
        let options: Vec<&str> = options.iter().map(|word| if *word == "CONTROL" { &*control } else { word }).collect();
        let store = Store::new(&folder);
        let with = |spec: &str| target(&store, &[&options[..], &["-l", "b=127.0.0.1:0", "-l", spec]].concat());
        // No connection of another test gets it between the two.
        let port = port_for_no_client();
        let first = with(&format!("a=127.0.0.1:{port}"));
        // All of them: what comes later is nobody's.
        let all: &[&str] =
            if options.is_empty() { &["a", "b"] } else { &["a", "a", "a", "b", "b", "b", "handoff-state"] };
        store.wait_names(all);
        let kept = link(&first.sockets[0]);
        let server = Pid::from_raw(first["pid"].parse().unwrap());
        drop(first);
        wait_for("its end", || (!process::exists(server)).then_some(()));
        let next = with(&format!("c=0.0.0.0:{port}"));
        assert_eq!(link(&next.sockets[0]), kept);
        assert_eq!(address(&next.sockets[1]).to_string(), format!("0.0.0.0:{port}"));
        wait_for("the new one in the store", || (store.names().contains(&"c".into())).then_some(()));
        assert!(!store.names().contains(&"a".into()), "{:?}", store.names());
    }
}

// A service manager that starts another unit at that moment has forked, and its child has what was closed.
#[test]
fn an_address_that_a_child_of_the_service_manager_still_has_is_waited_for() {
    let folder = Folder::new();
    let store = Store::new(&folder);
    let port = port_for_no_client();
    let first = target(&store, &["-l", &format!("a=127.0.0.1:{port}")]);
    let server = Pid::from_raw(first["pid"].parse().unwrap());
    let _child = Run::of("sleep").args(&["0.3"]).inherit(&first.sockets[0], 3).start();
    drop(first);
    wait_for("its end", || (!process::exists(server)).then_some(()));
    let next = target(&store, &["-l", &format!("c=0.0.0.0:{port}")]);
    assert_eq!(address(&next.sockets[0]).to_string(), format!("0.0.0.0:{port}"));
}

#[test]
fn without_the_option_the_sockets_are_adopted_once_more_and_leave_the_store() {
    let folder = Arc::new(Folder::new());
    let store = Store::new(&folder);
    let mut supervisor = fdstore(&folder, "serve()").run(|run| store.manage(run, |_| ())).serving();
    let address = supervisor.address();
    store.wait_names(&["127.0.0.1/0", "127.0.0.1/0", "127.0.0.1/0", "handoff-state"]);
    supervisor.end_by(Signal::SIGTERM);
    let without = supervise_in(&folder, Server::Python("serve()"), &[]);
    let supervisor = without.run(|run| store.manage(run, |_| ())).serving();
    assert_eq!(ask(&address).unwrap().generation, 1);
    store.wait_names(&[]);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert_eq!(ask(&address).unwrap().generation, 2);
}

// A line that is steered no more takes the socket where clients wait.
#[test]
fn a_target_without_a_supervisor_takes_the_slot_that_served() {
    for other in [&["--supervise", "--shared"][..], &[]] {
        let folder = Arc::new(Folder::new());
        let store = Store::new(&folder);
        let mut supervisor = fdstore(&folder, "serve()").run(|run| store.manage(run, |_| ())).serving();
        let address = supervisor.address();
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        let serving = process::sockets(supervisor.generation(2));
        supervisor.end_by(Signal::SIGTERM);
        let report = target(&store, &[other, &["-l", "127.0.0.1:0"]].concat());
        assert_eq!(address, super::harness::socket::address(&report.sockets[0]).to_string());
        let [now] = &inodes(&report)[..] else { panic!("{:?}", inodes(&report)) };
        assert!(serving.iter().any(|inode| *now == format!("socket:[{inode}]")), "{now} {serving:?}");
        let port = address.rsplit_once(':').unwrap().1.parse().unwrap();
        assert_eq!(listeners_on(port).len(), 1);
        assert_eq!(report.get("LISTEN_FDNAMES"), Some("unknown"));
        wait_for("the store", || (store.inodes("127") == listeners_on(port)).then_some(()));
    }
}

#[test]
fn a_datagram_that_waits_is_received_by_the_next_first_generation_with_the_state_or_without() {
    let script = "mark('up-' + gen)\nwhile True:\n    data, client = s.recvfrom(100)\n    s.sendto(data, client)";
    for left_out in ["", "handoff-state"] {
        let folder = Arc::new(Folder::new());
        let store = Store::new(&folder);
        let start = || {
            let server = fdstore(&folder, script).listen("u=udp:127.0.0.1:0");
            server.run(|run| store.manage(run, |given| given.reverse())).serving()
        };
        let mut supervisor = start();
        let address = supervisor.address();
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        supervisor.end_by(Signal::SIGTERM);
        store.change(|held| held.retain(|(name, _)| name != left_out));
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.connect(&address).unwrap();
        let echoed = |text: &[u8]| {
            let mut answer = [0; 100];
            let length = client.recv(&mut answer).unwrap();
            assert_eq!(&answer[..length], text);
        };
        client.send(b"waits").unwrap();
        let supervisor = start();
        echoed(b"waits");
        for text in [b"one", b"two"] {
            assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
            client.send(text).unwrap();
            echoed(text);
        }
    }
}

// The manager closes what is stored by nobody else's hand: a socket that a server has shut down listens again.
#[test]
fn a_listener_that_a_server_shuts_down_at_its_end_listens_before_the_next_start() {
    let script = "
def end(*_): s.shutdown(socket.SHUT_RDWR); os._exit(0)
signal.signal(signal.SIGTERM, end)
serve()";
    for options in [&[][..], &["--shared"]] {
        let folder = Arc::new(Folder::new());
        let store = Store::new(&folder);
        let start = || fdstore(&folder, script).options(options).run(|run| store.manage(run, |_| ()));
        let mut supervisor = start().serving();
        let address = supervisor.address();
        supervisor.end_by(Signal::SIGTERM);
        let mut waiting = Client::connect(&address).unwrap();
        waiting.send().unwrap();
        let _supervisor = start().serving();
        assert_eq!(waiting.answer().unwrap().generation, 1);
    }
}

#[test]
fn a_listener_that_was_shut_down_listens_again_for_the_next_target() {
    let folder = Folder::new();
    let store = Store::new(&folder);
    let first = target(&store, &["-l", "127.0.0.1:0"]);
    let (before, at) = (inodes(&first), address(&first.sockets[0]));
    nix::sys::socket::shutdown(std::os::fd::AsRawFd::as_raw_fd(&first.sockets[0]), nix::sys::socket::Shutdown::Both)
        .unwrap();
    drop(first);
    let again = target(&store, &["-l", "127.0.0.1:0"]);
    assert_eq!((inodes(&again), address(&again.sockets[0])), (before, at));
    assert_eq!(listeners_on(at.port()).len(), 1);
}

// handoff-run(1): "the name of a Unix socket stays when the supervisor ends".
#[test]
fn the_name_of_a_unix_socket_stays_and_is_kept_alive_further() {
    let folder = Arc::new(Folder::new());
    let store = Store::new(&folder);
    let path = folder.text("s");
    let start = || {
        let server = fdstore(&folder, "serve()").listen(&format!("unix:{path}"));
        server.run(|run| store.manage(run, |given| given.reverse()))
    };
    let mut supervisor = start().serving();
    supervisor.end_by(Signal::SIGTERM);
    let mut waiting = Client::connect(&path).unwrap();
    waiting.send().unwrap();
    let supervisor = start().serving();
    assert_eq!(waiting.answer().unwrap().generation, 1);
    std::fs::remove_file(&path).unwrap();
    supervisor.wait_log("was removed and is restored");
    assert_eq!(ask(&path).unwrap().generation, 1);
    // The store is gone, as after a stop of the unit: the next start finds a dead file.
    drop(supervisor);
    drop(store);
    let store = Store::new(&Folder::new());
    let fresh = fdstore(&folder, "serve()").listen(&format!("unix:{path}")).run(|run| store.manage(run, |_| ()));
    let _supervisor = fresh.serving();
    assert_eq!(ask(&path).unwrap().generation, 1);
}

// handoff-run(1): "Where there is no service manager, or one that stores nothing, that is logged once".
#[test]
fn a_store_that_is_not_there_is_reported_once() {
    let line = |why: &str| format!("handoff-run: --fdstore: {why}: the sockets end with this process\n");
    let none = line("there is no service manager (NOTIFY_SOCKET is not set)");
    let nothing = line("the service manager stores nothing (FileDescriptorStoreMax=0)");
    let run = || handoff_run_with(&["-q", "--fdstore", "-l", "127.0.0.1:0", "--", "true"]);
    assert_eq!(run().output().failure(), (0, &*none));
    let of_none = [
        ("garbage", "there is no service manager (NOTIFY_SOCKET is not the address of a Unix socket)"),
        ("/nonexistent", "the service manager is not reached (NOTIFY_SOCKET): ENOENT: No such file or directory"),
    ];
    for (address, why) in of_none {
        assert_eq!(run().env("NOTIFY_SOCKET", address).output().failure(), (0, &*line(why)));
    }
    let folder = Arc::new(Folder::new());
    let manager = Manager::at_path(&folder);
    assert_eq!(manager.manage(run()).env("FDSTORE", "0").output().failure(), (0, &*nothing));
    assert_eq!(manager.received(), [""; 0]);
    let supervisor = fdstore(&folder, "serve()").serving();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    supervisor.upgrade();
    assert_eq!(supervisor.stopped().matches("--fdstore").count(), 1);
}

#[test]
fn a_manager_that_does_not_answer_or_has_no_room_keeps_nobody_waiting() {
    let folder = Arc::new(Folder::new());
    let manager = Manager::at_path(&folder);
    let filled = manager.fill();
    let run = handoff_run_with(&["-q", "--fdstore", "-l", "127.0.0.1:0", "--", "true"]);
    assert_eq!(manager.manage(run).output().failure(), (0, ""));
    let supervisor = fdstore(&folder, "serve()").run(|run| manager.manage(run)).serving();
    assert_eq!(supervisor.answer().generation, 1);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    (0..filled).for_each(|_| assert_eq!(manager.next(), "full"));
    // All of it, and what was notified meanwhile.
    let mut stored = Vec::new();
    while stored.last().is_none_or(|name| name != "handoff-check") {
        let message = manager.next();
        stored.extend(message.strip_prefix("FDSTORE=1\nFDPOLL=0\nFDNAME=").map(str::to_owned));
    }
    assert_eq!(stored.iter().filter(|name| name.starts_with("127.0.0.1/0/slot-")).count(), 3, "{stored:?}");
    assert!(stored.contains(&"handoff-state".into()), "{stored:?}");
    assert_eq!(supervisor.answer().generation, 2);
}

// SIGUSR2: the state is handed on, and goes on to say what is.
#[test]
fn a_supervisor_that_was_replaced_goes_on_storing() {
    let folder = Arc::new(Folder::new());
    let store = Store::new(&folder);
    let start = || fdstore(&folder, "serve()").run(|run| store.manage(run, |given| given.reverse()));
    let mut supervisor = start().serving();
    let address = supervisor.address();
    supervisor.upgrade();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    supervisor.upgrade();
    store.wait_names(&["127.0.0.1/0", "127.0.0.1/0", "127.0.0.1/0", "handoff-state"]);
    supervisor.end_by(Signal::SIGTERM);
    let mut waiting = Client::connect(&address).unwrap();
    waiting.send().unwrap();
    let supervisor = start().serving();
    assert_eq!(waiting.answer().unwrap().generation, 1);
    assert!(!supervisor.log().contains("cannot"), "{}", supervisor.log());
}
