//! One agent on one simulated node: what a round does, what it leaves alone, and what it remembers.

use std::{collections::BTreeSet, time::Duration};

use futures::executor::block_on;
use overlayd::{
    clock::{BACKOFF_FIRST, BACKOFF_LAST, Clock, UnixTime},
    desired::{Edit, OverlayRequest, PeerRequest, PeerScope, SegmentMode},
    object::{EndpointSpec, Key, LinkKind, LinkSpec, RouteSpec, Setting, Spec, Subsystem},
    observed::{Observed, Owner},
    platform::{ActionError, sim::Fault},
    reconcile::{ledger::Condition, target::Scope, view::Round},
};

use crate::world::{
    World, cidr, device, device_key, document, edit, endpoint, foreign_link, mark, overlay, peer, peer_key, peer_spec,
};

fn link() -> Key {
    Key::Link(device())
}

fn address() -> Key {
    Key::Address { link: device(), address: "10.200.3.1/16".parse().unwrap() }
}

fn route() -> Key {
    Key::Route { destination: cidr("10.200.0.0/16"), metric: mark().route_metric() }
}

fn fallback() -> Key {
    Key::Route { destination: cidr("10.200.0.0/16"), metric: mark().fallback_metric() }
}

fn sysctl() -> Key {
    Key::Sysctl { link: device(), setting: Setting::Ipv4RpFilter }
}

fn refused() -> ActionError {
    ActionError::Failed("simulated".into())
}

fn assert_right(world: &mut World, what: &str) {
    let diff = world.diff();
    assert!(diff.is_empty(), "{what}:\n{}", diff.to_text());
}

fn failures(round: &Round) -> Vec<String> {
    let failed = round.actions.iter().filter(|record| record.result == "failed");
    failed.map(|record| format!("{} {}", record.verb, record.key)).collect()
}

#[test]
fn a_fresh_node_converges_in_one_round() {
    let mut world = World::new(3);
    let round = world.round();
    assert!(round.in_sync && round.full && round.drift.is_empty(), "{round:?}");
    assert_right(&mut world, "after the first round");
    let progress = world.engine.view().read().progress;
    assert!(progress.ready && progress.in_sync);
    assert_eq!(progress.converged, world.document.read().unwrap().generation());
}

#[test]
fn a_second_round_changes_nothing_and_sends_nothing() {
    let mut world = World::converged(3);
    let calls = world.kernel.calls();
    let round = world.round();
    assert!(round.in_sync && round.actions.is_empty() && round.again_at.is_none(), "{round:?}");
    assert_eq!(world.kernel.calls(), calls);
}

#[test]
fn a_restarted_agent_changes_nothing_on_a_node_that_is_right() {
    let mut world = World::converged(20);
    world.restart();
    let round = world.round();
    assert!(round.in_sync && round.actions.is_empty(), "{round:?}");
    assert_eq!(world.journal(), [""; 0]);
}

#[test]
fn one_peer_among_a_thousand_costs_one_message_with_one_action_and_no_look() {
    let mut world = World::converged(1000);
    let (calls, looks) = (world.kernel.calls(), world.kernel.looks());
    let round = world.apply(&Edit::EnsurePeer(PeerRequest { keepalive: 10, ..peer(500) }));
    assert!(round.in_sync && !round.full, "{round:?}");
    assert_eq!(world.journal(), [format!("update {}", device_key(500))]);
    assert_eq!(world.kernel.calls(), calls + 1);
    assert_eq!(world.kernel.looks(), looks);
    assert_right(&mut world, "after the edit");
}

#[test]
fn peers_that_are_added_together_travel_together() {
    let mut world = World::new(1000);
    world.round();
    // 512 peers and 488, and one call for each of the other six objects.
    assert_eq!(world.kernel.calls(), 2 + 6);
}

