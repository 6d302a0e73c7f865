//! Power cuts at every moment, and disks that refuse.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::layout::SLED;
use super::super::{DiskStore, Store, StoreError, read_only};
use super::recorder::{Cut, Fail, Op, Recorder, after_cut};
use super::{SMALL, assert_holds, copy_dir, entry, expected, first, open};
use crate::clock::UnixTime;

const LAST: u64 = 46;

/// splitmix64: the same cuts in every run.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Thousands of opens: in memory where there is such a place, the model is what counts here.
fn fast_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A store's life: created, filled in groups, folded now and then, stopped, opened again.
fn record(root: &Path, snapshots: &Path) -> Vec<Op> {
    let recorder = Recorder::new(root);
    let folded = |number: u64| {
        let snapshot: PathBuf = snapshots.join(number.to_string());
        copy_dir(&root.join(SLED), &snapshot);
        recorder.note(Op::FoldEnds(snapshot));
    };
    recorder.note(Op::FoldBegins);
    let start = || DiskStore::open_with(Arc::new(recorder.clone()), root, SMALL, UnixTime(5), first).unwrap().store;
    let mut store = start();
    folded(1);
    recorder.note(Op::Acknowledged(1));
    let mut next = 2;
    while next <= LAST {
        let size = (next % 3 + 1).min(LAST - next + 1);
        store.commit(&(next..next + size).map(entry).collect::<Vec<_>>()).unwrap();
        next += size;
        recorder.note(Op::Acknowledged(next - 1));
        store.settle(next - 2).unwrap();
        if next % 4 == 0 {
            recorder.note(Op::FoldBegins);
            store.tidy().unwrap();
            folded(next);
        }
        if next == 26 {
            recorder.note(Op::FoldBegins);
            store.close().unwrap();
            folded(1000);
            store = start();
        }
    }
    recorder.ops()
}

/// The checkpoints that may be on the disk then: one, or in the middle of a fold the old, the new, a broken one or none.
fn checkpoints(ops: &[Op], at: usize) -> Vec<Option<(PathBuf, bool)>> {
    let before = ops[..at].iter().rev().find_map(|op| match op {
        Op::FoldEnds(path) => Some((path.clone(), false)),
        _ => None,
    });
    let began = ops[..at].iter().rposition(|op| matches!(op, Op::FoldBegins));
    let ended = ops[..at].iter().rposition(|op| matches!(op, Op::FoldEnds(_)));
    if began <= ended {
        return vec![before];
    }
    let after = ops[at..].iter().find_map(|op| match op {
        Op::FoldEnds(path) => Some(path.clone()),
        _ => None,
    });
    let after = after.unwrap();
    vec![before, Some((after.clone(), false)), Some((after, true)), None]
}

