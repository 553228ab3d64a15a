//! What a program's file shows before it is run: whether its calls can be reported, and whether exec would add to its
//! privileges.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use log::warn;
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, access};

use crate::sys;

/// A script, and the interpreters of interpreters that exec follows: fs/exec.c, exec_binprm.
const MOST_FILES: usize = 6;

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Traits {
    /// Its system calls are those of a processor with 32 bits.
    is_32_bit: bool,
    /// It is set-uid or set-gid, or its file has capabilities.
    is_privileged: bool,
}

/// Can the bind(2)s of the program `name`, which exec would find by this environment, be reported? A warning, if it will lack
/// a privilege.
///
/// # Errors
/// If not.
pub(crate) fn check_interceptable(name: &CStr, environment: &[impl AsRef<CStr>]) -> Result<()> {
    let (traits, name) = (inspect(name, environment), name.to_string_lossy());
    ensure!(
        !traits.is_32_bit,
        "--intercept does not work here: {name} is a program of 32 bits, whose system calls are not reported; hand the socket \
         over, without --intercept"
    );
    if traits.is_privileged && sys::would_give_up_privileges() {
        warn!(
            "{name} is set-uid or set-gid, or has file capabilities, and gets none of that: --intercept without CAP_SYS_ADMIN \
             sets no_new_privs"
        );
    }
    Ok(())
}

/// Look at the file, as far as it can be read: that of its interpreter, if it is a script.
fn inspect(name: &CStr, environment: &[impl AsRef<CStr>]) -> Traits {
    let mut path = find(name, environment);
    for _ in 0..MOST_FILES {
        let Some(found) = path else { break };
        let mut head = [0; 256];
        let length = open_at_once(&found).and_then(|mut file| file.read(&mut head)).unwrap_or(0);
        match interpreter(&head[..length]) {
            Some(interpreter) => path = Some(interpreter),
            None => return Traits { is_32_bit: is_32_bit(&head), is_privileged: is_privileged(&found) },
        }
    }
    Traits::default()
}

/// The file that exec would find.
fn find(name: &CStr, environment: &[impl AsRef<CStr>]) -> Option<PathBuf> {
    let path = |file: CString| PathBuf::from(OsStr::from_bytes(file.to_bytes()));
    sys::candidates(name, environment).into_iter().map(path).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && access(file, AccessFlags::X_OK).is_ok()
}

/// Whatever it is: a FIFO would wait for its other end.
fn open_at_once(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// execve(2), Interpreter scripts.
fn interpreter(head: &[u8]) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?.trim_ascii_start();
    let word = line.split(u8::is_ascii_whitespace).next()?;
    Some(PathBuf::from(OsStr::from_bytes(word)))
}

/// elf(5): the magic number, and ELFCLASS32.
fn is_32_bit(head: &[u8]) -> bool {
    matches!(head, [0x7f, b'E', b'L', b'F', 1, ..])
}

fn is_privileged(path: &Path) -> bool {
    let set_id = (Mode::S_ISUID | Mode::S_ISGID).bits();
    let is_set_id = fs::metadata(path).is_ok_and(|file| file.permissions().mode() & set_id != 0);
    is_set_id || sys::has_capabilities(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interpreter_is_the_first_word_of_the_first_line() {
        assert_eq!(interpreter(b"#! /bin/sh -e\nexit"), Some("/bin/sh".into()));
        assert_eq!(interpreter(b"#!/usr/bin/env\tpython3"), Some("/usr/bin/env".into()));
        assert_eq!(interpreter(b"# !/bin/sh\n"), None);
        assert_eq!(interpreter(b""), None);
    }

    #[test]
    fn the_class_of_an_elf_file_shows_its_bits() {
        assert!(is_32_bit(b"\x7fELF\x01\x01"));
        assert!(!is_32_bit(b"\x7fELF\x02\x01"));
        assert!(!is_32_bit(b"\x7fEL"));
    }

    #[test]
    fn what_cannot_be_executed_is_passed_over_as_by_exec() {
        let path = |folders: &str| CString::new(format!("PATH={folders}")).unwrap();
        assert_eq!(find(c"sh", &[path("/etc:/bin")]), Some("/bin/sh".into()));
        // A folder, and a file that is no program.
        assert_eq!(find(c"bin", &[path("/usr:/")]), None);
        assert_eq!(find(c"passwd", &[path("/etc")]), None);
    }
}
