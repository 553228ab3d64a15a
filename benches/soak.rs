//! A soak: a mixed load, a deploy every two seconds and a random fault every ten, and what was lost by which cause.
//!
//! `cargo bench --bench soak` takes SECONDS, 120 unless told, and draws the faults by SEED. It fails if anything was lost
//! without a known cause (`causes.rs`), if a deploy did not end as it may, or if the supervisor has more at the end than at
//! the start. Faults that take root are passed over without; names of faults as arguments select them.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a table is what this program is for")]

#[path = "deploys/answer.rs"]
mod answer;
#[path = "soak/causes.rs"]
mod causes;
#[path = "soak/client.rs"]
mod client;
#[path = "soak/clock.rs"]
mod clock;
#[path = "soak/deploys.rs"]
mod deploys;
#[path = "soak/diary.rs"]
mod diary;
#[path = "deploys/failure.rs"]
mod failure;
#[path = "soak/faults.rs"]
mod faults;
#[path = "soak/load.rs"]
mod load;
#[path = "soak/peer.rs"]
mod peer;
#[path = "deploys/poll.rs"]
mod poll;
#[path = "soak/random.rs"]
mod random;
#[path = "soak/run.rs"]
mod run;
#[path = "soak/server.rs"]
mod server;
#[path = "deploys/session.rs"]
mod session;
#[path = "soak/site.rs"]
mod site;
#[path = "soak/summary.rs"]
mod summary;
#[path = "soak/supervisor.rs"]
mod supervisor;
#[path = "soak/tally.rs"]
mod tally;
#[path = "deploys/transfer.rs"]
mod transfer;
#[path = "soak/usage.rs"]
mod usage;
#[path = "deploys/waiting.rs"]
mod waiting;

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, io, thread};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use faults::{ALL, Kind};
use site::Site;
use summary::Summary;

/// What was asked for.
struct Request {
    time: Duration,
    seed: u64,
    faults: Vec<Kind>,
    log: PathBuf,
}

fn main() -> ExitCode {
    let result = match env::args().nth(1).as_deref() {
        Some(server::MAIN) => server::main(),
        Some(server::WORKER) => server::work(),
        _ => soak(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("soak: {error:#}");
        ExitCode::FAILURE
    })
}

/// Soak, and print what came of it.
fn soak() -> Result<ExitCode> {
    // Under nohup(1) the supervisor would ignore those that ask for a reload, as it should.
    // SAFETY: the default takes no handler.
    unsafe { signal(Signal::SIGHUP, SigHandler::SigDfl) }?;
    let request = Request::of_line()?;
    // What a killed supervisor leaves is ours, so that we see whether it ends.
    prctl::set_child_subreaper(true)?;
    // Before there is another thread, which would end of them.
    let interrupts = server::signals(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP], SfdFlags::SFD_NONBLOCK)?;
    let site = Site::new()?;
    println!("SECONDS={} SEED={}; log: {}", request.time.as_secs(), request.seed, request.log.display());
    if !site.is_small {
        eprintln!("soak: FullDisk skipped: only root can mount a small file system");
    }
    let summary = with_log(&request, &site, &interrupts)?;
    println!("{summary}");
    Ok(if summary.is_as_promised() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Do it, while another thread reads what the supervisor logs.
fn with_log(request: &Request, site: &Site, interrupts: &SignalFd) -> Result<Summary> {
    let mut log = File::create(&request.log)?;
    let (reads, stop) = (AtomicBool::new(true), AtomicBool::new(false));
    let (reader, writer) = io::pipe()?;
    let start = clock::now();
    thread::scope(|scope| {
        let keeper = scope.spawn(|| supervisor::keep_log(reader, &mut log, start, &reads, &stop));
        let summary = run::run(request, site, interrupts, writer, &reads, start);
        stop.store(true, Ordering::Relaxed);
        keeper.join().ok().context("the log's reader panicked")??;
        summary
    })
}

impl Request {
    fn of_line() -> Result<Request> {
        // `cargo test --benches` runs this too, without that argument, and is only to see that it works.
        let is_bench = env::args().any(|argument| argument == "--bench");
        let seconds = number("SECONDS", if is_bench { 120 } else { 4 })?;
        ensure!((4..=7200).contains(&seconds), "SECONDS must be from 4 to 7200");
        let names: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
        let named = |kind: &Kind| names.is_empty() || names.contains(&format!("{kind:?}"));
        let faults: Vec<Kind> = ALL.into_iter().filter(named).collect();
        if faults.is_empty() || faults.len() < names.len() {
            bail!("the faults are {ALL:?}");
        }
        let log = env::var_os("LOG").unwrap_or_else(|| concat!(env!("CARGO_TARGET_TMPDIR"), "/soak.log").into());
        Ok(Request {
            time: Duration::from_secs(seconds),
            seed: number("SEED", clock::now().as_secs())?,
            faults,
            log: log.into(),
        })
    }
}

/// A number from the environment.
fn number(name: &str, usual: u64) -> Result<u64> {
    let Ok(text) = env::var(name) else { return Ok(usual) };
    text.parse().with_context(|| format!("{name} is no number: {text}"))
}
