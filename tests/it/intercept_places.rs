//! --intercept: which address is ours, of every family.

use std::io::ErrorKind;
use std::net::UdpSocket;

use crate::harness::client::{Client, ask};
use crate::harness::intercept::intercept;
use crate::harness::setup::Setup;
use crate::harness::socket::{ipv6_is_missing, tcp};
use crate::harness::{DEADLINE, Server, Supervisor, supervise};

/// Opens what `how` says, and leaves what address it then has.
fn opening(how: &str) -> String {
    format!("s = opened({how})\nmark('name-' + gen, str(s.getsockname()[:2]))\nserve()")
}

fn name(supervisor: &Supervisor, generation: u64) -> String {
    supervisor.folder.read(&format!("name-{generation}"))
}

fn port(supervisor: &Supervisor) -> String {
    supervisor.address().rsplit(':').next().unwrap().to_owned()
}

const V4: &str = "socket.AF_INET, host='0.0.0.0'";
const LOCAL: &str = "socket.AF_INET, host='127.0.0.1'";
const DUAL: &str = "socket.AF_INET6, host='::', prepare=lambda s: s.setsockopt(41, 26, 0)";
const V6_ONLY: &str = "socket.AF_INET6, host='::', prepare=lambda s: s.setsockopt(41, 26, 1)";
const MAPPED: &str = "socket.AF_INET6, host='::ffff:127.0.0.1', prepare=lambda s: s.setsockopt(41, 26, 0)";

// handoff-run(1), INTERCEPTION: "An address is ours if bind(2) could not have it beside ours".
#[test]
fn every_spelling_of_an_address_that_is_in_the_way_of_ours_gets_it() {
    for (spec, how, name_then) in [
        ("127.0.0.1:0", V4, "127.0.0.1"),
        ("0.0.0.0:0", LOCAL, "0.0.0.0"),
        ("127.0.0.1:0", DUAL, "127.0.0.1"),
        ("127.0.0.1:0", MAPPED, "127.0.0.1"),
        ("[::]:0", DUAL, "::"),
        ("[::]:0", MAPPED, "::"),
        ("[::]:0,v6only", V6_ONLY, "::"),
        (":0", DUAL, "::"),
        (":0", V4, "0.0.0.0"),
        (":0", LOCAL, "0.0.0.0"),
        (":0", V6_ONLY, "::"),
    ] {
        if (how.contains("INET6") || spec.contains("::")) && ipv6_is_missing() {
            continue;
        }
        let supervisor = intercept(&opening(how), &[]).listen(spec).start();
        supervisor.wait_ready(1);
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{spec} {how}: {}", supervisor.log());
        let port = name(&supervisor, 1).rsplit(' ').next().unwrap().trim_end_matches(')').to_owned();
        for generation in [1, 2] {
            assert_eq!(name(&supervisor, generation), format!("('{name_then}', {port})"), "{spec} {how}");
        }
        let local = if how == V6_ONLY { format!("[::1]:{port}") } else { format!("127.0.0.1:{port}") };
        assert_eq!(ask(&local).unwrap().generation, 2);
        supervisor.stopped();
    }
}

/// Opens the port for each IP version, and serves both.
const EACH: &str = "
v6 = opened(socket.AF_INET6, host='::', prepare=lambda s: s.setsockopt(41, 26, 1))
v4 = opened(socket.AF_INET, host='0.0.0.0')
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True:
    for s in select.select([v4, v6], [], [])[0]: answer(s.accept()[0])";

// handoff-run(1), INTERCEPTION: "what it opens, one or both".
#[test]
fn a_port_alone_is_opened_for_each_ip_version_by_one_that_does_so() {
    if ipv6_is_missing() {
        return;
    }
    // Both are the socket of that name, and the source leads to both.
    let check = "test -n \"$HANDOFF_SOURCE\"";
    let options = ["--env", "PORT={port:web}", "--ready", &format!("check:{check}")];
    let supervisor = intercept(EACH, &options).listen("web=:0").start();
    supervisor.wait_ready(1);
    let port = port(&supervisor);
    for generation in 1..=3 {
        for host in ["127.0.0.1", "[::1]"] {
            assert_eq!(ask(&format!("{host}:{port}")).unwrap().generation, generation);
        }
        supervisor.upgrade();
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    }
    supervisor.stopped();
}

// handoff-run(1), INTERCEPTION: "A later generation that opens another version fails".
#[test]
fn a_later_generation_of_another_ip_version_fails_and_is_told_why() {
    if ipv6_is_missing() {
        return;
    }
    let code = |first: &str, second: &str| format!("s = opened({first}) if gen == '1' else opened({second})\nserve()");
    for (first, second, bound, asked) in
        [(V4, DUAL, "0.0.0.0", "[::]"), (DUAL, V4, "[::]", "0.0.0.0"), (V6_ONLY, LOCAL, "[::]", "127.0.0.1")]
    {
        let supervisor = intercept(&code(first, second), &[]).listen(":0").start();
        supervisor.wait_ready(1);
        let port = port(&supervisor);
        let output = supervisor.reload();
        let told = format!(
            "handoff-run: generation 2: ended with status 1 before it was ready: it binds {asked}:{port}, which is of another IP \
             version than {bound}:{port}, where we listen\n\
             handoff-run: let it listen on {bound}:{port}, or start the supervisor with --listen {asked}:{port}\n"
        );
        assert_eq!(output.failure(), (1, told.as_str()), "{}", supervisor.log());
        supervisor.stopped();
    }
}

// handoff-run(1), INTERCEPTION: "So does an IPv4 program where an IPv6 address is listed".
#[test]
fn a_program_of_ipv4_does_not_get_a_dual_stack_socket() {
    if ipv6_is_missing() {
        return;
    }
    let mut supervisor = intercept(&opening(V4), &[]).listen("[::]:0").start();
    let (code, log) = supervisor.end();
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("which is of another IP version than [::]:"), "{log}");
}

