//! Raised rights: set-uid and set-gid use is refused, a file capability is not.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

use crate::harness::namespace::in_namespace;
use crate::harness::{Folder, PROGRAM, Run, is_root_to, skip};

const OTHER: u32 = 65534;

/// A copy of the program in a folder that everybody may enter; none where it would get no rights.
fn copy() -> Option<(Folder, String)> {
    if !is_root_to("give a program rights of its own") {
        return None;
    }
    let folder = Folder::new();
    if statvfs(folder.as_ref()).unwrap().flags().contains(FsFlags::ST_NOSUID) {
        skip("the folder for temporary files is mounted with nosuid");
        return None;
    }
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
    let program = folder.text("handoff-run");
    // A file that this process has open for writing is busy, and so it is while a child of another test has it.
    assert_eq!(Run::of("cp").args(&[PROGRAM, &program]).output().code(), 0);
    Some((folder, program))
}

/// A run of it by another user.
fn by_another(program: &str, arguments: &[&str]) -> Run {
    let become_other =
        || setgroups(&[]).and_then(|()| setgid(Gid::from_raw(OTHER))).and_then(|()| setuid(Uid::from_raw(OTHER)));
    Run::of(program).args(arguments).before_exec(move || become_other().map_err(io::Error::from))
}

// handoff-run(1), ENVIRONMENT: "The environment is believed, and so handoff-run refuses to run set-uid or set-gid."
#[test]
fn set_uid_and_set_gid_use_is_refused_before_anything_is_read() {
    let Some((folder, program)) = copy() else { return };
    for (mode, what) in [(0o4755, "user"), (0o2755, "group"), (0o6755, "user")] {
        fs::set_permissions(&program, Permissions::from_mode(mode)).unwrap();
        let message = format!(
            "handoff-run: is not to be set-uid or set-gid: {what} {OTHER} runs it with the rights of {what} 0\n\
             handoff-run: run it by sudo or su; for a low port, 'setcap cap_net_bind_service=+ep' on handoff-run is enough\n"
        );
        let path = folder.text("s");
        for arguments in [&["-l", &path, "--", "true"][..], &["--version"], &["--bogus"], &["--stop", &path]] {
            let output = by_another(&program, arguments).env("HANDOFF_LOG", "loud").output();
            assert_eq!((output.failure(), output.stdout.as_str()), ((125, message.as_str()), ""), "{arguments:?}");
        }
        // To its owner it brings nothing.
        let output = Run::of(&program).args(&["-q", "-l", "127.0.0.1:0", "--", "true"]).output();
        assert_eq!(output.failure(), (0, ""));
    }
    assert_eq!(folder.names(), ["handoff-run"]);
}

/// Give a file CAP_NET_BIND_SERVICE, permitted and effective: what setcap(8) writes.
fn allow_low_ports(program: &Path) -> nix::Result<()> {
    // linux/capability.h: struct vfs_cap_data of revision 2, little-endian.
    let numbers: [u32; 5] = [0x0200_0001, 1 << 10, 0, 0, 0];
    let value: Vec<u8> = numbers.into_iter().flat_map(u32::to_le_bytes).collect();
    let path = std::ffi::CString::new(program.as_os_str().as_bytes()).unwrap();
    let name = c"security.capability".as_ptr();
    // SAFETY: the call reads two strings and a value, which live through it.
    let done = unsafe { libc::setxattr(path.as_ptr(), name, value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done).map(drop)
}

// handoff-run(1), ENVIRONMENT: "A file capability, as for a low port, is not refused, and PROGRAM does not get it." It sets
// AT_SECURE as well.
#[test]
fn a_capability_for_low_ports_is_enough_for_them_and_the_target_does_not_have_it() {
    let Some((_folder, program)) = copy() else { return };
    if let Err(errno) = allow_low_ports(program.as_ref()) {
        return skip(&format!("files have no capabilities here: {errno}"));
    }
    // There nobody has the port, and its lowest unprivileged one is the default.
    in_namespace(libc::CLONE_NEWNET, move || {
        let target = ["--", "sh", "-c", "grep ^Cap[IPEA] /proc/$$/status; echo $LISTEN_FDS"];
        let output = by_another(&program, &[&["-q", "-l", "0.0.0.0:80"][..], &target].concat()).output();
        let none = ["CapInh", "CapPrm", "CapEff", "CapAmb"].map(|set| format!("{set}:\t0000000000000000\n"));
        assert_eq!(output.failure(), (0, ""));
        assert_eq!(output.stdout, none.concat() + "1\n");
    });
}
