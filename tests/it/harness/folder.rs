//! A folder of a test's own, and the files by which a test and its servers wait for each other.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process};

use super::wait_for;

/// A fresh empty folder of this test's, removed at the end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Short, for the path of a Unix socket has to fit into 107 bytes.
        let name = format!("ho{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A path as an argument.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// What is in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Put a file there whole: a gate that a server waits for, or what it reads.
    pub fn write(&self, name: &str, text: &str) {
        let new = self.path(&format!("{name}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path(name)).unwrap();
    }

    /// Put an empty file there: open the gate at which a server waits for it.
    pub fn open(&self, gate: &str) {
        self.write(gate, "");
    }

    /// What a server wrote to a file of this name, once it has.
    #[track_caller]
    pub fn read(&self, name: &str) -> String {
        wait_for(name, || fs::read_to_string(self.path(name)).ok())
    }

    /// The same once it has this in it.
    #[track_caller]
    pub fn read_with(&self, name: &str, part: &str) -> String {
        wait_for(part, || fs::read_to_string(self.path(name)).ok().filter(|text| text.contains(part)))
    }
}

impl AsRef<Path> for Folder {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}
