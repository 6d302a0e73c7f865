//! What has to hold at every moment, seen from outside the agent.
//!
//! Before and after each single action of the agent it compares the node with what the document wants. What somebody else broke is not the
//! agent's fault; what it breaks itself is. So every rule says what an action must not *newly* do.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use overlayd::{
    action::Action,
    desired::Document,
    ids::{Cidr, IfName, WgPublicKey},
    object::{Key, NetworkId, RouteSpec, Spec},
    observed::{Observed, Owner},
    platform::sim::SimNode,
    reconcile::target::Target,
};

use crate::world::{facts, mark, target};

/// Traffic that the document allows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Flow {
    /// From the node to a network behind a peer.
    Peer { device: IfName, from: IpAddr, key: WgPublicKey, to: Cidr, through: Cidr },
    /// Between a container and its gateway.
    Container { port: IfName, bridge: IfName, address: IpAddr, gateway: IpAddr },
}

/// What the document wants, as far as the rules ask for it.
pub struct Wants {
    flows: BTreeSet<Flow>,
    pub target: Target,
    /// The isolation network of each address.
    networks: BTreeMap<IpAddr, Option<NetworkId>>,
}

impl Wants {
    pub fn of(document: &Document) -> Self {
        let mut networks = BTreeMap::new();
        for record in document.attachments().values() {
            networks.extend(record.held().map(|ip| (*ip, record.network.as_ref().map(NetworkId::of))));
        }
        Self { flows: flows(document), target: target(document, &facts()), networks }
    }
}

fn flows(document: &Document) -> BTreeSet<Flow> {
    let mut flows = BTreeSet::new();
    let Some(overlay) = document.overlay() else { return flows };
    let device = overlay.device_name();
    for (key, peer) in document.peers() {
        for to in &peer.allowed_ips {
            let inside = overlay.cluster.iter().find(|cluster| cluster.contains(to));
            let from = overlay.node_addresses().into_iter().find(|own| own.ip.is_ipv4() == to.is_ipv4());
            flows.extend(inside.zip(from).map(|(through, from)| Flow::Peer {
                device: device.clone(),
                from: from.ip,
                key: *key,
                to: *to,
                through: *through,
            }));
        }
    }
    for (id, record) in document.attachments() {
        let (Some([port, _]), Some(net)) = (id.links(), document.segment_net(&record.service)) else { continue };
        for address in &record.addresses {
            let gateway = net.gateways.iter().find(|gateway| gateway.is_ipv4() == address.is_ipv4());
            flows.extend(gateway.map(|gateway| Flow::Container {
                port: port.clone(),
                bridge: net.bridge.clone(),
                address: *address,
                gateway: *gateway,
            }));
        }
    }
    flows
}

fn spec<'a>(node: &'a SimNode, key: &Key) -> Option<&'a Spec> {
    node.objects().get(key).filter(|seen| seen.owner == Owner::Ours).map(|seen| &seen.spec)
}

fn is_up(node: &SimNode, link: &IfName) -> bool {
    matches!(spec(node, &Key::Link(link.clone())), Some(Spec::Link(link)) if link.up)
}

/// Whether packets of the flow get through.
fn possible(node: &SimNode, flow: &Flow) -> bool {
    match flow {
        Flow::Peer { device, from, key, to, through } => {
            let peer = Key::Peer { device: device.clone(), public_key: *key };
            let route = Key::Route { destination: *through, metric: mark().route_metric() };
            let is_own =
                |key: &Key| matches!(key, Key::Address { link, address } if link == device && address.addr() == *from);
            is_up(node, device)
                && node.objects().keys().any(is_own)
                && matches!(spec(node, &peer), Some(Spec::Peer(peer)) if peer.allowed_ips.contains(to))
                && matches!(spec(node, &route), Some(Spec::Route(RouteSpec::Through(link))) if link == device)
                && matches!(spec(node, &Key::Device(device.clone())), Some(Spec::Device(device)) if device.key.public.is_some())
        }
        Flow::Container { port, bridge, address, gateway } => {
            let is_port = matches!(
                spec(node, &Key::Link(port.clone())),
                Some(Spec::Link(link)) if link.up && link.master.as_ref() == Some(bridge)
            );
            let has = |net: &IpNet| net.addr() == *address;
            let inside = matches!(
                spec(node, &Key::Inside(port.clone())),
                Some(Spec::Inside(inside)) if inside.up && inside.addresses.iter().any(has)
            );
            let is_gateway = |key: &Key| matches!(key, Key::Address { link, address } if link == bridge && address.addr() == *gateway);
            is_port
                && inside
                && is_up(node, bridge)
                && node.objects().keys().any(is_gateway)
                && fenced(node, port, address)
        }
    }
}

