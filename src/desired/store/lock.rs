//! One owner per state directory.
//!
//! Owns the advisory lock, which the kernel gives back when the process ends, however it ends. Leaves the rest of the directory alone.
//!
//! Upholds I-01: two writers in one journal would cut off each other's entries.
//!
//! The file stays when the owner is gone: removing it would let two processes lock two different files of the same name.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::disk::io_error;
use super::layout::LOCK;
use super::port::StoreError;

/// Held for as long as the value lives.
#[derive(Debug)]
pub struct DirLock {
    file: File,
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing is not enough: a child between fork and exec has a copy of the descriptor, and the lock belongs to both.
        let _ = self.file.unlock();
    }
}

impl DirLock {
    /// The lock, at once.
    ///
    /// *Errors*: [`StoreError::InUse`] when another process, or another store of this one, has it.
    pub fn take(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join(LOCK);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|source| io_error("open", &path, source))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: state_dir.display().to_string() }),
            Err(TryLockError::Error(source)) => Err(io_error("lock", &path, source)),
        }
    }
}
