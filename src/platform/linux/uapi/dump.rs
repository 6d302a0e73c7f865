//! The answer to `get=1`, both ways.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::{
    PresharedKey,
    decode::{hex_key, number},
    encode::{push, push_hex},
};
use crate::{
    clock::UnixTime,
    ids::{Cidr, WgPublicKey},
    object::{DeviceSpec, EndpointSpec, KeyPair, PeerSpec},
    observed::PeerStats,
    secret::PrivateKey,
};

/// A device as its process describes it. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceState {
    /// `None`: the device has no private key yet.
    pub public_key: Option<WgPublicKey>,
    /// UDP port; 0 while no socket is open.
    pub listen_port: u16,
    pub fwmark: u32,
    pub peers: Vec<PeerState>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerState {
    pub public_key: WgPublicKey,
    pub preshared: bool,
    /// Where packets to the peer go now: configured, or learned from it.
    pub endpoint: Option<SocketAddr>,
    pub last_handshake: Option<UnixTime>,
    /// Bytes received.
    pub rx: u64,
    /// Bytes sent.
    pub tx: u64,
    /// Seconds; 0 means none.
    pub keepalive: u16,
    pub allowed_ips: BTreeSet<Cidr>,
}

impl DeviceState {
    pub fn spec(&self) -> DeviceSpec {
        DeviceSpec { key: KeyPair::from_public(self.public_key), listen_port: self.listen_port, fwmark: self.fwmark }
    }
}

impl PeerState {
    pub fn spec(&self) -> PeerSpec {
        PeerSpec {
            endpoint: self.endpoint.map(|address| EndpointSpec { address, pinned: false, resolved: false }),
            keepalive: self.keepalive,
            allowed_ips: self.allowed_ips.clone(),
            preshared: self.preshared,
        }
    }

    pub fn stats(&self) -> PeerStats {
        PeerStats { last_handshake: self.last_handshake, rx_bytes: self.rx, tx_bytes: self.tx }
    }

    fn of(public_key: WgPublicKey) -> Self {
        Self {
            public_key,
            preshared: false,
            endpoint: None,
            last_handshake: None,
            rx: 0,
            tx: 0,
            keepalive: 0,
            allowed_ips: BTreeSet::new(),
        }
    }
}

/// A device as its process knows it, keys included: what `wg show` needs.
pub struct Dump {
    pub private_key: Option<PrivateKey>,
    pub listen_port: u16,
    pub fwmark: u32,
    pub peers: Vec<DumpPeer>,
}

pub struct DumpPeer {
    pub public_key: WgPublicKey,
    pub preshared_key: Option<PresharedKey>,
    pub endpoint: Option<SocketAddr>,
    pub last_handshake: Option<SystemTime>,
    pub rx: u64,
    pub tx: u64,
    pub keepalive: u16,
    pub allowed_ips: BTreeSet<Cidr>,
}

/// The text that answers `get=1`, `errno` and blank line included. Holds keys; wiped when dropped.
pub fn encode_dump(dump: &Dump) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(256 + dump.peers.len() * 512));
    if let Some(key) = &dump.private_key {
        push_hex(&mut text, "private_key", key.expose_bytes());
    }
    if dump.listen_port != 0 {
        push(&mut text, "listen_port", dump.listen_port);
    }
    if dump.fwmark != 0 {
        push(&mut text, "fwmark", dump.fwmark);
    }
    for peer in &dump.peers {
        push_peer(&mut text, peer);
    }
    text.push_str("errno=0\n\n");
    text
}

fn push_peer(text: &mut String, peer: &DumpPeer) {
    push_hex(text, "public_key", peer.public_key.as_bytes());
    let psk = peer.preshared_key.as_ref().map_or(&[0; 32], PresharedKey::expose_bytes);
    push_hex(text, "preshared_key", psk);
    push(text, "protocol_version", 1);
    if let Some(endpoint) = peer.endpoint {
        push(text, "endpoint", endpoint);
    }
    let handshake = peer.last_handshake.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    push(text, "last_handshake_time_sec", handshake.as_secs());
    push(text, "last_handshake_time_nsec", handshake.subsec_nanos());
    push(text, "tx_bytes", peer.tx);
    push(text, "rx_bytes", peer.rx);
    push(text, "persistent_keepalive_interval", peer.keepalive);
    for net in &peer.allowed_ips {
        push(text, "allowed_ip", net);
    }
}

