//! One round: observe, lower, plan, apply, verify, record.
//!
//! Owns the cached snapshot and the ledger, shared for reading with whoever shows them. Leaves *when* to run a round to
//! [`runtime`](super::runtime).
//!
//! Upholds I-05, I-08, I-09, I-13, I-15 (a round has a bounded number of passes).
//!
//! A round about a few objects looks at nothing: it plans against the last dump plus the effects of acknowledged actions. That is what makes
//! the ten-thousandth peer and the thousandth container as cheap as the first; what the cache got wrong is found by the next full round.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use super::{
    apply::{Outcome, apply},
    explain::Diff,
    ledger::{Condition, Ledger, NOT_WANTED},
    order::Undone,
    plan::plan,
    step::{Plan, Reason, Step, Withheld},
    target::{Facts, Places, Scope, Target, companions, lower, places},
    view::{ActionRecord, Round, SharedView, View},
};
use crate::{
    action::Action,
    clock::{Clock, Now, backoff},
    desired::Document,
    object::{Key, MemberSpec, Spec, Subsystem},
    observed::{Observation, Observed},
    platform::{ActionError, Interest, Kernel},
};

/// Looks that one full round takes at most: one to see, one to verify, one more where the first pass uncovered something.
const PASSES_MAX: usize = 3;

/// How much of the node a look takes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Node,
    /// Everything but the containers' own namespaces: no kernel tells what happens in there, and entering a thousand of them takes time.
    Host,
    Peers,
}

impl Look {
    fn parts(self) -> BTreeSet<Subsystem> {
        let parts = Subsystem::ALL.into_iter();
        match self {
            Look::Node => parts.collect(),
            Look::Host => parts.filter(|part| *part != Subsystem::Inside).collect(),
            Look::Peers => [Subsystem::Device, Subsystem::Peer].into(),
        }
    }
}

/// What wakes a full round, and with it how much it looks at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Everything, also the containers' namespaces.
    Whole,
    /// What a notification of the kernel can be about.
    Host,
}

/// Runs rounds against one kernel.
pub struct Engine<K, C> {
    kernel: K,
    clock: C,
    document: Arc<RwLock<Document>>,
    facts: Facts,
    /// Generation up to which an earlier process is known to have told the kernel everything.
    settled: u64,
    view: SharedView,
    /// False before the first look and after anything that makes the cache doubtful.
    trusted: bool,
    /// The same of what is known about the containers' namespaces.
    insides_trusted: bool,
    /// Full rounds in a row that could not see all of the node.
    partial_looks: u32,
}

impl<K: Kernel, C: Clock> Engine<K, C> {
    pub fn new(kernel: K, clock: C, document: Arc<RwLock<Document>>, facts: Facts) -> Self {
        let settled = document.read().unwrap_or_else(PoisonError::into_inner).settled();
        Self {
            kernel,
            clock,
            document,
            facts,
            settled,
            view: SharedView::default(),
            trusted: false,
            insides_trusted: false,
            partial_looks: 0,
        }
    }

    pub fn view(&self) -> SharedView {
        self.view.clone()
    }

    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    pub fn facts(&mut self) -> &mut Facts {
        &mut self.facts
    }

    /// The node may have changed without us: the next round looks at it.
    pub fn distrust(&mut self, depth: Depth) {
        self.trusted = false;
        self.insides_trusted &= depth == Depth::Host;
    }

    /// Runs one round. A scope of some keys becomes a full round when the cache cannot be trusted.
    pub async fn round(&mut self, scope: Scope) -> Round {
        let mut round = match scope {
            Scope::Keys(keys) if self.trusted && self.knows_sides(&keys) => self.scoped_round(keys).await,
            Scope::Keys(_) | Scope::Everything => self.full_round(self.whole_look()).await,
        };
        self.record(&mut round);
        round
    }

    /// A full round that looks at WireGuard only and takes the rest from the cache: peers change without a sign, and their
    /// handshakes and counters are what people ask for.
    pub async fn glance(&mut self) -> Round {
        let look = if self.trusted { Look::Peers } else { self.whole_look() };
        let mut round = self.full_round(look).await;
        self.record(&mut round);
        round
    }

