//! The unit that has all that systemd has for a supervisor, under a real systemd.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use nix::unistd::Pid;

use crate::harness::client;
use crate::harness::json::flat;
use crate::harness::run::copy_program;
use crate::harness::server::settings;
use crate::harness::systemd::Systemd;
use crate::harness::{Folder, PROGRAM, Server, wait_for};

const UNIT: &str = include_str!("../../examples/systemd/app-full.service");
const HARDENING: &str = include_str!("../../examples/systemd/hardened.conf");

/// The first generation leaves a daemon to which nothing leads, and which does not end when it is asked to.
const SCRIPT: &str = "
mark('socket-' + gen, os.readlink('/proc/self/fd/3'))
mark('in-' + gen, open('/proc/self/cgroup').read().split('0::')[1].strip())
if gen == '1' and os.fork() == 0:
    os.setsid()
    os.closerange(3, 100)
    code = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)'
    os.execve(sys.executable, [sys.executable, '-IS', '-c', code], {})
serve()";

/// The unit as it is, but for where its files are and how long a drain may take.
fn unit(folder: &Folder) -> String {
    fs::set_permissions(folder, Permissions::from_mode(0o777)).unwrap();
    let program = folder.text("handoff-run");
    copy_program(PROGRAM, &program);
    let server = Server::Python(SCRIPT).install(folder).join(" ".as_ref()).into_string().unwrap();
    let target = format!(" --drain-timeout 300ms {} -- {server}", settings(folder).join(" "));
    let here = folder.text("");
    let seen = format!("[Service]\nBindPaths={here}\nStandardError=append:{here}log\n");
    let changes = [
        ("[Unit]\n", "[Unit]\nDefaultDependencies=no\n"),
        ("[Service]\n", &seen),
        (" -- /srv/app/current/server", &target),
        ("/usr/local/bin/handoff-run", &program),
    ];
    changes.iter().fold(UNIT.to_owned(), |unit, (from, to)| {
        assert!(unit.contains(from), "{from}");
        unit.replace(from, to)
    })
}

/// The cgroups of the unit, but for the one in which systemd runs `ExecReload=`.
fn cgroups(systemd: &Systemd) -> Vec<String> {
    let found = systemd.run(&["find", "/sys/fs/cgroup/system.slice", "-path", "*app.service*", "-type", "d"]).stdout;
    let mut found: Vec<String> = found.lines().map(|path| path.rsplit('/').next().unwrap().to_owned()).collect();
    found.retain(|name| name != ".control");
    found.sort();
    found
}

/// The processes of the unit but for those that end, such as what the reload was.
fn processes(systemd: &Systemd) -> usize {
    let text =
        systemd.run(&["sh", "-c", "cat /sys/fs/cgroup/system.slice/app.service/generation-*/cgroup.procs"]).stdout;
    text.lines().count()
}

/// The supervisor's main process and what it shows of its generations.
fn status(systemd: &Systemd) -> (Pid, std::collections::BTreeMap<String, String>) {
    let pid = systemd.property("app", "MainPID");
    let uid = systemd.run(&["stat", "-c", "%u", &format!("/proc/{pid}")]).stdout;
    let inside = ["nsenter", "-t", &pid, "-m", "setpriv", "--reuid", uid.trim(), "--clear-groups"];
    let program = systemd.folder.text("handoff-run");
    let output = systemd.run(&[&inside[..], &[&program, "--status", "/run/app/control", "--json"]].concat());
    assert_eq!(output.failure(), (0, ""));
    (Pid::from_raw(pid.parse().unwrap()), flat(output.stdout.trim_end()))
}

/// Wait until this generation answers at the unit's port.
fn answered(systemd: &Systemd, generation: u64) {
    systemd.in_network(|| {
        wait_for("the generation", || {
            let answer = client::ask("127.0.0.1:8000").ok()?;
            (answer.generation == generation).then_some(())
        });
    });
}

