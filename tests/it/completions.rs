//! The shells' completions, where a generated one does not know what there is.

use std::process::Command;

use nix::unistd::Pid;

use crate::harness::by_hand::by_hand;
use crate::harness::{Server, skip, supervise};

/// What a shell offers for `--from`, a word each; none if it or ss(8) is not there.
fn offered(shell: &str, script: &str) -> Option<String> {
    let exists = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !exists(shell) || !exists("ss") {
        skip(&format!("there is no {shell}, or no ss"));
        return None;
    }
    let completions = concat!(env!("CARGO_MANIFEST_DIR"), "/completions");
    let output = Command::new(shell).args(["-c", script]).env("COMPLETIONS", completions).output().unwrap();
    Some(String::from_utf8(output.stdout).unwrap().replace('\n', " "))
}

fn assert_offered(words: &str, pid: Pid, control: &str) {
    let has = |word: &str| words.split_whitespace().any(|other| other == word);
    assert!(has("auto") && has(&pid.to_string()) && has(control), "{pid} {control}: {words}");
}

// handoff-run(1), --from.
#[test]
fn bash_and_fish_offer_what_can_be_taken_over() {
    let old = by_hand("serve()");
    let supervisor = supervise(Server::Hello, &[]).serving();
    let control = supervisor.folder.text("control");
    let bash = r#"source "$COMPLETIONS/handoff-run.bash"; COMP_WORDS=(handoff-run --from ""); COMP_CWORD=2
                  _handoff__run handoff-run "" --from; printf '%s\n' "${COMPREPLY[@]}""#;
    if let Some(words) = offered("bash", bash) {
        assert_offered(&words, old.pid(), &control);
    }
    let fish = r#"source $COMPLETIONS/handoff-run.fish; complete -C "handoff-run --from ""#;
    if let Some(words) = offered("fish", fish) {
        assert_offered(&words, old.pid(), &control);
    }
}
