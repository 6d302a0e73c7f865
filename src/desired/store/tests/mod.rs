//! The store on a real disk, under faults: what was acknowledged is there, and what cannot be read is never taken for empty.

mod basics;
mod child;
mod cuts;
mod damage;
mod recorder;

use std::path::Path;

use super::{Contents, DiskStore, Entry, Limits, Opened, StoreError, Write};
use crate::clock::UnixTime;

/// Small enough that a few dozen entries rotate, trim and copy.
const SMALL: Limits = Limits { segment_bytes: 2048, history_bytes: 4096, export_every: 7 };

fn put(key: &str, value: &str) -> Write {
    Write { key: key.into(), value: Some(value.as_bytes().to_vec()) }
}

fn first() -> Vec<Write> {
    vec![put("node", r#"{"name":"n1"}"#), put("counter", "1")]
}

/// Entry number `generation`: sets the counter, adds a record of its own and removes an old one.
fn entry(generation: u64) -> Entry {
    let value = format!(r#"{{"peer":{generation},"fill":"{}"}}"#, "x".repeat((generation * 37 % 700) as usize));
    let mut writes = vec![put("counter", &generation.to_string()), put(&format!("peer/{generation:06}"), &value)];
    if generation > 20 {
        writes.push(Write { key: format!("peer/{:06}", generation - 20), value: None });
    }
    let summary = format!("edit {generation}");
    Entry { generation, at: UnixTime(1000 + generation), origin: "uid=0 gid=0 pid=1".into(), summary, writes }
}

/// What the document is at that generation, `settled` apart.
fn expected(generation: u64) -> Contents {
    let mut contents = Contents::default();
    let born = Entry { generation: 1, writes: first(), ..entry(1) };
    contents.apply(&born);
    (2..=generation).for_each(|g| contents.apply(&entry(g)));
    contents
}

fn open(dir: &Path) -> Result<Opened, StoreError> {
    DiskStore::open_limited(dir, SMALL, UnixTime(5), first)
}

#[track_caller]
fn assert_holds(found: &Contents, generation: u64) {
    assert_eq!(found.generation, generation);
    assert_eq!(found.records, expected(generation).records);
    assert!(found.settled <= generation);
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            copy_dir(&item.path(), &target);
        } else {
            std::fs::copy(item.path(), target).unwrap();
        }
    }
}
