//! Real datagrams: asked of the kernel in a namespace of our own, and, where this machine's kernel has no such part, made by the encoders.

use std::process::Command;

use netlink_packet_core::{Emitable, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_route::{address::AddressMessage, link::LinkMessage, route::RouteMessage};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardPeer,
    WireguardPeerAttribute, WireguardTimeSpec,
};
use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use nix::sched::{CloneFlags, unshare};

use super::{super::socket::frame, *};

type Seed = (String, Vec<u8>);

/// A namespace with one of everything that we read.
const FURNITURE: &[&str] = &[
    "ip link set lo up",
    "ip link add zl-prod-0-b type bridge stp_state 1",
    "ip link set zl-prod-0-b group 1862270977",
    "ip link add veth-7-s type veth peer name eth0",
    "ip link set veth-7-s master zl-prod-0-b up",
    "ip link set zl-prod-0-b up",
    "ip tuntap add dev tun7 mode tun",
    "ip addr add 10.200.3.1/26 dev zl-prod-0-b",
    "ip addr add 10.9.0.1 peer 10.9.0.2/32 dev zl-prod-0-b",
    "ip addr add fd00:200::1/64 dev zl-prod-0-b nodad",
    "ip route add 10.200.0.0/16 dev zl-prod-0-b proto 79 metric 7",
    "ip route add unreachable 10.201.0.0/16 proto 79 metric 9",
    "ip route add 10.202.0.0/16 via 10.200.3.9 proto 79",
    "ip route add 10.203.0.0/16 proto 79 nexthop via 10.200.3.9 nexthop via 10.200.3.10",
    "ip -6 route add fd00:300::/48 dev zl-prod-0-b proto 79 metric 7",
    "nft add table inet overlayd_test { chain c { type filter hook forward priority 0; policy drop; ip saddr 10.0.0.0/8 counter accept comment \"x\"; jump d; }; chain d { }; }",
    "nft add table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; }; chain DOCKER-USER { }; }",
];

/// An answer of the kernel: one datagram a piece.
fn asked(protocol: isize, kind: u16, flags: u16, body: &impl Emitable) -> Vec<Vec<u8>> {
    let mut socket = Socket::new(protocol).unwrap();
    socket.bind_auto().unwrap();
    let mut request = frame(kind, NLM_F_REQUEST | flags, body);
    request[8] = 1;
    socket.send_to(&request, &SocketAddr::new(0, 0), 0).unwrap();
    let mut all = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full().unwrap();
        let last = messages(&datagram).any(|message| message.kind == 2 || message.kind == 3);
        all.push(datagram);
        if last || flags & NLM_F_DUMP == 0 {
            return all;
        }
    }
}

