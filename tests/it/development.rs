//! The development loop: under load, sources are changed, broken and mended, and a reload builds and serves them, or
//! changes nothing. Ctrl-C ends all. No client sees any of that.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::signal::Signal;
use nix::unistd::{Pid, setsid};

use crate::harness::case::{CASE, Case, fill, is_installed};
use crate::harness::client::ask;
use crate::harness::process::{Session, all, descriptors};
use crate::harness::supervisor::Role;
use crate::harness::trial::free_port;
use crate::harness::{Folder, PROGRAM, Run, Supervisor, wait_for};
use crate::load::Load;

/// What one works on: a server of tests/servers/development.
struct Project {
    /// What builds and runs it.
    line: &'static str,
    /// What handoff-run needs for it.
    options: &'static str,
    needs: &'static [&'static str],
    source: &'static str,
    /// What is written about a source that begins with `oops oops`.
    complaint: &'static str,
    /// What is run before, so that the rest takes no longer than it does later.
    warm_up: &'static str,
}

const CARGO: Project = Project {
    line: "cargo run --offline",
    options: "",
    needs: &["cargo"],
    source: "main.rs",
    complaint: "error: expected",
    warm_up: "",
};

const GO: Project = Project {
    line: "go run main.go",
    options: "--no-pid",
    needs: &["go"],
    source: "main.go",
    complaint: "expected 'package'",
    warm_up: "go build -o /dev/null main.go",
};

const NODE: Project = Project {
    line: "node server.js",
    options: "",
    needs: &["node"],
    source: "server.js",
    complaint: "SyntaxError",
    warm_up: "",
};

const PYTHON: Project = Project {
    line: "python3 app.py",
    options: "",
    needs: &["python3"],
    source: "app.py",
    complaint: "SyntaxError",
    warm_up: "",
};

/// One that was begun, and its supervisor.
struct Begun {
    _session: Session,
    supervisor: Supervisor,
    address: SocketAddr,
}

/// A shell command in `folder`, in a session of its own, with the user's own tools.
fn shell(command: &str, folder: &Folder) -> Run {
    let program = Path::new(PROGRAM).parent().unwrap();
    let path = env::split_paths(&env::var_os("PATH").unwrap()).collect::<Vec<PathBuf>>();
    let run = Run::of("sh").args(&["-c", command]).current_dir(folder);
    run.env("PATH", env::join_paths([program.to_owned()].into_iter().chain(path)).unwrap())
        .env("CARGO_TARGET_DIR", folder.path("target"))
        .env("GOCACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/gocache"))
        .env("GOTOOLCHAIN", "local")
        .env("GO111MODULE", "off")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .before_exec(|| Ok(setsid().map(drop)?))
}

/// Where the line has its temporary files, whose name is two words.
fn temporary(folder: &Folder) -> PathBuf {
    folder.path("for now")
}

impl Project {
    /// Begin by a line of the manual, where @ADDR@ and @LINE@ are to be replaced.
    fn begin(&self, words: &str) -> Begun {
        let folder = Arc::new(Folder::new());
        let port = free_port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        fill(&folder, "development", port);
        fs::create_dir(temporary(&folder)).unwrap();
        let warm_up = shell(self.warm_up, &folder).output();
        assert!(warm_up.status.success(), "{warm_up:?}");
        let words = words.replace("@ADDR@", &address.to_string()).replace("@OPTIONS@", self.options);
        let line = format!("exec {words} {} >&2", self.line.replace("@PORT@", &port.to_string()));
        let run = shell(&line, &folder).env("TMPDIR", temporary(&folder));
        let mut supervisor = Supervisor::start(folder, run, Role::Supervisor);
        supervisor.expect_at(&address.to_string());
        supervisor.wait_ready(1);
        Begun { _session: Session(supervisor.pid), supervisor, address }
    }

    /// Change its source.
    fn edit(&self, begun: &Begun, change: impl FnOnce(&str) -> String) {
        let text = fs::read_to_string(begun.supervisor.folder.path(self.source)).unwrap();
        begun.supervisor.folder.write(self.source, &change(&text));
    }

    fn change(&self, begun: &Begun, from: u64, to: u64) {
        self.edit(begun, |text| text.replace(&format!("hello from {from}"), &format!("hello from {to}")));
    }

    fn spoil(&self, begun: &Begun) {
        self.edit(begun, |text| format!("oops oops\n{text}"));
    }

    fn mend(&self, begun: &Begun) {
        self.edit(begun, |text| text.trim_start_matches("oops oops\n").to_owned());
    }
}

impl Begun {
    /// The number in the source that serves.
    fn answer(&self) -> u64 {
        ask(&self.address.to_string()).unwrap().generation
    }

    /// Ctrl-C ends all, at once, and leaves nothing.
    fn interrupt(mut self) {
        let (code, log) = self.supervisor.end_by(Signal::SIGINT);
        assert_eq!(code, 0, "{log}");
        wait_for("all to be gone", || self._session.processes().is_empty().then_some(()));
        assert!(!log.contains("killed"), "{log}");
    }
}

/// The line of the manual.
const LINE: &str = "handoff-run -l @ADDR@ --supervise --control control --ready-timeout 1h --drain idle --drain-timeout 5s \
                    --settle 50ms @OPTIONS@ --";

