//! What must hold whatever bytes a client sends: framing, decoding, admission and the edits that come of it.
//!
//! Owns these claims for the fuzz target `frame` and for the tests that replay its corpus. Nothing that ships contains this file.
//!
//! Upholds I-14 and I-15 by trying to break them: a claim that does not hold is a panic.
//!
//! The bytes are a stream of frames. What stands behind the first length is also read as a body, because a mutation seldom keeps a length
//! right.

use std::{collections::BTreeMap, sync::LazyLock};

use serde_json::Value;

use super::admit::{Admitted, Handle, admit};
use crate::{
    clock::UnixTime,
    desired::{Context, Document, Edit, Mutation, Policy, Record, RecordKey, Subject, consider, store::Contents},
    ids::Netns,
    object::KeyPair,
    secret::PrivateKey,
    wire::{
        AgentFrame, AgentResponse, Decoded, Frame, FrameReader, Oversized, Request, decode_agent_frame, decode_frame,
        decode_request, encode, encode_agent,
        limits::{FRAME_MAX, NESTING_MAX},
    },
};

/// Bytes of the length in front of a body.
const HEADER: usize = 4;
/// Longest answer to a request that is not understood: the names of all ops and two names of the sender's, each cut short.
const MESSAGE_MAX: usize = 4096;

/// Reads a stream as a connection would, and everything in it as far as an edit of the document.
pub fn frame(stream: &[u8]) {
    let (bodies, end) = cut(stream, stream.len().max(1));
    let in_pieces = cut(stream, stream.len() % 7 + 1);
    assert!((&bodies, end) == (&in_pieces.0, in_pieces.1), "what is in a stream depends on how it arrives");
    for body in &bodies {
        read(body);
    }
    if let Some(body) = stream.get(HEADER..).filter(|body| !bodies.iter().any(|known| known == body)) {
        read(body);
    }
}

/// The bodies in a stream that arrives in pieces of this size, and what ended it.
fn cut(stream: &[u8], size: usize) -> (Vec<Vec<u8>>, Option<Oversized>) {
    let (mut reader, mut bodies) = (FrameReader::default(), Vec::new());
    for piece in stream.chunks(size) {
        let mut rest = piece;
        loop {
            match reader.feed(&mut rest) {
                Ok(Some(body)) => bodies.push(body),
                Ok(None) => break,
                Err(oversized) => {
                    assert!(oversized.length as usize > FRAME_MAX && reader.held() == 0, "{oversized}");
                    assert!(reader.feed(&mut rest) == Err(oversized), "a stream without meaning goes on");
                    return (bodies, Some(oversized));
                }
            }
        }
        assert!(rest.is_empty(), "bytes were left over");
        // A vector begins with eight bytes and doubles.
        assert!(reader.held() <= 2 * stream.len() + 8, "{} bytes are held of {}", reader.held(), stream.len());
    }
    (bodies, None)
}

fn read(body: &[u8]) {
    match decode_request(body) {
        Decoded::Request { id, request } => {
            assert!(depth(body) <= NESTING_MAX, "a request is nested too deep and was read");
            check_frame(&Frame::Request { id, request: request.clone() });
            check_admission(&request);
        }
        Decoded::Agent { id, request } => {
            assert!(depth(body) <= NESTING_MAX, "a request is nested too deep and was read");
            check_agent_frame(&AgentFrame::Request { id, request });
        }
        Decoded::NotUnderstood { id: _, message } => check_words(&message),
        Decoded::NotJson => {
            assert!(serde_json::from_slice::<Value>(body).is_err(), "JSON was taken for something else")
        }
    }
    match decode_frame(body) {
        Ok(frame) => check_frame(&frame),
        Err(refusal) => check_words(&refusal.to_string()),
    }
    match decode_agent_frame(body) {
        Ok(frame) => check_agent_frame(&frame),
        Err(refusal) => check_words(&refusal.to_string()),
    }
}

/// What is told to a client is one line of bounded length.
fn check_words(message: &str) {
    assert!(message.len() <= MESSAGE_MAX, "{} bytes of answer: {message}", message.len());
    assert!(!message.chars().any(char::is_control), "an answer with control characters: {message:?}");
}

