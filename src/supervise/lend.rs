//! Another supervisor is to succeed this one: it is lent the sockets, and this one keeps its hands off them until it is told
//! that it has been succeeded, or takes them back when the connection is closed.

use log::{info, warn};
use nix::unistd::Pid;

use crate::kernel::holders::{holders_of, name_of, with_name};
use crate::socket::takeover::is_supervisor_name;
use crate::supervise::Supervisor;
use crate::supervise::control::connection::{Client, WaitingFor};
use crate::supervise::control::protocol::Reply;
use crate::supervise::plan::StopMode;
use crate::supervise::sockets::Share;
use crate::sys;

impl Supervisor {
    /// Lend the sockets to the client in this place.
    pub(super) fn lend(&mut self, at: usize, control: bool) {
        self.handle_events();
        if !self.reporter.clients.get(at).is_some_and(Client::is_own) {
            // A mode of the control socket lets others deploy: that is less than to have its sockets.
            let why = "only its own user and root may succeed this supervisor";
            return self.client(at, |client| client.end_with_error(why, 125));
        }
        if let Some(why) = self.cannot_lend() {
            return self.client(at, |client| client.end_with_error(why, 125));
        }
        self.look_after_sockets();
        let serving = self.plan.serving.map(|serving| serving.id);
        let others = self.generations.iter().filter(|generation| Some(generation.id) != serving);
        let used = others.filter_map(|generation| match generation.share {
            Share::Slot(slot) => Some(slot),
            Share::One => None,
        });
        let mut loan = self.sockets.lend(used.collect());
        let control = self.reporter.clients.lend(control);
        loan.descriptors.extend(control.as_ref().map(|control| control.fd));
        self.client(at, |client| {
            client.waiting_for = WaitingFor::Succession;
            client.reply(&Reply::Loan { loan, control });
        });
        info!("the sockets are lent to a successor");
    }

    fn cannot_lend(&self) -> Option<&'static str> {
        let plan = &self.plan;
        match plan.serving {
            _ if plan.stopping.is_some() => Some("it is stopping"),
            _ if self.sockets.is_lent() => Some("another process takes over from it already"),
            _ if self.upgrade.is_under_way() => Some("it is about to become another program"),
            Some(_) if !plan.is_handing_over() => None,
            _ => Some("it is in the middle of a deploy, or nothing serves: try again when that is over"),
        }
    }

    /// The client in this place has read what is lent.
    pub(super) fn send_lent(&mut self, at: usize) {
        let fds = self.sockets.lent_descriptors();
        let fds: Vec<_> = fds.into_iter().chain(self.reporter.clients.lent_descriptor()).collect();
        let Some(client) = self.reporter.clients.get(at).filter(|client| client.waiting_for == WaitingFor::Succession)
        else {
            return;
        };
        let mut messages = fds.chunks(sys::MOST_AT_ONCE);
        let sent: nix::Result<()> = messages.try_for_each(|fds| sys::send_descriptors(client, fds));
        if let Err(errno) = sent {
            warn!("the sockets cannot be lent: {errno}");
            self.client(at, |client| client.end_with_error("its descriptors cannot be sent", 125));
        }
    }

    /// The client in this place has succeeded us: what it has by now is its own.
    pub(super) fn be_succeeded(&mut self, at: usize) {
        let is_it = |client: &Client| client.waiting_for == WaitingFor::Succession;
        if !self.reporter.clients.get(at).is_some_and(is_it) {
            return self.client(at, |client| client.end_with_error("nothing was lent to it", 125));
        }
        self.sockets.leave_names();
        self.reporter.clients.leave_lent();
        let successor = self.reporter.clients.get(at).and_then(Client::process);
        self.client(at, |client| client.waiting_for = WaitingFor::End);
        info!("succeeded{}", successor.map(|pid| format!(" by {}", with_name(pid))).unwrap_or_default());
        self.stop(StopMode::Drain);
    }

    /// A successor that was killed has left its program.
    fn reserve_what_is_left(&mut self) {
        let used: Vec<Share> = self.generations.iter().map(|generation| generation.share).collect();
        let unused: Vec<Share> = self.sockets.shares().filter(|share| !used.contains(share)).collect();
        for share in unused {
            let inodes = self.sockets.set(share).inodes;
            let holders = holders_of(&inodes).map(|(_, holders)| holders).unwrap_or_default();
            // The successor itself may not be gone yet.
            let is_program = |pid: &Pid| *pid != Pid::this() && !is_supervisor_name(&name_of(*pid));
            if let Some(other) = holders.iter().map(|holder| holder.process.pid).find(is_program) {
                warn!("{} was left by the successor: it gets no connection any more", with_name(other));
                self.sockets.reserve(share);
            }
        }
    }

    /// If the successor has gone before it had settled, go on.
    pub(super) fn see_borrower(&mut self) {
        if !self.sockets.is_lent() || self.plan.stopping.is_some() {
            return;
        }
        let borrows = |client: &Client| client.waiting_for == WaitingFor::Succession;
        if self.reporter.clients.iter().any(borrows) {
            return;
        }
        warn!("the successor is gone before it had settled: this supervisor goes on");
        self.sockets.take_back();
        self.reporter.clients.take_back();
        self.reserve_what_is_left();
        if let Some(serving) = self.plan.serving {
            self.steer(serving.id);
        }
        self.free_sockets();
        self.look_after_sockets();
    }
}
