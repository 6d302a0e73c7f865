//! Small words for the things that tests talk about: keys, requests, a clock, a node with its agent.

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock, Mutex, RwLock},
    time::{Duration, Instant},
};

use futures::executor::block_on;
use overlayd::{
    clock::{Clock, Now, UnixTime},
    desired::{
        Change, Context, Document, Edit, Mutation, OverlayRequest, PeerRequest, PeerScope, Policy, Record, RecordKey,
        Touched, consider,
    },
    ids::{Cidr, IfName, WgPublicKey},
    object::{EndpointSpec, Key, KeyPair, LinkKind, LinkSpec, Mark, PeerSpec, Spec},
    observed::{Neighbour, Observed, Snapshot, Surroundings},
    platform::sim::SimKernel,
    reconcile::{
        engine::Engine,
        explain::Diff,
        ledger::Condition,
        target::{Facts, Scope, Served, Target, lower},
        view::Round,
    },
    secret::PrivateKey,
};

/// The public key of peer number `number`.
pub fn peer_key(number: u16) -> WgPublicKey {
    let mut bytes = [0xA5; 32];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    WgPublicKey::from_bytes(bytes)
}

/// The private key that every test node has.
pub fn node_key() -> PrivateKey {
    PrivateKey::from_random_bytes([7; 32])
}

pub fn mark() -> Mark {
    Mark::of_instance("/var/lib/overlayd")
}

/// A node that serves its zone, beside a resolver that can be told of it.
pub fn facts() -> Facts {
    let served = Served { zone: "overlay".parse().unwrap(), port: 53 };
    let surroundings = Surroundings { neighbours: [Neighbour::Resolved].into(), ..Surroundings::default() };
    Facts { served: Some(served), surroundings, ..Facts::new(mark()) }
}

pub fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

/// The device of [`overlay`].
pub fn device() -> IfName {
    "zl-prod-0-g".parse().unwrap()
}

pub fn device_key(number: u16) -> Key {
    Key::Peer { device: device(), public_key: peer_key(number) }
}

pub fn overlay() -> OverlayRequest {
    OverlayRequest {
        deployment: "prod".parse().unwrap(),
        instance: "0".parse().unwrap(),
        cluster: cidr("10.200.0.0/16").into(),
        slice: Some(cidr("10.200.3.0/26").into()),
        port: 51820,
        host_adapter_mandatory: false,
        nat: None,
    }
}

/// A peer with one allowed IP and an endpoint of its own.
pub fn peer(number: u16) -> PeerRequest {
    let [high, low] = number.to_be_bytes();
    PeerRequest {
        scope: PeerScope::Node,
        public_key: peer_key(number),
        endpoint: Some(format!("192.0.{high}.{low}:51820").parse().unwrap()),
        allowed_ips: BTreeSet::from([cidr(&format!("10.201.{high}.{low}/32"))]),
        keepalive: 25,
        candidates: Vec::new(),
    }
}

/// What an edit is considered with at generation `next`, a million seconds after the epoch.
pub fn at(next: u64) -> Context<'static> {
    static POLICY: LazyLock<Policy> = LazyLock::new(Policy::default);
    Context { next, now: UnixTime(1_000_000), policy: &POLICY }
}

/// Considers an edit and takes its change in; answers the change.
pub fn edit(document: &mut Document, edit: &Edit) -> Change {
    let next = document.generation() + 1;
    let change = consider(document, edit, &at(next)).unwrap_or_else(|refusal| panic!("{edit:?}: {refusal}"));
    if !change.mutations.is_empty() {
        document.absorb(next, &change.mutations);
    }
    change
}

/// A document with the overlay of [`overlay`], the key of [`node_key`] and peers `1..=peers`.
pub fn document(peers: u16) -> Document {
    let mut document = Document::default();
    let own = Mutation { key: RecordKey::NodeKey, record: Some(Record::NodeKey(KeyPair::from_private(node_key()))) };
    document.absorb(1, &[own]);
    edit(&mut document, &Edit::EnsureOverlay(overlay()));
    for number in 1..=peers {
        edit(&mut document, &Edit::EnsurePeer(peer(number)));
    }
    document
}

/// The whole target of a document of which the kernel was told nothing.
pub fn target(document: &Document, facts: &Facts) -> Target {
    lower(document, facts, &|_: &Key| 0, &Scope::Everything)
}

/// A clock that moves when the test says so.
#[derive(Clone)]
pub struct TestClock(Arc<Mutex<Now>>);

impl TestClock {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Now { instant: Instant::now(), unix: UnixTime(1_000_000) })))
    }

    pub fn advance(&self, by: Duration) {
        let mut now = self.0.lock().unwrap();
        now.instant += by;
        now.unix.0 += by.as_secs();
    }
}

