//! What the kernel tells a target about itself, run directly and through handoff-run, and what may differ. The target is
//! in C, because Rust's runtime changes SIGPIPE before it can look.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::OnceLock;
use std::{fs, ptr};

use nix::errno::Errno;

use super::{Folder, PROGRAM, Run, skip};

/// The program of look.c, compiled once; none where there is no cc.
pub fn look() -> Option<&'static Path> {
    static LOOK: OnceLock<Option<PathBuf>> = OnceLock::new();
    let look = LOOK.get_or_init(|| compile("look", include_str!("look.c")));
    if look.is_none() {
        skip("there is no cc to compile look.c");
    }
    look.as_deref()
}

/// Named for its source, so that nobody replaces a program that another test runs.
fn compile(name: &str, source: &str) -> Option<PathBuf> {
    let mut hasher = DefaultHasher::new();
    source.hash(&mut hasher);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = folder.join(format!("{name}-{:x}", hasher.finish()));
    if program.exists() {
        return Some(program);
    }
    let (text, new) = (program.with_extension("c"), program.with_extension(process::id().to_string()));
    fs::write(&text, source).unwrap();
    let output = match Command::new("cc").args(["-O1", "-w", "-static", "-o"]).args([&new, &text]).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        output => output.unwrap(),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&new, &program).unwrap();
    Some(program)
}

/// What the target found, one fact a line, without the numbers that no two runs share.
#[derive(Debug)]
pub struct Facts(pub Vec<String>);

impl Facts {
    #[track_caller]
    pub fn read(file: &Path, run: Run) -> Facts {
        // Made here, because the target may be somebody else, or have a umask that forbids everything.
        fs::write(file, "").unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o666)).unwrap();
        let running = run.start();
        let pid = running.pid();
        let output = running.output();
        assert!(output.status.success(), "{output:?}");
        let text = fs::read(file).unwrap();
        let mut lines = text.split(|byte| *byte == b'\n').map(|line| String::from_utf8_lossy(line).into_owned());
        assert_eq!(lines.next(), Some(format!("pid {pid}")), "the process that was started is the target: {output:?}");
        Facts(lines.filter(|line| is_constant(line)).map(|line| general(&line, pid.as_raw())).collect())
    }

    #[track_caller]
    pub fn assert(&self, fact: &str) {
        assert!(self.0.iter().any(|line| line == fact), "{fact} is not among {:#?}", self.0);
    }

    /// Take away what handoff-run is there for.
    #[track_caller]
    pub fn without(mut self, allowed: &[&str]) -> Facts {
        for start in allowed {
            let at = self.0.iter().position(|line| line.starts_with(start));
            self.0.remove(at.unwrap_or_else(|| panic!("{start} is missing: {:#?}", self.0)));
        }
        // Only where the kernel has pidfs.
        self.0.retain(|line| !line.starts_with("environ LISTEN_PIDFDID="));
        self
    }
}

/// Counters of the kernel, which differ between any two runs. FDSize is one: how many descriptors the kernel has room
/// for in its table, which a fork copies with the room that the parent's highest descriptor needed at that moment, and
/// so tells of the other threads of the tests.
fn is_constant(line: &str) -> bool {
    let counters = ["Vm", "Rss", "SigQ", "FDSize", "voluntary_ctxt", "nonvoluntary_ctxt"];
    !line.strip_prefix("status: ").is_some_and(|line| counters.iter().any(|counter| line.starts_with(counter)))
}

/// Numbers that are handed out one after the other: pids, pipes, terminals, sessions.
fn general(line: &str, pid: i32) -> String {
    let number = |from: &str| line.find(from).map(|at| at + from.len());
    let line = match number("pipe:[").or(number("/dev/pts/")).or(number("autogroup-")) {
        Some(at) => line[..at].to_owned() + line[at..].trim_start_matches(|c: char| c.is_ascii_digit()),
        None => line.to_owned(),
    };
    let own = ["LISTEN_PID=", "/", "\t"].map(|before| format!("{before}{pid}"));
    match own.iter().find(|own| line.ends_with(*own)) {
        Some(own) if !line.starts_with("environ ") || line.starts_with("environ LISTEN_PID=") => {
            line[..line.len() - own.len()].to_owned() + &own.replace(&pid.to_string(), "PID")
        }
        _ => line,
    }
}

/// Everything that may be there with handoff-run and not without: the socket, and what announces it.
pub const ALLOWED: [&str; 5] = [
    "fd 3: flags 0 mode 140777 status 2 position -1",
    "fd/3 -> ",
    "environ LISTEN_FDS=1",
    "environ LISTEN_FDNAMES=unknown",
    "environ LISTEN_PID=PID",
];

/// Run the target directly and through handoff-run, each time as `arrange` wants it, and compare. Gives what was the
/// same; nothing where there is no target.
#[track_caller]
pub fn compare(mut arrange: impl FnMut(Run) -> Run) -> Option<Facts> {
    compare_programs(look()?, Path::new(PROGRAM), &ALLOWED, &mut arrange)
}

#[track_caller]
pub fn compare_programs(
    look: &Path,
    program: &Path,
    allowed: &[&str],
    arrange: &mut dyn FnMut(Run) -> Run,
) -> Option<Facts> {
    let folder = Folder::new();
    let file = folder.path("facts");
    let target = [look, &file];
    let direct = Facts::read(&file, arrange(Run::of(look)).args(&target[1..]));
    let ours = [Path::new("-l"), Path::new("127.0.0.1:0"), Path::new("--")];
    let through = Facts::read(&file, arrange(Run::of(program)).args(&ours).args(&target)).without(allowed);
    for (direct, through) in direct.0.iter().zip(&through.0) {
        assert_eq!(direct, through, "directly (left) and through handoff-run (right)");
    }
    assert_eq!(direct.0.len(), through.0.len());
    Some(direct)
}

/// The same with something done just before exec.
#[track_caller]
pub fn compare_after(act: impl FnMut() -> io::Result<()> + Clone + Send + Sync + 'static) -> Option<Facts> {
    compare(|run| run.before_exec(act.clone()))
}

/// The outcome of a system call.
pub fn done(result: impl Into<i64>) -> io::Result<()> {
    Ok(Errno::result(result.into()).map(drop)?)
}

/// Past libc, which keeps 32 and 33 for itself. The first word of the kernel's struct is the handler.
pub fn ignore(signal: i32) -> io::Result<()> {
    let action = [libc::SIG_IGN, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: the kernel reads its struct sigaction, which is shorter than the array.
    done(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), ptr::null::<u8>(), 8) })
}

/// Lower the soft limit of `resource`, whose type is not the same in every libc.
pub fn limit(resource: impl Into<i64>, soft: u64) -> io::Result<()> {
    let resource = resource.into();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the struct.
    done(unsafe { libc::getrlimit(resource as _, &raw mut limit) })?;
    limit.rlim_cur = soft.min(limit.rlim_max);
    // SAFETY: the kernel reads the struct.
    done(unsafe { libc::setrlimit(resource as _, &raw const limit) })
}
