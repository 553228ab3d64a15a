//! The soak itself: load, deploys and faults at once, between two looks at what the supervisor has.

use std::io::PipeWriter;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

use super::causes::Records;
use super::clock::Time;
use super::faults::{Fault, Kind, Scene};
use super::random::Random;
use super::site::Site;
use super::summary::Summary;
use super::supervisor::{self, Supervisor};
use super::usage::{self, Usage};
use super::{Request, deploys, diary, load};

/// Time from one fault to the next, if they do not take longer.
const INTERVAL: Duration = Duration::from_secs(10);
/// More deploys than there are in a drain timeout.
pub const WARM_UP: u64 = 8;

/// Start the supervisor, do all that was asked for, and stop it.
pub fn run(
    request: &Request,
    site: &Site,
    interrupts: &SignalFd,
    stderr: PipeWriter,
    reads: &AtomicBool,
    start: Time,
) -> Result<Summary> {
    let (pid, all, stop) = (AtomicI32::new(0), Mutex::new(Vec::new()), AtomicBool::new(false));
    let mut random = Random::new(request.seed);
    let mut supervisor = Supervisor::start(site, &pid, stderr)?;
    warm_up(site, (request.time.as_secs() / 2).min(WARM_UP))?;
    supervisor.await_drained()?;
    let before = Usage::of(supervisor.pid(), site)?;
    let (target, deploying) = (site.target(), Random::new(random.below(u64::MAX)));
    let mut scene = Scene { site, supervisor, deploys: &all, reads, random };
    let mut faults = Vec::new();
    let (tally, struck) = thread::scope(|scope| {
        let load = scope.spawn(|| load::run(&target, &stop));
        let deployer = scope.spawn(|| deploys::run(site, &pid, deploying, &all, &stop));
        let struck = strike(&mut scene, request, interrupts, &mut faults, start);
        stop.store(true, Ordering::Relaxed);
        deployer.join().ok().context("the deployer panicked")??;
        Ok::<_, Error>((load.join().ok().context("the load panicked")?, struck))
    })?;
    let after = struck.and_then(|()| finish(&mut scene));
    let (deploys, lives) = (all.into_inner()?, diary::all(&site.diaries)?);
    let records = Records { faults: &faults, deploys: &deploys, lives: &lives };
    Ok(Summary::new(&records, tally, before, after, start))
}

/// Deploy so often with a client on each generation, so that the supervisor has by then whatever it opens only once, and a
/// slot for each generation that will ever drain at a time.
fn warm_up(site: &Site, deploys: u64) -> Result<()> {
    let mut held = Vec::new();
    for _ in 0..deploys {
        held.push(TcpStream::connect(("127.0.0.1", site.port))?);
        let deploy = deploys::reload(site, "good")?;
        ensure!(deploy.status == 0, "{}", deploy.words);
    }
    Ok(())
}

/// Strike now and then; the first fault that the supervisor does not survive is the last, as is one with an interrupt. What
/// runs then ends with its values.
fn strike(
    scene: &mut Scene,
    request: &Request,
    interrupts: &SignalFd,
    done: &mut Vec<Fault>,
    start: Time,
) -> Result<()> {
    let mut drawn: Vec<Kind> = Vec::new();
    let (begun, mut next) = (Instant::now(), INTERVAL.min(request.time / 2));
    while next < request.time {
        while begun.elapsed() < next {
            thread::sleep(Duration::from_millis(50));
            ensure!(interrupts.read_signal()?.is_none(), "interrupted");
            usage::reap();
        }
        if drawn.is_empty() {
            drawn.clone_from(&request.faults);
            drawn.retain(|kind| scene.site.is_small || *kind != Kind::FullDisk);
            scene.random.shuffle(&mut drawn);
        }
        let Some(kind) = drawn.pop() else { break };
        let fault = scene.strike(kind)?;
        let times = [fault.begun, fault.gone, fault.ended].map(|time| (time - start).as_secs_f64());
        let (victims, held, generations) = (&fault.victims, fault.held.len(), fault.states.len());
        eprintln!("{times:.3?} {kind:?} {victims:?}, holding {held} connections, of {generations} generations");
        done.push(fault);
        next = begun.elapsed().max(next + INTERVAL);
    }
    Ok(())
}

/// Wait for the peace after it, and stop; what there was of everything in between.
fn finish(scene: &mut Scene) -> Result<Usage> {
    let last = deploys::reload(scene.site, "good")?;
    ensure!(last.status == 0, "the last deploy: {}", last.words);
    scene.supervisor.await_drained()?;
    end_left(scene.site)?;
    let usage = Usage::of(scene.supervisor.pid(), scene.site)?;
    let stop = supervisor::ask(scene.site, &["--stop"], &[])?;
    ensure!(stop.status.success(), "--stop: {}, {}", stop.status, String::from_utf8_lossy(&stop.stderr));
    let status = scene.supervisor.end()?;
    ensure!(status.success(), "the supervisor ended, {status}");
    usage::reap();
    let left = usage::children(Pid::this());
    ensure!(left.is_empty(), "after the end there still are {left:?}");
    Ok(usage)
}

/// End the releases that do not stop and that drained, without a socket, when their supervisor was killed: its successor does
/// not know them (handoff-run(1), TAKEOVER).
fn end_left(site: &Site) -> Result<()> {
    let lives = diary::all(&site.diaries)?;
    let does_not_stop = |worker: &Pid| lives.get(&worker.as_raw()).is_some_and(|life| life.release == "stays");
    for worker in usage::children(Pid::this()).into_iter().flat_map(usage::children).filter(does_not_stop) {
        eprintln!("soak: {worker} does not stop, and was left by a supervisor that was killed");
        // Its main process ends with it.
        kill(worker, Signal::SIGKILL)?;
    }
    let start = Instant::now();
    while usage::children(Pid::this()).len() > 1 && start.elapsed() < INTERVAL {
        usage::reap();
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
