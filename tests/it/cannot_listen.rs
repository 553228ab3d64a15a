//! A socket that cannot be bound: what happened, what helps, and nothing left behind.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::{fs, io, process};

use nix::unistd::{Gid, Uid, setgid, setuid};

use crate::harness::socket::ipv6_is_missing;
use crate::harness::{Folder, Report, handoff_run_with, is_root_to, skip};

/// A server that holds `spec`, and the address that it got.
fn holder(spec: &str) -> (Report, String) {
    let mut report = handoff_run_with(&["-q", "-l", spec, "--env", "AT={addr}", "--"]).report();
    // The copies would make this very process a holder.
    report.sockets.clear();
    let address = report["AT"].to_owned();
    (report, address)
}

/// Binding `spec` fails, since `holder` has it, and the second line says so.
#[track_caller]
fn assert_in_use(spec: &str, holder: &Report) {
    assert_in_use_at(spec, holder, None);
}

/// The same where the holder may have another address, `elsewhere`.
#[track_caller]
fn assert_in_use_at(spec: &str, holder: &Report, elsewhere: Option<&str>) {
    let output = handoff_run_with(&["-l", spec, "--", "true"]).output();
    let pid = holder.running.pid();
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().replace('\0', " ");
    let command: String = line.trim_end().chars().take(80).collect();
    let remedy = match elsewhere {
        Some(address) => format!("it listens on {address}: --listen {address} --from {pid} takes that over"),
        None => format!("--from {pid} takes it over"),
    };
    let message = format!(
        "handoff-run: cannot listen on {spec}: EADDRINUSE: Address already in use\nhandoff-run: it is held by pid \
         {pid}: {command}; {remedy}\n"
    );
    assert_eq!(output.failure(), (125, message.as_str()));
}

// EADDRINUSE: who has it, pid and command, as far as /proc tells.
#[test]
fn a_tcp_address_in_use_is_told_with_its_holder() {
    let (server, address) = holder("127.0.0.1:0");
    assert_in_use(&address, &server);
    let port = address.split(':').next_back().unwrap();
    assert_in_use_at(&format!("web=0.0.0.0:{port},nodelay"), &server, Some(&address));
    assert_in_use_at(&format!(":{port}"), &server, Some(&address));
}

#[test]
fn a_dual_stack_port_in_use_is_told_with_its_holder() {
    let (server, address) = holder(":0");
    let port = address.rsplit(':').next().unwrap();
    assert_in_use(&format!(":{port}"), &server);
    assert_in_use_at(&format!("[::1]:{port}"), &server, Some(&address));
    assert_in_use_at(&format!("127.0.0.1:{port}"), &server, Some(&address));
}

#[test]
fn a_udp_address_in_use_is_told_with_its_holder() {
    let (server, address) = holder("udp:127.0.0.1:0");
    assert_in_use(&format!("udp:{address}"), &server);
    let port = address.rsplit(':').next().unwrap();
    assert_in_use_at(&format!("udp4::{port}"), &server, Some(&format!("udp:{address}")));
}

#[test]
fn a_unix_path_in_use_is_told_with_its_holder_and_stays() {
    let folder = Folder::new();
    let (server, path) = holder(&folder.text("s"));
    assert_in_use(&path, &server);
    assert_eq!(folder.names(), ["s"]);
    assert_in_use(&format!("unix-dgram:{path}"), &server);
}

#[test]
fn an_abstract_name_in_use_is_told_with_its_holder() {
    let name = format!("unix:@handoff-run-held-{}", process::id());
    let (server, _) = holder(&name);
    assert_in_use(&name, &server);
}

// Nobody's file is ever destroyed.
#[test]
fn a_path_that_is_no_socket_is_an_error_and_stays() {
    let folder = Folder::new();
    fs::write(folder.path("file"), "precious").unwrap();
    fs::create_dir(folder.path("folder")).unwrap();
    std::os::unix::fs::symlink(folder.path("file"), folder.path("link")).unwrap();
    let kinds = [("file", "a regular file"), ("folder", "a directory"), ("link", "a symbolic link")];
    for (name, kind) in kinds {
        let path = folder.text(name);
        let output = handoff_run_with(&["-l", &path, "--", "true"]).output();
        let message = format!("handoff-run: cannot listen on {path}: {path} exists and is {kind}, not a socket\n");
        assert_eq!(output.failure(), (125, message.as_str()));
    }
    assert_eq!(fs::read_to_string(folder.path("file")).unwrap(), "precious");
    assert_eq!(folder.names(), ["file", "folder", "link"]);
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    let folder = Folder::new();
    let path = folder.text("missing/s");
    let output = handoff_run_with(&["-l", &path, "--", "true"]).output();
    let message = format!(
        "handoff-run: cannot listen on {path}: ENOENT: No such file or directory\nhandoff-run: there is no folder {}\n",
        folder.text("missing")
    );
    assert_eq!(output.failure(), (125, message.as_str()));
}

