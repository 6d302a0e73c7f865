//! What must hold whatever the kernel, or somebody in its place, answers: no panic, an end, and nothing that is silently left out.
//!
//! Owns these claims for the fuzz targets `netlink` and `uapi` and for the tests that replay their corpora. Nothing that ships contains
//! this file.
//!
//! Upholds I-05 and I-15 by trying to break them: a claim that does not hold is a panic.
//!
//! The first byte of a netlink case says who asked: `l` links, `a` addresses, `r` routes, `c` routes in a container, `o` the way out, `n` the
//! firewall, `w` WireGuard, `f` settings of links, `k` connections, `s` numbers of namespaces, `m` notifications. The rest is a datagram.

use std::{cell::Cell, collections::BTreeSet, net::IpAddr, time::UNIX_EPOCH};

use super::{
    addresses,
    answer::{Collector, HEADER, messages},
    conntrack, inside,
    links::{self, RTM_DELLINK, RTM_NEWLINK},
    monitor, nft, nsid,
    routes::{self, RTM_NEWROUTE},
    surroundings,
    uapi::{self, DeviceState, Dump, DumpPeer, PresharedKey, Request, SetRequest},
    wireguard,
};
use crate::{clock::UnixTime, ids::IfName, object::Mark};

/// The instance that the cases of the corpus were made by.
pub(super) const MARKED: &str = "/var/lib/overlayd";

/// Reads a datagram as the answer to a request.
pub(crate) fn netlink(bytes: &[u8]) {
    let Some((who, datagram)) = bytes.split_first() else { return };
    check_messages(datagram);
    // Also as the body of one message: a mutation seldom keeps a length right.
    let body = datagram.get(HEADER..).unwrap_or_default();
    match who {
        b'l' => {
            let found = collected(datagram, links::parse);
            let alone = [RTM_NEWLINK, RTM_DELLINK].into_iter().filter_map(|kind| links::parse(kind, body));
            found.iter().cloned().chain(alone).for_each(|link| check_link(&link));
        }
        b'a' => {
            let found = collected(datagram, addresses::parse);
            let alone = addresses::parse(addresses::RTM_NEWADDR, body);
            for address in found.iter().chain(&alone) {
                let _ = addresses::is_kernels_own(address);
                assert!(address.far != Some(address.net.addr()), "an address is its own far end");
            }
        }
        b'r' => {
            let found = collected(datagram, routes::parse);
            for route in found.iter().chain(&routes::parse(RTM_NEWROUTE, body)) {
                let _ = route.is_ours(Mark::of_instance(MARKED));
                check_network(route.destination);
            }
        }
        b'c' => {
            let found = collected(datagram, inside::parse_route);
            for (_, seen) in found.iter().chain(&inside::parse_route(RTM_NEWROUTE, body)) {
                check_network(seen.route.destination);
            }
        }
        b'o' => drop((collected(datagram, surroundings::parse_output), surroundings::parse_output(RTM_NEWROUTE, body))),
        b'n' => nft::fuzz::ruleset(datagram),
        b'w' => check_device(datagram, body),
        b'f' => drop(collected(datagram, inside::parse_filter)),
        b'k' => check_connections(datagram, body),
        b's' => drop(collected(datagram, nsid::parse_nsid)),
        b'm' => monitor::check_notifications(datagram),
        _ => {}
    }
}

fn check_messages(datagram: &[u8]) {
    let mut length = 0;
    for message in messages(datagram) {
        length += HEADER + message.body.len();
        assert!(length <= datagram.len(), "messages of {length} bytes in {}", datagram.len());
    }
}

/// What a dump of one datagram brings; a message that could not be read is told (I-05).
fn collected<T>(datagram: &[u8], parse: impl Fn(u16, &[u8]) -> Option<T>) -> Vec<T> {
    let sequence = messages(datagram).next().map_or(0, |first| first.sequence);
    let unread = Cell::new(0);
    let counting = |kind: u16, body: &[u8]| {
        let item = parse(kind, body);
        unread.set(unread.get() + usize::from(item.is_none()));
        item
    };
    let mut collector = Collector::new(sequence, counting);
    if let Err(fault) = collector.feed(datagram) {
        assert!(!fault.words().is_empty(), "a refusal without a word");
        return Vec::new();
    }
    let dump = collector.finish();
    assert!(unread.get() == 0 || dump.cut.is_some(), "{} messages were left out silently (I-05)", unread.get());
    dump.items
}

