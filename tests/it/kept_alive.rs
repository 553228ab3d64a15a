//! What generations share survives what one of them does to it: the backlog, the path, and that it listens.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::process::stat;
use crate::harness::socket::ipv6_is_missing;
use crate::harness::{Server, Supervisor, supervise, wait_for};

/// It leaves the backlog of its socket in the file `backlog`.
const SERVER: &str = "mark('backlog', str(int.from_bytes(s.getsockopt(6, 11, 32)[28:], sys.byteorder)))\nserve()";

fn unix(code: &str, options: &[&str]) -> Supervisor {
    let setup = supervise(Server::Python(code), options);
    let path = setup.folder.text("s");
    setup.listen(&format!("unix:{path}")).serving()
}

/// The backlog that the socket has by now, as a new generation sees it at its start.
fn backlog_now(supervisor: &Supervisor) -> String {
    supervisor.rewrite(Server::Python(SERVER));
    assert_eq!(supervisor.reload().failure(), (0, ""));
    supervisor.folder.read("backlog")
}

#[test]
fn a_release_that_fails_leaves_the_backlog_as_it_was() {
    for options in [&["--backlog", "77"], &["--ready", "notify"]] {
        let supervisor = supervise(Server::Python("say('READY=1')\nserve()"), options).serving();
        let short = "s.listen(1)\nmark('short')\nwait_for('end')\nsys.exit(3)";
        supervisor.rewrite(Server::Python(short));
        supervisor.signal(Signal::SIGHUP);
        supervisor.folder.read("short");
        supervisor.folder.open("end");
        supervisor.wait_gone(2);
        let expected = if options[0] == "--backlog" { "77".into() } else { most() };
        supervisor.rewrite(Server::Python(&format!("say('READY=1')\n{SERVER}")));
        assert_eq!(supervisor.reload().failure(), (0, ""));
        assert_eq!(supervisor.folder.read("backlog"), expected);
        supervisor.stopped();
    }
}

fn most() -> String {
    fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().to_owned()
}

// Until a minute later, when it was given up, the one that serves had a backlog of 1.
#[test]
fn a_release_that_hangs_does_not_shorten_the_backlog_of_the_one_that_serves() {
    let code = "if gen == '2':\n    s.listen(1)\n    mark('short')\n    wait_for('never')\n\
                signal.signal(signal.SIGALRM, lambda *_: 0)\n\
                def look(*_): mark('look', str(int.from_bytes(s.getsockopt(6, 11, 32)[28:], sys.byteorder)))\n\
                signal.signal(signal.SIGUSR1, look)\nserve()";
    let supervisor = supervise(Server::Python(code), &["--backlog", "77"]).serving();
    supervisor.signal(Signal::SIGHUP);
    supervisor.folder.read("short");
    wait_for("the backlog to be restored", || {
        let _ = fs::remove_file(supervisor.folder.path("look"));
        supervisor.signal(Signal::SIGUSR1);
        (supervisor.folder.read("look") == "77").then_some(())
    });
}

#[test]
fn the_backlog_of_an_inherited_socket_is_restored_too() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let setup = supervise(Server::Python("serve()"), &[]).listen(&address);
    let supervisor = setup.run(|run| run.inherit(&listener, 3)).serving();
    supervisor.rewrite(Server::Python("s.listen(1)\nsys.exit(3)"));
    assert_eq!(supervisor.reload().code(), 1);
    assert_eq!(backlog_now(&supervisor), "128");
    supervisor.stopped();
}

/// Unlink the path when asked to stop, as php-fpm and twisted do.
const UNLINK_AT_END: &str = "signal.signal(signal.SIGTERM, lambda *_: (os.unlink(path('s')), os._exit(0)))\nserve()";

#[test]
fn a_path_that_the_old_generation_removes_leads_to_the_new_one() {
    let supervisor = unix(UNLINK_AT_END, &[]);
    let before = fs::symlink_metadata(supervisor.folder.path("s")).unwrap().ino();
    for generation in 2..4 {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        supervisor.wait_log_times(generation - 1, "/s was removed and is restored\n");
        assert_eq!(supervisor.answer().generation, generation as u64);
    }
    assert_eq!(fs::symlink_metadata(supervisor.folder.path("s")).unwrap().ino(), before);
    let folder = supervisor.folder.clone();
    supervisor.stopped();
    // At the end of all it may go; and what keeps it goes too.
    assert!(!folder.names().iter().any(|name| name.contains('s') && name != "server.py"), "{:?}", folder.names());
}

