//! The sockets that a bind(2) of a program is answered with, which may have to be bound for it first.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use log::{info, warn};

use crate::failure;
use crate::socket::address::{UnixKind, UnixName};
use crate::socket::endpoint::Endpoint;
use crate::socket::group::Group;
use crate::socket::interception::asked::Asked;
use crate::socket::interception::{BindRequest, Decision, Versions, decide};
use crate::socket::listener::{Listener, Manner, bind_at};
use crate::socket::spec::Spec;
use crate::supervise::sockets::{Listed, Share, Sockets, reach};
use crate::supervise::wording::connections;

/// How a socket is bound for a generation.
pub(crate) struct Binding<'a> {
    pub(crate) specs: &'a [Spec],
    /// As far as a SPEC does not say it.
    pub(crate) manner: Manner,
    /// What the generation has.
    pub(crate) share: Share,
}

impl Sockets {
    /// What a request is to be answered with.
    pub(crate) fn decide(&self, request: &BindRequest) -> Decision {
        // One that was shut down, and listens on no address of its own any more, cannot be asked for.
        let nowhere = || Endpoint::Vsock { cid: 0, port: 0 };
        let endpoint = |group: &Group| group.listener(0).endpoint().unwrap_or_else(|_| nowhere());
        let ours: Vec<(Endpoint, Versions)> =
            self.listed.iter().map(|listed| (endpoint(&listed.group), listed.versions)).collect();
        decide(&ours, request)
    }

    /// Is any of them a Unix socket?
    pub(crate) fn has_unix(&self) -> bool {
        self.listeners().any(|listener| matches!(listener.endpoint(), Ok(Endpoint::Unix { .. })))
    }

    /// May one of them be meant by this address? A cheap test that ends most calls.
    pub(crate) fn may_be_asked_for(&self, asked: &Asked) -> bool {
        let may_be = |endpoint: &Endpoint| match (endpoint, asked) {
            (Endpoint::Inet { address, .. }, Asked::Inet(asked)) => address.port() == asked.port(),
            (Endpoint::Unix { name: UnixName::Path(path), .. }, Asked::Unix(UnixName::Path(asked))) => {
                path.file_name() == asked.file_name()
            }
            (Endpoint::Unix { name, .. }, Asked::Unix(asked)) => name == asked,
            (Endpoint::Vsock { port, .. }, Asked::Vsock { port: asked, .. }) => port == asked,
            _ => false,
        };
        self.listeners().any(|listener| listener.endpoint().is_ok_and(|endpoint| may_be(&endpoint)))
    }

    /// The one at a path of that last name, for which `is_there` holds of its folder.
    pub(crate) fn at_path(
        &self,
        kind: UnixKind,
        name: &Path,
        mut is_there: impl FnMut(&Path) -> bool,
    ) -> Option<usize> {
        let is_it = |group: &Group| {
            path(group).is_some_and(|(own_kind, own)| {
                own_kind == kind && own.file_name() == name.file_name() && is_there(&own)
            })
        };
        self.groups().position(is_it)
    }

    /// The socket at this place for a generation that has bound it just now. Where nobody had it, it is in use again.
    pub(crate) fn taken(&mut self, at: usize, share: Share) -> &Listener {
        let listed = &mut self.listed[at];
        if listed.versions == Versions::Undecided {
            listed.versions = Versions::Half;
        }
        listed.group.give(share.slot());
        listed.group.listener(share.slot())
    }

    /// A generation serves: the IP versions of all addresses are those that it has bound.
    pub(crate) fn settle_versions(&mut self) {
        for listed in self.listed.iter_mut().filter(|listed| listed.versions == Versions::Half) {
            listed.versions = Versions::Chosen;
        }
    }

    /// A generation that may have chosen IP versions failed: the next one chooses.
    pub(crate) fn forget_versions(&mut self) {
        for at in (0..self.listed.len()).rev() {
            if self.listed[at].versions != Versions::Half {
                continue;
            }
            if self.is_beside(at) {
                self.listed.remove(at);
            } else {
                self.listed[at].versions = Versions::Undecided;
            }
        }
        self.see_reach();
    }

