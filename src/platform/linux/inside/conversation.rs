//! A netlink socket without a runtime, for as long as one visit.
//!
//! Owns sending one request and waiting for its answer until a deadline. Leaves what an answer means to [`answer`](super::super::answer).
//!
//! Upholds I-05, I-15.
//!
//! The kernel carries out most requests inside the call that sends them: the answer is there before anyone could wait for it.

use std::{
    io::{self, ErrorKind},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::{
    answer::{Collector, Dump},
    errno::Fault,
    socket::frame,
};

/// Larger than any datagram the kernel makes for a dump (32 KiB since Linux 4.9).
pub(super) const RECEIVE_BYTES: usize = 64 * 1024;
/// Tries of a dump that the kernel says was interrupted by a change.
const DUMP_TRIES: usize = 3;

/// When a visit has to be over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    pub(super) fn within(limit: Duration) -> Self {
        Self { at: Instant::now() + limit, limit }
    }

    pub(super) fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    pub(super) fn missed(&self) -> Fault {
        Fault::Timeout(u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX))
    }
}

/// A conversation with the kernel in the namespace in which it was begun.
pub(super) struct Conversation {
    socket: Socket,
    sequence: u32,
    deadline: Deadline,
    buffer: Vec<u8>,
}

impl Conversation {
    /// Begins one in the calling thread's namespace. The buffer is handed from visit to visit.
    pub(super) fn begin(deadline: Deadline, buffer: Vec<u8>) -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        // Kernels before 4.20 refuse it, and answer dumps with more than was asked for.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self { socket, sequence: 0, deadline, buffer })
    }

    pub(super) fn set_deadline(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    pub(super) fn end(self) -> Vec<u8> {
        self.buffer
    }

    pub(super) fn change(&mut self, kind: u16, flags: u16, body: &impl Emitable) -> Result<(), Fault> {
        let mut request = frame(kind, flags | NLM_F_REQUEST | NLM_F_ACK, body);
        self.exchange(&mut request, |_, _| Some(())).map(drop)
    }

    pub(super) fn get<T>(
        &mut self,
        kind: u16,
        body: &impl Emitable,
        parse: impl Fn(u16, &[u8]) -> Option<T>,
    ) -> Result<T, Fault> {
        let mut request = frame(kind, NLM_F_REQUEST | NLM_F_ACK, body);
        let answer = self.exchange(&mut request, parse)?;
        answer.items.into_iter().next().ok_or(Fault::Garbled("the kernel's answer could not be read"))
    }

    pub(super) fn dump<T>(
        &mut self,
        kind: u16,
        body: &impl Emitable,
        parse: impl Fn(u16, &[u8]) -> Option<T>,
    ) -> Result<Dump<T>, Fault> {
        let mut request = frame(kind, NLM_F_REQUEST | NLM_F_DUMP, body);
        let mut collected = self.exchange(&mut request, &parse)?;
        for _ in 1..DUMP_TRIES {
            if !collected.interrupted {
                break;
            }
            collected = self.exchange(&mut request, &parse)?;
        }
        Ok(collected.finish())
    }

    fn exchange<T, P: Fn(u16, &[u8]) -> Option<T>>(
        &mut self,
        request: &mut [u8],
        parse: P,
    ) -> Result<Collector<T, P>, Fault> {
        self.sequence += 1;
        request[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        let mut collector = Collector::new(self.sequence, parse);
        self.socket.send_to(request, &SocketAddr::new(0, 0), 0).map_err(|error| Fault::from_io(&error))?;
        loop {
            let length = self.receive()?;
            let datagram = self.buffer.get(..length);
            let datagram = datagram.ok_or(Fault::Garbled("a datagram was longer than the receive buffer"))?;
            if collector.feed(datagram)? {
                return Ok(collector);
            }
        }
    }

    fn receive(&mut self) -> Result<usize, Fault> {
        loop {
            let mut space = &mut self.buffer[..];
            match self.socket.recv(&mut space, libc::MSG_DONTWAIT | libc::MSG_TRUNC) {
                Ok(length) => return Ok(length),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Fault::from_io(&error)),
            }
            let left = self.deadline.left();
            if left.is_zero() {
                return Err(self.deadline.missed());
            }
            let mut asked = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            // The wait in whole milliseconds; what remains is asked for once more.
            let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut asked, wait) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(Fault::Refused(errno, String::new())),
            }
        }
    }
}
