//! The thread that keeps edits: what shares a commit, what a failed one leaves behind, and that no answer comes before it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
    mpsc,
};

use futures::{
    executor::block_on,
    future::{FutureExt, join_all},
};
use overlayd::{
    clock::SystemClock,
    desired::{
        Committer, Document, Edit, EditError, PeerRequest, Policy,
        store::{Entry, Store, StoreError},
    },
    ids::WgPublicKey,
};

use crate::world::{cidr, document, node_key, overlay, peer, peer_key};

/// What the test sees of the store, and how it makes it wait or refuse.
#[derive(Clone, Default)]
struct Shelf {
    groups: Arc<Mutex<Vec<Vec<Entry>>>>,
    refuses: Arc<AtomicBool>,
    settled: Arc<AtomicU64>,
    /// While it is set a commit waits for one message before it returns.
    gate: Arc<Mutex<Option<GateInside>>>,
}

/// The store's ends of a gate.
type GateInside = (mpsc::Sender<()>, mpsc::Receiver<()>);

/// The test's ends of a gate: a message that a commit has begun, and the word that lets it end.
struct Gate {
    begun: mpsc::Receiver<()>,
    go: mpsc::Sender<()>,
}

impl Shelf {
    fn close_gate(&self) -> Gate {
        let ((begun_in, begun), (go, go_in)) = (mpsc::channel(), mpsc::channel());
        *self.gate.lock().unwrap() = Some((begun_in, go_in));
        Gate { begun, go }
    }

    fn generations(&self) -> Vec<u64> {
        let groups = self.groups.lock().unwrap();
        groups.iter().flatten().map(|entry| entry.generation).collect()
    }
}

impl Store for Shelf {
    fn commit(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        let gate = self.gate.lock().unwrap().take();
        if let Some((begun, go)) = gate {
            begun.send(()).unwrap();
            go.recv().unwrap();
        }
        if self.refuses.load(Ordering::SeqCst) {
            return Err(StoreError::Io {
                doing: "write",
                path: "/nowhere".into(),
                source: std::io::Error::from(std::io::ErrorKind::StorageFull),
            });
        }
        self.groups.lock().unwrap().push(entries.to_vec());
        Ok(())
    }

    fn settle(&mut self, generation: u64) -> Result<(), StoreError> {
        self.settled.store(generation, Ordering::SeqCst);
        Ok(())
    }

    fn tidy(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn close(&mut self) -> Result<(), StoreError> {
        self.tidy()
    }
}

/// Generations that the listener was told of, in its order.
type Told = Arc<Mutex<Vec<u64>>>;

fn start(document: Document) -> (Committer, Shelf, Told) {
    let (shelf, told) = (Shelf::default(), Told::default());
    let listener = {
        let told = told.clone();
        Box::new(move |group: &[overlayd::desired::Committed], _| {
            told.lock().unwrap().extend(group.iter().map(|edit| edit.generation));
        })
    };
    let committer =
        Committer::start(document, Box::new(shelf.clone()), SystemClock, Policy::default(), listener).unwrap();
    (committer, shelf, told)
}

fn submit(committer: &Committer, edit: Edit) -> Result<u64, EditError> {
    let committed = block_on(committer.editor().submit(edit, "test".into()))?;
    Ok(committed.generation)
}

fn published(committer: &Committer) -> Document {
    committer.document().read().unwrap().clone()
}

#[test]
fn edits_that_arrive_during_a_commit_share_the_next_one() {
    let (committer, shelf, told) = start(document(0));
    let gate = shelf.close_gate();
    let editor = committer.editor();
    let mut first = Box::pin(editor.submit(Edit::EnsurePeer(peer(1)), "test".into()));
    assert!(first.as_mut().now_or_never().is_none());
    gate.begun.recv().unwrap();
    let mut rest: Vec<_> =
        (2..=101).map(|number| Box::pin(editor.submit(Edit::EnsurePeer(peer(number)), "test".into()))).collect();
    for waiting in &mut rest {
        assert!(waiting.as_mut().now_or_never().is_none(), "queued, not answered");
    }
    gate.go.send(()).unwrap();
    let answers = block_on(join_all(rest));
    assert!(block_on(first).is_ok() && answers.iter().all(Result::is_ok));
    let sizes: Vec<usize> = shelf.groups.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 100]);
    let told = told.lock().unwrap().clone();
    assert!(told.is_sorted() && told.len() == 101);
}

