//! What --intercept costs the program: any other system call, a bind(2) that is not ours, and one that is.
//!
//! `cargo bench --bench interception`; RUNS=5 for a short one. The program is this one, started again in each of the four
//! circumstances in turn, so that whatever else the machine does touches all alike.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and panics with the reason where it cannot"
)]

use std::hint::black_box;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Instant;
use std::{env, ptr};

use nix::unistd::getppid;

const HANDOFF_RUN: &str = env!("CARGO_BIN_EXE_handoff-run");
/// The number of calls that are timed together.
const CALLS: u32 = 200_000;
const BINDS: u32 = 500;

/// Nanoseconds for each getppid(2), and for each socket that is made, bound and closed: elsewhere, and at our address.
type Sample = [f64; 3];

/// Where the program runs.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Alone,
    /// With a filter that lets everything pass, as that of a container does most calls.
    Filtered,
    Intercepted,
    Both,
}

const PLACES: [(Place, &str); 4] = [
    (Place::Alone, "alone"),
    (Place::Filtered, "with a filter that lets all pass"),
    (Place::Intercepted, "with --intercept"),
    (Place::Both, "with both"),
];

fn main() {
    if let Some(address) = env::args().skip_while(|word| word != "measure").nth(1) {
        return measure(address.parse().unwrap());
    }
    let runs = env::var("RUNS").map_or(25, |runs| runs.parse().unwrap());
    let mut samples: [Vec<Sample>; 4] = Default::default();
    for _ in 0..runs {
        for (at, (place, _)) in PLACES.iter().enumerate() {
            samples[at].push(run(*place));
        }
    }
    println!("medians of {runs} runs: getppid, ns (over alone); socket, bind and close, µs: elsewhere, at our address");
    let alone = median(&samples[0], 0);
    for (samples, (_, name)) in samples.iter().zip(PLACES) {
        let [call, other, ours] = [0, 1, 2].map(|at| median(samples, at));
        let (over, other, ours) = (call - alone, other / 1000.0, ours / 1000.0);
        println!("{name:33} {call:6.1} ({over:+5.1})   {other:6.1}   {ours:6.1}");
    }
}

fn median(samples: &[Sample], at: usize) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(|sample| sample[at]).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn run(place: Place) -> Sample {
    let (this, address) = (env::current_exe().unwrap(), free_address());
    let mut command = if matches!(place, Place::Alone | Place::Filtered) {
        Command::new(&this)
    } else {
        let mut command = Command::new(HANDOFF_RUN);
        command.args(["-q", "--listen", &address, "--supervise", "--intercept", "--"]).arg(&this);
        command
    };
    command.args(["measure", &address]);
    if matches!(place, Place::Filtered | Place::Both) {
        // SAFETY: it makes two system calls.
        unsafe { command.pre_exec(let_all_pass) };
    }
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let values: Vec<f64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
    values.try_into().unwrap_or_else(|_| panic!("{text} {}", String::from_utf8_lossy(&output.stderr)))
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn let_all_pass() -> io::Result<()> {
    let pass = libc::sock_filter { code: libc::BPF_RET as u16, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let filter = libc::sock_fprog { len: 1, filter: ptr::addr_of!(pass).cast_mut() };
    // SAFETY: the first takes integers; the second copies the filter, which lives through the call.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What the program does.
fn measure(address: SocketAddr) {
    let each = |count: u32, act: &dyn Fn()| {
        let begun = Instant::now();
        (0..count).for_each(|_| act());
        begun.elapsed().as_nanos() as f64 / f64::from(count)
    };
    let call = each(CALLS, &|| {
        black_box(getppid());
    });
    let other = each(BINDS, &|| drop(UdpSocket::bind("127.0.0.1:0").unwrap()));
    let ours = each(BINDS, &|| drop(TcpListener::bind(address).unwrap()));
    println!("{call} {other} {ours}");
}
