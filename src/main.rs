//! handoff-run: bind a socket or adopt an inherited one, and become the program that serves it.
#![cfg_attr(not(test), no_main)]
#![cfg_attr(any(test, fuzzing), allow(clippy::unwrap_used, reason = "a test that cannot go on panics"))]
#![cfg_attr(fuzzing, allow(unused, reason = "only the parsers run"))]

mod cli;
mod config;
mod failure;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod kernel;
mod logging;
mod manager;
mod missing;
mod output;
mod pid_file;
mod saved;
mod set_id;
mod socket;
mod supervise;
mod sys;
mod target;

use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

use anyhow::{Context, Error};
use clap::error::ErrorKind;
use log::warn;

use cli::Cli;
use config::{Command, Exec, Supervise};
use failure::{Failure, Result};
use manager::Manager;
use manager::store::Inventory;
use socket::acquire::{self, Acquired, Origin};
use socket::announced::Announced;
use socket::candidate::Candidates;
use socket::endpoint::Endpoint;
use socket::listener::{self, Listener};
use socket::store_name;
use socket::stored::{Demand, Keeper, Stored};
use socket::takeover::{Control, Predecessor, Search, Who, report_nobody};
use supervise::control::borrow::borrow;
use supervise::intercept;
use supervise::upgrade::Mode;
use sys::Claimed;
use target::handout::Handout;
use target::{exec, preset};

/// What cargo-fuzz runs instead.
#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::targets::run(env!("CARGO_BIN_NAME"), input));

/// C's main, so that nothing of Rust's runtime comes first: it would ignore SIGPIPE and open closed descriptors, and
/// the target would inherit both.
#[cfg(not(any(test, fuzzing)))]
#[unsafe(no_mangle)]
extern "C" fn main(_count: libc::c_int, arguments: *const *const libc::c_char) -> libc::c_int {
    if let Err(failure) = set_id::refuse() {
        return failure.report().into();
    }
    // SAFETY: exec(3) made the array, which ends with a null pointer, and its strings stay.
    unsafe { sys::record_arguments(arguments) };
    // SAFETY: main runs once, and nothing came before it.
    let claimed = unsafe { sys::claim() };
    handoff_run(claimed).into()
}

#[cfg_attr(test, expect(dead_code, reason = "the tests' main is another"))]
fn handoff_run(claimed: nix::Result<Claimed>) -> u8 {
    run(claimed).unwrap_or_else(|failure| failure.report())
}

fn run(claimed: nix::Result<Claimed>) -> Result<u8> {
    let cli = match Cli::read(sys::arguments()) {
        Ok(cli) => cli,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            output::print(&error.render().to_string())?;
            return Ok(0);
        }
        Err(error) => return Ok(failure::usage(error)),
    };
    logging::start(cli.level());
    match cli.into_command() {
        Command::ShowServers => Ok(output::print(&preset::list()).map(|()| 0)?),
        Command::Exec(config) => {
            let numbers = (config.program.first_fd, sys::FIRST_FD);
            let Arranged { listeners, others: _others, stored, .. } = arrange(&config, None, numbers, claimed)?;
            if config.keeper == Keeper::Manager {
                Inventory::of(stored).hand_over(store_name::of_specs(&config.specs), &listeners);
            }
            // The others only have to stay open until then.
            Err(become_program(&config, &listeners))
        }
        Command::Succeed(config) => {
            let numbers = (config.exec.program.first_fd, supervise::lowest(&config));
            let Arranged { listeners, others, predecessor, .. } = arrange(&config.exec, None, numbers, claimed)?;
            Err(match predecessor {
                Some(predecessor) => supervise::succeed(config, listeners, others, predecessor),
                None => become_program(&config.exec, &listeners),
            })
        }
        Command::Supervise(config) => supervise(config, claimed),
        Command::Request(path, request, shown) => Ok(supervise::control::client::ask(&path, request, shown)?),
    }
}

/// HANDOFF_STATE may not have been set by our predecessor.
const CANNOT_TAKE_OVER: &str = "cannot take over from another supervisor, as HANDOFF_STATE demands";

/// Supervise, from the beginning or in the place of a predecessor.
fn supervise(config: Supervise, claimed: nix::Result<Claimed>) -> Result<u8> {
    logging::never_wait();
    match Mode::read().context(CANNOT_TAKE_OVER)? {
        Some(mode) => {
            // Before anything is opened that would take their numbers.
            if let Err(errno) = sys::occupy_standard() {
                warn!("cannot occupy the standard descriptors: {errno}");
            }
            let mut claimed = claimed?;
            let state = mode.state(&mut claimed).context(CANNOT_TAKE_OVER)?;
            match mode {
                Mode::Probe(_) => match supervise::rehearse(config, state, claimed).context(CANNOT_TAKE_OVER)? {},
                Mode::TakeOver(_) => Ok(supervise::take_over(config, state, claimed)?),
            }
        }
        None => {
            intercept::check::check_facilities(&config.exec.program)?;
            let numbers = (supervise::first_number(&config), supervise::lowest(&config));
            let control = config.control.as_ref().map(|control| control.path.as_path());
            let arranged = arrange(&config.exec, control, numbers, claimed)?;
            Ok(supervise::supervise(
                config,
                arranged.listeners,
                arranged.others,
                arranged.predecessor,
                arranged.stored,
            )?)
        }
    }
}

