//! overlayd's own requests, on the same socket but outside the contract.
//!
//! Owns what `overlayd diff`, `overlayd status` and a forced resync ask of the running agent. Leaves the content of a report to
//! whoever writes it and whoever renders it: here it is any JSON.
//!
//! They are types of their own, and not further variants of [`Request`](super::Request) and [`Response`](super::Response),
//! because a client of the contract drops its connection at a response it cannot read. A client that never sends
//! one of these ops can never be sent an [`AgentResponse::Report`]: the answer goes only to the connection that asked.
//!
//! Upholds I-14 only as far as the writer of a report does: nothing is redacted here.
//!
//! The names begin with `overlayd_` so that no later version of the contract can claim them. They have no compatibility
//! promise: the command line and the agent are one binary.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::Protocol;

use super::{
    refusal::{self, Refusal},
    tags::tags,
};

/// A request of overlayd's own command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op")]
pub enum AgentRequest {
    /// What the next round would do, without doing it.
    #[serde(rename = "overlayd_diff")]
    Diff,
    /// The state of the agent itself: conditions, generations, pending work.
    #[serde(rename = "overlayd_status")]
    Status,
    /// Look at the whole machine again now, and answer when that round is over.
    #[serde(rename = "overlayd_resync")]
    Resync,
    /// Let a port of the host, which the kernel chooses, lead to a port of a container of a shared service.
    #[serde(rename = "overlayd_publish")]
    Publish { pid: u32, protocol: Protocol, port: u16 },
    #[serde(rename = "overlayd_unpublish")]
    Unpublish { pid: u32, protocol: Protocol, port: u16 },
}

tags!(AgentRequest,
    /// Every request outside the contract, as spelled on the wire.
    OPS,
    /// The request's name as spelled on the wire.
    op:
    Diff => "overlayd_diff",
    Status => "overlayd_status",
    Resync => "overlayd_resync",
    Publish => "overlayd_publish",
    Unpublish => "overlayd_unpublish",
);

/// The answer to an [`AgentRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result")]
pub enum AgentResponse {
    #[serde(rename = "overlayd_report")]
    Report { report: Value },
    /// The same bytes as the contract's `err`, so that an overlayd too old for the op is understood as well.
    #[serde(rename = "err")]
    Err { message: String },
}

tags!(AgentResponse,
    /// Every response outside the contract, as spelled on the wire.
    RESULTS,
    /// The response's name as spelled on the wire.
    result:
    Report => "overlayd_report",
    Err => "err",
);

/// A frame that carries one of the above; same envelope as [`Frame`](super::Frame).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "snake_case")]
pub enum AgentFrame {
    Request { id: u64, request: AgentRequest },
    Response { id: u64, response: AgentResponse },
}

/// Reads a body that a client of overlayd's own requests received.
///
/// # Errors
/// [`Refusal`] when it is neither a request nor a response of this module; an event of the contract is such a body.
pub fn decode_agent_frame(body: &[u8]) -> Result<AgentFrame, Refusal> {
    serde_json::from_slice(body).map_err(|_| refusal::of_frame::<AgentFrame>(body))
}