/// Anybody may do it, at any time.
#[test]
fn a_path_that_goes_is_restored_however_it_went() {
    let supervisor = unix("serve()", &[]);
    let (path, away) = (supervisor.folder.path("s"), supervisor.folder.path("away"));
    let removals: [&dyn Fn(); 4] = [
        &|| fs::remove_file(&path).unwrap(),
        &|| fs::rename(&path, &away).unwrap(),
        // The second name alone is no loss, and comes back before the first one goes.
        &|| {
            fs::remove_file(supervisor.folder.path(".s.kept")).unwrap();
            wait_for("the link", || supervisor.folder.path(".s.kept").exists().then_some(()));
            fs::remove_file(&path).unwrap();
        },
        // Another socket, which is dead by then.
        &|| {
            drop(UnixListener::bind(supervisor.folder.path("other")).unwrap());
            fs::rename(supervisor.folder.path("other"), &path).unwrap();
        },
    ];
    for (at, remove) in removals.iter().enumerate() {
        remove();
        supervisor.wait_log_times(at + 1, "/s was removed and is restored\n");
        assert_eq!(supervisor.answer().generation, 1);
    }
    supervisor.stopped();
}

#[test]
fn a_path_that_goes_is_restored_by_a_new_supervisor_too() {
    let supervisor = unix("serve()", &[]);
    supervisor.upgrade();
    fs::remove_file(supervisor.folder.path("s")).unwrap();
    supervisor.wait_log("/s was removed and is restored\n");
    assert_eq!(supervisor.answer().generation, 1);
    supervisor.stopped();
}

#[test]
fn a_path_that_became_anothers_fails_the_reload_that_shows_it() {
    let rebind = "other = socket.socket(socket.AF_UNIX)\nother.bind(path('t'))\nother.listen()\n\
                  os.rename(path('t'), path('s'))\nserve()";
    let supervisor = unix("serve()", &[]);
    supervisor.rewrite(Server::Python(rebind));
    let path = supervisor.folder.text("s");
    let problem = format!("clients cannot reach {path}: its path is another file's now");
    let output = supervisor.reload();
    assert!(output.code() == 1 && output.stderr.contains(&problem), "{output:?}\n{}", supervisor.log());
    // When that one has gone, and its file is dead, the path is ours again.
    supervisor.rewrite(Server::Python("serve()"));
    supervisor.reload_and_wait();
    supervisor.wait_log(&format!("{path} can be reached again\n"));
    assert_eq!(supervisor.answer().generation, 3);
    assert_eq!(supervisor.reload().failure(), (0, ""));
    supervisor.stopped();
}

/// Nothing is removed that may be wanted by somebody.
#[test]
fn a_path_where_a_file_is_now_is_reported_and_comes_back_when_that_goes() {
    let supervisor = unix("serve()", &[]);
    let path = supervisor.folder.path("s");
    supervisor.folder.write("s", "precious");
    let problem = format!(
        "clients cannot reach {0}: its path is another file's now: {0} exists and is a regular file, \
                           not a socket",
        path.display()
    );
    supervisor.wait_log(&format!("handoff-run: {problem}\n"));
    assert!(supervisor.status(&[]).contains(&format!("\n{problem}\n")), "{}", supervisor.status(&[]));
    assert_eq!(supervisor.reload().failure(), (1, format!("handoff-run: {problem}\n").as_str()));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    supervisor.wait_log("can be reached again\n");
    assert_eq!(supervisor.answer().generation, 3);
    supervisor.stopped();
}

// A supervisor that is killed cannot clean up.
#[test]
fn what_a_killed_supervisor_left_is_cleaned_at_the_next_start() {
    let setup = supervise(Server::Python("serve()"), &[]);
    let (path, link) = (setup.folder.path("s"), setup.folder.path(".s.kept"));
    drop(UnixListener::bind(&link).unwrap());
    let supervisor = setup.listen(&format!("unix:{}", path.display())).serving();
    let inode = |path: &Path| fs::symlink_metadata(path).unwrap().ino();
    assert_eq!(inode(&path), inode(&link));
    supervisor.stopped();
}

#[test]
fn without_a_second_name_it_is_said_and_all_goes_on() {
    let setup = supervise(Server::Python("serve()"), &[]);
    let path = setup.folder.text("s");
    setup.folder.write(".s.kept", "not ours");
    let supervisor = setup.listen(&format!("unix:{path}")).serving();
    supervisor.wait_log(&format!("cannot keep {path} should it be removed: cannot link "));
    fs::remove_file(&path).unwrap();
    supervisor.wait_log(&format!("clients cannot reach {path}: its path was removed and cannot be restored\n"));
    assert_eq!(supervisor.folder.read(".s.kept"), "not ours");
    assert_eq!(supervisor.reload().code(), 1);
    supervisor.stopped();
}

