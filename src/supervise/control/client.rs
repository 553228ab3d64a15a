//! The other end of the control socket: `--reload`, `--status` and `--stop`.

use std::fs;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use log::LevelFilter;
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

use crate::config::{Request, Shown};
use crate::failure::{OneLine, plain};
use crate::output::print;
use crate::saved;
use crate::supervise::control::prometheus;
use crate::supervise::control::protocol::{Call, Reply, line};
use crate::supervise::control::replies::Replies;
use crate::supervise::plan::{EARLIER, Id, PREDECESSOR};
use crate::sys::{self, Disposition};

/// Ask the supervisor at `path` and give the exit status.
pub(crate) fn ask(path: &Path, request: Request, shown: Shown) -> Result<u8> {
    let mut replies = Replies::connect(path)?;
    ensure_trusted(replies.stream(), path)
        .with_context(|| format!("cannot trust what listens at {}", path.display()))?;
    let mut screen = Screen::new();
    let call = Call { request, live: screen.terminal };
    // stdout may be a pipe without a reader: the exit status is that of the request all the same.
    sys::set_disposition(Signal::SIGPIPE, Disposition::Ignored).context("cannot ignore SIGPIPE")?;
    replies.send(&line(&call));
    follow(&mut replies, &mut screen, |text| match shown {
        Shown::AsSent => print_line(text),
        Shown::AsMetrics => print(&prometheus::render(text, path)?),
    })
}

/// A supervisor is believed if it is this user's, root's, or of the user whose folder its socket is in, if nobody else can
/// put one there. Where the path is a link, that holds of the link's folder, too.
pub(super) fn ensure_trusted(stream: &UnixStream, path: &Path) -> Result<()> {
    let peer = getsockopt(stream, sockopt::PeerCredentials)?.uid();
    let trusted = |user: u32| [0, geteuid().as_raw()].contains(&user);
    if trusted(peer) {
        return Ok(());
    }
    let named = std::path::absolute(path).map_err(plain)?;
    let actual = path.canonicalize().map_err(plain)?;
    let is_closed = |path: &Path, owner: &dyn Fn(u32) -> bool| {
        let folder = path.parent().and_then(|folder| fs::metadata(folder).ok());
        folder.is_some_and(|folder| owner(folder.uid()) && folder.mode() & WRITABLE_BY_OTHERS == 0)
    };
    let believed =
        is_closed(&actual, &|owner| owner == peer) && is_closed(&named, &|owner| owner == peer || trusted(owner));
    ensure!(believed, "it is a process of user {peer}, who is not the only one that can write in this folder");
    Ok(())
}

/// By the group, or by all.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Show the replies until the last one.
fn follow(replies: &mut Replies, screen: &mut Screen, show: impl Fn(&str) -> Result<()>) -> Result<u8> {
    while let Some(line) = replies.next()? {
        match saved::parse(&line) {
            Ok(Reply::Progress { generation, text } | Reply::Live { generation, text }) => {
                screen.show_generation(generation, &text);
            }
            Ok(Reply::Output(text)) => show(&text)?,
            Ok(Reply::Error(text)) => screen.show_error(&text),
            Ok(Reply::Exit(status)) => return Ok(status),
            // A newer supervisor may send more.
            Ok(Reply::Loan { .. }) | Err(_) => (),
        }
    }
    Err(anyhow!("the supervisor ended before it answered"))
}

fn print_line(line: &str) -> Result<()> {
    print(&format!("{}\n", OneLine(line)))
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
        let line = match id {
            PREDECESSOR | EARLIER.. => format!("predecessor: {}", OneLine(text)),
            _ => format!("generation {id}: {}", OneLine(text)),
        };
        if !self.terminal {
            // An error of stdout does not change the outcome of the request.
            let _ = print_line(&line);
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

    /// Below the lines, which stay as they are.
    fn show_error(&mut self, text: &str) {
        self.drawn = 0;
        self.lines.clear();
        // A closed stderr cannot be reported anywhere.
        let _ = writeln!(stderr(), "handoff-run: {}", OneLine(text));
    }
}
