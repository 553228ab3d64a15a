//! The faults: what is done to whom, and when.

use std::collections::HashSet;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, ptr};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::clock::{Time, now};
use super::deploys::{self, Deploy, Deploys};
use super::peer;
use super::random::Random;
use super::site::{HANDOFF_RUN, Site};
use super::supervisor::{Generation, Supervisor};
use super::usage::children;

/// How long what is stopped, full, flooded or not read stays so.
const STOPPED: Duration = Duration::from_secs(2);
const FULL: Duration = Duration::from_secs(5);
const FLOOD: usize = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    KillWorker,
    KillMain,
    KillGroup,
    KillSupervisor,
    StopGroup,
    StopSupervisor,
    HangingRelease,
    DyingRelease,
    DyingLate,
    StayingRelease,
    FullDisk,
    NoDescriptors,
    Upgrade,
    Flood,
    LogNotRead,
}

pub const ALL: [Kind; 15] = [
    Kind::KillWorker,
    Kind::KillMain,
    Kind::KillGroup,
    Kind::KillSupervisor,
    Kind::StopGroup,
    Kind::StopSupervisor,
    Kind::HangingRelease,
    Kind::DyingRelease,
    Kind::DyingLate,
    Kind::StayingRelease,
    Kind::FullDisk,
    Kind::NoDescriptors,
    Kind::Upgrade,
    Kind::Flood,
    Kind::LogNotRead,
];

/// What was done.
#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: Kind,
    pub begun: Time,
    /// When all was as before.
    pub ended: Time,
    /// When the victims were stopped, and when they were killed, if they were.
    pub stopped: Time,
    pub killed: Time,
    /// When the victim's parent knew that it is gone, where that is us.
    pub gone: Time,
    pub victims: Vec<i32>,
    /// The states that `--status` showed just before.
    pub states: Vec<Generation>,
    /// The clients whose connections the victims held then.
    pub held: HashSet<String>,
}

/// What faults are done to.
pub struct Scene<'a> {
    pub site: &'a Site,
    pub supervisor: Supervisor<'a>,
    pub deploys: &'a Deploys,
    /// Whether the log is read.
    pub reads: &'a AtomicBool,
    pub random: Random,
}

