//! --intercept where it cannot work, and where the program opens something else: what is said, and that nothing is started.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use nix::errno::Errno;

use crate::harness::filter::{Answer, deny};
use crate::harness::intercept::intercept;
use crate::harness::run::copy_program;
use crate::harness::{Folder, Output, Run, handoff_run_with, is_root_to};

const OTHERWISE: &str =
    "handoff-run: leave --intercept out, and hand the socket over: see 'handoff-run --help-servers'\n";
const PERMIT: &str = "handoff-run: in a unit: SystemCallFilter=@system-service seccomp pidfd_getfd; in a container: --cap-add \
                      SYS_PTRACE, and a seccomp profile that has them\n";

/// handoff-run --intercept of this program.
fn run(program: &str) -> Run {
    handoff_run_with(&["-l", "127.0.0.1:0", "--supervise", "--intercept", "--", program])
}

#[track_caller]
fn refused(output: &Output, why: &str, remedy: &str) {
    let expected = format!("handoff-run: --intercept does not work here: {why}\n{remedy}");
    assert_eq!(output.failure(), (125, expected.as_str()));
}

// handoff-run(1), INTERCEPTION: "What it needs".
#[test]
fn what_is_forbidden_is_named_before_anything_is_started() {
    for (call, name) in [
        (libc::SYS_seccomp, "seccomp"),
        (libc::SYS_process_vm_readv, "process_vm_readv"),
        (libc::SYS_pidfd_getfd, "pidfd_getfd"),
    ] {
        let output = run("true").before_exec(deny(call, Answer::Error(Errno::EPERM))).output();
        refused(&output, &format!("{name} fails: EPERM: Operation not permitted"), PERMIT);
        let output = run("true").before_exec(deny(call, Answer::Kill)).output();
        refused(&output, &format!("{name}: a try was ended by SIGSYS"), PERMIT);
    }
    // Another seccomp user. And a kernel that is too old does not know the flag.
    let output = run("true").before_exec(deny(libc::SYS_seccomp, Answer::Error(Errno::EBUSY))).output();
    let busy = "a seccomp filter with a notifier is in force already, as within another --intercept, or of a container \
                manager";
    refused(&output, busy, OTHERWISE);
    let output = run("true").before_exec(deny(libc::SYS_seccomp, Answer::Error(Errno::EINVAL))).output();
    refused(&output, "this kernel cannot put a descriptor into another process, as Linux 5.9 can", OTHERWISE);
}

#[test]
fn one_within_another_is_refused() {
    let inner = "
import subprocess
program = os.environ['PROGRAM']
line = [program, '-l', '127.0.0.1:0', '--supervise', '--intercept', '--', 'true']
inner = subprocess.run(line, capture_output=True, text=True)
mark('inner', f'{inner.returncode} {inner.stderr}')
s = opened()
serve()";
    let supervisor = intercept(inner, &["--env", &format!("PROGRAM={}", crate::harness::PROGRAM)]).serving();
    let told = supervisor.folder.read("inner");
    assert!(
        told.starts_with("125 handoff-run: --intercept does not work here: a seccomp filter with a notifier"),
        "{told}"
    );
    supervisor.stopped();
}

#[test]
fn a_program_of_32_bits_is_refused() {
    let folder = Folder::new();
    // elf(5): all that is looked at, and that file(1) needs.
    let mut head = b"\x7fELF\x01\x01\x01".to_vec();
    head.resize(64, 0);
    fs::write(folder.path("old"), head).unwrap();
    fs::set_permissions(folder.path("old"), Permissions::from_mode(0o755)).unwrap();
    folder.write("script", &format!("#!{} -x\n", folder.text("old")));
    fs::set_permissions(folder.path("script"), Permissions::from_mode(0o755)).unwrap();
    for name in ["old", "script"] {
        let path = folder.text(name);
        let output = run(&path).output();
        assert_eq!(output.code(), 125);
        let told = format!(
            "handoff-run: generation 1: --intercept does not work here: {path} is a program of 32 bits, whose system calls are \
             not reported; hand the socket over, without --intercept\n"
        );
        assert!(output.stderr.contains(&told), "{output:?}");
    }
}

