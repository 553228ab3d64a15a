//! What a line of the state holds, for each kind of thing: written, and read back. Pure.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::words::{Line, Words};
use super::{SavedFile, SavedGeneration, SavedWatch};
use crate::config::Until;
use crate::supervise::control::{Live, Wants};
use crate::supervise::generation::Ending;
use crate::supervise::plan::{Cause, Draining, Plan, Serving, Starting};

pub(super) fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

pub(super) fn path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

pub(super) fn write_file(line: Line, file: Option<&SavedFile>) -> Line {
    match file {
        None => line.maybe_text(None),
        Some(SavedFile { path, identity: (device, inode) }) => line.text(bytes(path)).word(device).word(inode),
    }
}

pub(super) fn read_file(words: &mut Words) -> Result<Option<SavedFile>> {
    let Some(name) = words.maybe_bytes()? else { return Ok(None) };
    Ok(Some(SavedFile { path: path(name), identity: (words.number()?, words.number()?) }))
}

pub(super) fn write_wants(line: Line, wants: Wants) -> Line {
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

pub(super) fn read_wants(words: &mut Words) -> Result<Wants> {
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

pub(super) fn write_plan(plan: &Plan) -> Vec<Line> {
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

pub(super) fn read_plan(plan: &mut Plan, key: &str, words: &mut Words) -> Result<()> {
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

pub(super) fn write_generation(generation: &SavedGeneration) -> Line {
    let line = Line::of("generation").word(generation.id).word(generation.pid).word(generation.pidfd);
    let line = line.word(generation.complaint).word(generation.inbox).time(generation.started);
    let line = match generation.ended {
        None => line.word("runs"),
        Some(Ending::Exited(status)) => line.word("exited").word(status),
        Some(Ending::Signaled(signal)) => line.word("signaled").word(signal),
    };
    match generation.watch {
        None => line,
        Some(watch) => line.time(watch.begun).word(u8::from(watch.told)).maybe(watch.pipe),
    }
}

pub(super) fn read_generation(words: &mut Words) -> Result<SavedGeneration> {
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
            "signaled" => Some(Ending::Signaled(words.number()?)),
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
