//! --intercept: a program opens its address again, more than once, or in other processes of its own.

use std::collections::BTreeSet;

use crate::harness::intercept::intercept;

// handoff-run(1), INTERCEPTION: "However often it opens its address, again".
#[test]
fn it_may_close_its_socket_and_open_it_again() {
    let code = "
s = opened()
import threading
def again():
    global s
    for n in range(1, 4):
        wait_for(f'again-{n}')
        s.close()
        s = opened()
        mark(f'opened-{n}', str(inode(s)))
if gen == '1': threading.Thread(target=again, daemon=True).start()
while True:
    try: answer(s.accept()[0])
    except OSError: pass";
    let supervisor = intercept(code, &[]).serving();
    let mut inodes = BTreeSet::new();
    for again in 1..=2 {
        supervisor.folder.open(&format!("again-{again}"));
        // It may wait in accept(2) for one more.
        let _ = supervisor.answer();
        inodes.insert(supervisor.folder.read(&format!("opened-{again}")));
        assert_eq!(supervisor.answer().generation, 1);
    }
    // Another supervisor answers it too.
    supervisor.upgrade();
    supervisor.folder.open("again-3");
    let _ = supervisor.answer();
    inodes.insert(supervisor.folder.read("opened-3"));
    assert_eq!(inodes.len(), 1, "the same one each time");
    assert_eq!(supervisor.answer().generation, 1);
    supervisor.stopped();
}

#[test]
fn an_old_generation_that_opens_it_again_gets_nothing_that_is_the_new_one_s() {
    let code = "
s = opened()
if gen == '1':
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import threading
    def again():
        wait_for('again')
        s.close()
        mark('other', str(inode(opened())))
    threading.Thread(target=again, daemon=True).start()
mark('inode-' + gen, str(inode(s)))
while True:
    try: answer(s.accept()[0])
    except OSError: time.sleep(0.01)";
    let supervisor = intercept(code, &[]).serving();
    assert_eq!(supervisor.reload().failure(), (0, ""));
    supervisor.wait_draining(1);
    supervisor.folder.open("again");
    assert_ne!(supervisor.folder.read("other"), supervisor.folder.read("inode-2"));
    for _ in 0..20 {
        assert_eq!(supervisor.answer().generation, 2);
    }
}

// handoff-run(1), INTERCEPTION: "once for each worker".
#[test]
fn workers_that_each_open_it_share_the_socket_of_their_generation() {
    let code = "
reuse = lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
for worker in range(3):
    if os.fork() == 0:
        s = opened(prepare=reuse)
        mark(f'worker-{worker}-{gen}', str(inode(s)))
        serve()
for worker in range(3): wait_for(f'worker-{worker}-{gen}')
signal.pause()";
    let supervisor = intercept(code, &[]).serving();
    let of = |generation: u64| {
        (0..3).map(|worker| supervisor.folder.read(&format!("worker-{worker}-{generation}"))).collect::<BTreeSet<_>>()
    };
    let first = of(1);
    assert_eq!(first.len(), 1);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    let second = of(2);
    assert_eq!(second.len(), 1);
    assert_ne!(first, second);
    assert_eq!(supervisor.answer().generation, 2);
    supervisor.stopped();
}

#[test]
fn a_child_of_a_child_may_open_it_in_a_session_of_its_own() {
    let code = "
import subprocess
if len(sys.argv) > 1:
    s = opened()
    serve()
line = f'exec {sys.executable} -IS {__file__} server'
child = subprocess.Popen(['sh', '-c', f'sh -c \"{line}\" & wait'], start_new_session=True)
child.wait()";
    let supervisor = intercept(code, &[]).serving();
    for generation in [2, 3] {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
        assert_eq!(supervisor.answer().generation, generation);
    }
    supervisor.stopped();
}

// As a health check of its own, or a second worker, would do it.
#[test]
fn a_further_socket_of_its_own_changes_nothing_on_the_one_that_is_served() {
    let code = "
import errno, threading
s = opened()
s.setblocking(False)
def shown(): return s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16), fcntl.fcntl(s, fcntl.F_GETFL)
before = shown()
if os.fork() == 0:
    other = opened(prepare=lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, b'\\3' + bytes(15)))
    os._exit(inode(other) != inode(s))
assert os.wait()[1] == 0
# What is bound already is refused, as ever.
refused = []
for at in (address(), ('127.0.0.2', address()[1])):
    try: s.bind(at)
    except OSError as error: refused.append(error.errno == errno.EINVAL)
mark('same', f'{before == shown()} {refused}')
serve()";
    let supervisor = intercept(code, &[]).serving();
    assert_eq!(supervisor.folder.read("same"), "True [True, True]");
    supervisor.stopped();
}

// handoff-run(1), DESCRIPTION: "A deploy that fails leaves the old generation serving".
#[test]
fn a_generation_that_fails_changes_nothing_on_a_socket_that_all_share() {
    let code = "
s = opened(socket.AF_UNIX, prepare=lambda s: s.setblocking(gen == '1'))
if gen == '2': sys.exit(3)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True: answer(s.accept()[0])";
    let setup = intercept(code, &[]);
    let path = setup.folder.text("s");
    let supervisor = setup.listen(&format!("unix:{path}")).serving();
    assert_eq!(supervisor.reload().code(), 1);
    for _ in 0..3 {
        assert_eq!(supervisor.answer().generation, 1);
    }
    supervisor.stopped();
}

// TCP_MAXSEG and the sizes of buffers read otherwise than they are set.
#[test]
fn a_socket_that_is_used_again_is_as_new() {
    let code = "
def prepare(s):
    if gen == '1':
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 30000)
s = opened(prepare=prepare)
def answer(client):
    client.setblocking(True)
    client.recv(1000)
    mark('segment-' + gen, f'{client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) > 1000} {s.getsockopt(socket.SOL_SOCKET, 72)}')
    client.sendall(f'hello from {gen}, pid {os.getpid()}\\n'.encode())
    client.close()
serve()";
    let supervisor = intercept(code, &[]).serving();
    for generation in 1..=3 {
        assert_eq!(supervisor.answer().generation, generation);
        let expected = if generation == 1 { "False 2" } else { "True 0" };
        assert_eq!(supervisor.folder.read(&format!("segment-{generation}")), expected);
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    }
    supervisor.stopped();
}

// While the old generation stands by the option is off.
#[test]
fn another_supervisor_knows_what_a_program_had_set_on_the_socket_that_stands_by() {
    let code = "
s = opened(prepare=lambda s: s.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 20))
import threading
def look():
    wait_for('look-' + gen)
    mark('defer-' + gen, str(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)))
threading.Thread(target=look, daemon=True).start()
serve()";
    let supervisor = intercept(code, &["--settle", "1h"]).serving();
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.wait_ready(2);
    supervisor.upgrade();
    assert_eq!(supervisor.command("--rollback", &[]).output().code(), 0);
    assert_eq!(reload.output().code(), 1);
    supervisor.folder.open("look-1");
    // The kernel rounds it up to a number of retransmissions.
    assert_eq!(supervisor.folder.read("defer-1"), "31");
    supervisor.stopped();
}
