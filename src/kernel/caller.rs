//! A thread that made a system call which we are to answer: its memory, its descriptors, its folders. While the call is
//! pending, its number is its own; what was read is to be used only if it still was then.

use std::fs;
use std::io;
use std::io::IoSliceMut;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use libc::c_int;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::Mode;
use nix::sys::uio::{RemoteIoVec, pread, process_vm_readv};
use nix::unistd::{Pid, SysconfVar, pipe2, read, sysconf, write};

use crate::kernel::descriptors::{ForeignFd, Kind, SocketInode, first_descriptors, socket_at};
use crate::kernel::fdinfo::{self, Registration};
use crate::kernel::processes::process_number;
use crate::sys::{self, Ending, EpollEntry};

/// The thread.
#[derive(Debug)]
pub(crate) struct Caller {
    thread: Pid,
    /// A child that looks at it may be waited for: none has taken too long yet.
    may_wait: bool,
}

/// A copy of a socket of another process, which may linger when it is closed.
#[derive(Debug)]
pub(crate) struct ForeignSocket(Option<OwnedFd>);

impl Deref for ForeignSocket {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        self.0.as_ref().expect("it is taken only when it is dropped")
    }
}

impl AsFd for ForeignSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        (**self).as_fd()
    }
}

impl ForeignSocket {
    /// A copy that was made elsewhere.
    pub(crate) fn of(copy: OwnedFd) -> ForeignSocket {
        ForeignSocket(Some(copy))
    }
}

impl Drop for ForeignSocket {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(sys::close_in_time);
    }
}

/// As many descriptors of a process are looked at, the first ones, beside the one that it gives to bind(2).
const MOST_DESCRIPTORS: usize = 1024;
/// As many numbers of a socket, and registrations, are replaced.
const MOST_USES: usize = 64;
/// As much is read of all its epolls: some 10,000 registrations.
const MOST_TEXT: u64 = 1 << 20;

/// The process that a thread is of, by its proc_pid_status(5).
fn process_in(status: &str) -> Option<Pid> {
    let number = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    process_number(number.trim())
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// How a process has a socket open.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    /// Its numbers, and the flag that exec goes by.
    pub(crate) numbers: Vec<(ForeignFd, c_int)>,
    /// The epolls that know it.
    pub(crate) registrations: Vec<(ForeignFd, Registration)>,
}

/// A folder, whatever name led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FolderId {
    device: u64,
    inode: u64,
}

/// How a folder is opened to be known.
const FOLDER: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// The parent of a name without a slash is empty.
fn or_here(name: &Path) -> &Path {
    if name.as_os_str().is_empty() { Path::new(".") } else { name }
}

impl FolderId {
    /// The one that this is the name of for us.
    pub(crate) fn of_name(name: &Path) -> nix::Result<FolderId> {
        FolderId::of(open(or_here(name), FOLDER, Mode::empty())?)
    }

    fn of(folder: OwnedFd) -> nix::Result<FolderId> {
        let (device, inode) = sys::identity_of(folder)?;
        Ok(FolderId { device, inode })
    }
}

impl Caller {
    /// `may_wait`: a child may be waited for which looks at what is not at hand.
    pub(crate) fn new(thread: Pid, may_wait: bool) -> Caller {
        Caller { thread, may_wait }
    }

    /// What is in its memory.
    ///
    /// # Errors
    /// EFAULT if it has no such memory; EPERM or EACCES if we may not look, ptrace(2); ETIMEDOUT if whoever is to fetch it,
    /// as of a file or by userfaultfd(2), does not.
    pub(crate) fn read(&self, address: u64, length: usize) -> nix::Result<Vec<u8>> {
        match self.is_at_hand(address, length) {
            // It will fail as well.
            Ok(true) | Err(Errno::EACCES | Errno::EPERM | Errno::EFAULT) => return self.read_now(address, length),
            Ok(false) | Err(Errno::ENOENT) => (),
            Err(errno) => return Err(errno),
        }
        let (ours, its) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        self.in_child(|| {
            let bytes = self.read_now(address, length)?;
            // At most 128 bytes: a pipe takes them at once.
            write(&its, &bytes).map(drop)
        })?;
        let mut bytes = vec![0; length];
        read(&ours, &mut bytes).map(|_| bytes)
    }

