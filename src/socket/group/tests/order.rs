//! What servers do to their slots changes the order of the group, and clients go where they are to all the same.

use std::collections::BTreeSet;

use super::*;

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
        group.check_each(&[2, 0, 1]);
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
    let numbers: BTreeSet<RawFd> = numbers.collect();
    let mut claimed = sys::Claimed::received(numbers.into_iter().map(copy).collect());
    let first = Listener::resume(first, &mut claimed).unwrap();
    let options = group.listener(0).options_beside().unwrap().clone();
    let mut group = Group::resume(first, saved.unwrap(), options, &mut claimed).unwrap();
    group.look_after(LOWEST);
    group.check_each(&[2, 0, 1]);
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
        group.check_each(&[2, 0, 1]);
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
