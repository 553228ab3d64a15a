//! Where a server is deployed: a folder with its files, an address, and what stands in front of it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt};

use super::answer::Answer;
use super::build::{self, SCRATCH, SOURCES};
use super::client::Target;
use super::servers::Server;
use super::session::Session;
use super::waiting::wait_for;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(20);

pub struct Site {
    pub server: &'static Server,
    // Dropped first, for its processes may write to the folder.
    _front: Option<Session>,
    /// Where the server listens, and what stands in front of it, if anything does.
    pub own: Port,
    front_port: Port,
    program: Option<PathBuf>,
    folder: Folder,
}

/// A port that nothing else here gets. It is bound, but not listened on.
pub struct Port {
    pub address: SocketAddrV4,
    _reserved: OwnedFd,
}

/// A folder that is removed in the end.
struct Folder(PathBuf);

impl Site {
    /// Lay out the server's files, build them, and start what stands in front.
    pub fn new(server: &'static Server) -> Result<Site> {
        let folder = Folder(Path::new(SCRATCH).join(format!("deploys-{}-{}", server.name, process::id())));
        fs::create_dir(&folder.0)?;
        let (own, front_port) = (Port::reserve()?, Port::reserve()?);
        let mut site = Site { server, _front: None, own, front_port, program: None, folder };
        if !server.files.is_empty() {
            site.fill()?;
        }
        site.program = build::build(server, site.folder())?;
        site._front = server.front.map(|line| site.start_front(line)).transpose()?;
        Ok(site)
    }

    pub fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// Where its clients connect to.
    pub fn target(&self) -> Target {
        let port = if self.server.front.is_some() { &self.front_port } else { &self.own };
        Target { address: port.address, slow: self.server.slow }
    }

    /// The words of a line, filled in.
    pub fn words(&self, line: &str) -> Vec<String> {
        line.split(' ').map(|word| self.fill_in(word)).collect()
    }

    /// A command that runs in the folder, with nothing of the user's but the search path, and writes to the log.
    pub fn command(&self, program: &str) -> Result<Command> {
        let log = File::options().create(true).append(true).open(self.folder().join("log"))?;
        let mut command = Command::new(program);
        command.current_dir(self.folder()).env("PATH", build::search_path()).env("HOME", self.folder());
        command.stdin(process::Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    /// Wait for the first answer, unless what is to give it ends.
    pub fn wait_for_answer(&self, session: &mut Session) -> Result<()> {
        let address = self.target().address;
        let answered = || {
            if let Some(status) = session.has_ended()? {
                bail!("it ended before it answered, {status}");
            }
            Ok(ask(address).is_ok_and(|answer| matches!(Answer::of(&answer), Answer::Whole(_))).then_some(()))
        };
        wait_for("the first answer", answered).with_context(|| self.last_words())
    }

    /// The last lines of the log, in one.
    pub fn last_words(&self) -> String {
        let log = fs::read(self.folder().join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(3)..].join(" | ")
    }

    /// Copy the server's files, filled in.
    fn fill(&self) -> Result<()> {
        let files = Path::new(SOURCES).join("benches/deploys").join(self.server.files);
        for entry in fs::read_dir(files)? {
            let entry = entry?;
            fs::write(self.folder().join(entry.file_name()), self.fill_in(&fs::read_to_string(entry.path())?))?;
        }
        Ok(())
    }

    /// The same for a whole text.
    pub fn fill_in(&self, text: &str) -> String {
        let program = self.program.as_deref().unwrap_or(Path::new(""));
        text.replace("@PORT@", &self.own.address.port().to_string())
            .replace("@FRONT@", &self.front_port.address.port().to_string())
            .replace("@DIR@", &self.folder().to_string_lossy())
            .replace("@PROGRAM@", &program.to_string_lossy())
    }

    fn start_front(&self, line: &str) -> Result<Session> {
        let words = self.words(line);
        let (program, arguments) = words.split_first().context("a line has words")?;
        Session::start(self.command(program)?.args(arguments))
    }
}

/// One answer.
fn ask(address: SocketAddrV4) -> io::Result<Vec<u8>> {
    let mut client = TcpStream::connect(address)?;
    client.set_read_timeout(Some(TIMEOUT))?;
    client.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer)?;
    Ok(answer)
}

impl Port {
    fn reserve() -> Result<Port> {
        let reserved = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        // Both, so that whoever listens there may have either.
        setsockopt(&reserved, sockopt::ReuseAddr, &true)?;
        setsockopt(&reserved, sockopt::ReusePort, &true)?;
        bind(reserved.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
        let port = getsockname::<SockaddrIn>(reserved.as_raw_fd())?.port();
        Ok(Port { address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), _reserved: reserved })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is in the build's own folder, and does no harm there.
        let _ = fs::remove_dir_all(&self.0);
    }
}