/// Change, break and mend the source under load.
fn work_on(project: &Project) {
    if !is_installed(&Case { needs: project.needs, ..CASE }) {
        return;
    }
    let begun = project.begin(LINE);
    let supervisor = &begun.supervisor;
    let ((), report) = Load::lasting(begun.address).during(|| {
        assert_eq!(begun.answer(), 1);
        project.change(&begun, 1, 2);
        assert_eq!(supervisor.reload().failure(), (0, ""), "{}", supervisor.log());
        assert_eq!(begun.answer(), 2);
        assert!(!supervisor.log().contains(project.complaint), "{}", supervisor.log());
        project.spoil(&begun);
        let output = supervisor.reload();
        assert_eq!(output.code(), 1, "{output:?} {}", supervisor.log());
        supervisor.wait_log(project.complaint);
        assert_eq!(begun.answer(), 2);
        project.mend(&begun);
        project.change(&begun, 2, 3);
        assert_eq!(supervisor.reload().failure(), (0, ""), "{}", supervisor.log());
        assert_eq!(begun.answer(), 3);
    });
    assert_eq!(report.failed(), 0, "{report:?} {}", supervisor.log());
    // The load may end before the last one has answered it.
    assert!(report.by_body.len() > 1, "{report:?}");
    begun.interrupt();
}

#[test]
fn cargo_run_of_a_server_that_takes_its_socket() {
    work_on(&CARGO);
}

#[test]
fn cargo_run_of_one_that_opens_its_port_itself() {
    work_on(&Project { line: "cargo run --offline -- @PORT@", options: "--intercept", ..CARGO });
}

// It forks: LISTEN_PID would name the wrong process.
#[test]
fn go_run_of_a_server_that_takes_its_socket() {
    work_on(&GO);
}

#[test]
fn go_run_of_one_that_opens_its_port_itself() {
    work_on(&Project { line: "go run main.go @PORT@", options: "--intercept", ..GO });
}

#[test]
fn go_build_and_the_program_itself() {
    work_on(&Project { line: "sh -c 'go build -o server main.go && exec ./server'", options: "", ..GO });
}

#[test]
fn node_with_a_server_that_takes_its_socket() {
    work_on(&NODE);
}

#[test]
fn npm_start_of_one_that_opens_its_port_itself() {
    work_on(&Project { line: "npm start", options: "--intercept", needs: &["node", "npm"], ..NODE });
}

// npm closes descriptors below 100.
#[test]
fn npm_run_of_one_that_takes_its_socket() {
    work_on(&Project { line: "npm run handed", options: "--first-fd 100", needs: &["node", "npm"], ..NODE });
}

#[test]
fn python_with_a_server_that_takes_its_socket() {
    work_on(&PYTHON);
}

#[test]
fn python_with_one_that_opens_its_port_itself() {
    work_on(&Project { line: "python3 app.py @PORT@", options: "--intercept", ..PYTHON });
}

#[test]
fn flask_run() {
    let needs = &["flask"];
    work_on(&Project { line: "flask --app app run --port @PORT@", options: "--intercept", needs, ..PYTHON });
}

#[test]
fn ctrl_c_during_a_build_ends_that_too() {
    let line = "sh -c 'test ! -e slow || sleep 1000; exec python3 app.py'";
    let begun = Project { line, ..PYTHON }.begin(LINE);
    begun.supervisor.folder.open("slow");
    let reload = begun.supervisor.command("--reload", &[]).start();
    begun.supervisor.generation(2);
    begun.interrupt();
    assert_eq!(reload.output().failure(), (125, "handoff-run: the supervisor is stopping\n"));
}

/// How many files entr watches that was started in this folder.
fn watched(folder: &Folder) -> usize {
    let is_there = |pid: &Pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder.path(""));
    let is_entr = |pid: &Pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "entr\n");
    let entr = all().filter(|pid| is_entr(pid) && is_there(pid));
    let infos =
        entr.flat_map(|pid| descriptors(pid).into_iter().map(move |(fd, _)| format!("/proc/{pid}/fdinfo/{fd}")));
    infos.map(|info| fs::read_to_string(info).unwrap_or_default().matches("inotify wd:").count()).sum()
}

/// examples/development/watch, which asks for reloads itself.
#[test]
fn the_example_watches_the_sources_builds_what_has_changed_and_ends_with_ctrl_c() {
    if !is_installed(&Case { needs: &["entr", "git", "python3"], ..CASE }) {
        return;
    }
    let watch = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/development/watch @ADDR@ --settle 50ms @OPTIONS@ --");
    let warm_up = "git init -q . && printf '%s\n' log 'for now' '*.new' >.gitignore && touch grün.py";
    let begun = Project { warm_up, ..PYTHON }.begin(watch);
    let sources = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/development")).unwrap().count();
    // These, the two above, and their folder.
    wait_for("the sources to be watched", || (watched(&begun.supervisor.folder) >= sources + 3).then_some(()));
    let serves = |number: u64| wait_for("the answer", || (begun.answer() == number).then_some(()));
    let ((), report) = Load::lasting(begun.address).during(|| {
        PYTHON.change(&begun, 1, 2);
        serves(2);
        PYTHON.spoil(&begun);
        begun.supervisor.wait_log(PYTHON.complaint);
        assert_eq!(begun.answer(), 2);
        PYTHON.mend(&begun);
        PYTHON.change(&begun, 2, 3);
        serves(3);
    });
    assert_eq!(report.failed(), 0, "{report:?}");
    // For each time that a file was written one for its new name and one for its old, at most.
    assert!(!begun.supervisor.log().contains("generation 10: started"), "{}", begun.supervisor.log());
    let folder = begun.supervisor.folder.clone();
    begun.interrupt();
    // Its folder with the control socket goes last.
    wait_for("the watcher to end", || fs::read_dir(temporary(&folder)).unwrap().next().is_none().then_some(()));
}
