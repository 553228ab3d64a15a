//! What /proc and netlink show of other processes and of sockets. No policy: nothing here decides what follows from it.

pub(crate) mod accepting;
pub(crate) mod caller;
pub(crate) mod cgroup;
pub(crate) mod connections;
pub(crate) mod descriptors;
pub(crate) mod elsewhere;
pub(crate) mod fdinfo;
pub(crate) mod holders;
pub(crate) mod members;
pub(crate) mod proc_net;
pub(crate) mod processes;
pub(crate) mod sock_diag;
pub(crate) mod socket_info;
pub(crate) mod sockets;
pub(crate) mod syscall;
#[cfg(test)]
pub(crate) mod testing;
