//! A text in a memfd that other processes hold too, and that may be replaced at any moment, whatever ends this one.
//!
//! The first line shows where the text is: a new one is written beside it before that line is, which is shorter than a
//! page and so written whole.

use std::fs::File;
use std::io::{Read, Seek};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::failure::plain;

/// How the first line begins, with the version of what follows.
const BEGINNING: &str = "handoff-run 1 ";
/// Its length.
const HEADER: usize = 40;

/// The memfd.
#[derive(Debug)]
pub(crate) struct StateFile {
    file: File,
    /// Where the text is.
    text: Range<usize>,
}

impl StateFile {
    /// A new one, close-on-exec, with an empty text.
    pub(crate) fn new() -> Result<StateFile> {
        let memory = memfd_create(c"handoff-state", MFdFlags::MFD_CLOEXEC).context("cannot make a memory file")?;
        let mut file = StateFile { file: memory.into(), text: HEADER..HEADER };
        file.write("")?;
        Ok(file)
    }

    /// One that a predecessor made, and its text.
    ///
    /// # Errors
    /// If it was made by another program or another version.
    pub(crate) fn open(memory: OwnedFd) -> Result<(StateFile, Vec<u8>)> {
        let (mut file, mut bytes) = (File::from(memory), vec![]);
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(plain)?;
        let text = read_header(&bytes).filter(|text| text.end <= bytes.len()).context("it is none of this version")?;
        bytes.truncate(text.end);
        bytes.drain(..text.start);
        Ok((StateFile { file, text }, bytes))
    }

    /// Replace the text.
    pub(crate) fn write(&mut self, text: &str) -> Result<()> {
        // Before the present one if there is room, else behind it.
        let start = if HEADER + text.len() <= self.text.start { HEADER } else { self.text.end };
        let place = start..start + text.len();
        let header = format!("{BEGINNING}{:012} {:012}\n", place.start, place.end);
        let written = self.file.write_all_at(text.as_bytes(), start as u64);
        let written = written.and_then(|()| self.file.write_all_at(header.as_bytes(), 0));
        written.map_err(plain).context("cannot write the state")?;
        self.text = place;
        Ok(())
    }
}

impl AsFd for StateFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn read_header(bytes: &[u8]) -> Option<Range<usize>> {
    let line = str::from_utf8(bytes.get(..HEADER)?).ok()?.strip_suffix('\n')?;
    let (start, end) = line.strip_prefix(BEGINNING)?.split_once(' ')?;
    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
    (HEADER <= start && start <= end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(file: &StateFile) -> OwnedFd {
        file.as_fd().try_clone_to_owned().unwrap()
    }

    #[test]
    fn the_last_text_is_read_and_one_that_was_begun_is_not() {
        let mut file = StateFile::new().unwrap();
        for text in ["", "one", "a longer one", "x", "yy", &"z".repeat(9000), "end"] {
            file.write(text).unwrap();
            let (again, read) = StateFile::open(copy(&file)).unwrap();
            assert_eq!((read.as_slice(), &again.text), (text.as_bytes(), &file.text));
            // What a writer does before it is killed.
            let beside = if file.text.start > HEADER + 1 { HEADER } else { file.text.end };
            file.file.write_all_at(b"?", beside as u64).unwrap();
            assert_eq!(StateFile::open(copy(&file)).unwrap().1, text.as_bytes());
        }
        assert!(file.file.metadata().unwrap().len() < 4 * 9000);
    }

    #[test]
    fn what_is_none_of_ours_or_cut_off_is_an_error() {
        let mut file = StateFile::new().unwrap();
        file.write("text").unwrap();
        file.file.set_len(42).unwrap();
        assert_eq!(StateFile::open(copy(&file)).unwrap_err().to_string(), "it is none of this version");
        for header in ["handoff-run 2 000000000040 000000000044\n", "handoff-run 1 000000000041 000000000040\n"] {
            file.file.write_all_at(header.as_bytes(), 0).unwrap();
            assert_eq!(StateFile::open(copy(&file)).unwrap_err().to_string(), "it is none of this version");
        }
        let (pipe, _) = nix::unistd::pipe().unwrap();
        StateFile::open(pipe).unwrap_err();
    }
}
