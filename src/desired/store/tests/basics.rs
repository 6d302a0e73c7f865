//! The store on a good day, and the refusals.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::super::{
    Contents, DiskStore, Fault, Limits, MemoryStore, Store, StoreError, Write, check, export, history, import,
    read_only,
};
use super::{SMALL, assert_holds, entry, expected, first, open};
use crate::clock::UnixTime;

/// Fills a store with many commits, groups, tidies and a big value on the way.
fn fill(dir: &Path, to: u64) {
    let mut store = open(dir).unwrap().store;
    let mut next = 2;
    while next <= to {
        let size = (next % 4 + 1).min(to - next + 1);
        let group: Vec<_> = (next..next + size).map(entry).collect();
        store.commit(&group).unwrap();
        next += size;
        if next.is_multiple_of(11) {
            store.tidy().unwrap();
        }
    }
}

#[test]
fn a_new_store_holds_the_first_records_at_generation_one_and_survives_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let opened = open(&path).unwrap();
    assert_holds(&opened.contents, 1);
    drop(opened);
    let opened = DiskStore::open(&path, UnixTime(1), || panic!("not a new store")).unwrap();
    assert_holds(&opened.contents, 1);
    assert!(opened.notes.is_empty(), "{:?}", opened.notes);
}

#[test]
fn what_was_committed_is_there_after_a_drop_with_and_without_a_clean_stop() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 200);
    for _ in 0..2 {
        let opened = open(dir.path()).unwrap();
        assert_holds(&opened.contents, 200);
        assert!(opened.notes.is_empty(), "{:?}", opened.notes);
        opened.store.close().unwrap();
    }
    assert_holds(&read_only(dir.path()).unwrap(), 200);
}

#[test]
fn the_journal_rotates_and_is_trimmed_up_to_the_oldest_copy_only() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 300);
    let segments = fs::read_dir(dir.path().join("journal")).unwrap().count();
    let copies: Vec<_> = fs::read_dir(dir.path().join("export")).unwrap().collect();
    assert!((2..40).contains(&segments), "{segments}");
    assert_eq!(copies.len(), 2);
    let begin = history(dir.path(), 0).unwrap()[0].generation;
    assert!(begin > 2, "nothing was trimmed");
    fs::remove_dir_all(dir.path().join("sled")).unwrap();
    assert_holds(&open(dir.path()).unwrap().contents, 300);
}

#[test]
fn without_checkpoint_and_newest_copy_the_older_copy_and_the_journal_still_reach_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { segment_bytes: 1024, history_bytes: 0, export_every: 7 };
    let mut store = DiskStore::open_limited(dir.path(), limits, UnixTime(5), first).unwrap().store;
    for generation in 2..=60 {
        store.commit(&[entry(generation)]).unwrap();
        store.tidy().unwrap();
    }
    drop(store);
    assert!(
        history(dir.path(), 0).unwrap()[0].generation > 30,
        "with no history to keep, all but the needed is trimmed"
    );
    let mut copies: Vec<_> = fs::read_dir(dir.path().join("export")).unwrap().map(|e| e.unwrap().path()).collect();
    copies.sort();
    fs::remove_file(&copies[1]).unwrap();
    fs::remove_dir_all(dir.path().join("sled")).unwrap();
    assert_holds(&open(dir.path()).unwrap().contents, 60);
}

#[test]
fn history_gives_the_entries_as_they_were_committed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap().store;
    store.commit(&[entry(2), entry(3)]).unwrap();
    assert_eq!(history(dir.path(), 1).unwrap(), vec![entry(2), entry(3)]);
}

