//! What handoff-run costs before the target runs, beside the least program in C that does the same work, and env(1).
//!
//! `cargo bench --bench cost`; RUNS=100 for a short one. The runs alternate, so that whatever else the machine does
//! touches all alike. Ends with 1 if an expectation of the last lines is not met.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark prints, and says by panicking why it cannot")]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs, io, mem, ptr};

const HANDOFF_RUN: &str = env!("CARGO_BIN_EXE_handoff-run");

/// The size a binary must stay below.
const SIZE: u64 = 3 << 19;

/// How many times the C shim's whole process ours may take.
const OVER_SHIM: f64 = 1.20;

unsafe extern "C" {
    static environ: *const *mut libc::c_char;
}

/// A command line to be measured.
struct Candidate {
    name: &'static str,
    line: Vec<CString>,
    times: Vec<Duration>,
    /// Page faults of the whole process, target included.
    faults: Vec<i64>,
}

impl Candidate {
    fn new(name: &'static str, line: &[&str]) -> Candidate {
        let line = line.iter().map(|word| CString::new(*word).unwrap()).collect();
        Candidate { name, line, times: vec![], faults: vec![] }
    }

    /// Start it, as cheaply as a process can be, and wait for its end.
    fn run(&mut self) {
        let words: Vec<_> = self.line.iter().map(|word| word.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect();
        let (mut pid, mut status) = (0, 0);
        let start = Instant::now();
        // SAFETY: argv ends with a null pointer and outlives the call, as the environment does.
        let error = unsafe {
            libc::posix_spawnp(&raw mut pid, words[0], ptr::null(), ptr::null(), words.as_ptr(), environ.cast())
        };
        assert_eq!(error, 0, "{:?} cannot be started", self.line);
        // SAFETY: all zero is a valid rusage.
        let mut usage: libc::rusage = unsafe { mem::zeroed() };
        // SAFETY: the kernel fills status and usage, which outlive the call.
        assert_eq!(unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) }, pid);
        self.times.push(start.elapsed());
        assert_eq!(status, 0, "{:?} failed", self.line);
        self.faults.push(usage.ru_minflt);
    }

    fn command(&self) -> Command {
        let words: Vec<&str> = self.line.iter().map(|word| word.to_str().unwrap()).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command
    }

    /// The system calls up to the exec of the target, each name with its count.
    fn system_calls(&self, folder: &Path) -> io::Result<BTreeMap<String, usize>> {
        let trace = folder.join("cost.strace");
        let inner = self.command();
        let mut strace = Command::new("strace");
        strace.arg("-o").arg(&trace).arg(inner.get_program()).args(inner.get_args());
        assert!(strace.status()?.success());
        let text = fs::read_to_string(&trace)?;
        let names: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once('(')?.0)).collect();
        let end = names.iter().rposition(|name| *name == "execve").unwrap();
        let mut counts = BTreeMap::new();
        for name in &names[1..=end.max(1)] {
            *counts.entry((*name).to_owned()).or_default() += 1;
        }
        Ok(counts)
    }

    /// The instructions up to the exec of the target, counted by stepping through them.
    fn instructions(&self) -> io::Result<u64> {
        let mut command = self.command();
        // SAFETY: ptrace is a system call that a forked child may make.
        let command = unsafe { command.pre_exec(|| ptrace(libc::PTRACE_TRACEME, 0, 0)) };
        let child = command.spawn()?;
        let pid = child.id() as libc::pid_t;
        let exec = (libc::SIGTRAP | libc::PTRACE_EVENT_EXEC << 8) << 8;
        let mut count = 0;
        let mut status = wait(pid);
        ptrace(libc::PTRACE_SETOPTIONS, pid, (libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_EXITKILL) as usize)?;
        while libc::WIFSTOPPED(status) && status >> 8 != exec >> 8 {
            ptrace(libc::PTRACE_SINGLESTEP, pid, 0)?;
            status = wait(pid);
            count += 1;
        }
        assert!(libc::WIFSTOPPED(status), "{:?} ended before it became the target", self.line);
        ptrace(libc::PTRACE_DETACH, pid, 0)?;
        wait(pid);
        Ok(count)
    }
}

/// What ptrace(2) is asked, of which the libcs have different types.
#[cfg(target_env = "musl")]
type Request = libc::c_int;
#[cfg(not(target_env = "musl"))]
type Request = libc::c_uint;