    fn record(&mut self, round: &mut Round) {
        let mut view = self.view.write();
        view.progress.rounds += 1;
        view.progress.in_sync = round.in_sync;
        // A round about some keys does not answer for the other edits of its generation; `cover` does.
        if round.in_sync && round.full {
            view.progress.converged = view.progress.converged.max(round.generation);
        }
        view.progress.ready |= round.full && round.blind.is_none();
        if round.blind.is_none() {
            round.again_at = round.again_at.into_iter().chain(view.ledger.next_due()).min();
        }
    }

    /// Every edit up to `generation` was part of a round that has finished.
    pub fn cover(&mut self, generation: u64) {
        let mut view = self.view.write();
        view.progress.covered = view.progress.covered.max(generation);
        if view.progress.in_sync {
            view.progress.converged = view.progress.converged.max(view.progress.covered);
        }
    }

    /// What a full round would do now. Changes nothing, not even the cache.
    pub async fn inspect(&mut self) -> Result<Diff, String> {
        let seen = self.observe().await?;
        let now = self.clock.now().unix;
        // Always in this order, as readers outside the loop take them.
        let document = self.document();
        let view = self.view.read();
        Ok(Diff::between(&document, &self.facts, &|key| self.told(&view, key), seen, now))
    }

    /// What is on the node now, in the places that the document is about. Changes nothing, not even the cache.
    pub async fn observe(&mut self) -> Result<Observation, String> {
        self.see(Look::Node).await
    }

    async fn see(&mut self, look: Look) -> Result<Observation, String> {
        let interest = self.interest(look);
        self.kernel.observe(&interest).await.map_err(|error| error.to_string())
    }

    /// As much as has to be looked at for the whole node to be known.
    fn whole_look(&self) -> Look {
        if !self.insides_trusted {
            return Look::Node;
        }
        // Not by way of the target: the look that follows makes all of it once anyway.
        let document = self.document();
        let ports = document.attachments().iter().flat_map(|(id, record)| record.links(id));
        if self.knows_sides(&ports.map(Key::Inside).collect()) { Look::Host } else { Look::Node }
    }

    /// False when among `keys` is the side of a container at a port that is there, and nobody has looked at it: it was not wanted before.
    fn knows_sides(&self, keys: &BTreeSet<Key>) -> bool {
        let view = self.view.read();
        keys.iter().all(|key| match key {
            Key::Inside(port) => {
                view.snapshot.find(key).is_some() || view.snapshot.find(&Key::Link(port.clone())).is_none()
            }
            _ => true,
        })
    }

    async fn full_round(&mut self, first: Look) -> Round {
        let mut round = Round { full: true, ..Round::default() };
        let mut look = first;
        for pass in 0..PASSES_MAX {
            let looked_at = self.clock.now();
            let seen = self.look(look).await;
            let elapsed = self.clock.now().instant.duration_since(looked_at.instant);
            if pass == 0 {
                round.observe += elapsed
            } else {
                round.verify += elapsed
            }
            if let Err(error) = seen {
                round.blind = Some(error);
                round.again_at = Some(self.clock.now().instant + crate::clock::BACKOFF_FIRST * 10);
                self.distrust(Depth::Whole);
                return round;
            }
            let (target, plan) = self.make_plan(&Scope::Everything, &mut round);
            let due = self.due(&target, &plan);
            let last = pass + 1 == PASSES_MAX;
            if due.is_empty() || last {
                self.conclude(&target, &plan, &mut round);
                if last && !due.is_empty() {
                    // Somebody undoes our work as fast as we do it: give way for a moment.
                    round.again_at = Some(self.clock.now().instant + crate::clock::BACKOFF_FIRST);
                }
                break;
            }
            let failed = self.carry_out(&target, &due, &mut round).await;
            // What a change did is looked at with everything around it.
            let is_inside = |step: &Step| step.action.key().subsystem() == Subsystem::Inside;
            look = if failed || due.iter().any(is_inside) { Look::Node } else { self.whole_look() };
        }
        self.trusted = true;
        self.retry_partial_look(&mut round);
        round
    }

