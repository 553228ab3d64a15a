//! Under a real systemd: start, reload, stop, crash, and the sockets of .socket units.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::{fs, process};

use crate::harness::client::Client;
use crate::harness::python;
use crate::harness::server::settings;
use crate::harness::systemd::Systemd;
use crate::harness::{Folder, PROGRAM, Server, wait_for};

/// A unit that runs handoff-run with `options` and a server in Python, and has `lines` of its own.
fn service(folder: &Folder, options: &str, script: &str, lines: &str) -> String {
    let server = Server::Python(script).install(folder).join(" ".as_ref()).into_string().unwrap();
    let settings = settings(folder).join(" ");
    format!(
        "[Unit]\nDefaultDependencies=no\n[Service]\nKillMode=mixed\n{lines}\n\
         ExecStart={PROGRAM} {options} {settings} -- {server}\n"
    )
}

/// The same with a supervisor that has a control socket and a socket of its own.
fn supervised(folder: &Folder, options: &str, script: &str, lines: &str) -> String {
    let [control, socket] = ["control", "s"].map(|name| folder.text(name));
    let options = format!("--supervise --control {control} -l unix:{socket} {options}");
    service(folder, &options, script, &format!("Type=notify\n{lines}"))
}

#[test]
fn a_unit_is_active_when_the_server_is_ready_and_its_stop_drains() {
    let folder = Folder::new();
    let script = "
def drain(*_):
    mark('draining'); wait_for('answer'); time.sleep(0.8)
    connection.sendall(b'late'); os._exit(0)
signal.signal(signal.SIGTERM, drain)
mark('early'); wait_for('go')
connection, _ = s.accept()
mark('accepted')
signal.pause()";
    // It drains for longer than systemd would wait by itself.
    let unit = supervised(&folder, "", script, "TimeoutStopSec=500ms");
    let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
    systemd.succeed(&["start", "--no-block", "a"]);
    systemd.folder.read("early");
    assert_eq!(systemd.property("a", "ActiveState"), "activating");
    systemd.folder.open("go");
    systemd.succeed(&["start", "a"]);
    assert_eq!(systemd.property("a", "ActiveState"), "active");
    assert_eq!(systemd.property("a", "StatusText"), "generation 1 serves");
    let mut client = Client::connect(&systemd.folder.text("s")).unwrap();
    systemd.folder.read("accepted");
    systemd.succeed(&["stop", "--no-block", "a"]);
    systemd.folder.read("draining");
    assert_eq!(systemd.property("a", "ActiveState"), "deactivating");
    systemd.wait_for("a", "StatusText", "draining");
    systemd.folder.open("answer");
    assert_eq!(client.rest().unwrap(), b"late");
    systemd.wait_for("a", "ActiveState", "inactive");
    assert_eq!(systemd.property("a", "Result"), "success");
    assert_eq!(systemd.property("a", "ExecMainStatus"), "0");
}

// handoff-run(1), --chdir: "Looked up anew for each generation". systemd sets no PWD, which would do the same.
#[test]
fn a_unit_follows_the_link_to_the_release_that_replaced_the_one_it_was_started_in() {
    let folder = Folder::new();
    let release = |folder: &Folder, name: &str| {
        fs::create_dir(folder.path(name)).unwrap();
        symlink(name, folder.path("current.new")).unwrap();
        fs::rename(folder.path("current.new"), folder.path("current")).unwrap();
    };
    release(&folder, "one");
    folder.write("env", "A=1\n");
    let options = format!("--chdir {} --env-file {}", folder.text("current"), folder.text("env"));
    let script =
        "mark('told-' + gen, f\"{os.path.basename(os.getcwd())} {os.environ['A']} {'PWD' in os.environ}\")\nserve()";
    let reload = format!("ExecReload={PROGRAM} --reload {}", folder.text("control"));
    let unit = supervised(&folder, &options, script, &reload);
    let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
    systemd.succeed(&["start", "a"]);
    assert_eq!(systemd.folder.read("told-1"), "one 1 False");
    release(&systemd.folder, "two");
    fs::remove_dir(systemd.folder.path("one")).unwrap();
    systemd.folder.write("env", "A=2\n");
    systemd.succeed(&["reload", "a"]);
    assert_eq!(systemd.folder.read("told-2"), "two 2 False");
    systemd.folder.write("env", "no variable\n");
    assert_eq!(systemd.systemctl(&["reload", "a"]).code(), 1);
    assert_eq!(systemd.answer("s").generation, 2);
}

