//! The supervisor's own files, and what it does when processes, descriptors or space run out.

use std::ffi::CString;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::{fs, thread};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, chown, setgid, setgroups, setuid, write};

use crate::harness::client::Clients;
use crate::harness::{Run, Server, Supervisor, is_root_to, skip, supervise};

// handoff-run(1), --pid-file: the supervisor's, once something serves, and removed at the end.
#[test]
fn the_pid_file_is_written_when_something_serves_and_removed_at_the_end() {
    let code = "mark('begun'); wait_for('go'); serve()";
    let setup = supervise(Server::Python(code), &["--pid-file", "pid"]);
    let mut supervisor = setup.start();
    let pid = supervisor.folder.path("pid");
    supervisor.folder.read("begun");
    assert!(!pid.exists());
    supervisor.folder.open("go");
    assert_eq!(supervisor.folder.read("pid"), format!("{}\n", supervisor.pid));
    assert_eq!(supervisor.reload_and_wait().code(), 0);
    assert_eq!(supervisor.folder.read("pid"), format!("{}\n", supervisor.pid));
    assert_eq!(supervisor.stop().code(), 0);
    assert_eq!(supervisor.end().0, 0);
    assert!(!pid.exists());
}

#[test]
fn a_pid_file_that_is_another_s_by_now_stays() {
    let mut supervisor = supervise(Server::Hello, &["--pid-file", "pid"]).serving();
    supervisor.folder.read("pid");
    let pid = supervisor.folder.path("pid");
    fs::write(&pid, "1\n").unwrap();
    assert_eq!(supervisor.stop().code(), 0);
    supervisor.end();
    assert_eq!(fs::read_to_string(pid).unwrap(), "1\n");
}

#[test]
fn no_pid_file_is_left_where_nothing_ever_served() {
    let mut supervisor = supervise(Server::Hello, &["--pid-file", "pid"]).target(&["false"]).start();
    let pid = supervisor.folder.path("pid");
    supervisor.end();
    assert!(!pid.exists());
}

// handoff-run(1): the last supervisor removes a Unix socket's file if it is still its own.
#[test]
fn the_file_of_a_unix_socket_is_removed_at_the_end_if_it_is_our_own() {
    for replaced in [false, true] {
        let setup = supervise(Server::Python("serve()"), &[]);
        let path = setup.folder.path("sock");
        let mut supervisor = setup.listen(path.to_str().unwrap()).serving();
        assert_eq!(supervisor.reload_and_wait().code(), 0);
        let _other = replaced.then(|| {
            // Removed, it would be restored.
            let other = UnixListener::bind(supervisor.folder.path("other")).unwrap();
            fs::rename(supervisor.folder.path("other"), &path).unwrap();
            other
        });
        assert_eq!(supervisor.stop().code(), 0);
        supervisor.end();
        assert_eq!(path.exists(), replaced);
        assert!(!supervisor.folder.path("control").exists());
    }
}

#[test]
fn where_no_process_can_be_made_a_reload_fails_and_the_old_generation_serves() {
    if !is_root_to("become a user of its own") {
        return;
    }
    let setup = supervise(Server::Hello, &[]);
    // Nobody else's processes count for a user that nobody is.
    let user = Uid::from_raw(1_000_000 + std::process::id());
    chown(setup.folder.as_ref().as_ref(), Some(user), None).unwrap();
    let confine = move || {
        // The supervisor, and one generation.
        setrlimit(Resource::RLIMIT_NPROC, 2, 2)?;
        setgroups(&[])?;
        setgid(Gid::from_raw(user.as_raw()))?;
        Ok(setuid(user)?)
    };
    let supervisor = setup.run(|run| run.before_exec(confine)).serving();
    let clients = Clients::of(&supervisor);
    let cause = "EAGAIN: Try again";
    let message = format!("handoff-run: generation 2: cannot be started: cannot fork: {cause}\n");
    assert_eq!(supervisor.reload().failure(), (1, &*message));
    assert_eq!(supervisor.served_by(), supervisor.generation(1));
    assert_eq!(clients.all_served_by().len(), 1);
    supervisor.stopped();
}

