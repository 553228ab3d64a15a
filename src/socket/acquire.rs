//! Where the sockets come from: inherited, or else bound. The variables are hints; what the kernel reports decides.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use log::{debug, info};
use nix::errno::Errno;
use nix::poll::{PollTimeout, poll};

use crate::failure::{Failure, Result};
use crate::kernel::descriptors::SocketInode;
use crate::socket::address::Address;
use crate::socket::announced::Announced;
use crate::socket::candidate::{Candidate, Candidates};
use crate::socket::endpoint::{Endpoint, resolve};
use crate::socket::listener::{Listener, Manner, bind_first};
use crate::socket::spec::{FdName, Spec};
use crate::socket::store_name;
use crate::socket::stored::Stored;
use crate::socket::takeover::{Lent, Predecessor, Search, Taken};
use crate::sys;

/// How long what the service manager closed may still be open in a child of its own, which has a copy of all until it is
/// another program.
const CLOSING: Duration = Duration::from_secs(1);

/// What is to be handed on, and what stays open beside it.
pub(crate) struct Acquired {
    pub(crate) listeners: Vec<Listener>,
    pub(crate) others: Vec<OwnedFd>,
    /// The process that some of the listeners were taken over from, and that is to be retired.
    pub(crate) predecessor: Option<Predecessor>,
    /// What the service manager stored of them.
    pub(crate) stored: Stored,
}

/// Where sockets are taken from that were not inherited.
pub(crate) enum Origin {
    /// A process, which need not know.
    Process(Search),
    /// A supervisor, which lent them.
    Supervisor(Predecessor, Lent),
}

/// The endpoints of each of `specs`.
pub(crate) fn endpoints_of(specs: &[Spec]) -> Result<Vec<Vec<Endpoint>>> {
    specs.iter().map(|spec| Ok(Wanted::new(spec)?.endpoints)).collect()
}

/// A SPEC that has no socket yet.
struct Wanted<'a> {
    spec: &'a Spec,
    endpoints: Vec<Endpoint>,
    found: Option<Candidate>,
    /// It was found by `--from`, with these at the same address.
    taken: Option<Vec<OwnedFd>>,
    /// A supervisor lent it.
    lent: Option<Listener>,
}

/// A listener for each of `specs`, adopted where the kernel shows that it was inherited, else bound. Before that, `discard`
/// is called with the names of what the service manager still stores and may have an address that is bound then.
pub(crate) fn acquire(
    specs: &[Spec],
    mut candidates: Candidates,
    announced: &Announced,
    mut stored: Stored,
    manner: Manner,
    from: Option<Origin>,
    discard: impl FnOnce(&[FdName]),
) -> Result<Acquired> {
    let mut wanted = specs.iter().map(Wanted::new).collect::<Result<Vec<_>>>()?;
    if !candidates.sockets.is_empty() {
        match_descriptors(&mut wanted, &mut candidates);
        match_addresses(&mut wanted, &mut candidates)?;
        match_names(&mut wanted, &mut candidates, announced, &store_name::of_specs(specs));
        match_order(&mut wanted, &mut candidates);
    }
    match_stdin(&mut wanted);
    let taken: Vec<u64> = wanted.iter().filter_map(|wanted| Some(wanted.found.as_ref()?.inode)).collect();
    let beside = take_beside(&mut candidates, announced)?;
    let others = candidates.let_go(&taken, announced)?;
    let released = stored.release(&taken);
    discard(&released);
    let timeout = if released.is_empty() { Duration::ZERO } else { CLOSING };
    let predecessor = from.map(|from| take_over(&mut wanted, from)).transpose()?.flatten();
    let listeners =
        wanted.into_iter().map(|wanted| wanted.into_listener(manner, predecessor.as_ref(), &stored, timeout));
    let listeners = listeners.chain(beside.into_iter().map(Ok)).collect::<Result<_>>()?;
    Ok(Acquired { listeners, others, predecessor, stored })
}

/// Take what was not inherited from a running process, as far as it has it.
fn take_over(wanted: &mut [Wanted], from: Origin) -> Result<Option<Predecessor>> {
    let is_missing = |wanted: &&mut Wanted| wanted.found.is_none() && !wanted.is_descriptor();
    let mut missing: Vec<&mut Wanted> = wanted.iter_mut().filter(is_missing).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    let from = match from {
        Origin::Process(from) => from,
        Origin::Supervisor(predecessor, mut lent) => {
            missing.iter_mut().for_each(|wanted| wanted.lent = lent.take(&wanted.endpoints, &wanted.spec.fd_name()));
            if missing.iter().all(|wanted| wanted.lent.is_none()) {
                return Err(nothing_lent(&predecessor, &lent));
            }
            for listener in lent.rest() {
                let address = listener.endpoint()?;
                info!("no --listen asks for {address}: {predecessor} serves it until it has drained");
            }
            return Ok(Some(predecessor));
        }
    };
    let endpoints: Vec<&[Endpoint]> = missing.iter().map(|wanted| wanted.endpoints.as_slice()).collect();
    let Taken { predecessor, sockets } = from.take(&endpoints)?;
    for (wanted, found) in missing.iter_mut().zip(sockets) {
        let (found, also) = found.map(|found| (found.socket, found.also)).unzip();
        (wanted.found, wanted.taken) = (found, also);
    }
    Ok(predecessor)
}

