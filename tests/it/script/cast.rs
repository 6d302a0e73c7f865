//! Who and what a story talks about by name: containers, segments, peers, and the objects that stand for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use overlayd::{
    desired::{AttachmentId, Document, Pid},
    ids::{Cidr, IfName, Netns, WgPublicKey},
    object::{Family, Key, Setting, Spec},
};

use super::language::{Step, parsed};
use crate::world::{cidr, mark};

/// The links of a segment, also after it has gone.
#[derive(Debug, Clone)]
struct Links {
    bridge: IfName,
    /// Of a dedicated segment.
    device: Option<IfName>,
}

/// A container of the story.
#[derive(Debug, Clone)]
pub struct Actor {
    pub netns: Netns,
    pub has_ended: bool,
    /// As it was last attached.
    pub addresses: Vec<IpAddr>,
}

impl Actor {
    pub fn id(&self) -> AttachmentId {
        AttachmentId::Container(Pid::new(self.netns.pid).unwrap())
    }
}

/// What the names of a story stand for.
#[derive(Debug, Clone)]
pub struct Cast {
    device: IfName,
    cluster: Cidr,
    segments: BTreeMap<String, Links>,
    pub actors: BTreeMap<String, Actor>,
}

impl Cast {
    pub fn new() -> Self {
        let (segments, actors) = (BTreeMap::new(), BTreeMap::new());
        Self { device: crate::world::device(), cluster: cidr("10.200.0.0/16"), segments, actors }
    }

    /// Takes in what the document calls its things now.
    pub fn learn(&mut self, document: &Document) {
        if let Some(overlay) = document.overlay() {
            (self.device, self.cluster) = (overlay.device_name(), *overlay.cluster.first());
        }
        for service in document.segments().keys() {
            let Some(net) = document.segment_net(service) else { continue };
            let links = Links { bridge: net.bridge, device: document.dedicated_device_name(service) };
            self.segments.insert(service.to_string(), links);
        }
        for actor in self.actors.values_mut() {
            if let Some(record) = document.attachments().get(&actor.id()) {
                actor.addresses = record.held().copied().collect();
            }
        }
    }

    pub fn device(&self) -> &IfName {
        &self.device
    }

    #[track_caller]
    pub fn actor(&self, step: &Step, name: &str) -> &Actor {
        self.actors.get(name).unwrap_or_else(|| panic!("line {}: no container {name}", step.line))
    }

    #[track_caller]
    pub fn bridge(&self, step: &Step, segment: &str) -> IfName {
        let links = self.segments.get(segment);
        links.unwrap_or_else(|| panic!("line {}: no segment {segment}", step.line)).bridge.clone()
    }

    fn port(&self, step: &Step, name: &str, end: usize) -> IfName {
        self.actor(step, name).id().links().unwrap()[end].clone()
    }

    fn link(&self, step: &Step, words: &[&str]) -> IfName {
        match words {
            [] => self.device.clone(),
            ["bridge", segment] => self.bridge(step, segment),
            ["way-out", name] => parsed(step, name),
            ["port" | "inside", name] => self.port(step, name, 0),
            ["port" | "inside", name, "global"] => self.port(step, name, 1),
            ["segment", segment] => {
                let own = self.segments.get(*segment).and_then(|links| links.device.clone());
                own.unwrap_or_else(|| panic!("line {}: {segment} has no device of its own", step.line))
            }
            _ => panic!("line {}: unknown link {words:?}", step.line),
        }
    }

    /// The object that the words mean.
    pub fn object(&self, step: &Step, words: &[&str]) -> Key {
        match words {
            ["link", of @ ..] => Key::Link(self.link(step, of)),
            ["device", of @ ..] => Key::Device(self.link(step, of)),
            ["bridge" | "port", ..] => Key::Link(self.link(step, words)),
            ["inside", ..] => Key::Inside(self.link(step, words)),
            ["setting"] if self.cluster.is_ipv4() => self.setting(Setting::Ipv4RpFilter),
            ["setting"] => self.setting(Setting::Ipv6AcceptRa),
            ["setting", name, of @ ..] => {
                let setting = Setting::ALL.into_iter().find(|setting| setting.path().1 == *name);
                let setting = setting.unwrap_or_else(|| panic!("line {}: no setting {name}", step.line));
                Key::Sysctl { link: self.link(step, of), setting }
            }
            ["route"] => Key::Route { destination: self.cluster, metric: mark().route_metric() },
            ["route", destination] => {
                Key::Route { destination: parsed(step, destination), metric: mark().route_metric() }
            }
            ["fallback"] => Key::Route { destination: self.cluster, metric: mark().fallback_metric() },
            ["address", address, of @ ..] => {
                let address: IpNet = parsed(step, address);
                Key::Address { link: self.link(step, of), address }
            }
            ["peer", name] => Key::Peer { device: self.device.clone(), public_key: named(name) },
            ["firewall"] => Key::Ruleset,
            ["member", who] => Key::Member(self.address(step, who, 0)),
            ["member", who, "global"] => Key::Member(self.address(step, who, 1)),
            ["guest", family] => Key::Guest(self::family(step, family)),
            _ => panic!("line {}: unknown object {words:?}", step.line),
        }
    }

    fn setting(&self, setting: Setting) -> Key {
        Key::Sysctl { link: self.device.clone(), setting }
    }

    /// An address as it is written, or that of a container: the first on its segment, or the first on the slice.
    fn address(&self, step: &Step, who: &str, which: usize) -> IpAddr {
        match self.actors.get(who) {
            Some(actor) => {
                let of_one_family = actor.addresses.iter().filter(|ip| ip.is_ipv4() == actor.addresses[0].is_ipv4());
                let found = of_one_family.copied().nth(which);
                found.unwrap_or_else(|| panic!("line {}: {who} has no such address", step.line))
            }
            None => parsed(step, who),
        }
    }

    /// Objects as text in which containers stand by their names: two kernels give them other numbers.
    pub fn plain(&self, objects: &BTreeMap<Key, Spec>) -> BTreeMap<String, String> {
        let text = |spec: &Spec| serde_json::to_string(spec).unwrap();
        objects.iter().map(|(key, spec)| (self.plain_text(&key.to_string()), self.plain_text(&text(spec)))).collect()
    }

    pub fn plain_text(&self, text: &str) -> String {
        self.actors.iter().fold(text.to_owned(), |text, (name, actor)| named_in(&text, name, actor))
    }
}

fn named_in(text: &str, name: &str, actor: &Actor) -> String {
    let netns = serde_json::to_string(&actor.netns).unwrap();
    text.replace(&netns, &format!("{{{name}}}"))
        .replace(&format!("veth-{}-", actor.netns.pid), &format!("veth-{{{name}}}-"))
}

/// The key of a peer of this name: the name itself, filled up.
pub fn named(name: &str) -> WgPublicKey {
    let mut bytes = [0x5A; 32];
    let text = name.as_bytes();
    bytes[..text.len()].copy_from_slice(text);
    WgPublicKey::from_bytes(bytes)
}

pub fn family(step: &Step, word: &str) -> Family {
    let family = Family::ALL.into_iter().find(|family| family.word() == word);
    family.unwrap_or_else(|| panic!("line {}: no family {word}", step.line))
}

/// A list of things, or `none`.
pub fn list<T: Ord + std::str::FromStr<Err: std::fmt::Display>>(step: &Step, text: &str) -> BTreeSet<T> {
    match text {
        "none" => BTreeSet::new(),
        list => list.split(',').map(|one| parsed(step, one)).collect(),
    }
}
