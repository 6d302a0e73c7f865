//! Hints from the kernel's notifications.
//!
//! Owns the multicast socket and the decision which notifications concern us. Leaves looking at what changed to the next round.
//!
//! Upholds I-13 (a hint carries no content), I-15 (notifications wait in the kernel's buffer, which is bounded; what was told and not
//! yet taken is a set with one hint for each subsystem and one more).
//!
//! Kernel WireGuard sends no notifications: a peer that somebody removed is found by the glance at the peers, every 5 s. Of the settings, those of
//! forwarding and of the reverse path filter are told of; the others are found by the periodic full round.
//!
//! A link sends a notification for every change of its carrier, its counters' owner or its bridge's mind. What counts is whether anything
//! differs that we describe; so the last known state of each link of ours is kept here. Our own changes of addresses and routes are known by
//! the port id of the request socket; those of links only by when they come (see [`link_actions`](super::link_actions)).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use ipnet::IpNet;
use netlink_packet_core::NlasIterator;
use netlink_packet_route::route::RouteHeader;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{io::unix::AsyncFd, sync::Notify};

use super::{
    addresses,
    answer::{Message, messages, u32_at},
    links::{self, FoundLink, RTM_DELLINK, RTM_NEWLINK},
    routes::{RTA_OIF, RTMSG},
    socket::watch,
};
use crate::{
    object::{Mark, ROUTE_PROTOCOL, Subsystem},
    platform::Hint,
};

