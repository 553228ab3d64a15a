//! A supervisor in a folder of its own: looked at, asked, ended.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::client::{self, Answer, Client};
use super::run::code;
use super::socket::is_listening;
use super::{
    DEADLINE, Folder, Output, Run, Running, Server, handoff_run_with, log, process, server, try_for, wait_for,
};

/// What handoff-run is there.
#[derive(Clone, Copy, PartialEq)]
pub enum Role {
    Supervisor,
    /// It becomes the target, for there is no --supervise.
    Target,
    /// Either of them, as the first process of a PID namespace: the child of what is started.
    Init,
}

/// A running supervisor; with the value, everything it started ends.
pub struct Supervisor {
    pub folder: Arc<Folder>,
    pub pid: Pid,
    role: Role,
    /// Where it listens, if that is a path, which needs no log to be known.
    pub(super) path: Option<String>,
    running: Option<Running>,
}

impl Supervisor {
    /// Start one by a line that is complete, whose control socket is `control` in the folder.
    pub fn start(folder: Arc<Folder>, run: Run, role: Role) -> Supervisor {
        let log = File::create(folder.path("log")).unwrap();
        let running = run.stderr(log).start();
        let pid = match role {
            Role::Supervisor | Role::Target => running.pid(),
            Role::Init => wait_for("the first child", || process::children(running.pid()).first().copied()),
        };
        Supervisor { folder, pid, role, path: None, running: Some(running) }
    }

    /// It serves here, though it bound nothing.
    pub fn expect_at(&mut self, address: &str) {
        self.path = Some(address.to_owned());
    }

