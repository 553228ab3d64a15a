//! Unix sockets in the file system: who gets in, and when.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};

use crate::harness::log::cannot_listen;
use crate::harness::process::status_field;
use crate::harness::{
    Folder, Output, PROGRAM, Report, Run, Server, handoff_run_with, is_root_to, skip, supervise, wait_for,
};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn without_a_mode_the_umask_decides_and_the_target_has_it_unchanged() {
    let folder = Folder::new();
    for (mask, expected) in [(0o027, 0o750), (0o022, 0o755), (0o177, 0o600), (0, 0o777)] {
        let path = folder.text(&format!("{mask:o}"));
        let set = move || {
            umask(Mode::from_bits_truncate(mask));
            Ok(())
        };
        let report = handoff_run_with(&["-q", "-l", &path, "-l", "127.0.0.1:0", "--"]).before_exec(set).report();
        assert_eq!(mode(path.as_ref()), expected, "umask {mask:o}");
        assert_eq!(umask_of(&report), mask);
        let given = format!("{path}.given,mode=0642");
        let report = handoff_run_with(&["-q", "-l", &given, "--"]).before_exec(set).report();
        assert_eq!((mode(&folder.path(&format!("{mask:o}.given"))), umask_of(&report)), (0o642, mask));
    }
}

fn umask_of(report: &Report) -> u32 {
    u32::from_str_radix(&status_field(report.running.pid(), "Umask"), 8).unwrap()
}

// handoff-run(1): "there is no moment with the wrong mode".
#[test]
fn nobody_gets_in_before_the_socket_has_its_owner_and_listens() {
    let folder = Folder::new();
    let trace = folder.path("trace");
    let calls = "trace=/^(umask|bind|listen)$|chown|chmod";
    let owner = fs::metadata(&folder).unwrap().uid();
    // Nobody can connect to a stream socket that does not listen; a datagram socket is open from the start.
    let table: [(String, &[&str]); 3] = [
        (
            format!("unix:@s,mode=0640,user={owner}"),
            &["umask 0777", "umask 0137", "bind", "umask", "chown", "listen", "exit"],
        ),
        ("unix:@t,mode=0640".into(), &["umask 0777", "umask 0137", "bind", "umask", "listen", "exit"]),
        (
            format!("unix-dgram:@u,mode=0640,user={owner}"),
            &["umask 0777", "umask 0777", "bind", "umask", "chown", "chmod", "exit"],
        ),
    ];
    for (spec, expected) in table {
        let command = [PROGRAM, "-l", &spec.replace('@', &folder.text("")), "--", "true"];
        let traced = Command::new("strace").args(["-e", calls, "-o"]).arg(&trace).args(command).status();
        if !traced.is_ok_and(|status| status.success()) {
            return skip("strace does not run here");
        }
        let lines = fs::read_to_string(&trace).unwrap();
        let acts: Vec<&str> = lines.lines().map(act).collect();
        assert_eq!(acts, expected, "{lines}");
    }
}

// A link in the socket's place was followed: a file that was 0600 became 0666.
#[test]
fn what_is_put_in_the_sockets_place_meanwhile_is_left_alone() {
    let folder = Folder::new();
    let owner = fs::metadata(&folder).unwrap().uid();
    let secret = folder.path("secret");
    fs::write(&secret, "secret").unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    // At bind(2) it is there, at whatever comes next something else is.
    let swaps = ["ln -sf {}/secret {}/s", "ln -f {}/secret {}/s", "rm {}/s; mkdir {}/s", "mv {}/other {}/s"];
    let _other = UnixListener::bind(folder.path("other")).unwrap();
    for swap in swaps {
        let _ = fs::remove_file(folder.path("s"));
        let before = fs::metadata(&secret).unwrap().mode();
        let spec = format!("{},mode=0666,user={owner}", folder.text("s"));
        let swap = swap.replace("{}", folder.as_ref().to_str().unwrap());
        let Some(output) = stopped_after_bind(&spec, &swap) else { return skip("strace does not run here") };
        assert_ne!(output.code(), 0, "{swap}: {output:?}");
        assert!(output.stderr.starts_with(&format!("handoff-run: cannot listen on {spec}: ")), "{output:?}");
        assert_eq!(fs::metadata(&secret).unwrap().mode(), before, "{swap}");
        let _ = fs::remove_dir(folder.path("s"));
    }
}