fn lay_out(target: &Path, checkpoint: Option<&(PathBuf, bool)>) {
    let Some((from, broken)) = checkpoint else { return };
    // The first fold comes after these, and waits for them.
    if !target.join("CREATING").exists() && !target.join("FORMAT").exists() {
        return;
    }
    copy_dir(from, &target.join(SLED));
    if *broken {
        let db = target.join(SLED).join("db");
        let mut bytes = std::fs::read(&db).unwrap();
        let half = bytes.len() / 2;
        bytes[half..].fill(0);
        std::fs::write(&db, bytes).unwrap();
    }
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_acknowledged() {
    let work = fast_dir();
    let (root, snapshots) = (work.path().join("root"), work.path().join("snapshots"));
    std::fs::create_dir(&root).unwrap();
    let ops = record(&root, &snapshots);
    // Per moment: nothing kept, all kept, and chance. A night may ask for more.
    let cuts = std::env::var("OVERLAYD_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(6usize);
    let mut chance = 1;
    let mut cases = 0;
    for at in 0..=ops.len() {
        let acknowledged =
            ops[..at].iter().rev().find_map(|op| if let Op::Acknowledged(g) = op { Some(*g) } else { None });
        let checkpoints = checkpoints(&ops, at);
        for number in 0..cuts.max(checkpoints.len()) {
            let target = work.path().join("cut");
            std::fs::create_dir(&target).unwrap();
            let mut keeps = || random(&mut chance).is_multiple_of(2);
            let cut = match number {
                0 => Cut::KeepsNothing,
                1 => Cut::KeepsAll,
                _ => Cut::Keeps(&mut keeps),
            };
            after_cut(&ops[..at], cut, &target);
            lay_out(&target, checkpoints[number % checkpoints.len()].as_ref());
            survives(
                &target,
                acknowledged.unwrap_or(0),
                &format!("cut {at}/{number} after {:?}", ops.get(at.max(1) - 1)),
            );
            std::fs::remove_dir_all(&target).unwrap();
            cases += 1;
        }
    }
    println!("{cases} power cuts in {} operations", ops.len());
    assert!(cases > 1000);
}

/// Readers see it, a start finds it, the next edit goes in, and the start after that is an ordinary one.
fn survives(dir: &Path, acknowledged: u64, at: &str) {
    if acknowledged > 0 {
        let read = read_only(dir).unwrap_or_else(|e| panic!("{at}: {e}"));
        assert!(read.generation >= acknowledged, "{at}: a reader finds {}", read.generation);
    }
    let mut opened = open(dir).unwrap_or_else(|e| panic!("{at}: {e}"));
    let found = opened.contents.generation;
    assert!(found >= acknowledged.max(1), "{at}: {found} < {acknowledged}");
    assert_eq!(opened.contents.records, expected(found).records, "{at}");
    opened.store.commit(&[entry(found + 1)]).unwrap();
    if found.is_multiple_of(2) {
        opened.store.tidy().unwrap();
    }
    drop(opened);
    let again = open(dir).unwrap_or_else(|e| panic!("{at}, second start: {e}"));
    assert_holds(&again.contents, found + 1);
}

#[test]
fn a_model_without_the_wait_for_the_disk_is_caught() {
    let work = fast_dir();
    let (root, snapshots) = (work.path().join("root"), work.path().join("snapshots"));
    std::fs::create_dir(&root).unwrap();
    let mut ops = record(&root, &snapshots);
    ops.retain(|op| !matches!(op, Op::Sync(_)));
    let target = work.path().join("cut");
    std::fs::create_dir(&target).unwrap();
    after_cut(&ops, Cut::KeepsNothing, &target);
    assert!(read_only(&target).is_err(), "without a single wait everything must be gone");
}

#[test]
fn a_disk_that_refuses_a_write_costs_that_commit_only() {
    for (what, kind) in [
        (Fail::Write, ErrorKind::StorageFull),
        (Fail::Write, ErrorKind::Other),
        (Fail::Sync, ErrorKind::StorageFull),
        (Fail::Sync, ErrorKind::QuotaExceeded),
    ] {
        let dir = fast_dir();
        let disk = Recorder::new(dir.path());
        let mut store =
            DiskStore::open_with(Arc::new(disk.clone()), dir.path(), SMALL, UnixTime(5), first).unwrap().store;
        store.commit(&[entry(2)]).unwrap();
        disk.fail(what, kind);
        assert!(matches!(store.commit(&[entry(3)]), Err(StoreError::Io { .. })), "{what:?} {kind:?}");
        assert_holds(&read_only(dir.path()).unwrap(), 2);
        store.commit(&[entry(3)]).unwrap();
        drop(store);
        assert_holds(&open(dir.path()).unwrap().contents, 3);
    }
}

#[test]
fn a_disk_that_no_longer_says_what_it_holds_stops_the_store() {
    for failures in [vec![Fail::Sync], vec![Fail::Write, Fail::Truncate], vec![Fail::Write, Fail::Sync]] {
        let dir = fast_dir();
        let disk = Recorder::new(dir.path());
        let mut store =
            DiskStore::open_with(Arc::new(disk.clone()), dir.path(), SMALL, UnixTime(5), first).unwrap().store;
        store.commit(&[entry(2)]).unwrap();
        failures.iter().for_each(|what| disk.fail(*what, ErrorKind::Other));
        assert!(matches!(store.commit(&[entry(3)]), Err(StoreError::Stopped { .. })), "{failures:?}");
        assert!(matches!(store.commit(&[entry(3)]), Err(StoreError::Stopped { .. })), "{failures:?}");
        drop(store);
        let found = open(dir.path()).unwrap().contents;
        assert!((2..=3).contains(&found.generation), "{failures:?}: {}", found.generation);
        assert_holds(&found, found.generation);
    }
}

#[test]
fn a_rotation_that_fails_can_be_tried_again() {
    for what in [Fail::Create, Fail::SyncDir] {
        let dir = fast_dir();
        let disk = Recorder::new(dir.path());
        let mut store =
            DiskStore::open_with(Arc::new(disk.clone()), dir.path(), SMALL, UnixTime(5), first).unwrap().store;
        let mut refused = 0;
        for generation in 2..=40 {
            disk.fail(what, ErrorKind::StorageFull);
            let tried = store.commit(&[entry(generation)]);
            disk.heal();
            refused += u32::from(tried.is_err());
            if tried.is_err() {
                store.commit(&[entry(generation)]).unwrap();
            }
        }
        assert!(refused > 3, "{what:?}: {refused}");
        drop(store);
        assert_holds(&open(dir.path()).unwrap().contents, 40);
    }
}
