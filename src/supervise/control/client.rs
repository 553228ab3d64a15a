//! The other end of the control socket: `--reload`, `--status` and `--stop`.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use log::LevelFilter;
use nix::sys::signal::Signal;

use crate::config::Request;
use crate::failure::OneLine;
use crate::output::print;
use crate::supervise::control::protocol::{Call, Reply, line};
use crate::supervise::control::replies::Replies;
use crate::supervise::plan::Id;
use crate::sys::{self, Disposition};

/// Ask the supervisor at `path` and give the exit status.
pub(crate) fn ask(path: &Path, request: Request) -> Result<u8> {
    let mut replies = Replies::connect(path)?;
    let mut screen = Screen::new();
    let call = Call { request, live: screen.terminal };
    // stdout may be a pipe without a reader: the exit status is that of the request all the same.
    sys::set_disposition(Signal::SIGPIPE, Disposition::Ignored).context("cannot ignore SIGPIPE")?;
    replies.send(&line(&call));
    follow(&mut replies, &mut screen)
}

/// Show the replies until the last one.
fn follow(replies: &mut Replies, screen: &mut Screen) -> Result<u8> {
    while let Some(line) = replies.next()? {
        match serde_json::from_slice(&line) {
            Ok(Reply::Progress { generation, text } | Reply::Live { generation, text }) => {
                screen.show_generation(generation, &text);
            }
            Ok(Reply::Output(text)) => screen.print(&text)?,
            Ok(Reply::Error(text)) => screen.show_error(&text),
            Ok(Reply::Exit(status)) => return Ok(status),
            // A newer supervisor may send more.
            Err(_) => (),
        }
    }
    Err(anyhow!("the supervisor ended before it answered"))
}

/// What the user sees: plain lines, or on a terminal one line a generation that changes in place.
struct Screen {
    terminal: bool,
    /// The lines of the generations, and how many of them are drawn.
    lines: Vec<(Id, String)>,
    drawn: usize,
}

impl Screen {
    fn new() -> Screen {
        Screen { terminal: stdout().is_terminal(), lines: Vec::new(), drawn: 0 }
    }

    /// Show the progress of a generation.
    fn show_generation(&mut self, id: Id, text: &str) {
        // --quiet suppresses progress.
        if log::max_level() < LevelFilter::Info {
            return;
        }
        let line = format!("generation {id}: {}", OneLine(text));
        if !self.terminal {
            // An error of stdout does not change the outcome of the request.
            let _ = self.print(&line);
            return;
        }
        match self.lines.binary_search_by_key(&id, |(known, _)| *known) {
            Ok(at) => self.lines[at].1 = line,
            Err(at) => self.lines.insert(at, (id, line)),
        }
        self.draw();
    }

    /// Draw all lines anew, over those that are there.
    fn draw(&mut self) {
        let mut picture = String::new();
        if self.drawn > 0 {
            picture.push_str(&format!("\x1b[{}A", self.drawn));
        }
        for (_, line) in &self.lines {
            // Return to column 0, write the line, erase the rest.
            picture.push_str(&format!("\r{line}\x1b[K\n"));
        }
        self.drawn = self.lines.len();
        // As above.
        let _ = print(&picture);
    }

    fn print(&self, line: &str) -> Result<()> {
        print(&format!("{}\n", OneLine(line)))
    }

    /// Below the lines, which stay as they are.
    fn show_error(&mut self, text: &str) {
        self.drawn = 0;
        self.lines.clear();
        // A closed stderr cannot be reported anywhere.
        let _ = writeln!(stderr(), "handoff-run: {}", OneLine(text));
    }
}
