//! A cgroup of a test's own, below that of the tests, and supervisors that see it as a container sees what is its own.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use nix::unistd::{Pid, geteuid};

use super::python::python;
use super::setup::{Setup, supervise_in};
use super::{Folder, PROGRAM, Run, Running, Server, skip, wait_for};

/// What is left in the tree of cgroups.
const CLEAR: &str = include_str!("clear-cgroup.sh");

/// Namespaces in which the cgroup is the root of what is mounted at /sys/fs/cgroup. The process that holds them is in a cgroup
/// of its own, for those that are to account for something may have none in their parent.
const HOLD: &str = r#"
mount -t tmpfs tmpfs /run
mount -t cgroup2 none "$1/cgroup"
mkdir "$1/cgroup$2"
echo $$ > "$1/cgroup$2/cgroup.procs"
exec unshare --cgroup sh -ec '
mount -t cgroup2 none /sys/fs/cgroup
mkdir /sys/fs/cgroup/beside
echo $$ > /sys/fs/cgroup/beside/cgroup.procs
touch "$1/held"
exec sleep 1000' sh "$1""#;

/// Begin in the cgroup $1, and be $3 and so on in the namespaces that $2 holds.
const BEGIN: &str = r#"
[ -d "$1" ] || mkdir "$1"
echo $$ > "$1/cgroup.procs"
holder=$2
shift 2
exec nsenter -t "$holder" -C -- "$@""#;

/// Mark a cgroup as systemd does one that it delegates.
const MARK: &str = "import os, sys; os.setxattr(sys.argv[1], 'user.delegate', b'1')";

/// A cgroup as a path from the root that we see, and the test's folder; removed at the end.
pub struct Cgroup {
    pub path: String,
    pub folder: String,
}

impl Cgroup {
    /// One that nobody has made yet, and a folder `cgroup` to mount what it is in.
    pub fn below_ours(folder: &Folder) -> Result<Cgroup, String> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).ok_or("there is no unified tree of cgroups")?;
        fs::create_dir(folder.path("cgroup")).unwrap();
        let name = folder.as_ref().file_name().unwrap().to_str().unwrap();
        let path = format!("{}/{name}", own.trim_end_matches('/'));
        Ok(Cgroup { path, folder: folder.as_ref().to_str().unwrap().to_owned() })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let words = ["--mount", "sh", "-ec", CLEAR, "sh", &self.folder, &self.path];
        let cleared = Run::of("timeout").args(&["30", "unshare"]).args(&words).output();
        // What failed before matters more.
        assert!(thread::panicking() || cleared.failure() == (0, ""), "{cleared:?}");
    }
}

/// One in which supervisors are started. What is last is dropped last.
pub struct Home {
    holder: Option<Running>,
    cgroup: Cgroup,
    pub folder: Arc<Folder>,
}

impl Home {
    /// None where cgroups cannot be made, which is said, or fails where all that is tested has to be there.
    pub fn make() -> Option<Home> {
        let folder = Arc::new(Folder::new());
        let possible = if geteuid().is_root() { Cgroup::below_ours(&folder) } else { Err("it needs root".into()) };
        match possible.and_then(|cgroup| Home::hold(cgroup, folder)) {
            Ok(home) => Some(home),
            Err(reason) if env::var_os("HANDOFF_REQUIRE_SERVERS").is_some() => panic!("no cgroup: {reason}"),
            Err(reason) => {
                skip(&format!("no cgroup: {reason}"));
                None
            }
        }
    }

    /// The same, with its root delegated.
    pub fn delegated() -> Option<Home> {
        let home = Home::make()?;
        home.mark("");
        Some(home)
    }

    fn hold(cgroup: Cgroup, folder: Arc<Folder>) -> Result<Home, String> {
        let words = ["--mount", "--propagation", "private", "sh", "-ec", HOLD, "sh", &cgroup.folder, &cgroup.path];
        let mut holder = Run::of("unshare").args(&words).start();
        let is_ended =
            wait_for("a cgroup", || (folder.path("held").exists() || holder.has_ended()).then(|| holder.has_ended()));
        if is_ended { Err(holder.error_output()) } else { Ok(Home { holder: Some(holder), cgroup, folder }) }
    }

    /// The process whose namespaces they are.
    fn holder(&self) -> Pid {
        self.holder.as_ref().unwrap().pid()
    }

    /// A file or a folder as it is seen in them.
    pub fn path(&self, name: &str) -> PathBuf {
        format!("/proc/{}/root/sys/fs/cgroup/{name}", self.holder()).into()
    }

    /// Something run beside the holder.
    pub fn run(&self, words: &[&str]) {
        let holder = self.holder().to_string();
        let output = Run::of("nsenter").args(&["-t", &holder, "-m", "-C", "--"]).args(words).output();
        assert_eq!(output.failure(), (0, ""), "{words:?}");
    }

    /// Have the cgroup of this name delegated.
    pub fn mark(&self, name: &str) {
        let cgroup = format!("/sys/fs/cgroup/{name}");
        self.run(&["mkdir", "-p", &cgroup]);
        self.run(&[python().to_str().unwrap(), "-c", MARK, &cgroup]);
    }

    /// A supervisor that begins in the cgroup of this name, or in the root of what it sees.
    pub fn supervise(&self, name: &str, server: Server, options: &[&str]) -> Setup {
        supervise_in(&self.folder, server, options).by(self.begin(name, &[PROGRAM]))
    }

    /// The same as the first process of a PID namespace.
    pub fn contain(&self, name: &str, server: Server, options: &[&str]) -> Setup {
        let contain = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", PROGRAM];
        let run = self.begin(name, &contain);
        supervise_in(&self.folder, server, options).by_parent(run)
    }

    /// Run this from the cgroup of this name on.
    fn begin(&self, name: &str, line: &[&str]) -> Run {
        let holder = self.holder().to_string();
        let begin = format!("{}/cgroup{}/{name}", self.cgroup.folder, self.cgroup.path);
        let folder = format!("--wdns={}", self.cgroup.folder);
        let words = ["-t", &holder, "-m", &folder, "--", "sh", "-ec", BEGIN, "sh", &begin, &holder];
        Run::of("nsenter").args(&words).args(line)
    }

    /// The cgroups in it, and those in them, by their paths, but for the holder's.
    pub fn cgroups(&self) -> Vec<String> {
        let mut found = vec![];
        let mut waiting = vec![String::new()];
        while let Some(name) = waiting.pop() {
            for entry in fs::read_dir(self.path(&name)).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() && entry.file_name() != "beside" {
                    let below = format!("{name}{}", entry.file_name().to_str().unwrap());
                    waiting.push(format!("{below}/"));
                    found.push(below);
                }
            }
        }
        found.sort();
        found
    }

    /// The processes in the cgroup of this name.
    pub fn processes(&self, name: &str) -> Vec<Pid> {
        let text = fs::read_to_string(self.path(&format!("{name}/cgroup.procs"))).unwrap_or_default();
        text.lines().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        drop(self.holder.take());
    }
}
