//! What each serving process writes down of its life, so that what clients lost can be traced to it.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process;
use std::time::Duration;

use super::clock::{Time, now};

/// The variable with the folder of all diaries.
pub const FOLDER: &str = "SOAK_DIARIES";

/// The diary of the process that writes it.
pub struct Diary(File);

impl Diary {
    pub fn new(folder: &str) -> io::Result<Diary> {
        File::options().create(true).append(true).open(Path::new(folder).join(process::id().to_string())).map(Diary)
    }

    /// One line, in one write: it is there as a whole or not at all.
    pub fn write(&mut self, word: &str, what: &str) -> io::Result<()> {
        self.0.write_all(format!("{word} {} {what}\n", now().as_micros()).as_bytes())
    }
}

/// A diary as it was read.
#[derive(Default)]
pub struct Life {
    pub release: String,
    /// When it was asked to stop.
    pub asked: Option<Time>,
    /// When it died of its own accord, and whose connections it held.
    pub died: Option<(Time, HashSet<String>)>,
}

/// The diary of a process.
fn read(folder: &Path, pid: i32) -> Life {
    let mut life = Life::default();
    for line in fs::read_to_string(folder.join(pid.to_string())).unwrap_or_default().lines() {
        let mut words = line.split(' ');
        let (word, time) = (words.next(), words.next().and_then(|time| time.parse().ok()));
        let time = time.map(Duration::from_micros).unwrap_or_default();
        match word {
            Some("serves") => life.release = words.next().unwrap_or_default().into(),
            Some("asked") => life.asked = Some(time),
            Some("dies") => life.died = Some((time, words.map(str::to_owned).collect())),
            _ => {}
        }
    }
    life
}

/// All diaries, by process.
pub fn all(folder: &Path) -> io::Result<HashMap<i32, Life>> {
    let pids = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().parse().ok()));
    let pids: Vec<Option<i32>> = pids.collect::<io::Result<_>>()?;
    Ok(pids.into_iter().flatten().map(|pid| (pid, read(folder, pid))).collect())
}
