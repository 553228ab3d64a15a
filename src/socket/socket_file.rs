//! The file of a Unix socket that we bound: removed at the end if it is still ours, and until then, where generations
//! share it, restored from a hard link beside it when somebody removes it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use log::{debug, warn};
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{SFlag, lstat};
use nix::unistd::{LinkatFlags, linkat, unlink};
use serde::{Deserialize, Serialize};

use crate::saved::SavedPath;
use crate::socket::dead_socket::{FileIdentity, identity, kind, remove_dead};
use crate::sys;

/// What second names end in: ours, or where a supervisor that is succeeded has that one, the other.
const SECOND_NAMES: [&str; 2] = [".kept", ".taken"];

/// A socket's file that we made. Removed when dropped, if it is still the one we made.
#[derive(Debug)]
pub(crate) struct Created {
    path: PathBuf,
    inode: FileIdentity,
    /// A second name of it, from which the first is restored.
    link: Option<PathBuf>,
    at_end: AtEnd,
}

/// What becomes of the file when nobody serves it any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum AtEnd {
    /// It is removed.
    #[default]
    Remove,
    /// It is another process' still.
    Leave,
    /// The second name is, too.
    #[serde(other)]
    LeaveBoth,
}

/// The same in a state that is handed on: another file may be at the path by then.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(any(test, fuzzing), derive(PartialEq))]
pub(crate) struct SavedFile {
    path: SavedPath,
    device: libc::dev_t,
    inode: libc::ino_t,
    #[serde(default)]
    link: Option<SavedPath>,
    #[serde(default)]
    at_end: AtEnd,
}

/// What becomes of the name of a socket's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// It is the target's to keep or remove.
    Once,
    /// Generations share it: it is kept alive.
    Kept,
}

/// How a name was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameState {
    Intact,
    Restored,
}

impl Created {
    /// The file at `path`, which is `inode`.
    pub(crate) fn new(path: &Path, inode: FileIdentity) -> Created {
        Created { path: path.to_owned(), inode, link: None, at_end: AtEnd::Remove }
    }

    /// The file at `path` of a socket that is taken over.
    ///
    /// # Errors
    /// If it is not there.
    pub(crate) fn taken_over(path: &Path) -> nix::Result<Created> {
        let mut created = Created::new(path, identity(&lstat(path)?));
        created.leave();
        Ok(created)
    }

    /// The file at `path` of a socket that a supervisor lends, which keeps both names until it has been succeeded. Where they
    /// are is our word, not the lender's: that may be of another user.
    ///
    /// # Errors
    /// If it is not there, or no socket.
    pub(crate) fn lent(path: &Path) -> nix::Result<Created> {
        let file = lstat(path)?;
        if kind(&file) != SFlag::S_IFSOCK {
            return Err(Errno::ENOTSOCK);
        }
        let mut created = Created::new(path, identity(&file));
        created.leave_both();
        created.link = created.second_names().into_iter().find(|link| created.is_at(link));
        Ok(created)
    }

    /// The process that it was taken over from has no need of it any more, nor of a second name: one that it left goes.
    pub(crate) fn own(&mut self) {
        self.at_end = AtEnd::Remove;
        let others = self.second_names().into_iter().filter(|name| Some(name) != self.link.as_ref());
        others.filter(|name| self.is_at(name)).for_each(|name| remove(&name));
    }

    /// Leave it, and the second name, to the process that keeps both.
    pub(crate) fn leave_both(&mut self) {
        self.at_end = AtEnd::LeaveBoth;
    }

    /// Leave it to the process that has the socket now.
    pub(crate) fn leave(&mut self) {
        self.at_end = AtEnd::Leave;
    }

    /// For the program that takes the place of this one.
    pub(crate) fn save(&self) -> SavedFile {
        let (device, inode) = self.inode;
        let link = self.link.clone().map(SavedPath);
        SavedFile { path: SavedPath(self.path.clone()), device, inode, link, at_end: self.at_end }
    }

    /// The file that a predecessor of this program made for the socket it left us.
    pub(crate) fn resume(saved: SavedFile) -> Created {
        let link = saved.link.map(|SavedPath(link)| link);
        Created { path: saved.path.0, inode: (saved.device, saved.inode), link, at_end: saved.at_end }
    }

