//! The variables of `sd_listen_fds(3)`, read and written as values: an environment goes in, an environment comes out.
//! Pure.

use std::borrow::Cow;
use std::ffi::{CStr, CString};

use anyhow::{Context, Result};

use crate::socket::spec::FdName;

const LISTEN_FDS: &str = "LISTEN_FDS";
const LISTEN_PID: &str = "LISTEN_PID";
const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
const LISTEN_PIDFDID: &str = "LISTEN_PIDFDID";

/// All that speaks of handed-on sockets. The last one is systemfd's: its number would point beside ours.
pub(crate) const VARIABLES: [&str; 5] = [LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES, LISTEN_PIDFDID, "LISTEN_FDS_FIRST_FD"];

/// Tells a supervisor that took its predecessor's place where the state is. Nobody else's business.
pub(crate) const STATE: &str = "HANDOFF_STATE";

/// A `KEY=VALUE` string of an environment.
pub(crate) type Variable<'a> = Cow<'a, CStr>;

/// What the environment says of the inherited descriptors. Hints: the pid may be a predecessor's.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Announced {
    /// How many, from descriptor 3 on.
    pub(crate) count: usize,
    names: Vec<FdName>,
}

impl Announced {
    /// Read LISTEN_FDS and LISTEN_FDNAMES. Absent, empty and 0 announce nothing; what is no count is an error.
    pub(crate) fn read(environment: &[&CStr]) -> Result<Announced> {
        let count = value(environment, LISTEN_FDS).unwrap_or_default();
        if count.is_empty() {
            return Ok(Announced::default());
        }
        let text = String::from_utf8_lossy(count);
        let digits = count.iter().all(u8::is_ascii_digit);
        let number = text.parse::<u32>().ok().filter(|_| digits);
        let number = number.with_context(|| format!("LISTEN_FDS={text} is not a count of descriptors"))?;
        let names = value(environment, LISTEN_FDNAMES).map(read_names).unwrap_or_default();
        Ok(Announced { count: number as usize, names })
    }

    /// A name for each; `unknown` where LISTEN_FDNAMES has too few or too many to be believed.
    pub(crate) fn names(&self) -> impl Iterator<Item = FdName> {
        (0..self.count).map_while(|at| self.name(at))
    }

    /// The name of the descriptor at this place, if it is announced.
    pub(crate) fn name(&self, at: usize) -> Option<FdName> {
        let believed = self.names.len() == self.count;
        (at < self.count).then(|| if believed { self.names[at].clone() } else { FdName::default() })
    }
}

fn read_names(value: &[u8]) -> Vec<FdName> {
    let name = |name: &[u8]| FdName::announced(str::from_utf8(name).ok()?);
    value.split(|byte| *byte == b':').map(|part| name(part).unwrap_or_default()).collect()
}

/// What the target is told of its sockets.
#[derive(Debug, Default)]
pub(crate) struct Announcement<'a> {
    /// One a socket, in their order.
    pub(crate) names: Vec<&'a FdName>,
    /// Whom they are for; none for a target that something forks.
    pub(crate) pid: Option<u32>,
    /// The inode of that process' pidfd, where the kernel has one.
    pub(crate) pidfd_id: Option<u64>,
}

impl Announcement<'_> {
    fn variables(&self) -> Vec<CString> {
        let names: Vec<&str> = self.names.iter().map(|name| name.as_str()).collect();
        let mut variables =
            vec![format!("{LISTEN_FDS}={}", names.len()), format!("{LISTEN_FDNAMES}={}", names.join(":"))];
        variables.extend(self.pid.map(|pid| format!("{LISTEN_PID}={pid}")));
        variables.extend(self.pidfd_id.map(|id| format!("{LISTEN_PIDFDID}={id}")));
        variables.into_iter().map(|variable| CString::new(variable).expect("names hold no NUL")).collect()
    }
}

/// `base` without what it said of sockets, with `announcement` if there is one, and with `set`, which wins over both.
pub(crate) fn announce<'a>(
    base: &[&'a CStr],
    announcement: Option<&Announcement>,
    set: Vec<CString>,
) -> Vec<Variable<'a>> {
    let replaced = |variable: &CStr| set.iter().any(|new| is_for(variable, key(new)));
    let stale = |variable: &CStr| VARIABLES.iter().chain([&STATE]).any(|name| is_for(variable, name.as_bytes()));
    let kept = base.iter().filter(|variable| !stale(variable) && !replaced(variable)).map(|kept| Cow::Borrowed(*kept));
    let ours = announcement.map(Announcement::variables).unwrap_or_default();
    let ours = ours.into_iter().filter(|variable| !replaced(variable)).map(Cow::Owned);
    let environment: Vec<Variable<'a>> = kept.chain(ours).collect();
    environment.into_iter().chain(set.iter().cloned().map(Cow::Owned)).collect()
}

