//! One netlink socket: requests with an answer that is known to be whole, or known not to be.
//!
//! Owns sequence numbers, time limits, and what "the dump ended" means. Leaves the meaning of messages to its callers.
//!
//! Upholds I-05 (an interrupted dump, or a message that cannot be read, is told and never hidden), I-14 (bytes are wiped after
//! WireGuard traffic), I-15 (every request has a limit; the receive buffer has a fixed size).
//!
//! A message that a parser refuses must not simply be skipped: the object in it would look deleted. That is why the answers are
//! collected here and not by a netlink actor that logs such a message and goes on.

use std::{
    io::{self, ErrorKind},
    time::Duration,
};

use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NlasIterator};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use tokio::{io::unix::AsyncFd, time::timeout};
use zeroize::Zeroizing;

use super::errno::Fault;

/// Longest wait for one request: many times what a loaded kernel needs, short enough for a status request to survive it.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Larger than any datagram the kernel makes for a dump (32 KiB since Linux 4.9).
const RECEIVE_BYTES: usize = 64 * 1024;
/// Tries of a dump that the kernel says was interrupted by a change; after that it is reported as partial.
const DUMP_TRIES: usize = 3;

/// `nlmsghdr` in bytes (linux/netlink.h).
pub(super) const HEADER: usize = 16;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_CAPPED` and `NLM_F_ACK_TLVS` of an acknowledgement (linux/netlink.h).
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// What a dump brought.
#[derive(Debug)]
pub(super) struct Dump<T> {
    pub(super) items: Vec<T>,
    /// Why it may be incomplete; `None`: it is whole.
    pub(super) cut: Option<String>,
}

/// A netlink message, split.
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// Port of the socket whose request caused the message; 0 for the kernel itself.
    pub(super) port: u32,
    pub(super) body: &'a [u8],
}

/// The messages of one datagram. Ends at the first one whose length is not possible.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32_at(rest, 0)? as usize;
        if length < HEADER || length > rest.len() {
            return None;
        }
        let message = Message {
            kind: u16_at(rest, 4)?,
            flags: u16_at(rest, 6)?,
            sequence: u32_at(rest, 8)?,
            port: u32_at(rest, 12)?,
            body: &rest[HEADER..length],
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Collects the answer to one request, datagram by datagram.
struct Collector<T, P> {
    sequence: u32,
    parse: P,
    items: Vec<T>,
    interrupted: bool,
    unreadable: usize,
}

impl<T, P: Fn(u16, &[u8]) -> Option<T>> Collector<T, P> {
    fn new(sequence: u32, parse: P) -> Self {
        Self {
            sequence,
            parse,
            items: Vec::new(),
            interrupted: false,
            unreadable: 0,
        }
    }

    /// Takes a datagram in; true when the answer has ended.
    fn feed(&mut self, datagram: &[u8]) -> Result<bool, Fault> {
        for message in messages(datagram) {
            if message.sequence != self.sequence {
                // A late answer to a request that was given up.
                continue;
            }
            self.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.kind {
                NLMSG_NOOP => {}
                NLMSG_ERROR | NLMSG_DONE => return ended(&message).map(|()| true),
                kind => match (self.parse)(kind, message.body) {
                    Some(item) => self.items.push(item),
                    None => self.unreadable += 1,
                },
            }
        }
        Ok(false)
    }

    fn finish(self) -> Dump<T> {
        let cut = if self.interrupted {
            Some("changed while it was dumped".to_owned())
        } else if self.unreadable > 0 {
            Some(format!("{} messages of the dump could not be read", self.unreadable))
        } else {
            None
        };
        Dump { items: self.items, cut }
    }
}

/// Reads an `NLMSG_ERROR` or `NLMSG_DONE`: both begin with a negative errno or zero.
fn ended(message: &Message<'_>) -> Result<(), Fault> {
    let code = u32_at(message.body, 0).unwrap_or(0).cast_signed();
    if code >= 0 {
        return Ok(());
    }
    Err(Fault::Refused(Errno::from_raw(-code), kernel_words(message)))
}

/// The text of an extended acknowledgement, or nothing.
fn kernel_words(message: &Message<'_>) -> String {
    if message.kind != NLMSG_ERROR || message.flags & NLM_F_ACK_TLVS == 0 {
        return String::new();
    }
    // After the code comes the header of the request; with NETLINK_CAP_ACK nothing of its body.
    let attributes = message.body.get(4 + HEADER..).unwrap_or_default();
    NlasIterator::new(attributes)
        .flatten()
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|attribute| {
            String::from_utf8_lossy(attribute.value())
                .trim_end_matches('\0')
                .to_owned()
        })
        .unwrap_or_default()
}

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
        let mut channel = Self {
            protocol,
            socket: None,
            port: 0,
            sequence: 0,
            buffer: Zeroizing::new(vec![0; RECEIVE_BYTES]),
        };
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
        frame[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
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
        let Some(socket) = &self.socket else {
            unreachable!("socket() opened it")
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Raw<'a>(&'a [u8]);

    impl Emitable for Raw<'_> {
        fn buffer_len(&self) -> usize {
            self.0.len()
        }

        fn emit(&self, buffer: &mut [u8]) {
            buffer.copy_from_slice(self.0);
        }
    }

    fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = frame(kind, flags, &Raw(body)).to_vec();
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }

    fn collect(datagrams: &[Vec<u8>]) -> (bool, Dump<u8>) {
        let mut collector = Collector::new(7, |_, body: &[u8]| body.first().copied().filter(|byte| *byte != 0xff));
        let done = datagrams.iter().any(|datagram| collector.feed(datagram).unwrap());
        (done, collector.finish())
    }

    #[test]
    fn a_dump_that_ended_is_whole() {
        let mut datagram = message(16, 2, 7, &[1, 0, 0, 0]);
        datagram.extend(message(16, 2, 7, &[2, 0, 0, 0]));
        let (done, dump) = collect(&[datagram, message(NLMSG_DONE, 2, 7, &[0; 4])]);
        assert!(done);
        assert_eq!((dump.items, dump.cut), (vec![1, 2], None));
    }

    #[test]
    fn an_interrupted_dump_is_cut_also_when_only_its_last_message_says_so() {
        let (done, dump) = collect(&[
            message(16, 2, 7, &[1, 0, 0, 0]),
            message(NLMSG_DONE, 2 | NLM_F_DUMP_INTR, 7, &[0; 4]),
        ]);
        assert!(done);
        assert!(dump.cut.is_some());
    }

    #[test]
    fn a_message_that_cannot_be_read_makes_the_dump_partial() {
        let (_, dump) = collect(&[message(16, 2, 7, &[0xff, 0, 0, 0]), message(NLMSG_DONE, 2, 7, &[0; 4])]);
        assert!(dump.cut.is_some());
    }

    #[test]
    fn a_dump_without_its_end_is_not_done_and_late_answers_are_not_taken() {
        let (done, dump) = collect(&[message(16, 2, 6, &[1, 0, 0, 0]), message(NLMSG_DONE, 2, 6, &[0; 4])]);
        assert!(!done);
        assert!(dump.items.is_empty());
    }

    #[test]
    fn a_dump_can_end_with_an_error() {
        let code = (-libc::ENOENT).to_ne_bytes();
        let mut collector = Collector::new(7, |_, _: &[u8]| Some(()));
        let fault = collector.feed(&message(NLMSG_DONE, 2, 7, &code)).unwrap_err();
        assert_eq!(fault.errno(), Some(Errno::ENOENT));
    }
}
