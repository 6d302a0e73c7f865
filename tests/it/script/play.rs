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
    language::{Step, Stop, chosen, duration, parsed},
    stage::{Mishap, Stage},
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

    /// What the document wants, for an onlooker.
    pub fn document(&self) -> Document {
        self.document.read().unwrap().clone()
    }

    /// Does one step.
    ///
    /// # Errors
    /// [`Stop`], with the line where it is the story's fault.
    pub fn step(&mut self, step: &Step) -> Result<(), Stop> {
        let shape = step.shape();
        match shape.as_slice() {
            ["ensure" | "remove" | "attach" | "detach" | "withdraw" | "prune" | "publish" | "unpublish", ..] => {
                self.edit(step, &shape)?;
            }
            ["refused", words @ ..] => self.refused(step, words)?,
            ["round"] => self.round(false),
            ["look"] => self.round(true),
            ["hint"] => self.engine.distrust(Depth::Host),
            ["notice"] => self.notice(step)?,
            ["wait", time] => self.clock.advance(duration(step, time)?),
            ["crash"] => self.crash(step)?,
            ["suspend"] => {
                self.acted.clear();
                self.engine.facts().suspended = true;
                self.everything = true;
            }
            ["resolve", host, address] => {
                let (host, address) = (parsed(step, host)?, parsed(step, address)?);
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
    fn happen(&mut self, step: &Step, shape: &[&str]) -> Result<(), Stop> {
        match shape {
            ["container", name] => self.begin(step, name)?,
            ["end", name] => self.end(step, name)?,
            ["drift", "delete", object @ ..] => {
                self.acted.clear();
                let key = self.cast.object(step, object)?;
                if self.stage.see(&key).is_none() {
                    return Err(step.wrong(format_args!("{key} is not there, so nobody can delete it")));
                }
                self.stage.remove(&key)?;
            }
            ["drift", "set", object @ ..] => self.disturb(step, object)?,
            ["stranger", object @ ..] => {
                self.acted.clear();
                let key = self.cast.object(step, object)?;
                let theirs = match &key {
                    Key::Ruleset => Spec::Ruleset(RulesetSpec::default()),
                    Key::Link(_) => foreign_link(),
                    _ => return Err(step.malformed("a stranger has links and a firewall")),
                };
                self.stage.put_stranger(&key, theirs)?;
            }
            ["forwarding", what @ ("dropped" | "accepted"), word] => {
                self.acted.clear();
                self.stage.drop_forwarded(family(step, word)?, *what == "dropped")?;
            }
            ["way-out", name, what @ ("comes" | "goes")] => {
                self.acted.clear();
                self.stage.way_out(&parsed(step, name)?, *what == "comes")?;
            }
            ["fault", "next", what @ ..] => self.stage.mishap(mishap(step, what)?, 0)?,
            ["fault", "after", count, what @ ..] => self.stage.mishap(mishap(step, what)?, parsed(step, count)?)?,
            ["break", object @ ..] => {
                let key = self.cast.object(step, object)?;
                self.stage.break_object(&key, ActionError::Failed("simulated".into()))?;
            }
            ["mend", object @ ..] => {
                let key = self.cast.object(step, object)?;
                self.stage.mend(&key)?;
            }
            ["handshake", peer] => {
                let ago = step.setting("ago").map(|ago| duration(step, ago)).transpose()?.unwrap_or_default();
                let at = UnixTime(self.clock.now().unix.0.saturating_sub(ago.as_secs()));
                self.stage.handshake(self.cast.device(), &named(step, peer)?, at)?;
            }
            _ => {
                return Err(
                    step.malformed("no such step; write one of those at the top of tests/it/script/language.rs")
                );
            }
        }
        Ok(())
    }

    fn edit(&mut self, step: &Step, words: &[&str]) -> Result<(), Stop> {
        let wanted = the_edit(step, words, &self.cast, &self.document.read().unwrap())?;
        let granted = self.submit(step, &wanted)?;
        if let (Some(ip), Grant::Attached { ip: given, .. }) = (step.setting("ip"), &granted)
            && *given != parsed::<std::net::IpAddr>(step, ip)?
        {
            return Err(step.wrong(format_args!("it was granted {given}")));
        }
        Ok(())
    }

    fn submit(&mut self, step: &Step, wanted: &Edit) -> Result<Grant, Stop> {
        self.acted.clear();
        let mut document = self.document.write().unwrap();
        let next = document.generation() + 1;
        let context = Context { next, now: self.clock.now().unix, policy: &Policy::default() };
        let change = consider(&document, wanted, &context).map_err(|refusal| step.refused(&refusal))?;
        if !change.mutations.is_empty() {
            document.absorb(next, &change.mutations);
        }
        match change.touched {
            Touched::Nothing => {}
            Touched::Keys(keys) => self.touched.extend(keys),
            Touched::Everything => self.everything = true,
        }
        self.cast.learn(&document);
        Ok(change.grant)
    }

    fn refused(&self, step: &Step, words: &[&str]) -> Result<(), Stop> {
        let document = self.document.read().unwrap();
        let wanted = the_edit(step, words, &self.cast, &document)?;
        let next = document.generation() + 1;
        let context = Context { next, now: self.clock.now().unix, policy: &Policy::default() };
        match consider(&document, &wanted, &context) {
            Err(_) => Ok(()),
            Ok(change) => Err(step.wrong(format_args!("{:?} was granted", change.grant))),
        }
    }

    fn begin(&mut self, step: &Step, name: &str) -> Result<(), Stop> {
        if self.cast.actors.contains_key(name) {
            return Err(step.wrong(format_args!("{name} has played its part")));
        }
        let before = step.setting("pid-of").map(|name| self.cast.last_with_pid_of(step, name)).transpose()?;
        let netns = self.stage.begin(name, before)?;
        self.cast.actors.insert(name.to_owned(), Actor { netns, has_ended: false, addresses: Vec::new() });
        Ok(())
    }

    fn end(&mut self, step: &Step, name: &str) -> Result<(), Stop> {
        self.acted.clear();
        if self.cast.actor(step, name)?.has_ended {
            return Err(step.wrong(format_args!("{name} has ended before")));
        }
        self.stage.end(name)?;
        if let Some(actor) = self.cast.actors.get_mut(name) {
            actor.has_ended = true;
        }
        Ok(())
    }

    /// What the agent does about containers that have ended, as soon as it knows.
    fn notice(&mut self, step: &Step) -> Result<(), Stop> {
        self.acted.clear();
        for (id, record) in self.document().attachments() {
            let Place::Container { netns } = &record.place else { continue };
            let is_it = |actor: &Actor| actor.has_ended && actor.netns == *netns;
            if self.cast.actors.values().any(is_it) {
                self.submit(step, &Edit::Bury { id: id.clone(), netns: netns.clone() })?;
            }
        }
        Ok(())
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
    fn crash(&mut self, step: &Step) -> Result<(), Stop> {
        self.acted.clear();
        self.touched.clear();
        self.everything = true;
        let kernel = self.stage.kernel();
        self.engine = Engine::new(kernel, self.clock.clone(), self.document.clone(), Facts::new(mark()));
        // Before anything else it looks which containers are still there.
        self.notice(step)
    }

    fn disturb(&mut self, step: &Step, object: &[&str]) -> Result<(), Stop> {
        self.acted.clear();
        let key = self.cast.object(step, object)?;
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
            | Key::File(_)
            | Key::LinkDns(_) => None,
        };
        let nothing = || step.wrong(format_args!("{key} is not there, so nobody can change it"));
        let is = self.stage.see(&key).or(fresh).ok_or_else(nothing)?;
        Ok(self.stage.put(&key, with_fields(step, &is)?)?)
    }
}

fn mishap(step: &Step, what: &[&str]) -> Result<Mishap, Stop> {
    Ok(match what {
        ["fail"] => Mishap::FailsBeforeItsEffect,
        ["lose-answer"] => Mishap::AnswerIsLost,
        ["blind"] => Mishap::NothingIsSeen,
        ["cut", part] => Mishap::DumpIsCut(chosen(step, part, &Subsystem::ALL, Subsystem::word)?),
        _ => return Err(step.malformed("a fault is fail, lose-answer, blind or cut PART")),
    })
}
