//! An agent that dies and comes back: nobody on the overlay may notice.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use overlayd::{
    client::Client,
    ids::WgPublicKey,
    wire::{AgentFrame, AgentRequest, PeerScope, Request, encode_agent},
};

use super::TALK;
use crate::{
    lab::{Node, isolated},
    overlay_node::{IPV4, OverlayNode, PORT, Pair, add_peer, block_on, pair, two_nodes, until},
    overlay_ping::{Pinger, first_reply},
};

fn numbered(number: u8) -> WgPublicKey {
    WgPublicKey::from_bytes([number; 32])
}

/// Sends a resync and does not wait for its answer.
fn ask_for_a_resync(node: &OverlayNode) -> std::os::unix::net::UnixStream {
    use std::io::Write;
    let mut stream = std::os::unix::net::UnixStream::connect(node.socket()).unwrap();
    let request = AgentRequest::Resync;
    stream.write_all(&encode_agent(&AgentFrame::Request { id: 1, request }).unwrap()).unwrap();
    stream
}

/// Waits for a text in what the agent logged after `from`.
fn logged(node: &OverlayNode, from: usize, text: &str) {
    until(&format!("the agent logs {text:?}"), || node.log().get(from..).is_some_and(|log| log.contains(text)));
}

/// Kills the agent at one of ten moments.
fn kill_at(moment: usize, a: &mut OverlayNode) -> &'static str {
    let from = a.log().len();
    let what = match moment {
        0 => "while nothing happens",
        1 => {
            a.kill();
            a.spawn();
            "as soon as its process exists"
        }
        2 => {
            a.kill();
            a.spawn();
            logged(a, from, "started");
            "in the middle of its first round"
        }
        3 => {
            a.kill();
            a.spawn();
            logged(a, from, "started");
            std::thread::sleep(Duration::from_millis(3));
            "a little later in its first round"
        }
        4 => {
            a.request(add_peer(&numbered(4), "192.0.2.104:51820", "10.200.104.0/24"));
            "right after an AddPeer was acknowledged"
        }
        5 => {
            a.request(Request::RemovePeer { pubkey: numbered(4).to_string(), scope: PeerScope::Global });
            "right after a RemovePeer was acknowledged"
        }
        6 => {
            let stream = ask_for_a_resync(a);
            a.kill();
            drop(stream);
            "as soon as a resync is asked for"
        }
        7 => {
            let stream = ask_for_a_resync(a);
            std::thread::sleep(Duration::from_millis(2));
            a.kill();
            drop(stream);
            "during a resync"
        }
        8 => {
            let request = Request::AddAllowedIp {
                pubkey: numbered(4).to_string(),
                cidr: "10.200.105.0/24".into(),
                scope: PeerScope::Global,
            };
            // The peer is not there: a refusal must leave no trace either.
            assert!(matches!(a.ask(request), overlayd::wire::Response::Err { .. }));
            "right after a refusal"
        }
        _ => {
            a.signal(nix::sys::signal::Signal::SIGHUP);
            "right after a SIGHUP"
        }
    };
    a.kill();
    what
}

/// How often the agent dies, in turn at each of the ten moments.
const KILLS: usize = 50;
/// WireGuard itself makes a new session after two minutes (white paper section 6.1, `REKEY_AFTER_TIME`), and one that comes sooner was made
/// because somebody reset the peer. A handshake's date is in whole seconds.
const REKEY_SECS: u64 = 119;

