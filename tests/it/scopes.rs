//! What an edit says that it touches is all that it changes: after its own round nothing is left for a full one.

use futures::executor::block_on;
use overlayd::{
    clock::UnixTime,
    desired::{Context, Edit, SegmentMode, Touched, consider},
    ids::IfName,
    object::{Key, LinkKind, LinkSpec, RulesetSpec, Spec, Subsystem},
    observed::{Observed, Owner},
    platform::{ActionError, sim::Fault},
    reconcile::target::Scope,
};
use proptest::{collection::vec, prelude::*};

use crate::{
    desk::{REST, container, guest, host_shared, key, pid, service, with},
    lives::edits,
    world::{World, at, document},
};

/// Nothing is left to do, and what is known of every object is what a look at the whole node would find.
fn assert_nothing_is_left(world: &mut World, what: &str) {
    let diff = world.diff();
    assert!(diff.is_empty(), "{what}:\n{}", diff.to_text());
    let before = world.engine.view().read().ledger.troubled().clone();
    world.round();
    assert_eq!(world.engine.view().read().ledger.troubled(), &before, "{what}");
}

/// A full round fails at nothing, asks for no other, and whatever is not right waits for somebody to give way.
fn assert_all_is_blocked_and_nothing_tried(world: &mut World) {
    let round = world.round();
    let failed: Vec<_> = round.actions.iter().filter(|action| action.result != "ok").collect();
    assert!(failed.is_empty() && round.again_at.is_none(), "{round:?}");
    let view = world.engine.view();
    let view = view.read();
    assert!(view.ledger.troubled().values().all(|is| is.word() == "blocked"), "{:?}", view.ledger.troubled());
}

fn is_granted(world: &World, wanted: &Edit) -> bool {
    let document = world.document.read().unwrap();
    consider(&document, wanted, &at(document.generation() + 1)).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_round_of_an_edit_leaves_nothing_for_a_full_one(edits in vec(edits(), 1..25)) {
        let mut world = World::of(document(0));
        world.round();
        for wanted in &edits {
            if is_granted(&world, wanted) {
                world.apply(wanted);
                assert_nothing_is_left(&mut world, &format!("{wanted:?}"));
            }
        }
    }
}

#[test]
fn the_first_guest_or_host_shared_workload_on_a_node_brings_the_rules_and_the_last_takes_them_along() {
    let fenced = with(guest("vm", "web", key(9)), |wanted| wanted.isolation_network = Some("red".parse().unwrap()));
    for attach in [guest("vm", "web", key(9)), fenced, host_shared("job", "web")] {
        let mut world = World::converged(1);
        assert!(world.seen(&Key::Ruleset).is_none());
        let Edit::Attach(asked) = &attach else { panic!() };
        let id = asked.subject.id().unwrap();
        world.apply(&attach);
        assert!(world.seen(&Key::Ruleset).is_some(), "{attach:?}");
        assert_nothing_is_left(&mut world, &format!("{attach:?}"));
        world.apply(&Edit::Detach(id));
        assert!(world.seen(&Key::Ruleset).is_none(), "{attach:?}");
        assert_nothing_is_left(&mut world, &format!("after {attach:?}"));
    }
}

#[test]
fn one_guest_more_costs_a_round_about_the_guest() {
    let mut world = World::converged(1);
    world.apply(&host_shared("job", "web"));
    let looks = world.kernel.looks();
    world.apply(&guest("vm", "web", key(9)));
    assert_eq!(world.kernel.looks(), looks);
}

#[test]
fn of_an_attach_that_failed_and_was_withdrawn_no_trouble_is_remembered() {
    let join = with(container(1, "web"), |wanted| wanted.join_global = true);
    let mut world = World::converged(1);
    world.apply(&Edit::EnsureSegment { service: service("web"), mode: SegmentMode::Auto, fresh: key(3) });
    // A failure of the system's, and a stranger in the way.
    let link = Key::Link("veth-1-g".parse::<IfName>().unwrap());
    let stranger = Spec::Link(LinkSpec::up(LinkKind::Other("dummy".into()), 1500));
    let stranger = Observed { owner: Owner::Stranger("another program's".into()), ..Observed::ours(stranger) };
    for is_taken in [false, true] {
        if is_taken {
            world.kernel.node(|node| node.place(link.clone(), stranger.clone()));
        } else {
            world.kernel.break_object(link.clone(), ActionError::Failed("simulated".into()));
        }
        assert!(!world.apply(&join).in_sync);
        // Whether a full round comes first is luck.
        assert!(!world.round().in_sync);
        let since = world.document.read().unwrap().attachments()[&pid(1)].since;
        world.apply(&Edit::Withdraw { id: pid(1), since });
        let trouble = world.engine.view().read().ledger.troubled().clone();
        assert!(trouble.is_empty(), "{trouble:?}");
        world.kernel.mend(&link);
        assert_nothing_is_left(&mut world, "withdrawn");
    }
}

