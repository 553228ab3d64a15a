//! The completions: completions/*.in for each shell, and what follows from the command line's definition.

use std::fs;
use std::path::Path;

use super::check;
use super::flag::{Flag, Value, Word, lists};

#[test]
fn the_completions_of_bash_are_current() {
    let flags = Flag::all();
    let takes = flags.iter().filter_map(|flag| {
        let kind = &flag.value.as_ref()?.kind;
        Some(format!("        {}) echo {kind} ;;", flag.names().join(" | ")))
    });
    let names = |select: &dyn Fn(&Flag) -> bool| {
        flags.iter().filter(|flag| select(flag)).flat_map(Flag::names).collect::<Vec<_>>().join(" ")
    };
    let followers = requests(&flags)
        .into_iter()
        .map(|request| format!("        --{request}) echo {} ;;", names(&|flag| flag.follows.contains(&request))));
    let options = [format!("        '') echo {} ;;", names(&|_| true))].into_iter().chain(followers);
    let words = lists().into_iter().map(|(name, words)| {
        let words: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
        format!("        {name}) echo {} ;;", words.join(" "))
    });
    let pieces =
        [("@TAKES@", lines(takes)), ("@OPTIONS@", lines(options)), ("@WORDS@", lines(words)), ("@FIND@", find())];
    check_script("handoff-run.bash", &pieces);
}

#[test]
fn the_completions_of_zsh_are_current() {
    let list = |words: &[Word], is_begun: bool| {
        let words = words.iter().filter(|word| word.is_begun() == is_begun);
        words.map(zsh_word).collect::<Vec<_>>().join(" ")
    };
    let words = lists().into_iter().map(|(name, words)| {
        let (whole, begun) = (list(&words, false), list(&words, true));
        format!("        {name})\n            whole=({whole})\n            begun=({begun}) ;;")
    });
    let options = Flag::all().into_iter().flat_map(|flag| zsh_options(&flag));
    let pieces = [("@OPTIONS@", lines(options)), ("@WORDS@", lines(words)), ("@FIND@", find())];
    check_script("_handoff-run", &pieces);
}

fn zsh_word(word: &Word) -> String {
    let text = word.text.replace(':', r"\:");
    quoted(&if word.meaning.is_empty() { text } else { format!("{text}:{}", word.meaning) })
}

/// Lines for _arguments, one for each name.
fn zsh_options(flag: &Flag) -> Vec<String> {
    let help = ['\\', '[', ']', ':'].iter().fold(flag.help.clone(), |help, &c| help.replace(c, &format!("\\{c}")));
    // No PROGRAM follows a request.
    let program = if flag.is_request { vec![":".to_owned(), "*".to_owned()] } else { vec![] };
    let excludes = [program, flag.excludes.clone()].concat().join(" ");
    let excludes = if excludes.is_empty() { String::new() } else { format!("({excludes})") };
    let repeat = if flag.repeats { "*" } else { "" };
    let value = flag.value.as_ref().map(zsh_value).unwrap_or_default();
    let sign = |name: &str| match flag.value {
        None => "",
        Some(_) if name.starts_with("--") => "=",
        Some(_) => "+",
    };
    let line = |name: &String| quoted(&format!("{excludes}{repeat}{name}{}[{help}]{value}", sign(name)));
    flag.names().iter().map(|name| format!("        {} \\", line(name))).collect()
}

fn zsh_value(value: &Value) -> String {
    let action = match value.kind.as_str() {
        "nothing" => " ".to_owned(),
        "file" => "_files".to_owned(),
        "directory" => "_directories".to_owned(),
        "command" => "_cmdstring".to_owned(),
        kind => format!("_handoff_run_{kind}"),
    };
    format!(":{}:{action}", value.name)
}

#[test]
fn the_completions_of_fish_are_current() {
    let flags = Flag::all();
    let parsed = flags.iter().map(|flag| {
        let short = flag.short.map(|short| format!("{short}/")).unwrap_or_default();
        format!("{short}{}{}", flag.long, if flag.value.is_some() { "=" } else { "" })
    });
    let words = lists().into_iter().map(|(name, words)| {
        let pair = |word: &Word| format!(" {} {}", fish_quoted(&word.text), fish_quoted(&word.meaning));
        format!("        case {name}\n            printf '%s\\t%s\\n'{}", words.iter().map(pair).collect::<String>())
    });
    let pieces = [
        ("@FLAGS@", parsed.collect::<Vec<_>>().join(" ")),
        ("@REQUESTS@", requests(&flags).join(" ")),
        ("@OPTIONS@", lines(flags.iter().map(fish_option))),
        ("@WORDS@", lines(words)),
        ("'@FIND@'", fish_quoted(&find())),
    ];
    check_script("handoff-run.fish", &pieces);
}

fn fish_option(flag: &Flag) -> String {
    let condition = [vec!["__handoff_run_after".to_owned()], flag.follows.clone()].concat().join(" ");
    let short = flag.short.map(|short| format!(" -s {short}")).unwrap_or_default();
    let value = match flag.value.as_ref().map(|value| value.kind.as_str()) {
        None => String::new(),
        Some("nothing") => " -x".to_owned(),
        Some("file") => " -r -F".to_owned(),
        Some("directory") => " -x -a '(__fish_complete_directories)'".to_owned(),
        Some("command") => " -x -a '(__fish_complete_command)'".to_owned(),
        Some(kind) if kind.starts_with("word ") => format!(" -x -k -a '(__handoff_run_{kind})'"),
        Some(kind) => format!(" -r -F -k -a '(__handoff_run_{kind})'"),
    };
    format!("complete -c handoff-run -n '{condition}'{short} -l {} -d {}{value}", flag.long, fish_quoted(&flag.help))
}

fn requests(flags: &[Flag]) -> Vec<String> {
    flags.iter().filter(|flag| flag.is_request).map(|flag| flag.long.clone()).collect()
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.collect::<Vec<_>>().join("\n")
}

/// In single quotes, for zsh.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn fish_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}

/// What all shells run to find processes.
fn find() -> String {
    let text = source("predecessors.sh");
    assert!(!text.contains('\''), "bash and zsh have it in quotes");
    text
}

fn source(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("completions").join(name)).unwrap()
}

/// Check the script of this name, which is its source with these pieces.
fn check_script(name: &str, pieces: &[(&str, String)]) {
    let remark = format!("# Made from {name}.in and the command line's definition by src/cli/current/completions.rs.");
    let text = source(&format!("{name}.in")).replace("@REMARK@", &remark);
    let text = pieces.iter().fold(text, |text, (mark, piece)| {
        assert!(text.contains(mark), "{name}.in has no {mark}");
        text.replace(mark, piece)
    });
    check(&format!("completions/{name}"), text.as_bytes());
}
