//! Kernel WireGuard with ten thousand peers: what is there is seen as it is, and a difference is found and repaired alone.
//!
//! `defguard_wireguard_rs` is the witness and the stranger: it reads the device by itself, and changes peers that are not its own.

use std::collections::BTreeMap;

use defguard_wireguard_rs::{
    WGApi, WireguardInterfaceApi, key::Key as TheirKey, net::IpAddrMask, peer::Peer as TheirPeer,
};
use netlink_packet_wireguard::WireguardPeerAttribute;
use overlayd::{
    desired::{Edit, PeerRequest, PeerScope},
    reconcile::{explain::Difference, step::Reason},
};

use super::*;
use crate::{
    lab::{isolated, skip},
    overlay::scale::{Bench, device, document_of, mark as own_mark, peers_in, replaces_allowed_ips},
    overlay_node::block_on,
};

const PEERS: u32 = 10_000;
/// One peer in so many is kept alive: each of these begins a handshake as soon as it is there.
const KEPT_ALIVE: u32 = 50;
/// A key that is nobody's: on kernels that cannot take one allowed IP from a peer it holds it for a moment.
const PARKING: [u8; 32] = *b"overlayd: parking of allowed IPs";

/// Who is meddled with, and how. The first and the last are those that a reader loses most easily.
const REMOVED: u32 = 0;
const ROBBED: u32 = PEERS - 1;
const ROBBER: u32 = 17;
const WIDENED: u32 = 4_000;
const NARROWED: u32 = 5_001;
const ROAMED: u32 = 6_000;
const KEPT_LONGER: u32 = 7_000;
const KEYED: u32 = 8_001;
const UNKNOWN: u32 = 20_000;

