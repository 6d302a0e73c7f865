//! The document as records under their keys, in sled: what a start reads instead of the whole journal.
//!
//! Owns sled: opening it without harm, folding entries in, waiting for the disk. Leaves truth to the journal.
//!
//! Upholds I-02: without a manifest that fits every single record, the checkpoint counts as unreadable.
//!
//! Opening a damaged sled rewrites it, and then looks healthy with fewer rows; so a start opens a copy, and only `fold` the original.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::contents::digest;
use super::disk::{io_error, names_in};
use super::layout::{LOOK_PREFIX, SLED};
use super::port::{Contents, GENERATION_MAX, StoreError};

/// A healthy sled of 100,000 records opens in 22 ms; a damaged one was seen to hang for 20 s and might never return.
const PATIENCE: Duration = Duration::from_secs(10);
/// Enough for a fold. sled's own default is 1 GB.
const CACHE_BYTES: u64 = 4 << 20;
/// Part of the format: sled refuses a file that was made with another size. Chosen in docs/decisions/0003-durability.md.
pub(super) const SEGMENT_BYTES: usize = 64 << 10;

const MANIFEST: &[u8] = b"manifest";
pub(super) const RECORD_PREFIX: &[u8] = b"r/";

#[derive(Serialize, Deserialize)]
struct Manifest {
    generation: u64,
    settled: u64,
    count: usize,
    digest: String,
}

/// What a look at the checkpoint found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    Good(Contents),
    Missing,
    Bad(String),
    /// Could not be copied, for a reason that says nothing about the checkpoint: a full disk, say.
    Unseen(String),
}

/// Reads the checkpoint from a copy in `scratch_in`; the original is not opened.
pub(super) fn look(state_dir: &Path, scratch_in: &Path) -> Look {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let original = state_dir.join(SLED);
    if !original.is_dir() {
        return Look::Missing;
    }
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let scratch = scratch_in.join(format!("{LOOK_PREFIX}{}-{number}", std::process::id()));
    if let Err(error) = copy_tree(&original, &scratch) {
        let _ = fs::remove_dir_all(&scratch);
        return Look::Unseen(format!("it could not be copied to be looked at: {error}"));
    }
    if !scratch.join("db").is_file() {
        // sled would make an empty one and call it fine.
        let _ = fs::remove_dir_all(&scratch);
        return Look::Bad("its file `db` is missing".into());
    }
    let path = scratch.clone();
    let outcome = guarded(move || read(&open(&path)?));
    let _ = fs::remove_dir_all(&scratch);
    match outcome {
        Ok(contents) => Look::Good(contents),
        Err(what) => Look::Bad(what),
    }
}

/// Removes copies that outlived the process which made them. Only for the holder of the lock.
pub(super) fn remove_old_looks(state_dir: &Path) -> Result<(), StoreError> {
    for name in names_in(state_dir)?.iter().filter(|n| n.starts_with(LOOK_PREFIX)) {
        let path = state_dir.join(name);
        fs::remove_dir_all(&path).map_err(|source| io_error("remove", &path, source))?;
    }
    Ok(())
}

/// The checkpoint that is written. Opened at the first fold, so a start that has nothing to fold leaves it untouched.
#[derive(Default)]
pub(super) struct Checkpoint {
    db: Option<sled::Db>,
    generation: Option<u64>,
}

impl Checkpoint {
    /// The generation it is known to hold durably; `None` before the first fold.
    pub(super) fn generation(&self) -> Option<u64> {
        self.generation
    }

    /// Makes the checkpoint equal to `contents`, on the disk.
    ///
    /// `touched` names every key that may differ since the last fold that succeeded.
    /// *Errors*: text for the log; the journal still has everything, and the next fold compares all records.
    pub(super) fn fold(
        &mut self,
        state_dir: &Path,
        contents: &Contents,
        touched: &BTreeSet<String>,
    ) -> Result<(), String> {
        let path = state_dir.join(SLED);
        let outcome = match self.db.take() {
            Some(db) => {
                let batch = batch_of(touched.iter().map(|k| (k, contents.records.get(k))), contents);
                guarded(move || write(db, batch, &path))
            }
            None => {
                let wanted = contents.clone();
                guarded(move || {
                    let fresh = !path.join("db").exists();
                    let db = open_in_place(&path)?;
                    let found = if fresh { Contents::default() } else { read(&db)? };
                    let changed = differing_keys(&found.records, &wanted.records);
                    let batch = batch_of(changed.iter().map(|k| (k, wanted.records.get(k))), &wanted);
                    write(db, batch, &path)
                })
            }
        };
        self.generation = outcome.is_ok().then_some(contents.generation);
        self.db = Some(outcome?);
        Ok(())
    }
}

fn differing_keys(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) -> BTreeSet<String> {
    a.keys().chain(b.keys()).filter(|k| a.get(*k) != b.get(*k)).cloned().collect()
}

