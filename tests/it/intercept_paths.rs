//! --intercept: which path, or abstract name, is ours.

use std::os::unix::fs::symlink;

use crate::harness::intercept::intercept;
use crate::harness::process::sockets;
use crate::harness::{Supervisor, is_root_to, wait_for};

/// A supervisor that listens at `s` in its folder, and serves.
fn at_path(code: &str) -> Supervisor {
    let setup = intercept(code, &[]);
    let path = setup.folder.text("s");
    setup.listen(&format!("unix:{path}")).serving()
}

// handoff-run(1), INTERCEPTION: "A path is the same file by whatever name".
#[test]
fn a_path_is_ours_by_whatever_name_it_is_opened() {
    // As most servers do it, what is there is removed before.
    let code = "
if gen == '3': os.unlink(address())
for name in ('s', './s', path('link/s'), path('s'), '../' + os.path.basename(folder) + '/s'):
    s = socket.socket(socket.AF_UNIX)
    s.bind(name)
    assert s.getsockname() == address(), s.getsockname()
s.listen()
serve()";
    let setup = intercept(code, &[]);
    symlink(setup.folder.path(""), setup.folder.path("link")).unwrap();
    let path = setup.folder.text("s");
    let supervisor = setup.listen(&format!("unix:{path}")).serving();
    for generation in [2, 3, 4] {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
        assert_eq!(supervisor.answer().generation, generation);
    }
    supervisor.stopped();
}

#[test]
fn a_path_elsewhere_of_the_same_last_name_is_not_ours() {
    let code = "
os.mkdir(path('other-' + gen))
other = socket.socket(socket.AF_UNIX)
other.bind(path('other-' + gen + '/s'))
datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
try: datagrams.bind(address())
except OSError as error: mark('error-' + gen, str(error.errno))
s = opened(socket.AF_UNIX)
assert inode(s) != inode(other)
serve()";
    let supervisor = at_path(code);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    // Of another type, it is the kernel's answer that the name is taken.
    assert_eq!(supervisor.folder.read("error-2"), libc::EADDRINUSE.to_string());
    supervisor.stopped();
}

// The name is looked up by the root directory of the program.
#[test]
fn a_program_with_another_root_is_answered_by_what_its_names_mean() {
    if !is_root_to("change the root directory") {
        return;
    }
    let code = "
os.makedirs(path('s.d'), exist_ok=True)
os.chroot(folder)
os.chdir('/')
other = socket.socket(socket.AF_UNIX)
try: os.unlink('/s.d/s')
except OSError: pass
other.bind('/s.d/s')
s = socket.socket(socket.AF_UNIX)
s.bind('/s')
s.listen()
assert inode(s) != inode(other)
serve()";
    let supervisor = at_path(code);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    assert_eq!(supervisor.answer().generation, 2);
    supervisor.stopped();
}

#[test]
fn an_abstract_name_is_ours_in_its_whole_length() {
    let code = "
name = '\\0' + os.environ['ADDRESS'].lstrip('@')
other = socket.socket(socket.AF_UNIX)
try: other.bind(name + 'x')
except OSError: pass
s = socket.socket(socket.AF_UNIX)
s.bind(name)
s.listen()
mark('inode-' + gen, str(inode(s)))
while True: answer(s.accept()[0])";
    // One of as many bytes as a netlink address has, and a longer one.
    for (n, length) in [9, 30].into_iter().enumerate() {
        let unique = format!("{n}-{}-{}", std::process::id(), "x".repeat(30));
        let setup = intercept(code, &["--stop-signal", "KILL"]);
        let supervisor = setup.listen(&format!("unix:@{}", &unique[..length])).start();
        supervisor.wait_ready(1);
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
        assert_eq!(supervisor.folder.read("inode-1"), supervisor.folder.read("inode-2"));
        supervisor.stop();
    }
}

#[test]
fn unix_sockets_of_every_type_are_given() {
    for (kind, word) in [("socket.SOCK_DGRAM", "dgram"), ("socket.SOCK_SEQPACKET", "seqpacket")] {
        let code = format!(
            "
s = opened(socket.AF_UNIX, {kind})
mark('inode-' + gen, str(inode(s)))
while True: select.select([s], [], [])"
        );
        let setup = intercept(&code, &["--stop-signal", "KILL"]);
        let path = setup.folder.text("s");
        let supervisor = setup.listen(&format!("unix-{word}:{path}")).start();
        for generation in 1..=2 {
            let inode = supervisor.folder.read(&format!("inode-{generation}")).parse().unwrap();
            assert!(sockets(supervisor.pid).contains(&inode));
            assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
        }
    }
}

#[test]
fn a_name_that_leads_nowhere_is_the_kernel_s_affair() {
    let code = "
try: socket.socket(socket.AF_UNIX).bind(path('missing/s'))
except OSError as error: mark('error', str(error.errno))
s = opened(socket.AF_UNIX)
serve()";
    let supervisor = at_path(code);
    assert_eq!(supervisor.folder.read("error"), libc::ENOENT.to_string());
    wait_for("the name", || supervisor.folder.path("s").exists().then_some(()));
    supervisor.stopped();
}