#[test]
fn every_file_is_closed_to_others() {
    fn walk(path: &Path, seen: &mut usize) {
        let meta = fs::metadata(path).unwrap();
        let mode = meta.permissions().mode() & 0o777;
        assert_eq!(mode, if meta.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        *seen += 1;
        if meta.is_dir() {
            fs::read_dir(path).unwrap().for_each(|e| walk(&e.unwrap().path(), seen));
        }
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fill(dir.path(), 60);
    let mut seen = 0;
    walk(dir.path(), &mut seen);
    assert!(seen > 10);
}

#[test]
fn a_second_owner_is_turned_away_at_once_and_readers_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    assert!(matches!(open(dir.path()), Err(StoreError::InUse { .. })));
    opened.store.commit(&[entry(2)]).unwrap();
    assert_holds(&read_only(dir.path()).unwrap(), 2);
    let report = check(dir.path()).unwrap();
    assert!(report.starts && report.to_string().contains("unseen"), "{report}");
}

#[test]
fn a_generation_that_does_not_follow_is_refused_and_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap().store;
    for wrong in [vec![entry(1)], vec![entry(3)], vec![entry(2), entry(4)]] {
        assert!(matches!(store.commit(&wrong), Err(StoreError::OutOfOrder { .. })));
    }
    store.commit(&[]).unwrap();
    store.commit(&[entry(2)]).unwrap();
    drop(store);
    assert_holds(&open(dir.path()).unwrap().contents, 2);
}

#[test]
fn settled_survives_a_restart_and_is_never_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap().store;
    store.commit(&[entry(2), entry(3)]).unwrap();
    store.settle(2).unwrap();
    store.settle(1).unwrap();
    drop(store);
    let mut opened = open(dir.path()).unwrap();
    assert_eq!(opened.contents.settled, 2);
    opened.store.settle(99).unwrap();
    opened.store.commit(&[entry(4)]).unwrap();
    drop(opened);
    fs::remove_file(dir.path().join("watermark")).unwrap();
    // The journal carries it too, so it survives losing the note.
    assert_eq!(open(dir.path()).unwrap().contents.settled, 3);
}

#[test]
fn a_strangers_directory_is_refused_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("holiday.jpg"), "x").unwrap();
    assert!(matches!(open(dir.path()), Err(StoreError::NotOurs { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    fs::remove_file(dir.path().join("holiday.jpg")).unwrap();
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    assert_holds(&open(dir.path()).unwrap().contents, 1);
}

#[test]
fn a_newer_format_is_refused_by_its_number() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    fs::write(dir.path().join("FORMAT"), "overlayd-store 2\n").unwrap();
    assert!(matches!(open(dir.path()), Err(StoreError::Newer { found: 2, known: 1, .. })));
}

#[test]
fn big_odd_and_binary_values_come_back_byte_for_byte_from_every_part() {
    let dir = tempfile::tempdir().unwrap();
    let values: Vec<Vec<u8>> = vec![
        vec![],
        vec![0; 100_000],
        (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
        br#" {"b":1, "a":1.50} "#.to_vec(),
        br#"{"b":1, "a":1.50}"#.to_vec(),
        br#"{"$base64":"AAAA"}"#.to_vec(),
        b"null".to_vec(),
    ];
    let mut opened = open(dir.path()).unwrap();
    let writes =
        values.iter().enumerate().map(|(n, v)| Write { key: format!("odd/{n}"), value: Some(v.clone()) }).collect();
    opened.store.commit(&[super::Entry { writes, ..entry(2) }]).unwrap();
    let check = |contents: &Contents| {
        for (n, value) in values.iter().enumerate() {
            assert_eq!(&contents.records[&format!("odd/{n}")], value, "{n}");
        }
    };
    check(&read_only(dir.path()).unwrap());
    opened.store.close().unwrap();
    let opened = open(dir.path()).unwrap();
    assert!(opened.notes.is_empty(), "{:?}", opened.notes);
    check(&opened.contents);
    drop(opened);
    fs::remove_dir_all(dir.path().join("journal")).unwrap();
    let report = super::super::recover(dir.path(), UnixTime(9)).unwrap();
    assert_eq!(report.lost, None, "{report}");
    check(&open(dir.path()).unwrap().contents);
}

#[test]
fn an_export_is_redacted_and_can_be_imported_elsewhere_and_over() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(one.path(), 30);
    let text = export(one.path(), &|_, _| {}).unwrap().to_string();
    let report = import(two.path(), &text, UnixTime(7)).unwrap();
    assert!(report.starts, "{report}");
    let mut opened = open(two.path()).unwrap();
    assert_eq!((opened.contents.generation, opened.contents.records.len()), (30, expected(30).records.len()));
    opened.store.commit(&[entry(31), entry(32)]).unwrap();
    assert!(matches!(import(two.path(), &text, UnixTime(8)), Err(StoreError::InUse { .. })));
    drop(opened);
    import(two.path(), &text, UnixTime(8)).unwrap();
    let again = open(two.path()).unwrap().contents;
    assert_eq!((again.generation, again.records.len()), (33, expected(30).records.len()));

    let hidden = export(one.path(), &|key, value| {
        if key == "node" {
            *value = "(hidden)".into();
        }
    });
    let hidden = hidden.unwrap();
    assert_eq!(hidden["records"]["node"], "(hidden)");
    assert!(!hidden.to_string().contains("n1"));
    assert!(matches!(import(two.path(), "{}", UnixTime(8)), Err(StoreError::BadCopy { .. })));
}

#[test]
fn an_import_of_a_last_good_file_is_checked_against_its_digest() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(one.path(), 9);
    open(one.path()).unwrap().store.close().unwrap();
    let file = one.path().join("export/last-good-00000000000000000009.json");
    let text = fs::read_to_string(file).unwrap();
    assert!(matches!(
        import(two.path(), &text.replace("\"peer\":5", "\"peer\":6"), UnixTime(7)),
        Err(StoreError::BadCopy { .. })
    ));
    import(two.path(), &text, UnixTime(7)).unwrap();
    assert_holds(&open(two.path()).unwrap().contents, 9);
}

#[test]
fn the_kept_v1_store_still_loads() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("state/v1");
    let dir = tempfile::tempdir().unwrap();
    super::copy_dir(&kept, dir.path());
    let opened = DiskStore::open(dir.path(), UnixTime(1), || panic!("not a new store")).unwrap();
    assert!(opened.notes.is_empty(), "{:?}", opened.notes);
    assert_eq!(opened.contents.settled, 10);
    assert_holds(&opened.contents, 12);
    let report = check(dir.path()).unwrap();
    assert!(report.starts);
}

