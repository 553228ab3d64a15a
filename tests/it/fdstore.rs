//! --fdstore under a real systemd, without a .socket unit: the same sockets come back.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use crate::harness::client::{self, Client};
use crate::harness::server::settings;
use crate::harness::systemd::Systemd;
use crate::harness::{Folder, PROGRAM, Server, remark, wait_for};
use crate::load::{Close, Load};

/// Each start tells of its sockets, in their order: their inodes, addresses, and names. Then all of them are served.
const TELL: &str = "
count = int(os.environ['LISTEN_FDS'])
names = os.environ['LISTEN_FDNAMES'].split(':')
given = [s] + [socket.socket(fileno=number) for number in range(4, 3 + count)]
def tell(at):
    address = given[at].getsockname()
    if isinstance(address, tuple): address = '{0}|{1}'.format(*address)
    return f'{inode(given[at])} {address} {names[at]}'
def link(number):
    try: return os.readlink(f'/proc/self/fd/{number}')
    except OSError: return ''
mark('told', chr(10).join([tell(at) for at in range(count)] +
                          [link for link in map(link, range(3, 100)) if 'handoff' in link]))
def serve_all():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    for one in given: one.setblocking(False)
    while True:
        for one in select.select(given, [], [])[0]:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            try:
                if one.type == socket.SOCK_DGRAM: one.sendto(gen.encode(), one.recvfrom(1000)[1])
                else: answer(one.accept()[0])
            except OSError: pass
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
";

/// What a start told: an inode, an address and a name for each socket.
type Told = Vec<(u64, String, String)>;

/// A unit with these options, and these lines of its own, that has a store.
fn unit(folder: &Folder, options: &str, server: Server, lines: &str) -> String {
    let server = server.install(folder).join(" ".as_ref()).into_string().unwrap();
    let (settings, log) = (settings(folder).join(" "), folder.text("log"));
    let kind = if options.contains("--supervise") { "notify" } else { "exec" };
    format!(
        "[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n[Service]\nType={kind}\nKillMode=mixed\n\
         Restart=always\nRestartSec=0\nFileDescriptorStoreMax=50\nStandardError=append:{log}\n{lines}\n\
         ExecStart={PROGRAM} --fdstore {options} {settings} -- {server}\n"
    )
}

/// The same with a server in Python that tells of its sockets first.
fn telling(folder: &Folder, options: &str, script: &str, lines: &str) -> String {
    unit(folder, options, Server::Python(&format!("{TELL}{script}")), lines)
}

/// What the last start told; it is forgotten.
fn told(systemd: &Systemd) -> Told {
    let text = systemd.folder.read("told");
    fs::remove_file(systemd.folder.path("told")).unwrap();
    let read = |line: &str| {
        let [inode, address, name] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        (inode.parse().unwrap(), address.to_owned(), name.to_owned())
    };
    text.lines().map(read).collect()
}

fn log(systemd: &Systemd) -> String {
    fs::read_to_string(systemd.folder.path("log")).unwrap()
}

/// The address of the first socket, which is of IPv4.
fn address(told: &Told) -> String {
    told[0].1.replace('|', ":")
}

/// Start, restart, kill: the sockets are the same, and are served.
#[track_caller]
fn comes_back(options: &str, names: &[&str]) {
    let folder = Folder::new();
    let options = options.replace("DIR", folder.as_ref().to_str().unwrap());
    let unit = telling(&folder, &options, "serve_all()", "");
    let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
    systemd.succeed(&["start", "a"]);
    let first = told(&systemd);
    let ask = || systemd.in_network(|| wait_for("an answer", || client::ask(&address(&first)).ok()));
    ask();
    assert_eq!(first.iter().map(|(.., name)| name.as_str()).collect::<Vec<_>>(), names);
    for act in [&["restart", "a"][..], &["kill", "--kill-who=main", "-s", "KILL", "a"], &["restart", "a"]] {
        systemd.succeed(act);
        assert_eq!(told(&systemd), first, "{options}, {act:?}: {}", log(&systemd));
        ask();
    }
}