    /// What could not be seen whole is looked at again sooner than the next periodic look, with growing pauses.
    fn retry_partial_look(&mut self, round: &mut Round) {
        if is_whole(&self.view.read()) {
            self.partial_looks = 0;
            return;
        }
        self.partial_looks = self.partial_looks.saturating_add(1);
        let at = self.clock.now().instant + backoff(self.partial_looks);
        round.again_at = Some(round.again_at.map_or(at, |sooner| sooner.min(at)));
    }

    async fn scoped_round(&mut self, mut keys: BTreeSet<Key>) -> Round {
        let mut round = Round::default();
        self.widen(&mut keys);
        let scope = Scope::Keys(keys);
        let (target, plan) = self.make_plan(&scope, &mut round);
        let due = self.due(&target, &plan);
        let failed = self.carry_out(&target, &due, &mut round).await;
        if failed {
            self.distrust(Depth::Whole);
            round.again_at = Some(self.clock.now().instant);
        }
        let Scope::Keys(keys) = scope else { unreachable!("the scope was built from keys") };
        let done: BTreeSet<&Key> =
            round.actions.iter().filter(|record| record.result == "ok").map(|record| &record.key).collect();
        let stuck = plan.left_after(&done);
        let now = self.clock.now();
        let mut view = self.view.write();
        for key in &keys {
            match target.objects.get(key) {
                // It could not be removed, or what it goes with could not: what is known of it stays.
                None if stuck.contains(key) || has_to_go(&view, key) => {}
                None => view.ledger.forget(key),
                Some(wanted) => {
                    let withheld = plan.withheld.get(key);
                    settle_key(&mut view.ledger, key, wanted.since, withheld, stuck.contains(key), now);
                }
            }
        }
        note_incomplete(&mut view.ledger, &target);
        round.in_sync = view.ledger.is_in_sync() && !failed && is_whole(&view);
        round
    }

    /// Adds what belongs to `keys`, so that one plan sees all sides: the peers from which an allowed IP moves away, the ports at which the
    /// firewall knows an address, and what is on a link.
    fn widen(&self, keys: &mut BTreeSet<Key>) {
        let document = self.document();
        let view = self.view.read();
        let mut known = 0;
        while known < keys.len() {
            known = keys.len();
            // Also the ports of a container that could not be taken off the overlay yet: nothing else tells that they had this address.
            let ports = keys.iter().filter_map(|key| match view.snapshot.find(key).map(|seen| &seen.spec) {
                Some(Spec::Member(member)) => Some(&member.ports),
                _ => None,
            });
            let ports = ports.flatten().flat_map(|port| [Key::Link(port.clone()), Key::Inside(port.clone())]);
            let ports: Vec<Key> = ports.collect();
            keys.extend(ports);
            keys.extend(companions(&document, &self.facts, keys));
        }
        let mut others = BTreeSet::new();
        for key in keys.iter() {
            if let Key::Link(name) = key {
                others.extend(view.snapshot.on_link(name).cloned());
            }
            let Key::Peer { device, public_key } = key else {
                continue;
            };
            let Some(scope) = document.scope_of_device(device) else { continue };
            let wanted = document.peers_of(&scope).get(public_key).map(|peer| &peer.allowed_ips);
            let seen = view.snapshot.find(key).and_then(|seen| match &seen.spec {
                Spec::Peer(peer) => Some(&peer.allowed_ips),
                _ => None,
            });
            let holders = wanted.into_iter().flatten().filter_map(|ip| view.snapshot.holder(device, ip));
            let takers = seen.into_iter().flatten().filter_map(|ip| document.holder_in(&scope, ip));
            others.extend(holders.chain(takers).map(|peer| Key::Peer { device: device.clone(), public_key: *peer }));
        }
        keys.extend(others);
    }

    async fn look(&mut self, look: Look) -> Result<(), String> {
        let observation = self.see(look).await?;
        let mut view = self.view.write();
        view.snapshot.distrust(&look.parts());
        view.snapshot.absorb(observation);
        self.facts.surroundings = view.snapshot.surroundings().clone();
        if look == Look::Node {
            self.insides_trusted = view.snapshot.is_whole(Subsystem::Inside);
        }
        Ok(())
    }

