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
