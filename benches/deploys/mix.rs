//! A mixed load: clients of several kinds at once, in one poll loop, bounded in time and only ever towards loopback.

use std::time::{Duration, Instant};

use super::client::{Client, Event, Kind, Target};
use super::poll;

/// Load the server for so long with so many clients of each kind, then wait for what is under way; `count` is given what
/// comes of each request.
pub fn run(target: &Target, clients: &[(Kind, u8)], time: Duration, mut count: impl FnMut(Kind, &Event)) {
    assert!(target.address.ip().is_loopback(), "{} is not loopback", target.address);
    let kinds = clients.iter().flat_map(|(kind, count)| (0..*count).map(|_| *kind));
    let mut clients: Vec<_> = (0..).zip(kinds).map(|(source, kind)| Client::new(target, kind, source)).collect();
    let start = Instant::now();
    loop {
        let goes_on = start.elapsed() < time;
        if !goes_on && clients.iter().all(Client::is_resting) {
            return;
        }
        let stirred = wait(&clients, goes_on);
        for (client, is_stirred) in clients.iter_mut().zip(stirred) {
            let now = Instant::now();
            // What has come of the last request first: it may be time for the next one.
            let ended = client.go_on(is_stirred, now);
            let begun = if goes_on { client.begin(now) } else { None };
            ended.into_iter().chain(begun).for_each(|event| count(client.kind, &event));
        }
    }
}

/// Wait until something happens to a connection, or it is time for a client to go on; to which of them it happened.
fn wait(clients: &[Client], goes_on: bool) -> Vec<bool> {
    let wakes = clients.iter().filter(|client| goes_on || !client.is_resting()).map(Client::wakes).min();
    poll::wait(clients.iter().map(Client::to_poll), wakes)
}
