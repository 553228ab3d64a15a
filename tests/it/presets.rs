//! --as: what each server needs to take a socket.

use std::os::fd::{AsFd, AsRawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockaddrStorage, getsockname, getsockopt, sockopt};

use crate::harness::socket::link;
use crate::harness::{Folder, Report, handoff_run_with};

/// The target of `--as server` with these sockets.
fn run_as(server: &str, specs: &[&str]) -> Report {
    let specs: Vec<&str> = specs.iter().flat_map(|spec| ["-l", spec]).collect();
    handoff_run_with(&["-q", "--as", server]).args(&specs).args(&["--"]).report()
}

fn address(report: &Report, at: usize) -> String {
    getsockname::<SockaddrStorage>(report.sockets[at].as_raw_fd()).unwrap().to_string()
}

fn is_nonblocking(report: &Report) -> bool {
    let flags = fcntl(&report.sockets[0], FcntlArg::F_GETFL).unwrap();
    OFlag::from_bits_truncate(flags).contains(OFlag::O_NONBLOCK)
}

#[test]
fn without_a_preset_a_socket_blocks_as_systemd_leaves_it() {
    let report = handoff_run_with(&["-q", "-l", ":0", "--"]).report();
    assert!(!is_nonblocking(&report));
    assert!(address(&report, 0).starts_with("[::]:"));
}

// nginx compares the address, family included, and spins on a blocking socket.
#[test]
fn nginx_is_told_its_sockets_which_do_not_block_and_are_ipv4() {
    let folder = Folder::new();
    let report = run_as("nginx", &[":0", &folder.text("s")]);
    assert_eq!(&report["NGINX"], "3;4;");
    assert!(is_nonblocking(&report));
    assert!(address(&report, 0).starts_with("0.0.0.0:"));
    assert_eq!(&run_as("nginx", &["127.0.0.1:0"])["NGINX"], "3;");
}

#[test]
fn what_the_user_says_of_the_family_wins_over_the_preset() {
    assert!(address(&run_as("nginx", &["[::]:0"]), 0).starts_with("[::]:"));
    assert!(address(&run_as("nginx", &["tcp6::0"]), 0).starts_with("[::]:"));
}

#[test]
fn php_fpm_is_told_all_sockets_in_one_variable() {
    let folder = Folder::new();
    let report = run_as("php-fpm", &["127.0.0.1:0", &folder.text("s")]);
    assert_eq!(&report["FPM_SOCKETS"], format!("{}=3,{}=4", address(&report, 0), folder.text("s")));
    assert!(!is_nonblocking(&report));
}

#[test]
fn php_fpm_is_told_an_ipv6_address_without_brackets() {
    let report = run_as("php-fpm", &["[::1]:0"]);
    let port = address(&report, 0).split("]:").nth(1).unwrap().to_owned();
    assert_eq!(&report["FPM_SOCKETS"], format!("::1:{port}=3"));
}

#[test]
fn starman_is_told_as_server_starter_does() {
    let folder = Folder::new();
    let report = run_as("starman", &[":0", &folder.text("s")]);
    assert!(address(&report, 0).starts_with("0.0.0.0:"));
    assert_eq!(&report["SERVER_STARTER_PORT"], format!("{}=3;{}=4", address(&report, 0), folder.text("s")));
}

#[test]
fn nghttpx_is_told_each_socket_by_a_numbered_variable() {
    let folder = Folder::new();
    let report = run_as("nghttpx", &["127.0.0.1:0", &folder.text("s")]);
    assert_eq!(&report["NGHTTPX_ACCEPT_1"], "tcp,3");
    assert_eq!(&report["NGHTTPX_ACCEPT_2"], format!("unix,4,{}", folder.text("s")));
    assert_eq!(report.get("NGHTTPX_ACCEPT_3"), None);
    assert!(is_nonblocking(&report));
}

#[test]
fn java_and_fastcgi_find_the_first_socket_at_descriptor_0() {
    for server in ["java", "fastcgi"] {
        let report = run_as(server, &["127.0.0.1:0"]);
        assert_eq!(&report["stdin"], link(&report.sockets[0]), "{server}");
    }
}

#[test]
fn uvicorn_is_told_the_first_socket_where_it_is() {
    let run = handoff_run_with(&["-q", "--as", "uvicorn", "--first-fd", "20", "-l", "127.0.0.1:0", "--"]);
    assert_eq!(&run.report()["UVICORN_FD"], "20");
}

fn has_nodelay(socket: &impl AsFd) -> bool {
    getsockopt(socket, sockopt::TcpNoDelay).unwrap()
}

// What it accepts inherits that. It sets it itself on what it binds, and not on what it is given.
#[test]
fn uvicorn_is_given_a_socket_that_sends_small_segments_at_once() {
    let folder = Folder::new();
    let report = run_as("uvicorn", &[":0", &folder.text("s"), "127.0.0.1:0,nodelay"]);
    assert!(has_nodelay(&report.sockets[0]) && has_nodelay(&report.sockets[2]));
    assert!(!has_nodelay(&handoff_run_with(&["-q", "-l", ":0", "--"]).report().sockets[0]));
}

#[test]
fn env_wins_over_the_preset() {
    let run = handoff_run_with(&["-q", "--as", "nginx", "--env", "NGINX={fd}:", "-l", "127.0.0.1:0", "--"]);
    assert_eq!(&run.report()["NGINX"], "3:");
}

// O_NONBLOCK is set once, at bind: the generations share it.
#[test]
fn an_adopted_socket_keeps_its_blocking_mode() {
    let (listener, spec) = crate::harness::socket::tcp();
    let report = handoff_run_with(&["--as", "nginx", "-l", &spec, "--"]).inherit(&listener, 3).report();
    assert_eq!(&report["NGINX"], "3;");
    assert!(!is_nonblocking(&report));
}

// handoff-run(1), --help-servers: "Show the servers that --as knows, with a line that works for each".
#[test]
fn help_servers_shows_a_line_for_each() {
    let output = handoff_run_with(&["--help-servers"]).output();
    assert_eq!(output.failure(), (0, ""));
    let shown: Vec<&str> = output.stdout.lines().collect();
    assert!(shown.len() > 20 && shown.iter().all(|line| line.starts_with("handoff-run --listen ")), "{shown:#?}");
}
