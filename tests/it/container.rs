//! examples/container: what its Dockerfile makes and runs, by a container engine where one works, and in any case by chroot in
//! namespaces: it serves, is deployed to, and drains.
//!
//! HANDOFF_ENGINE names another engine than docker, with the same commands.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{env, fs};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::client::{Client, ask};
use crate::harness::namespace::in_network_of;
use crate::harness::process::name;
use crate::harness::run::copy_program;
use crate::harness::server::hello;
use crate::harness::supervisor::Role;
use crate::harness::{Folder, Output, PROGRAM, Run, Running, Supervisor, is_root_to, skip, wait_for};
use crate::load::Load;

const DOCKERFILE: &str = include_str!("../../examples/container/Dockerfile");
const ADDRESS: &str = "127.0.0.1:8000";

/// What the Dockerfile says behind each of these words.
fn lines(instruction: &str) -> impl Iterator<Item = &'static str> {
    DOCKERFILE.lines().filter_map(move |line| line.strip_prefix(instruction)?.strip_prefix(' '))
}

/// The words of the ENTRYPOINT.
fn entry_point() -> Vec<String> {
    serde_json::from_str(lines("ENTRYPOINT").next().unwrap()).unwrap()
}

/// A folder that is the context of a build, with a release that is to be the container's /srv/app.
fn context() -> Arc<Folder> {
    let folder = Folder::new();
    folder.write("Dockerfile", DOCKERFILE);
    copy_program(PROGRAM, folder.path("handoff-run"));
    copy_program(hello(), folder.path("server"));
    fs::create_dir_all(folder.path("app/current")).unwrap();
    copy_program(hello(), folder.path("app/current/server"));
    Arc::new(folder)
}

/// A container that runs.
trait Container {
    /// Its process 1, as seen from outside.
    fn init(&self) -> Pid;
    fn folder(&self) -> &Folder;
    /// As docker exec does it.
    fn exec(&self, words: &[&str]) -> Output;
    /// As docker stop does it.
    fn stop(&mut self);
    /// Its exit status, when it has ended.
    fn end(&mut self) -> i32;
    fn log(&self) -> String;
}

/// One by chroot in namespaces, whose root has what the Dockerfile says.
struct Chroot(Supervisor);

/// The root of the folder, with the release, in namespaces of its own.
const ENTER: &str = r#"
mount --bind app root/srv/app
mount -t proc proc root/proc
ip link set lo up
exec unshare --root root --wd "$@""#;

impl Chroot {
    fn start(folder: Arc<Folder>) -> Chroot {
        let root = folder.path("root");
        let inside = |path: &str| root.join(path.trim_start_matches('/'));
        assert_eq!(lines("FROM").collect::<Vec<_>>(), ["scratch"]);
        for (from, to) in lines("COPY").map(|line| line.split_once(' ').unwrap()) {
            fs::create_dir_all(inside(to).parent().unwrap()).unwrap();
            copy_program(folder.path(from), inside(to));
        }
        let work = lines("WORKDIR").next().unwrap();
        [work, "/proc"].iter().for_each(|path| fs::create_dir_all(inside(path)).unwrap());
        let namespaces = ["--pid", "--mount", "--net", "--uts", "--ipc", "--fork", "--kill-child"];
        let run = Run::of("unshare").args(&namespaces).args(&["sh", "-ec", ENTER, "sh", work]).args(&entry_point());
        let supervisor = Supervisor::start(folder.clone(), run.current_dir(&*folder), Role::Init);
        wait_for("the entry point", || (name(supervisor.pid) == "handoff-run").then_some(()));
        Chroot(supervisor)
    }
}

impl Container for Chroot {
    fn init(&self) -> Pid {
        self.0.pid
    }

    fn folder(&self) -> &Folder {
        &self.0.folder
    }

    fn exec(&self, words: &[&str]) -> Output {
        Run::of("nsenter").args(&["-t", &self.0.pid.to_string(), "-a", "--root", "--wd"]).args(words).output()
    }

    fn stop(&mut self) {
        self.0.signal(Signal::SIGTERM);
    }

    fn end(&mut self) -> i32 {
        self.0.end().0
    }

    fn log(&self) -> String {
        self.0.log()
    }
}

/// One of a container engine; it is removed with the value, and so is its image.
struct Engine {
    engine: String,
    folder: Arc<Folder>,
    name: String,
    init: Pid,
    stop: Option<Running>,
}

