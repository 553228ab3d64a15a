//! The grammar of `--control`: `PATH[,OPTION]...`, with those options of a SPEC that are about who may connect. Pure.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::socket::address::{Address, UnixKind, UnixName};
use crate::socket::options::Options;
use crate::socket::spec::split;

/// What fits it.
const ALLOWED: [&str; 3] = ["mode", "user", "group"];
/// Without a mode only this user may connect, and with a group, that too.
const OWN: u32 = 0o600;
const GROUP: u32 = 0o660;

/// A control socket as the user asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ControlSpec {
    /// As the user wrote it, for messages.
    text: String,
    pub(crate) path: PathBuf,
    /// Mode and owner of its file; there is always a mode.
    pub(crate) options: Options,
    pub(crate) admits: Admits,
}

/// Which of the users that can connect may send requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admits {
    /// This user and root.
    Own,
    /// Everybody whom the file's mode and owner let in, for the user chose them.
    Chosen,
}

impl ControlSpec {
    /// Read it. Only the path may have bytes that are not UTF-8.
    pub(crate) fn parse(text: &OsStr) -> Result<ControlSpec> {
        ensure!(!text.as_bytes().contains(&0), "a NUL byte cannot be part of it");
        let pieces = split(text.as_bytes());
        let (path, others) = pieces.split_first().expect("there is a first piece");
        ensure!(!path.is_empty(), "the path is empty");
        let path = PathBuf::from(OsStr::from_bytes(path));
        let others = others.iter().map(|piece| str::from_utf8(piece).context("its options are not UTF-8"));
        let others = others.collect::<Result<Vec<&str>>>()?;
        let address = Address::Unix { kind: UnixKind::Stream, name: UnixName::Path(path.clone()) };
        let given = Options::parse(others.into_iter(), &address)?;
        if let Some(name) = given.names().find(|name| !ALLOWED.contains(name)) {
            bail!("option {name} does not fit a control socket; mode, user and group do");
        }
        let admits = if given.names().next().is_none() { Admits::Own } else { Admits::Chosen };
        let options = given.or_mode(if given.has("group") { GROUP } else { OWN });
        Ok(ControlSpec { text: text.display().to_string(), path, options, admits })
    }
}

/// The text that the user wrote.
impl fmt::Display for ControlSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_may_have_a_mode_and_an_owner() {
        let table = [
            ("ctl", "ctl", 0o600, Admits::Own),
            ("/a=b,group=ops", "/a=b", 0o660, Admits::Chosen),
            ("/run/x,mode=0666,user=root", "/run/x", 0o666, Admits::Chosen),
            (r"a\,b,user=0", "a,b", 0o600, Admits::Chosen),
        ];
        for (text, path, mode, admits) in table {
            let spec = ControlSpec::parse(OsStr::new(text)).unwrap();
            assert_eq!(
                (spec.path.to_str().unwrap(), spec.options.number("mode"), spec.admits),
                (path, Some(mode), admits),
                "{text}"
            );
            assert_eq!(spec.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_path_with_mode_and_owner_is_an_error() {
        for text in ["", ",mode=0600", "x,", "x,mode", "x,mode=9", "x,backlog=5", "x,nonblock", "x,group=a,group=b"] {
            ControlSpec::parse(OsStr::new(text)).expect_err(text);
        }
    }
}
