//! Follows an agent through every system call from its first on, without disturbing it.
//!
//! Owns ptrace(2) for one process and its threads. Leaves what a call means to `recorder.rs`.
//!
//! All of it belongs to one thread, which has no child of its own. The agent waits for it: it is started by a shell that has stopped itself.

use std::{
    collections::BTreeMap,
    ptr,
    sync::mpsc::{Sender, channel},
    time::Duration,
};

use super::recorder::{Entered, Recorder};

// linux/ptrace.h; the C libraries disagree about which of them they name.
const SYSCALL: libc::c_long = 24;
/// PTRACE_O_TRACESYSGOOD, PTRACE_O_TRACECLONE and PTRACE_O_TRACEEXEC.
const OPTIONS: libc::c_ulong = 0x1 | 0x8 | 0x10;
const SEIZE: libc::c_long = 0x4206;
const LISTEN: libc::c_long = 0x4208;
const CALL: libc::c_long = 0x420e;
const ENTRY: u8 = 1;
const EVENT_STOP: i32 = 128;

/// `struct ptrace_syscall_info`; the first word is the call's number at an entry, and its result at an exit.
#[repr(C)]
#[derive(Default)]
struct Call {
    operation: u8,
    padding: [u8; 3],
    architecture: u32,
    instruction: u64,
    stack: u64,
    first: u64,
    /// At an exit the lowest byte of the first says whether the call failed.
    arguments: [u64; 6],
    rest: [u64; 4],
}

/// A thread that follows a process until its end.
pub struct Following(std::thread::JoinHandle<Recorder>);

impl Following {
    /// Takes hold of a stopped process; when this returns, it may go on.
    pub fn of(pid: u32, recorder: Recorder) -> Self {
        let (held, is_held) = channel();
        let pid = i32::try_from(pid).unwrap();
        let thread = std::thread::spawn(move || follow(pid, recorder, &held));
        is_held.recv().unwrap();
        Self(thread)
    }

    /// What it did, once it has ended.
    pub fn finish(self) -> Recorder {
        self.0.join().unwrap()
    }
}

fn ptrace(request: libc::c_long, tid: i32, address: usize, argument: libc::c_ulong) -> libc::c_long {
    // SAFETY: the requests used here read numbers only, or write at most `address` bytes to `argument`, which the caller sized so.
    unsafe { libc::syscall(libc::SYS_ptrace, request, libc::c_long::from(tid), address, argument) }
}

fn follow(pid: i32, mut recorder: Recorder, held: &Sender<()>) -> Recorder {
    assert_eq!(ptrace(SEIZE, pid, 0, OPTIONS), 0, "{}", std::io::Error::last_os_error());
    held.send(()).unwrap();
    let mut inside = BTreeMap::new();
    while let Some((tid, status)) = next_stop(pid) {
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            inside.remove(&tid);
            continue;
        }
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        let is_call = signal == libc::SIGTRAP | 0x80;
        if is_call {
            at_call(tid, &mut inside, &mut recorder);
        }
        let is_group_stop = event == EVENT_STOP && signal != libc::SIGTRAP;
        let is_signal = event == 0 && !is_call;
        let handed_on = if is_signal { libc::c_ulong::try_from(signal).unwrap() } else { 0 };
        ptrace(if is_group_stop { LISTEN } else { SYSCALL }, tid, 0, handed_on);
    }
    recorder
}

/// The next thread that stops or ends, and how; `None` at the end of the process, which is left to whoever started it.
fn next_stop(pid: i32) -> Option<(i32, i32)> {
    let options = libc::__WALL | libc::__WNOTHREAD;
    // SAFETY: plain numbers, all zero.
    let mut seen: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: what is seen outlives the call.
    let found = unsafe {
        libc::waitid(libc::P_ALL, 0, &raw mut seen, libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | options)
    };
    // SAFETY: waitid(2) fills in the pid of a child.
    let tid = if found == 0 { unsafe { seen.si_pid() } } else { return None };
    let has_ended = [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED].contains(&seen.si_code);
    if tid == pid && has_ended {
        return None;
    }
    let mut status = 0;
    // SAFETY: the status outlives the call.
    (unsafe { libc::waitpid(tid, &raw mut status, options) } == tid).then_some((tid, status))
}

fn at_call(tid: i32, inside: &mut BTreeMap<i32, Entered>, recorder: &mut Recorder) {
    let mut call = Call::default();
    if ptrace(CALL, tid, size_of::<Call>(), ptr::from_mut(&mut call) as libc::c_ulong) <= 0 {
        return;
    }
    if call.operation == ENTRY {
        let number = i64::try_from(call.first).unwrap_or(-1);
        let entered = Entered { number, arguments: call.arguments, began: recorder.ops.len() };
        recorder.entered(tid, &entered);
        inside.insert(tid, entered);
    } else if let Some(entered) = inside.remove(&tid)
        && call.arguments[0] & 0xff == 0
    {
        recorder.left(tid, &entered, call.first);
    }
}

/// Longest wait for a shell to stop itself.
pub const STOPS_WITHIN: Duration = Duration::from_secs(5);
