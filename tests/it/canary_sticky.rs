//! Shares of a trial by the address of the client: with `,sticky`, and with UDP always.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::harness::canary::CHECK;
use crate::harness::client::ask_from;
use crate::harness::log::on_trial;
use crate::harness::namespace::in_namespace;
use crate::harness::socket::ipv6_is_missing;
use crate::harness::{DEADLINE, Run, Server, Supervisor, is_root_to, skip, supervise};

/// So many clients there are of each kind.
const CLIENTS: u16 = 200;

/// Each client asks so often.
const TIMES: usize = 3;

/// A client, by what it is known by: all its addresses.
type Client = Vec<IpAddr>;

/// Clients with one address each; the whole of 127.0.0.0/8 is this machine's.
fn v4() -> Vec<Client> {
    (0..CLIENTS).map(|at| vec![Ipv4Addr::from_bits(0x7f01_0001 + u32::from(at)).into()]).collect()
}

/// Clients of 64 bits each, with two addresses.
fn v6() -> Vec<Client> {
    let address = |network, host| Ipv6Addr::new(0xfd00, 0, 0, network, host, 0, 0, host).into();
    (1..=CLIENTS).map(|network| vec![address(network, 1), address(network, 0xabcd)]).collect()
}

/// Bring the loopback interface of this thread's network up with these addresses; false, and said so, where that cannot
/// be done.
fn add(addresses: &[IpAddr]) -> bool {
    let line = |address: &IpAddr| format!("addr add {address}/128 dev lo nodad\n");
    let batch: String = addresses.iter().map(line).collect();
    let command = format!("ip link set lo up && ip -batch - <<'END'\n{batch}END\n");
    let output = Run::of("sh").args(&["-c", &command]).output();
    if !output.status.success() {
        skip(&format!("cannot add addresses: {}", output.stderr.trim_end()));
    }
    output.status.success()
}

/// The generation that answers each client: the same one whenever it asks.
#[track_caller]
fn sides(clients: &[Client], mut ask: impl FnMut(IpAddr) -> u64) -> Vec<u64> {
    let mut seen: BTreeMap<&Client, BTreeSet<u64>> = BTreeMap::new();
    for _ in 0..TIMES {
        for client in clients {
            seen.entry(client).or_default().extend(client.iter().map(|address| ask(*address)));
        }
    }
    let both: Vec<&Client> = seen.iter().filter(|(_, by)| by.len() > 1).map(|(client, _)| *client).collect();
    assert!(both.is_empty(), "answered by both: {both:?}");
    clients.iter().map(|client| *seen[client].first().unwrap()).collect()
}

/// The same over TCP.
#[track_caller]
fn tcp_sides(supervisor: &Supervisor, clients: &[Client]) -> Vec<u64> {
    let port = supervisor.address().rsplit_once(':').unwrap().1.parse().unwrap();
    sides(clients, |source| {
        let host = if source.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        ask_from(source, SocketAddr::new(host, port)).unwrap().generation
    })
}

/// The clients of the second generation are that share, within three standard deviations.
#[track_caller]
fn assert_share(sides: &[u64], percent: f64) {
    let (count, all) = (sides.iter().filter(|side| **side == 2).count() as f64, sides.len() as f64);
    let share = percent / 100.0;
    let deviation = (all * share * (1.0 - share)).sqrt();
    assert!((count - all * share).abs() <= 3.0 * deviation, "{count} of {all} instead of {percent} %");
}

/// Whoever was on the new generation is there later too.
#[track_caller]
fn assert_stay(before: &[u64], after: &[u64]) {
    let left = before.iter().zip(after).filter(|(before, after)| **before == 2 && **after != 2).count();
    assert_eq!(left, 0);
}

