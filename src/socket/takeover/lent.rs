//! What a supervisor lends to the one that is to succeed it: its sockets with their places in their groups. It goes on with
//! them if that one fails.

use std::os::fd::{OwnedFd, RawFd};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::saved;
use crate::socket::endpoint::Endpoint;
use crate::socket::group::SavedGroup;
use crate::socket::listener::{Listener, SavedListener};
use crate::socket::spec::FdName;
use crate::sys::Claimed;

/// The same as it is sent.
#[derive(Debug, Default, Serialize, Deserialize)]
#[cfg_attr(any(test, fuzzing), derive(PartialEq))]
#[serde(default)]
pub(crate) struct Loan {
    /// The numbers of the descriptors that follow, in their order.
    pub(crate) descriptors: Vec<RawFd>,
    #[serde(deserialize_with = "saved::lenient")]
    pub(crate) listeners: Vec<SavedListener>,
    /// What belongs to some of those listeners.
    #[serde(deserialize_with = "saved::lenient")]
    pub(crate) steered: Vec<SavedGroup>,
    /// The slots that generations still have, beside the one that serves.
    pub(crate) used: Vec<usize>,
}

/// What belongs to a listener that was lent.
#[derive(Debug)]
pub(crate) struct LentGroup {
    pub(crate) saved: SavedGroup,
    pub(crate) sockets: Claimed,
}

/// What was lent.
#[derive(Debug, Default)]
pub(crate) struct Lent {
    listeners: Vec<LentListener>,
}

/// One of its sockets.
#[derive(Debug)]
struct LentListener {
    listener: Listener,
    /// The lender keeps a file for it.
    has_file: bool,
}

impl LentGroup {
    /// The socket of the slot that serves, if that is not the first.
    pub(crate) fn serving(mut self) -> Option<nix::Result<OwnedFd>> {
        let number = self.saved.serving().filter(|number| *number != self.saved.first)?;
        Some(self.sockets.take(number))
    }
}

impl Lent {
    /// What another supervisor says, with what it sent.
    ///
    /// # Errors
    /// If some are missing, or do not belong together.
    pub(crate) fn of(loan: Loan, sockets: &mut Claimed) -> Result<Lent> {
        let mut steered = loan.steered;
        let Some(shape) = steered.first().map(SavedGroup::shape) else {
            return Lent::of_groups(loan.listeners, vec![], sockets);
        };
        ensure!(steered.iter().all(|group| group.shape() == shape), "its groups do not fit each other");
        ensure!(loan.used.iter().all(|slot| *slot < shape.1), "there are {} slots, and others are used", shape.1);
        steered.iter_mut().for_each(SavedGroup::distrust);
        Lent::of_groups(loan.listeners, steered, sockets)
    }

    fn of_groups(saved: Vec<SavedListener>, mut steered: Vec<SavedGroup>, sockets: &mut Claimed) -> Result<Lent> {
        let mut listeners = Vec::new();
        for mut saved in saved {
            let number = saved.number();
            let beside = steered.extract_if(.., |group| group.first == number).next();
            let has_file = saved.distrust();
            let listener = Listener::resume(saved, sockets)?;
            let group = beside.map(|saved| {
                let numbers = saved.numbers().into_iter().chain(saved.discarded());
                let theirs = numbers.filter_map(|fd| Some((fd, sockets.take(fd).ok()?)));
                LentGroup { sockets: Claimed::received(theirs.collect()), saved }
            });
            listeners.push(LentListener { listener: listener.lent(group), has_file });
        }
        Ok(Lent { listeners })
    }

    /// Take the one that is bound here, as bind(2) would have made it. Of any port it is the one of that name.
    pub(crate) fn take(&mut self, endpoints: &[Endpoint], name: &FdName) -> Option<Listener> {
        endpoints.iter().find_map(|endpoint| {
            let is_meant = |listener: &Listener| !endpoint.has_free_port() || listener.name == *name;
            let is_it = |lent: &LentListener| is_meant(&lent.listener) && lent.listener.is_at(endpoint);
            let at = self.listeners.iter().position(is_it)?;
            let LentListener { listener, has_file } = self.listeners.remove(at);
            Some(match endpoint.path() {
                Ok(path) if has_file => listener.with_lent_file(path),
                _ => listener,
            })
        })
    }

