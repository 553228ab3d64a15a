//! The bind(2)s of generations: where one is for an address of ours, our socket takes the place of the caller's.
//!
//! The kernel holds the caller until it is answered, and shows only numbers: nothing that its memory and its descriptors
//! hold is trusted, and what was read counts only if the call was still pending afterwards (seccomp_unotify(2)).

pub(crate) mod check;
mod hand_over;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use libc::{c_int, sock_filter};
use log::{debug, warn};
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::kernel::caller::{Caller, FolderId, ForeignSocket};
use crate::kernel::descriptors::{ForeignFd, SocketInode};
use crate::socket::address::UnixName;
use crate::socket::endpoint::Endpoint;
use crate::socket::interception::asked::{Asked, LONGEST_ADDRESS};
use crate::socket::interception::filter::{Lengths, bind_filter};
use crate::socket::interception::theirs::{is_same_network, request};
use crate::socket::interception::{BindRequest, Decision};
use crate::socket::listener::Listener;
use crate::supervise::Supervisor;
use crate::supervise::diagnosis::Findings;
use crate::supervise::generation::Generation;
use crate::supervise::plan::Id;
use crate::supervise::sockets::intercepted::Binding;
use crate::sys::{self, Notice, PendingCall, Verdict};
use crate::target::Handing;

/// At most this many calls of one generation are answered before the others are handled.
const CALLS_AT_ONCE: usize = 64;
/// And no further one when this has passed.
const TIME_AT_ONCE: Duration = Duration::from_millis(20);

/// How a call is answered with an error.
#[derive(Debug)]
struct Refusal {
    errno: Errno,
    /// For the operator, if the generation does not get ready.
    findings: Findings,
}

/// What a call is answered with, or how it is refused.
type Answer = Result<Verdict, Refusal>;

/// A bind(2) whose address was read.
struct Bind {
    thread: Pid,
    caller: Caller,
    id: u64,
    number: ForeignFd,
    family: c_int,
    asked: Asked,
}

/// The caller's own socket.
struct Theirs {
    socket: ForeignSocket,
    inode: SocketInode,
}

impl Supervisor {
    /// What is reported of the system calls of a generation that is started now.
    pub(super) fn filter(&self) -> Option<Vec<sock_filter>> {
        let lengths = if self.sockets.has_unix() { Lengths::All } else { Lengths::AllButNetlink };
        (self.config.exec.program.handing == Handing::Interception).then(|| bind_filter(lengths)).flatten()
    }

    /// Answer the calls of a generation that wait.
    pub(super) fn answer_binds(&mut self, generation: Id) {
        // Limited, so that a flood does not keep us from the rest.
        let begun = sys::now();
        for _ in 0..CALLS_AT_ONCE {
            if sys::now().saturating_sub(begun) > TIME_AT_ONCE {
                return;
            }
            let Some(notifier) = self.notifier(generation) else { return };
            match sys::next_call(notifier) {
                Ok(Notice::Call(call)) => self.answer_bind(generation, &call),
                Ok(Notice::Nothing) => return,
                Ok(Notice::End) => {
                    return self.generations.get_mut(generation).into_iter().for_each(Generation::close_notifier);
                }
                Err(errno) => {
                    warn!("generation {generation}: cannot see its bind(2): {errno}");
                    return;
                }
            }
        }
    }

    fn answer_bind(&mut self, generation: Id, call: &PendingCall) {
        let answer = self.consider(generation, call);
        let Some(asker) = self.generations.get_mut(generation) else { return };
        let verdict = match answer {
            Ok(verdict) => {
                asker.refusal.take_if(|_| verdict == Verdict::Done);
                verdict
            }
            Err(Refusal { errno, findings }) => {
                debug!("generation {generation}: its bind(2) gets {errno}: {}", findings.text);
                asker.refusal = Some(findings);
                Verdict::Fails(errno)
            }
        };
        asker.unanswered = None;
        let answered = asker.notifier().map(|notifier| sys::answer(notifier, call.id, verdict));
        if let Some(Err(errno)) = answered {
            // It has been killed meanwhile, or interrupted by a signal before Linux 5.19.
            debug!("generation {generation}: a bind(2) cannot be answered: {errno}");
            let number = ForeignFd(call.arguments[0] as c_int);
            asker.unanswered = call.thread.filter(|_| verdict == Verdict::Done).map(|thread| (thread, number));
        }
    }