fn check_frame(frame: &Frame) {
    let bytes = encode(frame).unwrap_or_else(|error| unreachable!("what came in one frame goes into one: {error}"));
    let body = only_body(&bytes);
    assert!(decode_frame(&body).as_ref() == Ok(frame), "a frame is read back as another: {frame:?}");
    if let Frame::Request { id, request } = frame {
        let again = Decoded::Request { id: *id, request: request.clone() };
        assert!(decode_request(&body) == again, "a request is read back as another: {request:?}");
    }
}

fn check_agent_frame(frame: &AgentFrame) {
    let bytes =
        encode_agent(frame).unwrap_or_else(|error| unreachable!("what came in one frame goes into one: {error}"));
    // A report is any JSON, and a fraction may be read back as its neighbour.
    let is_exact = match frame {
        AgentFrame::Response { response: AgentResponse::Report { report }, .. } => !has_fraction(report),
        AgentFrame::Response { response: AgentResponse::Err { .. }, .. } | AgentFrame::Request { .. } => true,
    };
    let again = decode_agent_frame(&only_body(&bytes));
    assert!(again.is_ok() && (!is_exact || again.as_ref() == Ok(frame)), "a frame is read back as another: {frame:?}");
}

fn only_body(bytes: &[u8]) -> Vec<u8> {
    let (mut bodies, end) = cut(bytes, bytes.len());
    assert!(bodies.len() == 1 && end.is_none(), "one frame was encoded as {} and {end:?}", bodies.len());
    bodies.remove(0)
}

fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(items) => items.iter().any(has_fraction),
        Value::Object(fields) => fields.values().any(has_fraction),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}

/// Levels of objects and arrays in JSON.
fn depth(body: &[u8]) -> usize {
    fn of(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(of).max().unwrap_or(0),
            Value::Object(fields) => 1 + fields.values().map(of).max().unwrap_or(0),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
        }
    }
    serde_json::from_slice(body).map_or(0, |value| of(&value))
}

fn check_admission(request: &Request) {
    let admitted = match admit(request, None) {
        Err(reason) => return check_words(&reason),
        Ok(admitted) => admitted,
    };
    let Some(edit) = edit_of(admitted, [1, 2]) else { return };
    for node in [&*BARE, &*FURNISHED] {
        node.check(&edit);
    }
}

/// The edit that a request asks for, if it asks for one; a segment and a guest get these new keys.
fn edit_of(admitted: Admitted, [of_segment, of_guest]: [u8; 2]) -> Option<Edit> {
    Some(match admitted {
        Admitted::Nothing | Admitted::Status | Admitted::NatStatus | Admitted::Shutdown => return None,
        Admitted::Edit(edit) => edit,
        Admitted::Segment(asked) => asked.edit(key(of_segment)),
        Admitted::Attach(asked) => {
            let subject = match asked.handle.clone() {
                Handle::Process(pid) => Subject::Container(netns(pid.number())),
                Handle::Guest(id) => Subject::Guest { id, fresh: key(of_guest) },
                Handle::HostShared(id) => Subject::HostShared(id),
            };
            asked.edit(subject)
        }
    })
}

fn key(number: u8) -> KeyPair {
    KeyPair::from_private(PrivateKey::from_random_bytes([number; 32]))
}

fn netns(pid: u32) -> Netns {
    Netns { pid, start_time: 7, boot_id: "0a1b".into(), device: 4, inode: 4_026_532_000 }
}

/// A document, and what of it would be on a disk.
#[derive(Clone, Default)]
struct Node {
    document: Document,
    records: BTreeMap<String, Vec<u8>>,
}

/// A node that was just made.
static BARE: LazyLock<Node> = LazyLock::new(|| {
    let mut node = Node::default();
    node.take(&[Mutation { key: RecordKey::NodeKey, record: Some(Record::NodeKey(key(3))) }]);
    node
});

