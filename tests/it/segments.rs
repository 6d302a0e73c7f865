//! Segments, addresses and attachments by worked examples.

use std::collections::BTreeSet;

use overlayd::{
    desired::{
        AddressHolder, AttachmentId, Change, Document, Edit, Grant, OverlayRequest, PeerRequest, PeerScope, Pid, Place,
        Record, Refusal, SegmentMode, Subject, Touched,
    },
    ids::{IfName, ServiceName},
    object::Key,
};

use crate::{
    desk::{
        Desk, REST, address, container, contents, dual, given, guest, host_shared, ip, key, keys, netns, pid, request,
        service, with,
    },
    world::{cidr, overlay, peer},
};

/// Two services that have one bridge name in the overlay `prod`/`0`, found by trying.
const COLLIDING: (&str, &str) = ("service-335599", "service-753377");
/// Two names with one `NetworkId`, found by trying.
const ALIKE: (&str, &str) = ("service-77751", "service-78412");

#[test]
fn names_and_subnets_are_those_that_the_driving_daemon_expects() {
    let mut desk = Desk::empty();
    let named =
        OverlayRequest { deployment: "zlayer".parse().unwrap(), instance: "a1b2c3d4".parse().unwrap(), ..overlay() };
    assert_eq!(desk.edit(&Edit::EnsureOverlay(named)).grant, Grant::Device("zl-8884a724fa-g".parse().unwrap()));
    let auto = desk.setup("web-auto", SegmentMode::Auto);
    assert_eq!(auto.grant, Grant::Bridge("zl-b89d93d909-b".parse().unwrap()));
    assert_eq!(auto.touched, Touched::Everything);
    let Grant::Service(shared) = desk.setup("web-shared", SegmentMode::Shared).grant else { panic!() };
    assert_eq!((shared.name.as_str(), shared.port, shared.overlay_ip), ("zl-522764a10-sh", None, None));
    let Grant::Service(own) = desk.setup("web-dedicated", SegmentMode::Dedicated).grant else { panic!() };
    assert_eq!((own.name.as_str(), own.port), ("zl-95bbb471c1-b", Some(51821)));
    assert_eq!(own.overlay_ip, Some(address("10.200.128.129")));
    let net = |name| desk.document.segment_net(&service(name)).unwrap();
    for (name, bridge, subnet) in [
        ("web-auto", "zl-b89d93d909-b", "10.200.95.0/26"),
        ("web-shared", "zl-522764a10-sh", "10.200.90.64/26"),
        ("web-dedicated", "zl-95bbb471c1-b", "10.200.128.128/26"),
    ] {
        assert_eq!((net(name).bridge.as_str(), *net(name).subnets.first()), (bridge, cidr(subnet)), "{name}");
    }
    assert_eq!(net("web-auto").gateways, [address("10.200.95.1")]);
    assert_eq!(desk.attach(7, "web-auto"), address("10.200.95.2"));
    assert_eq!(desk.attach(8, "web-shared"), address("10.200.90.66"));
}

#[test]
fn a_container_has_the_same_address_however_often_it_is_attached() {
    let mut desk = Desk::new();
    let first = desk.attach(1, "web");
    let generation = desk.document.generation();
    for _ in 0..100 {
        assert_eq!(desk.attach(1, "web"), first);
    }
    assert_eq!(desk.document.generation(), generation);
    let touched = desk.edit(&container(1, "web")).touched;
    let link: IfName = "veth-1-s".parse().unwrap();
    let keys = BTreeSet::from([Key::Link(link.clone()), Key::Inside(link.clone()), Key::Member(first)]);
    assert_eq!(touched, Touched::Keys(keys));
    assert_eq!(desk.document.attachment_of_link(&link).unwrap().0, pid(1));
}

