//! What takes minutes: rekeys, sessions that end, keepalives, the periodic look, addresses that rest.
//!
//! Owns the tests that only run where time is virtual. Leaves the virtual machine to `tests/vm/run --virtual-time`: its clocks go by the
//! instructions that were carried out, and a wait in which nothing is to do is over at once.
//!
//! The limits of a session are WireGuard's own: the initiator begins a new handshake after 120 s (`REKEY_AFTER_TIME`), and after 180 s
//! (`REJECT_AFTER_TIME`) no packet is taken any more (Donenfeld, WireGuard, section 6.1).

use std::{
    fs,
    net::IpAddr,
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use nix::mount::{MsFlags, mount};
use overlayd::{
    action::Action,
    ids::WgPublicKey,
    object::{Key, Spec},
    observed::PeerStats,
    reconcile::plan::SESSION_LIFETIME,
    wire::{OverlayMode, PeerScope, PeerSpec, Request, Response},
};

use crate::{
    container::Container,
    containers::scene::{Wish, nft, single, single_with},
    lab::{isolated_as, skip},
    overlay_node::{IPV4, IPV6, OverlayNode, PORT, Pair, add_peer, endpoint, pair, two_nodes, until},
    overlay_ping::{Pinger, first_reply},
};

/// Set by the guest whose time is virtual.
const VARIABLE: &str = "OVERLAYD_VIRTUAL_TIME";
const SECOND: Duration = Duration::from_secs(1);
/// Until the first reply of a peer.
const TALK: Duration = Duration::from_secs(30);
/// Seconds by which a new handshake may be late: it begins with the next packet, and the responder has ten seconds more to begin one.
const REKEY: std::ops::RangeInclusive<u64> = 120..=135;
/// How often the agent looks at WireGuard alone, and some time to repair what it finds.
const GLANCE: Duration = Duration::from_secs(7);

/// As [`isolated_as`], where minutes cost nothing.
fn in_virtual_time<F: FnOnce()>(body: F) {
    isolated_as::<F>(|| {
        if std::env::var_os(VARIABLE).is_none() {
            skip("waits for minutes, which only pass at once where time is virtual: just long-time");
        }
        body();
    });
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn stats(node: &OverlayNode, key: &WgPublicKey) -> PeerStats {
    node.peer(key).unwrap().1
}

/// Asks once a second, for as long as a name may take and a handshake after it.
fn wait_until(what: &str, is_so: impl Fn() -> bool, node: &OverlayNode) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < TALK, "waited too long until {what}: {}", node.log_tail());
        sleep(SECOND);
    }
}

/// A look costs an emulated processor much more than the wait for it: they become frequent only before the moment that counts.
fn wait_towards(moment: u64) {
    sleep(Duration::from_secs((moment.saturating_sub(now()) / 2).max(1)));
}

/// When the last handshake was, in seconds since 1970.
fn handshake(node: &OverlayNode, key: &WgPublicKey) -> u64 {
    stats(node, key).last_handshake.unwrap().0
}

#[test]
fn a_session_is_renewed_every_two_minutes_without_a_lost_ping_and_without_the_agent() {
    in_virtual_time(|| {
        let Pair { a, b, network, .. } = pair(IPV4);
        let far: IpAddr = network.nodes[1].parse().unwrap();
        first_reply(&a.node, far, TALK).unwrap();
        let actions = (a.actions(), b.actions());
        let key = b.public_key();
        let mut handshakes = vec![handshake(&a, &key)];
        let pinger = Pinger::start(&a.node, far, SECOND);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(400) {
            sleep(SECOND * 10);
            let last = handshake(&a, &key);
            if handshakes.last() != Some(&last) {
                handshakes.push(last);
            }
        }
        let pings = pinger.finish();
        let gaps: Vec<u64> = handshakes.windows(2).map(|two| two[1] - two[0]).collect();
        println!(
            "MEASURED: {} s: {} pings, {} lost; seconds between handshakes: {gaps:?}",
            400, pings.sent, pings.lost
        );
        assert!(gaps.len() >= 2 && gaps.iter().all(|gap| REKEY.contains(gap)), "{gaps:?}");
        assert!(pings.sent >= 390 && pings.lost == 0, "{pings:?}");
        assert_eq!((a.actions(), b.actions()), actions);
        for node in [&a, &b] {
            node.assert_no_difference();
        }
    });
}

