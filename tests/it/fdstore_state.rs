//! --fdstore with steering: the service manager has every slot, and a state that says which is which.

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};

use crate::harness::client::{Client, ask};
use crate::harness::intercept::intercept_in;
use crate::harness::process::exists;
use crate::harness::setup::{Setup, supervise_in};
use crate::harness::socket::ipv6_is_missing;
use crate::harness::store::Store;
use crate::harness::{Folder, Server, Supervisor, wait_for};

const UNUSABLE: &str =
    "handoff-run: the state of the stored sockets cannot be used, they are served as far as they are known: ";

/// Whatever connects now is served by this generation.
#[track_caller]
fn serves_alone(address: &str, generation: u64) {
    for _ in 0..30 {
        assert_eq!(ask(address).unwrap().generation, generation);
    }
}

/// One that serves as generation 2, so that its slot is not the first, and its address.
fn second(folder: &Arc<Folder>, store: &Store) -> (Supervisor, String) {
    let supervisor = fdstore(folder).run(|run| store.manage(run, |_| ())).serving();
    store.wait_names(&["127.0.0.1/0", "127.0.0.1/0", "127.0.0.1/0", "handoff-state"]);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    let address = supervisor.address();
    (supervisor, address)
}

fn fdstore(folder: &Arc<Folder>) -> Setup {
    supervise_in(folder, Server::Python("serve()"), &["--fdstore"])
}

/// End it and its server at once, as if by a crash of everything.
fn crash(mut supervisor: Supervisor, generation: u64) {
    let server = supervisor.generation(generation);
    // Stopped, it leaves clients waiting until it is gone.
    supervisor.end_by(Signal::SIGKILL);
    kill(server, Signal::SIGKILL).unwrap();
    wait_for("its end", || (!exists(server)).then_some(()));
}

// handoff-run(1): "They come back in whatever order".
#[test]
fn slots_come_back_in_any_order_and_are_steered_as_before() {
    type Order = fn(&mut Vec<(String, RawFd)>);
    let orders: [Order; 2] = [|given| given.reverse(), |given| given.rotate_left(2)];
    for order in orders {
        let folder = Arc::new(Folder::new());
        let store = Store::new(&folder);
        let (mut supervisor, address) = second(&folder, &store);
        let before = store.inodes("127");
        assert_eq!(supervisor.end_by(Signal::SIGTERM).0, 0);
        let mut waiting = Client::connect(&address).unwrap();
        waiting.send().unwrap();
        let supervisor = fdstore(&folder).run(|run| store.manage(run, order)).serving();
        assert_eq!(waiting.answer().unwrap().generation, 1);
        serves_alone(&address, 1);
        for generation in 2..5 {
            assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
            serves_alone(&address, generation);
        }
        assert_eq!(store.inodes("127"), before);
        crash(supervisor, 4);
        let supervisor = fdstore(&folder).run(|run| store.manage(run, order)).serving();
        serves_alone(&address, 1);
        let log = supervisor.stopped();
        assert!(!log.contains("cannot"), "{log}");
    }
}

#[test]
fn a_state_that_cannot_be_used_is_reported_in_a_line_and_clients_are_served() {
    type Held = Vec<(String, OwnedFd)>;
    type Spoil = fn(&mut Held);
    fn state(held: &Held) -> File {
        let (_, state) = held.iter().find(|(name, _)| name == "handoff-state").unwrap();
        state.try_clone().unwrap().into()
    }
    let cases: [(&str, Spoil); 6] = [
        ("it is missing", |held| held.retain(|(name, _)| name != "handoff-state")),
        ("it is none of this version", |held| state(held).set_len(100).unwrap()),
        ("it is none of this version", |held| state(held).write_all_at(b"handoff-run 9", 0).unwrap()),
        ("it is none of this version", |held| state(held).set_len(0).unwrap()),
        ("it does not fit them", |held| {
            let at = held.iter().rposition(|(name, _)| name.contains("slot")).unwrap();
            held.remove(at);
        }),
        ("it is none of this version: ", |held| {
            let file = state(held);
            let length = file.metadata().unwrap().len() as usize;
            file.write_all_at(format!("handoff-run 1 {:012} {length:012}\n", length - 1).as_bytes(), 0).unwrap();
        }),
    ];
    for (why, spoil) in cases {
        let folder = Arc::new(Folder::new());
        let store = Store::new(&folder);
        let (mut supervisor, address) = second(&folder, &store);
        assert_eq!(supervisor.end_by(Signal::SIGTERM).0, 0);
        let mut waiting = Client::connect(&address).unwrap();
        waiting.send().unwrap();
        store.change(spoil);
        let supervisor = fdstore(&folder).run(|run| store.manage(run, |given| given.reverse())).serving();
        let log = supervisor.log();
        assert_eq!(log.matches(UNUSABLE).count(), 1, "{log}");
        assert!(log.contains(why), "{why}: {log}");
        assert_eq!(waiting.answer().unwrap().generation, 1, "{why}");
        serves_alone(&address, 1);
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        serves_alone(&address, 2);
        // From now on all is well again.
        store.wait_names(&["127.0.0.1/0", "127.0.0.1/0", "127.0.0.1/0", "handoff-state"]);
        crash(supervisor, 2);
        let supervisor = fdstore(&folder).run(|run| store.manage(run, |given| given.reverse())).serving();
        serves_alone(&address, 1);
        assert!(!supervisor.log().contains(UNUSABLE), "{why}: {}", supervisor.log());
    }
}

// What a program made of `:PORT` stays so for the next start.
#[test]
fn the_addresses_that_an_intercepted_program_chose_come_back_to_it() {
    if ipv6_is_missing() {
        return;
    }
    let code = "
four = opened(host='0.0.0.0')
only = lambda s: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
six = opened(family=socket.AF_INET6, host='::', prepare=only)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True:
    for one in select.select([four, six], [], [])[0]: answer(one.accept()[0])";
    let folder = Arc::new(Folder::new());
    let store = Store::new(&folder);
    let start = |order: fn(&mut Vec<(String, RawFd)>)| {
        let server = intercept_in(&folder, code, &["--fdstore"]).listen(":0");
        server.run(|run| store.manage(run, order)).serving()
    };
    let mut supervisor = start(|_| ());
    let port = supervisor.address().rsplit_once(':').unwrap().1.to_owned();
    store.wait_names(&["/0", "/0", "/0", "/0", "/0", "/0", "handoff-state"]);
    let before = store.inodes("/0");
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    for act in [Signal::SIGTERM, Signal::SIGTERM] {
        supervisor.end_by(act);
        let mut waiting = ["127.0.0.1", "[::1]"].map(|host| Client::connect(&format!("{host}:{port}")).unwrap());
        waiting.iter_mut().for_each(|client| client.send().unwrap());
        supervisor = start(|given| given.reverse());
        waiting.iter_mut().for_each(|client| assert_eq!(client.answer().unwrap().generation, 1));
        assert_eq!(store.inodes("/0"), before);
    }
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    for host in ["127.0.0.1", "[::1]"] {
        assert_eq!(ask(&format!("{host}:{port}")).unwrap().generation, 2);
    }
}