#[test]
fn other_settings_re_wire_a_container_and_keep_its_address() {
    let mut desk = Desk::new();
    let first = desk.attach(1, "web");
    let wider = with(container(1, "web"), |wanted| wanted.join_global = true);
    assert_eq!(ip(&desk.edit(&wider)), first);
    let global = desk.document.attachments()[&pid(1)].global.clone();
    assert_eq!(global, [address("10.200.3.2")]);
    let Touched::Keys(keys) = desk.edit(&container(1, "web")).touched else { panic!() };
    assert!(keys.contains(&Key::Link("veth-1-g".parse().unwrap())), "what goes is looked at too: {keys:?}");
    assert!(matches!(desk.document.address_holder(&global[0]), Some(AddressHolder::Resting(_))));
    let elsewhere = desk.attach(1, "db");
    assert_ne!(elsewhere, first);
    assert!(matches!(desk.document.address_holder(&first), Some(AddressHolder::Resting(_))));
}

#[test]
fn a_pid_that_is_another_process_now_is_another_container() {
    let mut desk = Desk::new();
    let first = desk.attach(1, "web");
    let change = desk.edit(&Edit::Attach(request(Subject::Container(netns(1, 2)), "web")));
    assert_ne!(ip(&change), first);
    assert_eq!(desk.document.attachments().len(), 1);
    // The death of the first one, noticed late, is not that of the second.
    assert!(desk.edit(&Edit::Bury { id: pid(1), netns: netns(1, 1) }).mutations.is_empty());
    assert!(!desk.edit(&Edit::Bury { id: pid(1), netns: netns(1, 2) }).mutations.is_empty());
    assert!(desk.document.attachments().is_empty());
}

#[test]
fn an_attach_that_is_withdrawn_leaves_nothing_but_an_address_at_rest() {
    let mut desk = Desk::new();
    let Grant::Attached { since, ip } = desk.edit(&container(1, "web")).grant else { panic!() };
    assert!(desk.edit(&Edit::Withdraw { id: pid(1), since: since + 1 }).mutations.is_empty());
    desk.edit(&Edit::Withdraw { id: pid(1), since });
    assert!(desk.document.attachments().is_empty() && desk.document.segments().is_empty());
    assert_eq!(desk.document.addresses().keys().copied().collect::<Vec<_>>(), [ip]);
    desk.setup("web", SegmentMode::Auto);
    let Grant::Attached { since, .. } = desk.edit(&container(1, "web")).grant else { panic!() };
    desk.edit(&Edit::Withdraw { id: pid(1), since });
    assert!(desk.document.segments().contains_key(&service("web")), "a segment that was set up stays");
}

#[test]
fn an_address_is_given_out_again_only_after_its_rest() {
    let mut desk = Desk::new();
    let first = desk.attach(1, "web");
    desk.edit(&Edit::Detach(pid(1)));
    desk.now += REST - 1;
    assert_ne!(desk.attach(2, "web"), first);
    desk.now += 1;
    assert_eq!(desk.attach(3, "web"), first);
    assert!(desk.document.addresses().is_empty(), "nothing is left of the rest");
    desk.edit(&Edit::Detach(pid(3)));
    desk.now += REST;
    desk.edit(&Edit::ForgetRested);
    assert!(desk.document.addresses().is_empty());
}

#[test]
fn a_full_subnet_is_refused_with_its_figures_and_an_attach_of_two_families_takes_both_or_none() {
    let mut desk = Desk::empty();
    desk.policy.service_prefix_v4 = 29;
    desk.edit(&Edit::EnsureOverlay(dual()));
    for number in 1..=5 {
        desk.attach(number, "web");
    }
    assert_eq!(desk.document.attachments()[&pid(1)].addresses.len(), 2);
    desk.edit(&Edit::Detach(pid(5)));
    let before = desk.document.clone();
    let refusal = desk.refused(&container(6, "web"));
    assert!(matches!(refusal, Refusal::Exhausted { in_use: 4, resting: 1, .. }), "{refusal}");
    assert_eq!(desk.document, before);
}

