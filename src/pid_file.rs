//! A pid file: written whole or not at all, and put back as it was if the program it announces never runs.
//!
//! The file may be in another user's folder, so every step is taken in the folder as it was opened, and none follows a
//! link but those that are looked at here.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, process};

use anyhow::{Context, Result, bail, ensure};
use log::warn;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use crate::failure::plain;

/// A pid file is not larger: what is there is read to be put back.
const LARGEST: u64 = 64 << 10;
/// As many symbolic links are followed as the kernel follows.
const MOST_LINKS: u32 = 40;
/// At most this many names that earlier starts left are passed over.
const MOST_LEFT: u32 = 1000;

/// A pid file that we wrote, and what was there before.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    /// What we wrote.
    pid: u32,
    before: Option<Vec<u8>>,
}

/// What a pid file says, and what is needed to believe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NamedPid {
    pub(crate) pid: i32,
    /// Whose file it is.
    pub(crate) owner: u32,
    /// When it was written, in seconds since 1970.
    pub(crate) written: i64,
}

impl PidFile {
    /// Put `pid` into the file at `path`.
    pub(crate) fn write(path: &Path, pid: u32) -> Result<PidFile> {
        let write = || -> Result<_> {
            let place = Place::find(path)?;
            let before = place.file.map(|_| place.read()).transpose()?;
            place.replace(format!("{pid}\n").as_bytes())?;
            Ok(before)
        };
        let before = write().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(PidFile { path: path.to_owned(), pid, before })
    }

    /// What the file at `path` says; none if there is no file, or nothing in it.
    ///
    /// # Errors
    /// If it is no pid file, or a link that may not be followed.
    pub(crate) fn read(path: &Path) -> Result<Option<NamedPid>> {
        let place = match Place::find(path) {
            Err(error) if error.downcast_ref() == Some(&Errno::ENOENT) => return Ok(None),
            place => place?,
        };
        let Some(file) = place.file else { return Ok(None) };
        let content = place.read()?;
        let text = content.trim_ascii();
        if text.is_empty() {
            return Ok(None);
        }
        let number = str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let number = number.and_then(|text| text.parse().ok()).filter(|pid| *pid > 0);
        let pid = number.context("it is no pid file: there is more in it than a process id")?;
        Ok(Some(NamedPid { pid, owner: file.st_uid, written: file.st_mtime }))
    }

    /// One that this process wrote, in the place of `before`, before it became another program.
    pub(crate) fn written(path: &Path, before: Option<String>) -> PidFile {
        PidFile { path: path.to_owned(), pid: process::id(), before: before.map(String::into_bytes) }
    }

    /// What was there before, if it was text.
    pub(crate) fn before(&self) -> Option<&str> {
        str::from_utf8(self.before.as_deref()?).ok()
    }

    /// Write it again, if somebody removed it or wrote to it.
    pub(crate) fn renew(&mut self) {
        if matches!(self.place_if_ours(), Ok(Some(_))) {
            return;
        }
        match PidFile::write(&self.path, self.pid) {
            Ok(_) => self.before = None,
            Err(error) => warn!("{error:#}"),
        }
    }

    /// Remove it at the end, if its content is still ours.
    pub(crate) fn remove(self) {
        if let Err(error) = self.place_if_ours().and_then(|place| place.map_or(Ok(()), |place| place.remove())) {
            warn!("cannot remove {}: {error:#}", self.path.display());
        }
    }

    /// Undo it: the program did not start, and the file may be its predecessor's.
    pub(crate) fn restore(self) {
        let restored = self.place_if_ours().and_then(|place| match (place, &self.before) {
            (None, _) => Ok(()),
            (Some(place), Some(before)) => place.replace(before),
            (Some(place), None) => place.remove(),
        });
        if let Err(error) = restored {
            warn!("cannot restore {}: {error:#}", self.path.display());
        }
    }

    /// Where it is, if it still has what we wrote.
    fn place_if_ours(&self) -> Result<Option<Place>> {
        let place = Place::find(&self.path)?;
        let ours = format!("{}\n", self.pid);
        let is_ours = place.file.is_some() && place.read()? == ours.as_bytes();
        Ok(is_ours.then_some(place))
    }
}

/// Where a file is, or would be, once symbolic links are followed.
#[derive(Debug)]
struct Place {
    folder: OwnedFd,
    name: OsString,
    /// The regular file that is there.
    file: Option<FileStat>,
}

