//! A container: a process in namespaces of its own, which does nothing until it is killed.
//!
//! Owns making and ending such a process. Leaves what happens in its network to [`Node`], by which a test looks in.
//!
//! A container holds no descriptor of ours, and a [`Node`] of it is opened anew each time: its network namespace ends with its process, as
//! that of a real container does, unless a test keeps a [`Node`].

use std::{
    fs::File,
    io::Read,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use nix::{
    fcntl::OFlag,
    sched::CloneFlags,
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{Pid, pipe2},
};
use overlayd::wire::{AttachHandle, Request};

use crate::lab::{Node, skip};

/// In which namespaces a container lives besides its network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nest {
    Network,
    User,
    Pids,
}

pub struct Container {
    /// As the agent sees it.
    pub pid: i32,
    /// Our child: the process itself, or the one that waits for it.
    keeper: Option<Pid>,
    /// The process ends when this is closed, so that none outlives a test that panics.
    _life: OwnedFd,
}

impl Container {
    pub fn new() -> Self {
        Self::within(Nest::Network)
    }

    pub fn within(nest: Nest) -> Self {
        let more = match nest {
            Nest::Network => CloneFlags::empty(),
            Nest::User => CloneFlags::CLONE_NEWUSER,
            Nest::Pids => CloneFlags::CLONE_NEWPID,
        };
        let Some(container) = Self::fork(CloneFlags::CLONE_NEWNET | more, None) else {
            skip(&format!("no container in a {nest:?} namespace of its own"));
        };
        container
    }

    /// A container whose process has a pid that is free now.
    pub fn with_pid(pid: i32) -> Option<Self> {
        Self::fork(CloneFlags::CLONE_NEWNET, Some(pid))
    }

    /// A process that shares the network of the calling test's thread, as a process of the host does.
    pub fn without_namespace() -> Self {
        Self::fork(CloneFlags::empty(), None).expect("a child")
    }

    fn fork(flags: CloneFlags, wanted: Option<i32>) -> Option<Self> {
        let (life_read, life) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (ready, ready_write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let child = clone_process(wanted)?;
        if child == 0 {
            live(flags, life_read.as_raw_fd(), ready_write.as_raw_fd());
        }
        drop((life_read, ready_write));
        let mut pid = [0; 4];
        let keeper = Some(Pid::from_raw(child));
        let is_ready = File::from(ready).read_exact(&mut pid).is_ok();
        let container = Self { pid: i32::from_ne_bytes(pid), keeper, _life: life };
        is_ready.then_some(container)
    }

    /// Its network namespace; what is made from it keeps that namespace alive.
    pub fn node(&self) -> Node {
        Node::of_process(self.pid).unwrap()
    }

    pub fn handle(&self) -> AttachHandle {
        AttachHandle::LinuxPid { pid: u32::try_from(self.pid).unwrap() }
    }

    /// The host's end of its veth pair to a segment.
    pub fn port(&self) -> String {
        format!("veth-{}-s", self.pid)
    }

    /// The host's end of its veth pair to the node's slice.
    pub fn global_port(&self) -> String {
        format!("veth-{}-g", self.pid)
    }

    pub fn detach(&self) -> Request {
        Request::DetachContainer { handle: self.handle() }
    }

    /// Ends the process and waits for that.
    pub fn kill(&mut self) {
        let Some(keeper) = self.keeper.take() else { return };
        // Zero: it never said who it is. Never to be taken for a group of processes.
        let victim = if self.pid > 0 { Pid::from_raw(self.pid) } else { keeper };
        let _ = kill(victim, Signal::SIGKILL);
        let _ = waitpid(keeper, None);
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.kill();
    }
}

/// As `fork`, with a pid of choice where one is given.
fn clone_process(wanted: Option<i32>) -> Option<i32> {
    // SAFETY: all zero is the plain `fork` of clone3(2); the child only makes system calls before it ends.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(pid) = &wanted {
        arguments.set_tid = std::ptr::from_ref(pid) as u64;
        arguments.set_tid_size = 1;
    }
    // SAFETY: the arguments and what they point to live until the call returns, and the size is theirs.
    let child = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_mut(&mut arguments), size_of_val(&arguments)) };
    i32::try_from(child).ok().filter(|child| *child >= 0)
}

/// The life of a container: says who it is and waits until the test is over. System calls only: it is the copy of one thread of many.
fn live(flags: CloneFlags, life: RawFd, ready: RawFd) -> ! {
    let say = |pid: i32| {
        let bytes = pid.to_ne_bytes();
        // SAFETY: the buffer is as long as said.
        unsafe { libc::write(ready, bytes.as_ptr().cast(), bytes.len()) };
    };
    // SAFETY: system calls on descriptors of this process and on buffers of the lengths said; nothing here takes a lock.
    unsafe {
        if !flags.is_empty() && libc::unshare(flags.bits()) != 0 {
            libc::_exit(1);
        }
        if flags.contains(CloneFlags::CLONE_NEWPID) {
            // The first child is the first process of the new namespace; its pid here is the one of the outer namespace.
            let inner = libc::fork();
            if inner != 0 {
                say(inner);
                libc::close_range(0, libc::c_uint::MAX, 0);
                libc::waitpid(inner, std::ptr::null_mut(), 0);
                libc::_exit(0);
            }
        } else {
            say(libc::getpid());
        }
        libc::dup2(life, 0);
        libc::close_range(1, libc::c_uint::MAX, 0);
        let mut byte = 0_u8;
        while libc::read(0, std::ptr::from_mut(&mut byte).cast(), 1) > 0 {}
        libc::_exit(0);
    }
}