#[test]
fn only_what_was_handed_out_is_taken_back() {
    let mut desk = Desk::new();
    let attached = desk.attach(1, "web");
    let reserved = ip(&desk.edit(&Edit::AllocateAddress(service("web"))));
    let of_slice = ip(&desk.edit(&Edit::AllocateAddress(service("other"))));
    assert_eq!(of_slice, address("10.200.3.2"), "a service without a segment gets one of the slice");
    for (given, refusal) in [
        ("8.8.8.8".parse().unwrap(), Refusal::NeverHandedOut(address("8.8.8.8"))),
        (address("10.200.3.1"), Refusal::AddressOfNode(address("10.200.3.1"))),
        (attached, Refusal::AddressAttached { address: attached, holder: pid(1) }),
    ] {
        assert_eq!(desk.refused(&Edit::ReleaseAddress(given)), refusal);
    }
    desk.edit(&Edit::ReleaseAddress(reserved));
    assert!(desk.edit(&Edit::ReleaseAddress(reserved)).mutations.is_empty());
    assert_ne!(ip(&desk.edit(&Edit::AllocateAddress(service("web")))), reserved);
}

#[test]
fn guests_and_host_shared_workloads_live_on_the_slice_and_keep_who_they_are() {
    let mut desk = Desk::new();
    let (one, two) = (desk.fresh(), desk.fresh());
    let Grant::Guest(first) = desk.edit(&guest("vm", "web", one.clone())).grant else { panic!() };
    assert_eq!((first.overlay_ip, first.prefix_len, first.listen_port), (address("10.200.3.2"), 16, 51820));
    let Grant::Guest(again) = desk.edit(&guest("vm", "web", two.clone())).grant else { panic!() };
    assert_eq!(again.key.private, one.private, "the key is made once");
    assert!(desk.document.segments().is_empty());
    let shared = desk.edit(&host_shared("p", "web"));
    let Touched::Keys(keys) = &shared.touched else { panic!() };
    let on_device = Key::Address { link: "zl-prod-0-g".parse().unwrap(), address: "10.200.3.3/32".parse().unwrap() };
    assert!(keys.contains(&on_device), "{keys:?}");
    let own = one.public.unwrap();
    assert_eq!(desk.document.guest_of_key(&own), Some(&AttachmentId::Guest(given("vm"))));
    let host = |wanted: PeerRequest| desk.refused(&Edit::EnsurePeer(wanted));
    assert!(matches!(host(PeerRequest { public_key: own, ..peer(1) }), Refusal::KeyOfGuest(_)));
    let theft = PeerRequest { allowed_ips: [cidr("10.200.3.2/32")].into(), ..peer(1) };
    assert!(matches!(host(theft), Refusal::AllowedIpOfGuest { .. }));
}

#[test]
fn a_segment_that_was_only_implied_takes_the_mode_of_its_first_setup_and_fences_in_who_is_there() {
    let mut desk = Desk::new();
    let first = desk.attach(1, "web");
    let shared = Edit::EnsureSegment { service: service("web"), mode: SegmentMode::Shared, fresh: key(1) };
    assert!(matches!(desk.refused(&shared), Refusal::SegmentInUse { attached: 1, .. }));
    desk.setup("web", SegmentMode::Isolated);
    let record = &desk.document.attachments()[&pid(1)];
    assert_eq!((record.addresses[0], record.network.as_ref().unwrap().as_str()), (first, "web"));
    let auto = Edit::EnsureSegment { service: service("web"), mode: SegmentMode::Auto, fresh: key(1) };
    assert!(matches!(desk.refused(&auto), Refusal::SegmentInUse { .. }), "it has been set up since");
    desk.edit(&Edit::Detach(pid(1)));
    let before = desk.document.segment_net(&service("web"));
    desk.setup("web", SegmentMode::Dedicated);
    assert_eq!(desk.document.segment_net(&service("web")), before, "another mode, the same bridge and subnets");
    desk.setup("web", SegmentMode::Shared);
    assert!(desk.document.shared_bridge().is_some());
    desk.setup("web", SegmentMode::Auto);
    assert!(desk.document.shared_bridge().is_none());
}