/// What somebody does to the node: in words, the object that has to be mended for it, and the deed.
type Disturbance = (&'static str, Key, fn(&World));

fn disturbances() -> Vec<Disturbance> {
    vec![
        ("link deleted", link(), |w| w.remove(&link())),
        ("address deleted", address(), |w| w.remove(&address())),
        ("route deleted", route(), |w| w.remove(&route())),
        ("fallback deleted", fallback(), |w| w.remove(&fallback())),
        ("setting gone", sysctl(), |w| w.remove(&sysctl())),
        ("data plane died", Key::Device(device()), |w| w.remove(&Key::Device(device()))),
        ("peer deleted", device_key(1), |w| w.remove(&device_key(1))),
        ("mtu changed", link(), |w| {
            w.disturb(&link(), |spec| {
                if let Spec::Link(link) = spec {
                    link.mtu = 1500;
                }
            })
        }),
        ("link down", link(), |w| {
            w.disturb(&link(), |spec| {
                if let Spec::Link(link) = spec {
                    link.up = false;
                }
            })
        }),
        ("link of another kind under our mark", link(), |w| w.disturb(&link(), |spec| *spec = foreign_link())),
        ("route turned into unreachable", route(), |w| {
            w.disturb(&route(), |spec| *spec = Spec::Route(RouteSpec::Unreachable))
        }),
        ("fallback turned into a way out", fallback(), |w| {
            w.disturb(&fallback(), |spec| *spec = Spec::Route(RouteSpec::Other("via 192.0.2.1".into())))
        }),
        ("fallback turned into a route through the device", fallback(), |w| {
            w.disturb(&fallback(), |spec| *spec = Spec::Route(RouteSpec::Through(device())))
        }),
        ("setting changed", sysctl(), |w| w.disturb(&sysctl(), |spec| *spec = Spec::Sysctl(1))),
        ("port changed", Key::Device(device()), |w| {
            w.disturb(&Key::Device(device()), |spec| {
                if let Spec::Device(device) = spec {
                    device.listen_port = 1;
                }
            })
        }),
        ("key changed", Key::Device(device()), |w| {
            w.disturb(&Key::Device(device()), |spec| {
                if let Spec::Device(device) = spec {
                    device.key.public = Some(peer_key(999));
                }
            })
        }),
        ("firewall mark set", Key::Device(device()), |w| {
            w.disturb(&Key::Device(device()), |spec| {
                if let Spec::Device(device) = spec {
                    device.fwmark = 7;
                }
            })
        }),
        ("keepalive changed", device_key(2), |w| w.disturb_peer(2, |peer| peer.keepalive = 0)),
        ("allowed ip taken away", device_key(2), |w| w.disturb_peer(2, |peer| peer.allowed_ips.clear())),
        ("allowed ip added", device_key(2), |w| w.disturb_peer(2, |peer| peer.allowed_ips.extend([cidr("0.0.0.0/0")]))),
        ("preshared key set", device_key(2), |w| w.disturb_peer(2, |peer| peer.preshared = true)),
        ("peer added", device_key(77), |w| {
            let observed = Observed::ours(Spec::Peer(Default::default()));
            w.kernel.node(|node| node.place(device_key(77), observed));
        }),
    ]
}

#[test]
fn every_kind_of_drift_is_repaired_in_one_round_and_counted() {
    for (what, object, disturb) in disturbances() {
        let mut world = World::converged(3);
        disturb(&world);
        let round = world.round();
        assert!(round.in_sync, "{what}: {round:?}");
        let drifted: Vec<&Key> = round.drift.iter().map(|(key, _)| key).collect();
        assert!(drifted.contains(&&object), "{what}: {:?}", round.drift);
        assert_right(&mut world, what);
        let touched: BTreeSet<&Key> = round.actions.iter().map(|record| &record.key).collect();
        let counted: BTreeSet<&Key> = drifted.into_iter().collect();
        assert_eq!(touched, counted, "{what}: what was repaired and what was counted differ");
    }
}

#[test]
fn drift_of_one_object_touches_no_other() {
    for (what, object, disturb) in disturbances() {
        // What goes with a link, a data plane or the last address has to come back with it.
        if matches!(object, Key::Link(_) | Key::Device(_) | Key::Address { .. }) {
            continue;
        }
        let mut world = World::converged(30);
        disturb(&world);
        let round = world.round();
        assert!(round.actions.iter().all(|record| record.key == object), "{what}: {:?}", round.actions);
    }
}

#[test]
fn an_edit_is_not_drift() {
    let wider = OverlayRequest { slice: Some(cidr("10.200.4.0/26").into()), port: 51821, ..overlay() };
    let renamed = OverlayRequest { instance: "1".parse().unwrap(), ..overlay() };
    let edits = [
        Edit::EnsurePeer(peer(9)),
        Edit::EnsurePeer(PeerRequest { keepalive: 3, ..peer(1) }),
        Edit::EnsurePeer(PeerRequest { endpoint: peer(8).endpoint, ..peer(1) }),
        Edit::RemovePeer { scope: PeerScope::Node, peer: peer_key(2) },
        Edit::EnsureAllowedIp { scope: PeerScope::Node, peer: peer_key(1), allowed_ip: cidr("10.201.0.2/32") },
        Edit::RemoveAllowedIp { scope: PeerScope::Node, peer: peer_key(1), allowed_ip: cidr("10.201.0.1/32") },
        Edit::EnsureOverlay(wider),
        Edit::EnsureOverlay(renamed),
        Edit::RemoveOverlay,
    ];
    for wanted in edits {
        let mut world = World::converged(3);
        let round = world.apply(&wanted);
        assert!(round.in_sync && !round.actions.is_empty(), "{wanted:?}: {round:?}");
        assert_eq!(round.drift, [], "{wanted:?}");
        assert_right(&mut world, &format!("{wanted:?}"));
    }
}

#[test]
fn a_failing_object_backs_off_while_others_proceed() {
    let mut world = World::new(5);
    world.kernel.break_object(device_key(3), refused());
    let round = world.round();
    assert!(!round.in_sync);
    assert_eq!(failures(&round), [format!("create {}", device_key(3))], "it is tried once a round");
    for number in [1, 2, 4, 5] {
        assert_eq!(world.condition(&device_key(number)), Some(Condition::Realized), "peer {number}");
    }
    let failing = world.condition(&device_key(3));
    assert!(matches!(failing, Some(Condition::Failing { attempts: 1, .. })), "{failing:?}");
    assert_eq!(round.again_at, Some(world.clock.now().instant + BACKOFF_FIRST));

    let round = world.round();
    assert!(round.actions.is_empty(), "its pause is not over: {round:?}");
    let mut pause = BACKOFF_FIRST;
    for attempts in 2..12 {
        world.clock.advance(pause);
        let round = world.round();
        assert_eq!(round.actions.len(), 1, "try {attempts}");
        let next = round.again_at.unwrap() - world.clock.now().instant;
        assert!(next == (pause * 2).min(BACKOFF_LAST), "the pauses double up to a limit: {pause:?}, {next:?}");
        pause = next;
    }

    world.kernel.mend(&device_key(3));
    world.clock.advance(BACKOFF_LAST);
    let round = world.round();
    assert!(round.in_sync && round.again_at.is_none(), "{round:?}");
}

#[test]
fn an_edit_of_a_failing_object_ends_its_pause() {
    let mut world = World::converged(2);
    world.kernel.break_object(device_key(1), refused());
    world.apply(&Edit::EnsurePeer(PeerRequest { keepalive: 1, ..peer(1) }));
    world.kernel.mend(&device_key(1));
    let round = world.apply(&Edit::EnsurePeer(PeerRequest { keepalive: 2, ..peer(1) }));
    assert!(round.in_sync, "{round:?}");
    assert_right(&mut world, "after the second edit");
}

#[test]
fn what_stands_on_a_link_that_fails_waits_for_it_and_is_not_tried() {
    let mut world = World::new(50);
    world.kernel.break_object(link(), refused());
    for _ in 0..20 {
        let round = world.round();
        assert!(failures(&round).iter().all(|line| line.starts_with("create link/")), "{:?}", failures(&round));
        assert!(
            matches!(world.condition(&device_key(7)), Some(Condition::Pending { why }) if why.contains("link/")),
            "{:?}",
            world.condition(&device_key(7))
        );
        world.clock.advance(round.again_at.unwrap() - world.clock.now().instant);
    }
    world.kernel.mend(&link());
    world.clock.advance(BACKOFF_LAST);
    assert!(world.round().in_sync);
    assert_right(&mut world, "after the link could be made");
}

#[test]
fn no_peer_attracts_traffic_before_the_route_that_refuses_strays_stands() {
    let mut world = World::converged(1);
    world.remove(&fallback());
    world.kernel.break_object(fallback(), refused());
    world.edit(&Edit::EnsurePeer(PeerRequest { keepalive: 9, ..peer(1) }));
    world.edit(&Edit::EnsurePeer(peer(2)));
    world.round();
    assert_eq!(world.journal(), [format!("update {}", device_key(1))]);
    world.round();
    assert!(world.seen(&device_key(2)).is_none(), "not in the next round either");
}

#[test]
fn a_strangers_link_with_our_name_blocks_and_is_not_touched() {
    let mut world = World::new(2);
    let stranger =
        Observed { spec: foreign_link(), owner: Owner::Stranger("dummy without our mark".into()), stats: None };
    world.kernel.node(|node| node.place(link(), stranger.clone()));
    let round = world.round();
    assert!(!round.in_sync);
    assert_eq!(world.seen(&link()), Some(stranger));
    assert!(matches!(world.condition(&link()), Some(Condition::Blocked { .. })));
    assert!(matches!(world.condition(&device_key(1)), Some(Condition::Blocked { .. })));
    assert_eq!(world.journal(), [format!("create {}", fallback())]);

    world.remove(&link());
    assert!(world.round().in_sync, "it clears when the stranger leaves");
    assert_eq!(world.condition(&link()), Some(Condition::Realized));
}

#[test]
fn an_object_that_failed_and_is_then_blocked_does_not_wake_the_loop_for_ever() {
    let mut world = World::new(1);
    world.kernel.break_object(link(), refused());
    world.round();
    let stranger = Observed { spec: foreign_link(), owner: Owner::Stranger("dummy".into()), stats: None };
    world.kernel.node(|node| node.place(link(), stranger));
    world.clock.advance(Duration::from_secs(5));
    let round = world.round();
    assert_eq!(round.again_at, None, "only somebody else can end this; the periodic look sees when");
}

#[test]
fn a_blind_look_plans_nothing_and_is_repeated_after_a_pause() {
    let mut world = World::converged(1);
    world.kernel.break_object(device_key(1), refused());
    world.disturb_peer(1, |peer| peer.keepalive = 1);
    world.round();
    world.clock.advance(Duration::from_secs(60));
    world.kernel.inject(Fault::Blind);
    let round = world.round();
    assert!(round.blind.is_some() && round.actions.is_empty() && !round.in_sync);
    assert!(round.again_at.unwrap() > world.clock.now().instant, "a blind loop may not spin");
    world.kernel.mend(&device_key(1));
    assert!(world.round().in_sync);
}

#[test]
fn a_partial_dump_creates_nothing_and_is_repeated_soon_and_then_less_often() {
    for part in Subsystem::ALL {
        let mut world = World::converged(3);
        world.restart();
        world.kernel.inject(Fault::CutDump(part));
        let round = world.round();
        assert_eq!(world.journal(), [""; 0], "{part}");
        assert!(!round.in_sync, "{part}");
        let pause = round.again_at.map(|at| at - world.clock.now().instant);
        assert_eq!(pause, Some(BACKOFF_FIRST), "{part}");
        world.kernel.inject(Fault::CutDump(part));
        let pause = world.round().again_at.map(|at| at - world.clock.now().instant);
        assert_eq!(pause, Some(BACKOFF_FIRST * 2), "{part}");
        let round = world.round();
        assert!(round.in_sync && round.again_at.is_none(), "{part}: {round:?}");
    }
}

#[test]
fn nothing_is_in_sync_while_a_part_is_unseen() {
    let mut world = World::converged(3);
    world.kernel.inject(Fault::CutDump(Subsystem::Route));
    world.round();
    let round = world.apply(&Edit::EnsurePeer(peer(4)));
    assert!(!round.full && !round.in_sync, "{round:?}");
}

#[test]
fn an_action_whose_answer_is_lost_converges_without_doing_it_twice() {
    let actions = 6 + 3;
    for lost in 0..actions {
        let mut world = World::new(3);
        world.kernel.inject_after(lost, Fault::FailAfter(ActionError::Timeout(1000)));
        let mut rounds = 0;
        while !world.round().in_sync {
            world.clock.advance(BACKOFF_LAST);
            rounds += 1;
            assert!(rounds < 5);
        }
        assert_right(&mut world, "after the lost answer");
        let lines = world.journal();
        let once: BTreeSet<&String> = lines.iter().collect();
        assert_eq!(once.len(), lines.len(), "{lines:#?}");
    }
}

#[test]
fn a_suspended_agent_takes_its_device_down_and_still_refuses_strays() {
    let mut world = World::converged(3);
    world.engine.facts().suspended = true;
    let round = world.round();
    assert!(round.in_sync && round.drift.is_empty(), "{round:?}");
    let left: Vec<Key> = world.kernel.node(|node| node.objects().keys().cloned().collect());
    assert_eq!(left, [fallback()]);
    world.restart();
    assert!(world.round().in_sync, "the next start brings it back");
    assert!(world.seen(&device_key(3)).is_some());
}

#[test]
fn an_allowed_ip_moves_in_one_step_and_is_never_nobodys() {
    for (loser, winner) in [(1, 2), (2, 1)] {
        let mut world = World::converged(2);
        let moving = cidr(&format!("10.201.0.{loser}/32"));
        let round =
            world.apply(&Edit::EnsureAllowedIp { scope: PeerScope::Node, peer: peer_key(winner), allowed_ip: moving });
        assert!(round.in_sync && !round.full, "{round:?}");
        // The loser's own change, if there is one, must not name the moving address: the kernel takes it in the winner's.
        assert_eq!(world.journal(), [format!("update {}", device_key(winner))]);
        assert!(peer_spec(&world.seen(&device_key(winner)).unwrap()).allowed_ips.contains(&moving));
        assert!(peer_spec(&world.seen(&device_key(loser)).unwrap()).allowed_ips.is_empty());
        assert_right(&mut world, "after the move");
    }
}

#[test]
fn peers_that_swap_their_allowed_ips_need_one_step_each() {
    let mut world = World::converged(2);
    world.edit(&Edit::EnsurePeer(PeerRequest { allowed_ips: peer(2).allowed_ips, ..peer(1) }));
    world.edit(&Edit::EnsurePeer(PeerRequest { allowed_ips: peer(1).allowed_ips, ..peer(2) }));
    let round = world.round();
    assert!(round.in_sync, "{round:?}");
    assert_eq!(world.journal().len(), 2, "{:?}", world.journal());
    assert_right(&mut world, "after the swap");
}

#[test]
fn a_peer_that_comes_back_with_a_new_key_takes_its_addresses_over_before_the_old_one_goes() {
    let mut world = World::converged(2);
    world.edit(&Edit::EnsurePeer(PeerRequest { public_key: peer_key(50), ..peer(1) }));
    world.edit(&Edit::RemovePeer { scope: PeerScope::Node, peer: peer_key(1) });
    let round = world.round();
    assert!(round.in_sync);
    assert_eq!(world.journal(), [format!("create {}", device_key(50)), format!("delete {}", device_key(1))]);
}

fn roam(world: &World, address: &str) {
    world.disturb_peer(1, |peer| peer.endpoint = endpoint(address));
}

#[test]
fn a_roamed_endpoint_is_not_pushed_back() {
    let mut world = World::converged(2);
    roam(&world, "198.51.100.7:4242");
    assert!(world.round().actions.is_empty());
    let round = world.apply(&Edit::EnsurePeer(PeerRequest { keepalive: 9, ..peer(1) }));
    assert_eq!(round.actions.len(), 1);
    let now_at = peer_spec(&world.seen(&device_key(1)).unwrap()).endpoint;
    assert_eq!(now_at, endpoint("198.51.100.7:4242"), "an edit of something else leaves it alone too");
    world.document.write().unwrap().absorb(10, &[]);
    assert_right(&mut world, "with a roamed endpoint");
}

#[test]
fn a_roamed_endpoint_is_pushed_exactly_once_after_its_edit() {
    let mut world = World::converged(2);
    roam(&world, "198.51.100.7:4242");
    world.round();
    let wanted = PeerRequest { endpoint: Some("203.0.113.5:51820".parse().unwrap()), ..peer(1) };
    let round = world.apply(&Edit::EnsurePeer(wanted));
    assert_eq!(round.actions.len(), 1, "{round:?}");
    assert_eq!(round.drift, []);
    assert_eq!(peer_spec(&world.seen(&device_key(1)).unwrap()).endpoint, endpoint("203.0.113.5:51820"));
    roam(&world, "198.51.100.8:4242");
    assert!(world.round().actions.is_empty(), "what it learns afterwards is the kernel's");
}

#[test]
fn an_endpoint_edit_that_failed_is_pushed_when_it_can_be() {
    let mut world = World::converged(1);
    world.kernel.break_object(device_key(1), refused());
    let wanted = PeerRequest { endpoint: Some("203.0.113.5:51820".parse().unwrap()), ..peer(1) };
    world.apply(&Edit::EnsurePeer(wanted));
    world.kernel.mend(&device_key(1));
    world.clock.advance(BACKOFF_LAST);
    assert!(world.round().in_sync);
    assert_eq!(peer_spec(&world.seen(&device_key(1)).unwrap()).endpoint, endpoint("203.0.113.5:51820"));
}

#[test]
fn a_resolved_endpoint_moves_only_when_the_peer_has_been_silent_for_a_session() {
    let mut document = document(0);
    let named = PeerRequest { endpoint: Some("node-b.example.org:51820".parse().unwrap()), ..peer(1) };
    edit(&mut document, &Edit::EnsurePeer(named));
    let mut world = World::of(document);
    let round = world.round();
    assert!(round.in_sync, "a name that does not resolve is pending, not an error: {round:?}");
    assert!(
        matches!(world.condition(&device_key(1)), Some(Condition::Pending { why }) if why.contains("node-b.example.org"))
    );

    let resolve = |world: &mut World, ip: &str| {
        let name = "node-b.example.org".parse().unwrap();
        world.engine.facts().resolved.insert(name, ip.parse().unwrap());
        world.round()
    };
    let round = resolve(&mut world, "192.0.2.10");
    assert_eq!((round.actions.len(), round.drift.len()), (1, 0), "{round:?}");
    assert_eq!(world.condition(&device_key(1)), Some(Condition::Realized));

    let now = world.clock.now().unix;
    world.kernel.node(|node| node.handshake(&device(), &peer_key(1), UnixTime(now.0 - 60)));
    assert!(resolve(&mut world, "192.0.2.11").actions.is_empty(), "a live session is not cut");
    world.clock.advance(Duration::from_secs(121));
    let round = world.round();
    assert_eq!((round.actions.len(), round.drift.len()), (1, 0), "{round:?}");
    assert_eq!(peer_spec(&world.seen(&device_key(1)).unwrap()).endpoint, endpoint("192.0.2.11:51820"));
}

#[test]
fn sessions_survive_every_edit_that_is_not_about_them() {
    let mut world = World::converged(3);
    for number in 1..=3 {
        world.kernel.node(|node| node.handshake(&device(), &peer_key(number), UnixTime(999_000)));
    }
    world.apply(&Edit::EnsurePeer(peer(4)));
    world.apply(&Edit::EnsurePeer(PeerRequest { keepalive: 1, ..peer(1) }));
    world.apply(&Edit::EnsureAllowedIp {
        scope: PeerScope::Node,
        peer: peer_key(1),
        allowed_ip: cidr("10.201.0.2/32"),
    });
    world.apply(&Edit::EnsureOverlay(OverlayRequest { slice: Some(cidr("10.200.9.0/26").into()), ..overlay() }));
    world.apply(&Edit::RemovePeer { scope: PeerScope::Node, peer: peer_key(3) });
    world.restart();
    world.round();
    let lost =
        |number| world.kernel.node(|node| node.peer(&device(), &peer_key(number)).map(|peer| peer.sessions_lost));
    assert_eq!((lost(1), lost(2), lost(3)), (Some(0), Some(0), Some(1)));
}

#[test]
fn a_peer_that_cannot_be_removed_stays_known_and_is_not_counted_as_drift() {
    let mut world = World::converged(2);
    world.kernel.break_object(device_key(1), refused());
    let round = world.apply(&Edit::RemovePeer { scope: PeerScope::Node, peer: peer_key(1) });
    assert!(!round.in_sync && !round.full);
    assert!(
        matches!(world.condition(&device_key(1)), Some(Condition::Failing { .. })),
        "{:?}",
        world.condition(&device_key(1))
    );
    assert!(world.round().actions.is_empty(), "it backs off");
    world.kernel.mend(&device_key(1));
    world.clock.advance(BACKOFF_LAST);
    let round = world.round();
    assert!(round.in_sync && round.drift.is_empty(), "{round:?}");
    assert_eq!(world.condition(&device_key(1)), None);
}

#[test]
fn a_peer_whose_creation_seemed_to_fail_and_that_is_then_removed_is_not_drift() {
    let mut world = World::converged(1);
    world.kernel.inject(Fault::FailAfter(ActionError::Timeout(1000)));
    world.apply(&Edit::EnsurePeer(peer(2)));
    assert!(world.seen(&device_key(2)).is_some());
    world.edit(&Edit::RemovePeer { scope: PeerScope::Node, peer: peer_key(2) });
    let round = world.round();
    assert!(round.in_sync && round.drift.is_empty(), "{round:?}");
}

#[test]
fn a_round_about_one_peer_does_not_claim_that_another_edit_has_arrived() {
    let mut world = World::converged(3);
    let first = world.edit(&Edit::EnsurePeer(PeerRequest { keepalive: 1, ..peer(1) }));
    let generation = world.document.read().unwrap().generation();
    // Durable and published before the round reads the document, announced only after it.
    world.edit(&Edit::EnsurePeer(PeerRequest { keepalive: 2, ..peer(2) }));
    let overlayd::desired::Touched::Keys(keys) = first.touched else { panic!("{first:?}") };
    assert!(block_on(world.engine.round(Scope::Keys(keys))).in_sync);
    world.engine.cover(generation);
    assert_eq!(world.engine.view().read().progress.converged, generation);
}

#[test]
fn two_programs_that_undo_each_other_end_in_a_pause_and_not_in_a_race() {
    let mut world = World::converged(2);
    let mut repairs = 0;
    let mut pause = Duration::ZERO;
    for _ in 0..2_000 {
        if world.seen(&route()).is_some() {
            world.remove(&route());
        }
        let round = world.round();
        repairs += round.drift.len();
        if matches!(world.condition(&route()), Some(Condition::Blocked { .. })) {
            pause = round.again_at.unwrap() - world.clock.now().instant;
            break;
        }
        world.clock.advance(Duration::from_millis(30));
    }
    assert!((300..320).contains(&repairs), "{repairs} repairs");
    assert!(pause > Duration::ZERO);
    let why = world.condition(&route());
    assert!(matches!(&why, Some(Condition::Blocked { why }) if why.contains("contended")), "{why:?}");
    assert_eq!(world.condition(&address()), Some(Condition::Realized), "no other object is slowed");

    for _ in 0..20 {
        world.clock.advance(BACKOFF_LAST);
        world.round();
        if world.seen(&route()).is_some() {
            world.remove(&route());
        }
    }
    world.clock.advance(BACKOFF_LAST);
    let round = world.round();
    assert!(round.in_sync, "it clears when the other gives up: {round:?}");
    assert_eq!(world.condition(&route()), Some(Condition::Realized));
}

#[test]
fn a_dry_run_changes_nothing_not_even_what_is_remembered() {
    let mut world = World::new(2);
    let diff = world.diff();
    assert_eq!(diff.differences.len(), 6 + 2);
    let view = world.engine.view();
    assert!(view.read().snapshot.is_empty() && view.read().progress.rounds == 0);
    assert_eq!(world.kernel.calls(), 0);
}

#[test]
fn a_peer_added_before_the_overlay_waits_in_the_document() {
    let mut world = World::of(overlayd::desired::Document::default());
    let round = world.apply(&Edit::EnsurePeer(peer(1)));
    assert!(round.in_sync && round.actions.is_empty(), "{round:?}");
    let resolved: Option<EndpointSpec> = endpoint("192.0.0.1:51820");
    world.apply(&Edit::EnsureOverlay(overlay()));
    assert_eq!(peer_spec(&world.seen(&device_key(1)).unwrap()).endpoint, resolved);
}

#[test]
fn what_was_left_by_an_earlier_life_is_remembered_as_swept_and_what_an_edit_removes_is_not() {
    let mut world = World::converged(1);
    let stray = |number: u8| Key::Link(format!("zl-prod-0-x{number}-b").parse().unwrap());
    let bridge = || Observed::ours(Spec::Link(LinkSpec::up(LinkKind::Bridge, 1420)));
    world.kernel.node(|node| node.place(stray(1), bridge()));
    world.round();
    let swept =
        |world: &World, after: u64| world.engine.view().read().swept.after(after).into_iter().collect::<Vec<_>>();
    assert_eq!(swept(&world, 0), ["zl-prod-0-x1-b".parse().unwrap()]);
    world.kernel.node(|node| node.place(stray(2), bridge()));
    world.round();
    assert_eq!(swept(&world, 1), ["zl-prod-0-x2-b".parse().unwrap()]);
    world.apply(&Edit::RemoveOverlay);
    assert!(world.seen(&link()).is_none());
    assert_eq!(world.engine.view().read().swept.count(), 2);
}

#[test]
fn what_a_dedicated_segments_peers_have_is_reached_through_the_renamed_device_and_that_is_no_drift() {
    let mut world = World::converged(1);
    let web: overlayd::ids::ServiceName = "web".parse().unwrap();
    world.apply(&Edit::EnsureSegment {
        service: web.clone(),
        mode: SegmentMode::Dedicated,
        fresh: crate::desk::key(3),
    });
    let scope = PeerScope::Service(web);
    world.apply(&Edit::EnsurePeer(PeerRequest { scope, allowed_ips: [cidr("10.200.7.0/26")].into(), ..peer(2) }));
    assert!(world.round().in_sync);
    let round = world.apply(&Edit::EnsureOverlay(OverlayRequest { instance: "1".parse().unwrap(), ..overlay() }));
    assert!(round.in_sync && round.drift.is_empty(), "{round:?}");
    let route = Key::Route { destination: cidr("10.200.7.0/26"), metric: world.engine.facts().mark.route_metric() };
    let through = Spec::Route(RouteSpec::Through("zl-prod-1-web-d".parse().unwrap()));
    assert_eq!(world.seen(&route).map(|seen| seen.spec), Some(through));
}
