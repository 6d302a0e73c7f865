//! One netlink socket: one request at a time, each with a time limit.
//!
//! Owns sequence numbers, limits, and opening the socket again after a failure. Leaves what an answer holds to
//! [`answer`](super::answer) and its callers.
//!
//! Upholds I-14 (bytes are wiped after WireGuard traffic), I-15 (every request has a limit; the receive buffer has a fixed size).
//!
//! A request that ran into its limit may still be answered: the socket is given up with it, or a later request would find a dump
//! running (`EBUSY`) or take the wrong answer.

use std::{
    io::{self, ErrorKind},
    time::Duration,
};

use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{io::unix::AsyncFd, time::timeout};
use zeroize::Zeroizing;

use super::{
    answer::{Collector, Dump, HEADER, u32_at},
    errno::Fault,
};

/// Longest wait for one request: many times what a loaded kernel needs, short enough for a status request to survive it.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Larger than any datagram the kernel makes for a dump (32 KiB since Linux 4.9).
const RECEIVE_BYTES: usize = 64 * 1024;
/// Holds one transaction of the firewall with about 100,000 members.
const SEND_BUFFER: usize = 64 * 1024 * 1024;
/// Tries of a dump that the kernel says was interrupted by a change; after that it is reported as partial.
const DUMP_TRIES: usize = 3;

/// A netlink socket with one request at a time.
pub(super) struct Channel {
    protocol: isize,
    /// `None` after a failure that left it in an unknown state; opened again by the next request.
    socket: Option<AsyncFd<Socket>>,
    port: u32,
    sequence: u32,
    buffer: Zeroizing<Vec<u8>>,
}

impl Channel {
    /// Opens a socket of a netlink protocol in the namespace of the calling thread. Needs a tokio runtime.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut channel =
            Self { protocol, socket: None, port: 0, sequence: 0, buffer: Zeroizing::new(vec![0; RECEIVE_BYTES]) };
        channel.socket()?;
        Ok(channel)
    }

    /// The port id that changes made through this socket carry in their notifications.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// Sends a request and waits for its acknowledgement.
    pub(super) async fn change(
        &mut self,
        kind: u16,
        flags: u16,
        body: &impl Emitable,
        limit: Duration,
    ) -> Result<(), Fault> {
        let mut frame = frame(kind, flags | NLM_F_REQUEST | NLM_F_ACK, body);
        self.exchange(&mut frame, limit, |_, _| Some(())).await.map(drop)
    }

    /// Sends a finished frame (see [`frame`]) and waits for its acknowledgement.
    pub(super) async fn send(&mut self, frame: &mut [u8], limit: Duration) -> Result<(), Fault> {
        self.exchange(frame, limit, |_, _| Some(())).await.map(drop)
    }

    /// Asks for one object.
    pub(super) async fn get<T>(
        &mut self,
        kind: u16,
        body: &impl Emitable,
        parse: impl Fn(u16, &[u8]) -> Option<T>,
    ) -> Result<T, Fault> {
        let mut frame = frame(kind, NLM_F_REQUEST | NLM_F_ACK, body);
        let answer = self.exchange(&mut frame, CALL_LIMIT, parse).await?;
        let first = answer.items.into_iter().next();
        first.ok_or(Fault::Garbled("the kernel's answer could not be read"))
    }

    /// Dumps, again if the kernel says that a change interrupted it.
    pub(super) async fn dump<T>(
        &mut self,
        kind: u16,
        body: &impl Emitable,
        parse: impl Fn(u16, &[u8]) -> Option<T>,
    ) -> Result<Dump<T>, Fault> {
        let mut frame = frame(kind, NLM_F_REQUEST | NLM_F_DUMP, body);
        let mut collected = self.exchange(&mut frame, CALL_LIMIT, &parse).await?;
        for _ in 1..DUMP_TRIES {
            if !collected.interrupted {
                break;
            }
            collected = self.exchange(&mut frame, CALL_LIMIT, &parse).await?;
        }
        Ok(collected.finish())
    }

    async fn exchange<T, P: Fn(u16, &[u8]) -> Option<T>>(
        &mut self,
        frame: &mut [u8],
        limit: Duration,
        parse: P,
    ) -> Result<Collector<T, P>, Fault> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        stamp(frame, self.sequence);
        let mut collector = Collector::new(self.sequence, parse);
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let outcome = match timeout(limit, self.converse(frame, &mut collector)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Fault::Timeout(limit_ms)),
        };
        match outcome {
            Ok(Ok(())) => Ok(collector),
            Ok(Err(refusal)) => Err(refusal),
            Err(broken) => {
                // A dump may still be running on it, and its answers would be taken for those of the next request.
                self.socket = None;
                Err(broken)
            }
        }
    }

    /// The outer error means that the socket is in an unknown state, the inner one is the kernel's answer.
    async fn converse<T, P: Fn(u16, &[u8]) -> Option<T>>(
        &mut self,
        frame: &[u8],
        collector: &mut Collector<T, P>,
    ) -> Result<Result<(), Fault>, Fault> {
        self.socket().map_err(|error| Fault::from_io(&error))?;
        let Some(socket) = &self.socket else { unreachable!("socket() opened it") };
        let io_fault = |error: io::Error| Fault::from_io(&error);
        let kernel = SocketAddr::new(0, 0);
        loop {
            let mut ready = socket.writable().await.map_err(io_fault)?;
            match ready.try_io(|socket| socket.get_ref().send_to(frame, &kernel, 0)) {
                Ok(sent) => {
                    sent.map_err(io_fault)?;
                    break;
                }
                Err(_would_block) => {}
            }
        }
        loop {
            // The next part of a dump is there at once: without this, other tasks and the time limit would wait for its end.
            tokio::task::coop::consume_budget().await;
            let length = receive(socket, &mut self.buffer).await.map_err(io_fault)?;
            if length > self.buffer.len() {
                return Err(Fault::Garbled("a datagram was longer than the receive buffer"));
            }
            match collector.feed(&self.buffer[..length]) {
                Ok(true) => return Ok(Ok(())),
                Ok(false) => {}
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
    }

    fn socket(&mut self) -> io::Result<()> {
        if self.socket.is_some() {
            return Ok(());
        }
        let mut socket = Socket::new(self.protocol)?;
        socket.set_non_blocking(true)?;
        self.port = socket.bind_auto()?.port_number();
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        if self.protocol == NETLINK_NETFILTER {
            // Without CAP_NET_ADMIN in the initial user namespace only the ordinary limit is allowed, which a small node fits.
            if setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
                setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER)?;
            }
        }
        // Without it the kernel ignores the filters of a dump (Linux 4.20; older kernels refuse the option).
        match socket.set_netlink_get_strict_chk(true) {
            Err(error) if error.kind() != ErrorKind::Unsupported && error.raw_os_error() != Some(libc::ENOPROTOOPT) => {
                return Err(error);
            }
            Ok(()) | Err(_) => {}
        }
        self.socket = Some(watch(socket)?);
        Ok(())
    }

    /// Overwrites what was received last: WireGuard answers hold private keys.
    pub(super) fn wipe(&mut self) {
        self.buffer.fill(0);
    }
}