    /// Where it can be watched: by a name that a server does not know.
    pub(crate) fn watched(&self) -> &Path {
        self.link.as_ref().unwrap_or(&self.path)
    }

    /// The folder of both names.
    pub(crate) fn folder(&self) -> &Path {
        self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Make the second name, if there is none. Without it the first is lost when somebody removes it.
    pub(crate) fn keep(&mut self) {
        if self.link.is_some() {
            return;
        }
        // A supervisor that it is taken over from removes its own at its end.
        let is_free = |link: &PathBuf| self.at_end != AtEnd::Leave || !self.is_at(link);
        // Where supervisors that were killed left both, any is as good: what its owner removes is made again.
        let [usual, other] = self.second_names();
        let link = if !is_free(&usual) && is_free(&other) { other } else { usual };
        match self.link_to(&link) {
            Ok(()) => self.link = Some(link),
            Err(error) => warn!("cannot keep {} should it be removed: {error:#}", self.path.display()),
        }
    }

    fn link_to(&self, link: &Path) -> Result<()> {
        let context = || format!("cannot link {}", link.display());
        match hard_link(&self.path, link) {
            Err(Errno::EEXIST) if self.is_at(link) => return Ok(()),
            Err(Errno::EEXIST) => {
                // A supervisor that was killed left it.
                remove_dead(link).with_context(context)?;
                hard_link(&self.path, link)
            }
            made => made,
        }
        .with_context(context)?;
        if !self.is_at(link) {
            // In the meantime somebody put another file in the socket's place.
            unlink(link).with_context(context)?;
            return Err(Errno::ESTALE).with_context(context);
        }
        Ok(())
    }

    /// See whether the path still leads to the socket, and restore it if it does not.
    ///
    /// # Errors
    /// What the path is now, if it cannot be restored.
    pub(crate) fn look_after(&mut self) -> Result<NameState> {
        if self.is_at(&self.path) {
            self.renew_link();
            return Ok(NameState::Intact);
        }
        // Only the file of a dead socket is replaced.
        remove_dead(&self.path).context("its path is another file's now")?;
        let link = self.link.as_ref().filter(|link| self.is_at(link));
        let link = link.context("its path was removed and cannot be restored")?;
        let restored = hard_link(link, &self.path).or_else(|errno| match errno {
            // It was given to another user, and we may not link it any more: the second name becomes the first.
            Errno::EPERM => sys::rename_to_free(link, &self.path)
                .inspect(|()| warn!("{} cannot be restored once more", self.path.display())),
            _ => Err(errno),
        });
        match restored {
            Err(Errno::EEXIST) => return Err(Errno::EEXIST).context("its path is another file's now"),
            restored => restored.context("its path was removed and cannot be restored")?,
        }
        ensure!(self.is_at(&self.path), "its path is another file's now");
        Ok(NameState::Restored)
    }

    /// Somebody may have removed the second name alone.
    fn renew_link(&self) {
        let Some(link) = self.link.as_ref().filter(|link| lstat(*link) == Err(Errno::ENOENT)) else { return };
        if let Err(error) = self.link_to(link) {
            debug!("{error:#}");
        }
    }

    /// What second names of it can be.
    fn second_names(&self) -> [PathBuf; 2] {
        SECOND_NAMES.map(|suffix| beside(&self.path, suffix))
    }

    fn is_at(&self, path: &Path) -> bool {
        lstat(path).is_ok_and(|file| identity(&file) == self.inode)
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        let path = (self.at_end == AtEnd::Remove).then_some(&self.path);
        let link = self.link.as_ref().filter(|_| self.at_end != AtEnd::LeaveBoth);
        for path in path.into_iter().chain(link) {
            if self.is_at(path) {
                remove(path);
            }
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = unlink(path) {
        warn!("cannot remove {}: {error}", path.display());
    }
}

/// `.NAME.kept`, or the like, in the same folder.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(suffix);
    path.with_file_name(name)
}

fn hard_link(from: &Path, to: &Path) -> nix::Result<()> {
    linkat(AT_FDCWD, from, AT_FDCWD, to, LinkatFlags::empty())
}
