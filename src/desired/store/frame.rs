//! The bytes of the journal: segment headers and frames, there and back.
//!
//! Owns encoding and decoding of one piece. Leaves what a bad piece means to [`scan`](super::scan).
//!
//! Upholds I-01: a commit is one frame with one checksum, so a group of entries is there whole or not at all.
//!
//! Everything starts at a multiple of 32, so a header never lies across two disk sectors: after a power cut it is whole or absent.
//! Padding is `0xA5`, not zero, because a run of zeros is how a sector that was never written looks.

use super::port::{Entry, GENERATION_MAX, StoreError, Write};
use crate::clock::UnixTime;

pub(super) const ALIGN: usize = 32;
/// The largest body. Far above any edit; below it a damaged length cannot ask for all memory (I-15).
pub(super) const MAX_BODY: usize = 64 << 20;
pub(super) const PAD: u8 = 0xA5;
pub(super) const SEGMENT_MAGIC: &[u8; 8] = b"OVLJRNL1";
pub(super) const FRAME_MAGIC: &[u8; 4] = b"OVLF";

/// How a segment joins what was written before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joins {
    /// Its first entry follows the last one of the segment before.
    Previous,
    /// There were no records before it: its entries alone rebuild the document.
    Nothing,
    /// The journal had lost its end and the checkpoint had not: a gap before it is known and harmless.
    Checkpoint,
}

/// The first 32 bytes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub first: u64,
    pub joins: Joins,
}

impl SegmentHeader {
    pub(super) fn encode(self) -> [u8; ALIGN] {
        let mut bytes = [0u8; ALIGN];
        bytes[..8].copy_from_slice(SEGMENT_MAGIC);
        bytes[8..16].copy_from_slice(&self.first.to_le_bytes());
        bytes[16] = match self.joins {
            Joins::Previous => 0,
            Joins::Nothing => 1,
            Joins::Checkpoint => 2,
        };
        let crc = crc32fast::hash(&bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = checked(bytes)?;
        if bytes[..8] != *SEGMENT_MAGIC {
            return None;
        }
        let joins = match bytes[16] {
            0 => Joins::Previous,
            1 => Joins::Nothing,
            2 => Joins::Checkpoint,
            _ => return None,
        };
        let first = u64_at(bytes, 8);
        (first <= GENERATION_MAX).then_some(Self { first, joins })
    }
}

/// The first 32 bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub body_len: usize,
    /// Of the first entry in the frame.
    pub generation: u64,
    /// The settled watermark when the frame was written.
    pub settled: u64,
    body_crc: u32,
}

impl FrameHeader {
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = checked(bytes)?;
        let (body_len, generation) = (u32_at(bytes, 4) as usize, u64_at(bytes, 8));
        (bytes[..4] == *FRAME_MAGIC && body_len <= MAX_BODY && generation <= GENERATION_MAX).then(|| Self {
            body_len,
            generation,
            settled: u64_at(bytes, 16),
            body_crc: u32_at(bytes, 24),
        })
    }

    /// Header, body and padding.
    pub(super) fn frame_len(&self) -> usize {
        ALIGN + self.body_len.next_multiple_of(ALIGN)
    }

    /// The entries, if `rest` (what follows the header) holds a whole and right body.
    pub(super) fn entries(&self, rest: &[u8]) -> Option<Vec<Entry>> {
        let body = rest.get(..self.body_len)?;
        let padding = rest.get(self.body_len..self.body_len.next_multiple_of(ALIGN))?;
        if crc32fast::hash(body) != self.body_crc || padding.iter().any(|b| *b != PAD) {
            return None;
        }
        let entries = decode_body(body)?;
        let in_order = entries.iter().zip(self.generation..).all(|(entry, due)| entry.generation == due);
        (in_order && !entries.is_empty()).then_some(entries)
    }
}

/// One frame with all the entries.
pub(super) fn encode(entries: &[Entry], settled: u64) -> Result<Vec<u8>, StoreError> {
    let mut frame = vec![0u8; ALIGN];
    put_u32(&mut frame, entries.len());
    for entry in entries {
        put_u64(&mut frame, entry.generation);
        put_u64(&mut frame, entry.at.0);
        put_bytes(&mut frame, entry.origin.as_bytes());
        put_bytes(&mut frame, entry.summary.as_bytes());
        put_u32(&mut frame, entry.writes.len());
        for Write { key, value } in &entry.writes {
            put_bytes(&mut frame, key.as_bytes());
            match value {
                None => frame.push(0),
                Some(value) => {
                    frame.push(1);
                    put_bytes(&mut frame, value);
                }
            }
        }
    }
    let body_len = frame.len() - ALIGN;
    if body_len > MAX_BODY {
        return Err(StoreError::TooLarge { bytes: body_len, limit: MAX_BODY });
    }
    let body_crc = crc32fast::hash(&frame[ALIGN..]);
    frame.resize(ALIGN + body_len.next_multiple_of(ALIGN), PAD);
    let generation = entries.first().map_or(0, |e| e.generation);
    frame[..4].copy_from_slice(FRAME_MAGIC);
    frame[4..8].copy_from_slice(&(body_len as u32).to_le_bytes());
    frame[8..16].copy_from_slice(&generation.to_le_bytes());
    frame[16..24].copy_from_slice(&settled.to_le_bytes());
    frame[24..28].copy_from_slice(&body_crc.to_le_bytes());
    let crc = crc32fast::hash(&frame[..28]);
    frame[28..ALIGN].copy_from_slice(&crc.to_le_bytes());
    Ok(frame)
}

fn decode_body(body: &[u8]) -> Option<Vec<Entry>> {
    let mut rest = body;
    let count = take_u32(&mut rest)?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let generation = take_u64(&mut rest)?;
        let at = UnixTime(take_u64(&mut rest)?);
        let origin = take_text(&mut rest)?;
        let summary = take_text(&mut rest)?;
        let mut writes = Vec::new();
        for _ in 0..take_u32(&mut rest)? {
            let key = take_text(&mut rest)?;
            let value = match take(&mut rest, 1)?[0] {
                0 => None,
                1 => Some(take_bytes(&mut rest)?.to_vec()),
                _ => return None,
            };
            writes.push(Write { key, value });
        }
        entries.push(Entry { generation, at, origin, summary, writes });
    }
    rest.is_empty().then_some(entries)
}

/// The first 32 bytes, if their last four are the checksum of the others.
fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let bytes = bytes.get(..ALIGN)?;
    (crc32fast::hash(&bytes[..28]) == u32_at(bytes, 28)).then_some(bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].try_into().map(u32::from_le_bytes).unwrap_or_default()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default()
}

fn put_u32(out: &mut Vec<u8>, number: usize) {
    // Saturating is safe: a body that big is refused by `encode` before it is used.
    out.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(len)?;
    *rest = left;
    Some(taken)
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    Some(u32_at(take(rest, 4)?, 0))
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    Some(u64_at(take(rest, 8)?, 0))
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = take_u32(rest)? as usize;
    take(rest, len)
}

fn take_text(rest: &mut &[u8]) -> Option<String> {
    String::from_utf8(take_bytes(rest)?.to_vec()).ok()
}
