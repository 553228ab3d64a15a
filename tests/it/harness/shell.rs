//! An interactive shell on a terminal of tmux, which has our completions as a package installs them.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use super::{Folder, Output, PROGRAM, Run, try_for, wait_for};

const COMPLETIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/completions");

/// It ends with the value.
pub struct Shell {
    folder: Folder,
}

/// bash with and without bash-completion(7), zsh, and fish.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Bash,
    BareBash,
    Zsh,
    Fish,
}

impl Kind {
    /// Commands and files without which it cannot be tried.
    pub fn needs(self) -> &'static [&'static str] {
        match self {
            Kind::Bash => &["tmux", "git", "bash", "/usr/share/bash-completion/bash_completion"],
            Kind::BareBash => &["tmux", "bash"],
            Kind::Zsh => &["tmux", "git", "zsh"],
            Kind::Fish => &["tmux", "git", "fish"],
        }
    }

    fn command(self) -> &'static [&'static str] {
        match self {
            Kind::Bash => &["bash", "--rcfile", "bashrc"],
            Kind::BareBash => &["bash", "--rcfile", "barerc"],
            Kind::Zsh => &["zsh"],
            Kind::Fish => &["fish"],
        }
    }
}

/// Where each file is below the folder, which is HOME and the working directory.
const FILES: [(&str, &str); 6] = [
    (".inputrc", "set show-all-if-ambiguous on\nset completion-query-items 0\nset page-completions off\n"),
    ("bashrc", "PS1='> '\n. /usr/share/bash-completion/bash_completion\n"),
    ("barerc", "PS1='> '\n. data/bash-completion/completions/handoff-run\n"),
    (".zshrc", "PS1='> ' LISTMAX=0\nfpath=(~/data $fpath)\nautoload -Uz compinit && compinit -u\n"),
    // Else suggestions show what no key was pressed for.
    (
        ".config/fish/config.fish",
        "set -g fish_greeting\nset -g fish_autosuggestion_enabled 0\nfunction fish_prompt\n    echo -n '> '\nend\n",
    ),
    // Else fish reads all manuals, in the background.
    (".local/share/fish/generated_completions/none", ""),
];

/// Where packages install them.
const INSTALLED: [(&str, &str); 3] = [
    ("handoff-run.bash", "data/bash-completion/completions/handoff-run"),
    ("_handoff-run", "data/_handoff-run"),
    ("handoff-run.fish", "data/fish/vendor_completions.d/handoff-run.fish"),
];

impl Shell {
    /// Start one in a folder with these files.
    pub fn start(kind: Kind, files: &[&str]) -> Shell {
        let folder = Folder::new();
        let new = |name: &str| {
            let path = folder.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        FILES.iter().for_each(|(name, text)| fs::write(new(name), text).unwrap());
        for name in files {
            fs::write(new(name), "").unwrap();
            // They may be programs.
            fs::set_permissions(folder.path(name), Permissions::from_mode(0o755)).unwrap();
        }
        INSTALLED.iter().for_each(|(name, place)| symlink(format!("{COMPLETIONS}/{name}"), new(place)).unwrap());
        symlink(PROGRAM, new("bin/handoff-run")).unwrap();
        let shell = Shell { folder };
        let size = ["new-session", "-d", "-x", "300", "-y", "250", "env", "-i"].map(str::to_owned).to_vec();
        let command = kind.command().iter().map(|&word| word.to_owned()).collect();
        shell.tmux(&[size, shell.environment(), command].concat());
        shell.wait_prompt();
        shell
    }

    /// What the shell finds in its environment, and nothing else.
    fn environment(&self) -> Vec<String> {
        let home = self.folder.text("");
        let path = env::var("PATH").unwrap();
        vec![
            format!("HOME={home}"),
            format!("ZDOTDIR={home}"),
            format!("PATH={home}bin:{path}"),
            format!("XDG_DATA_DIRS={home}data:/usr/local/share:/usr/share"),
            "TERM=screen".to_owned(),
            "LANG=C.UTF-8".to_owned(),
        ]
    }

    /// Type a line and the tab key, wait until the screen has all of this, and give the screen; then clear it.
    #[track_caller]
    pub fn complete(&self, line: &str, expected: &[String]) -> String {
        self.tmux(&["send-keys", "-l", line]);
        self.tmux(&["send-keys", "Tab"]);
        let mut screen = String::new();
        let found = try_for(|| {
            screen = self.screen();
            expected.iter().all(|words| screen.contains(&format!(" {words} "))).then_some(())
        });
        assert!(found.is_some(), "{line}: no {expected:?} in {screen}");
        self.tmux(&["send-keys", "C-u"]);
        self.tmux(&["send-keys", "C-l"]);
        self.wait_prompt();
        screen
    }

    fn wait_prompt(&self) {
        wait_for("the prompt alone", || (self.screen() == " > ").then_some(()));
    }

    /// Its words, a space before and behind each.
    fn screen(&self) -> String {
        let words = self.tmux(&["capture-pane", "-p", "-J"]);
        format!(" {} ", words.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    fn run(&self, arguments: &[impl AsRef<OsStr>]) -> Output {
        let run = Run::of("tmux").args(&["-f", "/dev/null", "-S", &self.folder.text("tmux")]).args(arguments);
        run.current_dir(&self.folder).output()
    }

    fn tmux(&self, arguments: &[impl AsRef<OsStr>]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // It fails where the shell has ended, which is a test's failure; to panic here would end all tests.
        self.run(&["kill-server"]);
    }
}
