//! How a poll loop over many clients waits.

use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollTimeout, poll};

/// How often a loop in which nothing happens looks at the clock.
const TICK: Duration = Duration::from_millis(20);

/// Wait until something happens to a client's connection, if it has one, or it is time for one to go on; to which of them
/// it happened.
pub fn wait<'a>(clients: impl Iterator<Item = Option<PollFd<'a>>>, wakes: Option<Instant>) -> Vec<bool> {
    let rest = wakes.map_or(TICK, |wakes| wakes.saturating_duration_since(Instant::now())).min(TICK);
    // poll(2) counts whole milliseconds: one more, or the last would be spent spinning.
    let rest = if rest.is_zero() { rest } else { rest + Duration::from_millis(1) };
    let clients: Vec<Option<PollFd>> = clients.collect();
    let mut stirred = vec![false; clients.len()];
    let (numbers, mut fds): (Vec<usize>, Vec<PollFd>) =
        clients.into_iter().enumerate().filter_map(|(number, fd)| Some((number, fd?))).unzip();
    poll(&mut fds, PollTimeout::try_from(rest).expect("a tick has few milliseconds"))
        .expect("poll is only given open sockets, and no signal is handled here");
    for (number, fd) in numbers.into_iter().zip(fds) {
        stirred[number] = fd.any() != Some(false);
    }
    stirred
}