#[test]
fn nothing_is_tried_on_a_port_that_waits_for_a_bridge_whose_name_is_a_strangers() {
    let mut world = World::converged(1);
    let bridge = Key::Link("zl-prod-0-web-b".parse::<IfName>().unwrap());
    let stranger = Spec::Link(LinkSpec::up(LinkKind::Other("dummy".into()), 1500));
    let stranger = Observed { owner: Owner::Stranger("another program's".into()), ..Observed::ours(stranger) };
    world.kernel.node(|node| node.place(bridge, stranger));
    world.apply(&with(container(1, "web"), |wanted| wanted.join_global = true));
    assert_all_is_blocked_and_nothing_tried(&mut world);
    let inside = world.condition(&Key::Inside("veth-1-s".parse().unwrap()));
    assert!(inside.as_ref().is_some_and(|is| is.word() == "blocked"), "{inside:?}");
}

/// A port that could not be removed: its container's address has rested, and a guest is given it.
#[test]
fn an_address_stays_in_the_firewall_as_long_as_a_port_has_it_whoever_is_given_it() {
    let join = with(container(1, "web"), |wanted| wanted.join_global = true);
    let mut world = World::converged(1);
    world.apply(&join);
    let port = Key::Link("veth-1-g".parse::<IfName>().unwrap());
    let held = world.document.read().unwrap().attachments()[&pid(1)].global[0];
    world.kernel.break_object(port.clone(), ActionError::Failed("simulated".into()));
    world.apply(&container(1, "web"));
    // What the failed round left in doubt is known again.
    assert!(!world.round().in_sync);
    let change = {
        let mut document = world.document.write().unwrap();
        let next = document.generation() + 1;
        let rested = Context { now: UnixTime(at(next).now.0 + 2 * REST), ..at(next) };
        let change = consider(&document, &guest("vm", "web", key(9)), &rested).unwrap();
        document.absorb(next, &change.mutations);
        change
    };
    let Touched::Keys(keys) = change.touched else { panic!("{change:?}") };
    block_on(world.engine.round(Scope::Keys(keys)));
    let given = world.document.read().unwrap().attachments()[&"guest/vm".parse().unwrap()].addresses.clone();
    assert_eq!(given, [held], "the case that is meant");
    assert!(world.seen(&port).is_some() && world.seen(&Key::Member(held)).is_some());
}

#[test]
fn no_container_comes_to_a_node_whose_table_is_a_strangers_and_none_is_tried() {
    let mut world = World::converged(1);
    let theirs = Spec::Ruleset(RulesetSpec::default());
    let stranger = Observed { owner: Owner::Stranger("another program's".into()), ..Observed::ours(theirs) };
    world.kernel.node(|node| node.place(Key::Ruleset, stranger));
    world.apply(&container(1, "web"));
    assert_all_is_blocked_and_nothing_tried(&mut world);
    assert!(world.seen(&Key::Link("veth-1-s".parse().unwrap())).is_none());
}

/// A port is removed, the answer is lost, and the next look does not see that its route went along.
#[test]
fn what_went_with_a_port_whose_removal_seemed_to_fail_is_no_drift() {
    let join = with(container(1, "web"), |wanted| wanted.join_global = true);
    let mut world = World::converged(1);
    world.apply(&join);
    world.kernel.inject(Fault::FailAfter(ActionError::Timeout(1_000)));
    assert!(!world.apply(&container(1, "web")).in_sync);
    assert!(world.seen(&Key::Link("veth-1-g".parse().unwrap())).is_none(), "it has gone");
    world.kernel.inject(Fault::CutDump(Subsystem::Route));
    let round = world.round();
    assert!(round.drift.is_empty(), "{:?}", round.drift);
}

/// A container is detached and its port cannot be removed; then it is attached again, to another service, and the rules cannot be changed.
#[test]
fn what_is_in_a_container_that_comes_back_is_looked_at_before_its_former_address_leaves_the_firewall() {
    let mut world = World::converged(1);
    world.apply(&container(1, "web"));
    let former = world.document.read().unwrap().attachments()[&pid(1)].addresses[0];
    let fail = || Fault::FailBefore(ActionError::Failed("simulated".into()));
    world.kernel.inject(fail());
    world.apply(&Edit::Detach(pid(1)));
    world.round();
    assert!(world.seen(&Key::Link("veth-1-s".parse().unwrap())).is_some(), "the case that is meant");
    world.kernel.inject(fail());
    world.apply(&with(container(1, "db"), |wanted| wanted.isolation_network = Some("blue".parse().unwrap())));
    let has_former = world.kernel.node(|node| {
        let side = node.objects().get(&Key::Inside("veth-1-s".parse().unwrap())).map(|seen| seen.spec.clone());
        matches!(side, Some(Spec::Inside(side)) if side.addresses.iter().any(|net| net.addr() == former))
    });
    assert!(has_former, "the case that is meant");
    assert!(world.seen(&Key::Member(former)).is_some());
}
