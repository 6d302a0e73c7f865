use std::{fs::Metadata, path::Path, time::SystemTime};

/// What a file was when it was looked at: another one in its place has another, whatever its time says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl Stamp {
    /// Of what a path leads to; `None` when that is nothing, or cannot be looked at.
    pub fn of(path: &Path) -> Option<Self> {
        let found = path.metadata().ok()?;
        Some(Self { modified: found.modified().ok(), length: found.len(), inode: inode(&found) })
    }
}

#[cfg(unix)]
fn inode(found: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(found)
}

#[cfg(not(unix))]
fn inode(_: &Metadata) -> u64 {
    0
}
