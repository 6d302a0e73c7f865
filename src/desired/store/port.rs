//! What the rest of overlayd knows of the store: entries go in, contents come out, errors say what to do.
//!
//! Owns the trait and its types. Leaves every byte on the disk to its neighbours.
//!
//! Upholds I-12: an entry's generation is exactly one more than the entry before it, or the commit is refused.
//!
//! `Ok` from [`Store::commit`] is a promise about power cuts, `Err` is a promise that nothing was kept, with one exception:
//! [`StoreError::Stopped`], when the disk no longer said what it holds.

use std::{collections::BTreeMap, fmt, path::Path};

use crate::clock::UnixTime;

/// The highest generation that is believed when it is read. An edit every nanosecond would take three centuries to get there; what is higher
/// is not a number that was ever given out, and there might be none after it.
pub(super) const GENERATION_MAX: u64 = 1 << 63;
/// The highest that a copy may have: a store that is made of it still has as many before it.
pub(super) const COPY_GENERATION_MAX: u64 = 1 << 62;

/// One key's new value; `None` removes the key. Values may hold keys and credentials: `Debug` shows their size only (I-14).
#[derive(Clone, PartialEq, Eq)]
pub struct Write {
    pub key: String,
    pub value: Option<Vec<u8>>,
}

/// One edit of the document, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The document's generation once this entry is in; exactly one more than the entry before.
    pub generation: u64,
    pub at: UnixTime,
    /// Who asked: `uid=0 gid=0 pid=123`.
    pub origin: String,
    /// What was asked, in one line without secrets: for `overlayd log`.
    pub summary: String,
    pub writes: Vec<Write>,
}

/// Everything that was kept. `Debug` shows the sizes of values only, as for [`Write`].
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Contents {
    pub generation: u64,
    pub records: BTreeMap<String, Vec<u8>>,
    /// The last generation that the loop reported as applied. May lag behind the truth, never ahead of it.
    pub settled: u64,
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "Write({}, {} bytes)", self.key, value.len()),
            None => write!(f, "Write({}, removed)", self.key),
        }
    }
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: BTreeMap<&str, usize> =
            self.records.iter().map(|(key, value)| (key.as_str(), value.len())).collect();
        f.debug_struct("Contents")
            .field("generation", &self.generation)
            .field("settled", &self.settled)
            .field("bytes", &sizes)
            .finish()
    }
}

/// Where the document is kept. One owner, one thread.
pub trait Store: Send {
    /// Keeps the entries, all or none. When it returns `Ok` they survive a power cut (I-01).
    ///
    /// *Guarantees* one write and one wait for the disk, however many entries: gather what arrived while the last commit ran.
    ///
    /// *Errors*: nothing was kept and the next commit may be tried, except after [`StoreError::Stopped`].
    fn commit(&mut self, entries: &[Entry]) -> Result<(), StoreError>;

    /// Notes that the loop applied everything up to this generation. Cheap; may be lost in a crash.
    fn settle(&mut self, generation: u64) -> Result<(), StoreError>;

    /// Work that can wait until nobody waits: fold the journal into the checkpoint, write the last-known-good copy.
    ///
    /// *Assumes* it is called when idle, and at least once per few thousand entries: the journal is only trimmed here.
    /// An error costs nothing that was committed.
    fn tidy(&mut self) -> Result<(), StoreError>;

    /// The last call at a clean stop: everything in its place, so that the next start has nothing to replay.
    fn close(&mut self) -> Result<(), StoreError>;
}

/// What went wrong with the store, for a person: what, where, and what to do. Never names a value.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("state directory {path} is in use by another overlayd; stop it, or give this one its own --state-dir")]
    InUse { path: String },
    #[error(
        "the store in {path} is damaged: {what}; nothing was changed; run `overlayd store check --state-dir {path}`, then `overlayd store recover --state-dir {path}`"
    )]
    Damaged { path: String, what: String },
    #[error(
        "no part of the store in {path} holds a whole document; nothing was changed; move it away with `mv {path} {path}.away`, then `overlayd store import COPY --state-dir {path}` brings back a copy made with --with-secrets; without one the node starts anew, with a new key"
    )]
    NothingLeft { path: String },
    #[error(
        "the store in {path} has format {found}, this overlayd reads up to {known}; install the version that wrote it"
    )]
    Newer { path: String, found: u32, known: u32 },
    #[error("{path} is not an overlayd state directory: {what}; nothing was changed; give an empty one")]
    NotOurs { path: String, what: String },
    #[error("generation {found} does not follow generation {last}")]
    OutOfOrder { last: u64, found: u64 },
    #[error("an edit of {bytes} bytes does not fit into the journal, which takes {limit} at once")]
    TooLarge { bytes: usize, limit: usize },
    #[error(
        "the store in {path} takes no more edits, because the disk failed and no longer says what it holds; see to the disk and restart overlayd"
    )]
    Stopped { path: String },
    #[error("the copy to import is not usable: {what}")]
    BadCopy { what: String },
    #[error("{doing} {path}{}", advice(.source, .path))]
    Io {
        doing: &'static str,
        path: String,
        #[source]
        source: std::io::Error,
    },
}

/// What to type where the state directory's surroundings are at fault.
fn advice(source: &std::io::Error, path: &str) -> String {
    use std::io::ErrorKind::{
        IsADirectory, NotADirectory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    let parent = Path::new(path).parent().unwrap_or(Path::new("/")).display();
    match source.kind() {
        PermissionDenied => format!(" (give the user that overlayd runs as access, as `chmod -R u+rwX {path}` does)"),
        IsADirectory | NotADirectory => {
            format!(" (something else is at its place; look at it and move it away, as `mv {path} {path}.away` does)")
        }
        ReadOnlyFilesystem => format!(
            " (make its file system writable again, as `mount -o remount,rw $(findmnt -nro TARGET -T {parent})` does; the kernel's log says why it is not)"
        ),
        StorageFull | QuotaExceeded => format!(" (make room: `df -h {parent}` shows how much is missing)"),
        _ => String::new(),
    }
}
