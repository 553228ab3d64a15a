//! States that a release has written are taken over by every later one: as they are, with what it does not know, and
//! without what is not there.

use std::path::Path;
use std::sync::Arc;

use nix::unistd::Pid;

use crate::harness::client::Client;
use crate::harness::python;
use crate::harness::socket::listeners_on;
use crate::harness::supervisor::Role;
use crate::harness::{Folder, PROGRAM, Run, Supervisor, wait_for};
use crate::steering::{port, serves_alone};

const WRITTEN: &str = include_str!("states/written.json");
const UNKNOWN: &str = include_str!("states/unknown.json");
const ROLLOUT: &str = include_str!("states/rollout.json");
/// Of one that steers, whose first generation stands by.
const STEERED: &str = include_str!("states/steered.json");
const MISSING: &str = include_str!("states/missing.json");

/// Becomes a supervisor that takes over from a predecessor which was at the very same numbers: generation 1, which
/// drains until the file `drained` is there, generation 2, which serves, and a client that waits for the first to go.
const PREDECESSOR: &str = r#"
import ctypes, fcntl, os, signal, socket, sys, time
program, folder, server, *options = sys.argv[1:]
signal.alarm(120)
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) # a reaper of orphans
path = lambda name: os.path.join(folder, name)
opened = {}
def at(number, fd): opened[number] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100)
web = socket.create_server(('127.0.0.1', 0))
app = socket.socket(socket.AF_UNIX); app.bind(path('app.sock')); app.listen()
control = socket.socket(socket.AF_UNIX); control.bind(path('control')); control.listen()
client, its = socket.socketpair()
def notify():
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    s.bind('')
    s.setblocking(False)
    return s
def generation(act, *numbers):
    sender, pipe = notify(), os.pipe()
    os.environ['NOTIFY_SOCKET'] = '@' + sender.getsockname()[1:].decode()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        act()
        os._exit(0)
    try: os.setpgid(pid, pid)
    except PermissionError: pass # It has done so, and become the server.
    os.close(pipe[1])
    del os.environ['NOTIFY_SOCKET']
    for number, fd in zip(numbers, (sender.fileno(), os.pidfd_open(pid), pipe[0])): at(number, fd)
    return pid
def drain():
    while not os.path.exists(path('drained')): time.sleep(0.005)
def start():
    while not os.path.exists(path('ready')): time.sleep(0.005)
    os.write(told, b'.')
    serve()
def serve():
    spare = fcntl.fcntl(app.fileno(), fcntl.F_DUPFD_CLOEXEC, 100)
    os.dup2(web.fileno(), 3); os.set_inheritable(3, True)
    os.dup2(spare, 4)
    os.environ.update(FOLDER=folder, GENERATION='2')
    os.execv(sys.executable, [sys.executable, '-IS', server])
old = generation(drain, 12, 13, 14)
new = generation(serve, 7, 11, 8)
state = open(path('state')).read()
starting = 0
if '@NEXT@' in state:
    tells, told = os.pipe()
    starting = generation(start, 16, 17, 18)
    os.close(told)
    at(10, tells)
    at(19, os.memfd_create('other'))
    open(path('pid'), 'w').write(f'{os.getpid()}\n')
while not os.path.exists(path('begun')): time.sleep(0.005)
if os.fork() == 0:
    client.close()
    text = its.makefile().read()
    open(path('replies.new'), 'w').write(text)
    os.rename(path('replies.new'), path('replies'))
    os._exit(0)
its.close()
for number, s in ((3, web), (4, app), (5, control), (6, client)): at(number, s.fileno())
for end in (control, client): end.setblocking(False)
at(15, os.memfd_create('spare'))
file = os.stat(path('app.sock'))
values = dict(PID=os.getpid(), OLD=old, NEW=new, NEXT=starting, PROGRAM=program, FOLDER=folder, DEVICE=file.st_dev, INODE=file.st_ino)
for name, value in values.items(): state = state.replace(f'@{name}@', str(value))
memory = os.memfd_create('state'); os.write(memory, state.encode()); at(20, memory)
print('handoff-run: web=127.0.0.1:0 listens on %s:%d' % web.getsockname(), file=sys.stderr, flush=True)
print(f'handoff-run: generation 2: started (pid {new})', file=sys.stderr, flush=True)
for number, fd in opened.items(): os.dup2(fd, number)
os.environ['HANDOFF_STATE'] = 'take:20'
line = [program, '--supervise', '--control', path('control'), '-l', 'web=127.0.0.1:0', '-l', path('app.sock'), '--env', 'GENERATION={gen}', *options, '--',
    sys.executable, '-IS', server]
os.environ['FOLDER'] = folder
os.execv(program, line)
"#;

/// Accepts on both sockets, and answers on the first.
const SERVER: &str = "
import threading
app = socket.socket(fileno=4)
if os.fork() == 0:
    os.setsid()
    if os.fork() > 0: os._exit(0)
    mark('begun', str(os.getpid()))
    time.sleep(100)
    os._exit(0)