/// ptrace(2), for the requests that use no address.
fn ptrace(request: Request, pid: libc::pid_t, data: usize) -> io::Result<()> {
    // SAFETY: the requests used here read and write no memory of ours.
    match unsafe { libc::ptrace(request, pid, 0, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn wait(pid: libc::pid_t) -> libc::c_int {
    let mut status = 0;
    // SAFETY: the kernel fills `status`, which outlives the call.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

/// Compile a program of this folder's, static and small.
fn compile(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cost-{name}"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/cost").join(name).with_extension("c");
    let status = Command::new("cc").args(["-Os", "-static", "-o"]).args([&program, &source]).status();
    assert!(status.expect("the C programs to compare with need cc").success());
    program
}

/// handoff-run copied, as an installation copies it. The linker writes its output through a mapping, page by page, and
/// the page cache then maps it page by page for as long as it stays there; a program that was copied, or read from a disk,
/// comes in larger pieces.
fn install() -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cost-handoff-run");
    // Another name first: what is being run cannot be written.
    fs::write(program.with_extension("new"), fs::read(HANDOFF_RUN).unwrap()).unwrap();
    fs::set_permissions(program.with_extension("new"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(program.with_extension("new"), &program).unwrap();
    program
}

fn candidates() -> [Candidate; 4] {
    let (noop, shim, ours) = (compile("noop"), compile("shim"), install());
    let ours = ours.to_str().unwrap();
    let (noop, shim) = (noop.to_str().unwrap(), shim.to_str().unwrap());
    // Free now, and nobody else takes it but a program that asks for any port at the very moment.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    [
        Candidate::new("bare exec", &[noop]),
        Candidate::new("C shim", &[shim, &port, noop]),
        Candidate::new("env", &["env", "A=1", noop]),
        Candidate::new("handoff-run", &[ours, "-q", "-l", &format!("127.0.0.1:{port}"), "--", noop]),
    ]
}

/// The value that `share` of all are below.
fn quantile<T: Copy + Ord>(values: &[T], share: f64) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

fn median(candidate: &Candidate) -> f64 {
    quantile(&candidate.times, 0.5).as_secs_f64() * 1e6
}

fn print_times(all: &[Candidate; 4]) {
    let [_, shim, env, _] = all;
    println!("{:12} {:>10} {:>10} {:>10} {:>8} {:>8}", "", "median µs", "p10 µs", "of C shim", "of env", "faults");
    for candidate in all {
        let tenth = quantile(&candidate.times, 0.1).as_secs_f64() * 1e6;
        let (middle, faults) = (median(candidate), quantile(&candidate.faults, 0.5));
        let (over_shim, over_env) = (middle / median(shim), middle / median(env));
        println!("{:12} {middle:10.1} {tenth:10.1} {over_shim:10.3} {over_env:8.3} {faults:8}", candidate.name);
    }
}

fn print_system_calls(all: &[Candidate]) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let counted: io::Result<Vec<_>> = all.iter().map(|candidate| candidate.system_calls(folder)).collect();
    let counted = match counted {
        Ok(counted) => counted,
        Err(error) => return println!("system calls: not counted, strace: {error}"),
    };
    for (candidate, calls) in all.iter().zip(&counted) {
        let base = |name: &String| counted[0].get(name).copied().unwrap_or(0);
        let more = calls.iter().filter(|(name, count)| **count > base(name));
        let more: Vec<String> = more.map(|(name, count)| format!("{name} +{}", count - base(name))).collect();
        println!("{:12} {:3} system calls  {}", candidate.name, calls.values().sum::<usize>(), more.join(", "));
    }
}

fn print_instructions(all: &[Candidate]) {
    for candidate in all {
        match candidate.instructions() {
            Ok(count) => println!("{:12} {count:8} instructions before the target", candidate.name),
            Err(error) => println!("{:12} instructions not counted, ptrace: {error}", candidate.name),
        }
    }
}

fn main() {
    let runs: usize = env::var("RUNS").map_or(1000, |runs| runs.parse().expect("RUNS is a number"));
    let mut all = candidates();
    all.iter_mut().for_each(Candidate::run);
    for candidate in &mut all {
        (candidate.times, candidate.faults) = (vec![], vec![]);
    }
    let [bare, others @ ..] = &mut all;
    for _ in 0..runs.max(1) {
        for other in &mut *others {
            // So that each finds the processor's caches as the same program left them.
            bare.run();
            other.run();
        }
    }
    print_times(&all);
    print_system_calls(&all[1..]);
    print_instructions(&all[1..]);
    let size = fs::metadata(HANDOFF_RUN).unwrap().len();
    let [_, shim, env, ours] = &all;
    let over_shim = median(ours) / median(shim);
    let expected = [
        (format!("{over_shim:.3} of the C shim, at most {OVER_SHIM:.2}"), over_shim <= OVER_SHIM),
        (format!("{:.3} of env, less than 1", median(ours) / median(env)), median(ours) < median(env)),
        (format!("{size} bytes, {} below 1.5 MiB", SIZE.saturating_sub(size)), size < SIZE),
    ];
    for (what, met) in &expected {
        println!("{} {what}", if *met { "ok:  " } else { "NOT: " });
    }
}
