//! The service manager's descriptor store: FDSTORE=1 and FDSTOREREMOVE=1 of sd_notify(3). What it holds comes back in
//! LISTEN_FDS of the next start.
//!
//! Whether it stores anything it does not say: the end of a pipe is given to it last, which it closes at once if it does
//! not. BARRIER=1 with another one, which it closes in any case, shows when that was read.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use log::{debug, warn};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use super::{Kind, Manager, Message};
use crate::kernel::descriptors::SocketInode;
use crate::socket::listener::Listener;
use crate::socket::spec::FdName;
use crate::socket::store_name::CHECK;
use crate::socket::stored::Stored;
use crate::sys::{self, Timestamp};

/// How long a start may wait until the service manager has read what it was sent.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What it is told to close follows.
const REMOVE: &str = "FDSTOREREMOVE=1\nFDNAME=";

/// What the store holds.
#[derive(Debug)]
pub(crate) struct Inventory {
    held: Vec<(FdName, SocketInode)>,
    /// This process gave all of it; else it came back, though perhaps not from there.
    is_ours: bool,
}

/// Something for it.
#[derive(Clone, Debug)]
pub(crate) struct Item<'a> {
    pub(crate) name: FdName,
    pub(crate) inode: SocketInode,
    pub(crate) fd: BorrowedFd<'a>,
}

/// The descriptor store, as far as it is known.
#[derive(Debug)]
pub(super) struct StoreSupport {
    /// There is none.
    is_missing: bool,
    check: Option<StoreCheck>,
}

/// A question to the service manager that is not answered yet: descriptors that hang up.
#[derive(Debug)]
struct StoreCheck {
    /// When there is no room for one more.
    stored: OwnedFd,
    /// When all that was sent before was read.
    barrier: OwnedFd,
}

impl Manager {
    /// Report that there is no store, if that is known at the start.
    pub(crate) fn expect_store(&self) {
        if self.address.is_none() && self.is_named {
            report_missing("there is no service manager (NOTIFY_SOCKET is not the address of a Unix socket)");
        } else if self.address.is_none() {
            report_missing("there is no service manager (NOTIFY_SOCKET is not set)");
        } else if self.store.is_missing {
            report_missing("the service manager stores nothing (FileDescriptorStoreMax=0)");
        }
    }

    /// Is there one, as far as is known?
    pub(crate) fn has_store(&self) -> bool {
        self.address.is_some() && !self.store.is_missing
    }

    /// Give it a copy of a descriptor. What it has already it keeps under its first name.
    fn keep(&mut self, name: &FdName, fd: BorrowedFd) {
        match fd.try_clone_to_owned() {
            // Without FDPOLL=0 it would drop a socket that a server has shut down.
            Ok(fd) => self.put_store(format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), Some(fd)),
            Err(error) => warn!("--fdstore: cannot store {name}: {error}"),
        }
    }

    /// Let it close what it has by this name.
    pub(crate) fn discard(&mut self, name: &FdName) {
        self.put_store(format!("{REMOVE}{name}"), None);
    }

    /// The names of what it is to close, and has not been told yet.
    pub(crate) fn undiscarded(&self) -> impl Iterator<Item = &str> {
        self.unsent.iter().filter_map(|message| message.text.strip_prefix(REMOVE))
    }

    /// The same, and wait until that is done: the address may be bound next.
    pub(crate) fn discard_now(&mut self, names: &[FdName]) {
        names.iter().for_each(|name| self.discard(name));
        if !names.is_empty() && self.address.is_some() {
            self.wait_until_read();
        }
    }

    fn put_store(&mut self, text: String, fd: Option<OwnedFd>) {
        self.put(Message { text, fd, kind: Kind::Store });
    }

    /// Send it the end of a pipe; the other end.
    fn put_pipe(&mut self, text: &str) -> nix::Result<OwnedFd> {
        let (ours, its) = pipe2(OFlag::O_CLOEXEC)?;
        self.put_store(text.to_owned(), Some(its));
        Ok(ours)
    }

    /// Ask whether it had room for everything; `see_store` takes the answer.
    pub(crate) fn check_store(&mut self) {
        if self.store.check.is_some() || self.address.is_none() {
            return;
        }
        let stored = self.put_pipe(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={CHECK}"));
        let check = stored.and_then(|stored| Ok(StoreCheck { stored, barrier: self.put_pipe("BARRIER=1")? }));
        self.store.check = check.inspect_err(|errno| debug!("--fdstore: cannot be checked: {errno}")).ok();
    }

    /// What hangs up when the answer is there.
    pub(crate) fn store_answer(&self) -> Option<BorrowedFd<'_>> {
        self.store.check.as_ref().map(|check| check.barrier.as_fd())
    }

    /// Take the answer, if it is there.
    pub(crate) fn see_store(&mut self) {
        if let Some(check) = self.store.check.take_if(|check| hangs_up(&check.barrier, PollTimeout::ZERO)) {
            let is_stored = !hangs_up(&check.stored, PollTimeout::ZERO);
            // What could not be sent is closed, too.
            let unreachable = self.unreachable;
            self.put_store(format!("{REMOVE}{CHECK}"), None);
            if !is_stored {
                self.store.is_missing = true;
                match unreachable {
                    Some(errno) => {
                        report_missing(&format!("the service manager is not reached (NOTIFY_SOCKET): {errno}"))
                    }
                    None => report_missing("the service manager does not store that many (FileDescriptorStoreMax=)"),
                }
            }
        }
    }

    /// Wait until it has read everything, but not for long: it may be none that answers.
    fn wait_until_read(&mut self) {
        let deadline = sys::now() + TIMEOUT;
        let barrier = self.put_pipe("BARRIER=1");
        while !self.unsent.is_empty() && sys::now() < deadline {
            // There is nothing to poll: the queue is of another's socket.
            let _ = poll(&mut [], PollTimeout::from(10_u8));
            self.send_unsent(sys::now());
        }
        let is_read = barrier.is_ok_and(|barrier| hangs_up(&barrier, left(deadline)));
        if !is_read {
            debug!("--fdstore: the service manager has not answered");
        }
    }
}

