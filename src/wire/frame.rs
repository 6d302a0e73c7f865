//! One message of the socket, and what a server makes of bytes that may or may not be one.
//!
//! Owns the envelope and the decision *answer, refuse or hang up* of a body. Leaves the cutting of the stream to
//! [`FrameReader`](super::FrameReader), and the words of a refusal to `refusal`.
//!
//! Upholds I-15: values and nesting are counted before anything is built from them.
//!
//! A body that is read at the first try, nearly every one, is parsed once. The slow path below is walked by mistakes only,
//! and asks one small question at a time: each `…Only` type skips everything else without keeping it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::Value;

use super::{
    agent::{AgentFrame, AgentRequest},
    event::Event,
    limits::{NESTING_MAX, PROTOCOL_VERSION, VALUES_MAX},
    refusal::{self, Refusal, shown},
    request::Request,
    response::Response,
};

/// A message of the contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "snake_case")]
pub enum Frame {
    /// Client to overlayd. The client chooses `id`; any number is as good as any other.
    Request { id: u64, request: Request },
    /// overlayd to client, with the `id` of the request it answers.
    Response { id: u64, response: Response },
    /// overlayd to client, at any time.
    Event(Event),
}

/// What a server does with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "it lives for one dispatch, and nearly always holds the large variant")]
pub enum Decoded {
    /// Do it and answer.
    Request { id: u64, request: Request },
    /// One of overlayd's own requests: do it and answer with an [`AgentResponse`](super::AgentResponse).
    Agent { id: u64, request: AgentRequest },
    /// JSON, but no request that is spoken here. Answer [`Response::Err`] with the message when there is an `id`; without
    /// one there is nothing to answer to. The connection stays.
    NotUnderstood { id: Option<u64>, message: String },
    /// No JSON at all: both ends may have lost count of the bytes. Close the connection.
    NotJson,
}

/// Reads a body that a server received.
///
/// *Guarantees*: total, whatever the bytes are; uses memory in proportion to the body; a message repeats no value of the
/// body but the names of ops, frames and variants, cut short. Unknown fields are ignored.
pub fn decode_request(body: &[u8]) -> Decoded {
    let Measure { values, nesting } = Measure::of(body);
    let within_bounds = values <= VALUES_MAX && nesting <= NESTING_MAX;
    if within_bounds && let Ok(Frame::Request { id, request }) = serde_json::from_slice(body) {
        return Decoded::Request { id, request };
    }
    if !is_json(body) {
        return Decoded::NotJson;
    }
    let id = read::<IdOnly>(body).map(|head| head.id);
    let not_understood = |message| Decoded::NotUnderstood { id, message };
    if values > VALUES_MAX {
        return not_understood(format!("the frame holds more than {VALUES_MAX} JSON values"));
    }
    if nesting > NESTING_MAX {
        return not_understood(format!("the frame is nested deeper than {NESTING_MAX} levels"));
    }
    if let Err(message) = is_request(body) {
        return not_understood(message);
    }
    if id.is_none() {
        return not_understood("field \"id\" must be given once, as a whole number from 0 to 2^64 - 1".into());
    }
    let Some(op) = read::<OpOnly>(body).map(|head| head.request.op) else {
        return not_understood("field \"request\" must be an object whose field \"op\" is text".into());
    };
    if Request::OPS.contains(&op.as_str()) {
        return not_understood(why_not::<Request>(&op, body));
    }
    if !AgentRequest::OPS.contains(&op.as_str()) {
        let op = shown(&op);
        return not_understood(format!("unknown op {op}: this overlayd speaks protocol {PROTOCOL_VERSION}"));
    }
    match serde_json::from_slice(body) {
        Ok(AgentFrame::Request { id, request }) => Decoded::Agent { id, request },
        Ok(AgentFrame::Response { .. }) | Err(_) => not_understood(why_not::<AgentRequest>(&op, body)),
    }
}

/// Reads a body that a client received.
///
/// # Errors
/// [`Refusal`] when it is no frame of the contract, with the reason.
pub fn decode_frame(body: &[u8]) -> Result<Frame, Refusal> {
    serde_json::from_slice(body).map_err(|_| refusal::of_frame::<Frame>(body))
}

/// How much there is to build from a body, counted without building it.
struct Measure {
    values: usize,
    nesting: usize,
}

impl Measure {
    /// Exact for JSON but for empty objects and arrays, which count one value too many; some number for anything else.
    fn of(body: &[u8]) -> Self {
        let (mut values, mut nesting, mut depth) = (1_usize, 0_usize, 0_usize);
        let (mut in_text, mut escaped) = (false, false);
        for byte in body {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_text => escaped = true,
                b'"' => in_text = !in_text,
                _ if in_text => {}
                b'{' | b'[' => {
                    values += 1;
                    depth += 1;
                    nesting = nesting.max(depth);
                }
                b'}' | b']' => depth = depth.saturating_sub(1),
                b',' => values += 1,
                _ => {}
            }
        }
        Self { values, nesting }
    }
}

fn is_json(body: &[u8]) -> bool {
    // Text that is skipped is not checked for UTF-8 by the parser, so it is checked here.
    std::str::from_utf8(body).is_ok() && read::<IgnoredAny>(body).is_some()
}

fn is_request(body: &[u8]) -> Result<(), String> {
    match read::<KindOnly<'_>>(body).map(|head| head.frame).as_deref() {
        Some("request") => Ok(()),
        Some(kind @ ("response" | "event")) => {
            Err(format!("a frame of kind {kind:?} was sent to overlayd, which takes requests only"))
        }
        Some(other) => Err(format!("unknown frame {}: overlayd takes requests only", shown(other))),
        None => Err("a frame must be an object whose field \"frame\" is text".into()),
    }
}

/// Why the request in `body`, which has the known name `op`, was not decoded as a `T`.
fn why_not<T: for<'a> Deserialize<'a>>(op: &str, body: &[u8]) -> String {
    let reason = match read::<RequestOnly>(body) {
        Some(head) => refusal::of_object::<T>("op", &head.request),
        None => Refusal::unreadable(),
    };
    format!("{op}: {reason}")
}

/// `None` when a field is missing, is given twice or has another type, and when `body` is not JSON.
fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<T> {
    serde_json::from_slice(body).ok()
}

#[derive(Deserialize)]
struct IdOnly {
    id: u64,
}

#[derive(Deserialize)]
struct KindOnly<'a> {
    #[serde(borrow)]
    frame: Cow<'a, str>,
}

#[derive(Deserialize)]
struct OpOnly {
    request: OpField,
}

#[derive(Deserialize)]
struct OpField {
    op: String,
}

#[derive(Deserialize)]
struct RequestOnly {
    request: Value,
}
