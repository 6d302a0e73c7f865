//! What holds for every document, every node and every order of things, tried on random ones.
//!
//! The pools are small on purpose (six peers, a dozen networks): what goes wrong goes wrong where things meet.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use overlayd::{
    clock::{BACKOFF_LAST, UnixTime},
    desired::{
        Candidate, Document, Edit, Mutation, NatSettings, OverlayRequest, PeerRequest, Record, RecordKey, RelayServer,
        TurnServer, consider, store::Contents,
    },
    ids::Cidr,
    object::{Key, LinkKind, NetworkId, ResolverFeature, RouteSpec, Spec, Subsystem},
    observed::{Coverage, Observation, Observed, Owner, Snapshot},
    platform::{
        ActionError, Interest,
        sim::{Fault, SimNode},
    },
    reconcile::{
        explain::Diff,
        plan::plan,
        step::Plan,
        target::{Places, Scope, Target, places},
    },
};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::world::{
    World, as_snapshot, at, cidr, device, device_key, document, edit, endpoint, facts, foreign_link, node_key, overlay,
    peer, peer_key, target,
};

const NOW: UnixTime = UnixTime(1_000_000);

fn networks() -> impl Strategy<Value = Cidr> {
    select(vec![
        "10.200.7.0/26",
        "10.200.7.0/24",
        "10.200.7.1/32",
        "10.200.8.0/26",
        "10.200.9.0/26",
        "10.200.10.0/26",
        "0.0.0.0/0",
        "192.168.0.0/16",
        "fd00::/64",
        "fd00:0:0:1::/64",
        "::/0",
        "fd00::7/128",
    ])
    .prop_map(cidr)
}

fn peer_numbers() -> impl Strategy<Value = u16> {
    1..=6_u16
}

fn peer_requests() -> impl Strategy<Value = PeerRequest> {
    let endpoints = select(vec![
        None,
        Some("192.0.2.1:51820"),
        Some("192.0.2.2:51820"),
        Some("[2001:db8::1]:51820"),
        Some("a.example.org:1"),
        Some("b.example.org:51820"),
    ]);
    let ips = proptest::collection::btree_set(networks(), 0..4);
    (peer_numbers(), endpoints, ips, select(vec![0, 25, u16::MAX]), any::<bool>()).prop_map(
        |(number, endpoint, allowed_ips, keepalive, advertises)| PeerRequest {
            scope: overlayd::desired::PeerScope::Node,
            public_key: peer_key(number),
            endpoint: endpoint.map(|text| text.parse().unwrap()),
            allowed_ips,
            keepalive,
            candidates: advertises.then(candidate).into_iter().collect(),
        },
    )
}

fn candidate() -> Candidate {
    Candidate { candidate_type: "host".into(), address: "192.0.2.1:51820".into(), priority: 7 }
}

fn nat() -> NatSettings {
    NatSettings {
        enabled: true,
        stun_servers: vec!["stun.example.org:3478".into()],
        turn_servers: vec![TurnServer {
            addr: "turn.example.org:3478".into(),
            username: "node".into(),
            credential: "a secret".into(),
        }],
        hole_punch_timeout_secs: 15,
        stun_refresh_interval_secs: 60,
        max_candidate_pairs: 10,
        relay_server: Some(RelayServer {
            listen_port: 3478,
            external_addr: "192.0.2.1:3478".into(),
            max_sessions: 100,
            auth_credential: Some("another".into()),
        }),
    }
}

