//! What a running agent says to a WireGuard device, read with ptrace(2) from the calls by which it says it.
//!
//! Owns taking hold of an agent that runs, letting go of it, and telling such messages from all others. Leaves ptrace(2) itself to
//! `ptrace.rs`, and what a message says to the tests.
//!
//! All of ptrace belongs to one thread, which has no child of its own. Each call of the agent stops twice, so it is slower meanwhile:
//! gaps between its messages only become longer.

use std::{
    collections::BTreeSet,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::ptrace::{self, Call, Stop};

const OPTIONS: libc::c_ulong = ptrace::TRACE_CALLS | ptrace::FOLLOW_THREADS;
/// Protocol of sockets in `/proc/net/netlink` (linux/netlink.h: NETLINK_GENERIC).
const GENERIC: &str = "16";
/// Type of messages to the controller of generic netlink (linux/genetlink.h: GENL_ID_CTRL).
const CONTROLLER: u16 = 0x10;
/// Command of a message that changes a device (linux/wireguard.h: WG_CMD_SET_DEVICE).
const SET_DEVICE: u8 = 1;

/// One message that changes a device, as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A netlink message, headers included.
    Netlink(Vec<u8>),
    /// A request to a device process.
    Uapi(Vec<u8>),
}

/// A thread that listens to an agent.
pub struct Listening {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Said>>,
}

impl Listening {
    /// When this returns, nothing that the agent says is missed.
    pub fn to(agent: i32) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (begun, has_begun) = channel();
        let thread = std::thread::spawn({
            let is_over = Arc::clone(&is_over);
            move || listen(agent, &begun, &is_over)
        });
        has_begun.recv().unwrap();
        Self { is_over, thread }
    }

    /// Lets go of the agent, which goes on by itself.
    pub fn finish(self) -> Vec<Said> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn listen(agent: i32, begun: &Sender<()>, is_over: &AtomicBool) -> Vec<Said> {
    let mut listener = Listener { threads: BTreeSet::new(), said: Vec::new(), is_leaving: false };
    let mut waiting = seize(agent);
    listener.threads.clone_from(&waiting);
    let mut begun = Some(begun);
    while !listener.threads.is_empty() {
        // A thread that was seized stops once; from then on each of its calls is seen.
        if waiting.is_empty()
            && let Some(begun) = begun.take()
        {
            begun.send(()).unwrap();
        }
        if is_over.load(Ordering::Relaxed) && !listener.is_leaving {
            listener.is_leaving = true;
            listener.threads.iter().for_each(|tid| ptrace::interrupt(*tid));
        }
        match next_stop() {
            Some((tid, status)) => {
                waiting.remove(&tid);
                listener.stopped(tid, status);
            }
            None => std::thread::sleep(Duration::from_micros(30)),
        }
    }
    listener.said
}

/// Takes hold of every thread; ends when a look at all of them finds no new one.
fn seize(agent: i32) -> BTreeSet<i32> {
    let mut seized = BTreeSet::new();
    loop {
        let entries = std::fs::read_dir(format!("/proc/{agent}/task")).unwrap().flatten();
        let tids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let new: Vec<i32> = tids.filter(|tid| !seized.contains(tid)).collect();
        if new.is_empty() {
            return seized;
        }
        for tid in new {
            match ptrace::seize(tid, OPTIONS) {
                Ok(()) => ptrace::interrupt(tid),
                Err(error) if tid == agent => panic!("the agent cannot be traced: {error}"),
                // One that a seized thread has just made is ours already, and stops by itself.
                Err(_) if Path::new(&format!("/proc/{agent}/task/{tid}")).exists() => {}
                Err(_) => continue,
            }
            seized.insert(tid);
        }
    }
}

/// A thread that stopped or ended, and how.
fn next_stop() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: the status outlives the call. Only what this thread traces is waited for.
    let tid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG) };
    (tid > 0).then_some((tid, status))
}

struct Listener {
    threads: BTreeSet<i32>,
    said: Vec<Said>,
    is_leaving: bool,
}

impl Listener {
    fn stopped(&mut self, tid: i32, status: i32) {
        let Some(stop) = Stop::of(status) else {
            self.threads.remove(&tid);
            return;
        };
        self.threads.insert(tid);
        if stop.is_call()
            && let Some(call) = Call::of(tid).filter(Call::is_entry)
        {
            self.said.extend(said(tid, &call));
        }
        // A thread that stands at a signal would lose it.
        let can_leave = stop.is_call() || stop.event != 0;
        if self.is_leaving && can_leave && ptrace::detach(tid) {
            self.threads.remove(&tid);
        } else {
            stop.go_on(tid);
        }
    }
}

/// The message that a thread is about to send, if it changes a device.
fn said(tid: i32, call: &Call) -> Option<Said> {
    let [descriptor, place, length, ..] = call.arguments;
    let number = libc::c_long::try_from(call.first).ok()?;
    let (place, length) = match number {
        libc::SYS_sendto | libc::SYS_write => (place, length),
        // Of a list of buffers the first one: netlink-sys and tokio use no others.
        libc::SYS_writev => (word(tid, place)?, word(tid, place + 8)?),
        libc::SYS_sendmsg => {
            let list = word(tid, place + 16)?;
            (word(tid, list)?, word(tid, list + 8)?)
        }
        _ => return None,
    };
    let target = ptrace::descriptor(tid, descriptor)?;
    let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned();
    let bytes = memory(tid, place, length)?;
    if bytes.starts_with(b"set=1\n") {
        return Some(Said::Uapi(bytes));
    }
    (changes_a_device(&bytes) && is_generic(tid, &inode)).then_some(Said::Netlink(bytes))
}

/// True for what is laid out as a generic netlink message that changes a device; on sockets of other protocols it is something else.
fn changes_a_device(bytes: &[u8]) -> bool {
    let Some((head, _)) = bytes.split_first_chunk::<20>() else { return false };
    let stated = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]);
    let kind = u16::from_ne_bytes([head[4], head[5]]);
    stated as usize == bytes.len() && kind > CONTROLLER && head[16] == SET_DEVICE
}

fn is_generic(tid: i32, inode: &str) -> bool {
    let table = std::fs::read_to_string(format!("/proc/{tid}/net/netlink")).unwrap_or_default();
    table.lines().any(|line| {
        let mut columns = line.split_whitespace().skip(1);
        columns.next() == Some(GENERIC) && columns.last() == Some(inode)
    })
}

fn word(tid: i32, at: u64) -> Option<u64> {
    let bytes = memory(tid, at, 8)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

fn memory(tid: i32, at: u64, length: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    ptrace::memory(tid).ok()?.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}
