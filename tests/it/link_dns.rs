//! What the host's resolver is told about the overlay, and what becomes of everything else when it fails.

use overlayd::{
    desired::Edit,
    object::{Key, LinkDnsSpec, Spec},
    observed::{Neighbour, Observed, Owner},
    platform::ActionError,
    reconcile::{ledger::Condition, target::objects_of_overlay},
};

use crate::world::{World, device, facts, peer};

fn names() -> Key {
    Key::LinkDns(device())
}

/// A node on which the resolver runs.
fn beside_a_resolver() -> World {
    let world = World::new(1);
    world.kernel.node(|node| node.surroundings.neighbours.insert(Neighbour::Resolved));
    world
}

#[test]
fn a_resolver_that_runs_is_told_of_the_device_last_and_only_of_the_overlays_zones() {
    let mut world = beside_a_resolver();
    assert!(world.round().in_sync);
    let spec = LinkDnsSpec {
        servers: ["10.200.3.1:53".parse().unwrap()].into(),
        domains: ["~overlay".to_owned(), "~200.10.in-addr.arpa".to_owned()].into(),
        ..LinkDnsSpec::default()
    };
    assert_eq!(world.seen(&names()), Some(Observed::ours(Spec::LinkDns(spec))));
    assert_eq!(world.journal().last(), Some(&format!("create {}", names())));
    assert!(
        !objects_of_overlay(&world.document.read().unwrap(), &facts()).contains(&names()),
        "no request waits for it"
    );
}

#[test]
fn it_is_told_nothing_where_it_does_not_run_or_no_zone_is_served() {
    let mut world = World::new(1);
    assert!(world.round().in_sync && world.seen(&names()).is_none());
    let mut world = beside_a_resolver();
    world.engine.facts().served = None;
    assert!(world.round().in_sync && world.seen(&names()).is_none());
}

#[test]
fn what_it_forgot_it_is_told_again_and_it_is_left_alone_when_the_device_goes() {
    let mut world = beside_a_resolver();
    world.round();
    world.disturb(&names(), |spec| match spec {
        Spec::LinkDns(dns) => dns.default_route = true,
        other => panic!("{other:?}"),
    });
    let round = world.round();
    assert_eq!(round.drift, [(names(), "changed")]);
    world.remove(&names());
    assert_eq!(world.round().drift, [(names(), "missing")]);
    world.kernel.node(overlayd::platform::sim::SimNode::forget_journal);
    world.apply(&Edit::RemoveOverlay);
    assert_eq!(world.seen(&names()), None);
    assert!(!world.journal().contains(&format!("delete {}", names())), "it goes with its link");
}

#[test]
fn it_forgets_the_device_when_the_zone_is_no_longer_served() {
    let mut world = beside_a_resolver();
    world.round();
    world.engine.facts().served = None;
    assert!(world.round().in_sync);
    assert_eq!(world.journal().last(), Some(&format!("delete {}", names())));
}

#[test]
fn a_resolver_that_refuses_is_the_trouble_of_its_object_alone() {
    let mut world = beside_a_resolver();
    world.kernel.break_object(names(), ActionError::Failed("no".into()));
    let round = world.round();
    let failed: Vec<&Key> =
        round.actions.iter().filter(|action| action.result != "ok").map(|action| &action.key).collect();
    assert!(!failed.is_empty() && failed.iter().all(|key| **key == names()), "{failed:?}");
    assert_eq!(world.engine.view().read().ledger.troubled().keys().collect::<Vec<_>>(), [&names()]);
    world.apply(&Edit::EnsurePeer(peer(2)));
    assert_eq!(world.engine.view().read().ledger.troubled().keys().collect::<Vec<_>>(), [&names()]);
    world.apply(&Edit::RemoveOverlay);
    assert!(world.round().in_sync);
}

#[test]
fn a_resolver_that_cannot_be_asked_blocks_its_object_while_it_is_wanted() {
    let mut world = beside_a_resolver();
    let silent = || Observed {
        spec: Spec::LinkDns(LinkDnsSpec::default()),
        owner: Owner::Stranger("no answer".into()),
        stats: None,
    };
    world.kernel.node(|node| node.place(names(), silent()));
    let round = world.round();
    assert!(!round.in_sync && round.actions.iter().all(|action| action.result == "ok"));
    assert_eq!(world.condition(&names()), Some(Condition::Blocked { why: "no answer".into() }));
    world.apply(&Edit::RemoveOverlay);
    world.kernel.node(|node| node.place(names(), silent()));
    assert!(world.round().in_sync, "nobody waits for it once nothing is wanted of it");
}
