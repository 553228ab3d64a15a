//! The target cannot detect that we were there, but for its sockets and what announces them.

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::path::Path;
use std::process::Command;
use std::{fs, io, ptr};

use crate::harness::facts::{ALLOWED, Facts, compare, compare_after, compare_programs, done, ignore, limit, look};
use crate::harness::{Folder, PROGRAM, Run, is_root_to};

/// Block the signals of `set`, signal 1 in bit 0, and no others.
fn block(set: u64) -> io::Result<()> {
    // SAFETY: the kernel reads 8 bytes of `set`.
    done(unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const set, ptr::null::<u8>(), 8) })
}

/// Every signal that can be ignored and blocked.
fn signals() -> impl Iterator<Item = i32> {
    (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal))
}

#[test]
fn the_target_is_told_the_same_as_without_us() {
    if let Some(facts) = compare(|run| run) {
        facts.assert("pending 0");
        facts.assert("children had 0 pages");
    }
}

#[test]
fn each_ignored_signal_stays_ignored_and_no_other() {
    for signal in signals() {
        compare_after(move || ignore(signal));
    }
    compare_after(|| signals().try_for_each(ignore));
}

// Without cc too: Rust's runtime would ignore SIGPIPE before main.
#[test]
fn sigpipe_is_as_it_was() {
    let grep = ["grep", "SigIgn", "/proc/self/status"];
    let ours = [&[PROGRAM, "-q", "-l", "127.0.0.1:0", "--"], &grep[..]].concat();
    for ignored in [false, true] {
        let [direct, through] = [&grep[..], &ours].map(|line| {
            let run = Run::of(line[0]).args(&line[1..]);
            if ignored { run.before_exec(|| ignore(libc::SIGPIPE)) } else { run }.output().stdout
        });
        assert_eq!(direct, through);
        let ignores = u64::from_str_radix(direct.trim_start_matches("SigIgn:").trim(), 16).unwrap();
        assert_eq!(ignores & 1 << (libc::SIGPIPE - 1) != 0, ignored);
    }
}

#[test]
fn each_blocked_signal_stays_blocked_and_no_other() {
    for signal in signals() {
        compare_after(move || block(1 << (signal - 1)));
    }
    compare_after(|| block(u64::MAX));
}

#[test]
fn a_pending_signal_stays_pending() {
    for signal in [libc::SIGTERM, libc::SIGCHLD, libc::SIGPIPE, libc::SIGALRM, 40] {
        let facts = compare_after(move || {
            block(u64::MAX)?;
            // SAFETY: both take integers. One signal is for the process, one for its only thread.
            done(unsafe { libc::kill(libc::getpid(), signal) }).and(done(unsafe { libc::raise(signal) }))
        });
        if let Some(facts) = facts {
            facts.assert(&format!("pending {:x}", 1u64 << (signal - 1)));
        }
    }
}

// What is said on stderr must not get into the socket, which socket(2) would put at 2.
#[test]
fn closed_standard_descriptors_stay_closed_and_the_socket_is_still_at_3() {
    for closed in 0..8 {
        let close = move |fd: RawFd| {
            if closed & (1 << fd) != 0 {
                // SAFETY: close takes an integer, and in the child nobody owns the standard descriptors.
                unsafe { libc::close(fd) };
            }
        };
        compare_after(move || {
            (0..3).for_each(close);
            Ok(())
        });
    }
}

#[test]
fn the_umask_is_the_same() {
    for mask in [0, 0o022, 0o077, 0o777] {
        let facts = compare_after(move || {
            // SAFETY: umask takes an integer and cannot fail.
            unsafe { libc::umask(mask) };
            Ok(())
        });
        if let Some(facts) = facts {
            facts.assert(&format!("umask {mask:o}"));
        }
    }
}

#[test]
fn each_limit_is_the_same() {
    // In bytes, seconds and pieces: low, but enough for the target, and for the stack of a build for debugging.
    #[rustfmt::skip]
    let soft: [u64; 16] =
        [100, 1 << 22, 32 << 20, 1 << 20, 0, 1 << 20, 1 << 20, 5, 0, 32 << 20, 10, 10, 0, 1, 1, 1 << 30];
    for (resource, soft) in (0..).zip(soft) {
        compare_after(move || limit(resource, soft));
    }
}

#[test]
fn a_large_environment_passes_through() {
    let value = "x".repeat(100 << 10);
    compare(|run| (0..15).fold(run, |run, at| run.env(&format!("LARGE_{at}"), &value)));
    compare(|run| (0..10_000).fold(run, |run, at| run.env(&format!("MANY_{at}"), at.to_string())));
}

// std::env::vars_os leaves out the entry without '=', and a map the first of two with the same name.
#[test]
fn the_environment_keeps_its_order_its_duplicates_and_its_oddities() {
    let Some(look) = look() else { return };
    let folder = Folder::new();
    let file = folder.path("facts");
    let line = |words: &[&Path]| Run::of(look).args(&["--oddly"]).args(words);
    let direct = Facts::read(&file, line(&[look, &file]));
    let ours = [PROGRAM, "-q", "-l", "127.0.0.1:0", "--"].map(Path::new);
    let through = Facts::read(&file, line(&[&ours[..], &[look, &file]].concat())).without(&ALLOWED);
    assert_eq!(direct.0, through.0);
    direct.assert("environ no equals sign");
}

