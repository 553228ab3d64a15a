//! Programs that the kernel runs for a socket.

use std::os::fd::{AsFd, AsRawFd};

use libc::{c_int, c_ushort, sock_filter, sock_fprog};
use nix::errno::Errno;

/// asm-generic/socket.h, which libc has not for musl.
const SO_ATTACH_REUSEPORT_CBPF: c_int = 51;
const SO_DETACH_REUSEPORT_BPF: c_int = 68;
/// linux/bpf_common.h: return a constant, which of a filter is how much of a packet is kept.
const RETURN: c_ushort = 0x06;

/// Let `program` choose among the sockets of the SO_REUSEPORT group that `socket` is in, or begins (socket(7),
/// SO_ATTACH_REUSEPORT_CBPF).
///
/// # Errors
/// EINVAL if it is no program, and what a sandbox answers that does not have this.
pub(crate) fn choose_by(socket: impl AsFd, program: &[sock_filter]) -> nix::Result<()> {
    attach(socket, SO_ATTACH_REUSEPORT_CBPF, program)
}

/// Drop every packet that comes for `socket` (socket(7), SO_ATTACH_FILTER): a client tries again a second later.
pub(crate) fn drop_packets(socket: impl AsFd) -> nix::Result<()> {
    attach(socket, libc::SO_ATTACH_FILTER, &[sock_filter { code: RETURN, jt: 0, jf: 0, k: 0 }])
}

/// Let packets through again.
///
/// # Errors
/// ENOENT if they were not dropped.
pub(crate) fn pass_packets(socket: impl AsFd) -> nix::Result<()> {
    super::set_option(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0)
}

fn attach(socket: impl AsFd, option: c_int, program: &[sock_filter]) -> nix::Result<()> {
    let length = c_ushort::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    // The kernel does not write to it.
    let program = sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    let level = libc::SOL_SOCKET;
    let size = size_of::<sock_fprog>() as libc::socklen_t;
    // SAFETY: the kernel copies `size` bytes of the struct, and `length` instructions of what it points to, both of which
    // live through the call.
    let done =
        unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const program).cast(), size) };
    Errno::result(done).map(drop)
}

/// Let the kernel choose by a hash again (SO_DETACH_REUSEPORT_BPF, Linux 5.3).
///
/// # Errors
/// ENOENT if there is no program.
pub(crate) fn choose_by_hash(socket: impl AsFd) -> nix::Result<()> {
    super::set_option(socket, libc::SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
}
