//! Netlink messages to nf_tables as bytes: attributes, requests and batches.
//!
//! Owns the numbers of `linux/netfilter/nfnetlink.h` and `nf_tables.h` that messages are made of, and the frame of a transaction. Leaves
//! sending to [`socket`](super::super::socket).
//!
//! Upholds I-15 (elements travel in attributes that stay below their 64 KiB).
//!
//! Every message of a batch carries the sequence number of the request: the kernel answers with the first thing that is wrong, or with one
//! acknowledgement for the last message, which alone asks for it.

use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST};

use super::super::answer::HEADER;

/// Number of the nf_tables subsystem (linux/netfilter/nfnetlink.h).
pub(super) const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const BATCH_GENERATION: u16 = 1;
/// Marks an attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// `struct nfgenmsg`.
pub(in crate::platform::linux) const GENERIC: usize = 4;

/// Numbers of `enum nf_tables_msg_types`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    NewTable = 0,
    GetTable = 1,
    DeleteTable = 2,
    NewChain = 3,
    GetChain = 4,
    DeleteChain = 5,
    NewRule = 6,
    GetRule = 7,
    DeleteRule = 8,
    NewSet = 9,
    GetSet = 10,
    DeleteSet = 11,
    NewElements = 12,
    GetElements = 13,
    DeleteElements = 14,
    GetGeneration = 16,
}

impl Verb {
    pub(super) fn kind(self) -> u16 {
        (SUBSYSTEM << 8) | self as u16
    }
}

/// Attributes, one after the other. Numbers of nf_tables travel in network byte order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::platform::linux) struct Attributes(Vec<u8>);

impl Attributes {
    pub(in crate::platform::linux) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length =
            u16::try_from(value.len() + 4).unwrap_or_else(|_| unreachable!("attributes are made below 64 KiB"));
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A string with the zero at its end.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(in crate::platform::linux) fn nest(self, kind: u16, inner: &Attributes) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// The attributes of both.
    pub(super) fn join(mut self, other: &Attributes) -> Self {
        self.0.extend(&other.0);
        self
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(in crate::platform::linux) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The body of one message: `struct nfgenmsg` and attributes.
pub(in crate::platform::linux) struct Body(Vec<u8>);

impl Body {
    pub(in crate::platform::linux) fn new(family: u8, attributes: &Attributes) -> Self {
        Self::with_resource(family, 0, attributes)
    }

    fn with_resource(family: u8, resource: u16, attributes: &Attributes) -> Self {
        let mut bytes = vec![family, 0];
        bytes.extend(resource.to_be_bytes());
        bytes.extend(&attributes.0);
        Self(bytes)
    }
}

impl Emitable for Body {
    fn buffer_len(&self) -> usize {
        self.0.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.0);
    }
}

/// A transaction: all of it takes effect in one instant, or nothing does.
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
    empty: bool,
}

impl Batch {
    /// `generation`: refuse with `ERESTART` when the rulesets are of another generation by then.
    pub(super) fn new(generation: Option<u32>) -> Self {
        let mut batch = Self { bytes: Vec::new(), last: 0, empty: true };
        let attributes =
            generation.map_or_else(Attributes::default, |value| Attributes::default().number(BATCH_GENERATION, value));
        batch.message(BATCH_BEGIN, NLM_F_REQUEST, &Body::with_resource(0, SUBSYSTEM, &attributes));
        batch.empty = true;
        batch
    }

    pub(super) fn push(&mut self, verb: Verb, flags: u16, family: u8, attributes: &Attributes) {
        self.message(verb.kind(), NLM_F_REQUEST | flags, &Body::new(family, attributes));
    }

    pub(super) fn create(&mut self, verb: Verb, family: u8, attributes: &Attributes) {
        self.push(verb, NLM_F_CREATE, family, attributes);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.empty
    }

    /// The transaction as a request that asks for one answer.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let flags = self.last + 6;
        let wanted = u16::from_ne_bytes([self.bytes[flags], self.bytes[flags + 1]]) | NLM_F_ACK;
        self.bytes[flags..flags + 2].copy_from_slice(&wanted.to_ne_bytes());
        self.message(BATCH_END, NLM_F_REQUEST, &Body::with_resource(0, SUBSYSTEM, &Attributes::default()));
        self.bytes
    }

    fn message(&mut self, kind: u16, flags: u16, body: &Body) {
        self.last = self.bytes.len();
        self.empty = false;
        let total =
            u32::try_from(HEADER + body.0.len()).unwrap_or_else(|_| unreachable!("one message is below 64 KiB"));
        self.bytes.extend(total.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        // Sequence and port: filled in when it is sent, and by the kernel.
        self.bytes.extend([0; 8]);
        self.bytes.extend(&body.0);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
