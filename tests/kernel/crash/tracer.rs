//! Stops a running agent at every system call that matters, and kills it at one of them.
//!
//! Owns ptrace(2): seizing all threads, following new ones, and a child between its fork and its exec. Leaves which calls matter to
//! `calls.rs`, and what is asked of the agent to the caller.
//!
//! All of ptrace belongs to one thread: only the thread that seized another may wait for it. That thread must have no child of its own, or
//! it never learns that nobody is left. A thread that is killed while it stands at the
//! entry of a call does not make that call any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    ptr,
    time::{Duration, Instant},
};

use super::calls::{Call, relevant};

/// A traced agent that makes no relevant call for so long after its answer has done what there is to do.
const QUIET: Duration = Duration::from_millis(250);
/// Longest time a traced operation may take.
const LIMIT: Duration = Duration::from_secs(30);

// linux/ptrace.h; the C libraries disagree about which of them they name.
const SYSCALL: libc::c_long = 24;
const SETOPTIONS_TRACESYSGOOD: libc::c_ulong = 0x1;
const OPTIONS_TRACEFORK_VFORK_CLONE_EXEC: libc::c_ulong = 0x2 | 0x4 | 0x8 | 0x10;
const DETACH: libc::c_long = 17;
const SEIZE: libc::c_long = 0x4206;
const INTERRUPT: libc::c_long = 0x4207;
const LISTEN: libc::c_long = 0x4208;
const CALL_INFORMATION: libc::c_long = 0x420e;
const ENTRY: u8 = 1;
const EVENT_EXEC: i32 = 4;
const EVENT_STOP: i32 = 128;

/// A place in an operation at which the agent dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// The call is not carried out.
    Before(usize),
    /// It is carried out, and what it gave is not seen.
    After(usize),
}

/// What a traced operation did.
pub struct Trace {
    /// The relevant calls, in the order in which they were entered.
    pub calls: Vec<Call>,
    /// Whether the moment came; otherwise the agent was killed when it had become quiet.
    pub was_reached: bool,
}

/// `struct ptrace_syscall_info` as far as it is read at an entry.
#[repr(C)]
#[derive(Default)]
struct CallInformation {
    operation: u8,
    padding: [u8; 3],
    architecture: u32,
    instruction: u64,
    stack: u64,
    number: u64,
    arguments: [u64; 6],
    rest: [u64; 4],
}

fn ptrace(request: libc::c_long, tid: i32, address: usize, argument: libc::c_ulong) -> libc::c_long {
    // SAFETY: the requests used here read numbers only, or write at most `address` bytes to `argument`, which the caller sized so.
    unsafe { libc::syscall(libc::SYS_ptrace, request, libc::c_long::from(tid), address, argument) }
}

fn call_information(tid: i32) -> Option<CallInformation> {
    let mut information = CallInformation::default();
    let place = ptr::from_mut(&mut information) as libc::c_ulong;
    (ptrace(CALL_INFORMATION, tid, size_of::<CallInformation>(), place) > 0).then_some(information)
}

/// Traces the agent from now on, runs `begin` once it is, and kills it at the moment, or when it has answered and become quiet.
pub fn kill_at(agent: i32, moment: Option<Moment>, begin: impl FnOnce(), is_answered: impl Fn() -> bool) -> Trace {
    let mut tracer = Tracer {
        agent,
        moment,
        processes: BTreeMap::new(),
        inside: BTreeMap::new(),
        calls: Vec::new(),
        last: Instant::now(),
        is_killed: false,
    };
    tracer.seize();
    begin();
    let begun = Instant::now();
    tracer.last = begun;
    let mut idle = 0_u32;
    loop {
        match wait() {
            Waited::Changed(tid, status) => {
                tracer.changed(tid, status);
                idle = 0;
            }
            Waited::Nothing => {
                idle += 1;
                pause(idle);
            }
            Waited::Nobody => break,
        }
        let is_over = is_answered() && tracer.last.elapsed() > QUIET;
        if !tracer.is_killed && (is_over || begun.elapsed() > LIMIT) {
            tracer.moment = None;
            tracer.kill();
        }
    }
    Trace { was_reached: moment.is_some() && tracer.moment.is_some(), calls: tracer.calls }
}

/// A stop is followed by the next within microseconds; a longer pause is for an agent that waits itself.
fn pause(idle: u32) {
    if idle < 50 {
        std::thread::yield_now();
    } else {
        std::thread::sleep(Duration::from_micros(30));
    }
}

enum Waited {
    Changed(i32, i32),
    Nothing,
    Nobody,
}