fn fenced(node: &SimNode, port: &IfName, address: &IpAddr) -> bool {
    matches!(spec(node, &Key::Ruleset), Some(Spec::Ruleset(ruleset)) if ruleset.intact)
        && matches!(spec(node, &Key::Member(*address)), Some(Spec::Member(member)) if member.ports.contains(port))
}

/// Whether an address at a port can do no harm: the rules ask every packet of the port for its source, and they know the address. Whose it is
/// may be another's by now: then nothing that comes from here passes.
fn closed(node: &SimNode, port: &IfName, address: &IpAddr) -> bool {
    let is_asked = |seen: &Observed| matches!(&seen.spec, Spec::Member(member) if member.ports.contains(port));
    matches!(spec(node, &Key::Ruleset), Some(Spec::Ruleset(ruleset)) if ruleset.intact)
        && node.objects().values().any(is_asked)
        && spec(node, &Key::Member(*address)).is_some()
}

/// Containers' addresses that can send though the firewall does not know them.
fn unfenced(node: &SimNode) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (key, seen) in node.objects() {
        if let (Key::Inside(port), Spec::Inside(inside)) = (key, &seen.spec) {
            let loose = inside.addresses.iter().filter(|net| !closed(node, port, &net.addr()));
            found.extend(loose.map(|net| format!("{} on {port} is not fenced in", net.addr())));
        }
    }
    found
}

fn sessions_lost(node: &SimNode, target: &Target) -> BTreeMap<Key, u32> {
    let peers = target.objects.keys().filter_map(|key| match key {
        Key::Peer { device, public_key } => Some((key.clone(), node.peer(device, public_key)?.sessions_lost)),
        _ => None,
    });
    peers.collect()
}

fn strangers(node: &SimNode) -> BTreeMap<Key, Observed> {
    let all = node.objects().iter().filter(|(_, seen)| seen.owner != Owner::Ours);
    all.map(|(key, seen)| (key.clone(), seen.clone())).collect()
}

/// What an action of the agent did wrong.
pub fn faults_of(action: &Action, before: &SimNode, after: &SimNode, wants: &Wants) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |what: String| faults.push(format!("{} {}: {what}", action.verb(), action.key()));
    if strangers(before) != strangers(after) {
        fault("a stranger's object was changed (I-03)".into());
    }
    for flow in wants.flows.iter().filter(|flow| possible(before, flow) && !possible(after, flow)) {
        fault(format!("it interrupts {flow:?}"));
    }
    for loose in unfenced(after).difference(&unfenced(before)) {
        fault(loose.clone());
    }
    let lost = sessions_lost(before, &wants.target);
    for (key, count) in sessions_lost(after, &wants.target) {
        let is_foreign =
            matches!(before.objects().get(&key).map(|seen| &seen.spec), Some(Spec::Peer(peer)) if peer.preshared);
        let link_was_bad =
            matches!(&key, Key::Peer { device, .. } if !is_as_wanted(before, &Key::Device(device.clone()), wants));
        if count > *lost.get(&key).unwrap_or(&0) && !is_foreign && !link_was_bad {
            fault(format!("{key} lost its session (I-08)"));
        }
    }
    if let Action::Delete { key, .. } = action
        && !matches!(key, Key::Route { .. })
        && is_as_wanted(before, key, wants)
    {
        fault("it was as wanted".into());
    }
    if let (Key::Inside(_), Some(Spec::Inside(inside))) = (action.key(), action.result()) {
        for net in &inside.addresses {
            let Some(Spec::Member(is)) = spec(after, &Key::Member(net.addr())) else { continue };
            if wants.networks.get(&net.addr()).is_some_and(|wanted| *wanted != is.network) {
                fault(format!("{} is let in while it is in network {:?}", net.addr(), is.network));
            }
        }
    }
    faults
}

fn is_as_wanted(node: &SimNode, key: &Key, wants: &Wants) -> bool {
    let (is, wanted) = (spec(node, key), wants.target.wants(key));
    wanted.is_some() && is == wanted
}