#[test]
fn a_removed_working_directory_is_still_the_working_directory() {
    let folder = Folder::new();
    let gone = folder.path("gone");
    let facts = compare(|run| {
        fs::create_dir(&gone).unwrap();
        // SAFETY: rmdir reads the string, which is a constant.
        run.current_dir(&gone).before_exec(|| done(unsafe { libc::rmdir(c"../gone".as_ptr()) }))
    });
    if let Some(facts) = facts {
        facts.assert("directory No such file or directory");
    }
}

/// One thing that a process may be given, and how.
type Condition = (&'static str, fn() -> io::Result<()>);

/// prctl(2) with one value.
fn prctl(option: i32, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the options used here take integers.
    done(unsafe { libc::prctl(option, value, 0, 0, 0) })
}

/// Write to a file of /proc, with calls that a forked child may make.
fn write_to(path: &CStr, value: &str) -> io::Result<()> {
    // SAFETY: the kernel reads the string, which ends with NUL.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    // SAFETY: the kernel reads `value.len()` bytes.
    done(unsafe { libc::write(fd, value.as_ptr().cast(), value.len()) } as i64)?;
    // SAFETY: nobody else has this descriptor.
    done(unsafe { libc::close(fd) })
}

/// A timer that will not run out.
fn timer(which: i32) -> io::Result<()> {
    let value = libc::timeval { tv_sec: 1000, tv_usec: 0 };
    let timer = libc::itimerval { it_interval: libc::timeval { tv_sec: 7, tv_usec: 0 }, it_value: value };
    // SAFETY: the kernel reads the struct.
    done(unsafe { libc::syscall(libc::SYS_setitimer, which, &raw const timer, ptr::null::<u8>()) })
}

/// A filter of system calls that allows everything.
fn seccomp() -> io::Result<()> {
    let allow =
        libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let program = libc::sock_fprog { len: 1, filter: (&raw const allow).cast_mut() };
    // SAFETY: the kernel reads the program of one instruction.
    done(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER as libc::c_ulong, &raw const program) })
}

#[rustfmt::skip]
#[expect(clippy::undocumented_unsafe_blocks, reason = "all calls take integers, or pointers to constants")]
const CONDITIONS: [Condition; 16] = [
    ("a process group", || done(unsafe { libc::setpgid(0, 0) })),
    ("a session", || done(unsafe { libc::setsid() })),
    ("nice", || done(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 5) })),
    ("batch scheduling", || done(unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_BATCH, &0) })),
    ("one processor", || done(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, 8, &1u64) })),
    ("idle input and output", || done(unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, 3 << 13) })),
    ("timer slack", || prctl(libc::PR_SET_TIMERSLACK, 123_456)),
    ("fixed addresses", || done(unsafe { libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong) })),
    ("an adjusted badness", || write_to(c"/proc/self/oom_score_adj", "321")),
    ("a filter of core dumps", || write_to(c"/proc/self/coredump_filter", "0x3")),
    ("a parent death signal", || prctl(libc::PR_SET_PDEATHSIG, libc::SIGUSR2 as libc::c_ulong)),
    ("a subreaper", || prctl(libc::PR_SET_CHILD_SUBREAPER, 1)),
    ("no new privileges", || prctl(libc::PR_SET_NO_NEW_PRIVS, 1)),
    ("a filter of system calls", || prctl(libc::PR_SET_NO_NEW_PRIVS, 1).and_then(|()| seccomp())),
    ("no huge pages", || prctl(libc::PR_SET_THP_DISABLE, 1)),
    ("timers", || (0..3).try_for_each(timer)),
];

#[test]
fn what_a_process_is_given_the_target_has() {
    for (name, act) in CONDITIONS {
        println!("{name}");
        compare_after(act);
    }
}

/// Become nobody.
fn become_nobody() -> io::Result<()> {
    // SAFETY: all take integers, and a null pointer for an empty list.
    done(unsafe { libc::syscall(libc::SYS_setgroups, 0, ptr::null::<u8>()) })
        .and(done(unsafe { libc::syscall(libc::SYS_setresgid, 65534, 65534, 65534) }))
        .and(done(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }))
}

/// Nobody with one capability, CAP_NET_BIND_SERVICE, kept over exec as an ambient one.
fn become_nobody_who_binds() -> io::Result<()> {
    let header: [u32; 2] = [0x2008_0522, 0];
    let sets: [u32; 6] = [1 << 10, 1 << 10, 1 << 10, 0, 0, 0];
    prctl(libc::PR_SET_KEEPCAPS, 1)?;
    become_nobody()?;
    // SAFETY: the kernel reads a header and two sets of version 3.
    done(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) })?;
    // SAFETY: this option takes integers.
    done(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, 10, 0, 0) })
}

#[test]
fn users_groups_and_capabilities_are_the_same() {
    let Some(look) = look() else { return };
    if !is_root_to("become somebody else") {
        return;
    }
    // In a folder that everybody may enter, whatever is so of the build's.
    let folder = Folder::new();
    let programs = [look, Path::new(PROGRAM)].map(|from| {
        let copy = folder.path(from.file_name().unwrap().to_str().unwrap());
        // By another process: a file that we, or a child forked meanwhile, had open for writing could not be run.
        assert!(Command::new("cp").args([from, &copy]).status().unwrap().success());
        copy
    });
    let conditions: [Condition; 4] = [
        ("nobody", become_nobody),
        ("nobody who binds", become_nobody_who_binds),
        ("locked securebits", || prctl(libc::PR_SET_SECUREBITS, 0b1100)),
        ("fewer capabilities", || prctl(libc::PR_CAPBSET_DROP, 24)),
    ];
    for (name, act) in conditions {
        println!("{name}");
        compare_programs(&programs[0], &programs[1], &ALLOWED, &mut |run| run.before_exec(act));
    }
}
