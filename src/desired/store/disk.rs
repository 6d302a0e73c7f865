//! The few file operations that durability rests on, behind a seam that a test can record.
//!
//! Owns creating, writing, waiting for the disk, renaming and modes. Leaves reading to `std::fs`: a read cannot lose anything.
//!
//! Upholds I-01: nothing here waits for the disk by itself; whoever promises durability calls `sync`.
//!
//! A file's name is not the file: `sync` on a new file keeps its bytes, and `sync_dir` on its directory keeps its name.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use super::port::StoreError;

/// A file that is being written.
pub(super) trait DiskFile: Send {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    fn truncate(&mut self, len: u64) -> io::Result<()>;
    /// Returns once bytes and length are on the disk (fdatasync).
    fn sync(&mut self) -> io::Result<()>;
}

/// Where the journal, the watermark and the last-known-good copies are written.
pub(super) trait Disk: Send + Sync {
    /// One directory, mode 0700. One that is there already is fine.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// A file of length zero, mode 0600, whatever was there before.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// A file that must exist.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Returns once the names in the directory are on the disk.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// The machine's disk.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RealDisk;

impl DiskFile for File {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().write(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

/// Puts a whole file in place: after `Ok` the new bytes are there, after a power cut the old or the new, never a mixture.
pub(super) fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let tmp = tmp_name(path);
    let parent = parent(path);
    let write = || {
        let mut file = disk.create(&tmp)?;
        file.write_at(0, bytes)?;
        file.sync()?;
        disk.rename(&tmp, path)?;
        disk.sync_dir(parent)
    };
    write().map_err(|source| {
        // Best effort: a leftover is never read, and the next replacement truncates it.
        let _ = disk.remove(&tmp);
        io_error("write", path, source)
    })
}

fn tmp_name(path: &Path) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The file's bytes, `None` where there is no such file.
pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io_error("read", path, source)),
    }
}

/// Names in a directory, sorted; empty where there is no such directory, or where something else has its name. Names that are not text
/// are nobody's here.
pub(super) fn names_in(path: &Path) -> Result<Vec<String>, StoreError> {
    let listing = match fs::read_dir(path) {
        Ok(listing) => listing,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(source) => return Err(io_error("list", path, source)),
    };
    let mut names = Vec::new();
    for entry in listing {
        let entry = entry.map_err(|source| io_error("list", path, source))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

pub(super) fn io_error(doing: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { doing, path: path.display().to_string(), source }
}