/// Reads a whole answer, up to and without its blank line.
///
/// # Errors
/// `Ok(Err(errno))` when the device refused; `Err` with the line that could not be read (its key only) when it is no answer at all.
/// Keys that are not known are passed over: another implementation may say more.
pub fn decode_dump(text: &str) -> Result<Result<DeviceState, i32>, String> {
    let mut state = DeviceState::default();
    for line in text.lines() {
        let (key, value) = line.split_once('=').ok_or_else(|| "a line without a value".to_owned())?;
        if key == "errno" {
            let errno: i32 = value.parse().map_err(|_| "errno".to_owned())?;
            return Ok(if errno == 0 { Ok(state) } else { Err(errno) });
        }
        take_line(&mut state, key, value).map_err(|_| key.to_owned())?;
    }
    Err("no errno at the end".to_owned())
}

fn take_line(state: &mut DeviceState, key: &str, value: &str) -> Result<(), i32> {
    match key {
        "private_key" => {
            let bytes = Zeroizing::new(hex_key(value)?);
            if *bytes != [0; 32] {
                state.public_key = Some(PrivateKey::from_random_bytes(*bytes).public_key());
            }
            return Ok(());
        }
        "listen_port" => {
            state.listen_port = number(value)?;
            return Ok(());
        }
        "fwmark" => {
            state.fwmark = number(value)?;
            return Ok(());
        }
        "public_key" => {
            let public_key = WgPublicKey::from_bytes(hex_key(value)?);
            state.peers.push(PeerState::of(public_key));
            return Ok(());
        }
        _ => {}
    }
    let Some(peer) = state.peers.last_mut() else {
        return Ok(());
    };
    match key {
        "preshared_key" => peer.preshared = *Zeroizing::new(hex_key(value)?) != [0; 32],
        "endpoint" => peer.endpoint = Some(value.parse().map_err(|_| libc::EINVAL)?),
        "last_handshake_time_sec" => {
            let seconds: u64 = number(value)?;
            peer.last_handshake = (seconds != 0).then_some(UnixTime(seconds));
        }
        "rx_bytes" => peer.rx = number(value)?,
        "tx_bytes" => peer.tx = number(value)?,
        "persistent_keepalive_interval" => peer.keepalive = number(value)?,
        "allowed_ip" => {
            let net: IpNet = value.parse().map_err(|_| libc::EINVAL)?;
            peer.allowed_ips.insert(Cidr::containing(net));
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn dump() -> Dump {
        Dump {
            private_key: Some(PrivateKey::from_random_bytes([9; 32])),
            listen_port: 51820,
            fwmark: 0,
            peers: vec![
                DumpPeer {
                    public_key: WgPublicKey::from_bytes([1; 32]),
                    preshared_key: Some(PresharedKey::from_bytes([2; 32])),
                    endpoint: Some("192.0.2.1:7".parse().unwrap()),
                    last_handshake: Some(UNIX_EPOCH + Duration::new(1_700_000_000, 5)),
                    rx: 10,
                    tx: 20,
                    keepalive: 25,
                    allowed_ips: ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()].into(),
                },
                DumpPeer {
                    public_key: WgPublicKey::from_bytes([3; 32]),
                    preshared_key: None,
                    endpoint: None,
                    last_handshake: None,
                    rx: 0,
                    tx: 0,
                    keepalive: 0,
                    allowed_ips: BTreeSet::new(),
                },
            ],
        }
    }

    #[test]
    fn a_dump_that_was_written_reads_as_the_same_device_without_its_secrets() {
        let dump = dump();
        let state = decode_dump(&encode_dump(&dump)).unwrap().unwrap();
        assert_eq!(state.public_key, dump.private_key.as_ref().map(PrivateKey::public_key));
        assert_eq!((state.listen_port, state.fwmark), (51820, 0));
        for (read, written) in state.peers.iter().zip(&dump.peers) {
            assert_eq!(read.public_key, written.public_key);
            assert_eq!(read.preshared, written.preshared_key.is_some());
            assert_eq!(read.endpoint, written.endpoint);
            assert_eq!(read.last_handshake, written.last_handshake.map(UnixTime::from_system));
            assert_eq!((read.rx, read.tx, read.keepalive), (written.rx, written.tx, written.keepalive));
            assert_eq!(read.allowed_ips, written.allowed_ips);
        }
        assert!(!format!("{state:?}").contains("9, 9, 9"));
    }

    #[test]
    fn an_answer_that_was_cut_short_is_not_a_device() {
        let text = encode_dump(&dump());
        let body = text.strip_suffix("errno=0\n\n").unwrap();
        assert!(decode_dump(body).is_err());
        assert!(decode_dump("listen_port=x\nerrno=0\n").is_err());
    }

    #[test]
    fn an_errno_is_an_answer_and_not_a_device() {
        assert_eq!(decode_dump("errno=22\n"), Ok(Err(22)));
    }
}