// handoff-run(1), the unit: ExecReload=handoff-run --reload.
#[test]
fn systemctl_reload_ends_with_what_became_of_the_new_generation() {
    let folder = Folder::new();
    let script = "if gen == '1': mark('first')\nif exists('broken'): sys.exit(3)\nserve()";
    let reload = format!("ExecReload={PROGRAM} --reload {}", folder.text("control"));
    let unit = supervised(&folder, "", script, &reload);
    let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
    systemd.succeed(&["start", "a"]);
    let main = systemd.property("a", "MainPID");
    systemd.succeed(&["reload", "a"]);
    assert_eq!(systemd.property("a", "StatusText"), "generation 2 serves");
    systemd.wait_generation(2);
    systemd.folder.open("broken");
    let failed = systemd.systemctl(&["reload", "a"]);
    assert_eq!(failed.code(), 1);
    assert_eq!(systemd.property("a", "ActiveState"), "active");
    assert_eq!(systemd.property("a", "SubState"), "running");
    assert_eq!(systemd.property("a", "StatusText"), "generation 2 serves, generation 3 failed");
    assert_eq!(systemd.answer("s").generation, 2);
    assert_eq!(systemd.property("a", "MainPID"), main);
    systemd.succeed(&["stop", "a"]);
}

#[test]
fn systemctl_reload_by_signal_rolls_a_generation() {
    let folder = Folder::new();
    let unit = supervised(&folder, "", "serve()", "ExecReload=kill -HUP $MAINPID");
    let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
    systemd.succeed(&["start", "a"]);
    systemd.succeed(&["reload", "a"]);
    systemd.wait_for("a", "StatusText", "generation 2 serves");
    systemd.wait_for("a", "SubState", "running");
    systemd.wait_generation(2);
    systemd.succeed(&["stop", "a"]);
    assert_eq!(systemd.property("a", "Result"), "success");
}

#[test]
fn a_killed_supervisor_comes_back_and_nothing_of_the_old_one_stays() {
    let folder = Folder::new();
    let unit = supervised(&folder, "", "serve()", "Restart=on-failure\nRestartSec=0");
    let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
    systemd.succeed(&["start", "a"]);
    let old = systemd.answer("s").pid;
    systemd.succeed(&["kill", "--kill-who=main", "-s", "KILL", "a"]);
    systemd.wait_for("a", "NRestarts", "1");
    systemd.wait_for("a", "SubState", "running");
    let new = systemd.answer("s");
    assert_eq!(new.generation, 1);
    assert_ne!(new.pid, old);
    assert!(systemd.run(&["test", "-d", &format!("/proc/{old}")]).code() == 1, "the old server still runs");
}

#[test]
fn a_first_generation_that_fails_fails_the_unit_with_its_status() {
    let folder = Folder::new();
    let unit = supervised(&folder, "", "sys.exit(7)", "");
    let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
    assert_eq!(systemd.systemctl(&["start", "a"]).code(), 1);
    assert_eq!(systemd.property("a", "ActiveState"), "failed");
    assert_eq!(systemd.property("a", "ExecMainStatus"), "7");
}

// --ready-timeout decides, not the TimeoutStartSec of a unit that nobody thought of.
#[test]
fn a_slow_start_is_given_the_time_that_ready_timeout_gives() {
    let folder = Folder::new();
    let unit = supervised(&folder, "", "time.sleep(1); serve()", "TimeoutStartSec=700ms");
    let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
    systemd.succeed(&["start", "a"]);
    assert_eq!(systemd.answer("s").generation, 1);
}