    /// Is all of it in memory? proc_pid_pagemap(5).
    fn is_at_hand(&self, address: u64, length: usize) -> nix::Result<bool> {
        const PRESENT: u64 = 1 << 63;
        let page = sysconf(SysconfVar::PAGE_SIZE)?.map_or(4096, |size| size as u64);
        let pages = open(format!("/proc/{}/pagemap", self.thread).as_str(), OFlag::O_CLOEXEC, Mode::empty())?;
        let last = address.checked_add(length as u64 - 1).ok_or(Errno::EFAULT)?;
        for number in address / page..=last / page {
            let mut entry = [0; 8];
            let read = pread(&pages, &mut entry, (number * 8) as i64)?;
            if read < entry.len() || u64::from_ne_bytes(entry) & PRESENT == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Add `socket` to these epolls of its process, as its own socket was registered there.
    ///
    /// # Errors
    /// What epoll_ctl(2) says, EBADF for a number beyond our RLIMIT_NOFILE; ETIMEDOUT where an epoll is held.
    pub(crate) fn add_to_epolls(&self, epolls: Vec<(OwnedFd, Registration)>, socket: impl AsFd) -> nix::Result<()> {
        let entries = epolls.into_iter().map(|(epoll, known)| {
            let Registration { number, events, data } = known;
            EpollEntry { epoll, number: number.0, events, data }
        });
        self.in_time(|| sys::add_to_epolls(entries.collect(), socket))
    }

    fn in_child(&self, look: impl FnOnce() -> nix::Result<()>) -> nix::Result<()> {
        self.in_time(|| sys::in_child(|| look().err().map_or(0, |errno| errno as u8)))
    }

    /// What came of a child that ends with 0, or with an errno.
    fn in_time(&self, child: impl FnOnce() -> nix::Result<Ending>) -> nix::Result<()> {
        if !self.may_wait {
            return Err(Errno::ETIMEDOUT);
        }
        match child()? {
            Ending::Exited(0) => Ok(()),
            Ending::Exited(status) => Err(Errno::from_raw(status.into())),
            _ => Err(Errno::ETIMEDOUT),
        }
    }

    fn read_now(&self, address: u64, length: usize) -> nix::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let there = RemoteIoVec { base: address as usize, len: length };
        match process_vm_readv(self.thread, &mut [IoSliceMut::new(&mut bytes)], &[there])? {
            read if read == length => Ok(bytes),
            _ => Err(Errno::EFAULT),
        }
    }

    /// A copy of a socket of it; none if it has none there.
    pub(crate) fn copy_socket(&self, number: ForeignFd) -> nix::Result<Option<ForeignSocket>> {
        // Closing something else could take time, too.
        match socket_at(self.thread, number).map_err(errno)? {
            Some(_) => Ok(Some(ForeignSocket(Some(self.copy(number)?)))),
            None => Ok(None),
        }
    }

    /// A copy of one of its descriptors.
    pub(crate) fn copy(&self, number: ForeignFd) -> nix::Result<OwnedFd> {
        let pidfd = match sys::pidfd_of_thread(self.thread) {
            // An older kernel: the threads of a process have one table, unless they have called unshare(2).
            Err(Errno::EINVAL) => sys::pidfd_of(self.process().ok_or(Errno::ESRCH)?)?,
            pidfd => pidfd?,
        };
        sys::pidfd_getfd(pidfd, number.0)
    }

    /// Its process.
    fn process(&self) -> Option<Pid> {
        process_in(&fs::read_to_string(format!("/proc/{}/status", self.thread)).ok()?)
    }

    /// How its process has this socket open, at `number` for one.
    ///
    /// # Errors
    /// ENOBUFS if it has it too often.
    pub(crate) fn uses(&self, socket: SocketInode, number: ForeignFd) -> nix::Result<Uses> {
        let uses = self.look_for(socket, number).map_err(errno)?;
        if uses.numbers.len().max(uses.registrations.len()) > MOST_USES { Err(Errno::ENOBUFS) } else { Ok(uses) }
    }

    fn look_for(&self, socket: SocketInode, asked: ForeignFd) -> io::Result<Uses> {
        let (mut uses, sockfs, mut room) = (Uses::default(), fdinfo::sockfs()?, MOST_TEXT);
        let mut open = first_descriptors(self.thread, MOST_DESCRIPTORS)?;
        if !open.iter().any(|(number, _)| *number == asked) {
            open.extend(socket_at(self.thread, asked)?.map(|inode| (asked, Kind::Socket(inode))));
        }
        for (number, kind) in open {
            match kind {
                Kind::Socket(inode) if inode == socket => {
                    let flags = fdinfo::flags(&fdinfo::read(self.thread, number)?).unwrap_or(0);
                    uses.numbers.push((number, flags & libc::O_CLOEXEC));
                }
                Kind::Epoll => {
                    let text = fdinfo::read_at_most(self.thread, number, room)?;
                    room -= text.len() as u64;
                    let registered = fdinfo::registrations(&text, sockfs, socket);
                    uses.registrations.extend(registered.into_iter().map(|registration| (number, registration)));
                }
                _ => (),
            }
        }
        Ok(uses)
    }

    /// Does this name, by its own root and working directory, lead to this folder?
    ///
    /// # Errors
    /// What following it brings; ETIMEDOUT if that takes too long, as in a file system over a network.
    pub(crate) fn is_name_of(&self, name: &Path, folder: FolderId) -> nix::Result<bool> {
        match self.folder(name, ResolveFlag::from_bits_retain(libc::RESOLVE_CACHED)) {
            // Before Linux 5.12 and 5.6, or it is not all in the cache, or leads through a symbolic link.
            Err(Errno::EAGAIN | Errno::EINVAL | Errno::ENOSYS) => {
                let followed = || match self.follow(name)? {
                    found if found == folder => Ok(()),
                    _ => Err(Errno::ENOENT),
                };
                match self.in_child(followed) {
                    Err(Errno::ENOENT) => Ok(false),
                    done => done.map(|()| true),
                }
            }
            found => Ok(found? == folder),
        }
    }

    /// The folder, however long it takes.
    fn follow(&self, name: &Path) -> nix::Result<FolderId> {
        match self.folder(name, ResolveFlag::empty()) {
            // As with RestrictSUIDSGID= of systemd, which cannot see the mode. A name means the same to us by the same root.
            Err(Errno::ENOSYS) if FolderId::of(self.start("root")?) == FolderId::of_name(Path::new("/")) => {
                FolderId::of(openat(self.start("cwd")?, or_here(name), FOLDER, Mode::empty())?)
            }
            found => found,
        }
    }

    fn folder(&self, name: &Path, manner: ResolveFlag) -> nix::Result<FolderId> {
        let (start, within) = match name.is_absolute() {
            true => ("root", ResolveFlag::RESOLVE_IN_ROOT),
            // It may lead above the directory that it begins at.
            false => ("cwd", ResolveFlag::empty()),
        };
        let how = OpenHow::new().flags(FOLDER).resolve(within | manner);
        FolderId::of(openat2(self.start(start)?, or_here(name), how)?)
    }

    fn start(&self, which: &str) -> nix::Result<OwnedFd> {
        open(format!("/proc/{}/{which}", self.thread).as_str(), FOLDER, Mode::empty())
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
