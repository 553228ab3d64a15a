//! The successor's end of a control socket: the sockets of another supervisor, which takes them back unless it is told that
//! it has been succeeded.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::Pid;

use crate::config::Request;
use crate::kernel::holders::{is_spared, with_name};
use crate::saved;
use crate::socket::takeover::{Lender, Lent, Loan, Predecessor};
use crate::supervise::control::client::ensure_trusted;
use crate::supervise::control::protocol::{Call, Reply, line};
use crate::supervise::control::replies::Replies;
use crate::supervise::control::server::SavedServer;
use crate::sys::{self, Claimed};

/// How long the next descriptor may take, in milliseconds.
const TIMEOUT: u16 = 5000;
/// What is lent comes with one of so many lines.
const MOST_LINES: usize = 100;

/// The supervisor whose control socket is at `path`, and what it lends; none if nobody listens there. It has to be the `named`
/// one, if there is one; `ours` is where this one is to take requests; what comes gets numbers from `lowest` on.
///
/// # Errors
/// If it does not lend, as while it deploys, or is not to be trusted.
pub(crate) fn borrow(
    path: &Path,
    named: Option<Predecessor>,
    ours: Option<&Path>,
    lowest: RawFd,
) -> Result<Option<(Predecessor, Lent)>> {
    let mut replies = match Replies::connect(path) {
        Err(error) if matches!(error.downcast_ref(), Some(Errno::ENOENT | Errno::ECONNREFUSED)) => return Ok(None),
        replies => replies?,
    };
    let context = || format!("cannot take over from the supervisor at {}", path.display());
    ensure_trusted(replies.stream(), path).with_context(context)?;
    let process = peer(&replies).with_context(context)?.with_context(|| format!("{}: it has ended", context()))?;
    if let Some(named) = named.filter(|named| (named.pid, named.started) != (process.pid, process.started)) {
        bail!("{}: {process} listens there, and not {named}", context());
    }
    let control = ours.is_some_and(|ours| is_same_file(ours, path));
    refuse_spared(&replies, path).with_context(context)?;
    replies.send(&call(Request::Lend { control }));
    let (loan, control) = first_reply(&mut replies).with_context(context)?;
    replies.send(&call(Request::Descriptors));
    let stream = replies.into_stream();
    let (most, _) = getrlimit(Resource::RLIMIT_NOFILE).with_context(context)?;
    ensure!((loan.descriptors.len() as u64) < most, "{}: it lends more than this process may have open", context());
    let received = receive(&stream, loan.descriptors.len(), lowest)
        .context("its descriptors did not come")
        .with_context(context)?;
    let numbers = loan.descriptors.clone();
    let mut claimed = Claimed::received(numbers.into_iter().zip(received).collect());
    let control = control.and_then(|saved| claimed.take(saved.fd).ok());
    let used = loan.used.clone();
    let lent = Lent::of(loan, &mut claimed).with_context(context)?;
    let connection = sys::duplicate_from(&stream, lowest).with_context(context)?;
    let lender = Lender { connection, used, control };
    Ok(Some((Predecessor { lender: Some(lender), ..process }, lent)))
}

/// The process that listens there, held before it is asked for anything; none if it has ended. What the kernel keeps is its
/// number, which was its own still if it lives when it was opened (SO_PEERPIDFD, Linux 6.5).
fn peer(replies: &Replies) -> Result<Option<Predecessor>> {
    let pid = Pid::from_raw(replies.peer().context("it is in another PID namespace, as in another container")?);
    let process = Predecessor::of(pid, None)?;
    Ok(process.filter(|_| sys::is_peer_alive(replies.stream())))
}

/// # Errors
/// If it is one that is never told to stop, so that nothing may take its place.
fn refuse_spared(replies: &Replies, path: &Path) -> Result<()> {
    let Some(pid) = replies.peer().map(Pid::from_raw).filter(|pid| is_spared(*pid)) else { return Ok(()) };
    let what = if pid.as_raw() == 1 { "" } else { " started this and" };
    bail!("{}{what} is never told to stop: use --reload {}", with_name(pid), path.display())
}

/// Tell the supervisor at the other end that it has been succeeded.
pub(crate) fn announce_succession(connection: impl AsFd) -> std::io::Result<()> {
    let mut stream = UnixStream::from(connection.as_fd().try_clone_to_owned()?);
    stream.write_all(call(Request::Succeeded).as_bytes())
}

fn call(request: Request) -> String {
    line(&Call { request, live: false })
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    file(one).is_some() && file(one) == file(other)
}

fn first_reply(replies: &mut Replies) -> Result<(Loan, Option<SavedServer>)> {
    for _ in 0..MOST_LINES {
        let Some(line) = replies.next()? else { break };
        match saved::parse(&line) {
            Ok(Reply::Loan { loan, control }) => return Ok((loan, control)),
            Ok(Reply::Error(text)) => bail!(text),
            Ok(Reply::Exit(_)) => break,
            // A newer supervisor may send more.
            _ => (),
        }
    }
    bail!("it does not lend its sockets")
}

fn receive(stream: &UnixStream, count: usize, lowest: RawFd) -> nix::Result<Vec<OwnedFd>> {
    let mut all = Vec::new();
    while all.len() < count {
        let mut waiting = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, PollTimeout::from(TIMEOUT))? == 0 {
            return Err(Errno::ETIMEDOUT);
        }
        let received = sys::receive_descriptors(stream)?;
        if received.is_empty() {
            return Err(Errno::EPIPE);
        }
        for fd in received {
            all.push(sys::duplicate_from(&fd, lowest)?);
        }
    }
    Ok(all)
}