/// Writes the sequence number into every message of a request: a transaction of the firewall has many.
fn stamp(frame: &mut [u8], sequence: u32) {
    let mut at = 0;
    while at + HEADER <= frame.len() {
        frame[at + 8..at + 12].copy_from_slice(&sequence.to_ne_bytes());
        let length = u32_at(frame, at).unwrap_or(0) as usize;
        at += length.next_multiple_of(4).max(HEADER);
    }
}

/// Registers a non-blocking socket with the runtime.
pub(super) fn watch(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a `Socket` owns its descriptor, gives the same one for as long as it lives, and is closed only when it is dropped,
    // which `AsyncFd` does after it has deregistered it.
    unsafe { AsyncFd::register(socket) }.map_err(|refused| refused.into_parts().1)
}

/// Waits for a datagram; the length is that of the whole datagram, also when it did not fit.
pub(super) async fn receive(socket: &AsyncFd<Socket>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = socket.readable().await?;
        let received = ready.try_io(|socket| {
            let mut space = &mut *buffer;
            socket.get_ref().recv(&mut space, libc::MSG_TRUNC)
        });
        if let Ok(length) = received {
            return length;
        }
    }
}

/// A request whose sequence number is filled in when it is sent. Wiped when dropped.
pub(super) fn frame(kind: u16, flags: u16, body: &impl Emitable) -> Zeroizing<Vec<u8>> {
    let length = HEADER + body.buffer_len();
    let mut frame = Zeroizing::new(vec![0; length]);
    let total = u32::try_from(length).unwrap_or_else(|_| unreachable!("requests are bounded below 64 KiB"));
    frame[0..4].copy_from_slice(&total.to_ne_bytes());
    frame[4..6].copy_from_slice(&kind.to_ne_bytes());
    frame[6..8].copy_from_slice(&flags.to_ne_bytes());
    body.emit(&mut frame[HEADER..]);
    frame
}
