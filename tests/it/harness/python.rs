//! Servers in Python, for what a test program in Rust cannot be: one that forks, changes its user, lies, or ends as a
//! test wants. The tests need a python3, and no packages.

use std::env;
use std::path::PathBuf;

use super::Folder;

/// What every server begins with. `s` is its first socket, `gen` its generation.
const PREAMBLE: &str = r#"
import array, fcntl, os, select, signal, socket, sys, time
# Whatever becomes of the test, nothing is left behind.
signal.alarm(120)
gen, folder = os.environ['GENERATION'], os.environ['FOLDER']
number = os.environ.get('SOCKET', '3')
s = socket.socket(fileno=int(number)) if number else None

# Of a server that opens its address itself: the address, and a socket that listens there.
def address():
    where = os.environ['ADDRESS']
    if where[0] in '/@': return where.replace('@', '\0', 1)
    host, port = where.rsplit(':', 1)
    return (host.strip('[]'), int(port))
def opened(family=socket.AF_INET, kind=socket.SOCK_STREAM, host=None, prepare=lambda s: None):
    s, at = socket.socket(family, kind), address()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    prepare(s)
    s.bind((host or at[0], at[1]) if family != socket.AF_UNIX else at)
    if kind != socket.SOCK_DGRAM: s.listen(5)
    return s
def inode(s): return os.fstat(s.fileno()).st_ino

def path(name): return os.path.join(folder, name)
def exists(name): return os.path.exists(path(name))
def mark(name, text=''):
    with open(path(name + '.new'), 'w') as file: file.write(text)
    os.rename(path(name + '.new'), path(name))
def wait_for(name):
    while not exists(name): time.sleep(0.005)

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

def answer(client):
    client.setblocking(True)
    client.recv(1000)
    client.sendall(f'hello from {gen}, pid {os.getpid()}\n'.encode())
    client.close()
def serve(stop=signal.SIGTERM):
    # Unless it does something else, the signal to stop ends it between two clients.
    if signal.getsignal(stop) == signal.SIG_DFL: signal.signal(stop, lambda *_: os._exit(0))
    s.setblocking(False)
    # One that comes just before select is only noted, and would wait for the next client.
    ends = os.pipe()
    # Not at the number of a standard descriptor that is closed.
    woken, wakes = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends: os.close(end)
    os.set_blocking(wakes, False)
    try: signal.set_wakeup_fd(wakes)
    except ValueError: pass # Not the main thread, where no handler runs.
    while True:
        if woken in select.select([s, woken], [], [])[0]: os.read(woken, 100)
        signal.pthread_sigmask(signal.SIG_BLOCK, {stop})
        try: answer(s.accept()[0])
        except OSError: pass
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {stop})
"#;

/// Python itself: a shim is slow, and another user may not run it.
pub fn python() -> PathBuf {
    let system = PathBuf::from("/usr/bin/python3");
    let path = env::var_os("PATH").unwrap_or_default();
    let mut found = [system].into_iter().chain(env::split_paths(&path).map(|folder| folder.join("python3")));
    let is_itself = |python: &PathBuf| python.is_file() && !python.parent().unwrap().ends_with("shims");
    found.find(is_itself).expect("the tests need a python3")
}

/// Write a server's file, and give its path.
pub fn write(folder: &Folder, code: &str) -> PathBuf {
    folder.write("server.py", &format!("{PREAMBLE}\n{code}\n"));
    folder.path("server.py")
}