#[test]
fn no_answer_leaves_and_no_reader_sees_an_edit_before_it_is_kept() {
    let (committer, shelf, told) = start(document(0));
    let before = published(&committer);
    let gate = shelf.close_gate();
    let editor = committer.editor();
    let mut answer = Box::pin(editor.submit(Edit::EnsurePeer(peer(1)), "test".into()));
    assert!(answer.as_mut().now_or_never().is_none());
    gate.begun.recv().unwrap();
    assert!(answer.as_mut().now_or_never().is_none(), "the commit has not returned");
    assert_eq!(published(&committer), before);
    assert!(told.lock().unwrap().is_empty());
    gate.go.send(()).unwrap();
    let committed = block_on(answer).unwrap();
    assert!(committed.changed);
    assert!(published(&committer).peers().contains_key(&peer_key(1)));
    assert_eq!(*told.lock().unwrap(), [committed.generation], "the listener was told before the answer left");
}

#[test]
fn a_failed_commit_changes_nothing_and_the_next_edit_works() {
    let (committer, shelf, told) = start(document(3));
    let before = published(&committer);
    shelf.refuses.store(true, Ordering::SeqCst);
    let stolen = PeerRequest { allowed_ips: peer(2).allowed_ips, ..peer(1) };
    for edit in [
        Edit::EnsurePeer(stolen.clone()),
        Edit::RemoveOverlay,
        Edit::RemovePeer { scope: overlayd::desired::PeerScope::Node, peer: peer_key(3) },
    ] {
        let answer = submit(&committer, edit.clone());
        let text = answer.as_ref().map_err(ToString::to_string);
        assert!(matches!(answer, Err(EditError::NotKept(_))), "{edit:?}: {text:?}");
        assert_eq!(published(&committer), before, "{edit:?}");
    }
    assert!(told.lock().unwrap().is_empty());
    shelf.refuses.store(false, Ordering::SeqCst);
    let generation = submit(&committer, Edit::EnsurePeer(stolen)).unwrap();
    assert_eq!(generation, before.generation() + 1, "a generation that was not kept is not used up");
    assert!(published(&committer).peers()[&peer_key(2)].allowed_ips.is_empty());
}

#[test]
fn edits_that_build_on_one_that_could_not_be_kept_are_not_kept_either() {
    let (committer, shelf, _) = start(document(0));
    let before = published(&committer);
    let gate = shelf.close_gate();
    let editor = committer.editor();
    let mut first = Box::pin(editor.submit(Edit::SetNodeId(1), "test".into()));
    assert!(first.as_mut().now_or_never().is_none());
    gate.begun.recv().unwrap();
    let edits = [
        Edit::EnsurePeer(peer(1)),
        Edit::EnsureAllowedIp {
            scope: overlayd::desired::PeerScope::Node,
            peer: peer_key(1),
            allowed_ip: cidr("10.9.0.0/24"),
        },
        Edit::EnsurePeer(PeerRequest { allowed_ips: [cidr("10.9.0.0/24")].into(), ..peer(2) }),
        Edit::RemovePeer { scope: overlayd::desired::PeerScope::Node, peer: peer_key(1) },
    ];
    let mut group: Vec<_> = edits.into_iter().map(|edit| Box::pin(editor.submit(edit, "test".into()))).collect();
    for waiting in &mut group {
        assert!(waiting.as_mut().now_or_never().is_none());
    }
    shelf.refuses.store(true, Ordering::SeqCst);
    gate.go.send(()).unwrap();
    assert!(block_on(first).is_err());
    assert!(block_on(join_all(group)).iter().all(|answer| matches!(answer, Err(EditError::NotKept(_)))));
    shelf.refuses.store(false, Ordering::SeqCst);
    assert_eq!(submit(&committer, Edit::SetNodeId(5)).unwrap(), before.generation() + 1);
    assert!(published(&committer).peers().is_empty());
}

