//! Groups of real sockets: where connections go, whatever is done to the slots.

mod beside;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::repair::shut_down;
use super::*;
use crate::socket::endpoint::{Endpoint, resolve};
use crate::socket::listener::{Manner, Sharing, bind_first};
use crate::socket::socket_file::Naming;
use crate::socket::spec::Spec;

/// Numbers that other tests do not need.
const LOWEST: RawFd = 64;

fn listener(spec: &str, sharing: Sharing) -> Listener {
    let spec = Spec::parse(OsStr::new(spec)).unwrap();
    let manner = Manner { backlog: 1000, naming: Naming::Once, sharing, taking: sharing };
    bind_first(&spec, &resolve(&spec).unwrap(), manner).unwrap_or_else(|_| panic!("{spec} cannot be bound"))
}

fn group(spec: &str) -> Group {
    let group = Group::of(listener(spec, Sharing::Steered), LOWEST).unwrap();
    assert!(group.is_steered());
    group
}

impl Group {
    fn address(&self) -> SocketAddr {
        self.reached_at().unwrap()
    }

    /// How many of so many new connections each slot gets, and the helm; all are dropped.
    fn spread(&self, connections: usize) -> Vec<usize> {
        for _ in 0..connections {
            TcpStream::connect(self.address()).expect("nobody is refused");
        }
        self.sockets().map(accept_all).collect()
    }

    fn steer_to(&mut self, serving: usize) {
        self.steer(Route { serving, ..Route::default() }).unwrap();
    }

    /// As a server does it.
    fn shut(&self, slot: usize) {
        shut_down(self.listener(slot)).unwrap();
    }

    /// All new connections go to the one that serves.
    #[track_caller]
    fn check(&self) {
        let spread = self.spread(8);
        assert_eq!(spread[self.serving()], 8, "{spread:?} of {:?}", self.steered);
    }
}

fn accept_all(listener: &Listener) -> usize {
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(listener, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
    std::iter::from_fn(|| sys::accept(listener).ok()).count()
}

#[test]
fn new_connections_go_to_the_slot_that_serves_at_every_kind_of_address() {
    for spec in ["127.0.0.1:0", ":0", "0.0.0.0:0", "[::1]:0", "[::]:0,v6only"] {
        let mut group = group(spec);
        for serving in [0, 1, 1, 0] {
            group.steer_to(serving);
            group.check();
        }
        group.grow(LOWEST).unwrap();
        for serving in [2, 0, 1] {
            group.steer_to(serving);
            group.check();
        }
    }
}

#[test]
fn the_address_is_nobody_elses_until_the_first_is_bound() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = Spec::parse(OsStr::new(&taken.local_addr().unwrap().to_string())).unwrap();
    let sharing = Sharing::Steered;
    let manner = Manner { backlog: 9, naming: Naming::Once, sharing, taking: sharing };
    assert!(bind_first(&spec, &resolve(&spec).unwrap(), manner).is_err());
    let ours = group("127.0.0.1:0");
    let spec = Spec::parse(OsStr::new(&ours.address().to_string())).unwrap();
    assert!(bind_first(&spec, &resolve(&spec).unwrap(), manner).is_err(), "a second supervisor is refused");
}

#[test]
fn what_a_server_does_to_its_slot_is_repaired_and_changes_nothing_for_the_one_that_serves() {
    let mut group = group("127.0.0.1:0");
    group.steer_to(1);
    group.shut(0);
    // Nobody has reacted yet.
    group.check();
    let look = group.look_after(LOWEST);
    assert_eq!((look.left, look.findings.len()), (vec![0], 0));
    group.check();
    group.shut(1);
    let look = group.look_after(LOWEST);
    assert_eq!((look.left, look.findings.len()), (vec![1], 1));
    group.check();
    // Both at once: which place leads where is not known any more.
    group.shut(0);
    group.shut(1);
    assert_eq!(group.look_after(LOWEST).left, [0, 1]);
    group.check();
    group.steer_to(0);
    group.check();
    assert_eq!(group.problem(), None);
}