fn overlays() -> impl Strategy<Value = OverlayRequest> {
    let nets = select(vec![
        ("10.200.0.0/16", Some("10.200.3.0/26")),
        ("10.200.0.0/16", Some("10.200.4.0/26")),
        ("10.200.0.0/16", None),
        ("10.0.0.0/8", Some("10.200.3.0/26")),
        ("fd00:1::/32", Some("fd00:1:0:3::/64")),
        ("10.200.0.0/16,fd00:1::/32", Some("10.200.3.0/26,fd00:1:0:3::/64")),
        ("10.200.0.0/16,fd00:1::/32", Some("fd00:1:0:3::/64")),
    ]);
    (nets, select(vec!["0", "1"]), select(vec![51820, 51821]), any::<bool>()).prop_map(
        |((cluster, slice), instance, port, has_nat)| OverlayRequest {
            instance: instance.parse().unwrap(),
            cluster: cluster.parse().unwrap(),
            slice: slice.map(|text| text.parse().unwrap()),
            port,
            nat: has_nat.then(nat),
            ..overlay()
        },
    )
}

fn edits() -> impl Strategy<Value = Edit> {
    let one_ip = || (peer_numbers(), networks());
    prop_oneof![
        6 => peer_requests().prop_map(Edit::EnsurePeer),
        2 => peer_numbers().prop_map(|number| Edit::RemovePeer { scope: overlayd::desired::PeerScope::Node, peer: peer_key(number) }),
        3 => one_ip().prop_map(|(number, allowed_ip)| Edit::EnsureAllowedIp { scope: overlayd::desired::PeerScope::Node, peer: peer_key(number), allowed_ip }),
        2 => one_ip().prop_map(|(number, allowed_ip)| Edit::RemoveAllowedIp { scope: overlayd::desired::PeerScope::Node, peer: peer_key(number), allowed_ip }),
        3 => overlays().prop_map(Edit::EnsureOverlay),
        1 => Just(Edit::RemoveOverlay),
        1 => any::<u64>().prop_map(Edit::SetNodeId),
        1 => peer_numbers().prop_map(|number| Edit::ClaimPublicKey(peer_key(number))),
        1 => any::<[u8; 4]>().prop_map(|ip| Edit::EnsureDns { name: "web.example".parse().unwrap(), ip: ip.into() }),
        1 => any::<[u8; 16]>().prop_map(|ip| Edit::EnsureDns { name: "web.example".parse().unwrap(), ip: ip.into() }),
        1 => Just(Edit::RemoveDns("web.example".parse().unwrap())),
        1 => proptest::option::of(1..u16::MAX).prop_map(|port| Edit::EnsureResolver {
            zone: "overlay.example".parse().unwrap(), node_ip: [10, 200, 3, 1].into(), port,
        }),
        1 => Just(Edit::RemoveResolver("overlay.example".parse().unwrap())),
    ]
}

/// Takes in every edit that is not refused.
fn make(document: &mut Document, edits: &[Edit]) {
    for wanted in edits {
        let next = document.generation() + 1;
        if let Ok(change) = consider(document, wanted, &at(next))
            && !change.mutations.is_empty()
        {
            document.absorb(next, &change.mutations);
        }
    }
}

fn documents() -> impl Strategy<Value = Document> {
    (any::<bool>(), vec(edits(), 0..25)).prop_map(|(has_overlay, edits)| {
        let mut made = if has_overlay { document(0) } else { Document::default() };
        make(&mut made, &edits);
        made
    })
}

fn records(document: &Document) -> Vec<Mutation> {
    let fixed = [RecordKey::Node, RecordKey::NodeKey, RecordKey::Overlay];
    let peers = document.peers().keys().map(|key| RecordKey::Peer(*key));
    let dns = document.dns().keys().map(|name| RecordKey::Dns(name.clone()));
    let resolvers = document.resolvers().keys().map(|zone| RecordKey::Resolver(zone.clone()));
    let keys = fixed.into_iter().chain(peers).chain(dns).chain(resolvers);
    keys.filter_map(|key| document.record(&key).map(|record| Mutation { key, record: Some(record) })).collect()
}

/// How one object on the node differs from what is wanted.
#[derive(Debug, Clone, Copy)]
enum Fate {
    AsWanted,
    Absent,
    Altered(u8),
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate =
        prop_oneof![3 => Just(Fate::AsWanted), 1 => Just(Fate::Absent), 2 => any::<u8>().prop_map(Fate::Altered)];
    vec(fate, 1..40)
}