/// That a supervisor has nothing of what is asked for: it is another one than is meant.
fn nothing_lent(lender: &Predecessor, lent: &Lent) -> Failure {
    // One whose address cannot be read is only not named.
    let addresses = lent.rest().filter_map(|other| Some(other.endpoint().ok()?.to_string()));
    let addresses = addresses.collect::<Vec<_>>().join(" and ");
    let remedy = (!addresses.is_empty()).then(|| format!("it listens on {addresses}"));
    let error = anyhow!("cannot take over from {lender}: it has no socket at that address");
    Failure::from(error).remedy(remedy)
}

/// Without a SPEC: what LISTEN_FDS announces, or else every socket that serves, or else descriptor 0.
pub(crate) fn adopt_all(mut candidates: Candidates, announced: &Announced, stored: Stored) -> anyhow::Result<Acquired> {
    let mut listeners: Vec<Listener> = Vec::new();
    let mut taken: Vec<u64> = Vec::new();
    for number in announced.numbers() {
        let Some(name) = announced.name_of(number) else { continue };
        if let Some(socket) = candidates.take(number) {
            adopt(&mut listeners, &mut taken, socket, name);
        } else {
            let other = candidates.take_other(number)?;
            let fd = other.with_context(|| {
                format!("LISTEN_FDS={} announces descriptor {number}, which is not open", announced.count)
            })?;
            listeners.push(Listener::beside(name, fd));
        }
    }
    if announced.count == 0 {
        let numbers: Vec<_> = candidates.sockets.iter().filter(|s| s.serves).map(|s| s.number).collect();
        let found = numbers.into_iter().filter_map(|number| candidates.take(number));
        found.for_each(|socket| adopt(&mut listeners, &mut taken, socket, FdName::default()));
        if listeners.is_empty() {
            listeners.extend(Candidate::from_stdin().map(|socket| Listener::adopted(FdName::default(), socket.fd)));
        }
    }
    ensure!(listeners.iter().any(Listener::is_socket), "no listening socket was inherited, and no --listen was given");
    let others = candidates.let_go(&taken, announced)?;
    Ok(Acquired { listeners, others, predecessor: None, stored })
}

/// What is announced and no socket, as systemd's OpenFile= and ListenFIFO= have it. Asked for each that is open, for the
/// count in LISTEN_FDS may be anything.
fn take_beside(candidates: &mut Candidates, announced: &Announced) -> nix::Result<Vec<Listener>> {
    let numbers: Vec<_> = candidates.others.iter().map(AsRawFd::as_raw_fd).collect();
    let mut beside = Vec::new();
    for number in numbers {
        if let Some(name) = announced.name_of(number)
            && let Some(fd) = candidates.take_other(number)?
        {
            beside.push(Listener::beside(name, fd));
        }
    }
    Ok(beside)
}

/// Add a listener, unless its socket was adopted already.
fn adopt(listeners: &mut Vec<Listener>, taken: &mut Vec<u64>, socket: Candidate, name: FdName) {
    if !taken.contains(&socket.inode) {
        taken.push(socket.inode);
        listeners.push(Listener::adopted(name, socket.fd));
    }
}

