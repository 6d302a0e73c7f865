//! The names of the files in a state directory, in one place.
//!
//! Owns names. Leaves contents to the file that is named after each.
//!
//! Upholds I-12: names carry generations with leading zeros, so that sorting names sorts generations.
//!
//! `CREATING` and `FORMAT` bracket the birth of a store: with the first and without the second nothing was ever acknowledged.

use std::path::{Path, PathBuf};

use super::port::GENERATION_MAX;

pub(super) const FORMAT: &str = "FORMAT";
pub(super) const FORMAT_TMP: &str = "FORMAT.tmp";
pub(super) const CREATING: &str = "CREATING";
pub(super) const CREATING_TMP: &str = "CREATING.tmp";
pub(super) const LOCK: &str = "lock";
pub(super) const WATERMARK: &str = "watermark";
pub(super) const JOURNAL: &str = "journal";
pub(super) const SLED: &str = "sled";
pub(super) const EXPORT: &str = "export";
pub(super) const QUARANTINE: &str = "quarantine";
/// Copies of the checkpoint that were made to be looked at; any that outlived their process are removed at the next look.
pub(super) const LOOK_PREFIX: &str = "sled.look-";

/// The format that this version writes, and the highest it reads.
pub(super) const KNOWN_FORMAT: u32 = 1;
const FORMAT_PREFIX: &str = "overlayd-store ";

/// What makes a directory a store: any of these without `FORMAT` is a store that lost a file.
pub(super) const PARTS: [&str; 4] = [JOURNAL, SLED, EXPORT, WATERMARK];

/// True for a name that a store makes, and for `lost+found`, which every ext4 mount point has.
pub(super) fn is_known(name: &str) -> bool {
    PARTS.contains(&name)
        || [FORMAT, FORMAT_TMP, CREATING, CREATING_TMP, LOCK, QUARANTINE, "lost+found"].contains(&name)
        || name.starts_with(LOOK_PREFIX)
}

pub(super) fn format_text() -> String {
    format!("{FORMAT_PREFIX}{KNOWN_FORMAT}\n")
}

/// The number in a `FORMAT` file, if it is one.
pub(super) fn parse_format(bytes: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(bytes).ok()?;
    text.strip_prefix(FORMAT_PREFIX)?.strip_suffix('\n')?.parse().ok()
}

pub(super) fn segment_name(first_generation: u64) -> String {
    format!("{first_generation:020}.journal")
}

pub(super) fn parse_segment_name(name: &str) -> Option<u64> {
    parse_padded(name.strip_suffix(".journal")?)
}

pub(super) fn export_name(generation: u64) -> String {
    format!("last-good-{generation:020}.json")
}

pub(super) fn parse_export_name(name: &str) -> Option<u64> {
    parse_padded(name.strip_prefix("last-good-")?.strip_suffix(".json")?)
}

fn parse_padded(digits: &str) -> Option<u64> {
    let generation = (digits.len() == 20).then(|| digits.parse().ok()).flatten()?;
    (generation <= GENERATION_MAX).then_some(generation)
}

/// `quarantine/<seconds>`, or the first `-2`, `-3` … that is free.
pub(super) fn quarantine_dir(state_dir: &Path, unix: u64) -> PathBuf {
    let base = state_dir.join(QUARANTINE);
    let plain = base.join(unix.to_string());
    if !plain.exists() {
        return plain;
    }
    (2u32..).map(|n| base.join(format!("{unix}-{n}"))).find(|p| !p.exists()).unwrap_or(plain)
}
