//! Containers for tests: a process with a network namespace of its own, held by a pipe.

use std::{
    io::Read,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

use super::*;

/// How much of its own a container has besides the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apart {
    Network,
    /// A user namespace too, as rootless runtimes make it.
    Users,
    /// A pid namespace too: inside, the process is number 1.
    Pids,
}

/// A container that lives until it is dropped.
pub struct Container {
    child: Child,
    /// The process in the network namespace, as this side sees it.
    pub pid: u32,
}

impl Container {
    pub fn new() -> Self {
        Self::start(Apart::Network)
    }

    pub fn start(apart: Apart) -> Self {
        let mut flags = CloneFlags::CLONE_NEWNET;
        match apart {
            Apart::Network => {}
            Apart::Users => flags |= CloneFlags::CLONE_NEWUSER,
            Apart::Pids => flags |= CloneFlags::CLONE_NEWPID,
        }
        // Says that it is there and waits for the end of its input. A pid namespace is entered by children only, so there one more shell waits.
        let script = match apart {
            Apart::Pids => "exec 3<&0; sh -c 'echo there; exec cat' <&3 & wait",
            Apart::Network | Apart::Users => "echo there; exec cat",
        };
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: one system call between fork and exec; it takes no lock and allocates nothing.
        unsafe {
            command.pre_exec(move || unshare(flags).map_err(std::io::Error::from));
        }
        let mut child = command.spawn().unwrap();
        let mut there = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut there).unwrap();
        assert_eq!(&there, b"there\n");
        let pid = if apart == Apart::Pids { only_child_of(child.id()) } else { child.id() };
        Self { child, pid }
    }

    pub fn netns(&self) -> Netns {
        netns::identify(self.pid).unwrap()
    }

    /// Runs the closure on a thread in the container's network.
    pub fn run<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid)).unwrap();
        let inside = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            body()
        });
        inside.join().unwrap()
    }

    /// The same with a witness there.
    pub fn ask<T, F>(&self, body: impl FnOnce(Handle) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { body(witness()).await })
        })
    }

    /// Addresses and routes as text.
    pub fn listing(&self) -> String {
        self.ask(|witness| async move { everything(&witness).await })
    }

    /// Ends the process and waits for it.
    pub fn end(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.end();
    }
}

fn only_child_of(pid: u32) -> u32 {
    let path = format!("/proc/{pid}/task/{pid}/children");
    std::fs::read_to_string(path).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}
