//! --pid-file: written whole before the program runs, or not at all.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkfifo};

use crate::harness::socket::tcp;
use crate::harness::{Folder, Output, Run, Server, handoff_run_with, is_root_to, supervise};

// handoff-run(1), --pid-file: "Write the process id to this file before becoming PROGRAM".
#[test]
fn the_program_finds_its_own_pid_in_the_file() {
    let folder = Folder::new();
    let file = folder.text("app.pid");
    let running = handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--pid-file", &file, "--", "cat", &file]).start();
    let pid = running.pid();
    assert_eq!(running.output().stdout, format!("{pid}\n"));
    assert_eq!(folder.names(), ["app.pid"]);
}

// "Written whole or not at all": whoever has the old file open keeps reading the old number.
#[test]
fn an_old_file_is_replaced_and_not_written_over() {
    let folder = Folder::new();
    fs::write(folder.path("app.pid"), "1234567 and more than that\n").unwrap();
    fs::hard_link(folder.path("app.pid"), folder.path("old")).unwrap();
    let file = folder.text("app.pid");
    let running = handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--pid-file", &file, "--", "true"]).start();
    let pid = running.pid();
    assert_eq!(running.output().failure(), (0, ""));
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{pid}\n"));
    assert_eq!(fs::read_to_string(folder.path("old")).unwrap(), "1234567 and more than that\n");
    assert_ne!(fs::metadata(&file).unwrap().ino(), fs::metadata(folder.path("old")).unwrap().ino());
    assert_eq!(folder.names(), ["app.pid", "old"]);
}

// It may be the predecessor's, which goes on serving.
#[test]
fn the_file_is_as_it_was_if_the_program_cannot_run() {
    let folder = Folder::new();
    let line = ["-q", "-l", "127.0.0.1:0", "--pid-file", &folder.text("app.pid"), "--", "/nonexistent/program"];
    assert_eq!(handoff_run_with(&line).output().code(), 127);
    assert_eq!(folder.names(), [""; 0]);
    fs::write(folder.path("app.pid"), "42\n").unwrap();
    assert_eq!(handoff_run_with(&line).output().code(), 127);
    assert_eq!(fs::read_to_string(folder.path("app.pid")).unwrap(), "42\n");
    assert_eq!(folder.names(), ["app.pid"]);
}

#[test]
fn the_file_is_not_written_if_a_socket_cannot_be_bound() {
    let folder = Folder::new();
    let (_holder, address) = tcp();
    let line = ["-q", "-l", &address, "--pid-file", &folder.text("app.pid"), "--", "true"];
    assert_eq!(handoff_run_with(&line).output().code(), 125);
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn a_folder_that_is_not_there_is_an_error_and_leaves_no_socket() {
    let folder = Folder::new();
    let file = folder.text("missing/app.pid");
    let output = handoff_run_with(&["-l", &folder.text("s"), "--pid-file", &file, "--", "true"]).output();
    let message = format!(
        "handoff-run: cannot write {file}: ENOENT: No such file or directory\nhandoff-run: there is no folder {}\n",
        folder.text("missing")
    );
    assert_eq!(output.failure(), (125, message.as_str()));
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn a_folder_in_place_of_the_file_is_an_error() {
    let folder = Folder::new();
    let file = folder.text(".");
    let output = handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--pid-file", &file, "--", "true"]).output();
    let message = format!("handoff-run: cannot write {file}: EISDIR: Is a directory\n");
    assert_eq!(output.failure(), (125, message.as_str()));
}

/// handoff-run with this pid file, which becomes `program`.
fn run(file: &str, program: &str) -> Run {
    handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--pid-file", file, "--", program])
}

/// It ran: the pid that it had, as the file has it.
#[track_caller]
fn written(run: Run) -> String {
    let running = run.start();
    let pid = running.pid();
    assert_eq!(running.output().failure(), (0, ""));
    format!("{pid}\n")
}

/// Mode, owner and group.
fn access(path: &Path) -> (u32, u32, u32) {
    let file = fs::symlink_metadata(path).unwrap();
    (file.mode(), file.uid(), file.gid())
}

// A program that could not run left a secret readable by all.
#[test]
fn a_file_keeps_its_mode_and_owner_and_a_link_to_it_stays_a_link() {
    let folder = Folder::new();
    let (file, link) = (folder.path("file"), folder.text("link"));
    fs::write(&file, "secret\n").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o620)).unwrap();
    if geteuid().is_root() {
        chown(&file, Some(12345), Some(54321)).unwrap();
    }
    symlink("second", &link).unwrap();
    symlink(&file, folder.path("second")).unwrap();
    let (before, link_before) = (access(&file), access(link.as_ref()));
    assert_eq!(run(&link, "/nonexistent/program").output().code(), 127);
    assert_eq!((fs::read_to_string(&file).unwrap().as_str(), access(&file)), ("secret\n", before));
    assert_eq!(written(run(&link, "true")), fs::read_to_string(&file).unwrap());
    assert_eq!((access(&file), access(link.as_ref())), (before, link_before));
    assert_eq!(folder.names(), ["file", "link", "second"]);
}

#[test]
fn a_link_to_nothing_leads_to_the_new_file() {
    let folder = Folder::new();
    symlink("new", folder.path("link")).unwrap();
    assert_eq!(run(&folder.text("link"), "/nonexistent/program").output().code(), 127);
    assert_eq!(folder.names(), ["link"]);
    assert_eq!(written(run(&folder.text("link"), "true")), fs::read_to_string(folder.path("new")).unwrap());
    symlink("loop", folder.path("loop")).unwrap();
    let message =
        format!("handoff-run: cannot write {}: ELOOP: Too many symbolic links encountered\n", folder.text("loop"));
    assert_eq!(run(&folder.text("loop"), "true").output().failure(), (125, message.as_str()));
}

