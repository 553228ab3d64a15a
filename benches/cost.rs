//! What handoff-run costs before the target runs, built with glibc and with musl, beside the least program in C that does
//! the same work, built with each too, and env(1).
//!
//! `cargo bench --bench cost`; RUNS=100 for a short one. The runs alternate, so that whatever else the machine does
//! touches all alike. What is not as expected is marked NOT in the last lines.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and panics with the reason where it cannot"
)]

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

/// The sizes that the two builds must stay below.
const SIZE_GLIBC: u64 = 2 << 20;
const SIZE_MUSL: u64 = 5 << 18;

/// How many times the C program's whole process the glibc build may take.
const OF_SHIM: f64 = 1.20;
/// How much of the time that the C program adds to a bare exec the musl build may add.
const OF_SHIM_OVER_EXEC: f64 = 0.45;

/// What the candidates are called that others are compared with, or that something is expected of.
const SHIM: &str = "C, glibc";
const ENV: &str = "env";
const OURS_GLIBC: &str = "handoff-run, glibc";
const OURS_MUSL: &str = "handoff-run, musl";

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
fn compile(compiler: &str, name: &str) -> io::Result<String> {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cost-{name}-{compiler}"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/cost").join(name).with_extension("c");
    let status = Command::new(compiler).args(["-Os", "-static", "-o"]).args([&program, &source]).status()?;
    assert!(status.success(), "{compiler} cannot compile {name}.c");
    Ok(program.into_os_string().into_string().unwrap())
}

/// handoff-run built with musl beside the one built with glibc.
fn build_with_musl() -> Result<PathBuf, String> {
    let triple = format!("{}-unknown-linux-musl", env::consts::ARCH);
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let library = Command::new(rustc).args(["--print", "target-libdir", "--target", &triple]).output().unwrap();
    if !Path::new(String::from_utf8_lossy(&library.stdout).trim_end()).is_dir() {
        return Err(format!("the target {triple} is not installed"));
    }
    // DIRECTORY/TRIPLE/release/handoff-run
    let directory = Path::new(HANDOFF_RUN).ancestors().nth(3).unwrap();
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--locked", "--release", "--bin", "handoff-run", "--target", &triple]);
    cargo.arg("--target-dir").arg(directory).current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(cargo.status().unwrap().success(), "cannot build for {triple}");
    Ok(directory.join(triple).join("release/handoff-run"))
}