/// Another spec for the same key, of the many that there are.
fn altered(spec: &Spec, how: u8) -> Spec {
    let mut spec = spec.clone();
    match &mut spec {
        Spec::Link(link) => match how % 3 {
            0 => link.mtu += 1,
            1 => link.up = false,
            _ => link.kind = LinkKind::Other("dummy".into()),
        },
        Spec::Address => {}
        Spec::Route(route) => {
            *route = match how % 2 {
                0 => RouteSpec::Unreachable,
                _ => RouteSpec::Other("via 192.0.2.1".into()),
            }
        }
        Spec::Sysctl(value) => *value += 1,
        Spec::Inside(inside) => match how % 4 {
            0 => inside.mtu += 1,
            1 => inside.up = false,
            2 => inside.addresses.clear(),
            _ => inside.routes.clear(),
        },
        Spec::Ruleset(ruleset) => match how % 6 {
            0 => ruleset.intact = false,
            1 => ruleset.overlay.clear(),
            2 => ruleset.local.clear(),
            3 => ruleset.node.clear(),
            4 => ruleset.gateways.clear(),
            _ => ruleset.links.clear(),
        },
        Spec::Member(member) => match how % 2 {
            0 => drop(member.ports.insert("veth-9-s".parse().unwrap())),
            _ => member.network = Some(NetworkId(9)),
        },
        Spec::Guest(guest) => guest.networks.clear(),
        Spec::File(file) => file.content.push('#'),
        Spec::LinkDns(dns) => match how % 4 {
            0 => dns.servers.clear(),
            1 => drop(dns.domains.insert("~example".into())),
            2 => dns.default_route ^= true,
            _ => drop(dns.features.insert(ResolverFeature::Llmnr)),
        },
        Spec::Device(device) => match how % 3 {
            0 => device.listen_port ^= 1,
            1 => device.key.public = None,
            _ => device.fwmark = 1,
        },
        Spec::Peer(peer) => match how % 6 {
            0 => peer.endpoint = endpoint("198.51.100.1:1"),
            1 => peer.endpoint = None,
            2 => peer.keepalive ^= 1,
            3 => peer.allowed_ips.clear(),
            4 => peer.preshared = true,
            _ => peer.allowed_ips.extend([cidr("10.200.7.0/26"), cidr("0.0.0.0/0")]),
        },
    }
    spec
}

/// A node that was meant to be as `before` says, and to which things happened.
fn node(before: &Document, fates: &[Fate]) -> SimNode {
    let wanted = target(before, &facts());
    let mut node = SimNode::default();
    let mut fate = fates.iter().cycle();
    // Links come first in the order of keys; what stands on an absent link cannot exist.
    for (key, wanted) in &wanted.objects {
        let spec = match fate.next() {
            Some(Fate::AsWanted) | None => wanted.spec.clone(),
            Some(Fate::Altered(how)) => altered(&wanted.spec, *how),
            Some(Fate::Absent) => continue,
        };
        let through = match &spec {
            Spec::Route(RouteSpec::Through(link)) => Some(link),
            _ => key.link(),
        };
        let stands = through.is_none_or(|link| {
            let link = node.objects().get(&Key::Link(link.clone()));
            let is_up = matches!(link.map(|seen| &seen.spec), Some(Spec::Link(link)) if link.up);
            link.is_some() && (is_up || key.subsystem() != Subsystem::Route)
        });
        if stands {
            node.place(key.clone(), Observed::ours(spec));
        }
    }
    // Somebody else's things, which nobody may touch.
    let stranger = |spec| Observed { spec, owner: Owner::Stranger("a decoy".into()), stats: None };
    node.place(Key::Link("zl-decoy-b".parse().unwrap()), stranger(foreign_link()));
    let route = Key::Route { destination: cidr("10.200.0.0/16"), metric: 7 };
    node.place(route, stranger(Spec::Route(RouteSpec::Other("via 192.0.2.9".into()))));
    node
}

