//! What became of every object: its condition, its tries, its repairs.
//!
//! Owns the memory between rounds: backoff per object, the generation at which each object was last realized (which is what tells drift from
//! an edit), and the limit on fights with other programs. Leaves nothing to disk: a new process learns all of it from one round.
//!
//! Upholds I-15 (one entry per wanted object), and the rule that one failing object never slows another (A34).
//!
//! An object that is repaired often is not failing; it is *contended*, and backs off in its own way.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    clock::{Now, UnixTime, backoff},
    object::{Key, Subsystem},
};

/// Repairs of one object within [`CONTENTION_WINDOW`] after which somebody is taken to be undoing them on purpose.
/// Five a second for a minute is more than any operator's mistake and less than an event loop's fight (A10, A39).
const CONTENTION_REPAIRS: u32 = 300;
const CONTENTION_WINDOW: Duration = Duration::from_secs(60);

/// Stands for the generation of an object that the document does not want; the first edit makes generation 1.
pub const NOT_WANTED: u64 = 0;

/// How an object is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Condition {
    /// As wanted.
    Realized,
    /// Waiting for something that is not the kernel's to give.
    Pending { why: String },
    /// Cannot be done until a person or another program gives way.
    Blocked { why: String },
    /// Tried and failed; tried again with growing pauses.
    Failing { attempts: u32, since: UnixTime, error: String },
}

impl Condition {
    /// The word used in metric labels.
    pub fn word(&self) -> &'static str {
        match self {
            Condition::Realized => "realized",
            Condition::Pending { .. } => "pending",
            Condition::Blocked { .. } => "blocked",
            Condition::Failing { .. } => "failing",
        }
    }

    pub const WORDS: [&'static str; 4] = ["realized", "pending", "blocked", "failing"];
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    condition: Condition,
    /// The wanted generation that was last realized; `None` before the first time.
    realized: Option<u64>,
    /// The wanted generation that was last tried; [`NOT_WANTED`] before the first try and for a removal.
    tried: u64,
    attempts: u32,
    not_before: Option<Instant>,
    repairs: u32,
    repairs_since: Option<Instant>,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            condition: Condition::Pending { why: "not looked at yet".into() },
            realized: None,
            tried: NOT_WANTED,
            attempts: 0,
            not_before: None,
            repairs: 0,
            repairs_since: None,
        }
    }
}

/// The conditions of all wanted objects.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<Key, Entry>,
    /// Objects that are not realized: what `status` shows, kept apart so that it costs nothing when all is well.
    troubled: BTreeMap<Key, Condition>,
    totals: BTreeMap<Subsystem, usize>,
}

impl Ledger {
    pub fn condition(&self, key: &Key) -> Option<&Condition> {
        self.entries.get(key).map(|entry| &entry.condition)
    }

    /// Every object that is not realized.
    pub fn troubled(&self) -> &BTreeMap<Key, Condition> {
        &self.troubled
    }

    /// Objects by subsystem and condition word.
    pub fn counts(&self) -> BTreeMap<(Subsystem, &'static str), usize> {
        let mut counts = BTreeMap::new();
        for (subsystem, total) in &self.totals {
            counts.insert((*subsystem, Condition::Realized.word()), *total);
        }
        for (key, condition) in &self.troubled {
            *counts.entry((key.subsystem(), condition.word())).or_default() += 1;
            counts.entry((key.subsystem(), Condition::Realized.word())).and_modify(|count| *count -= 1);
        }
        counts
    }

    /// True when nothing is failing or blocked. What is pending waits for somebody else and is as right as it can be.
    pub fn is_in_sync(&self) -> bool {
        self.troubled.values().all(|condition| matches!(condition, Condition::Pending { .. }))
    }

    pub fn realized_at(&self, key: &Key) -> Option<u64> {
        self.entries.get(key).and_then(|entry| entry.realized)
    }

