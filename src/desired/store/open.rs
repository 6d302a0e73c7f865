//! The store on a disk: creating it, opening it, and keeping entries in it.
//!
//! Owns the order in which the parts are written. Leaves each part's bytes to its own file.
//!
//! Upholds I-01, I-02 and I-12.
//!
//! The store keeps the whole document in memory a second time: a fold and a copy are made from that, never by reading back what a
//! disk may have changed.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint::{Checkpoint, Look, remove_old_looks};
use super::disk::{Disk, RealDisk, io_error, parent, replace};
use super::export;
use super::frame::Joins;
use super::journal::Journal;
use super::layout::{self, CREATING, FORMAT, PARTS, SLED};
use super::lock::DirLock;
use super::port::{Contents, Entry, Store, StoreError, Write};
use super::quarantine::{cut_off, set_aside, unfit};
use super::survey::{Format, Rebuilt, Survey};
use super::watermark::{Mark, Watermark};
use crate::{clock::UnixTime, failure::with_causes};

/// Sizes at which the store tidies up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A segment is closed before it grows beyond this.
    pub segment_bytes: u64,
    /// Journal that stays for `overlayd log`, even when nothing else needs it.
    pub history_bytes: u64,
    /// A new last-known-good copy is written once the last one is this many generations old.
    pub export_every: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { segment_bytes: 1 << 20, history_bytes: 8 << 20, export_every: 1000 }
    }
}

/// A store that is ready, what is in it, and what a person should know about how it was found.
pub struct Opened {
    pub store: DiskStore,
    pub contents: Contents,
    /// One line each: a torn end that was cut off, a checkpoint that is made anew. Empty on an ordinary day.
    pub notes: Vec<String>,
}

/// The document on this machine's disk.
pub struct DiskStore {
    disk: Arc<dyn Disk>,
    state_dir: PathBuf,
    limits: Limits,
    journal: Journal,
    watermark: Watermark,
    checkpoint: Checkpoint,
    contents: Contents,
    /// Keys that changed since the last fold.
    touched: BTreeSet<String>,
    /// Generation of the checkpoint, `None` when that has to be found out or it has to be made anew.
    folded: Option<u64>,
    /// Good copies, oldest and newest; `None` without any.
    exported: Option<(u64, u64)>,
    /// Time of the last entry: names the quarantine when a fold has to put something there (I-16).
    last_at: UnixTime,
    // Last, so that it is given back when all else is closed.
    _lock: DirLock,
}

impl DiskStore {
    /// The store in `state_dir`; a new one with the records of `first` (at generation 1) when the directory is empty or missing.
    ///
    /// *Guarantees*: a new store is on the disk before this returns. On [`StoreError::Damaged`] nothing was changed.
    /// *Errors*: [`StoreError::InUse`] at once when another process has it.
    pub fn open(state_dir: &Path, now: UnixTime, first: impl FnOnce() -> Vec<Write>) -> Result<Opened, StoreError> {
        Self::open_with(Arc::new(RealDisk), state_dir, Limits::default(), now, first)
    }

    /// The same with other limits: small ones make a test or a bench reach what takes years otherwise.
    pub fn open_limited(
        state_dir: &Path,
        limits: Limits,
        now: UnixTime,
        first: impl FnOnce() -> Vec<Write>,
    ) -> Result<Opened, StoreError> {
        Self::open_with(Arc::new(RealDisk), state_dir, limits, now, first)
    }

    pub(super) fn open_with(
        disk: Arc<dyn Disk>,
        state_dir: &Path,
        limits: Limits,
        now: UnixTime,
        first: impl FnOnce() -> Vec<Write>,
    ) -> Result<Opened, StoreError> {
        let lock = enter(state_dir)?;
        let format = Format::of(state_dir)?;
        if let Some(problem) = format.problem(state_dir) {
            return Err(problem);
        }
        match format {
            Format::Known => Self::load(disk, state_dir, limits, now, lock),
            Format::Unborn | Format::Newer(_) | Format::Unreadable | Format::Missing => {
                tracing::info!(state_dir = %state_dir.display(), "there was no store; this node begins with a new document and a new key");
                let summary = "first start".to_owned();
                let entry = Entry { generation: 1, at: now, origin: "overlayd".into(), summary, writes: first() };
                Self::create(disk, state_dir, limits, &entry, lock)
            }
        }
    }

    /// A new store that begins with `first`. The directory is empty, or what is in it was never acknowledged.
    pub(super) fn create(
        disk: Arc<dyn Disk>,
        state_dir: &Path,
        limits: Limits,
        first: &Entry,
        lock: DirLock,
    ) -> Result<Opened, StoreError> {
        replace(&*disk, &state_dir.join(CREATING), b"this store is being created\n")?;
        set_aside(&*disk, state_dir, first.at, &PARTS)?;
        Self::build(disk, state_dir, limits, first, lock)
    }