/// handoff-run copied, as an installation copies it. The linker writes its output through a mapping, page by page, and
/// the page cache then maps it page by page for as long as it stays there; a program that was copied, or read from a disk,
/// comes in larger pieces.
fn install(binary: &Path, name: &str) -> String {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cost-{name}"));
    // Another name first: what is being run cannot be written.
    fs::write(program.with_extension("new"), fs::read(binary).unwrap()).unwrap();
    fs::set_permissions(program.with_extension("new"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(program.with_extension("new"), &program).unwrap();
    program.into_os_string().into_string().unwrap()
}

/// The bare exec first, then the C program built with glibc. What cannot be measured here is reported and left out.
fn candidates() -> Vec<Candidate> {
    let cc = |name| compile("cc", name).expect("the C programs to compare with need cc");
    let (noop, shim) = (&*cc("noop"), cc("shim"));
    // Free now, and nobody else takes it but a program that asks for any port at the very moment.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let address = format!("127.0.0.1:{port}");
    let start = |name, program: &str| Candidate::new(name, &[program, "-q", "-l", &address, "--", noop]);
    let mut all = vec![
        Candidate::new("bare exec", &[noop]),
        Candidate::new(SHIM, &[&shim, &port, noop]),
        Candidate::new(ENV, &["env", "A=1", noop]),
    ];
    match compile("musl-gcc", "shim") {
        Ok(shim) => all.push(Candidate::new("C, musl", &[&shim, &port, noop])),
        Err(error) => println!("C, musl: not measured, musl-gcc: {error}"),
    }
    let host = if cfg!(target_env = "musl") { OURS_MUSL } else { OURS_GLIBC };
    all.push(start(host, &install(Path::new(HANDOFF_RUN), "handoff-run")));
    if host == OURS_GLIBC {
        match build_with_musl() {
            Ok(binary) => all.push(start(OURS_MUSL, &install(&binary, "handoff-run-musl"))),
            Err(reason) => println!("{OURS_MUSL}: not measured, {reason}"),
        }
    }
    all
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

fn named<'a>(all: &'a [Candidate], name: &str) -> Option<&'a Candidate> {
    all.iter().find(|candidate| candidate.name == name)
}

/// The times of a candidate, and those of what it is compared with.
struct Ratios {
    /// Of the C program's whole process.
    of_shim: f64,
    /// Of env's.
    of_env: f64,
    /// Over a bare exec, in µs.
    over_exec: f64,
    /// The same, of what the C program takes over a bare exec.
    of_shim_over_exec: f64,
}

impl Ratios {
    fn of(candidate: &Candidate, all: &[Candidate]) -> Ratios {
        let (shim, env) = (named(all, SHIM).unwrap(), named(all, ENV).unwrap());
        let over_exec = |candidate: &Candidate| median(candidate) - median(&all[0]);
        Ratios {
            of_shim: median(candidate) / median(shim),
            of_env: median(candidate) / median(env),
            over_exec: over_exec(candidate),
            of_shim_over_exec: over_exec(candidate) / over_exec(shim),
        }
    }
}

fn print_times(all: &[Candidate]) {
    println!(
        "{:20} {:>9} {:>9} {:>8} {:>7} {:>13} {:>8} {:>7}",
        "", "median µs", "p10 µs", "of C", "of env", "over exec µs", "of C's", "faults"
    );
    for candidate in all {
        let tenth = quantile(&candidate.times, 0.1).as_secs_f64() * 1e6;
        let (middle, faults) = (median(candidate), quantile(&candidate.faults, 0.5));
        let Ratios { of_shim, of_env, over_exec, of_shim_over_exec } = Ratios::of(candidate, all);
        println!(
            "{:20} {middle:9.1} {tenth:9.1} {of_shim:8.3} {of_env:7.3} {over_exec:13.1} {of_shim_over_exec:8.3} {faults:7}",
            candidate.name
        );
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
        println!("{:20} {:3} system calls  {}", candidate.name, calls.values().sum::<usize>(), more.join(", "));
    }
}

fn print_instructions(all: &[Candidate]) {
    for candidate in all {
        match candidate.instructions() {
            Ok(count) => println!("{:20} {count:8} instructions before the target", candidate.name),
            Err(error) => println!("{:20} instructions not counted, ptrace: {error}", candidate.name),
        }
    }
}

/// What was to be reached, and whether it was.
fn expectations(all: &[Candidate]) -> Vec<(String, bool)> {
    let mut expected = vec![];
    for (name, limit) in [(OURS_GLIBC, SIZE_GLIBC), (OURS_MUSL, SIZE_MUSL)] {
        let Some(ours) = named(all, name) else { continue };
        let Ratios { of_shim, of_env, of_shim_over_exec, .. } = Ratios::of(ours, all);
        let mut expect = |what: String, met| expected.push((format!("{name}: {what}"), met));
        match name {
            OURS_GLIBC => expect(format!("{of_shim:.3} of C, at most {OF_SHIM:.2}"), of_shim <= OF_SHIM),
            _ => expect(
                format!("{of_shim_over_exec:.3} of C's over a bare exec, at most {OF_SHIM_OVER_EXEC:.2}"),
                of_shim_over_exec <= OF_SHIM_OVER_EXEC,
            ),
        }
        expect(format!("{of_env:.3} of env, less than 1"), of_env < 1.0);
        let size = fs::metadata(ours.line[0].to_str().unwrap()).unwrap().len();
        let limit_mib = limit as f64 / f64::from(1 << 20);
        expect(format!("{size} bytes, less than {limit_mib:.2} MiB"), size < limit);
    }
    expected
}

fn main() {
    let runs: usize = env::var("RUNS").map_or(1000, |runs| runs.parse().expect("RUNS is a number"));
    let mut all = candidates();
    all.iter_mut().for_each(Candidate::run);
    for candidate in &mut all {
        (candidate.times, candidate.faults) = (vec![], vec![]);
    }
    let (bare, others) = all.split_first_mut().unwrap();
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
    for (what, met) in &expectations(&all) {
        println!("{} {what}", if *met { "ok:  " } else { "NOT: " });
    }
}
