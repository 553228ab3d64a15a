//! What a deploy a second costs and loses with handoff-run, and with what else there is for it.
//!
//! Every tool that makes sense for a server (`comparison/tools.rs`) runs it under the same load: 8 clients with a new
//! connection for each request and 8 with keep-alive connections. The server is left alone for a third of SECONDS, 20
//! unless told, and then replaced each second for SECONDS, half an hour for all. A table goes to stdout, and a picture of
//! each server into the folder PICTURES, target/comparison unless told.
//!
//!     benches/comparison/install target/peers       # the other tools, once; .ci/install-servers has the servers
//!     export PATH=$PWD/target/peers/bin:$PWD/target/servers/venv/bin:$PATH
//!     cargo bench --bench comparison                # all of it, as root for the two with systemd
//!     cargo bench --bench comparison -- hello start_server restart      # servers, tools, or both
//!
//! What is not installed is skipped with a line. With handoff-run, a refused connection or a deploy that fails makes this
//! program fail.

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
#[path = "comparison/handover.rs"]
mod handover;
#[path = "deploys/mix.rs"]
mod mix;
#[path = "comparison/peers.rs"]
mod peers;
#[path = "comparison/picture.rs"]
mod picture;
#[path = "deploys/poll.rs"]
mod poll;
#[path = "comparison/record.rs"]
mod record;
#[path = "deploys/servers.rs"]
mod servers;
#[path = "comparison/service.rs"]
mod service;
#[path = "deploys/session.rs"]
mod session;
#[path = "deploys/site.rs"]
mod site;
#[path = "comparison/subjects.rs"]
mod subjects;
#[path = "deploys/tally.rs"]
mod tally;
#[path = "comparison/tools.rs"]
mod tools;
#[path = "deploys/transfer.rs"]
mod transfer;
#[path = "deploys/waiting.rs"]
mod waiting;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use client::{Kind, Target};
use record::{Deploy, HEAD, Record, Row};
use site::Site;
use subjects::{SUBJECTS, Subject};
use tools::{Running, TOOLS, Tool};

/// How many clients there are of each kind.
const CLIENTS: &[(Kind, u8)] = &[(Kind::OneRequest, 8), (Kind::KeepAlive, 8)];

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

/// Measure all pairs that were asked for; whether all could be measured, and ours went as promised.
fn experiment() -> Result<bool> {
    // `cargo test --benches` runs this too, without that argument, and is only to see that it works.
    let is_bench = env::args().any(|argument| argument == "--bench");
    // In less there would be no deploy.
    let time = clock::time(2)?;
    let (subjects, tools) = if is_bench { selected()? } else { (vec![&SUBJECTS[0]], vec![&TOOLS[0]]) };
    let mut is_good = true;
    println!("{HEAD}");
    for subject in subjects {
        if let Some(missing) = build::missing(subject.server()?.needs) {
            report(&format!("{}: skipped, {missing}", subject.name));
            continue;
        }
        let mut rows = Vec::new();
        for tool in &tools {
            match measure(tool, subject, time) {
                Ok(row) => rows.extend(row),
                Err(error) => {
                    report(&format!("{}, {}: {error:#}", subject.name, tool.name));
                    is_good = false;
                }
            }
        }
        is_good &= rows.iter().all(Row::is_as_promised);
        draw(subject, &rows, time)?;
    }
    Ok(is_good)
}

/// The servers and tools that the arguments name; all of a kind that none is named of.
fn selected() -> Result<(Vec<&'static Subject>, Vec<&'static Tool>)> {
    let (mut subjects, mut tools) = (Vec::new(), Vec::new());
    for name in env::args().skip(1).filter(|argument| argument != "--bench") {
        let (subject, tool) = (SUBJECTS.iter().find(|it| it.name == name), TOOLS.iter().find(|it| it.name == name));
        if subject.is_none() && tool.is_none() {
            let names = SUBJECTS.iter().map(|it| it.name).chain(TOOLS.iter().map(|it| it.name));
            bail!("nothing is called {name}, these are: {}", names.collect::<Vec<_>>().join(", "));
        }
        subjects.extend(subject);
        tools.extend(tool);
    }
    if subjects.is_empty() {
        subjects.extend(SUBJECTS.iter().filter(|it| it.is_usual));
    }
    if tools.is_empty() {
        tools.extend(TOOLS);
    }
    Ok((subjects, tools))
}

/// Measure and print one pair, if it makes sense and is installed.
fn measure(tool: &'static Tool, subject: &'static Subject, time: Duration) -> Result<Option<Row>> {
    let name = format!("{}, {}", subject.name, tool.name);
    let skipped = tool.left_out(subject).map(str::to_owned).or_else(|| build::missing(tool.needs));
    if let Some(reason) = skipped {
        report(&format!("{name}: skipped, {reason}"));
        return Ok(None);
    }
    let row = run(tool, subject, time)?;
    println!("{row}");
    row.remarks().iter().for_each(|remark| report(&format!("{name}: {remark}")));
    Ok(Some(row))
}

/// One row: the load alone, then with deploys.
fn run(tool: &'static Tool, subject: &'static Subject, time: Duration) -> Result<Row> {
    let site = Site::new(subject.server()?)?;
    subject.write(&site)?;
    let mut running = (tool.start)(&site, subject)?;
    let undisturbed = load(&site.target(), time / 3);
    let (deployed, deploys) = deploy(running.as_mut(), &site.target(), time)?;
    Ok(Row { server: subject.name, tool, undisturbed, deployed, deploys })
}

/// Load the server for so long, and replace it once a second meanwhile.
fn deploy(running: &mut dyn Running, target: &Target, time: Duration) -> Result<(Record, Vec<Deploy>)> {
    thread::scope(|scope| {
        let loader = scope.spawn(|| load(target, time));
        let deploys = clock::each_second(time, |begun| Deploy { begun, end: running.replace() });
        Ok((loader.join().ok().context("the load generator panicked")?, deploys))
    })
}

fn load(target: &Target, time: Duration) -> Record {
    let mut record = Record::over(time);
    mix::run(target, CLIENTS, time, |kind, event| record.count(kind, event));
    record
}

/// Draw what was measured of one server.
fn draw(subject: &Subject, rows: &[Row], time: Duration) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let usual = || PathBuf::from(build::SOURCES).join("target/comparison");
    let folder = env::var_os("PICTURES").map_or_else(usual, PathBuf::from);
    fs::create_dir_all(&folder)?;
    let file = folder.join(format!("comparison-{}.svg", subject.name));
    picture::draw(&file, subject.name, rows, time).with_context(|| format!("cannot draw {}", file.display()))?;
    report(&format!("{} has the picture", file.display()));
    Ok(())
}

/// Print a line beside the table.
fn report(what: &str) {
    eprintln!("comparison: {what}");
}
