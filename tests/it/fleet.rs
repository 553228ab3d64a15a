//! examples/fleet: a playbook rolls a release over three hosts, which are namespaces of this machine, by a real Ansible.

use std::fs;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::case::{CASE, Case, is_installed};
use crate::harness::deploy::{build, current, example, search_path};
use crate::harness::namespace::in_network_of;
use crate::harness::server::hello;
use crate::harness::{DEADLINE, Folder, Output, PROGRAM, Run, Server, Supervisor, is_root_to, supervise};
use crate::load::{Load, during};

const ANSIBLE: Case = Case { needs: &["ansible-playbook", "ip", "nsenter", "tar", "unshare"], ..CASE };

/// A host: its own processes, network, /srv and /run, which is the folder of its supervisor.
const HOST: &str =
    r#"mkdir "$1/app" && mount --bind "$1" /srv && mount --bind "$1" /run && ip link set lo up && shift && exec "$@""#;

/// What Ansible takes for ssh(1): a host is called by the first process of its namespaces.
const SSH: &str = r#"while [ $# -gt 2 ]; do shift; done
exec env -i HOME=/run TMPDIR=/run LC_ALL=C.UTF-8 PATH="$PATH" nsenter -t "$1" -m -n -p -- sh -c "$2""#;

/// In the order in which they are rolled: the canary is the second of the inventory.
const ORDER: [&str; 3] = ["b", "a", "c"];

/// Three of them, in that order, and what rolls them.
struct Fleet {
    folder: Folder,
    hosts: Vec<Supervisor>,
}

