//! A real systemd, booted as pid 1 of namespaces of its own, with the units of the test's folder.

use std::path::Path;
use std::{env, fs};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::cgroup::Cgroup;
use super::client::{self, Answer};
use super::namespace::in_network_of;
use super::process::{children, sockets};
use super::{Folder, Output, Run, Running, skip, wait_for};

const SYSTEMD: &str = "/lib/systemd/systemd";

/// What unshare runs for it.
const BOOT: &str = include_str!("boot-systemd.sh");

/// A running systemd. What is last is dropped last.
pub struct Systemd {
    pub pid: Pid,
    unshare: Option<Running>,
    _cgroup: Cgroup,
    pub folder: Folder,
}

impl Systemd {
    /// Boot one; none where that is not possible, which is said, or fails where the servers are required.
    pub fn boot(folder: Folder, units: &[(&str, String)]) -> Option<Systemd> {
        match Systemd::try_boot(folder, units) {
            Ok(systemd) => Some(systemd),
            Err(reason) if env::var_os("HANDOFF_REQUIRE_SERVERS").is_some() => panic!("no systemd: {reason}"),
            Err(reason) => {
                skip(&format!("no systemd: {reason}"));
                None
            }
        }
    }

    fn try_boot(folder: Folder, units: &[(&str, String)]) -> Result<Systemd, String> {
        if !geteuid().is_root() {
            return Err("it needs root".into());
        }
        let missing =
            [SYSTEMD, "/usr/bin/unshare", "/usr/bin/nsenter"].into_iter().find(|file| !Path::new(file).exists());
        if let Some(file) = missing {
            return Err(format!("{file} is missing"));
        }
        fs::create_dir(folder.path("units")).unwrap();
        fs::write(folder.path("units/test.target"), "[Unit]\nDefaultDependencies=no\n").unwrap();
        for (name, text) in units {
            fs::write(folder.path("units").join(name), text).unwrap();
        }
        let cgroup = Cgroup::below_ours(&folder)?;
        let namespaces = ["--pid", "--mount", "--uts", "--ipc", "--net", "--fork", "--kill-child"];
        let words = ["--propagation", "private", "sh", "-ec", BOOT, "sh", &cgroup.folder, &cgroup.path];
        let run = Run::of("unshare").args(&namespaces).args(&words).args(&[SYSTEMD]);
        // The test program may be killed, and its namespace is to go with it.
        // SAFETY: this operation of prctl takes integers.
        let die = || Errno::result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }).map(drop);
        let unshare = run.before_exec(move || Ok(die()?)).start();
        let private = |pid: &Pid| Path::new(&format!("/proc/{pid}/root/run/systemd/private")).exists();
        let pid = wait_for("systemd", || {
            if unshare.has_ended() {
                return Some(Err(fs::read_to_string(folder.path("systemd.log")).unwrap_or("unshare failed".into())));
            }
            children(unshare.pid()).first().copied().filter(private).map(Ok)
        });
        pid.map(|pid| Systemd { pid, unshare: Some(unshare), _cgroup: cgroup, folder })
    }

    /// Run something beside it.
    pub fn run(&self, words: &[&str]) -> Output {
        let pid = self.pid.to_string();
        Run::of("nsenter").args(&["-t", &pid, "-a"]).args(words).output()
    }

    pub fn systemctl(&self, words: &[&str]) -> Output {
        self.run(&[&["systemctl"], words].concat())
    }

    /// The same, to succeed.
    #[track_caller]
    pub fn succeed(&self, words: &[&str]) {
        let output = self.systemctl(words);
        assert_eq!(output.failure(), (0, ""), "{words:?}: {}", self.log());
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.systemctl(&["show", "--value", "-p", name, unit]).stdout.trim().to_owned()
    }

    pub fn wait_for(&self, unit: &str, name: &str, value: &str) {
        wait_for(value, || (self.property(unit, name) == value).then_some(()));
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path("systemd.log")).unwrap()
    }

    /// The answer to a client at a socket of this name in the folder, once it gets one.
    pub fn answer(&self, socket: &str) -> Answer {
        wait_for("an answer", || client::ask(&self.folder.text(socket)).ok())
    }

    /// Wait until this generation answers.
    pub fn wait_generation(&self, generation: u64) {
        wait_for("the generation", || (self.answer("s").generation == generation).then_some(()));
    }

    /// Do it in a thread that is in its network, whose loopback interface is up then.
    pub fn in_network<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        assert_eq!(self.run(&["ip", "link", "set", "lo", "up"]).failure(), (0, ""));
        in_network_of(self.pid, act)
    }

    /// The inodes of the sockets that it holds itself.
    pub fn sockets(&self) -> Vec<u64> {
        sockets(self.pid)
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // Everything in its namespace goes with it, and unshare when all is gone.
        let _ = kill(self.pid, Signal::SIGKILL);
        self.unshare.take().map(Running::status);
    }
}
