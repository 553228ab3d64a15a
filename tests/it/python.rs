//! Targets in Python, for what a test program in Rust cannot be: a server that forks, changes its user, ends as a test
//! wants, and is found in a namespace of its own.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::harness::{Folder, wait_for};

/// What every server begins with. Its arguments are the generation and the test's folder; `s` is its socket.
const PREAMBLE: &str = r#"
import array, os, signal, socket, sys, time
# Whatever becomes of the test, nothing is left behind.
signal.alarm(120)
gen, folder = sys.argv[1:3]
s = socket.socket(fileno=3)

def path(name): return os.path.join(folder, name)
def mark(name, text=''):
    with open(path(name + '.new'), 'w') as file: file.write(text)
    os.rename(path(name + '.new'), path(name))
def wait_for(name):
    while not os.path.exists(path(name)): time.sleep(0.005)

def say(text, *fds):
    to = os.environ['NOTIFY_SOCKET']
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    address = '\0' + to[1:] if to[0] == '@' else to
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else []
    sender.sendmsg([text.encode()], rights, 0, address)
def barrier():
    ours, its = os.pipe()
    say('BARRIER=1', its)
    os.close(its)
    os.read(ours, 1)
    os.close(ours)

def serve():
    while True:
        connection, _ = s.accept()
        connection.sendall(f'{gen} {os.getpid()}'.encode())
        connection.close()
"#;

/// Python itself, not a shim from PATH that another user may not run.
pub fn python() -> &'static str {
    if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" }
}

/// The words that run `script` behind the preamble, with the generation's number, in `folder`.
pub fn server(folder: &Folder, script: &str) -> Vec<String> {
    let file = folder.path("server.py");
    fs::write(&file, format!("{PREAMBLE}\n{script}\n")).unwrap();
    // Without site packages it starts four times as fast.
    let words = [python(), "-IS", file.to_str().unwrap(), "{gen}", folder.as_ref().to_str().unwrap()];
    words.map(str::to_owned).to_vec()
}

/// Which generation answers at `path`, and its process there; none if nobody does.
pub fn try_ask(path: &Path) -> Option<(u64, i32)> {
    let mut answer = String::new();
    UnixStream::connect(path).ok()?.read_to_string(&mut answer).ok()?;
    let (generation, pid) = answer.split_once(' ')?;
    Some((generation.parse().unwrap(), pid.parse().unwrap()))
}

/// The same once somebody answers.
pub fn ask(path: &Path) -> (u64, i32) {
    wait_for("an answer", || try_ask(path))
}

/// What the server wrote to a file of this name, once it has.
pub fn marked(folder: &Folder, name: &str) -> String {
    wait_for(name, || fs::read_to_string(folder.path(name)).ok())
}

/// Let a server that waits for it go on.
pub fn allow(folder: &Folder, name: &str) {
    fs::write(folder.path(name), "").unwrap();
}
