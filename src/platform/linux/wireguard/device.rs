//! The conversation with the kernel about WireGuard devices.
//!
//! Owns the generic netlink socket, and what is done about a refusal: a batch is tried again peer by peer, so that one bad peer
//! fails alone (A34). Leaves what messages say to [`write`](super::write) and [`read`](super::read).
//!
//! Upholds I-05, I-08, I-14 (requests and answers that hold keys are overwritten), I-15.
//!
//! Whether the kernel can remove one allowed IP (`WGALLOWEDIP_F_REMOVE_ME`) is not asked but tried: one that cannot answers
//! `EINVAL`, because the attribute is outside its policy, and everything in the message before that point is idempotent.

use std::{collections::BTreeMap, io, sync::mpsc::Sender};

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_ACK, NLM_F_REQUEST, NlasIterator};
use netlink_packet_wireguard::WireguardAttribute;
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;
use zeroize::Zeroize;

use super::{
    read::{self, DeviceReading, GENL_HEADER},
    write::{self, PeerChange},
};
use crate::{
    action::Action,
    ids::{Cidr, IfName, WgPublicKey},
    object::{DeviceSpec, Key, PeerSpec, Spec},
    observed::{Observed, PeerStats},
    platform::{
        ActionError,
        linux::{
            errno::Fault,
            links::FoundLink,
            socket::{CALL_LIMIT, Channel, frame},
        },
    },
};

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_VERSION: u8 = 1;
const WG_CMD_GET_DEVICE: u8 = 0;
const WG_CMD_SET_DEVICE: u8 = 1;
/// `WG_GENL_VERSION` (linux/wireguard.h).
const WG_VERSION: u8 = 1;

/// How an allowed IP leaves its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Removal {
    /// By `WGALLOWEDIP_F_REMOVE_ME`; also as long as the kernel was not heard to refuse it.
    Flag,
    /// By a move to a peer that is then deleted.
    Parking,
}

/// A generic netlink request.
struct Request<A: netlink_packet_core::Nla> {
    command: u8,
    version: u8,
    attributes: Vec<A>,
}

impl<A: netlink_packet_core::Nla> Emitable for Request<A> {
    fn buffer_len(&self) -> usize {
        GENL_HEADER + self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer[..GENL_HEADER].copy_from_slice(&[self.command, self.version, 0, 0]);
        self.attributes.as_slice().emit(&mut buffer[GENL_HEADER..]);
    }
}

/// The kernel's WireGuard, for all devices of the namespace.
pub(in crate::platform::linux) struct WireGuard {
    channel: Channel,
    family: Option<u16>,
    removal: Removal,
    /// Gets every configuration message as sent, from its `nlmsghdr` on. For tests: the bytes hold private keys.
    capture: Option<Sender<Vec<u8>>>,
}

impl WireGuard {
    pub(in crate::platform::linux) fn open(capture: Option<Sender<Vec<u8>>>) -> io::Result<Self> {
        Ok(Self { channel: Channel::open(NETLINK_GENERIC)?, family: None, removal: Removal::Flag, capture })
    }

    /// The device behind a link, and its peers, as objects; with the reason when they may not be all.
    pub(in crate::platform::linux) async fn observe(
        &mut self,
        link: &FoundLink,
        name: &IfName,
    ) -> Result<(Vec<(Key, Observed)>, Option<String>), Fault> {
        let (reading, cut) = self.read(link.index).await?;
        Ok((reading.into_objects(name), cut))
    }

    /// Configures the device behind a link whose mark was seen.
    pub(in crate::platform::linux) async fn configure(
        &mut self,
        link: &FoundLink,
        action: &Action,
    ) -> Result<(), ActionError> {
        let mut attributes = vec![WireguardAttribute::IfIndex(link.index)];
        attributes.extend(device_fields(action)?);
        self.set(attributes).await.map_err(|fault| fault.to_action(&format!("configure device {}", link.name)))
    }

