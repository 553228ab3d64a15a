//! The search for a program in PATH, and the shell for a script without an interpreter: execvp(3) as glibc has it and
//! thus env(1), whichever libc this is built with, for they differ. The PATH is the one that the program will have.

use std::ffi::{CStr, CString};

use nix::errno::Errno;

use crate::sys;

/// Where programs are looked for if there is no PATH at all.
const WITHOUT_PATH: &[u8] = b"/bin:/usr/bin";
/// What runs a script that does not begin with `#!`.
const SHELL: &CStr = c"/bin/sh";

/// Become `arguments[0]`, looked for in the PATH of `environment`. Returns only when that failed.
pub(crate) fn execute(arguments: &[CString], environment: &[impl AsRef<CStr>]) -> Errno {
    let name = arguments[0].as_c_str();
    if name.to_bytes().contains(&b'/') {
        return execute_file(name, arguments, environment);
    }
    let mut outcome = Errno::ENOENT;
    for file in candidates(name, environment) {
        match execute_file(&file, arguments, environment) {
            // There may be another one further on; if not, this is what to report.
            Errno::EACCES => outcome = Errno::EACCES,
            Errno::ENOENT | Errno::ENOTDIR => (),
            // From file servers that do not answer.
            Errno::ESTALE | Errno::ENODEV | Errno::ETIMEDOUT => (),
            errno => return errno,
        }
    }
    outcome
}

/// The files that `name` may mean, in the order in which they are tried.
pub(crate) fn candidates(name: &CStr, environment: &[impl AsRef<CStr>]) -> Vec<CString> {
    if name.to_bytes().contains(&b'/') {
        return vec![name.to_owned()];
    }
    let variables: Vec<&CStr> = environment.iter().map(AsRef::as_ref).collect();
    files(sys::variable(&variables, "PATH").unwrap_or(WITHOUT_PATH), name).collect()
}

/// What `name` may be: an empty part of the PATH is the working directory.
fn files(path: &[u8], name: &CStr) -> impl Iterator<Item = CString> {
    // No program has an empty name, but each folder would be found by it; and no folder has a longer name.
    let possible = |folder: &&[u8]| !name.is_empty() && folder.len() < libc::PATH_MAX as usize;
    let folders = path.split(|byte| *byte == b':').filter(possible);
    folders.map(|folder| {
        let slash: &[u8] = if folder.is_empty() { b"" } else { b"/" };
        CString::new([folder, slash, name.to_bytes()].concat()).expect("C strings have no NUL in them")
    })
}

fn execute_file(file: &CStr, arguments: &[CString], environment: &[impl AsRef<CStr>]) -> Errno {
    match sys::execve(file, arguments, environment) {
        Errno::ENOEXEC => {
            let script = [SHELL.to_owned(), file.to_owned()];
            sys::execve(SHELL, &[&script, &arguments[1..]].concat(), environment)
        }
        errno => errno,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files_of(path: &str, name: &CStr) -> Vec<String> {
        files(path.as_bytes(), name).map(|file| file.into_string().unwrap()).collect()
    }

    #[test]
    fn each_folder_is_tried_in_turn() {
        assert_eq!(files_of("/bin:bin", c"true"), ["/bin/true", "bin/true"]);
    }

    #[test]
    fn an_empty_part_is_the_working_directory() {
        assert_eq!(files_of(":/bin:", c"true"), ["true", "/bin/true", "true"]);
        assert_eq!(files_of("", c"true"), ["true"]);
    }

    #[test]
    fn an_empty_name_is_nowhere() {
        assert_eq!(files_of("/bin", c""), [""; 0]);
    }

    #[test]
    fn one_that_may_not_be_executed_is_reported_unless_another_is_found() {
        let path = |value: &CStr| vec![value.to_owned()];
        let run = |path: Vec<CString>, name: &CStr| execute(&[name.to_owned()], &path);
        // A folder cannot be executed, not even by root.
        assert_eq!(run(path(c"PATH=/nowhere:/:/nowhere"), c"proc"), Errno::EACCES);
        assert_eq!(run(path(c"PATH=/nowhere:/dev/null"), c"proc"), Errno::ENOENT);
        assert_eq!(run(path(c"PATH=/"), c"./no/such/program"), Errno::ENOENT);
    }
}
