//! One address: a socket that all generations share, or a socket for each of them, among which the kernel chooses.
//!
//! The promise of the steered ones: new connections go where the route says, whatever a server does to its own socket, and
//! what waits on a socket that nobody has is reset at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use anyhow::{Context, Error, Result};
use log::debug;
use nix::poll::PollFlags;
use nix::sys::socket::{Shutdown, shutdown};
use serde::{Deserialize, Serialize};

use crate::kernel::descriptors::SocketInode;
use crate::kernel::socket_info::{InetSocket, IpVersion, States};
use crate::kernel::sockets::{handshakes, inet_sockets};
use crate::missing::Facility;
use crate::saved;
use crate::socket::endpoint::Endpoint;
use crate::socket::listener::{Listener, SavedListener};
use crate::socket::obeyed::is_obeyed;
use crate::socket::options::Options;
use crate::socket::places::{Member, Places};
use crate::socket::slot::Slot;
use crate::socket::steering::{Choice, Client, Course, Share};
use crate::socket::upkeep::Finding;
use crate::sys::{self, Claimed, Transport};

/// As many slots are made at the start: one serves, one is next.
const SLOTS: usize = 2;

/// The sockets of one address.
#[derive(Debug)]
pub(crate) struct Group {
    /// One if it is shared, else one for each generation.
    slots: Vec<Slot>,
    steered: Option<Steered>,
}

/// What steering needs beside the slots.
#[derive(Debug)]
struct Steered {
    places: Places,
    /// Nobody has it, and it is the last in the group: it moves into the gap where a slot leaves, and no other place
    /// changes. The program is attached through it, for that does nothing through a slot that was shut down.
    helm: Option<Slot>,
    /// Datagram sockets that a server has shut down, by the slot that they were; they keep their places until their
    /// generation is gone.
    discarded: Vec<(usize, Listener)>,
    route: Route,
}

/// Where new connections go, by slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) serving: usize,
    pub(crate) exception: Option<(Client, usize)>,
    pub(crate) trial: Option<Trial>,
}

/// A slot that gets a share of the new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trial {
    pub(crate) slot: usize,
    pub(crate) percent: u8,
    /// A client stays on one side, which depends on the salt. Of datagrams it does in any case: they belong together.
    pub(crate) is_sticky: bool,
    pub(crate) salt: u32,
}

/// What a look at a group has brought.
#[derive(Debug, Default)]
pub(crate) struct Look {
    pub(crate) findings: Vec<Finding>,
    /// The slots that servers have shut down.
    pub(crate) left: Vec<usize>,
    /// How many connections, or datagrams, were dropped because nobody had their socket, by the slot.
    pub(crate) dropped: Vec<(usize, usize)>,
}

/// A steered group in a state that is handed on, beside its first slot.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedGroup {
    /// The descriptor of its first slot.
    pub(crate) first: RawFd,
    #[serde(deserialize_with = "saved::lenient")]
    slots: Vec<SavedListener>,
    helm: Option<SavedListener>,
    discarded: Vec<(usize, SavedListener)>,
    places: Places,
    serving: usize,
}

/// Leave each alone where the kernel does not obey.
pub(crate) fn check_obedience(listeners: &mut [Listener]) {
    if listeners.iter().any(|listener| listener.options_beside().is_some()) && !is_obeyed() {
        Facility::Steering.report_missing(&"the kernel takes the program that chooses among sockets, and ignores it");
        listeners.iter_mut().for_each(Listener::stay_alone);
    }
}

impl Group {
    /// The group that `first` begins: steered where others may be bound beside it, with further sockets at numbers from
    /// `lowest` on.
    pub(crate) fn of(first: Listener, lowest: RawFd) -> nix::Result<Group> {
        let is_steered = first.options_beside().is_some();
        let mut group = Group { slots: vec![Slot::of(first)?], steered: None };
        if is_steered && let Err(error) = group.begin_steering(lowest) {
            Facility::Steering.report_missing(&format_args!("{error:#}"));
            group.slots.truncate(1);
            group.steered = None;
            group.slots[0].listener.stay_alone();
        }
        Ok(group)
    }

    fn begin_steering(&mut self, lowest: RawFd) -> Result<()> {
        let mut places = Places::default();
        places.join(Member::Slot(0));
        self.steered = Some(Steered { places, helm: None, discarded: vec![], route: Route::default() });
        while self.slots.len() < SLOTS {
            self.add_slot(lowest)?;
        }
        self.put_helm_last(lowest)?;
        self.attach()
    }

    /// Is there a socket for each generation?
    pub(crate) fn is_steered(&self) -> bool {
        self.steered.is_some()
    }

