//! What the loop lets others see: what is known about the node, and what the last round did.
//!
//! Owns the lock between the loop and its readers. Leaves filling it in to [`engine`](super::engine).
//!
//! Upholds B19: a reader never waits for a round, only for the moment in which its outcome is written down.
//!
//! A view may be older than the node. It says so nowhere but in [`Progress`]: whoever needs fresh figures asks for a look first.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use super::ledger::Ledger;
use crate::{
    ids::IfName,
    object::{Key, Subsystem},
    observed::Snapshot,
};

/// What is known about the node, for readers outside the loop. They never wait for a round.
#[derive(Debug, Default)]
pub struct View {
    pub snapshot: Snapshot,
    pub ledger: Ledger,
    pub progress: Progress,
    pub swept: Swept,
}

/// Names of links that are remembered after they were swept (I-15): more than a node has segments and containers.
const SWEPT_MAX: usize = 8192;

/// Links of ours that were removed though this process had never wanted them: what an earlier life of the node left behind.
#[derive(Debug, Default)]
pub struct Swept {
    /// How many there were before the ones that are remembered.
    forgotten: u64,
    names: VecDeque<IfName>,
}

impl Swept {
    /// How many links were swept so far.
    pub fn count(&self) -> u64 {
        self.forgotten + self.names.len() as u64
    }

    /// The links that were swept after there had been `count`, as far as they are remembered.
    pub fn after(&self, count: u64) -> BTreeSet<IfName> {
        let known = usize::try_from(count.saturating_sub(self.forgotten)).unwrap_or(usize::MAX);
        self.names.iter().skip(known).cloned().collect()
    }

    pub(super) fn note(&mut self, name: &IfName) {
        if self.names.len() == SWEPT_MAX {
            self.names.pop_front();
            self.forgotten += 1;
        }
        self.names.push_back(name.clone());
    }
}

/// How far the loop has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Rounds finished.
    pub rounds: u64,
    /// Every edit up to this generation was part of a finished round.
    pub covered: u64,
    /// The last generation at which the node was as the document said.
    pub converged: u64,
    pub in_sync: bool,
    /// True once one full round has seen the whole node.
    pub ready: bool,
}

/// The one place in which the loop's view is locked; a reader that panicked does not take the loop with it.
#[derive(Debug, Clone, Default)]
pub struct SharedView(Arc<RwLock<View>>);

impl SharedView {
    pub fn read(&self) -> RwLockReadGuard<'_, View> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, View> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one round did, for the log and the metrics.
#[derive(Debug, Clone, Default)]
pub struct Round {
    pub full: bool,
    pub generation: u64,
    pub observe: Duration,
    pub plan: Duration,
    pub apply: Duration,
    pub verify: Duration,
    pub actions: Vec<ActionRecord>,
    /// Objects of ours that had changed though the document had not: what they are and how they differed.
    pub drift: Vec<(Key, &'static str)>,
    /// Differences that are left, by subsystem and verb.
    pub left: BTreeMap<(Subsystem, &'static str), usize>,
    pub in_sync: bool,
    /// The node could not be looked at; nothing was planned.
    pub blind: Option<String>,
    /// Wants another full round at this moment: something backs off, or the cache proved wrong.
    pub again_at: Option<Instant>,
}

#[derive(Debug, Clone)]
pub struct ActionRecord {
    pub key: Key,
    pub verb: &'static str,
    /// `ok`, `failed` or `skipped`.
    pub result: &'static str,
    pub error: Option<String>,
}
