//! Another process: killed while it writes, and disks that are full or read-only (in a mount namespace of their own).

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::super::{Store, StoreError, check, read_only, recover};
use super::{assert_holds, entry, open};
use crate::clock::UnixTime;

const CHILD: &str = "OVERLAYD_STORE_CHILD";

/// Not a test of its own: the writer that the next one kills.
#[test]
fn child_writer() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let opened = open(Path::new(&dir)).unwrap();
    let (mut store, mut last) = (opened.store, opened.contents.generation);
    let mut out = std::io::stdout();
    writeln!(out, "\nacknowledged {last}").unwrap();
    loop {
        let size = last % 5 + 1;
        store.commit(&(last + 1..=last + size).map(entry).collect::<Vec<_>>()).unwrap();
        last += size;
        writeln!(out, "acknowledged {last}").unwrap();
        if last.is_multiple_of(7) {
            store.settle(last - 1).unwrap();
            store.tidy().unwrap();
        }
    }
}

#[test]
fn a_writer_that_is_killed_again_and_again_keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut reached = 0;
    for kill in 0..20u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "desired::store::tests::child::child_writer", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let acknowledged = Arc::new(AtomicU64::new(0));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn({
            let acknowledged = acknowledged.clone();
            move || {
                for line in lines.map_while(Result::ok) {
                    if let Some(Ok(generation)) = line.strip_prefix("acknowledged ").map(str::parse) {
                        acknowledged.store(generation, Ordering::SeqCst);
                    }
                }
            }
        });
        // Progress first, then an odd little while: kills land before, in and after writes and folds.
        let bound = Instant::now() + Duration::from_secs(30);
        while acknowledged.load(Ordering::SeqCst) < reached + 3 + kill {
            assert!(Instant::now() < bound, "the child makes no progress");
            std::thread::yield_now();
        }
        let until = Instant::now() + Duration::from_micros(kill * 977 % 7000);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        reader.join().unwrap();
        let acknowledged = acknowledged.load(Ordering::SeqCst);
        let found = open(dir.path()).unwrap().contents;
        assert!(found.generation >= acknowledged, "{} < {acknowledged}", found.generation);
        assert!(found.generation <= acknowledged + 5);
        assert_holds(&found, found.generation);
        reached = found.generation;
    }
    println!("20 kills, {reached} generations");
}

/// Runs `test` on a small tmpfs that nobody else sees; false, and said aloud, where that is not allowed.
fn on_a_small_disk(test: fn(&Path)) {
    let outcome = std::thread::spawn(move || {
        if let Err(why) = unshare(CloneFlags::CLONE_NEWNS) {
            println!("SKIPPED: no mount namespace: {why}");
            return;
        }
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        mount(Some("small"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=512k,mode=0700")).unwrap();
        test(dir.path());
        let _ = nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH);
    });
    outcome.join().unwrap();
}

#[test]
fn a_full_disk_refuses_edits_and_takes_them_again_when_there_is_room() {
    on_a_small_disk(|dir| {
        let mut store = open(dir).unwrap().store;
        let filler = dir.join("filler");
        std::fs::write(&filler, vec![1; 200_000]).unwrap();
        let mut last = 1;
        let refused = loop {
            match store.commit(&[entry(last + 1)]) {
                Ok(()) => last += 1,
                Err(refused) => break refused,
            }
            assert!(last < 5000, "512 KiB took 5000 entries");
        };
        assert!(matches!(refused, StoreError::Io { .. }), "{refused}");
        assert_holds(&read_only(dir).unwrap(), last);
        assert!(store.commit(&[entry(last + 1)]).is_err());
        let _ = store.tidy();
        assert_holds(&read_only(dir).unwrap(), last);
        drop(store);
        // A start on a full disk still knows the document.
        let mut store = open(dir).unwrap().store;
        std::fs::remove_file(&filler).unwrap();
        store.commit(&[entry(last + 1), entry(last + 2)]).unwrap();
        store.tidy().unwrap();
        drop(store);
        let opened = open(dir).unwrap();
        assert_holds(&opened.contents, last + 2);
        assert!(opened.notes.is_empty(), "{:?}", opened.notes);
    });
}

#[test]
fn a_read_only_disk_is_readable_and_says_so_to_a_start() {
    on_a_small_disk(|dir| {
        let mut store = open(dir).unwrap().store;
        store.commit(&[entry(2), entry(3)]).unwrap();
        drop(store);
        let none: Option<&str> = None;
        // Busy while a child of another test, between fork and exec, has a copy of a file that was open for writing.
        let bound = Instant::now() + Duration::from_secs(10);
        while let Err(busy) = mount(none, dir, none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none) {
            assert!(Instant::now() < bound, "{busy}");
            std::thread::yield_now();
        }
        assert_holds(&read_only(dir).unwrap(), 3);
        let report = check(dir).unwrap();
        assert!(!report.starts && !report.recovers && report.generation == Some(3), "{report}");
        assert!(report.to_string().contains("mount -o remount,rw"), "{report}");
        assert!(matches!(open(dir), Err(StoreError::Io { .. })));
        assert!(matches!(recover(dir, UnixTime(9)), Err(StoreError::Io { .. })));
    });
}
