//! --lazy: the program begins with its first client.

use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::{fs, path::Path};

use nix::sys::signal::Signal;

use crate::harness::socket::tcp;
use crate::harness::{Folder, PROGRAM, Running, handoff_run_with, wait_for};

/// A run with --lazy that waits for its first client at `fd`, which is `spec`'s.
fn waiting(spec: &str, fd: &impl AsRawFd) -> Running {
    let running = handoff_run_with(&["--lazy", "-l", spec, "--", "echo", "begun"]).inherit(fd, 3).start();
    let process = format!("/proc/{}", running.pid());
    // The kernel shows a poll(2) that does not end by itself.
    wait_for("the run to wait", || {
        let call = fs::read_to_string(format!("{process}/syscall")).ok()?;
        let number: i64 = call.split(' ').next()?.parse().ok()?;
        (number == libc::SYS_poll || number == libc::SYS_ppoll).then_some(())
    });
    assert_eq!(fs::read_link(format!("{process}/exe")).unwrap(), Path::new(PROGRAM));
    running
}

// handoff-run(1), --lazy: "Become PROGRAM only when the first client is waiting".
#[test]
fn the_first_connection_begins_the_program_and_is_still_there() {
    let (listener, address) = tcp();
    let running = waiting(&address, &listener);
    let _client = TcpStream::connect(&address).unwrap();
    assert_eq!(running.output().stdout, "begun\n");
    listener.set_nonblocking(true).unwrap();
    listener.accept().unwrap();
}

#[test]
fn the_first_datagram_begins_the_program_and_is_still_there() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let running = waiting(&format!("udp:{address}"), &server);
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"hello", address).unwrap();
    assert_eq!(running.output().stdout, "begun\n");
    server.set_nonblocking(true).unwrap();
    assert_eq!(server.recv(&mut [0; 8]).unwrap(), 5);
}

#[test]
fn the_first_client_of_a_unix_socket_begins_the_program() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.path("s")).unwrap();
    let running = waiting(&folder.text("s"), &listener);
    let _client = UnixStream::connect(folder.path("s")).unwrap();
    assert_eq!(running.output().stdout, "begun\n");
}

#[test]
fn a_signal_ends_the_wait() {
    let (listener, address) = tcp();
    let running = waiting(&address, &listener);
    running.signal(Signal::SIGTERM);
    let output = running.output();
    assert_eq!((output.failure(), output.stdout.as_str()), ((128 + libc::SIGTERM, ""), ""));
}

// As by job control: poll(2) fails with EINTR then.
#[test]
fn being_stopped_and_continued_does_not_end_the_wait() {
    let (listener, address) = tcp();
    let running = waiting(&address, &listener);
    running.signal(Signal::SIGSTOP);
    running.signal(Signal::SIGCONT);
    let _client = TcpStream::connect(&address).unwrap();
    assert_eq!(running.output().stdout, "begun\n");
}

// It was once told to the first client, by refusing it.
#[test]
fn a_mistake_in_a_template_is_told_at_once() {
    let output = handoff_run_with(&["-q", "--lazy", "-l", "127.0.0.1:0", "--", "echo", "{fd:web}"]).output();
    assert_eq!(output.failure(), (125, "handoff-run: no listener is named web\n"));
}