fn strangers(node: &SimNode) -> BTreeMap<Key, Observed> {
    let foreign = node.objects().iter().filter(|(_, seen)| !seen.is_ours());
    foreign.map(|(key, seen)| (key.clone(), seen.clone())).collect()
}

fn look(node: &SimNode, document: &Document) -> Snapshot {
    let Places { links, keys, insides } = places(document, &facts());
    let mut snapshot = Snapshot::default();
    snapshot.absorb(node.observe(&Interest { subsystems: Subsystem::ALL.into(), links, keys, insides }));
    snapshot
}

fn plan_for(target: &Target, snapshot: &Snapshot) -> Plan {
    plan(target, snapshot, &Scope::Everything, NOW)
}

fn text(document: &Document, target: &Target, plan: &Plan) -> String {
    format!("{}\n{:?}", Diff::new(document, target, plan).to_text(), plan)
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn an_edit_taken_in_twice_changes_nothing_the_second_time(mut document in documents(), wanted in edits()) {
        let next = document.generation() + 1;
        if let Ok(change) = consider(&document, &wanted, &at(next)) {
            document.absorb(next, &change.mutations);
            let again = consider(&document, &wanted, &at(next + 1)).unwrap();
            prop_assert_eq!(&again.mutations, &[], "{:?}", wanted);
            prop_assert_eq!(again.grant, change.grant);
        }
    }

    #[test]
    fn what_an_edit_did_is_undone_by_its_inverse(document in documents(), wanted in edits()) {
        let next = document.generation() + 1;
        if let Ok(change) = consider(&document, &wanted, &at(next)) {
            let mut changed = document.clone();
            let inverse = changed.inverse(&change.mutations);
            changed.absorb(next, &change.mutations);
            changed.absorb(document.generation(), &inverse);
            prop_assert_eq!(changed, document);
        }
    }

    #[test]
    fn an_edit_that_is_not_the_overlays_names_every_object_that_it_changes(document in documents(), wanted in edits()) {
        let next = document.generation() + 1;
        if let Ok(change) = consider(&document, &wanted, &at(next))
            && let overlayd::desired::Touched::Keys(keys) = &change.touched
        {
            let facts = facts();
            let before = target(&document, &facts);
            let mut after = document.clone();
            after.absorb(next, &change.mutations);
            let after = target(&after, &facts);
            let all: BTreeSet<&Key> = before.objects.keys().chain(after.objects.keys()).collect();
            for key in all {
                prop_assert!(keys.contains(key) || before.objects.get(key) == after.objects.get(key), "{}", key);
            }
        }
    }

    #[test]
    fn no_allowed_ip_ever_has_two_peers(document in documents()) {
        let mut seen = BTreeMap::new();
        for (key, peer) in document.peers() {
            for allowed_ip in &peer.allowed_ips {
                prop_assert_eq!(seen.insert(*allowed_ip, *key), None, "{}", allowed_ip);
                prop_assert_eq!(document.holder(allowed_ip), Some(key));
            }
        }
    }

    #[test]
    fn a_record_is_what_its_bytes_say(document in documents()) {
        let mut contents = Contents { generation: document.generation(), ..Contents::default() };
        for Mutation { key, record } in records(&document) {
            let (text, bytes) = (key.to_string(), record.as_ref().unwrap().encode());
            prop_assert_eq!(&text.parse::<RecordKey>().unwrap(), &key);
            prop_assert_eq!(Some(Record::decode(&key, &bytes).unwrap()), record);
            contents.records.insert(text, bytes);
        }
        prop_assert_eq!(Document::from_contents(&contents).unwrap(), document);
    }

    #[test]
    fn object_keys_are_what_their_text_says(document in documents()) {
        for key in target(&document, &facts()).objects.keys() {
            prop_assert_eq!(&key.to_string().parse::<Key>().unwrap(), key);
        }
    }
}

