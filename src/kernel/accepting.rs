//! Does a process wait on these sockets? Seen from outside, in what /proc shows of epolls, system calls and rings,
//! so that the server need not cooperate. What cannot be observed is reported, never guessed.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::kernel::descriptors::{ForeignFd, Kind, SocketInode, descriptors, has_vanished};
use crate::kernel::fdinfo;
use crate::kernel::syscall::{Wait, waits};
use crate::sys;

/// What one observation of a generation has shown.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Observation {
    /// The processes that wait for connections, at most one for each socket.
    pub(crate) evidence: Vec<Evidence>,
    /// The sockets on which no process was seen to wait. When it is empty, the generation accepts.
    pub(crate) missing: Vec<SocketInode>,
    /// Why a process may wait on the missing ones nevertheless.
    pub(crate) obstacle: Option<Obstacle>,
}

/// `pid` waits on `socket`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Evidence {
    pub(crate) socket: SocketInode,
    pub(crate) pid: Pid,
    pub(crate) wait: Wait,
}

/// Why a process could not be observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// `/proc/PID/fd` and the like are closed to us: another user's, not dumpable, or hidden by the mount.
    Closed { pid: Pid, errno: Errno },
    /// A 32-bit program on a 64-bit kernel: its calls have other numbers.
    Compat { pid: Pid },
    /// It holds the socket and an io_uring, in which no accept is pending.
    Ring { pid: Pid },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Closed { pid, errno } => write!(f, "/proc does not let us look into process {pid}: {errno}"),
            Obstacle::Compat { pid } => write!(f, "process {pid} is a 32-bit program"),
            Obstacle::Ring { pid } => write!(f, "process {pid} uses io_uring"),
        }
    }
}

/// Look for those of `members` that wait on `sockets`, until there is one for each.
pub(crate) fn observe(members: &[Pid], sockets: &[SocketInode]) -> Observation {
    let mut seen = Observation { evidence: Vec::new(), missing: Vec::new(), obstacle: None };
    let mut missing: BTreeSet<SocketInode> = sockets.iter().copied().collect();
    for pid in members.iter().copied() {
        if missing.is_empty() {
            break;
        }
        let mut observer = Observer { pid, wanted: missing, waited: Vec::new() };
        let obstacle = observer.observe().unwrap_or_else(|error| closed(pid, &error));
        missing = observer.wanted;
        seen.evidence.extend(observer.waited.into_iter().map(|(socket, wait)| Evidence { socket, pid, wait }));
        // A process that is closed to us is the better explanation: a ring may be used for something else.
        seen.obstacle = seen.obstacle.filter(|known| !matches!(known, Obstacle::Ring { .. })).or(obstacle);
    }
    seen.missing = sockets.iter().copied().filter(|socket| missing.contains(socket)).collect();
    seen.obstacle = seen.obstacle.filter(|_| !seen.missing.is_empty());
    seen
}

/// The observation of one process.
struct Observer {
    pid: Pid,
    /// The sockets on which it was not yet seen to wait.
    wanted: BTreeSet<SocketInode>,
    waited: Vec<(SocketInode, Wait)>,
}

impl Observer {
    /// The cheap ways first: links, then epolls, and only if the process holds a socket, its rings and threads.
    ///
    /// # Errors
    /// What stopped the observation.
    fn observe(&mut self) -> io::Result<Option<Obstacle>> {
        let open = descriptors(self.pid)?;
        let of_kind = |wanted: Kind| open.iter().filter(move |(_, kind)| *kind == wanted).map(|(fd, _)| *fd);
        for fd in of_kind(Kind::Epoll) {
            let info = fdinfo::read(self.pid, fd)?;
            self.note(fdinfo::watched(&info, fdinfo::sockfs()?), Wait::Epoll);
        }
        let held = self.held(&open);
        for fd in of_kind(Kind::Ring) {
            // fdinfo does not name the socket; one accept for each that this process holds is proof.
            if fdinfo::pending_accepts(&fdinfo::read(self.pid, fd)?) >= held.len() {
                self.note(held.iter().map(|(_, socket)| *socket), Wait::Ring);
            }
        }
        if self.held(&open).is_empty() {
            return Ok(None);
        }
        if is_compat(self.pid) {
            return Ok(Some(Obstacle::Compat { pid: self.pid }));
        }
        self.observe_threads(&open)?;
        let suspect = of_kind(Kind::Ring).next().is_some() && !self.held(&open).is_empty();
        Ok(suspect.then_some(Obstacle::Ring { pid: self.pid }))
    }