#[test]
fn several_addresses_are_each_its_own() {
    let code = "
first, second = (int(port) for port in os.environ['PORTS'].split())
sockets = []
for port in (second, first):
    s = socket.socket()
    s.bind(('127.0.0.1', port))
    s.listen()
    sockets.append(s)
assert [s.getsockname()[1] for s in sockets] == [second, first]
mark('ports-' + gen, f'{first} {second}')
while True:
    for s in select.select(sockets, [], [])[0]: answer(s.accept()[0])";
    let setup = supervise(Server::Python(code), &["--intercept", "--env", "SOCKET="]);
    let setup = setup.options(&["--env", "PORTS={port:one} {port:two}"]);
    let supervisor = setup.listen("one=127.0.0.1:0").listen("two=127.0.0.1:0").serving();
    for generation in [1, 2] {
        let ports = supervisor.folder.read(&format!("ports-{generation}"));
        for port in ports.split(' ') {
            assert_eq!(ask(&format!("127.0.0.1:{port}")).unwrap().generation, generation);
        }
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    }
    supervisor.stopped();
}

/// Opens a datagram socket and answers each datagram by its generation.
const ECHO: &str = "
s = opened(kind=socket.SOCK_DGRAM)
while True:
    data, client = s.recvfrom(100)
    s.sendto(gen.encode(), client)";

#[test]
fn a_datagram_server_is_replaced() {
    let supervisor = intercept(ECHO, &[]).listen("udp:127.0.0.1:0").serving();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.connect(supervisor.address()).unwrap();
    for generation in 1..=4 {
        for _ in 0..20 {
            client.send(b"x").unwrap();
            let mut answer = [0; 100];
            let length = client.recv(&mut answer).unwrap();
            assert_eq!(&answer[..length], generation.to_string().as_bytes());
        }
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    }
    supervisor.stopped();
}

// As caddy has its port 443.
#[test]
fn a_port_for_both_transports_is_given_for_each() {
    let code = "
host, port = address()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind((host, port))
s = opened()
mark('kinds-' + gen, f'{datagrams.type} {s.type}')
while True:
    for ready in select.select([s, datagrams], [], [])[0]:
        if ready is s: answer(s.accept()[0])
        else: datagrams.sendto(gen.encode(), datagrams.recvfrom(100)[1])";
    let (listener, address) = tcp();
    drop(listener);
    let setup = intercept_at(code, &address);
    let supervisor = setup.serving();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    for generation in [1_u64, 2, 3] {
        client.send_to(b"x", &address).unwrap();
        let mut answer = [0; 100];
        let length = client.recv(&mut answer).unwrap();
        assert_eq!(&answer[..length], generation.to_string().as_bytes());
        assert_eq!(ask(&address).unwrap().generation, generation);
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    }
    supervisor.stopped();
}

fn intercept_at(code: &str, address: &str) -> Setup {
    let setup = supervise(Server::Python(code), &["--intercept", "--env", "SOCKET="]);
    let setup = setup.options(&["--env", "ADDRESS={addr:t}"]);
    setup.listen(&format!("t={address}")).listen(&format!("u=udp:{address}"))
}

// handoff-run(1), INTERCEPTION: "who has connected before is reset where that is another".
#[test]
fn who_connects_before_the_version_is_chosen_is_reset_where_it_is_another() {
    if ipv6_is_missing() {
        return;
    }
    let supervisor = intercept(&format!("wait_for('go')\n{}", opening(V4)), &[]).listen(":0").start();
    let port = port(&supervisor);
    let mut client = Client::connect(&format!("127.0.0.1:{port}")).unwrap();
    client.send().unwrap();
    supervisor.folder.open("go");
    assert_eq!(client.answer().unwrap_err().kind(), ErrorKind::ConnectionReset);
    supervisor.wait_log(&format!("handoff-run: what waited at [::]:{port} is reset, 1 connection\n"));
    supervisor.wait_ready(1);
    assert_eq!(ask(&format!("127.0.0.1:{port}")).unwrap().generation, 1);
    supervisor.stopped();
}

// Of two ports, the first generation opens one; the second fails when it has opened both.
#[test]
fn a_generation_that_fails_has_chosen_nothing() {
    if ipv6_is_missing() {
        return;
    }
    let code = "
first, second = (int(port) for port in os.environ['PORTS'].split())
s = socket.create_server(('127.0.0.1', first))
if gen == '2':
    socket.create_server(('0.0.0.0', second))
    other = socket.socket(socket.AF_INET6)
    other.setsockopt(41, 26, 1)
    other.bind(('::', second))
    sys.exit(3)
if gen == '3':
    other = socket.create_server(('::', second), family=socket.AF_INET6, dualstack_ipv6=True)
    mark('second', str(second))
    import threading
    def also():
        while True: answer(other.accept()[0])
    threading.Thread(target=also, daemon=True).start()
os.write(9, b'x')
serve()";
    let setup = supervise(Server::Python(code), &["--intercept", "--env", "SOCKET=", "--ready", "fd:9"]);
    let setup = setup.options(&["--env", "PORTS={port:one} {port:two}"]);
    let supervisor = setup.listen("one=127.0.0.1:0").listen("two=:0").start();
    supervisor.wait_ready(1);
    assert_eq!(supervisor.reload().code(), 1);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    let second = supervisor.folder.read("second");
    for host in ["127.0.0.1", "[::1]"] {
        assert_eq!(ask(&format!("{host}:{second}")).unwrap().generation, 3);
    }
    supervisor.stopped();
}
