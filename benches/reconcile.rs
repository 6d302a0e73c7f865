//! What a round costs, and how that grows with the number of peers. Printed, never asserted.
//!
//! The one figure to watch: a round about one peer among 10,000 costs about what it costs among 100. The simulated kernel answers at once,
//! so what is measured is the agent's own work.

use std::{
    collections::BTreeSet,
    hint::black_box,
    sync::{Arc, RwLock},
    time::Instant,
};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use futures::executor::block_on;
use overlayd::{
    clock::SystemClock,
    desired::{
        Context, Document, Edit, Mutation, OverlayRequest, PeerRequest, Policy, Record, RecordKey, Touched, consider,
    },
    ids::WgPublicKey,
    object::{KeyPair, Mark},
    platform::sim::SimKernel,
    reconcile::{
        engine::Engine,
        target::{Facts, Scope},
    },
    secret::PrivateKey,
};

const FEW: u32 = 100;
const MANY: u32 = 10_000;

type Agent = (Engine<SimKernel, SystemClock>, Arc<RwLock<Document>>);

fn peer(number: u32, keepalive: u16) -> Edit {
    let mut bytes = [0xA5; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    let [_, high, middle, low] = number.to_be_bytes();
    Edit::EnsurePeer(PeerRequest {
        scope: overlayd::desired::PeerScope::Node,
        public_key: WgPublicKey::from_bytes(bytes),
        endpoint: format!("203.{high}.{middle}.{low}:51820").parse().ok(),
        allowed_ips: format!("10.{high}.{middle}.{low}/32").parse().into_iter().collect(),
        keepalive,
        candidates: Vec::new(),
    })
}

/// Takes an edit in and answers what it touches.
fn edit(document: &RwLock<Document>, wanted: &Edit) -> BTreeSet<overlayd::object::Key> {
    let mut document = document.write().unwrap();
    let next = document.generation() + 1;
    let change =
        consider(&document, wanted, &Context { next, now: overlayd::clock::UnixTime(0), policy: &Policy::default() })
            .unwrap();
    document.absorb(next, &change.mutations);
    match change.touched {
        Touched::Keys(keys) => keys,
        Touched::Nothing | Touched::Everything => BTreeSet::new(),
    }
}

/// An agent that has not looked yet, on an empty node, with a document of this many peers.
fn fresh(peers: u32) -> Agent {
    let document = Arc::new(RwLock::new(Document::default()));
    let key = Mutation {
        key: RecordKey::NodeKey,
        record: Some(Record::NodeKey(KeyPair::from_private(PrivateKey::from_random_bytes([7; 32])))),
    };
    document.write().unwrap().absorb(1, &[key]);
    let overlay = OverlayRequest {
        deployment: "prod".parse().unwrap(),
        instance: "0".parse().unwrap(),
        cluster: "10.0.0.0/8".parse().unwrap(),
        slice: "10.255.0.0/26".parse().ok(),
        port: 51820,
        host_adapter_mandatory: false,
        nat: None,
    };
    edit(&document, &Edit::EnsureOverlay(overlay));
    for number in 1..=peers {
        edit(&document, &peer(number, 25));
    }
    let facts = Facts::new(Mark::of_instance("/bench"));
    (Engine::new(SimKernel::default(), SystemClock, document.clone(), facts), document)
}

fn converged(peers: u32) -> Agent {
    let mut agent = fresh(peers);
    assert!(block_on(agent.0.round(Scope::Everything)).in_sync);
    agent.0.kernel().node(overlayd::platform::sim::SimNode::forget_journal);
    agent
}

fn scoped_round(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("round about one peer, edit included");
    let mut medians = Vec::new();
    for peers in [FEW, MANY] {
        let (mut engine, document) = converged(peers);
        let mut keepalive = 0;
        let mut work = || {
            keepalive = (keepalive + 1) % 1000;
            let keys = edit(&document, &peer(peers / 2, keepalive));
            black_box(block_on(engine.round(Scope::Keys(keys))));
        };
        medians.push(median(&mut work));
        group.bench_function(BenchmarkId::from_parameter(peers), |bencher| bencher.iter(&mut work));
    }
    group.finish();
    println!("a round about one peer: {MANY} peers cost {:.2} times what {FEW} cost", medians[1] / medians[0]);
}

/// Seconds.
fn median(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..2_001)
        .map(|_| {
            let started = Instant::now();
            work();
            started.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn full_round(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("full round");
    group.sample_size(10);
    for peers in [FEW, MANY] {
        let (mut engine, _) = converged(peers);
        group.bench_function(BenchmarkId::new("nothing to do", peers), |bencher| {
            bencher.iter(|| black_box(block_on(engine.round(Scope::Everything))))
        });
        group.bench_function(BenchmarkId::new("fresh node", peers), |bencher| {
            bencher.iter_batched_ref(
                || fresh(peers).0,
                |engine| black_box(block_on(engine.round(Scope::Everything))),
                BatchSize::PerIteration,
            )
        });
    }
    group.finish();
}

criterion_group!(benches, scoped_round, full_round);
criterion_main!(benches);
