//! Groups that begin with a socket of another process.

use std::net::TcpListener;
use std::os::fd::OwnedFd;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket, sockopt,
};
use nix::unistd::Pid;

use super::*;
use crate::socket::takeover::Predecessor;

/// As if this process were somebody else's.
fn taken(theirs: &TcpListener) -> Listener {
    let spec = Spec::parse(OsStr::new(&theirs.local_addr().unwrap().to_string())).unwrap();
    let sharing = Sharing::Steered;
    let manner = Manner { backlog: 9, naming: Naming::Once, sharing, taking: sharing };
    let predecessor = Predecessor::of(Pid::this(), None).unwrap();
    let fd = OwnedFd::from(theirs.try_clone().unwrap());
    Listener::taken_over(&spec, fd, vec![], manner, predecessor.as_ref()).unwrap()
}

fn reuseport(listener: &impl AsFd) -> i32 {
    sys::option(listener, libc::SOL_SOCKET, libc::SO_REUSEPORT).unwrap()
}

/// One more at the same address.
fn sibling(address: SocketAddr) -> TcpListener {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
    setsockopt(&fd, sockopt::ReusePort, &true).unwrap();
    bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, address.port())).unwrap();
    listen(&fd, Backlog::new(100).unwrap()).unwrap();
    fd.into()
}

#[test]
fn ours_joins_and_the_other_process_serves_until_it_is_steered_away() {
    let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut group = Group::of(taken(&theirs), LOWEST).unwrap();
    assert!(group.is_steered());
    group.check();
    group.steer_to(1);
    group.check();
    group.steer_to(0);
    drop(group);
    assert_eq!(reuseport(&theirs), 0, "it is put back");
    TcpStream::connect(theirs.local_addr().unwrap()).unwrap();
    theirs.accept().unwrap();
}

// As by a process that the program left which was to succeed.
#[test]
fn a_socket_that_somebody_still_has_gets_nothing_once_steering_is_given_up() {
    let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
    let group = Group::of(taken(&theirs), LOWEST).unwrap();
    let left = group.listener(1).as_fd().try_clone_to_owned().unwrap();
    drop(group);
    theirs.set_nonblocking(true).unwrap();
    for _ in 0..30 {
        TcpStream::connect(theirs.local_addr().unwrap()).unwrap();
        theirs.accept().unwrap();
    }
    drop(left);
}

#[test]
fn what_was_taken_over_is_ours_once_the_other_process_is_gone() {
    let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut group = Group::of(taken(&theirs), LOWEST).unwrap();
    group.steer_to(1);
    drop(theirs);
    group.own();
    group.free(0, LOWEST);
    group.look_after(LOWEST);
    for serving in [1, 0, 1, 0] {
        group.give(serving);
        group.steer_to(serving);
        group.check();
    }
    group.grow(LOWEST).unwrap();
    group.steer_to(2);
    group.check();
}

// Which of them is where in the group is not known, nor where one has left it.
#[test]
fn where_several_are_at_the_address_ours_gets_everything_and_goes_on_as_they_leave() {
    for leaving in [[0, 1], [1, 0], [1, 1], [0, 0]] {
        let first = sibling("127.0.0.1:0".parse().unwrap());
        let address = first.local_addr().unwrap();
        let mut others = vec![sibling(address), sibling(address)];
        let mut group = Group::of(taken(&first), LOWEST).unwrap();
        let serves = |group: &Group, slot: usize| {
            (0..8).for_each(|_| drop(TcpStream::connect(address).unwrap()));
            assert_eq!(accept_all(group.listener(slot)), 8, "{leaving:?}: {:?}", group.steered);
        };
        serves(&group, 1);
        drop(first);
        group.steer_to(1);
        group.own();
        group.free(0, LOWEST);
        group.look_after(LOWEST);
        serves(&group, 1);
        for at in leaving {
            others.remove(at.min(others.len() - 1));
            // Not noticed yet, and then it is.
            serves(&group, 1);
            group.look_after(LOWEST);
            serves(&group, 1);
            group.grow(LOWEST).unwrap();
            for slot in [0, 1, group.slots() - 1, 1] {
                group.give(slot);
                group.steer_to(slot);
                serves(&group, slot);
            }
        }
    }
}

// Those that took the places of others are in the group still.
#[test]
fn where_several_have_left_the_slots_can_be_lined_up() {
    let first = sibling("127.0.0.1:0".parse().unwrap());
    let address = first.local_addr().unwrap();
    let others = vec![sibling(address), sibling(address)];
    let mut group = Group::of(taken(&first), LOWEST).unwrap();
    drop(first);
    group.steer_to(1);
    group.own();
    group.free(0, LOWEST);
    group.look_after(LOWEST);
    drop(others);
    group.look_after(LOWEST);
    assert!(!group.steered.as_ref().unwrap().fillers.is_empty());
    group.steered.as_mut().unwrap().is_unsure = true;
    group.look_after(LOWEST);
    for slot in [1, 0] {
        group.give(slot);
        group.steer_to(slot);
        (0..8).for_each(|_| drop(TcpStream::connect(address).unwrap()));
        let spread: Vec<usize> = group.sockets().map(accept_all).collect();
        assert_eq!(spread[slot], 8, "{spread:?} {:?} {:?}", group.beside(), group.inodes().collect::<Vec<_>>());
    }
}

#[test]
fn several_sockets_that_are_not_succeeded_share_as_they_did_before() {
    let first = sibling("127.0.0.1:0".parse().unwrap());
    let address = first.local_addr().unwrap();
    let other = sibling(address);
    drop(Group::of(taken(&first), LOWEST).unwrap());
    assert_eq!((reuseport(&first), reuseport(&other)), (1, 1));
    (0..40).for_each(|_| drop(TcpStream::connect(address).unwrap()));
    let count = |listener: &TcpListener| {
        listener.set_nonblocking(true).unwrap();
        std::iter::from_fn(|| listener.accept().ok()).count()
    };
    let counts = (count(&first), count(&other));
    assert!(counts.0 + counts.1 == 40 && counts.0 > 0 && counts.1 > 0, "{counts:?}");
}

#[test]
fn where_steering_is_given_up_the_kernel_chooses_by_hash_again() {
    let theirs = sibling("127.0.0.1:0".parse().unwrap());
    let address = theirs.local_addr().unwrap();
    let mut group = Group::of(taken(&theirs), LOWEST).unwrap();
    group.give_up_steering();
    assert!(!group.is_steered());
    assert_eq!(reuseport(&theirs), 1);
    let another = sibling(address);
    another.set_nonblocking(true).unwrap();
    (0..40).for_each(|_| drop(TcpStream::connect(address).unwrap()));
    another.accept().expect("the one that joined has a share");
}