impl Clock for TestClock {
    fn now(&self) -> Now {
        *self.0.lock().unwrap()
    }
}

/// One node: its document, its kernel, and the agent that runs on it.
pub struct World {
    pub document: Arc<RwLock<Document>>,
    pub kernel: SimKernel,
    pub clock: TestClock,
    pub engine: Engine<SimKernel, TestClock>,
}

impl World {
    /// A document with these peers, a node with nothing on it, and an agent that has not looked yet.
    pub fn new(peers: u16) -> Self {
        Self::of(document(peers))
    }

    /// The same, and the node is as the document says.
    pub fn converged(peers: u16) -> Self {
        let mut world = Self::new(peers);
        let round = world.round();
        assert!(round.in_sync, "{round:?}");
        world.kernel.node(overlayd::platform::sim::SimNode::forget_journal);
        world
    }

    pub fn of(document: Document) -> Self {
        let document = Arc::new(RwLock::new(document));
        let (kernel, clock) = (SimKernel::default(), TestClock::new());
        let engine = Engine::new(kernel.clone(), clock.clone(), document.clone(), facts());
        Self { document, kernel, clock, engine }
    }

    /// The agent dies and another starts on the same node with the same document, of which `settled` is known to have been applied.
    pub fn restart(&mut self) {
        let kernel = self.kernel.clone();
        self.engine = Engine::new(kernel, self.clock.clone(), self.document.clone(), facts());
    }

    pub fn edit(&mut self, wanted: &Edit) -> Change {
        edit(&mut self.document.write().unwrap(), wanted)
    }

    /// A full round.
    pub fn round(&mut self) -> Round {
        block_on(self.engine.round(Scope::Everything))
    }

    /// An edit and the round that it causes.
    pub fn apply(&mut self, wanted: &Edit) -> Round {
        let change = self.edit(wanted);
        let scope = match change.touched {
            Touched::Nothing => Scope::Keys(BTreeSet::new()),
            Touched::Keys(keys) => Scope::Keys(keys),
            Touched::Everything => Scope::Everything,
        };
        block_on(self.engine.round(scope))
    }

    pub fn diff(&mut self) -> Diff {
        block_on(self.engine.inspect()).unwrap()
    }

    pub fn condition(&self, key: &Key) -> Option<Condition> {
        self.engine.view().read().ledger.condition(key).cloned()
    }

    /// What an observer sees of an object on the node.
    pub fn seen(&self, key: &Key) -> Option<Observed> {
        self.kernel.node(|node| node.objects().get(key).cloned())
    }

    /// Changes an object as somebody outside the agent would.
    pub fn disturb(&self, key: &Key, change: impl FnOnce(&mut Spec)) {
        self.kernel.node(|node| {
            let mut seen = node.objects().get(key).unwrap_or_else(|| panic!("no {key}")).clone();
            change(&mut seen.spec);
            node.place(key.clone(), seen);
        });
    }

    pub fn disturb_peer(&self, number: u16, change: impl FnOnce(&mut PeerSpec)) {
        self.disturb(&device_key(number), |spec| match spec {
            Spec::Peer(peer) => change(peer),
            other => panic!("not a peer: {other:?}"),
        });
    }

    pub fn remove(&self, key: &Key) {
        assert!(self.kernel.node(|node| node.remove(key)), "{key} was not there");
    }

    /// The actions that took effect since the journal was last forgotten, as `verb key`.
    pub fn journal(&self) -> Vec<String> {
        let line = |action: &overlayd::action::Action| format!("{} {}", action.verb(), action.key());
        self.kernel.node(|node| node.journal().iter().map(line).collect())
    }
}

pub fn peer_spec(observed: &Observed) -> &PeerSpec {
    match &observed.spec {
        Spec::Peer(peer) => peer,
        other => panic!("not a peer: {other:?}"),
    }
}

pub fn endpoint(address: &str) -> Option<EndpointSpec> {
    Some(EndpointSpec { address: address.parse().unwrap(), pinned: false, resolved: false })
}

/// A link of another kind under the name of our device.
pub fn foreign_link() -> Spec {
    Spec::Link(LinkSpec::up(LinkKind::Other("ifb".into()), 1500))
}

/// A snapshot that shows exactly this target, as a kernel would show it.
pub fn as_snapshot(target: &Target) -> Snapshot {
    use overlayd::{
        object::Subsystem,
        observed::{Coverage, Observation},
    };
    let mut snapshot = Snapshot::default();
    snapshot.absorb(Observation {
        coverage: Subsystem::ALL.into_iter().map(|part| (part, Coverage::Whole)).collect(),
        objects: target
            .objects
            .iter()
            .map(|(key, wanted)| (key.clone(), Observed::ours(wanted.spec.clone())))
            .collect(),
        surroundings: None,
    });
    snapshot
}