impl StoreSupport {
    /// Read FDSTORE, which is how much it stores (systemd 254).
    pub(super) fn of(environment: &[&CStr]) -> StoreSupport {
        StoreSupport { is_missing: sys::variable(environment, "FDSTORE") == Some(b"0"), check: None }
    }
}

impl Item<'_> {
    /// This by this name; none if it cannot be looked at.
    pub(crate) fn of(name: FdName, fd: BorrowedFd<'_>) -> Option<Item<'_>> {
        Some(Item { name, inode: SocketInode::of(fd).ok()?, fd })
    }
}

impl Inventory {
    /// What came back from it.
    pub(crate) fn of(mut stored: Stored) -> Inventory {
        Inventory { held: stored.take_known(), is_ours: false }
    }

    /// Names and inodes.
    pub(crate) fn held(&self) -> impl Iterator<Item = (&str, u64)> {
        self.held.iter().map(|(name, inode)| (name.as_str(), inode.0))
    }

    /// See to it that the store holds these and nothing else of ours; is any of them new?
    pub(crate) fn update(&mut self, items: &[Item], manager: &mut Manager) -> bool {
        self.held.retain(|(name, inode)| {
            let is_wanted = items.iter().any(|item| item.name == *name && item.inode == *inode);
            if !is_wanted {
                manager.discard(name);
            }
            is_wanted
        });
        if !std::mem::replace(&mut self.is_ours, true) {
            self.held.clear();
        }
        let before = self.held.len();
        for item in items {
            if !self.held.iter().any(|(name, _)| item.name == *name) {
                manager.keep(&item.name, item.fd);
                self.held.push((item.name.clone(), item.inode));
            }
        }
        self.held.len() > before
    }

    /// Give these to it, each by its name, as the last thing that this process does with it.
    pub(crate) fn hand_over(mut self, names: Vec<FdName>, listeners: &[Listener]) {
        let mut manager = Manager::of(&sys::environment());
        manager.expect_store();
        let items = names.into_iter().zip(listeners).filter_map(|(name, listener)| Item::of(name, listener.as_fd()));
        let items: Vec<Item> = items.collect();
        if manager.has_store() && self.update(&items, &mut manager) {
            manager.check_store();
            manager.wait_until_read();
            manager.see_store();
        }
        if !manager.has_store() {
            self.update(&[], &mut manager);
        }
    }
}

fn report_missing(why: &str) {
    warn!("--fdstore: {why}: the sockets end with this process");
}

fn left(deadline: Timestamp) -> PollTimeout {
    PollTimeout::try_from(deadline.saturating_sub(sys::now()).as_millis()).unwrap_or(PollTimeout::ZERO)
}

fn hangs_up(pipe: &OwnedFd, within: PollTimeout) -> bool {
    let mut polled = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
    // An interrupted wait is no answer.
    poll(&mut polled, within).is_ok_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    // A supervisor that was replaced knows nothing else of what its predecessor had to remove.
    #[test]
    fn what_a_predecessor_stored_and_is_not_wanted_any_more_is_removed() {
        let path = std::env::temp_dir().join(format!("handoff-run-store-{}", std::process::id()));
        let socket = UnixDatagram::bind(&path).unwrap();
        let variable = CString::new(format!("NOTIFY_SOCKET={}", path.display())).unwrap();
        let mut manager = Manager::of(&[&variable]);
        let kept = UnixDatagram::unbound().unwrap();
        let item = Item::of(FdName::announced("kept").unwrap(), kept.as_fd()).unwrap();
        let held = [format!("{} kept", item.inode.0), "5 gone".to_owned(), "0 unsent".to_owned()];
        let mut inventory = Inventory::of(Stored::resume(None, &held));
        inventory.update(&[item], &mut manager);
        std::fs::remove_file(path).unwrap();
        let mut texts = vec![];
        socket.set_nonblocking(true).unwrap();
        let mut bytes = [0; 100];
        while let Ok(length) = socket.recv(&mut bytes) {
            texts.push(String::from_utf8(bytes[..length].to_vec()).unwrap());
        }
        let removed: Vec<&str> = texts.iter().filter_map(|text| text.strip_prefix(REMOVE)).collect();
        assert!(removed.contains(&"gone") && removed.contains(&"unsent") && !removed.contains(&"kept"), "{texts:?}");
        assert_eq!(inventory.held().map(|(name, _)| name).collect::<Vec<_>>(), ["kept"]);
    }
}
