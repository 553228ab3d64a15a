//! What a deploy a second costs and loses, for each server and for each way to share its address between generations.
//!
//! Every server runs under `handoff-run --supervise` and a mixed load (`mix.rs`): undisturbed for a third of the time,
//! then with a `--reload` each second. `cargo bench --bench deploys -- hello node` measures these two; SECONDS is how long
//! one run takes, 20 unless told. A refused connection, or a reload that does not end with 0, makes this program fail.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a table is what this program is for")]

#[path = "deploys/answer.rs"]
mod answer;
#[path = "deploys/build.rs"]
mod build;
#[path = "deploys/client.rs"]
mod client;
#[path = "deploys/clock.rs"]
mod clock;
#[path = "deploys/deployment.rs"]
mod deployment;
#[path = "deploys/failure.rs"]
mod failure;
#[path = "deploys/mix.rs"]
mod mix;
#[path = "deploys/poll.rs"]
mod poll;
#[path = "deploys/row.rs"]
mod row;
#[path = "deploys/servers.rs"]
mod servers;
#[path = "deploys/session.rs"]
mod session;
#[path = "deploys/site.rs"]
mod site;
#[path = "deploys/tally.rs"]
mod tally;
#[path = "deploys/transfer.rs"]
mod transfer;
#[path = "deploys/waiting.rs"]
mod waiting;

use std::env;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use client::{Kind, Target};
use deployment::Deployment;
use row::{HEAD, Row};
use servers::{SERVERS, Server};
use site::Site;
use tally::Tally;

/// One way to deploy.
struct Mode {
    name: &'static str,
    /// What handoff-run is given for it.
    options: &'static [&'static str],
}

const MODES: &[Mode] =
    &[Mode { name: "shared", options: deployment::SHARED }, Mode { name: "steered", options: deployment::STEERED }];

/// How many clients there are of each kind.
const CLIENTS: &[(Kind, u8)] = &[(Kind::OneRequest, 8), (Kind::Slow, 4), (Kind::HalfOpen, 4), (Kind::KeepAlive, 8)];

fn main() -> ExitCode {
    match experiment() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Measure all servers that were asked for and are installed; whether all went as promised.
fn experiment() -> Result<bool> {
    let is_bench = env::args().any(|argument| argument == "--bench");
    // In less there would be no reload.
    let time = clock::time(2)?;
    let modes = MODES;
    let servers = if is_bench { selected()? } else { vec![named("hello")?] };
    let mut is_good = true;
    println!("{HEAD}");
    for server in servers {
        match measure(server, modes, time) {
            Ok(as_promised) => is_good &= as_promised,
            Err(error) => {
                report(&format!("{}: {error:#}", server.name));
                is_good = false;
            }
        }
    }
    Ok(is_good)
}

/// The servers that the arguments name, or all.
fn selected() -> Result<Vec<&'static Server>> {
    let names: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if names.is_empty() {
        return Ok(SERVERS.iter().collect());
    }
    names.iter().map(|name| named(name)).collect()
}

fn named(name: &str) -> Result<&'static Server> {
    let Some(server) = SERVERS.iter().find(|server| server.name == name) else {
        let names: Vec<&str> = SERVERS.iter().map(|server| server.name).collect();
        bail!("no server is called {name}, these are: {}", names.join(", "));
    };
    Ok(server)
}

/// Print a row for each mode; whether all went as promised.
fn measure(server: &'static Server, modes: &[Mode], time: Duration) -> Result<bool> {
    if let Some(missing) = build::missing(server.needs) {
        report(&format!("{}: skipped, {missing}", server.name));
        return Ok(true);
    }
    let site = Site::new(server)?;
    let mut is_good = true;
    for mode in modes {
        match run(&site, mode, time) {
            Ok(row) => {
                println!("{row}");
                row.remarks().iter().for_each(|remark| report(remark));
                is_good &= row.is_as_promised();
            }
            Err(error) => {
                report(&format!("{}, {}: {error:#}", server.name, mode.name));
                is_good = false;
            }
        }
    }
    Ok(is_good)
}

/// One row: the load without reloads, then with them.
fn run<'a>(site: &'a Site, mode: &'a Mode, time: Duration) -> Result<Row<'a>> {
    let deployment = Deployment::start(site, mode.options, site.server.line)?;
    let undisturbed = load(&site.target(), time / 3);
    let (deployed, reloads) = deploy(&deployment, site, time - time / 3)?;
    deployment.stop()?;
    Ok(Row { server: site.server.name, mode: mode.name, undisturbed, deployed, reloads })
}

/// Load the server for so long, and reload it once a second meanwhile; the load's tally, and how each reload ended.
fn deploy(deployment: &Deployment, site: &Site, time: Duration) -> Result<(Tally, Vec<Result<()>>)> {
    let target = site.target();
    thread::scope(|scope| {
        let loader = scope.spawn(|| load(&target, time));
        let reloads = clock::each_second(time, |_| deployment.reload());
        let tally = loader.join().ok().context("the load generator panicked")?;
        Ok((tally, reloads))
    })
}

fn load(target: &Target, time: Duration) -> Tally {
    let mut tally = Tally::over(time);
    mix::run(target, CLIENTS, time, |kind, event| tally.count(kind, event));
    tally
}

/// Print a line beside the table.
fn report(what: &str) {
    eprintln!("deploys: {what}");
}
