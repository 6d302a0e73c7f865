//! The append-only file in front of everything: what is in it was acknowledged, what was acknowledged is in it.
//!
//! Owns appending, rotating and trimming. Leaves reading to [`scan`](super::scan).
//!
//! Upholds I-01 (no `Ok` before the disk said so; after an error nothing is left) and I-12 (only the next generation is taken).
//!
//! A segment is filled with zeros when it is made, and overwritten: an append that makes a file longer waits for the file system's own
//! journal too, which was measured to cost seven times as much (docs/decisions/0003-durability.md).
//!
//! A failed wait for the disk is not like a failed write: the kernel drops the pages that it could not write and the next wait
//! succeeds without them. Only a full disk is taken for a reason to go on afterwards.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, DiskFile, io_error};
use super::frame::{self, Joins, SegmentHeader};
use super::layout::{JOURNAL, segment_name};
use super::port::{Entry, StoreError};
use super::scan::{Scan, Segment};

/// The open journal.
pub(super) struct Journal {
    disk: Arc<dyn Disk>,
    state_dir: PathBuf,
    /// In order; the last one is being written.
    segments: Vec<Segment>,
    file: Box<dyn DiskFile>,
    segment_bytes: u64,
    stopped: bool,
}

impl Journal {
    /// A new journal whose first entry will be `first`. The directory must not hold one.
    pub(super) fn create(
        disk: Arc<dyn Disk>,
        state_dir: &Path,
        first: u64,
        joins: Joins,
        segment_bytes: u64,
    ) -> Result<Self, StoreError> {
        let dir = state_dir.join(JOURNAL);
        disk.create_dir(&dir).map_err(|source| io_error("create", &dir, source))?;
        disk.sync_dir(state_dir).map_err(|source| io_error("write", state_dir, source))?;
        let (file, segment) = new_segment(&*disk, state_dir, first, joins, segment_bytes)?;
        Ok(Self { disk, state_dir: state_dir.into(), segments: vec![segment], file, segment_bytes, stopped: false })
    }

    /// Goes on where a healthy scan ended. The caller has cut off what was torn.
    pub(super) fn resume(
        disk: Arc<dyn Disk>,
        state_dir: &Path,
        scan: &Scan,
        segment_bytes: u64,
    ) -> Result<Self, StoreError> {
        let segments = scan.segments.clone();
        let path = segments.last().map(|s| s.path.clone()).unwrap_or_default();
        let file = disk.open(&path).map_err(|source| io_error("open", &path, source))?;
        Ok(Self { disk, state_dir: state_dir.into(), segments, file, segment_bytes, stopped: false })
    }

    /// The last generation that is in it.
    pub(super) fn end(&self) -> u64 {
        self.segments.last().map_or(0, |s| s.last)
    }

    /// The first generation that is still in it.
    pub(super) fn begin(&self) -> u64 {
        self.segments.first().map_or(0, |s| s.first)
    }

    /// Keeps the entries as one frame: one write, one wait for the disk.
    pub(super) fn append(&mut self, entries: &[Entry], settled: u64) -> Result<(), StoreError> {
        if self.stopped {
            return Err(self.stopped_error());
        }
        for (entry, due) in entries.iter().zip(self.end() + 1..) {
            if entry.generation != due {
                return Err(StoreError::OutOfOrder { last: due - 1, found: entry.generation });
            }
        }
        let Some(last) = entries.last().map(|e| e.generation) else {
            return Ok(());
        };
        let frame = frame::encode(entries, settled)?;
        self.rotate_for(frame.len() as u64)?;
        let Some(segment) = self.segments.last_mut() else {
            unreachable!("a journal has a segment from its first moment")
        };
        let wrote = self.file.write_at(segment.len, &frame);
        let synced = wrote.as_ref().is_ok().then(|| self.file.sync());
        match (wrote, synced) {
            (Ok(()), Some(Ok(()))) => {
                segment.len += frame.len() as u64;
                segment.last = last;
                Ok(())
            }
            (Err(source), _) => self.give_back(source, false),
            (Ok(()), Some(Err(source))) => {
                let trusted = is_full(&source);
                self.give_back(source, !trusted)
            }
            (Ok(()), None) => unreachable!("a write that succeeded is always waited for"),
        }
    }

