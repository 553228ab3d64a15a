//! The supervisor: started, asked, looked at; and the log that it writes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::os::fd::AsFd;
use std::process::{Command, ExitStatus, Output};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::unistd::Pid;
use serde_json::Value;

use super::clock::{Time, now};
use super::session::Session;
use super::site::{HANDOFF_RUN, Site};

/// How long the supervisor may take to be as it was, after whatever was done to it.
const DEADLINE: Duration = Duration::from_secs(40);

pub struct Supervisor<'a> {
    site: &'a Site,
    /// For other threads.
    pid: &'a AtomicI32,
    stderr: PipeWriter,
    /// The last is its own. What others left, which were killed, is in theirs, and serves on.
    sessions: Vec<Session>,
}

/// A line of `--status`.
#[derive(Clone, Debug)]
pub struct Generation {
    pub number: u64,
    pub pid: i32,
    pub state: String,
}

impl<'a> Supervisor<'a> {
    /// Start it, from the thread with whose end it is to end, and wait until it serves.
    pub fn start(site: &'a Site, pid: &'a AtomicI32, stderr: PipeWriter) -> Result<Supervisor<'a>> {
        let mut supervisor = Supervisor { site, pid, stderr, sessions: Vec::new() };
        supervisor.start_again()?;
        supervisor.await_serving()?;
        Ok(supervisor)
    }

    /// The same line once more, after the supervisor was killed.
    pub fn start_again(&mut self) -> Result<()> {
        let session = Session::start(self.site.command()?.stderr(self.stderr.try_clone()?))?;
        self.pid.store(session.id().as_raw(), Ordering::Relaxed);
        self.sessions.push(session);
        Ok(())
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.pid.load(Ordering::Relaxed))
    }

    fn current(&mut self) -> Result<&mut Session> {
        self.sessions.last_mut().context("a supervisor was started")
    }

    pub fn end(&mut self) -> Result<ExitStatus> {
        self.current()?.end()
    }

    pub fn check(&mut self) -> Result<()> {
        match self.current()?.has_ended()? {
            Some(status) => bail!("the supervisor has ended, {status}"),
            None => Ok(()),
        }
    }

    /// All generations, one of which serves.
    pub fn await_status(&mut self) -> Result<Vec<Generation>> {
        let serves = |all: &[Generation]| all.iter().any(|one| one.state == "serving").then(|| all.to_vec());
        self.wait("a generation to serve", serves)
    }

    /// Wait until one generation serves, and nothing is under way.
    pub fn await_serving(&mut self) -> Result<u64> {
        let serves = |all: &[Generation]| all.iter().find(|one| one.state == "serving").map(|one| one.number);
        let busy = |all: &[Generation]| all.iter().any(|one| ["starting", "standing-by"].contains(&&*one.state));
        self.wait("a generation to serve", |all| if busy(all) { None } else { serves(all) })
    }

    /// Wait until there is only the generation that serves.
    pub fn await_drained(&mut self) -> Result<()> {
        self.wait("all to be drained", |all| (all.len() == 1 && all[0].state == "serving").then_some(()))
    }

    fn wait<T>(&mut self, what: &str, fact: impl Fn(&[Generation]) -> Option<T>) -> Result<T> {
        let start = Instant::now();
        loop {
            self.check()?;
            let status = status(self.site);
            if let Some(found) = status.as_ref().ok().and_then(|all| fact(all)) {
                return Ok(found);
            }
            ensure!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}: {status:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What `--status` has.
pub fn status(site: &Site) -> Result<Vec<Generation>> {
    let output = ask(site, &["--status"], &["--json"])?;
    ensure!(output.status.success(), "--status: {}", String::from_utf8_lossy(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout)?;
    let generation = |one: &Value| {
        Some(Generation {
            number: one["generation"].as_u64()?,
            pid: one["pid"].as_i64()? as i32,
            state: one["state"].as_str()?.into(),
        })
    };
    all["generations"].as_array().context("no generations")?.iter().map(generation).collect::<Option<_>>().context("?")
}

/// `handoff-run REQUEST control …`
pub fn ask(site: &Site, request: &[&str], options: &[&str]) -> io::Result<Output> {
    Command::new(HANDOFF_RUN).args(request).arg(site.path("control")).args(options).output()
}

/// Read what the supervisor logs, and keep it with the time in front, as long as `reads`.
pub fn keep_log(from: PipeReader, to: &mut File, start: Time, reads: &AtomicBool, stop: &AtomicBool) -> io::Result<()> {
    // The smallest there is: one who does not read it fills it in no time.
    fcntl(&from, FcntlArg::F_SETPIPE_SZ(4096))?;
    let mut from = BufReader::with_capacity(256, from);
    let mut line = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let mut input = [PollFd::new(from.get_ref().as_fd(), PollFlags::POLLIN)];
        let is_ready = !from.buffer().is_empty() || poll(&mut input, 20u16)? > 0;
        if reads.load(Ordering::Relaxed) && is_ready {
            line.clear();
            if from.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            write!(to, "{:.4} ", (now() - start).as_secs_f64())?;
            to.write_all(&line)?;
        } else if !reads.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}