fn limit_descriptors(supervisor: &Supervisor, limit: u64) {
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: 1024 };
    let pid = supervisor.pid.as_raw();
    // SAFETY: the new limit is read, and nowhere is the old one to be written.
    Errno::result(unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()) }).unwrap();
}

#[test]
fn where_no_descriptor_is_left_a_reload_fails_and_the_next_one_after_that_succeeds() {
    let supervisor = supervise(Server::Hello, &[]).serving();
    let clients = Clients::of(&supervisor);
    limit_descriptors(&supervisor, 3);
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_log("generation 2: cannot be started: ");
    assert!(supervisor.log().contains("EMFILE: Too many open files\n"), "{}", supervisor.log());
    let old = supervisor.generation(1);
    assert_eq!(supervisor.served_by(), old);
    limit_descriptors(&supervisor, 1024);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert!(clients.all_served_by().contains(&old));
    supervisor.stopped();
}

#[test]
fn clients_of_the_control_socket_wait_while_no_descriptor_is_left() {
    let supervisor = supervise(Server::Hello, &[]).serving();
    limit_descriptors(&supervisor, 3);
    thread::scope(|scope| {
        let reload = scope.spawn(|| supervisor.reload_and_wait());
        supervisor.wait_log("cannot accept on ");
        limit_descriptors(&supervisor, 1024);
        assert_eq!(reload.join().unwrap().failure(), (0, ""));
    });
    supervisor.stopped();
}

#[test]
fn a_disk_that_is_full_keeps_nobody_from_serving_without_a_pid_file() {
    if !is_root_to("mount a tiny disk") {
        return;
    }
    let setup = supervise(Server::Hello, &[]);
    let disk = setup.folder.path("disk");
    fs::create_dir(&disk).unwrap();
    let text = |path: &Path| CString::new(path.to_str().unwrap()).unwrap();
    let (path, full) = (text(&disk), text(&disk.join("full")));
    let mount = move || {
        // SAFETY: unshare takes an integer.
        Errno::result(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: every pointer is null or a string.
        let made = unsafe { libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), private, std::ptr::null()) };
        Errno::result(made)?;
        let (kind, size) = (c"tmpfs".as_ptr(), c"size=4k".as_ptr());
        // SAFETY: every pointer is a string.
        Errno::result(unsafe { libc::mount(kind, path.as_ptr(), kind, 0, size.cast()) })?;
        let full = open(full.as_c_str(), OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRUSR)?;
        while write(&full, &[0; 4096]).is_ok() {}
        Ok(())
    };
    let pid_file = disk.join("pid");
    let options = ["--pid-file".as_ref(), pid_file.as_os_str()];
    let supervisor = setup.options(&options).run(|run| run.before_exec(mount)).serving();
    let error = format!("cannot write {}: ENOSPC: No space left on device", pid_file.display());
    supervisor.wait_log(&error);
    assert_eq!(supervisor.served_by(), supervisor.generation(1));
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    supervisor.stopped();
}

// "After exec we cost nothing"; staying as the parent costs next to nothing.
#[test]
fn a_supervisor_with_nothing_to_do_makes_no_system_call_and_is_small() {
    let supervisor = supervise(Server::Hello, &[]).serving();
    assert_eq!(supervisor.reload_and_wait().code(), 0);
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", supervisor.pid)).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    let anonymous: u64 = line.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(anonymous < 1024, "{anonymous} kB");
    if Run::of("sh").args(&["-c", "command -v strace"]).output().code() != 0 {
        return skip("there is no strace");
    }
    let trace = supervisor.folder.path("trace");
    let pid = supervisor.pid.to_string();
    let tracer = Run::of("timeout").args(&["-s", "INT", "2", "strace", "-o"]).args(&[&trace]).args(&["-p", &pid]);
    let output = tracer.output();
    let Ok(calls) = fs::read_to_string(&trace) else { return skip(&output.stderr) };
    // The one that it was in when the tracer came, and is still in.
    let calls: Vec<&str> = calls.lines().collect();
    let waits =
        |line: &&str| (line.contains("poll") || line.contains("restart_syscall")) && line.ends_with("<detached ...>");
    assert!(calls.len() <= 1 && calls.iter().all(waits), "{calls:?} {}", output.stderr);
    supervisor.stopped();
}
