//! One machine: a disk with a cache, a kernel, the agent on it, and what is done to all three.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::{executor::block_on, stream::BoxStream};
use overlayd::{
    action::Action,
    clock::Clock,
    desired::{
        AttachmentId, Committer, Document, Edit, Place, Policy, Touched,
        store::{Contents, Entry, Store, StoreError},
    },
    ids::Netns,
    object::{Key, Spec, Subsystem},
    observed::{Observation, Observed, Owner},
    platform::{
        ActionError, Hint, Interest, Kernel, ObserveError,
        sim::{Fault, SimKernel, SimNode},
    },
    reconcile::{
        engine::{Depth, Engine},
        target::Scope,
    },
};

use crate::{
    desk::{contents, netns},
    history::{Event, Harm, Mishap, attach},
    mutants::Mutant,
    oracle::{Wants, faults_of},
    world::{TestClock, document, edit, facts, foreign_link},
};

/// When the process dies, and what was seen until then.
#[derive(Default)]
struct Fate {
    /// Moments at which it could have died so far: before and after each write, flush, action and look.
    moments: u64,
    dies_at: Option<u64>,
    is_dead: bool,
    /// What the agent did wrong.
    faults: Vec<String>,
    wants: Option<Arc<Wants>>,
    store_refuses: bool,
    mutant: Option<Mutant>,
}

type Shared<T> = Arc<Mutex<T>>;

fn lock<T>(shared: &Shared<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap()
}

impl Fate {
    /// One more moment; true when the process is dead from now on.
    fn passes(&mut self) -> bool {
        self.is_dead |= self.dies_at == Some(self.moments);
        self.moments += 1;
        self.is_dead
    }
}

/// What is on the disk, and what only its cache holds.
#[derive(Clone, Default)]
struct Disk {
    cache: Contents,
    durable: Contents,
}

struct SimStore {
    disk: Shared<Disk>,
    fate: Shared<Fate>,
}

fn refusal() -> StoreError {
    StoreError::Io {
        doing: "write",
        path: "/nowhere".into(),
        source: std::io::Error::from(std::io::ErrorKind::StorageFull),
    }
}

impl Store for SimStore {
    fn commit(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        let mut fate = lock(&self.fate);
        if fate.passes() || std::mem::take(&mut fate.store_refuses) {
            return Err(refusal());
        }
        let mut disk = lock(&self.disk);
        for entry in entries {
            assert_eq!(entry.generation, disk.cache.generation + 1, "I-12");
            disk.cache.generation = entry.generation;
            for write in &entry.writes {
                match &write.value {
                    Some(value) => drop(disk.cache.records.insert(write.key.clone(), value.clone())),
                    None => drop(disk.cache.records.remove(&write.key)),
                }
            }
        }
        if fate.passes() {
            return Err(refusal());
        }
        if fate.mutant != Some(Mutant::ReplyBeforeFlush) {
            disk.durable = disk.cache.clone();
        }
        fate.passes();
        Ok(())
    }

    fn settle(&mut self, generation: u64) -> Result<(), StoreError> {
        lock(&self.disk).cache.settled = generation;
        Ok(())
    }

