use std::fmt;

use serde::{Deserialize, Serialize};

/// A network namespace, by the process through which it was named (A21).
///
/// A pid alone says nothing: it is given to another process as soon as its own is gone. Pid and start time name a process of one boot; device
/// and inode of `/proc/PID/ns/net` name the namespace that it had when it was looked at. All of it has to fit before anything is done there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Netns {
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Device and inode number of the namespace (`stat` of `/proc/PID/ns/net`).
    pub device: u64,
    pub inode: u64,
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}] of pid {}", self.inode, self.pid)
    }
}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
