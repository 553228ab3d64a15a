//! Every unsafe operation, behind a function that is typed on both sides. What nix offers safely is not repeated here.

#[cfg(target_env = "musl")]
mod arena;
mod bpf;
mod clock;
mod close;
mod directory;
mod fd;
mod helper;
mod in_child;
mod process;
mod rights;
mod search;
mod seccomp;
mod signal;
mod socket;
mod write;

/// What holds of any file that is read here.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz {
    pub(crate) use super::directory::fuzz::check as check_directory;
    pub(crate) use super::process::fuzz::check as check_process;
}

pub(crate) use bpf::{choose_by, choose_by_hash, drop_packets, pass_packets};
pub(crate) use clock::{Timestamp, now, processor_time, time};
pub(crate) use close::close_in_time;
pub(crate) use directory::{
    change_mode, directories_in, has_attribute, has_capabilities, identity_of, numbers_in, rename_to_free,
    set_attribute,
};
#[cfg(not(test))]
pub(crate) use fd::claim;
pub(crate) use fd::{
    Claimed, FIRST_FD, duplicate_from, duplicate_inheritable_from, duplicate_stdin, is_inheritable, moved_from,
    occupy_standard, place, set_close_on_exec, stdin_listens,
};
pub(crate) use helper::{Helper, output};
pub(crate) use in_child::{EpollEntry, add_to_epolls, in_child};
#[cfg(not(test))]
pub(crate) use process::record_arguments;
pub(crate) use process::{
    Ending, allow_ptrace, arguments, become_subreaper, environment, execute_opened, executed_path, execve,
    exit_at_once, fork, is_ptrace_restricted, is_readable, is_secure, pidfd_getfd, pidfd_of, pidfd_of_child,
    pidfd_of_thread, see_end_of, send_signal, send_signal_by, set_name, state_of, try_to_get_descriptors, variable,
    would_give_up_privileges,
};
pub(crate) use rights::{
    MOST_AT_ONCE, receive_descriptor, receive_descriptors, send_descriptor, send_descriptors, send_text,
};
pub(crate) use search::{candidates, execute};
pub(crate) use seccomp::{
    Notice, PendingCall, Verdict, answer, filter_calls, is_pending, next_call, put, try_put, wake_here,
};
pub(crate) use signal::{
    Disposition, change_mask, disposition, numbers_of, real_time_signals, set_disposition, set_of,
};
pub(crate) use socket::{
    Transport, accept, disconnect, is_peer_alive, is_shut_down, listen, network_of, option, option_bytes, queue,
    receive, set_option, set_option_bytes, similar,
};
pub(crate) use write::write_at_once;
