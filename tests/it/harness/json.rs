//! JSON as a strict parser reads it, for --json.

use std::collections::BTreeMap;

use super::python::python;
use super::{Run, Supervisor};

/// Prints a line for each value: where it is, and what it is.
const FLATTEN: &str = "
import json, sys
def walk(path, value):
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items: walk(f'{path}.{key}', inner)
    else:
        print(f'{path[1:]}={value!r}')
walk('', json.loads(sys.argv[1]))";

/// `generations.0.state` and the like, and what they are in Python's words.
pub fn flat(text: &str) -> BTreeMap<String, String> {
    let output = Run::of(python()).args(&["-IS", "-c", FLATTEN, text]).output();
    assert_eq!(output.failure(), (0, ""));
    output.stdout.lines().map(|line| line.split_once('=').unwrap()).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

impl Supervisor {
    /// What `--status --json` shows, but for what changes by itself.
    pub fn json(&self) -> Vec<String> {
        let flat =
            flat(&self.status(&["--json"])).into_iter().filter(|(key, _)| !key.ends_with("age") && key != "time");
        flat.map(|(key, value)| format!("{key}={value}")).collect()
    }
}
