//! Network namespaces of containers: named by a process, opened only while the name still fits.
//!
//! Owns what a [`Netns`] is made of, the proof that it still means the same namespace, and the wait for its process to end. Leaves what is done
//! inside to [`inside`](super::inside).
//!
//! Upholds A21 (a pid that was given to another process never leads into that process's network), B26 (the agent's own namespace is nobody's
//! container).
//!
//! A pidfd proves nothing by being opened: a zombie has one too, and what is read from `/proc` afterwards may belong to the pid's next owner.
//! The pidfd is therefore opened first and asked last: if its process is still alive then, everything read in between was that process's.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    sync::OnceLock,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::fstat,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::ids::Netns;

/// `PIDFD_GET_NET_NAMESPACE` (linux/pidfd.h, Linux 6.11): the namespace without a way through `/proc`.
const PIDFD_GET_NET_NAMESPACE: nix::sys::ioctl::ioctl_num_type = nix::request_code_none!(0xFF, 4);

/// Why a process names no network namespace that could be a container's. Reads well after "failed to attach: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetnsError {
    #[error("there is no process {0}; send the pid of a running process of the container, as the agent's host sees it")]
    NoProcess(u32),
    #[error("process {0} has ended")]
    Ended(u32),
    #[error("process {0} may not be looked at ({1}); the agent needs CAP_SYS_PTRACE and CAP_SYS_ADMIN")]
    Denied(u32, String),
    #[error("process {0} is in the agent's own network namespace; a container needs one of its own")]
    OwnNamespace(u32),
    /// The process or the namespace is not the one that was named.
    #[error("{0} is gone: {1}")]
    Gone(Netns, &'static str),
    #[error("look at process {0}: {1}")]
    Failed(u32, String),
}

impl NetnsError {
    /// True when the namespace will never be there again under this name.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::NoProcess(_) | Self::Ended(_) | Self::Gone(..))
    }
}

/// A namespace that was proven to be the one that its [`Netns`] names. It lives at least as long as this value.
#[derive(Debug)]
pub struct OpenNetns {
    namespace: OwnedFd,
    pidfd: OwnedFd,
}

impl OpenNetns {
    pub(super) fn namespace(&self) -> &OwnedFd {
        &self.namespace
    }
}

/// The namespace of a process, with everything by which it can be known again.
///
/// # Errors
/// As [`NetnsError`] says.
pub fn identify(pid: u32) -> Result<Netns, NetnsError> {
    let (netns, _) = read(pid)?;
    // Only here: whoever opens a namespace that was named before may be in another one's at that moment.
    let own = identity_of_own().map_err(|error| described(pid, &error))?;
    if own == (netns.device, netns.inode) {
        return Err(NetnsError::OwnNamespace(pid));
    }
    Ok(netns)
}

/// Opens a namespace, if its name still fits.
///
/// # Errors
/// [`NetnsError::Gone`] when it does not fit any more; otherwise as [`identify`].
pub fn open(netns: &Netns) -> Result<OpenNetns, NetnsError> {
    let (now, open) = read(netns.pid).map_err(|error| match error {
        NetnsError::NoProcess(_) | NetnsError::Ended(_) => NetnsError::Gone(netns.clone(), "its process has ended"),
        other => other,
    })?;
    let gone = |why| Err(NetnsError::Gone(netns.clone(), why));
    if now.boot_id != netns.boot_id {
        return gone("the machine was started again");
    }
    if now.start_time != netns.start_time {
        return gone("its pid belongs to another process now");
    }
    if (now.device, now.inode) != (netns.device, netns.inode) {
        return gone("its process went into another network namespace");
    }
    Ok(open)
}

/// Waits for the end of a namespace's process.
#[derive(Debug)]
pub struct Liveness(AsyncFd<OwnedFd>);

impl Liveness {
    /// Begins to watch the process that names the namespace. Needs a tokio runtime.
    ///
    /// # Errors
    /// As [`open`]; also when the process has ended already.
    pub fn of(netns: &Netns) -> Result<Self, NetnsError> {
        let open = open(netns)?;
        // SAFETY: an `OwnedFd` gives the same descriptor for as long as it lives and closes it only when it is dropped, which `AsyncFd` does
        // after it has deregistered it.
        let watched = unsafe { AsyncFd::register_with_interest(open.pidfd, Interest::READABLE) };
        watched.map(Self).map_err(|refused| NetnsError::Failed(netns.pid, refused.into_parts().1.to_string()))
    }