fn batch_of<'a>(
    changes: impl Iterator<Item = (&'a String, Option<&'a Vec<u8>>)>,
    contents: &Contents,
) -> Result<sled::Batch, String> {
    let mut batch = sled::Batch::default();
    for (key, value) in changes {
        let key = [RECORD_PREFIX, key.as_bytes()].concat();
        match value {
            Some(bytes) => batch.insert(key, bytes.as_slice()),
            None => batch.remove(key),
        }
    }
    batch.insert(MANIFEST, manifest_of(contents)?);
    Ok(batch)
}

fn open(path: &Path) -> Result<sled::Db, String> {
    open_once(path).map_err(|e| format!("it does not open: {e}"))
}

/// The original. A child of ours between fork and exec still holds sled's lock when a store was closed and opened again, so an
/// I/O error is tried again for half a second before the checkpoint is called bad.
fn open_in_place(path: &Path) -> Result<sled::Db, String> {
    if !path.exists() {
        DirBuilder::new().mode(0o700).create(path).map_err(|e| format!("it could not be created: {e}"))?;
    }
    for _ in 0..10 {
        match open_once(path) {
            Err(sled::Error::Io(_)) => std::thread::sleep(Duration::from_millis(50)),
            other => return other.map_err(|e| format!("it does not open: {e}")),
        }
    }
    open(path)
}

fn open_once(path: &Path) -> sled::Result<sled::Db> {
    sled::Config::new()
        .path(path)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None)
        .mode(sled::Mode::LowSpace)
        .open()
}

/// All records, checked against the manifest.
fn read(db: &sled::Db) -> Result<Contents, String> {
    let unreadable = |e: sled::Error| format!("it cannot be read: {e}");
    let manifest = db.get(MANIFEST).map_err(unreadable)?.ok_or("it has no manifest")?;
    let rows = db.scan_prefix(RECORD_PREFIX).map(|row| row.map_err(unreadable));
    contents_of_rows(&manifest, rows)
}

/// What the rows of records hold, if they are the ones that the manifest speaks of.
pub(super) fn contents_of_rows<K: AsRef<[u8]>, V: AsRef<[u8]>>(
    manifest: &[u8],
    rows: impl Iterator<Item = Result<(K, V), String>>,
) -> Result<Contents, String> {
    let manifest: Manifest = serde_json::from_slice(manifest).map_err(|_| "its manifest cannot be read")?;
    if manifest.generation > GENERATION_MAX {
        return Err("its generation was never given out".into());
    }
    let mut records = BTreeMap::new();
    for row in rows {
        let (key, value) = row?;
        let key = key.as_ref().strip_prefix(RECORD_PREFIX).ok_or("a row is no record")?;
        let key = String::from_utf8(key.to_vec()).map_err(|_| "a key is not text")?;
        records.insert(key, value.as_ref().to_vec());
    }
    let found = format!("{:016x}", digest(manifest.generation, &records));
    if records.len() != manifest.count || found != manifest.digest {
        return Err(format!("it has {} of {} records, or not the right ones", records.len(), manifest.count));
    }
    Ok(Contents { generation: manifest.generation, records, settled: manifest.settled })
}

/// The manifest that these contents have.
pub(super) fn manifest_of(contents: &Contents) -> Result<Vec<u8>, String> {
    let manifest = Manifest {
        generation: contents.generation,
        settled: contents.settled,
        count: contents.records.len(),
        digest: format!("{:016x}", contents.digest()),
    };
    serde_json::to_vec(&manifest).map_err(|e| e.to_string())
}

fn write(db: sled::Db, batch: Result<sled::Batch, String>, path: &Path) -> Result<sled::Db, String> {
    db.apply_batch(batch?).map_err(|e| format!("it cannot be written: {e}"))?;
    db.flush().map_err(|e| format!("it cannot be flushed: {e}"))?;
    // sled's flush stops at the page cache (pwrite + sync_file_range).
    sync_tree(path).map_err(|e| format!("it cannot be brought to the disk: {e}"))?;
    Ok(db)
}

/// Waits until every file below is on the disk, and closes the files to others: sled makes them with the process's umask.
fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::set_permissions(&path, Permissions::from_mode(0o700))?;
            sync_tree(&path)?;
        } else {
            let file = File::open(&path)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.sync_data()?;
        }
    }
    File::open(path)?.sync_all()
}

fn copy_tree(from: &Path, to: &PathBuf) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            // A file that arrived as 0400 must not keep sled from opening the copy.
            fs::set_permissions(&target, Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}

/// Runs what may panic or never return. A thread that does not come back is given up; it holds nothing but the copy it looks at.
fn guarded<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new()
        .name("checkpoint".into())
        .spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("reading it panicked".into()));
            let _ = sender.send(outcome);
        })
        .map_err(|e| format!("no thread to open it on: {e}"))?;
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
}
