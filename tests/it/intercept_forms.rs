//! --intercept: the forms in which programs open a socket, and the circumstances in which they do.

use std::fs;

use nix::sys::signal::{Signal, kill};

use crate::harness::intercept::intercept;
use crate::harness::process::stat;
use crate::harness::{is_root_to, wait_for};

/// Started and replaced, it serves.
#[track_caller]
fn is_served(code: &str) {
    is_served_with(code, &[]);
}

#[track_caller]
fn is_served_with(code: &str, options: &[&str]) {
    let supervisor = intercept(code, options).serving();
    for generation in [2, 3] {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
        assert_eq!(supervisor.answer().generation, generation);
    }
    supervisor.stopped();
}

// As the acceptor of Asio and the native transport of Netty do it.
#[test]
fn a_socket_that_is_in_an_epoll_before_it_is_bound() {
    for (events, data) in [("EPOLLIN", "level"), ("EPOLLIN | select.EPOLLET", "edge")] {
        let code = format!(
            "
import struct, ctypes
libc = ctypes.CDLL(None)
def prepare(s):
    global ep
    ep = select.epoll()
    event = struct.pack('=IQ', select.{events}, 0x1122334455667788)
    assert libc.epoll_ctl(ep.fileno(), 1, s.fileno(), event) == 0
s = opened(prepare=prepare)
s.setblocking(False)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
buffer = ctypes.create_string_buffer(12)
while True:
    libc.epoll_wait(ep.fileno(), buffer, 1, -1)
    # {data}
    assert struct.unpack('=IQ', buffer.raw)[1] == 0x1122334455667788
    while True:
        try: answer(s.accept()[0])
        except OSError: break"
        );
        is_served(&code);
    }
}

#[test]
fn a_socket_that_has_another_number_too_which_is_the_one_that_is_served() {
    is_served(
        "
def prepare(s):
    global other, ep
    other = s.dup()
    # By the number of the copy, and by an epoll that has two numbers itself.
    ep = select.epoll()
    ep.register(other.fileno(), select.EPOLLIN)
    os.dup(ep.fileno())
own = opened(prepare=prepare)
assert inode(own) == inode(other)
own.close()
other.setblocking(False)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True:
    assert ep.poll()[0][0] == other.fileno()
    try: answer(other.accept()[0])
    except OSError: pass",
    );
}

#[test]
fn a_bind_by_another_thread_than_the_first() {
    is_served(
        "
import threading
def work():
    global s
    s = opened()
thread = threading.Thread(target=work)
thread.start()
thread.join()
serve()",
    );
}

// The process has ended as far as its first thread goes: it looks like a zombie.
#[test]
fn a_bind_by_a_thread_that_outlives_the_first() {
    is_served(
        "
import ctypes, threading
# Where no thread is left that runs Python's handlers, the kernel ends it.
def work():
    global s
    wait_for('go')
    while open(f'/proc/{os.getpid()}/stat').read().split()[2] != 'Z': time.sleep(0.01)
    s = opened()
    while True:
        try: answer(s.accept()[0])
        except OSError: pass
mark('go')
threading.Thread(target=work).start()
ctypes.CDLL(None).pthread_exit(None)",
    );
}

// As a thread of a program that has called unshare(CLONE_FILES). That it accepts is not seen.
#[test]
fn a_bind_by_a_thread_with_descriptors_of_its_own() {
    is_served_with(
        "
import ctypes, threading
def work():
    global s
    assert ctypes.CDLL(None).unshare(0x400) == 0
    s = opened()
    os.write(9, b'x')
    while True:
        try: answer(s.accept()[0])
        except OSError: pass
threading.Thread(target=work, daemon=True).start()
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
signal.pause()",
        &["--ready", "fd:9"],
    );
}

// handoff-run(1), INTERCEPTION: "in another network namespace".
#[test]
fn a_bind_in_another_network_namespace_is_not_answered() {
    if !is_root_to("make a network namespace") {
        return;
    }
    let code = "
import ctypes
s = opened()
if os.fork() == 0:
    assert ctypes.CDLL(None).unshare(0x40000000) == 0
    other = socket.socket()
    # Its loopback interface is down.
    other.bind(('0.0.0.0', address()[1]))
    mark('other', f'{inode(other) != inode(s)} {other.getsockname()[0]}')
    os._exit(0)
serve()";
    let supervisor = intercept(code, &[]).serving();
    assert_eq!(supervisor.folder.read("other"), "True 0.0.0.0");
    supervisor.stopped();
}

