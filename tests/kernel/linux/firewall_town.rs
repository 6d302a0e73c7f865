//! A small town behind the firewall: bridges, containers of three isolation networks and of none, another node, and the world.
//!
//! Owns making it and asking who reaches whom. The bridges and ports are made by the witness, not by the code under test.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use overlayd::object::{MemberSpec, NetworkId, RulesetSpec};
use rtnetlink::LinkMessageBuilder;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth};

use super::*;
use crate::lab::{Node, add_address, set_up_link};

/// Everybody listens here.
const PORT: u16 = 4242;
/// What arrives at all on this machine arrives sooner than this, even when it is busy.
const LONG: Duration = Duration::from_secs(8);
/// What is dropped is waited for this long.
const SHORT: Duration = Duration::from_millis(400);

pub(super) const WORLD_SIDE: &str = "198.51.100.2";
pub(super) const WORLD_SIDE6: &str = "2001:db8:f::2";

/// Somebody who sends and answers.
pub(super) struct Place {
    pub(super) title: &'static str,
    pub(super) node: Node,
    pub(super) addresses: [IpAddr; 2],
    /// Of a container: its port, its bridge, its network (0: the flat overlay).
    pub(super) container: Option<(IfName, &'static str, u32)>,
}

pub(super) struct Town {
    pub(super) containers: Vec<Place>,
    pub(super) remote: Place,
    pub(super) world: Place,
}

/// Name, bridge, network.
const CONTAINERS: [(&str, &str, u32); 11] = [
    ("red1", "zl-a-b", 1),
    ("red2", "zl-a-b", 1),
    ("red3", "zl-b-b", 1),
    ("green1", "zl-a-b", 2),
    ("green2", "zl-a-b", 2),
    ("green3", "zl-b-b", 2),
    ("blue1", "zl-a-b", 3),
    ("blue2", "zl-b-b", 3),
    ("blue3", "zl-b-b", 3),
    ("flat1", "zl-a-b", 0),
    ("flat2", "zl-b-b", 0),
];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn ruleset() -> RulesetSpec {
    let gateways = [("zl-a-b", ["10.200.95.1", "fd00:200:0:95::1"]), ("zl-b-b", ["10.200.96.1", "fd00:200:0:96::1"])];
    let node = ["10.200.0.1", "fd00:200::1"];
    let mut spec = RulesetSpec {
        intact: true,
        overlay: ["10.200.0.0/16".parse().unwrap(), "fd00:200::/48".parse().unwrap()].into(),
        local: ["10.200.95.0/24", "10.200.96.0/24", "fd00:200:0:95::/64", "fd00:200:0:96::/64"]
            .map(|cidr| cidr.parse().unwrap())
            .into(),
        node: node.map(ip).into(),
        gateways: BTreeSet::new(),
        links: ["zl-a-b", "zl-b-b", "zl-a-g"].map(name).into(),
    };
    for (link, own) in gateways {
        spec.gateways.extend(own.map(|address| (name(link), ip(address))));
    }
    spec
}

fn write_setting(path: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{path}"), value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

fn no_duplicate_detection() {
    write_setting("ipv6/conf/default/accept_dad", "0");
    write_setting("ipv6/conf/all/accept_dad", "0");
}

/// A pair of links; the far one is `there` in the node.
async fn plug(near: &str, master: Option<u32>, node: &Node, there: &str) {
    let namespace = node.run(|| File::open("/proc/thread-self/ns/net").unwrap());
    let mut peer = LinkMessage::default();
    peer.attributes.extend([LinkAttribute::IfName(there.into()), LinkAttribute::NetNsFd(namespace.as_raw_fd())]);
    let mut pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(near)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
    if let Some(master) = master {
        pair = pair.controller(master);
    }
    witness().link().add(pair.up().build()).execute().await.unwrap();
}

/// Gives the link in the node its addresses and the default route of both families through `gateways`.
fn settle(node: &Node, link: &'static str, addresses: [IpAddr; 2], prefixes: [u8; 2], gateways: Option<[IpAddr; 2]>) {
    node.block_on(move || async move {
        // The link is there already and has settings of its own.
        write_setting(&format!("ipv6/conf/{link}/accept_dad"), "0");
        no_duplicate_detection();
        set_up_link(link).await;
        for (address, prefix) in addresses.into_iter().zip(prefixes) {
            add_address(link, address, prefix).await;
        }
        for gateway in gateways.into_iter().flatten() {
            match gateway {
                IpAddr::V4(gateway) => {
                    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
                    witness().route().add(route).execute().await.unwrap();
                }
                IpAddr::V6(gateway) => {
                    let route = RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).build();
                    witness().route().add(route).execute().await.unwrap();
                }
            }
        }
    });
    node.spawn(listen);
}

/// Tells everybody who connects from which address it seems to come.
fn listen() {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let from = stream.peer_addr().unwrap().ip().to_canonical();
        let _ = stream.write_all(from.to_string().as_bytes());
    }
}

