//! Reads the journal and says of every byte whether it is good, the remains of an unfinished write, or damage.
//!
//! Owns that judgement. Leaves what to do about it to [`survey`](super::survey) and [`recover`](super::recover); changes nothing.
//!
//! Upholds I-02: only what a power cut can explain is passed over, and only at the very end.
//!
//! A segment is born full of zeros, so zeros up to its end are its unused part. A power cut leaves a sector written or not: zeros again. A last frame that is all there but
//! wrong was therefore whole once, so it is damage, and dropping it would drop something that was acknowledged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::disk::{io_error, names_in};
use super::frame::{ALIGN, FrameHeader, Joins, SegmentHeader};
use super::layout::{JOURNAL, parse_segment_name};
use super::port::{Entry, StoreError};

const SECTOR: usize = 512;

/// One good segment, or the good front of the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub path: PathBuf,
    pub first: u64,
    /// One below `first` while it is empty.
    pub last: u64,
    pub joins: Joins,
    /// Bytes that are good.
    pub len: u64,
}

/// What a power cut left at the end of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Torn {
    pub path: PathBuf,
    /// Where the good part ends; zero when the whole file is to go.
    pub keep: u64,
    /// Where the zeros begin.
    pub len: u64,
}

/// The journal as it was found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub segments: Vec<Segment>,
    /// Every entry that could be read, also behind damage.
    pub entries: BTreeMap<u64, Entry>,
    pub torn: Option<Torn>,
    /// The highest generation that any readable header speaks of.
    pub highest: u64,
    pub settled: u64,
    /// Empty for a healthy journal.
    pub damage: Vec<String>,
}

impl Scan {
    /// The generation of the last good entry of the last segment.
    pub(super) fn end(&self) -> Option<u64> {
        self.segments.last().map(|s| s.last)
    }

    /// First generations of segments that need nothing before them.
    pub(super) fn beginnings(&self) -> impl Iterator<Item = u64> + '_ {
        self.segments.iter().filter(|s| s.joins == Joins::Nothing).map(|s| s.first)
    }
}

/// Reads all segments.
///
/// *Errors*: only for a disk that does not answer; damage is a finding.
pub(super) fn scan(state_dir: &Path) -> Result<Scan, StoreError> {
    let dir = state_dir.join(JOURNAL);
    let names: Vec<(u64, String)> =
        names_in(&dir)?.into_iter().filter_map(|n| Some((parse_segment_name(&n)?, n))).collect();
    let mut scan = Scan::default();
    let count = names.len();
    for (index, (first, name)) in names.into_iter().enumerate() {
        let path = dir.join(&name);
        if path.is_dir() {
            scan.damage.push(format!("journal segment {name} is a directory"));
            continue;
        }
        let bytes = std::fs::read(&path).map_err(|source| io_error("read", &path, source))?;
        scan.segment(path, first, &bytes, index + 1 == count);
    }
    if count == 0 {
        scan.damage.push("the journal has no segments".into());
    }
    Ok(scan)
}

impl Scan {
    /// Takes in one file whose name says that it begins with generation `first`.
    pub(super) fn segment(&mut self, path: PathBuf, first: u64, bytes: &[u8], is_last: bool) {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let header = SegmentHeader::decode(bytes).filter(|h| h.first == first);
        let Some(header) = header else {
            // Birth of a segment: the header is on the disk before the first frame is written.
            let unborn = bytes.len() < ALIGN || is_zero(bytes);
            if is_last && unborn && !self.segments.is_empty() {
                self.torn = Some(Torn { path, keep: 0, len: bytes.len() as u64 });
            } else {
                self.damage.push(format!("journal segment {name} has no readable header"));
                self.salvage(bytes, ALIGN);
            }
            return;
        };
        let due = self.segments.last().map(|s| s.last + 1);
        if is_zero(&bytes[ALIGN..]) && header.joins == Joins::Previous && due.is_some_and(|due| first < due) {
            // A rotation that failed, and whose removal the power cut undid. Nothing was ever written to it.
            self.torn = is_last.then_some(Torn { path, keep: 0, len: bytes.len() as u64 });
            return;
        }
        match header.joins {
            Joins::Previous if due.is_some_and(|due| due != first) => {
                self.damage.push(format!("journal segment {name} does not follow generation {}", due.unwrap_or(0) - 1));
            }
            Joins::Checkpoint | Joins::Nothing if due.is_some_and(|due| first < due) => {
                self.damage.push(format!("journal segment {name} repeats earlier generations"));
            }
            Joins::Previous | Joins::Nothing | Joins::Checkpoint => {}
        }
        let mut segment = Segment { path, first, last: first.saturating_sub(1), joins: header.joins, len: 0 };
        let end = self.frames(&name, bytes, &mut segment);
        segment.len = end as u64;
        let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        if end < used {
            self.tail(&name, bytes, end, used, &segment, is_last);
        }
        self.segments.push(segment);
    }

