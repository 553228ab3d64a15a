//! The mixed load: clients of every kind at once, in one poll loop, bounded in number and pace, only towards this host.

use std::sync::atomic::{AtomicBool, Ordering};

use super::client::{Client, Kind, Target, Transport};
use super::poll;
use super::tally::Tally;

/// How many clients there are of each kind.
const CLIENTS: &[(Kind, Transport, u8)] = &[
    (Kind::OneRequest, Transport::Tcp, 4),
    (Kind::OneRequest, Transport::Unix, 2),
    (Kind::OneRequest, Transport::Udp, 20),
    (Kind::KeepAlive, Transport::Tcp, 4),
    (Kind::KeepAlive, Transport::Unix, 2),
    (Kind::Slow, Transport::Tcp, 8),
    (Kind::Slow, Transport::Unix, 4),
    (Kind::HalfOpen, Transport::Tcp, 4),
    (Kind::HalfOpen, Transport::Unix, 2),
    (Kind::Idle, Transport::Tcp, 4),
    (Kind::Idle, Transport::Unix, 2),
    (Kind::WebSocket, Transport::Tcp, 8),
    (Kind::WebSocket, Transport::Unix, 4),
];

/// Load the server until `stop` is set, then wait for what is under way.
pub fn run(target: &Target, stop: &AtomicBool) -> Tally {
    let all = CLIENTS.iter().flat_map(|(kind, transport, count)| (0..*count).map(|_| (*kind, *transport)));
    let mut clients: Vec<_> =
        (0..).zip(all).map(|(number, (kind, transport))| Client::new(target, kind, transport, number)).collect();
    let mut tally = Tally::default();
    loop {
        let goes_on = !stop.load(Ordering::Relaxed);
        if !goes_on && clients.iter().all(Client::is_resting) {
            return tally;
        }
        let wakes = clients.iter().filter(|client| goes_on || !client.is_resting()).map(Client::wakes).min();
        let stirred = poll::wait(clients.iter().map(Client::to_poll), wakes);
        for (client, is_stirred) in clients.iter_mut().zip(stirred) {
            // What has come of the last request first: it may be time for the next one.
            let ended = client.go_on(is_stirred);
            let begun = if goes_on { client.begin() } else { None };
            for event in ended.into_iter().chain(begun) {
                tally.count(client.kind, client.transport, event);
            }
        }
    }
}
