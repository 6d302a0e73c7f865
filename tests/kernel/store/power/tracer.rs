//! Follows an agent through every system call from its first on, without disturbing it.
//!
//! Owns following one process and its threads. Leaves ptrace(2) itself to `ptrace.rs`, and what a call means to `recorder.rs`.
//!
//! All of it belongs to one thread, which has no child of its own. The agent waits for it: it is started by a shell that has stopped itself.

use std::{
    collections::BTreeMap,
    sync::mpsc::{Sender, channel},
    time::Duration,
};

use super::recorder::{Entered, Recorder};
use crate::ptrace::{self, Call, Stop};

const OPTIONS: libc::c_ulong = ptrace::TRACE_CALLS | ptrace::FOLLOW_THREADS | ptrace::TELL_EXEC;

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

fn follow(pid: i32, mut recorder: Recorder, held: &Sender<()>) -> Recorder {
    ptrace::seize(pid, OPTIONS).unwrap();
    held.send(()).unwrap();
    let mut inside = BTreeMap::new();
    while let Some((tid, status)) = next_stop(pid) {
        let Some(stop) = Stop::of(status) else {
            inside.remove(&tid);
            continue;
        };
        if stop.is_call() {
            at_call(tid, &mut inside, &mut recorder);
        }
        stop.go_on(tid);
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
    let Some(call) = Call::of(tid) else { return };
    if call.is_entry() {
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
