use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, RwLock},
};

use futures::executor::block_on;
use overlayd::{
    clock::{Clock, UnixTime},
    desired::{Context, Document, Edit, Grant, Place, Policy, Touched, consider},
    object::{Key, PeerSpec, RulesetSpec, Spec, Subsystem},
    platform::ActionError,
    reconcile::{
        engine::{Depth, Engine},
        target::{Facts, Scope},
        view::Round,
    },
};

use super::{
    cast::{Actor, Cast, family, named},
    edits::the_edit,
    fields::with_fields,
    language::{Step, duration, parsed},
    stage::{Mishap, Stage, Unsupported},
};
use crate::world::{TestClock, document, edit, foreign_link, mark};

/// A story under way: a stage, an agent on it, and what the story remembers.
pub struct Play<S: Stage> {
    pub(super) stage: S,
    pub(super) document: Arc<RwLock<Document>>,
    pub(super) clock: TestClock,
    pub(super) engine: Engine<S::Kernel, TestClock>,
    pub(super) cast: Cast,
    /// What the edits since the last round touched.
    touched: BTreeSet<Key>,
    everything: bool,
    /// The last round.
    pub(super) last: Round,
    /// `VERB KEY` of every action that took effect since the story last changed something.
    pub(super) acted: Vec<String>,
}

impl<S: Stage> Play<S> {
    pub fn on(stage: S) -> Self {
        let document = Arc::new(RwLock::new(document(0)));
        edit(&mut document.write().unwrap(), &Edit::RemoveOverlay);
        let clock = TestClock::new();
        let engine = Engine::new(stage.kernel(), clock.clone(), document.clone(), Facts::new(mark()));
        Self {
            stage,
            document,
            clock,
            engine,
            cast: Cast::new(),
            touched: BTreeSet::new(),
            everything: false,
            last: Round::default(),
            acted: Vec::new(),
        }
    }

    pub fn cast(&self) -> &Cast {
        &self.cast
    }

