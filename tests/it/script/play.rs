use std::{
    collections::BTreeSet,
    fmt::Display,
    str::FromStr,
    sync::{Arc, RwLock},
};

use futures::executor::block_on;
use overlayd::{
    clock::{Clock, UnixTime},
    desired::{Document, Edit, OverlayRequest, PeerRequest, Touched},
    ids::{Cidr, IfName, WgPublicKey},
    object::{EndpointSpec, Key, LinkKind, PeerSpec, RouteSpec, Setting, Spec, Subsystem},
    platform::ActionError,
    reconcile::{
        engine::Engine,
        ledger::Condition,
        target::{Facts, Scope},
        view::Round,
    },
};

use super::{
    language::{Step, duration},
    stage::{Mishap, Stage, Unsupported},
};
use crate::world::{TestClock, cidr, document, edit, foreign_link, mark, overlay};

/// A story under way: a stage, an agent on it, and what the story remembers.
pub struct Play<S: Stage> {
    stage: S,
    document: Arc<RwLock<Document>>,
    clock: TestClock,
    engine: Engine<S::Kernel, TestClock>,
    device: IfName,
    /// What the edits since the last round touched.
    touched: BTreeSet<Key>,
    everything: bool,
    /// The last round.
    last: Round,
    /// `VERB KEY` of every action that took effect since the story last changed something.
    acted: Vec<String>,
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
            device: crate::world::device(),
            touched: BTreeSet::new(),
            everything: false,
            last: Round::default(),
            acted: Vec::new(),
        }
    }

    /// Does one step.
    ///
    /// # Errors
    /// When the stage cannot do it. What the story expects and does not find is a panic with the line.
    pub fn step(&mut self, step: &Step) -> Result<(), Unsupported> {
        let shape = step.shape();
        match shape.as_slice() {
            ["ensure" | "remove", ..] => self.edit(&the_edit(step)),
            ["round"] => self.round(false),
            ["look"] => self.round(true),
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
            ["drift", "delete", object @ ..] => {
                self.acted.clear();
                let key = self.object(step, object);
                self.stage.remove(&key)?;
            }
            ["drift", "set", object @ ..] => self.disturb(step, object)?,
            ["stranger", object @ ..] => self.stage.put_stranger(&self.object(step, object), foreign_link())?,
            ["fault", "next", what @ ..] => self.stage.mishap(mishap(step, what), 0)?,
            ["fault", "after", count, what @ ..] => self.stage.mishap(mishap(step, what), parsed(step, count))?,
            ["break", object @ ..] => {
                let key = self.object(step, object);
                self.stage.break_object(&key, ActionError::Failed("simulated".into()))?;
            }
            ["mend", object @ ..] => self.stage.mend(&self.object(step, object))?,
            ["handshake", peer] => {
                let ago = step.setting("ago").map_or(0, |ago| duration(ago).as_secs());
                let at = UnixTime(self.clock.now().unix.0 - ago);
                self.stage.handshake(&self.device, &named(peer), at)?;
            }
            ["expect", what @ ..] => self.expect(step, what)?,
            _ => panic!("line {}: unknown step {shape:?}", step.line),
        }
        Ok(())
    }

    fn edit(&mut self, wanted: &Edit) {
        self.acted.clear();
        let mut document = self.document.write().unwrap();
        match edit(&mut document, wanted).touched {
            Touched::Nothing => {}
            Touched::Keys(keys) => self.touched.extend(keys),
            Touched::Everything => self.everything = true,
        }
        if let Some(device) = document.device_name() {
            self.device = device;
        }
    }

    fn round(&mut self, everything: bool) {
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
    }

    fn disturb(&mut self, step: &Step, object: &[&str]) -> Result<(), Unsupported> {
        self.acted.clear();
        let key = self.object(step, object);
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
        let mut spec = self.stage.see(&key).or(fresh).unwrap_or_else(|| panic!("line {}: no {key}", step.line));
        for (name, value) in &step.settings {
            set_field(step, &mut spec, name, value);
        }
        self.stage.put(&key, spec)
    }

    fn object(&self, step: &Step, words: &[&str]) -> Key {
        let link = self.device.clone();
        let cluster = || {
            self.document.read().unwrap().overlay().map_or(cidr("10.200.0.0/16"), |overlay| *overlay.cluster.first())
        };
        match words {
            ["link"] => Key::Link(link),
            ["device"] => Key::Device(link),
            ["setting"] if cluster().is_ipv4() => Key::Sysctl { link, setting: Setting::Ipv4RpFilter },
            ["setting"] => Key::Sysctl { link, setting: Setting::Ipv6AcceptRa },
            ["route"] => Key::Route { destination: cluster(), metric: mark().route_metric() },
            ["fallback"] => Key::Route { destination: cluster(), metric: mark().fallback_metric() },
            ["address", address] => Key::Address { link, address: parsed(step, address) },
            ["peer", name] => Key::Peer { device: link, public_key: named(name) },
            _ => panic!("line {}: unknown object {words:?}", step.line),
        }
    }

    fn expect(&mut self, step: &Step, what: &[&str]) -> Result<(), Unsupported> {
        let line = step.line;
        match what {
            ["plan", "empty"] => {
                let diff = block_on(self.engine.inspect()).unwrap();
                assert!(diff.is_empty(), "line {line}: there is a difference:\n{}", diff.to_text());
            }
            ["in-sync"] => assert!(self.last.in_sync, "line {line}: not in sync: {:#?}", self.last),
            ["not", "in-sync"] => assert!(!self.last.in_sync, "line {line}: in sync: {:#?}", self.last),
            ["no", "action"] => assert!(self.acted.is_empty(), "line {line}: {:#?}", self.acted),
            ["action", verb, object @ ..] => {
                let wanted = format!("{verb} {}", self.object(step, object));
                assert!(self.acted.contains(&wanted), "line {line}: no {wanted} in {:#?}", self.acted);
            }
            ["untouched", object @ ..] => self.expect_untouched(step, object)?,
            ["present", object @ ..] => self.expect_present(step, object),
            ["absent", object @ ..] => {
                let key = self.object(step, object);
                assert!(self.stage.see(&key).is_none(), "line {line}: {key} is there");
            }
            ["drift", count] => {
                let drift = &self.last.drift;
                assert_eq!(drift.len(), parsed::<usize>(step, count), "line {line}: {drift:#?}");
            }
            ["retry", when] => {
                let at = self.last.again_at.map(|at| at.saturating_duration_since(self.clock.now().instant));
                let wanted = (*when != "none").then(|| duration(when));
                assert_eq!(at, wanted, "line {line}");
            }
            [condition, object @ ..] => {
                let key = self.object(step, object);
                let view = self.engine.view();
                let word = view.read().ledger.condition(&key).map_or("forgotten", Condition::word);
                assert_eq!(word, *condition, "line {line}: {key}");
            }
            [] => panic!("line {line}: expect what?"),
        }
        Ok(())
    }

    /// No action since the last edit or disturbance was about the object, and no session of it was ever lost.
    fn expect_untouched(&self, step: &Step, object: &[&str]) -> Result<(), Unsupported> {
        let key = self.object(step, object);
        let about = format!(" {key}");
        let touched: Vec<&String> = self.acted.iter().filter(|action| action.ends_with(&about)).collect();
        assert!(touched.is_empty(), "line {}: {touched:?}", step.line);
        if let Key::Peer { device, public_key } = &key {
            assert_eq!(self.stage.sessions_lost(device, public_key)?, 0, "line {}: {key} lost a session", step.line);
        }
        Ok(())
    }

    fn expect_present(&self, step: &Step, object: &[&str]) {
        let key = self.object(step, object);
        let Some(is) = self.stage.see(&key) else {
            panic!("line {}: {key} is not there", step.line);
        };
        let mut wanted = is.clone();
        for (name, value) in &step.settings {
            set_field(step, &mut wanted, name, value);
        }
        assert_eq!(is, wanted, "line {}: {key}", step.line);
    }
}