    /// Returns when the process has ended, also if nobody has waited for it yet.
    pub async fn gone(&self) {
        // Once readable, always readable: the readiness is never cleared. Without a driver there is nothing to wait for.
        let _ = self.0.readable().await;
    }
}

fn read(pid: u32) -> Result<(Netns, OpenNetns), NetnsError> {
    let pidfd = pidfd_open(pid)?;
    let failed = |error: io::Error| described(pid, &error);
    let start_time = start_time(pid).map_err(failed)?;
    let boot_id = boot_id().map_err(failed)?;
    let namespace = namespace_of(pid, &pidfd).map_err(failed)?;
    let (device, inode) = identity(&namespace).map_err(failed)?;
    if has_ended(&pidfd) {
        return Err(NetnsError::Ended(pid));
    }
    Ok((Netns { pid, start_time, boot_id, device, inode }, OpenNetns { namespace, pidfd }))
}

fn described(pid: u32, error: &io::Error) -> NetnsError {
    match error.raw_os_error().map(Errno::from_raw) {
        // What `/proc` and the pidfd say about a process that is ending or has ended.
        Some(Errno::ENOENT | Errno::ESRCH) => NetnsError::Ended(pid),
        Some(Errno::EPERM | Errno::EACCES) => NetnsError::Denied(pid, error.to_string()),
        _ => NetnsError::Failed(pid, error.to_string()),
    }
}

fn pidfd_open(pid: u32) -> Result<OwnedFd, NetnsError> {
    // 0 and what does not fit a pid are no process; the kernel would say so with EINVAL.
    let number = libc::pid_t::try_from(pid).ok().filter(|number| *number > 0).ok_or(NetnsError::NoProcess(pid))?;
    // SAFETY: the system call takes two numbers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error().map(Errno::from_raw) {
            // A thread that leads no process answers EINVAL or, since 6.13, ENOENT.
            Some(Errno::ESRCH | Errno::EINVAL | Errno::ENOENT) => NetnsError::NoProcess(pid),
            _ => described(pid, &error),
        });
    }
    let fd = i32::try_from(fd).unwrap_or_else(|_| unreachable!("a descriptor is an int"));
    // SAFETY: the kernel has just made the descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Field 22 of `/proc/PID/stat`.
fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::Error::other("/proc/PID/stat could not be read"))
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The name of the program stands in parentheses and may hold spaces and parentheses itself; behind it come only numbers and one letter.
    let (_, rest) = stat.rsplit_once(')')?;
    // The first field of the rest is the third of the line.
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

fn boot_id() -> io::Result<String> {
    static KNOWN: OnceLock<String> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(known.clone());
    }
    let read = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    Ok(KNOWN.get_or_init(|| read).clone())
}

fn namespace_of(pid: u32, pidfd: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: the third argument must be zero; nothing is read or written through it.
    let fd = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_NET_NAMESPACE, 0) };
    if fd >= 0 {
        // SAFETY: the kernel has just made the descriptor, and nobody else knows it.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    match Errno::last() {
        // A kernel before 6.11.
        Errno::ENOTTY | Errno::EINVAL => File::open(format!("/proc/{pid}/ns/net")).map(OwnedFd::from),
        errno => Err(io::Error::from(errno)),
    }
}

/// Device and inode number of an open namespace.
pub(super) fn identity(namespace: impl AsFd) -> io::Result<(u64, u64)> {
    let stat = fstat(namespace)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// The namespace of the calling thread.
pub(super) fn own() -> io::Result<OwnedFd> {
    File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
}

fn identity_of_own() -> io::Result<(u64, u64)> {
    identity(own()?)
}

/// A process is over for a pidfd when it is a zombie.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_name_may_hold_anything() {
        let rest = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        for name in ["sh", "a b", "a) b", ") S 1 2 3 (", "((", "\n"] {
            assert_eq!(parse_start_time(&format!("7 ({name}){rest}")), Some(4711), "{name:?}");
        }
        assert_eq!(parse_start_time("7 (sh) S 1"), None);
        assert_eq!(parse_start_time(""), None);
    }

    #[test]
    fn a_process_in_the_agents_own_namespace_is_refused() {
        let own = std::process::id();
        assert_eq!(identify(own), Err(NetnsError::OwnNamespace(own)));
    }

    #[test]
    fn what_cannot_be_a_pid_is_no_process() {
        for pid in [0, u32::MAX, 1 << 31] {
            assert_eq!(identify(pid), Err(NetnsError::NoProcess(pid)));
        }
    }
}
