//! Every file of a store, damaged in every way we could think of. One rule: the whole document, or an error and then a recovery that
//! says what it did; never an empty document, and no acknowledged generation lost while another copy of it exists.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::super::{
    Contents, Entry, Report, Store, StoreError, check, contents_of as contents_of_copy, import, read_only, recover,
};
use super::{copy_dir, entry, expected, open};
use crate::clock::UnixTime;

const LAST: u64 = 40;

fn fast_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn filled(dir: &Path, cleanly: bool) {
    let mut store = open(dir).unwrap().store;
    for generation in 2..=LAST {
        store.commit(&[entry(generation)]).unwrap();
        store.settle(generation - 1).unwrap();
        if generation.is_multiple_of(9) {
            store.tidy().unwrap();
        }
    }
    if cleanly {
        store.close().unwrap();
    }
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(base: &Path, dir: &Path, out: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for item in fs::read_dir(dir).unwrap() {
            let path = item.unwrap().path();
            match path.is_dir() {
                true => walk(base, &path, out),
                false => drop(out.insert(path.strip_prefix(base).unwrap().into(), fs::read(&path).unwrap())),
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(dir, dir, &mut out);
    out.remove(Path::new("lock"));
    out
}

/// Damaged versions of a file; `None` is a file that is gone.
fn versions(bytes: &[u8]) -> Vec<(String, Option<Vec<u8>>)> {
    let mut out = vec![("missing".into(), None)];
    for keep in [0, 1, bytes.len() / 3, bytes.len() / 2, bytes.len().saturating_sub(1)] {
        out.push((format!("cut to {keep}"), Some(bytes[..keep].to_vec())));
    }
    out.push(("zeroed".into(), Some(vec![0; bytes.len()])));
    let mut half = bytes.to_vec();
    half[bytes.len() / 2..].fill(0);
    out.push(("half zeroed".into(), Some(half)));
    out.push(("grown".into(), Some([bytes, b"more of it"].concat())));
    let step = (bytes.len() / 24).max(1);
    for at in (0..bytes.len()).step_by(step).chain([bytes.len() - 1]) {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1 << (at % 8);
        out.push((format!("bit flipped at {at}"), Some(flipped)));
    }
    out
}

fn contents_of(dir: &Path) -> Contents {
    open(dir).unwrap().contents
}

/// What came out of one case, for counting.
#[derive(Default, Debug)]
struct Tally {
    intact: u32,
    recovered: u32,
    recovered_with_loss: u32,
    newer: u32,
}

impl Tally {
    fn case(&mut self, dir: &Path, name: &str, may_lose: bool) {
        let before = files(dir);
        match open(dir) {
            Ok(opened) => {
                assert_eq!(opened.contents.generation, LAST, "{name}");
                assert_eq!(opened.contents.records, expected(LAST).records, "{name}");
                self.intact += 1;
                let mut store = opened.store;
                store.commit(&[entry(LAST + 1)]).unwrap();
                store.tidy().unwrap_or_else(|e| panic!("{name}: {e}"));
                drop(store);
                assert_eq!(contents_of(dir).records, expected(LAST + 1).records, "{name}");
            }
            Err(StoreError::Newer { .. }) if name.starts_with("FORMAT") => self.newer += 1,
            Err(StoreError::Damaged { .. }) => {
                assert_eq!(files(dir), before, "{name}: an error changed something");
                let foretold = check(dir).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert!(!foretold.starts, "{name}: {foretold}");
                let report = recover(dir, UnixTime(77)).unwrap_or_else(|e| panic!("{name}: {e}"));
                self.after_recovery(dir, &format!("{name}\n{report}"), &report, may_lose);
            }
            Err(other) => panic!("{name}: {other}"),
        }
    }

    fn after_recovery(&mut self, dir: &Path, name: &str, report: &Report, may_lose: bool) {
        assert!(report.starts && !report.done.is_empty(), "{name}");
        let kept = report.lost.map_or(LAST, |(from, _)| from - 1);
        let contents = contents_of(dir);
        assert_eq!(contents.records, expected(kept).records, "{name}");
        assert!(contents.generation >= LAST, "{name}: {} was given out before", contents.generation);
        assert!(contents.settled <= contents.generation, "{name}");
        match report.lost {
            None => self.recovered += 1,
            Some((_, to)) => {
                assert!(may_lose, "{name}");
                assert!(to >= LAST, "{name}");
                self.recovered_with_loss += 1;
            }
        }
        let again = recover(dir, UnixTime(78)).unwrap();
        assert!(again.starts && again.lost.is_none(), "{name}, again:\n{again}");
    }
}

fn matrix(cleanly: bool, only: fn(&Path) -> bool) -> Tally {
    let work = fast_dir();
    let (good, bad) = (work.path().join("good"), work.path().join("bad"));
    filled(&good, cleanly);
    let newest_segment = files(&good).into_keys().rfind(|f| f.starts_with("journal")).unwrap();
    let mut tally = Tally::default();
    for (file, bytes) in files(&good).into_iter().filter(|(file, _)| only(file)) {
        for (what, damaged) in versions(&bytes) {
            copy_dir(&good, &bad);
            match damaged {
                Some(bytes) => fs::write(bad.join(&file), bytes).unwrap(),
                None => fs::remove_file(bad.join(&file)).unwrap(),
            }
            // After the last fold, the newest entries are in the journal alone.
            let may_lose = !cleanly && file.starts_with("journal") && file >= older(&newest_segment, &good);
            tally.case(&bad, &format!("{} {what}", file.display()), may_lose);
            fs::remove_dir_all(&bad).unwrap();
        }
    }
    println!("cleanly {cleanly}: {tally:?}");
    tally
}

/// The segment with the first entry that was not folded.
fn older(newest: &Path, dir: &Path) -> PathBuf {
    let folded = LAST / 9 * 9;
    let start = |f: &PathBuf| f.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse::<u64>().ok()).unwrap_or(0);
    let segments = files(dir).into_keys().filter(|f| f.starts_with("journal"));
    segments.filter(|f| start(f) <= folded + 1).max().unwrap_or(newest.into())
}

#[test]
fn damage_after_a_clean_stop_never_loses_a_generation() {
    let tally = matrix(true, |file| !file.starts_with("sled"));
    assert!(tally.recovered > 50 && tally.intact > 50 && tally.recovered_with_loss == 0, "{tally:?}");
}

#[test]
fn damage_after_a_kill_loses_only_what_had_one_copy_and_says_so() {
    let tally = matrix(false, |file| !file.starts_with("sled"));
    assert!(tally.recovered > 50 && tally.intact > 50 && tally.recovered_with_loss > 10, "{tally:?}");
}

#[test]
fn damage_to_the_checkpoint_is_noticed_and_mended_by_a_start() {
    for cleanly in [true, false] {
        let tally = matrix(cleanly, |file| file.starts_with("sled"));
        assert!(tally.intact > 30 && tally.recovered + tally.recovered_with_loss == 0, "{tally:?}");
    }
}

#[test]
fn a_missing_directory_is_never_an_empty_document() {
    for cleanly in [true, false] {
        for gone in ["journal", "sled", "export"] {
            let work = fast_dir();
            let dir = work.path().join("store");
            filled(&dir, cleanly);
            fs::remove_dir_all(dir.join(gone)).unwrap();
            Tally::default().case(&dir, &format!("{gone}/ missing, cleanly {cleanly}"), !cleanly && gone == "journal");
        }
    }
}

#[test]
fn with_no_copy_left_a_recovery_refuses_and_changes_nothing() {
    let work = fast_dir();
    let dir = work.path().join("store");
    filled(&dir, false);
    for gone in ["journal", "sled", "export"] {
        fs::remove_dir_all(dir.join(gone)).unwrap();
    }
    let before = files(&dir);
    assert!(matches!(open(&dir), Err(StoreError::Damaged { .. })));
    assert!(matches!(recover(&dir, UnixTime(9)), Err(StoreError::NothingLeft { .. })));
    assert!(matches!(read_only(&dir), Err(StoreError::Damaged { .. })));
    assert_eq!(files(&dir), before);
}

#[test]
fn something_else_in_a_parts_place_is_moved_by_a_start_or_by_a_recovery() {
    for cleanly in [true, false] {
        let work = fast_dir();
        let (good, bad) = (work.path().join("good"), work.path().join("bad"));
        filled(&good, cleanly);
        let newest_segment = files(&good).into_keys().rfind(|f| f.starts_with("journal")).unwrap();
        let directories = ["journal", "sled", "export"].map(PathBuf::from);
        let mut tally = Tally::default();
        for part in files(&good).into_keys().chain(directories) {
            copy_dir(&good, &bad);
            let path = bad.join(&part);
            if path.is_dir() {
                fs::remove_dir_all(&path).unwrap();
                fs::write(&path, "something else").unwrap();
            } else {
                fs::remove_file(&path).unwrap();
                fs::create_dir(&path).unwrap();
            }
            let in_journal = part == Path::new("journal") || part >= older(&newest_segment, &good);
            let may_lose = !cleanly && part.starts_with("journal") && in_journal;
            tally.case(&bad, &format!("{} is something else, cleanly {cleanly}", part.display()), may_lose);
            fs::remove_dir_all(&bad).unwrap();
        }
        assert!(tally.intact > 5 && tally.recovered > 3, "{tally:?}");
    }
}

#[test]
fn a_report_reads_well_and_parses() {
    let work = fast_dir();
    let dir = work.path().join("store");
    filled(&dir, false);
    let segment = files(&dir).into_keys().rfind(|f| f.starts_with("journal")).unwrap();
    fs::write(dir.join(&segment), vec![0; 600]).unwrap();
    let report = check(&dir).unwrap();
    let text = report.to_string();
    assert!(text.contains("DAMAGED") && text.contains("LOST: generations"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["starts"], false);
    assert!(json["lost"][0].as_u64().unwrap() > 1);
    let done = recover(&dir, UnixTime(9)).unwrap().to_string();
    assert!(done.contains("done: ") && done.contains("quarantine/9") && done.contains("LOST"), "{done}");
}

#[test]
fn a_last_frame_that_is_whole_but_wrong_is_damage_even_without_the_watermark() {
    let work = fast_dir();
    let dir = work.path().join("store");
    let mut store = open(&dir).unwrap().store;
    store.commit(&[entry(2)]).unwrap();
    store.commit(&[entry(3)]).unwrap();
    drop(store);
    fs::remove_file(dir.join("watermark")).unwrap();
    let segment = dir.join("journal/00000000000000000001.journal");
    let whole = fs::read(&segment).unwrap();
    let end = whole.iter().rposition(|b| *b != 0).unwrap();
    let mut flipped = whole.clone();
    flipped[end - 40] ^= 4;
    fs::write(&segment, &flipped).unwrap();
    assert!(matches!(open(&dir), Err(StoreError::Damaged { .. })));
    // The same frame with its last bytes never written is what a power cut leaves.
    fs::write(&segment, &whole[..end - 40]).unwrap();
    let opened = open(&dir).unwrap();
    assert_eq!((opened.contents.generation, opened.notes.len()), (2, 1), "{:?}", opened.notes);
    let kept: Vec<_> = files(&dir).into_keys().filter(|f| f.starts_with("quarantine")).collect();
    assert_eq!(kept.len(), 1, "the torn end is kept: {kept:?}");
}

#[test]
fn a_checkpoint_that_opens_but_lost_a_row_is_not_believed() {
    let work = fast_dir();
    let dir = work.path().join("store");
    filled(&dir, true);
    let config = sled::Config::new().path(dir.join("sled")).segment_size(super::super::checkpoint::SEGMENT_BYTES);
    // Another test's child may hold sled's lock between fork and exec.
    let db = (0..100).find_map(|_| config.open().inspect_err(|_| std::thread::yield_now()).ok()).unwrap();
    db.remove(b"r/counter").unwrap().unwrap();
    drop(db);
    let opened = open(&dir).unwrap();
    assert_eq!(opened.contents.records, expected(LAST).records);
    assert!(opened.notes[0].contains("checkpoint was not used"), "{:?}", opened.notes);
}

#[test]
fn a_segment_that_is_gone_from_the_middle_is_damage_even_when_the_checkpoint_is_newer() {
    let work = fast_dir();
    let dir = work.path().join("store");
    filled(&dir, true);
    let segments: Vec<_> = files(&dir).into_keys().filter(|f| f.starts_with("journal")).collect();
    fs::remove_file(dir.join(&segments[1])).unwrap();
    assert!(matches!(open(&dir), Err(StoreError::Damaged { what, .. }) if what.contains("does not follow")));
    assert!(read_only(&dir).is_err());
    let report = recover(&dir, UnixTime(9)).unwrap();
    assert_eq!(report.lost, None, "{report}");
    assert_eq!(contents_of(&dir).records, expected(LAST).records);
}

#[test]
fn a_journal_that_lost_its_end_goes_on_from_the_checkpoint_with_a_known_gap() {
    let work = fast_dir();
    let dir = work.path().join("store");
    filled(&dir, true);
    let newest = files(&dir).into_keys().rfind(|f| f.starts_with("journal")).unwrap();
    fs::remove_file(dir.join(newest)).unwrap();
    let mut opened = open(&dir).unwrap();
    assert_eq!(opened.contents.records, expected(LAST).records);
    assert!(opened.notes[0].contains("nothing is lost"), "{:?}", opened.notes);
    opened.store.commit(&[entry(LAST + 1)]).unwrap();
    drop(opened);
    let opened = open(&dir).unwrap();
    assert_eq!(opened.contents.records, expected(LAST + 1).records);
    assert!(opened.notes.is_empty(), "{:?}", opened.notes);
}

#[test]
fn a_copy_of_a_generation_that_was_never_given_out_is_refused_before_it_becomes_a_store_without_a_next_one() {
    let work = fast_dir();
    let copy = |generation: u64| {
        format!(r#"{{"format":"overlayd-export 1","generation":{generation},"records":{{"node":{{}}}}}}"#)
    };
    for bad in [u64::MAX, 1 << 63, (1 << 62) + 1] {
        assert!(matches!(contents_of_copy(&copy(bad)), Err(StoreError::BadCopy { .. })), "{bad}");
        assert!(matches!(import(work.path(), &copy(bad), UnixTime(1)), Err(StoreError::BadCopy { .. })), "{bad}");
        assert!(files(work.path()).is_empty());
    }
    import(work.path(), &copy(1 << 62), UnixTime(1)).unwrap();
    let mut store = open(work.path()).unwrap().store;
    store.commit(&[Entry { generation: (1 << 62) + 1, ..entry(2) }]).unwrap();
    store.close().unwrap();
    assert_eq!(contents_of(work.path()).generation, (1 << 62) + 1);
}