// handoff-run(1): "A restart of the unit, and with Restart= a crash, leaves the sockets as they are".
#[test]
fn the_same_sockets_come_back_after_a_restart_and_after_a_kill() {
    let many = "-l 127.0.0.1:0 -l web=:0 -l :0 -l :0 -l u=udp:127.0.0.1:0 -l DIR/s";
    let names = ["unknown", "web", "unknown", "unknown", "u", "unknown"];
    comes_back("-l web=127.0.0.1:0", &["web"]);
    comes_back(many, &names);
    comes_back("--supervise -l web=127.0.0.1:0", &["web"]);
    comes_back(&format!("--supervise --shared {many}"), &names);
    comes_back(&format!("--supervise {many}"), &names);
}

// handoff-run(1): "what waits is served by the next start".
#[test]
fn who_waits_while_the_unit_is_restarted_or_killed_is_served() {
    for options in [
        "-l 127.0.0.1:0",
        "--supervise --ready fd:9 -l 127.0.0.1:0",
        "--supervise --shared --ready fd:9 -l 127.0.0.1:0",
    ] {
        for act in [&["restart", "a"][..], &["kill", "-s", "KILL", "a"]] {
            let folder = Folder::new();
            let script = match options.contains("fd:9") {
                true => "os.write(9, b'x')\nif not exists('well'): time.sleep(100)\nserve_all()",
                false => "if not exists('well'): time.sleep(100)\nserve_all()",
            };
            let unit = telling(&folder, options, script, "");
            let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
            systemd.succeed(&["start", "a"]);
            let first = told(&systemd);
            let mut client = systemd.in_network(|| Client::connect(&address(&first)).unwrap());
            client.send().unwrap();
            systemd.folder.open("well");
            systemd.succeed(act);
            assert_eq!(client.answer().unwrap().generation, 1, "{options}, {act:?}: {}", log(&systemd));
            assert_eq!(told(&systemd), first);
        }
    }
}

// handoff-run(1): "a generation after a restart is started on the sockets of the one that served".
#[test]
fn after_a_deploy_the_socket_of_the_generation_that_served_comes_back() {
    let folder = Folder::new();
    let control = folder.text("control");
    let options = format!("--supervise --settle 0 --control {control} -l 127.0.0.1:0");
    let unit = telling(&folder, &options, "serve_all()", &format!("ExecReload={PROGRAM} --reload {control} --wait"));
    let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
    systemd.succeed(&["start", "a"]);
    let first = told(&systemd);
    systemd.succeed(&["reload", "a"]);
    let second = told(&systemd);
    assert_ne!(second, first);
    for act in [&["restart", "a"][..], &["kill", "-s", "KILL", "a"], &["kill", "--kill-who=main", "-s", "KILL", "a"]] {
        systemd.succeed(act);
        assert_eq!(told(&systemd), second, "{}", log(&systemd));
        // A reload before that would be one with the start.
        systemd.wait_for("a", "SubState", "running");
        systemd.in_network(|| (0..20).for_each(|_| assert_eq!(client::ask(&address(&first)).unwrap().generation, 1)));
    }
    systemd.succeed(&["reload", "a"]);
    systemd.in_network(|| (0..20).for_each(|_| assert_eq!(client::ask(&address(&first)).unwrap().generation, 2)));
    assert_eq!(systemd.property("a", "NFileDescriptorStore"), "4");
}

// handoff-run(1): "What no --listen asks for any more is taken from the store, and its address is free for another".
#[test]
fn what_the_line_asks_for_no_more_leaves_systemds_store_and_what_is_new_is_stored() {
    for supervise in ["", "--supervise "] {
        let folder = Folder::new();
        let line =
            |folder: &Folder, sockets: &str| telling(folder, &format!("{supervise}{sockets}"), "serve_all()", "");
        let unit = line(&folder, "-l a=127.0.0.1:0 -l b=127.0.0.1:0");
        let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
        systemd.succeed(&["start", "a"]);
        let first = told(&systemd);
        let (_, port) = first[0].1.split_once('|').unwrap();
        let unit = line(&systemd.folder, &format!("-l c=0.0.0.0:{port} -l b=127.0.0.1:0"));
        fs::write(systemd.folder.path("units/a.service"), unit).unwrap();
        systemd.succeed(&["daemon-reload"]);
        systemd.succeed(&["restart", "a"]);
        let second = told(&systemd);
        assert_eq!((&second[1], &second[0].1), (&first[1], &format!("0.0.0.0|{port}")));
        let stored = if supervise.is_empty() { "2" } else { "7" };
        systemd.wait_for("a", "NFileDescriptorStore", stored);
        assert!(!systemd.sockets().contains(&first[0].0));
        assert!(
            log(&systemd).contains(&format!(", a listener on 127.0.0.1:{port}: it is closed")),
            "{}",
            log(&systemd)
        );
        systemd.succeed(&["restart", "a"]);
        assert_eq!(told(&systemd), second);
    }
}

