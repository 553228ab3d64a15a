//! What handoff-run logs, as far as the harness reads it: its wording stands here and nowhere else in the harness.

use nix::unistd::Pid;

/// Between a listener and its address.
const LISTENS: &str = " listens on ";
/// Between a generation and its pid, and what ends that.
const STARTED: (&str, &str) = (": started (pid ", ")");
/// Between a generation and the seconds it took, and what ends those.
const READY: (&str, &str) = (": ready after ", " s");

/// How a line begins that a generation was started.
pub fn started(generation: u64) -> String {
    format!("generation {generation}{}", STARTED.0)
}

/// How a line begins that a generation is ready.
pub fn ready(generation: u64) -> String {
    format!("generation {generation}{}", READY.0)
}

/// A line that a generation gets a share of new connections.
pub fn on_trial(generation: u64, percent: u8) -> String {
    format!("generation {generation}: on trial with {percent} % of new connections\n")
}

/// How a line begins that a generation drains.
pub fn draining(generation: u64) -> String {
    format!("generation {generation}: draining")
}

/// A line that nothing is left of a generation.
pub fn gone(generation: u64) -> String {
    format!("generation {generation}: gone\n")
}

/// How a line begins that the supervisor becomes another program.
pub const UPGRADE: &str = "becoming ";

/// The line that a socket cannot be had, and why.
pub fn cannot_listen(spec: &str, reason: &str) -> String {
    format!("handoff-run: cannot listen on {spec}: {reason}\n")
}

/// Where the first socket is bound.
pub fn address(log: &str) -> Option<String> {
    let (_, rest) = log.split_once(LISTENS)?;
    Some(rest.split_once('\n')?.0.to_owned())
}

/// The main process of a generation.
pub fn pid(log: &str, generation: u64) -> Option<Pid> {
    let (_, rest) = log.split_once(&started(generation))?;
    rest.split_once(STARTED.1)?.0.parse().ok().map(Pid::from_raw)
}

/// The main processes of all generations.
pub fn pids(log: &str) -> Vec<Pid> {
    let pid = |rest: &str| rest.split_once(STARTED.1)?.0.parse().ok().map(Pid::from_raw);
    log.split(STARTED.0).skip(1).filter_map(pid).collect()
}

/// How long a generation took to become ready.
pub fn seconds(log: &str, generation: u64) -> Option<f64> {
    let (_, rest) = log.split_once(&ready(generation))?;
    rest.split_once(READY.1)?.0.parse().ok()
}

/// Text with what differs from run to run replaced: pids, times, and the address.
pub fn plain(text: &str, address: &str) -> String {
    let text = replaced(&text.replace(address, "ADDRESS"), STARTED, "PID");
    replaced(&text, READY, "TIME")
}

/// What stands between each `before` and `after`, replaced.
fn replaced(text: &str, (before, after): (&str, &str), with: &str) -> String {
    let mut parts = text.split(before);
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.find(after).map_or("", |at| &part[at..]);
        result.extend([before, with, rest]);
    }
    result
}