fn key(number: u32) -> WgPublicKey {
    let mut bytes = [0x3c; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    WgPublicKey::from_bytes(bytes)
}

fn theirs(number: u32) -> TheirKey {
    TheirKey::new(*key(number).as_bytes())
}

fn number_of(public_key: &[u8; 32]) -> u32 {
    u32::from_be_bytes(public_key[..4].try_into().unwrap())
}

/// Two networks of each family, of all lengths from a host's to a site's.
fn allowed_ips(number: u32) -> BTreeSet<Cidr> {
    let site = Ipv4Addr::from(0x6440_0000 + number * 8);
    [
        format!("{}/32", Ipv4Addr::from(0x0a64_0000 + number)),
        format!("{site}/29"),
        format!("fd00::{number:x}/128"),
        format!("fd01:{:x}:{:x}::/64", number >> 16, number & 0xffff),
    ]
    .map(|network| cidr(&network))
    .into()
}

fn endpoint_of(number: u32) -> String {
    match number % 2 {
        0 => format!("{}:51820", Ipv4Addr::from(0xc612_0000 + number)),
        _ => format!("[2001:db8::{number:x}]:51820"),
    }
}

fn keepalive_of(number: u32) -> u16 {
    if number.is_multiple_of(KEPT_ALIVE) { 25 } else { 0 }
}

fn peer(number: u32) -> Edit {
    Edit::EnsurePeer(PeerRequest {
        scope: PeerScope::Node,
        public_key: key(number),
        endpoint: Some(endpoint_of(number).parse().unwrap()),
        allowed_ips: allowed_ips(number),
        keepalive: keepalive_of(number),
        candidates: Vec::new(),
    })
}

/// A peer as both sides can say it: endpoint, keepalive, whether there is a preshared key, allowed IPs.
type Described = (Option<String>, u16, bool, BTreeSet<String>);

fn wanted() -> BTreeMap<u32, Described> {
    let describe = |number| {
        let allowed_ips = allowed_ips(number).iter().map(ToString::to_string).collect();
        (number, (Some(endpoint_of(number)), keepalive_of(number), false, allowed_ips))
    };
    (0..PEERS).map(describe).collect()
}

struct Witness(WGApi<defguard_wireguard_rs::Kernel>);

impl Witness {
    fn peers(&self) -> BTreeMap<u32, TheirPeer> {
        let read = self.0.read_interface_data().unwrap().peers.into_values();
        read.map(|peer| (number_of(&peer.public_key.as_array()), peer)).collect()
    }

    fn described(&self) -> BTreeMap<u32, Described> {
        let describe = |(number, peer): (u32, TheirPeer)| {
            let keyed = peer.preshared_key.is_some_and(|key| key.as_array() != [0; 32]);
            let allowed_ips = peer.allowed_ips.iter().map(ToString::to_string).collect();
            let endpoint = peer.endpoint.map(|endpoint| endpoint.to_string());
            (number, (endpoint, peer.persistent_keepalive_interval.unwrap_or(0), keyed, allowed_ips))
        };
        self.peers().into_iter().map(describe).collect()
    }

    /// Changes nine peers in eight ways.
    fn meddle(&self) {
        let peers = self.peers();
        let set = |number: u32, change: fn(&mut TheirPeer)| {
            let mut peer = peers.get(&number).cloned().unwrap_or_else(|| TheirPeer::new(theirs(number)));
            // Only what is changed is said again.
            (peer.preshared_key, peer.endpoint, peer.persistent_keepalive_interval) = (None, None, None);
            change(&mut peer);
            self.0.configure_peer(&peer).unwrap();
        };
        self.0.remove_peer(&theirs(REMOVED)).unwrap();
        let booty = peers[&ROBBED].allowed_ips[0].clone();
        let mut robber = peers[&ROBBER].clone();
        robber.allowed_ips.push(booty);
        self.0.configure_peer(&robber).unwrap();
        set(WIDENED, |peer| peer.allowed_ips.push(IpAddrMask::new([172, 16, 0, 0].into(), 12)));
        set(NARROWED, |peer| peer.allowed_ips.truncate(3));
        set(ROAMED, |peer| peer.endpoint = Some("203.0.113.7:7".parse().unwrap()));
        set(KEPT_LONGER, |peer| peer.persistent_keepalive_interval = Some(90));
        set(KEYED, |peer| peer.preshared_key = Some(TheirKey::new([1; 32])));
        set(UNKNOWN, |peer| peer.allowed_ips.push(IpAddrMask::new([172, 31, 0, 0].into(), 16)));
    }
}

/// What has to be named: peer, cause, fields. The robber has no step of its own, because the robbed one's takes the allowed IP back;
/// and an endpoint that the kernel has otherwise is taken for one that it learned.
fn named() -> BTreeSet<(u32, String)> {
    [
        (REMOVED, "missing"),
        (ROBBED, "changed: allowed_ips"),
        (WIDENED, "changed: allowed_ips"),
        (NARROWED, "changed: allowed_ips"),
        (KEPT_LONGER, "changed: keepalive"),
        (KEYED, "changed: preshared_key"),
        (UNKNOWN, "extra"),
    ]
    .map(|(number, why)| (number, why.to_owned()))
    .into()
}

fn number(key: &Key) -> u32 {
    match key {
        Key::Peer { public_key, .. } => number_of(public_key.as_bytes()),
        other => panic!("only peers differ: {other}"),
    }
}

fn name_of(difference: &Difference) -> (u32, String) {
    let why = match &difference.reason {
        Reason::Changed(fields) => {
            format!("changed: {}", fields.iter().map(|field| field.field).collect::<Vec<_>>().join(" "))
        }
        other => other.word().to_owned(),
    };
    (number(&difference.key), why)
}

/// The differences now.
async fn look_for_differences(bench: &mut Bench<LinuxKernel>) -> Vec<Difference> {
    let diff = bench.engine.inspect().await.unwrap();
    assert!(diff.withheld.is_empty() && diff.incomplete.is_empty(), "{:?} {:?}", diff.withheld, diff.incomplete);
    diff.differences
}

/// Keys in captured messages.
fn told(messages: &Receiver<Vec<u8>>) -> BTreeSet<[u8; 32]> {
    let peers = messages.try_iter().flat_map(|message| peers_in(&message));
    let keys = peers.filter_map(|peer| {
        assert!(!replaces_allowed_ips(&peer));
        peer.iter().find_map(|attribute| match attribute {
            WireguardPeerAttribute::PublicKey(key) => Some(*key),
            _ => None,
        })
    });
    keys.collect()
}

async fn need_wireguard(kernel: &mut LinuxKernel) {
    let link = LinkSpec::up(LinkKind::WireGuard, 1420);
    if let Err(error) = run(kernel, create(Key::Link(device()), Spec::Link(link))).await {
        skip(&format!("no kernel WireGuard: {error}"));
    }
}

#[test]
fn of_ten_thousand_peers_only_those_that_somebody_changed_are_named_and_repaired() {
    isolated(|| block_on(some_of_ten_thousand()));
}

async fn some_of_ten_thousand() {
    let (sender, messages) = channel();
    let mut options = LinuxOptions::new(own_mark(), DataPlaneChoice::Kernel, PathBuf::from("/run/wg"));
    options.capture = Some(sender);
    let mut kernel = LinuxKernel::open(options).unwrap();
    need_wireguard(&mut kernel).await;
    let mut bench = Bench::new(kernel, own_mark(), document_of((0..PEERS).map(peer)));
    let loaded = bench.full().await;
    assert_eq!(told(&messages).len(), PEERS as usize);
    assert_eq!(look_for_differences(&mut bench).await, []);
    let idle = bench.full().await;
    assert!(idle.actions.is_empty() && messages.try_recv().is_err());
    let witness = Witness(WGApi::new(device().to_string()).unwrap());
    let mut wanted = wanted();
    assert!(witness.described() == wanted, "the witness sees something else");

    witness.meddle();
    let found: BTreeSet<_> = look_for_differences(&mut bench).await.iter().map(name_of).collect();
    assert_eq!(found, named());
    let repaired = bench.full().await;
    let acted: Vec<u32> = repaired.actions.iter().map(|record| number(&record.key)).collect();
    let numbers: BTreeSet<u32> = named().iter().map(|(number, _)| *number).collect();
    assert_eq!(acted.iter().copied().collect::<BTreeSet<u32>>(), numbers);
    assert_eq!(acted.len(), numbers.len());
    assert!(repaired.actions.iter().all(|record| record.result == "ok"), "{:?}", repaired.actions);
    let told: BTreeSet<_> =
        told(&messages).into_iter().filter(|key| *key != PARKING).map(|key| number_of(&key)).collect();
    assert_eq!(told, numbers);
    assert_eq!(look_for_differences(&mut bench).await, []);
    wanted.get_mut(&ROAMED).unwrap().0 = Some("203.0.113.7:7".into());
    assert!(witness.described() == wanted, "the witness sees something else after the repair");
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    println!(
        "MEASURED: Linux {}: {PEERS} peers with {} allowed IPs loaded in {:?}; looked at in {:?} and planned in {:?}, nothing to do; \
         of 9 changed behind its back {} named and repaired in {:?}, 1 learned endpoint kept, 1 gave back what it had taken",
        release.trim(),
        wanted.values().map(|peer| peer.3.len()).sum::<usize>(),
        loaded.apply,
        idle.observe,
        idle.plan,
        numbers.len(),
        repaired.apply
    );
}