    /// Everything on stderr so far, the generations' own words included.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path("log")).unwrap()).into_owned()
    }

    #[track_caller]
    pub fn wait_log(&self, text: &str) {
        self.wait_log_times(1, text);
    }

    /// Wait until this is in the log so often.
    #[track_caller]
    pub fn wait_log_times(&self, times: usize, text: &str) {
        self.wait_line(|log| (log.matches(text).count() >= times).then_some(()), text);
    }

    /// Wait until the log has what is looked for, which `what` describes.
    #[track_caller]
    pub fn wait_line<T>(&self, find: impl Fn(&str) -> Option<T>, what: &str) -> T {
        let found = try_for(|| {
            let ended = self.has_ended();
            let found = find(&self.log());
            assert!(found.is_some() || !ended, "it ended without {what:?} in its log:\n{}", self.log());
            found
        });
        found.unwrap_or_else(|| panic!("waited {DEADLINE:?} for {what:?} in the log:\n{}", self.log()))
    }

    /// Wait until this generation is ready.
    #[track_caller]
    pub fn wait_ready(&self, generation: u64) {
        self.wait_log(&log::ready(generation));
    }

    #[track_caller]
    pub fn wait_draining(&self, generation: u64) {
        self.wait_log(&log::draining(generation));
    }

    #[track_caller]
    pub fn wait_gone(&self, generation: u64) {
        self.wait_log(&log::gone(generation));
    }

    /// The main process of a generation, once it is started.
    #[track_caller]
    pub fn generation(&self, id: u64) -> Pid {
        self.wait_line(|log| log::pid(log, id), &log::started(id))
    }

    /// How long a generation took to become ready, once it has.
    #[track_caller]
    pub fn seconds_to_ready(&self, generation: u64) -> f64 {
        self.wait_line(|log| log::seconds(log, generation), &log::ready(generation))
    }

    /// Where the first socket is bound.
    #[track_caller]
    pub fn address(&self) -> String {
        let Some(path) = &self.path else { return self.wait_line(log::address, "an address") };
        if path.starts_with('/') {
            wait_for("the socket", || is_listening(path).then_some(()));
        }
        path.clone()
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).unwrap();
    }

    /// `handoff-run --reload`, `--status` or `--stop` of this supervisor, and further options.
    pub fn command(&self, request: &str, options: &[&str]) -> Run {
        handoff_run_with(&[request, &self.folder.text("control")]).args(options)
    }

    pub fn reload(&self) -> Output {
        self.command("--reload", &[]).output()
    }

    pub fn reload_and_wait(&self) -> Output {
        self.command("--reload", &["--wait"]).output()
    }

    pub fn stop(&self) -> Output {
        self.command("--stop", &[]).output()
    }

    /// What `--status` shows, with these options.
    #[track_caller]
    pub fn status(&self, options: &[&str]) -> String {
        let output = self.command("--status", options).output();
        assert_eq!(output.failure(), (0, ""), "{}", self.log());
        output.stdout
    }

    /// The table of `--status`, a line of words each.
    pub fn table(&self) -> Vec<Vec<String>> {
        self.status(&[]).lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    }

    /// Generations with their states, in their order.
    pub fn states(&self) -> Vec<(u64, String)> {
        let number = |line: &Vec<String>| Some((line.first()?.parse().ok()?, line.get(2)?.clone()));
        self.table().iter().filter_map(number).collect()
    }

    /// A generation is not ready, though the supervisor has had many occasions to take it for ready: it answers, and has
    /// looked at the generation in between.
    #[track_caller]
    pub fn assert_keeps_starting(&self, generation: u64) {
        for _ in 0..20 {
            assert!(self.states().contains(&(generation, "starting".into())), "{}", self.log());
        }
    }

    /// Become the program at its path, and wait until that answers.
    #[track_caller]
    pub fn upgrade(&self) {
        let before = self.log().matches(log::UPGRADE).count();
        self.signal(Signal::SIGUSR2);
        self.wait_log_times(before + 1, log::UPGRADE);
        self.table();
    }

    /// The next generations are this, whose kind has to be the same.
    pub fn rewrite(&self, server: Server) {
        server.install(&self.folder);
    }

    /// The next generations are started from this file.
    pub fn point(&self, target: impl AsRef<Path>) {
        server::point(&self.folder, target.as_ref());
    }

    /// One client's answer.
    #[track_caller]
    pub fn answer(&self) -> Answer {
        client::ask(&self.address()).unwrap()
    }

    /// One client's answer: who gave it.
    #[track_caller]
    pub fn served_by(&self) -> Pid {
        self.answer().pid
    }

    /// A connection that some generation has accepted, and which one.
    #[track_caller]
    pub fn hold(&self) -> (Client, u64) {
        let mut client = Client::connect(&self.address()).unwrap();
        let answer = client.ask().unwrap();
        (client, answer.generation)
    }

    /// Its descriptors by what they lead to, when so many clients are connected to the control socket.
    pub fn descriptors(&self, clients: usize) -> Vec<String> {
        self.wait_clients(clients);
        process::descriptors(self.pid).into_iter().map(|(_, link)| link).collect()
    }

    /// Wait until a generation that drains accepts no more: it shares no socket with the one that serves.
    pub fn wait_no_accept(&self, draining: u64, serving: u64) {
        let of = |generation| process::sockets(self.generation(generation));
        wait_for("the old generation to accept no more", || {
            let ours = of(serving);
            (!ours.is_empty() && !of(draining).iter().any(|inode| ours.contains(inode))).then_some(())
        });
    }

    fn kill_generations(&self) {
        let ours = (*self.folder).as_ref().to_str();
        // A number may be another's by now.
        let is_ours = |pid: &Pid| process::variable(*pid, "FOLDER").as_deref() == ours;
        let left = log::pids(&self.log()).into_iter().filter(is_ours);
        for generation in left {
            let _ = killpg(generation, Signal::SIGKILL);
        }
    }

    fn has_ended(&self) -> bool {
        self.running.as_ref().is_none_or(Running::has_ended)
    }

    /// Wait for the end; the status and the whole log.
    pub fn end(&mut self) -> (i32, String) {
        let status = self.running.take().unwrap().status();
        (code(status), self.log())
    }

    /// The same after a signal.
    pub fn end_by(&mut self, signal: Signal) -> (i32, String) {
        self.signal(signal);
        self.end()
    }

    /// Stop it, which has to succeed, and give the log.
    #[track_caller]
    pub fn stopped(mut self) -> String {
        let output = self.stop();
        assert_eq!(output.failure(), (0, ""), "{}", self.log());
        let (code, log) = self.end();
        assert_eq!(code, 0, "{log}");
        log
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            // After a failure nothing more is waited for.
            if self.role == Role::Supervisor && !std::thread::panicking() && !running.has_ended() {
                self.signal(Signal::SIGCONT);
                // It drains what is killed already, and is asked again for what is left.
                self.signal(Signal::SIGQUIT);
                self.kill_generations();
                let mut asked = Instant::now();
                try_for(|| {
                    if asked.elapsed() > Duration::from_secs(1) {
                        self.signal(Signal::SIGQUIT);
                        asked = Instant::now();
                    }
                    running.has_ended().then_some(())
                });
                running.status();
            }
        }
        self.kill_generations();
    }
}
