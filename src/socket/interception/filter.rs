//! Which system calls of a program are reported: bind(2) alone, as a program of classic BPF, as data. Pure.
//!
//! seccomp(2): its data is a struct seccomp_data; a call of another architecture has other numbers.

use libc::sock_filter;

use crate::socket::steering::{IF_EQUAL, LOAD_WORD, RETURN, branch, step};

// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// The lower half of the third argument, which is the length of an address.
const LENGTH: u32 = if cfg!(target_endian = "big") { 36 } else { 32 };

/// This program's architecture (linux/audit.h); on another one --intercept is refused.
const AUDIT_ARCH: Option<u32> = if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
    Some(0xc000_003e)
} else if cfg!(target_arch = "aarch64") {
    Some(0xc000_00b7)
} else if cfg!(target_arch = "riscv64") {
    Some(0xc000_00f3)
} else {
    None
};

/// The size of the address that every getaddrinfo(3) binds, a netlink(7) one: where the supervisor is stopped, names can
/// still be looked up.
const NETLINK_LENGTH: u32 = size_of::<libc::sockaddr_nl>() as u32;

/// Whether a Unix socket is listed, whose address may have any length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lengths {
    All,
    AllButNetlink,
}

/// The filter; none on a processor whose calls are not known here.
pub(crate) fn bind_filter(lengths: Lengths) -> Option<Vec<sock_filter>> {
    let (load, otherwise) = (|offset| step(LOAD_WORD, offset), |value, skip| branch(IF_EQUAL, value, 0, skip));
    let (bind, report, pass) =
        (libc::SYS_bind as u32, step(RETURN, libc::SECCOMP_RET_USER_NOTIF), step(RETURN, libc::SECCOMP_RET_ALLOW));
    let architecture = AUDIT_ARCH?;
    Some(match lengths {
        Lengths::All => {
            vec![load(ARCHITECTURE), otherwise(architecture, 3), load(NUMBER), otherwise(bind, 1), report, pass]
        }
        Lengths::AllButNetlink => vec![
            load(ARCHITECTURE),
            otherwise(architecture, 5),
            load(NUMBER),
            otherwise(bind, 3),
            load(LENGTH),
            branch(IF_EQUAL, NETLINK_LENGTH, 1, 0),
            report,
            pass,
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer.
    fn run(program: &[sock_filter], data: [u32; 16]) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            match code {
                LOAD_WORD => value = data[k as usize / 4],
                IF_EQUAL => at += usize::from(if value == k { jt } else { jf }),
                RETURN => return k,
                _ => panic!("no such instruction: {code}"),
            }
        }
    }

    fn answer(lengths: Lengths, architecture: u32, number: u32, length: u32) -> u32 {
        let mut data = [0xffff_ffff; 16];
        (data[0], data[1], data[LENGTH as usize / 4]) = (number, architecture, length);
        run(&bind_filter(lengths).unwrap(), data)
    }

    #[test]
    fn bind_alone_is_reported_and_only_of_this_architecture() {
        let (here, bind) = (AUDIT_ARCH.unwrap(), libc::SYS_bind as u32);
        for lengths in [Lengths::All, Lengths::AllButNetlink] {
            assert_eq!(answer(lengths, here, bind, 16), libc::SECCOMP_RET_USER_NOTIF);
            assert_eq!(answer(lengths, here, bind + 1, 16), libc::SECCOMP_RET_ALLOW);
            assert_eq!(answer(lengths, here ^ 1, bind, 16), libc::SECCOMP_RET_ALLOW);
        }
    }

    #[test]
    fn an_address_of_netlink_passes_unless_a_unix_path_may_have_its_length() {
        let (here, bind) = (AUDIT_ARCH.unwrap(), libc::SYS_bind as u32);
        assert_eq!(answer(Lengths::AllButNetlink, here, bind, 12), libc::SECCOMP_RET_ALLOW);
        assert_eq!(answer(Lengths::All, here, bind, 12), libc::SECCOMP_RET_USER_NOTIF);
    }
}
