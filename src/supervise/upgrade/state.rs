//! What a supervisor leaves to the one that takes its place: lines of words, the first with the version. Pure.
//!
//! Text is written in hexadecimal, so that a word never holds a space. Descriptors are numbers, which exec keeps.

use std::os::fd::RawFd;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::supervise::control::Wants;
use crate::supervise::generation::Ending;
use crate::supervise::plan::{Id, Moment, Plan};
use lines::{
    bytes, path, read_file, read_generation, read_plan, read_wants, write_file, write_generation, write_plan,
    write_wants,
};
use words::{Line, Words};

mod lines;
#[cfg(test)]
mod tests;
mod words;

/// To be raised whenever a line changes its meaning.
const VERSION: &str = "handoff-run state 1";

/// Everything that cannot be found out anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Whose state it is.
    pub(crate) pid: i32,
    /// Where the program is looked for, and the directory by its name.
    pub(crate) program: PathBuf,
    pub(crate) directory: Option<PathBuf>,
    /// The signals that were blocked at start, and whether SIGCHLD and SIGPIPE were ignored.
    pub(crate) blocked: Vec<i32>,
    pub(crate) child_ignored: bool,
    pub(crate) pipe_ignored: bool,
    pub(crate) listeners: Vec<SavedListener>,
    pub(crate) control: Option<SavedControl>,
    pub(crate) clients: Vec<SavedClient>,
    pub(crate) plan: Plan,
    pub(crate) generations: Vec<SavedGeneration>,
    pub(crate) last_failure: Option<String>,
    /// The pid file was written.
    pub(crate) pid_file: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SavedListener {
    pub(crate) fd: RawFd,
    pub(crate) name: String,
    pub(crate) backlog: Option<u32>,
    pub(crate) file: Option<SavedFile>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SavedControl {
    pub(crate) fd: RawFd,
    pub(crate) file: Option<SavedFile>,
}

/// The file we made for a socket, with its device and inode: another one may be at the path by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SavedFile {
    pub(crate) path: PathBuf,
    pub(crate) identity: (u64, u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SavedClient {
    pub(crate) fd: RawFd,
    pub(crate) wants: Wants,
    pub(crate) heard: Vec<u8>,
    pub(crate) to_send: Vec<u8>,
    /// It was told everything and has only to read it.
    pub(crate) closing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SavedGeneration {
    pub(crate) id: Id,
    pub(crate) pid: i32,
    pub(crate) pidfd: RawFd,
    pub(crate) complaint: RawFd,
    pub(crate) inbox: RawFd,
    pub(crate) started: Moment,
    pub(crate) ended: Option<Ending>,
    /// It gets ready: whether it said so, and the pipe by which it does.
    pub(crate) watch: Option<SavedWatch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SavedWatch {
    pub(crate) begun: Moment,
    pub(crate) told: bool,
    pub(crate) pipe: Option<RawFd>,
}

impl State {
    /// Write it down.
    pub(crate) fn write(&self) -> String {
        let mut lines = vec![Line::of(VERSION)];
        let directory = self.directory.as_deref().map(bytes);
        lines.push(Line::of("program").word(self.pid).text(bytes(&self.program)).maybe_text(directory));
        let flags = Line::of("signals").word(u8::from(self.child_ignored)).word(u8::from(self.pipe_ignored));
        lines.push(self.blocked.iter().fold(flags, Line::word));
        lines.extend(self.listeners.iter().map(|listener| {
            let line = Line::of("listener").word(listener.fd).text(listener.name.as_bytes());
            write_file(line.maybe(listener.backlog), listener.file.as_ref())
        }));
        let control = |control: &SavedControl| write_file(Line::of("control").word(control.fd), control.file.as_ref());
        lines.extend(self.control.as_ref().map(control));
        lines.extend(self.clients.iter().map(|client| {
            let line = Line::of("client").word(client.fd).text(&client.heard).text(&client.to_send);
            write_wants(line.word(u8::from(client.closing)), client.wants)
        }));
        lines.extend(write_plan(&self.plan));
        lines.extend(self.generations.iter().map(write_generation));
        lines.push(
            Line::of("rest").word(u8::from(self.pid_file)).maybe_text(self.last_failure.as_deref().map(str::as_bytes)),
        );
        lines.into_iter().map(|line| line.0 + "\n").collect()
    }

    /// Read it; an error if it is of another version or makes no sense.
    pub(crate) fn read(text: &str) -> Result<State> {
        let mut lines = text.lines();
        ensure!(lines.next() == Some(VERSION), "the state is of another version");
        let mut state = State::empty();
        for line in lines {
            let mut words = Words(line.split_ascii_whitespace());
            state.read_line(&mut words).with_context(|| format!("the state's line {line:?} makes no sense"))?;
        }
        Ok(state)
    }

    fn empty() -> State {
        State {
            pid: 0,
            program: PathBuf::new(),
            directory: None,
            blocked: vec![],
            child_ignored: false,
            pipe_ignored: false,
            listeners: vec![],
            control: None,
            clients: vec![],
            plan: Plan::idle(),
            generations: vec![],
            last_failure: None,
            pid_file: false,
        }
    }

    fn read_line(&mut self, words: &mut Words) -> Result<()> {
        match words.word()? {
            "program" => {
                (self.pid, self.program) = (words.number()?, path(words.bytes()?));
                self.directory = words.maybe_bytes()?.map(path);
            }
            "signals" => {
                (self.child_ignored, self.pipe_ignored) = (words.flag()?, words.flag()?);
                self.blocked = words.0.by_ref().map(|word| Ok(word.parse()?)).collect::<Result<_>>()?;
            }
            "listener" => self.listeners.push(SavedListener {
                fd: words.number()?,
                name: words.text()?,
                backlog: words.maybe()?,
                file: read_file(words)?,
            }),
            "control" => self.control = Some(SavedControl { fd: words.number()?, file: read_file(words)? }),
            "client" => self.clients.push(SavedClient {
                fd: words.number()?,
                heard: words.bytes()?,
                to_send: words.bytes()?,
                closing: words.flag()?,
                wants: read_wants(words)?,
            }),
            "generation" => self.generations.push(read_generation(words)?),
            "rest" => (self.pid_file, self.last_failure) = (words.flag()?, words.maybe_text()?),
            key => read_plan(&mut self.plan, key, words)?,
        }
        ensure!(words.0.next().is_none(), "there are too many words");
        Ok(())
    }
}
