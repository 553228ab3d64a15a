//! When a generation is ready. The only place that knows how each kind of readiness is detected.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use log::{debug, warn};
use nix::poll::PollFlags;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::config::Ready;
use crate::kernel::accepting::observe;
use crate::kernel::connections::served;
use crate::kernel::descriptors::SocketInode;
use crate::socket::listener::Listener;
use crate::socket::steering::Client;
use crate::supervise::generation::check::Check;
use crate::supervise::generation::http::{Get, Outcome};
use crate::supervise::signals::Dispositions;
use crate::supervise::sockets::{Reach, SocketSet};
use crate::sys::{Ending, Timestamp};

/// The first observation comes after this, each further one after half as long again, up to the last.
const FIRST_BACKOFF: Duration = Duration::from_millis(2);
const LAST_BACKOFF: Duration = Duration::from_millis(200);
/// Observations take at most this part of the processor's time, unless that would make them rarer than this.
const COST_RATIO: u32 = 50;
const LONGEST_SPARING: Duration = Duration::from_secs(2);
/// A check command is run this often.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// After this many failed observations in a row it is unobservable: during exec and setuid one or two fail.
const UNOBSERVABLE: u32 = 20;

/// Watches one generation get ready.
#[derive(Debug)]
pub(crate) struct Watch {
    how: Ready,
    /// The generation's main process.
    pid: Pid,
    /// What a check command is run with.
    dispositions: Dispositions,
    begun: Timestamp,
    /// When to observe again.
    next: Timestamp,
    backoff: Duration,
    /// READY=1 came.
    notified: bool,
    /// It was seen to accept, or that cannot be seen.
    accepts: bool,
    /// This many observations in a row could not see everything.
    unobservable: u32,
    /// Ends with the watch.
    check: Option<Check>,
    /// How the last check ended.
    last_check: Option<Ending>,
    /// How it can be asked.
    reach: Reach,
    /// The request that is under way.
    get: Option<Get>,
    /// What came of the last one.
    last_get: Option<Outcome>,
}

/// What the next supervisor must know to go on watching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedWatch {
    begun: Timestamp,
    #[serde(default)]
    notified: bool,
}

/// Those of `missing` by which no connection came in that one of `members` holds, with their listeners.
fn unserved<'a>(missing: &[SocketInode], members: &[Pid], set: &SocketSet<'a>) -> Vec<(SocketInode, &'a Listener)> {
    if missing.is_empty() {
        return vec![];
    }
    let all: BTreeSet<SocketInode> = missing.iter().copied().collect();
    let pairs = set.inodes.iter().copied().zip(set.listeners.iter().copied());
    let pairs = pairs.filter(|(inode, _)| all.contains(inode));
    let pairs: Vec<(SocketInode, &Listener)> = pairs.collect();
    let listeners: Vec<&Listener> = pairs.iter().map(|(_, listener)| *listener).collect();
    let served = served(members, &listeners);
    pairs.into_iter().zip(served).filter_map(|(pair, served)| (!served).then_some(pair)).collect()
}

/// The sockets of `set` that none of `members` waits on; none where that cannot be seen.
pub(crate) fn unattended<'a>(members: &[Pid], set: &SocketSet<'a>) -> Option<Vec<&'a Listener>> {
    let seen = observe(members, &set.inodes);
    let missing: Vec<&Listener> =
        unserved(&seen.missing, members, set).into_iter().map(|(_, listener)| listener).collect();
    (seen.obstacle.is_none() || missing.is_empty()).then_some(missing)
}

impl Watch {
    /// Watch the generation that was started as `pid`.
    pub(crate) fn begin(how: &Ready, pid: Pid, dispositions: Dispositions, reach: Reach, begun: Timestamp) -> Watch {
        let first = match how {
            Ready::After(time) => *time,
            _ => FIRST_BACKOFF,
        };
        Watch {
            how: how.clone(),
            pid,
            dispositions,
            begun,
            next: begun + first,
            backoff: FIRST_BACKOFF,
            notified: false,
            accepts: false,
            unobservable: 0,
            check: None,
            last_check: None,
            reach,
            get: None,
            last_get: None,
        }
    }

    /// Go on where a predecessor stopped.
    pub(crate) fn resume(how: &Ready, pid: Pid, dispositions: Dispositions, reach: Reach, saved: SavedWatch) -> Watch {
        Watch { notified: saved.notified, ..Watch::begin(how, pid, dispositions, reach, saved.begun) }
    }

    /// For the supervisor that takes the place of this one.
    pub(crate) fn save(&self) -> SavedWatch {
        SavedWatch { begun: self.begun, notified: self.notified }
    }

    /// READY=1 came: observe once more, now.
    pub(crate) fn notify(&mut self, now: Timestamp) {
        self.notified = true;
        if matches!(self.how, Ready::Auto | Ready::Notify) {
            self.next = now;
        }
    }