/// A host that serves the first release.
fn host() -> Supervisor {
    let setup = supervise(Server::Script("exec /srv/app/current/server"), &[]).listen("127.0.0.1:8000");
    build(&setup.folder, "first", &server("1"));
    let words = ["--pid", "--fork", "--kill-child", "--mount", "--net", "--mount-proc", "sh", "-ec", HOST, "sh"];
    let deploy =
        ["sh", "-ec", r#"APP=/srv/app CONTROL=/run/control "$0" first >/dev/null; exec "$@""#, &example("deploy.sh")];
    let run = Run::of("unshare").args(&words).args(&[&setup.folder.text("")]).args(&deploy).env("PATH", search_path());
    setup.by_parent(run.args(&[PROGRAM])).serving()
}

/// The script of a server that answers as this release.
fn server(release: &str) -> String {
    format!("exec env HELLO_VERSION={release} {}", hello().display())
}

/// ansible-playbook, run in a folder.
fn playbook(folder: &Folder, inventory: &str) -> Run {
    let run = Run::of("ansible-playbook").args(&["-i", inventory, &example("fleet/deploy.yml")]).current_dir(folder);
    let run = run.env("PATH", search_path()).env("LC_ALL", "C.UTF-8").env("ANSIBLE_NOCOLOR", "1");
    run.env("ANSIBLE_HOME", folder.path("ansible"))
}

impl Fleet {
    fn start() -> Fleet {
        let (folder, hosts) = (Folder::new(), ORDER.map(|_| host()).into());
        build(&folder, "ssh", SSH);
        let fleet = Fleet { folder, hosts };
        let line = |name: &&str| {
            let at = ORDER.iter().position(|other| other == name).unwrap();
            format!("{name} ansible_host={}\n", fleet.hosts[at].pid)
        };
        let hosts: String = ["a", "b", "c"].iter().map(line).collect();
        let ssh = fleet.folder.text("ssh/server");
        let variables = format!(
            "app=/srv/app\ncontrol=/run/control\nansible_ssh_executable={ssh}\nansible_ssh_transfer_method=piped\n\
            ansible_pipelining=true\nansible_python_interpreter=/usr/bin/python3\n"
        );
        fleet.folder.write("hosts.ini", &format!("[canary]\nb\n[app]\n{hosts}[all:vars]\n{variables}"));
        fleet
    }

    /// Roll this release, whose server is a script.
    fn roll(&self, release: &str, script: &str) -> Output {
        if !self.folder.path(release).exists() {
            build(&self.folder, release, script);
            let tar = Run::of("tar").args(&["-czf", &format!("{release}.tar.gz"), "-C", release, "."]);
            assert_eq!(tar.current_dir(&self.folder).output().failure(), (0, ""));
        }
        let run =
            playbook(&self.folder, &self.folder.text("hosts.ini")).args(&["-e", &format!("release={release}.tar.gz")]);
        run.start().output_within(DEADLINE * 10)
    }

    /// What each host has: the server of its current release, and the generation that serves.
    fn state(&self) -> Vec<(String, u64)> {
        let state = |host: &Supervisor| {
            // It leads to where the host has it.
            let release = current(&host.folder);
            let release = host.folder.path("").join(release.strip_prefix("/srv").unwrap());
            let generations = host.states();
            let serving = generations.iter().find(|(_, state)| state == "serving").unwrap().0;
            (fs::read_to_string(release.join("server")).unwrap(), serving)
        };
        self.hosts.iter().map(state).collect()
    }
}

/// The numbers of a host's line in the recap, by their names.
fn recap(output: &Output, host: &str) -> String {
    let (_, recap) = output.stdout.split_once("PLAY RECAP").unwrap();
    recap.lines().find(|line| line.starts_with(&format!("{host} "))).unwrap_or_default().to_owned()
}

/// A release, and the generation of it that serves.
fn serves(release: &str, generation: u64) -> (String, u64) {
    (format!("#!/bin/sh\n{}\n", server(release)), generation)
}

/// A host of which nothing was changed.
#[track_caller]
fn assert_unchanged(output: &Output, host: &str) {
    assert!(recap(output, host).contains(" changed=0 "), "{}", output.stdout);
}

/// It ends so, with this said by the host where it ends.
#[track_caller]
fn assert_stops(output: &Output, reason: &str) {
    assert_eq!(output.code(), 2, "{}", output.stdout);
    assert!(output.stdout.contains(reason), "{}", output.stdout);
}

const FAILED: &str = "does not serve (--reload ended with 1)";

fn rolls_host_by_host_and_not_again(fleet: &Fleet) {
    let good = fleet.roll("second", &server("2"));
    assert_eq!(good.code(), 0, "{}", good.stdout);
    let at = ORDER.map(|host| good.stdout.rfind(&format!("changed: [{host}]")).unwrap());
    assert!(at.is_sorted(), "{}", good.stdout);
    assert_eq!(fleet.state(), ORDER.map(|_| serves("2", 2)));
    let again = fleet.roll("second", "");
    assert_eq!(again.code(), 0, "{}", again.stdout);
    ORDER.iter().for_each(|host| assert_unchanged(&again, host));
}

fn stops_at_the_canary(fleet: &Fleet) {
    let output = fleet.roll("third", "exit 3");
    assert_stops(&output, FAILED);
    assert_eq!(fleet.state(), ORDER.map(|_| serves("2", 2)));
    ORDER[1..].iter().for_each(|host| assert_unchanged(&output, host));
}

fn stops_at_the_second_host(fleet: &Fleet) {
    fleet.hosts[1].folder.open("lacks-something");
    let output = fleet.roll("fourth", &format!("[ ! -e /run/lacks-something ] || exit 3\n{}", server("4")));
    assert_stops(&output, FAILED);
    let state = fleet.state();
    assert!(state[0].0.contains("HELLO_VERSION=4"), "{state:?}");
    assert_eq!(state[1..], [serves("2", 2), serves("2", 2)]);
    assert_unchanged(&output, ORDER[2]);
}

#[test]
fn a_fleet_is_rolled_host_by_host_and_stops_at_the_first_failed_reload_under_load_without_a_lost_request() {
    if !is_installed(&ANSIBLE) || !is_root_to("make hosts of namespaces") {
        return;
    }
    let fleet = Fleet::start();
    let load = Load { rest: Duration::from_millis(5), ..Load::lasting(([127, 0, 0, 1], 8000).into()) };
    let on = |host: &Supervisor| {
        let (pid, load) = (host.pid, &load);
        move |stop: &AtomicBool| in_network_of(pid, || load.run(stop))
    };
    let ((), reports) = during(fleet.hosts.iter().map(on), || {
        rolls_host_by_host_and_not_again(&fleet);
        stops_at_the_canary(&fleet);
        stops_at_the_second_host(&fleet);
    });
    for (host, report) in fleet.hosts.iter().zip(reports) {
        assert_eq!(report.failed(), 0, "{report:?}");
        assert!(report.by_body.keys().any(|body| body.contains("hello from 2,")), "{:?}", report.by_body);
        let names = fs::read_dir(host.folder.path("app")).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = names.filter(|name| name.to_string_lossy().ends_with(".tar.gz")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_fleet_in_which_a_supervisor_does_not_answer_is_left_as_it_is() {
    if !is_installed(&ANSIBLE) || !is_root_to("make hosts of namespaces") {
        return;
    }
    let fleet = Fleet::start();
    let before = fleet.state();
    fleet.hosts[2].signal(Signal::SIGSTOP);
    let output = fleet.roll("second", &server("2"));
    fleet.hosts[2].signal(Signal::SIGCONT);
    assert_stops(&output, "is stopped");
    assert_eq!(fleet.state(), before);
}

#[test]
fn the_playbook_and_the_inventory_are_well_formed() {
    if is_installed(&ANSIBLE) {
        let folder = Folder::new();
        let output = playbook(&folder, &example("fleet/hosts.ini")).args(&["--syntax-check"]).output();
        assert_eq!(output.failure(), (0, ""));
    }
}
