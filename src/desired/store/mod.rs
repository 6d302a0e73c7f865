//! Keeps the document across a power cut.
//!
//! Owns bytes: keys and values whose meaning belongs to [`desired`](crate::desired). Leaves checking and applying edits to the committer.
//!
//! Upholds I-01 (what `commit` returned for survives a power cut), I-02 (unreadable is an error, never empty), I-12.
//!
//! sled's `flush()` does not reach the disk (docs/decisions/0003-durability.md), so durability comes from the journal in front of it.

use std::collections::BTreeMap;

use crate::clock::UnixTime;

/// One key's new value; `None` removes the key.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// Everything that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    pub generation: u64,
    pub records: BTreeMap<String, Vec<u8>>,
    /// The last generation that the loop reported as applied. May lag behind the truth, never ahead of it.
    pub settled: u64,
}

/// Where the document is kept. One owner, one thread.
pub trait Store: Send {
    /// Keeps the entries, all or none. When it returns `Ok` they survive a power cut (I-01).
    fn commit(&mut self, entries: &[Entry]) -> Result<(), StoreError>;

    /// Notes that the loop applied everything up to this generation. Cheap; may be lost in a crash.
    fn settle(&mut self, generation: u64) -> Result<(), StoreError>;

    /// Work that can wait until nobody waits: fold the journal into sled, write the last-known-good copy. Called when idle.
    fn tidy(&mut self) -> Result<(), StoreError>;
}

/// What went wrong with the store, for a person: what, where, and what to do. Never names a value.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("state directory {path} is in use by another overlayd; stop it, or give this one its own --state-dir")]
    InUse { path: String },
    #[error(
        "the store in {path} is damaged: {what}; nothing was changed; run `overlayd store check`, then `overlayd store recover`"
    )]
    Damaged { path: String, what: String },
    #[error(
        "the store in {path} has format {found}, this overlayd reads up to {known}; install the version that wrote it"
    )]
    Newer { path: String, found: u32, known: u32 },
    #[error("{doing} {path}")]
    Io {
        doing: &'static str,
        path: String,
        #[source]
        source: std::io::Error,
    },
}
