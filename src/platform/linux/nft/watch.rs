//! Hints from the notifications of nf_tables.
//!
//! Owns the subscription and the decision which changes concern us. Leaves looking to the next round.
//!
//! Upholds I-13 (a hint carries no content), I-15 (what was told and not yet taken is a set of three).
//!
//! Other programs write rules all the time; a notification counts when it is about our tables, or about the chains in which we have guests.

use std::{
    collections::BTreeSet,
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::unix::AsyncFd;

use super::{
    super::{
        answer::{Message, messages},
        socket::{receive, watch},
    },
    encode::{GENERIC, SUBSYSTEM},
    guest,
    read::text,
};
use crate::{object::Subsystem, platform::Hint};

/// Holds the notifications of a transaction with about 50,000 elements.
const RECEIVE_BUFFER: usize = 16 * 1024 * 1024;
const DATAGRAM_BYTES: usize = 64 * 1024;
/// `NFNLGRP_NFTABLES` (7) as a bit.
const GROUPS: u32 = 1 << 6;
const NEW_GENERATION: u16 = 15;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const DELETE_RULE: u16 = 8;

/// The port id of the socket that our changes are made with; it becomes another one when the socket had to be opened again.
#[derive(Debug, Clone, Default)]
pub(super) struct OwnPort(Arc<AtomicU32>);

impl OwnPort {
    pub(super) fn set(&self, port: u32) {
        self.0.store(port, Ordering::Relaxed);
    }
}

/// A subscription to changes of rulesets.
pub(in crate::platform::linux) struct Watch {
    socket: AsyncFd<Socket>,
    own: OwnPort,
    table: String,
    buffer: Vec<u8>,
    pending: BTreeSet<Hint>,
}

impl Watch {
    pub(super) fn open(own: OwnPort, table: String) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.set_non_blocking(true)?;
        // Without CAP_NET_ADMIN in the initial user namespace only the ordinary limit is allowed.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        socket.bind(&SocketAddr::new(0, GROUPS))?;
        Ok(Self { socket: watch(socket)?, own, table, buffer: vec![0; DATAGRAM_BYTES], pending: BTreeSet::new() })
    }

    /// The hints as a stream that never ends, except when the socket itself fails for good.
    pub(in crate::platform::linux) fn into_stream(self) -> BoxStream<'static, Hint> {
        stream::unfold(self, |mut watch| async {
            let hint = watch.next().await?;
            Some((hint, watch))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Hint> {
        loop {
            if let Some(hint) = self.pending.pop_first() {
                return Some(hint);
            }
            match receive(&self.socket, &mut self.buffer).await {
                Ok(length) if length > self.buffer.len() => drop(self.pending.insert(Hint::Overrun)),
                Ok(length) => {
                    let own = self.own.0.load(Ordering::Relaxed);
                    let told = messages(&self.buffer[..length]).filter(|message| message.port != own);
                    let parts = told.filter_map(|message| concerned(&message, &self.table));
                    self.pending.extend(parts.map(Hint::Changed));
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Some(Hint::Overrun),
                Err(error) => {
                    tracing::error!(%error, "no more notifications about firewall rules; drift is found by full rounds only");
                    return None;
                }
            }
        }
    }
}

/// The part that a notification concerns.
pub(super) fn concerned(message: &Message<'_>, table: &str) -> Option<Subsystem> {
    let (subsystem, kind) = (message.kind >> 8, message.kind & 0xff);
    if subsystem != SUBSYSTEM || kind == NEW_GENERATION {
        return None;
    }
    let attributes = message.body.get(GENERIC..)?;
    // The first attribute of each of these messages is the table's name.
    let of = text(attributes, 1)?;
    if of == table {
        return Some(Subsystem::Ruleset);
    }
    let chain = match kind {
        NEW_CHAIN | DELETE_CHAIN => text(attributes, 3)?,
        DELETE_RULE => text(attributes, 2)?,
        _ => return None,
    };
    (of == guest::TABLE && matches!(chain.as_str(), guest::FORWARD | guest::DOCKER_USER)).then_some(Subsystem::Guest)
}
