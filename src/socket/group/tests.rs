//! Groups of real sockets: where connections go, whatever is done to the slots.

mod beside;
mod order;

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

    /// The same when each of these serves in turn.
    #[track_caller]
    fn check_each(&mut self, slots: &[usize]) {
        for slot in slots {
            self.steer_to(*slot);
            self.check();
        }
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
        group.check_each(&[0, 1, 1, 0]);
        group.grow(LOWEST).unwrap();
        group.check_each(&[2, 0, 1]);
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