    fn consider(&mut self, generation: Id, call: &PendingCall) -> Answer {
        let bind = match self.read(generation, call) {
            Ok(Some(bind)) if self.sockets.may_be_asked_for(&bind.asked) => bind,
            Ok(_) => return Ok(Verdict::Continue),
            Err(errno) => return self.unseen(generation, errno),
        };
        let socket = match bind.caller.copy_socket(bind.number) {
            Ok(Some(socket)) => socket,
            // The kernel says so itself.
            Ok(None) | Err(Errno::EBADF | Errno::ESRCH) => return Ok(Verdict::Continue),
            Err(errno) => return self.unseen(generation, errno),
        };
        let Some(asker) = self.generations.get(generation) else { return Ok(Verdict::Continue) };
        let inode = SocketInode::of(&socket).map_err(|errno| refused("cannot see its socket", errno))?;
        if !self.is_pending(generation, bind.id) {
            return Ok(Verdict::Continue);
        }
        if self.sockets.set(asker.share).inodes.contains(&inode) {
            // It is ours by now. Unless the call was interrupted, and is made again, the kernel says so.
            let is_again = asker.unanswered == Some((bind.thread, bind.number));
            return Ok(if is_again { Verdict::Done } else { Verdict::Continue });
        }
        let Some(request) = request(&socket, bind.family, bind.asked.clone()) else { return Ok(Verdict::Continue) };
        let decision = self.decide(generation, &bind.caller, &socket, &request);
        debug!("generation {generation}: binds {}: {decision:?}", request.endpoint);
        let Some(at) = self.socket_for(generation, decision, &request.endpoint)? else { return Ok(Verdict::Continue) };
        let is_first = self.generations.iter().all(|generation| generation.given.is_empty());
        let answer = self.hand_over(generation, at, &bind, &Theirs { socket, inode });
        if let (true, Ok(Verdict::Done)) = (is_first, &answer) {
            self.warn_of_wider(at, &request.endpoint);
        }
        answer
    }

    /// A program that wants clients of this machine alone may get those of the whole network.
    fn warn_of_wider(&self, at: usize, asked: &Endpoint) {
        let Some(Ok(ours)) = self.sockets.listeners().nth(at).map(Listener::endpoint) else { return };
        let ip = |endpoint: &Endpoint| match endpoint {
            Endpoint::Inet { address, .. } => Some(address.ip()),
            _ => None,
        };
        let is_wider = ip(&ours).is_some_and(|ours| ours.is_unspecified());
        if is_wider && ip(asked).is_some_and(|asked| asked.is_loopback()) {
            warn!(
                "the program asked for {asked}, and can be reached on every interface: --listen {asked} would keep it local"
            );
        }
    }

    /// Read what a call asks for; none if the kernel is to see for itself.
    fn read(&self, generation: Id, call: &PendingCall) -> nix::Result<Option<Bind>> {
        let [number, address, length, ..] = call.arguments;
        // Of int and socklen_t the lower half counts. What is longer, or has no family, the kernel refuses.
        let length = usize::try_from(length as c_int).ok().filter(|length| (2..=LONGEST_ADDRESS).contains(length));
        // No number: a process of another PID namespace that we do not see.
        let (Some(thread), Some(length)) = (call.thread, length) else { return Ok(None) };
        let may_wait = self.generations.get(generation).is_some_and(|generation| !generation.is_slow);
        let caller = Caller::new(thread, may_wait);
        let address = match caller.read(address, length) {
            Err(Errno::EFAULT | Errno::ESRCH) => return Ok(None),
            address => address?,
        };
        if !self.is_pending(generation, call.id) {
            return Ok(None);
        }
        let family = c_int::from(u16::from_ne_bytes([address[0], address[1]]));
        let number = ForeignFd(number as c_int);
        Ok(Asked::parse(&address).map(|asked| Bind { thread, caller, id: call.id, number, family, asked }))
    }

    /// The caller cannot be looked at. While it starts, refuse: the address may be ours. Later the kernel answers.
    fn unseen(&mut self, generation: Id, errno: Errno) -> Answer {
        if errno == Errno::ETIMEDOUT {
            self.mark_slow(generation);
            return Ok(Verdict::Continue);
        }
        if !matches!(errno, Errno::EPERM | Errno::EACCES) {
            return Err(refused("cannot look at its bind(2)", errno));
        }
        if !self.plan.is_starting(generation) {
            return Ok(Verdict::Continue);
        }
        let text = format!("the supervisor may not look at its bind(2) ({errno}), as where it has dropped its user");
        let remedy = "run the supervisor as that user, or with CAP_SYS_PTRACE (in a container: --cap-add SYS_PTRACE)";
        Err(Refusal { errno: Errno::EACCES, findings: Findings { text, remedy: Some(remedy.to_owned()) } })
    }