#[test]
fn a_session_that_cannot_be_renewed_carries_packets_for_three_minutes_and_no_longer() {
    in_virtual_time(|| {
        let Pair { a, b, network, .. } = pair(IPV4);
        let far: IpAddr = network.nodes[1].parse().unwrap();
        first_reply(&a.node, far, TALK).unwrap();
        let key = b.public_key();
        let begun = handshake(&a, &key);
        // Handshake initiations have 148 bytes, and 8 of UDP.
        for node in [&a, &b] {
            let rules =
                "table inet lab {\n chain in {\n type filter hook input priority 0\n udp length 156 drop\n }\n}\n";
            let file = format!("/run/{}-rules", node.public_key().to_string().replace('/', "_"));
            fs::write(&file, rules).unwrap();
            let done = nft(node, &["-f", &file]).unwrap_or_else(|| skip("no nft"));
            assert!(done.status.success(), "{done:?}");
        }
        let actions = (a.actions(), b.actions());
        let silent_from = loop {
            let age = now() - begun;
            if first_reply(&a.node, far, SECOND).is_none() {
                break age;
            }
            assert!(age < 200, "the session still lives");
            sleep(SECOND / 2);
        };
        println!("MEASURED: without a new handshake the session carried packets for {silent_from} s");
        assert!((178..=182).contains(&silent_from), "{silent_from}");
        assert_eq!(handshake(&a, &key), begun);
        assert_eq!((a.actions(), b.actions()), actions, "nothing that an agent could repair");
        for node in [&a, &b] {
            assert!(nft(node, &["delete", "table", "inet", "lab"]).unwrap().status.success());
        }
        let back = first_reply(&a.node, far, TALK).unwrap();
        println!("MEASURED: handshakes pass again: the first reply came after {back:?}");
        assert!(handshake(&a, &key) > begun);
        assert_eq!((a.actions(), b.actions()), actions);
    });
}