    /// Those that were not taken.
    pub(crate) fn rest(&self) -> impl Iterator<Item = &Listener> {
        self.listeners.iter().map(|lent| &lent.listener)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::{AsFd, AsRawFd};

    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{hold, mutated};

    /// A loan of two groups, of which one is steered, as it is sent.
    const SENT: &str = r#"{"descriptors":[7,8,9],"listeners":[{"fd":7,"name":"web","backlog":9,"file":null},{"fd":9}],
        "steered":[{"first":7,"slots":[{"fd":8}],"helm":null,"spares":[],"discarded":[],"deferred":[],
        "places":["helm",{"slot":0},{"slot":1},"foreign"],"serving":1,"instead":[0,1],"foreign":[4711]}],"used":[0]}"#;

    fn sockets() -> Claimed {
        let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
        Claimed::received((7..10).map(|number| (number, listener().into())).collect())
    }

    #[test]
    fn a_loan_is_matched_with_its_descriptors() {
        let mut lent = Lent::of(serde_json::from_str(SENT).unwrap(), &mut sockets()).unwrap();
        assert_eq!(lent.rest().count(), 2);
        let endpoint = lent.listeners[0].listener.endpoint().unwrap();
        let taken = lent.take(&[endpoint], &FdName::default()).unwrap();
        assert!(taken.is_of_predecessor() && taken.as_fd().as_raw_fd() > 2);
        assert_eq!(lent.rest().count(), 1);
    }

    #[test]
    fn a_number_that_was_not_sent_is_none_of_ours() {
        let stderr = std::fs::read_link("/proc/self/fd/2").unwrap();
        for number in 0..3 {
            let sent = format!(
                r#"{{"descriptors":[7],"listeners":[{{"fd":7,"also":[{number}],"taken":true}},{{"fd":{number}}}]}}"#
            );
            Lent::of(serde_json::from_str(&sent).unwrap(), &mut sockets()).unwrap_err();
        }
        assert_eq!(std::fs::read_link("/proc/self/fd/2").unwrap(), stderr);
    }

    // A lender may be of another user than root, who takes the sockets.
    #[test]
    fn where_its_file_is_is_not_the_lender_s_word() {
        let folder = std::env::temp_dir().join(format!("lent-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let (path, elsewhere) = (folder.join("s"), folder.join("elsewhere"));
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::fs::write(&elsewhere, "").unwrap();
        let file = format!(r#"{{"path":{elsewhere:?},"device":1,"inode":1,"link":{elsewhere:?}}}"#);
        let loan = format!(r#"{{"descriptors":[7],"listeners":[{{"fd":7,"file":{file}}}]}}"#);
        let mut sockets = Claimed::received(vec![(7, socket.into())]);
        let mut lent = Lent::of(serde_json::from_str(&loan).unwrap(), &mut sockets).unwrap();
        let endpoint = lent.listeners[0].listener.endpoint().unwrap();
        let mut taken = lent.take(&[endpoint], &FdName::default()).unwrap();
        assert_eq!(taken.created().unwrap().watched(), path);
        taken.own();
        drop(taken);
        let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
        assert_eq!(left, [elsewhere], "the socket's own file is removed at the end");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn groups_that_do_not_fit_each_other_are_an_error() {
        let second = r#",{"first":9,"slots":[{"fd":8}],"serving":SERVING}],"used":[SLOT]}"#;
        let sent = |serving: &str, slot: &str| {
            let second = second.replace("SERVING", serving).replace("SLOT", slot);
            let text = SENT.replace(r#"],"used":[0]}"#, &second);
            Lent::of(serde_json::from_str(&text).unwrap(), &mut sockets()).map(drop)
        };
        sent("1", "0").unwrap();
        sent("0", "0").unwrap_err();
        sent("1", "2").unwrap_err();
    }

    #[test]
    fn fuzz_a_loan_that_is_not_what_was_sent_ends_in_an_error_at_most() {
        hold(mutated(Just(SENT.as_bytes().to_vec())), |bytes: Vec<u8>| {
            if let Ok(loan) = saved::parse::<Loan>(&bytes) {
                let _ = Lent::of(loan, &mut sockets());
            }
        });
    }
}
