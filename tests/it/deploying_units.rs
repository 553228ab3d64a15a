//! examples/deploy.sh where the supervisor is examples/systemd/app.service, under a real systemd.

use crate::harness::deploy::{build, current, example, search_path};
use crate::harness::server::hello;
use crate::harness::systemd::Systemd;
use crate::harness::{Folder, Output, PROGRAM, client, wait_for};

/// The unit, whose program and releases are this test's.
fn unit(folder: &Folder) -> String {
    let unit = include_str!("../../examples/systemd/app.service").replace("/usr/local/bin/handoff-run", PROGRAM);
    unit.replace("/srv/app", &folder.text("app")).replace("[Unit]", "[Unit]\nDefaultDependencies=no")
}

/// deploy.sh with these arguments beside it, as its comment has it.
fn deploy(systemd: &Systemd, argument: &str) -> Output {
    let path = format!("PATH={}", search_path().into_string().unwrap());
    let app = format!("APP={}", systemd.folder.text("app"));
    systemd.run(&["env", &path, &app, "CONTROL=/run/app/control", &example("deploy.sh"), argument])
}

/// The release that answers.
fn serves(systemd: &Systemd) -> u64 {
    systemd.in_network(|| wait_for("an answer", || client::ask("127.0.0.1:8000").ok())).generation
}

#[test]
fn a_release_of_a_unit_is_deployed_and_taken_back_with_the_status_and_the_state_of_the_unit() {
    let folder = Folder::new();
    let unit = unit(&folder);
    let Some(systemd) = Systemd::boot(folder, &[("app.service", unit)]) else { return };
    let folder = &systemd.folder;
    for release in ["1", "2"] {
        build(folder, release, &format!("exec env HELLO_VERSION={release} {}", hello().display()));
    }
    build(folder, "broken", "exit 3");
    let first = deploy(&systemd, &folder.text("1"));
    assert_eq!(first.failure(), (0, ""));
    assert!(first.stdout.contains("no supervisor at /run/app/control"), "{}", first.stdout);
    systemd.succeed(&["start", "app"]);
    assert_eq!(deploy(&systemd, &folder.text("2")).failure(), (0, ""), "{}", systemd.log());
    assert_eq!((systemd.property("app", "StatusText").as_str(), serves(&systemd)), ("generation 2 serves", 2));

    let before = current(folder);
    let failed = deploy(&systemd, &folder.text("broken"));
    assert_eq!(failed.code(), 1);
    assert!(failed.stderr.contains("does not serve (--reload ended with 1)"), "{}", failed.stderr);
    assert_eq!(systemd.property("app", "StatusText"), "generation 2 serves, generation 3 failed");
    assert_eq!((current(folder), serves(&systemd)), (before, 2));
    // A restart does not meet the broken one either, and a reload of the unit is one of the same release.
    systemd.succeed(&["restart", "app"]);
    assert_eq!(serves(&systemd), 2);
    systemd.succeed(&["reload", "app"]);
    assert_eq!((systemd.property("app", "StatusText").as_str(), serves(&systemd)), ("generation 2 serves", 2));

    assert_eq!(deploy(&systemd, "--rollback").failure(), (0, ""));
    assert_eq!(serves(&systemd), 1);
    assert_eq!(systemd.property("app", "ActiveState"), "active");
}