    /// Reads good frames; the offset where they end.
    fn frames(&mut self, name: &str, bytes: &[u8], segment: &mut Segment) -> usize {
        let mut at = ALIGN;
        while let Some(header) = bytes.get(at..).and_then(FrameHeader::decode) {
            let Some(entries) = header.entries(&bytes[at + ALIGN..]) else {
                break;
            };
            if header.generation != segment.last + 1 {
                self.damage
                    .push(format!("journal segment {name} skips from {} to {}", segment.last, header.generation));
            }
            segment.last = header.generation + entries.len() as u64 - 1;
            self.take(&header, entries);
            at += header.frame_len();
        }
        at.min(bytes.len())
    }

    /// Judges what follows the last good frame.
    fn tail(&mut self, name: &str, bytes: &[u8], end: usize, used: usize, segment: &Segment, is_last: bool) {
        let behind = self.salvage(bytes, end + ALIGN);
        if is_last && !behind && is_unfinished(bytes, end) {
            self.torn = Some(Torn { path: segment.path.clone(), keep: end as u64, len: used as u64 });
            return;
        }
        if let Some(header) = FrameHeader::decode(&bytes[end..]) {
            self.highest = self.highest.max(header.generation);
        }
        self.damage
            .push(format!("journal segment {name} cannot be read at byte {end}, after generation {}", segment.last));
    }

    /// Takes every whole frame from `from` on; true if there was one.
    fn salvage(&mut self, bytes: &[u8], from: usize) -> bool {
        let mut found = false;
        let mut at = from;
        while at + ALIGN <= bytes.len() {
            let frame = FrameHeader::decode(&bytes[at..]).and_then(|h| Some((h, h.entries(&bytes[at + ALIGN..])?)));
            at += match frame {
                Some((header, entries)) => {
                    found = true;
                    self.take(&header, entries);
                    header.frame_len()
                }
                None => ALIGN,
            };
        }
        found
    }

    fn take(&mut self, header: &FrameHeader, entries: Vec<Entry>) {
        self.settled = self.settled.max(header.settled);
        for entry in entries {
            self.highest = self.highest.max(entry.generation);
            self.entries.insert(entry.generation, entry);
        }
    }
}

/// True if the bytes from `at` on can be one frame that was being written when the power went.
fn is_unfinished(bytes: &[u8], at: usize) -> bool {
    let rest = &bytes[at..];
    if rest.len() < ALIGN || is_zero(&rest[..ALIGN]) {
        return true;
    }
    let Some(header) = FrameHeader::decode(rest) else {
        return false;
    };
    let end = at + header.frame_len();
    if bytes.len() < end {
        return true;
    }
    // One frame at a time is under way; whatever lies behind it was never part of it.
    is_zero(&bytes[end..]) && sectors(at, end).any(|sector| is_zero(&bytes[sector]))
}

/// The range from `at` to `end`, cut where disk sectors begin.
fn sectors(at: usize, end: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let starts = std::iter::successors(Some(at), |start| Some((start / SECTOR + 1) * SECTOR));
    starts.take_while(move |start| *start < end).map(move |start| start..((start / SECTOR + 1) * SECTOR).min(end))
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}
