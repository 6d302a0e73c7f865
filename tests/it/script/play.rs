use std::{
    collections::BTreeSet,
    fmt::Display,
    str::FromStr,
    sync::{Arc, RwLock},
};

use futures::executor::block_on;
use overlayd::{
    clock::{Clock, UnixTime},
    desired::{Document, Edit, OverlayRequest, PeerRequest, PeerScope, Touched, consider},
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
    language::{Step, Stop, duration},
    stage::{Mishap, Stage},
};
use crate::world::{TestClock, at, cidr, document, edit, foreign_link, mark, overlay};

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
    /// [`Stop`], with the line where it is the story's fault.
    pub fn step(&mut self, step: &Step) -> Result<(), Stop> {
        let shape = step.shape();
        match shape.as_slice() {
            ["ensure" | "remove", ..] => self.edit(step, &the_edit(step)?)?,
            ["round"] => self.round(false),
            ["look"] => self.round(true),
            ["wait", time] => self.clock.advance(duration(step, time)?),
            ["crash"] => self.crash(),
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
            ["drift", "delete", object @ ..] => {
                self.acted.clear();
                let key = self.object(step, object)?;
                if self.stage.see(&key).is_none() {
                    return Err(step.wrong(format_args!("{key} is not there, so nobody can delete it")));
                }
                self.stage.remove(&key)?;
            }
            ["drift", "set", object @ ..] => self.disturb(step, object)?,
            ["stranger", "link"] => self.stage.put_stranger(&Key::Link(self.device.clone()), foreign_link())?,
            ["fault", "next", what @ ..] => self.stage.mishap(mishap(step, what)?, 0)?,
            ["fault", "after", count, what @ ..] => self.stage.mishap(mishap(step, what)?, parsed(step, count)?)?,
            ["break", object @ ..] => {
                let key = self.object(step, object)?;
                self.stage.break_object(&key, ActionError::Failed("simulated".into()))?;
            }
            ["mend", object @ ..] => {
                let key = self.object(step, object)?;
                self.stage.mend(&key)?;
            }
            ["handshake", peer] => {
                let ago = step.setting("ago").map(|ago| duration(step, ago)).transpose()?.unwrap_or_default();
                let at = UnixTime(self.clock.now().unix.0.saturating_sub(ago.as_secs()));
                self.stage.handshake(&self.device, &named(step, peer)?, at)?;
            }
            ["expect", what @ ..] => self.expect(step, what)?,
            _ => {
                return Err(
                    step.malformed("no such step; write one of those at the top of tests/it/script/language.rs")
                );
            }
        }
        Ok(())
    }

    fn edit(&mut self, step: &Step, wanted: &Edit) -> Result<(), Stop> {
        self.acted.clear();
        let mut document = self.document.write().unwrap();
        let next = document.generation() + 1;
        let change = consider(&document, wanted, &at(next)).map_err(|refusal| step.refused(&refusal))?;
        if !change.mutations.is_empty() {
            document.absorb(next, &change.mutations);
        }
        match change.touched {
            Touched::Nothing => {}
            Touched::Keys(keys) => self.touched.extend(keys),
            Touched::Everything => self.everything = true,
        }
        if let Some(device) = document.device_name() {
            self.device = device;
        }
        Ok(())
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

    fn disturb(&mut self, step: &Step, object: &[&str]) -> Result<(), Stop> {
        self.acted.clear();
        let key = self.object(step, object)?;
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
        let nothing = || step.wrong(format_args!("{key} is not there, so nobody can change it"));
        let mut spec = self.stage.see(&key).or(fresh).ok_or_else(nothing)?;
        for (name, value) in &step.settings {
            set_field(step, &mut spec, name, value)?;
        }
        Ok(self.stage.put(&key, spec)?)
    }

    fn object(&self, step: &Step, words: &[&str]) -> Result<Key, Stop> {
        let link = self.device.clone();
        let cluster = || {
            self.document.read().unwrap().overlay().map_or(cidr("10.200.0.0/16"), |overlay| *overlay.cluster.first())
        };
        Ok(match words {
            ["link"] => Key::Link(link),
            ["device"] => Key::Device(link),
            ["setting"] if cluster().is_ipv4() => Key::Sysctl { link, setting: Setting::Ipv4RpFilter },
            ["setting"] => Key::Sysctl { link, setting: Setting::Ipv6AcceptRa },
            ["route"] => Key::Route { destination: cluster(), metric: mark().route_metric() },
            ["fallback"] => Key::Route { destination: cluster(), metric: mark().fallback_metric() },
            ["address", address] => Key::Address { link, address: parsed(step, address)? },
            ["peer", name] => Key::Peer { device: link, public_key: named(step, name)? },
            _ => {
                let why = "an object is link, device, setting, route, fallback, address A/P or peer NAME";
                return Err(step.malformed(why));
            }
        })
    }

    fn expect(&mut self, step: &Step, what: &[&str]) -> Result<(), Stop> {
        let hold = |holds: bool, why: std::fmt::Arguments<'_>| if holds { Ok(()) } else { Err(step.wrong(why)) };
        match what {
            ["plan", "empty"] => match block_on(self.engine.inspect()) {
                Ok(diff) => hold(diff.is_empty(), format_args!("there is a difference:\n{}", diff.to_text())),
                Err(error) => Err(step.wrong(format_args!("nothing can be seen: {error}"))),
            },
            ["in-sync"] => hold(self.last.in_sync, format_args!("not in sync: {:#?}", self.last)),
            ["not", "in-sync"] => hold(!self.last.in_sync, format_args!("in sync: {:#?}", self.last)),
            ["no", "action"] => hold(self.acted.is_empty(), format_args!("{:#?}", self.acted)),
            ["action", verb, object @ ..] => {
                let wanted = format!("{verb} {}", self.object(step, object)?);
                hold(self.acted.contains(&wanted), format_args!("no {wanted} in {:#?}", self.acted))
            }
            ["untouched", object @ ..] => self.expect_untouched(step, object),
            ["present", object @ ..] => self.expect_present(step, object),
            ["absent", object @ ..] => {
                let key = self.object(step, object)?;
                hold(self.stage.see(&key).is_none(), format_args!("{key} is there"))
            }
            ["drift", count] => {
                let (drift, count) = (&self.last.drift, parsed::<usize>(step, count)?);
                hold(drift.len() == count, format_args!("{drift:#?}"))
            }
            ["retry", when] => {
                let at = self.last.again_at.map(|at| at.saturating_duration_since(self.clock.now().instant));
                let wanted = if *when == "none" { None } else { Some(duration(step, when)?) };
                hold(at == wanted, format_args!("it is tried again after {at:?}"))
            }
            [condition, object @ ..] => {
                let key = self.object(step, object)?;
                let view = self.engine.view();
                let word = view.read().ledger.condition(&key).map_or("forgotten", Condition::word);
                hold(word == *condition, format_args!("{key} is {word}"))
            }
            [] => Err(step.malformed("say what is expected")),
        }
    }

    /// No action since the last edit or disturbance was about the object, and no session of it was ever lost.
    fn expect_untouched(&self, step: &Step, object: &[&str]) -> Result<(), Stop> {
        let key = self.object(step, object)?;
        let about = format!(" {key}");
        let touched: Vec<&String> = self.acted.iter().filter(|action| action.ends_with(&about)).collect();
        if !touched.is_empty() {
            return Err(step.wrong(format_args!("{touched:?}")));
        }
        match &key {
            Key::Peer { device, public_key } if self.stage.sessions_lost(device, public_key)? > 0 => {
                Err(step.wrong(format_args!("{key} lost a session")))
            }
            _ => Ok(()),
        }
    }

    fn expect_present(&self, step: &Step, object: &[&str]) -> Result<(), Stop> {
        let key = self.object(step, object)?;
        let is = self.stage.see(&key).ok_or_else(|| step.wrong(format_args!("{key} is not there")))?;
        let mut wanted = is.clone();
        for (name, value) in &step.settings {
            set_field(step, &mut wanted, name, value)?;
        }
        if is == wanted { Ok(()) } else { Err(step.wrong(format_args!("{key} is {is:?}, not {wanted:?}"))) }
    }
}

