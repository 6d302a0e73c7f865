//! Keeps the document across a power cut.
//!
//! Owns bytes: keys and values whose meaning belongs to [`desired`](crate::desired). Leaves checking edits to the committer, and
//! taking secrets out of what people see to the function that [`export`] is given.
//!
//! Upholds I-01 (what [`Store::commit`] returned for survives a power cut), I-02 (unreadable is an error, never empty), I-12, I-14.
//!
//! The journal is the truth. sled is a checkpoint that can be thrown away: its `flush()` does not reach the disk and its recovery
//! drops what it cannot read without saying so (`docs/decisions/0003-durability.md`). The bytes: `state/FORMAT.md`.

mod checkpoint;
mod contents;
mod disk;
mod export;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod journal;
mod layout;
mod lock;
mod memory;
mod open;
mod port;
mod quarantine;
mod recover;
mod report;
mod scan;
mod survey;
mod watermark;

pub use lock::DirLock;
pub use memory::{Fault, MemoryStore};
pub use open::{DiskStore, Limits, Opened};
pub use port::{Contents, Entry, Store, StoreError, Write};
pub use recover::{check, contents_of, export, history, import, read_only, recover};
pub use report::{Finding, Part, Report, State};

#[cfg(test)]
mod tests;
