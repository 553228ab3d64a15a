//! What replacing a running server costs: requests per second without and with ten replacements, in turns.
//!
//! The hello server runs through handoff-run. A replacement renames a new binary over the old one and sends SIGUSR2 to
//! the serving process; it is complete when the new version has answered and the old process has ended with status 0.
//! One request that fails, of all, makes this program fail. SECONDS is how long each side is loaded, 20 unless told.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a table is what this program is for")]

#[path = "deploys/clock.rs"]
#[allow(dead_code, reason = "deploys and comparison need all of it")]
mod clock;
#[path = "../tests/it/load.rs"]
mod load;
#[path = "deploys/waiting.rs"]
mod waiting;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitCode, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use load::{Load, Report};
use waiting::wait_for;

const CONNECTIONS: usize = 16;
const REPLACEMENTS: u32 = 10;
/// The two sides take turns, so that a machine whose speed drifts drifts for both.
const ROUNDS: u32 = 4;

/// The running server, and what it takes to replace it.
struct Deployment {
    directory: PathBuf,
    address: SocketAddr,
    serving: Pid,
    version: u32,
}

fn main() -> ExitCode {
    match experiment() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("upgrade: {failed} requests failed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("upgrade: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Run all rounds and print the table; the number of requests that failed.
fn experiment() -> Result<u64> {
    let piece = clock::time(1)? / ROUNDS;
    let mut deployment = Deployment::start()?;
    let reports = take_turns(&mut deployment, piece);
    // Also when something went wrong: a server that we started is not left behind.
    deployment.stop()?;
    let (without, with) = reports?;
    print(&without, &with);
    Ok(without.failed() + with.failed())
}

/// What came of the rounds, without and with replacements.
fn take_turns(deployment: &mut Deployment, piece: Duration) -> Result<(Report, Report)> {
    let (mut without, mut with) = (Report::default(), Report::default());
    for round in 0..ROUNDS {
        let replacements = REPLACEMENTS * (round + 1) / ROUNDS - REPLACEMENTS * round / ROUNDS;
        // without, with, with, without: what drifts steadily cancels out.
        if round % 2 == 0 {
            without.add(deployment.load(piece, 0)?);
            with.add(deployment.load(piece, replacements)?);
        } else {
            with.add(deployment.load(piece, replacements)?);
            without.add(deployment.load(piece, 0)?);
        }
    }
    Ok((without, with))
}

fn print(without: &Report, with: &Report) {
    let row =
        |name: &str, cell: &dyn Fn(&Report) -> String| println!("{name:14}{:>12}{:>12}", cell(without), cell(with));
    println!("{:14}{:>12}{:>12}", "replacements", 0, REPLACEMENTS);
    row("answered", &|report| report.ok.to_string());
    row("requests/s", &|report| format!("{:.0}", report.rate()));
    row("refused", &|report| report.refused.to_string());
    row("reset", &|report| report.reset.to_string());
    row("timed out", &|report| report.timeout.to_string());
    row("cut short", &|report| report.short.to_string());
    row("other failures", &|report| report.other.to_string());
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
        row(name, &|report| format!("{:.2} ms", report.latencies.quantile(share).as_secs_f64() * 1e3));
    }
    println!("with/without: {:.3}", with.rate() / without.rate());
}

impl Deployment {
    fn start() -> Result<Self> {
        // Each generation is the child of its predecessor, and an orphan when that ends: ours then, to be waited for.
        prctl::set_child_subreaper(true)?;
        let hello = hello()?;
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("upgrade-{}", process::id()));
        fs::create_dir_all(&directory)?;
        // All made before anything is measured: to deploy is then to rename.
        for version in 1..=REPLACEMENTS + 1 {
            fs::copy(&hello, directory.join(format!("hello.{version}")))?;
            fs::write(directory.join(format!("version.{version}")), version.to_string())?;
        }
        install(&directory, 1)?;
        let line = format!(
            "HELLO_VERSION=$(cat '{0}/version') exec '{1}' --listen 127.0.0.1:0 -- '{0}/hello'",
            directory.display(),
            env!("CARGO_BIN_EXE_handoff-run"),
        );
        let mut child = Command::new("sh").args(["-c", &line]).env("UPGRADE", &line).stdout(Stdio::piped()).spawn()?;
        let serving = Pid::from_raw(child.id().try_into()?);
        let mut said = String::new();
        BufReader::new(child.stdout.take().context("stdout is a pipe")?).read_line(&mut said)?;
        let address = said.trim_end().rsplit(' ').next().and_then(|address| address.parse().ok());
        let address = address.with_context(|| format!("the server did not say where it serves: {said:?}"))?;
        Ok(Self { directory, address, serving, version: 1 })
    }

    /// Load the server for so long, and replace it so often meanwhile.
    fn load(&mut self, duration: Duration, replacements: u32) -> Result<Report> {
        let load = Load { connections: CONNECTIONS, requests: 100_000_000, duration, ..Load::on(self.address) };
        let start = Instant::now();
        let loader = thread::spawn(move || load.run(&AtomicBool::new(false)));
        for number in 0..replacements {
            let moment = duration * (2 * number + 1) / (2 * replacements);
            thread::sleep(moment.saturating_sub(start.elapsed()));
            self.replace()?;
        }
        ensure!(!loader.is_finished() || replacements == 0, "the replacements took longer than the load: more SECONDS");
        loader.join().ok().context("the load generator panicked")
    }

    fn replace(&mut self) -> Result<()> {
        self.version += 1;
        install(&self.directory, self.version)?;
        kill(self.serving, Signal::SIGUSR2)?;
        let expected = format!("hello from {}, pid ", self.version);
        let pid = wait_for("the new version to answer", || Ok(self.ask()?.strip_prefix(&expected).map(str::to_owned)))?;
        self.end()?;
        self.serving = Pid::from_raw(pid.trim_end().parse()?);
        Ok(())
    }

    /// One answer, from whichever generation gives it; these requests, too, must not fail.
    fn ask(&self) -> Result<String> {
        let load = Load { connections: 1, requests: 1, ..Load::on(self.address) };
        let report = load.run(&AtomicBool::new(false));
        report.by_body.into_keys().next().context("a request that looked for the new version failed")
    }

    /// Wait for the serving process to end, as it was told to.
    fn end(&self) -> Result<()> {
        let ended = || match waitpid(self.serving, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::StillAlive => Ok(None),
            WaitStatus::Exited(_, 0) => Ok(Some(())),
            end => bail!("the old process did not end well: {end:?}"),
        };
        wait_for("the old process to end", ended)
    }

    fn stop(self) -> Result<()> {
        kill(self.serving, Signal::SIGTERM)?;
        self.end()?;
        Ok(fs::remove_dir_all(&self.directory)?)
    }
}

/// Build the example server as we were built ourselves.
fn hello() -> Result<PathBuf> {
    let directory = Path::new(env!("CARGO_BIN_EXE_handoff-run")).parent().context("a binary is in a directory")?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--example", "hello"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if directory.ends_with("release") {
        cargo.arg("--release");
    }
    ensure!(cargo.status()?.success(), "cannot build the hello server");
    Ok(directory.join("examples/hello"))
}

/// Put a version where the next generation is started from, as a deploy would: whole, and under its name in one step.
fn install(directory: &Path, version: u32) -> Result<()> {
    for name in ["hello", "version"] {
        fs::rename(directory.join(format!("{name}.{version}")), directory.join(name))?;
    }
    Ok(())
}
