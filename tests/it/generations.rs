//! A real server under `handoff-run --supervise`: seen ready, reloaded, asked, stopped, gone.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use nix::unistd::Pid;

use crate::harness::{DEADLINE, Output, PROGRAM, handoff_run_with, wait_for};
use crate::servers::kernel::{accepted, listening};
use crate::servers::trial::{Case, Request, Server};

/// A supervisor and the generations of its server.
pub struct Supervised<'a>(Server<'a>);

impl Supervised<'_> {
    /// Start one with these options, in front of the server's line.
    pub fn start<'a>(case: &'a Case, options: &str) -> Supervised<'a> {
        Supervised::start_by("", case, options)
    }

    /// One that a wrapper becomes.
    pub fn start_by<'a>(wrapper: &str, case: &'a Case, options: &str) -> Supervised<'a> {
        Supervised(Server::start_with(case, &format!("{wrapper} {PROGRAM} --supervise --control ctl {options}")))
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.0.port))
    }

    /// All that the supervisor and its server have said.
    pub fn log(&self) -> String {
        self.0.log()
    }

    /// Wait until a line of the log has this, and give the line.
    #[track_caller]
    pub fn logged(&self, words: &str) -> String {
        wait_for(&format!("{words:?} in the log"), || {
            let log = self.log();
            let line = log.lines().find(|line| line.contains(words)).map(str::to_owned);
            assert!(line.is_some() || !self.0.session.processes().is_empty(), "it ended without {words:?}: {log}");
            line
        })
    }

    /// Wait until this generation is ready, and give the seconds it took.
    #[track_caller]
    pub fn ready(&self, generation: u32) -> f64 {
        seconds(&self.logged(&format!("generation {generation}: ready after ")))
    }

    /// Every process but the supervisor.
    pub fn processes(&self) -> Vec<Pid> {
        let supervisor = self.0.running.pid();
        self.0.session.processes().into_iter().filter(|pid| *pid != supervisor).collect()
    }

    /// Wait until nobody has anything to do: haproxy's master, for one, becomes itself anew once its worker serves, and
    /// forgets the signal that comes meanwhile.
    pub fn settle(&self) {
        let state = |pid: &Pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat[stat.rfind(')')? + 1..].trim_start().chars().next()
        };
        let sleeps = |pid: &Pid| state(pid).is_none_or(|state| state == 'S');
        wait_for("all to sleep", || self.processes().iter().all(sleeps).then_some(()));
    }

    /// The inode of the socket on its port.
    pub fn listener(&self) -> u64 {
        self.0.listener()
    }

    /// The TCP sockets that any of its processes listens on.
    pub fn listening(&self) -> Vec<u64> {
        listening(self.0.session.sockets())
    }

    /// What is said in answer to a request, from `hello` on; no answer at all fails the test.
    pub fn answer(&self) -> String {
        self.answer_to(self.0.ask(Request::Plain))
    }

    /// The same for the answer to a request that was sent.
    pub fn answer_to(&self, client: TcpStream) -> String {
        let answer = self.0.check_answer(client);
        answer[answer.find("hello").unwrap()..].to_owned()
    }

    /// A request that takes its time, sent, read by a process of the server's, and not yet answered; and that process.
    pub fn ask_slowly(&self, path: &str) -> (TcpStream, Pid) {
        let mut client = TcpStream::connect(self.address()).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        let holder = wait_for("the request to be under way", || {
            // It is a socket of the server's a moment before it has a descriptor.
            accepted(&client).and_then(|connection| self.0.session.holders(connection).pop())
        });
        (client, holder)
    }

    /// Change a file of the server's.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.0.folder.path(name), text).unwrap();
    }

    /// `--reload`, with these words more.
    pub fn reload(&self, words: &[&str]) -> Output {
        handoff_run_with(&[&["--reload", &self.0.folder.text("ctl")], words].concat()).output()
    }

    /// Reload, until the old generation is gone: nothing of it is left, and the new one, whose seconds to get ready
    /// are given, answers on the same socket.
    pub fn roll(&self) -> f64 {
        let (socket, old) = (self.listener(), self.processes());
        let output = self.reload(&["--wait"]);
        assert_eq!(output.failure(), (0, ""), "{}", self.log());
        let left: Vec<Pid> = self.processes().into_iter().filter(|pid| old.contains(pid)).collect();
        assert_eq!(left, [], "left of the old generation: {}", self.log());
        self.answer();
        assert_eq!(self.listening(), [socket], "{}", self.log());
        seconds(output.stdout.lines().find(|line| line.contains(": ready after ")).unwrap())
    }

    /// `--stop`: all drain, the supervisor ends with 0, and nothing is left.
    pub fn stop(self) {
        let output = handoff_run_with(&["--stop", &self.0.folder.text("ctl")]).output();
        assert_eq!(output.failure(), (0, ""), "{}", self.log());
        let log = self.log();
        assert_eq!(self.0.running.status().code(), Some(0), "{log}");
        wait_for("all its processes to end", || self.0.session.processes().is_empty().then_some(()));
    }
}

/// What a line says behind `ready after`.
fn seconds(line: &str) -> f64 {
    line.rsplit_once("ready after ").unwrap().1.trim_end_matches(" s").parse().unwrap()
}
