//! Where the notify socket of a generation is, who can reach it, and that it goes with the generation.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::signal::Signal;

use crate::harness::setup::{Setup, supervise_in};
use crate::harness::{Folder, PROGRAM, Run, Server, is_root_to, python};

/// Each generation writes down its NOTIFY_SOCKET.
const TELL: &str = "mark('address' + gen, os.environ['NOTIFY_SOCKET']); say('READY=1'); serve()";

/// A supervisor whose RUNTIME_DIRECTORY is `run` in its folder, which is there.
fn in_runtime_directory(script: &str, options: &[&str]) -> Setup {
    let folder = Arc::new(Folder::new());
    fs::create_dir(folder.path("run")).unwrap();
    let run = folder.text("run");
    supervise_in(&folder, Server::Python(script), options).run(|to| to.env("RUNTIME_DIRECTORY", format!("{run}:/no")))
}

/// What is in that.
fn left(folder: &Folder) -> usize {
    fs::read_dir(folder.path("run")).unwrap().count()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

// handoff-run(1): "A generation's own NOTIFY_SOCKET is a path". It was an abstract name, with which puma ended.
#[test]
fn it_is_at_a_path_that_everybody_can_use_and_nobody_can_list() {
    let service = in_runtime_directory(TELL, &[]).serving();
    let address = PathBuf::from(service.folder.read("address1"));
    let ours = address.parent().unwrap();
    assert_eq!(ours.parent().unwrap(), service.folder.path("run"));
    assert_eq!((mode(ours), mode(&address)), (0o711, 0o666));
    service.stopped();
}

#[test]
fn its_file_goes_with_the_generation_and_nothing_is_left_at_the_end() {
    for end in [None, Some(Signal::SIGTERM), Some(Signal::SIGQUIT)] {
        let mut service = in_runtime_directory(TELL, &["--ready", "notify"]).serving();
        let folder = service.folder.clone();
        assert_eq!(service.reload_and_wait().failure(), (0, ""), "{}", service.log());
        assert!(!Path::new(&folder.read("address1")).exists());
        assert_eq!(left(&folder), 1);
        service.upgrade();
        assert!(Path::new(&folder.read("address2")).exists());
        assert_eq!(service.reload_and_wait().failure(), (0, ""), "{}", service.log());
        assert!(!Path::new(&folder.read("address2")).exists());
        assert_eq!(left(&folder), 1);
        match end {
            None => drop(service.stopped()),
            Some(signal) => drop(service.end_by(signal)),
        }
        assert_eq!(left(&folder), 0);
    }
}

#[test]
fn a_generation_that_failed_leaves_no_file() {
    let failing = "if gen == '2': sys.exit(3)\nserve()";
    let service = in_runtime_directory(failing, &[]).serving();
    assert_eq!(service.reload().code(), 1);
    service.wait_gone(2);
    assert_eq!(left(&service.folder), 1);
    service.stopped();
    let mut none = in_runtime_directory("", &[]).target(&["/no/program"]).start();
    assert_eq!(none.end().0, 127);
    assert_eq!(left(&none.folder), 0);
}

#[test]
fn what_a_killed_supervisor_left_is_in_nobodys_way() {
    let mut service = in_runtime_directory(TELL, &[]).serving();
    let folder = service.folder.clone();
    service.end_by(Signal::SIGKILL);
    assert_eq!(left(&folder), 1);
    let run = folder.text("run");
    let again = supervise_in(&folder, Server::Python(TELL), &["--ready", "notify"]);
    again.run(|to| to.env("RUNTIME_DIRECTORY", run)).serving().stopped();
    assert_eq!(left(&folder), 1);
}

/// Where it is with these variables: in which folder of the test's, or what it is.
fn place(variables: &[(&str, &str)], by: Option<&[&str]>) -> (String, String) {
    let folder = Arc::new(Folder::new());
    for name in ["a", "b", "closed"] {
        fs::create_dir(folder.path(name)).unwrap();
    }
    fs::set_permissions(folder.path("closed"), PermissionsExt::from_mode(0o700)).unwrap();
    let long = "l".repeat(80);
    fs::create_dir(folder.path(&long)).unwrap();
    let mut setup = supervise_in(&folder, Server::Python(TELL), &["--ready", "notify"]);
    if let Some(by) = by {
        setup = setup.by(Run::of(by[0]).args(&by[1..]).args(&[PROGRAM]));
    }
    let value = |name: &str| match name {
        "long" => folder.text(&long),
        "relative" => "a".to_owned(),
        name => folder.text(name),
    };
    let environment = |run: Run| {
        let run = ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"].iter().fold(run, |run, name| run.env(name, "/no/folder"));
        variables.iter().fold(run, |run, (name, at)| run.env(name, value(at)))
    };
    let service = setup.run(environment).serving();
    let address = folder.read("address1");
    let log = service.stopped();
    let place = match address.strip_prefix(&folder.text("")) {
        Some(inside) => inside.split('/').next().unwrap().to_owned(),
        None => address.split("handoff-run").next().unwrap().to_owned(),
    };
    (place, log)
}

#[test]
fn its_folder_is_the_first_that_will_do() {
    let at = |variables: &[(&str, &str)]| place(variables, None).0;
    assert_eq!(at(&[("RUNTIME_DIRECTORY", "a"), ("XDG_RUNTIME_DIR", "b")]), "a");
    assert_eq!(at(&[("XDG_RUNTIME_DIR", "b")]), "b");
    assert_eq!(at(&[("RUNTIME_DIRECTORY", "long"), ("XDG_RUNTIME_DIR", "b")]), "b");
    assert_eq!(at(&[("RUNTIME_DIRECTORY", "relative"), ("XDG_RUNTIME_DIR", "b")]), "b");
    if is_root_to("become another user, who could not go through its folder") {
        assert_eq!(at(&[("RUNTIME_DIRECTORY", "closed"), ("XDG_RUNTIME_DIR", "b")]), "b");
        assert_eq!(at(&[]), "/run/");
    }
}

#[test]
fn without_a_folder_it_is_abstract_and_that_is_said_once() {
    if !is_root_to("mount an empty /run") {
        return;
    }
    let by = ["unshare", "--mount", "sh", "-ec", "mount -t tmpfs -o ro tmpfs /run && exec \"$@\"", "sh"];
    assert_eq!(place(&[("TMPDIR", "b")], Some(&by)).0, "b");
    let (place, log) = place(&[("TMPDIR", "long")], Some(&by));
    assert!(place.starts_with('@'), "{place}");
    let warning = "NOTIFY_SOCKET is an abstract name, which some clients cannot use: ENAMETOOLONG";
    assert_eq!(log.matches(warning).count(), 1, "{log}");
}

// An abstract name is of one network namespace alone.
#[test]
fn a_generation_in_a_network_of_its_own_reaches_it() {
    if !is_root_to("make a network namespace") {
        return;
    }
    let setup = in_runtime_directory(TELL, &["--ready", "notify"]);
    let server = setup.folder.path("server.py");
    let line = ["unshare".into(), "--net".into(), python::python(), "-IS".into(), server];
    setup.target(&line).serving().stopped();
}
