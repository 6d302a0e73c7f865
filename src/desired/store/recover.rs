//! The store seen by a person: reading without a daemon, checking, moving out and in, and mending what is damaged.
//!
//! Owns the decision what to keep of a damaged store. Leaves judging its parts to [`survey`](super::survey).
//!
//! Upholds I-02 (a document is put together without gaps or not at all) and I-12 (a generation that was lost is never given out again).
//!
//! Nothing is deleted: what is not used goes to `quarantine/`. And before the first part is moved, the recovered document is on the
//! disk as a copy, so a recovery that is interrupted can be run again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint::{Look, look, remove_old_looks};
use super::disk::{RealDisk, io_error};
use super::export as copies;
use super::layout::{JOURNAL, SLED, WATERMARK};
use super::lock::DirLock;
use super::open::{DiskStore, Limits, Opened, damaged, enter};
use super::port::{Contents, Entry, Store, StoreError, Write};
use super::quarantine::{set_aside, unfit};
use super::report::{Part, Report, State};
use super::scan::scan;
use super::survey::{Format, Rebuilt, Survey};
use crate::{clock::UnixTime, failure::with_causes};

/// A daemon that trims or rotates while we read makes one reading fail; it does so at most once in many seconds.
const READS: u32 = 5;

/// The document as it is on the disk, from copies and journal.
///
/// *Guarantees*: takes no lock, opens nothing for writing, works while a daemon runs.
pub fn read_only(state_dir: &Path) -> Result<Contents, StoreError> {
    expect_known(state_dir)?;
    let read = || {
        let survey = Survey::take(state_dir, Look::Missing)?;
        survey.verdict().map(|rebuilt| rebuilt.contents).map_err(|what| damaged(state_dir, what))
    };
    again(read)
}

/// The entries that the journal still has, after generation `after`, oldest first. As [`read_only`], it needs no lock.
pub fn history(state_dir: &Path, after: u64) -> Result<Vec<Entry>, StoreError> {
    expect_known(state_dir)?;
    let read = || match scan(state_dir)? {
        found if found.damage.is_empty() => Ok(found),
        found => Err(damaged(state_dir, found.damage.join("; "))),
    };
    Ok(again(read)?.entries.into_iter().filter(|(g, _)| *g > after).map(|(_, entry)| entry).collect())
}

/// The document as JSON, each record changed by `redact` first. Without a digest, since records may have changed.
pub fn export(
    state_dir: &Path,
    redact: &dyn Fn(&str, &mut serde_json::Value),
) -> Result<serde_json::Value, StoreError> {
    let contents = read_only(state_dir)?;
    copies::redacted(&contents, redact)
        .map_err(|e| io_error("encode the store in", state_dir, std::io::Error::other(e)))
}

/// What is in a copy that [`export`] made.
///
/// *Errors*: [`StoreError::BadCopy`].
pub fn contents_of(copy: &str) -> Result<Contents, StoreError> {
    copies::parse(copy).map(|parsed| parsed.contents).map_err(|what| StoreError::BadCopy { what })
}

/// Makes the records of `copy` (from [`export`], or a file of `export/`) the document: one entry, or a new store.
///
/// *Errors*: [`StoreError::InUse`] while a daemon runs; [`StoreError::BadCopy`] before anything is changed.
pub fn import(state_dir: &Path, copy: &str, now: UnixTime) -> Result<Report, StoreError> {
    let wanted = copies::parse(copy).map_err(|what| StoreError::BadCopy { what })?.contents;
    let lock = enter(state_dir)?;
    let format = Format::of(state_dir)?;
    if let Some(problem) = format.problem(state_dir) {
        return Err(problem);
    }
    let summary = format!("import of a copy of generation {}", wanted.generation);
    let entry =
        |generation, writes| Entry { generation, at: now, origin: "overlayd store import".into(), summary, writes };
    let disk = Arc::new(RealDisk);
    let generation = match format {
        Format::Known => {
            let Opened { mut store, contents, .. } = DiskStore::load(disk, state_dir, Limits::default(), now, lock)?;
            store.commit(&[entry(contents.generation + 1, difference(&contents, &wanted))])?;
            store.close()?;
            contents.generation + 1
        }
        Format::Unborn | Format::Newer(_) | Format::Unreadable | Format::Missing => {
            let generation = wanted.generation.max(1);
            let first = entry(generation, difference(&Contents::default(), &wanted));
            DiskStore::create(disk, state_dir, Limits::default(), &first, lock)?.store.close()?;
            generation
        }
    };
    let mut report = check(state_dir)?;
    report.done.push(format!("{} records became generation {generation}", wanted.records.len()));
    Ok(report)
}

