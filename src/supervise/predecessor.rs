//! The process that the first generation succeeds: somebody else's, beside the generations of the supervisor.

use std::fs;

use log::warn;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::kernel::processes::since_boot;
use crate::socket::takeover::{Lender, Predecessor};
use crate::supervise::Supervisor;
use crate::supervise::generation::Generation;
use crate::supervise::generation::descriptors::Role;
use crate::supervise::generation::notify_socket;
use crate::supervise::plan::{EARLIER, Id, PREDECESSOR};
use crate::sys::{self, Timestamp};

impl Supervisor {
    /// It serves, on the sockets that were taken over from it.
    pub(super) fn add_predecessor(&mut self, predecessor: Predecessor) {
        self.reporter.call(PREDECESSOR, predecessor.to_string());
        let is_supervisor = predecessor.is_supervisor();
        let Predecessor { pid, pidfd, started, lender, earlier, .. } = predecessor;
        notify_socket::remove_left(&notify_socket::folders(&sys::environment()));
        let share = self.sockets.serving();
        let mut generation = Generation::foreign(PREDECESSOR, pid, pidfd, share, since(started));
        if let Some(Lender { connection, .. }) = lender {
            generation.add(Role::Lender, connection);
        }
        generation.is_supervisor = is_supervisor;
        generation.given = self.sockets.set(share).inodes;
        self.sockets.assign(share, PREDECESSOR);
        self.generations.add(generation);
        // Of one that ends, those that it started are known no more.
        self.generations.survey();
        for (id, earlier) in (EARLIER..).zip(earlier) {
            self.reporter.call(id, earlier.to_string());
            self.reporter.progress(id, "drains: a supervisor left it that is gone");
            self.generations.add(Generation::foreign(id, earlier.pid, earlier.pidfd, share, since(earlier.started)));
            let order = self.plan.add_earlier(id);
            self.carry_out(vec![order]);
        }
    }

    /// What asks this generation to drain.
    pub(super) fn stop_signal(&self, id: Id) -> Signal {
        match id {
            // Any other may mean something else to it, and is passed on to what it supervises.
            PREDECESSOR if self.generations.get(id).is_some_and(|it| it.is_supervisor && it.ended.is_none()) => {
                Signal::SIGTERM
            }
            PREDECESSOR | EARLIER.. => self.config.from_signal,
            _ => self.config.stop_signal,
        }
    }

    /// It is told to stop now: what may undo that is told before.
    pub(super) fn warn_of_manager(&self, pid: Pid) {
        if let Some(unit) = unit_of(&pid.to_string()).filter(|unit| Some(unit) != unit_of("self").as_ref()) {
            warn!(
                "{} belongs to {unit}, which may start it again (Restart=): 'systemctl stop' ends the unit",
                self.reporter.name_of(PREDECESSOR)
            );
        }
    }

    /// Nothing is left of it: its sockets are ours.
    pub(super) fn succeeded(&mut self) {
        self.sockets.keep_taken();
        self.reporter.clients.own();
        self.claim = None;
        // Some servers remove their pid file at their end, which may be this one.
        if let Some(pid_file) = &mut self.pid_file {
            pid_file.renew();
        }
    }
}

/// The unit of a process, as its control group shows it (cgroups(7), systemd.exec(5)).
fn unit_of(process: &str) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.split('/').rfind(|part| part.ends_with(".service")).map(str::to_owned)
}

/// When a process started that did so many clock ticks after the boot.
fn since(ticks: u64) -> Timestamp {
    // That clock counts the time that the machine slept, too.
    since_boot(ticks).min(sys::now())
}
