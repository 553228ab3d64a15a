//! What steering costs: the connection rate of a steered socket against that of a shared one, and how long a reload takes.
//!
//! Two supervisors of the hello server, one shared and one steered, are loaded in turns, RUNS times each, 200 unless told,
//! for 2,000 connections; medians are compared, and the middle half of the ratios of neighbours is shown. Then both are
//! reloaded with `--settle 0`, and the server is started alone, in turns. A request that fails makes this program fail.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a table is what this program is for")]

#[path = "../tests/it/load.rs"]
mod load;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use load::{Close, Load};

const HANDOFF_RUN: &str = env!("CARGO_BIN_EXE_handoff-run");
const CONNECTIONS: u64 = 2000;

fn main() -> ExitCode {
    match experiment() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("steering: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn experiment() -> Result<()> {
    let runs = runs()?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("steering-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let hello = hello()?;
    let shared = Supervisor::start(&folder, "shared", &["--shared"], &hello)?;
    let steered = Supervisor::start(&folder, "steered", &[], &hello)?;
    compare_rates(&shared, &steered, runs)?;
    compare_reloads(&shared, &steered, &hello, runs.div_ceil(5))?;
    shared.stop()?;
    steered.stop()?;
    Ok(fs::remove_dir_all(&folder)?)
}

fn runs() -> Result<usize> {
    // `cargo test --benches` runs this too, without that argument, and is only to see that it works.
    let usual = if env::args().any(|argument| argument == "--bench") { "200" } else { "2" };
    let runs = env::var("RUNS").unwrap_or_else(|_| usual.into());
    let runs = runs.parse().with_context(|| format!("RUNS is no number: {runs}"))?;
    ensure!((1..=10_000).contains(&runs), "RUNS must be from 1 to 10000");
    Ok(runs)
}

fn compare_rates(shared: &Supervisor, steered: &Supervisor, runs: usize) -> Result<()> {
    let (mut of_shared, mut of_steered) = (vec![], vec![]);
    for run in 0..runs {
        // What drifts steadily cancels out.
        if run % 2 == 0 {
            of_shared.push(shared.rate()?);
            of_steered.push(steered.rate()?);
        } else {
            of_steered.push(steered.rate()?);
            of_shared.push(shared.rate()?);
        }
    }
    let mut ratios: Vec<f64> = of_steered.iter().zip(&of_shared).map(|(steered, shared)| steered / shared).collect();
    let (shared, steered) = (median(&mut of_shared), median(&mut of_steered));
    let middle = median(&mut ratios);
    let (low, high) = (ratios[runs / 4], ratios[(runs * 3 / 4).min(runs - 1)]);
    println!("connections/s: shared {shared:.0}, steered {steered:.0}, steered/shared: {:.3}", steered / shared);
    println!("of neighbouring runs: {middle:.3}, the middle half {low:.3} to {high:.3}");
    Ok(())
}

fn compare_reloads(shared: &Supervisor, steered: &Supervisor, hello: &Path, runs: usize) -> Result<()> {
    let (mut of_shared, mut of_steered, mut alone) = (vec![], vec![], vec![]);
    for _ in 0..runs {
        of_shared.push(shared.reload()?);
        of_steered.push(steered.reload()?);
        alone.push(start_alone(hello)?);
    }
    let [shared, steered, alone] = [of_shared, of_steered, alone].map(|mut times| median(&mut times));
    println!("ms until it serves: server alone {alone:.2}, reload shared {shared:.2}, reload steered {steered:.2}");
    Ok(())
}

/// Of as many values as there are, which are sorted by it.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A supervisor of the hello server.
struct Supervisor {
    child: Child,
    control: PathBuf,
    address: SocketAddr,
}

impl Supervisor {
    fn start(folder: &Path, name: &str, options: &[&str], hello: &Path) -> Result<Supervisor> {
        let control = folder.join(name);
        let mut line = Command::new(HANDOFF_RUN);
        line.args(["--supervise", "--listen", "127.0.0.1:0", "--settle", "0", "--control"]).arg(&control);
        line.args(options).arg("--").arg(hello).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = line.spawn()?;
        let mut lines = BufReader::new(child.stderr.take().context("stderr is a pipe")?).lines();
        let said = lines.next().context("the supervisor said nothing")??;
        let address = said.rsplit(' ').next().and_then(|address| address.parse().ok());
        let address = address.with_context(|| format!("the supervisor did not say where it listens: {said:?}"))?;
        for line in &mut lines {
            if line?.contains(": ready after ") {
                break;
            }
        }
        // Whatever it says from now on goes nowhere.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Supervisor { child, control, address })
    }

    /// Connections a second, of a short run.
    fn rate(&self) -> Result<f64> {
        let load =
            Load { requests: CONNECTIONS, duration: Duration::MAX, close: Close::Reset, ..Load::on(self.address) };
        let report = load.run(&AtomicBool::new(false));
        ensure!(report.failed() == 0, "{} requests failed", report.failed());
        Ok(report.rate())
    }

    /// How many milliseconds a reload takes.
    fn reload(&self) -> Result<f64> {
        let start = Instant::now();
        self.request("--reload")?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    fn request(&self, request: &str) -> Result<()> {
        let status = Command::new(HANDOFF_RUN).args(["--quiet", request]).arg(&self.control).status()?;
        ensure!(status.success(), "{request} ended, {status}");
        Ok(())
    }

    fn stop(mut self) -> Result<()> {
        self.request("--stop")?;
        ensure!(self.child.wait()?.success(), "the supervisor did not end well");
        Ok(())
    }
}

/// How many milliseconds the server takes until it serves, started by handoff-run without a supervisor.
fn start_alone(hello: &Path) -> Result<f64> {
    let start = Instant::now();
    let mut child = Command::new(HANDOFF_RUN)
        .args(["--quiet", "--listen", "127.0.0.1:0", "--"])
        .arg(hello)
        .stdout(Stdio::piped())
        .spawn()?;
    BufReader::new(child.stdout.take().context("stdout is a pipe")?).read_line(&mut String::new())?;
    let time = start.elapsed();
    child.kill()?;
    child.wait()?;
    Ok(time.as_secs_f64() * 1e3)
}

/// Build the example server as we were built ourselves.
fn hello() -> Result<PathBuf> {
    let directory = Path::new(HANDOFF_RUN).parent().context("a binary is in a directory")?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--example", "hello"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if directory.ends_with("release") {
        cargo.arg("--release");
    }
    ensure!(cargo.status()?.success(), "cannot build the hello server");
    Ok(directory.join("examples/hello"))
}