// handoff-run(1): "or one that stores nothing, that is logged once".
#[test]
fn a_unit_without_a_store_or_with_too_small_a_one_is_told_so_once() {
    let why = "the service manager does not store that many (FileDescriptorStoreMax=)";
    let line = format!("handoff-run: --fdstore: {why}: the sockets end with this process\n");
    for (options, most) in [("", 0), ("--supervise ", 0), ("--supervise ", 2)] {
        let folder = Folder::new();
        let (options, store) =
            (format!("-q {options}-l 127.0.0.1:0"), format!("FileDescriptorStoreMax={most}\nNotifyAccess=main"));
        let unit = telling(&folder, &options, "serve_all()", &store);
        let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
        systemd.succeed(&["start", "a"]);
        let first = told(&systemd);
        systemd.folder.read_with("log", &line);
        systemd.wait_for("a", "NFileDescriptorStore", "0");
        systemd.succeed(&["restart", "a"]);
        assert_ne!(told(&systemd)[0].0, first[0].0);
        assert_eq!(systemd.folder.read_with("log", &line.repeat(2)), line.repeat(2));
    }
}

/// Restart the unit once a second under load: no client may notice.
fn restarts_under_load(options: &str) {
    let seconds = env::var("HANDOFF_LOAD_SECONDS").map_or(5, |seconds| seconds.parse().unwrap());
    let folder = Folder::new();
    let unit = unit(&folder, &format!("{options} -l 127.0.0.1:0"), Server::Hello, "");
    let unit = unit.replace("-- ", &format!("-C {} -- ", folder.as_ref().display()));
    let Some(systemd) = Systemd::boot(folder, &[("a.service", unit)]) else { return };
    systemd.succeed(&["start", "a"]);
    let address = systemd.folder.read_with("log", "listens on").lines().next().unwrap().to_owned();
    let address = address.rsplit_once(' ').unwrap().1.parse().unwrap();
    let duration = Duration::from_secs(seconds);
    let load = Load { requests: u64::MAX, duration, close: Close::Reset, ..Load::on(address) };
    let (ended, ends) = mpsc::channel::<()>();
    let (report, restarts) = thread::scope(|scope| {
        let systemd = &systemd;
        let loading = scope.spawn(move || {
            let _ended = ended;
            systemd.in_network(|| load.run(&AtomicBool::new(false)))
        });
        let mut restarts = 0;
        let mut next = Instant::now() + Duration::from_secs(1);
        while ends.recv_timeout(next.saturating_duration_since(Instant::now())) == Err(mpsc::RecvTimeoutError::Timeout)
        {
            systemd.succeed(&["restart", "a"]);
            restarts += 1;
            next += Duration::from_secs(1);
        }
        (loading.join().unwrap(), restarts)
    });
    let latency = |share| report.latencies.quantile(share);
    remark(&format!(
        "{options} --fdstore: {restarts} restarts in {seconds} s: {} answered, {} refused, {} reset, {} late, {} cut, \
         {} other; median {:?}, longest {:?}",
        report.ok,
        report.refused,
        report.reset,
        report.timeout,
        report.short,
        report.other,
        latency(0.5),
        latency(1.0)
    ));
    assert_eq!(report.failed(), 0, "{report:?}\n{}", log(&systemd));
    assert!(restarts + 2 >= seconds, "{restarts}");
}

#[test]
fn restarts_of_a_supervisor_under_load_refuse_nobody() {
    restarts_under_load("--supervise");
}

#[test]
fn restarts_of_a_program_alone_under_load_refuse_nobody() {
    restarts_under_load("");
}
