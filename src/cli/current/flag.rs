//! The options as a shell sees them, from the command line's definition alone.

use clap::{Arg, ArgAction, Command, CommandFactory, ValueHint};
use nix::sys::signal::Signal;

use crate::cli::{Cli, HELP, REQUESTS};
use crate::socket::address;
use crate::socket::options::{self, Takes};
use crate::target::preset::Preset;

/// An option.
pub(super) struct Flag {
    pub(super) short: Option<char>,
    pub(super) long: String,
    pub(super) help: String,
    pub(super) value: Option<Value>,
    pub(super) repeats: bool,
    pub(super) is_request: bool,
    /// The requests that it may follow.
    pub(super) follows: Vec<String>,
    /// The names of those that cannot be given with it, its own included unless it repeats.
    pub(super) excludes: Vec<String>,
    pub(super) words: Vec<Word>,
}

/// The value of an option.
pub(super) struct Value {
    pub(super) name: String,
    /// What completes it: the shells' functions are named for this, and what follows a blank is their argument.
    pub(super) kind: String,
}

/// A word that is a value, or that one begins with.
pub(super) struct Word {
    pub(super) text: String,
    pub(super) meaning: String,
}

impl Word {
    fn new(text: impl Into<String>, meaning: impl Into<String>) -> Word {
        Word { text: text.into(), meaning: meaning.into() }
    }

    /// Whether more has to follow.
    pub(super) fn is_begun(&self) -> bool {
        self.text.ends_with([':', '='])
    }
}

impl Flag {
    /// All of them, in the order of help.
    pub(super) fn all() -> Vec<Flag> {
        let mut command = Cli::command();
        // Only then it has its groups.
        command.build();
        command.get_arguments().filter(|arg| !arg.is_positional()).map(|arg| Flag::of(&command, arg)).collect()
    }

    fn of(command: &Command, arg: &Arg) -> Flag {
        let others = || command.get_arguments().filter(|other| !other.is_positional());
        let follows = others().filter(|other| is_request(command, other) && may_follow(command, arg, other));
        let words = words(arg);
        let takes = arg.get_action().takes_values();
        Flag {
            short: arg.get_short(),
            long: long(arg),
            help: arg.get_help().expect("every option has help").to_string(),
            value: takes.then(|| Value { name: value_name(arg), kind: kind(command, arg, &words) }),
            repeats: repeats(arg),
            is_request: is_request(command, arg),
            follows: follows.map(long).collect(),
            excludes: others().filter(|other| excludes(command, arg, other)).flat_map(names).collect(),
            words,
        }
    }

    /// `-l` and `--listen`.
    pub(super) fn names(&self) -> Vec<String> {
        both(self.short, &self.long)
    }
}

/// Every list of words that a kind refers to, by its name.
pub(super) fn lists() -> Vec<(String, Vec<Word>)> {
    let types = address::types().map(|name| Word::new(format!("{name}:"), "")).collect();
    let option = |row: &options::Row| {
        let sign = if row.takes == Takes::Nothing { "" } else { "=" };
        Word::new(format!("{}{sign}", row.name), row.meaning)
    };
    let options = options::TABLE.iter().map(option).collect();
    let signals = Signal::iterator().map(|signal| Word::new(signal.as_str().trim_start_matches("SIG"), "")).collect();
    let fixed = [("type", types), ("option", options), ("signal", signals)];
    let own = Flag::all().into_iter().filter(|flag| !flag.words.is_empty()).map(|flag| (flag.long, flag.words));
    fixed.map(|(name, words)| (name.to_owned(), words)).into_iter().chain(own).collect()
}

fn both(short: Option<char>, long: &str) -> Vec<String> {
    short.map(|short| format!("-{short}")).into_iter().chain([format!("--{long}")]).collect()
}

fn names(arg: &Arg) -> Vec<String> {
    both(arg.get_short(), &long(arg))
}

fn long(arg: &Arg) -> String {
    arg.get_long().expect("every option has a long name").to_owned()
}

