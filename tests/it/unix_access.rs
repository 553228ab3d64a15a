//! Unix sockets in the file system: who gets in, and when.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use nix::sys::stat::{Mode, umask};

use crate::harness::log::cannot_listen;
use crate::harness::process::status_field;
use crate::harness::{Folder, PROGRAM, Report, handoff_run_with, skip};

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
    let spec = format!("{},mode=0640,user={owner}", folder.text("s"));
    let command = [PROGRAM, "-l", &spec, "--", "true"];
    let traced = Command::new("strace").args(["-e", calls, "-o"]).arg(&trace).args(command).status();
    if !traced.is_ok_and(|status| status.success()) {
        return skip("strace does not run here");
    }
    let lines = fs::read_to_string(&trace).unwrap();
    let acts: Vec<&str> = lines.lines().map(act).collect();
    assert_eq!(acts, ["umask 0777", "bind", "umask", "chown", "listen", "chmod", "exit"], "{lines}");
}

/// What a line of strace(1) is about, on any architecture.
fn act(line: &str) -> &'static str {
    let call = line.split('(').next().unwrap();
    match call {
        "umask" if line.starts_with("umask(0777)") => "umask 0777",
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