/// Its owner sleeps: poll(2) does not return again and again.
fn assert_sleeps(pid: Pid) {
    wait_for("it to sleep", || (0..100).all(|_| stat(pid).unwrap()[0] == "S").then_some(()));
}

#[test]
fn a_shared_listener_that_a_failing_release_shuts_down_goes_on_listening() {
    for spec in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
        if spec.starts_with('[') && ipv6_is_missing() {
            continue;
        }
        let supervisor = supervise(Server::Python("serve()"), &["--shared"]).listen(spec).serving();
        let address = supervisor.address();
        for how in ["RDWR", "RD", "WR"] {
            // Twice, while the supervisor cannot look: the second time it does not listen.
            let shut = format!("try: s.shutdown(socket.SHUT_{how})\nexcept OSError: pass");
            let send = |signal| format!("os.kill(os.getppid(), signal.{signal})");
            let code = [send("SIGSTOP"), shut.clone(), shut, send("SIGCONT"), "sys.exit(3)".into()].join("\n");
            supervisor.rewrite(Server::Python(&code));
            assert_eq!(supervisor.reload().code(), 1);
            assert_eq!(supervisor.answer().generation, 1, "{how}: {}", supervisor.log());
        }
        supervisor.wait_log_times(2, &format!("{address} was shut down and listens again\n"));
        // One that listens again by itself gets another port.
        supervisor.rewrite(Server::Python("s.shutdown(socket.SHUT_RDWR)\ns.listen()\nsys.exit(3)"));
        assert_eq!(supervisor.reload().code(), 1);
        assert_eq!(supervisor.answer().generation, 1, "{}", supervisor.log());
        assert_sleeps(supervisor.pid);
        supervisor.stopped();
    }
}

// WEBrick's way to stop.
#[test]
fn a_shared_listener_that_the_old_generation_shuts_down_leads_to_the_new_one() {
    let code = "signal.signal(signal.SIGTERM, lambda *_: (s.shutdown(socket.SHUT_RDWR), os._exit(0)))\nserve()";
    let supervisor = supervise(Server::Python(code), &["--shared", "--backlog", "77"]).serving();
    for generation in 2..4 {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        supervisor.wait_log_times(generation - 1, "was shut down and listens again\n");
        assert_eq!(supervisor.answer().generation, generation as u64);
    }
    assert_eq!(backlog_now(&supervisor), "77");
    supervisor.stopped();
}

#[test]
fn a_unix_listener_that_was_shut_down_fails_the_reload_and_is_reported() {
    for how in ["RDWR", "RD"] {
        let supervisor = unix("os.write(9, b'x')\nserve()", &["--ready", "fd:9"]);
        let path = supervisor.folder.text("s");
        supervisor.rewrite(Server::Python(&format!("s.shutdown(socket.SHUT_{how})\nos.write(9, b'x')\nserve()")));
        let problem = format!(
            "clients cannot reach {path}: it was shut down, and only a new start of the supervisor opens it again"
        );
        let output = supervisor.reload();
        assert!(output.code() == 1 && output.stderr.contains(&problem), "{output:?}\n{}", supervisor.log());
        assert!(supervisor.status(&[]).contains(&format!("\n{problem}\n")));
        let json = supervisor.status(&["--json"]);
        assert!(json.contains(&format!("\"problem\":\"{problem}\"")), "{json}");
        assert_sleeps(supervisor.pid);
        supervisor.upgrade();
        wait_for("the successor to report it too", || {
            supervisor.status(&[]).contains(&format!("\n{problem}\n")).then_some(())
        });
        assert_sleeps(supervisor.pid);
        supervisor.stopped();
    }
}

#[test]
fn a_datagram_socket_that_was_shut_down_is_reported() {
    let setup = supervise(Server::Python("select.select([s], [], [])"), &[]);
    let path = setup.folder.text("s");
    let supervisor = setup.listen(&format!("unix-dgram:{path}")).serving();
    let shut = "try: s.shutdown(socket.SHUT_RDWR)\nexcept OSError: pass\nsys.exit(3)";
    supervisor.rewrite(Server::Python(shut));
    assert_eq!(supervisor.reload().code(), 1);
    supervisor.wait_log(&format!("clients cannot reach {path}: it was shut down, and only a new start"));
    assert_sleeps(supervisor.pid);
}
