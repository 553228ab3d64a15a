//! Clients of the control socket that speak its protocol themselves.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use super::{DEADLINE, Supervisor, wait_for};

/// What a client sends.
pub const STATUS: &str = "{\"request\":{\"status\":\"table\"}}\n";
pub const STATUS_JSON: &str = "{\"request\":{\"status\":\"json\"}}\n";
pub const RELOAD: &str = "{\"request\":{\"reload\":{\"until\":\"serving\"}}}\n";
pub const RELOAD_AND_WAIT: &str = "{\"request\":{\"reload\":{\"until\":\"old-gone\"}}}\n";
pub const RELOAD_LIVE: &str = "{\"request\":{\"reload\":{\"until\":\"old-gone\"}},\"live\":true}\n";
pub const STOP: &str = "{\"request\":\"stop\"}\n";
/// The last reply, after a success.
pub const SUCCESS: &str = "{\"exit\":0}";
/// The replies to what is no request.
pub const NOT_UNDERSTOOD: [&str; 2] =
    ["{\"error\":\"the supervisor does not understand the request\"}", "{\"exit\":125}"];

impl Supervisor {
    /// A connection to the control socket.
    pub fn control(&self) -> UnixStream {
        let client = UnixStream::connect(self.folder.path("control")).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client
    }

    /// The same with a request on its way.
    pub fn request(&self, line: &str) -> UnixStream {
        let mut client = self.control();
        client.write_all(line.as_bytes()).unwrap();
        client
    }

    /// Wait until so many clients are connected to the control socket, and accepted.
    pub fn wait_clients(&self, clients: usize) {
        let control = self.folder.text("control");
        wait_for("the clients of the control socket", || {
            // Others may have names of any bytes.
            let sockets = fs::read("/proc/net/unix").unwrap();
            let sockets = String::from_utf8_lossy(&sockets);
            // Connected (03), and of the server's side, which has the path.
            let is_client = |line: &&str| line.ends_with(&control) && line.contains(" 0001 03 ");
            (sockets.lines().filter(is_client).count() == clients).then_some(())
        });
    }
}

/// Every line that a client receives.
pub fn received(client: UnixStream) -> Vec<String> {
    // A client that sent too much is cut off when it has been answered.
    BufReader::new(client).lines().map_while(Result::ok).collect()
}

/// Wait until the other end has read everything.
pub fn await_read(client: &UnixStream) {
    wait_for("the request to be read", || {
        let mut unread: libc::c_int = 0;
        // SAFETY: the kernel writes one int, which lives through the call.
        let asked = unsafe { libc::ioctl(client.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
        (asked == 0 && unread == 0).then_some(())
    });
}