// handoff-run(1), INTERCEPTION: "Names can still be looked up while the supervisor is stopped".
#[test]
fn names_are_looked_up_while_the_supervisor_is_stopped() {
    let code = "
s = opened()
import threading
def bind():
    wait_for('look')
    mark('thread', str(threading.get_native_id()))
    mark('bound', str(socket.create_server(('127.0.0.1', 0)).getsockname()[1]))
def look():
    wait_for('look')
    mark('found', str(len(socket.getaddrinfo('localhost', 80))))
for act in (bind, look): threading.Thread(target=act, daemon=True).start()
serve()";
    let supervisor = intercept(code, &[]).serving();
    kill(supervisor.pid, Signal::SIGSTOP).unwrap();
    wait_for("it to stop", || (stat(supervisor.pid).unwrap()[0] == "T").then_some(()));
    supervisor.folder.open("look");
    assert_ne!(supervisor.folder.read("found"), "0");
    // A bind to an internet address waits. proc_pid_syscall(5): the number of the call that a thread is in.
    let call = format!("/proc/{}/task/{}/syscall", supervisor.generation(1), supervisor.folder.read("thread"));
    let is_bind = |call: String| call.split(' ').next().unwrap().parse() == Ok(libc::SYS_bind);
    wait_for("it to wait in bind(2)", || is_bind(fs::read_to_string(&call).unwrap()).then_some(()));
    assert!(!supervisor.folder.path("bound").exists());
    kill(supervisor.pid, Signal::SIGCONT).unwrap();
    supervisor.folder.read("bound");
    supervisor.stopped();
}

// As Go's scheduler does it to its own threads.
#[test]
fn timers_that_interrupt_do_not_keep_it_from_binding() {
    is_served(
        "
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
for _ in range(200):
    s = opened()
    s.close()
    other = socket.socket()
    other.bind(('127.0.0.1', 0))
    other.close()
s = opened()
signal.setitimer(signal.ITIMER_REAL, 0)
serve()",
    );
}

/// It gives up its user, and then opens its address.
const DROPPING: &str = "
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try: s = opened()
except OSError as error:
    sys.stderr.write(f'got {error.errno}\\n')
    sys.exit(1)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True: answer(s.accept()[0])";

#[test]
fn one_that_has_given_up_its_user_is_served_by_a_supervisor_that_may_look() {
    if is_root_to("change the user") {
        is_served(DROPPING);
    }
}

// handoff-run(1), INTERCEPTION: "else every bind(2) of it fails with EACCES". Containers have no such capability, as a rule.
#[test]
fn one_that_has_given_up_its_user_gets_an_error_where_we_may_not_look() {
    if !is_root_to("change the user") {
        return;
    }
    let setup = intercept(DROPPING, &[]).run(|run| {
        // SAFETY: this operation takes integers.
        run.before_exec(|| match unsafe { libc::prctl(libc::PR_CAPBSET_DROP, 19, 0, 0, 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    });
    let mut supervisor = setup.start();
    let (code, log) = supervisor.end();
    assert_eq!(code, 1, "{log}");
    assert!(log.contains(&format!("got {}\n", libc::EACCES)), "{log}");
    let told = "handoff-run: generation 1: ended with status 1 before it was ready: the supervisor may not look at its bind(2) \
                (EPERM: Operation not permitted), as where it has dropped its user\n\
                handoff-run: run the supervisor as that user, or with CAP_SYS_PTRACE (in a container: --cap-add SYS_PTRACE)\n";
    assert!(log.contains(told), "{log}");
}

// What it did while it was ready is its own affair: the kernel answers.
#[test]
fn one_that_gives_up_its_user_when_it_serves_may_bind_what_is_not_ours() {
    if !is_root_to("change the user") {
        return;
    }
    let code = "
s = opened()
import threading
def change():
    wait_for('change')
    mark('changed', str(socket.create_server(('127.0.0.1', 0)).getsockname()[1]))
threading.Thread(target=change, daemon=True).start()
os.chmod(folder, 0o777)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
serve()";
    let setup = intercept(code, &[]).run(|run| {
        // SAFETY: this operation takes integers.
        run.before_exec(|| match unsafe { libc::prctl(libc::PR_CAPBSET_DROP, 19, 0, 0, 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    });
    let supervisor = setup.options(&["--ready", "after:0.3s"]).serving();
    supervisor.folder.open("change");
    supervisor.folder.read("changed");
    assert!(supervisor.answer().generation == 1);
}
