//! The signals of a supervisor: received through a signalfd, and restored for each generation.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::supervise::poll::{Source, Table};
use crate::sys::{self, Disposition};

/// The signals received through the signalfd.
const RECEIVED: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCHLD,
];

/// The descriptor signals are read from, and what they were before.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: SignalFd,
    dispositions: Dispositions,
}

/// Signals as the supervisor was started with them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dispositions {
    mask: SigSet,
    /// Changed for the supervisor: it must see its children end, and survive a closed log pipe.
    child: Disposition,
    pipe: Disposition,
    /// Of SURVIVED, in their order.
    survived: [Disposition; SURVIVED.len()],
}

/// What a write may raise: beyond the limit of file sizes, and to a terminal of which this is no foreground job. They
/// are ignored, and as they were while the supervisor becomes another.
const SURVIVED: [Signal; 2] = [Signal::SIGXFSZ, Signal::SIGTTOU];

/// The same in a state that is handed on.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedSignals {
    blocked: Vec<i32>,
    child_ignored: bool,
    pipe_ignored: bool,
}

/// A signal and its sender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    /// Real-time signals have a number alone.
    pub(crate) number: i32,
    pub(crate) sender: Sender,
}

/// Where a signal comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// The terminal, or a child that ended.
    Kernel,
    Process(Pid),
}

impl Signals {
    /// Receive signals from now on.
    pub(crate) fn receive() -> Result<Signals> {
        let mask = sys::change_mask(SigmaskHow::SIG_BLOCK, &received()).context("cannot block signals")?;
        let [child, pipe] = [Signal::SIGCHLD, Signal::SIGPIPE].map(|signal| sys::disposition(signal as i32));
        Signals::open(Dispositions { mask, child, pipe, survived: survived() })
    }

    /// Go on receiving in the place of a predecessor, which left them blocked and knew what they were before.
    pub(crate) fn resume(saved: &SavedSignals) -> Result<Signals> {
        sys::change_mask(SigmaskHow::SIG_BLOCK, &received()).context("cannot block signals")?;
        Signals::open(Dispositions::resume(saved))
    }

    fn open(dispositions: Dispositions) -> Result<Signals> {
        // Children must stay waitable, and the log's reader may end before us.
        sys::set_disposition(Signal::SIGCHLD, Disposition::Default).context("cannot set SIGCHLD")?;
        sys::set_disposition(Signal::SIGPIPE, Disposition::Ignored).context("cannot set SIGPIPE")?;
        survive([Disposition::Ignored; SURVIVED.len()]).context("cannot ignore signals")?;
        let received = received();
        let fd = SignalFd::with_flags(&received, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("cannot receive signals")?;
        Ok(Signals { fd, dispositions })
    }

    /// The next signal that came, if one did.
    pub(crate) fn next(&self) -> Option<Received> {
        let info: siginfo = self.fd.read_signal().ok()??;
        // Positive codes are the kernel's (sigaction(2), si_code).
        let process = Pid::from_raw(info.ssi_pid as i32);
        let sender = if info.ssi_code > 0 { Sender::Kernel } else { Sender::Process(process) };
        Some(Received { number: info.ssi_signo as i32, sender })
    }

    /// Add what is waited for to the round's table.
    pub(crate) fn poll<'a>(&'a self, table: &mut Table<'a>) {
        table.input(Source::Signals, self.fd.as_fd());
    }

    /// What a generation is started with.
    pub(crate) fn dispositions(&self) -> Dispositions {
        self.dispositions
    }
}

impl Dispositions {
    /// For the supervisor that takes the place of this one.
    pub(crate) fn save(&self) -> SavedSignals {
        SavedSignals {
            blocked: sys::numbers_of(&self.mask),
            child_ignored: self.child == Disposition::Ignored,
            pipe_ignored: self.pipe == Disposition::Ignored,
        }
    }

    fn resume(saved: &SavedSignals) -> Dispositions {
        let disposition = |ignored| if ignored { Disposition::Ignored } else { Disposition::Default };
        let (child, pipe) = (disposition(saved.child_ignored), disposition(saved.pipe_ignored));
        Dispositions { mask: sys::set_of(&saved.blocked), child, pipe, survived: survived() }
    }

    /// Ignore what a write may raise, or not: another release may not know of it.
    pub(crate) fn set_survived(&self, disposition: Survived) -> nix::Result<()> {
        survive(match disposition {
            Survived::Ignored => [Disposition::Ignored; SURVIVED.len()],
            Survived::AsBefore => self.survived,
        })
    }

    /// Restore the signals, in a child.
    pub(crate) fn restore(&self) -> nix::Result<()> {
        survive(self.survived)?;
        sys::set_disposition(Signal::SIGCHLD, self.child)?;
        sys::set_disposition(Signal::SIGPIPE, self.pipe)?;
        sys::change_mask(SigmaskHow::SIG_SETMASK, &self.mask).map(drop)
    }
}

/// What becomes of the signals that a write may raise.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Survived {
    Ignored,
    AsBefore,
}

/// Their present dispositions.
fn survived() -> [Disposition; SURVIVED.len()] {
    SURVIVED.map(|signal| sys::disposition(signal as i32))
}

fn survive(dispositions: [Disposition; SURVIVED.len()]) -> nix::Result<()> {
    SURVIVED
        .into_iter()
        .zip(dispositions)
        .try_for_each(|(signal, disposition)| sys::set_disposition(signal, disposition))
}

/// RECEIVED and the real-time signals, but not a SIGHUP that nohup(1) ignored: if blocked, it would stay pending.
fn received() -> SigSet {
    let numbers = RECEIVED.iter().map(|signal| *signal as i32).chain(sys::real_time_signals());
    let wanted = |number: &i32| *number != Signal::SIGHUP as i32 || sys::disposition(*number) != Disposition::Ignored;
    sys::set_of(&numbers.filter(wanted).collect::<Vec<_>>())
}