proptest! {
    #![proptest_config(cases(10_000))]

    #[test]
    fn carrying_out_a_plan_reaches_the_target_and_leaves_nothing_to_do(
        before in documents(), later in vec(edits(), 0..6), fates in fates(),
    ) {
        let mut node = node(&before, &fates);
        let untouchable = strangers(&node);
        let mut wanted = before;
        make(&mut wanted, &later);
        let target = target(&wanted, &facts());
        let first = plan_for(&target, &look(&node, &wanted));
        for step in &first.steps {
            let outcome = node.execute(&step.action);
            prop_assert!(outcome.is_ok(), "{:?} in {:#?}: {:?}", step, first.steps, outcome);
        }
        let next = plan_for(&target, &look(&node, &wanted));
        prop_assert!(next.is_empty() && next.withheld.is_empty(), "{}", text(&wanted, &target, &next));
        prop_assert_eq!(strangers(&node), untouchable);
    }
}

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn a_node_that_shows_the_target_needs_nothing(document in documents()) {
        let target = target(&document, &facts());
        let plan = plan_for(&target, &as_snapshot(&target));
        prop_assert!(plan.is_empty() && plan.withheld.is_empty(), "{}", text(&document, &target, &plan));
    }

    #[test]
    fn the_order_in_which_things_are_told_changes_no_byte_of_the_plan(
        before in documents(), later in vec(edits(), 0..6), fates in fates(), turn in any::<usize>(),
    ) {
        let node = node(&before, &fates);
        let mut wanted = before;
        make(&mut wanted, &later);
        let rotated = |many: Vec<Mutation>| {
            let mut many = many;
            let by = turn % many.len().max(1);
            many.rotate_left(by);
            many.reverse();
            many
        };
        let mut retold = Document::default();
        retold.absorb(wanted.generation(), &rotated(records(&wanted)));
        prop_assert_eq!(&retold, &wanted);

        let seen = look(&node, &wanted).to_observation();
        let mut piecemeal = Snapshot::default();
        for (key, object) in seen.objects.iter().rev() {
            let objects = BTreeMap::from([(key.clone(), object.clone())]);
            piecemeal.absorb(Observation { objects, ..Observation::default() });
        }
        piecemeal.absorb(seen.clone());
        let facts = facts();
        let one = plan_for(&target(&wanted, &facts), &look(&node, &wanted));
        let other = plan_for(&target(&retold, &facts), &piecemeal);
        prop_assert_eq!(
            text(&wanted, &target(&wanted, &facts), &one),
            text(&retold, &target(&retold, &facts), &other)
        );
    }

    #[test]
    fn a_part_that_was_not_seen_whole_gets_nothing_created(
        document in documents(), fates in fates(), part in select(Subsystem::ALL.to_vec()),
    ) {
        let mut seen = look(&node(&document, &fates), &document).to_observation();
        seen.coverage.insert(part, Coverage::Partial("cut short".into()));
        seen.objects.retain(|key, _| key.subsystem() != part);
        let mut snapshot = Snapshot::default();
        snapshot.absorb(seen);
        let plan = plan_for(&target(&document, &facts()), &snapshot);
        for step in &plan.steps {
            prop_assert_ne!(step.action.key().subsystem(), part, "{:?}", step);
        }
    }
}

/// What can happen to an agent and its node.
#[derive(Debug, Clone)]
enum Event {
    Edit(Box<Edit>),
    FullRound,
    Wait(u64),
    Restart,
    Remove(usize),
    Alter(usize, u8),
    Lose(usize),
    Fail(usize),
    Cut(Subsystem),
    Break(u16),
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => edits().prop_map(|wanted| Event::Edit(Box::new(wanted))),
        2 => Just(Event::FullRound),
        1 => (0..40_000_u64).prop_map(Event::Wait),
        1 => Just(Event::Restart),
        2 => any::<usize>().prop_map(Event::Remove),
        2 => (any::<usize>(), any::<u8>()).prop_map(|(which, how)| Event::Alter(which, how)),
        1 => (0..8_usize).prop_map(Event::Lose),
        1 => (0..8_usize).prop_map(Event::Fail),
        1 => select(Subsystem::ALL.to_vec()).prop_map(Event::Cut),
        1 => peer_numbers().prop_map(Event::Break),
    ]
}