/// A trial of two stages with these clients, one after the other, at a supervisor that listens at `spec`.
#[track_caller]
fn assert_sticky(spec: &str, kinds: &[Vec<Client>]) {
    let supervisor = supervise(Server::Directed, &[]).listen(spec).serving();
    let options = ["--canary", "20%:1ms,sticky", "--canary", "50%:1ms", "--check", CHECK];
    let reload = supervisor.try_out(2, &options);
    let now = || kinds.iter().map(|clients| tcp_sides(&supervisor, clients)).collect::<Vec<_>>();
    let first = now();
    first.iter().for_each(|sides| assert_share(sides, 20.0));
    supervisor.upgrade();
    assert_eq!(now(), first, "another supervisor chooses as this one did");
    supervisor.folder.write("passed-20", "0");
    supervisor.wait_log(&on_trial(2, 50));
    let second = now();
    second.iter().for_each(|sides| assert_share(sides, 50.0));
    first.iter().zip(&second).for_each(|(first, second)| assert_stay(first, second));
    supervisor.upgrade();
    assert_eq!(now(), second);
    supervisor.folder.write("passed-50", "0");
    assert_eq!(reload.output().failure(), (0, ""));
    assert!(now().iter().flatten().all(|side| *side == 2));
    supervisor.stopped();
}

// handoff-run(1), CANARY: "a client stays on one side by its address [...], and one that is on the new one is there in each
// later stage."
#[test]
fn a_client_stays_on_one_side_through_all_stages() {
    assert_sticky("127.0.0.1:0", &[v4()]);
}

// "(with IPv6 by the first 64 bits)": privacy addresses change within them.
#[test]
fn a_client_of_ipv6_stays_on_one_side_by_its_network_beside_clients_of_ipv4() {
    if ipv6_is_missing() || !is_root_to("make a network namespace") {
        return;
    }
    let addresses: Vec<IpAddr> = v6().into_iter().flatten().collect();
    in_namespace(libc::CLONE_NEWNET, move || {
        if add(&addresses) {
            assert_sticky(":0", &[v4(), v6()]);
            assert_sticky("[::1]:0", &[v6()]);
        }
    });
}

// Another trial is made with other clients.
#[test]
fn each_trial_has_clients_of_its_own() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let clients = v4();
    let options = ["--canary", "20%:1h,sticky"];
    let reload = supervisor.try_out(2, &options);
    let first = tcp_sides(&supervisor, &clients);
    assert_eq!(supervisor.rollback().failure(), (0, ""));
    assert_eq!(reload.output().code(), 1);
    supervisor.wait_gone(2);
    let _reload = supervisor.try_out(3, &options);
    let second: Vec<u64> = tcp_sides(&supervisor, &clients).iter().map(|side| (*side).min(2)).collect();
    assert_share(&second, 20.0);
    assert_ne!(second, first);
}

/// Answers each datagram.
const UDP: &str = "
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True:
    client = s.recvfrom(100)[1]
    s.sendto(gen.encode(), client)";

/// Which generation answers a datagram from a port of its own.
fn ask_by_udp(source: IpAddr, address: &str) -> u64 {
    let socket = UdpSocket::bind((source, 0)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.send_to(b"?", address).unwrap();
    let mut answer = [0; 100];
    let length = socket.recv(&mut answer).unwrap();
    str::from_utf8(&answer[..length]).unwrap().parse().unwrap()
}

// "With UDP a client always does."
#[test]
fn datagrams_of_one_client_go_to_one_generation() {
    let supervisor = supervise(Server::Python(UDP), &[]).listen("udp:127.0.0.1:0").serving();
    let reload = supervisor.try_out(2, &["--canary", "20%:1ms", "--canary", "50%:1ms", "--check", CHECK]);
    let address = supervisor.address();
    let now = || sides(&v4(), |source| ask_by_udp(source, &address));
    let first = now();
    assert_share(&first, 20.0);
    supervisor.upgrade();
    assert_eq!(now(), first);
    supervisor.folder.write("passed-20", "0");
    supervisor.wait_log(&on_trial(2, 50));
    let second = now();
    assert_share(&second, 50.0);
    assert_stay(&first, &second);
    supervisor.folder.write("passed-50", "0");
    assert_eq!(reload.output().failure(), (0, ""));
    assert!(now().iter().all(|side| *side == 2));
    supervisor.stopped();
}
