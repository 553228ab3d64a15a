//! The variables of `sd_listen_fds(3)` for a target: an environment goes in, an environment comes out. Pure.

use std::borrow::Cow;
use std::ffi::{CStr, CString};

use crate::socket::announced::{LISTEN_FDNAMES, LISTEN_FDS, LISTEN_FDS_FIRST_FD};
use crate::socket::spec::FdName;

const LISTEN_PID: &str = "LISTEN_PID";
const LISTEN_PIDFDID: &str = "LISTEN_PIDFDID";

/// All variables about handed-on sockets. The last one's number would not match ours.
pub(crate) const VARIABLES: [&str; 5] = [LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES, LISTEN_PIDFDID, LISTEN_FDS_FIRST_FD];

/// The upgrade mode and the descriptor of the state, from a supervisor to its successor. Private to them.
pub(crate) const STATE: &str = "HANDOFF_STATE";

/// A `KEY=VALUE` string of an environment.
pub(crate) type Variable<'a> = Cow<'a, CStr>;

/// What is announced to the target of its sockets.
#[derive(Debug, Default)]
pub(crate) struct Announcement<'a> {
    /// One a socket, in their order.
    pub(crate) names: Vec<&'a FdName>,
    /// The process they are for; none for a target that a wrapper forks.
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

/// `base` with the variables of a file, all without those about sockets, with `announcement` if there is one, and with
/// `set`. Each wins over what stands before it and the last of a name over the others, so that none of these has a name
/// twice: getenv(3) finds the first, other readers the last.
pub(crate) fn announce<'a>(
    base: &[&'a CStr],
    from_file: Vec<CString>,
    announcement: Option<&Announcement>,
    set: Vec<CString>,
) -> Vec<Variable<'a>> {
    let stale = |variable: &CStr| VARIABLES.iter().chain([&STATE]).any(|name| is_for(variable, name.as_bytes()));
    let from_file = from_file.into_iter().filter(|variable| !stale(variable));
    let announced = announcement.map(Announcement::variables).unwrap_or_default();
    let new = last_of_each_name(from_file.chain(announced).chain(set));
    let replaced = |variable: &CStr| new.iter().any(|new| is_for(variable, key(new)));
    let kept = base.iter().filter(|variable| !stale(variable) && !replaced(variable)).map(|kept| Cow::Borrowed(*kept));
    let kept: Vec<Variable<'a>> = kept.collect();
    kept.into_iter().chain(new.into_iter().map(Cow::Owned)).collect()
}

fn last_of_each_name(variables: impl Iterator<Item = CString>) -> Vec<CString> {
    variables.fold(Vec::new(), |mut last: Vec<CString>, variable| {
        last.retain(|earlier| key(earlier) != key(&variable));
        last.push(variable);
        last
    })
}

/// `base` with each of `set` instead of any of its name, and without the variable of a state, unless one is that.
pub(crate) fn with<'a>(base: &[&'a CStr], set: Vec<CString>) -> Vec<Variable<'a>> {
    let is_set = |variable: &CStr| set.iter().any(|set| is_for(variable, key(set)));
    let replaced = |variable: &CStr| is_set(variable) || is_for(variable, STATE.as_bytes());
    let kept = base.iter().filter(|variable| !replaced(variable)).map(|kept| Cow::Borrowed(*kept));
    let kept: Vec<Variable<'a>> = kept.collect();
    kept.into_iter().chain(set.into_iter().map(Cow::Owned)).collect()
}

/// What stands before the first `=`; all of an entry that has none.
fn key(variable: &CStr) -> &[u8] {
    let bytes = variable.to_bytes();
    bytes.split(|byte| *byte == b'=').next().unwrap_or(bytes)
}

/// Has `variable` this key? A comparison of the start, for an environment is long and few of its entries are ours.
fn is_for(variable: &CStr, key: &[u8]) -> bool {
    let rest = variable.to_bytes().strip_prefix(key);
    rest.is_some_and(|rest| rest.first().is_none_or(|next| *next == b'='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_variables_go_and_odd_entries_stay() {
        let base = [c"A=1", c"LISTEN_PID=7", c"no equals sign", c"LISTEN_PIDFDID=9", c"LISTEN_FDS_FIRST_FD=5", c"A=2"];
        let environment = announce(&base, vec![], None, vec![]);
        assert_eq!(environment, [c"A=1", c"no equals sign", c"A=2"].map(Cow::Borrowed));
    }

    #[test]
    fn what_is_set_wins_over_the_callers_variables_and_over_ours() {
        let name = FdName::default();
        let announcement = Announcement { names: vec![&name], pid: Some(7), pidfd_id: None };
        let set = vec![c"A=new".to_owned(), c"LISTEN_PID=8".to_owned()];
        let environment = announce(&[c"A=1", c"B=2"], vec![], Some(&announcement), set);
        let expected = [c"B=2", c"LISTEN_FDS=1", c"LISTEN_FDNAMES=unknown", c"A=new", c"LISTEN_PID=8"];
        assert_eq!(environment, expected.map(Cow::Borrowed));
    }
    #[test]
    fn each_name_is_there_once_and_the_last_word_wins() {
        let name = FdName::default();
        let announcement = Announcement { names: vec![&name], pid: None, pidfd_id: None };
        let from_file = [c"A=file", c"B=file", c"A=file again", c"LISTEN_FDS=7", c"LISTEN_PID=7", c"HANDOFF_STATE=x"];
        let set = [c"NOTIFY_SOCKET=@x", c"B=preset", c"C=preset", c"C=user", c"NOTIFY_SOCKET=", c"C=last"];
        let base = [c"A=1", c"C=3", c"NOTIFY_SOCKET=outer", c"A=2"];
        let owned = |variables: &[&CStr]| variables.iter().map(|variable| CString::from(*variable)).collect();
        let environment = announce(&base, owned(&from_file), Some(&announcement), owned(&set));
        let expected =
            [c"A=file again", c"LISTEN_FDS=1", c"LISTEN_FDNAMES=unknown", c"B=preset", c"NOTIFY_SOCKET=", c"C=last"];
        assert_eq!(environment, expected.map(Cow::Borrowed));
    }
}