// As when the old generation ends just when a new one is to have a slot of its own: clients once went to the one that had
// ended.
#[test]
fn what_a_server_did_to_its_slot_and_nobody_has_seen_does_not_mix_up_the_slots_that_come() {
    type Deed = fn(&Group);
    let listen_again: Deed = |group| {
        group.shut(0);
        sys::listen(group.listener(0), 5).unwrap();
    };
    for deed in [|group: &Group| group.shut(0), listen_again] {
        let mut group = group("127.0.0.1:0");
        group.steer_to(1);
        deed(&group);
        group.grow(LOWEST).unwrap();
        group.check();
        for serving in [2, 0, 1] {
            group.steer_to(serving);
            group.check();
            group.look_after(LOWEST);
            group.check();
        }
    }
}

#[test]
fn what_servers_do_while_the_order_is_changed_is_repaired() {
    for round in 0..100 {
        let mut group = group("127.0.0.1:0");
        group.steer_to(1);
        let others = [0, 0].map(|slot| group.listener(slot).as_fd().try_clone_to_owned().unwrap());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for socket in others {
                    std::thread::sleep(Duration::from_micros(round * 5 % 170));
                    let _ = nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
                }
            });
            group.grow(LOWEST).unwrap();
            group.shut(2);
            group.look_after(LOWEST);
        });
        group.look_after(LOWEST);
        for serving in [2, 0, 1] {
            group.steer_to(serving);
            group.check();
        }
    }
}

#[test]
fn a_slot_that_cannot_listen_again_keeps_no_other_from_its_place() {
    let mut group = group("127.0.0.1:0");
    group.grow(LOWEST).unwrap();
    group.steer_to(1);
    group.shut(2);
    sys::set_option(group.listener(2), libc::SOL_SOCKET, libc::SO_REUSEPORT, 0).unwrap();
    for is_unsure in [false, true] {
        group.steered.as_mut().unwrap().is_unsure = is_unsure;
        group.look_after(LOWEST);
        assert!(group.slots[2].is_lost);
        assert!(!group.steered.as_ref().unwrap().is_unsure, "it would be lined up for ever");
        group.check();
    }
    // A draining generation's, say: the next one gets a slot all the same.
    group.grow(LOWEST).unwrap();
    for serving in [3, 0, 1] {
        group.steer_to(serving);
        group.look_after(LOWEST);
        group.check();
    }
}

// While a program is replaced nobody looks.
#[test]
fn a_slot_that_moves_while_the_group_is_handed_on_is_seen_afterwards() {
    let mut group = group("127.0.0.1:0");
    group.grow(LOWEST).unwrap();
    group.steer_to(1);
    let (first, saved) = group.save();
    group.shut(0);
    sys::listen(group.listener(0), 5).unwrap();
    let numbers = [first.number()].into_iter().chain(saved.as_ref().unwrap().numbers());
    let copy = |number: RawFd| {
        let listener = group.sockets().find(|listener| listener.as_fd().as_raw_fd() == number).unwrap();
        (number, listener.as_fd().try_clone_to_owned().unwrap())
    };
    let numbers: std::collections::BTreeSet<RawFd> = numbers.collect();
    let mut claimed = sys::Claimed::received(numbers.into_iter().map(copy).collect());
    let first = Listener::resume(first, &mut claimed).unwrap();
    let options = group.listener(0).options_beside().unwrap().clone();
    let mut group = Group::resume(first, saved.unwrap(), options, &mut claimed).unwrap();
    group.look_after(LOWEST);
    for serving in [2, 0, 1] {
        group.steer_to(serving);
        group.check();
    }
}

#[test]
fn a_helm_that_was_shut_down_with_slots_is_put_last_again() {
    for shut in [&[1_usize][..], &[2, 0], &[0, 2], &[0, 1, 2], &[]] {
        let mut group = group("127.0.0.1:0");
        group.grow(LOWEST).unwrap();
        group.steer_to(1);
        shut.iter().for_each(|slot| group.shut(*slot));
        shut_down(&group.steered.as_ref().unwrap().helm.as_ref().unwrap().listener).unwrap();
        group.look_after(LOWEST);
        group.check();
        for serving in [2, 0, 1] {
            group.steer_to(serving);
            group.check();
        }
    }
}