/// Run it with this SPEC, and once it has called bind(2), do something else before it goes on.
fn stopped_after_bind(spec: &str, act: &str) -> Option<Output> {
    // It stays the child that is started: strace(1) is its grandchild.
    let inject = ["-D", "-o", "/dev/null", "-e", "inject=umask:signal=STOP:when=3"];
    let run = Run::of("strace").args(&inject).args(&[PROGRAM, "-l", spec, "--", "true"]);
    Command::new("strace").arg("-V").output().ok()?;
    let (running, path) = (run.start(), spec.split(',').next().unwrap());
    // From bind(2) on it is there, and then it is stopped before it comes to anything else.
    wait_for("bind(2)", || (fs::symlink_metadata(path).is_ok() || running.has_ended()).then_some(()));
    assert!(Command::new("sh").args(["-c", act]).status().unwrap().success(), "{act}");
    wait_for("the end", || {
        running.signal(Signal::SIGCONT);
        running.has_ended().then_some(())
    });
    Some(running.output())
}

/// What a line of strace(1) is about, on any architecture.
fn act(line: &str) -> &'static str {
    let call = line.split('(').next().unwrap();
    match call {
        "umask" if line.starts_with("umask(0777)") => "umask 0777",
        "umask" if line.starts_with("umask(0137)") => "umask 0137",
        "umask" => "umask",
        "bind" => "bind",
        "listen" => "listen",
        "chown" | "lchown" | "fchownat" => "chown",
        "chmod" | "fchmodat" | "fchmodat2" => "chmod",
        _ => "exit",
    }
}

#[test]
fn an_owner_that_may_not_be_set_is_an_error_and_leaves_no_file() {
    let folder = Folder::new();
    let spec = format!("{},user=12345", folder.text("s"));
    let drop_chown = || {
        const CAP_CHOWN: libc::c_int = 0;
        // SAFETY: prctl with PR_CAPBSET_DROP takes integers. Who is not root has nothing to drop.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_CHOWN) };
        Ok(())
    };
    let output = handoff_run_with(&["-l", &spec, "--", "true"]).before_exec(drop_chown).output();
    let expected = cannot_listen(&spec, "cannot set its owner: EPERM: Operation not permitted");
    assert_eq!(output.failure(), (125, expected.as_str()));
    assert!(folder.names().is_empty());
}

// Whoever may give a file away need not be one who may do anything with others' files.
#[test]
fn a_file_that_is_given_away_is_kept_alive_and_has_its_mode_without_more_privilege() {
    if !is_root_to("give files away") {
        return;
    }
    let drop_fowner = || {
        // CAP_FOWNER, CAP_FSETID and what overrides modes.
        for capability in [1, 2, 3, 4] {
            // SAFETY: prctl with PR_CAPBSET_DROP takes integers.
            Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability) })?;
        }
        Ok(())
    };
    let setup = supervise(Server::Directed, &[]);
    let path = setup.folder.text("s");
    let spec = format!("unix:{path},mode=0660,user=4711,group=4712");
    let supervisor = setup.listen(&spec).run(|run| run.before_exec(drop_fowner)).start();
    supervisor.wait_ready(1);
    let file = fs::metadata(&path).unwrap();
    assert_eq!((file.mode() & 0o777, file.uid(), file.gid(), file.nlink()), (0o660, 4711, 4712, 2));
    fs::remove_file(&path).unwrap();
    supervisor.wait_log(&format!("{path} was removed and is restored\n"));
    assert!(!supervisor.log().contains("cannot keep"), "{}", supervisor.log());
    // A file of another user may not be linked anew.
    if fs::metadata(&path).unwrap().nlink() == 1 {
        supervisor.wait_log(&format!("{path} cannot be restored once more\n"));
    }
    supervisor.stopped();
}