#[test]
fn a_dedicated_device_keeps_its_key_and_takes_the_lowest_free_port() {
    let mut desk = Desk::new();
    let port = |change: Change| match change.grant {
        Grant::Service(grant) => (grant.port.unwrap(), grant.public_key.unwrap()),
        other => panic!("{other:?}"),
    };
    let first = port(desk.setup("a", SegmentMode::Dedicated));
    assert_eq!(port(desk.setup("a", SegmentMode::Dedicated)), first);
    assert_eq!(port(desk.setup("b", SegmentMode::Dedicated)).0, 51822);
    desk.edit(&Edit::RemoveSegment(service("a")));
    assert_eq!(port(desk.setup("c", SegmentMode::Dedicated)).0, 51821);
    let onto = Edit::EnsureOverlay(OverlayRequest { port: 51822, ..overlay() });
    assert_eq!(desk.refused(&onto), Refusal::PortTaken { port: 51822, service: service("b") });
}

#[test]
fn a_segment_goes_with_its_last_attachment_when_one_asked_for_that_and_none_asked_to_keep_it() {
    let ephemeral = |number| with(container(number, "job"), |wanted| wanted.ephemeral = true);
    let is_there = |desk: &Desk| desk.document.segments().contains_key(&service("job"));
    let mut desk = Desk::new();
    desk.edit(&ephemeral(1));
    desk.edit(&ephemeral(2));
    desk.edit(&Edit::Detach(pid(1)));
    assert!(is_there(&desk));
    desk.edit(&container(3, "job"));
    desk.edit(&Edit::Detach(pid(3)));
    desk.edit(&Edit::Detach(pid(2)));
    assert!(is_there(&desk), "one asked to keep it");
    desk.edit(&ephemeral(4));
    assert_eq!(desk.edit(&Edit::Bury { id: pid(4), netns: netns(4, 1) }).touched, Touched::Everything);
    assert!(!is_there(&desk), "who asked before the segment was empty counts no more");
}

#[test]
fn a_segment_that_is_told_to_go_does_so_with_its_last_attachment_unless_it_is_set_up_in_between() {
    let mut desk = Desk::new();
    desk.attach(1, "web");
    desk.edit(&Edit::RemoveSegment(service("web")));
    desk.attach(2, "web");
    desk.edit(&Edit::Detach(pid(1)));
    assert!(desk.document.segments()[&service("web")].leaving);
    desk.setup("web", SegmentMode::Auto);
    desk.edit(&Edit::Detach(pid(2)));
    assert!(desk.document.segments().contains_key(&service("web")));
    desk.attach(3, "web");
    desk.edit(&Edit::RemoveSegment(service("web")));
    desk.edit(&Edit::Detach(pid(3)));
    assert!(desk.document.segments().is_empty());
}

#[test]
fn only_an_old_and_empty_segment_that_is_not_listed_is_pruned() {
    let mut desk = Desk::new();
    for name in ["listed", "used", "old"] {
        desk.setup(name, SegmentMode::Auto);
    }
    desk.setup("one", SegmentMode::Shared);
    desk.attach(1, "used");
    desk.now += REST + 1;
    desk.setup("young", SegmentMode::Auto);
    desk.setup("two", SegmentMode::Shared);
    let bridge = |desk: &Desk, name| desk.document.segment_net(&service(name)).unwrap().bridge;
    let live = BTreeSet::from([bridge(&desk, "listed")]);
    let old = bridge(&desk, "old");
    assert_eq!(desk.edit(&Edit::Prune(live.clone())).grant, Grant::Pruned(vec![old]));
    let left: Vec<&str> = desk.document.segments().keys().map(ServiceName::as_str).collect();
    assert_eq!(left, ["listed", "two", "used", "young"]);
    let shared = bridge(&desk, "two");
    desk.now += REST + 1;
    let Grant::Pruned(names) = desk.edit(&Edit::Prune(live)).grant else { panic!() };
    assert!(names.contains(&shared), "the shared bridge goes with the last of its segments: {names:?}");
}