fn check_link(link: &links::FoundLink) {
    let mark = Mark::of_instance(MARKED);
    assert!(link.is_in_state_of(link), "a link differs from itself");
    assert!(!link.described().is_empty());
    let spec = link.spec(mark, None, None);
    assert!(spec.mtu == link.mtu && spec.up == link.up, "{link:?} became {spec:?}");
}

fn check_network(network: crate::ids::Cidr) {
    assert!(network.to_string().parse() == Ok(network), "{network} is no network");
}

fn check_device(datagram: &[u8], body: &[u8]) {
    let name: IfName = "wg0".parse().unwrap_or_else(|error| unreachable!("a name: {error}"));
    let dump = collected(datagram, |_, body| wireguard::parse(body));
    for part in [dump, wireguard::parse(body).into_iter().collect()] {
        let Some(reading) = wireguard::assemble(part) else { continue };
        let peers = reading.peers.len();
        let objects = reading.into_objects(&name);
        assert!(objects.len() == peers + 1, "{peers} peers became {} objects", objects.len());
    }
}

fn check_connections(datagram: &[u8], body: &[u8]) {
    let wanted = BTreeSet::from([IpAddr::from([10, 200, 0, 2]), IpAddr::from([0; 16])]);
    let _ = collected(datagram, |_, body| conntrack::concerned(body, &wanted));
    let _ = conntrack::concerned(body, &wanted);
}

/// Reads a text of the UAPI socket, as the one end and as the other.
pub(crate) fn uapi(text: &[u8]) {
    // The device cuts requests at the blank line.
    match uapi::decode_request(text) {
        Ok(Request::Set(request)) => check_request(request),
        Ok(Request::Get) => {}
        Err(errno) => assert!([libc::EINVAL, libc::EPROTO].contains(&errno), "errno {errno}"),
    }
    let Ok(text) = std::str::from_utf8(text) else { return };
    match uapi::decode_dump(text) {
        Ok(Ok(state)) => check_state(&state),
        Ok(Err(errno)) => assert!(errno != 0, "an error without a number"),
        Err(line) => {
            assert!(text.contains(&line) || line.starts_with("a line") || line.starts_with("no errno"), "{line}")
        }
    }
}

fn check_request(request: SetRequest) {
    let text = uapi::encode_set(&request);
    let Some(body) = text.strip_suffix('\n') else { unreachable!("a request ends in a blank line") };
    assert!(!body.contains("\n\n"), "a request ends before its end");
    assert!(uapi::decode_request(body.as_bytes()) == Ok(Request::Set(request)), "a request is read back as another");
}

/// Keys apart, which a reader does not keep, a device that was read is the device that is read again.
fn check_state(state: &DeviceState) {
    let peer = |peer: &uapi::PeerState| {
        let at = peer.last_handshake.unwrap_or(UnixTime(0)).0;
        Some(DumpPeer {
            public_key: peer.public_key,
            preshared_key: peer.preshared.then(|| PresharedKey::from_bytes([1; 32])),
            endpoint: peer.endpoint,
            last_handshake: Some(UNIX_EPOCH.checked_add(std::time::Duration::from_secs(at))?),
            rx: peer.rx,
            tx: peer.tx,
            keepalive: peer.keepalive,
            allowed_ips: peer.allowed_ips.clone(),
        })
    };
    // A time that no clock of this machine can show has no form to be written in.
    let Some(peers) = state.peers.iter().map(peer).collect::<Option<Vec<DumpPeer>>>() else { return };
    let dump = Dump { private_key: None, listen_port: state.listen_port, fwmark: state.fwmark, peers };
    let expected = DeviceState { public_key: None, ..state.clone() };
    assert!(
        uapi::decode_dump(&uapi::encode_dump(&dump)) == Ok(Ok(expected)),
        "a device is read back as another: {state:?}"
    );
    assert!(state.spec().listen_port == state.listen_port);
    for peer in &state.peers {
        assert!(peer.spec().allowed_ips == peer.allowed_ips && peer.stats().rx_bytes == peer.rx, "{peer:?}");
    }
}

/// What the kernel says and what a device says.
#[cfg(test)]
#[path = "fuzz/tests/seeds.rs"]
pub(crate) mod seeds;