fn wait() -> Waited {
    let mut status = 0;
    // Only what this thread traces: the processes of the test are waited for by those who started them.
    let options = libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
    // SAFETY: the status outlives the call.
    match unsafe { libc::waitpid(-1, &raw mut status, options) } {
        0 => Waited::Nothing,
        tid if tid > 0 => Waited::Changed(tid, status),
        _ => Waited::Nobody,
    }
}

struct Tracer {
    agent: i32,
    moment: Option<Moment>,
    /// The process of each traced thread.
    processes: BTreeMap<i32, i32>,
    /// Threads inside a relevant call, by its number.
    inside: BTreeMap<i32, usize>,
    calls: Vec<Call>,
    last: Instant,
    is_killed: bool,
}

impl Tracer {
    /// Seizes every thread; ends when a look at all of them finds no new one.
    fn seize(&mut self) {
        let options = SETOPTIONS_TRACESYSGOOD | OPTIONS_TRACEFORK_VFORK_CLONE_EXEC;
        loop {
            let entries = std::fs::read_dir(format!("/proc/{}/task", self.agent)).unwrap().flatten();
            let tids: BTreeSet<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
            let new: Vec<i32> = tids.into_iter().filter(|tid| !self.processes.contains_key(tid)).collect();
            if new.is_empty() {
                break;
            }
            for tid in new {
                // One that a seized thread has just made is ours already, and one may have ended by itself.
                if ptrace(SEIZE, tid, 0, options) == 0 {
                    ptrace(INTERRUPT, tid, 0, 0);
                }
                self.processes.insert(tid, self.agent);
            }
        }
        let mut waiting: BTreeSet<i32> = self.processes.keys().copied().collect();
        let begun = Instant::now();
        while !waiting.is_empty() && begun.elapsed() < Duration::from_secs(2) {
            if let Waited::Changed(tid, status) = wait() {
                waiting.remove(&tid);
                self.changed(tid, status);
            }
        }
        assert!(waiting.is_empty(), "threads of the agent that do not stop: {waiting:?}");
        self.calls.clear();
        self.inside.clear();
    }

    fn changed(&mut self, tid: i32, status: i32) {
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            self.processes.remove(&tid);
            self.inside.remove(&tid);
            return;
        }
        let process = self.process_of(tid);
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        if process != self.agent && (event == EVENT_EXEC || self.is_killed) {
            // The child is a program of its own now, or it has outlived the agent.
            self.processes.remove(&tid);
            ptrace(DETACH, tid, 0, 0);
            return;
        }
        if signal == libc::SIGTRAP | 0x80 {
            self.at_call(process, tid);
        }
        if self.is_killed {
            return;
        }
        let is_group_stop = event == EVENT_STOP && signal != libc::SIGTRAP;
        let is_signal = event == 0 && signal != libc::SIGTRAP | 0x80;
        let handed_on = if is_signal { libc::c_ulong::try_from(signal).unwrap() } else { 0 };
        ptrace(if is_group_stop { LISTEN } else { SYSCALL }, tid, 0, handed_on);
    }

    /// A new thread reports itself before its maker reports it, at times.
    fn process_of(&mut self, tid: i32) -> i32 {
        *self.processes.entry(tid).or_insert_with(|| {
            let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
            line.and_then(|line| line.trim().parse().ok()).unwrap_or(tid)
        })
    }

    fn at_call(&mut self, process: i32, tid: i32) {
        let Some(information) = call_information(tid) else { return };
        if information.operation != ENTRY {
            if let Some(number) = self.inside.remove(&tid)
                && self.moment == Some(Moment::After(number))
            {
                self.kill();
            }
            return;
        }
        if let Some(call) = relevant(process, tid, information.number, information.arguments) {
            let number = self.calls.len();
            self.calls.push(call);
            self.inside.insert(tid, number);
            self.last = Instant::now();
            if self.moment == Some(Moment::Before(number)) {
                self.kill();
            }
        }
    }

    /// Kills the agent where it stands, all threads at once.
    fn kill(&mut self) {
        self.is_killed = true;
        // SAFETY: takes numbers only; the pid is that of a process we trace, so it cannot have gone to another.
        unsafe { libc::kill(self.agent, libc::SIGKILL) };
        let children: Vec<i32> =
            self.processes.iter().filter(|(_, of)| **of != self.agent).map(|(tid, _)| *tid).collect();
        for tid in children {
            // Fails for one that is not stopped: it is let go when it stops.
            if ptrace(DETACH, tid, 0, 0) == 0 {
                self.processes.remove(&tid);
            } else {
                ptrace(INTERRUPT, tid, 0, 0);
            }
        }
    }
}