// handoff-run(1): "While none serves, the supervisor sends WATCHDOG=1 itself".
#[test]
fn systemds_watchdog_spares_a_crash_loop_and_a_slow_drain_and_ends_a_server_that_hangs() {
    let folder = Folder::new();
    let script = "
if not exists('well'): s.listen(); sys.exit(4) if gen != '1' else None
if gen == '1': s.accept(); sys.exit(4)
signal.signal(signal.SIGTERM, lambda *_: (mark('draining'), time.sleep(1.5), os._exit(0)))
import threading
def beat():
    while not exists('hang'): say('WATCHDOG=1'); time.sleep(0.1)
threading.Thread(target=beat, daemon=True).start()
serve()";
    let unit = supervised(&folder, "", script, "WatchdogSec=1");
    let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
    systemd.succeed(&["start", "a"]);
    let _crash = Client::connect(&systemd.folder.text("s")).unwrap();
    // The backoffs add up to one and a half seconds.
    let generation = |status: String| status.split(' ').filter_map(|word| word.parse().ok()).max();
    wait_for("generation 5", || (generation(systemd.property("a", "StatusText")) >= Some(5)).then_some(()));
    systemd.folder.open("well");
    wait_for("one that serves", || systemd.property("a", "StatusText").ends_with("serves").then_some(()));
    assert_eq!(systemd.property("a", "Result"), "success");
    systemd.succeed(&["stop", "a"]);
    systemd.folder.read("draining");
    assert_eq!(systemd.property("a", "Result"), "success");
    // A new first generation, which is not to crash.
    fs::remove_file(systemd.folder.path("draining")).unwrap();
    let server = systemd.folder.path("server.py");
    let text = fs::read_to_string(&server).unwrap();
    fs::write(&server, text.replace("if gen == '1': s.accept()", "if False: s.accept()")).unwrap();
    systemd.succeed(&["start", "a"]);
    systemd.folder.open("hang");
    systemd.wait_for("a", "Result", "watchdog");
}

/// What a server tells of the socket it was given, under the name that is its unit's.
const TELL: &str = "
tell = lambda key: os.environ.get(key, '-')
link = os.readlink('/proc/self/fd/3')
own = str(tell('LISTEN_PID') == str(os.getpid()))
mark(os.environ['TOLD'], ' '.join([link, tell('LISTEN_FDS'), tell('LISTEN_FDNAMES'), own]))
serve()";

/// A .socket for a .service, on a path and called web.
fn socket_unit(path: &str, service: &str) -> String {
    format!(
        "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream={path}\nFileDescriptorName=web\nService={service}\n"
    )
}

// handoff-run(1): "the sockets that LISTEN_FDS announces are adopted in their order and with their names".
#[test]
fn a_socket_unit_hands_its_very_socket_on_by_exec_and_supervised_and_with_listen_or_without() {
    let folder = Folder::new();
    let listen = |name: &str| format!("-l web=unix:{}", folder.text(name));
    let ways = [("a", String::new()), ("b", listen("b")), ("c", "--supervise".into())];
    let ways = ways.into_iter().chain([("d", format!("--supervise {}", listen("d")))]);
    let mut units = Vec::new();
    for (name, options) in ways {
        let kind = if options.contains("--supervise") { "Type=notify" } else { "Type=exec" };
        let lines = format!("{kind}\nEnvironment=TOLD=told-{name}");
        units.push((format!("{name}.service"), service(&folder, &options, TELL, &lines)));
        units.push((format!("{name}.socket"), socket_unit(&folder.text(name), &format!("{name}.service"))));
    }
    let units: Vec<(&str, String)> = units.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    let Some(systemd) = Systemd::boot(folder, &units) else { return };
    for name in ["a", "b", "c", "d"] {
        let file = format!("told-{name}");
        systemd.succeed(&["start", &format!("{name}.socket")]);
        // The client is what starts it.
        assert_eq!(systemd.answer(name).generation, 1, "{name}");
        let told = systemd.folder.read(&file);
        let (link, rest) = told.split_once(' ').unwrap();
        assert!(systemd.sockets().iter().any(|held| format!("socket:[{held}]") == link), "{name}: {told}");
        assert_eq!(rest, "1 web True", "{name}");
        // Stopped, it leaves the socket to systemd, which warns of that and starts it anew for the next client.
        assert_eq!(systemd.systemctl(&["stop", &format!("{name}.service")]).code(), 0);
        fs::remove_file(systemd.folder.path(&file)).unwrap();
        assert_eq!(systemd.answer(name).generation, 1, "{name}");
        assert_eq!(systemd.folder.read(&file), told, "{name}");
    }
}