    fn tidy(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn close(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The kernel as the agent has it: it can die before and after each call, and each action is watched.
struct Watched {
    kernel: SimKernel,
    fate: Shared<Fate>,
    /// Deletions that a mutant puts off until the next look.
    put_off: Vec<Action>,
}

impl Watched {
    /// One action, and whether it was right.
    async fn carry_out(&mut self, action: &Action, mutant: Option<Mutant>) -> Result<(), ActionError> {
        let before = self.kernel.node(|node| node.clone());
        let dies = || lock(&self.fate).passes();
        let instead = mutant.and_then(|mutant| self.kernel.node(|node| mutant.instead(node, action, dies)));
        let outcome = match instead {
            Some(outcome) => outcome,
            None => self.kernel.execute(std::slice::from_ref(action)).await.remove(0),
        };
        let mut fate = lock(&self.fate);
        if let Some(wants) = fate.wants.clone() {
            let found = self.kernel.node(|after| faults_of(action, &before, after, &wants));
            fate.faults.extend(found);
        }
        self.kernel.node(SimNode::forget_journal);
        if mutant == Some(Mutant::IgnoreErrors) { Ok(()) } else { outcome }
    }
}

impl Kernel for Watched {
    async fn observe(&mut self, interest: &Interest) -> Result<Observation, ObserveError> {
        if lock(&self.fate).passes() {
            return Err(ObserveError { what: "everything".into(), reason: "dead".into() });
        }
        let mutant = lock(&self.fate).mutant;
        for action in std::mem::take(&mut self.put_off) {
            // Whether it can still be done does not matter: it was said to be.
            let _ = self.carry_out(&action, mutant).await;
        }
        let seen = self.kernel.observe(interest).await?;
        Ok(match mutant {
            Some(mutant) => self.kernel.node(|node| mutant.distort(seen, node, interest)),
            None => seen,
        })
    }

    async fn execute(&mut self, actions: &[Action]) -> Vec<Result<(), ActionError>> {
        let mut outcomes = Vec::with_capacity(actions.len());
        for action in actions {
            if lock(&self.fate).passes() {
                outcomes.push(Err(ActionError::Timeout(0)));
                continue;
            }
            let mutant = lock(&self.fate).mutant;
            let outcome = match action {
                Action::Delete { .. } if mutant == Some(Mutant::BuildBeforeDelete) => {
                    self.put_off.push(action.clone());
                    Ok(())
                }
                _ => self.carry_out(action, mutant).await,
            };
            outcomes.push(if lock(&self.fate).passes() { Err(ActionError::Timeout(0)) } else { outcome });
        }
        outcomes
    }

    fn hints(&mut self) -> BoxStream<'static, Hint> {
        self.kernel.hints()
    }
}

/// The process.
struct Agent {
    committer: Committer,
    engine: Engine<Watched, TestClock>,
    touched: BTreeSet<Key>,
    everything: bool,
}

pub struct Machine {
    disk: Shared<Disk>,
    kernel: SimKernel,
    fate: Shared<Fate>,
    clock: TestClock,
    agent: Option<Agent>,
    /// How often each pid was given to another process.
    lives: BTreeMap<u32, u64>,
    ended: Vec<Netns>,
    strangers: BTreeMap<Key, Observed>,
    /// The newest document of which a client was told that it is kept.
    acknowledged: u64,
    moments: u64,
    /// True when the node may have been changed by others than the agent since it was last known to be right.
    disturbed: bool,
    /// What happened, and what the agent did about it.
    pub told: Vec<String>,
    pub faults: Vec<String>,
}

/// The document of a node that was never asked for anything.
fn nothing() -> Document {
    let mut empty = document(0);
    edit(&mut empty, &Edit::RemoveOverlay);
    empty
}

/// A node of which nothing is known but what runs on it besides.
fn fresh_node() -> SimNode {
    let mut node = SimNode::default();
    node.surroundings = facts().surroundings;
    node
}

impl Machine {
    /// A machine without an overlay, on which the process dies at the given moment, if at any.
    pub fn new(dies_at: Option<u64>, mutant: Option<Mutant>) -> Self {
        let start = contents(&nothing());
        let mut machine = Self {
            disk: Arc::new(Mutex::new(Disk { cache: start.clone(), durable: start })),
            kernel: SimKernel::default(),
            fate: Arc::new(Mutex::new(Fate { dies_at, mutant, ..Fate::default() })),
            clock: TestClock::new(),
            agent: None,
            lives: BTreeMap::new(),
            ended: Vec::new(),
            strangers: BTreeMap::new(),
            acknowledged: 0,
            moments: 0,
            disturbed: false,
            told: Vec::new(),
            faults: Vec::new(),
        };
        machine.kernel.node(|node| *node = fresh_node());
        machine.start();
        machine
    }

    /// Moments at which the process could have died in its history.
    pub fn moments(&self) -> u64 {
        self.moments
    }

    /// Our objects on the node.
    pub fn ours(&self) -> BTreeMap<Key, Spec> {
        self.kernel.node(|node| {
            let ours = node.objects().iter().filter(|(_, seen)| seen.owner == Owner::Ours);
            ours.map(|(key, seen)| (key.clone(), seen.spec.clone())).collect()
        })
    }

    pub fn document(&self) -> Document {
        self.agent.as_ref().unwrap().committer.document().read().unwrap().clone()
    }

    /// The document as it is kept. How far it is known to have been applied is not part of it.
    pub fn records(&self) -> Contents {
        Contents { settled: 0, ..contents(&self.document()) }
    }

    /// Lets an event happen, again and again for as long as the process dies of it.
    pub fn happen(&mut self, event: &Event) {
        self.told.push(format!("  {event:?}"));
        loop {
            self.happen_once(event);
            if !lock(&self.fate).is_dead {
                break;
            }
            self.told.push("    killed".into());
            self.restart();
        }
        self.check(event);
    }

    fn happen_once(&mut self, event: &Event) {
        self.disturbed |= match event {
            Event::Edit(_) | Event::Attach { .. } | Event::Round | Event::Look | Event::Wait(_) | Event::Notice => {
                false
            }
            Event::Mishap(Mishap::DumpIsCut(_) | Mishap::NothingIsSeen | Mishap::StoreRefuses) => false,
            Event::End(_) | Event::Harm(..) | Event::Stranger(_) | Event::StrangersLeave => true,
            Event::Mishap(_) | Event::Crash | Event::PowerCut => true,
        };
        match event {
            Event::Edit(edit) => self.ask(edit),
            Event::Attach { pid, service, network, global } => {
                self.ask(&attach(*pid, self.life(*pid), service, *network, *global));
            }
            Event::Round => self.round(false),
            Event::Look => self.round(true),
            Event::Wait(seconds) => self.clock.advance(Duration::from_secs(*seconds)),
            Event::End(pid) => self.end(*pid),
            Event::Notice => self.notice(),
            Event::Harm(place, harm) => self.harm(*place, *harm),
            Event::Stranger(place) => self.take_a_name(*place),
            Event::StrangersLeave => self.strangers_leave(),
            Event::Mishap(mishap) => self.mishap(*mishap),
            Event::Crash => self.restart(),
            Event::PowerCut => self.power_cut(),
        }
    }

    fn life(&self, pid: u32) -> u64 {
        self.lives.get(&pid).copied().unwrap_or(1)
    }

    fn agent(&mut self) -> &mut Agent {
        self.agent.as_mut().unwrap()
    }

    /// A request: what the agent answers is the client's, and a refusal is an answer.
    fn ask(&mut self, wanted: &Edit) {
        let agent = self.agent.as_mut().unwrap();
        let kept = block_on(agent.committer.editor().submit(wanted.clone(), "sim".into()));
        if lock(&self.fate).is_dead {
            return;
        }
        let Ok(committed) = kept else { return };
        self.acknowledged = self.acknowledged.max(committed.generation);
        match committed.touched {
            Touched::Nothing => {}
            Touched::Keys(keys) => agent.touched.extend(keys),
            Touched::Everything => agent.everything = true,
        }
        self.know_the_document();
    }

    fn know_the_document(&self) {
        lock(&self.fate).wants = Some(Arc::new(Wants::of(&self.document())));
    }

    fn round(&mut self, everything: bool) {
        let agent = self.agent();
        if everything {
            agent.engine.distrust(Depth::Whole);
        }
        let keys = std::mem::take(&mut agent.touched);
        let all = std::mem::take(&mut agent.everything) || everything || keys.is_empty();
        let round = block_on(agent.engine.round(if all { Scope::Everything } else { Scope::Keys(keys) }));
        let done = round.actions.iter().map(|done| format!("    {} {}: {}", done.verb, done.key, done.result));
        let done: Vec<String> = done.collect();
        let drift: Vec<String> = round.drift.iter().map(|(key, why)| format!("{key}: {why}")).collect();
        if round.in_sync && round.full {
            agent.committer.editor().settle(round.generation);
        }
        self.told.extend(done);
        if !self.disturbed && !drift.is_empty() {
            self.faults.push(format!("drift that nobody made: {drift:?}"));
        }
        self.disturbed &= !(round.in_sync && everything);
        self.shake_hands();
    }

    /// Every peer that is configured answers.
    fn shake_hands(&self) {
        let now = self.clock.now().unix;
        self.kernel.node(|node| {
            let peers: Vec<Key> =
                node.objects().keys().filter(|key| key.subsystem() == Subsystem::Peer).cloned().collect();
            for peer in peers {
                if let Key::Peer { device, public_key } = &peer {
                    node.handshake(device, public_key, now);
                }
            }
        });
    }

    fn start(&mut self) {
        let contents = {
            let mut disk = lock(&self.disk);
            // A new process makes durable what it finds, before it builds on it.
            disk.durable = disk.cache.clone();
            disk.cache.clone()
        };
        if contents.generation < self.acknowledged {
            self.faults.push(format!("generation {} was acknowledged and is gone (I-01)", self.acknowledged));
            self.acknowledged = contents.generation;
        }
        let document = Document::from_contents(&contents).unwrap();
        let store = SimStore { disk: self.disk.clone(), fate: self.fate.clone() };
        let policy = Policy::default();
        let committer =
            Committer::start(document, Box::new(store), self.clock.clone(), policy, Box::new(|_, _| {})).unwrap();
        let kernel = Watched { kernel: self.kernel.clone(), fate: self.fate.clone(), put_off: Vec::new() };
        let engine = Engine::new(kernel, self.clock.clone(), committer.document(), facts());
        self.agent = Some(Agent { committer, engine, touched: BTreeSet::new(), everything: true });
        self.know_the_document();
        if self.is(Mutant::ActBeforeLoad) {
            let document = self.agent().committer.document();
            let loaded = std::mem::take(&mut *document.write().unwrap());
            self.round(true);
            *document.write().unwrap() = loaded;
        }
    }

    fn is(&self, mutant: Mutant) -> bool {
        lock(&self.fate).mutant == Some(mutant)
    }

    /// What a program does that believes in leaving nothing behind.
    fn clean_up(&mut self) {
        let links: Vec<Action> = self
            .ours()
            .into_iter()
            .filter(|(key, _)| matches!(key, Key::Link(_)))
            .map(|(key, was)| Action::Delete { key, was })
            .collect();
        block_on(self.agent().engine.kernel().execute(&links));
    }

    fn restart(&mut self) {
        if self.is(Mutant::CleanUpAtStop) && !lock(&self.fate).is_dead {
            self.clean_up();
        }
        let agent = self.agent.take().unwrap();
        agent.committer.stop();
        {
            let mut fate = lock(&self.fate);
            fate.is_dead = false;
            fate.store_refuses = false;
        }
        self.start();
        self.notice();
    }

    fn power_cut(&mut self) {
        {
            let mut disk = lock(&self.disk);
            disk.cache = disk.durable.clone();
            if self.is(Mutant::CorruptIsEmpty) {
                disk.cache = contents(&nothing());
            }
        }
        self.kernel.heal();
        let pids: Vec<u32> = (1..8).collect();
        self.kernel.node(|node| *node = fresh_node());
        self.strangers.clear();
        let ended = self.ended.clone();
        self.kernel.node(|node| ended.iter().for_each(|netns| node.end_container(netns)));
        pids.into_iter().for_each(|pid| self.end(pid));
        self.restart();
    }

    fn end(&mut self, pid: u32) {
        let netns = netns(pid, self.life(pid));
        self.kernel.node(|node| node.end_container(&netns));
        self.ended.push(netns);
        if let Some(agent) = self.agent.as_mut().filter(|_| lock(&self.fate).mutant != Some(Mutant::DeafToHints)) {
            agent.engine.distrust(Depth::Host);
        }
        *self.lives.entry(pid).or_insert(1) += 1;
    }

    /// What the agent does about processes that are gone.
    fn notice(&mut self) {
        if self.is(Mutant::DeafToEnds) {
            return;
        }
        let gone: Vec<(AttachmentId, Netns)> = self
            .document()
            .attachments()
            .iter()
            .filter_map(|(id, record)| match &record.place {
                Place::Container { netns } if self.ended.contains(netns) => Some((id.clone(), netns.clone())),
                _ => None,
            })
            .collect();
        for (id, netns) in gone {
            self.ask(&Edit::Bury { id, netns });
            if lock(&self.fate).is_dead {
                return;
            }
        }
    }

    /// The kernel tells of a change before the next round begins, if it tells of such changes at all.
    fn hint(&mut self, changed: &Key) {
        let is_told = !matches!(
            changed.subsystem(),
            Subsystem::Device
                | Subsystem::Peer
                | Subsystem::Sysctl
                | Subsystem::Inside
                | Subsystem::File
                | Subsystem::LinkDns
        );
        if is_told && !self.is(Mutant::DeafToHints) {
            self.agent().engine.distrust(Depth::Host);
        }
    }

    /// The wanted object that has this place, if it is on the node.
    fn wanted(&self, place: usize) -> Option<(Key, Spec)> {
        let wants = lock(&self.fate).wants.clone()?;
        let keys: Vec<&Key> = wants.target.objects.keys().collect();
        let key = (*keys.get(place % keys.len().max(1))?).clone();
        let seen = self.kernel.node(|node| node.objects().get(&key).cloned())?;
        (seen.owner == Owner::Ours).then_some((key, seen.spec))
    }

    fn harm(&mut self, place: usize, harm: Harm) {
        let Some((key, mut spec)) = self.wanted(place) else { return };
        let changed = match &mut spec {
            Spec::Link(link) => {
                (link.mtu, link.master) = (link.mtu - 40, None);
                true
            }
            Spec::Peer(peer) => {
                peer.keepalive += 1;
                peer.allowed_ips.clear();
                true
            }
            Spec::Sysctl(value) => {
                *value += 1;
                true
            }
            Spec::Member(member) => {
                member.network = Some(overlayd::object::NetworkId(7));
                true
            }
            Spec::Ruleset(ruleset) => {
                ruleset.intact = false;
                true
            }
            Spec::Inside(inside) => {
                inside.addresses.clear();
                true
            }
            Spec::Device(device) => {
                device.listen_port ^= 1;
                true
            }
            Spec::Route(_) | Spec::Address | Spec::Guest(_) | Spec::File(_) | Spec::LinkDns(_) => false,
        };
        self.hint(&key);
        self.kernel.node(|node| match harm {
            Harm::Change if changed => node.alter(key, spec),
            // A setting goes with its link only.
            Harm::Change | Harm::Remove if !matches!(spec, Spec::Sysctl(_)) => drop(node.remove(&key)),
            Harm::Change | Harm::Remove => {}
        });
    }

    fn take_a_name(&mut self, place: usize) {
        let Some(wants) = lock(&self.fate).wants.clone() else { return };
        let links: Vec<&Key> = wants.target.objects.keys().filter(|key| matches!(key, Key::Link(_))).collect();
        let Some(key) = links.get(place % links.len().max(1)).map(|key| (*key).clone()) else { return };
        let theirs = Observed { spec: foreign_link(), owner: Owner::Stranger("somebody else's".into()), stats: None };
        let taken = self.kernel.node(|node| {
            let is_free = !node.objects().contains_key(&key);
            if is_free {
                node.place(key.clone(), theirs.clone());
            }
            is_free
        });
        if taken {
            self.hint(&key);
            self.strangers.insert(key, theirs);
        }
    }

    fn strangers_leave(&mut self) {
        for key in std::mem::take(&mut self.strangers).into_keys() {
            self.kernel.node(|node| node.remove(&key));
            self.hint(&key);
        }
    }

    fn mishap(&mut self, mishap: Mishap) {
        match mishap {
            Mishap::FailsBeforeItsEffect => {
                self.kernel.inject(Fault::FailBefore(ActionError::Failed("simulated".into())));
            }
            Mishap::AnswerIsLost => self.kernel.inject(Fault::FailAfter(ActionError::Timeout(1_000))),
            Mishap::DumpIsCut(part) => self.kernel.inject(Fault::CutDump(part)),
            Mishap::NothingIsSeen => self.kernel.inject(Fault::Blind),
            Mishap::StoreRefuses => lock(&self.fate).store_refuses = true,
        }
    }

    fn check(&mut self, event: &Event) {
        let found = std::mem::take(&mut lock(&self.fate).faults);
        self.faults.extend(found.into_iter().map(|fault| format!("{event:?}: {fault}")));
        let strangers = self
            .kernel
            .node(|node| self.strangers.iter().filter(|(key, theirs)| node.objects().get(key) != Some(theirs)).count());
        if strangers > 0 {
            self.faults.push(format!("{event:?}: {strangers} objects of strangers are not as they were (I-03)"));
        }
    }

    /// Everything works again: the node becomes right, and stays as it is.
    pub fn calm_down(&mut self) {
        self.kernel.heal();
        lock(&self.fate).store_refuses = false;
        self.strangers_leave();
        self.happen(&Event::Notice);
        for _ in 0..4 {
            // Longer than any pause after a failure.
            self.clock.advance(Duration::from_secs(120));
            self.happen(&Event::Look);
        }
        {
            let mut fate = lock(&self.fate);
            (self.moments, fate.dies_at) = (fate.moments, None);
        }
        let agent = self.agent();
        let diff = block_on(agent.engine.inspect()).unwrap();
        let text = diff.to_text();
        let (is_empty, round) = (diff.is_empty(), {
            agent.engine.distrust(Depth::Whole);
            block_on(agent.engine.round(Scope::Everything))
        });
        if !is_empty || !round.in_sync {
            self.faults.push(format!("when everything works the node is not right (I-09):\n{text}{:?}", round.left));
        }
        if !round.actions.is_empty() {
            self.faults.push(format!("a round of a node that is right did something (I-08): {:?}", round.actions));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.committer.stop();
        }
    }
}
