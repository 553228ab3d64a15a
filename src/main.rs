//! handoff-run: bind a socket or adopt an inherited one, and become the program that serves it.
#![cfg_attr(not(test), no_main)]

mod cli;
#[cfg(test)]
mod current;
mod diag;
mod endpoint;
mod environ;
mod exec;
mod failure;
mod inherited;
mod listener;
mod logging;
mod lookup;
mod options;
mod pid_file;
mod preset;
mod remedy;
mod servers;
mod source;
mod spec;
mod sys;
mod template;
mod unix_path;

use std::os::fd::OwnedFd;

use anyhow::Error;
use clap::Parser;
use clap::error::ErrorKind;
use log::warn;

use cli::{Cli, Exec, Plan};
use environ::Announced;
use failure::{Failure, Result};
use inherited::Inherited;
use source::Acquired;

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
            return print(&error.render().to_string());
        }
        Err(error) => return Ok(failure::usage(&error)),
    };
    logging::start(cli.level());
    match cli.into_plan() {
        Plan::ShowServers => print(&servers::list()),
        Plan::Exec(plan) => {
            let claimed = claimed.map_err(|errno| Error::new(errno).context("cannot see the open descriptors"))?;
            Err(exec(plan, claimed))
        }
    }
}

/// Acquire, arrange, become the program; what comes back is what went wrong.
fn exec(plan: Exec, claimed: Vec<OwnedFd>) -> Failure {
    let arranged = acquire(&plan, claimed)
        .and_then(|acquired| Ok(listener::arrange(acquired.listeners, acquired.others, plan.first_fd)?));
    match arranged {
        // The others only have to stay open until then.
        Ok((listeners, _others)) => exec::become_target(plan, &listeners),
        Err(failure) => failure,
    }
}

fn acquire(plan: &Exec, claimed: Vec<OwnedFd>) -> Result<Acquired> {
    let inherited = Inherited::sort(claimed)?;
    let announced = Announced::read(&sys::environment());
    if plan.specs.is_empty() {
        return Ok(source::adopt_all(inherited, &announced?)?);
    }
    let announced = announced.unwrap_or_else(|error| {
        warn!("{error}: ignored");
        Announced::default()
    });
    source::acquire(&plan.specs, inherited, &announced, plan.backlog)
}

/// What was asked for, on stdout.
fn print(text: &str) -> Result<u8> {
    use anyhow::Context;
    use std::io::{Write, stdout};
    let mut stdout = stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to stdout")?;
    Ok(0)
}
