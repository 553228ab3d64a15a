//! A supervisor being put together.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::supervisor::Role;
use super::{Folder, PROGRAM, Run, Server, Supervisor, server};

/// Its folder is its working directory, and there is its control socket.
pub struct Setup {
    pub folder: Arc<Folder>,
    run: Run,
    role: Role,
    is_supervised: bool,
    listen: Vec<String>,
    options: Vec<OsString>,
    target: Vec<OsString>,
}

/// A supervisor of this server on a free port, with these options.
pub fn supervise(server: Server, options: &[&str]) -> Setup {
    supervise_in(&Arc::new(Folder::new()), server, options)
}

/// The same in a folder that is there already.
pub fn supervise_in(folder: &Arc<Folder>, server: Server, options: &[&str]) -> Setup {
    let target = server.install(folder);
    let setup = Setup {
        folder: folder.clone(),
        run: Run::of(PROGRAM),
        role: Role::Supervisor,
        is_supervised: true,
        listen: vec![],
        options: vec![],
        target,
    };
    setup.by(Run::of(PROGRAM)).options(options)
}

/// One that is to succeed whoever `who` is at an address.
pub fn succeeding(address: &str, who: &str, options: &[&str], server: Server) -> Supervisor {
    let mut supervisor = supervise(server, &["--from", who]).options(options).listen(address).start();
    supervisor.expect_at(address);
    supervisor
}

impl Setup {
    /// Start handoff-run by this line, to which its arguments are added.
    pub fn by(self, run: Run) -> Setup {
        Setup { run: run.current_dir(&*self.folder), ..self }
    }

    /// It is the first process of a PID namespace, which `run` makes for its child.
    pub fn by_parent(self, run: Run) -> Setup {
        Setup { role: Role::Init, ..self.by(run) }
    }

    /// Without --supervise.
    pub fn unsupervised(self) -> Setup {
        Setup { is_supervised: false, ..self }
    }

    /// Change what the supervisor is started with, but for its arguments.
    pub fn run(self, change: impl FnOnce(Run) -> Run) -> Setup {
        Setup { run: change(self.run), ..self }
    }

    pub fn options(mut self, options: &[impl AsRef<OsStr>]) -> Setup {
        self.options.extend(options.iter().map(|option| option.as_ref().to_owned()));
        self
    }

    /// Listen here instead of on a free port.
    pub fn listen(mut self, spec: &str) -> Setup {
        self.listen.push(spec.to_owned());
        self
    }

    pub fn target(self, target: &[impl AsRef<OsStr>]) -> Setup {
        Setup { target: target.iter().map(|word| word.as_ref().to_owned()).collect(), ..self }
    }

    /// The target as a line for a shell.
    pub fn target_line(&self) -> String {
        self.target.join(OsStr::new(" ")).into_string().unwrap()
    }

    pub fn start(self) -> Supervisor {
        let mut run = self.run;
        if self.is_supervised {
            run = run.args(&["--supervise", "--control", &self.folder.text("control")]);
            if !self.options.iter().any(|option| option == "--settle") {
                // Nothing is to be seen of most generations by the time that is the default.
                run = run.args(&["--settle", "50ms"]);
            }
        }
        let listen = if self.listen.is_empty() { vec!["127.0.0.1:0".into()] } else { self.listen };
        run = listen.iter().fold(run, |run, spec| run.args(&["-l", spec]));
        run = run.args(&self.options).args(&server::settings(&self.folder)).args(&["--"]).args(&self.target);
        let path = listen[0].strip_prefix("unix:").map(str::to_owned);
        let mut supervisor = Supervisor::start(self.folder, run, self.role);
        supervisor.path = path;
        supervisor
    }

    /// Start, and wait until the first generation serves.
    pub fn serving(self) -> Supervisor {
        let supervisor = self.start();
        supervisor.wait_ready(1);
        supervisor
    }
}
