//! The units of examples/systemd, as they are but for where the programs are, under a real systemd: what their comments
//! promise.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::case::{CASE, Case, is_installed};
use crate::harness::client::{Answer, ask};
use crate::harness::run::copy_program;
use crate::harness::server::{hello, point};
use crate::harness::systemd::Systemd;
use crate::harness::{Folder, PROGRAM, Run, wait_for};
use crate::load::Load;

/// The units of examples/systemd.
const ALL: [&str; 6] =
    ["app.service", "app.socket", "app-exec.service", "app-exec.socket", "app-fdstore.service", "app-full.service"];
const ADDRESS: &str = "127.0.0.1:8000";

fn example(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/systemd").join(name)).unwrap()
}

/// The unit of an example, whose programs are in the folder, where another user may go.
fn unit(folder: &Folder, name: &str) -> String {
    let text = example(name)
        .replace("/usr/local/bin/handoff-run", &folder.text("handoff-run"))
        .replace("/srv/app/current/server", &folder.text("server"));
    let service = format!("[Service]\nBindPaths={0}\nStandardError=append:{0}log\n", folder.text(""));
    // For the systemd of the tests has no other unit.
    format!("{text}\n[Unit]\nDefaultDependencies=no\n{}", if name.ends_with(".service") { &service } else { "" })
}

/// A folder with the programs, and with these units written to it.
fn folder_with(names: &[&'static str]) -> (Folder, Vec<(&'static str, String)>) {
    let folder = Folder::new();
    fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
    copy_program(PROGRAM, folder.path("handoff-run"));
    copy_program(hello(), folder.path("hello"));
    point(&folder, &folder.path("hello"));
    let units = names.iter().map(|name| (*name, unit(&folder, name))).collect();
    (folder, units)
}

fn boot(names: &[&'static str]) -> Option<Systemd> {
    let (folder, units) = folder_with(names);
    Systemd::boot(folder, &units)
}

fn log(systemd: &Systemd) -> String {
    systemd.log() + &fs::read_to_string(systemd.folder.path("log")).unwrap_or_default()
}

fn answer(systemd: &Systemd) -> Answer {
    systemd.in_network(|| wait_for("an answer", || ask(ADDRESS).ok()))
}

/// Three times this under load: another process answers each time, and no client is lost.
#[track_caller]
fn three_deploys_lose_nobody(systemd: &Systemd, words: &[&str]) {
    let address: SocketAddr = ADDRESS.parse().unwrap();
    answer(systemd);
    let deploy = |_| {
        let before = ask(ADDRESS).unwrap().pid;
        systemd.succeed(words);
        wait_for("another process", || (ask(ADDRESS).ok()?.pid != before).then_some(()));
    };
    let ((), report) = systemd.in_network(|| Load::lasting(address).during(|| (0..3).for_each(deploy)));
    assert_eq!(report.failed(), 0, "{words:?}: {report:?} {}", log(systemd));
    assert!(report.by_body.len() > 1, "{words:?}: {report:?}");
}

/// The server is the unit's main process, and when that is killed nobody is refused until the next one serves.
#[track_caller]
fn is_started_again(systemd: &Systemd, unit: &str) {
    let serving = answer(systemd).pid;
    assert_eq!(systemd.property(unit, "MainPID"), serving.to_string());
    let kill = || {
        systemd.succeed(&["kill", "-s", "KILL", unit]);
        wait_for("the next one", || ask(ADDRESS).is_ok_and(|answer| answer.pid != serving).then_some(()));
    };
    let ((), report) = systemd.in_network(|| Load::lasting(ADDRESS.parse().unwrap()).during(kill));
    assert_eq!(report.refused, 0, "{report:?}");
}

// "`systemctl reload app` rolls the generations; its exit status is the reload's."
#[test]
fn the_unit_of_a_supervisor_reloads_and_a_reload_that_fails_changes_nothing() {
    let Some(systemd) = boot(&["app.service"]) else { return };
    systemd.succeed(&["start", "app"]);
    three_deploys_lose_nobody(&systemd, &["reload", "app"]);
    let serving = answer(&systemd);
    point(&systemd.folder, Path::new("/bin/false"));
    assert_ne!(systemd.systemctl(&["reload", "app"]).code(), 0);
    assert_eq!(answer(&systemd), serving);
    systemd.succeed(&["stop", "app"]);
    assert_eq!(systemd.property("app", "Result"), "success", "{}", log(&systemd));
}

// "systemd binds, the supervisor adopts, and the socket outlives a restart of the service."
#[test]
fn with_the_socket_unit_beside_it_a_restart_of_the_supervisor_refuses_nobody() {
    let Some(systemd) = boot(&["app.service", "app.socket"]) else { return };
    systemd.succeed(&["start", "app.socket"]);
    systemd.succeed(&["start", "app"]);
    three_deploys_lose_nobody(&systemd, &["restart", "app"]);
}

#[test]
fn the_hardened_unit_reloads() {
    let (folder, mut units) = folder_with(&["app.service"]);
    units[0].1 += &example("hardened.conf");
    let Some(systemd) = Systemd::boot(folder, &units) else { return };
    systemd.succeed(&["start", "app"]);
    three_deploys_lose_nobody(&systemd, &["reload", "app"]);
    assert_ne!(systemd.property("app", "UID"), "0");
}

// "`systemctl restart app-exec` is the deploy: nobody is refused".
#[test]
fn the_unit_of_a_program_alone_is_restarted_on_the_socket_of_its_socket_unit() {
    let Some(systemd) = boot(&["app-exec.service", "app-exec.socket"]) else { return };
    systemd.succeed(&["start", "app-exec"]);
    assert_eq!(systemd.property("app-exec.socket", "ActiveState"), "active");
    three_deploys_lose_nobody(&systemd, &["restart", "app-exec"]);
    is_started_again(&systemd, "app-exec");
}

// "systemd keeps the sockets for the next start."
#[test]
fn the_unit_with_a_descriptor_store_is_restarted_and_started_again_without_a_socket_unit() {
    let Some(systemd) = boot(&["app-fdstore.service"]) else { return };
    systemd.succeed(&["start", "app-fdstore"]);
    three_deploys_lose_nobody(&systemd, &["restart", "app-fdstore"]);
    is_started_again(&systemd, "app-fdstore");
    assert_eq!(systemd.property("app-fdstore", "NFileDescriptorStore"), "1");
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    if !is_installed(&Case { needs: &["systemd-analyze"], ..CASE }) {
        return;
    }
    let (folder, _) = folder_with(&[]);
    for name in ALL {
        let text = example(name).replace("/usr/local/bin/handoff-run", &folder.text("handoff-run"));
        // What an older one does not know yet.
        folder.write(name, &text.replace("FileDescriptorStorePreserve=yes\n", ""));
    }
    for name in ALL {
        let output = Run::of("systemd-analyze").args(&["verify", "--man=no", &folder.text(name)]).output();
        // Of other units on this machine it may complain.
        let found: Vec<&str> = output.stderr.lines().filter(|line| line.contains("app")).collect();
        assert_eq!(found, [""; 0], "{output:?}");
    }
}