#[test]
fn an_address_of_no_interface_is_an_error() {
    let output = handoff_run_with(&["-l", "192.0.2.1:0", "--", "true"]).output();
    let message = "handoff-run: cannot listen on 192.0.2.1:0: EADDRNOTAVAIL: Cannot assign requested address\n";
    assert_eq!(output.failure(), (125, message));
}

// EACCES on a low port: setcap, or net.ipv4.ip_unprivileged_port_start.
#[test]
fn a_low_port_is_refused_with_what_allows_it() {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if ["0", "1"].contains(&first.trim()) {
        return skip("every port may be bound by everybody here");
    }
    if !is_root_to("give up what root may do") {
        return;
    }
    let nobody = || {
        setgid(Gid::from_raw(65534)).map_err(io::Error::from)?;
        setuid(Uid::from_raw(65534)).map_err(io::Error::from)
    };
    let output = handoff_run_with(&["-l", "web=127.0.0.1:1", "--", "true"]).before_exec(nobody).output();
    let message = "handoff-run: cannot listen on web=127.0.0.1:1: EACCES: Permission denied\nhandoff-run: a port this \
                   low needs 'setcap cap_net_bind_service=+ep' on handoff-run, or 'sysctl \
                   net.ipv4.ip_unprivileged_port_start=0'\n";
    assert_eq!(output.failure(), (125, message));
}

#[test]
fn a_failure_removes_the_sockets_bound_before_it() {
    let folder = Folder::new();
    let _holder = UnixListener::bind(folder.path("held")).unwrap();
    let line = ["-l", &folder.text("a"), "-l", &folder.text("b"), "-l", &folder.text("held"), "--", "true"];
    assert_eq!(handoff_run_with(&line).output().code(), 125);
    assert_eq!(folder.names(), ["held"]);
}

#[test]
fn a_failure_leaves_the_inherited_sockets_to_the_caller() {
    let folder = Folder::new();
    let path = folder.text("s");
    let listener = UnixListener::bind(&path).unwrap();
    let (tcp, address) = crate::harness::socket::tcp();
    let run = handoff_run_with(&["-l", &path, "-l", &address, "--", "/nonexistent/program"]).env("LISTEN_FDS", "2");
    assert_eq!(run.inherit(&listener, 3).inherit(&tcp, 4).output().code(), 127);
    assert_eq!(folder.names(), ["s"]);
    TcpStream::connect(&address).unwrap();
    tcp.accept().unwrap();
}

// Once "two --listen options ask for the same address", of which there was one.
#[test]
fn an_inherited_socket_in_the_way_is_told_by_its_descriptor() {
    if ipv6_is_missing() {
        return;
    }
    let dual = TcpListener::bind("[::]:0").unwrap();
    let loopback = TcpListener::bind("127.0.0.1:0").unwrap();
    let datagram = UdpSocket::bind("127.0.0.1:0").unwrap();
    let [port, other] = [&dual, &loopback].map(|listener| listener.local_addr().unwrap().port());
    let third = datagram.local_addr().unwrap().port();
    let [dual, loopback, datagram] = [OwnedFd::from(dual), loopback.into(), datagram.into()];
    for (socket, spec) in [
        (&dual, format!("0.0.0.0:{port}")),
        (&dual, format!("127.0.0.1:{port}")),
        (&loopback, format!("0.0.0.0:{other}")),
        (&datagram, format!("udp:0.0.0.0:{third}")),
    ] {
        let output = handoff_run_with(&["-q", "-l", &spec, "--", "true"]).inherit(socket, 7).output();
        let message = format!(
            "handoff-run: cannot listen on {spec}: EADDRINUSE: Address already in use\nhandoff-run: it is held by \
             descriptor 7, which was inherited and is bound otherwise than this asks for: ask for that socket by its \
             own address or as fd:7, or close it\n"
        );
        let (code, stderr) = (output.code(), output.stderr.split_inclusive('\n').skip(1).collect::<String>());
        assert_eq!((code, stderr), (125, message));
        let own = handoff_run_with(&["-q", "-l", "fd:7", "--", "true"]).inherit(socket, 7).output();
        assert_eq!(own.failure(), (0, ""));
    }
}