/// How the store is. Changes nothing; works while a daemon runs, but then cannot judge the checkpoint.
pub fn check(state_dir: &Path) -> Result<Report, StoreError> {
    std::fs::metadata(state_dir).map_err(|source| io_error("open", state_dir, source))?;
    let format = Format::of(state_dir)?;
    // Only where there is a store: a check must not leave a lock file in an empty directory.
    let lock = match format {
        Format::Unborn => None,
        Format::Known | Format::Newer(_) | Format::Unreadable | Format::Missing => Some(DirLock::take(state_dir)),
    };
    let looked = match &lock {
        Some(Err(StoreError::InUse { .. })) => Look::Unseen("an overlayd that runs is writing it".into()),
        Some(Ok(_) | Err(_)) | None => match look(state_dir, state_dir) {
            Look::Unseen(_) => look(state_dir, &std::env::temp_dir()),
            seen @ (Look::Good(_) | Look::Missing | Look::Bad(_)) => seen,
        },
    };
    let mut report = describe(state_dir, format, &Survey::take(state_dir, looked)?);
    if let Some(Err(error @ StoreError::Io { .. })) = &lock {
        report.add(Part::Directory, State::Damaged, with_causes(error));
        report.starts = false;
    }
    Ok(report)
}

/// Makes a store that starts out of one that does not, and says what it did and what is lost.
///
/// *Errors*: [`StoreError::NothingLeft`] when no part holds a whole document; then nothing was changed.
pub fn recover(state_dir: &Path, now: UnixTime) -> Result<Report, StoreError> {
    std::fs::metadata(state_dir).map_err(|source| io_error("open", state_dir, source))?;
    let lock = enter(state_dir)?;
    let format = Format::of(state_dir)?;
    if let Format::Newer(_) | Format::Unborn = format {
        let problem = format.problem(state_dir).map_or(Ok(()), Err);
        return problem.and_then(|()| Ok(describe(state_dir, format, &Survey::take(state_dir, Look::Missing)?)));
    }
    remove_old_looks(state_dir)?;
    let survey = Survey::take_all(state_dir)?;
    let mut report = describe(state_dir, format, &survey);
    if report.starts && report.findings.iter().all(|f| f.state == State::Good) {
        report.done.push("nothing: every part is good".into());
        return Ok(report);
    }
    let Some(rebuilt) = survey.newest() else {
        return Err(StoreError::NothingLeft { path: state_dir.display().to_string() });
    };
    let done = match survey.verdict() {
        Ok(_) => mend(state_dir, &survey, now, lock)?,
        Err(_) => rebuild(state_dir, &survey, &rebuilt, now, lock)?,
    };
    let lost = report.lost;
    report = check(state_dir)?;
    report.done = done;
    report.lost = lost;
    Ok(report)
}

/// The journal is whole and nothing is lost: only the parts that can be made anew are.
fn mend(state_dir: &Path, survey: &Survey, now: UnixTime, lock: DirLock) -> Result<Vec<String>, StoreError> {
    let aside = set_aside(&RealDisk, state_dir, now, &borrow(&bad_parts(state_dir, survey)))?;
    let opened = DiskStore::load(Arc::new(RealDisk), state_dir, Limits::default(), now, lock)?;
    let mut store = opened.store;
    store.finish()?;
    let mut done = moved(aside);
    done.extend(opened.notes);
    done.push(format!("checkpoint, copy and FORMAT were written for generation {}", store.contents().generation));
    store.close()?;
    Ok(done)
}

/// A new journal that begins with the recovered document, at a generation that was never given out.
fn rebuild(
    state_dir: &Path,
    survey: &Survey,
    rebuilt: &Rebuilt,
    now: UnixTime,
    lock: DirLock,
) -> Result<Vec<String>, StoreError> {
    let mut contents = rebuilt.contents.clone();
    let from = contents.generation;
    contents.generation = survey.highest() + 1;
    // Bad copies before the new one is written, which would remove old ones.
    let mut done = moved(set_aside(&RealDisk, state_dir, now, &borrow(&bad_parts(state_dir, survey)))?);
    copies::write(&RealDisk, state_dir, &contents)?;
    // The journal, and with it all that speaks of the old line of generations.
    done.extend(moved(set_aside(&RealDisk, state_dir, now, &[JOURNAL, WATERMARK, SLED])?));
    let summary = format!("recovery of generation {from}, from the {}", rebuilt.base);
    let first = Entry {
        generation: contents.generation,
        at: now,
        origin: "overlayd store recover".into(),
        summary: summary.clone(),
        writes: difference(&Contents::default(), &contents),
    };
    DiskStore::build(Arc::new(RealDisk), state_dir, Limits::default(), &first, lock)?.store.close()?;
    done.push(format!("{summary}: it became generation {}", first.generation));
    Ok(done)
}