impl Town {
    /// Makes it in the namespace of the calling thread, which becomes the node.
    pub(super) async fn build() -> Self {
        no_duplicate_detection();
        set_up_link("lo").await;
        write_setting("ipv4/ip_forward", "1");
        write_setting("ipv6/conf/all/forwarding", "1");
        for address in ["10.200.0.1", "fd00:200::1"].map(ip) {
            add_address("lo", address, if address.is_ipv4() { 32 } else { 128 }).await;
        }
        for (bridge, addresses) in
            [("zl-a-b", ["10.200.95.1", "fd00:200:0:95::1"]), ("zl-b-b", ["10.200.96.1", "fd00:200:0:96::1"])]
        {
            witness().link().add(LinkBridge::new(bridge).up().build()).execute().await.unwrap();
            for (address, prefix) in addresses.into_iter().zip([24, 64]) {
                add_address(bridge, ip(address), prefix).await;
            }
        }
        let mut containers = Vec::new();
        for ((title, bridge, network), number) in CONTAINERS.into_iter().zip(10..) {
            containers.push(container(title, bridge, network, number).await);
        }
        let remote = outside("zl-a-g", "remote", ["10.200.1.1", "fd00:200:0:1::1"], ["10.200.1.2", "fd00:200:0:1::2"]);
        let world = outside("uplink", "world", ["198.51.100.1", "2001:db8:f::1"], [WORLD_SIDE, WORLD_SIDE6]);
        let town = Self { containers, remote: remote.await, world: world.await };
        thread::spawn(listen);
        town
    }

    pub(super) fn place(&self, title: &str) -> &Place {
        self.places().find(|place| place.title == title).unwrap()
    }

    pub(super) fn places(&self) -> impl Iterator<Item = &Place> {
        self.containers.iter().chain([&self.remote, &self.world])
    }

    /// One member for each address of each container.
    pub(super) fn members(&self) -> Vec<Action> {
        let mut all = Vec::new();
        for place in &self.containers {
            let Some((port, _, network)) = &place.container else { continue };
            let network = (*network > 0).then_some(NetworkId(*network));
            for address in place.addresses {
                let spec = Spec::Member(MemberSpec { ports: [port.clone()].into(), network });
                all.push(Action::Create { key: Key::Member(address), spec });
            }
        }
        all
    }

    /// Everybody's attempts at everybody that do not end as they should.
    pub(super) fn mismatches(&self) -> (usize, Vec<String>) {
        let (mut count, mut wrong) = (0, Vec::new());
        for from in self.places() {
            let mut attempts = Vec::new();
            for to in self.places().filter(|to| to.title != from.title) {
                attempts.extend(to.addresses.map(|address| (to.title, address, may_reach(from, to))));
            }
            for (title, address, gateway_of) in NODE_ADDRESSES {
                attempts.push((title, ip(address), may_reach_node(from, gateway_of)));
            }
            count += attempts.len() * 2;
            let title = from.title;
            wrong.extend(from.node.run(move || try_all(&attempts)).into_iter().map(|text| format!("{title} {text}")));
        }
        let from_node: Vec<_> =
            self.containers.iter().flat_map(|to| to.addresses.map(|at| (to.title, at, true))).collect();
        count += from_node.len() * 2;
        wrong.extend(try_all(&from_node).into_iter().map(|text| format!("node {text}")));
        (count, wrong)
    }
}

/// Addresses of the node; for gateways, of which bridge.
const NODE_ADDRESSES: [(&str, &str, &str); 6] = [
    ("node", "10.200.0.1", ""),
    ("node", "fd00:200::1", ""),
    ("gateway a", "10.200.95.1", "zl-a-b"),
    ("gateway a", "fd00:200:0:95::1", "zl-a-b"),
    ("gateway b", "10.200.96.1", "zl-b-b"),
    ("gateway b", "fd00:200:0:96::1", "zl-b-b"),
];

