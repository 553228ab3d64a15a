//! A service manager with a descriptor store, as far as a service knows it.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::stat::fstat;

use super::{Folder, Run, wait_for};

/// The manager. With the value it ends, and what it stores is closed.
pub struct Store {
    address: String,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    held: Mutex<Vec<(String, OwnedFd)>>,
    ends: AtomicBool,
}

impl Store {
    pub fn new(folder: &Folder) -> Store {
        let address = folder.text("store");
        let socket = UnixDatagram::bind(&address).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let state = Arc::new(State::default());
        let of_thread = state.clone();
        let thread = thread::spawn(move || {
            while !of_thread.ends.load(Ordering::Relaxed) {
                of_thread.receive(&socket);
            }
        });
        Store { address, state, thread: Some(thread) }
    }

    /// Run something as its service, and give back to it what it stores, in this order.
    pub fn manage(&self, run: Run, order: impl FnOnce(&mut Vec<(String, RawFd)>)) -> Run {
        let held = self.state.held.lock().unwrap();
        let mut given: Vec<(String, RawFd)> = held.iter().map(|(name, fd)| (name.clone(), fd.as_raw_fd())).collect();
        order(&mut given);
        let names: Vec<&str> = given.iter().map(|(name, _)| name.as_str()).collect();
        let run = run.env("NOTIFY_SOCKET", &self.address).env("LISTEN_FDNAMES", names.join(":"));
        let run = if given.is_empty() { run } else { run.env("LISTEN_FDS", given.len().to_string()) };
        given.iter().zip(3..).fold(run, |run, ((_, fd), number)| run.inherit(fd, number))
    }

    /// The names of what it stores, sorted, without their numbers.
    pub fn names(&self) -> Vec<String> {
        let held = self.state.held.lock().unwrap();
        let mut names: Vec<String> = held.iter().map(|(name, _)| name.split("/slot-").next().unwrap().into()).collect();
        names.sort();
        names
    }

    #[track_caller]
    pub fn wait_names(&self, names: &[&str]) {
        wait_for(&format!("{names:?}, not {:?}", self.names()), || (self.names() == names).then_some(()));
    }

    /// The inodes of what it stores under names that begin so.
    pub fn inodes(&self, beginning: &str) -> Vec<u64> {
        let held = self.state.held.lock().unwrap();
        let named = held.iter().filter(|(name, _)| name.starts_with(beginning));
        named.map(|(_, fd)| fstat(fd).unwrap().st_ino).collect()
    }

    /// Do this with what it stores.
    pub fn change(&self, act: impl FnOnce(&mut Vec<(String, OwnedFd)>)) {
        act(&mut self.state.held.lock().unwrap());
    }
}

impl State {
    fn receive(&self, socket: &UnixDatagram) {
        let (mut bytes, mut room) = ([0; 4096], nix::cmsg_space!([RawFd; 8]));
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), flags) {
            Err(Errno::EAGAIN) => return,
            message => message.unwrap(),
        };
        let rights = message.cmsgs().unwrap().filter_map(|part| match part {
            ControlMessageOwned::ScmRights(numbers) => Some(numbers),
            _ => None,
        });
        // SAFETY: the kernel just made them for us alone.
        let fds: Vec<OwnedFd> = rights.flatten().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect();
        let length = message.bytes;
        let text = String::from_utf8(bytes[..length].to_vec()).unwrap();
        let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().to_owned();
        let name = field("FDNAME=");
        let mut held = self.held.lock().unwrap();
        if text.starts_with("FDSTOREREMOVE=1") {
            held.retain(|(other, _)| *other != name);
        } else if text.starts_with("FDSTORE=1") {
            assert_eq!(field("FDPOLL="), "0");
            let is_new =
                |fd: &OwnedFd| held.iter().all(|(_, other)| fstat(other).unwrap().st_ino != fstat(fd).unwrap().st_ino);
            let new: Vec<OwnedFd> = fds.into_iter().filter(is_new).collect();
            held.extend(new.into_iter().map(|fd| (name.clone(), fd)));
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
