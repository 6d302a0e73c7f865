//! What a check or a recovery has to say, for people and for programs.
//!
//! Owns the words. Leaves finding out to [`recover`](super::recover).
//!
//! Upholds I-14: parts, generations and counts; never a key's value.
//!
//! `lost` is about generations that were once acknowledged. A torn end was not, so cutting it off loses nothing.

use std::fmt;

use serde::Serialize;

/// A part of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The state directory itself.
    Directory,
    Format,
    Journal,
    Checkpoint,
    Copies,
    Watermark,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Directory => "directory",
            Self::Format => "format",
            Self::Journal => "journal",
            Self::Checkpoint => "checkpoint",
            Self::Copies => "copies",
            Self::Watermark => "watermark",
        })
    }
}

/// How a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Good,
    /// Not as it was left, and the next start deals with it by itself.
    Mends,
    /// A person has to decide: `overlayd store recover`.
    Damaged,
    /// Could not be looked at, because a running overlayd is writing it, say.
    Unseen,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Good => "good",
            Self::Mends => "mends",
            Self::Damaged => "DAMAGED",
            Self::Unseen => "unseen",
        })
    }
}

/// One line of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub part: Part,
    pub state: State,
    pub text: String,
}

/// The whole of it. `Display` is for people, `Serialize` for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Report {
    pub path: String,
    /// True when an ordinary start would succeed.
    pub starts: bool,
    /// True when it would not, and `overlayd store recover` makes a store that starts.
    pub recovers: bool,
    /// The newest document that can be read, if any.
    pub generation: Option<u64>,
    pub records: usize,
    pub findings: Vec<Finding>,
    /// First and last generation that was acknowledged and is not in the newest document.
    pub lost: Option<(u64, u64)>,
    /// What a recovery did, in order. Empty for a check.
    pub done: Vec<String>,
}

impl Report {
    pub(super) fn add(&mut self, part: Part, state: State, text: impl Into<String>) {
        self.findings.push(Finding { part, state, text: text.into() });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "store in {}", self.path)?;
        for finding in &self.findings {
            writeln!(f, "  {:<10} {:<8} {}", finding.part, finding.state, finding.text)?;
        }
        for done in &self.done {
            writeln!(f, "  done: {done}")?;
        }
        match self.generation {
            Some(generation) => writeln!(f, "  newest document: generation {generation}, {} records", self.records)?,
            None => writeln!(f, "  newest document: none can be read")?,
        }
        if let Some((from, to)) = self.lost {
            writeln!(f, "  LOST: generations {from} to {to}")?;
        }
        let path = &self.path;
        match (self.starts, self.recovers) {
            (true, _) => writeln!(f, "overlayd starts from this"),
            (false, true) => {
                writeln!(f, "overlayd does not start from this; next: `overlayd store recover --state-dir {path}`")
            }
            (false, false) => writeln!(f, "overlayd does not start from this"),
        }
    }
}
