//! --intercept: a program that opens its address itself gets our socket in the place of its own.

use std::collections::BTreeSet;

use nix::sys::signal::{Signal, kill};

use crate::harness::client::ask;
use crate::harness::intercept::intercept;
use crate::harness::process::{descriptors, sockets, stat};
use crate::harness::socket::ipv6_is_missing;
use crate::harness::{Supervisor, wait_for};

const SERVE: &str = "s = opened()\nserve()";

/// What generations of it have left under this name.
fn left(supervisor: &Supervisor, name: &str, generations: u64) -> Vec<String> {
    (1..=generations).map(|generation| supervisor.folder.read(&format!("{name}-{generation}"))).collect()
}

// handoff-run(1), INTERCEPTION: "a generation is not told of any socket".
#[test]
fn a_server_that_knows_nothing_of_us_is_replaced() {
    let code = "
import os
fds = [fd for fd in range(3, 100) if os.path.exists(f'/proc/self/fd/{fd}')]
mark('told-' + gen, ' '.join([name for name in os.environ if name.startswith('LISTEN_')] + [str(fd) for fd in fds]))
s = opened()
serve()";
    let supervisor = intercept(code, &[]).serving();
    for generation in 2..=5 {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
        assert_eq!(supervisor.answer().generation, generation);
    }
    assert_eq!(left(&supervisor, "told", 5), ["", "", "", "", ""]);
    supervisor.stopped();
}

// handoff-run(1), INTERCEPTION: "our socket takes the place of its own".
#[test]
fn its_descriptor_is_our_socket_with_the_flags_of_its_own() {
    let code = "
def shape(s):
    return fcntl.fcntl(s, fcntl.F_GETFD), fcntl.fcntl(s, fcntl.F_GETFL) & os.O_NONBLOCK != 0
seen = []
for closes in (True, False):
    s = socket.socket()
    s.set_inheritable(not closes)
    s.setblocking(gen == '1')
    before, number = shape(s), s.fileno()
    s.bind(address())
    seen.append(f'{before == shape(s) and number == s.fileno()} {inode(s)}')
s.listen()
mark('seen-' + gen, '\\n'.join(seen))
serve()";
    let supervisor = intercept(code, &[]).serving();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    for generation in [1, 2] {
        let seen = supervisor.folder.read(&format!("seen-{generation}"));
        let ours = sockets(supervisor.pid).into_iter().map(|inode| format!("True {inode}")).collect::<Vec<_>>();
        let lines: BTreeSet<&str> = seen.lines().collect();
        assert_eq!((seen.lines().count(), lines.len()), (2, 1), "{seen}");
        assert!(ours.iter().any(|line| lines.contains(line.as_str())), "{seen} of {ours:?}");
    }
    supervisor.stopped();
}