// handoff-run(1), INTERCEPTION: "no_new_privs".
#[test]
fn a_program_that_would_gain_privileges_is_warned_of_where_it_will_not() {
    if !is_root_to("make a file set-uid and be somebody else") {
        return;
    }
    let folder = Folder::new();
    copy_program("/bin/true", folder.path("plain"));
    copy_program("/bin/true", folder.path("set-uid"));
    copy_program("/bin/true", folder.path("capable"));
    fs::set_permissions(folder.path("set-uid"), Permissions::from_mode(0o4755)).unwrap();
    // linux/capability.h: version 2, CAP_NET_BIND_SERVICE permitted.
    let capability: Vec<u8> = [0x0200_0000_u32, 1 << 10, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let path = std::ffi::CString::new(folder.text("capable")).unwrap();
    // SAFETY: the strings and the bytes live through the call.
    let set = unsafe {
        libc::setxattr(path.as_ptr(), c"security.capability".as_ptr(), capability.as_ptr().cast(), capability.len(), 0)
    };
    let program = folder.path("handoff-run");
    copy_program(crate::harness::PROGRAM, &program);
    fs::set_permissions(folder.path(""), Permissions::from_mode(0o755)).unwrap();
    let run = |name: &str, is_root: bool| {
        let path = folder.text(name);
        let line = ["-l", "127.0.0.1:0", "--supervise", "--intercept", "--", path.as_str()];
        let run = Run::of(&program).args(&line).current_dir("/");
        // SAFETY: these take integers.
        let run = run.before_exec(move || match is_root || unsafe { libc::setgid(65534) + libc::setuid(65534) } == 0 {
            true => Ok(()),
            false => Err(std::io::Error::last_os_error()),
        });
        run.output().stderr
    };
    let told = |name: &str| {
        format!(
            "handoff-run: {} is set-uid or set-gid, or has file capabilities, and gets none of that: --intercept without \
             CAP_SYS_ADMIN sets no_new_privs\n",
            folder.text(name)
        )
    };
    for name in ["set-uid", "capable"].into_iter().take(if set == 0 { 2 } else { 1 }) {
        assert!(run(name, false).contains(&told(name)), "{}", run(name, false));
        assert!(!run(name, true).contains("no_new_privs"), "{}", run(name, true));
    }
    assert!(!run("plain", false).contains("no_new_privs"));
    // It is set only where it has to be.
    copy_program("/bin/grep", folder.path("look"));
    let program =
        [program.to_str().unwrap(), "-q", "-l", "127.0.0.1:0", "--supervise", "--intercept", "--"].map(str::to_owned);
    let look = [folder.text("look"), "NoNewPrivs".into(), "/proc/self/status".into()];
    let user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"].map(str::to_owned);
    for (words, set) in [(&[][..], "0"), (&user[..], "1")] {
        let line = [words, &program, &look].concat();
        let output = Run::of(&line[0]).args(&line[1..]).current_dir("/").output();
        assert_eq!(output.stdout, format!("NoNewPrivs:\t{set}\n"), "{output:?}");
    }
}

// handoff-run(1), INTERCEPTION: "the report names the address and the line that would work".
#[test]
fn one_that_opens_another_address_is_told_which_line_works() {
    let code = "
s = socket.create_server(('127.0.0.1', 0))
mark('port', str(s.getsockname()[1]))
serve()";
    let mut supervisor = intercept(code, &["--ready-timeout", "5s"]).start();
    let port = supervisor.folder.read("port");
    // Before its time is over, too.
    supervisor.wait_log(&format!("generation 1: not ready yet: it listens on 127.0.0.1:{port}, not on our socket\n"));
    let (status, log) = supervisor.end();
    assert_eq!(status, 137, "{log}");
    let ours = supervisor.address();
    let told = format!(
        "it listens on 127.0.0.1:{port}, not on our socket\n\
         handoff-run: let it listen on {ours}, or use --listen 127.0.0.1:{port}\n"
    );
    assert!(log.contains(&told), "{log}");
}

#[test]
fn one_that_opens_nothing_is_told_where_it_would_get_its_socket() {
    let mut supervisor = intercept("sys.exit(3)", &[]).start();
    let (status, log) = supervisor.end();
    assert_eq!(status, 3, "{log}");
    let told = format!(
        "handoff-run: generation 1: ended with status 3 before it was ready\n\
         handoff-run: it gets its socket when it binds {} itself; see what it wrote to the supervisor's stderr\n",
        supervisor.address()
    );
    assert!(log.contains(&told), "{log}");
}

#[test]
fn one_that_ends_though_it_had_its_socket_is_not_told_how_to_get_it() {
    let mut supervisor = intercept("s = opened()\nsys.exit(3)", &[]).start();
    let (status, log) = supervisor.end();
    assert_eq!(status, 3, "{log}");
    let told =
        "handoff-run: it had got its socket, so see what it wrote to the supervisor's stderr, or to its own log\n";
    assert!(log.contains(told), "{log}");
}

// As nginx does it, whose title is written over its environment.
#[test]
fn a_daemon_that_nothing_marks_is_found_by_its_socket_and_ended() {
    let code = "
import ctypes
s = opened()
gone, here = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() != 0: os._exit(0)
    start, end = (int(field) for field in open('/proc/self/stat').read().rsplit(')', 1)[1].split()[47:49])
    ctypes.memset(start, 0, end - start)
    mark('daemon', str(os.getpid()))
    os.write(here, b'x')
    signal.pause()
os.wait()
os.read(gone, 1)";
    for options in [&["--shared"][..], &[]] {
        let mut supervisor = intercept(code, options).start();
        let daemon = supervisor.folder.read("daemon");
        let (status, log) = supervisor.end();
        assert_eq!(status, 1, "{log}");
        assert!(
            log.contains("ended with status 0 and left 1 process in the background before it was ready\n"),
            "{log}"
        );
        assert!(!fs::exists(format!("/proc/{daemon}")).unwrap(), "{log}");
    }
}

// handoff-run(1), INTERCEPTION: "the program then listens where --listen says".
#[test]
fn one_that_wanted_clients_of_this_machine_alone_is_warned_of_the_others() {
    let supervisor = intercept("s = opened(host='127.0.0.1')\nserve()", &[]).listen("0.0.0.0:0").start();
    supervisor.wait_ready(1);
    let port = supervisor.address().rsplit(':').next().unwrap().to_owned();
    let told = format!(
        "handoff-run: the program asked for 127.0.0.1:{port}, and can be reached on every interface: --listen 127.0.0.1:{port} \
         would keep it local\n"
    );
    supervisor.wait_log(&told);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert_eq!(supervisor.log().matches("would keep it local").count(), 1);
    supervisor.stopped();
}

// As php-fpm does it.
#[test]
fn one_that_connects_to_its_path_first_is_told_what_works() {
    let code = "
socket.socket(socket.AF_UNIX).connect(address())
sys.exit(78)";
    let setup = intercept(code, &[]);
    let path = setup.folder.text("s");
    let (status, log) = setup.listen(&format!("unix:{path}")).start().end();
    assert_eq!(status, 78, "{log}");
    let told = format!(
        "handoff-run: it gets its socket when it binds {path} itself, not when it first connects there: then hand it over, \
         without --intercept; see what it wrote to the supervisor's stderr\n"
    );
    assert!(log.contains(&told), "{log}");
}

// handoff-run(1), INTERCEPTION: "A further port that a server opens, as for metrics, wants a --listen of its own".
#[test]
fn one_whose_other_port_is_not_listed_is_told_to_list_it() {
    let code = "
if gen == '1': mark('port', str(socket.create_server(('127.0.0.1', 0)).getsockname()[1]))
try: other = socket.create_server(('127.0.0.1', int(open(path('port')).read())))
except OSError as error:
    if gen != '1': raise
    other = socket.create_server(('127.0.0.1', 0))
    mark('port', str(other.getsockname()[1]))
s = opened()
serve()";
    let supervisor = intercept(code, &[]).serving();
    let port = supervisor.folder.read("port");
    supervisor.wait_log(&format!("generation 1: also listens on 127.0.0.1:{port}, which it opened itself: "));
    let output = supervisor.reload();
    let told = format!(
        "handoff-run: generation 2: ended with status 1 before it was ready\n\
         handoff-run: the one that serves has opened 127.0.0.1:{port} itself; if this one failed because of that, add --listen \
         127.0.0.1:{port}\n"
    );
    assert_eq!(output.failure(), (1, told.as_str()));
    assert_eq!(supervisor.answer().generation, 1);
    supervisor.stopped();
}

// handoff-run(1), --intercept.
#[test]
fn a_server_that_opens_its_address_without_it_is_told_of_it() {
    let code = "
import os
host, port = os.environ['ADDRESS'].rsplit(':', 1)
socket.socket().bind((host, int(port)))";
    let setup = crate::harness::supervise(crate::harness::Server::Python(code), &["--env", "ADDRESS={addr}"]);
    let mut supervisor = setup.start();
    let (status, log) = supervisor.end();
    assert_eq!(status, 1, "{log}");
    assert!(log.contains("handoff-run: if it tried to bind 127.0.0.1:"), "{log}");
    assert!(log.contains(" for how servers take it, or use --intercept\n"), "{log}");
}

#[test]
fn what_has_no_meaning_with_it_is_a_mistake() {
    for (options, told) in [
        (&["--supervise", "--intercept", "--as", "nginx"][..], "'--intercept' cannot be used with '--as <SERVER>'"),
        (&["--supervise", "--intercept", "--stdin"], "'--intercept' cannot be used with '--stdin'"),
        (&["--supervise", "--intercept", "--first-fd", "5"], "'--intercept' cannot be used with '--first-fd <N>'"),
        (&["--supervise", "--intercept", "--no-pid"], "'--intercept' cannot be used with '--no-pid'"),
        (&["--intercept"], "--supervise"),
        (
            &["--supervise", "--intercept", "--env", "X={fd}"],
            "{fd} has no meaning with --intercept, for the program opens its socket itself",
        ),
    ] {
        let output = handoff_run_with(&["-l", "127.0.0.1:0"]).args(options).args(&["--", "true"]).output();
        assert_eq!(output.code(), 125, "{output:?}");
        assert!(output.stderr.contains(told), "{output:?}");
    }
}