    /// Changes peers of the device behind a link whose mark was seen; one outcome for each action.
    pub(in crate::platform::linux) async fn apply(
        &mut self,
        link: &FoundLink,
        actions: &[Action],
    ) -> Vec<Result<(), ActionError>> {
        let changes: Vec<_> = actions.iter().map(PeerChange::of).collect();
        let whole: Vec<_> = changes.iter().flatten().cloned().collect();
        let mut failed = match self.apply_batch(link.index, &whole, &mut None).await {
            Ok(()) => return changes.into_iter().map(|change| change.map(drop)).collect(),
            Err(fault) => fault,
        };
        let mut hopeless = actions.len() == 1 || concerns_all(&failed);
        let mut holders = None;
        let mut outcomes = Vec::with_capacity(actions.len());
        for (action, change) in actions.iter().zip(changes) {
            let outcome = match change {
                Err(error) => Err(error),
                Ok(_) if hopeless => Err(described(&failed, action)),
                Ok(change) => match self.apply_batch(link.index, &[change], &mut holders).await {
                    Ok(()) => Ok(()),
                    Err(fault) => {
                        let error = described(&fault, action);
                        hopeless = concerns_all(&fault);
                        failed = fault;
                        Err(error)
                    }
                },
            };
            outcomes.push(outcome);
        }
        outcomes
    }

    /// Sends changes in as few messages as they fit in. `holders` is read when it is needed and then kept up to date.
    async fn apply_batch(
        &mut self,
        index: u32,
        changes: &[PeerChange],
        holders: &mut Option<BTreeMap<Cidr, WgPublicKey>>,
    ) -> Result<(), Fault> {
        let mut changes = changes.to_vec();
        write::elide_moves(&mut changes);
        let removes = changes.iter().any(|change| !change.drop.is_empty());
        if removes && self.removal == Removal::Flag {
            match self.send(index, &changes).await {
                Err(fault) if fault.errno() == Some(Errno::EINVAL) => {
                    tracing::debug!("this kernel cannot remove a single allowed IP; they are moved away instead");
                    self.removal = Removal::Parking;
                }
                other => return other,
            }
        }
        if removes {
            let held = match holders.take() {
                Some(held) => held,
                None => self.holders(index).await?,
            };
            write::park_removals(&mut changes, holders.insert(held));
        }
        if let Some(held) = holders {
            for change in &changes {
                // Also when sending fails half-way: who may have got it is not to lose it.
                let holder = WgPublicKey::from_bytes(change.public_key);
                held.extend(change.add.iter().map(|network| (*network, holder)));
            }
        }
        self.send(index, &changes).await
    }

    async fn holders(&mut self, index: u32) -> Result<BTreeMap<Cidr, WgPublicKey>, Fault> {
        let (reading, cut) = self.read(index).await?;
        if cut.is_some() {
            return Err(Fault::Garbled("the holders of the allowed IPs could not be read whole"));
        }
        let of_peer = |(key, (spec, _)): (&WgPublicKey, &(PeerSpec, PeerStats))| {
            let key = *key;
            spec.allowed_ips.iter().map(|network| (*network, key)).collect::<Vec<_>>()
        };
        Ok(reading.peers.iter().flat_map(of_peer).collect())
    }

    async fn send(&mut self, index: u32, changes: &[PeerChange]) -> Result<(), Fault> {
        for peers in write::pack(changes) {
            let attributes = vec![WireguardAttribute::IfIndex(index), WireguardAttribute::Peers(peers)];
            self.set(attributes).await?;
        }
        Ok(())
    }

    async fn set(&mut self, mut attributes: Vec<WireguardAttribute>) -> Result<(), Fault> {
        let family = match self.family().await {
            Ok(family) => family,
            Err(fault) => {
                wipe_keys(&mut attributes);
                return Err(fault);
            }
        };
        let mut request = Request { command: WG_CMD_SET_DEVICE, version: WG_VERSION, attributes };
        let mut frame = frame(family, NLM_F_REQUEST | NLM_F_ACK, &request);
        wipe_keys(&mut request.attributes);
        if let Some(capture) = &self.capture {
            // A test that stopped listening is no reason to fail.
            let _ = capture.send(frame.to_vec());
        }
        let outcome = self.channel.send(&mut frame, CALL_LIMIT).await;
        self.forget_family_if_unknown(&outcome);
        outcome
    }

