//! A store in memory that forgets at a power cut, for tests and for the simulation.
//!
//! Owns the difference between what was written and what would survive. Leaves choosing the moment of a fault to the test.
//!
//! Upholds I-01 and I-12 as the real one does: same answers, same order of checks.
//!
//! Clones share one disk: a test keeps one in its hand, the committer owns another, and a "restart" is a third.

use std::sync::{Arc, Mutex, PoisonError};

use super::port::{Contents, Entry, Store, StoreError};

/// What happens to the next commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The disk is full: nothing is kept, later commits work.
    Refuse,
    /// The power goes before the disk has it: nothing is kept, and nothing works until [`MemoryStore::power_on`].
    CutBeforeFlush,
    /// The power goes when the disk has it, before the caller hears of it.
    CutAfterFlush,
    /// A wrong store on purpose: it says `Ok` and has not flushed. For showing that a test notices.
    Lie,
}

#[derive(Debug, Default)]
struct Disk {
    /// What a reader sees now.
    cached: Contents,
    /// What a power cut leaves.
    durable: Contents,
    entries: Vec<Entry>,
    next: Option<Fault>,
    off: bool,
    flushes: u64,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Mutex<Disk>>);

impl MemoryStore {
    pub fn new(contents: Contents) -> Self {
        let disk = Disk { cached: contents.clone(), durable: contents, ..Disk::default() };
        Self(Arc::new(Mutex::new(disk)))
    }

    /// Decides the next commit's fate.
    pub fn fault(&self, fault: Fault) {
        self.with(|disk| disk.next = Some(fault));
    }

    /// Forgets what was not flushed, the settled watermark with it. Nothing works until [`MemoryStore::power_on`].
    pub fn power_cut(&self) {
        self.with(Disk::power_cut);
    }

    pub fn power_on(&self) {
        self.with(|disk| disk.off = false);
    }

    /// What an open would return now.
    pub fn contents(&self) -> Contents {
        self.with(|disk| disk.cached.clone())
    }

    /// What an open would return after a power cut.
    pub fn durable(&self) -> Contents {
        self.with(|disk| disk.durable.clone())
    }

    /// All entries since the start that are durable.
    pub fn entries(&self) -> Vec<Entry> {
        self.with(|disk| disk.entries.iter().filter(|e| e.generation <= disk.durable.generation).cloned().collect())
    }

    /// How often a commit waited for the disk: shows that a group shares one wait.
    pub fn flushes(&self) -> u64 {
        self.with(|disk| disk.flushes)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Disk) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Disk {
    fn power_cut(&mut self) {
        self.off = true;
        self.cached = self.durable.clone();
        self.entries.retain(|e| e.generation <= self.durable.generation);
    }

    fn flush(&mut self) {
        self.flushes += 1;
        self.durable = self.cached.clone();
    }

    fn commit(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        if self.off {
            return Err(StoreError::Stopped { path: "memory".into() });
        }
        for (entry, due) in entries.iter().zip(self.cached.generation + 1..) {
            if entry.generation != due {
                return Err(StoreError::OutOfOrder { last: due - 1, found: entry.generation });
            }
        }
        if entries.is_empty() {
            return Ok(());
        }
        let fault = self.next.take();
        if fault == Some(Fault::Refuse) {
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(StoreError::Io { doing: "write", path: "memory".into(), source });
        }
        for entry in entries {
            self.cached.apply(entry);
            self.entries.push(entry.clone());
        }
        match fault {
            None | Some(Fault::Refuse) => self.flush(),
            Some(Fault::Lie) => {}
            Some(Fault::CutBeforeFlush) => self.power_cut(),
            Some(Fault::CutAfterFlush) => {
                self.flush();
                self.power_cut();
            }
        }
        match self.off {
            true => Err(StoreError::Stopped { path: "memory".into() }),
            false => Ok(()),
        }
    }
}

impl Store for MemoryStore {
    fn commit(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        self.with(|disk| disk.commit(entries))
    }

    fn settle(&mut self, generation: u64) -> Result<(), StoreError> {
        self.with(|disk| disk.cached.settled = disk.cached.settled.max(generation.min(disk.cached.generation)));
        Ok(())
    }

    fn tidy(&mut self) -> Result<(), StoreError> {
        self.with(|disk| match disk.off {
            true => Err(StoreError::Stopped { path: "memory".into() }),
            false => {
                disk.flush();
                Ok(())
            }
        })
    }

    fn close(&mut self) -> Result<(), StoreError> {
        self.tidy()
    }
}
