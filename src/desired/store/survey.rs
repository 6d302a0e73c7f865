//! Everything that a state directory holds, read once and judged as a whole.
//!
//! Owns the question "which document is this, and is anything missing?". Leaves acting on the answer to
//! [`open`](super::open) and [`recover`](super::recover); changes nothing.
//!
//! Upholds I-01 and I-02: contents are only given when no part of the store speaks of a generation that they do not reach.
//!
//! A bad checkpoint next to a whole journal is not damage: a power cut in the middle of a fold leaves exactly that, and a node must
//! come back from a power cut by itself.

use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::path::Path;

use super::checkpoint::{Look, look};
use super::disk::{io_error, names_in, read_if_there};
use super::export::{self, Found};
use super::layout::{self, CREATING, FORMAT, KNOWN_FORMAT, PARTS, QUARANTINE};
use super::port::{Contents, StoreError};
use super::scan::{Scan, scan};
use super::watermark::Mark;

/// What kind of directory this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Known,
    /// Nothing was ever acknowledged from it: it is empty, or its creation was interrupted.
    Unborn,
    Newer(u32),
    Unreadable,
    /// A store without its `FORMAT`.
    Missing,
}

impl Format {
    /// *Errors*: [`StoreError::NotOurs`] for a directory with somebody else's files in it.
    pub(super) fn of(state_dir: &Path) -> Result<Self, StoreError> {
        if state_dir.exists() && !state_dir.is_dir() {
            return Err(io_error("use", state_dir, ErrorKind::NotADirectory.into()));
        }
        // First of all: where the directory may not be entered, that has to be said of it and not of a file in it.
        names_in(state_dir)?;
        let format = state_dir.join(FORMAT);
        if format.is_dir() {
            return Ok(Self::Unreadable);
        }
        if let Some(bytes) = read_if_there(&format)? {
            return Ok(match layout::parse_format(&bytes) {
                Some(found) if found > KNOWN_FORMAT => Self::Newer(found),
                Some(found) if found == KNOWN_FORMAT => Self::Known,
                Some(_) | None => Self::Unreadable,
            });
        }
        let names = names_in(state_dir)?;
        if let Some(strange) = names.iter().find(|n| !layout::is_known(n)) {
            let path = state_dir.display().to_string();
            return Err(StoreError::NotOurs { path, what: format!("it has no FORMAT file, and it holds {strange:?}") });
        }
        let has = |name: &str| names.iter().any(|n| n == name);
        match !has(CREATING) && (has(QUARANTINE) || PARTS.iter().any(|part| has(part))) {
            true => Ok(Self::Missing),
            false => Ok(Self::Unborn),
        }
    }

    /// What stops an ordinary start, if anything does.
    pub(super) fn problem(self, state_dir: &Path) -> Option<StoreError> {
        let path = state_dir.display().to_string();
        let damaged = |what: &str| Some(StoreError::Damaged { path: path.clone(), what: what.into() });
        match self {
            Self::Known | Self::Unborn => None,
            Self::Newer(found) => Some(StoreError::Newer { path, found, known: KNOWN_FORMAT }),
            Self::Unreadable => damaged("its file FORMAT cannot be read"),
            Self::Missing => damaged("its file FORMAT is missing"),
        }
    }
}

/// What was found.
#[derive(Debug)]
pub(super) struct Survey {
    pub mark: Option<Mark>,
    pub scan: Scan,
    pub exports: Vec<Found>,
    pub look: Look,
}

/// A document that was put together, and from what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rebuilt {
    pub contents: Contents,
    pub base: String,
}

impl Survey {
    /// Reads all parts. `look` has been taken by the caller, who knows whether a daemon is writing the checkpoint.
    ///
    /// *Errors*: only for a disk that does not answer.
    pub(super) fn take(state_dir: &Path, look: Look) -> Result<Self, StoreError> {
        // The note first: a daemon that goes on writing moves the journal ahead of it, never behind.
        let mark = Mark::read(state_dir)?;
        let exports = export::find(state_dir)?;
        let scan = scan(state_dir)?;
        Ok(Self { mark, scan, exports, look })
    }

