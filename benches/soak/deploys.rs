//! The deploys: one after the other, every two seconds, each with what came of it.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::clock::{Time, now};
use super::random::Random;
use super::site::Site;
use super::supervisor::{Generation, ask, status};

const INTERVAL: Duration = Duration::from_secs(2);
/// One in eight is asked for by a signal, whose outcome is what `--status` shows in time.
const SIGNALS: u64 = 8;
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct Deploy {
    pub release: &'static str,
    pub begun: Time,
    pub ended: Time,
    /// An exit status of `--reload`, or what it would have been.
    pub status: i32,
    pub words: String,
}

/// All that is deployed; only who holds the lock deploys.
pub type Deploys = Mutex<Vec<Deploy>>;

/// Deploy the good release until `stop` is set.
pub fn run(site: &Site, supervisor: &AtomicI32, mut random: Random, all: &Deploys, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        {
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(if random.below(SIGNALS) == 0 { hang_up(site, supervisor) } else { reload(site, "good")? });
        }
        thread::sleep(INTERVAL.saturating_sub(start.elapsed()));
    }
    Ok(())
}

/// Deploy by `--reload`.
pub fn reload(site: &Site, release: &'static str) -> Result<Deploy> {
    let begun = now();
    let output = ask(site, &["--reload"], &[])?;
    let words = String::from_utf8_lossy(&output.stderr).trim_end().replace('\n', " | ");
    Ok(Deploy { release, begun, ended: now(), status: output.status.code().unwrap_or(-1), words })
}

/// Deploy by SIGHUP. It may be that no supervisor is there.
fn hang_up(site: &Site, supervisor: &AtomicI32) -> Deploy {
    let (begun, start) = (now(), Instant::now());
    let number = |all: &[Generation]| all.iter().find(|one| one.state == "serving").map(|one| one.number);
    let before = status(site).ok().and_then(|all| number(&all));
    let asked = supervisor.load(Ordering::Relaxed);
    let sent = kill(Pid::from_raw(asked), Signal::SIGHUP);
    let (mut outcome, mut was_busy) = (None, false);
    while outcome.is_none() && sent.is_ok() && start.elapsed() < SIGNAL_TIMEOUT {
        thread::sleep(Duration::from_millis(20));
        let Ok(all) = status(site) else { continue };
        let is_busy = all.iter().any(|one| ["starting", "standing-by"].contains(&&*one.state));
        was_busy |= is_busy;
        let is_newer = number(&all) > before;
        outcome = (!is_busy && (is_newer || was_busy)).then_some(if is_newer { 0 } else { 1 });
    }
    if supervisor.load(Ordering::Relaxed) != asked {
        // It is no more.
        outcome = None;
    }
    let words = format!("SIGHUP to a supervisor with generation {before:?}: {sent:?}");
    Deploy { release: "good", begun, ended: now(), status: outcome.unwrap_or(125), words }
}
