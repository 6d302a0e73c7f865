//! A flood towards an address that moves from one peer to another and back: every packet of it arrives.
//!
//! The sender has so few packets on their way that no queue can overflow: what does not arrive was lost by a change of peers.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use overlayd::{
    ids::{Cidr, IfName, WgPublicKey},
    platform::linux::uapi::{AllowedIpChange, Request as UapiRequest, decode_request},
    wire::{PeerScope, Request},
};

use super::{
    TALK,
    scale::{peers_in, replaces_allowed_ips},
};
use crate::{
    lab::{isolated, release_is_at_least, skip},
    overheard::{Listening, Said},
    overlay_node::{IPV4, OverlayNode, PORT, add_peer, endpoint, stage, two_nodes, until},
    overlay_ping::first_reply,
};

/// The address that two nodes have.
const SHARED: [u8; 4] = [10, 200, 3, 1];
const FLOOD_PORT: u16 = 9000;
/// Packets on their way at once: fewer than WireGuard keeps for a peer that has no session (128), and than a TUN's queue holds (500).
const WINDOW: u64 = 64;
/// How long packets are waited for when none comes any more; an emulated processor may stand still for seconds.
const GRACE: Duration = Duration::from_secs(20);
/// Bytes of a receiver's buffer.
const BUFFER: usize = 4 << 20;
/// Moves of the address while nobody listens to the agent, and while somebody does.
const MOVES: usize = 200;
const OVERHEARD_MOVES: usize = 20;

/// What has arrived at each of the two nodes, and when to stop.
#[derive(Default)]
struct Tally {
    received: [AtomicU64; 2],
    is_over: AtomicBool,
    is_drained: AtomicBool,
}

impl Tally {
    fn at(&self, holder: usize) -> u64 {
        self.received[holder].load(Ordering::Relaxed)
    }

    fn all(&self) -> u64 {
        self.at(0) + self.at(1)
    }
}

/// What a flood came to.
#[derive(Debug)]
struct Outcome {
    sent: usize,
    received: [usize; 2],
    lost: usize,
    /// What the kernel refused to send, by what it said.
    refused: BTreeMap<String, u64>,
}

/// A sender and two receivers, each in its node.
struct Flood {
    tally: Arc<Tally>,
    sender: JoinHandle<(u64, BTreeMap<String, u64>)>,
    receivers: [JoinHandle<Vec<u64>>; 2],
}

impl Flood {
    fn start(from: &OverlayNode, holders: [&OverlayNode; 2]) -> Self {
        let tally = Arc::new(Tally::default());
        let to = SocketAddr::from((SHARED, FLOOD_PORT));
        let receivers = [0, 1].map(|holder| {
            let tally = Arc::clone(&tally);
            let socket = holders[holder].node.run(move || receiver(to));
            holders[holder].node.spawn(move || receive(&socket, &tally, holder))
        });
        let sender = from.node.spawn({
            let tally = Arc::clone(&tally);
            move || send(to, &tally)
        });
        Self { tally, sender, receivers }
    }

    /// Waits until a node receives packets that it had not received before; gives up when the flood has dried up.
    fn reaches(&self, holder: usize) {
        let before = self.tally.at(holder);
        until("a node is flooded", || self.tally.at(holder) > before || self.has_dried_up());
    }

    /// True when so much was lost that the sender had to stop.
    fn has_dried_up(&self) -> bool {
        self.tally.is_over.load(Ordering::Relaxed)
    }

    fn finish(self) -> Outcome {
        self.tally.is_over.store(true, Ordering::Relaxed);
        let (sent, refused) = self.sender.join().unwrap();
        self.tally.is_drained.store(true, Ordering::Relaxed);
        let [first, second] = self.receivers.map(|receiver| receiver.join().unwrap());
        let received = [first.len(), second.len()];
        let mut numbers = [first, second].concat();
        numbers.sort_unstable();
        numbers.dedup();
        let sent = usize::try_from(sent).unwrap();
        Outcome { sent, received, lost: sent - numbers.len(), refused }
    }
}

