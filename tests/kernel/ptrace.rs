//! The calls of ptrace(2) that a tracer of system calls needs, and reading what a stopped thread points to.
//!
//! Owns numbers and layouts of linux/ptrace.h. Leaves which threads are traced, and what a call means, to the tracers.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    ptr,
};

// The C libraries disagree about which of them they name.
const SYSCALL: libc::c_long = 24;
const SEIZE: libc::c_long = 0x4206;
const INTERRUPT: libc::c_long = 0x4207;
const LISTEN: libc::c_long = 0x4208;
const DETACH: libc::c_long = 17;
const CALL_INFORMATION: libc::c_long = 0x420e;
/// `PTRACE_O_TRACESYSGOOD`: a stop at a system call is told from others.
pub const TRACE_CALLS: libc::c_ulong = 0x1;
/// `PTRACE_O_TRACEFORK` and `PTRACE_O_TRACEVFORK`.
pub const FOLLOW_CHILDREN: libc::c_ulong = 0x2 | 0x4;
/// `PTRACE_O_TRACECLONE`.
pub const FOLLOW_THREADS: libc::c_ulong = 0x8;
/// `PTRACE_O_TRACEEXEC`.
pub const TELL_EXEC: libc::c_ulong = 0x10;
pub const EVENT_EXEC: i32 = 4;
const EVENT_STOP: i32 = 128;
const ENTRY: u8 = 1;
/// Bytes of a text that are read at most.
const TEXT_MAX: usize = 512;

/// `struct ptrace_syscall_info`.
#[repr(C)]
#[derive(Default)]
pub struct Call {
    operation: u8,
    padding: [u8; 3],
    architecture: u32,
    instruction: u64,
    stack: u64,
    /// At an entry the call's number, at an exit its result.
    pub first: u64,
    /// At an exit the lowest byte of the first says whether the call failed.
    pub arguments: [u64; 6],
    rest: [u64; 4],
}

impl Call {
    /// Where the thread stands, if that is a system call.
    pub fn of(tid: i32) -> Option<Self> {
        let mut call = Self::default();
        let place = ptr::from_mut(&mut call) as libc::c_ulong;
        (ptrace(CALL_INFORMATION, tid, size_of::<Self>(), place) > 0).then_some(call)
    }

    pub fn is_entry(&self) -> bool {
        self.operation == ENTRY
    }
}

/// Why a traced thread stopped.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    signal: i32,
    pub event: i32,
}

impl Stop {
    /// `None` for a thread that has ended.
    pub fn of(status: i32) -> Option<Self> {
        let has_ended = libc::WIFEXITED(status) || libc::WIFSIGNALED(status);
        (!has_ended).then(|| Self { signal: libc::WSTOPSIG(status), event: status >> 16 })
    }

    pub fn is_call(self) -> bool {
        self.signal == libc::SIGTRAP | 0x80
    }

    /// Lets the thread go on to its next stop, with the signal that it was stopped by.
    pub fn go_on(self, tid: i32) {
        let is_group_stop = self.event == EVENT_STOP && self.signal != libc::SIGTRAP;
        let is_signal = self.event == 0 && !self.is_call();
        let handed_on = if is_signal { libc::c_ulong::try_from(self.signal).unwrap() } else { 0 };
        ptrace(if is_group_stop { LISTEN } else { SYSCALL }, tid, 0, handed_on);
    }
}

fn ptrace(request: libc::c_long, tid: i32, address: usize, argument: libc::c_ulong) -> libc::c_long {
    // SAFETY: the requests used here read numbers only, or write at most `address` bytes to `argument`, which the caller sized so.
    unsafe { libc::syscall(libc::SYS_ptrace, request, libc::c_long::from(tid), address, argument) }
}

/// Takes hold of a thread without stopping it.
pub fn seize(tid: i32, options: libc::c_ulong) -> io::Result<()> {
    if ptrace(SEIZE, tid, 0, options) == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub fn interrupt(tid: i32) {
    ptrace(INTERRUPT, tid, 0, 0);
}

/// Lets go of a thread; false for one that is not stopped.
pub fn detach(tid: i32) -> bool {
    ptrace(DETACH, tid, 0, 0) == 0
}

/// The memory of a thread, to be read at its own addresses.
pub fn memory(tid: i32) -> io::Result<File> {
    File::open(format!("/proc/{tid}/mem"))
}

/// A text that ends in zero; as much of it as can be read.
pub fn text(tid: i32, at: u64) -> String {
    let mut bytes = [0; TEXT_MAX];
    let length = memory(tid).and_then(|memory| memory.read_at(&mut bytes, at)).unwrap_or(0);
    let end = bytes[..length].iter().position(|byte| *byte == 0).unwrap_or(length);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// What a descriptor of a thread leads to.
pub fn descriptor(tid: i32, number: u64) -> Option<PathBuf> {
    std::fs::read_link(Path::new("/proc").join(tid.to_string()).join("fd").join(number.to_string())).ok()
}
