//! Cuts a stream of bytes into frames, and puts a frame into bytes.
//!
//! Owns the framing: a `u32` length in little-endian order, then that many bytes of JSON. Leaves reading the JSON to
//! [`frame`](super::frame), and time, connections and the budget over all of them to `daemon::listen`.
//!
//! Upholds I-15.
//!
//! A length is a promise of the sender, not a reason to allocate: memory grows with the bytes that arrive (B28).

use std::io;

use serde::Serialize;

use super::{agent::AgentFrame, frame::Frame, limits::FRAME_MAX};

/// Bytes of the length in front of a body.
const HEADER: usize = 4;

/// A body was announced that is larger than [`FRAME_MAX`]. What follows on that connection has no meaning; close it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {length} bytes was announced; at most {FRAME_MAX} are accepted")]
pub struct Oversized {
    /// The announced length in bytes.
    pub length: u32,
}

/// A frame does not fit into [`FRAME_MAX`] bytes and was not encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the frame would be larger than the {FRAME_MAX} bytes that one may have")]
pub struct TooLarge;

/// Collects the bytes of one connection into bodies of frames.
#[derive(Debug, Default)]
pub struct FrameReader {
    header: [u8; HEADER],
    header_len: usize,
    body: Vec<u8>,
}

impl FrameReader {
    /// The body of the next frame, or `None` when all of `input` was taken and more bytes are needed.
    ///
    /// *Guarantees*: takes bytes off the front of `input` up to the end of that frame and not further, so the caller calls
    /// again until it gets `None`. Holds at most twice the bytes received of the unfinished frame.
    ///
    /// # Errors
    /// [`Oversized`] as soon as the length is known, before any of the body is kept; and again at every later call.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Vec<u8>>, Oversized> {
        let taken = take(input, HEADER - self.header_len);
        self.header[self.header_len..self.header_len + taken.len()].copy_from_slice(taken);
        self.header_len += taken.len();
        if self.header_len < HEADER {
            return Ok(None);
        }
        let length = u32::from_le_bytes(self.header);
        let Some(wanted) = usize::try_from(length).ok().filter(|wanted| *wanted <= FRAME_MAX) else {
            return Err(Oversized { length });
        };
        self.body.extend_from_slice(take(input, wanted - self.body.len()));
        if self.body.len() < wanted {
            return Ok(None);
        }
        self.header_len = 0;
        Ok(Some(std::mem::take(&mut self.body)))
    }

    /// True between the first byte of a frame and its last: the time in which
    /// [`FRAME_COMPLETE_WITHIN`](super::limits::FRAME_COMPLETE_WITHIN) runs.
    pub fn is_inside_a_frame(&self) -> bool {
        self.header_len > 0
    }

    /// Bytes of memory held for the unfinished frame; what a budget over all connections adds up.
    pub fn held(&self) -> usize {
        self.body.capacity()
    }
}

/// Takes up to `count` bytes off the front of `input`.
fn take<'a>(input: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(count.min(input.len()));
    *input = rest;
    taken
}

/// The frame as it goes onto the socket, length first.
///
/// # Errors
/// [`TooLarge`]; a server then answers that request with [`Response::Err`](super::Response::Err) instead.
pub fn encode(frame: &Frame) -> Result<Vec<u8>, TooLarge> {
    encode_json(frame)
}

/// As [`encode`], for a frame outside the contract.
///
/// # Errors
/// [`TooLarge`].
pub fn encode_agent(frame: &AgentFrame) -> Result<Vec<u8>, TooLarge> {
    encode_json(frame)
}

fn encode_json<T: Serialize>(frame: &T) -> Result<Vec<u8>, TooLarge> {
    let mut bounded = Bounded(vec![0; HEADER]);
    // Nothing but the bound can fail: the frames hold no maps with keys that are not text.
    serde_json::to_writer(&mut bounded, frame).map_err(|_| TooLarge)?;
    let mut bytes = bounded.0;
    let length = u32::try_from(bytes.len() - HEADER).map_err(|_| TooLarge)?;
    bytes[..HEADER].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// Refuses to grow beyond one frame, so that an answer that is too large is noticed before it is all in memory.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > HEADER + FRAME_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