/// Paths, below the state directory, of the parts that can be made anew and are bad.
fn bad_parts(state_dir: &Path, survey: &Survey) -> Vec<String> {
    let mut parts = Vec::new();
    if let Look::Bad(_) | Look::Unseen(_) = survey.look {
        parts.push(SLED.to_owned());
    }
    parts.extend(unfit(state_dir, survey));
    parts.retain(|part| state_dir.join(part).exists());
    parts
}

fn borrow(parts: &[String]) -> Vec<&str> {
    parts.iter().map(String::as_str).collect()
}

fn moved(aside: Option<PathBuf>) -> Vec<String> {
    aside.map(|path| format!("damaged and outdated parts were moved to {}", path.display())).into_iter().collect()
}

/// The writes that turn one document into the other.
fn difference(from: &Contents, to: &Contents) -> Vec<Write> {
    let gone = from.records.keys().filter(|k| !to.records.contains_key(*k));
    let gone = gone.map(|key| Write { key: key.clone(), value: None });
    let new = to.records.iter().filter(|(key, value)| from.records.get(*key) != Some(value));
    gone.chain(new.map(|(key, value)| Write { key: key.clone(), value: Some(value.clone()) })).collect()
}

fn describe(state_dir: &Path, format: Format, survey: &Survey) -> Report {
    let mut report = Report { path: state_dir.display().to_string(), ..Report::default() };
    if format == Format::Unborn {
        report.starts = true;
        report.add(Part::Format, State::Good, "no store yet; the first start creates one");
        return report;
    }
    match format.problem(state_dir) {
        None => report.add(Part::Format, State::Good, "known"),
        Some(StoreError::Damaged { what, .. }) => report.add(Part::Format, State::Damaged, what),
        Some(problem) => report.add(Part::Format, State::Damaged, problem.to_string()),
    }
    describe_journal(&mut report, survey);
    match &survey.look {
        Look::Good(c) => report.add(Part::Checkpoint, State::Good, format!("generation {}", c.generation)),
        Look::Missing => report.add(Part::Checkpoint, State::Mends, "missing"),
        Look::Bad(what) => report.add(Part::Checkpoint, State::Mends, what.clone()),
        Look::Unseen(what) => report.add(Part::Checkpoint, State::Unseen, what.clone()),
    }
    for found in &survey.exports {
        let generation = found.generation;
        match &found.contents {
            Ok(_) => report.add(Part::Copies, State::Good, format!("generation {generation}")),
            Err(what) => report.add(Part::Copies, State::Mends, format!("generation {generation}: {what}")),
        }
    }
    if survey.exports.is_empty() {
        report.add(Part::Copies, State::Mends, "there is none");
    }
    match survey.mark {
        Some(m) => report.add(Part::Watermark, State::Good, format!("{} kept, {} applied", m.acknowledged, m.settled)),
        None => report.add(Part::Watermark, State::Mends, "missing or unreadable; it is only a hint"),
    }
    if let Some(rebuilt) = survey.newest() {
        report.generation = Some(rebuilt.contents.generation);
        report.records = rebuilt.contents.records.len();
        report.lost = survey.lost(rebuilt.contents.generation).map(std::ops::RangeInclusive::into_inner);
    }
    if let Some((from, to)) = report.lost {
        // Parts can each be whole and still not reach each other: a segment that is gone leaves no other trace.
        report.add(Part::Journal, State::Damaged, format!("generations {from} to {to} were kept and cannot be read"));
    }
    report.starts = format == Format::Known && survey.verdict().is_ok();
    report.recovers = !report.starts && report.generation.is_some() && !matches!(format, Format::Newer(_));
    report
}

fn describe_journal(report: &mut Report, survey: &Survey) {
    for damage in &survey.scan.damage {
        report.add(Part::Journal, State::Damaged, damage.clone());
    }
    if let Some(torn) = &survey.scan.torn {
        let bytes = torn.len - torn.keep;
        report.add(Part::Journal, State::Mends, format!("ends in {bytes} bytes of an unfinished write"));
    }
    if let (Some(end), true) = (survey.scan.end(), survey.scan.damage.is_empty()) {
        let first = survey.scan.segments.first().map_or(0, |s| s.first);
        report.add(Part::Journal, State::Good, format!("generations {first} to {end}"));
    }
}

fn expect_known(state_dir: &Path) -> Result<(), StoreError> {
    match Format::of(state_dir)? {
        Format::Known => Ok(()),
        Format::Unborn => {
            Err(StoreError::NotOurs { path: state_dir.display().to_string(), what: "there is no store in it".into() })
        }
        other @ (Format::Newer(_) | Format::Unreadable | Format::Missing) => {
            other.problem(state_dir).map_or_else(|| unreachable!("each of these is a problem"), Err)
        }
    }
}

fn again<T>(read: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let mut outcome = read();
    for _ in 1..READS {
        if outcome.is_ok() {
            break;
        }
        outcome = read();
    }
    outcome
}
