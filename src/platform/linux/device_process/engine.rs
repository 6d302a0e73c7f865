//! Carries out requests on gotatun.

use std::{
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, SystemTime},
};

use futures::{StreamExt, stream};
use gotatun::{
    device::{self, Device, DeviceTransports},
    x25519::{PublicKey, StaticSecret},
};
use ipnetwork::IpNetwork;

use super::{
    attach::Tun,
    ledger::{Ledger, Modification, Peer, Step},
    sockets::Sockets,
};
use crate::{
    ids::{Cidr, WgPublicKey},
    platform::linux::uapi::{Dump, DumpPeer, PeerChange, SecretChange, SetRequest},
    secret::PrivateKey,
};

pub(super) type WireGuard = Device<(Sockets, Tun, Tun)>;

/// New peers that are added before packets get their turn, at 0.1 ms each. A change or a removal gets a turn of its own: gotatun walks all
/// allowed IPs of the device for each, which is 5 to 20 ms among ten thousand peers.
const NEW_PEERS_PER_TURN: usize = 32;
/// From this many endpoints on it is cheaper to ask gotatun for all of them than to set each again.
const ENDPOINTS_WORTH_ASKING: usize = 8;
/// How long one handshake is waited for before the next peer gets its turn, and how many are waited for at once. gotatun repeats an
/// unanswered initiation by itself.
const HANDSHAKE_WAIT: Duration = Duration::from_millis(500);
const HANDSHAKES_AT_ONCE: usize = 64;

/// The device and what it was told.
pub(super) struct Engine {
    device: Rc<WireGuard>,
    sockets: Sockets,
    ledger: Ledger,
    private_key: Option<PrivateKey>,
    /// Bound UDP port; 0 while none is.
    port: u16,
    fwmark: u32,
}

impl Engine {
    /// A device without key, port and peers on this TUN.
    ///
    /// # Errors
    /// What gotatun says.
    pub(super) async fn new(tun: Tun) -> Result<Self, device::Error> {
        let sockets = Sockets::default();
        let device = device::build().with_udp(sockets.clone()).with_ip(tun).build().await?;
        Ok(Self { device: Rc::new(device), sockets, ledger: Ledger::default(), private_key: None, port: 0, fwmark: 0 })
    }

    pub(super) fn device(&self) -> Rc<WireGuard> {
        Rc::clone(&self.device)
    }

    /// Carries out a request and answers the peers to shake hands with.
    ///
    /// # Errors
    /// The errno to answer; nothing was changed. `ENOKEY`: peers before a private key; `EOPNOTSUPP`: taking the private key away;
    /// or what binding the port gave.
    pub(super) async fn set(&mut self, mut request: SetRequest) -> Result<Vec<WgPublicKey>, i32> {
        let new_key = match request.device.private_key.take() {
            Some(SecretChange::Set(key)) => Some(key),
            Some(SecretChange::Clear) if self.private_key.is_some() => return Err(libc::EOPNOTSUPP),
            Some(SecretChange::Clear) | None => None,
        };
        let makes_peers = |peer: &PeerChange| !peer.remove && !peer.update_only;
        if new_key.is_none() && self.private_key.is_none() && request.peers.iter().any(makes_peers) {
            return Err(libc::ENOKEY);
        }
        let rotated = new_key.is_some() && self.private_key.is_some() && new_key != self.private_key;
        self.set_device(new_key, request.device.listen_port, request.device.fwmark).await?;
        let own = self.private_key.as_ref().map(PrivateKey::public_key);
        // A device is no peer of itself; the kernel drops such a peer without a word.
        request.peers.retain(|peer| Some(peer.public_key) != own);
        let mut shake = self.set_peers(&request, own).await?;
        if rotated {
            // The sessions of the old key are gone, and the far sides do not know it.
            shake = self.ledger.keys().collect();
        }
        Ok(shake)
    }

    /// The device as it is, keys included.
    pub(super) async fn dump(&mut self) -> Dump {
        let now = SystemTime::now();
        let stats = self.device.peers().await;
        let peer = |stats: device::configure::PeerStats| {
            let public_key = WgPublicKey::from_bytes(stats.peer.public_key.to_bytes());
            let age = stats.stats.last_handshake;
            let last_handshake = age.and_then(|age| self.ledger.handshake_time(&public_key, age, now));
            let known = self.ledger.get(&public_key)?;
            Some(DumpPeer {
                public_key,
                preshared_key: known.preshared_key.clone(),
                endpoint: stats.peer.endpoint,
                last_handshake,
                rx: stats.stats.rx_bytes as u64,
                tx: stats.stats.tx_bytes as u64,
                keepalive: known.keepalive,
                allowed_ips: known.allowed_ips.clone(),
            })
        };
        let mut peers: Vec<DumpPeer> = stats.into_iter().filter_map(peer).collect();
        peers.sort_by_key(|peer| peer.public_key);
        Dump { private_key: self.private_key.clone(), listen_port: self.port, fwmark: self.fwmark, peers }
    }