// All that a socket accepted was shut down once it had been shut down while it did not listen.
#[test]
fn a_slot_that_was_shut_down_twice_serves_again() {
    let mut group = group("127.0.0.1:0");
    group.shut(0);
    let _ = shut_down(group.listener(0));
    group.look_after(LOWEST);
    let mut client = TcpStream::connect(group.address()).unwrap();
    let accepted: TcpStream = sys::accept(group.listener(0)).unwrap().into();
    (&accepted).write_all(b"x").unwrap();
    assert_eq!(client.read(&mut [0; 9]).unwrap(), 1);
}

#[test]
fn what_waits_where_nobody_is_is_reset_and_counted() {
    let mut group = group("127.0.0.1:0");
    group.steer_to(1);
    assert_eq!(group.give(1), 0);
    let mut client = TcpStream::connect(group.address()).unwrap();
    assert_eq!(group.waiting(1), 1);
    group.steer_to(0);
    assert_eq!(group.look_after(LOWEST).dropped, [], "somebody has it");
    group.free(1, LOWEST);
    assert_eq!(group.look_after(LOWEST).dropped, [(1, 1)]);
    let end = client.read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(group.look_after(LOWEST).dropped, []);
}

#[test]
fn one_client_may_be_led_elsewhere() {
    let mut group = group("127.0.0.1:0");
    let client = Client::Address("127.0.0.2".parse().unwrap());
    group.steer(Route { exception: Some((client, 1)), ..Route::default() }).unwrap();
    group.check();
    let from = |ip: [u8; 4]| {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
        bind(socket.as_raw_fd(), &SockaddrIn::new(ip[0], ip[1], ip[2], ip[3], 0)).unwrap();
        let port = group.address().port();
        connect(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)).unwrap();
    };
    from([127, 0, 0, 2]);
    from([127, 0, 0, 3]);
    assert_eq!(group.spread(0), [1, 1, 0]);
}

// Ten thousand connections, within three standard deviations.
#[test]
fn a_share_of_new_connections_goes_to_the_one_on_trial() {
    let mut group = group("127.0.0.1:0");
    for percent in [1, 5, 20, 50] {
        let trial = Trial { slot: 1, percent, is_sticky: false, salt: 0 };
        group.steer(Route { trial: Some(trial), ..Route::default() }).unwrap();
        let got = || (0..100).map(|_| group.spread(100)[1]).sum::<usize>() as f64;
        let share = f64::from(percent) / 100.0;
        let (expected, deviation) = (share * 10_000.0, (share * (1.0 - share) * 10_000.0).sqrt());
        let is_near = |got: f64| (got - expected).abs() <= 3.0 * deviation;
        // One of four hundred is not, by chance; two in a row are none.
        assert!(is_near(got()) || is_near(got()), "{percent}");
    }
}

#[test]
fn datagrams_go_to_the_slot_that_serves_and_one_that_was_shut_down_is_replaced() {
    let mut group = group("udp:127.0.0.1:0");
    let address = match group.listener(0).endpoint().unwrap() {
        Endpoint::Inet { address, .. } => address,
        other => panic!("{other}"),
    };
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let received = |group: &Group, slot: usize| {
        client.send_to(b"x", address).unwrap();
        let socket: UdpSocket = group.listener(slot).as_fd().try_clone_to_owned().unwrap().into();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.recv(&mut [0]).unwrap()
    };
    for serving in [0, 1, 0] {
        group.steer_to(serving);
        assert_eq!(received(&group, serving), 1);
    }
    for serving in [1, 0, 1] {
        let _ = shut_down(group.listener(serving));
        assert_eq!(group.look_after(LOWEST).left, [serving]);
        group.steer_to(serving);
        assert_eq!(received(&group, serving), 1);
        group.free(1 - serving, LOWEST);
        assert_eq!(received(&group, serving), 1);
    }
    // Two slots, a helm, and at most as many spares as slots.
    let most = 5;
    for _ in 0..5 {
        for slot in [0, 1] {
            let _ = shut_down(group.listener(slot));
        }
        group.look_after(LOWEST);
        for slot in [0, 1] {
            group.free(slot, LOWEST);
            assert_eq!(received(&group, 1), 1);
        }
        assert!(group.sockets().count() <= most);
    }
    // Nobody has the other one: what comes there is dropped.
    group.steer_to(1);
    group.free(0, LOWEST);
    group.steer_to(0);
    client.send_to(b"x", address).unwrap();
    assert_eq!(group.look_after(LOWEST).dropped, [(0, 1)]);
}

