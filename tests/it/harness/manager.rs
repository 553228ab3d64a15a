//! A service manager, as far as a service knows it: a socket that receives notifications.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use super::{DEADLINE, Folder, Run};

/// A manager: its socket, and the address of that.
pub struct Manager {
    socket: UnixDatagram,
    pub address: String,
}

impl Manager {
    pub fn at_path(folder: &Folder) -> Manager {
        let address = folder.text("manager");
        Manager::new(UnixDatagram::bind(&address).unwrap(), address)
    }

    pub fn abstractly(folder: &Folder) -> Manager {
        let name = folder.text("manager");
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        Manager::new(UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"))
    }

    fn new(socket: UnixDatagram, address: String) -> Manager {
        Manager { socket, address }
    }

    /// Run something as its service.
    pub fn manage(&self, run: Run) -> Run {
        run.env("NOTIFY_SOCKET", &self.address)
    }

    /// Let it receive nothing any more before it has read as many of these as are given.
    pub fn fill(&self) -> usize {
        let mut filled = 0;
        loop {
            // Where net.unix.max_dgram_qlen is large, what one has sent is limited before the queue is.
            let filler = UnixDatagram::unbound().unwrap();
            filler.set_nonblocking(true).unwrap();
            let sent = std::iter::repeat(()).take_while(|()| filler.send_to(b"full", &self.address).is_ok()).count();
            if sent == 0 {
                return filled;
            }
            filled += sent;
        }
    }

    /// The next notification within this time.
    pub fn within(&self, time: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let mut buffer = [0; 4096];
        match self.socket.recv(&mut buffer) {
            // signal(7): so ends a wait with a timeout when the process was stopped meanwhile.
            Err(error) if error.kind() == ErrorKind::Interrupted => self.within(time),
            Ok(length) => Some(String::from_utf8(buffer[..length].to_vec()).unwrap()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    #[track_caller]
    pub fn next(&self) -> String {
        self.within(DEADLINE).expect("the manager receives nothing")
    }

    /// What is there already.
    pub fn received(&self) -> Vec<String> {
        std::iter::from_fn(|| self.within(Duration::from_millis(1))).collect()
    }
}
