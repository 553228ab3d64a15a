//! Each preset on IPv6 and on a path: it serves there, on the socket that it was given, or its row says that it cannot.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::sys::socket::sockopt::ReuseAddr;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn6, bind, getsockname, setsockopt, socket};

use crate::harness::case::{CASE, Case, compiled, fill_by, is_installed, line, rows, shell};
use crate::harness::process::Session;
use crate::harness::request::Request;
use crate::harness::socket::{is_listening, listeners_on, listening_of};
use crate::harness::supervisor::Role;
use crate::harness::{DEADLINE, Folder, PROGRAM, Supervisor, wait_for};
use crate::servers::CASES;

#[derive(Clone, Copy, PartialEq)]
enum Place {
    V6,
    Path,
}

/// What a case has for a place.
fn changes(case: &Case, place: Place) -> Option<&'static [(&'static str, &'static str)]> {
    match place {
        Place::V6 => case.on_v6,
        Place::Path => case.on_path,
    }
}

/// A port that is bound on every address, and not listened on.
fn reserve_port() -> (OwnedFd, u16) {
    let reserved = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&reserved, ReuseAddr, &true).unwrap();
    bind(reserved.as_raw_fd(), &SockaddrIn6::from("[::]:0".parse::<std::net::SocketAddrV6>().unwrap())).unwrap();
    let port = getsockname::<SockaddrIn6>(reserved.as_raw_fd()).unwrap().port();
    (reserved, port)
}

/// Its answer to a client who came before it ran.
fn ask(mut stream: impl Read + Write, request: &[u8]) -> String {
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn try_at(case: &Case, place: Place) {
    let Some(changes) = changes(case, place).filter(|_| is_installed(case)) else { return };
    let folder = Arc::new(Folder::new());
    let (_reserved, port) = reserve_port();
    let path = folder.text("s");
    let address = if place == Place::V6 { format!("[::1]:{port}") } else { path.clone() };
    let values = [("@ADDR@", address), ("@PORT@", port.to_string()), ("@DIR@", folder.text(""))];
    let fill = |text: &str| {
        let text = changes.iter().fold(text.to_owned(), |text, (old, new)| text.replace(old, new));
        values.iter().fold(text, |text, (name, value)| text.replace(name, value))
    };
    fill_by(&folder, case.files, fill);
    if !case.compile.is_empty() {
        compiled(case, &folder);
    }
    // Nothing is behind a proxy: its own answer says as much of the socket.
    let line = fill(&line(case, &format!("{PROGRAM} --lazy --quiet")).0).replace("@BACKEND@", "127.0.0.1,9");
    let process = Supervisor::start(folder.clone(), shell(&format!("exec {line} >&2"), &folder), Role::Target);
    let session = Session(process.pid);
    let request = Request::Plain.bytes(case.protocol, &folder.text("hello.php"));
    let (answer, expected) = if place == Place::V6 {
        let inode = wait_for("handoff-run to listen", || listeners_on(port).first().copied());
        let stream = TcpStream::connect(("::1", port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        (ask(stream, &request), vec![inode])
    } else {
        wait_for("handoff-run to listen", || is_listening(&path).then_some(()));
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        (ask(stream, &request), vec![])
    };
    let greeting = if case.backend.is_some() { "HTTP/1.1 50" } else { "hello" };
    assert!(answer.contains(greeting), "{} answered {answer:?}, logged {}", case.name, process.log());
    assert_eq!(listening_of(session.sockets()), expected, "{}: {}", case.name, process.log());
}

#[test]
fn each_preset_serves_on_ipv6() {
    CASES.iter().filter(|case| !case.name.is_empty()).for_each(|case| try_at(case, Place::V6));
}

#[test]
fn each_preset_serves_on_a_path() {
    CASES.iter().filter(|case| !case.name.is_empty()).for_each(|case| try_at(case, Place::Path));
}

// handoff-run(1), SERVERS: where a server cannot listen stands in its row.
#[test]
fn a_row_says_where_its_server_cannot_listen_and_of_which_version_it_speaks() {
    for case in CASES.iter().filter(|case| !case.name.is_empty()) {
        let row = rows().into_iter().find(|row| row.contains(&format!(" --as {} -- ", case.name))).unwrap();
        assert_eq!(row.contains("not on IPv6"), case.on_v6.is_none(), "{row}");
        assert_eq!(row.contains("not on a path"), case.on_path.is_none(), "{row}");
    }
    for row in rows() {
        assert!(row.contains("tried with ") || row.contains("from "), "{row}");
    }
}

// handoff-run(1), SERVERS: "listen 80 is :80, with listen [::]:80 beside it add -l [::]:80,v6only". Debian's default.
#[test]
fn nginx_takes_both_sockets_of_its_default_and_can_be_replaced() {
    let nginx = CASES.iter().find(|case| case.name == "nginx").unwrap();
    if !is_installed(nginx) {
        return;
    }
    let folder = Arc::new(Folder::new());
    let (_reserved, port) = reserve_port();
    let listen = format!("{port}; listen [::]:{port}");
    fill_by(&folder, nginx.files, |text| text.replace("@ADDR@", &listen).replace("@DIR@", &folder.text("")));
    let line = format!(
        "exec {PROGRAM} --supervise --control control -l :{port} -l [::]:{port},v6only --as nginx -- nginx -c {}",
        folder.text("nginx.conf")
    );
    let process = Supervisor::start(folder.clone(), shell(&line, &folder), Role::Supervisor);
    let _session = Session(process.pid);
    process.wait_ready(1);
    for _ in 0..2 {
        for host in ["127.0.0.1", "::1"] {
            let answer = ask(TcpStream::connect((host, port)).unwrap(), &Request::Plain.bytes(CASE.protocol, ""));
            assert!(answer.contains("hello"), "{host}: {answer}");
        }
        assert_eq!(process.reload_and_wait().failure(), (0, ""), "{}", process.log());
    }
}