    /// The parts of a store that begins with `first`, in a directory that has none of them.
    pub(super) fn build(
        disk: Arc<dyn Disk>,
        state_dir: &Path,
        limits: Limits,
        first: &Entry,
        lock: DirLock,
    ) -> Result<Opened, StoreError> {
        let mut contents = Contents { generation: first.generation - 1, ..Contents::default() };
        let mut journal =
            Journal::create(disk.clone(), state_dir, first.generation, Joins::Nothing, limits.segment_bytes)?;
        journal.append(std::slice::from_ref(first), 0)?;
        contents.apply(first);
        let watermark = Watermark::create(&*disk, state_dir, mark_of(&contents))?;
        let mut store = Self {
            disk,
            state_dir: state_dir.into(),
            limits,
            journal,
            watermark,
            checkpoint: Checkpoint::default(),
            contents,
            touched: BTreeSet::new(),
            folded: None,
            exported: None,
            last_at: first.at,
            _lock: lock,
        };
        store.finish()?;
        Ok(Opened { contents: store.contents.clone(), store, notes: Vec::new() })
    }

    pub(super) fn load(
        disk: Arc<dyn Disk>,
        state_dir: &Path,
        limits: Limits,
        now: UnixTime,
        lock: DirLock,
    ) -> Result<Opened, StoreError> {
        remove_old_looks(state_dir)?;
        let survey = Survey::take_all(state_dir)?;
        let Rebuilt { contents, base } = survey.verdict().map_err(|what| damaged(state_dir, what))?;
        let mut notes = Vec::new();
        if let Some(torn) = &survey.scan.torn {
            notes.push(cut_off(&*disk, state_dir, limits.segment_bytes, now, torn)?);
        }
        notes.extend(clear_away(&*disk, state_dir, now, &unfit(state_dir, &survey)));
        let exported = survey.exported();
        let mut store = Self {
            journal: Journal::resume(disk.clone(), state_dir, &survey.scan, limits.segment_bytes)?,
            watermark: Watermark::create(&*disk, state_dir, mark_of(&contents))?,
            checkpoint: Checkpoint::default(),
            touched: BTreeSet::new(),
            folded: folded(&survey.look),
            exported: exported.first().copied().zip(exported.last().copied()),
            last_at: now,
            disk,
            state_dir: state_dir.into(),
            limits,
            contents,
            _lock: lock,
        };
        if let Look::Bad(what) | Look::Unseen(what) = &survey.look {
            notes.push(format!("the checkpoint was not used: {what}; read from the {base} and the journal"));
        } else if survey.look == Look::Missing {
            notes.push(format!("the checkpoint is missing; read from the {base} and the journal"));
        }
        if store.journal.end() < store.contents.generation {
            notes.push(store.bridge(&base)?);
        }
        if state_dir.join(CREATING).exists() {
            store.end_creation()?;
        }
        for note in &notes {
            tracing::warn!(state_dir = %state_dir.display(), note, "the store was not as it was left");
        }
        Ok(Opened { contents: store.contents.clone(), store, notes })
    }

    /// A clean stop: folds everything and writes a copy, so that the next start has nothing to replay.
    pub fn close(mut self) -> Result<(), StoreError> {
        Store::close(&mut self)
    }

    /// Everything in its place: checkpoint, copy, and last of all the sign that this is a store.
    pub(super) fn finish(&mut self) -> Result<(), StoreError> {
        self.fold()?;
        self.copy()?;
        replace(&*self.disk, &self.state_dir.join(FORMAT), layout::format_text().as_bytes())?;
        self.end_creation()
    }

    pub(super) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// On the disk before anything is acknowledged: a stale sign would let a store that lost its FORMAT be taken for an unborn one.
    fn end_creation(&mut self) -> Result<(), StoreError> {
        let path = self.state_dir.join(CREATING);
        let remove = || {
            if path.exists() {
                self.disk.remove(&path)?;
            }
            self.disk.sync_dir(&self.state_dir)
        };
        remove().map_err(|source| io_error("remove", &path, source))
    }

    /// The journal ends below the document that the checkpoint or a copy has: goes on behind the gap.
    fn bridge(&mut self, base: &str) -> Result<String, StoreError> {
        let (end, generation) = (self.journal.end(), self.contents.generation);
        // The copy first. Behind the gap the journal alone rebuilds nothing.
        self.copy()?;
        self.journal.jump_to(generation + 1)?;
        Ok(format!("the journal ends at generation {end}; nothing is lost, the {base} has {generation}"))
    }