    /// With a look at the checkpoint, for the holder of the lock.
    pub(super) fn take_all(state_dir: &Path) -> Result<Self, StoreError> {
        Self::take(state_dir, look(state_dir, state_dir))
    }

    /// The newest document that can be put together without a gap, from whichever base reaches furthest.
    pub(super) fn newest(&self) -> Option<Rebuilt> {
        let mut bases: Vec<(String, Contents)> = Vec::new();
        if let Look::Good(contents) = &self.look {
            bases.push((format!("checkpoint at generation {}", contents.generation), contents.clone()));
        }
        for found in self.exports.iter().rev() {
            if let Ok(contents) = &found.contents {
                bases.push((format!("copy of generation {}", contents.generation), contents.clone()));
            }
        }
        for first in self.scan.beginnings() {
            let empty = Contents { generation: first.saturating_sub(1), ..Contents::default() };
            bases.push((format!("journal from generation {first}"), empty));
        }
        let mut best: Option<(String, Contents, u64)> = None;
        for (base, contents) in bases {
            let reach = self.reach(contents.generation);
            // A journal's beginning that lost its own first entry is not a document.
            let real = contents.generation > 0 && !base.starts_with("journal") || reach > contents.generation;
            if real && best.as_ref().is_none_or(|(_, _, so_far)| reach > *so_far) {
                best = Some((base, contents, reach));
            }
        }
        let (base, mut contents, reach) = best?;
        for generation in contents.generation + 1..=reach {
            if let Some(entry) = self.scan.entries.get(&generation) {
                contents.apply(entry);
            }
        }
        contents.settled = self.settled().min(contents.generation);
        Some(Rebuilt { contents, base })
    }

    /// The highest generation that any part speaks of.
    pub(super) fn highest(&self) -> u64 {
        let looked = match &self.look {
            Look::Good(contents) => contents.generation,
            Look::Missing | Look::Bad(_) | Look::Unseen(_) => 0,
        };
        let marked = self.mark.map_or(0, |m| m.acknowledged);
        let exported = self.exports.iter().map(|f| f.generation).max().unwrap_or(0);
        self.scan.highest.max(marked).max(looked).max(exported)
    }

    /// Generations that were acknowledged and that `reached` does not include.
    pub(super) fn lost(&self, reached: u64) -> Option<RangeInclusive<u64>> {
        (reached < self.highest()).then(|| reached + 1..=self.highest())
    }

    /// The document, if nothing that matters is damaged.
    pub(super) fn verdict(&self) -> Result<Rebuilt, String> {
        let mut damage = self.scan.damage.clone();
        let newest = self.newest();
        match &newest {
            None => damage.push("no part of it can be read as a whole document".into()),
            Some(rebuilt) => {
                if let Some(lost) = self.lost(rebuilt.contents.generation) {
                    damage.push(format!("generations {} to {} were kept and cannot be read", lost.start(), lost.end()));
                }
            }
        }
        match (newest, damage.is_empty()) {
            (Some(rebuilt), true) => Ok(rebuilt),
            (Some(_) | None, _) => {
                // The checkpoint's own trouble is only of interest next to other trouble.
                if let Look::Bad(what) | Look::Unseen(what) = &self.look {
                    damage.push(format!("checkpoint: {what}"));
                }
                Err(damage.join("; "))
            }
        }
    }

    /// The good copies' generations, oldest first.
    pub(super) fn exported(&self) -> Vec<u64> {
        self.exports.iter().filter(|f| f.contents.is_ok()).map(|f| f.generation).collect()
    }

    fn reach(&self, base: u64) -> u64 {
        let mut reach = base;
        while self.scan.entries.contains_key(&(reach + 1)) {
            reach += 1;
        }
        reach
    }

    fn settled(&self) -> u64 {
        let looked = match &self.look {
            Look::Good(contents) => contents.settled,
            Look::Missing | Look::Bad(_) | Look::Unseen(_) => 0,
        };
        let exported =
            self.exports.iter().filter_map(|f| f.contents.as_ref().ok()).map(|c| c.settled).max().unwrap_or(0);
        self.mark.map_or(0, |m| m.settled).max(self.scan.settled).max(looked).max(exported)
    }
}
