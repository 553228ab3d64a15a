//! What goes over a connection in one step of a poll loop.

use std::io::{self, ErrorKind, Read, Write};

use super::failure::Failure;

/// Send what is unsent, and receive what has come; how the connection ended, if it has.
pub fn transfer(socket: &mut (impl Read + Write), unsent: &mut Vec<u8>, answer: &mut Vec<u8>) -> Option<Failure> {
    match exchange(socket, unsent, answer) {
        Ok(()) => Some(Failure::Short),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => Some(error.into()),
    }
}

/// Go on until the server has closed, or as an error until there is nothing to be done now.
fn exchange(socket: &mut (impl Read + Write), unsent: &mut Vec<u8>, answer: &mut Vec<u8>) -> io::Result<()> {
    while !unsent.is_empty() {
        let sent = socket.write(unsent)?;
        unsent.drain(..sent);
    }
    let mut chunk = [0; 4096];
    loop {
        match socket.read(&mut chunk)? {
            0 => return Ok(()),
            length => answer.extend_from_slice(&chunk[..length]),
        }
    }
}
