//! --intercept: what a program can make its supervisor do is bounded, whatever it shows of itself.

use std::time::{Duration, Instant};

use crate::harness::intercept::intercept;
use crate::harness::process::{descriptors, sockets};
use crate::harness::{Supervisor, is_root_to, wait_for};

/// With libc, and the bytes of our address.
const RAW: &str = "
import ctypes, errno, mmap, threading
libc = ctypes.CDLL(None, use_errno=True)
host, port = address()
def sockaddr(port, host=bytes([127, 0, 0, 1])): return b'\\2\\0' + port.to_bytes(2, 'big') + host + bytes(8)
def bind(s, at, length): return 0 if libc.bind(s.fileno(), at, length) == 0 else ctypes.get_errno()
";

/// It serves on, answers its clients and can be reloaded, and nothing of what it was asked is left.
#[track_caller]
fn is_well(supervisor: Supervisor) {
    let begun = Instant::now();
    assert_eq!(supervisor.states(), [(1, "serving".to_owned())]);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(supervisor.answer().generation, 1);
    supervisor.folder.open("over");
    let open = descriptors(supervisor.pid).len();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    assert_eq!(supervisor.answer().generation, 2);
    assert!(descriptors(supervisor.pid).len() <= open + 1);
    supervisor.stopped();
}

#[test]
fn odd_lengths_and_addresses_are_answered_as_the_kernel_answers_them() {
    let code = format!(
        "{RAW}
at = sockaddr(port)
seen = []
for length in (0, 1, 2, 3, 15, 129, 1 << 31, (1 << 32) - 1):
    seen.append(bind(socket.socket(), at, ctypes.c_uint(length)))
seen.append(bind(socket.socket(), None, 16))
seen.append(bind(socket.socket(), ctypes.c_void_p(1), 16))
seen.append(bind(socket.socket(), ctypes.c_void_p((1 << 63) - 8), 16))
seen.append(bind(socket.socket(), ctypes.c_void_p((1 << 64) - 8), 16))
# The last 8 bytes of a page, behind which there is none.
page = mmap.mmap(-1, 8192)
start = ctypes.addressof(ctypes.c_char.from_buffer(page))
assert libc.mprotect(ctypes.c_void_p(start + 4096), 4096, 0) == 0
seen.append(bind(socket.socket(), ctypes.c_void_p(start + 4088), 16))
mark('seen-' + gen, ' '.join(errno.errorcode.get(n, str(n)) for n in seen))
s = opened()
serve()"
    );
    let supervisor = intercept(&code, &[]).serving();
    let all = "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EFAULT EFAULT EFAULT EFAULT EFAULT";
    let seen = supervisor.folder.read("seen-1");
    // Of two and three bytes the port is missing.
    assert_eq!(seen, all, "as without --intercept");
    is_well(supervisor);
}

#[test]
fn a_flood_of_binds_leaves_time_for_all_else() {
    let code = format!(
        "{RAW}
s = opened()
for worker in range(4):
    if os.fork() == 0:
        while not exists('over'):
            other = socket.socket()
            bind(other, sockaddr(port), 16)
            other.close()
            bind(socket.socket(), sockaddr(0), 16)
        os._exit(0)
serve()"
    );
    is_well(intercept(&code, &[]).serving());
}

// It is read once, and only our socket is handed out. Else the kernel reads it again, which may refuse what is ours by then.
#[test]
fn an_address_that_changes_between_is_bound_as_one_of_both() {
    let code = format!(
        "{RAW}
memory = ctypes.create_string_buffer(sockaddr(port), 16)
def change():
    ports = [number.to_bytes(2, 'big') for number in (port, 0)]
    while not exists('over'):
        for n in range(2000): ctypes.memmove(ctypes.addressof(memory) + 2, ports[n % 2], 2)
s = opened()
threading.Thread(target=change, daemon=True).start()
ours = others = 0
for n in range(2000):
    other = socket.socket()
    done = bind(other, memory, 16)
    assert done in (0, errno.EADDRINUSE), done
    if inode(other) == inode(s): ours += 1
    elif done == 0:
        assert other.getsockname()[1] not in (0, port)
        others += 1
    other.close()
mark('counted', f'{{ours}} {{others}}')
serve()"
    );
    let supervisor = intercept(&code, &[]).serving();
    let counted = supervisor.folder.read("counted");
    assert!(!counted.starts_with("0 ") && !counted.ends_with(" 0"), "{counted}");
    is_well(supervisor);
}