    /// Starts a segment at `first` although entries before it are missing here; the checkpoint has them.
    pub(super) fn jump_to(&mut self, first: u64) -> Result<(), StoreError> {
        let (file, segment) = new_segment(&*self.disk, &self.state_dir, first, Joins::Checkpoint, self.segment_bytes)?;
        self.file = file;
        self.segments.push(segment);
        Ok(())
    }

    /// Removes old segments whose entries are all at or below `covered`, as long as `history_bytes` of journal stay.
    pub(super) fn trim(&mut self, covered: u64, history_bytes: u64) -> Result<(), StoreError> {
        let mut total: u64 = self.segments.iter().map(|s| s.len).sum();
        let mut removed = false;
        while let [oldest, _, ..] = self.segments.as_slice() {
            if oldest.last > covered || total - oldest.len < history_bytes {
                break;
            }
            let path = oldest.path.clone();
            self.disk.remove(&path).map_err(|source| io_error("remove", &path, source))?;
            // Oldest first and each on the disk before the next: a power cut must not leave a hole in the middle.
            let dir = self.state_dir.join(JOURNAL);
            self.disk.sync_dir(&dir).map_err(|source| io_error("write", &dir, source))?;
            total -= oldest.len;
            self.segments.remove(0);
            removed = true;
        }
        if removed {
            tracing::debug!(begin = self.begin(), "journal trimmed");
        }
        Ok(())
    }

    fn rotate_for(&mut self, bytes: u64) -> Result<(), StoreError> {
        let Some(segment) = self.segments.last() else {
            return Ok(());
        };
        if segment.last < segment.first || segment.len + bytes <= self.segment_bytes {
            return Ok(());
        }
        let (file, segment) =
            new_segment(&*self.disk, &self.state_dir, segment.last + 1, Joins::Previous, self.segment_bytes)?;
        self.file = file;
        self.segments.push(segment);
        Ok(())
    }

    /// Cuts the file back to what it held before the failed append.
    fn give_back(&mut self, source: io::Error, stop: bool) -> Result<(), StoreError> {
        let Some(segment) = self.segments.last() else { unreachable!("an append failed in some segment") };
        let undone = refill(&mut *self.file, segment.len, self.segment_bytes);
        if let Err(undo) = &undone {
            tracing::error!(path = %segment.path.display(), error = %undo, "journal could not be cut back after a failed write");
        }
        self.stopped = stop || undone.is_err();
        match self.stopped {
            // Not the plain error: the entries may or may not be there after a restart.
            true => {
                tracing::error!(path = %segment.path.display(), error = %source, "journal takes no more entries");
                Err(self.stopped_error())
            }
            false => Err(io_error("write", &segment.path, source)),
        }
    }

    fn stopped_error(&self) -> StoreError {
        StoreError::Stopped { path: self.state_dir.display().to_string() }
    }
}

/// Cuts a segment back to `keep` bytes, on the disk, and fills it up with zeros again.
pub(super) fn refill(file: &mut dyn DiskFile, keep: u64, segment_bytes: u64) -> io::Result<()> {
    file.truncate(keep)?;
    // Only for speed, so a full disk is no reason to fail: a part of zeros is as right as all of them.
    let _ = file.write_at(keep, &vec![0; segment_bytes.saturating_sub(keep) as usize]);
    file.sync()
}

/// True for "no space" in its three spellings; the file system refused before anything was overwritten.
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// A segment with its header and its name on the disk.
fn new_segment(
    disk: &dyn Disk,
    state_dir: &Path,
    first: u64,
    joins: Joins,
    segment_bytes: u64,
) -> Result<(Box<dyn DiskFile>, Segment), StoreError> {
    let dir = state_dir.join(JOURNAL);
    let path = dir.join(segment_name(first));
    let header = SegmentHeader { first, joins }.encode();
    let mut blank = header.to_vec();
    blank.resize(blank.len().max(segment_bytes as usize), 0);
    let make = || {
        let mut file = disk.create(&path)?;
        file.write_at(0, &blank)?;
        file.sync()?;
        disk.sync_dir(&dir)?;
        Ok(file)
    };
    match make() {
        Ok(file) => Ok((file, Segment { path, first, last: first - 1, joins, len: header.len() as u64 })),
        Err(source) => {
            // A header without frames is harmless, half a header is read as an unfinished birth: removing it is tidiness.
            let _ = disk.remove(&path);
            Err(io_error("create", &path, source))
        }
    }
}
