//! On the socket that LISTEN_FDS announces, or else at the port given as the first argument.
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::FromRawFd;
use std::{env, process, thread};

fn main() {
    let listener = if env::var("LISTEN_FDS").is_ok() {
        assert_eq!(env::var("LISTEN_PID"), Ok(process::id().to_string()));
        // SAFETY: LISTEN_FDS gives this number to this very process.
        unsafe { TcpListener::from_raw_fd(3) }
    } else {
        TcpListener::bind(format!("127.0.0.1:{}", env::args().nth(1).unwrap())).unwrap()
    };
    for client in listener.incoming() {
        let mut client = client.unwrap();
        thread::spawn(move || {
            let _ = client.read(&mut [0; 1024]);
            let body = format!("hello from 1, pid {}\n", process::id());
            let _ = write!(client, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        });
    }
}
