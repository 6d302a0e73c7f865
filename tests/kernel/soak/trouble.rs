//! Whoever takes things apart: ten times a second somebody removes or changes an object, and every few seconds the agent dies.
//!
//! Owns when and what. After each death the document is held against what the clients were told, before there is another agent.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use overlayd::{
    action::Action,
    object::{Key, LinkKind, LinkSpec, Spec},
    observed::Owner,
};
use serde_json::Value;

use super::{client::Shared, document};
use crate::{
    dice::Dice,
    overlay_node::{OverlayNode, until},
};

const EVERY: Duration = Duration::from_millis(100);
/// How long somebody goes by what he saw of the node.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Part of the name of a bridge that carries our mark and is nobody's.
const STRAY: &str = "stray";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kills {
    EverySeconds,
    Never,
}

/// What was done to the node.
#[derive(Default)]
pub struct Told {
    kills: u64,
    compared: u64,
    /// Acts by verb and kind, and how many of them were possible.
    acts: BTreeMap<String, (u64, u64)>,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tried, done) = self.acts.values().fold((0, 0), |sum, act| (sum.0 + act.0, sum.1 + act.1));
        write!(
            f,
            "{} kills, the document compared after {}; {done} of {tried} acts of drift:",
            self.kills, self.compared
        )?;
        self.acts.iter().try_for_each(|(what, (tried, done))| write!(f, " {what} {done} of {tried},"))
    }
}

pub struct Trouble {
    node: OverlayNode,
    kills: Kills,
    shared: Arc<Shared>,
    dice: Dice,
    told: Told,
    seen: Vec<(Key, Spec)>,
    next_look: Instant,
    next_act: Instant,
    next_kill: Instant,
}

impl Trouble {
    pub fn new(node: OverlayNode, kills: Kills, shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        let next_kill = now + Duration::from_secs(2);
        Self {
            node,
            kills,
            shared,
            dice: Dice::of(1, 1000),
            told: Told::default(),
            seen: Vec::new(),
            next_look: now,
            next_act: now,
            next_kill,
        }
    }

    /// Waits for the next moment and does what is due.
    pub fn next(&mut self, broken: &dyn Fn(&BTreeMap<String, Value>) -> Vec<String>) {
        self.shared.assert_no_fault();
        std::thread::sleep(self.next_act.saturating_duration_since(Instant::now()));
        // Whoever was held up does not make up for it.
        self.next_act = Instant::now() + EVERY;
        if self.kills == Kills::EverySeconds && Instant::now() >= self.next_kill {
            self.kill(broken);
            self.next_kill = Instant::now() + Duration::from_millis(1500 + self.dice.below(4000) as u64);
        }
        if Instant::now() >= self.next_look {
            let seen = self.node.observe().objects;
            let ours = seen.into_iter().filter(|(_, seen)| seen.owner == Owner::Ours);
            self.seen = ours.map(|(key, seen)| (key, seen.spec)).collect();
            self.next_look = Instant::now() + LOOK_EVERY;
        }
        self.act();
    }

    /// Ends the trouble: there is an agent, and nobody disturbs it any more.
    pub fn end(self) -> (OverlayNode, Told) {
        (self.node, self.told)
    }

    fn kill(&mut self, broken: &dyn Fn(&BTreeMap<String, Value>) -> Vec<String>) {
        self.node.kill();
        self.shared.deaths.fetch_add(1, Ordering::SeqCst);
        self.told.kills += 1;
        // Now and then the next one comes at once.
        if !self.dice.one_in(4) {
            until("every client knows that there is no answer", || self.shared.all_know());
            let found = broken(&document(&self.node));
            assert_eq!(found, [""; 0], "after kill {}", self.told.kills);
            self.told.compared += 1;
        }
        if self.dice.one_in(4) {
            self.node.spawn();
            std::thread::sleep(Duration::from_millis(self.dice.below(200) as u64));
            self.node.kill();
            self.told.kills += 1;
        }
        let log = self.node.log();
        self.node.forget_log();
        assert!(!log.contains("panicked"), "{log}");
        self.node.start();
        self.shared.agent.store(self.node.agent_pid(), Ordering::SeqCst);
    }

    /// Somebody removes or changes an object, each kind as often as any other, or leaves a bridge behind.
    fn act(&mut self) {
        let mut kinds: Vec<_> = self.seen.iter().map(|(key, _)| key.subsystem()).collect();
        kinds.dedup();
        if kinds.is_empty() {
            return;
        }
        let kind = self.dice.of_list(&kinds);
        let of_kind: Vec<_> = self.seen.iter().filter(|(key, _)| key.subsystem() == kind).cloned().collect();
        let (key, spec) = self.dice.of_list(&of_kind);
        let action = if self.dice.one_in(20) {
            let name = format!("zl-{STRAY}-{}-b", self.dice.below(3)).parse().unwrap();
            Action::Create { key: Key::Link(name), spec: Spec::Link(LinkSpec::up(LinkKind::Bridge, 1420)) }
        } else {
            match changed(&spec) {
                Some(to) if self.dice.one_in(2) => Action::Update { key, from: spec, to },
                _ => Action::Delete { key, was: spec },
            }
        };
        let what = format!("{} {}", action.verb(), action.key().subsystem().word());
        let is_done = self.node.execute(vec![action]).into_iter().all(|outcome| outcome.is_ok());
        let (tried, done) = self.told.acts.entry(what).or_default();
        *tried += 1;
        *done += u64::from(is_done);
    }
}

/// The object as somebody might set it.
fn changed(spec: &Spec) -> Option<Spec> {
    Some(match spec {
        Spec::Link(link) => Spec::Link(LinkSpec { mtu: link.mtu - 20, ..link.clone() }),
        Spec::Peer(peer) => {
            let mut peer = peer.clone();
            peer.keepalive = 77;
            peer.allowed_ips.pop_first();
            Spec::Peer(peer)
        }
        Spec::Sysctl(value) => Spec::Sysctl(1 - (*value).clamp(0, 1)),
        Spec::Inside(inside) => {
            let mut inside = inside.clone();
            inside.routes.pop_first();
            Spec::Inside(inside)
        }
        Spec::Member(member) => {
            let mut member = member.clone();
            member.network = None;
            Spec::Member(member)
        }
        Spec::Address
        | Spec::Route(_)
        | Spec::Device(_)
        | Spec::Ruleset(_)
        | Spec::Guest(_)
        | Spec::File(_)
        | Spec::LinkDns(_) => {
            return None;
        }
    })
}