#[test]
fn subnets_pass_over_slice_peers_and_each_other_and_never_move() {
    let mut desk = Desk::new();
    let there = cidr("10.200.95.0/26");
    desk.edit(&Edit::EnsurePeer(PeerRequest { allowed_ips: [there, cidr("10.200.0.0/16")].into(), ..peer(1) }));
    desk.setup("web-auto", SegmentMode::Auto);
    let net = |desk: &Desk| desk.document.segment_net(&service("web-auto"));
    let chosen = net(&desk);
    assert_eq!(*chosen.as_ref().unwrap().subnets.first(), cidr("10.200.95.64/26"), "a peer has the first choice");
    desk.edit(&Edit::SetNodeId(7));
    desk.setup("web-auto", SegmentMode::Auto);
    assert_eq!(net(&desk), chosen);
    let onto = Edit::EnsureOverlay(OverlayRequest { slice: Some(cidr("10.200.95.0/24").into()), ..overlay() });
    assert!(matches!(desk.refused(&onto), Refusal::SliceOverlaps { .. }));
}

#[test]
fn an_overlay_moves_only_while_nothing_is_attached_and_its_segments_move_with_it() {
    let mut desk = Desk::new();
    desk.setup("web", SegmentMode::Auto);
    desk.setup("shared", SegmentMode::Shared);
    desk.edit(&with(container(1, "web"), |wanted| wanted.join_global = true));
    let moved = OverlayRequest { cluster: "10.201.0.0/16,fd00::/48".parse().unwrap(), slice: None, ..overlay() };
    let renamed = OverlayRequest { instance: "1".parse().unwrap(), ..overlay() };
    for wanted in [moved.clone(), renamed] {
        assert_eq!(desk.refused(&Edit::EnsureOverlay(wanted)), Refusal::OverlayInUse { attached: 1 });
    }
    let sliced = OverlayRequest { slice: None, ..overlay() };
    assert!(matches!(desk.refused(&Edit::EnsureOverlay(sliced)), Refusal::SliceInUse { .. }));
    let grown = OverlayRequest { slice: Some(cidr("10.200.3.0/25").into()), port: 1, ..overlay() };
    desk.edit(&Edit::EnsureOverlay(grown));
    desk.edit(&Edit::Detach(pid(1)));
    desk.edit(&Edit::EnsureOverlay(moved));
    for name in ["web", "shared"] {
        let net = desk.document.segment_net(&service(name)).unwrap();
        assert_eq!(net.gateways.len(), 2, "{net:?}");
        assert!(net.subnets.iter().all(|subnet| cidr("10.201.0.0/16").contains(subnet) || !subnet.is_ipv4()));
    }
    desk.edit(&Edit::RemoveOverlay);
    assert_eq!(keys(&desk.document), []);
}

#[test]
fn two_services_whose_interfaces_would_have_one_name_are_refused() {
    let (one, other) = COLLIDING;
    let mut desk = Desk::new();
    desk.setup(one, SegmentMode::Auto);
    assert!(matches!(desk.refused(&container(1, other)), Refusal::NameTaken { .. }));
}

#[test]
fn two_isolation_networks_that_the_firewall_could_not_tell_apart_are_refused() {
    let (one, other) = ALIKE;
    let mut desk = Desk::new();
    let fenced = |number, name: &str| {
        with(container(number, "web"), |wanted| wanted.isolation_network = Some(name.parse().unwrap()))
    };
    desk.edit(&fenced(1, one));
    assert!(matches!(desk.refused(&fenced(2, other)), Refusal::NetworkTaken { .. }));
    desk.edit(&Edit::Detach(pid(1)));
    desk.edit(&fenced(2, other));
}

