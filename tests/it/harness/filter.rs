//! Filters of system calls, as SystemCallFilter= and RestrictAddressFamilies= of a unit set them; for `before_exec`.

use std::io;

use libc::{c_int, c_long, sock_filter, sock_fprog};
use nix::errno::Errno;

/// What is answered instead of a system call.
#[derive(Clone, Copy)]
pub enum Answer {
    Error(Errno),
    /// SIGSYS for the process.
    Kill,
}

impl Answer {
    fn action(self) -> u32 {
        match self {
            Answer::Error(errno) => libc::SECCOMP_RET_ERRNO | errno as u32,
            Answer::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        }
    }
}

/// Instead of this system call.
pub fn deny(call: c_long, answer: Answer) -> impl FnMut() -> io::Result<()> + Send + Sync + 'static {
    install(vec![load(0), skip_unless(call as u32, 1), end(answer.action()), end(libc::SECCOMP_RET_ALLOW)])
}

/// As RestrictAddressFamilies= without this one.
pub fn deny_family(family: c_int) -> impl FnMut() -> io::Result<()> + Send + Sync + 'static {
    let answer = Answer::Error(Errno::EAFNOSUPPORT).action();
    let first_argument = 16;
    let (is_socket, is_family) = (skip_unless(libc::SYS_socket as u32, 3), skip_unless(family as u32, 1));
    install(vec![load(0), is_socket, load(first_argument), is_family, end(answer), end(libc::SECCOMP_RET_ALLOW)])
}

/// Instead of setsockopt(2) of this option.
pub fn deny_option(level: c_int, name: c_int, errno: Errno) -> impl FnMut() -> io::Result<()> + Send + Sync + 'static {
    let (second_argument, third_argument) = (24, 32);
    install(vec![
        load(0),
        skip_unless(libc::SYS_setsockopt as u32, 5),
        load(second_argument),
        skip_unless(level as u32, 3),
        load(third_argument),
        skip_unless(name as u32, 1),
        end(Answer::Error(errno).action()),
        end(libc::SECCOMP_RET_ALLOW),
    ])
}

/// The word at this offset of struct seccomp_data.
fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, offset)
}

/// If it is not this, pass over so many instructions.
fn skip_unless(value: u32, count: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, count, value)
}

fn end(action: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, action)
}

fn instruction(code: u32, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf, k }
}

fn install(mut program: Vec<sock_filter>) -> impl FnMut() -> io::Result<()> + Send + Sync + 'static {
    move || {
        let filter = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: this operation takes integers.
        Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        // SAFETY: the kernel copies the program, which lives through the call.
        Errno::result(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) })?;
        Ok(())
    }
}