fn parsed<T: FromStr<Err: Display>>(step: &Step, text: &str) -> Result<T, Stop> {
    text.parse().map_err(|error| step.malformed(&format!("{text:?}: {error}")))
}

/// The key of a peer of this name: the name itself, filled up.
fn named(step: &Step, name: &str) -> Result<WgPublicKey, Stop> {
    let mut bytes = [0x5A; 32];
    match bytes.get_mut(..name.len()).filter(|_| name.bytes().all(|byte| byte.is_ascii_graphic())) {
        Some(front) => front.copy_from_slice(name.as_bytes()),
        None => return Err(step.malformed("a peer's name has at most 32 letters, digits and signs of ASCII")),
    }
    Ok(WgPublicKey::from_bytes(bytes))
}

fn networks(step: &Step, text: &str) -> Result<BTreeSet<Cidr>, Stop> {
    match text {
        "none" => Ok(BTreeSet::new()),
        list => list.split(',').map(|net| parsed(step, net)).collect(),
    }
}

/// A setting as what it stands for, or `otherwise` where it is not there.
fn setting<T: FromStr<Err: Display>>(step: &Step, name: &str, otherwise: T) -> Result<T, Stop> {
    step.setting(name).map_or(Ok(otherwise), |text| parsed(step, text))
}