/// A node with something of everything.
static FURNISHED: LazyLock<Node> = LazyLock::new(|| {
    const REQUESTS: [&str; 9] = [
        r#"{"op":"set_local_node_id","node_id":7}"#,
        r#"{"op":"setup_global_overlay","deployment":"prod","instance_id":"0","cluster_cidr":"10.200.0.0/16,fd00:200::/48","slice_cidr":"10.200.3.0/26,fd00:200:0:3::/64","wg_port":51820,"host_adapter_mandatory":false,"nat":null}"#,
        r#"{"op":"add_peer","public_key":"DFG/qOzWcxRqvXAbWHnBsQ9WmdyWoDbNLlSFJF8hW2s=","endpoint":"192.0.2.2:51820","allowed_ips":"10.200.4.0/26","persistent_keepalive_secs":25,"scope":{"scope":"global"}}"#,
        r#"{"op":"setup_service_overlay","service":"web","mode":"dedicated"}"#,
        r#"{"op":"setup_service_overlay","service":"sh","mode":"shared"}"#,
        r#"{"op":"attach_container","handle":{"platform":"linux_pid","pid":4711},"service":"web","join_global":true,"ephemeral":true,"isolation_network":"red","dns_server":null,"dns_domain":null}"#,
        r#"{"op":"attach_container","handle":{"platform":"guest_managed","id":"vm-7"},"service":"web","join_global":false,"ephemeral":true,"isolation_network":null,"dns_server":null,"dns_domain":"a.example"}"#,
        r#"{"op":"allocate_ip","service":"web","join_global":false}"#,
        r#"{"op":"register_dns","name":"a.example","ip":"10.200.3.1"}"#,
    ];
    let mut node = BARE.clone();
    for request in REQUESTS {
        let request: Request = serde_json::from_str(request)
            .unwrap_or_else(|error| unreachable!("a request of the furniture cannot be read: {error}: {request}"));
        let Some(edit) = admit(&request, None).ok().and_then(|admitted| edit_of(admitted, [4, 5])) else {
            unreachable!("a request of the furniture is no edit: {request:?}")
        };
        match consider(&node.document, &edit, &node.context()) {
            Ok(change) => node.take(&change.mutations),
            Err(refusal) => unreachable!("the furniture was refused: {refusal}: {edit:?}"),
        }
    }
    node
});

impl Node {
    fn context(&self) -> Context<'static> {
        static POLICY: LazyLock<Policy> = LazyLock::new(Policy::default);
        Context { next: self.document.generation() + 1, now: UnixTime(1_000_000), policy: &POLICY }
    }

    fn take(&mut self, mutations: &[Mutation]) {
        self.document.absorb(self.document.generation() + 1, mutations);
        for Mutation { key, record } in mutations {
            match record {
                Some(record) => drop(self.records.insert(key.to_string(), record.encode())),
                None => drop(self.records.remove(&key.to_string())),
            }
        }
    }

    /// Considers the edit; what it changes survives the disk, can be undone, and changes nothing the second time.
    fn check(&self, edit: &Edit) {
        let change = match consider(&self.document, edit, &self.context()) {
            Ok(change) => change,
            Err(refusal) => return check_words(&refusal.to_string()),
        };
        assert!(!change.summary.chars().any(char::is_control), "a log line breaks: {:?}", change.summary);
        if change.mutations.is_empty() {
            return;
        }
        let undo = self.document.inverse(&change.mutations);
        let mut after = self.clone();
        after.take(&change.mutations);
        let kept = Contents { generation: after.document.generation(), records: after.records.clone(), settled: 0 };
        match Document::from_contents(&kept) {
            Ok(loaded) => assert!(loaded == after.document, "a start finds another document after {edit:?}"),
            Err(bad) => unreachable!("an edit wrote what a start cannot read: {bad}: {edit:?}"),
        }
        let mut back = after.document.clone();
        back.absorb(self.document.generation(), &undo);
        assert!(back == self.document, "it cannot be undone: {edit:?}");
        if !is_new_each_time(edit) {
            match consider(&after.document, edit, &after.context()) {
                Ok(again) => assert!(again.mutations.is_empty(), "the second time changes something: {edit:?}"),
                Err(refusal) => unreachable!("the second time is refused: {refusal}: {edit:?}"),
            }
        }
    }
}

/// Every call hands out another address.
fn is_new_each_time(edit: &Edit) -> bool {
    matches!(edit, Edit::AllocateAddress(_))
}

/// What the node with something of everything has on its disk.
#[cfg(test)]
pub(crate) fn furnished() -> Contents {
    Contents { generation: FURNISHED.document.generation(), records: FURNISHED.records.clone(), settled: 1 }
}
