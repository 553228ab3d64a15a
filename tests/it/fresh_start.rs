//! What a generation is given: directory, program, variables, descriptors.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::harness::process::{descriptors, name, variable};
use crate::harness::{Server, Supervisor, supervise, wait_for};

fn release(folder: &Path, number: u32) {
    let release = folder.join(format!("releases/{number}"));
    fs::create_dir_all(&release).unwrap();
    symlink("/bin/sh", release.join("server")).unwrap();
    fs::write(release.join("script"), format!("echo {number} > ../../ran; exec ../../server")).unwrap();
}

fn switch_to(folder: &Path, number: u32) {
    symlink(format!("releases/{number}"), folder.join("current.new")).unwrap();
    fs::rename(folder.join("current.new"), folder.join("current")).unwrap();
}

// handoff-run(1), --supervise: each generation is looked for anew, through every symlink.
#[test]
fn a_generation_runs_in_the_release_that_the_directory_s_name_leads_to() {
    let setup = supervise(Server::Hello, &[]).target(&["./server", "script"]);
    let folder = setup.folder.path("");
    (1..=2).for_each(|number| release(&folder, number));
    switch_to(&folder, 1);
    let current = folder.join("current");
    let supervisor = setup.run(|run| run.current_dir(&current).env("PWD", &current)).serving();
    let ran_in = |supervisor: &Supervisor, id: u64| {
        let pid = supervisor.generation(id);
        (supervisor.folder.read("ran"), fs::read_link(format!("/proc/{pid}/cwd")).unwrap())
    };
    assert_eq!(ran_in(&supervisor, 1), ("1\n".into(), folder.join("releases/1")));
    assert_eq!(supervisor.reload_and_wait().code(), 0);
    assert_eq!(ran_in(&supervisor, 2), ("1\n".into(), folder.join("releases/1")));
    switch_to(&folder, 2);
    assert_eq!(supervisor.reload_and_wait().code(), 0);
    assert_eq!(ran_in(&supervisor, 3), ("2\n".into(), folder.join("releases/2")));
    supervisor.stopped();
}

#[test]
fn a_pwd_that_is_not_the_working_directory_is_not_believed() {
    let setup = supervise(Server::Hello, &[]).run(|run| run.env("PWD", "/usr"));
    let folder = setup.folder.path("");
    let supervisor = setup.serving();
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", supervisor.generation(1))).unwrap(), folder);
    supervisor.stopped();
}

#[test]
fn listen_pid_is_each_generation_s_own_and_gen_counts() {
    let supervisor = supervise(Server::Hello, &["--env", "COUNT={gen}", "--env", "OWN={pid}"]).serving();
    for id in 1..=3 {
        let pid = supervisor.generation(id);
        assert_eq!(variable(pid, "LISTEN_PID"), Some(pid.to_string()));
        assert_eq!(variable(pid, "OWN"), Some(pid.to_string()));
        assert_eq!(variable(pid, "COUNT"), Some(id.to_string()));
        assert_eq!(variable(pid, "LISTEN_FDS").as_deref(), Some("1"));
        assert_eq!(supervisor.reload_and_wait().code(), 0);
    }
    supervisor.stopped();
}

// handoff-run(1), ADOPTING: "Every other descriptor stays as it is."
#[test]
fn what_the_supervisor_inherited_reaches_every_generation_and_nothing_else_does() {
    let setup = supervise(Server::Script("echo >&8; LC_ALL=C exec sleep 1000 8>&-"), &["--ready", "fd:8"]);
    let kept = setup.folder.path("kept");
    let file = File::create(&kept).unwrap();
    let supervisor = setup.run(|run| run.inherit(&file, 9).inherit(&file, 3)).serving();
    let descriptors = |id| {
        let pid = supervisor.generation(id);
        wait_for("sleep", || (name(pid) == "sleep").then_some(()));
        descriptors(pid)
    };
    let first = descriptors(1);
    // The one at 3 had to make room.
    assert!(first.iter().any(|(number, _)| *number == 9) && first.len() == 6, "{first:?}");
    assert!(first[3].0 == 3 && first[3].1.starts_with("socket:"), "{first:?}");
    assert!(first[4..].iter().all(|(_, link)| *link == kept.to_str().unwrap()), "{first:?}");
    assert_eq!(supervisor.reload_and_wait().code(), 0);
    let second = descriptors(2);
    assert!(second[3].0 == 3 && second[3].1.starts_with("socket:"), "{second:?}");
    assert_eq!((&second[..3], &second[4..]), (&first[..3], &first[4..]));
    supervisor.stopped();
}

#[test]
fn a_queue_that_a_server_made_shorter_is_restored_once_it_serves() {
    // tcpi_sacked of a listener is the length of its queue.
    let code = "
def tell(*_):
    info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    mark('queue', '%d' % int.from_bytes(info[28:32], sys.byteorder))
signal.signal(signal.SIGUSR1, tell)
s.listen(5)
tell()
os.rename('queue', 'shortened')
serve()";
    let supervisor = supervise(Server::Python(code), &["--backlog", "77"]).serving();
    assert_eq!(supervisor.folder.read("shortened"), "5");
    supervisor.signal(Signal::SIGUSR1);
    assert_eq!(supervisor.folder.read("queue"), "77");
    supervisor.stopped();
}
