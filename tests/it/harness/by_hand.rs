//! A server that somebody started without us, and programs that succeed it.

use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::{Answer, ask};
use super::process::{self, copy_of};
use super::socket::option;
use super::{Folder, PROGRAM, Run, Running, Server, server, try_for, wait_for};

/// It opens its address itself, and answers as generation 0.
pub struct ByHand {
    pub folder: Arc<Folder>,
    pub running: Running,
    /// Where its first socket is.
    pub address: String,
}

/// One in Python that opens a free port of 127.0.0.1, and then does this.
pub fn by_hand(code: &str) -> ByHand {
    by_hand_at("127.0.0.1:0", code)
}

/// The same at an address or a path.
pub fn by_hand_at(address: &str, code: &str) -> ByHand {
    let family = if address.starts_with('[') { "socket.AF_INET6" } else { "socket.AF_INET" };
    let family = if address.starts_with(['/', '@']) { "socket.AF_UNIX" } else { family };
    by_hand_with(address, &format!("s = opened({family})\n{code}"), |run| run)
}

/// The same where its `s` is yet to be opened, and with what `change` makes of its start.
pub fn by_hand_with(address: &str, code: &str, change: impl FnOnce(Run) -> Run) -> ByHand {
    let folder = Arc::new(Folder::new());
    // Where the code begins to serve, it has its address.
    let noted = "\nname = s.getsockname()\nname = name.decode().replace('\\0', '@') if isinstance(name, bytes) else name\nhost = name if isinstance(name, (str, bytes)) else '[%s]' % name[0] if ':' in \
                 name[0] else name[0]\nmark('address', host if host is name else f'{host}:{name[1]}')\n";
    let (open, rest) = code.split_once('\n').unwrap_or((code, ""));
    let line = Server::Python(&format!("{open}{noted}{rest}")).install(&folder);
    let run = Run::of(&line[0]).args(&line[1..]).current_dir(&*folder);
    let run = run.env("GENERATION", "0").env("FOLDER", folder.path("")).env("ADDRESS", address).env("SOCKET", "");
    let running = change(run).start();
    let address = folder.read("address");
    ByHand { folder, running, address }
}

impl ByHand {
    pub fn pid(&self) -> Pid {
        self.running.pid()
    }

    pub fn answer(&self) -> Answer {
        ask(&self.address).unwrap()
    }

    /// It serves, alone, and was told nothing: SIGTERM would have ended it. Its socket is as it was.
    #[track_caller]
    pub fn assert_untouched(&self) {
        assert!(!self.running.has_ended());
        wait_for("what was set on its socket to be put back", || (self.reuseport() == 0).then_some(()));
        for _ in 0..20 {
            assert_eq!(self.answer().pid, self.pid());
        }
    }

    /// SO_REUSEPORT of its sockets, where any has it.
    pub fn reuseport(&self) -> i32 {
        let copies = process::sockets(self.pid()).into_iter().filter_map(|inode| copy_of(self.pid(), inode));
        copies.map(|copy| option(&copy, libc::SOL_SOCKET, libc::SO_REUSEPORT)).max().unwrap_or(0)
    }

    /// What succeeds it by `--from WHO`, without a supervisor, with these options.
    pub fn succeed(&self, who: &str, options: &[&str], server: Server) -> Successor {
        self.succeed_by(Run::of(PROGRAM), who, options, server)
    }

    /// The same by a run of handoff-run that was begun.
    pub fn succeed_by(&self, run: Run, who: &str, options: &[&str], server: Server) -> Successor {
        succeed(run, &self.address, who, options, server)
    }

    /// Wait until it has ended.
    #[track_caller]
    pub fn wait_end(&self) {
        wait_for("the predecessor to end", || self.running.has_ended().then_some(()));
    }
}

/// A program that became what handoff-run was started as, and its folder.
pub struct Successor {
    pub folder: Arc<Folder>,
    pub running: Running,
    watcher: Watcher,
}

/// The process that watches a handover; it ends with the value.
struct Watcher {
    folder: Arc<Folder>,
    program: Pid,
}

/// Succeed whoever `who` is at an address.
pub fn succeed(run: Run, address: &str, who: &str, options: &[&str], server: Server) -> Successor {
    let folder = Arc::new(Folder::new());
    let target = server.install(&folder);
    let run = run.current_dir(&*folder).args(&["-l", address, "--from", who]).args(options);
    let run = if options.contains(&"--settle") { run } else { run.args(&["--settle", "50ms"]) };
    let run = run.args(&server::settings(&folder)).args(&["--"]).args(&target);
    let log = std::fs::File::create(folder.path("log")).unwrap();
    let running = run.stderr(log).start();
    Successor { watcher: Watcher { folder: folder.clone(), program: running.pid() }, running, folder }
}

impl Successor {
    pub fn pid(&self) -> Pid {
        self.running.pid()
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.path("log")).unwrap()).into_owned()
    }

    /// Wait until it serves at this address.
    #[track_caller]
    pub fn wait_serving(&self, address: &str) {
        wait_for("the successor to serve", || {
            assert!(!self.running.has_ended(), "{}", self.log());
            (ask(address).ok()?.pid == self.pid()).then_some(())
        });
    }

    /// The process that watches the handover, while it does.
    pub fn watcher(&self) -> Option<Pid> {
        self.watcher.find()
    }

    /// Wait until nothing of handoff-run is left.
    #[track_caller]
    pub fn wait_alone(&self) {
        let is_alone = || self.watcher().is_none().then_some(());
        try_for(is_alone).unwrap_or_else(|| panic!("waited for the watcher to end: {}", self.log()));
    }

    /// The status, and what was written to stderr until all was over.
    pub fn end(self) -> (i32, String) {
        let folder = self.folder.clone();
        let status = super::run::code(self.running.status());
        // It was there before the program was.
        wait_for("the watcher to end", || self.watcher.find().is_none().then_some(()));
        (status, std::fs::read_to_string(folder.path("log")).unwrap())
    }
}

impl Watcher {
    fn find(&self) -> Option<Pid> {
        // With its slash: another's name may begin as this one does.
        let folder = self.folder.text("");
        let is_watcher = |pid: &Pid| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            *pid != self.program && line.contains("--from") && line.contains(&folder)
        };
        process::all().find(is_watcher)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(watcher) = self.find() {
            let _ = kill(watcher, Signal::SIGKILL);
        }
    }
}