try: os.wait()
except ChildProcessError: pass # It is not told of them where SIGCHLD is ignored.
threading.Thread(target=app.accept, daemon=True).start()
serve()";

/// A supervisor in that predecessor's place.
fn take_over(state: &str, server: &str, options: &[&str]) -> Supervisor {
    take_over_from(PREDECESSOR, state, server, options)
}

fn take_over_from(predecessor: &str, state: &str, server: &str, options: &[&str]) -> Supervisor {
    let folder = Arc::new(Folder::new());
    folder.write("state", state);
    folder.write("predecessor.py", predecessor);
    let server = python::write(&folder, server);
    let words = ["-IS".into(), folder.path("predecessor.py"), PROGRAM.into(), folder.path(""), server];
    let run = Run::of(python::python()).args(&words).args(options).current_dir(&*folder);
    Supervisor::start(folder, run, Role::Supervisor)
}

/// Which process answers a client.
fn asked(supervisor: &Supervisor) -> Pid {
    Client::connect(&supervisor.address().to_string()).unwrap().ask().unwrap().pid
}

fn is_running(pid: Pid) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Wait until its control socket answers.
#[track_caller]
fn await_answer(supervisor: &Supervisor) {
    wait_for("the control socket to answer", || {
        (supervisor.command("--status", &[]).output().code() == 0).then_some(())
    });
}

/// The state is taken over, and the supervisor does everything with it.
fn is_taken_over(state: &str) {
    is_complete(take_over(state, SERVER, &[]));
}

fn is_complete(mut supervisor: Supervisor) {
    let folder = supervisor.folder.clone();
    await_answer(&supervisor);
    assert_eq!(supervisor.states(), [(1, "draining".into()), (2, "serving".into())], "{}", supervisor.log());
    // The client that waited for the old generation is told when it is gone.
    assert!(!folder.path("replies").exists());
    folder.write("drained", "");
    let replies = folder.read("replies");
    assert!(replies.ends_with("{\"exit\":0}\n"), "{replies}");
    // The one that serves is on our socket, and is replaced on the very same.
    let serving = supervisor.generation(2);
    assert_eq!(asked(&supervisor), serving);
    let daemon = Pid::from_raw(folder.read("begun").parse().unwrap());
    // Its daemon, known by the abstract notify socket in its environment, goes with it.
    assert!(is_running(daemon));
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    assert!(!is_running(daemon), "{}", supervisor.log());
    assert_eq!(supervisor.states(), [(3, "serving".into())]);
    assert_eq!(asked(&supervisor), supervisor.generation(3));
    assert!(supervisor.json().contains(&"reloads.succeeded=1".to_owned()));
    // The end takes the socket's file along.
    assert_eq!(supervisor.stop().failure(), (0, ""));
    assert_eq!(supervisor.end().0, 0);
    assert!(!folder.path("app.sock").exists());
}

#[test]
fn a_state_of_the_first_release_is_taken_over() {
    is_taken_over(WRITTEN);
}

#[test]
fn a_state_with_what_is_not_known_yet_is_taken_over() {
    is_taken_over(UNKNOWN);
}

#[test]
fn a_state_without_what_was_added_later_is_taken_over() {
    is_taken_over(MISSING);
}