impl Place {
    /// Follow `path`. What is there and is no regular file is an error.
    ///
    /// A link of another user is followed only to what is that user's too: in a folder of theirs it might lead to
    /// anything that this process may write.
    fn find(path: &Path) -> Result<Place> {
        let mut path = path.to_owned();
        let mut strangers: Vec<u32> = Vec::new();
        for _ in 0..MOST_LINKS {
            let name = path.file_name().ok_or(Errno::EISDIR)?.to_owned();
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let folder = open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
            let found = match fstatat(&folder, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Err(Errno::ENOENT) => None,
                found => Some(found?),
            };
            match found.map(|found| SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT) {
                Some(SFlag::S_IFLNK) => {
                    strangers.extend(found.map(|link| link.st_uid).filter(|owner| !is_trusted(*owner)));
                    path = parent.join(readlinkat(&folder, name.as_os_str())?);
                }
                Some(SFlag::S_IFDIR) => bail!(Errno::EISDIR),
                None | Some(SFlag::S_IFREG) => {
                    let owner = found.map_or_else(|| fstat(&folder), Ok)?.st_uid;
                    let theirs = strangers.iter().all(|stranger| *stranger == owner);
                    ensure!(theirs, "it is another user's symbolic link to what is not that user's");
                    return Ok(Place { folder, name, file: found });
                }
                Some(_) => bail!("it is not a regular file"),
            }
        }
        bail!(Errno::ELOOP)
    }

    fn read(&self) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        self.open(OFlag::O_RDONLY)?.take(LARGEST + 1).read_to_end(&mut content).map_err(plain)?;
        ensure!(content.len() as u64 <= LARGEST, "it is too large for a pid file");
        Ok(content)
    }

    /// Open what is there, whatever came there since: a FIFO does not hold us up, and is an error.
    fn open(&self, access: OFlag) -> Result<File> {
        let flags = access | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.folder, self.name.as_os_str(), flags, Mode::empty())?);
        let found = fstat(&file)?;
        ensure!(SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG, "it is not a regular file");
        let is_seen = |seen: FileStat| (seen.st_dev, seen.st_ino) == (found.st_dev, found.st_ino);
        ensure!(self.file.is_none_or(is_seen), "another file was put in its place");
        Ok(file)
    }

    /// Write beside it and rename, so that no reader sees half a file and a full disk leaves the old one. Where only the
    /// file is ours, or it could not keep its owner, it is written in place.
    fn replace(&self, content: &[u8]) -> Result<()> {
        match self.write_beside(content) {
            Err(error) if self.file.is_some() && is_denied(&error) => self.write_in_place(content),
            written => written,
        }
    }

    fn write_beside(&self, content: &[u8]) -> Result<()> {
        let (file, beside) = self.create_beside()?;
        let written = self
            .fill(file, content)
            .and_then(|()| Ok(renameat(&self.folder, beside.as_str(), &self.folder, self.name.as_os_str())?));
        if written.is_err() {
            // The first error is the one to report.
            let _ = unlinkat(&self.folder, beside.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        written
    }

    /// A new file of a name that nothing has; one that an earlier start left, perhaps another user's, may stay.
    fn create_beside(&self) -> nix::Result<(File, String)> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        // One that replaces another gets the other's mode below.
        let mode = Mode::from_bits_truncate(if self.file.is_some() { 0o600 } else { 0o644 });
        let mut made = (1..=MOST_LEFT).map(|number| {
            let name = format!(".handoff-run-{}-{number}", process::id());
            openat(&self.folder, name.as_str(), flags, mode).map(|fd| (File::from(fd), name))
        });
        made.find(|made| !matches!(made, Err(Errno::EEXIST))).unwrap_or(Err(Errno::EEXIST))
    }

    /// Give a new file the content, and the owner and mode of the one it is to replace.
    fn fill(&self, mut file: File, content: &[u8]) -> Result<()> {
        file.write_all(content).map_err(plain)?;
        let Some(old) = &self.file else { return Ok(()) };
        let new = file.metadata().map_err(plain)?;
        if (new.uid(), new.gid()) != (old.st_uid, old.st_gid) {
            std::os::unix::fs::fchown(&file, Some(old.st_uid), Some(old.st_gid)).map_err(plain)?;
        }
        file.set_permissions(fs::Permissions::from_mode(old.st_mode & 0o7777)).map_err(plain)
    }

    fn write_in_place(&self, content: &[u8]) -> Result<()> {
        let file = self.open(OFlag::O_WRONLY)?;
        let write = || -> io::Result<()> {
            file.write_all_at(content, 0)?;
            file.set_len(content.len() as u64)
        };
        write().map_err(plain)
    }

    /// Remove it; where only the file is ours, leave it empty.
    fn remove(&self) -> Result<()> {
        match unlinkat(&self.folder, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EACCES | Errno::EPERM | Errno::EROFS) => self.write_in_place(b""),
            removed => Ok(removed?),
        }
    }
}

/// May a link of this user lead anywhere?
fn is_trusted(user: u32) -> bool {
    [0, geteuid().as_raw()].contains(&user)
}

fn is_denied(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Errno::EACCES | Errno::EPERM | Errno::EROFS))
}