    fn interest(&self, look: Look) -> Interest {
        let Places { links, keys, insides } = places(&self.document(), &self.facts);
        Interest { subsystems: look.parts(), links, keys, insides }
    }

    fn lower(&self, scope: &Scope) -> (Target, u64) {
        let document = self.document();
        let view = self.view.read();
        (lower(&document, &self.facts, &|key| self.told(&view, key), scope), document.generation())
    }

    fn document(&self) -> RwLockReadGuard<'_, Document> {
        self.document.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Generation up to which the kernel is known to have been told of an object, by this process or an earlier one.
    fn told(&self, view: &View, key: &Key) -> u64 {
        view.ledger.realized_at(key).unwrap_or(0).max(self.settled)
    }

    fn make_plan(&self, scope: &Scope, round: &mut Round) -> (Target, Plan) {
        let now = self.clock.now();
        let (target, generation) = self.lower(scope);
        let plan = plan(&target, &self.view.read().snapshot, scope, now.unix);
        round.generation = generation;
        round.plan += self.clock.now().instant.duration_since(now.instant);
        (target, plan)
    }

    /// The steps that may be tried now: an object that backs off waits, and with it what stands on it.
    fn due(&self, target: &Target, plan: &Plan) -> Vec<Step> {
        let now = self.clock.now();
        let mut view = self.view.write();
        let mut undone = Undone::default();
        let mut due = Vec::new();
        for step in &plan.steps {
            let key = step.action.key();
            let since = target.objects.get(key).map(|wanted| wanted.since);
            if let Some(cause) = undone.cause(&step.action) {
                view.ledger.set(key, waits_for(cause));
            } else if view.ledger.is_due(key, since, now) {
                due.push(step.clone());
                continue;
            }
            undone.note(&step.action);
        }
        due
    }

    /// Applies steps and writes their outcomes down; true when one failed.
    async fn carry_out(&mut self, target: &Target, steps: &[Step], round: &mut Round) -> bool {
        if steps.is_empty() {
            return false;
        }
        let before = self.clock.now();
        let outcomes = apply(&mut self.kernel, steps).await;
        let now = self.clock.now();
        round.apply += now.instant.duration_since(before.instant);
        let mut failed = false;
        let mut view = self.view.write();
        let since_of = |key: &Key| target.objects.get(key).map_or(NOT_WANTED, |wanted| wanted.since);
        let is_ones_own = |step: &&Step| {
            is_drift(&view, step, since_of(step.action.key())) && !is_read_wrong_beside_another(&view, step)
        };
        let drifted: BTreeSet<&Key> = steps.iter().filter(is_ones_own).map(|step| step.action.key()).collect();
        for (step, outcome) in steps.iter().zip(outcomes) {
            let key = step.action.key();
            let since = since_of(key);
            let (result, error) = match outcome {
                Outcome::Done => {
                    if drifted.contains(key) {
                        round.drift.push((key.clone(), step.reason.word()));
                        view.ledger.repaired(key, now);
                    }
                    if let (Key::Link(name), Reason::Extra, false) = (key, &step.reason, view.ledger.was_wanted(key)) {
                        view.swept.note(name);
                    }
                    if since != NOT_WANTED {
                        view.ledger.tried(key, since);
                    }
                    view.snapshot.acknowledge(&step.action);
                    ("ok", None)
                }
                Outcome::Skipped(cause) => {
                    failed = true;
                    view.ledger.set(key, waits_for(&cause));
                    ("skipped", Some(format!("waits for {cause}")))
                }
                Outcome::Failed(error) => {
                    failed = true;
                    fail(&mut view.ledger, key, since, &error, now);
                    ("failed", Some(error.to_string()))
                }
            };
            round.actions.push(ActionRecord { key: key.clone(), verb: step.action.verb(), result, error });
        }
        failed
    }

