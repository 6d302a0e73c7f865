//! Nodes with segments, and the requests that put containers on them.
//!
//! Owns the wishes of an attach, looking at what a node holds of containers, and a pair of nodes that route each other's segments.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use overlayd::{
    object::Key,
    wire::{AttachHandle, OverlayMode, PeerScope, Request, Response},
};
use rtnetlink::RouteMessageBuilder;

use crate::{
    container::Container,
    lab::{Node, need_tun, skip_part},
    overlay_node::{Network, OverlayNode, PORT, Pair, block_on, pair},
    probe::addresses,
};

/// A cluster of both families.
pub const DUAL: Network = Network {
    cluster: "10.200.0.0/16,fd00:200::/48",
    slices: ["10.200.0.0/24,fd00:200:0:1::/64", "10.200.1.0/24,fd00:200:0:2::/64"],
    nodes: ["10.200.0.1", "10.200.1.1"],
};

/// What [`OUTSIDE`] is to a node: the way out of it.
pub const UPLINK: &str = "uplink";
pub const OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 1))];
pub const NODE_OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 2))];

/// What is asked of an attach.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    pub service: &'a str,
    pub network: Option<&'a str>,
    pub join_global: bool,
    pub ephemeral: bool,
}

impl<'a> Wish<'a> {
    pub fn to(service: &'a str) -> Self {
        Self { service, network: None, join_global: false, ephemeral: false }
    }

    pub fn fenced(self, network: &'a str) -> Self {
        Self { network: Some(network), ..self }
    }

    pub fn global(self) -> Self {
        Self { join_global: true, ..self }
    }

    pub fn ephemeral(self) -> Self {
        Self { ephemeral: true, ..self }
    }

    pub fn request(self, handle: AttachHandle) -> Request {
        Request::AttachContainer {
            handle,
            service: self.service.into(),
            join_global: self.join_global,
            ephemeral: self.ephemeral,
            isolation_network: self.network.map(str::to_owned),
            dns_server: None,
            dns_domain: None,
        }
    }

    pub fn of(self, container: &Container) -> Request {
        self.request(container.handle())
    }
}

impl OverlayNode {
    pub fn segment(&self, service: &str, mode: OverlayMode) -> Response {
        self.request(Request::SetupServiceOverlay { service: service.into(), mode })
    }

    pub fn attach(&self, container: &Container, wish: Wish<'_>) -> IpAddr {
        match self.request(wish.of(container)) {
            Response::Attached(attached) => attached.ip,
            other => panic!("{other:?}"),
        }
    }

    pub fn refused(&self, request: Request) -> String {
        let text = format!("{request:?}");
        match self.ask(request) {
            Response::Err { message } => message,
            other => panic!("{text} was granted: {other:?}"),
        }
    }

    /// The links of the node's namespace.
    pub fn link_names(&self) -> BTreeSet<String> {
        self.node.run(|| {
            let list = nix::net::if_::if_nameindex().unwrap();
            list.iter().map(|link| link.name().to_string_lossy().into_owned()).collect()
        })
    }

    /// Host ends of veth pairs of containers.
    pub fn ports(&self) -> BTreeSet<String> {
        self.link_names().into_iter().filter(|name| name.starts_with("veth-")).collect()
    }

    /// The addresses that the firewall tells apart.
    pub fn members(&self) -> BTreeSet<IpAddr> {
        let seen = self.observe().objects;
        let members = seen.keys().filter_map(|key| match key {
            Key::Member(address) => Some(*address),
            _ => None,
        });
        members.collect()
    }

    /// Gateway and network of the segment behind a bridge, one per family.
    pub fn gateways(&self, bridge: &str) -> BTreeSet<IpNet> {
        addresses(&self.node, bridge)
    }

    /// Routes networks to the other node over its peer.
    pub fn route_to(&self, other: &OverlayNode, networks: &BTreeSet<IpNet>) {
        for network in networks {
            self.request(Request::AddAllowedIp {
                pubkey: other.public_key().to_string(),
                cidr: network.trunc().to_string(),
                scope: PeerScope::Global,
            });
        }
    }
}