/// Become the program. Returns only when that failed.
fn become_program(config: &Exec, listeners: &[Listener]) -> Failure {
    let handout = Handout::of(listeners, &config.program);
    exec::exec_in_place(&config.program, &handout, config.begin, config.pid_file.as_deref(), vec![])
}

/// What is handed on, at its numbers.
struct Arranged {
    listeners: Vec<Listener>,
    /// What stays open beside them.
    others: Vec<OwnedFd>,
    predecessor: Option<Predecessor>,
    /// What the service manager stored of them.
    stored: Stored,
}

/// The listeners at their numbers, `first` and those that follow, and what the service manager stored of them from `lowest`
/// on.
fn arrange(
    config: &Exec,
    control: Option<&Path>,
    (first, lowest): (RawFd, RawFd),
    claimed: nix::Result<Claimed>,
) -> Result<Arranged> {
    let claimed = claimed.map_err(|errno| Error::new(errno).context("cannot see the open descriptors"))?;
    if config.from.is_some() {
        // What is opened below outlives those that are closed.
        sys::occupy_standard().context("cannot occupy the standard descriptors")?;
    }
    let behind = first.saturating_add(config.specs.len() as RawFd);
    let Acquired { listeners, others, predecessor, stored } = acquire(config, control, lowest.max(behind), claimed)?;
    let lowest = lowest.max(first.saturating_add(listeners.len() as RawFd));
    let predecessor = predecessor.map(|predecessor| predecessor.clear_of_program(lowest));
    let listeners = listeners.into_iter().map(|listener| listener.clear_of_program(lowest)).collect();
    let (listeners, others) = listener::arrange(listeners, others, first)?;
    Ok(Arranged { listeners, others, predecessor, stored })
}

/// The sockets; `control` is where a supervisor is to take requests, and what only we have gets numbers from `lowest` on.
fn acquire(config: &Exec, control: Option<&Path>, lowest: RawFd, claimed: Claimed) -> Result<Acquired> {
    let mut candidates = Candidates::sort(claimed.rest())?;
    let announced = Announced::read(&sys::environment());
    let mut announced = match announced {
        Err(error) if !config.specs.is_empty() => {
            warn!("{error}: ignored");
            Announced::default()
        }
        announced => announced?,
    };
    let demand = Demand { specs: &config.specs, sharing: config.manner.sharing, keeper: config.keeper, lowest };
    let stored = Stored::take_from(&mut candidates, &mut announced, demand);
    let mut acquired = if config.specs.is_empty() {
        let remedy = || exec::remedy_for(&config.program.words[0].to_string_lossy());
        acquire::adopt_all(candidates, &announced, stored).map_err(|error| Failure::from(error).remedy(remedy()))?
    } else {
        let discard = |names: &[_]| Manager::of(&sys::environment()).discard_now(names);
        let origin = config.from.as_ref().map(|who| origin(who, config, control, lowest)).transpose()?.flatten();
        acquire::acquire(&config.specs, candidates, &announced, stored, config.manner, origin, discard)?
    };
    if config.keeper == Keeper::Nobody {
        let mut manager = Manager::of(&sys::environment());
        acquired.stored.take_known().into_iter().for_each(|(name, _)| manager.discard(&name));
    }
    Ok(acquired)
}

/// Where the sockets are taken from; none if that is a supervisor which is not there.
fn origin(who: &Who, config: &Exec, control: Option<&Path>, lowest: RawFd) -> Result<Option<Origin>> {
    let endpoints = acquire::endpoints_of(&config.specs)?;
    let endpoints: Vec<&[Endpoint]> = endpoints.iter().map(Vec::as_slice).collect();
    let search = Search::begin(who, &endpoints)?;
    let Some(Control { path, process }) = search.control()? else { return Ok(Some(Origin::Process(search))) };
    let is_found = process.is_some();
    Ok(match borrow(&path, process, control, lowest)? {
        Some((predecessor, lent)) => Some(Origin::Supervisor(predecessor, lent)),
        // Its file was removed: it is as one without.
        None if is_found => Some(Origin::Process(search)),
        None => {
            report_nobody(who);
            None
        }
    })
}
