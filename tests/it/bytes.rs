//! Names that are not UTF-8 arrive byte for byte: paths of every option, variables, arguments.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::harness::{Folder, PROGRAM, Server, handoff_run, handoff_run_with, supervise, wait_for};

/// A name that is no text in any encoding.
const NAME: &[u8] = b"\xe9\xff=,";

/// The words, with `@` for the name and `#` for the name as a SPEC writes it.
fn words(line: &str) -> Vec<OsString> {
    let word = |word: &str| {
        let name = |byte: &u8| match byte {
            b'@' => NAME.to_vec(),
            b'#' => b"\xe9\xff=\\,".to_vec(),
            byte => vec![*byte],
        };
        OsStr::from_bytes(&word.as_bytes().iter().flat_map(name).collect::<Vec<u8>>()).to_owned()
    };
    line.split(' ').map(word).collect()
}

fn name() -> PathBuf {
    OsStr::from_bytes(NAME).into()
}

/// What `printf %s|` prints of each, in hexadecimal.
fn hex(texts: &[&[u8]]) -> String {
    texts.iter().flat_map(|text| text.iter().chain(b"|")).map(|byte| format!("{byte:02x}")).collect()
}

// handoff-run(1), PLACEHOLDERS: "Whatever is not UTF-8 arrives byte for byte".
#[test]
fn paths_variables_and_arguments_arrive_byte_for_byte() {
    let folder = Folder::new();
    fs::create_dir(folder.as_ref().join(name())).unwrap();
    fs::write(folder.path("env"), b"FILE=\xfe\n").unwrap();
    fs::rename(folder.path("env"), folder.as_ref().join("env").with_extension(name())).unwrap();
    let options = words("-q -l unix:./#.s --pid-file pid@ -C @ --env-file env.@ --env A={path}@ --env @={addr:b}");
    let script = "printf '%s|' \"$1\" \"$A\" \"$FILE\" | od -An -v -tx1 | tr -d ' \\n'; ls -A ..";
    let run = handoff_run().args(&options).args(&words("-l b=./b#")).args(&["--", "sh", "-c", script, "sh"]);
    let output = run.args(&words("{path}@")).current_dir(&folder).output();
    let path = [b"./", NAME, b".s"].concat();
    let expected = hex(&[&[&path, NAME].concat(), &[&path, NAME].concat(), b"\xfe"]);
    assert_eq!(output.failure(), (0, ""));
    assert!(output.stdout.starts_with(&expected), "{} is not {expected}", output.stdout);
    assert_eq!(
        fs::read_to_string(folder.as_ref().join(OsStr::from_bytes(&[b"pid", NAME].concat()))).unwrap().lines().count(),
        1
    );
}

#[test]
fn a_program_and_its_directory_may_have_any_name() {
    let folder = Folder::new();
    symlink("/bin/echo", folder.as_ref().join(name())).unwrap();
    let output =
        handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--"]).args(&words("./@ found")).current_dir(&folder).output();
    assert_eq!((output.failure(), output.stdout.as_str()), ((0, ""), "found\n"));
    // A file whose interpreter is missing is there all the same.
    fs::write(folder.as_ref().join(name()).with_extension("sh"), "#!/no/such\n").unwrap();
    let chmod =
        std::process::Command::new("chmod").arg("+x").args(words("./@.sh")).current_dir(&folder).status().unwrap();
    assert!(chmod.success());
    let output =
        handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--"]).args(&words("./@.sh")).current_dir(&folder).output();
    assert_eq!(output.code(), 126, "{output:?}");
}

#[test]
fn a_socket_of_any_name_is_adopted_and_removed_by_it() {
    let folder = Folder::new();
    let line = words("-q -l unix:./#");
    let again = [vec!["--".into(), PROGRAM.into()], line.clone(), words("-- true")].concat();
    let output = handoff_run().args(&line).args(&again).current_dir(&folder).output();
    assert_eq!(output.failure(), (0, ""));
    assert!(folder.as_ref().join(name()).exists());
    fs::remove_file(folder.as_ref().join(name())).unwrap();
    let output = handoff_run().args(&line).args(&words("-- no-such-program")).current_dir(&folder).output();
    assert_eq!(output.code(), 127);
    assert!(!folder.as_ref().join(name()).exists());
}

#[test]
fn a_supervisor_has_its_control_socket_pid_file_and_sockets_at_any_name() {
    let mut supervisor = supervise(Server::Directed, &["--pid-file", "pid"]).options(&words("-l ./#.s")).serving();
    let socket = |folder: &Path| folder.join(OsStr::from_bytes(&[NAME, b".s"].concat()));
    UnixStream::connect(socket((*supervisor.folder).as_ref())).unwrap();
    supervisor.upgrade();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    UnixStream::connect(socket((*supervisor.folder).as_ref())).unwrap();
    let output = supervisor.stop();
    assert_eq!(output.failure(), (0, ""), "{}", supervisor.log());
    supervisor.end();
    assert!(!socket((*supervisor.folder).as_ref()).exists());

    let folder = Folder::new();
    let line = words("--supervise -l 127.0.0.1:0 --control ./#.ctl --pid-file ./@.pid -- sh -c");
    let line = [words("--ready fd:9"), line, vec!["echo >&9; exec sleep 100".into()]].concat();
    let running = handoff_run().args(&line).current_dir(&folder).start();
    wait_for("the pid file", || folder.as_ref().join(name()).with_extension("pid").exists().then_some(()));
    let ask = |what: &str| handoff_run().args(&words(&format!("{what} ./@.ctl"))).current_dir(&folder).output();
    assert_eq!(ask("--reload").failure(), (0, ""));
    assert_eq!(ask("--stop").failure(), (0, ""));
    assert_eq!(running.output().code(), 0);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}