#[test]
fn who_waits_while_the_unit_is_restarted_is_served_when_a_socket_unit_holds_the_queue() {
    let folder = Folder::new();
    let script = "os.write(9, b'x')\nif not exists('first'): mark('first'); time.sleep(100)\nserve()";
    let unit = service(&folder, "--supervise --ready fd:9", script, "Type=notify");
    let units = [("a.socket", socket_unit(&folder.text("s"), "a.service")), ("a.service", unit)];
    let Some(systemd) = Systemd::boot(folder, &units) else { return };
    systemd.succeed(&["start", "a.socket"]);
    let mut client = Client::connect(&systemd.folder.text("s")).unwrap();
    systemd.folder.read("first");
    client.send().unwrap();
    systemd.succeed(&["restart", "a.service"]);
    assert_eq!(client.answer().unwrap().generation, 1);
}

// The namespaces are systemd's, and so is whatever is mounted in them.
#[test]
fn nothing_of_a_systemd_is_left_behind() {
    let folder = Folder::new();
    let unit = supervised(&folder, "", "serve()", "");
    let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
    systemd.succeed(&["start", "a"]);
    let (folder, pid) = (systemd.folder.as_ref().to_owned(), systemd.pid);
    drop(systemd);
    assert!(!folder.exists());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", process::id())).unwrap();
    assert!(!mounts.contains(folder.to_str().unwrap()), "{mounts}");
}

// handoff-run(1), TAKEOVER: "its manager may start it again until it is stopped (Restart=), which is logged".
#[test]
fn a_unit_takes_over_from_another_unit_which_is_named() {
    let folder = Folder::new();
    let old = python::write(&folder, "s = opened(socket.AF_UNIX)\nserve()");
    fs::rename(&old, folder.path("old.py")).unwrap();
    let [old, socket, log, here] = ["old.py", "s", "log", ""].map(|name| folder.text(name));
    let python = python::python();
    let unit = format!(
        "[Unit]\nDefaultDependencies=no\n[Service]\nRestart=always\nRestartSec=100ms\nEnvironment=GENERATION=7 FOLDER={here} \
         ADDRESS={socket} SOCKET=\nExecStart={} -IS {old}\n",
        python.display()
    );
    let new = supervised(&folder, "--from auto --settle 50ms", "serve()", &format!("StandardError=file:{log}"));
    let Some(systemd) = Systemd::boot(folder, &[("old.service", unit), ("new.service", new)]) else { return };
    systemd.succeed(&["start", "old"]);
    systemd.wait_generation(7);
    let pid = systemd.property("old", "MainPID");
    systemd.succeed(&["start", "new"]);
    systemd.wait_generation(1);
    let line = "belongs to old.service, which may start it again (Restart=): 'systemctl stop' ends the unit\n";
    systemd.folder.read_with("log", line);
    wait_for("the old unit to be started again", || (systemd.property("old", "MainPID") != pid).then_some(()));
    systemd.succeed(&["stop", "old"]);
    for _ in 0..20 {
        systemd.wait_generation(1);
    }
    assert_eq!(systemd.property("new", "StatusText"), "generation 1 serves");
}