fn parsed<T: FromStr<Err: Display>>(step: &Step, text: &str) -> T {
    text.parse().unwrap_or_else(|error| panic!("line {}: {text:?}: {error}", step.line))
}

/// The key of a peer of this name: the name itself, filled up.
fn named(name: &str) -> WgPublicKey {
    let mut bytes = [0x5A; 32];
    let text = name.as_bytes();
    bytes[..text.len()].copy_from_slice(text);
    WgPublicKey::from_bytes(bytes)
}

fn networks(step: &Step, text: &str) -> BTreeSet<Cidr> {
    match text {
        "none" => BTreeSet::new(),
        list => list.split(',').map(|net| parsed(step, net)).collect(),
    }
}

fn the_edit(step: &Step) -> Edit {
    match step.shape().as_slice() {
        ["ensure", "overlay"] => {
            let plain = overlay();
            Edit::EnsureOverlay(OverlayRequest {
                instance: step.setting("instance").map_or(plain.instance.clone(), |text| parsed(step, text)),
                cluster: step.setting("cluster").map_or(plain.cluster, |text| parsed(step, text)),
                slice: match step.setting("slice") {
                    Some("none") => None,
                    Some(text) => Some(parsed(step, text)),
                    None => plain.slice,
                },
                port: step.setting("port").map_or(plain.port, |text| parsed(step, text)),
                ..plain
            })
        }
        ["remove", "overlay"] => Edit::RemoveOverlay,
        ["ensure", "peer", name] => Edit::EnsurePeer(PeerRequest {
            scope: overlayd::desired::PeerScope::Node,
            public_key: named(name),
            endpoint: step.setting("endpoint").filter(|text| *text != "none").map(|text| parsed(step, text)),
            allowed_ips: networks(step, step.setting("ips").unwrap_or("none")),
            keepalive: step.setting("keepalive").map_or(25, |text| parsed(step, text)),
            candidates: Vec::new(),
        }),
        ["remove", "peer", name] => Edit::RemovePeer { scope: overlayd::desired::PeerScope::Node, peer: named(name) },
        ["ensure", "allowed-ip", name, net] => Edit::EnsureAllowedIp {
            scope: overlayd::desired::PeerScope::Node,
            peer: named(name),
            allowed_ip: parsed(step, net),
        },
        ["remove", "allowed-ip", name, net] => Edit::RemoveAllowedIp {
            scope: overlayd::desired::PeerScope::Node,
            peer: named(name),
            allowed_ip: parsed(step, net),
        },
        shape => panic!("line {}: unknown edit {shape:?}", step.line),
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

fn set_field(step: &Step, spec: &mut Spec, name: &str, value: &str) {
    match (spec, name) {
        (Spec::Link(link), "mtu") => link.mtu = parsed(step, value),
        (Spec::Link(link), "up") => link.up = parsed(step, value),
        (Spec::Link(link), "kind") => link.kind = LinkKind::Other(value.to_owned()),
        (Spec::Sysctl(is), "value") => *is = parsed(step, value),
        (Spec::Device(device), "port") => device.listen_port = parsed(step, value),
        (Spec::Device(device), "fwmark") => device.fwmark = parsed(step, value),
        (Spec::Route(route), "to") => {
            *route = if value == "unreachable" { RouteSpec::Unreachable } else { RouteSpec::Other(value.to_owned()) }
        }
        (Spec::Peer(peer), "keepalive") => peer.keepalive = parsed(step, value),
        (Spec::Peer(peer), "ips") => peer.allowed_ips = networks(step, value),
        (Spec::Peer(peer), "preshared") => peer.preshared = parsed(step, value),
        (Spec::Peer(peer), "endpoint") => {
            peer.endpoint = (value != "none").then(|| EndpointSpec {
                address: parsed(step, value),
                pinned: false,
                resolved: false,
            });
        }
        (spec, name) => panic!("line {}: {spec:?} has no {name}", step.line),
    }
}
