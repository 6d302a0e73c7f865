//! Where damaged and outdated parts go: nothing that a store once wrote is deleted because it is wrong.
//!
//! Owns moving there. Leaves deciding what goes to [`open`](super::open) and [`recover`](super::recover).
//!
//! Upholds I-02: what could not be read stays for somebody who can read it.
//!
//! Nothing reads the quarantine, and nothing empties it: that is for a person, when the node is well again.

use std::fs;
use std::path::{Path, PathBuf};

use super::disk::{Disk, io_error, parent, replace};
use super::journal::refill;
use super::layout::{EXPORT, FORMAT, QUARANTINE, WATERMARK, quarantine_dir};
use super::port::StoreError;
use super::scan::Torn;
use super::survey::Survey;
use crate::clock::UnixTime;

/// Moves the named parts into a quarantine directory of their own; where they are now, if there were any.
pub(super) fn set_aside(
    disk: &dyn Disk,
    state_dir: &Path,
    now: UnixTime,
    parts: &[&str],
) -> Result<Option<PathBuf>, StoreError> {
    let present: Vec<&&str> = parts.iter().filter(|part| state_dir.join(part).exists()).collect();
    if present.is_empty() {
        return Ok(None);
    }
    let target = new_quarantine(disk, state_dir, now)?;
    for part in present {
        let (from, to) = (state_dir.join(part), target.join(part.replace('/', "-")));
        let moved = disk.rename(&from, &to).and_then(|()| disk.sync_dir(parent(&from)));
        moved.and_then(|()| disk.sync_dir(&target)).map_err(|source| io_error("set aside", &from, source))?;
    }
    Ok(Some(target))
}

/// Paths, below the state directory, of what is in the way of a part that a start or a recovery makes anew.
pub(super) fn unfit(state_dir: &Path, survey: &Survey) -> Vec<String> {
    let wrong_kind = |name: &&str| match *name {
        EXPORT => state_dir.join(name).is_file(),
        name => state_dir.join(name).is_dir(),
    };
    let mut parts: Vec<String> =
        [FORMAT, WATERMARK, EXPORT].iter().filter(|name| wrong_kind(name)).map(|name| (*name).to_owned()).collect();
    for bad in survey.exports.iter().filter(|f| f.contents.is_err()) {
        let name = bad.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        parts.push(format!("{EXPORT}/{name}"));
    }
    parts.retain(|part| state_dir.join(part).exists());
    parts
}

fn new_quarantine(disk: &dyn Disk, state_dir: &Path, now: UnixTime) -> Result<PathBuf, StoreError> {
    let (base, target) = (state_dir.join(QUARANTINE), quarantine_dir(state_dir, now.0));
    let make = || {
        disk.create_dir(&base)?;
        disk.sync_dir(state_dir)?;
        disk.create_dir(&target)?;
        disk.sync_dir(&base)
    };
    make().map_err(|source| io_error("create", &target, source))?;
    Ok(target)
}

/// Keeps a copy of the torn end and cuts it off.
pub(super) fn cut_off(
    disk: &dyn Disk,
    state_dir: &Path,
    segment_bytes: u64,
    now: UnixTime,
    torn: &Torn,
) -> Result<String, StoreError> {
    let name = torn.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let bytes = fs::read(&torn.path).map_err(|source| io_error("read", &torn.path, source))?;
    let target = new_quarantine(disk, state_dir, now)?;
    replace(
        disk,
        &target.join(format!("{name}.torn-at-{}", torn.keep)),
        &bytes[torn.keep as usize..torn.len as usize],
    )?;
    let cut = || match torn.keep {
        0 => disk.remove(&torn.path).and_then(|()| disk.sync_dir(parent(&torn.path))),
        keep => refill(&mut *disk.open(&torn.path)?, keep, segment_bytes),
    };
    cut().map_err(|source| io_error("cut", &torn.path, source))?;
    let bytes = torn.len - torn.keep;
    Ok(format!("{bytes} bytes of an unfinished write at the end of {name} were moved to {}", target.display()))
}
