//! Compares a target with a snapshot and says what to do about each difference.
//!
//! Owns the decision *whether* an object is created, changed, deleted or left alone. Leaves *when* to the engine, *how* to the platform, and
//! *in what order* to [`order`](super::order).
//!
//! Upholds I-03 (strangers are left alone), I-05, I-06, I-08, I-11.
//!
//! A missing object is not always work: if its part was not dumped whole, creating it could reset a healthy WireGuard peer.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::{
    order,
    step::{FieldChange, Plan, Reason, Step, Withheld, is_port, link_of, needed_link},
    target::{Scope, Target},
};
use crate::{
    action::Action,
    clock::UnixTime,
    ids::IfName,
    object::{
        DeviceSpec, FileSpec, InsideSpec, Key, LinkDnsSpec, LinkKind, PeerSpec, RouteSpec, Spec, Subsystem, VethPeer,
    },
    observed::{Coverage, Observed, Owner, Snapshot},
};

/// Age of a handshake after which a WireGuard session no longer carries data (`REJECT_AFTER_TIME`, WireGuard white paper section 6.1).
pub const SESSION_LIFETIME: Duration = Duration::from_secs(180);

/// The plan that turns `snapshot` into `target` within `scope`.
///
/// *Guarantees*: pure, total and deterministic (I-06). With `snapshot` equal to `target` the plan is empty (I-09).
pub fn plan(target: &Target, snapshot: &Snapshot, scope: &Scope, now: UnixTime) -> Plan {
    let mut planner =
        Planner { target, snapshot, now, plan: Plan::default(), leaving: BTreeSet::new(), bared: BTreeSet::new() };
    match scope {
        Scope::Everything => {
            snapshot.iter().for_each(|(key, seen)| planner.mark_leaving_link(key, seen));
            snapshot.iter().for_each(|(key, seen)| planner.mark_bared_link(key, seen));
            target.objects.keys().for_each(|key| planner.wanted(key));
            snapshot.iter().for_each(|(key, seen)| planner.unwanted(key, seen));
        }
        Scope::Keys(keys) => {
            let seen = || keys.iter().filter_map(|key| Some((key, snapshot.find(key)?)));
            seen().for_each(|(key, seen)| planner.mark_leaving_link(key, seen));
            seen().for_each(|(key, seen)| planner.mark_bared_link(key, seen));
            keys.iter().for_each(|key| planner.wanted(key));
            seen().for_each(|(key, seen)| planner.unwanted(key, seen));
        }
    }
    let mut plan = planner.plan;
    order::sort(&mut plan.steps);
    plan
}

struct Planner<'a> {
    target: &'a Target,
    snapshot: &'a Snapshot,
    now: UnixTime,
    plan: Plan,
    /// Links of ours that are removed, so that what is on them goes with them.
    leaving: BTreeSet<IfName>,
    /// Links that stay and lose every IPv4 address they have: the kernel takes their IPv4 routes along, also when another address follows.
    bared: BTreeSet<IfName>,
}