/// Each message as a datagram of its own, so that a case is small; and the first few of them together.
fn split(who: u8, name: &str, datagrams: &[Vec<u8>]) -> Vec<Seed> {
    let one = |message: super::super::answer::Message<'_>| {
        let mut bytes = u32::try_from(HEADER + message.body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(message.kind.to_ne_bytes());
        bytes.extend(message.flags.to_ne_bytes());
        bytes.extend(message.sequence.to_ne_bytes());
        bytes.extend(message.port.to_ne_bytes());
        bytes.extend(message.body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let all: Vec<Vec<u8>> = datagrams.iter().flat_map(|datagram| messages(datagram)).map(one).collect();
    let few = all.iter().rev().take(3).rev().flatten().copied().collect();
    let alone = all.iter().take(12).enumerate().map(|(number, bytes)| (format!("{name}-{number}"), bytes.clone()));
    alone.chain([(format!("{name}-few"), few)]).map(|(name, bytes)| (name, [&[who][..], &bytes].concat())).collect()
}

/// Our own firewall, and a WireGuard device.
pub(crate) fn made() -> Vec<Seed> {
    let mut all = nft::fuzz::seeds::all();
    all.push(("wireguard".into(), [b"w", &wireguard()[..]].concat()));
    all
}

/// A thread that is in a namespace of its own cannot leave it, so it is one that ends.
pub(crate) fn asked_of_the_kernel() -> Vec<Seed> {
    std::thread::spawn(from_the_kernel).join().unwrap()
}

fn from_the_kernel() -> Vec<Seed> {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for line in FURNITURE {
        let words: Vec<&str> = line.split_whitespace().collect();
        let done = match words.split_first().unwrap() {
            (&"nft", _) => Command::new("nft").arg(&line[4..]).status().unwrap(),
            (program, rest) => Command::new(program).args(rest).status().unwrap(),
        };
        assert!(done.success(), "{line}");
    }
    let mut all = Vec::new();
    let dump = NLM_F_DUMP;
    let links = asked(NETLINK_ROUTE, links::RTM_GETLINK, dump, &LinkMessage::default());
    all.extend(split(b'l', "link", &links));
    all.extend(split(b'm', "told-link", &links));
    let addresses = asked(NETLINK_ROUTE, addresses::RTM_GETADDR, dump, &AddressMessage::default());
    all.extend(split(b'a', "address", &addresses));
    all.extend(split(b'm', "told-address", &addresses));
    let routes = asked(NETLINK_ROUTE, routes::RTM_GETROUTE, dump, &RouteMessage::default());
    for (who, name) in [(b'r', "route"), (b'c', "inside-route"), (b'o', "output"), (b'm', "told-route")] {
        all.extend(split(who, name, &routes));
    }
    let netconf = asked(NETLINK_ROUTE, 82, dump, &nft::Body::new(2, &nft::Attributes::default()));
    all.extend(split(b'f', "filter", &netconf));
    all.extend(split(b'm', "told-filter", &netconf));
    let missing = asked(NETLINK_ROUTE, links::RTM_GETLINK, 0, &links::by_index(4711));
    all.extend(split(b'l', "no-such-link", &missing));
    for (name, kind) in [("tables", 0x0a01), ("chains", 0x0a04), ("rules", 0x0a07), ("generation", 0x0a10)] {
        let flags = if name == "generation" { 0 } else { dump };
        let answer = asked(NETLINK_NETFILTER, kind, flags, &nft::Body::new(0, &nft::Attributes::default()));
        all.extend(split(b'n', name, &answer));
    }
    all
}

struct Device(Vec<WireguardAttribute>);

impl Emitable for Device {
    fn buffer_len(&self) -> usize {
        4 + self.0.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.0.as_slice().emit(&mut buffer[4..]);
    }
}

fn wireguard() -> Vec<u8> {
    let allowed = WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(WireguardAddressFamily::Ipv4),
        WireguardAllowedIpAttr::IpAddr([10, 0, 0, 0].into()),
        WireguardAllowedIpAttr::Cidr(8),
    ]);
    let peer = WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey([1; 32]),
        WireguardPeerAttribute::PresharedKey([2; 32]),
        WireguardPeerAttribute::Endpoint("192.0.2.1:51820".parse().unwrap()),
        WireguardPeerAttribute::PersistentKeepalive(25),
        WireguardPeerAttribute::LastHandshake(WireguardTimeSpec { seconds: 1_700_000_000, nano_seconds: 5 }),
        WireguardPeerAttribute::RxBytes(5),
        WireguardPeerAttribute::TxBytes(6),
        WireguardPeerAttribute::AllowedIps(vec![allowed]),
    ]);
    let device = Device(vec![
        WireguardAttribute::IfIndex(7),
        WireguardAttribute::IfName("zl-prod-0-g".into()),
        WireguardAttribute::PublicKey([3; 32]),
        WireguardAttribute::ListenPort(51820),
        WireguardAttribute::Fwmark(0),
        WireguardAttribute::Peers(vec![peer]),
    ]);
    frame(30, 2, &device).to_vec()
}

pub(crate) fn uapi() -> Vec<Seed> {
    let key = |byte: &str| byte.repeat(32);
    let peer = format!("public_key={}\n", key("ab"));
    let lines = [
        "remove=true",
        "update_only=true",
        "replace_allowed_ips=true",
        "endpoint=192.0.2.1:51820",
        "endpoint=[2001:db8::1]:51820",
        "persistent_keepalive_interval=25",
        "allowed_ip=10.1.0.0/16",
        "allowed_ip=-fd00::1/64",
        "protocol_version=1",
        "endpoint=[fe80::1%7]:1",
    ];
    let mut all: Vec<Seed> = lines
        .iter()
        .enumerate()
        .map(|(number, line)| (format!("set-{number}"), format!("set=1\n{peer}{line}\n").into_bytes()))
        .collect();
    let secret = format!("preshared_key={}\n", key("05"));
    let texts = [
        ("get", "get=1\n".to_owned()),
        ("set-empty", "set=1\n".into()),
        ("set-device", format!("set=1\nprivate_key={}\nlisten_port=51820\nfwmark=7\nreplace_peers=true\n", key("07"))),
        ("set-no-key", format!("set=1\nprivate_key={}\n", key("00"))),
        ("set-two", format!("set=1\n{peer}{secret}{}\n{}", lines.join("\n"), peer.replace("ab", "cd"))),
        ("answer", "errno=0\n\n".into()),
        ("answer-refused", "errno=98\n\n".into()),
        ("dump-device", format!("private_key={}\nlisten_port=1\nfwmark=2\nerrno=0\n\n", key("07"))),
        (
            "dump",
            format!(
                "private_key={}\nlisten_port=51820\n{peer}{secret}protocol_version=1\nendpoint=192.0.2.1:7\n\
                 last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\ntx_bytes=20\nrx_bytes=10\n\
                 persistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\nallowed_ip=fd00::/8\nerrno=0\n\n",
                key("07")
            ),
        ),
        ("dump-cut", format!("listen_port=51820\n{peer}allowed_ip=10.0.0.0/8\n")),
        ("dump-strange", format!("{peer}something_new=1\nerrno=0\n\n")),
    ];
    all.extend(texts.map(|(name, text)| (name.to_owned(), text.into_bytes())));
    all
}
