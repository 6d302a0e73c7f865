//! The text protocol between the agent and a userspace WireGuard device, and the agent's side of it.
//!
//! Owns the typed form of a change ([`UapiChange`], [`SetRequest`]) and of a dump ([`DeviceState`]), their one way into text and back, and
//! [`UapiClient`]. Leaves serving the socket to [`device_process`](super::device_process), which uses the same two codecs.
//!
//! Upholds I-08 and A2 ([`changes_for`] never asks for a replacement; the flags exist because `wg` sends them), I-14, I-15 (every call has a time limit and a byte limit), B1, B27.
//!
//! A socket path belongs to a mount namespace and a device to a network namespace. Two agents can meet on one path, so the client asks
//! the kernel who serves the socket before it believes a word.

mod change;
mod client;
mod decode;
mod dump;
mod encode;
mod limits;
mod vocabulary;

pub use change::{AllowedIpChange, DeviceChange, PeerChange, PresharedKey, SecretChange, SetRequest, UapiChange};
pub use client::{CALL_LIMIT, UapiClient, UapiError};
pub use decode::{Request, decode_request};
pub use dump::{DeviceState, Dump, DumpPeer, PeerState, decode_dump, encode_dump};
pub use encode::encode_set;
pub use limits::{REPLY_MAX, REQUEST_MAX};
pub use vocabulary::changes_for;