pub fn bridge_of(response: &Response) -> String {
    match response {
        Response::BridgeName { name } => name.clone(),
        Response::ServiceOverlay(service) => service.name.clone(),
        other => panic!("{other:?}"),
    }
}

/// One node with an overlay and no peers.
pub fn single(network: Network) -> OverlayNode {
    single_with(network, &[])
}

/// The same with more arguments for its agent.
pub fn single_with(network: Network, flags: &[&str]) -> OverlayNode {
    if std::env::var("OVERLAYD_TEST_DATA_PLANE").as_deref() != Ok("kernel") {
        need_tun();
    }
    // See `two_nodes`: Tokio's own sockets must not hold a namespace of a test.
    block_on(async {});
    let mut node = OverlayNode::new("a");
    node.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    node.start();
    node.setup(network.cluster, Some(network.slices[0]), PORT);
    node
}

/// Two nodes that route each other's segments; each has the same services.
pub fn pair_with(network: Network, services: &[(&str, OverlayMode)]) -> (Pair, BTreeMap<String, String>) {
    let pair = pair(network);
    let mut bridges = BTreeMap::new();
    for (id, node) in [(1, &pair.a), (2, &pair.b)] {
        node.request(Request::SetLocalNodeId { node_id: id });
        for (service, mode) in services {
            bridges.insert((*service).to_owned(), bridge_of(&node.segment(service, *mode)));
        }
    }
    for bridge in bridges.values().collect::<BTreeSet<_>>() {
        pair.a.route_to(&pair.b, &pair.b.gateways(bridge));
        pair.b.route_to(&pair.a, &pair.a.gateways(bridge));
    }
    (pair, bridges)
}

/// The world outside, reached through the node's default route. It knows a way back into the overlay, so that silence is the node's doing.
pub fn outside(node: &OverlayNode, overlay: &[&str]) -> Node {
    let outside = Node::new();
    node.node.join(UPLINK, &outside);
    for ((own, other), prefix) in NODE_OUTSIDE.into_iter().zip(OUTSIDE).zip([24, 64]) {
        node.node.add_address(UPLINK, own, prefix);
        outside.add_address(UPLINK, other, prefix);
        add_route(&node.node, None, other);
    }
    for network in overlay {
        let network: IpNet = network.parse().unwrap();
        add_route(&outside, Some(network), NODE_OUTSIDE[usize::from(network.addr().is_ipv6())]);
    }
    outside
}

/// `None` is the default route.
pub fn add_route(node: &Node, destination: Option<IpNet>, gateway: IpAddr) {
    node.block_on(move || async move {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let route = match gateway {
            IpAddr::V4(gateway) => {
                let mut route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway);
                if let Some(IpNet::V4(to)) = destination {
                    route = route.destination_prefix(to.addr(), to.prefix_len());
                }
                route.build()
            }
            IpAddr::V6(gateway) => {
                let mut route = RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway);
                if let Some(IpNet::V6(to)) = destination {
                    route = route.destination_prefix(to.addr(), to.prefix_len());
                }
                route.build()
            }
        };
        handle.route().add(route).execute().await.unwrap();
    });
}

/// The addresses of a container's link, without prefix lengths.
pub fn inner(container: &Container, link: &str) -> BTreeSet<IpAddr> {
    addresses(&container.node(), link).into_iter().map(|net| net.addr()).collect()
}

/// Runs `nft` in a node; `None`, and a line that says so, when there is no such program.
pub fn nft(node: &OverlayNode, arguments: &[&str]) -> Option<std::process::Output> {
    let mut command = std::process::Command::new("nft");
    command.args(arguments);
    match node.node.run(move || command.output()) {
        Ok(output) => Some(output),
        Err(error) => {
            skip_part(&format!("nft: {error}"));
            None
        }
    }
}