    /// True when the object was wanted at some time since this process started, and tried or found right.
    pub fn was_wanted(&self, key: &Key) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.realized.is_some() || entry.tried != NOT_WANTED)
    }

    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.entries.keys()
    }

    /// True when the object may be tried now. A change of what is wanted ends its backoff, also when it is no longer wanted.
    pub fn is_due(&self, key: &Key, since: Option<u64>, now: Now) -> bool {
        let Some(entry) = self.entries.get(key) else {
            return true;
        };
        let changed = since.unwrap_or(NOT_WANTED) != entry.tried;
        changed || entry.not_before.is_none_or(|at| at <= now.instant)
    }

    /// The earliest moment at which an object that backs off may be tried again.
    pub fn next_due(&self) -> Option<Instant> {
        self.troubled.keys().filter_map(|key| self.entries.get(key).and_then(|entry| entry.not_before)).min()
    }

    /// Notes a condition that no try of ours can end: what ends it is a look at the node, so nothing backs off.
    pub fn set(&mut self, key: &Key, condition: Condition) {
        let entry = self.entry(key);
        entry.condition = condition.clone();
        entry.not_before = None;
        self.note(key, condition);
    }

    /// The object's part of the node could not be seen; failing since the first such look.
    pub fn unseen(&mut self, key: &Key, why: &str, now: Now) {
        let since = match self.condition(key) {
            Some(Condition::Failing { since, .. }) => *since,
            Some(Condition::Realized | Condition::Pending { .. } | Condition::Blocked { .. }) | None => now.unix,
        };
        let error = format!("not seen whole: {why}");
        self.set(key, Condition::Failing { attempts: 0, since, error });
    }

    /// The object is undone as often as it is repaired; it waits out its pause.
    pub fn contend(&mut self, key: &Key) {
        let why = "contended: another program keeps undoing it".to_owned();
        self.entry(key).condition = Condition::Blocked { why: why.clone() };
        self.note(key, Condition::Blocked { why });
    }

    /// The object is as wanted since `since`.
    pub fn realize(&mut self, key: &Key, since: u64) {
        let entry = self.entry(key);
        entry.realized = Some(since);
        entry.tried = since;
        entry.attempts = 0;
        // A repair that is undone a moment later was right for that moment; only time ends its pause.
        if entry.repairs <= CONTENTION_REPAIRS {
            entry.not_before = None;
        }
        if entry.condition != Condition::Realized {
            entry.condition = Condition::Realized;
            self.note(key, Condition::Realized);
        }
    }

    /// A try succeeded. Whether the object is as wanted shows when it is looked at.
    pub fn tried(&mut self, key: &Key, since: u64) {
        self.entry(key).tried = since;
    }

    /// A try failed.
    pub fn fail(&mut self, key: &Key, since: u64, blocked: bool, error: String, now: Now) {
        let entry = self.entry(key);
        let first = match &entry.condition {
            Condition::Failing { since, .. } => *since,
            Condition::Realized | Condition::Pending { .. } | Condition::Blocked { .. } => now.unix,
        };
        entry.attempts = if entry.tried == since { entry.attempts.saturating_add(1) } else { 1 };
        entry.tried = since;
        entry.not_before = Some(now.instant + backoff(entry.attempts));
        let condition = if blocked {
            Condition::Blocked { why: error }
        } else {
            Condition::Failing { attempts: entry.attempts, since: first, error }
        };
        entry.condition = condition.clone();
        self.note(key, condition);
    }

    /// The object had drifted and was repaired; counts towards contention.
    pub fn repaired(&mut self, key: &Key, now: Now) {
        let entry = self.entry(key);
        let fresh = entry.repairs_since.is_none_or(|since| now.instant.duration_since(since) > CONTENTION_WINDOW);
        if fresh {
            entry.repairs = 0;
            entry.repairs_since = Some(now.instant);
        }
        entry.repairs = entry.repairs.saturating_add(1);
        if entry.repairs > CONTENTION_REPAIRS {
            entry.not_before = Some(now.instant + backoff(entry.repairs - CONTENTION_REPAIRS));
            entry.repairs_since = Some(now.instant);
        }
    }

    /// True while the object's repairs are being undone.
    pub fn is_contended(&self, key: &Key, now: Now) -> bool {
        let is_recent = |since: Instant| now.instant.saturating_duration_since(since) <= CONTENTION_WINDOW;
        self.entries
            .get(key)
            .is_some_and(|entry| entry.repairs > CONTENTION_REPAIRS && entry.repairs_since.is_some_and(is_recent))
    }

    /// The object is no longer wanted.
    pub fn forget(&mut self, key: &Key) {
        if self.entries.remove(key).is_some() {
            self.totals.entry(key.subsystem()).and_modify(|total| *total -= 1);
        }
        self.troubled.remove(key);
    }

    fn entry(&mut self, key: &Key) -> &mut Entry {
        self.entries.entry(key.clone()).or_insert_with(|| {
            *self.totals.entry(key.subsystem()).or_default() += 1;
            Entry::default()
        })
    }

    fn note(&mut self, key: &Key, condition: Condition) {
        if condition == Condition::Realized {
            self.troubled.remove(key);
        } else {
            self.troubled.insert(key.clone(), condition);
        }
    }
}
