//! Another program's hand on the node and in a container.

use futures::TryStreamExt;
use ipnet::IpNet;
use overlayd::object::{InsideRoute, InsideSpec};
use rtnetlink::packet_route::{
    address::AddressAttribute,
    route::{RouteAddress, RouteAttribute},
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::lab::Node;

/// Takes away what `to` does not have of a container's side, and changes its link.
pub fn rewire(from: InsideSpec, to: InsideSpec) {
    assert!(to.addresses.is_subset(&from.addresses) && to.routes.is_subset(&from.routes), "a hand adds nothing");
    let node = Node::of_process(i32::try_from(from.netns.pid).unwrap()).unwrap();
    node.block_on(move || async move {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let index = nix::net::if_::if_nametoindex(from.name.as_str()).unwrap();
        for route in from.routes.difference(&to.routes) {
            remove_route(&handle, index, route).await;
        }
        for address in from.addresses.difference(&to.addresses) {
            remove_address(&handle, index, *address).await;
        }
        let mut change = LinkUnspec::new_with_index(index).mtu(to.mtu);
        if from.up != to.up {
            change = if to.up { change.up() } else { change.down() };
        }
        handle.link().change(change.build()).execute().await.unwrap();
    });
}

/// Makes a link of the calling thread's namespace the way to everywhere in IPv4.
pub async fn default_route(link: &str) {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    let index = nix::net::if_::if_nametoindex(link).unwrap();
    let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new().output_interface(index).build();
    handle.route().add(route).execute().await.unwrap();
}

async fn remove_address(handle: &Handle, index: u32, address: IpNet) {
    let mut found = handle.address().get().set_link_index_filter(index).execute();
    while let Some(message) = found.try_next().await.unwrap() {
        let has = |attribute: &AddressAttribute| *attribute == AddressAttribute::Address(address.addr());
        if message.header.prefix_len == address.prefix_len() && message.attributes.iter().any(has) {
            handle.address().del(message).execute().await.unwrap();
            return;
        }
    }
    panic!("there is no address {address}");
}

async fn remove_route(handle: &Handle, index: u32, route: &InsideRoute) {
    let destination = route.destination.net();
    let all = if route.destination.is_ipv4() {
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build()
    } else {
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()
    };
    let mut found = handle.route().get(all).execute();
    while let Some(message) = found.try_next().await.unwrap() {
        let leads = message.attributes.contains(&RouteAttribute::Oif(index));
        let target = RouteAttribute::Destination(RouteAddress::from(destination.addr()));
        let is_meant = destination.prefix_len() == 0 || message.attributes.contains(&target);
        if leads && is_meant && message.header.destination_prefix_length == destination.prefix_len() {
            handle.route().del(message).execute().await.unwrap();
            return;
        }
    }
    panic!("there is no route {route}");
}