    async fn set_device(&mut self, key: Option<PrivateKey>, port: Option<u16>, fwmark: Option<u32>) -> Result<(), i32> {
        let mark = fwmark.unwrap_or(self.fwmark);
        // As a kernel device that is up, one that has a key has a port.
        let wanted = port.or_else(|| (self.port == 0 && key.is_some()).then_some(0));
        if let Some(wanted) = wanted
            && (wanted != self.port || wanted == 0)
        {
            let bound = self.sockets.bind_port(wanted, mark);
            self.port = bound.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))?;
        }
        self.fwmark = mark;
        if key.is_some() {
            self.private_key = key;
        }
        let (private_key, port) = (self.private_key.as_ref(), self.port);
        let written = self.device.write(async |device| {
            if let Some(mark) = fwmark {
                device.set_fwmark(mark)?;
            }
            // gotatun opens its socket as soon as it knows a port, and cannot do without a key then.
            if let Some(key) = private_key {
                device.set_private_key(StaticSecret::from(*key.expose_bytes())).await;
                device.set_listen_port(port);
            }
            Ok::<(), device::Error>(())
        });
        written.await.and_then(|inner| inner).map_err(|error| {
            tracing::error!(%error, "device");
            libc::EIO
        })
    }

    async fn set_peers(&mut self, request: &SetRequest, own: Option<WgPublicKey>) -> Result<Vec<WgPublicKey>, i32> {
        let mut gone: Vec<WgPublicKey> = own.into_iter().collect();
        if request.replace_peers {
            let named: std::collections::BTreeSet<_> = request.peers.iter().map(|peer| peer.public_key).collect();
            gone.extend(self.ledger.keys().filter(|key| !named.contains(key)));
        }
        for key in gone {
            let step = self.ledger.remove(&key);
            self.carry_out(step.into_iter().collect()).await?;
        }
        let live = self.live_endpoints(request).await;
        let mut shake = Vec::new();
        let mut turn = Vec::new();
        for change in &request.peers {
            let steps = self.ledger.apply(change, request.replace_peers, live.as_ref());
            shake.extend(steps.iter().filter_map(wants_handshake));
            let walks = steps.iter().any(|step| !matches!(step, Step::Add(..)));
            turn.extend(steps);
            if walks || turn.len() >= NEW_PEERS_PER_TURN {
                self.carry_out(std::mem::take(&mut turn)).await?;
            }
        }
        self.carry_out(turn).await?;
        Ok(shake)
    }

    /// Where packets to each peer go now, when the request names enough endpoints to make the walk worth it.
    async fn live_endpoints(&self, request: &SetRequest) -> Option<HashMap<WgPublicKey, SocketAddr>> {
        let known = |peer: &&PeerChange| peer.endpoint.is_some() && self.ledger.get(&peer.public_key).is_some();
        if request.peers.iter().filter(known).count() < ENDPOINTS_WORTH_ASKING {
            return None;
        }
        let peers = self.device.peers().await.into_iter();
        let endpoint = |stats: device::configure::PeerStats| {
            Some((WgPublicKey::from_bytes(stats.peer.public_key.to_bytes()), stats.peer.endpoint?))
        };
        Some(peers.filter_map(endpoint).collect())
    }

    /// Carries the steps out in one transaction: no packet sees a part of them.
    async fn carry_out(&self, steps: Vec<Step>) -> Result<(), i32> {
        if steps.is_empty() {
            return Ok(());
        }
        let written = self.device.write(async |device| {
            for step in steps {
                match step {
                    Step::Add(key, peer) => {
                        device.add_peer(new_peer(key, &peer));
                    }
                    Step::Modify(key, modification) => modify(device, key, modification).await,
                    Step::Remove(key) => {
                        device.remove_peer(&PublicKey::from(*key.as_bytes())).await;
                    }
                }
            }
        });
        written.await.map_err(|error| {
            tracing::error!(%error, "peers");
            libc::EIO
        })?;
        tokio::task::yield_now().await;
        Ok(())
    }
}

/// Sends an initiation to each peer that has an endpoint and no session.
pub(super) async fn shake_hands(device: Rc<WireGuard>, peers: Vec<WgPublicKey>) {
    stream::iter(peers)
        .for_each_concurrent(HANDSHAKES_AT_ONCE, |key| {
            let device = Rc::clone(&device);
            async move {
                let key = PublicKey::from(*key.as_bytes());
                // No answer is no fault here, nor is a peer that went meanwhile.
                let _ = tokio::time::timeout(HANDSHAKE_WAIT, device.force_handshake(&key)).await;
            }
        })
        .await;
}

fn wants_handshake(step: &Step) -> Option<WgPublicKey> {
    match step {
        Step::Add(key, peer) => peer.endpoint.map(|_| *key),
        Step::Modify(key, modification) => modification.endpoint.map(|_| *key),
        Step::Remove(_) => None,
    }
}

fn new_peer(key: WgPublicKey, peer: &Peer) -> device::Peer {
    let mut new = device::Peer::new(PublicKey::from(*key.as_bytes()));
    new.endpoint = peer.endpoint;
    new.preshared_key = peer.preshared_key.as_ref().map(|psk| *psk.expose_bytes());
    new.keepalive = (peer.keepalive != 0).then_some(peer.keepalive);
    new.allowed_ips = peer.allowed_ips.iter().map(network).collect();
    new
}

async fn modify<T: DeviceTransports>(
    device: &mut device::configure::DeviceWrite<'_, T>,
    key: WgPublicKey,
    modification: Modification,
) {
    let Modification { preshared_key, endpoint, keepalive, allowed_ips } = modification;
    let change = |peer: &mut device::configure::PeerMut| {
        if let Some(psk) = preshared_key {
            peer.set_preshared_key(psk.map(|psk| *psk.expose_bytes()));
        }
        if let Some(endpoint) = endpoint {
            peer.set_endpoint(Some(endpoint));
        }
        if let Some(seconds) = keepalive {
            peer.set_keepalive((seconds != 0).then_some(seconds));
        }
        if let Some(allowed_ips) = allowed_ips {
            peer.clear_allowed_ips();
            peer.add_allowed_ips(allowed_ips.iter().map(network));
        }
    };
    device.modify_peer(&PublicKey::from(*key.as_bytes()), change).await;
}

fn network(net: &Cidr) -> IpNetwork {
    match IpNetwork::new(net.network(), net.prefix_len()) {
        Ok(network) => network,
        Err(_) => unreachable!("a Cidr's prefix fits its family"),
    }
}