    /// When to observe again; never, if a descriptor becomes readable instead.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        (!matches!(self.how, Ready::Descriptor(_))).then_some(self.next)
    }

    /// Observe, if it is time: is the generation ready? `members` are its living processes.
    pub(crate) fn observe(&mut self, members: impl FnOnce() -> Vec<Pid>, set: &SocketSet, now: Timestamp) -> bool {
        if now < self.next {
            return false;
        }
        match &self.how {
            Ready::Descriptor(_) => false,
            Ready::Check(command) => {
                let command = command.clone();
                self.next = now + CHECK_INTERVAL;
                // Through a shared address another generation may answer: a check alone proves nothing.
                self.accepts = self.accepts || self.accepts(&members(), set);
                self.check_passed(&command) && self.accepts
            }
            Ready::Notify if !self.notified => {
                self.back_off(now);
                false
            }
            Ready::Http(path) => {
                let path = path.clone();
                self.back_off(now);
                self.accepts = self.accepts || self.accepts(&members(), set);
                self.accepts && self.is_answered(&path, now)
            }
            Ready::Auto | Ready::Notify | Ready::Accepting | Ready::After(_) => {
                self.back_off(now);
                self.accepts(&members(), set)
            }
        }
    }

    /// The observation took that much of the processor: not before it is a fiftieth of the time.
    pub(crate) fn spare(&mut self, cost: Duration, now: Timestamp) {
        self.next = self.next.max(now + (cost * COST_RATIO).min(LONGEST_SPARING));
    }

    fn back_off(&mut self, now: Timestamp) {
        self.backoff = (self.backoff * 3 / 2).min(LAST_BACKOFF);
        self.next = now + self.backoff;
    }

    /// Is some process seen waiting on each socket? Where that cannot be seen, READY=1 must suffice.
    fn accepts(&mut self, members: &[Pid], set: &SocketSet) -> bool {
        if set.inodes.is_empty() {
            return false;
        }
        let seen = observe(members, &set.inodes);
        // A busy process may never be observed waiting; but then it holds connections.
        if unserved(&seen.missing, members, set).is_empty() {
            debug!("seen to accept: {:?}", seen.evidence);
            return true;
        }
        let Some(obstacle) = seen.obstacle else {
            self.unobservable = 0;
            return false;
        };
        self.unobservable += 1;
        // What was asked for besides has to suffice.
        let suffices = match self.how {
            Ready::Check(_) | Ready::After(_) | Ready::Http(_) => true,
            Ready::Accepting => false,
            _ => self.notified,
        };
        if suffices {
            return self.unobservable > 1;
        }
        if self.unobservable == UNOBSERVABLE {
            warn!("{obstacle}, so whether it accepts cannot be seen; unless it sends READY=1, set --ready");
        }
        false
    }

    /// Run the check, or see how it ended.
    fn check_passed(&mut self, command: &str) -> bool {
        let Some(check) = &mut self.check else {
            let source = self.reach.source.map(|source| format!("HANDOFF_SOURCE={source}"));
            match Check::start(command, self.pid, source.as_slice(), self.dispositions) {
                Ok(check) => self.check = Some(check),
                Err(error) => warn!("cannot run the check: {error}"),
            }
            return false;
        };
        let Some(ending) = check.ending() else { return false };
        self.check = None;
        self.last_check = Some(ending);
        ending == Ending::Exited(0)
    }

    /// Ask for the path, or see what came of it.
    fn is_answered(&mut self, path: &str, now: Timestamp) -> bool {
        let Some(get) = &mut self.get else {
            match self.reach.first.map(|first| Get::begin(first, path, now)) {
                Some(Ok(get)) => self.get = Some(get),
                Some(Err(error)) => self.last_get = Some(Outcome::Failed(error.to_string())),
                None => (),
            }
            return false;
        };
        let Some(outcome) = get.go_on(now) else { return false };
        self.get = None;
        let is_good = outcome.is_good();
        self.last_get = Some(outcome);
        is_good
    }

    /// The sockets are others by now.
    pub(crate) fn reach_by(&mut self, reach: Reach) {
        self.reach = reach;
    }

    /// The client that is to be led to this generation.
    pub(crate) fn client(&self) -> Option<Client> {
        match &self.how {
            Ready::Check(_) => self.reach.source.map(|source| Client::Address(source.into())),
            _ => self.get.as_ref().map(|get| Client::Port(get.from())),
        }
    }

    /// It is led to it.
    pub(crate) fn lead(&mut self, now: Timestamp) {
        if self.get.as_mut().is_some_and(Get::lead) {
            self.next = now;
        }
    }

    /// What to wait for besides.
    pub(crate) fn polled(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        self.get.as_ref().and_then(Get::polled)
    }

    /// What was waited for has come.
    pub(crate) fn look_now(&mut self, now: Timestamp) {
        self.next = now;
    }

    /// Was it seen to accept, so that something else is what it waits for?
    pub(crate) fn has_accepted(&self) -> bool {
        self.accepts
    }

    /// End the check that runs; the next observation starts another one.
    pub(crate) fn stop_check(&mut self) {
        self.check = None;
    }

    /// The process of a check, which only the check may wait for.
    pub(crate) fn check_pid(&self) -> Option<Pid> {
        self.check.as_ref().map(Check::pid)
    }

    /// What it waits for that is not seen by looking, and what came of it.
    pub(crate) fn awaited(&self) -> Option<String> {
        match (&self.how, self.last_check) {
            (Ready::Check(_), Some(ending)) => Some(format!("its check last {ending}")),
            (Ready::Check(_), None) => Some("its check has not ended".to_owned()),
            (Ready::Http(path), _) => Some(match &self.last_get {
                Some(Outcome::Answered(status)) => format!("GET {path} was last answered with {status}"),
                Some(Outcome::Failed(why)) => format!("GET {path} last failed: {why}"),
                None if self.get.is_some() => format!("GET {path} has not been answered"),
                None => format!("it was not asked for {path} yet"),
            }),
            (Ready::Descriptor(number), _) => Some(format!("it wrote nothing to descriptor {number}")),
            (Ready::Notify, _) if !self.notified => Some("it did not send READY=1".to_owned()),
            _ => None,
        }
    }
}