    /// The conditions of the objects that are not realized, as the agent has them, with containers by their names.
    pub fn troubled(&self) -> BTreeMap<String, &'static str> {
        let view = self.engine.view();
        let view = view.read();
        let troubled = view.ledger.troubled().iter();
        troubled.map(|(key, condition)| (self.cast.plain_text(&key.to_string()), condition.word())).collect()
    }

    /// Does one step.
    ///
    /// # Errors
    /// When the stage cannot do it. What the story expects and does not find is a panic with the line.
    pub fn step(&mut self, step: &Step) -> Result<(), Unsupported> {
        let shape = step.shape();
        match shape.as_slice() {
            ["ensure" | "remove" | "attach" | "detach" | "withdraw" | "prune" | "publish" | "unpublish", ..] => {
                self.edit(step, &shape);
            }
            ["refused", words @ ..] => self.refused(step, words),
            ["round"] => self.round(false),
            ["look"] => self.round(true),
            ["hint"] => self.engine.distrust(Depth::Host),
            ["notice"] => self.notice(),
            ["wait", time] => self.clock.advance(duration(time)),
            ["crash"] => self.crash(),
            ["suspend"] => {
                self.acted.clear();
                self.engine.facts().suspended = true;
                self.everything = true;
            }
            ["resolve", host, address] => {
                let (host, address) = (parsed(step, host), parsed(step, address));
                self.acted.clear();
                self.engine.facts().resolved.insert(host, address);
                self.everything = true;
            }
            ["expect", what @ ..] => self.expect(step, what)?,
            _ => self.happen(step, &shape)?,
        }
        Ok(())
    }

    /// Something that others do, or that goes wrong.
    fn happen(&mut self, step: &Step, shape: &[&str]) -> Result<(), Unsupported> {
        match shape {
            ["container", name] => self.begin(step, name)?,
            ["end", name] => {
                self.acted.clear();
                self.stage.end(name)?;
                self.cast.actors.get_mut(*name).unwrap().has_ended = true;
            }
            ["drift", "delete", object @ ..] => {
                self.acted.clear();
                let key = self.cast.object(step, object);
                self.stage.remove(&key)?;
            }
            ["drift", "set", object @ ..] => self.disturb(step, object)?,
            ["stranger", object @ ..] => {
                self.acted.clear();
                let key = self.cast.object(step, object);
                let theirs = match &key {
                    Key::Ruleset => Spec::Ruleset(RulesetSpec::default()),
                    _ => foreign_link(),
                };
                self.stage.put_stranger(&key, theirs)?;
            }
            ["forwarding", what @ ("dropped" | "accepted"), word] => {
                self.acted.clear();
                self.stage.drop_forwarded(family(step, word), *what == "dropped")?;
            }
            ["way-out", name, "comes" | "goes"] => {
                self.acted.clear();
                self.stage.way_out(&parsed(step, name), shape[2] == "comes")?;
            }
            ["fault", "next", what @ ..] => self.stage.mishap(mishap(step, what), 0)?,
            ["fault", "after", count, what @ ..] => self.stage.mishap(mishap(step, what), parsed(step, count))?,
            ["break", object @ ..] => {
                let key = self.cast.object(step, object);
                self.stage.break_object(&key, ActionError::Failed("simulated".into()))?;
            }
            ["mend", object @ ..] => self.stage.mend(&self.cast.object(step, object))?,
            ["handshake", peer] => {
                let ago = step.setting("ago").map_or(0, |ago| duration(ago).as_secs());
                let at = UnixTime(self.clock.now().unix.0 - ago);
                self.stage.handshake(self.cast.device(), &named(peer), at)?;
            }
            _ => panic!("line {}: unknown step {shape:?}", step.line),
        }
        Ok(())
    }

    fn edit(&mut self, step: &Step, words: &[&str]) {
        let wanted = the_edit(step, words, &self.cast, &self.document.read().unwrap());
        let granted = self.submit(step, &wanted);
        if let (Some(ip), Grant::Attached { ip: given, .. }) = (step.setting("ip"), &granted) {
            assert_eq!(*given, parsed::<std::net::IpAddr>(step, ip), "line {}", step.line);
        }
    }

    fn submit(&mut self, step: &Step, wanted: &Edit) -> Grant {
        self.acted.clear();
        let mut document = self.document.write().unwrap();
        let next = document.generation() + 1;
        let context = Context { next, now: self.clock.now().unix, policy: &Policy::default() };
        let change = consider(&document, wanted, &context);
        let change = change.unwrap_or_else(|refusal| panic!("line {}: {wanted:?}: {refusal}", step.line));
        if !change.mutations.is_empty() {
            document.absorb(next, &change.mutations);
        }
        match change.touched {
            Touched::Nothing => {}
            Touched::Keys(keys) => self.touched.extend(keys),
            Touched::Everything => self.everything = true,
        }
        self.cast.learn(&document);
        change.grant
    }

    fn refused(&self, step: &Step, words: &[&str]) {
        let document = self.document.read().unwrap();
        let wanted = the_edit(step, words, &self.cast, &document);
        let next = document.generation() + 1;
        let context = Context { next, now: self.clock.now().unix, policy: &Policy::default() };
        assert!(consider(&document, &wanted, &context).is_err(), "line {}: {wanted:?} was granted", step.line);
    }

    fn begin(&mut self, step: &Step, name: &str) -> Result<(), Unsupported> {
        assert!(!self.cast.actors.contains_key(name), "line {}: {name} has played its part", step.line);
        let before = step.setting("pid-of").map(|name| self.cast.actor(step, name).netns.clone());
        let netns = self.stage.begin(name, before.as_ref())?;
        self.cast.actors.insert(name.to_owned(), Actor { netns, has_ended: false, addresses: Vec::new() });
        Ok(())
    }

    /// What the agent does about containers that have ended, as soon as it knows.
    fn notice(&mut self) {
        self.acted.clear();
        let document = self.document.read().unwrap().clone();
        for (id, record) in document.attachments() {
            let Place::Container { netns } = &record.place else { continue };
            let is_it = |actor: &Actor| actor.has_ended && actor.netns == *netns;
            if self.cast.actors.values().any(is_it) {
                let step = Step::default();
                self.submit(&step, &Edit::Bury { id: id.clone(), netns: netns.clone() });
            }
        }
    }

    fn round(&mut self, everything: bool) {
        if everything {
            self.engine.distrust(Depth::Whole);
        }
        let keys = std::mem::take(&mut self.touched);
        let everything = std::mem::take(&mut self.everything) || everything || keys.is_empty();
        let scope = if everything { Scope::Everything } else { Scope::Keys(keys) };
        self.last = block_on(self.engine.round(scope));
        let done = self.last.actions.iter().filter(|record| record.result == "ok");
        self.acted.extend(done.map(|record| format!("{} {}", record.verb, record.key)));
    }

    /// The agent dies; another starts with what was durable, on the node as it is.
    fn crash(&mut self) {
        self.acted.clear();
        self.touched.clear();
        self.everything = true;
        let kernel = self.stage.kernel();
        self.engine = Engine::new(kernel, self.clock.clone(), self.document.clone(), Facts::new(mark()));
        // Before anything else it looks which containers are still there.
        self.notice();
    }

    fn disturb(&mut self, step: &Step, object: &[&str]) -> Result<(), Unsupported> {
        self.acted.clear();
        let key = self.cast.object(step, object);
        let fresh = match &key {
            Key::Peer { .. } => Some(Spec::Peer(PeerSpec::default())),
            Key::Address { .. } => Some(Spec::Address),
            Key::Link(_)
            | Key::Route { .. }
            | Key::Sysctl { .. }
            | Key::Device(_)
            | Key::Inside(_)
            | Key::Ruleset
            | Key::Member(_)
            | Key::Guest(_)
            | Key::File(_) => None,
        };
        let is = self.stage.see(&key).or(fresh).unwrap_or_else(|| panic!("line {}: no {key}", step.line));
        self.stage.put(&key, with_fields(step, &is))
    }
}

fn mishap(step: &Step, what: &[&str]) -> Mishap {
    match what {
        ["fail"] => Mishap::FailsBeforeItsEffect,
        ["lose-answer"] => Mishap::AnswerIsLost,
        ["blind"] => Mishap::NothingIsSeen,
        ["cut", part] => match Subsystem::ALL.into_iter().find(|known| known.word() == *part) {
            Some(part) => Mishap::DumpIsCut(part),
            None => panic!("line {}: no part {part}", step.line),
        },
        _ => panic!("line {}: unknown fault {what:?}", step.line),
    }
}
