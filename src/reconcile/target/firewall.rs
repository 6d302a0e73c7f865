//! What the firewall knows besides its members, what other firewalls are asked, and the settings that make the node a router.

use std::collections::BTreeSet;

use super::{Facts, Target, overlay::forward};
use crate::{
    desired::{Document, OverlayRecord},
    ids::{Cidr, Networks},
    object::{Family, GuestSpec, Key, RulesetSpec, Spec},
};

pub(super) fn lower(document: &Document, overlay: &OverlayRecord, facts: &Facts, target: &mut Target) {
    if !document.serves_others() {
        return;
    }
    let since = document.segments_since();
    let mut ruleset = RulesetSpec {
        intact: true,
        overlay: overlay.cluster.iter().copied().collect(),
        local: overlay.slice.iter().flat_map(Networks::iter).copied().collect(),
        node: overlay.node_addresses().iter().map(|address| address.ip).collect(),
        links: BTreeSet::from([overlay.device_name()]),
        ..RulesetSpec::default()
    };
    for service in document.segments().keys() {
        ruleset.links.extend(document.dedicated_device_name(service));
        if let Some(net) = document.segment_net(service) {
            ruleset.local.extend(net.subnets.iter());
            ruleset.gateways.extend(net.gateways.iter().map(|gateway| (net.bridge.clone(), *gateway)));
            ruleset.links.insert(net.bridge);
        }
    }
    target.want(Key::Ruleset, Spec::Ruleset(ruleset), since);
    let around = &facts.surroundings;
    if !around.force_forwarding && !around.forwards_ipv6 && overlay.cluster.iter().any(|network| !network.is_ipv4()) {
        let why = "IPv6 stays between neighbours: this kernel forwards it for all links or none, and that is the host's to say; \
                   set net.ipv6.conf.all.forwarding=1 (and accept_ra=2 on an uplink that listens to a router)";
        target.lacks(Key::Link(overlay.device_name()), why.into());
    }
    for family in &around.forward_drop {
        let of_family = overlay.cluster.iter().filter(|network| Family::of(&network.network()) == *family);
        let networks: BTreeSet<Cidr> = of_family.copied().collect();
        if !networks.is_empty() {
            target.want(Key::Guest(*family), Spec::Guest(GuestSpec { networks }), since);
        }
    }
    for network in overlay.cluster.iter() {
        // What a container sent to the world comes back through the uplink.
        for uplink in &around.uplinks {
            forward(uplink, network, facts, since, target);
        }
    }
}
