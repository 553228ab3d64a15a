//! The log on stderr: one line for each message; `RUST_LOG` is the target's and not read.
//!
//! A supervisor never waits for whatever reads its log: what cannot be written at once is dropped and counted.

use std::env;
use std::io::{self, Write, stderr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use env_logger::{Builder, Target};
use log::{LevelFilter, warn};
use nix::errno::Errno;

use crate::failure::OneLine;
use crate::sys::write_at_once;

/// Log what is at `level` or above, or what the environment variable HANDOFF_LOG selects instead.
pub(crate) fn start(level: LevelFilter) {
    let chosen = chosen_level();
    Builder::new()
        .filter_level(chosen.as_ref().ok().copied().flatten().unwrap_or(level))
        .format(|stderr, record| writeln!(stderr, "handoff-run: {}", OneLine(&record.args().to_string())))
        .target(Target::Pipe(Box::new(Stderr::default())))
        .init();
    if let Err(word) = chosen {
        warn!("HANDOFF_LOG={word} is none of error, warn, info, debug, trace and off: it is ignored");
    }
}

/// The level that HANDOFF_LOG names, if it is set.
///
/// # Errors
/// Its value, if that is no level.
fn chosen_level() -> Result<Option<LevelFilter>, String> {
    let Some(word) = env::var_os("HANDOFF_LOG").filter(|word| !word.is_empty()) else { return Ok(None) };
    let word = word.to_string_lossy().into_owned();
    word.trim().parse().map(Some).map_err(|_| word)
}

/// Drop from now on what would have to wait.
pub(crate) fn never_wait() {
    WAITS.store(false, Relaxed);
}

static WAITS: AtomicBool = AtomicBool::new(true);

/// Where lines go, each by one call of `write`.
#[derive(Debug, Default)]
struct Stderr(Lines);

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if WAITS.load(Relaxed) {
            stderr().write_all(line)?;
        } else {
            self.0.add(line, |bytes| write_at_once(stderr().as_fd(), bytes));
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What was not written yet.
#[derive(Debug, Default)]
struct Lines {
    /// Of a line that was written in part.
    rest: Vec<u8>,
    /// Dropped since the last line that was written.
    lost: u64,
}

impl Lines {
    /// Write the line by `write`, which takes as much as it can; or drop and count it.
    fn add(&mut self, line: &[u8], write: impl Fn(&[u8]) -> nix::Result<usize>) {
        // A line that was begun is ended first.
        match write_all(&self.rest, &write) {
            Some(written) => drop(self.rest.drain(..written)),
            None => self.rest.clear(),
        }
        if !self.rest.is_empty() {
            self.lost += 1;
            return;
        }
        let text = match self.lost {
            0 => line.to_vec(),
            1 => [b"handoff-run: 1 line of this log was lost: it was not read\n", line].concat(),
            lost => [format!("handoff-run: {lost} lines of this log were lost: it was not read\n").as_bytes(), line]
                .concat(),
        };
        match write_all(&text, &write) {
            Some(0) => self.lost += 1,
            Some(written) => {
                self.lost = 0;
                self.rest = text[written..].to_vec();
            }
            // There is nothing to write to.
            None => (),
        }
    }
}

/// Write until there is no room; how much that was, or nothing where it cannot be written at all.
fn write_all(bytes: &[u8], write: impl Fn(&[u8]) -> nix::Result<usize>) -> Option<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match write(&bytes[written..]) {
            Ok(0) => return None,
            Ok(length) => written += length,
            Err(Errno::EINTR) => (),
            Err(Errno::EAGAIN) => break,
            Err(_) => return None,
        }
    }
    Some(written)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// A reader that has room for so many bytes.
    #[derive(Default)]
    struct Reader {
        room: Cell<usize>,
        text: RefCell<String>,
    }

    impl Reader {
        fn write(&self, bytes: &[u8]) -> nix::Result<usize> {
            let length = bytes.len().min(self.room.get());
            if length == 0 {
                return Err(Errno::EAGAIN);
            }
            self.room.set(self.room.get() - length);
            self.text.borrow_mut().push_str(str::from_utf8(&bytes[..length]).unwrap());
            Ok(length)
        }

        /// Log a line while there is this much room.
        fn log(&self, lines: &mut Lines, line: &str, room: usize) {
            self.room.set(room);
            lines.add(line.as_bytes(), |bytes| self.write(bytes));
        }
    }

    #[test]
    fn lines_without_room_are_lost_and_counted() {
        let (reader, mut lines) = (Reader::default(), Lines::default());
        reader.log(&mut lines, "one\n", 4);
        reader.log(&mut lines, "two\n", 0);
        reader.log(&mut lines, "three\n", 999);
        for line in ["four\n", "five\n"] {
            reader.log(&mut lines, line, 0);
        }
        reader.log(&mut lines, "six\n", 999);
        let expected = "one\nhandoff-run: 1 line of this log was lost: it was not read\nthree\n\
                        handoff-run: 2 lines of this log were lost: it was not read\nsix\n";
        assert_eq!(*reader.text.borrow(), expected);
    }

    #[test]
    fn a_line_that_was_begun_is_ended_before_the_next() {
        let (reader, mut lines) = (Reader::default(), Lines::default());
        reader.log(&mut lines, "one and more\n", 3);
        reader.log(&mut lines, "two\n", 4);
        assert_eq!(*reader.text.borrow(), "one and");
        reader.log(&mut lines, "three\n", 999);
        let expected = "one and more\nhandoff-run: 1 line of this log was lost: it was not read\nthree\n";
        assert_eq!(*reader.text.borrow(), expected);
    }

    #[test]
    fn without_a_reader_nothing_is_kept() {
        let mut lines = Lines::default();
        lines.add(b"one\n", |_| Err(Errno::EPIPE));
        assert_eq!((lines.rest.len(), lines.lost), (0, 0));
    }
}
