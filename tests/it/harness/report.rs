//! What a target was given, as the probe reports it: variables, descriptors, and the sockets themselves.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::{env, io};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::{DEADLINE, Folder, Output, Run, Running, wait_for};

impl Run {
    /// Run with the probe behind the arguments so far, and give what it reports.
    pub fn report(self) -> Report {
        let folder = Folder::new();
        let socket = folder.path("probe");
        let listener = UnixListener::bind(&socket).unwrap();
        let running = self.env("PROBE", &socket).args(&probe_line()).start();
        Report::receive(&listener, running)
    }
}

/// The words that make this test program the probe.
pub fn probe_line() -> Vec<OsString> {
    let mut line = vec![env::current_exe().unwrap().into_os_string()];
    line.extend(["harness::probe::probe", "--exact", "--nocapture", "--test-threads=1"].map(OsString::from));
    line
}

/// What the probe found, and its listening sockets themselves.
pub struct Report {
    facts: BTreeMap<String, String>,
    /// Copies of the target's sockets from 3 on, in order, to be asked whatever a test wants to know.
    pub sockets: Vec<OwnedFd>,
    /// The probe ends when this is closed.
    connection: UnixStream,
    pub running: Running,
}

impl Report {
    fn receive(listener: &UnixListener, mut running: Running) -> Report {
        listener.set_nonblocking(true).unwrap();
        let (connection, _) = wait_for("the probe", || match listener.accept() {
            Ok(accepted) => Some(accepted),
            Err(_) if running.has_ended() => {
                panic!("no probe came: {}", running.error_output());
            }
            Err(_) => None,
        });
        connection.set_nonblocking(false).unwrap();
        connection.set_read_timeout(Some(DEADLINE)).unwrap();
        let (text, sockets) = receive(&connection);
        let facts = text.lines().map(|line| line.split_once('=').unwrap());
        let facts = facts.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Report { facts, sockets, connection, running }
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.facts.get(key).map(String::as_str)
    }

    /// The numbers and links of the open descriptors from 3 on.
    pub fn descriptors(&self) -> Vec<(RawFd, &str)> {
        let number = |key: &str| key.strip_prefix("fd")?.parse().ok();
        let mut open: Vec<(RawFd, &str)> =
            self.facts.iter().filter_map(|(key, link)| Some((number(key)?, link.as_str()))).collect();
        open.sort_unstable();
        open
    }

    /// Let the probe go and see how all ended.
    pub fn finish(self) -> Output {
        drop(self.connection);
        self.running.output()
    }
}

impl std::ops::Index<&str> for Report {
    type Output = str;

    #[track_caller]
    fn index(&self, key: &str) -> &str {
        self.get(key).unwrap_or_else(|| panic!("the target has no {key}: {:?}", self.facts))
    }
}

/// One message and the descriptors that came with it.
fn receive(connection: &UnixStream) -> (String, Vec<OwnedFd>) {
    let mut buffer = vec![0; 1 << 20];
    let mut space = cmsg_space!([RawFd; 200]);
    let mut parts = [io::IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(connection.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
    let mut sockets = Vec::new();
    for part in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(fds) = part {
            // SAFETY: the kernel just made them for us alone.
            sockets.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = message.bytes;
    (String::from_utf8(buffer[..length].to_vec()).unwrap(), sockets)
}
