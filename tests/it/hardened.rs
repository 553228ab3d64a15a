//! In a unit that is hardened as units are, nothing is lost: under a real systemd.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::harness::run::copy_program;
use crate::harness::server::settings;
use crate::harness::systemd::Systemd;
use crate::harness::{Folder, PROGRAM, Server, wait_for};

/// The usual hardening, as the README has it: a section of its own.
const HARDENING: &str = include_str!("../../examples/systemd/hardened.conf");

/// Such a unit, which sees the test's folder and may write there.
fn unit(folder: &Folder, options: &str, script: &str, lines: &str) -> String {
    fs::set_permissions(folder, Permissions::from_mode(0o777)).unwrap();
    // Where it was built, another user may not go.
    let program = folder.text("handoff-run");
    copy_program(PROGRAM, &program);
    let server = Server::Python(script).install(folder).join(" ".as_ref()).into_string().unwrap();
    let settings = settings(folder).join(" ");
    let seen = folder.text("");
    format!(
        "[Unit]\nDefaultDependencies=no\n[Service]\nKillMode=mixed\n{HARDENING}\nBindPaths={seen}\nStandardError=append:{seen}log\n{lines}\n\
         ExecStart={program} {options} {settings} -- {server}\n"
    )
}

/// What the unit's processes have logged.
fn log(systemd: &Systemd) -> String {
    fs::read_to_string(systemd.folder.path("log")).unwrap()
}

/// systemctl, to succeed.
#[track_caller]
fn succeed(systemd: &Systemd, words: &[&str]) {
    assert_eq!(systemd.systemctl(words).failure(), (0, ""), "{words:?}: {}", log(systemd));
}

// It was ended by SIGSYS at its first look at the server.
#[test]
fn a_supervisor_starts_reloads_becomes_a_new_program_and_stops() {
    let folder = Folder::new();
    let [control, socket] = ["control", "s"].map(|name| folder.text(name));
    let options = format!("--supervise --control {control} -l unix:{socket} -l :0 -l udp::0");
    let script = "
udp = socket.socket(fileno=5)
tcp = socket.socket(fileno=4)
import threading
for act in (tcp.accept, lambda: udp.recv(9)): threading.Thread(target=act, daemon=True).start()
mark('address' + gen, os.environ['NOTIFY_SOCKET'])
serve()";
    let reload = format!("ExecReload={} --reload {control} --wait", folder.text("handoff-run"));
    let lines = format!("Type=notify\nRuntimeDirectory=app\n{reload}");
    let unit = unit(&folder, &options, script, &lines);
    let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
    succeed(&systemd, &["start", "a"]);
    assert_eq!(systemd.answer("s").generation, 1);
    assert!(systemd.folder.read("address1").starts_with("/run/app/handoff-run-"), "{}", systemd.log());
    succeed(&systemd, &["reload", "a"]);
    assert_eq!(systemd.answer("s").generation, 2);
    systemd.succeed(&["kill", "--kill-who=main", "-s", "USR2", "a"]);
    wait_for("the new program", || log(&systemd).contains("becoming").then_some(()));
    succeed(&systemd, &["reload", "a"]);
    assert_eq!(systemd.answer("s").generation, 3);
    // Connections are counted, by the unit's own /proc.
    let (uid, program) = (systemd.property("a", "UID"), systemd.folder.text("handoff-run"));
    let pid = systemd.property("a", "MainPID");
    let inside = ["nsenter", "-t", &pid, "-m", "setpriv", "--reuid", &uid, "--clear-groups"];
    let status = systemd.run(&[&inside[..], &[&program, "--status", &control, "--json"]].concat());
    assert!(status.stdout.contains("\"connections\":0"), "{status:?}");
    systemd.succeed(&["stop", "a"]);
    assert_eq!(systemd.property("a", "Result"), "success");
    assert!(!systemd.folder.path("s").exists());
    let log = log(&systemd);
    // Once by each of the two programs.
    assert_eq!(log.matches("pidfd_getfd is not permitted, a try was ended by SIGSYS").count(), 2, "{log}");
}