fn may_reach(from: &Place, to: &Place) -> bool {
    match (&from.container, &to.container) {
        (Some((_, _, own)), Some((_, _, other))) => own == other,
        (Some((_, _, network)), None) => to.title == "world" || *network == 0,
        (None, Some((_, _, network))) => from.title == "remote" && *network == 0,
        (None, None) => false,
    }
}

fn may_reach_node(from: &Place, gateway_of: &str) -> bool {
    match &from.container {
        Some((_, bridge, network)) => *network == 0 || gateway_of.is_empty() || gateway_of == *bridge,
        None => true,
    }
}

async fn container(title: &'static str, bridge: &'static str, network: u32, number: u8) -> Place {
    let node = Node::new();
    let port = format!("veth-{number}-s");
    plug(&port, Some(index_of(&witness(), bridge).await), &node, "eth0").await;
    let subnet = if bridge == "zl-a-b" { 95 } else { 96 };
    let addresses = [ip(&format!("10.200.{subnet}.{number}")), ip(&format!("fd00:200:0:{subnet}::{number}"))];
    let gateways = [ip(&format!("10.200.{subnet}.1")), ip(&format!("fd00:200:0:{subnet}::1"))];
    settle(&node, "eth0", addresses, [24, 64], Some(gateways));
    Place { title, node, addresses, container: Some((name(&port), bridge, network)) }
}

async fn outside(link: &str, title: &'static str, theirs: [&str; 2], ours: [&str; 2]) -> Place {
    let node = Node::new();
    plug(link, None, &node, "eth0").await;
    let addresses = theirs.map(ip);
    settle(&node, "eth0", addresses, [24, 64], Some(ours.map(ip)));
    for (address, prefix) in ours.into_iter().zip([24, 64]) {
        add_address(link, ip(address), prefix).await;
    }
    Place { title, node, addresses, container: None }
}

/// Tries TCP and ping to each, all at once; tells what did not end as said.
fn try_all(attempts: &[(&'static str, IpAddr, bool)]) -> Vec<String> {
    let tries: Vec<_> = attempts
        .iter()
        .flat_map(|(title, to, expected)| {
            let (title, to, expected) = (*title, *to, *expected);
            let limit = if expected { LONG } else { SHORT };
            let tcp = thread::spawn(move || (title, "tcp", to, expected, connects(to, limit)));
            [tcp, thread::spawn(move || (title, "ping", to, expected, answers_ping(to, limit)))]
        })
        .collect();
    let told = tries.into_iter().map(|thread| thread.join().unwrap());
    let wrong = told.filter(|(_, _, _, expected, reached)| expected != reached);
    wrong.map(|(title, how, to, expected, _)| format!("-> {title} ({to}) {how}: should be {expected}")).collect()
}

pub(super) fn connects(to: IpAddr, limit: Duration) -> bool {
    TcpStream::connect_timeout(&SocketAddr::new(to, PORT), limit).is_ok()
}

/// The address that a connection from here to `to` seems to come from.
pub(super) fn seen_as(to: IpAddr) -> IpAddr {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, PORT), LONG).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.parse().unwrap()
}

fn answers_ping(to: IpAddr, limit: Duration) -> bool {
    let (family, protocol, request, reply) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let socket: UdpSocket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap().into();
    socket.connect(SocketAddr::new(to, 0)).unwrap();
    let id = thread_number();
    let mut packet = [request, 0, 0, 0, id[0], id[1], 0, 1];
    if to.is_ipv4() {
        let sum = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
        let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    if socket.send(&packet).is_err() {
        return false;
    }
    let begin = Instant::now();
    let mut buffer = [0; 256];
    while let Some(rest) = limit.checked_sub(begin.elapsed()).filter(|rest| !rest.is_zero()) {
        socket.set_read_timeout(Some(rest)).unwrap();
        let Ok(length) = socket.recv(&mut buffer) else { return false };
        let skip = if to.is_ipv4() { usize::from(buffer[0] & 0xf) * 4 } else { 0 };
        if length >= skip + 8 && buffer[skip] == reply && buffer[skip + 4..skip + 6] == id {
            return true;
        }
    }
    false
}

/// Tells the requests of threads apart.
fn thread_number() -> [u8; 2] {
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_be_bytes()
}
