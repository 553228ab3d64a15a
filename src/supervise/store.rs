//! Keep the service manager's descriptor store up to date: it holds every socket, and a state that says what the steered
//! ones are. Neither is lost with this process.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use log::warn;

use crate::manager::Manager;
use crate::manager::store::{Inventory, Item};
use crate::socket::spec::{FdName, Spec};
use crate::socket::state_file::StateFile;
use crate::socket::store_name;
use crate::socket::stored::{Keeper, Stored};
use crate::supervise::Supervisor;
use crate::sys::Claimed;

/// What the service manager has of us.
#[derive(Debug)]
pub(crate) struct Store {
    /// Of the SPECs.
    names: Vec<FdName>,
    state: Option<StateFile>,
    /// What the state says.
    text: String,
    /// It was reported that it could not be written.
    is_behind: bool,
    inventory: Inventory,
}

impl Store {
    /// Begin with what came back from it, if it is to be used.
    pub(crate) fn begin(keeper: Keeper, specs: &[Spec], stored: Stored, manager: &Manager) -> Option<Store> {
        if keeper == Keeper::Nobody {
            return None;
        }
        manager.expect_store();
        Some(Store::new(specs, stored))
    }

    fn new(specs: &[Spec], mut stored: Stored) -> Store {
        let new = || StateFile::new().inspect_err(|error| warn!("--fdstore: {error:#}")).ok();
        let state = stored.state.take().or_else(new);
        Store {
            names: store_name::of_specs(specs),
            state,
            text: String::new(),
            is_behind: false,
            inventory: Inventory::of(stored),
        }
    }

    /// Go on where a predecessor of this supervisor left its state at this descriptor, and these in the store.
    pub(crate) fn resume(
        keeper: Keeper,
        specs: &[Spec],
        number: Option<RawFd>,
        held: &[String],
        claimed: &mut Claimed,
    ) -> Option<Store> {
        let state = number.and_then(|number| claimed.take(number).ok()).and_then(|fd| StateFile::open(fd).ok());
        let state = state.map(|(file, _)| file);
        (keeper == Keeper::Manager).then(|| Store::new(specs, Stored::resume(state, held)))
    }

    /// The descriptor of the state.
    pub(crate) fn handed_on(&self) -> Option<BorrowedFd<'_>> {
        self.state.as_ref().map(AsFd::as_fd)
    }

    /// What the store has, or has until it reads what could not be sent yet.
    pub(crate) fn held(&self, manager: &Manager) -> Vec<String> {
        let held = self.inventory.held().chain(manager.undiscarded().map(|name| (name, 0)));
        held.map(|(name, inode)| format!("{inode} {name}")).collect()
    }

    /// For the supervisor that takes the place of this one.
    pub(crate) fn save(&self) -> Option<RawFd> {
        self.handed_on().map(|fd| fd.as_raw_fd())
    }
}

impl Supervisor {
    /// Are the sockets looked after? Not at the end of all, unless they are still there then.
    pub(super) fn keeps_sockets(&self) -> bool {
        self.plan.stopping.is_none() || self.is_stored()
    }

    /// Has the service manager the sockets, as far as that is known?
    pub(super) fn is_stored(&self) -> bool {
        self.store.is_some() && self.reporter.manager.has_store()
    }

    /// Bring the store up to date, if anything has changed.
    pub(super) fn store_sockets(&mut self) {
        let Some(store) = &mut self.store else { return };
        let manager = &mut self.reporter.manager;
        manager.see_store();
        if !manager.has_store() {
            store.inventory.update(&[], manager);
            return;
        }
        let text = serde_json::to_string(&self.sockets.save_stored()).unwrap_or_default();
        if text == store.text {
            return;
        }
        // The state first: a socket that is missing is noticed.
        let written = store.state.as_mut().map_or(Ok(()), |state| state.write(&text));
        match written {
            Ok(()) => (store.text, store.is_behind) = (text, false),
            // It is tried again in each round.
            Err(error) if !std::mem::replace(&mut store.is_behind, true) => warn!("--fdstore: {error:#}"),
            Err(_) => (),
        }
        let mut items = self.sockets.items(&store.names);
        let state = store.state.as_ref().map(AsFd::as_fd);
        items.extend(FdName::announced(store_name::STATE).zip(state).and_then(|(name, fd)| Item::of(name, fd)));
        if store.inventory.update(&items, manager) {
            manager.check_store();
        }
    }
}
