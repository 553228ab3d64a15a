//! Hand a supervisor's whole state to the program that takes its place, and take it from a predecessor.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use nix::fcntl::FdFlag;
use nix::unistd::Pid;

use crate::config::Supervise;
use crate::kernel::descriptors::SocketInode;
use crate::socket::listener::Listener;
use crate::socket::spec::FdName;
use crate::socket::unix_path::Created;
use crate::supervise::control::{Client, Control};
use crate::supervise::generation::Generation;
use crate::supervise::generation::child::Child;
use crate::supervise::generation::notify_socket::{Inbox, Manager};
use crate::supervise::generation::ready::Watch;
use crate::supervise::plan::{Event, Moment};
use crate::supervise::signals::{Inherited, Signals};
use crate::supervise::upgrade::state::{
    SavedClient, SavedControl, SavedFile, SavedGeneration, SavedListener, SavedWatch, State,
};
use crate::supervise::{Supervisor, upgrade};
use crate::sys;
use crate::target::pid_file::PidFile;

impl Supervisor {
    pub(in crate::supervise) fn resume(
        config: Supervise,
        state: State,
        claimed: &mut Vec<OwnedFd>,
    ) -> Result<Supervisor> {
        let now = sys::now();
        let listeners: Vec<Listener> =
            state.listeners.into_iter().map(|saved| resume_listener(saved, claimed)).collect::<Result<_>>()?;
        let sockets: Vec<SocketInode> = listeners.iter().map(SocketInode::of).collect::<nix::Result<_>>()?;
        let control = resume_control(&config, state.control, state.clients, claimed, now)?;
        let inherited = Inherited::saved(&state.blocked, state.child_ignored, state.pipe_ignored);
        let signals = Signals::resume(inherited)?;
        let generations = state.generations.into_iter().map(|saved| {
            let killed = state.plan.draining.iter().any(|d| d.id == saved.id && d.deadline.is_none());
            let watch = |pid, watch, pipe| Watch::resume(&config.ready, &sockets, inherited, pid, watch, pipe);
            Ok(Generation { killed, ..resume_generation(saved, claimed, watch)? })
        });
        let generations = generations.collect::<Result<_>>()?;
        sys::become_subreaper().context("cannot become a reaper of orphans")?;
        let pid_file = config.exec.pid_file.as_deref().filter(|_| state.pid_file).map(PidFile::written);
        Ok(Supervisor {
            manager: Manager::of(&sys::environment()),
            directory: state.directory,
            config,
            listeners,
            sockets,
            others: Vec::new(),
            signals,
            control,
            plan: state.plan,
            generations,
            program: state.program,
            upgrade: None,
            // A deadline may have passed in between.
            events: VecDeque::from([Event::Tick]),
            pid_file,
            last_failure: state.last_failure,
            next_live: Some(now),
            next_stranger: now,
            finished: None,
        })
    }

    /// What the next supervisor must know.
    pub(in crate::supervise) fn state(&self) -> State {
        let (blocked, child_ignored, pipe_ignored) = self.signals.inherited().save();
        let listener = |listener: &Listener| SavedListener {
            fd: listener.as_fd().as_raw_fd(),
            name: listener.name.to_string(),
            backlog: listener.backlog(),
            file: listener.created().map(saved),
        };
        let generation = |generation: &Generation| SavedGeneration {
            id: generation.id,
            pid: generation.child.pid.as_raw(),
            pidfd: generation.child.pidfd.as_raw_fd(),
            complaint: generation.child.complaint_fd().as_raw_fd(),
            inbox: generation.inbox.as_fd().as_raw_fd(),
            started: generation.started,
            ended: generation.ended,
            watch: generation.watch.as_ref().map(Watch::save),
        };
        let clients = self.control.iter().flat_map(|control| &control.clients);
        State {
            pid: Pid::this().as_raw(),
            program: self.program.clone(),
            directory: self.directory.clone(),
            blocked,
            child_ignored,
            pipe_ignored,
            listeners: self.listeners.iter().map(listener).collect(),
            control: self
                .control
                .as_ref()
                .map(|control| SavedControl { fd: control.fd().as_raw_fd(), file: control.created().map(saved) }),
            clients: clients.filter_map(Client::save).collect(),
            plan: self.plan.clone(),
            generations: self.generations.iter().map(generation).collect(),
            last_failure: self.last_failure.clone(),
            pid_file: self.pid_file.is_some(),
        }
    }
}

fn saved(created: &Created) -> SavedFile {
    SavedFile { path: created.path().to_owned(), identity: created.identity() }
}

fn resumed(file: &SavedFile) -> Created {
    Created::resumed(&file.path, file.identity)
}

/// One of the claimed descriptors, close-on-exec again.
fn take(claimed: &mut Vec<OwnedFd>, number: RawFd) -> Result<OwnedFd> {
    let fd = upgrade::take(claimed, number)?;
    sys::set_close_on_exec(&fd, FdFlag::FD_CLOEXEC)?;
    Ok(fd)
}

fn resume_listener(saved: SavedListener, claimed: &mut Vec<OwnedFd>) -> Result<Listener> {
    let name = FdName::announced(&saved.name).unwrap_or_default();
    let created = saved.file.as_ref().map(resumed);
    Ok(Listener::resumed(name, take(claimed, saved.fd)?, saved.backlog, created))
}

/// The control socket with its clients, if the predecessor had one and we are told to.
fn resume_control(
    config: &Supervise,
    saved: Option<SavedControl>,
    clients: Vec<SavedClient>,
    claimed: &mut Vec<OwnedFd>,
    now: Moment,
) -> Result<Option<Control>> {
    let clients = clients.into_iter().map(|saved| Ok(Client::resumed(take(claimed, saved.fd)?, saved, now)));
    let clients: Vec<Client> = clients.collect::<Result<_>>()?;
    let Some(saved) = saved else { return Ok(None) };
    let fd = take(claimed, saved.fd)?;
    Ok(config.control.as_deref().map(|path| {
        let mut control = Control::resumed(fd, path, saved.file.as_ref().map(resumed));
        control.clients = clients;
        control
    }))
}

/// A generation; `watch` goes on watching it if it was getting ready.
fn resume_generation(
    saved: SavedGeneration,
    claimed: &mut Vec<OwnedFd>,
    watch: impl FnOnce(Pid, SavedWatch, Option<OwnedFd>) -> Watch,
) -> Result<Generation> {
    let pid = Pid::from_raw(saved.pid);
    let child = Child::resumed(pid, take(claimed, saved.pidfd)?, take(claimed, saved.complaint)?);
    let inbox = Inbox::resumed(take(claimed, saved.inbox)?);
    let watch = match saved.watch {
        None => None,
        Some(saved) => {
            let pipe = saved.pipe.map(|number| take(claimed, number)).transpose()?;
            Some(watch(pid, saved, pipe))
        }
    };
    Ok(Generation::resumed(saved.id, child, inbox, watch, saved.started, saved.ended))
}