fn happen(world: &mut World, event: Event) {
    let ours = |world: &World, which: usize| {
        let keys: Vec<Key> = world.kernel.node(|node| {
            node.objects().iter().filter(|(_, seen)| seen.is_ours()).map(|(key, _)| key.clone()).collect()
        });
        (!keys.is_empty()).then(|| keys[which % keys.len()].clone())
    };
    match event {
        Event::Edit(wanted) => {
            let is_accepted = {
                let document = world.document.read().unwrap();
                consider(&document, &wanted, &at(document.generation() + 1)).is_ok()
            };
            if is_accepted {
                world.apply(&wanted);
            }
        }
        Event::FullRound => drop(world.round()),
        Event::Wait(milliseconds) => world.clock.advance(Duration::from_millis(milliseconds)),
        Event::Restart => world.restart(),
        Event::Remove(which) => {
            if let Some(key) = ours(world, which) {
                world.remove(&key);
            }
        }
        Event::Alter(which, how) => {
            if let Some(key) = ours(world, which) {
                world.disturb(&key, |spec| *spec = altered(spec, how));
            }
        }
        Event::Lose(after) => world.kernel.inject_after(after, Fault::FailAfter(ActionError::Timeout(1000))),
        Event::Fail(after) => world.kernel.inject_after(after, Fault::FailBefore(ActionError::Failed("no".into()))),
        Event::Cut(part) => world.kernel.inject(Fault::CutDump(part)),
        Event::Break(number) => world.kernel.break_object(device_key(number), ActionError::Denied("no".into())),
    }
}

proptest! {
    #![proptest_config(cases(1_500))]

    #[test]
    fn whatever_happened_one_round_after_the_faults_makes_it_right(events in vec(events(), 0..40)) {
        let mut world = World::new(2);
        let decoy = Key::Link("zl-decoy-b".parse().unwrap());
        let stranger = Observed { spec: foreign_link(), owner: Owner::Stranger("a decoy".into()), stats: None };
        world.kernel.node(|node| node.place(decoy.clone(), stranger.clone()));
        for event in events {
            happen(&mut world, event);
            prop_assert_eq!(world.seen(&decoy), Some(stranger.clone()));
            let progress = world.engine.view().read().progress;
            prop_assert!(progress.converged <= world.document.read().unwrap().generation());
        }
        world.kernel.heal();
        world.clock.advance(BACKOFF_LAST);
        let round = world.round();
        prop_assert!(round.in_sync, "{:#?}", round);
        let diff = world.diff();
        prop_assert!(diff.is_empty(), "{}", diff.to_text());
        prop_assert!(round.again_at.is_none(), "{:?}", round.again_at);
        let calls = world.kernel.calls();
        world.round();
        prop_assert_eq!(world.kernel.calls(), calls, "and then there is nothing to do");
    }
}

