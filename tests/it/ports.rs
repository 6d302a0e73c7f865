//! Ports of containers: which of them an address may come from, and where their other ends have to be.

use std::collections::BTreeSet;

use overlayd::{
    ids::IfName,
    object::{Key, Spec},
};

use crate::{
    desk::{container, netns, pid, with},
    world::World,
};

fn link(name: &str) -> Key {
    Key::Link(name.parse().unwrap())
}

fn ports_of(world: &World, member: &Key) -> BTreeSet<String> {
    match world.seen(member).unwrap_or_else(|| panic!("no {member}")).spec {
        Spec::Member(member) => member.ports.iter().map(IfName::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_address_of_a_container_with_two_legs_may_come_by_both_and_of_one_with_one_leg_by_that() {
    let mut world = World::converged(1);
    let joined = with(container(1, "web"), |wanted| wanted.join_global = true);
    let both: BTreeSet<String> = ["veth-1-g", "veth-1-s"].map(str::to_owned).into();
    for (wanted, ports) in
        [(&joined, both.clone()), (&container(1, "web"), ["veth-1-s".to_owned()].into()), (&joined, both)]
    {
        assert!(world.apply(wanted).in_sync);
        let held: Vec<_> = world.document.read().unwrap().attachments()[&pid(1)].held().copied().collect();
        for address in held {
            assert_eq!(ports_of(&world, &Key::Member(address)), ports);
        }
        assert!(world.diff().is_empty());
    }
}

#[test]
fn a_second_leg_is_there_only_once_the_firewall_lets_both_addresses_out_by_it() {
    let mut world = World::converged(1);
    world.apply(&container(1, "web"));
    world.kernel.node(overlayd::platform::sim::SimNode::forget_journal);
    world.apply(&with(container(1, "web"), |wanted| wanted.join_global = true));
    let journal = world.journal();
    let at = |what: &str| journal.iter().position(|line| line.contains(what)).unwrap_or_else(|| panic!("{journal:?}"));
    let last_member = journal.iter().rposition(|line| line.contains(" member/")).unwrap();
    assert!(last_member < at("create link/veth-1-g"), "{journal:?}");
    assert_eq!(journal.iter().filter(|line| line.contains(" member/")).count(), 2, "{journal:?}");
    assert!(!journal.iter().any(|line| line.contains("link/veth-1-s")), "{journal:?}");
}

#[test]
fn a_pair_whose_far_end_is_in_another_namespace_is_made_anew_with_all_that_is_on_it() {
    for elsewhere in [None, Some(netns(2, 1))] {
        let mut world = World::converged(1);
        world.apply(&with(container(1, "web"), |wanted| wanted.join_global = true));
        world.kernel.node(overlayd::platform::sim::SimNode::forget_journal);
        world.disturb(&link("veth-1-s"), |spec| {
            let Spec::Link(pair) = spec else { panic!("{spec:?}") };
            match (&elsewhere, &mut pair.peer) {
                (Some(elsewhere), Some(peer)) => peer.netns = elsewhere.clone(),
                (_, peer) => *peer = None,
            }
        });
        let round = world.round();
        assert!(round.in_sync, "{round:?}");
        assert_eq!(world.journal()[..2], ["delete link/veth-1-s", "create link/veth-1-s"]);
        assert!(world.diff().is_empty());
        let Some(Spec::Link(pair)) = world.seen(&link("veth-1-s")).map(|seen| seen.spec) else { panic!() };
        assert_eq!(pair.peer.unwrap().netns, netns(1, 1));
        assert!(!world.journal().iter().any(|line| line.contains("veth-1-g")), "the other leg is left alone");
    }
}