/// Holds about 30,000 route notifications: a routing daemon's restart (A9).
const RECEIVE_BUFFER: usize = 16 * 1024 * 1024;
const DATAGRAM_BYTES: usize = 64 * 1024;
/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE` (linux/rtnetlink.h), and as bits
/// `RTNLGRP_IPV4_NETCONF` (24) and `RTNLGRP_IPV6_NETCONF` (25).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400 | 1 << 23 | 1 << 24;
/// Read in one go; then others get their turn. Somebody who makes notifications faster than they are read cannot hold us here.
const DATAGRAMS_AT_ONCE: usize = 4096;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNETCONF: u16 = 80;
/// `struct netconfmsg` with its padding.
const NETCONFMSG: usize = 4;
const NETCONFA_IFINDEX: u16 = 1;
/// `RTPROT_KERNEL`: a route that the kernel made for an address; the address has its own notification.
const KERNEL_PROTOCOL: u8 = 2;
const AF_UNSPEC: u8 = 0;

/// The change of a link, or on one, that is under way. There is never more than one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Busy {
    Making(String),
    Changing(u32),
    /// An address is taken from it.
    Addressing(u32),
    Removing(u32),
    /// A setting of it is written.
    Setting(u32),
}

/// What the last round was about: by it notifications are told from noise.
#[derive(Debug, Default)]
struct Scope {
    /// Our links as they were seen, or left by our own change, last.
    known: BTreeMap<u32, FoundLink>,
    /// Names that the target uses.
    names: BTreeSet<String>,
    /// Port id of the socket that our changes are made with.
    own_port: u32,
    /// Addresses that we put on links of ours. IPv6 tells of a new address when it has made up its mind about it, long after the request and
    /// without its port.
    added: BTreeSet<(u32, IpNet)>,
    busy: Option<Busy>,
}

impl Scope {
    fn is_removing(&self, index: u32) -> bool {
        self.busy == Some(Busy::Removing(index))
    }

    fn concerns(&self, index: u32) -> bool {
        self.known.contains_key(&index) && !self.is_removing(index)
    }
}

/// What was read and not yet taken.
struct Inbox {
    scope: Scope,
    buffer: Vec<u8>,
    pending: BTreeSet<Hint>,
    /// The socket gives nothing any more.
    is_broken: bool,
}

/// A subscription to link, address and route notifications. The backend reads it to the end after its own changes, the stream at all other times.
#[derive(Clone)]
pub(super) struct Monitor(Arc<Shared>);

struct Shared {
    socket: AsyncFd<Socket>,
    mark: Mark,
    inbox: Mutex<Inbox>,
    /// Wakes the stream when somebody else has read a hint.
    told: Notify,
}

impl Monitor {
    pub(super) fn open(mark: Mark, own_port: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        // Without CAP_NET_ADMIN in the initial user namespace only the ordinary limit is allowed.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        socket.bind(&SocketAddr::new(0, GROUPS))?;
        let inbox = Inbox {
            scope: Scope { own_port, ..Scope::default() },
            buffer: vec![0; DATAGRAM_BYTES],
            pending: BTreeSet::new(),
            is_broken: false,
        };
        let socket = watch(socket)?;
        Ok(Self(Arc::new(Shared { socket, mark, inbox: Mutex::new(inbox), told: Notify::new() })))
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // Sets and a buffer that is written anew each time: a panic elsewhere cannot leave them half written.
        self.0.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Narrows what is listened for to what a look at all links has shown.
    pub(super) fn narrow(&self, ours: impl Iterator<Item = FoundLink>, names: BTreeSet<String>, own_port: u32) {
        let known: BTreeMap<u32, FoundLink> = ours.map(|link| (link.index, link)).collect();
        let scope = &mut self.inbox().scope;
        let mut added = std::mem::take(&mut scope.added);
        added.retain(|(index, _)| known.contains_key(index));
        *scope = Scope { known, names, own_port, added, busy: None };
    }

    /// Until [`end`](Self::end), what is told about this link is our own doing.
    pub(super) fn begin(&self, busy: Busy) {
        self.inbox().scope.busy = Some(busy);
    }

    pub(super) fn end(&self) {
        self.inbox().scope.busy = None;
    }

    pub(super) fn know(&self, link: &FoundLink) {
        self.inbox().scope.known.insert(link.index, link.clone());
    }

    pub(super) fn forget(&self, index: u32) {
        self.inbox().scope.known.remove(&index);
    }

    /// Said before an address is put on a link of ours: its coming will be no news.
    pub(super) fn expect_address(&self, index: u32, net: IpNet) {
        self.inbox().scope.added.insert((index, net));
    }

    /// Said before an address is taken away: who puts it there again is somebody else.
    pub(super) fn expect_no_address(&self, index: u32, net: IpNet) {
        self.inbox().scope.added.remove(&(index, net));
    }

    /// Reads what has arrived, without waiting. True when there may be more.
    pub(super) fn drain(&self) -> bool {
        let mut inbox = self.inbox();
        let before = inbox.pending.len();
        let more = (0..DATAGRAMS_AT_ONCE).all(|_| self.take_one(&mut inbox));
        if inbox.pending.len() != before || inbox.is_broken {
            self.0.told.notify_one();
        }
        more
    }

    /// Reads one datagram; false when there is none.
    fn take_one(&self, inbox: &mut Inbox) -> bool {
        let Inbox { scope, buffer, pending, is_broken } = inbox;
        let mut space = &mut buffer[..];
        match self.0.socket.get_ref().recv(&mut space, libc::MSG_DONTWAIT | libc::MSG_TRUNC) {
            Ok(length) if length > buffer.len() => {
                pending.insert(Hint::Overrun);
            }
            Ok(length) => {
                let told = messages(&buffer[..length]);
                let hints = told.filter_map(|message| classify(&message, scope, self.0.mark));
                pending.extend(hints.map(Hint::Changed));
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                pending.insert(Hint::Overrun);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(%error, "no more notifications from the kernel; drift is found by full rounds only");
                *is_broken = true;
                return false;
            }
        }
        true
    }

    /// The hints as a stream that never ends, except when the socket itself fails for good.
    pub(super) fn stream(&self) -> BoxStream<'static, Hint> {
        stream::unfold(self.clone(), |monitor| async {
            let hint = monitor.next().await?;
            Some((hint, monitor))
        })
        .boxed()
    }

    async fn next(&self) -> Option<Hint> {
        loop {
            {
                let mut inbox = self.inbox();
                if let Some(hint) = inbox.pending.pop_first() {
                    return Some(hint);
                }
                if inbox.is_broken {
                    return None;
                }
            }
            tokio::select! {
                ready = self.0.socket.readable() => {
                    let mut ready = ready.ok()?;
                    if !self.drain() {
                        ready.clear_ready();
                    }
                    tokio::task::coop::consume_budget().await;
                }
                () = self.0.told.notified() => {}
            }
        }
    }
}

/// The part that a notification concerns; `None` for noise and for our own changes.
fn classify(message: &Message<'_>, scope: &Scope, mark: Mark) -> Option<Subsystem> {
    if scope.own_port != 0 && message.port == scope.own_port {
        return None;
    }
    let body = message.body;
    match message.kind {
        RTM_NEWLINK | RTM_DELLINK => classify_link(message, scope, mark),
        RTM_NEWADDR | RTM_DELADDR => {
            let index = u32_at(body, 4)?;
            if !scope.concerns(index) || scope.busy == Some(Busy::Addressing(index)) {
                return None;
            }
            // A deletion has the same form.
            let address = addresses::parse(RTM_NEWADDR, body)?;
            let is_our_coming = message.kind == RTM_NEWADDR && scope.added.contains(&(index, address.net));
            (!is_our_coming && !addresses::is_kernels_own(&address)).then_some(Subsystem::Address)
        }
        RTM_NEWROUTE | RTM_DELROUTE => {
            // The kernel keeps the local table by itself: each address of ours makes an entry there.
            let in_main = *body.get(4)? == RouteHeader::RT_TABLE_MAIN;
            let protocol = *body.get(5)?;
            let concerns = in_main
                && protocol != KERNEL_PROTOCOL
                && match output(body) {
                    Some(index) if scope.is_removing(index) => false,
                    Some(index) => protocol == ROUTE_PROTOCOL || scope.concerns(index),
                    None => protocol == ROUTE_PROTOCOL,
                };
            concerns.then_some(Subsystem::Route)
        }
        RTM_NEWNETCONF => {
            let mut attributes = NlasIterator::new(body.get(NETCONFMSG..)?).flatten();
            let index = u32_at(attributes.find(|attribute| attribute.kind() == NETCONFA_IFINDEX)?.value(), 0)?;
            (scope.concerns(index) && scope.busy.is_none()).then_some(Subsystem::Sysctl)
        }
        _ => None,
    }
}

fn classify_link(message: &Message<'_>, scope: &Scope, mark: Mark) -> Option<Subsystem> {
    // Bridges tell about their ports once more, in a family of their own and without the group.
    if *message.body.first()? != AF_UNSPEC {
        return None;
    }
    let link = links::parse(message.kind, message.body)?;
    let is_own_doing = match &scope.busy {
        Some(Busy::Making(name)) => *name == link.name && link.is_ours(mark),
        Some(Busy::Changing(index) | Busy::Removing(index)) => *index == link.index,
        Some(Busy::Addressing(_) | Busy::Setting(_)) | None => false,
    };
    if is_own_doing {
        return None;
    }
    let concerns = match scope.known.get(&link.index) {
        Some(known) => message.kind == RTM_DELLINK || !known.is_in_state_of(&link),
        None => link.is_ours(mark) || scope.names.contains(&link.name),
    };
    concerns.then_some(Subsystem::Link)
}

/// The link that a route leads through.
fn output(route: &[u8]) -> Option<u32> {
    NlasIterator::new(route.get(RTMSG..)?)
        .flatten()
        .find(|attribute| attribute.kind() == RTA_OIF)
        .and_then(|attribute| u32_at(attribute.value(), 0))
}

/// Reads a datagram of notifications, whatever is under way.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn check_notifications(datagram: &[u8]) {
    let mark = Mark::of_instance("/var/lib/overlayd");
    let known = FoundLink { index: 7, name: "zl-a".into(), group: mark.link_group(), ..FoundLink::default() };
    let name = known.name.clone();
    let ongoing = [None, Some(Busy::Making(name.clone()))]
        .into_iter()
        .chain([Busy::Changing(7), Busy::Addressing(7), Busy::Removing(7), Busy::Setting(7)].map(Some));
    for busy in ongoing {
        let scope = Scope {
            known: [(7, known.clone())].into(),
            names: [name.clone()].into(),
            own_port: 99,
            added: BTreeSet::new(),
            busy,
        };
        for message in messages(datagram) {
            let part = classify(&message, &scope, mark);
            assert!(part.is_none() || message.port != scope.own_port, "our own change woke us");
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;
    use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

    use super::*;

    fn route(protocol: u8) -> Vec<u8> {
        let mut body = vec![0; RTMSG];
        body[4] = RouteHeader::RT_TABLE_MAIN;
        body[5] = protocol;
        body
    }

    fn scope(busy: Option<Busy>) -> Scope {
        let known = FoundLink {
            index: 7,
            name: "zl-a".into(),
            kind: "bridge".into(),
            mtu: 1420,
            up: true,
            group: Mark::of_instance("/a").link_group(),
            ..FoundLink::default()
        };
        Scope {
            known: [(7, known)].into(),
            names: ["zl-w".to_owned()].into(),
            own_port: 99,
            added: BTreeSet::new(),
            busy,
        }
    }

    fn hint_while(busy: Option<Busy>, kind: u16, port: u32, body: &[u8]) -> Option<Subsystem> {
        let message = Message { kind, flags: 0, sequence: 0, port, body };
        classify(&message, &scope(busy), Mark::of_instance("/a"))
    }

    fn hint(kind: u16, port: u32, body: &[u8]) -> Option<Subsystem> {
        hint_while(None, kind, port, body)
    }

    fn address(index: u8, text: &str) -> Vec<u8> {
        let address: std::net::IpAddr = text.parse().unwrap();
        let bytes = match address {
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let family = if bytes.len() == 4 { 2 } else { 10 };
        let length = u8::try_from(4 + bytes.len()).unwrap();
        [&[family, 24, 0, 0, index, 0, 0, 0, length, 0, 1, 0], &bytes[..]].concat()
    }

    /// A link as the kernel tells it, with the known one's name and group.
    fn link(index: u8, mtu: u32) -> Vec<u8> {
        let mut request = LinkMessage::default();
        request.header.index = u32::from(index);
        request.header.flags = LinkFlags::Up;
        request.attributes.extend([
            LinkAttribute::IfName("zl-a".into()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Group(Mark::of_instance("/a").link_group()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ]);
        let mut body = vec![0; request.buffer_len()];
        request.emit(&mut body);
        body
    }

    #[test]
    fn foreign_routes_and_addresses_are_noise() {
        assert_eq!(hint(RTM_NEWROUTE, 0, &route(4)), None);
        assert_eq!(hint(RTM_NEWADDR, 0, &address(3, "10.0.0.1")), None);
        // What the kernel makes by itself for a link of ours.
        assert_eq!(hint(RTM_NEWADDR, 0, &address(7, "fe80::1234")), None);
        assert_eq!(hint(RTM_NEWROUTE, 0, &route(KERNEL_PROTOCOL)), None);
    }

    #[test]
    fn a_route_of_ours_and_an_address_on_our_link_wake() {
        assert_eq!(hint(RTM_DELROUTE, 0, &route(ROUTE_PROTOCOL)), Some(Subsystem::Route));
        assert_eq!(hint(RTM_DELADDR, 0, &address(7, "10.0.0.1")), Some(Subsystem::Address));
    }

    #[test]
    fn a_link_wakes_when_it_differs_from_what_is_known_or_goes() {
        assert_eq!(hint(RTM_NEWLINK, 0, &link(7, 1420)), None);
        assert_eq!(hint(RTM_NEWLINK, 0, &link(7, 1300)), Some(Subsystem::Link));
        assert_eq!(hint(RTM_DELLINK, 0, &link(7, 1420)), Some(Subsystem::Link));
        assert_eq!(hint(RTM_NEWLINK, 0, &link(8, 1420)), Some(Subsystem::Link));
        let mut of_its_bridge = link(7, 1300);
        of_its_bridge[0] = 7;
        assert_eq!(hint(RTM_NEWLINK, 0, &of_its_bridge), None);
    }

    #[test]
    fn what_is_told_of_a_link_while_we_change_it_is_our_own_doing() {
        let making = Some(Busy::Making("zl-a".into()));
        assert_eq!(hint_while(making, RTM_NEWLINK, 0, &link(8, 1500)), None);
        assert_eq!(hint_while(Some(Busy::Changing(7)), RTM_NEWLINK, 0, &link(7, 1300)), None);
        assert_eq!(hint_while(Some(Busy::Changing(8)), RTM_NEWLINK, 0, &link(7, 1300)), Some(Subsystem::Link));
        let removing = || Some(Busy::Removing(7));
        assert_eq!(hint_while(removing(), RTM_DELLINK, 0, &link(7, 1300)), None);
        assert_eq!(hint_while(removing(), RTM_DELADDR, 0, &address(7, "10.0.0.1")), None);
        assert_eq!(hint_while(Some(Busy::Addressing(7)), RTM_DELADDR, 0, &address(7, "fd00::1")), None);
    }

    #[test]
    fn an_address_that_we_added_comes_without_a_hint_and_does_not_go_without_one() {
        let mut scope = scope(None);
        scope.added.insert((7, "fd00::1/24".parse().unwrap()));
        let body = address(7, "fd00::1");
        let told = |kind| {
            let message = Message { kind, flags: 0, sequence: 0, port: 0, body: &body };
            classify(&message, &scope, Mark::of_instance("/a"))
        };
        assert_eq!(told(RTM_NEWADDR), None);
        assert_eq!(told(RTM_DELADDR), Some(Subsystem::Address));
        assert_eq!(hint(RTM_NEWADDR, 0, &address(7, "fd00::2")), Some(Subsystem::Address));
    }

    #[test]
    fn a_setting_of_a_link_of_ours_wakes_unless_we_are_writing() {
        let setting = |index: u8| [2, 0, 0, 0, 8, 0, 1, 0, index, 0, 0, 0, 8, 0, 3, 0, 1, 0, 0, 0];
        assert_eq!(hint(RTM_NEWNETCONF, 0, &setting(7)), Some(Subsystem::Sysctl));
        assert_eq!(hint(RTM_NEWNETCONF, 0, &setting(8)), None);
        assert_eq!(hint_while(Some(Busy::Setting(7)), RTM_NEWNETCONF, 0, &setting(7)), None);
    }

    #[test]
    fn our_own_changes_do_not_wake() {
        assert_eq!(hint(RTM_DELROUTE, 99, &route(ROUTE_PROTOCOL)), None);
    }
}
