//! Which system calls change something outside the process that makes them.
//!
//! Owns reading a stopped thread's call: its number, its arguments, and what its descriptor is. Leaves stopping threads to `tracer.rs`.
//!
//! A netlink dump is a send that changes nothing; it is told by its flags and left out.

use std::os::{
    fd::{AsRawFd, FromRawFd, OwnedFd},
    unix::fs::FileExt,
};

use crate::ptrace::{self, text};

/// One call, as far as the harness cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub name: &'static str,
    /// What it is done to, for a person who reads a failure.
    pub target: String,
    /// Its reply may be lost although it was carried out: a kill after it is another moment than a kill before the next.
    pub is_send: bool,
}

/// Bits of `nlmsg_flags` that ask for a dump (linux/netlink.h: NLM_F_ROOT | NLM_F_MATCH).
const DUMP: u16 = 0x300;

/// What is only between a process and a descriptor of its own (asm-generic/ioctls.h: TCGETS, FIONREAD, FIONBIO, FIOCLEX).
const QUESTIONS: [u64; 4] = [0x5401, 0x541b, 0x5421, 0x5451];

/// The calls that can matter, by number.
const NAMES: &[(libc::c_long, &str)] = &[
    (libc::SYS_sendto, "sendto"),
    (libc::SYS_sendmsg, "sendmsg"),
    (libc::SYS_write, "write"),
    (libc::SYS_writev, "writev"),
    (libc::SYS_pwrite64, "pwrite"),
    (libc::SYS_pwritev, "pwritev"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_sync_file_range, "sync_file_range"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_fchmod, "fchmod"),
    (libc::SYS_fchmodat, "fchmodat"),
    (libc::SYS_fchown, "fchown"),
    (libc::SYS_fchownat, "fchownat"),
    (libc::SYS_bind, "bind"),
    (libc::SYS_openat, "openat"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_clone, "clone"),
    (libc::SYS_clone3, "clone3"),
    (libc::SYS_execve, "execve"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, "open"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, "rename"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, "unlink"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, "mkdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, "chmod"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chown, "chown"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_vfork, "vfork"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_fork, "fork"),
];

/// The call that the stopped thread `tid` of the process `process` is about to make, if it matters.
pub fn relevant(process: i32, tid: i32, number: u64, arguments: [u64; 6]) -> Option<Call> {
    let number = libc::c_long::try_from(number).ok()?;
    let name = NAMES.iter().find(|(of, _)| *of == number)?.1;
    let call = |target: String, is_send| Some(Call { name, target, is_send });
    match name {
        "openat" => opened(tid, arguments[1], arguments[2]).and_then(|path| call(path, false)),
        "open" => opened(tid, arguments[0], arguments[1]).and_then(|path| call(path, false)),
        "clone" => cloned(arguments[0]).then(|| call(String::new(), false))?,
        "clone3" => cloned(word(tid, arguments[0])?).then(|| call(String::new(), false))?,
        "vfork" | "fork" => call(String::new(), false),
        "execve" | "rename" | "unlink" | "mkdir" | "chmod" | "chown" => call(text(tid, arguments[0]), false),
        "mkdirat" | "unlinkat" | "renameat2" | "fchmodat" | "fchownat" => call(text(tid, arguments[1]), false),
        // A socket of the file system is there for others from now on; one of netlink is only numbered.
        "bind" => (family(process, arguments[0]) == Some(libc::AF_UNIX)).then(|| call("unix socket".into(), false))?,
        "ioctl" => {
            let target = descriptor(tid, arguments[0])?;
            let is_question = QUESTIONS.contains(&arguments[1]);
            if is_question { None } else { call(target, false) }
        }
        _ => {
            let target = descriptor(tid, arguments[0])?;
            if arguments[0] == 2 || !(target.starts_with("socket:") || target.starts_with('/')) {
                return None;
            }
            if !target.starts_with("socket:") {
                return (target != "/dev/null").then(|| call(target, false))?;
            }
            if name == "sendto" && asks_for_a_dump(tid, arguments[1], arguments[2]) {
                return None;
            }
            let family = family(process, arguments[0]).map_or("socket", |family| match family {
                libc::AF_NETLINK => "netlink",
                libc::AF_UNIX => "unix socket",
                _ => "socket",
            });
            call(family.into(), true)
        }
    }
}

/// Whether the flags of a clone make a process and not a thread.
fn cloned(flags: u64) -> bool {
    flags & libc::CLONE_THREAD as u64 == 0
}

/// The path of an open that may make or empty a file.
fn opened(tid: i32, path: u64, flags: u64) -> Option<String> {
    let makes = (libc::O_CREAT | libc::O_TRUNC) as u64;
    (flags & makes != 0).then(|| text(tid, path)).filter(|path| path != "/dev/null")
}

fn descriptor(tid: i32, number: u64) -> Option<String> {
    ptrace::descriptor(tid, number).map(|path| path.to_string_lossy().into_owned())
}

fn memory(tid: i32, at: u64, buffer: &mut [u8]) -> Option<usize> {
    ptrace::memory(tid).ok()?.read_at(buffer, at).ok()
}

fn word(tid: i32, at: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    (memory(tid, at, &mut bytes)? == 8).then(|| u64::from_ne_bytes(bytes))
}

/// Whether a buffer is one netlink message that asks for a dump.
fn asks_for_a_dump(tid: i32, at: u64, length: u64) -> bool {
    let mut head = [0; 16];
    if length < 16 || memory(tid, at, &mut head) != Some(16) {
        return false;
    }
    let stated = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]);
    let flags = u16::from_ne_bytes([head[6], head[7]]);
    u64::from(stated) == length && flags & DUMP == DUMP
}

/// The address family of another process's socket.
fn family(process: i32, number: u64) -> Option<i32> {
    // SAFETY: two calls that take numbers and give a new descriptor or an error; it is owned at once.
    let copy = unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, process, 0);
        let pidfd = OwnedFd::from_raw_fd(i32::try_from(pidfd).ok().filter(|fd| *fd >= 0)?);
        let copy = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0);
        OwnedFd::from_raw_fd(i32::try_from(copy).ok().filter(|fd| *fd >= 0)?)
    };
    let (mut value, mut length) = (0_i32, 4);
    // SAFETY: the value is as long as said.
    let status = unsafe {
        let place = std::ptr::from_mut(&mut value).cast();
        libc::getsockopt(copy.as_raw_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN, place, &raw mut length)
    };
    (status == 0).then_some(value)
}