#[test]
fn a_process_that_dies_while_it_asks_leaves_nothing() {
    let code = format!(
        "{RAW}
s = opened()
def asker():
    while True:
        other = socket.socket()
        bind(other, sockaddr(port), 16)
        other.close()
def asking(child):
    number = {{'x86_64': '49', 'aarch64': '200'}}[os.uname().machine]
    return any(open(f'/proc/{{child}}/task/{{task}}/syscall').read().split()[0] == number for task in os.listdir(f'/proc/{{child}}/task'))
for n in range(200):
    child = os.fork()
    if child == 0:
        threading.Thread(target=asker).start()
        asker()
    # Each round at another moment, once it asks.
    while not asking(child): pass
    time.sleep(n * 0.00002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
mark('killed')
serve()"
    );
    let supervisor = intercept(&code, &["-v"]).serving();
    supervisor.folder.read("killed");
    assert!(supervisor.log().contains("a bind(2) cannot be answered: ENOENT"), "none died in time");
    is_well(supervisor);
}

// The number may be another file's by the time of the answer; whatever it is then, the supervisor hands out its socket only.
#[test]
fn a_descriptor_that_is_replaced_between_is_bound_as_whichever_it_is() {
    let code = format!(
        "{RAW}
s = opened()
number = os.dup(0)
def replace():
    while not exists('over'):
        for n in range(100):
            other = socket.socket()
            os.dup2(other.fileno(), number)
            os.dup2(0, number)
threading.Thread(target=replace, daemon=True).start()
results, tries = set(), 0
# On busy processors it may be long before the two threads meet; the next generation has no second one.
while tries < 3000 or 0 not in results and not exists('over'):
    done = libc.bind(number, sockaddr(port), 16)
    results.add(0 if done == 0 else ctypes.get_errno())
    tries += 1
mark('results', ' '.join(errno.errorcode.get(n, str(n)) for n in sorted(results)))
serve()"
    );
    let supervisor = intercept(&code, &[]).serving();
    let results = supervisor.folder.read("results");
    assert!(results.split(' ').all(|result| ["0", "ENOTSOCK", "EADDRINUSE", "EINVAL"].contains(&result)), "{results}");
    assert!(results.starts_with("0 "), "{results}");
    is_well(supervisor);
}

// userfaultfd(2): whoever is to fetch the page does not.
#[test]
fn memory_that_nobody_fetches_holds_the_supervisor_only_once() {
    if !is_root_to("have faults of the kernel reported") {
        return;
    }
    let code = format!(
        "{RAW}
import struct
s = opened()
faults = libc.syscall({{'x86_64': 323, 'aarch64': 282}}[os.uname().machine], os.O_CLOEXEC)
api = ctypes.create_string_buffer(struct.pack('=QQQ', 0xaa, 0, 0))
if faults < 0 or libc.ioctl(faults, ctypes.c_ulong(0xc018aa3f), api) != 0:
    mark('asked', 'no userfaultfd')
    serve()
page = mmap.mmap(-1, 4096)
start = ctypes.addressof(ctypes.c_char.from_buffer(page))
region = ctypes.create_string_buffer(struct.pack('=QQQQ', start, 4096, 1, 0))
assert libc.ioctl(faults, ctypes.c_ulong(0xc020aa00), region) == 0
children = []
for n in range(5):
    children.append(threading.Thread(target=lambda: bind(socket.socket(), ctypes.c_void_p(start), 16), daemon=True))
for child in children: child.start()
mark('asked', 'yes')
serve()"
    );
    let supervisor = intercept(&code, &["--stop-signal", "KILL"]).serving();
    let asked = supervisor.folder.read("asked");
    if asked != "yes" {
        crate::harness::skip(&asked);
        return;
    }
    supervisor.wait_log("generation 1: what it gives to bind(2) cannot be read in time; such calls go to the kernel");
    is_well(supervisor);
}

// handoff-run(1), INTERCEPTION: "only a process with the filter, that is, of the generation, gets a socket".
#[test]
fn a_process_that_is_none_of_the_generation_s_gets_nothing() {
    let supervisor = intercept("s = opened()\nserve()", &[]).serving();
    let address = supervisor.address();
    assert_eq!(std::net::TcpListener::bind(&address).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
    let ours = sockets(supervisor.pid);
    wait_for("it to have its sockets alone", || {
        let server = sockets(supervisor.generation(1));
        // Of the two slots, and of the helm, it has its own.
        (server.iter().filter(|inode| ours.contains(inode)).count() == 1).then_some(())
    });
    supervisor.stopped();
}

// Who has the last copy of a socket with SO_LINGER waits for its peer when it closes that: here the supervisor has it.
#[test]
fn a_socket_that_lingers_holds_nobody() {
    let code = format!(
        "{RAW}
import struct
s = opened()
# What it accepts stays open, and is never read.
listener, peers = socket.create_server(('127.0.0.1', 0)), []
def asker():
    theirs = socket.create_connection(listener.getsockname())
    theirs.setblocking(False)
    try:
        while True: theirs.send(bytes(100000))
    except OSError: pass
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('=ii', 1, 60))
    mark('ready-' + str(os.getpid()))
    while True: bind(theirs, sockaddr(port), 16)
for n in range(100):
    child = os.fork()
    if child == 0: asker()
    peers.append(listener.accept()[0])
    wait_for(f'ready-{{child}}')
    time.sleep(n * 0.00002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
mark('over-with-it')
serve()"
    );
    let supervisor = intercept(&code, &[]).serving();
    supervisor.folder.read("over-with-it");
    is_well(supervisor);
}

#[test]
fn what_one_call_can_ask_for_is_bounded() {
    let code = format!(
        "{RAW}
s = opened()
other = socket.socket()
copies = [other.dup() for _ in range(100)]
results = [bind(other, sockaddr(port), 16)]
copies = copies[:10]
epolls = [select.epoll() for _ in range(10)]
for epoll in epolls:
    for copy in copies: epoll.register(copy.fileno(), select.EPOLLIN)
results.append(bind(other, sockaddr(port), 16))
del epolls[5:]
results.append(bind(other, sockaddr(port), 16))
mark('results', ' '.join(errno.errorcode.get(n, str(n)) for n in results))
serve()"
    );
    let supervisor = intercept(&code, &[]).serving();
    assert_eq!(supervisor.folder.read("results"), "ENOBUFS ENOBUFS 0");
    is_well(supervisor);
}