fn the_edit(step: &Step) -> Result<Edit, Stop> {
    Ok(match step.shape().as_slice() {
        ["ensure", "overlay"] => {
            let plain = overlay();
            Edit::EnsureOverlay(OverlayRequest {
                instance: setting(step, "instance", plain.instance.clone())?,
                cluster: setting(step, "cluster", plain.cluster)?,
                slice: match step.setting("slice") {
                    Some("none") => None,
                    Some(text) => Some(parsed(step, text)?),
                    None => plain.slice,
                },
                port: setting(step, "port", plain.port)?,
                ..plain
            })
        }
        ["remove", "overlay"] => Edit::RemoveOverlay,
        ["ensure", "peer", name] => Edit::EnsurePeer(PeerRequest {
            scope: PeerScope::Node,
            public_key: named(step, name)?,
            endpoint: match step.setting("endpoint") {
                Some("none") | None => None,
                Some(text) => Some(parsed(step, text)?),
            },
            allowed_ips: networks(step, step.setting("ips").unwrap_or("none"))?,
            keepalive: setting(step, "keepalive", 25)?,
            candidates: Vec::new(),
        }),
        ["remove", "peer", name] => Edit::RemovePeer { scope: PeerScope::Node, peer: named(step, name)? },
        ["ensure", "allowed-ip", name, net] => {
            Edit::EnsureAllowedIp { scope: PeerScope::Node, peer: named(step, name)?, allowed_ip: parsed(step, net)? }
        }
        ["remove", "allowed-ip", name, net] => {
            Edit::RemoveAllowedIp { scope: PeerScope::Node, peer: named(step, name)?, allowed_ip: parsed(step, net)? }
        }
        _ => return Err(step.malformed("ensure and remove take overlay, peer NAME or allowed-ip NAME NET")),
    })
}

fn mishap(step: &Step, what: &[&str]) -> Result<Mishap, Stop> {
    Ok(match what {
        ["fail"] => Mishap::FailsBeforeItsEffect,
        ["lose-answer"] => Mishap::AnswerIsLost,
        ["blind"] => Mishap::NothingIsSeen,
        ["cut", part] => match Subsystem::ALL.into_iter().find(|known| known.word() == *part) {
            Some(part) => Mishap::DumpIsCut(part),
            None => return Err(step.malformed("cut takes a part of the node, as peer or route")),
        },
        _ => return Err(step.malformed("a fault is fail, lose-answer, blind or cut PART")),
    })
}

fn set_field(step: &Step, spec: &mut Spec, name: &str, value: &str) -> Result<(), Stop> {
    match (spec, name) {
        (Spec::Link(link), "mtu") => link.mtu = parsed(step, value)?,
        (Spec::Link(link), "up") => link.up = parsed(step, value)?,
        (Spec::Link(link), "kind") => link.kind = LinkKind::Other(value.to_owned()),
        (Spec::Sysctl(is), "value") => *is = parsed(step, value)?,
        (Spec::Device(device), "port") => device.listen_port = parsed(step, value)?,
        (Spec::Device(device), "fwmark") => device.fwmark = parsed(step, value)?,
        (Spec::Route(route), "to") => {
            *route = if value == "unreachable" { RouteSpec::Unreachable } else { RouteSpec::Other(value.to_owned()) }
        }
        (Spec::Peer(peer), "keepalive") => peer.keepalive = parsed(step, value)?,
        (Spec::Peer(peer), "ips") => peer.allowed_ips = networks(step, value)?,
        (Spec::Peer(peer), "preshared") => peer.preshared = parsed(step, value)?,
        (Spec::Peer(peer), "endpoint") => {
            let plain = |address| EndpointSpec { address, pinned: false, resolved: false };
            peer.endpoint = if value == "none" { None } else { Some(plain(parsed(step, value)?)) };
        }
        (spec, name) => return Err(step.malformed(&format!("{spec:?} has no {name}"))),
    }
    Ok(())
}
