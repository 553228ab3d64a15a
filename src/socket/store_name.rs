//! The names of sockets in the service manager's descriptor store. Pure.
//!
//! A socket that all share has its SPEC's; of steered ones each has one of its own, made with its inode, by which it is
//! recognised.

use crate::kernel::descriptors::SocketInode;
use crate::socket::spec::{FdName, Spec};

/// The name of the state of steered sockets.
pub(crate) const STATE: &str = "handoff-state";
/// The name of a descriptor by which it is seen whether there is a store.
pub(crate) const CHECK: &str = "handoff-check";

/// Longer names are cut, so that what is appended has room.
const LONGEST: usize = 200;

/// A name for each SPEC, no two of them alike, that stays the same as long as its name, or its text where it has none.
pub(crate) fn of_specs(specs: &[Spec]) -> Vec<FdName> {
    let mut names: Vec<FdName> = Vec::new();
    for spec in specs {
        let base = match &spec.name {
            Some(name) => name.to_string(),
            None => spec.to_string().chars().map(fitting).collect(),
        };
        let base = &base[..base.len().min(LONGEST)];
        let mut name = FdName::announced(base).unwrap_or_default();
        let mut number = 1;
        while is_reserved(&name) || names.contains(&name) {
            number += 1;
            name = FdName::announced(&format!("{base}-{number}")).unwrap_or_default();
        }
        names.push(name);
    }
    names
}

/// Is it the name of what is no socket?
pub(crate) fn is_reserved(name: &FdName) -> bool {
    [STATE, CHECK].contains(&name.as_str())
}

/// A letter of a SPEC, or another where it cannot be in a name.
fn fitting(letter: char) -> char {
    match letter {
        ':' => '/',
        ' '..='~' => letter,
        _ => '_',
    }
}

/// The name of one of the sockets of a SPEC that is called `base`.
pub(crate) fn of_slot(base: &FdName, inode: SocketInode) -> FdName {
    FdName::announced(&format!("{base}{}", suffix(inode))).unwrap_or_default()
}

/// The name of the SPEC in the name of this socket, if that is such a name.
pub(crate) fn base(name: &FdName, inode: SocketInode) -> Option<FdName> {
    name.as_str().strip_suffix(&suffix(inode)).and_then(FdName::announced)
}

/// No name of a SPEC has a slash in it.
fn suffix(inode: SocketInode) -> String {
    format!("/slot-{}", inode.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(specs: &[&str]) -> Vec<String> {
        let specs: Vec<Spec> = specs.iter().map(|spec| Spec::parse(spec.as_ref()).unwrap()).collect();
        of_specs(&specs).iter().map(ToString::to_string).collect()
    }

    // sd_notify(3), FDNAME: "no control characters or colon", at most 255.
    #[test]
    fn each_spec_has_a_name_of_its_own_that_can_be_stored() {
        assert_eq!(names(&["web=:0", ":8000", "[::1]:80,nodelay"]), ["web", "/8000", "[//1]/80,nodelay"]);
        assert_eq!(names(&["a=:0", "a=:0", "a-2=:0", ":0", ":0"]), ["a", "a-2", "a-2-2", "/0", "/0-2"]);
        assert_eq!(names(&["handoff-state=:0", "unix:@\u{e9}\t"]), ["handoff-state-2", "unix/@__"]);
        let long = "y".repeat(255);
        assert_eq!(
            names(&[&format!("{long}=:0"), &format!("{long}=:0")]),
            [&long[..200], &format!("{}-2", &long[..200])]
        );
    }

    #[test]
    fn a_slot_is_known_by_its_name_and_its_inode_only() {
        let [one, two] = [1, 2].map(SocketInode);
        let web = FdName::announced("web").unwrap();
        assert_eq!(base(&of_slot(&web, one), one), Some(web.clone()));
        assert_eq!(base(&of_slot(&web, one), two), None);
        assert_eq!(base(&web, one), None);
    }
}