    /// A look at a process of it took too long: no other one is waited for.
    fn mark_slow(&mut self, generation: Id) {
        let Some(slow) = self.generations.get_mut(generation).filter(|generation| !generation.is_slow) else { return };
        slow.is_slow = true;
        warn!("generation {generation}: what it gives to bind(2) cannot be read in time; such calls go to the kernel");
    }

    fn notifier(&self, generation: Id) -> Option<BorrowedFd<'_>> {
        self.generations.get(generation)?.notifier()
    }

    fn is_pending(&self, generation: Id, call: u64) -> bool {
        self.notifier(generation).is_some_and(|notifier| sys::is_pending(notifier, call))
    }

    fn decide(&mut self, generation: Id, caller: &Caller, theirs: &OwnedFd, request: &BindRequest) -> Decision {
        if let Endpoint::Unix { kind, name: UnixName::Path(path) } = &request.endpoint {
            let mut is_slow = false;
            let is_there = |own: &Path| {
                let is_there = is_same_folder(caller, path, own);
                is_slow |= is_there == Err(Errno::ETIMEDOUT);
                is_there == Ok(true)
            };
            let found = self.sockets.at_path(*kind, path, is_there);
            if is_slow {
                self.mark_slow(generation);
            }
            return found.map_or(Decision::Elsewhere, Decision::Ours);
        }
        let decision = self.sockets.decide(request);
        // A path is the same in every network, and nothing else is.
        let ours = decision.at().and_then(|at| self.sockets.listeners().nth(at));
        if ours.is_some_and(|ours| is_same_network(theirs, ours)) { decision } else { Decision::Elsewhere }
    }

    /// The place of the socket that was decided for, which is bound first where the program chooses how.
    fn socket_for(&mut self, generation: Id, decision: Decision, asked: &Endpoint) -> Result<Option<usize>, Refusal> {
        let Some(share) = self.generations.get(generation).map(|generation| generation.share) else { return Ok(None) };
        let how = Binding { specs: &self.config.exec.specs, manner: self.config.exec.manner, share };
        let bound = match decision {
            Decision::Elsewhere => return Ok(None),
            Decision::Ours(at) => return Ok(Some(at)),
            Decision::OtherVersion(at) => return Err(self.other_version(at, asked)),
            Decision::Anew(at, endpoint) => self.sockets.bind_anew(at, &endpoint, &how),
            Decision::Beside(at, endpoint) => self.sockets.bind_beside(at, &endpoint, &how),
        };
        let reach = self.sockets.reach();
        let watches = self.generations.iter_mut().filter_map(|generation| generation.watch.as_mut());
        watches.for_each(|watch| watch.reach_by(reach));
        bound.map(Some).map_err(|error| {
            let text = format!("it binds {asked}, where we cannot listen: {error:#}");
            Refusal { errno: Errno::EADDRINUSE, findings: Findings { text, remedy: None } }
        })
    }

    /// Clients of one IP version would be lost, or misread.
    fn other_version(&self, at: usize, asked: &Endpoint) -> Refusal {
        let ours = self.sockets.listeners().nth(at).and_then(|ours| ours.endpoint().ok());
        let ours = ours.map(|ours| ours.to_string()).unwrap_or_default();
        let text = format!("it binds {asked}, which is of another IP version than {ours}, where we listen");
        let remedy = format!("let it listen on {ours}, or start the supervisor with --listen {asked}");
        Refusal { errno: Errno::EADDRINUSE, findings: Findings { text, remedy: Some(remedy) } }
    }
}

fn refused(what: &str, errno: Errno) -> Refusal {
    Refusal { errno, findings: Findings { text: format!("{what}: {errno}"), remedy: None } }
}

/// Do both names lead to one folder, each by its own process' root and working directory?
fn is_same_folder(caller: &Caller, theirs: &Path, ours: &Path) -> nix::Result<bool> {
    let folder = |path: &Path| path.parent().unwrap_or(Path::new("")).to_owned();
    caller.is_name_of(&folder(theirs), FolderId::of_name(&folder(ours))?)
}
