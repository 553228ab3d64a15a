//! Whether another socket can be bound beside one that was taken over, and as whom: the kernel asks for the same user and
//! the same network (inet_csk_get_port, inet_reuseport_add_sock).

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::fstat;
use nix::unistd::{Uid, geteuid, setfsuid};

use crate::socket::endpoint::Endpoint;
use crate::socket::interception::theirs::is_same_network;
use crate::socket::options::Options;
use crate::sys;

/// Why none can, if so.
pub(super) fn why_shared(theirs: &OwnedFd, endpoint: &Endpoint, options: &Options) -> Option<&'static str> {
    match endpoint {
        Endpoint::Inet { .. } => (),
        Endpoint::Unix { .. } => return Some("a second Unix socket would have another name"),
        Endpoint::Vsock { .. } => return Some("only TCP and UDP sockets can be bound beside one another"),
    }
    let ours = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    if ours.is_ok_and(|ours| !is_same_network(theirs, ours)) {
        return Some("it is of another network namespace");
    }
    if options.has("reuseport") {
        return Some("its SPEC has reuseport");
    }
    if sys::option(theirs, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX).unwrap_or(0) != 0 && !options.has("device") {
        return Some("it is bound to an interface, which its SPEC does not name");
    }
    as_owner_of(theirs, || ()).is_none().then_some("it is another user's")
}

/// Do this as the user whose socket that is, by the identity that counts for new ones (setfsuid(2)); nothing where we may not
/// be that user.
pub(super) fn as_owner_of<T>(theirs: impl AsFd, act: impl FnOnce() -> T) -> Option<T> {
    let owner = Uid::from_raw(fstat(theirs).ok()?.st_uid);
    if owner == geteuid() {
        return Some(act());
    }
    let before = setfsuid(owner);
    // It returns what was, whether it succeeded or not.
    let is_owner = setfsuid(owner) == owner;
    let outcome = is_owner.then(act);
    setfsuid(before);
    outcome
}