impl Engine {
    fn start(engine: &str, folder: Arc<Folder>) -> Engine {
        let name = folder.as_ref().as_ref().file_name().unwrap().to_str().unwrap().to_owned();
        let mut started =
            Engine { engine: engine.to_owned(), folder, name: name.clone(), init: Pid::from_raw(0), stop: None };
        started.succeed(&["build", "--tag", &name, &started.folder.text("")]);
        let release = format!("{}:/srv/app:ro", started.folder.text("app"));
        started.succeed(&["run", "--detach", "--name", &name, "--network", "none", "--volume", &release, &name]);
        let init = started.succeed(&["inspect", "--format", "{{.State.Pid}}", &name]);
        started.init = Pid::from_raw(init.trim().parse().unwrap());
        started
    }

    fn run(&self, words: &[&str]) -> Run {
        // BuildKit is a program of its own, which may be missing.
        Run::of(&self.engine).args(words).env("DOCKER_BUILDKIT", "0")
    }

    /// The same, to succeed.
    #[track_caller]
    fn succeed(&self, words: &[&str]) -> String {
        let output = self.run(words).output();
        assert!(output.status.success(), "{words:?}: {output:?}");
        output.stdout
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.run(&["rm", "--force", &self.name]).output();
        self.run(&["rmi", "--force", &self.name]).output();
    }
}

impl Container for Engine {
    fn init(&self) -> Pid {
        self.init
    }

    fn folder(&self) -> &Folder {
        &self.folder
    }

    fn exec(&self, words: &[&str]) -> Output {
        self.run(&[&["exec", self.name.as_str()], words].concat()).output()
    }

    fn stop(&mut self) {
        self.stop = Some(self.run(&["stop", "--time", "30", &self.name]).start());
    }

    fn end(&mut self) -> i32 {
        assert!(self.stop.take().unwrap().output().status.success());
        self.succeed(&["inspect", "--format", "{{.State.ExitCode}}", &self.name]).trim().parse().unwrap()
    }

    fn log(&self) -> String {
        let output = self.run(&["logs", &self.name]).output();
        output.stdout + &output.stderr
    }
}

/// Serve, deploy, fail, drain: what the comments of the Dockerfile promise.
fn keeps_its_promises(container: &mut (impl Container + Sync)) {
    in_network_of(container.init(), || {
        wait_for("an answer", || ask(ADDRESS).ok());
        let address: SocketAddr = ADDRESS.parse().unwrap();
        let ((), report) = Load::lasting(address).during(|| deploy(container));
        assert_eq!(report.failed(), 0, "{report:?} {}", container.log());
    });
    let mut held = in_network_of(container.init(), || Client::connect(ADDRESS).unwrap());
    held.send_part();
    let status = || container.exec(&["/handoff-run", "--status", "/run/app.ctl", "--json"]).stdout;
    wait_for("the client to be accepted", || status().contains("\"connections\":1").then_some(()));
    container.stop();
    wait_for("the stop", || container.log().contains("draining, 1 connection").then_some(()));
    assert_eq!(held.finish().unwrap().generation, 1);
    assert_eq!(container.end(), 0, "{}", container.log());
}

/// A release that is put into the volume, one that fails, and a hang-up.
fn deploy(container: &impl Container) {
    let reload = || container.exec(&["/handoff-run", "--reload", "/run/app.ctl"]);
    let serving = || ask(ADDRESS).unwrap().pid;
    let release = |program: &Path| {
        let new = container.folder().path("app/current/new");
        copy_program(program, &new);
        fs::rename(new, container.folder().path("app/current/server")).unwrap();
    };
    let first = serving();
    release(&hello());
    assert_eq!(reload().code(), 0, "{}", container.log());
    let second = serving();
    assert_ne!(second, first);
    // It is not static, and its loader is not there.
    release(&PathBuf::from("/bin/false"));
    assert_eq!(reload().code(), 1, "{}", container.log());
    assert_eq!(serving(), second);
    release(&hello());
    kill(container.init(), Signal::SIGHUP).unwrap();
    wait_for("the third", || (serving() != second).then_some(()));
}

#[test]
fn the_image_by_chroot_serves_is_deployed_to_and_drains() {
    if is_root_to("make namespaces") {
        keeps_its_promises(&mut Chroot::start(context()));
    }
}

#[test]
fn the_image_by_a_container_engine_serves_is_deployed_to_and_drains() {
    let engine = env::var("HANDOFF_ENGINE").unwrap_or("docker".to_owned());
    match Run::of("sh").args(&["-c", &format!("{engine} info")]).output().status.success() {
        true => keeps_its_promises(&mut Engine::start(&engine, context())),
        false => skip(&format!("{engine} does not work")),
    }
}
