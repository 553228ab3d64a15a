//! A supervisor in the place of a predecessor, and what it leaves to the one that takes its place.

use std::convert::Infallible;
use std::ffi::CString;
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;

use anyhow::{Result, ensure};
use log::warn;
use nix::unistd::Pid;

use crate::config::Supervise;
use crate::kernel::holders::with_name;
use crate::manager::Manager;
use crate::pid_file::PidFile;
use crate::saved::{self, SavedPath};
use crate::socket::takeover::Claim;
use crate::supervise::control::server::Clients;
use crate::supervise::delegation::Delegation;
use crate::supervise::generation::Generation;
use crate::supervise::generations::Generations;
use crate::supervise::lowest;
use crate::supervise::plan::{Event, KILLED, Order};
use crate::supervise::report::{LastFailure, Reporter};
use crate::supervise::signals::Signals;
use crate::supervise::sockets::Sockets;
use crate::supervise::store::Store;
use crate::supervise::terminal::Terminal;
use crate::supervise::upgrade::state::{FOREIGN, NOTIFIERS, SLOTS, State};
use crate::supervise::upgrade::{self, Upgrade};
use crate::supervise::{Duty, Supervisor};
use crate::sys::{self, Claimed};

/// Supervise in the place of a predecessor that left `state`.
pub(crate) fn take_over(config: Supervise, state: State, claimed: Claimed) -> Result<u8> {
    if let Some(name) = state.program.0.file_name().and_then(|name| CString::new(name.as_bytes()).ok()) {
        sys::set_name(&name);
    }
    let (mut supervisor, orders) = Supervisor::resume(config, state, claimed)?;
    // The predecessor may be of a version that had none.
    supervisor.delegation = Delegation::enter();
    supervisor.sockets.keep_names();
    // What is wrong with one is not in the state, nor what is watched of generations.
    supervisor.look_after_sockets();
    supervisor.carry_out(orders);
    supervisor.generations.survey();
    supervisor.watch_sockets();
    supervisor.resume_waits();
    Ok(supervisor.run())
}

/// As a probe, do all of the above that changes nothing but this process; return only an error.
pub(crate) fn rehearse(config: Supervise, state: State, claimed: Claimed) -> Result<Infallible> {
    // A first release gave its probe no descriptors.
    if state.probe_has_descriptors {
        // It must not be dropped, which would remove files.
        let _supervisor = ManuallyDrop::new(Supervisor::resume(config, state, claimed)?);
        ensure!(!saved::is_any_lost(), "a part of the state would be lost");
    }
    sys::exit_at_once(upgrade::PASSED)
}

impl Supervisor {
    /// What may fail comes first, while nothing is held that is removed when it is dropped.
    fn resume(config: Supervise, state: State, mut claimed: Claimed) -> Result<(Supervisor, Vec<Order>)> {
        let now = sys::now();
        let signals = Signals::resume(&state.signals)?;
        if let Err(errno) = sys::become_subreaper() {
            // The predecessor was one, and exec keeps it.
            warn!("cannot become a reaper of orphans: {errno}");
        }
        let inherits_rest = state.sockets.others.is_none();
        let sockets = Sockets::resume(state.sockets, &config.exec.specs, lowest(&config), &mut claimed);
        let clients = Clients::resume(config.control.as_ref(), state.control, &mut claimed, now);
        let generations = Generations::resume(
            state.generations,
            &config.ready,
            signals.dispositions(),
            sockets.reach(),
            &mut claimed,
        );
        let store = Store::resume(config.exec.keeper, &config.exec.specs, state.store, &state.stored, &mut claimed);
        let claim = state.claim.map(|saved| Claim::resume(saved, &mut claimed));
        // A state that does not name them: what is left was inherited.
        let sockets = if inherits_rest { sockets.with_others(claimed.rest()) } else { sockets };
        let mut plan = state.plan;
        let mut sockets = sockets;
        generations.iter().for_each(|generation| sockets.assign(generation.share, generation.id));
        let left: Vec<_> = generations.iter().map(|generation| generation.id).collect();
        plan.reloads.resume(state.asked);
        let orders = plan.resume(&left, config.limits, now);
        // A deadline may have passed in between, and a generation may be lost.
        let lost = plan.generations().filter(|id| !left.contains(id));
        let events = lost.flat_map(|id| [Event::Ended(id, KILLED), Event::Gone(id)]).chain([Event::Tick]).collect();
        let last_failure = LastFailure::resume(state.last_failure, state.last_failure_at);
        let mut reporter = Reporter::new(clients, Manager::of(&sys::environment()), last_failure);
        for foreign in generations.iter().filter(|generation| generation.is_foreign) {
            reporter.call(foreign.id, with_name(foreign.pid));
        }
        let supervisor = Supervisor {
            reporter: reporter.resume(&plan),
            pid_file: config
                .exec
                .pid_file
                .as_deref()
                .filter(|_| state.pid_file)
                .map(|path| PidFile::written(path, state.pid_file_before)),
            config,
            directory: state.directory.map(|SavedPath(path)| path),
            signals,
            terminal: Terminal::resume(state.terminal, now),
            plan,
            events,
            sockets,
            generations,
            delegation: None,
            upgrade: Upgrade::new(if state.program.0.as_os_str().is_empty() {
                upgrade::own_program()
            } else {
                state.program.0
            }),
            claim,
            duty: Duty::Supervise,
            let_go: None,
            store,
            finished: None,
        };
        Ok((supervisor, orders))
    }

    /// What the next supervisor must understand.
    fn needs(&self) -> Vec<String> {
        let is_steered = self.sockets.is_any_steered().then_some(SLOTS);
        let is_foreign = self.generations.iter().any(|generation| generation.is_foreign).then_some(FOREIGN);
        let is_intercepted = self.generations.iter().any(Generation::is_intercepted).then_some(NOTIFIERS);
        is_steered.into_iter().chain(is_intercepted).chain(is_foreign).map(str::to_owned).collect()
    }

    /// What the next supervisor must know.
    pub(super) fn state(&self) -> State {
        State {
            pid: Pid::this().as_raw(),
            needs: self.needs(),
            probe_has_descriptors: true,
            program: SavedPath(self.upgrade.program.clone()),
            directory: self.directory.clone().map(SavedPath),
            signals: self.signals.dispositions().save(),
            terminal: self.terminal.is_there(),
            sockets: self.sockets.save(),
            control: self.reporter.clients.save(),
            plan: self.plan.clone(),
            generations: self.generations.save(),
            last_failure: self.reporter.last_failure.as_ref().map(|failure| failure.text.clone()),
            last_failure_at: self.reporter.last_failure.as_ref().map(|failure| failure.at),
            asked: self.plan.reloads.first_asked(),
            pid_file: self.pid_file.is_some(),
            pid_file_before: self.pid_file.as_ref().and_then(PidFile::before).map(str::to_owned),
            store: self.store.as_ref().and_then(Store::save),
            stored: self.store.as_ref().map(|store| store.held(&self.reporter.manager)).unwrap_or_default(),
            claim: self.claim.as_ref().map(Claim::save),
        }
    }
}
