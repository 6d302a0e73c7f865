//! A small note of how far things got: the last acknowledged generation and the last settled one.
//!
//! Owns one 32-byte file. Leaves durability to the journal: the note is written after the fact and never waited for.
//!
//! Upholds I-01 from the other side: a journal that ends below the note has lost something that was acknowledged, and that is damage,
//! however tidy its end looks.
//!
//! The note can only lag. After `kill -9` it is exact, after a power cut it may be half a minute old or missing; both are normal.

use std::path::{Path, PathBuf};

use super::disk::{Disk, DiskFile, io_error, read_if_there};
use super::layout::WATERMARK;
use super::port::{GENERATION_MAX, StoreError};

const MAGIC: &[u8; 8] = b"OVLMARK1";
const LEN: usize = 32;

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    pub acknowledged: u64,
    pub settled: u64,
}

impl Mark {
    pub(super) fn encode(self) -> [u8; LEN] {
        let mut bytes = [0u8; LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.acknowledged.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.settled.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LEN] = bytes.try_into().ok()?;
        let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
        let fits = bytes[..8] == *MAGIC && bytes[28..] == crc32fast::hash(&bytes[..28]).to_le_bytes();
        let mark = Self { acknowledged: number(8), settled: number(16) };
        (fits && mark.acknowledged <= GENERATION_MAX).then_some(mark)
    }

    /// `Ok(None)`: no note, or one that cannot be read. It is a hint, so that is no damage.
    pub(super) fn read(state_dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = state_dir.join(WATERMARK);
        // A directory of that name is moved away by whoever may write.
        let bytes = if path.is_dir() { None } else { read_if_there(&path)? };
        Ok(bytes.and_then(|bytes| Self::decode(&bytes)))
    }
}

/// The open file.
pub(super) struct Watermark {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    mark: Mark,
}

impl Watermark {
    /// Starts the note afresh with what is known to be on the disk.
    pub(super) fn create(disk: &dyn Disk, state_dir: &Path, mark: Mark) -> Result<Self, StoreError> {
        let path = state_dir.join(WATERMARK);
        // Not truncated when it is there: between truncating and writing there would be no note.
        let file = if path.exists() { disk.open(&path) } else { disk.create(&path) };
        let file = file.map_err(|source| io_error("open", &path, source))?;
        let mut watermark = Self { file, path, mark };
        watermark.write()?;
        // One that was damaged by growing would otherwise stay unreadable.
        watermark.file.truncate(LEN as u64).map_err(|source| io_error("cut", &watermark.path, source))?;
        Ok(watermark)
    }

    /// Failing to note an acknowledged entry is not failing to keep it, so the caller logs the error and goes on.
    pub(super) fn acknowledge(&mut self, generation: u64) -> Result<(), StoreError> {
        self.mark.acknowledged = generation;
        self.write()
    }

    pub(super) fn settle(&mut self, generation: u64) -> Result<(), StoreError> {
        self.mark.settled = self.mark.settled.max(generation);
        self.write()
    }

    fn write(&mut self) -> Result<(), StoreError> {
        self.file.write_at(0, &self.mark.encode()).map_err(|source| io_error("write", &self.path, source))
    }
}