#[test]
fn a_peer_that_roamed_keeps_its_endpoint_for_three_minutes_of_silence_and_then_gets_that_of_its_name() {
    in_virtual_time(|| {
        // For this test's mount namespace only.
        fs::write("/run/hosts", "192.0.2.2 far.test\n").unwrap();
        mount(Some("/run/hosts"), "/etc/hosts", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let (a, mut b) = two_nodes();
        let slices = IPV4.slices;
        a.setup(IPV4.cluster, Some(slices[0]), PORT);
        b.setup(IPV4.cluster, Some(slices[1]), PORT);
        a.request(add_peer(&b.public_key(), &format!("far.test:{PORT}"), slices[1]));
        b.request(add_peer(&a.public_key(), &endpoint(1), slices[0]));
        let key = b.public_key();
        let at = || a.peer(&key).unwrap().0.endpoint.map(|endpoint| endpoint.address.port());
        wait_until("the name has an address", || at() == Some(PORT), &a);
        // The far side moves, and says so by a packet; then it is never heard again.
        b.setup(IPV4.cluster, Some(slices[1]), 51999);
        let near = IPV4.nodes[0].parse().unwrap();
        let has_moved = || first_reply(&b.node, near, SECOND).is_some() && at() == Some(51999);
        wait_until("the far side has moved", has_moved, &a);
        b.kill();
        assert_eq!(b.command(&["purge"]).status.code(), Some(0));
        let begun = handshake(&a, &key);
        let actions = a.actions();
        let limit = SESSION_LIFETIME.as_secs();
        let mut seen_until = 0;
        let moved = loop {
            a.resync();
            let before = now() - begun;
            if at() != Some(51999) {
                break now() - begun;
            }
            seen_until = before;
            assert!(before < limit + 30, "it keeps the endpoint that it roamed to");
            wait_towards(begun + limit);
        };
        println!("MEASURED: the endpoint that it roamed to was kept for {seen_until} s and replaced after {moved} s");
        assert!(moved > limit && seen_until + 3 > limit, "{seen_until} {moved}");
        assert_eq!(at(), Some(PORT));
        assert_eq!(handshake(&a, &key), begun);
        assert_eq!(a.actions() - actions, 1.0, "{:?}", a.metric("overlayd_actions_total"));
        sleep(SECOND * 60);
        assert_eq!(a.actions() - actions, 1.0, "{:?}", a.metric("overlayd_actions_total"));
    });
}

#[test]
fn a_persistent_keepalive_keeps_packets_coming_and_the_session_young() {
    in_virtual_time(|| {
        let (a, b) = two_nodes();
        a.setup(IPV4.cluster, Some(IPV4.slices[0]), PORT);
        b.setup(IPV4.cluster, Some(IPV4.slices[1]), PORT);
        let key = b.public_key();
        b.request(add_peer(&a.public_key(), &endpoint(1), IPV4.slices[0]));
        let peer = PeerSpec {
            public_key: key.to_string(),
            endpoint: endpoint(2),
            allowed_ips: IPV4.slices[1].into(),
            persistent_keepalive_secs: 25,
            candidates: Vec::new(),
        };
        a.request(Request::AddPeer { peer, scope: PeerScope::Global });
        wait_until("they have met", || stats(&a, &key).last_handshake.is_some(), &a);
        let (near, actions) = (a.public_key(), (a.actions(), b.actions()));
        let mut before = (stats(&a, &key).tx_bytes, stats(&b, &near).rx_bytes);
        let mut oldest = 0;
        for interval in 1..=16 {
            // Linux may let a timer run out up to an eighth late.
            sleep(SECOND * 29);
            let after = (stats(&a, &key).tx_bytes, stats(&b, &near).rx_bytes);
            assert!(after.0 > before.0 && after.1 > before.1, "interval {interval}: {before:?} {after:?}");
            before = after;
            oldest = oldest.max(now() - handshake(&a, &key));
        }
        println!("MEASURED: 16 times 29 s without traffic, keepalive 25 s: packets in each; oldest session {oldest} s");
        // The next keepalive after two minutes begins a new one.
        assert!(oldest < 150, "{oldest}");
        assert_eq!((a.actions(), b.actions()), actions);
    });
}

#[test]
fn a_peer_that_somebody_removes_is_back_with_the_next_glance() {
    in_virtual_time(|| {
        let Pair { a, b, device, network } = pair(IPV4);
        let far: IpAddr = network.nodes[1].parse().unwrap();
        let key = b.public_key();
        let mut longest = Duration::ZERO;
        for moment in 0..5 {
            // Not always at the same moment of the agent's own rhythm.
            sleep(SECOND * moment);
            let was = Spec::Peer(a.peer(&key).unwrap().0);
            let peer = Key::Peer { device: device.clone(), public_key: key };
            let done = a.execute(vec![Action::Delete { key: peer, was }]);
            assert!(done.iter().all(Result::is_ok), "{done:?}");
            assert!(a.peer(&key).is_none());
            let begun = Instant::now();
            while a.peer(&key).is_none() {
                assert!(begun.elapsed() < GLANCE, "{}", a.log_tail());
                sleep(SECOND / 2);
            }
            longest = longest.max(begun.elapsed());
        }
        println!("MEASURED: a removed peer was back after {longest:?} at the most, 5 times");
        first_reply(&a.node, far, TALK).unwrap();
        a.assert_no_difference();
    });
}

#[test]
fn what_no_notification_tells_is_repaired_by_the_periodic_look_and_not_before() {
    in_virtual_time(|| {
        let interval = SECOND * 300;
        let mut node = single(IPV6);
        node.kill();
        node.flags = vec![format!("--resync-secs={}", interval.as_secs())];
        node.start();
        let file = "/proc/sys/net/ipv6/conf/zl-e2e-0-g/accept_ra";
        let value = || node.node.run(move || fs::read_to_string(file).unwrap().trim().to_owned());
        assert_eq!(value(), "0");
        for _ in 0..3 {
            node.resync();
            node.node.run(move || fs::write(file, "1").unwrap());
            let begun = Instant::now();
            while value() != "0" {
                // The agent spreads its looks by a tenth of the interval to both sides.
                assert!(begun.elapsed() < interval * 11 / 10 + SECOND * 2, "{}", node.log_tail());
                sleep(SECOND);
            }
            let took = begun.elapsed();
            println!("MEASURED: a setting was put back after {took:?}, with a look every {interval:?}");
            assert!(took > interval * 9 / 10 - SECOND * 2, "something else woke the agent: {}", node.log_tail());
        }
        node.assert_no_difference();
    });
}

#[test]
fn an_address_that_was_given_up_rests_as_long_as_was_asked_for() {
    in_virtual_time(|| {
        let rest = 300;
        // A /29 has five addresses for containers, so that there is no other one to give out.
        let flags = ["--service-prefix-v4", "29", "--address-rest-secs", "300"];
        let node = single_with(IPV4, &flags);
        node.segment("web", OverlayMode::Auto);
        let mut held: Vec<(IpAddr, Container)> = Vec::new();
        for _ in 0..5 {
            let container = Container::new();
            held.push((node.attach(&container, Wish::to("web")), container));
        }
        // One is detached, another one dies.
        for is_detached in [true, false] {
            let (address, container) = held.remove(0);
            if is_detached {
                node.request(container.detach());
            } else {
                drop(container);
                until("its end was noticed", || node.total("overlayd_attachments") == 4.0);
            }
            let begun = now();
            let next = Container::new();
            let mut refused_until = 0;
            let given = loop {
                let before = now() - begun;
                match node.ask(Wish::to("web").of(&next)) {
                    Response::Attached(attached) => break attached.ip,
                    Response::Err { message } => {
                        assert!(message.contains("1 rest "), "{message}");
                        refused_until = before;
                    }
                    other => panic!("{other:?}"),
                }
                assert!(before < rest + 10, "never given out again");
                wait_towards(begun + rest);
            };
            let took = now() - begun;
            println!(
                "MEASURED: an address that should rest {rest} s was refused up to {refused_until} s, given after {took} s"
            );
            assert_eq!(given, address);
            assert!(took >= rest - 1 && refused_until + 4 > rest, "{refused_until} {took}");
            held.push((given, next));
        }
        node.assert_no_difference();
    });
}