#[test]
fn peers_of_a_service_wait_for_its_device_and_are_nobody_elses() {
    let mut desk = Desk::new();
    let scope = PeerScope::Service(service("web"));
    let scoped = PeerRequest { scope: scope.clone(), ..peer(1) };
    assert_eq!(desk.edit(&Edit::EnsurePeer(scoped.clone())).touched, Touched::Nothing);
    assert!(desk.document.peers().is_empty());
    assert!(!desk.edit(&Edit::EnsurePeer(peer(2))).mutations.is_empty());
    let also = PeerRequest { allowed_ips: scoped.allowed_ips.clone(), ..peer(2) };
    assert!(desk.edit(&Edit::EnsurePeer(also)).notes.is_empty(), "another device, another table");
    let Grant::Service(own) = desk.setup("web", SegmentMode::Dedicated).grant else { panic!() };
    let device = desk.document.dedicated_device_name(&service("web")).unwrap();
    let on = |touched: &Touched| matches!(touched, Touched::Keys(keys) if keys.iter().all(|key| key.link() == Some(&device)));
    let other = PeerRequest { keepalive: 7, ..scoped.clone() };
    let change = desk.edit(&Edit::EnsurePeer(other));
    assert!(on(&change.touched), "{change:?}");
    let more = Edit::EnsureAllowedIp { scope: scope.clone(), peer: scoped.public_key, allowed_ip: cidr("10.9.0.0/24") };
    assert_eq!(desk.edit(&more).touched, Touched::Everything, "a route hangs on it");
    let own_key = PeerRequest { public_key: own.public_key.unwrap(), ..scoped };
    assert_eq!(desk.refused(&Edit::EnsurePeer(own_key)), Refusal::OwnKey);
    desk.setup("web", SegmentMode::Auto);
    assert_eq!(desk.document.service_peers(&service("web")).len(), 1, "another mode keeps them");
    desk.edit(&Edit::RemoveSegment(service("web")));
    assert!(desk.document.service_peers(&service("web")).is_empty());
}

#[test]
fn every_refusal_says_what_to_send() {
    let address = address("10.200.3.2");
    let (one, other) = (service("a"), service("b"));
    let name: IfName = "zl-a-b".parse().unwrap();
    let red = || "red".parse().unwrap();
    for refusal in [
        Refusal::NoOverlay,
        Refusal::NoSlice,
        Refusal::OverlayInUse { attached: 2 },
        Refusal::SliceOverlaps { slice: cidr("10.0.0.0/8"), subnet: cidr("10.0.0.0/26"), of: "service a".into() },
        Refusal::SliceInUse { address, holder: "pid/1".into() },
        Refusal::PortTaken { port: 1, service: one.clone() },
        Refusal::NoPort { service: one.clone(), first: 2, last: 257 },
        Refusal::NoSubnet { cluster: cidr("10.0.0.0/8"), prefix_len: 26, service: one.clone() },
        Refusal::NameTaken { one: one.clone(), other, name },
        Refusal::SegmentInUse { service: one, mode: SegmentMode::Auto, attached: 1 },
        Refusal::TooManySegments,
        Refusal::TooManyAttachments,
        Refusal::TooManyReserved,
        Refusal::NetworkTaken { wanted: red(), present: red() },
        Refusal::Exhausted { subnet: cidr("10.0.0.0/26"), in_use: 1, resting: 1 },
        Refusal::NeverHandedOut(address),
        Refusal::AddressOfNode(address),
        Refusal::AddressAttached { address, holder: pid(1) },
        Refusal::AllowedIpOfGuest { address: cidr("10.0.0.0/8"), guest: pid(1) },
        Refusal::KeyOfGuest(pid(1)),
        Refusal::NoPid(Pid::new(0).unwrap_err()),
    ] {
        assert!(refusal.to_string().contains("send "), "{refusal}");
    }
}