/// Writes `state/v1` anew; only for a format that was never released. `OVERLAYD_BLESS_STATE=1 cargo test`.
#[test]
fn the_v1_store_is_written_when_asked_for() {
    if std::env::var_os("OVERLAYD_BLESS_STATE").is_none() {
        return;
    }
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("state/v1");
    let _ = fs::remove_dir_all(&kept);
    let mut store = DiskStore::open_limited(&kept, SMALL, UnixTime(1), first).unwrap().store;
    (2..=9).for_each(|g| store.commit(&[entry(g)]).unwrap());
    store.settle(7).unwrap();
    store.tidy().unwrap();
    // Above the checkpoint: a load has to replay.
    store.commit(&[entry(10), entry(11)]).unwrap();
    store.settle(10).unwrap();
    store.commit(&[entry(12)]).unwrap();
}

#[test]
fn the_store_in_memory_keeps_the_same_promises_and_can_be_made_to_break_them() {
    let disk = MemoryStore::new(expected(1));
    let mut store = disk.clone();
    store.commit(&[entry(2), entry(3)]).unwrap();
    assert_eq!(disk.flushes(), 1);
    assert!(matches!(store.commit(&[entry(3)]), Err(StoreError::OutOfOrder { .. })));
    disk.fault(Fault::Refuse);
    assert!(store.commit(&[entry(4)]).is_err());
    assert_holds(&disk.contents(), 3);
    disk.fault(Fault::CutAfterFlush);
    assert!(store.commit(&[entry(4)]).is_err());
    assert!(store.commit(&[entry(5)]).is_err(), "the power is off");
    disk.power_on();
    assert_holds(&disk.contents(), 4);
    disk.fault(Fault::CutBeforeFlush);
    assert!(store.commit(&[entry(5)]).is_err());
    disk.power_on();
    assert_holds(&disk.contents(), 4);
    store.settle(3).unwrap();
    disk.fault(Fault::Lie);
    store.commit(&[entry(5)]).unwrap();
    disk.power_cut();
    assert_holds(&disk.durable(), 4);
    assert_eq!((disk.durable().settled, disk.entries().len()), (0, 3));
}
