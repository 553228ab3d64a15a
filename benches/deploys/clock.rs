//! How long a run takes, and what is done in it every second.

use std::env;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Time from one act to the next, if it does not take longer.
const INTERVAL: Duration = Duration::from_secs(1);

/// SECONDS, at least so many; unless told 20, or 2 where nothing is to be measured.
pub fn time(least: u32) -> Result<Duration> {
    // `cargo test --benches` runs this too, without that argument, and is only to see that it works.
    let usual = if env::args().any(|argument| argument == "--bench") { "20" } else { "2" };
    let seconds = env::var("SECONDS").unwrap_or_else(|_| usual.into());
    let seconds = seconds.parse().with_context(|| format!("SECONDS is no number: {seconds}"))?;
    ensure!((f64::from(least)..=3600.0).contains(&seconds), "SECONDS must be from {least} to 3600");
    Ok(Duration::from_secs_f64(seconds))
}

/// Act once a second for so long, a second from now on; what came of it each time. It is given the time since now.
pub fn each_second<T>(time: Duration, mut act: impl FnMut(Duration) -> T) -> Vec<T> {
    let start = Instant::now();
    let mut done = Vec::new();
    let mut next = INTERVAL;
    while next < time && start.elapsed() < time {
        thread::sleep(next.saturating_sub(start.elapsed()));
        done.push(act(start.elapsed()));
        next = start.elapsed().max(next + INTERVAL);
    }
    done
}
