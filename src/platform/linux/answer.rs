//! What came back for a netlink request: known to be whole, or known not to be.
//!
//! Owns splitting datagrams into messages and what "the dump ended" means. Leaves the meaning of messages to the parsers it is given.
//!
//! Upholds I-05 (an interrupted dump, or a message that cannot be read, is told and never hidden).
//!
//! A message that a parser refuses must not simply be skipped: the object in it would look deleted. That is why answers are
//! collected here and not by a netlink actor, which logs such a message and goes on.

use netlink_packet_core::{NLM_F_DUMP_INTR, NlasIterator};
use nix::errno::Errno;

use super::errno::Fault;

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
pub(super) struct Collector<T, P> {
    sequence: u32,
    parse: P,
    pub(super) items: Vec<T>,
    pub(super) interrupted: bool,
    unreadable: usize,
}

impl<T, P: Fn(u16, &[u8]) -> Option<T>> Collector<T, P> {
    pub(super) fn new(sequence: u32, parse: P) -> Self {
        Self { sequence, parse, items: Vec::new(), interrupted: false, unreadable: 0 }
    }

    /// Takes a datagram in; true when the answer has ended.
    pub(super) fn feed(&mut self, datagram: &[u8]) -> Result<bool, Fault> {
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

    pub(super) fn finish(self) -> Dump<T> {
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
    // The lowest number has no positive form; it is no errno either.
    Err(Fault::Refused(Errno::from_raw(code.saturating_neg()), kernel_words(message)))
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
        .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;
    use crate::platform::linux::socket::frame;

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
        let (done, dump) =
            collect(&[message(16, 2, 7, &[1, 0, 0, 0]), message(NLMSG_DONE, 2 | NLM_F_DUMP_INTR, 7, &[0; 4])]);
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
    fn an_errno_that_has_no_positive_form_is_a_refusal_like_others() {
        let mut collector = Collector::new(7, |_, _: &[u8]| Some(()));
        let fault = collector.feed(&message(NLMSG_ERROR, 0, 7, &i32::MIN.to_ne_bytes())).unwrap_err();
        assert_eq!(fault.errno(), Some(Errno::UnknownErrno));
    }

    #[test]
    fn a_dump_can_end_with_an_error() {
        let code = (-libc::ENOENT).to_ne_bytes();
        let mut collector = Collector::new(7, |_, _: &[u8]| Some(()));
        let fault = collector.feed(&message(NLMSG_DONE, 2, 7, &code)).unwrap_err();
        assert_eq!(fault.errno(), Some(Errno::ENOENT));
    }
}
