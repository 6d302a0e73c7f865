//! The IPC contract: what may be said on overlayd's socket, and how bytes become those words.
//!
//! Owns the shapes of frames, requests, responses and events, their JSON spelling, the framing and every limit of it.
//! Leaves meaning to [`daemon::admit`](crate::daemon): keys, CIDRs and endpoints stay text here and become
//! [identifiers](crate::ids) there. Knows nothing of the document, of sockets or of time.
//!
//! Upholds I-14 (credentials and private keys are [`SecretText`], and a refusal never repeats a value) and
//! I-15 (frame size, number of values and nesting are bounded by [`limits`]).
//!
//! The JSON is `zlayer-types` 0.13's to the byte, although no type here is named as there: the golden files in
//! `fixtures/wire/` were written by that crate. Renaming a field or a variant here breaks every node it is deployed to.

mod codec;
mod event;
mod nat;
mod overlay;
mod refusal;
mod request;
mod response;
mod tags;

pub mod agent;
pub mod frame;
pub mod limits;

pub use crate::secret::SecretText;
pub use agent::{AgentFrame, AgentRequest, AgentResponse, decode_agent_frame};
pub use codec::{FrameReader, Oversized, TooLarge, encode, encode_agent};
pub use event::Event;
pub use frame::{Decoded, Frame, decode_frame, decode_request};
pub use nat::{NatCandidate, NatConfig, NatPeer, NatStatus, RelayServer, TurnServer};
pub use overlay::{OverlayConfig, OverlayMode, PeerScope, PeerSpec};
pub use refusal::Refusal;
pub use request::{AttachHandle, Request};
pub use response::{
    AttachResult, DedicatedServiceStatus, GuestConfig, PeerStatus, Response, ServiceOverlay, StatusSnapshot,
};
