//! What a program's file shows before it is run: whether its calls can be reported, and whether exec would add to its
//! privileges.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;

use crate::sys;
use crate::target::Program;

/// A script, and the interpreters of interpreters that exec follows: fs/exec.c, exec_binprm.
const MOST_FILES: usize = 6;

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traits {
    /// Its system calls are those of a processor with 32 bits.
    pub(crate) is_32_bit: bool,
    /// It is set-uid or set-gid, or its file has capabilities.
    pub(crate) is_privileged: bool,
}

/// Look at the file that `program` is, as far as it can be read: that of its interpreter, if it is a script.
pub(crate) fn inspect(program: &Program) -> Traits {
    let mut path = find(program);
    for _ in 0..MOST_FILES {
        let Some(found) = path else { break };
        let mut head = [0; 256];
        let length = open_at_once(&found).and_then(|mut file| file.read(&mut head)).unwrap_or(0);
        match &head[..length] {
            // execve(2), Interpreter scripts.
            [b'#', b'!', line @ ..] => {
                let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default().trim_ascii_start();
                let word = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
                path = Some(PathBuf::from(OsStr::from_bytes(word)));
            }
            head => return Traits { is_32_bit: is_32_bit(head), is_privileged: is_privileged(&found) },
        }
    }
    Traits::default()
}

/// Whatever it is: a FIFO would wait for its other end.
fn open_at_once(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
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

/// The file that exec would find, by our own PATH.
fn find(program: &Program) -> Option<PathBuf> {
    let name = Path::new(OsStr::from_bytes(program.words.first()?.to_bytes()));
    let inside = |path: &Path| program.directory.as_deref().unwrap_or(Path::new("")).join(path);
    if name.as_os_str().as_bytes().contains(&b'/') {
        return Some(inside(name));
    }
    let environment = sys::environment();
    let path = sys::variable(&environment, "PATH")?;
    let folders = path.split(|byte| *byte == b':').map(|folder| Path::new(OsStr::from_bytes(folder)));
    folders.map(|folder| inside(&folder.join(name))).find(|file| file.is_file())
}
