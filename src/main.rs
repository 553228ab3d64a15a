//! handoff-run: bind a socket or adopt an inherited one, and become the program that serves it.
#![cfg_attr(not(test), no_main)]

mod cli;
mod failure;
mod kernel;
mod logging;
mod output;
mod socket;
mod supervise;
mod sys;
mod target;

use std::os::fd::OwnedFd;

use anyhow::{Context, Error};
use clap::Parser;
use clap::error::ErrorKind;
use log::warn;

use cli::{Cli, Exec, Plan, Supervise};
use failure::Result;
use socket::acquire::{self, Acquired};
use socket::candidate::Inherited;
use socket::listener::{self, Listener};
use supervise::upgrade::{self, Errand};
use target::environ::Announced;
use target::{exec, servers};

/// C's main, so that nothing of Rust's runtime comes first: it would ignore SIGPIPE and open closed descriptors, and
/// the target would inherit both.
#[cfg(not(test))]
#[unsafe(no_mangle)]
extern "C" fn main() -> libc::c_int {
    // SAFETY: main runs once, and nothing came before it.
    let claimed = unsafe { sys::claim() };
    handoff_run(claimed).into()
}

#[cfg_attr(test, expect(dead_code, reason = "the tests' main is another"))]
fn handoff_run(claimed: nix::Result<Vec<OwnedFd>>) -> u8 {
    run(claimed).unwrap_or_else(|failure| failure.report())
}

fn run(claimed: nix::Result<Vec<OwnedFd>>) -> Result<u8> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            output::print(&error.render().to_string())?;
            return Ok(0);
        }
        Err(error) => return Ok(failure::usage(error)),
    };
    logging::start(cli.level());
    match cli.into_plan() {
        Plan::ShowServers => Ok(output::print(&servers::list()).map(|()| 0)?),
        Plan::Exec(plan) => {
            let (listeners, _others) = arrange(&plan, claimed)?;
            // The others only have to stay open until then.
            Err(exec::exec_in_place(&plan, &listeners))
        }
        Plan::Supervise(plan) => supervise(plan, claimed),
        Plan::Ask(path, request) => Ok(supervise::control::client::ask(&path, request)?),
    }
}

/// Whoever set HANDOFF_STATE is told, should it not have been our predecessor.
const CANNOT_TAKE_OVER: &str = "cannot take over from another supervisor, as HANDOFF_STATE demands";

/// Supervise, from the beginning or in the place of a predecessor.
fn supervise(plan: Supervise, claimed: nix::Result<Vec<OwnedFd>>) -> Result<u8> {
    match Errand::read().context(CANNOT_TAKE_OVER)? {
        Some(errand) => {
            let mut claimed = claimed?;
            let state = errand.state(&mut claimed).context(CANNOT_TAKE_OVER);
            Ok(match errand {
                Errand::Check(_) => upgrade::checked(state)?,
                Errand::TakeOver(_) => supervise::take_over(plan, state?, claimed)?,
            })
        }
        None => {
            let (listeners, others) = arrange(&plan.exec, claimed)?;
            Ok(supervise::supervise(plan, listeners, others)?)
        }
    }
}

/// The listeners at their numbers, and what stays open beside them.
fn arrange(plan: &Exec, claimed: nix::Result<Vec<OwnedFd>>) -> Result<(Vec<Listener>, Vec<OwnedFd>)> {
    let claimed = claimed.map_err(|errno| Error::new(errno).context("cannot see the open descriptors"))?;
    let acquired = acquire(plan, claimed)?;
    Ok(listener::arrange(acquired.listeners, acquired.others, plan.first_fd)?)
}

fn acquire(plan: &Exec, claimed: Vec<OwnedFd>) -> Result<Acquired> {
    let inherited = Inherited::sort(claimed)?;
    let announced = Announced::read(&sys::environment());
    if plan.specs.is_empty() {
        return Ok(acquire::adopt_all(inherited, &announced?)?);
    }
    let announced = announced.unwrap_or_else(|error| {
        warn!("{error}: ignored");
        Announced::default()
    });
    acquire::acquire(&plan.specs, inherited, &announced, plan.backlog)
}