#[test]
fn a_store_with_two_holders_of_one_address_is_not_loaded() {
    let mut desk = Desk::new();
    desk.attach(1, "web");
    let mut contents = contents(&desk.document);
    let record = contents.records["attachment/pid/1"].clone();
    let twin = String::from_utf8(record).unwrap().replace("\"pid\":1,", "\"pid\":2,");
    contents.records.insert("attachment/pid/2".into(), twin.into_bytes());
    let error = Document::from_contents(&contents).unwrap_err().to_string();
    assert!(error.contains("two holders"), "{error}");
}

#[test]
fn no_private_key_is_in_a_redacted_record() {
    let mut desk = Desk::new();
    let fresh = desk.fresh();
    desk.edit(&guest("vm", "web", fresh));
    desk.setup("own", SegmentMode::Dedicated);
    desk.setup("shared", SegmentMode::Shared);
    desk.edit(&with(container(1, "web"), |wanted| wanted.join_global = true));
    desk.edit(&Edit::AllocateAddress(service("web")));
    desk.edit(&Edit::EnsurePeer(PeerRequest { scope: PeerScope::Service(service("own")), ..peer(1) }));
    let secrets: Vec<String> =
        (0..=desk.keys).map(|number| key(number).private.unwrap().reveal().to_string()).collect();
    let mut shown = 0;
    for (text, bytes) in contents(&desk.document).records {
        let clear = String::from_utf8(bytes.clone()).unwrap();
        shown += usize::from(secrets.iter().any(|secret| clear.contains(secret)));
        let mut value = serde_json::from_slice(&bytes).unwrap();
        overlayd::desired::redact(&mut value);
        assert!(!secrets.iter().any(|secret| value.to_string().contains(secret)), "{text}");
        let back = Record::decode(&text.parse().unwrap(), value.to_string().as_bytes()).unwrap();
        assert_eq!(Some(back), desk.document.record(&text.parse().unwrap()), "{text} without its secret");
    }
    assert_eq!(shown, 2, "the guest's key and the device's are stored");
}

#[test]
fn ten_thousand_deaths_leave_the_pool_as_it_was() {
    let mut desk = Desk::new();
    desk.setup("web", SegmentMode::Auto);
    let before = desk.document.clone();
    for round in 0..10_000_u32 {
        let number = round % 4_000 + 1;
        let wanted = Subject::Container(netns(number, u64::from(round)));
        let attach = with(Edit::Attach(request(wanted, "web")), |wanted| wanted.join_global = round % 3 == 0);
        desk.edit(&attach);
        desk.now += 2;
        match round % 4 {
            0 => drop(desk.edit(&Edit::Detach(pid(number)))),
            1 => drop(desk.edit(&Edit::Bury { id: pid(number), netns: netns(number, u64::from(round)) })),
            // A reboot: every process of the boot before is gone, and somebody notices later.
            2 if round % 100 == 2 => desk.reload(),
            _ => {
                let attached: Vec<_> =
                    desk.document.attachments().iter().map(|(id, record)| (id.clone(), record.place.clone())).collect();
                for (id, place) in attached {
                    let Place::Container { netns } = place else { panic!() };
                    desk.edit(&Edit::Bury { id, netns });
                }
            }
        }
    }
    let left: Vec<_> = desk.document.attachments().keys().cloned().collect();
    for id in left {
        desk.edit(&Edit::Detach(id));
    }
    desk.now += REST;
    desk.edit(&Edit::ForgetRested);
    assert_eq!(desk.document.segments(), before.segments());
    assert!(desk.document.addresses().is_empty() && desk.document.attachments().is_empty());
    assert_eq!(
        desk.attach(1, "web"),
        desk.document.segment_net(&service("web")).unwrap().subnets.first().address_at(2).unwrap()
    );
}