/// `base` with `set` instead of any of its name, and without a word of where a state is, unless `set` says so.
pub(crate) fn with<'a>(base: &[&'a CStr], set: CString) -> Vec<Variable<'a>> {
    let replaced = |variable: &CStr| is_for(variable, key(&set)) || is_for(variable, STATE.as_bytes());
    let kept = base.iter().filter(|variable| !replaced(variable)).map(|kept| Cow::Borrowed(*kept));
    let kept: Vec<Variable<'a>> = kept.collect();
    kept.into_iter().chain([Cow::Owned(set)]).collect()
}

/// What stands before the first `=`; all of an entry that has none.
fn key(variable: &CStr) -> &[u8] {
    let bytes = variable.to_bytes();
    bytes.split(|byte| *byte == b'=').next().unwrap_or(bytes)
}

/// Has `variable` this key? A comparison of the start, for an environment is long and few of its entries speak of us.
fn is_for(variable: &CStr, key: &[u8]) -> bool {
    let rest = variable.to_bytes().strip_prefix(key);
    rest.is_some_and(|rest| rest.first().is_none_or(|next| *next == b'='))
}

/// The value of the first entry for `name`, which is the one that getenv(3) finds.
pub(crate) fn value<'a>(environment: &[&'a CStr], name: &str) -> Option<&'a [u8]> {
    environment.iter().find_map(|variable| variable.to_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(variables: &[&CStr]) -> Result<Announced> {
        Announced::read(variables)
    }

    #[test]
    fn nothing_is_announced_by_no_count_an_empty_one_or_zero() {
        for variables in [&[][..], &[c"LISTEN_FDS="], &[c"LISTEN_FDS=0"]] {
            assert_eq!(announced(variables).unwrap().count, 0);
        }
    }

    // As getenv(3) has it; it once hid the entry behind it.
    #[test]
    fn an_entry_without_an_equals_sign_has_no_value() {
        assert_eq!(announced(&[c"LISTEN_FDS", c"LISTEN_FDS=2"]).unwrap().count, 2);
    }

    #[test]
    fn a_count_that_is_none_is_an_error_in_the_callers_words() {
        for text in [c"LISTEN_FDS=-1", c"LISTEN_FDS=+1", c"LISTEN_FDS=x", c"LISTEN_FDS=99999999999"] {
            let error = announced(&[text]).unwrap_err().to_string();
            assert_eq!(error, format!("{} is not a count of descriptors", text.to_str().unwrap()));
        }
    }

    #[test]
    fn names_count_only_if_there_are_as_many_as_descriptors() {
        let names = |variables: &[&CStr]| announced(variables).unwrap().names().collect::<Vec<_>>();
        let two = names(&[c"LISTEN_FDS=2", c"LISTEN_FDNAMES=web:admin"]);
        assert_eq!(two.iter().map(FdName::as_str).collect::<Vec<_>>(), ["web", "admin"]);
        let mismatch = names(&[c"LISTEN_FDS=2", c"LISTEN_FDNAMES=web"]);
        assert_eq!(mismatch, [FdName::default(), FdName::default()]);
    }

    #[test]
    fn stale_variables_go_and_odd_entries_stay() {
        let base = [c"A=1", c"LISTEN_PID=7", c"no equals sign", c"LISTEN_PIDFDID=9", c"LISTEN_FDS_FIRST_FD=5", c"A=2"];
        let environment = announce(&base, None, vec![]);
        assert_eq!(environment, [c"A=1", c"no equals sign", c"A=2"].map(Cow::Borrowed));
    }

    #[test]
    fn what_is_set_wins_over_the_callers_variables_and_over_ours() {
        let name = FdName::default();
        let announcement = Announcement { names: vec![&name], pid: Some(7), pidfd_id: None };
        let set = vec![c"A=new".to_owned(), c"LISTEN_PID=8".to_owned()];
        let environment = announce(&[c"A=1", c"B=2"], Some(&announcement), set);
        let expected = [c"B=2", c"LISTEN_FDS=1", c"LISTEN_FDNAMES=unknown", c"A=new", c"LISTEN_PID=8"];
        assert_eq!(environment, expected.map(Cow::Borrowed));
    }
}