#[test]
fn a_refusal_that_rests_on_an_edit_that_could_not_be_kept_is_not_given() {
    let (committer, shelf, _) = start(document(1));
    let gate = shelf.close_gate();
    let editor = committer.editor();
    let submit = |edit| Box::pin(editor.submit(edit, "test".into()));
    let mut first = submit(Edit::SetNodeId(1));
    assert!(first.as_mut().now_or_never().is_none());
    gate.begun.recv().unwrap();
    let mut removal = submit(Edit::RemovePeer { scope: overlayd::desired::PeerScope::Node, peer: peer_key(1) });
    let mut addition = submit(Edit::EnsureAllowedIp {
        scope: overlayd::desired::PeerScope::Node,
        peer: peer_key(1),
        allowed_ip: cidr("10.9.0.0/24"),
    });
    assert!(removal.as_mut().now_or_never().is_none() && addition.as_mut().now_or_never().is_none());
    shelf.refuses.store(true, Ordering::SeqCst);
    gate.go.send(()).unwrap();
    assert!(block_on(removal).is_err());
    let answer = block_on(addition);
    assert!(
        matches!(answer, Err(EditError::NotKept(_))),
        "the peer is still there, and a refusal is never tried again: {answer:?}"
    );
}

#[test]
fn a_refused_edit_leaves_no_trace() {
    let (committer, shelf, told) = start(document(1));
    let before = published(&committer);
    let own: WgPublicKey = node_key().public_key();
    let outside = overlayd::desired::OverlayRequest { slice: Some(cidr("192.168.0.0/24").into()), ..overlay() };
    let refused = [
        Edit::EnsurePeer(PeerRequest { public_key: own, ..peer(1) }),
        Edit::EnsureOverlay(outside),
        Edit::EnsureAllowedIp {
            scope: overlayd::desired::PeerScope::Node,
            peer: peer_key(77),
            allowed_ip: cidr("10.9.0.0/24"),
        },
    ];
    for edit in refused {
        assert!(matches!(submit(&committer, edit.clone()), Err(EditError::Refused(_))), "{edit:?}");
    }
    assert_eq!(published(&committer), before);
    assert_eq!((shelf.generations(), told.lock().unwrap().len()), (Vec::new(), 0));
}

#[test]
fn an_edit_that_changes_nothing_is_acknowledged_without_a_commit() {
    let (committer, shelf, _) = start(document(1));
    let before = published(&committer);
    let committed = block_on(committer.editor().submit(Edit::EnsurePeer(peer(1)), "test".into())).unwrap();
    assert!(!committed.changed);
    assert_eq!(committed.generation, before.generation());
    assert_eq!(shelf.generations(), [0; 0]);
}

#[test]
fn generations_grow_by_one_and_a_replay_of_the_kept_entries_gives_the_document() {
    let (committer, shelf, _) = start(document(0));
    let first = published(&committer);
    for round in 0..3_u16 {
        for number in 1..20 {
            submit(&committer, Edit::EnsurePeer(PeerRequest { keepalive: round, ..peer(number) })).unwrap();
            submit(
                &committer,
                Edit::RemovePeer { scope: overlayd::desired::PeerScope::Node, peer: peer_key(number / 2) },
            )
            .unwrap();
        }
    }
    let generations = shelf.generations();
    let expected: Vec<u64> = (first.generation() + 1..).take(generations.len()).collect();
    assert_eq!(generations, expected);
    let mut replayed = first;
    for entry in shelf.groups.lock().unwrap().iter().flatten() {
        let mutations: Vec<_> = entry.writes.iter().map(mutation).collect();
        replayed.absorb(entry.generation, &mutations);
    }
    assert_eq!(replayed, published(&committer));
}

fn mutation(write: &overlayd::desired::store::Write) -> overlayd::desired::Mutation {
    let key: overlayd::desired::RecordKey = write.key.parse().unwrap();
    let record = write.value.as_ref().map(|bytes| overlayd::desired::Record::decode(&key, bytes).unwrap());
    overlayd::desired::Mutation { key, record }
}

#[test]
fn stopping_ends_after_what_is_queued_and_answers_the_rest() {
    let (committer, shelf, _) = start(document(0));
    let editor = committer.editor();
    let mut queued = Box::pin(editor.submit(Edit::EnsurePeer(peer(1)), "test".into()));
    assert!(queued.as_mut().now_or_never().is_none_or(|answer| answer.is_ok()));
    editor.settle(7);
    committer.stop();
    assert_eq!(shelf.generations().len(), 1);
    assert_eq!(shelf.settled.load(Ordering::SeqCst), 7);
    let late = block_on(editor.submit(Edit::EnsurePeer(peer(2)), "test".into()));
    assert!(matches!(late, Err(EditError::Stopping)));
}