impl Planner<'_> {
    fn mark_leaving_link(&mut self, key: &Key, seen: &Observed) {
        let Key::Link(name) = key else { return };
        let stays = self.target.wants(key).is_some_and(|wanted| !must_replace(wanted, &seen.spec));
        if seen.is_ours() && !stays {
            self.leaving.insert(name.clone());
        }
    }

    fn mark_bared_link(&mut self, key: &Key, seen: &Observed) {
        let Key::Address { link, address: IpNet::V4(_) } = key else { return };
        let stays = |key: &Key, seen: &Observed| !seen.is_ours() || self.target.wants(key).is_some();
        if stays(key, seen) || self.leaving.contains(link) {
            return;
        }
        let mut others = self.snapshot.on_link(link).filter(|key| is_ipv4_address(key));
        if !others.any(|key| self.snapshot.find(key).is_some_and(|seen| stays(key, seen))) {
            self.bared.insert(link.clone());
        }
    }

    /// True for a route that the kernel removes while the plan is carried out.
    fn goes_with_an_address(&self, key: &Key, spec: &Spec) -> bool {
        match (key, spec) {
            (Key::Route { destination, .. }, Spec::Route(RouteSpec::Through(link))) => {
                destination.is_ipv4() && self.bared.contains(link)
            }
            _ => false,
        }
    }

    fn step(&mut self, action: Action, reason: Reason) {
        self.plan.steps.push(Step { action, reason });
    }

    fn wanted(&mut self, key: &Key) {
        let Some(spec) = self.target.wants(key) else { return };
        if let Some(withheld) = self.obstacle(key, spec) {
            self.plan.withheld.insert(key.clone(), withheld);
            return;
        }
        match self.snapshot.find(key).filter(|_| !self.goes_with_its_link(key, spec)) {
            None => self.missing(key, spec),
            Some(seen) => self.present(key, spec, seen),
        }
    }

    fn missing(&mut self, key: &Key, spec: &Spec) {
        let part = key.subsystem();
        match self.snapshot.coverage(part) {
            Coverage::Whole => {
                self.step(Action::Create { key: key.clone(), spec: spec.clone() }, Reason::Missing);
            }
            Coverage::Partial(why) => {
                self.plan.withheld.insert(key.clone(), Withheld::Unseen(why.clone()));
            }
            Coverage::Unknown => {
                self.plan.withheld.insert(key.clone(), Withheld::Unseen(format!("no {part} was looked at")));
            }
        }
    }

    fn present(&mut self, key: &Key, spec: &Spec, seen: &Observed) {
        if let Owner::Stranger(what) = &seen.owner {
            // The address we want, on a link of ours, does its work whoever put it there.
            if !matches!(key, Key::Address { .. }) {
                self.plan.withheld.insert(key.clone(), Withheld::Blocked(what.clone()));
            }
            return;
        }
        if must_replace(spec, &seen.spec) || self.goes_with_an_address(key, &seen.spec) {
            self.step(Action::Delete { key: key.clone(), was: seen.spec.clone() }, Reason::Replaced);
            self.step(Action::Create { key: key.clone(), spec: spec.clone() }, Reason::Replaced);
            return;
        }
        let (from, to) = match (spec, &seen.spec) {
            (Spec::Peer(wanted), Spec::Peer(is)) => {
                let (from, to) = self.peer_sides(key, wanted, is, seen);
                (Spec::Peer(from), Spec::Peer(to))
            }
            (Spec::Inside(wanted), Spec::Inside(is)) => {
                (Spec::Inside(is.clone()), Spec::Inside(named_as_it_is(wanted, is)))
            }
            (wanted, is) => (is.clone(), wanted.clone()),
        };
        let fields = differences(&from, &to);
        if !fields.is_empty() {
            self.step(Action::Update { key: key.clone(), from, to }, Reason::Changed(fields));
        }
    }

    fn unwanted(&mut self, key: &Key, seen: &Observed) {
        if self.target.wants(key).is_some() || !seen.is_ours() {
            return;
        }
        if !key.subsystem().is_removed_by_itself() || self.goes_with_its_link(key, &seen.spec) {
            return;
        }
        if let (Key::Member(address), Spec::Member(member)) = (key, &seen.spec)
            && member.ports.iter().any(|port| self.keeps(port, address))
        {
            return;
        }
        // A port that was not seen may be there, and is fenced in as long as it is.
        if *key == Key::Ruleset && !self.snapshot.is_whole(Subsystem::Link) {
            return;
        }
        self.step(Action::Delete { key: key.clone(), was: seen.spec.clone() }, Reason::Extra);
    }

    /// True when a container may keep an address for now: nothing can be done to its side, or nobody knows whether it is there at all.
    fn keeps(&self, port: &IfName, address: &IpAddr) -> bool {
        let (inside, link) = (Key::Inside(port.clone()), Key::Link(port.clone()));
        match self.snapshot.find(&inside).map(|seen| &seen.spec) {
            Some(Spec::Inside(is)) => {
                self.plan.withheld.contains_key(&inside) && is.addresses.iter().any(|net| net.addr() == *address)
            }
            _ if self.snapshot.find(&link).is_some() => self.plan.withheld.contains_key(&inside),
            _ => !self.snapshot.is_whole(Subsystem::Link),
        }
    }

    /// What stands in the way of `key` besides the object itself: a link that is not ours, or one that is neither there nor being made.
    fn obstacle(&self, key: &Key, spec: &Spec) -> Option<Withheld> {
        if self.lets_in(key, spec) {
            if !self.is_fenced() {
                return Some(Withheld::WaitsFor(Key::Ruleset));
            }
            if let Some(withheld) = self.not_let_in(key, spec) {
                return Some(withheld);
            }
        }
        let name = needed_link(key, spec)?;
        // The host's way out is nobody's of ours, and the one setting that is wanted there is allowed for by name.
        if let Key::Sysctl { setting, .. } = key
            && setting.may_be_on_uplink()
            && self.snapshot.surroundings().uplinks.contains(name)
        {
            return None;
        }
        let link = Key::Link(name.clone());
        // A port that waits for its bridge is not made now, and what stands on it waits as well.
        let is_made = || {
            let wanted = self.target.wants(&link);
            wanted.is_some_and(|wanted| self.obstacle(&link, wanted).is_none())
                && self.snapshot.is_whole(Subsystem::Link)
        };
        match self.snapshot.find(&link).map(|seen| &seen.owner) {
            Some(Owner::Ours) => None,
            // What was seen stands on its link, whatever the dump of links shows.
            None if is_made() || self.snapshot.find(key).is_some() => None,
            Some(Owner::Stranger(_)) | None => Some(Withheld::WaitsFor(link)),
        }
    }

    /// True for a change after which a container may send what it could not before.
    fn lets_in(&self, key: &Key, spec: &Spec) -> bool {
        let seen = self.snapshot.find(key).map(|seen| &seen.spec);
        match (key, spec, seen) {
            (Key::Link(_), ..) => is_port(spec) && seen.is_none(),
            (_, Spec::Inside(wanted), Some(Spec::Inside(is))) => named_as_it_is(wanted, is) != *is,
            (Key::Member(_) | Key::Inside(_), ..) => seen != Some(spec),
            _ => false,
        }
    }

    /// Why a container's side cannot be wired yet: the firewall neither knows each of its addresses at this port nor will by then.
    fn not_let_in(&self, key: &Key, spec: &Spec) -> Option<Withheld> {
        let (port, inside) = match (key, spec) {
            (Key::Inside(port), Spec::Inside(inside)) => (port, inside),
            (Key::Link(port), _) => match self.target.wants(&Key::Inside(port.clone())) {
                Some(Spec::Inside(inside)) => (port, inside),
                _ => return None,
            },
            // An address moves from one container to another only when the first no longer has it: with its last address in the firewall a
            // port is no longer asked for the source of its packets.
            (Key::Member(address), _) => return self.former_holder(address).map(Withheld::WaitsFor),
            _ => return None,
        };
        inside.addresses.iter().find_map(|net| self.unknown_at(port, net.addr()))
    }

    /// What an address waits for before it may be used at a port.
    fn unknown_at(&self, port: &IfName, address: IpAddr) -> Option<Withheld> {
        let member = Key::Member(address);
        let is_known = || match self.snapshot.find(&member).map(|seen| &seen.spec) {
            Some(Spec::Member(member)) => member.ports.contains(port),
            _ => false,
        };
        let will_be = || self.target.wants(&member).is_some_and(|wanted| self.obstacle(&member, wanted).is_none());
        // Of entries that could not be seen nobody knows whether they are still there.
        let is_let_in = self.snapshot.is_whole(Subsystem::Member) && (is_known() || will_be());
        (!is_let_in).then_some(Withheld::WaitsFor(member))
    }

    /// The side of a container that still has an address which is to be another's, and keeps its port: one that goes is gone by then.
    fn former_holder(&self, address: &IpAddr) -> Option<Key> {
        let member = Key::Member(*address);
        let (Some(Spec::Member(is)), Some(Spec::Member(wanted))) =
            (self.snapshot.find(&member).map(|seen| &seen.spec), self.target.wants(&member))
        else {
            return None;
        };
        let has = |inside: &Key| {
            matches!(
                self.snapshot.find(inside).map(|seen| &seen.spec),
                Some(Spec::Inside(is)) if is.addresses.iter().any(|net| net.addr() == *address)
            )
        };
        let former = is.ports.difference(&wanted.ports).filter(|port| !self.leaving.contains(*port));
        former.map(|port| Key::Inside(port.clone())).find(has)
    }

    /// True when the rules that a port needs round it are known to be there, or are made before it.
    fn is_fenced(&self) -> bool {
        // Of rules that could not be seen nobody knows what has become.
        self.snapshot.is_whole(Subsystem::Ruleset)
            && match self.snapshot.find(&Key::Ruleset) {
                // A table that is not ours fences nobody in, and ours cannot be made in its place.
                Some(seen) if !seen.is_ours() => false,
                Some(Observed { spec: Spec::Ruleset(ruleset), .. }) if ruleset.intact => true,
                Some(_) | None => self.target.wants(&Key::Ruleset).is_some(),
            }
    }

    fn goes_with_its_link(&self, key: &Key, spec: &Spec) -> bool {
        link_of(key, spec).is_some_and(|link| self.leaving.contains(link))
    }

    /// Both sides of a peer's comparison, with equal values where WireGuard knows better than the document.
    fn peer_sides(&mut self, key: &Key, wanted: &PeerSpec, is: &PeerSpec, seen: &Observed) -> (PeerSpec, PeerSpec) {
        let mut from = is.clone();
        let mut to = wanted.clone();
        to.endpoint = match (wanted.endpoint, is.endpoint) {
            (Some(document), Some(kernel)) if document.address != kernel.address => {
                let handshake = seen.stats.and_then(|stats| stats.last_handshake);
                let silent = handshake.is_none_or(|at| self.now.since(at) > SESSION_LIFETIME);
                if document.pinned || (document.resolved && silent) { wanted.endpoint } else { is.endpoint }
            }
            (Some(_), None) => wanted.endpoint,
            // Equal, or an endpoint that the kernel learned and the document does not know.
            (Some(_) | None, _) => is.endpoint,
        };
        // An allowed IP that another peer of the target takes is moved by that peer's own change.
        if let Key::Peer { device, .. } = key {
            for ip in is.allowed_ips.difference(&wanted.allowed_ips) {
                let Some(taker) = self.target.holder(device, ip) else { continue };
                from.allowed_ips.remove(ip);
                let taker = Key::Peer { device: device.clone(), public_key: *taker };
                self.plan.moved.entry(key.clone()).or_default().insert(taker);
            }
        }
        (from, to)
    }
}