// Of a later release, which knows one more way in which a reload ends.
#[test]
fn what_a_state_has_counted_is_counted_on() {
    let reloads = r#""reloads":{"asked":[],"counts":{"refused":2,"postponed":1},"last":"postponed","last_at":{"secs":1,"nanos":0}}"#;
    let supervisor = take_over(&WRITTEN.replace(r#""restarts":0"#, &format!(r#"{reloads},"restarts":5"#)), SERVER, &[]);
    await_answer(&supervisor);
    assert_eq!(supervisor.reload().failure(), (0, ""), "{}", supervisor.log());
    let json = supervisor.json();
    for fact in ["reloads.refused=2", "reloads.succeeded=1", "last_reload='succeeded'", "restarts=5"] {
        assert!(json.contains(&fact.to_owned()), "{json:?}");
    }
}

// A first release that was started with its standard descriptors closed had others at their numbers.
#[test]
fn a_state_with_descriptors_at_the_numbers_of_standard_ones_is_taken_over() {
    let predecessor = PREDECESSOR.replace("(5, control), (6, client)", "(0, control), (1, client)");
    let state = WRITTEN.replace("\"server\":{\"fd\":5", "\"server\":{\"fd\":0").replace("{\"fd\":6", "{\"fd\":1");
    is_complete(take_over_from(&predecessor, &state, SERVER, &[]));
}

// A pid or a descriptor that is missing has no default: 0 is some other process.
#[test]
fn a_generation_without_a_pid_is_reported_and_left_out_and_its_place_is_filled() {
    let supervisor = take_over(&WRITTEN.replace("\"pid\":@NEW@,", ""), SERVER, &[]);
    supervisor.wait_log("cannot take over a part of the state: missing field `pid`");
    supervisor.wait_ready(3);
    supervisor.folder.write("drained", "");
    supervisor.wait_gone(1);
    assert_eq!(supervisor.states(), [(3, "serving".into())]);
}

// In the middle of a rollout: a generation gets ready by `--ready fd:N`, a client has half of its replies, and what the
// supervisor was started with is not the default.
#[test]
fn a_state_in_the_middle_of_a_rollout_is_taken_over() {
    let server = format!(
        "if int(gen) > 3:
    mark('inherited-' + gen, os.readlink('/proc/self/fd/19') + open('/proc/self/status').read())
    os.write(9, b'.')
{SERVER}"
    );
    let options = ["--ready", "fd:9", "--pid-file", "pid"];
    let mut supervisor = take_over(ROLLOUT, &server, &options);
    await_answer(&supervisor);
    let states = [(1, "draining".into()), (2, "serving".into()), (3, "starting".into())];
    assert_eq!(supervisor.states(), states, "{}", supervisor.log());
    let json = supervisor.json();
    for fact in ["restarts=7", "last_failure='generation 1: ended with status 3'"] {
        assert!(json.contains(&fact.to_owned()), "{json:?}");
    }
    supervisor.folder.write("ready", "");
    supervisor.folder.write("drained", "");
    let replies = supervisor.folder.read("replies");
    assert!(replies.starts_with("{\"progress\":{\"generation\":3,\"text\":\"started\"}}\n"), "{replies}");
    assert!(replies.ends_with("{\"exit\":0}\n"), "{replies}");
    // The next generation is given what the first one was.
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    let inherited = supervisor.folder.read("inherited-4");
    assert!(inherited.starts_with("/memfd:other"), "{inherited}");
    let field = |name: &str| {
        let line = inherited.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let bit = |signal: i32| 1 << (signal - 1);
    assert_eq!(field("SigBlk:"), bit(34));
    assert_eq!(field("SigIgn:") & bit(libc::SIGCHLD), bit(libc::SIGCHLD));
    assert_eq!(supervisor.stop().failure(), (0, ""));
    assert_eq!(supervisor.end().0, 0);
    assert!(!supervisor.folder.path("pid").exists());
}

// Of a plan that says less than there is: what it does not know is asked to stop, but for the newest, which serves.
#[test]
fn generations_that_the_plan_does_not_know_serve_or_drain() {
    let state = WRITTEN
        .replace(r#""serving":{"id":2,"since":{"secs":2887,"nanos":919308934}},"#, "")
        .replace(r#""draining":[{"id":1,"deadline":{"secs":4294967295,"nanos":0}}],"#, "");
    let supervisor = take_over(&state, SERVER, &[]);
    supervisor.wait_gone(1);
    assert_eq!(supervisor.states(), [(2, "serving".into())], "{}", supervisor.log());
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    assert_eq!(supervisor.states(), [(3, "serving".into())]);
}

// 0 is every process of our own group to kill(2).
#[test]
fn a_generation_whose_pid_is_no_childs_is_left_out() {
    let supervisor = take_over(&WRITTEN.replace("@NEW@", "0"), SERVER, &[]);
    supervisor.wait_log("0 is not the number of a child");
    supervisor.wait_ready(3);
}

/// Two sockets for generations and the helm, of which the kernel chooses the second.
const GROUP: &str = r#"
import struct
def member(port):
    s = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT): s.setsockopt(socket.SOL_SOCKET, option, 1)
    s.bind(('127.0.0.1', port))
    s.listen()
    return s
web = member(0)
second, helm = (member(web.getsockname()[1]) for _ in range(2))
chosen = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 1), 8)
helm.setsockopt(socket.SOL_SOCKET, 51, struct.pack('HP', 1, ctypes.addressof(chosen))) # SO_ATTACH_REUSEPORT_CBPF
at(21, second)
at(22, helm)
"#;

#[test]
fn a_state_with_a_socket_for_each_generation_is_taken_over() {
    let predecessor = PREDECESSOR
        .replace("web = socket.create_server(('127.0.0.1', 0))\n", GROUP)
        .replace("os.dup2(web.fileno(), 3)", "os.dup2(second.fileno(), 3)");
    let mut supervisor = take_over_from(&predecessor, STEERED, SERVER, &["--settle", "50ms"]);
    await_answer(&supervisor);
    assert_eq!(supervisor.states(), [(1, "standing-by".into()), (2, "serving".into())], "{}", supervisor.log());
    serves_alone(&supervisor, 2);
    assert!(!supervisor.folder.path("replies").exists());
    // The old one ends, so there is nothing more to wait for.
    supervisor.folder.write("drained", "");
    let replies = supervisor.folder.read("replies");
    assert!(replies.ends_with("{\"exit\":0}\n"), "{replies}");
    supervisor.wait_gone(1);
    for generation in 3..=6 {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
        serves_alone(&supervisor, generation);
    }
    assert_eq!(listeners_on(port(&supervisor)).len(), 3);
    assert_eq!(supervisor.stop().failure(), (0, ""));
    assert_eq!(supervisor.end().0, 0);
}