    fn fold_and_copy(&mut self, export_every: u64) -> Result<(), StoreError> {
        let folded = match self.folded == Some(self.contents.generation) {
            true => Ok(()),
            false => self.fold(),
        };
        // A checkpoint that cannot be written is one more reason for a copy, so its error waits.
        let age = self.exported.map(|(_, newest)| self.contents.generation.saturating_sub(newest));
        if age.is_none_or(|age| age >= export_every) {
            self.copy()?;
        }
        if let Some((oldest, _)) = self.exported {
            self.journal.trim(oldest, self.limits.history_bytes)?;
        }
        folded
    }

    fn fold(&mut self) -> Result<(), StoreError> {
        self.folded = None;
        let mut outcome = self.checkpoint.fold(&self.state_dir, &self.contents, &self.touched);
        if let Err(what) = &outcome {
            tracing::warn!(state_dir = %self.state_dir.display(), what, "the checkpoint is made anew");
            set_aside(&*self.disk, &self.state_dir, self.last_at, &[SLED])?;
            self.checkpoint = Checkpoint::default();
            outcome = self.checkpoint.fold(&self.state_dir, &self.contents, &self.touched);
        }
        let path = self.state_dir.join(SLED);
        outcome.map_err(|what| io_error("fold the journal into", &path, std::io::Error::other(what)))?;
        self.disk.sync_dir(&self.state_dir).map_err(|source| io_error("write", &self.state_dir, source))?;
        self.touched.clear();
        self.folded = self.checkpoint.generation();
        Ok(())
    }

    fn copy(&mut self) -> Result<(), StoreError> {
        let oldest = export::write(&*self.disk, &self.state_dir, &self.contents)?;
        self.exported = Some((oldest, self.contents.generation));
        Ok(())
    }
}

impl Store for DiskStore {
    fn commit(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        self.journal.append(entries, self.contents.settled)?;
        for entry in entries {
            self.contents.apply(entry);
            self.touched.extend(entry.writes.iter().map(|w| w.key.clone()));
            self.last_at = entry.at;
        }
        if let Err(error) = self.watermark.acknowledge(self.contents.generation) {
            tracing::warn!(%error, "the watermark lags");
        }
        Ok(())
    }

    fn settle(&mut self, generation: u64) -> Result<(), StoreError> {
        // Never ahead of the truth, whoever asks.
        let generation = generation.min(self.contents.generation);
        if generation <= self.contents.settled {
            return Ok(());
        }
        self.contents.settled = generation;
        self.watermark.settle(generation)
    }

    fn tidy(&mut self) -> Result<(), StoreError> {
        self.fold_and_copy(self.limits.export_every)
    }

    fn close(&mut self) -> Result<(), StoreError> {
        self.fold_and_copy(1)
    }
}

/// The lock, in a directory that exists and that others cannot look into.
pub(super) fn enter(state_dir: &Path) -> Result<DirLock, StoreError> {
    if !state_dir.exists() {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(state_dir).map_err(|e| io_error("create", state_dir, e))?;
        RealDisk.sync_dir(parent(state_dir)).map_err(|e| io_error("write", parent(state_dir), e))?;
    }
    // Before the lock: in somebody else's directory not even that file is made.
    Format::of(state_dir)?;
    let lock = DirLock::take(state_dir)?;
    let mode = fs::metadata(state_dir).map_err(|e| io_error("read", state_dir, e))?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(state_dir = %state_dir.display(), "the state directory was open to others; closing it");
        fs::set_permissions(state_dir, Permissions::from_mode(0o700)).map_err(|e| io_error("close", state_dir, e))?;
    }
    Ok(lock)
}

/// Moves what is in the way to the quarantine; what to say of it.
fn clear_away(disk: &dyn Disk, state_dir: &Path, now: UnixTime, parts: &[String]) -> Option<String> {
    let names = parts.join(", ");
    let moved = set_aside(disk, state_dir, now, &parts.iter().map(String::as_str).collect::<Vec<_>>());
    match moved {
        Ok(target) => target.map(|target| format!("{names} could not be used and went to {}", target.display())),
        // It is not needed, so it is no reason not to start.
        Err(error) => Some(format!("{names} cannot be used, and cannot be moved: {}", with_causes(&error))),
    }
}

fn mark_of(contents: &Contents) -> Mark {
    Mark { acknowledged: contents.generation, settled: contents.settled }
}

fn folded(look: &Look) -> Option<u64> {
    match look {
        Look::Good(contents) => Some(contents.generation),
        Look::Missing | Look::Bad(_) | Look::Unseen(_) => None,
    }
}

pub(super) fn damaged(state_dir: &Path, what: String) -> StoreError {
    StoreError::Damaged { path: state_dir.display().to_string(), what }
}
