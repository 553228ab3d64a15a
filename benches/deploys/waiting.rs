//! Waiting for facts. Every wait ends.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long any fact may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// Ask until there is an answer; a millisecond between, for who asks takes the time from those we measure.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        thread::sleep(Duration::from_millis(1));
    }
    bail!("waited in vain for {what}")
}
