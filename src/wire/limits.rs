//! Every bound of the socket, in one place.
//!
//! Owns the numbers. Leaves applying them to [`FrameReader`](super::FrameReader) and [`decode_request`](super::decode_request)
//! (sizes) and to `daemon::listen` (time and counts).
//!
//! Upholds I-15.
//!
//! [`FRAME_MAX`] bounds the body alone: the four bytes of length in front of it are not counted.

use std::time::Duration;

/// Version of the contract that is spoken here. The wire does not carry it; it is named in refusals and in `docs/WIRE.md`.
pub const PROTOCOL_VERSION: u32 = 1;

/// Largest body of a frame in bytes, both ways (8 MiB): what the existing daemon and its clients accept.
pub const FRAME_MAX: usize = 8 * 1024 * 1024;

/// Longest time from the first byte of a frame to its last; a slower connection is closed.
pub const FRAME_COMPLETE_WITHIN: Duration = Duration::from_secs(10);

/// Connections served at a time, unless configured otherwise; idle ones beyond it are closed.
pub const CONNECTIONS_MAX: usize = 256;

/// Events kept for a connection that does not read; further ones are dropped and counted.
pub const EVENT_QUEUE: usize = 256;

/// Most JSON values in one request. Decoding buffers about 32 bytes for a value and as many for its name, so a request costs a
/// small multiple of its size at most; without this bound `[0,0,…]` would cost sixteen times [`FRAME_MAX`] and more.
pub const VALUES_MAX: usize = FRAME_MAX / 32;

/// Deepest nesting of objects and arrays in a request; the contract itself needs five levels.
pub const NESTING_MAX: usize = 64;