/// It sets options if it is generation 1, and leaves what those of its listener and of its connections are.
const OPTIONS: &str = "
options = {
    'keepalive': (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), 'nodelay': (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    'idle': (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77), 'tos': (socket.IPPROTO_IP, socket.IP_TOS, 16),
    'defer': (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1), 'sndbuf': (socket.SOL_SOCKET, socket.SO_SNDBUF, 30000),
    'rcvbuf': (socket.SOL_SOCKET, socket.SO_RCVBUF, 30000), 'congestion': (socket.IPPROTO_TCP, 13, b'reno'),
}
def prepare(s):
    if gen == '1':
        for option in options.values(): s.setsockopt(*option)
def shown(s): return [s.getsockopt(*option[:2], 8).rstrip(b'\\0') for option in options.values()]
own = socket.socket()
prepare(own)
s = opened(prepare=prepare)
mark('same-' + gen, str(shown(s) == shown(own)) + f' {shown(s)} {shown(own)}')
def answer(client):
    name = options['nodelay']
    client.recv(1000)
    client.sendall(f'hello from {gen}, pid {client.getsockopt(*name[:2])}\\n'.encode())
    client.close()
serve()";

// handoff-run(1), INTERCEPTION: "the options that it had set, as far as they have a meaning on ours".
#[test]
fn what_it_had_set_is_on_our_socket_and_what_an_earlier_one_had_set_is_not() {
    let supervisor = intercept(OPTIONS, &[]).serving();
    assert_eq!(supervisor.served_by().as_raw(), 1);
    // The third has the socket of the first.
    for generation in [2, 3] {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        assert_eq!(supervisor.answer().generation, generation);
        assert_eq!(supervisor.served_by().as_raw(), 0);
    }
    for same in left(&supervisor, "same", 3) {
        assert!(same.starts_with("True "), "{same}");
    }
    supervisor.stopped();
}

// handoff-run(1), INTERCEPTION: "its listen(2) does not make our backlog shorter".
#[test]
fn the_backlog_is_not_less_than_ours() {
    let code = "
s = opened()
s.listen(1)
import threading
def look():
    wait_for('look')
    mark('backlog', str(int.from_bytes(s.getsockopt(6, 11, 32)[28:], sys.byteorder)))
threading.Thread(target=look, daemon=True).start()
serve()";
    let supervisor = intercept(code, &["--backlog", "77"]).serving();
    supervisor.folder.open("look");
    assert_eq!(supervisor.folder.read("backlog"), "77");
    supervisor.stopped();
}

// handoff-run(1), INTERCEPTION: "Any other bind(2) goes on".
#[test]
fn what_is_not_ours_is_bound_as_ever() {
    let code = "
def bound(at, family=socket.AF_INET, kind=socket.SOCK_STREAM):
    s = socket.socket(family, kind)
    s.bind(at)
    return s.getsockname()
host, port = address()
seen = [
    bound((host, 0))[1] not in (0, port),
    bound(('127.0.0.9', port)) == ('127.0.0.9', port),
    bound((host, port), kind=socket.SOCK_DGRAM) == (host, port),
    bound(('127.0.0.8', 0), kind=socket.SOCK_DGRAM)[0] == '127.0.0.8',
    bound(path('own'), socket.AF_UNIX) == path('own'),
    bound(b'\\0' + path('own').encode(), socket.AF_UNIX) == b'\\0' + path('own').encode(),
    bound((0, 0), socket.AF_NETLINK, socket.SOCK_RAW)[0] != 0,
]
def fails(how, errno):
    try: how()
    except OSError as error: return error.errno == errno
    return False
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def raw(number, bytes, length):
    return (libc.bind(number, bytes, length), ctypes.get_errno())
s = opened()
others = [socket.socket(socket.AF_INET6) for _ in range(0 if exists('no-v6') else 2)]
seen += [
    fails(lambda: bound(('192.0.2.1', port)), errno.EADDRNOTAVAIL),
    raw(999, b'\\2\\0' + port.to_bytes(2, 'big') + bytes([127, 0, 0, 1]) + bytes(8), 16) == (-1, errno.EBADF),
    raw(0, b'\\2\\0' + port.to_bytes(2, 'big') + bytes([127, 0, 0, 1]) + bytes(8), 16) == (-1, errno.ENOTSOCK),
    exists('no-v6') or fails(lambda: [other.bind(('::1', port)) for other in others], errno.EADDRINUSE),
]
mark('seen', str(seen))
serve()";
    let setup = intercept(code, &[]);
    if ipv6_is_missing() {
        setup.folder.write("no-v6", "");
    }
    let supervisor = setup.serving();
    let seen = supervisor.folder.read("seen");
    assert!(!seen.contains("False"), "{seen}");
    supervisor.stopped();
}

// handoff-run(1), INTERCEPTION: "On SIGUSR2 the next supervisor goes on answering".
#[test]
fn another_supervisor_starts_further_generations_and_answers_those_that_there_are() {
    let code = "
if gen == '2': wait_for('go')
s = opened()
serve()";
    let supervisor = intercept(code, &[]).serving();
    supervisor.upgrade();
    let reload = supervisor.command("--reload", &["--wait"]).start();
    supervisor.generation(2);
    supervisor.upgrade();
    supervisor.folder.open("go");
    assert_eq!(reload.output().failure(), (0, ""));
    assert_eq!(supervisor.answer().generation, 2);
    // Nothing is left of the notifiers of those that are gone.
    wait_for("one notifier", || (notifiers(&supervisor) == 1).then_some(()));
    supervisor.upgrade();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert_eq!(notifiers(&supervisor), 1);
    supervisor.stopped();
}

fn notifiers(supervisor: &Supervisor) -> usize {
    descriptors(supervisor.pid).into_iter().filter(|(_, link)| link == "anon_inode:seccomp notify").count()
}

// handoff-run(1), INTERCEPTION: "any further bind(2) of it fails with ENOSYS".
#[test]
fn a_server_serves_on_when_its_supervisor_has_died_and_can_open_no_further_socket() {
    let code = "
s = opened()
import threading
def another():
    wait_for('another')
    try: socket.socket().bind(('127.0.0.1', 0))
    except OSError as error: mark('error', str(error.errno))
threading.Thread(target=another, daemon=True).start()
serve()";
    let supervisor = intercept(code, &[]).serving();
    let address = supervisor.address();
    let server = supervisor.generation(1);
    kill(supervisor.pid, Signal::SIGKILL).unwrap();
    wait_for("the supervisor to end", || (stat(supervisor.pid).is_none_or(|fields| fields[0] == "Z")).then_some(()));
    assert_eq!(ask(&address).unwrap().pid, server);
    supervisor.folder.open("another");
    assert_eq!(supervisor.folder.read("error"), libc::ENOSYS.to_string());
    assert_eq!(ask(&address).unwrap().pid, server);
}

#[test]
fn a_shared_socket_is_given_as_well() {
    let supervisor = intercept(SERVE, &["--shared"]).serving();
    let ours: BTreeSet<u64> = sockets(supervisor.pid).into_iter().collect();
    for generation in [2, 3] {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        assert_eq!(supervisor.answer().generation, generation);
    }
    assert!(sockets(supervisor.generation(3)).iter().any(|inode| ours.contains(inode)));
    supervisor.stopped();
}

// No number is taken by our sockets.
#[test]
fn readiness_may_be_told_at_the_number_of_the_first_socket() {
    let code = "s = opened()\nos.write(3, b'x')\nserve()";
    let supervisor = intercept(code, &["--ready", "fd:3"]).serving();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    supervisor.stopped();
}