    /// Was it bound beside another one, of the same SPEC?
    pub(crate) fn is_beside(&self, at: usize) -> bool {
        self.listed[..at].iter().any(|other| other.spec == self.listed[at].spec)
    }

    fn see_reach(&mut self) {
        self.reach = reach(self.listed.iter().map(|listed| &listed.group));
    }

    /// Bind the one at this place to `endpoint` instead, as `how` says; the same place. Clients that
    /// waited there are dropped.
    ///
    /// # Errors
    /// What bind(2) reports; then it is as it was, or where that cannot be, it is gone.
    pub(crate) fn bind_anew(&mut self, at: usize, endpoint: &Endpoint, how: &Binding) -> Result<usize> {
        let spec = self.spec(at, how.specs)?;
        let old = &self.listed[at].group;
        let (slots, before) = (old.slots(), old.listener(0).endpoint()?);
        let waiting: usize = (0..slots).map(|slot| old.waiting(slot)).sum();
        // Both cannot listen: it is closed first.
        let Listed { spec: of, .. } = self.listed.remove(at);
        let bound = plain(bind_at(spec, endpoint, how.manner, self.lowest));
        let versions = if bound.is_ok() { Versions::Half } else { Versions::Undecided };
        let (listener, outcome) = match bound {
            Ok(listener) => (listener, Ok(at)),
            Err(error) => (plain(bind_at(spec, &before, how.manner, self.lowest))?, Err(error)),
        };
        let group = self.begin(listener, slots, how.share)?;
        self.listed.insert(at, Listed { group, versions, spec: of });
        self.see_reach();
        if outcome.is_ok() {
            info!("{spec} listens on {endpoint}, of the IP version that the program asked for");
        }
        if waiting > 0 {
            warn!("what waited at {before} is reset{}", connections(Some(waiting)));
        }
        outcome
    }

    /// Bind one more, to `endpoint`, for the SPEC of the one at this place and as `how` says; its place.
    ///
    /// # Errors
    /// What bind(2) reports.
    pub(crate) fn bind_beside(&mut self, at: usize, endpoint: &Endpoint, how: &Binding) -> Result<usize> {
        let spec = self.spec(at, how.specs)?;
        let of = self.listed[at].spec;
        let listener = plain(bind_at(spec, endpoint, how.manner, self.lowest))?;
        let group = self.begin(listener, self.listed[at].group.slots(), how.share)?;
        self.listed.push(Listed { group, versions: Versions::Half, spec: of });
        self.see_reach();
        info!("{spec} also listens on {endpoint}, of the IP version that the program asked for");
        Ok(self.listed.len() - 1)
    }

    /// A group of as many slots as the others have, of which one generation has one.
    fn begin(&self, first: Listener, slots: usize, share: Share) -> Result<Group> {
        let mut group = Group::of(first, self.lowest)?;
        while group.is_steered() && group.slots() < slots {
            group.grow(self.lowest)?;
        }
        group.steer(self.route)?;
        (0..group.slots()).filter(|slot| *slot != share.slot()).for_each(|slot| group.free(slot, self.lowest));
        group.give(share.slot());
        Ok(group)
    }

    fn spec<'a>(&self, at: usize, specs: &'a [Spec]) -> Result<&'a Spec> {
        specs.get(self.listed[at].spec).context("no SPEC asked for it")
    }
}

fn path(group: &Group) -> Option<(UnixKind, PathBuf)> {
    match group.listener(0).endpoint() {
        Ok(Endpoint::Unix { kind, name: UnixName::Path(path) }) => Some((kind, path)),
        _ => None,
    }
}

/// Without the remedy, which is for one who starts a supervisor.
fn plain<T>(outcome: failure::Result<T>) -> Result<T> {
    outcome.map_err(|failure| anyhow::Error::msg(failure.message()))
}