impl Scene<'_> {
    /// Do it, and wait until the supervisor is as it was.
    pub fn strike(&mut self, kind: Kind) -> Result<Fault> {
        let states = self.supervisor.await_status()?;
        let at = now();
        let (victims, held) = (Vec::new(), HashSet::new());
        let mut fault = Fault { kind, begun: at, ended: at, stopped: at, killed: at, gone: at, victims, states, held };
        self.act(&mut fault).with_context(|| format!("{kind:?}"))?;
        self.supervisor.await_serving().with_context(|| format!("after {kind:?}"))?;
        fault.ended = now();
        Ok(fault)
    }

    fn act(&mut self, fault: &mut Fault) -> Result<()> {
        let serving = fault.states.iter().find(|one| one.state == "serving").context("nothing serves")?;
        let serving = Pid::from_raw(serving.pid);
        match fault.kind {
            Kind::KillWorker => kill_all(fault, None, children(serving)),
            Kind::KillMain => kill_all(fault, Some(serving), Vec::new()),
            Kind::KillGroup => kill_all(fault, Some(serving), children(serving)),
            Kind::KillSupervisor => self.kill_supervisor(fault),
            Kind::StopGroup => stop(fault, group(serving)),
            Kind::StopSupervisor => stop(fault, vec![self.supervisor.pid()]),
            Kind::HangingRelease => self.deploy("hangs"),
            Kind::DyingRelease => self.deploy("dies"),
            Kind::DyingLate => self.deploy("dies-late"),
            Kind::StayingRelease => self.deploy("stays"),
            Kind::FullDisk => self.fill_disk(),
            Kind::NoDescriptors => self.limit_descriptors(),
            Kind::Upgrade => self.upgrade(),
            Kind::Flood => self.flood(),
            Kind::LogNotRead => self.read_nothing(),
        }
    }

    fn kill_supervisor(&mut self, fault: &mut Fault) -> Result<()> {
        let supervisor = self.supervisor.pid();
        kill_all(fault, Some(supervisor), Vec::new())?;
        self.supervisor.end()?;
        fault.gone = now();
        // As long as one takes who sees that.
        thread::sleep(Duration::from_millis(self.random.below(1000)));
        self.supervisor.start_again()
    }

    /// Deploy a release that is not good, and let the next ones be good again.
    fn deploy(&mut self, release: &'static str) -> Result<()> {
        let mut all = self.deploys.lock().unwrap_or_else(PoisonError::into_inner);
        self.site.set_release(release)?;
        let deploy = deploys::reload(self.site, release);
        self.site.set_release("good")?;
        all.push(deploy?);
        Ok(())
    }

    fn fill_disk(&mut self) -> Result<()> {
        self.site.fill()?;
        thread::sleep(FULL);
        Ok(self.site.empty()?)
    }

    /// Let the supervisor open nothing beyond what it has open, and let clients of its control socket take what is free below.
    fn limit_descriptors(&mut self) -> Result<()> {
        let supervisor = self.supervisor.pid();
        let open = fs::read_dir(format!("/proc/{supervisor}/fd"))?;
        let highest = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok()).max();
        let before = limit(supervisor, highest.context("it has nothing open")? + 1)?;
        let control = self.site.path("control");
        let _clients: Vec<UnixStream> = (0..200).filter_map(|_| UnixStream::connect(&control).ok()).collect();
        thread::sleep(FULL);
        limit(supervisor, before).map(drop)
    }

    /// SIGUSR2 at some moment of a reload.
    fn upgrade(&mut self) -> Result<()> {
        let mut all = self.deploys.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = now();
        let mut command = Command::new(HANDOFF_RUN);
        command.arg("--reload").arg(self.site.path("control")).stdout(Stdio::null()).stderr(Stdio::piped());
        let reload = command.spawn()?;
        thread::sleep(Duration::from_millis(self.random.below(1800)));
        // Every exec has another, for its addresses are random.
        let image = || fs::read(format!("/proc/{}/auxv", self.supervisor.pid()));
        let before = image()?;
        kill(self.supervisor.pid(), Signal::SIGUSR2)?;
        let output = reload.wait_with_output()?;
        let start = Instant::now();
        while image()? == before {
            ensure!(start.elapsed() < FULL, "SIGUSR2 had no effect");
            thread::sleep(Duration::from_millis(20));
        }
        let words = String::from_utf8_lossy(&output.stderr).trim_end().replace('\n', " | ");
        let status = output.status.code().unwrap_or(-1);
        all.push(Deploy { release: "good", begun, ended: now(), status, words });
        Ok(())
    }

    /// Connections that say nothing, and some that say what nobody understands.
    fn flood(&mut self) -> Result<()> {
        let (start, mut held) = (Instant::now(), Vec::new());
        while start.elapsed() < FULL {
            if held.len() < FLOOD {
                let mut client = UnixStream::connect(self.site.path("control"))?;
                client.set_nonblocking(true)?;
                if held.len() % 2 == 0 {
                    // It may be closed by now.
                    let _ = client.write_all(&[b'x'; 100]);
                }
                held.push(client);
            } else {
                held.clear();
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn read_nothing(&mut self) -> Result<()> {
        self.reads.store(false, Ordering::Relaxed);
        thread::sleep(FULL);
        self.reads.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// A generation's processes, the main one last.
fn group(main: Pid) -> Vec<Pid> {
    [children(main), vec![main]].concat()
}

/// Kill a process and those beside it; what they hold is looked at while they are stopped.
///
/// The main process holds no connection, and one that is stopped is noticed by the supervisor, so it is killed as it is.
fn kill_all(fault: &mut Fault, main: Option<Pid>, workers: Vec<Pid>) -> Result<()> {
    fault.stopped = now();
    for worker in &workers {
        kill(*worker, Signal::SIGSTOP)?;
        await_stopped(*worker)?;
        fault.held.extend(peer::held_by(*worker)?);
    }
    fault.killed = now();
    for victim in main.into_iter().chain(workers) {
        kill(victim, Signal::SIGKILL)?;
        fault.victims.push(victim.as_raw());
    }
    ensure!(!fault.victims.is_empty(), "no victim");
    Ok(())
}

/// Stop them for a while.
fn stop(fault: &mut Fault, victims: Vec<Pid>) -> Result<()> {
    fault.stopped = now();
    for victim in &victims {
        kill(*victim, Signal::SIGSTOP)?;
        fault.victims.push(victim.as_raw());
    }
    thread::sleep(STOPPED);
    for victim in victims {
        // The supervisor may have given it up.
        let _ = kill(victim, Signal::SIGCONT);
    }
    Ok(())
}

fn await_stopped(pid: Pid) -> Result<()> {
    for _ in 0..1000 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        if stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
    bail!("{pid} does not stop")
}

/// Give a running process this limit of open files, and return the one it had.
fn limit(pid: Pid, files: u64) -> Result<u64> {
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes limits, which live through the call.
    Errno::result(unsafe { libc::prlimit(pid.as_raw(), libc::RLIMIT_NOFILE, ptr::null(), &raw mut old) })?;
    let new = libc::rlimit { rlim_cur: files, ..old };
    // SAFETY: the kernel reads limits, which live through the call.
    Errno::result(unsafe { libc::prlimit(pid.as_raw(), libc::RLIMIT_NOFILE, &raw const new, ptr::null_mut()) })?;
    Ok(old.rlim_cur)
}
