//! Tests in a namespace of their own.

use std::thread;

use nix::errno::Errno;

use super::skip;

/// Do it in a thread with a namespace of its own; none where that takes more privilege.
pub fn in_namespace<T: Send + 'static>(kind: libc::c_int, act: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let inside = move || {
        // SAFETY: unshare takes an integer and changes this thread alone.
        match Errno::result(unsafe { libc::unshare(kind) }) {
            Ok(_) => Some(act()),
            Err(errno) => {
                skip(&format!("no namespace of its own for this test: {errno}"));
                None
            }
        }
    };
    thread::spawn(inside).join().unwrap()
}