fn value_name(arg: &Arg) -> String {
    arg.get_value_names().map(|names| names.join(" ")).unwrap_or_default()
}

fn repeats(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append | ArgAction::Count)
}

fn is_request(command: &Command, arg: &Arg) -> bool {
    command.get_groups().any(|group| group.get_id() == "request" && group.get_args().any(|id| id == arg.get_id()))
}

/// Behind a request make sense what is about requests, and help.
fn may_follow(command: &Command, arg: &Arg, request: &Arg) -> bool {
    match arg.get_help_heading() {
        Some(HELP) => true,
        Some(REQUESTS) => !is_request(command, arg) && !conflict(command, arg, request),
        _ => false,
    }
}

fn excludes(command: &Command, arg: &Arg, other: &Arg) -> bool {
    if arg.get_id() == other.get_id() {
        return !repeats(arg);
    }
    conflict(command, arg, other) || is_request(command, arg) && !may_follow(command, other, arg)
}

fn conflict(command: &Command, one: &Arg, other: &Arg) -> bool {
    let has = |one, other: &Arg| command.get_arg_conflicts_with(one).iter().any(|arg| arg.get_id() == other.get_id());
    has(one, other) || has(other, one)
}

fn kind(command: &Command, arg: &Arg, words: &[Word]) -> String {
    let kind = match (value_name(arg).as_str(), arg.get_value_hint()) {
        ("SPEC", _) => "spec",
        ("WHO", _) => "predecessor",
        ("SIGNAL", _) => "word signal",
        _ if is_request(command, arg) => "supervisor",
        _ if !words.is_empty() => return format!("word {}", long(arg)),
        (_, ValueHint::DirPath) => "directory",
        (_, ValueHint::FilePath | ValueHint::AnyPath) => "file",
        (_, ValueHint::CommandString) => "command",
        _ => "nothing",
    };
    kind.to_owned()
}

/// The values that there are to choose from: the possible ones, or those in the error of an empty one: "it is one of".
fn words(arg: &Arg) -> Vec<Word> {
    let note = |name| Preset::find(name).map_or("", |preset| preset.note);
    let possible = arg.get_possible_values();
    if !possible.is_empty() || !arg.get_action().takes_values() {
        return possible.iter().map(|value| Word::new(value.get_name(), note(value.get_name()))).collect();
    }
    let empty = ["handoff-run".to_owned(), format!("--{}=", long(arg))];
    let error = Cli::command().try_get_matches_from(empty).err().map(|error| error.to_string()).unwrap_or_default();
    let Some((_, forms)) = error.lines().next().and_then(|line| line.split_once(": it is one of ")) else {
        return vec![];
    };
    let help = arg.get_long_help().map(ToString::to_string).unwrap_or_default();
    forms.split(", ").map(|form| Word::new(begun(form), sentence(&help, form))).collect()
}

/// `fd:N` without what is to be filled in.
fn begun(form: &str) -> String {
    form.split_once(':').map_or(form.to_owned(), |(word, _)| format!("{word}:"))
}

/// What help says of one form of a value, as in `notify: it sends READY=1`.
fn sentence(help: &str, form: &str) -> String {
    let found = help.split_once(&format!("{form}: ")).map_or("", |(_, rest)| rest);
    found.split(". ").next().unwrap_or_default().trim_end_matches('.').to_owned()
}

#[test]
fn the_values_of_an_option_are_those_that_its_error_names() {
    let words: Vec<String> = lists()
        .into_iter()
        .flat_map(|(name, words)| {
            let shown = move |word: Word| format!("{name} {} {}", word.text, word.meaning);
            words.into_iter().map(shown)
        })
        .collect();
    let has = |line: &str| assert!(words.iter().any(|word| word == line), "{words:#?}");
    has("restart no the supervisor ends with its status");
    has("ready fd: it writes a byte to descriptor N");
    has("drain signal as soon as no connection waits for it");
    has("as caddy bind fd/3");
    has("signal USR1 ");
    has("type unix-dgram: ");
}
