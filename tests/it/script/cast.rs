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

use super::language::{Step, Stop, chosen, parsed};
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
        AttachmentId::Container(Pid::new(self.netns.pid).expect("a stage gives pids that there are"))
    }

    /// The host's ends of its pairs: on its segment, and on the slice.
    fn ports(&self) -> (IfName, IfName) {
        let Some([segment, global]) = self.id().links() else { unreachable!("a container has links") };
        (segment, global)
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

    /// # Errors
    /// [`Stop::Wrong`] when no container of this name has begun.
    pub fn actor(&self, step: &Step, name: &str) -> Result<&Actor, Stop> {
        self.actors.get(name).ok_or_else(|| step.wrong(format_args!("no container {name} has begun")))
    }

    /// The youngest of the processes that have had a container's pid.
    ///
    /// # Errors
    /// [`Stop::Wrong`] when there is no such container, or the pid is in use.
    pub fn last_with_pid_of(&self, step: &Step, name: &str) -> Result<&Netns, Stop> {
        let mut last = self.actor(step, name)?;
        for actor in self.actors.values().filter(|actor| actor.netns.pid == last.netns.pid) {
            if !actor.has_ended {
                return Err(step.wrong(format_args!("the pid of {name} is in use")));
            }
            if actor.netns.start_time > last.netns.start_time {
                last = actor;
            }
        }
        Ok(&last.netns)
    }

    /// # Errors
    /// [`Stop::Wrong`] when there was no segment of this name.
    pub fn bridge(&self, step: &Step, segment: &str) -> Result<IfName, Stop> {
        Ok(self.segment(step, segment)?.bridge.clone())
    }

    fn segment(&self, step: &Step, segment: &str) -> Result<&Links, Stop> {
        self.segments.get(segment).ok_or_else(|| step.wrong(format_args!("there was no segment {segment}")))
    }

    fn link(&self, step: &Step, words: &[&str]) -> Result<IfName, Stop> {
        Ok(match words {
            [] => self.device.clone(),
            ["bridge", segment] => self.bridge(step, segment)?,
            ["way-out", name] => parsed(step, name)?,
            ["port" | "inside", name] => self.actor(step, name)?.ports().0,
            ["port" | "inside", name, "global"] => self.actor(step, name)?.ports().1,
            ["segment", segment] => {
                let own = self.segment(step, segment)?.device.clone();
                own.ok_or_else(|| step.wrong(format_args!("{segment} has no device of its own")))?
            }
            _ => {
                return Err(step.malformed(
                    "a link is nothing for the node's device, or bridge SEGMENT, segment SEGMENT, port NAME [global] or way-out NAME",
                ));
            }
        })
    }

    /// The object that the words mean.
    ///
    /// # Errors
    /// [`Stop::Malformed`] when they are no object, [`Stop::Wrong`] when nothing is called so.
    pub fn object(&self, step: &Step, words: &[&str]) -> Result<Key, Stop> {
        Ok(match words {
            ["link", of @ ..] => Key::Link(self.link(step, of)?),
            ["device", of @ ..] => Key::Device(self.link(step, of)?),
            ["bridge" | "port", ..] => Key::Link(self.link(step, words)?),
            ["inside", ..] => Key::Inside(self.link(step, words)?),
            ["setting"] if self.cluster.is_ipv4() => self.setting(Setting::Ipv4RpFilter),
            ["setting"] => self.setting(Setting::Ipv6AcceptRa),
            ["setting", name, of @ ..] => {
                let setting = chosen(step, name, &Setting::ALL, |setting| setting.path().1)?;
                Key::Sysctl { link: self.link(step, of)?, setting }
            }
            ["route"] => Key::Route { destination: self.cluster, metric: mark().route_metric() },
            ["route", destination] => {
                Key::Route { destination: parsed(step, destination)?, metric: mark().route_metric() }
            }
            ["fallback"] => Key::Route { destination: self.cluster, metric: mark().fallback_metric() },
            ["address", address, of @ ..] => {
                let address: IpNet = parsed(step, address)?;
                Key::Address { link: self.link(step, of)?, address }
            }
            ["peer", name] => Key::Peer { device: self.device.clone(), public_key: named(step, name)? },
            ["firewall"] => Key::Ruleset,
            ["member", who] => Key::Member(self.address(step, who, 0)?),
            ["member", who, "global"] => Key::Member(self.address(step, who, 1)?),
            ["guest", family] => Key::Guest(self::family(step, family)?),
            _ => {
                return Err(step.malformed(
                    "an object is link, bridge, port, device, setting, route, fallback, address A/P, peer NAME, inside NAME, firewall, member NAME or guest FAMILY",
                ));
            }
        })
    }

    fn setting(&self, setting: Setting) -> Key {
        Key::Sysctl { link: self.device.clone(), setting }
    }

    /// An address as it is written, or that of a container: the first on its segment, or the first on the slice.
    fn address(&self, step: &Step, who: &str, which: usize) -> Result<IpAddr, Stop> {
        let Some(actor) = self.actors.get(who) else { return parsed(step, who) };
        let is_first_family =
            |ip: &&IpAddr| actor.addresses.first().is_some_and(|first| first.is_ipv4() == ip.is_ipv4());
        let found = actor.addresses.iter().filter(is_first_family).nth(which).copied();
        found.ok_or_else(|| step.wrong(format_args!("{who} has no such address")))
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
///
/// # Errors
/// [`Stop::Malformed`] when it is too long, or not to be read.
pub fn named(step: &Step, name: &str) -> Result<WgPublicKey, Stop> {
    let mut bytes = [0x5A; 32];
    match bytes.get_mut(..name.len()).filter(|_| name.bytes().all(|byte| byte.is_ascii_graphic())) {
        Some(front) => front.copy_from_slice(name.as_bytes()),
        None => return Err(step.malformed("a peer's name has at most 32 letters, digits and signs of ASCII")),
    }
    Ok(WgPublicKey::from_bytes(bytes))
}

/// # Errors
/// [`Stop::Malformed`].
pub fn family(step: &Step, word: &str) -> Result<Family, Stop> {
    chosen(step, word, &Family::ALL, Family::word)
}

/// A list of things, or `none`.
///
/// # Errors
/// [`Stop::Malformed`].
pub fn list<T: Ord + std::str::FromStr<Err: std::fmt::Display>>(step: &Step, text: &str) -> Result<BTreeSet<T>, Stop> {
    match text {
        "none" => Ok(BTreeSet::new()),
        list => list.split(',').map(|one| parsed(step, one)).collect(),
    }
}