/// Every way in which one field of a spec can be otherwise.
fn variants(spec: &Spec) -> Vec<(&'static str, Spec)> {
    let of_peer = |change: fn(&mut overlayd::object::PeerSpec)| {
        let mut spec = spec.clone();
        if let Spec::Peer(peer) = &mut spec {
            change(peer);
        }
        spec
    };
    match spec {
        Spec::Link(_) => vec![("mtu", altered(spec, 0)), ("up", altered(spec, 1))],
        Spec::Address | Spec::Route(_) => Vec::new(),
        Spec::Sysctl(_) => vec![("value", altered(spec, 0))],
        Spec::Inside(_) => {
            let fields = ["mtu", "up", "addresses", "routes"];
            fields.into_iter().zip(0..).map(|(field, how)| (field, altered(spec, how))).collect()
        }
        Spec::Ruleset(_) => {
            let fields = ["intact", "overlay", "local", "node", "gateways", "links"];
            fields.into_iter().zip(0..).map(|(field, how)| (field, altered(spec, how))).collect()
        }
        Spec::Member(_) => vec![("port", altered(spec, 0)), ("network", altered(spec, 1))],
        Spec::Guest(_) => vec![("networks", altered(spec, 0))],
        Spec::File(_) => vec![("content", altered(spec, 0))],
        Spec::LinkDns(_) => {
            let fields = ["servers", "domains", "default_route", "features"];
            fields.into_iter().zip(0..).map(|(field, how)| (field, altered(spec, how))).collect()
        }
        Spec::Device(_) => vec![("port", altered(spec, 0)), ("key", altered(spec, 1)), ("fwmark", altered(spec, 2))],
        Spec::Peer(wanted) => {
            let mut all = vec![
                ("keepalive", of_peer(|peer| peer.keepalive ^= 1)),
                ("one allowed ip more", of_peer(|peer| peer.allowed_ips.extend([cidr("172.16.0.0/12")]))),
                ("preshared key", of_peer(|peer| peer.preshared = true)),
            ];
            if wanted.endpoint.is_some() {
                all.push(("endpoint", of_peer(|peer| peer.endpoint = endpoint("198.51.100.1:1"))));
                all.push(("no endpoint", of_peer(|peer| peer.endpoint = None)));
            }
            if !wanted.allowed_ips.is_empty() {
                all.push(("no allowed ips", of_peer(|peer| peer.allowed_ips.clear())));
            }
            all
        }
    }
}

#[test]
fn every_field_of_every_object_at_every_position_gives_exactly_one_action_when_it_is_otherwise() {
    let mut document = document(0);
    // The first peer, and others between, have no endpoint: where one comparison ends early the rest is never compared (A6).
    for number in 1..=8 {
        let endpoint = if number % 3 == 1 { None } else { peer(number).endpoint };
        edit(&mut document, &Edit::EnsurePeer(PeerRequest { endpoint, ..peer(number) }));
    }
    let target = target(&document, &facts());
    let right = as_snapshot(&target).to_observation();
    let mut tried = 0;
    for (key, wanted) in &target.objects {
        for (field, spec) in variants(&wanted.spec) {
            let mut seen = right.clone();
            seen.objects.insert(key.clone(), Observed::ours(spec));
            let mut snapshot = Snapshot::default();
            snapshot.absorb(seen);
            let plan = plan_for(&target, &snapshot);
            let touched: Vec<(&str, &Key)> =
                plan.steps.iter().map(|step| (step.action.verb(), step.action.key())).collect();
            assert_eq!(touched, [("update", key)], "{field} of {key}");
            tried += 1;
        }
        let mut seen = right.clone();
        seen.objects.remove(key);
        let mut snapshot = Snapshot::default();
        snapshot.absorb(seen);
        let created: Vec<_> = plan_for(&target, &snapshot).steps.iter().map(|step| step.action.key().clone()).collect();
        assert_eq!(created, std::slice::from_ref(key), "{key} absent");
    }
    assert!(tried > 40, "{tried}");
}

#[test]
fn the_node_key_is_nowhere_in_what_the_loop_prints() {
    let secret = node_key().reveal().as_str().to_owned();
    let mut world = World::new(2);
    let diff = world.diff();
    let round = world.round();
    let view = world.engine.view();
    let printed = format!(
        "{diff:?} {} {} {round:?} {:?} {:?}",
        diff.to_text(),
        serde_json::to_string(&diff).unwrap(),
        view.read(),
        world.document.read().unwrap()
    );
    assert!(!printed.contains(&secret));
    assert!(printed.contains(device().as_str()));
}
