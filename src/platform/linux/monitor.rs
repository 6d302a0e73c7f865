//! Hints from the kernel's notifications.
//!
//! Owns the multicast socket and the decision which notifications concern us. Leaves looking at what changed to the next round.
//!
//! Upholds I-13 (a hint carries no content), I-15 (notifications wait in the kernel's buffer, which is bounded; what was told and not
//! yet taken is a set of at most seven hints).
//!
//! Neither kernel WireGuard nor sysctls send notifications: a peer that somebody removed is found by the periodic full round.
//! Our own changes are known by the port id of the request socket. Kernels before 6.2 do not give it for links; such an echo costs one
//! round that finds nothing to do, and that round makes no further echo.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use netlink_packet_core::NlasIterator;
use netlink_packet_route::route::RouteHeader;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::unix::AsyncFd;

use super::{
    answer::{Message, messages, u32_at},
    links,
    routes::{RTA_OIF, RTMSG},
    socket::{receive, watch},
};
use crate::{
    object::{Mark, ROUTE_PROTOCOL, Subsystem},
    platform::Hint,
};

/// Holds about 30,000 route notifications: a routing daemon's restart (A9).
const RECEIVE_BUFFER: usize = 16 * 1024 * 1024;
const DATAGRAM_BYTES: usize = 64 * 1024;
/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE` (linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;

/// What the last round was about: by it notifications are told from noise.
#[derive(Debug, Default)]
pub(super) struct Scope {
    /// Indexes of our links.
    pub(super) indexes: BTreeSet<u32>,
    /// Names that the target uses.
    pub(super) names: BTreeSet<String>,
    /// Port id of the socket that our changes are made with.
    pub(super) own_port: u32,
}

/// A [`Scope`] that the backend writes and the monitor reads.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedScope(Arc<Mutex<Scope>>);

impl SharedScope {
    pub(super) fn lock(&self) -> MutexGuard<'_, Scope> {
        // Plain data that is replaced as a whole: a panic elsewhere cannot leave it half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A subscription to link, address and route notifications.
pub(super) struct Monitor {
    socket: AsyncFd<Socket>,
    scope: SharedScope,
    mark: Mark,
    buffer: Vec<u8>,
    pending: BTreeSet<Hint>,
}

impl Monitor {
    pub(super) fn open(mark: Mark, scope: SharedScope) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        // Without CAP_NET_ADMIN in the initial user namespace only the ordinary limit is allowed.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        socket.bind(&SocketAddr::new(0, GROUPS))?;
        Ok(Self { socket: watch(socket)?, scope, mark, buffer: vec![0; DATAGRAM_BYTES], pending: BTreeSet::new() })
    }

    /// The hints as a stream that never ends, except when the socket itself fails for good.
    pub(super) fn into_stream(self) -> BoxStream<'static, Hint> {
        stream::unfold(self, |mut monitor| async {
            let hint = monitor.next().await?;
            Some((hint, monitor))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Hint> {
        loop {
            if let Some(hint) = self.pending.pop_first() {
                return Some(hint);
            }
            match receive(&self.socket, &mut self.buffer).await {
                Ok(length) if length > self.buffer.len() => {
                    self.pending.insert(Hint::Overrun);
                }
                Ok(length) => {
                    let scope = self.scope.lock();
                    let hints =
                        messages(&self.buffer[..length]).filter_map(|message| classify(&message, &scope, self.mark));
                    self.pending.extend(hints.map(Hint::Changed));
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Some(Hint::Overrun),
                Err(error) => {
                    tracing::error!(%error, "no more notifications from the kernel; drift is found by full rounds only");
                    return None;
                }
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
        RTM_NEWLINK | RTM_DELLINK => {
            let link = links::parse(message.kind, body)?;
            let concerns =
                link.is_ours(mark) || scope.indexes.contains(&link.index) || scope.names.contains(&link.name);
            concerns.then_some(Subsystem::Link)
        }
        RTM_NEWADDR | RTM_DELADDR => scope.indexes.contains(&u32_at(body, 4)?).then_some(Subsystem::Address),
        RTM_NEWROUTE | RTM_DELROUTE => {
            // The kernel keeps the local table by itself: each address of ours makes an entry there.
            let in_main = *body.get(4)? == RouteHeader::RT_TABLE_MAIN;
            let concerns = in_main && (*body.get(5)? == ROUTE_PROTOCOL || leads_through(body, scope));
            concerns.then_some(Subsystem::Route)
        }
        _ => None,
    }
}

fn leads_through(route: &[u8], scope: &Scope) -> bool {
    if scope.indexes.is_empty() {
        return false;
    }
    NlasIterator::new(route.get(RTMSG..).unwrap_or_default())
        .flatten()
        .filter(|attribute| attribute.kind() == RTA_OIF)
        .any(|attribute| u32_at(attribute.value(), 0).is_some_and(|index| scope.indexes.contains(&index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(protocol: u8) -> Vec<u8> {
        let mut body = vec![0; RTMSG];
        body[4] = RouteHeader::RT_TABLE_MAIN;
        body[5] = protocol;
        body
    }

    fn hint(kind: u16, port: u32, body: &[u8]) -> Option<Subsystem> {
        let scope = Scope { indexes: [7].into(), names: ["zl-a".to_owned()].into(), own_port: 99 };
        let message = Message { kind, flags: 0, sequence: 0, port, body };
        classify(&message, &scope, Mark::of_instance("/a"))
    }

    #[test]
    fn foreign_routes_and_addresses_are_noise() {
        assert_eq!(hint(RTM_NEWROUTE, 0, &route(4)), None);
        assert_eq!(hint(RTM_NEWADDR, 0, &[2, 24, 0, 0, 3, 0, 0, 0]), None);
    }

    #[test]
    fn a_route_of_ours_and_an_address_on_our_link_wake() {
        assert_eq!(hint(RTM_DELROUTE, 0, &route(ROUTE_PROTOCOL)), Some(Subsystem::Route));
        assert_eq!(hint(RTM_DELADDR, 0, &[2, 24, 0, 0, 7, 0, 0, 0]), Some(Subsystem::Address));
    }

    #[test]
    fn our_own_changes_do_not_wake() {
        assert_eq!(hint(RTM_DELROUTE, 99, &route(ROUTE_PROTOCOL)), None);
    }
}