// A device became a file, and a FIFO without a reader was waited for.
#[test]
fn what_is_no_regular_file_is_an_error_at_once() {
    let folder = Folder::new();
    mkfifo(&folder.path("fifo"), Mode::from_bits_truncate(0o666)).unwrap();
    let _socket = UnixListener::bind(folder.path("socket")).unwrap();
    symlink("/dev/null", folder.path("device")).unwrap();
    for name in ["fifo", "socket", "device"] {
        let (file, before) = (folder.text(name), access(&folder.path(name)));
        let message = format!("handoff-run: cannot write {file}: it is not a regular file\n");
        assert_eq!(run(&file, "true").output().failure(), (125, message.as_str()));
        assert_eq!(access(&folder.path(name)), before);
        // It is no reason to end what serves.
        let supervisor = supervise(Server::Hello, &["--pid-file", &file]).serving();
        supervisor.wait_log(&message);
        supervisor.stopped();
        assert_eq!(access(&folder.path(name)), before);
    }
}

// With pid 1 it was the same name at each start.
#[test]
fn what_earlier_starts_left_is_no_obstacle() {
    let folder = Folder::new();
    let line = "touch .handoff-run-$$-1 .handoff-run-$$-2; exec \"$0\" \"$@\"";
    let shell = Run::of("sh").args(&["-c", line, crate::harness::PROGRAM, "-q", "-l", "127.0.0.1:0"]);
    let running = shell.args(&["--pid-file", "pid", "--", "true"]).current_dir(&folder).start();
    let pid = running.pid();
    assert_eq!(running.output().failure(), (0, ""));
    assert_eq!(fs::read_to_string(folder.path("pid")).unwrap(), format!("{pid}\n"));
    assert_eq!(folder.names(), [format!(".handoff-run-{pid}-1"), format!(".handoff-run-{pid}-2"), "pid".into()]);
}

// In a folder of another user root wrote wherever that user's link led.
#[test]
fn another_users_link_is_followed_only_to_what_is_that_users() {
    if !is_root_to("make links of other users") {
        return;
    }
    let folder = Folder::new();
    let link = folder.text("link");
    let stranger = |to: &str, owner| {
        let _ = fs::remove_file(&link);
        symlink(to, &link).unwrap();
        lchown(&link, Some(owner), Some(owner)).unwrap();
    };
    fs::write(folder.path("secret"), "secret").unwrap();
    let message =
        format!("handoff-run: cannot write {link}: it is another user's symbolic link to what is not that user's\n");
    for to in ["secret", "nothing"] {
        stranger(to, 12345);
        assert_eq!(run(&link, "true").output().failure(), (125, message.as_str()));
    }
    assert_eq!(fs::read_to_string(folder.path("secret")).unwrap(), "secret");
    assert_eq!(folder.names(), ["link", "secret"]);
    chown(folder.path("secret"), Some(12345), None).unwrap();
    stranger("secret", 12345);
    assert_eq!(written(run(&link, "true")), fs::read_to_string(folder.path("secret")).unwrap());
}

/// Root, too, may write only where the mode allows it.
fn without_override() -> io::Result<()> {
    for capability in [1, 2] {
        // SAFETY: prctl with PR_CAPBSET_DROP takes integers. Who is not root has nothing to drop.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability) };
    }
    Ok(())
}

// "In place where only the file is ours and not its folder."
#[test]
fn a_file_in_a_folder_that_is_not_ours_is_written_in_place() {
    let folder = Folder::new();
    let sub = folder.path("sub");
    fs::create_dir(&sub).unwrap();
    let file = folder.text("sub/pid");
    fs::write(&file, "1234567 and more\n").unwrap();
    let inode = fs::metadata(&file).unwrap().ino();
    fs::set_permissions(&sub, Permissions::from_mode(0o555)).unwrap();
    let run = |program: &str| run(&file, program).before_exec(without_override);
    assert_eq!(run("/nonexistent/program").output().code(), 127);
    assert_eq!(fs::read_to_string(&file).unwrap(), "1234567 and more\n");
    assert_eq!(written(run("true")), fs::read_to_string(&file).unwrap());
    assert_eq!(fs::metadata(&file).unwrap().ino(), inode);
    // The supervisor's own, which it cannot remove, is left empty.
    let setup = supervise(Server::Hello, &["--pid-file", &file]).run(|run| run.before_exec(without_override));
    let supervisor = setup.serving();
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{}\n", supervisor.pid));
    supervisor.stopped();
    assert_eq!(fs::read_to_string(&file).unwrap(), "");
    let missing: Output =
        handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--pid-file", &folder.text("sub/new"), "--", "true"])
            .before_exec(without_override)
            .output();
    let message = format!("handoff-run: cannot write {}: EACCES: Permission denied\n", folder.text("sub/new"));
    assert_eq!(missing.failure(), (125, message.as_str()));
    fs::set_permissions(&sub, Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_supervisor_leaves_alone_what_another_wrote() {
    let supervisor = supervise(Server::Hello, &["--pid-file", "pid"]).serving();
    let folder = supervisor.folder.clone();
    folder.read("pid");
    folder.write("pid", "42\n");
    supervisor.stopped();
    assert_eq!(fs::read_to_string(folder.path("pid")).unwrap(), "42\n");
}
