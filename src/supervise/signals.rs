//! The signals of a supervisor: received as reads from a descriptor, and given back to each generation as they were.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::Pid;

use crate::sys;

/// What comes in as a read.
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
    inherited: Inherited,
}

/// Signals as the supervisor was started with them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inherited {
    mask: SigSet,
    /// Changed for the supervisor: it must see its children end, and outlive whoever reads its log.
    child: SigAction,
    pipe: SigAction,
}

/// A signal and who sent it.
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
        let mask = received().thread_swap_mask(SigmaskHow::SIG_BLOCK).context("cannot block signals")?;
        let child = set_handler(Signal::SIGCHLD, SigHandler::SigDfl)?;
        let pipe = set_handler(Signal::SIGPIPE, SigHandler::SigIgn)?;
        Signals::open(Inherited { mask, child, pipe })
    }

    /// Go on receiving in the place of a predecessor, which left them blocked and knew what they were before.
    pub(crate) fn resume(inherited: Inherited) -> Result<Signals> {
        received().thread_block().context("cannot block signals")?;
        set_handler(Signal::SIGCHLD, SigHandler::SigDfl)?;
        set_handler(Signal::SIGPIPE, SigHandler::SigIgn)?;
        Signals::open(inherited)
    }

    fn open(inherited: Inherited) -> Result<Signals> {
        let received = received();
        let fd = SignalFd::with_flags(&received, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("cannot receive signals")?;
        Ok(Signals { fd, inherited })
    }

    /// The next signal that came, if one did.
    pub(crate) fn next(&self) -> Option<Received> {
        let info: siginfo = self.fd.read_signal().ok()??;
        // Positive codes are the kernel's (sigaction(2), si_code).
        let process = Pid::from_raw(info.ssi_pid as i32);
        let sender = if info.ssi_code > 0 { Sender::Kernel } else { Sender::Process(process) };
        Some(Received { number: info.ssi_signo as i32, sender })
    }

    /// What a generation shall have.
    pub(crate) fn inherited(&self) -> Inherited {
        self.inherited
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Inherited {
    /// What the next supervisor is told: the blocked signals, and whether SIGCHLD and SIGPIPE were ignored.
    pub(crate) fn save(&self) -> (Vec<i32>, bool, bool) {
        let ignored = |action: &SigAction| matches!(action.handler(), SigHandler::SigIgn);
        (sys::numbers_of(&self.mask), ignored(&self.child), ignored(&self.pipe))
    }

    /// The same of what a predecessor told.
    pub(crate) fn saved(blocked: &[i32], child_ignored: bool, pipe_ignored: bool) -> Inherited {
        let handler = |ignored| if ignored { SigHandler::SigIgn } else { SigHandler::SigDfl };
        let action = |ignored| SigAction::new(handler(ignored), SaFlags::empty(), SigSet::empty());
        Inherited { mask: sys::set_of(blocked), child: action(child_ignored), pipe: action(pipe_ignored) }
    }

    /// Make the signals what they were; in a child, or before the supervisor execs itself.
    pub(crate) fn restore(&self) -> nix::Result<()> {
        sys::set_action(Signal::SIGCHLD, &self.child)?;
        sys::set_action(Signal::SIGPIPE, &self.pipe)?;
        self.mask.thread_set_mask()
    }
}

/// RECEIVED and the real-time signals, but not a SIGHUP that nohup(1) ignored: if blocked, it would be kept for us.
fn received() -> SigSet {
    let numbers = RECEIVED.iter().map(|signal| *signal as i32).chain(sys::real_time_signals());
    let wanted = |number: &i32| *number != Signal::SIGHUP as i32 || !sys::is_ignored(*number);
    sys::set_of(&numbers.filter(wanted).collect::<Vec<_>>())
}

/// Neither of the two runs code of ours.
fn set_handler(signal: Signal, handler: SigHandler) -> Result<SigAction> {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    sys::set_action(signal, &action).with_context(|| format!("cannot set {signal}"))
}
