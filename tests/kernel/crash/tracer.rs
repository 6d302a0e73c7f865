//! Stops a running agent at every system call that matters, and kills it at one of them.
//!
//! Owns seizing all threads, following new ones, and a child between its fork and its exec. Leaves ptrace(2) itself to `ptrace.rs`, which
//! calls matter to `calls.rs`, and what is asked of the agent to the caller.
//!
//! All of ptrace belongs to one thread: only the thread that seized another may wait for it. That thread must have no child of its own, or
//! it never learns that nobody is left. A thread that is killed while it stands at the
//! entry of a call does not make that call any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::calls::{Call, relevant};
use crate::ptrace::{self, Stop};

/// A traced agent that makes no relevant call for so long after its answer has done what there is to do.
const QUIET: Duration = Duration::from_millis(250);
/// Longest time a traced operation may take.
const LIMIT: Duration = Duration::from_secs(30);

const OPTIONS: libc::c_ulong =
    ptrace::TRACE_CALLS | ptrace::FOLLOW_CHILDREN | ptrace::FOLLOW_THREADS | ptrace::TELL_EXEC;

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
        loop {
            let entries = std::fs::read_dir(format!("/proc/{}/task", self.agent)).unwrap().flatten();
            let tids: BTreeSet<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
            let new: Vec<i32> = tids.into_iter().filter(|tid| !self.processes.contains_key(tid)).collect();
            if new.is_empty() {
                break;
            }
            for tid in new {
                // One that a seized thread has just made is ours already, and one may have ended by itself.
                if ptrace::seize(tid, OPTIONS).is_ok() {
                    ptrace::interrupt(tid);
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
        let Some(stop) = Stop::of(status) else {
            self.processes.remove(&tid);
            self.inside.remove(&tid);
            return;
        };
        let process = self.process_of(tid);
        if process != self.agent && (stop.event == ptrace::EVENT_EXEC || self.is_killed) {
            // The child is a program of its own now, or it has outlived the agent.
            self.processes.remove(&tid);
            ptrace::detach(tid);
            return;
        }
        if stop.is_call() {
            self.at_call(process, tid);
        }
        if !self.is_killed {
            stop.go_on(tid);
        }
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
        let Some(information) = ptrace::Call::of(tid) else { return };
        if !information.is_entry() {
            if let Some(number) = self.inside.remove(&tid)
                && self.moment == Some(Moment::After(number))
            {
                self.kill();
            }
            return;
        }
        if let Some(call) = relevant(process, tid, information.first, information.arguments) {
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
            if ptrace::detach(tid) {
                self.processes.remove(&tid);
            } else {
                ptrace::interrupt(tid);
            }
        }
    }
}
