//! A listener that another process has, too: taken over from it, or lent by it.

use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

use anyhow::Result;
use libc::c_int;
use log::{debug, info};

use crate::kernel::descriptors::SocketInode;
use crate::socket::bound_file::is_bound_at;
use crate::socket::endpoint::Endpoint;
use crate::socket::joining::why_shared;
use crate::socket::listener::{Listener, Manner, Sharing};
use crate::socket::socket_file::Created;
use crate::socket::spec::Spec;
use crate::socket::takeover::{LentGroup, Predecessor};
use crate::sys;

/// Whose a listener is.
#[derive(Debug)]
pub(super) enum Whose {
    Ours,
    /// A process' that serves on it.
    Taken {
        /// What is to be put back if that process is not succeeded: SO_REUSEPORT.
        reuseport: c_int,
        /// Its further sockets at the same address.
        also: Vec<OwnedFd>,
    },
    /// A supervisor's, which lent it with the rest of its group, if it is steered.
    Lent(Option<Box<LentGroup>>),
}

impl Whose {
    /// SO_REUSEPORT as it was before others were to be bound beside it.
    pub(crate) fn reuseport(&self) -> c_int {
        if let Whose::Taken { reuseport, .. } = self { *reuseport } else { 0 }
    }
}

impl Listener {
    /// One that a supervisor lends, with the rest of its group if it is steered.
    pub(crate) fn lent(self, group: Option<LentGroup>) -> Listener {
        Listener { whose: Whose::Lent(group.map(Box::new)), ..self }
    }

    /// The lender keeps the file at `path` for it: that is kept on, and left as it is if we fail.
    pub(crate) fn with_lent_file(self, path: &Path) -> Listener {
        let created = Created::lent(path).inspect_err(|errno| debug!("{}: {errno}", path.display()));
        Listener { created: created.ok(), ..self }
    }

    /// The same for another SPEC than the lender had.
    ///
    /// # Errors
    /// If it is to be shared, and the socket that is does not come with its group.
    pub(crate) fn for_spec(self, spec: &Spec, manner: Manner) -> Result<Listener> {
        let name = spec.fd_name();
        let Whose::Lent(Some(group)) = self.whose else { return Ok(Listener { name, ..self }) };
        match manner.taking {
            Sharing::Shared => {
                let fd = group.serving().unwrap_or(Ok(self.fd))?;
                Ok(Listener { name, fd, whose: Whose::Lent(None), ..self })
            }
            Sharing::Steered => {
                let beside = Some(spec.options.clone());
                Ok(Listener { name, beside, whose: Whose::Lent(Some(group)), ..self })
            }
        }
    }

    /// The rest of its group, if it was lent with one.
    pub(crate) fn take_group(&mut self) -> Option<LentGroup> {
        let Whose::Lent(group) = &mut self.whose else { return None };
        group.take().map(|group| *group)
    }

    /// Is it what bind(2) to `wanted` would have made, and is its name still?
    pub(crate) fn is_at(&self, wanted: &Endpoint) -> bool {
        let Ok(bound) = self.endpoint() else { return false };
        match (wanted.path(), bound.path()) {
            (Ok(path), Ok(name)) => SocketInode::of(&self.fd).is_ok_and(|inode| is_bound_at(path, inode, name)),
            _ => wanted.is_served_by(&bound),
        }
    }

    /// Has another process it, too, which is to be succeeded?
    pub(crate) fn is_of_predecessor(&self) -> bool {
        !matches!(self.whose, Whose::Ours)
    }

    /// One that another process serves on, by the kernel's word the one that `spec` asks for, with what it has `also` at the
    /// same address. Others may be bound beside it if nothing forbids that, which is logged.
    pub(crate) fn taken_over(
        spec: &Spec,
        fd: OwnedFd,
        also: Vec<OwnedFd>,
        manner: Manner,
        predecessor: Option<&Predecessor>,
    ) -> Result<Listener> {
        let listener = Listener::adopted(spec.fd_name(), fd);
        let Some(predecessor) = predecessor else { return Ok(listener) };
        let endpoint = listener.endpoint()?;
        let created = endpoint.path().ok().and(spec.path()).map(Created::taken_over).transpose()?;
        let obstacle = match manner.taking {
            Sharing::Shared => None,
            Sharing::Steered => why_shared(&listener.fd, &endpoint, &spec.options),
        };
        if let Some(obstacle) = obstacle {
            info!("{spec} is shared with {predecessor}: {obstacle}");
        }
        let is_steered = manner.taking == Sharing::Steered && obstacle.is_none();
        let beside = is_steered.then(|| spec.options.clone());
        let reuseport = sys::option(&listener.fd, libc::SOL_SOCKET, libc::SO_REUSEPORT).unwrap_or_default();
        Ok(Listener { created, beside, whose: Whose::Taken { reuseport, also }, ..listener })
    }

    /// Is it a supervisor's, which lent it?
    pub(crate) fn is_lent(&self) -> bool {
        matches!(self.whose, Whose::Lent(_))
    }

    /// Was it taken over from a process that serves on it?
    pub(crate) fn is_taken(&self) -> bool {
        matches!(self.whose, Whose::Taken { .. })
    }

    /// The same with the further sockets of the process that it was taken over from at numbers from `lowest` on, clear of those
    /// that the program has.
    pub(crate) fn clear_of_program(mut self, lowest: RawFd) -> Listener {
        if let Whose::Taken { also, .. } = &mut self.whose {
            *also = std::mem::take(also).into_iter().map(|fd| sys::moved_from(fd, lowest)).collect();
        }
        self
    }

    /// The further sockets of the process that it was taken over from.
    pub(crate) fn also(&self) -> &[OwnedFd] {
        if let Whose::Taken { also, .. } = &self.whose { also } else { &[] }
    }

    /// How many connections wait at the further sockets of the process that it was taken over from.
    pub(crate) fn waiting_beside(&self) -> usize {
        self.also().iter().map(|socket| sys::queue(socket).map_or(0, |queue| queue.length as usize)).sum()
    }

    /// The process that it was taken over from is gone.
    pub(crate) fn own(&mut self) {
        self.whose = Whose::Ours;
        self.created.iter_mut().for_each(Created::own);
    }

    /// The process that has it now looks after its name.
    pub(crate) fn leave_name(&mut self) {
        self.created.iter_mut().for_each(Created::leave);
    }

    /// Another supervisor keeps its names.
    pub(crate) fn leave_both_names(&mut self) {
        self.created.iter_mut().for_each(Created::leave_both);
    }

    /// Let others be bound beside it.
    pub(crate) fn allow_others(&self) -> nix::Result<()> {
        sys::set_option(&self.fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)
    }
}
