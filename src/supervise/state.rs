//! What a supervisor leaves to the one that takes its place: lines of words, the first with the version. Pure.
//!
//! Text is written in hexadecimal, so that a word never holds a space. Descriptors are numbers, which exec keeps.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::cli::Until;
use crate::supervise::control::{Live, Wants};
use crate::supervise::generation::Ending;
use crate::supervise::plan::{Cause, Draining, Id, Moment, Plan, Serving, Starting};
use words::{Line, Words};

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

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

fn write_file(line: Line, file: Option<&SavedFile>) -> Line {
    match file {
        None => line.maybe_text(None),
        Some(SavedFile { path, identity: (device, inode) }) => line.text(bytes(path)).word(device).word(inode),
    }
}

fn read_file(words: &mut Words) -> Result<Option<SavedFile>> {
    let Some(name) = words.maybe_bytes()? else { return Ok(None) };
    Ok(Some(SavedFile { path: path(name), identity: (words.number()?, words.number()?) }))
}

fn write_wants(line: Line, wants: Wants) -> Line {
    let live = |live: Live| u8::from(live == Live::Yes);
    match wants {
        Wants::Nothing => line.word("nothing"),
        Wants::End => line.word("end"),
        Wants::Generation { id, until, live: l } => {
            line.word("generation").word(id).word(u8::from(until == Until::OldGone)).word(live(l))
        }
        Wants::Predecessors { id, live: l } => line.word("predecessors").word(id).word(live(l)),
    }
}

fn read_wants(words: &mut Words) -> Result<Wants> {
    let live = |words: &mut Words| Ok::<_, anyhow::Error>(if words.flag()? { Live::Yes } else { Live::No });
    Ok(match words.word()? {
        "nothing" => Wants::Nothing,
        "end" => Wants::End,
        "generation" => Wants::Generation {
            id: words.number()?,
            until: if words.flag()? { Until::OldGone } else { Until::Serving },
            live: live(words)?,
        },
        "predecessors" => Wants::Predecessors { id: words.number()?, live: live(words)? },
        other => bail!("a client cannot want {other}"),
    })
}

fn write_plan(plan: &Plan) -> Vec<Line> {
    let counters = Line::of("plan").word(plan.next).word(u8::from(plan.queued)).time(plan.pause).word(plan.restarts);
    let restart = plan.restart.map(|at| at.as_nanos());
    let mut lines = vec![counters.maybe(restart).maybe(plan.stopping)];
    lines.extend(plan.starting.map(|starting| {
        let cause = match starting.cause {
            Cause::First => "first",
            Cause::Reload => "reload",
            Cause::Restart => "restart",
        };
        Line::of("starting").word(starting.id).word(cause).time(starting.deadline)
    }));
    lines.extend(plan.serving.map(|serving| Line::of("serving").word(serving.id).time(serving.since)));
    let draining = |draining: &Draining| {
        Line::of("draining").word(draining.id).maybe(draining.deadline.map(|deadline| deadline.as_nanos()))
    };
    lines.extend(plan.draining.iter().map(draining));
    lines
}

fn read_plan(plan: &mut Plan, key: &str, words: &mut Words) -> Result<()> {
    match key {
        "plan" => {
            (plan.next, plan.queued, plan.pause) = (words.number()?, words.flag()?, words.time()?);
            (plan.restarts, plan.restart, plan.stopping) = (words.number()?, words.maybe_time()?, words.maybe()?);
        }
        "starting" => {
            let id = words.number()?;
            let cause = match words.word()? {
                "first" => Cause::First,
                "reload" => Cause::Reload,
                "restart" => Cause::Restart,
                other => bail!("nothing starts because of {other}"),
            };
            plan.starting = Some(Starting { id, cause, deadline: words.time()? });
        }
        "serving" => plan.serving = Some(Serving { id: words.number()?, since: words.time()? }),
        "draining" => plan.draining.push(Draining { id: words.number()?, deadline: words.maybe_time()? }),
        other => bail!("the key {other} is unknown"),
    }
    Ok(())
}

fn write_generation(generation: &SavedGeneration) -> Line {
    let line = Line::of("generation").word(generation.id).word(generation.pid).word(generation.pidfd);
    let line = line.word(generation.complaint).word(generation.inbox).time(generation.started);
    let line = match generation.ended {
        None => line.word("runs"),
        Some(Ending::Exited(status)) => line.word("exited").word(status),
        Some(Ending::Signaled(signal)) => line.word("signaled").word(signal as i32),
    };
    match generation.watch {
        None => line,
        Some(watch) => line.time(watch.begun).word(u8::from(watch.told)).maybe(watch.pipe),
    }
}

fn read_generation(words: &mut Words) -> Result<SavedGeneration> {
    let mut generation = SavedGeneration {
        id: words.number()?,
        pid: words.number()?,
        pidfd: words.number()?,
        complaint: words.number()?,
        inbox: words.number()?,
        started: words.time()?,
        ended: match words.word()? {
            "runs" => None,
            "exited" => Some(Ending::Exited(words.number()?)),
            "signaled" => Some(Ending::Signaled(Signal::try_from(words.number::<i32>()?)?)),
            other => bail!("a process cannot have {other}"),
        },
        watch: None,
    };
    if words.0.clone().next().is_some() {
        let (begun, told, pipe) = (words.time()?, words.flag()?, words.maybe()?);
        generation.watch = Some(SavedWatch { begun, told, pipe });
    }
    Ok(generation)
}