fn receiver(at: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(at).unwrap();
    // Without the privilege the ordinary limit has to do; it holds hundreds of small packets.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    socket
}

/// The numbers of the packets that arrived.
fn receive(socket: &UdpSocket, tally: &Tally, holder: usize) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut packet = [0; 64];
    while !tally.is_drained.load(Ordering::Relaxed) {
        // Nothing came for a while.
        let Ok(length) = socket.recv(&mut packet) else { continue };
        numbers.push(u64::from_be_bytes(packet[..length].try_into().unwrap()));
        tally.received[holder].fetch_add(1, Ordering::Relaxed);
    }
    numbers
}

/// How many packets have arrived, and since when no other has.
struct Arrivals {
    count: u64,
    since: Instant,
}

impl Arrivals {
    fn look(&mut self, tally: &Tally) {
        if tally.all() > self.count {
            (self.count, self.since) = (tally.all(), Instant::now());
        }
    }

    fn have_ceased(&self) -> bool {
        self.since.elapsed() > GRACE
    }
}

/// Sends numbered packets until it is told to stop, and waits for the last ones.
fn send(to: SocketAddr, tally: &Tally) -> (u64, BTreeMap<String, u64>) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let (mut sent, mut refused) = (0_u64, BTreeMap::<String, u64>::new());
    let mut arrivals = Arrivals { count: 0, since: Instant::now() };
    while !tally.is_over.load(Ordering::Relaxed) {
        arrivals.look(tally);
        if sent - arrivals.count >= WINDOW {
            // The window is full of lost packets: no other can be sent.
            if arrivals.have_ceased() {
                tally.is_over.store(true, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_micros(50));
            continue;
        }
        match socket.send_to(&sent.to_be_bytes(), to) {
            Ok(_) => sent += 1,
            Err(error) => {
                *refused.entry(error.to_string()).or_default() += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    arrivals.since = Instant::now();
    while arrivals.count < sent && !arrivals.have_ceased() {
        std::thread::sleep(Duration::from_millis(1));
        arrivals.look(tally);
    }
    (sent, refused)
}

/// Node a, and two peers of it that both have the shared address.
struct Scene {
    a: OverlayNode,
    holders: [OverlayNode; 2],
    keys: [WgPublicKey; 2],
    device: IfName,
}

const SLICES: [&str; 2] = [IPV4.slices[1], "10.200.2.0/24"];
const INSIDE: [[u8; 4]; 2] = [[10, 200, 1, 1], [10, 200, 2, 1]];

fn shared() -> Cidr {
    Cidr::host(IpAddr::from(SHARED))
}

fn endpoints() -> [String; 2] {
    [endpoint(2), format!("198.51.100.2:{PORT}")]
}

impl Scene {
    fn new() -> Self {
        let (a, b) = two_nodes();
        let mut c = OverlayNode::new("c");
        a.node.join("spur", &c.node);
        a.node.add_address("spur", [198, 51, 100, 1].into(), 24);
        c.node.add_address("spur", [198, 51, 100, 2].into(), 24);
        c.start();
        let device = a.setup(IPV4.cluster, Some(IPV4.slices[0]), PORT);
        let holders = [b, c];
        let of_a = [endpoint(1), format!("198.51.100.1:{PORT}")];
        for (at, holder) in holders.iter().enumerate() {
            let device = holder.setup(IPV4.cluster, Some(SLICES[at]), PORT);
            holder.request(add_peer(&a.public_key(), &of_a[at], IPV4.slices[0]));
            a.request(add_peer(&holder.public_key(), &endpoints()[at], SLICES[at]));
            holder.node.add_address(device.as_str(), SHARED.into(), 32);
            first_reply(&a.node, INSIDE[at].into(), TALK).expect("a session");
        }
        let keys = [holders[0].public_key(), holders[1].public_key()];
        a.request(allow(&keys[0], &shared()));
        Self { a, holders, keys, device }
    }

    /// Answers how many were made before the flood dried up.
    fn turns(&self, turns: Range<usize>, flood: &Flood) -> usize {
        let mut made = 0;
        for turn in turns.take_while(|_| !flood.has_dried_up()) {
            self.turn(turn, flood);
            made += 1;
        }
        made
    }

    /// Moves the address to a node, and changes other things about it and about other peers meanwhile.
    fn turn(&self, turn: usize, flood: &Flood) {
        let holder = (turn + 1) % 2;
        let key = &self.keys[holder];
        // By one edit or the other: the peer is given one more, or is described anew.
        if turn % 4 < 2 {
            self.a.request(allow(key, &shared()));
        } else {
            let all = format!("{},{}", SLICES[holder], shared());
            self.a.request(add_peer(key, &endpoints()[holder], &all));
        }
        flood.reaches(holder);
        let number = u8::try_from(turn % 100).unwrap();
        let beside: Cidr = format!("10.200.{}.0/24", 100 + number).parse().unwrap();
        self.a.request(allow(key, &beside));
        let unrelated = WgPublicKey::from_bytes([number + 1; 32]);
        self.a.request(add_peer(&unrelated, "192.0.2.99:9", &format!("10.200.{}.0/24", number + 4)));
        self.a.request(Request::RemoveAllowedIp {
            pubkey: key.to_string(),
            cidr: beside.to_string(),
            scope: PeerScope::Global,
        });
        self.a.request(Request::RemovePeer { pubkey: unrelated.to_string(), scope: PeerScope::Global });
        flood.reaches(holder);
    }
}

fn allow(key: &WgPublicKey, network: &Cidr) -> Request {
    Request::AddAllowedIp { pubkey: key.to_string(), cidr: network.to_string(), scope: PeerScope::Global }
}

/// Looks at each message; answers how many gave the shared address to a peer.
fn moves_in(said: &[Said]) -> usize {
    let moves = said.iter().map(|said| match said {
        Said::Netlink(message) => {
            let peers = peers_in(message);
            assert!(!peers.iter().any(replaces_allowed_ips), "{peers:?}");
            usize::from(format!("{peers:?}").contains(&format!("{:?}", IpAddr::from(SHARED))))
        }
        Said::Uapi(message) => match decode_request(message.trim_ascii_end()).unwrap() {
            UapiRequest::Set(set) => {
                assert!(!set.replace_peers && set.peers.iter().all(|peer| !peer.replace_allowed_ips), "{set:?}");
                let added = AllowedIpChange::Add(shared());
                usize::from(set.peers.iter().any(|peer| peer.allowed_ips.contains(&added)))
            }
            UapiRequest::Get => 0,
        },
    });
    moves.sum()
}

#[test]
fn no_packet_of_a_flood_is_lost_while_its_allowed_ip_moves_and_other_peers_come_and_go() {
    isolated(|| {
        if !release_is_at_least(5, 18) {
            skip("before Linux 5.18 an agent takes the addresses away that this test puts on its device");
        }
        let scene = Scene::new();
        let stage = stage(&scene.a, &scene.device);
        let flood = Flood::start(&scene.a, [&scene.holders[0], &scene.holders[1]]);
        flood.reaches(0);
        let begin = Instant::now();
        let alone = scene.turns(0..MOVES, &flood);
        let took = begin.elapsed();
        let listening = Listening::to(scene.a.agent_pid());
        let overheard = scene.turns(MOVES..MOVES + OVERHEARD_MOVES, &flood);
        let said = listening.finish();
        let outcome = flood.finish();
        let moves = moves_in(&said);
        println!(
            "MEASURED: {stage}: {alone} moves of an allowed IP in {took:?}, each with 4 edits of others, and {overheard} overheard: {outcome:?}; \
             of {} messages {moves} give the allowed IP to a peer, none replaces",
            said.len()
        );
        assert_eq!(outcome.lost, 0, "{outcome:?}");
        assert_eq!(outcome.received[0] + outcome.received[1], outcome.sent, "a packet arrived twice");
        assert!(outcome.refused.is_empty(), "{outcome:?}");
        assert!(outcome.received.iter().all(|count| *count > MOVES), "{outcome:?}");
        assert_eq!(moves, OVERHEARD_MOVES, "each move is one message, and none was missed");
        scene.a.assert_no_difference();
    });
}