#[test]
fn no_ping_is_lost_while_an_agent_is_killed_and_started_fifty_times() {
    isolated(|| {
        let Pair { mut a, b, device, network } = pair(IPV4);
        let far = network.nodes[1].parse().unwrap();
        first_reply(&a.node, far, TALK).unwrap();
        let key = b.public_key();
        let handshake = |a: &OverlayNode| a.peer(&key).unwrap().1.last_handshake.expect("a handshake");
        let mut handshakes = vec![handshake(&a)];
        let stage = crate::overlay_node::stage(&a, &device);
        let begin = Instant::now();
        let mut ready: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
        let mut lost = Vec::new();
        let (mut sent, mut longest) = (0, Duration::ZERO);
        for turn in 0..KILLS {
            let pinger = Pinger::start(&a.node, far, Duration::from_millis(10));
            std::thread::sleep(Duration::from_millis(100));
            let what = kill_at(turn % 10, &mut a);
            std::thread::sleep(Duration::from_millis(100));
            ready.entry(what).or_default().push(a.start());
            assert_eq!(a.actions(), 0.0, "killed {what}: {:?}\n{}", a.metric("overlayd_actions_total"), a.log_tail());
            a.assert_no_difference();
            std::thread::sleep(Duration::from_millis(100));
            let pings = pinger.finish();
            sent += pings.sent;
            longest = longest.max(pings.longest);
            if pings.lost > 0 {
                lost.push(format!("killed {what}: {pings:?}"));
            }
            handshakes.push(handshake(&a));
        }
        let took = begin.elapsed();
        handshakes.dedup();
        println!(
            "MEASURED: {stage}: {KILLS} kills in {took:?}, {sent} pings sent, lost {lost:?}, longest reply {longest:?}, handshakes {handshakes:?}"
        );
        for (what, times) in ready {
            println!("MEASURED: killed {what}: ready after {times:?}");
        }
        assert!(lost.is_empty(), "{lost:?}");
        assert!(handshakes.windows(2).all(|pair| pair[1].0 >= pair[0].0 + REKEY_SECS), "{handshakes:?}");
    });
}

#[test]
fn an_edit_that_was_not_acknowledged_when_the_agent_died_is_finished_or_was_never_made() {
    isolated(|| {
        let Pair { mut a, b, network, .. } = pair(IPV4);
        let far = network.nodes[1].parse().unwrap();
        first_reply(&a.node, far, TALK).unwrap();
        let pinger = Pinger::start(&a.node, far, Duration::from_millis(10));
        let mut outcomes = Vec::new();
        for (turn, micros) in [0, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000].into_iter().enumerate() {
            let key = numbered(u8::try_from(turn).unwrap() + 10);
            let socket: PathBuf = a.socket();
            let request = add_peer(&key, "192.0.2.110:51820", &format!("10.200.{}.0/24", turn + 10));
            let asked = std::thread::spawn(move || {
                block_on(async { Client::connect(&socket).await.ok()?.request(request).await.ok() })
            });
            std::thread::sleep(Duration::from_micros(micros));
            a.kill();
            let acknowledged = asked.join().unwrap().is_some();
            a.start();
            let present = a.peer(&key).is_some();
            assert!(present || !acknowledged, "acknowledged and lost");
            assert!(a.actions() <= 1.0, "{:?}", a.metric("overlayd_actions_total"));
            a.assert_no_difference();
            outcomes.push((acknowledged, present, a.actions()));
        }
        let pings = pinger.finish();
        println!(
            "MEASURED: AddPeer cut off by SIGKILL, (acknowledged, present, changes at restart): {outcomes:?}; {pings:?}"
        );
        assert_eq!(pings.lost, 0);
        drop(b);
    });
}

#[test]
fn a_machine_that_lost_all_kernel_state_comes_up_without_any_client() {
    isolated(|| {
        let Pair { mut a, b, device, network } = pair(IPV4);
        let far = network.nodes[1].parse().unwrap();
        first_reply(&a.node, far, TALK).unwrap();
        a.kill();
        // The next boot: the sockets of the former life lie about, the namespace is new.
        drop(a);
        until("the wire is gone", || b.node.block_on(|| async { nix::net::if_::if_nametoindex("wire").is_err() }));
        let mut a = OverlayNode::within(Node::new(), "a", "a");
        a.node.wire(&b.node, [192, 0, 2, 1].into(), [192, 0, 2, 2].into(), 24);
        let ready = a.start();
        let first = first_reply(&a.node, far, TALK).unwrap();
        let stage = crate::overlay_node::stage(&a, &device);
        println!(
            "MEASURED: {stage}: after a cold boot ready in {ready:?}, first ping {first:?} later; {:?}",
            a.metric("overlayd_actions_total")
        );
        a.assert_no_difference();
        assert_eq!(a.total("overlayd_drift_total"), 0.0);
    });
}