    async fn read(&mut self, index: u32) -> Result<(DeviceReading, Option<String>), Fault> {
        let family = self.family().await?;
        let request = Request {
            command: WG_CMD_GET_DEVICE,
            version: WG_VERSION,
            attributes: vec![WireguardAttribute::IfIndex(index)],
        };
        let dump = self.channel.dump(family, &request, |kind, body| (kind == family).then(|| read::parse(body))?).await;
        self.channel.wipe();
        self.forget_family_if_unknown(&dump);
        let dump = dump?;
        let reading = read::assemble(dump.items).ok_or(Fault::Garbled("a peer could not be read"))?;
        Ok((reading, dump.cut))
    }

    /// The number that the kernel gave to its WireGuard family; asking loads the module.
    async fn family(&mut self) -> Result<u16, Fault> {
        if let Some(family) = self.family {
            return Ok(family);
        }
        let request = Request {
            command: CTRL_CMD_GETFAMILY,
            version: CTRL_VERSION,
            attributes: vec![DefaultNla::new(CTRL_ATTR_FAMILY_NAME, b"wireguard\0".to_vec())],
        };
        let family = self.channel.get(GENL_ID_CTRL, &request, |_, body| family_id(body)).await;
        match family {
            Ok(family) => {
                self.family = Some(family);
                Ok(family)
            }
            Err(fault) if fault.errno() == Some(Errno::ENOENT) => {
                Err(Fault::Refused(Errno::EOPNOTSUPP, "this kernel has no WireGuard".to_owned()))
            }
            Err(fault) => Err(fault),
        }
    }

    /// A module that was unloaded and loaded again has another number.
    fn forget_family_if_unknown<T>(&mut self, outcome: &Result<T, Fault>) {
        if let Err(fault) = outcome
            && fault.errno() == Some(Errno::ENOENT)
        {
            self.family = None;
        }
    }
}

fn wipe_keys(attributes: &mut [WireguardAttribute]) {
    for attribute in attributes {
        if let WireguardAttribute::PrivateKey(key) = attribute {
            key.zeroize();
        }
    }
}

fn family_id(body: &[u8]) -> Option<u16> {
    NlasIterator::new(body.get(GENL_HEADER..)?)
        .flatten()
        .find(|attribute| attribute.kind() == CTRL_ATTR_FAMILY_ID)
        .and_then(|attribute| Some(u16::from_ne_bytes(attribute.value().try_into().ok()?)))
}

fn described(fault: &Fault, action: &Action) -> ActionError {
    fault.to_action(&format!("{} {}", action.verb(), action.key()))
}

/// True for a failure that every peer of the device would meet: trying them one by one would only take time (I-15).
fn concerns_all(fault: &Fault) -> bool {
    match fault {
        Fault::Timeout(_) | Fault::Garbled(_) => true,
        Fault::Refused(errno, _) => {
            fault.is_gone() || matches!(errno, Errno::EPERM | Errno::EACCES | Errno::EOPNOTSUPP)
        }
    }
}

/// What an action says about a device: all of it, or only what differs.
fn device_fields(action: &Action) -> Result<Vec<WireguardAttribute>, ActionError> {
    let device_of = |spec: &Spec| match spec {
        Spec::Device(device) => Ok(device.clone()),
        _ => Err(ActionError::Failed("a device's action must carry a device".into())),
    };
    let (from, to): (Option<DeviceSpec>, DeviceSpec) = match action {
        Action::Create { spec, .. } => (None, device_of(spec)?),
        Action::Update { from, to, .. } => (Some(device_of(from)?), device_of(to)?),
        // The device lives as long as its link: without a key it does nothing.
        Action::Delete { .. } => return Ok(vec![WireguardAttribute::PrivateKey([0; 32])]),
    };
    let differs = |field: fn(&DeviceSpec) -> u32| from.as_ref().is_none_or(|from| field(from) != field(&to));
    let mut fields = Vec::new();
    if from.as_ref().is_none_or(|from| from.key != to.key) {
        let Some(private) = &to.key.private else {
            return Err(ActionError::Failed("no private key".into()));
        };
        fields.push(WireguardAttribute::PrivateKey(*private.expose_bytes()));
    }
    if differs(|device| u32::from(device.listen_port)) {
        fields.push(WireguardAttribute::ListenPort(to.listen_port));
    }
    if differs(|device| device.fwmark) {
        fields.push(WireguardAttribute::Fwmark(to.fwmark));
    }
    Ok(fields)
}