#[test]
fn exec_in_place_and_restart() {
    let folder = Folder::new();
    let options = format!("-l unix:{} -l :0 -l udp::0", folder.text("s"));
    let unit = unit(&folder, &options, "serve()", "Type=exec");
    let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
    for _ in 0..2 {
        systemd.succeed(&["restart", "a"]);
        let pid = systemd.property("a", "MainPID");
        assert_eq!(systemd.answer("s").pid.to_string(), pid, "{}", log(&systemd));
    }
    systemd.succeed(&["stop", "a"]);
    assert_eq!(systemd.property("a", "Result"), "success");
}

// Its Unix socket was closed and bound anew, and its FIFO was an error.
#[test]
fn the_socket_and_the_fifo_of_a_socket_unit_are_handed_on() {
    let folder = Folder::new();
    let script = "
import stat
kinds = [stat.S_IFMT(os.fstat(number).st_mode) for number in (3, 4)]
told = [os.environ['LISTEN_FDS'], os.environ['LISTEN_FDNAMES'], str(kinds == [stat.S_IFSOCK, stat.S_IFIFO])]
mark(os.environ['TOLD'], ' '.join([str(os.fstat(3).st_ino), *told]))
serve()";
    let listen = |name: &str| format!("-l web=unix:{}", folder.text(name));
    let ways = [("a", String::new()), ("b", listen("b")), ("c", "--supervise".into())];
    let ways = ways.into_iter().chain([("d", format!("--supervise {}", listen("d")))]);
    let mut units = Vec::new();
    for (name, options) in ways {
        let kind = if options.contains("--supervise") { "Type=notify" } else { "Type=exec" };
        let lines = format!("{kind}\nEnvironment=TOLD=told-{name}");
        units.push((format!("{name}.service"), unit(&folder, &options, script, &lines)));
        let socket = format!(
            "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream={}\nListenFIFO={}\nFileDescriptorName=web\n",
            folder.text(name),
            folder.text(&format!("fifo-{name}"))
        );
        units.push((format!("{name}.socket"), socket));
    }
    let units: Vec<(&str, String)> = units.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    let Some(systemd) = Systemd::boot(folder, &units) else { return };
    for name in ["a", "b", "c", "d"] {
        systemd.succeed(&["start", &format!("{name}.socket")]);
        assert_eq!(systemd.answer(name).generation, 1, "{name}: {}", log(&systemd));
        let told = systemd.folder.read(&format!("told-{name}"));
        let (inode, rest) = told.split_once(' ').unwrap();
        assert!(systemd.sockets().contains(&inode.parse().unwrap()), "{name}: {told}");
        assert_eq!(rest, "2 web:web True", "{name}");
    }
}

// handoff-run(1), INTERCEPTION: "a unit permits by SystemCallFilter=@system-service seccomp pidfd_getfd".
#[test]
fn interception_needs_what_the_manual_says_and_names_it() {
    let folder = Folder::new();
    let [control, socket] = ["control", "s"].map(|name| folder.text(name));
    let options =
        format!("--supervise --control {control} -l unix:{socket} --intercept --env SOCKET= --env ADDRESS={{addr}}");
    let reload = format!("ExecReload={} --reload {control} --wait", folder.text("handoff-run"));
    let (script, lines) =
        ("s = opened(socket.AF_UNIX)\nserve()", format!("Type=notify\nRuntimeDirectory=app\n{reload}"));
    let without = unit(&folder, &options, script, &lines);
    let with = unit(&folder, &options, script, &format!("{lines}\nSystemCallFilter=seccomp pidfd_getfd"));
    let Some(systemd) = Systemd::boot(folder, &[("a.service", without), ("b.service", with)]) else { return };
    assert_ne!(systemd.systemctl(&["start", "a"]).code(), 0);
    let told = "handoff-run: --intercept does not work here: seccomp: a try was ended by SIGSYS\n\
                handoff-run: in a unit: SystemCallFilter=@system-service seccomp pidfd_getfd; in a container: ";
    assert!(log(&systemd).starts_with(told), "{}", log(&systemd));
    succeed(&systemd, &["start", "b"]);
    assert_eq!(systemd.answer("s").generation, 1);
    succeed(&systemd, &["reload", "b"]);
    assert_eq!(systemd.answer("s").generation, 2, "{}", log(&systemd));
    systemd.succeed(&["stop", "b"]);
}
