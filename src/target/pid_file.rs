//! A pid file: written whole or not at all, and put back as it was if the program it announces never runs.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result};
use log::warn;

use crate::failure::plain;

/// A pid file that we wrote, and what was there before.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    before: Option<Vec<u8>>,
}

impl PidFile {
    /// Put `pid` into the file at `path`.
    pub(crate) fn write(path: &Path, pid: u32) -> Result<PidFile> {
        let context = || format!("cannot write {}", path.display());
        let before = match fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            read => Some(read.map_err(plain).with_context(context)?),
        };
        replace(path, format!("{pid}\n").as_bytes()).map_err(plain).with_context(context)?;
        Ok(PidFile { path: path.to_owned(), before })
    }

    /// One that this process wrote before it became another program.
    pub(crate) fn written(path: &Path) -> PidFile {
        PidFile { path: path.to_owned(), before: None }
    }

    /// Remove it at the end, if its content is still ours.
    pub(crate) fn remove(self) {
        let ours = fs::read(&self.path).is_ok_and(|content| content == format!("{}\n", process::id()).as_bytes());
        if ours && let Err(error) = fs::remove_file(&self.path) {
            warn!("cannot remove {}: {error}", self.path.display());
        }
    }

    /// Undo it: the program did not start, and the file may be its predecessor's.
    pub(crate) fn restore(self) {
        let done = match &self.before {
            Some(before) => replace(&self.path, before),
            None => fs::remove_file(&self.path),
        };
        if let Err(error) = done {
            warn!("cannot restore {}: {error}", self.path.display());
        }
    }
}

/// Write beside it and rename, so that no reader sees half a file and a full disk leaves the old one.
fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut beside = OsString::from(path);
    beside.push(format!(".{}", process::id()));
    let beside = PathBuf::from(beside);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&beside)?;
    let written = file.write_all(content).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&beside);
    }
    written
}