    fn observe_threads(&mut self, open: &[(ForeignFd, Kind)]) -> io::Result<()> {
        let tasks = format!("/proc/{}/task", self.pid);
        let mut held = self.held(open);
        for thread in sys::numbers_in(&tasks)? {
            if held.is_empty() {
                break;
            }
            match waits(&Path::new(&tasks).join(thread.to_string()), held.iter().map(|(fd, _)| *fd)) {
                Ok(Some((wait, fds))) => {
                    let fds: BTreeSet<ForeignFd> = fds.into_iter().collect();
                    self.note(held.iter().filter(|(fd, _)| fds.contains(fd)).map(|(_, socket)| *socket), wait);
                    held = self.held(open);
                }
                Ok(None) => {}
                // One thread has ended, but the others have not; unless this kernel has no such file at all.
                Err(error) if has_vanished(&error) && Path::new("/proc/self/syscall").exists() => {}
                Err(error) if has_vanished(&error) => return Err(Errno::ENOSYS.into()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The descriptors of wanted sockets.
    fn held(&self, open: &[(ForeignFd, Kind)]) -> Vec<(ForeignFd, SocketInode)> {
        let sockets = open.iter().filter_map(|(fd, kind)| match kind {
            Kind::Socket(inode) => Some((*fd, *inode)),
            Kind::Epoll | Kind::Ring => None,
        });
        sockets.filter(|(_, socket)| self.wanted.contains(socket)).collect()
    }

    fn note(&mut self, sockets: impl Iterator<Item = SocketInode>, wait: Wait) {
        for socket in sockets {
            // Once for each socket, however many descriptors of it there are.
            if self.wanted.remove(&socket) {
                self.waited.push((socket, wait));
            }
        }
    }
}

/// A process that has ended is no obstacle; one that /proc hides, or closes to us, is.
fn closed(pid: Pid, error: &io::Error) -> Option<Obstacle> {
    if !has_vanished(error) {
        return Some(Obstacle::Closed { pid, errno: Errno::from_raw(error.raw_os_error().unwrap_or_default()) });
    }
    // hidepid makes a directory seem not to be there; the process can still be named.
    let exists = kill(pid, None) != Err(Errno::ESRCH);
    (exists && !Path::new(&format!("/proc/{pid}")).exists()).then_some(Obstacle::Closed { pid, errno: Errno::EPERM })
}

/// Is its program of another word size than ours (EI_CLASS of elf(5))?
fn is_compat(pid: Pid) -> bool {
    let class = if cfg!(target_pointer_width = "64") { 2 } else { 1 };
    let mut identity = [0; 5];
    let read = File::open(format!("/proc/{pid}/exe")).and_then(|mut program| program.read_exact(&mut identity));
    // Where it cannot be read, neither can the rest, and that has its own error.
    read.is_ok() && identity[4] != class
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::thread;

    use std::fs;

    use super::*;
    use crate::kernel::processes::Processes;
    use crate::kernel::testing::{Spawned, listener, until};

    /// Run `script` in Python, with the listener as `s`, until a process of it accepts; how, and is it the main
    /// process?
    fn seen(script: &str) -> (Wait, bool) {
        let (listener, copy) = listener();
        let server = Spawned::python(copy, script);
        let socket = SocketInode::of(&listener).unwrap();
        let evidence = until(script, || {
            let members = Processes::read().unwrap().members(server.pid());
            observe(&members, &[socket]).evidence.pop()
        });
        assert_eq!(evidence.socket, socket);
        (evidence.wait, evidence.pid == server.pid())
    }

    #[test]
    fn every_way_to_wait_for_a_connection_is_seen() {
        assert_eq!(seen("s.accept()"), (Wait::Accept, true));
        assert_eq!(seen("select.select([s, 0], [], [])"), (Wait::Select, true));
        assert_eq!(
            seen("p = select.poll(); p.register(1, 0); p.register(s, select.POLLIN); p.poll()"),
            (Wait::Poll, true)
        );
        assert_eq!(seen("e = select.epoll(); e.register(s, select.EPOLLIN); e.poll()"), (Wait::Epoll, true));
    }

    #[test]
    fn an_epoll_counts_while_its_process_runs_by_a_copy_and_inside_another_epoll() {
        assert_eq!(seen("e = select.epoll(); e.register(s, select.EPOLLIN)\nwhile True: pass"), (Wait::Epoll, true));
        assert_eq!(seen("e = select.epoll(); e.register(s.dup(), select.EPOLLIN); s.close(); e.poll()").0, Wait::Epoll);
        let nested = "e = select.epoll(); e.register(s, select.EPOLLIN); o = select.epoll(); o.register(e); o.poll()";
        assert_eq!(seen(nested), (Wait::Epoll, true));
    }

    #[test]
    fn a_worker_or_a_thread_that_accepts_is_enough() {
        assert_eq!(seen("if os.fork() == 0: s.accept()\nos.wait()"), (Wait::Accept, false));
        assert_eq!(seen("threading.Thread(target=s.accept).start(); time.sleep(100)"), (Wait::Accept, true));
    }

    #[test]
    fn a_main_thread_that_ended_alone_hides_nothing() {
        let thread = |how: &str| {
            format!(
                "import ctypes\ndef serve(): {how}
threading.Thread(target=serve).start(); ctypes.CDLL(None).pthread_exit(0)"
            )
        };
        assert_eq!(seen(&thread("s.accept()")), (Wait::Accept, true));
        let epoll = "e = select.epoll(); e.register(s, select.EPOLLIN); e.poll()";
        assert_eq!(seen(&thread(epoll)), (Wait::Epoll, true));
        assert_eq!(seen(&thread("select.select([s], [], [])")), (Wait::Select, true));
        let poll = "p = select.poll(); p.register(s, select.POLLIN); p.poll()";
        assert_eq!(seen(&thread(poll)), (Wait::Poll, true));
    }

    #[test]
    fn a_process_that_holds_the_socket_and_does_not_accept_is_still_waited_for() {
        let (listener, copy) = listener();
        let socket = SocketInode::of(&listener).unwrap();
        // It is registered, but not for input, when the process takes another name.
        let script = "e = select.epoll(); e.register(s, 0); p = select.poll(); p.register(s, 0)
open('/proc/self/comm', 'w').write('idle'); p.poll()";
        let server = Spawned::python(copy, script);
        let comm = format!("/proc/{}/comm", server.pid());
        until("it is set up", || fs::read_to_string(&comm).ok().filter(|name| name == "idle\n"));
        let expected = Observation { evidence: vec![], missing: vec![socket], obstacle: None };
        assert_eq!(observe(&[server.pid()], &[socket]), expected);
    }

    #[test]
    fn each_socket_needs_a_process_that_waits() {
        let sockets = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let inodes = [0, 1].map(|which| SocketInode::of(&sockets[which]).unwrap());
        let copy = sockets[0].try_clone().unwrap();
        thread::spawn(move || copy.accept());
        let seen =
            until("a thread accepts", || Some(observe(&[Pid::this()], &inodes)).filter(|seen| seen.missing.len() == 1));
        assert_eq!(seen.missing, [inodes[1]]);
        assert_eq!(seen.evidence, [Evidence { socket: inodes[0], pid: Pid::this(), wait: Wait::Accept }]);
    }

    #[test]
    fn a_datagram_socket_is_waited_on_by_receiving() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let inode = SocketInode::of(&socket).unwrap();
        let copy = socket.try_clone().unwrap();
        thread::spawn(move || copy.recv(&mut [0]));
        let evidence = until("it receives", || observe(&[Pid::this()], &[inode]).evidence.pop());
        assert_eq!(evidence.wait, Wait::Receive);
    }

    #[test]
    fn a_process_that_has_ended_is_no_obstacle_and_one_that_is_hidden_is() {
        assert_eq!(observe(&[Pid::from_raw(i32::MAX)], &[SocketInode(1)]).obstacle, None);
        let refused = io::Error::from_raw_os_error(libc::EACCES);
        let obstacle = closed(Pid::from_raw(12), &refused).unwrap();
        assert_eq!(obstacle.to_string(), "/proc does not let us look into process 12: EACCES: Permission denied");
    }
}