    /// Writes down the condition of every object after a full look.
    fn conclude(&self, target: &Target, plan: &Plan, round: &mut Round) {
        let mut view = self.view.write();
        for step in &plan.steps {
            *round.left.entry((step.action.key().subsystem(), step.action.verb())).or_default() += 1;
        }
        let now = self.clock.now();
        let stuck = plan.left_after(&BTreeSet::new());
        // What is still there goes with something that could not be removed yet.
        let is_there = |key: &Key| stuck.contains(key) || has_to_go(&view, key);
        let known = |key: &&Key| !target.objects.contains_key(key) && !is_there(key);
        let stale: Vec<Key> = view.ledger.keys().filter(known).cloned().collect();
        for key in stale {
            view.ledger.forget(&key);
        }
        for (key, wanted) in &target.objects {
            settle_key(&mut view.ledger, key, wanted.since, plan.withheld.get(key), stuck.contains(key), now);
        }
        note_incomplete(&mut view.ledger, target);
        let settled = plan.steps.is_empty() && plan.withheld.is_empty();
        round.in_sync = settled && is_whole(&view) && view.ledger.is_in_sync();
    }
}

/// True for what is ours, is still there, and has to be removed.
fn has_to_go(view: &View, key: &Key) -> bool {
    key.subsystem().is_removed_by_itself() && view.snapshot.find(key).is_some_and(Observed::is_ours)
}

fn is_whole(view: &View) -> bool {
    Subsystem::ALL.into_iter().all(|part| view.snapshot.is_whole(part))
}

fn waits_for(other: &Key) -> Condition {
    Condition::Pending { why: format!("waits for {other}") }
}

/// An object of ours that changed though the document did not. Before its first realization in this process nothing is drift.
fn is_drift(view: &View, step: &Step, since: u64) -> bool {
    let key = step.action.key();
    let only_endpoint = matches!(&step.reason, Reason::Changed(fields) if fields.iter().all(|f| f.field == "endpoint"));
    match &step.reason {
        Reason::Extra => view.progress.ready && !view.ledger.was_wanted(key),
        Reason::Missing | Reason::Changed(_) | Reason::Replaced => {
            !only_endpoint && view.ledger.realized_at(key) == Some(since)
        }
    }
}

/// A member of the firewall that differs because another address behind the same port is in another network, as after a change that was
/// carried out in part. The difference is the other one's: a port is in one network only.
fn is_read_wrong_beside_another(view: &View, step: &Step) -> bool {
    let Action::Update { key, from: Spec::Member(from), to: Spec::Member(to) } = &step.action else { return false };
    let others = view.snapshot.iter().filter(|(other, seen)| *other != key && seen.is_ours());
    let is_the_cause = |other: &MemberSpec| {
        let is_elsewhere = other.network.is_some() && other.network != from.network && other.network != to.network;
        is_elsewhere && !other.ports.is_disjoint(&to.ports)
    };
    others.map(|(_, seen)| &seen.spec).any(|spec| matches!(spec, Spec::Member(other) if is_the_cause(other)))
}

fn fail(ledger: &mut Ledger, key: &Key, since: u64, error: &ActionError, now: Now) {
    let blocked = matches!(error, ActionError::Stranger(_));
    ledger.fail(key, since, blocked, error.to_string(), now);
}

fn note_incomplete(ledger: &mut Ledger, target: &Target) {
    for (key, why) in &target.incomplete {
        if ledger.condition(key) == Some(&Condition::Realized) {
            ledger.set(key, Condition::Pending { why: why.clone() });
        }
    }
}

/// Decides the condition of one wanted object from what a round knows about it. `stuck`: a difference of it is left.
fn settle_key(ledger: &mut Ledger, key: &Key, since: u64, withheld: Option<&Withheld>, stuck: bool, now: Now) {
    match withheld {
        Some(Withheld::Blocked(why)) => ledger.set(key, Condition::Blocked { why: why.clone() }),
        Some(Withheld::WaitsFor(other)) => ledger.set(key, Condition::Blocked { why: format!("waits for {other}") }),
        Some(Withheld::Unseen(why)) => ledger.unseen(key, why, now),
        None if stuck && ledger.is_contended(key, now) => ledger.contend(key),
        // What failed said so itself; what was skipped waits for it.
        None if stuck => {}
        None => ledger.realize(key, since),
    }
}