#[test]
fn an_overlay_without_a_slice_comes_up_and_says_what_it_lacks() {
    isolated(|| {
        let (a, b) = two_nodes();
        let device = a.setup(IPV4.cluster, None, PORT);
        assert_eq!(a.status().node_ip, None);
        let (lines, status) = a.diff();
        assert_eq!(status, 0, "{lines:?}");
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("no slice"), "{lines:?}");
        let before = a.dump(&[a.mark()]);
        let actions = a.actions();
        a.setup(IPV4.cluster, Some(IPV4.slices[0]), PORT);
        let after = a.dump(&[a.mark()]);
        let gone: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
        let new: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
        println!(
            "MEASURED: {}: a slice given later adds {new:?}, removes {gone:?}",
            crate::overlay_node::stage(&a, &device)
        );
        assert_eq!(a.actions() - actions, 1.0, "{:?}", a.metric("overlayd_actions_total"));
        assert!(gone.is_empty());
        // The address, and the entry of the local table that the kernel makes of it.
        assert!(new.iter().all(|line| line.contains("10.200.0.1")) && !new.is_empty(), "{new:?}");
        a.assert_no_difference();
        drop(b);
    });
}

#[test]
fn a_teardown_leaves_the_node_as_it_was_before_the_setup() {
    isolated(|| {
        let (a, b) = two_nodes();
        let before = a.dump(&[a.mark()]);
        let device = a.setup(IPV4.cluster, Some(IPV4.slices[0]), PORT);
        b.setup(IPV4.cluster, Some(IPV4.slices[1]), PORT);
        a.request(add_peer(&b.public_key(), "192.0.2.2:51820", IPV4.slices[1]));
        b.request(add_peer(&a.public_key(), "192.0.2.1:51820", IPV4.slices[0]));
        first_reply(&a.node, IPV4.nodes[1].parse().unwrap(), TALK).unwrap();
        let stage = crate::overlay_node::stage(&a, &device);
        let process = a.device_process(&device);
        let during = a.dump(&[a.mark()]).len();
        a.request(Request::TeardownGlobalOverlay);
        assert_eq!(a.dump(&[a.mark()]), before);
        if let Some(pid) = process {
            until("the device process ends", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
        }
        a.assert_no_difference();
        println!(
            "MEASURED: {stage}: dump of {} lines, {during} with the overlay, the same {} after the teardown",
            before.len(),
            before.len()
        );
    });
}

#[test]
fn an_agent_killed_while_it_builds_the_overlay_finishes_it_at_the_next_start() {
    isolated(|| {
        let (mut a, b) = two_nodes();
        let mut outcomes = Vec::new();
        let bare = a.dump(&[a.mark()]);
        for micros in [300, 1000, 2000, 3000, 4000, 6000, 9000, 15_000, 25_000, 40_000, 60_000, 90_000, 150_000] {
            let socket = a.socket();
            let request = crate::overlay_node::setup_request(IPV4.cluster, Some(IPV4.slices[0]), PORT);
            let asked = std::thread::spawn(move || {
                block_on(async { Client::connect(&socket).await.ok()?.request(request).await.ok() })
            });
            std::thread::sleep(Duration::from_micros(micros));
            a.kill();
            let acknowledged = asked.join().unwrap().is_some();
            let left = a.diff().0.len();
            a.start();
            until("nothing differs", || a.diff() == (vec![], 0));
            assert_eq!(a.total("overlayd_drift_total"), 0.0);
            let is_there = a.status().interface.is_some();
            assert!(is_there || !acknowledged, "acknowledged and lost");
            outcomes.push((micros, acknowledged, left, a.actions() + 0.0));
            a.request(Request::TeardownGlobalOverlay);
            assert_eq!(a.dump(&[a.mark()]), bare);
        }
        println!(
            "MEASURED: SIGKILL so many µs into a setup, (acknowledged, lines of diff left, actions of the next start): {outcomes:?}"
        );
        drop(b);
    });
}