/// A container may call its link what it likes.
fn named_as_it_is(wanted: &InsideSpec, is: &InsideSpec) -> InsideSpec {
    InsideSpec { name: is.name.clone(), ..wanted.clone() }
}

fn is_ipv4_address(key: &Key) -> bool {
    matches!(key, Key::Address { address: IpNet::V4(_), .. })
}

/// True when the kernel has no way to change one into the other.
fn must_replace(wanted: &Spec, is: &Spec) -> bool {
    match (wanted, is) {
        // The far end of a pair that lies in another namespace cannot be moved from there.
        (Spec::Link(wanted), Spec::Link(is)) => wanted.kind != is.kind || wanted.peer != is.peer,
        (Spec::Route(wanted), Spec::Route(is)) => wanted != is,
        _ => false,
    }
}

/// The fields in which two specs of one object differ, in words without secrets.
pub fn differences(from: &Spec, to: &Spec) -> Vec<FieldChange> {
    let mut fields = Vec::new();
    let mut field = |field: &'static str, from: String, to: String| {
        if from != to {
            fields.push(FieldChange { field, from, to });
        }
    };
    match (from, to) {
        (Spec::Link(from), Spec::Link(to)) => {
            field("kind", link_kind(&from.kind), link_kind(&to.kind));
            field("mtu", from.mtu.to_string(), to.mtu.to_string());
            field("up", from.up.to_string(), to.up.to_string());
            field("master", or_none(&from.master), or_none(&to.master));
            field("stp", from.stp.to_string(), to.stp.to_string());
            field("netns", netns(&from.peer), netns(&to.peer));
        }
        (Spec::Sysctl(from), Spec::Sysctl(to)) => field("value", from.to_string(), to.to_string()),
        (Spec::Device(from), Spec::Device(to)) => {
            let key = |device: &DeviceSpec| device.key.public.map_or("none".into(), |key| key.to_string());
            field("public_key", key(from), key(to));
            field("listen_port", from.listen_port.to_string(), to.listen_port.to_string());
            field("fwmark", from.fwmark.to_string(), to.fwmark.to_string());
        }
        (Spec::Peer(from), Spec::Peer(to)) => {
            let endpoint = |peer: &PeerSpec| peer.endpoint.map_or("none".into(), |e| e.address.to_string());
            field("endpoint", endpoint(from), endpoint(to));
            field("keepalive", from.keepalive.to_string(), to.keepalive.to_string());
            field("allowed_ips", list(&from.allowed_ips), list(&to.allowed_ips));
            field("preshared_key", presence(from.preshared), presence(to.preshared));
        }
        (Spec::Inside(from), Spec::Inside(to)) => {
            field("netns", from.netns.to_string(), to.netns.to_string());
            field("mtu", from.mtu.to_string(), to.mtu.to_string());
            field("up", from.up.to_string(), to.up.to_string());
            field("addresses", list(&from.addresses), list(&to.addresses));
            field("routes", list(&from.routes), list(&to.routes));
        }
        (Spec::Ruleset(from), Spec::Ruleset(to)) => {
            field("intact", from.intact.to_string(), to.intact.to_string());
            field("overlay", list(&from.overlay), list(&to.overlay));
            field("local", list(&from.local), list(&to.local));
            field("node", list(&from.node), list(&to.node));
            let pairs = |set: &BTreeSet<(IfName, IpAddr)>| list(set.iter().map(|(link, ip)| format!("{link}={ip}")));
            field("gateways", pairs(&from.gateways), pairs(&to.gateways));
            field("links", list(&from.links), list(&to.links));
        }
        (Spec::Member(from), Spec::Member(to)) => {
            field("ports", list(&from.ports), list(&to.ports));
            field("network", or_none(&from.network), or_none(&to.network));
        }
        (Spec::Guest(from), Spec::Guest(to)) => field("networks", list(&from.networks), list(&to.networks)),
        (Spec::File(from), Spec::File(to)) if from != to => {
            let text = |file: &FileSpec| format!("{:08x}", crc32fast::hash(file.content.as_bytes()));
            field("checksum", text(from), text(to));
        }
        (Spec::LinkDns(from), Spec::LinkDns(to)) => {
            field("servers", list(&from.servers), list(&to.servers));
            field("domains", list(&from.domains), list(&to.domains));
            field("default_route", from.default_route.to_string(), to.default_route.to_string());
            let words = |dns: &LinkDnsSpec| list(dns.features.iter().map(|feature| feature.word()));
            field("features", words(from), words(to));
        }
        (from, to) if from != to => field("spec", format!("{from:?}"), format!("{to:?}")),
        _ => {}
    }
    fields
}

fn link_kind(kind: &LinkKind) -> String {
    match kind {
        LinkKind::WireGuard => "wireguard".into(),
        LinkKind::Bridge => "bridge".into(),
        LinkKind::Veth => "veth".into(),
        LinkKind::Other(name) => name.clone(),
    }
}

fn or_none(value: &Option<impl ToString>) -> String {
    value.as_ref().map_or_else(|| "none".into(), ToString::to_string)
}

fn netns(peer: &Option<VethPeer>) -> String {
    peer.as_ref().map_or_else(|| "another".into(), |peer| peer.netns.to_string())
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "none".into() } else { items.join(",") }
}

fn presence(set: bool) -> String {
    if set { "set".into() } else { "none".into() }
}