// While the kernel closes a member of the group, it may lead a datagram there.
#[test]
fn no_datagram_is_lost_while_slots_are_replaced_and_added() {
    for spec in ["udp:127.0.0.1:0", "udp:0.0.0.0:0", "udp:[::]:0"] {
        let mut group = group(spec);
        let port = group.listener(0).endpoint().unwrap().port().unwrap() as u16;
        let serving: UdpSocket = group.listener(0).as_fd().try_clone_to_owned().unwrap().into();
        serving.set_nonblocking(true).unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let lost = scope.spawn(|| {
                let client = UdpSocket::bind("127.0.0.1:0").unwrap();
                client.connect(("127.0.0.1", port)).unwrap();
                let is_lost = || client.send(b"x").is_err() || serving.recv(&mut [0]).is_err();
                std::iter::from_fn(|| (!is_over.load(Ordering::Relaxed)).then(is_lost)).filter(|lost| *lost).count()
            });
            for round in 0..2000 {
                let _ = shut_down(group.listener(1));
                group.look_after(LOWEST);
                group.free(1, LOWEST);
                group.look_after(LOWEST);
                if round % 200 == 0 {
                    group.grow(LOWEST).unwrap();
                }
            }
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(lost.join().unwrap(), 0, "{spec}");
        });
    }
}

#[test]
fn a_shared_group_is_one_socket_for_all() {
    let mut group = Group::of(listener("127.0.0.1:0", Sharing::Shared), LOWEST).unwrap();
    assert!(!group.is_steered());
    assert_eq!(group.inode(0), group.inode(5));
    assert_eq!((group.give(3), group.waiting(3), group.beside().len()), (0, 0, 0));
    group.free(1, LOWEST);
    group.steer(Route { serving: 4, ..Route::default() }).unwrap();
}

#[test]
fn a_listener_of_somebody_else_at_the_same_address_is_seen() {
    let group = group("127.0.0.1:0");
    let ours: Vec<SocketInode> = group.inodes().collect();
    let strangers = |group: &Group| group.beside().into_iter().filter(|(_, inode)| !ours.contains(inode)).count();
    assert_eq!((group.beside().len(), strangers(&group)), (3, 0));
    let _other = group.listener(0).another(LOWEST).unwrap();
    assert_eq!(strangers(&group), 1);
}

/// What may happen to a group.
#[derive(Clone, Debug)]
enum Step {
    Steer(usize),
    Shut(Vec<usize>),
    /// Shut down, and listened on again by the server itself.
    Moved(Vec<usize>),
    Add,
    /// Somebody else listens there, or does no more.
    Stranger,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..6_usize).prop_map(Step::Steer),
        3 => prop::collection::vec(0..6_usize, 1..4).prop_map(Step::Shut),
        2 => prop::collection::vec(0..6_usize, 1..4).prop_map(Step::Moved),
        1 => Just(Step::Add),
        1 => Just(Step::Stranger),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn new_connections_go_where_they_are_to_whatever_happens(steps in prop::collection::vec(step(), 1..20)) {
        let mut group = group("127.0.0.1:0");
        let mut stranger = None;
        for step in steps {
            let slots = group.slots();
            match step {
                Step::Steer(slot) => group.steer_to(slot % slots),
                Step::Shut(all) => all.into_iter().for_each(|slot| {
                    let _ = shut_down(group.listener(slot % slots));
                }),
                Step::Moved(all) => all.into_iter().for_each(|slot| {
                    let _ = shut_down(group.listener(slot % slots));
                    sys::listen(group.listener(slot % slots), 5).unwrap();
                }),
                Step::Stranger if stranger.is_none() => stranger = group.listener(0).another(LOWEST).ok(),
                Step::Stranger => stranger = None,
                // No slot is added behind somebody else.
                Step::Add if stranger.is_some() => assert!(group.grow(LOWEST).is_err()),
                Step::Add if slots < 6 => group.grow(LOWEST).unwrap(),
                Step::Add => (),
            }
            group.look_after(LOWEST);
            // No new one serves while somebody else is there.
            if stranger.is_none() {
                group.check();
            }
        }
    }
}