    /// The slot where new connections go.
    pub(crate) fn serving(&self) -> usize {
        self.steered.as_ref().map_or(0, |steered| steered.route.serving)
    }

    /// How many generations can have one of their own.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The socket of a slot; of a shared group the only one.
    pub(crate) fn listener(&self, slot: usize) -> &Listener {
        &self.slot(slot).listener
    }

    pub(crate) fn inode(&self, slot: usize) -> SocketInode {
        self.slot(slot).inode
    }

    fn slot(&self, slot: usize) -> &Slot {
        &self.slots[if self.is_steered() { slot } else { 0 }]
    }

    /// What is wrong with it, and cannot be repaired.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.slots[self.serving()].upkeep.problem()
    }

    /// Every socket of it.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &Listener> {
        let steered = self.steered.iter();
        let beside = steered.flat_map(|steered| {
            let discarded = steered.discarded.iter().map(|(_, listener)| listener);
            discarded.chain(steered.helm.as_ref().map(|helm| &helm.listener))
        });
        self.slots.iter().map(|slot| &slot.listener).chain(beside)
    }

    /// The sockets to poll, and for what: POLLHUP comes unasked.
    pub(crate) fn polled(&self) -> impl Iterator<Item = (&Listener, PollFlags)> {
        let helm = self.steered.as_ref().and_then(|steered| steered.helm.as_ref());
        self.slots.iter().chain(helm).filter_map(|slot| Some((&slot.listener, slot.polled_for()?)))
    }

    /// One more slot.
    ///
    /// # Errors
    /// If no socket can be bound beside the others.
    pub(crate) fn grow(&mut self, lowest: RawFd) -> Result<()> {
        self.add_slot(lowest)?;
        self.put_helm_last(lowest)?;
        self.attach()
    }

    fn add_slot(&mut self, lowest: RawFd) -> Result<()> {
        let Some(steered) = &mut self.steered else { return Ok(()) };
        let mut slot = Slot::of(self.slots[0].listener.another(lowest)?)?;
        slot.leave_idle()?;
        steered.places.join(Member::Slot(self.slots.len()));
        self.slots.push(slot);
        Ok(())
    }

    /// The slot is given to a generation: what waits there is dropped, and how many that were.
    pub(crate) fn give(&mut self, slot: usize) -> usize {
        if !self.is_steered() { 0 } else { self.slots[slot].give() }
    }

    /// Nobody has the slot any more.
    pub(crate) fn free(&mut self, slot: usize) {
        let Some(steered) = &mut self.steered else { return };
        let of_slot = |(other, _): &mut (usize, Listener)| *other == slot;
        for (_, closed) in steered.discarded.extract_if(.., of_slot) {
            steered.places.leave(Member::Discarded(slot));
            drop(closed);
        }
        if let Err(errno) = self.slots[slot].leave_idle() {
            debug!("slot {slot}: {errno}");
        }
    }

    /// Let new connections go there.
    pub(crate) fn steer(&mut self, route: Route) -> Result<()> {
        let Some(steered) = &mut self.steered else { return Ok(()) };
        steered.route = route;
        self.attach()?;
        for (number, slot) in self.slots.iter_mut().enumerate() {
            let trial = route.trial.map(|trial| trial.slot);
            if number == route.serving || Some(number) == trial { slot.engage() } else { slot.relieve() }
        }
        Ok(())
    }

    /// Let the kernel choose as the route says.
    fn attach(&self) -> Result<()> {
        let Some(steered) = &self.steered else { return Ok(()) };
        let place = |slot: usize| {
            steered.places.of(Member::Slot(slot)).with_context(|| format!("slot {slot} has left its group"))
        };
        let Route { serving, exception, trial } = steered.route;
        let share = trial.map(|Trial { slot, percent, is_sticky, salt }| {
            let by_address = is_sticky || self.slots[serving].is_datagram();
            let choice = if by_address { Choice::Address { salt } } else { Choice::Random };
            (Share { percent, choice }, slot)
        });
        let course = Course {
            serving: place(serving)?,
            exception: exception.map(|(client, slot)| Ok::<_, Error>((client, place(slot)?))).transpose()?,
            share: share.map(|(share, slot)| Ok::<_, Error>((share, place(slot)?))).transpose()?,
        };
        let through = steered.helm.as_ref().unwrap_or(&self.slots[serving]);
        sys::choose_by(&through.listener, &course.program()).context("the kernel does not take the program")
    }

    /// See what servers did to it, and repair it. Further sockets get numbers from `lowest` on.
    pub(crate) fn look_after(&mut self, lowest: RawFd) -> Look {
        let mut look = Look::default();
        let Some(steered) = &mut self.steered else {
            look.findings = self.slots[0].look_after();
            return look;
        };
        look.left = (0..self.slots.len()).filter(|slot| self.slots[*slot].has_left()).collect();
        if let Some(helm) = steered.helm.take_if(|helm| helm.has_left()) {
            // Only we can have done that. Another is put in its place below.
            steered.places.leave(Member::Helm);
            drop(helm);
        }
        let serving = steered.route.serving;
        if !look.left.is_empty() || !steered.places.is_helm_last() {
            let restored = self.restore(&look.left.clone(), lowest);
            look.findings = self.slots[serving].upkeep.note(restored, look.left.contains(&serving));
        } else if self.problem().is_some() {
            let restored = self.attach();
            look.findings = self.slots[serving].upkeep.note(restored, false);
        }
        let Some(steered) = &mut self.steered else { return look };
        for (number, slot) in self.slots.iter_mut().enumerate() {
            slot.listener.restore_backlog();
            look.dropped.push((number, slot.sweep()));
        }
        look.dropped.extend(steered.helm.as_mut().map(|helm| (serving, helm.sweep())));
        look.dropped.retain(|(_, count)| *count > 0);
        look
    }

    /// Bring the slots that have left back into the group, and the group into order.
    fn restore(&mut self, left: &[usize], lowest: RawFd) -> Result<()> {
        let Some(steered) = &mut self.steered else { return Ok(()) };
        let mut left = left.to_vec();
        if self.slots[0].is_datagram() {
            for slot in &left {
                let another = self.slots[0].listener.another(lowest)?;
                let discarded = self.slots[*slot].replace(another)?;
                steered.places.discard(*slot);
                steered.discarded.push((*slot, discarded));
                steered.places.join(Member::Slot(*slot));
            }
        } else {
            let members: Vec<Member> = left.iter().copied().map(Member::Slot).collect();
            steered.places = match steered.places.without(&members) {
                Some(places) => places,
                None => {
                    // Which place leads where is not known any more: all but the serving one leave.
                    let others: Vec<usize> =
                        (0..self.slots.len()).filter(|slot| *slot != steered.route.serving).collect();
                    for slot in others.iter().filter(|slot| !left.contains(slot)) {
                        shut_down(&self.slots[*slot].listener)?;
                    }
                    if let Some(helm) = steered.helm.take() {
                        drop(helm);
                    }
                    let mut places = Places::default();
                    if !left.contains(&steered.route.serving) {
                        places.join(Member::Slot(steered.route.serving));
                        left = others;
                    } else {
                        left = (0..self.slots.len()).collect();
                    }
                    places
                }
            };
            for slot in left {
                self.slots[slot].listener.listen_again().context("it was shut down and cannot listen again")?;
                steered.places.join(Member::Slot(slot));
            }
        }
        self.put_helm_last(lowest)?;
        self.attach()
    }

    /// Put the helm behind all others.
    fn put_helm_last(&mut self, lowest: RawFd) -> Result<()> {
        let Some(steered) = &mut self.steered else { return Ok(()) };
        if steered.places.is_helm_last() {
            return Ok(());
        }
        steered.places.leave(Member::Helm);
        match &mut steered.helm {
            Some(helm) if !helm.is_datagram() => {
                shut_down(&helm.listener)?;
                helm.listener.listen_again()?;
            }
            helm => {
                // The old one is closed first, or it would be in the way.
                *helm = None;
                let mut another = Slot::of(self.slots[0].listener.another(lowest)?)?;
                another.leave_idle()?;
                *helm = Some(another);
            }
        }
        steered.places.join(Member::Helm);
        Ok(())
    }

    /// The inodes of all its sockets.
    pub(crate) fn inodes(&self) -> impl Iterator<Item = SocketInode> {
        let helm = self.steered.as_ref().and_then(|steered| steered.helm.as_ref());
        let discarded = self.steered.iter().flat_map(|steered| &steered.discarded);
        let discarded = discarded.filter_map(|(_, listener)| SocketInode::of(listener).ok());
        self.slots.iter().chain(helm).map(|slot| slot.inode).chain(discarded)
    }

    /// Every socket that may get what comes to this address, if it is steered: a process of this user may bind one.
    pub(crate) fn beside(&self) -> Vec<(String, SocketInode)> {
        let Some(endpoint) = self.inet() else { return vec![] };
        let Endpoint::Inet { kind, address, v6only } = endpoint else { return vec![] };
        let states = if kind == Transport::Tcp { States::LISTENING } else { States::UNCONNECTED };
        let versions: &[IpVersion] = match address {
            SocketAddr::V4(_) => &[IpVersion::V4],
            SocketAddr::V6(_) if v6only || !address.ip().is_unspecified() => &[IpVersion::V6],
            SocketAddr::V6(_) => &[IpVersion::V6, IpVersion::V4],
        };
        let list = |version: &IpVersion| inet_sockets(kind, *version, states, Some(address.port())).unwrap_or_default();
        let is_in_the_way = |socket: &InetSocket| {
            let (bound, ours) = (socket.local.ip().to_canonical(), address.ip().to_canonical());
            ours.is_unspecified() || bound.is_unspecified() || bound == ours
        };
        let found = versions.iter().flat_map(list).filter(is_in_the_way);
        found.map(|socket| (socket.local.to_string(), socket.inode)).collect()
    }

    /// Its endpoint, if it is steered.
    fn inet(&self) -> Option<Endpoint> {
        self.steered.as_ref().and_then(|_| self.slots[0].listener.endpoint().ok())
    }

    /// Where connections that this process makes reach it, if it is a steered listener.
    pub(crate) fn reached_at(&self) -> Option<SocketAddr> {
        let Endpoint::Inet { kind: Transport::Tcp, mut address, v6only } = self.inet()? else { return None };
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            // It takes IPv4 too, which is there wherever a loopback interface is.
            IpAddr::V6(ip) if ip.is_unspecified() && !v6only => address = (Ipv4Addr::LOCALHOST, address.port()).into(),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => (),
        }
        Some(address)
    }

    /// Can an IPv4 client on this machine reach it, if it is steered?
    pub(crate) fn takes_local_v4(&self) -> bool {
        let is_on_device = self.slots[0].listener.options_beside().is_some_and(|options| options.has("device"));
        !is_on_device
            && matches!(self.inet(), Some(Endpoint::Inet { address, v6only, .. })
            if address.is_ipv4() || address.ip().is_unspecified() && !v6only)
    }

    /// How many connections wait for a slot, or 1 where datagrams do; 0 of a shared group, where they wait for nobody.
    pub(crate) fn waiting(&self, slot: usize) -> usize {
        if self.is_steered() { self.slots[slot].waiting() } else { 0 }
    }

    /// The clients whose connections are being made, if it is steered.
    pub(crate) fn handshakes(&self) -> Vec<SocketAddr> {
        match self.inet() {
            Some(Endpoint::Inet { kind: Transport::Tcp, address, .. }) => {
                let version = if address.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
                handshakes(version, address.port()).unwrap_or_default()
            }
            _ => vec![],
        }
    }

    /// Servers call listen(2) again, which may shorten the backlog.
    pub(crate) fn restore_backlogs(&self) {
        self.slots.iter().for_each(|slot| slot.listener.restore_backlog());
    }

    /// Keep the name of the file that a predecessor made, which may have had no way to.
    pub(crate) fn keep_name(&mut self) {
        self.slots[0].listener.keep_name();
    }

    /// For the supervisor that takes the place of this one.
    pub(crate) fn save(&self) -> (SavedListener, Option<SavedGroup>) {
        let first = self.slots[0].listener.save();
        let beside = self.steered.as_ref().map(|steered| SavedGroup {
            first: self.slots[0].listener.as_fd().as_raw_fd(),
            slots: self.slots[1..].iter().map(|slot| slot.listener.save()).collect(),
            helm: steered.helm.as_ref().map(|helm| helm.listener.save()),
            discarded: steered.discarded.iter().map(|(slot, listener)| (*slot, listener.save())).collect(),
            places: steered.places.clone(),
            serving: steered.route.serving,
        });
        (first, beside)
    }

    /// A steered group of a predecessor, whose further sockets are bound with `options`.
    pub(crate) fn resume(first: Listener, saved: SavedGroup, options: Options, claimed: &mut Claimed) -> Result<Group> {
        let mut resume =
            |saved| -> Result<Listener> { Ok(Listener::resume(saved, claimed)?.not_alone(options.clone())) };
        let mut slots = vec![Slot::of(first.not_alone(options.clone()))?];
        for slot in saved.slots {
            slots.push(Slot::of(resume(slot)?)?);
        }
        let helm = saved.helm.map(|helm| Ok::<_, Error>(Slot::of(resume(helm)?)?)).transpose()?;
        let discarded = saved.discarded.into_iter().map(|(slot, listener)| Ok((slot, resume(listener)?)));
        let discarded = discarded.collect::<Result<_>>()?;
        let route = Route { serving: saved.serving, ..Route::default() };
        let mut steered = Steered { places: saved.places, helm, discarded, route };
        if let Some(helm) = &mut steered.helm {
            helm.leave_idle()?;
        }
        Ok(Group { slots, steered: Some(steered) })
    }
}

fn shut_down(listener: &Listener) -> nix::Result<()> {
    shutdown(listener.as_fd().as_raw_fd(), Shutdown::Both)
}

#[cfg(test)]
mod tests;