#[test]
fn the_full_unit_is_hardened_as_the_other_is() {
    for line in HARDENING.lines().filter(|line| !line.starts_with(['#', '['])) {
        assert!(UNIT.contains(&format!("\n{line}\n")), "{line}");
    }
}

// handoff-run(1), CGROUPS: "A unit with all of this".
#[test]
fn the_full_unit_rolls_kills_what_does_not_drain_and_keeps_its_sockets_as_root_and_as_another_user() {
    for is_root in [false, true] {
        let folder = Folder::new();
        let unit = unit(&folder);
        let unit = if is_root { unit.replace("DynamicUser=yes\n", "") } else { unit };
        let Some(systemd) = Systemd::boot(folder, &[("app.service", unit)]) else { return };
        begins(&systemd);
        rolls(&systemd);
        restarts(&systemd);
        // A stop that has to kill something fails.
        systemd.succeed(&["reload", "app"]);
        wait_for("the daemon to be killed", || (processes(&systemd) == 1).then_some(()));
        systemd.succeed(&["stop", "app"]);
        assert_eq!(systemd.property("app", "Result"), "success");
        assert_eq!(cgroups(&systemd), [""; 0]);
        let log = fs::read_to_string(systemd.folder.path("log")).unwrap();
        assert!(!log.contains("cgroup"), "{log}");
    }
}

fn begins(systemd: &Systemd) {
    systemd.succeed(&["start", "app"]);
    answered(systemd, 1);
    assert_eq!(systemd.folder.read("in-1"), "/system.slice/app.service/generation-1");
    assert_eq!(cgroups(systemd), ["app.service", "generation-1", "supervisor"]);
    let (_, status) = status(systemd);
    let used: f64 = status["generations.0.cpu_time"].parse().unwrap();
    assert!(used > 0.0 && used < 100.0, "{used}");
    // Only where the machine has the controller in this hierarchy.
    let memory = "/sys/fs/cgroup/system.slice/app.service/generation-1/memory.current";
    assert_eq!(systemd.run(&["test", "-e", memory]).code() == 0, status["generations.0.memory"] != "None");
    assert_eq!(processes(systemd), 2);
}

fn rolls(systemd: &Systemd) {
    systemd.succeed(&["reload", "app"]);
    answered(systemd, 2);
    systemd.folder.read_with("log", "generation 1: has not drained in time and is killed\n");
    systemd.folder.read_with("log", "generation 1: gone\n");
    assert_eq!(cgroups(systemd), ["app.service", "generation-2", "supervisor"]);
    assert_eq!(processes(systemd), 1);
    // It goes on as another program.
    systemd.succeed(&["kill", "--kill-who=main", "-s", "USR2", "app"]);
    systemd.folder.read_with("log", "becoming");
    systemd.succeed(&["reload", "app"]);
    answered(systemd, 3);
    systemd.folder.read_with("log", "generation 2: gone\n");
    assert_eq!(cgroups(systemd), ["app.service", "generation-3", "supervisor"]);
}

/// By a restart and by a crash: what is left of the old one goes, and the sockets are the same.
fn restarts(systemd: &Systemd) {
    for is_crash in [false, true] {
        let (pid, _) = status(systemd);
        let serves = if is_crash { "socket-1" } else { "socket-3" };
        let socket = systemd.folder.read(serves);
        fs::remove_file(systemd.folder.path("socket-1")).unwrap();
        match is_crash {
            true => systemd.succeed(&["kill", "--kill-who=main", "-s", "KILL", "app"]),
            false => systemd.succeed(&["restart", "app"]),
        }
        assert_eq!(systemd.folder.read("socket-1"), socket);
        wait_for("the unit to be active", || (systemd.property("app", "SubState") == "running").then_some(()));
        answered(systemd, 1);
        assert_ne!(status(systemd).0, pid);
        assert_eq!(cgroups(systemd), ["app.service", "generation-1", "supervisor"]);
        wait_for("the daemon", || (processes(systemd) == 2).then_some(()));
    }
}
