//! What a durable edit costs: the journal against sled alone, one at a time and in groups of 64.
//!
//! `cargo bench --bench store`. On the disk that holds the temporary directory (`TMPDIR`); a busy neighbour shows, so compare
//! medians of one run with each other. The figures that the format was chosen by: docs/decisions/0003-durability.md.

use std::fs::File;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use overlayd::clock::UnixTime;
use overlayd::desired::store::{DiskStore, Entry, Limits, Store, Write, read_only};

/// As big as a peer's record.
const RECORD: usize = 300;
/// Records that exist before the measuring starts, and that the writes go to in turn.
const RECORDS: u64 = 500;

fn key(number: u64) -> String {
    format!("peer/{:06}", number % RECORDS)
}

fn value(number: u64) -> Vec<u8> {
    let mut value = format!(r#"{{"peer":{number},"fill":""#).into_bytes();
    value.resize(RECORD - 2, b'x');
    value.extend_from_slice(br#""}"#);
    value
}

fn entry(generation: u64) -> Entry {
    let writes = vec![Write { key: key(generation), value: Some(value(generation)) }];
    let (origin, summary) = ("uid=0 gid=0 pid=1".into(), "ensure peer".into());
    Entry { generation, at: UnixTime(generation), origin, summary, writes }
}

fn first() -> Vec<Write> {
    (0..RECORDS).map(|n| Write { key: key(n), value: Some(value(n)) }).collect()
}

fn open(dir: &Path) -> DiskStore {
    DiskStore::open_limited(dir, Limits::default(), UnixTime(1), first)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .store
}

fn journal(criterion: &mut Criterion) {
    for size in [1, 64] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut store = open(dir.path());
        let mut generation = 1;
        criterion.bench_function(&format!("commit/journal/{size}"), |bencher| {
            bencher.iter(|| {
                let group: Vec<Entry> = (generation + 1..=generation + size).map(entry).collect();
                store.commit(&group).expect("a commit");
                generation += size;
            });
        });
    }
}

fn sled_alone(criterion: &mut Criterion) {
    for segment in [512 << 10, 64 << 10, 16 << 10] {
        for size in [1, 64] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let config = sled::Config::new().path(dir.path()).segment_size(segment).flush_every_ms(None);
            let db = config.cache_capacity(4 << 20).mode(sled::Mode::LowSpace).open().expect("sled");
            (0..RECORDS).for_each(|n| drop(db.insert(key(n), value(n))));
            let file = File::open(dir.path().join("db")).expect("its file");
            let mut generation = 1;
            criterion.bench_function(&format!("commit/sled-{}k/{size}", segment >> 10), |bencher| {
                bencher.iter(|| {
                    let mut batch = sled::Batch::default();
                    (generation + 1..=generation + size).for_each(|n| batch.insert(key(n).as_str(), value(n)));
                    batch.insert("manifest", generation.to_string().as_str());
                    db.apply_batch(batch).expect("a batch");
                    db.flush().expect("a flush");
                    file.sync_data().expect("the disk");
                    generation += size;
                });
            });
            let bytes = file.metadata().map_or(0, |m| m.len());
            println!("sled-{}k/{size}: {} KiB after {generation} writes", segment >> 10, bytes >> 10);
        }
    }
}

fn others(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut store = open(dir.path());
    let mut generation = 1;
    criterion.bench_function("tidy/fold-of-64", |bencher| {
        bencher.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                let group: Vec<Entry> = (generation + 1..=generation + 64).map(entry).collect();
                store.commit(&group).expect("a commit");
                generation += 64;
                let start = std::time::Instant::now();
                store.tidy().expect("a fold");
                spent += start.elapsed();
            }
            spent
        });
    });
    drop(store);
    criterion.bench_function("open/500-records", |bencher| bencher.iter(|| drop(open(dir.path()))));
    criterion.bench_function("read_only/500-records", |bencher| {
        bencher.iter(|| black_box(read_only(dir.path()).expect("a document")));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4));
    targets = journal, sled_alone, others
}
criterion_main!(benches);