impl<'a> Wanted<'a> {
    fn new(spec: &'a Spec) -> Result<Wanted<'a>> {
        let endpoints = resolve(spec).with_context(|| format!("cannot listen on {spec}"))?;
        Ok(Wanted { spec, endpoints, found: None, taken: None, lent: None })
    }

    /// The address does not identify a socket, and none was found by other means yet.
    fn is_open(&self) -> bool {
        self.found.is_none() && (self.is_descriptor() || self.endpoints.iter().any(Endpoint::has_free_port))
    }

    fn is_descriptor(&self) -> bool {
        matches!(self.spec.address, Address::Descriptor(_))
    }

    fn accepts(&self, socket: &Candidate) -> bool {
        self.is_descriptor() && socket.serves || self.endpoints.iter().any(|endpoint| socket.is_at(endpoint))
    }

    /// With this `timeout` if somebody else has the address.
    fn into_listener(
        self,
        manner: Manner,
        predecessor: Option<&Predecessor>,
        stored: &Stored,
        timeout: Duration,
    ) -> Result<Listener> {
        if let Some(lent) = self.lent {
            debug!("{} is lent", self.spec);
            return Ok(lent.for_spec(self.spec, manner)?);
        }
        match (self.found, self.taken, &self.spec.address) {
            (Some(socket), Some(also), _) => {
                debug!("{} is taken over", self.spec);
                Ok(Listener::taken_over(self.spec, socket.fd, also, manner, predecessor)?)
            }
            (Some(socket), None, _) => {
                debug!("{} is adopted from descriptor {}", self.spec, socket.number);
                let listener = Listener::adopted(self.spec.fd_name(), socket.fd);
                let is_steered = stored.is_steered(SocketInode(socket.inode));
                Ok(if is_steered { listener.not_alone(self.spec.options.clone()) } else { listener })
            }
            (None, _, Address::Descriptor(number)) => {
                Err(anyhow!("cannot listen on {}: descriptor {number} is not an open socket", self.spec).into())
            }
            (None, ..) => bind_within(timeout, self.spec, &self.endpoints, manner),
        }
    }
}

/// Bind it as soon as nobody has the address, if that is within this time.
fn bind_within(timeout: Duration, spec: &Spec, endpoints: &[Endpoint], manner: Manner) -> Result<Listener> {
    let deadline = sys::now() + timeout;
    loop {
        match bind_first(spec, endpoints, manner) {
            Err(failure) if failure.errno() == Some(Errno::EADDRINUSE) && sys::now() < deadline => {
                let _ = poll(&mut [], PollTimeout::from(10_u8));
            }
            outcome => return outcome,
        }
    }
}

/// `fd:N` means the socket at N.
fn match_descriptors(wanted: &mut [Wanted], candidates: &mut Candidates) {
    for wanted in wanted {
        if let Address::Descriptor(number) = wanted.spec.address {
            wanted.found = candidates.take(number);
        }
    }
}

/// An address means the socket bound there; as many SPECs of one address as there are sockets take them in order.
fn match_addresses(wanted: &mut [Wanted], candidates: &mut Candidates) -> anyhow::Result<()> {
    for at in 0..wanted.len() {
        if wanted[at].found.is_some() || wanted[at].is_open() {
            continue;
        }
        let same = wanted[at..].iter().filter(|other| other.endpoints == wanted[at].endpoints).count();
        wanted[at].found = take_bound(&wanted[at], same, candidates)?;
    }
    Ok(())
}

/// The socket at the first endpoint that has one, if no more than `most` different ones are there.
fn take_bound(wanted: &Wanted, most: usize, candidates: &mut Candidates) -> anyhow::Result<Option<Candidate>> {
    for endpoint in &wanted.endpoints {
        let fits: Vec<&Candidate> = candidates.sockets.iter().filter(|socket| socket.is_at(endpoint)).collect();
        let mut inodes: Vec<u64> = Vec::new();
        for socket in &fits {
            if !inodes.contains(&socket.inode) {
                inodes.push(socket.inode);
            }
        }
        let numbers: Vec<String> = fits.iter().map(|socket| socket.number.to_string()).collect();
        ensure!(
            inodes.len() <= most,
            "cannot listen on {}: descriptors {} are different sockets that both fit",
            wanted.spec,
            numbers.join(" and ")
        );
        if let Some(number) = fits.first().map(|socket| socket.number) {
            return Ok(take_whole(candidates, number));
        }
    }
    Ok(None)
}

/// The socket at `number`, its other descriptors closed: they count once.
fn take_whole(candidates: &mut Candidates, number: i32) -> Option<Candidate> {
    let socket = candidates.take(number)?;
    candidates.sockets.retain(|other| other.inode != socket.inode);
    Some(socket)
}

/// Port 0 means the socket that was announced by the same name, first of all by its own in the service manager's store …
fn match_names(wanted: &mut [Wanted], candidates: &mut Candidates, announced: &Announced, stored: &[FdName]) {
    let stored: Vec<(usize, &FdName)> = stored.iter().enumerate().collect();
    let specs: Vec<&Spec> = wanted.iter().map(|wanted| wanted.spec).collect();
    let named = specs.into_iter().enumerate().filter_map(|(at, spec)| Some((at, spec.name.as_ref()?)));
    for (at, name) in stored.into_iter().chain(named) {
        let wanted = &mut wanted[at];
        if !wanted.is_open() {
            continue;
        }
        // Asked socket by socket, for the count in LISTEN_FDS may be anything.
        let is_named = |socket: &&Candidate| announced.name_of(socket.number).as_ref() == Some(name);
        let socket = candidates.sockets.iter().filter(is_named).find(|socket| wanted.accepts(socket));
        let number = socket.map(|socket| socket.number);
        wanted.found = number.and_then(|number| take_whole(candidates, number));
    }
}

/// … or else the next one that fits.
fn match_order(wanted: &mut [Wanted], candidates: &mut Candidates) {
    for wanted in wanted.iter_mut().filter(|wanted| wanted.is_open()) {
        let number = candidates.sockets.iter().find(|socket| wanted.accepts(socket)).map(|socket| socket.number);
        wanted.found = number.and_then(|number| take_whole(candidates, number));
    }
}

/// Some wrappers close everything but the standard descriptors: descriptor 0, set by --stdin, is still a socket.
fn match_stdin(wanted: &mut [Wanted]) {
    if wanted.iter().all(|wanted| wanted.found.is_some()) {
        return;
    }
    let Some(socket) = Candidate::from_stdin() else { return };
    let known = wanted.iter().filter_map(|wanted| wanted.found.as_ref()).any(|found| found.inode == socket.inode);
    let first = wanted.iter_mut().find(|wanted| !known && wanted.found.is_none() && wanted.accepts(&socket));
    if let Some(wanted) = first {
        wanted.found = Some(socket);
    }
}
