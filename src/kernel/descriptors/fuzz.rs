//! Any text of a link in `/proc/PID/fd`.

use proptest::prelude::*;

use super::*;
use crate::fuzz::{hold, mutated, noise, scraps};

#[test]
fn a_link_leads_to_the_socket_that_it_names_or_to_none() {
    let name = |inode: u64| format!("socket:[{inode}]").into_bytes();
    let links = prop_oneof![1 => noise(), 1 => scraps(), 4 => mutated(any::<u64>().prop_map(name))];
    hold((any::<u64>(), links), |(inode, link)| {
        assert_eq!(Kind::parse(&name(inode)), Some(Kind::Socket(SocketInode(inode))));
        check(&link);
    });
}

/// What holds of any link.
pub(crate) fn check(link: &[u8]) {
    if let Some(Kind::Socket(SocketInode(inode))) = Kind::parse(link) {
        assert!(link.starts_with(b"socket:[") && link.ends_with(format!("{inode}]").as_bytes()));
    }
}
